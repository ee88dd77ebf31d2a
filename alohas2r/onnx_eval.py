"""Measures exported policies: the ONNX file acts, everything else is as for the artifact it was made from.

Measuring and control stay jitted; between them the file's network runs once per step, for all episodes together.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r import config, evaluate, runlog, senses, student_eval
from alohas2r.env import Env
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.history import HistoryConfig
from alohas2r.onnx_policy import OnnxPolicy
from alohas2r.policy import PolicySpec
from alohas2r.protocol import Protocol
from alohas2r.senses import Seen, Senses
from alohas2r.student import SIDES, StudentSpec


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedPolicy:
    """An ONNX file and the description of the artifact that it was made from.

    Attributes:
      file: the policy.
      kind: "state", "staged" or "student".
      spec: of the artifact; of the insertion policy, if it is staged.
    """

    file: OnnxPolicy
    kind: str
    spec: PolicySpec | StudentSpec

    @property
    def hash(self) -> str:
        """That of the artifact."""
        return self.file.hash


def load(path: str | os.PathLike[str]) -> ExportedPolicy:
    """Reads an exported policy and verifies it.

    Raises:
      ArtifactError: the file cannot be read, fails its check, or was made from nothing that is known here.
    """
    file = OnnxPolicy.load(path)
    try:
        kind = str(file.description["kind"])
        described = file.description["parts"]["insert"] if kind == "staged" else file.description
        if kind not in ("state", "staged", "student"):
            raise ValueError(f"kind '{kind}'")
        of: type[Any] = StudentSpec if kind == "student" else PolicySpec
        fields = {field.name: described[field.name] for field in dataclasses.fields(of)}
        return ExportedPolicy(file, kind, config.from_dict(of, fields))
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} has no valid description of its policy: {error}") from error


def run(
    policy: ExportedPolicy,
    protocol: Protocol,
    keys: jax.Array,
    threads: int = 0,
    meter: runlog.Meter | None = None,
    done_before: int = 0,
    *,
    renderer: str = "auto",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs one whole episode per key.

    Args:
      policy: what acts.
      protocol: distributions, noise, delays and thresholds.
      keys: [N, 2] of the episodes.
      threads: of physics and ray caster; 0 for all cores.
      meter: receives counts of episodes, on top of `done_before`.
      renderer: of a student's pictures; see senses.RENDERERS.

    Returns:
      As `evaluate.run_pick`, `evaluate.run_insert` or `student_eval.run_student`.
    """
    spec = policy.spec
    if isinstance(spec, StudentSpec):
        return _run_student(policy, spec, protocol, keys, threads, meter, done_before, renderer)
    make = evaluate.pick_env if policy.kind == "state" else evaluate.insert_env
    env, varied = make(protocol, spec.history, keys, threads)
    observe, control = jax.jit(env.observe), jax.jit(env.control)

    def act(state: Any, readout: Any, alive: np.ndarray) -> tuple[Any, jax.Array]:
        del alive
        switched = np.asarray(state.task.switched) if policy.kind == "staged" else None
        state, features, _ = observe(state, readout)
        inputs = {"features": np.asarray(features)}
        inputs |= {} if switched is None else {"switched": switched}
        return control(state, readout, _actions(policy, inputs))

    episodes = evaluate.pick_episodes if policy.kind == "state" else evaluate.insert_episodes
    return episodes(env, varied, act, protocol, keys, meter, done_before)


def _run_student(
    policy: ExportedPolicy,
    spec: StudentSpec,
    protocol: Protocol,
    keys: jax.Array,
    threads: int,
    meter: runlog.Meter | None,
    done_before: int,
    renderer: str,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs a student with the random numbers that `student_eval.run_student` gives the artifact."""
    sees = spec.has_rgb or spec.has_depth
    memory = HistoryConfig(()) if sees else spec.history
    env, half = evaluate.insert_env(protocol, memory, keys, threads)
    eyes, sense = None, None
    if sees:
        drawer = senses.make_renderer(renderer, spec.cameras.size, threads)
        eyes = Senses(spec, senses.EVALUATION, half, drawer)
        stream = functools.partial(jax.random.fold_in, data=student_eval._SENSES)
        sense = eyes.reset(jax.vmap(stream)(keys))
    perceive = jax.jit(lambda *given: _perceive(env, eyes, *given))
    control = jax.jit(env.control)

    def act(state: Any, readout: Any, alive: np.ndarray) -> tuple[Any, jax.Array]:
        nonlocal sense
        del alive
        drawn = None if eyes is None or sense is None else eyes.draw(sense, readout.qpos)
        state, sense, seen = perceive(state, readout, sense, drawn)
        seen = jax.tree.map(np.asarray, seen)
        inputs = {"features": seen.features, "switched": np.asarray(state.task.switched)}
        for kind, pictures in (("rgb", seen.rgb), ("depth", seen.depth)):
            if pictures is not None:
                inputs |= {f"{side}_{kind}": pictures[:, i] for i, side in enumerate(SIDES)}
        return control(state, readout, _actions(policy, inputs))

    return evaluate.insert_episodes(env, half, act, protocol, keys, meter, done_before)


def _perceive(
    env: Env, eyes: Senses | None, state: Any, readout: Any, sense: Any, drawn: Any
) -> tuple[Any, Any, Seen]:
    """Measures what a student observes (traceable): new states of environment and senses, and what is seen."""
    state, known, _ = env.observe(state, readout)
    if eyes is None:  # the teacher's own observation
        return state, sense, Seen(None, None, known[:, : env.task.observation_size], known)
    frames, brightness = drawn
    sense, seen = eyes.perceive(sense, frames, brightness, env.extract(readout))
    return state, sense, seen


def _actions(policy: ExportedPolicy, inputs: dict[str, np.ndarray]) -> jax.Array:
    """Runs the network for all episodes at once -> [N, n]."""
    names = [one.name for one in policy.file.interface.network_inputs]
    return jnp.asarray(policy.file.network({name: inputs[name] for name in names}))
