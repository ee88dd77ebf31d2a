"""The networks that can be exported."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from alohas2r import config
from alohas2r.core.types import Array, JsonObject
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.policies import artifact, vision
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.networks.convolution import convolve
from alohas2r.policies.networks.vision import Encoder
from alohas2r.policies.online import policy as online
from alohas2r.policies.online.encoder import encode, middle, pictures_of
from alohas2r.policies.online.networks import see
from alohas2r.policies.online.policy import OnlinePolicy
from alohas2r.policies.online.spec import HOLD, RECENT, SeeingSpec
from alohas2r.policies.onnx.interface import OUTPUT, Input, Interface, Memory, Part
from alohas2r.policies.onnx.samples import Arrays, random_features, random_flags, wrist_views
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.state import StatePolicy


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A policy as a pure JAX function, ready to be exported.

    Attributes:
      apply: (weights by name, inputs by name [B, ...]) -> actions [B, n] in [-1, 1]. It computes
        everything from the raw inputs on; weights must reach it through its argument alone.
      weights: name -> float32 array.
      interface: what goes in and comes out.
      action: what the actions mean, with the keys of `policy.ActionSpec`.
      description: the artifact's policy.json, with its "hash".
      check: recorded observations, each of `interface.inputs` as [T, ...], and "actions" [T, n],
        those that the artifact returned in this order after a reset.
      samples: realistic network inputs, each of `interface.network_inputs` as [S, ...].
    """

    apply: Callable[[Mapping[str, Array], Mapping[str, Array]], Array]
    weights: Arrays
    interface: Interface
    action: JsonObject
    description: JsonObject
    check: Arrays
    samples: Arrays


def load_network(policy_path: str | os.PathLike[str], samples: int = 256, seed: int = 0) -> Network:
    """Reads an artifact as a JAX function, of whatever kind the policy is.

    Args:
      policy_path: the artifact's directory.
      samples: how many inputs to draw for the verification.
      seed: of these.

    Raises:
      ArtifactError: the policy cannot be read.
    """
    description = artifact.describe(policy_path)
    loaded = artifact.load(policy_path)
    recorded = artifact.read_npz(pathlib.Path(policy_path) / "check.npz")
    if isinstance(loaded, OnlinePolicy):
        return online_network(loaded, description, recorded, samples, seed)
    if isinstance(loaded, vision.StudentPolicy):
        return student_network(loaded, description, recorded, samples, seed)
    assert isinstance(loaded, StatePolicy | StagedPolicy)
    return state_network(loaded, description, recorded, samples, seed)


def state_network(
    loaded: StatePolicy | StagedPolicy,
    description: JsonObject,
    recorded: Arrays,
    samples: int,
    seed: int = 0,
) -> Network:
    """Returns a policy on state observations, single or staged, as a JAX function.

    Args:
      loaded: the policy; its description: policy.json.
      description: policy.json.
      recorded: check.npz: "observations" [T, n], "switched" [T], "actions" [T, n].
      samples: how many inputs to draw for the verification.
      seed: of these.
    """
    spec = loaded.spec
    parts = tuple(Part(part.name, part.size, part.unit) for part in spec.observation)
    observation = Input("observation", (spec.observation_size,), "float32", parts=parts)
    staged = isinstance(loaded, StagedPolicy)
    switched = (Input("switched", (), "bool", "1"),) if staged else ()
    interface = Interface(
        inputs=(observation, *switched),
        memories=(Memory("observation", "features", spec.history),),
        actions=loaded.action_size,
    )
    if staged:
        weights = {f"pick/{name}": value for name, value in loaded.pick.weights.items()}
        weights |= {f"insert/{name}": value for name, value in loaded.insert.weights.items()}
    else:
        weights = dict(loaded.weights)

    def apply(weights: Mapping[str, Array], inputs: Mapping[str, Array]) -> Array:
        if not isinstance(loaded, StagedPolicy):
            return _with_weights(loaded, weights, "").apply(inputs["features"], jnp)
        other = copy.copy(loaded)
        other.pick = _with_weights(loaded.pick, weights, "pick/")
        other.insert = _with_weights(loaded.insert, weights, "insert/")
        return other.apply(inputs["features"], inputs["switched"], jnp)

    last, rows = loaded.insert if staged else loaded, recorded["observations"]
    half = samples // 2  # at least so many are drawn: few recorded ones hardly differ
    normal = last.weights["mean"], last.weights["std"]
    drawn = {"features": random_features(spec.history, normal, rows[:half], samples, seed)}
    check_data = {"observation": rows, OUTPUT: recorded["actions"]}
    if staged:
        drawn["switched"] = random_flags(recorded["switched"][:half], samples, seed)
        check_data["switched"] = recorded["switched"]
    return Network(
        apply, weights, interface, config.to_dict(spec.action), description, check_data, drawn
    )


def _with_weights(part: StatePolicy, weights: Mapping[str, Array], prefix: str) -> StatePolicy:
    other = copy.copy(part)
    other.weights = {name: weights[prefix + name] for name in part.weights}
    return other


def student_network(
    loaded: vision.StudentPolicy,
    description: JsonObject,
    recorded: Arrays,
    samples: int,
    seed: int = 0,
) -> Network:
    """Returns a policy on wrist pictures as a JAX function of raw sensor inputs.

    Args:
      loaded: the policy; its description: policy.json.
      description: policy.json.
      recorded: check.npz: each of the policy's inputs as [T, ...], and "actions" [T, n].
      samples: how many inputs to draw for the verification; pictures are rendered.
      seed: of these.
    """
    spec = loaded.spec
    parts = tuple(Part(part.name, part.size, part.unit) for part in spec.proprioception)
    inputs = tuple(
        Input(name, shape, dtype, parts=parts)
        if name == spec.vector
        else Input(name, shape, dtype, unit)
        for name, (shape, dtype, unit) in spec.inputs.items()
    )
    memory = Memory(spec.vector, "features", spec.history)
    interface = Interface(inputs, (memory,), loaded.action_size)
    half = samples // 2  # at least so many are drawn: few recorded ones hardly differ
    drawn = {
        "features": random_features(
            spec.history, loaded.normalization, recorded[spec.vector][:half], samples, seed
        ),
    }
    if spec.switches:
        drawn["switched"] = random_flags(recorded["switched"][:half], samples, seed)
    if spec.has_rgb or spec.has_depth:
        views = wrist_views(spec.cameras.size, samples, seed, spec.views, spec.paired)
        for name in views.keys() & spec.inputs.keys():
            drawn[name] = np.concatenate([recorded[name][:half], views[name]])[:samples]
    apply = functools.partial(vision_network.forward, spec)
    check_data = {name: recorded[name] for name in (*spec.inputs, OUTPUT)}
    action = config.to_dict(spec.action)
    return Network(apply, loaded.weights, interface, action, description, check_data, drawn)


def online_network(
    loaded: OnlinePolicy,
    description: JsonObject,
    recorded: Arrays,
    samples: int,
    seed: int = 0,
) -> Network:
    """Returns a policy that was learnt on a robot as a JAX function of raw sensor inputs.

    Args:
      loaded: the policy; its description: policy.json.
      description: policy.json.
      recorded: check.npz: each of the policy's inputs as [T, ...], and "actions" [T, n].
      samples: how many inputs to draw for the verification; pictures are rendered.
      seed: of these.
    """
    spec = loaded.spec
    rgb_name, depth_name = f"{spec.side}_rgb", f"{spec.side}_depth"
    shapes = spec.inputs
    inputs = tuple(Input(name, *one) for name, one in shapes.items())
    memory = Memory("proprioception", "features", HistoryConfig(()), RECENT)
    interface = Interface(inputs, (memory,), loaded.action_size, HOLD)

    def apply(weights: Mapping[str, Array], inputs: Mapping[str, Array]) -> Array:
        flat = {
            name.removeprefix("eyes/"): value
            for name, value in weights.items()
            if name.startswith("eyes/Conv")
        }
        tree = flax.traverse_util.unflatten_dict(flat, sep="/")
        colours = vision_network.scale_rgb(inputs[rgb_name])
        near = vision_network.scale_depth(inputs[depth_name], spec.cameras.depth_cutoff)
        if isinstance(spec, SeeingSpec):
            pictures = middle(spec.encoder, pictures_of(colours, near, jnp))
            seen = encode(spec.encoder, weights, pictures, convolve, jnp)
        else:
            places = Encoder(spec.network.filters, False).apply({"params": tree}, colours)
            seen = see(spec, weights, places, near, jnp)
        return online.network_actions(spec, weights, seen, inputs["features"], jnp)

    half = samples // 2
    draw = np.random.default_rng(seed)
    felt = recorded["proprioception"][draw.integers(0, len(recorded["proprioception"]), samples)]
    several = [felt + draw.normal(0, 0.01, felt.shape) for _ in range(RECENT + 1)]
    drawn = {"features": np.concatenate(several, -1).astype(np.float32)}
    views = wrist_views(spec.cameras.size, samples, seed, (spec.side,))
    for name in (rgb_name, depth_name):
        drawn[name] = np.concatenate([recorded[name][:half], views[name]])[:samples]
    check_data = {name: recorded[name] for name in (*shapes, OUTPUT)}
    action = online.action_of(spec)
    return Network(apply, loaded.weights, interface, action, description, check_data, drawn)
