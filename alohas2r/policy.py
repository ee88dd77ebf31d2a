"""Policy artifacts: one directory with policy.json, weights.npz and check.npz.

policy.json says what goes in and what comes out, with shapes and units, and how the policy was trained;
weights.npz holds plain arrays (no pickle); check.npz holds inputs and the actions they must give, verified at
every load.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from alohas2r import config, history, runlog
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.history import HistoryConfig
from alohas2r.switching import Switch

if TYPE_CHECKING:
    from alohas2r.onnx_policy import OnnxPolicy as OnnxPolicy
    from alohas2r.student import StudentPolicy

FORMAT_VERSION = 1
CHECK_TOLERANCE = 1e-4


def __getattr__(name: str) -> Any:
    """Gives `OnnxPolicy`, which needs onnxruntime; only who asks for it loads that."""
    if name == "OnnxPolicy":
        from alohas2r import onnx_policy

        return onnx_policy.OnnxPolicy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclasses.dataclass(frozen=True)
class ActionSpec:
    """What the actions mean.

    Attributes:
      joints: actuator names in order.
      scale: change of a joint's target by a full action (rad; m of finger travel).
      low, high: limits of the targets (rad, m).
      control_period_s: time between actions.
    """

    joints: tuple[str, ...]
    scale: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    control_period_s: float


@dataclasses.dataclass(frozen=True)
class ObservationPart:
    """A named slice of the observation vector."""

    name: str
    size: int
    unit: str


@dataclasses.dataclass(frozen=True)
class PolicySpec:
    """Everything but the weights.

    Attributes:
      kind: "state" for a policy on named state observations.
      phase: "pick" or "insert".
      observation: the parts of the observation vector, in order.
      history: what the policy remembers.
      action: what its actions mean.
      hidden: hidden layers; activation: between them.
    """

    kind: str
    phase: str
    observation: tuple[ObservationPart, ...]
    history: HistoryConfig
    action: ActionSpec
    hidden: tuple[int, ...]
    activation: str

    @property
    def observation_size(self) -> int:
        """Length of the observation vector."""
        return sum(part.size for part in self.observation)


class StatePolicy:
    """A deterministic policy on state observations.

    Args:
      spec: its description.
      weights: "mean", "std" [F] of the features, and "layer<i>/kernel", "layer<i>/bias".
      trained: how it was trained, for policy.json.
    """

    def __init__(
        self, spec: PolicySpec, weights: Mapping[str, np.ndarray], trained: Mapping[str, Any]
    ):
        self.spec = spec
        self.weights = {name: np.asarray(value, np.float32) for name, value in weights.items()}
        self.trained = dict(trained)
        self._memory: history.HistoryState | None = None
        sizes = [
            spec.history.size(spec.observation_size),
            *spec.hidden,
            2 * len(spec.action.joints),
        ]
        expected: dict[str, tuple[int, ...]] = {"mean": (sizes[0],), "std": (sizes[0],)}
        for layer, shape in enumerate(itertools.pairwise(sizes)):
            expected[f"layer{layer}/kernel"] = shape
            expected[f"layer{layer}/bias"] = shape[1:]
        found = {name: value.shape for name, value in self.weights.items()}
        if found != expected:
            wrong = sorted(
                name
                for name in expected.keys() | found.keys()
                if expected.get(name) != found.get(name)
            )[0]
            raise ArtifactError(
                f"The weights do not fit policy.json: '{wrong}' is {found.get(wrong)}, not {expected.get(wrong)}."
            )

    @property
    def action_size(self) -> int:
        """Number of actions."""
        return len(self.spec.action.joints)

    def apply(self, features: Any, xp: Any) -> Any:
        """Maps features [..., F] to actions [..., n] in [-1, 1]; `xp` is numpy or jax.numpy."""
        values = xp.clip((features - self.weights["mean"]) / self.weights["std"], -10.0, 10.0)
        layers = len(self.spec.hidden) + 1
        for layer in range(layers):
            values = (
                values @ self.weights[f"layer{layer}/kernel"] + self.weights[f"layer{layer}/bias"]
            )
            if layer < layers - 1:
                values = activate(self.spec.activation, values, xp)
        return xp.tanh(values[..., : self.action_size])

    def reset(self) -> None:
        """Forgets the past."""
        self._memory = None

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Returns the action [n] for one observation [53] and remembers it.

        Raises:
          ArtifactError: the observation has the wrong shape or is not finite.
        """
        self._memory, features = _remember(self.spec, self._memory, observation)
        return self.apply(features, np)

    @property
    def hash(self) -> str:
        """Identifies what the policy computes: its description and weights."""
        digest = hashlib.sha256(config.digest(self.spec).encode())
        for name in sorted(self.weights):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.weights[name]).tobytes())
        return digest.hexdigest()


class StagedPolicy:
    """The teacher: a pick policy drives each arm until the switch, then an insertion policy drives both.

    Both see the same moving averages of the two-arm observation, which run on through the switch.

    Args:
      pick: the single-arm policy.
      insert: the two-arm policy.
      switch: when insertion takes over.
      trained: how it was made, for policy.json.
    """

    def __init__(
        self, pick: StatePolicy, insert: StatePolicy, switch: Switch, trained: Mapping[str, Any]
    ):
        if pick.spec.phase != "pick" or insert.spec.phase != "insert":
            raise ArtifactError("A staged policy needs a pick policy and an insertion policy.")
        if pick.spec.history != insert.spec.history:
            raise ArtifactError(
                "The pick and the insertion policy must remember the same averages."
            )
        if 2 * pick.spec.observation_size >= insert.spec.observation_size:
            raise ArtifactError(
                "The insertion policy's observation must hold two pick observations."
            )
        self.pick, self.insert, self.switch = pick, insert, switch
        self.spec = insert.spec
        self.trained = dict(trained)
        self._memory: history.HistoryState | None = None

    @property
    def action_size(self) -> int:
        """Number of actions."""
        return self.insert.action_size

    def apply_pick(self, features: Any, xp: Any) -> Any:
        """Maps two-arm features [..., F] to the pick policy's actions for both arms [..., 14]."""
        size = self.pick.spec.observation_size
        bank = features.reshape(*features.shape[:-1], 1 + len(self.spec.history.rates), -1)
        arms = xp.stack(
            [bank[..., :size], bank[..., size : 2 * size]], -3
        )  # [..., 2, 1 + rates, size]
        actions = self.pick.apply(arms.reshape(*arms.shape[:-2], -1), xp)
        return actions.reshape(*features.shape[:-1], -1)

    def apply(self, features: Any, switched: Any, xp: Any) -> Any:
        """Maps features [..., F] and the switch's state [...] to actions [..., 14]."""
        return xp.where(
            switched[..., None], self.insert.apply(features, xp), self.apply_pick(features, xp)
        )

    def reset(self) -> None:
        """Forgets the past."""
        self._memory = None

    def act(self, observation: np.ndarray, switched: bool) -> np.ndarray:
        """Returns the action [14] for one observation [109] and remembers it.

        Raises:
          ArtifactError: the observation has the wrong shape or is not finite.
        """
        self._memory, features = _remember(self.spec, self._memory, observation)
        return self.apply(features, np.asarray(switched), np)

    @property
    def hash(self) -> str:
        """Identifies what the policy computes."""
        parts = (self.pick.hash, self.insert.hash, config.digest(self.switch))
        return hashlib.sha256("".join(parts).encode()).hexdigest()


AnyPolicy = StatePolicy | StagedPolicy


def _remember(
    spec: PolicySpec, memory: history.HistoryState | None, observation: np.ndarray
) -> tuple[history.HistoryState, np.ndarray]:
    observation = np.asarray(observation, np.float32)
    size = spec.observation_size
    if observation.shape != (size,):
        raise ArtifactError(
            f"The observation must be float32 [{size}], not {list(observation.shape)}."
        )
    if not np.isfinite(observation).all():
        raise ArtifactError("The observation is not finite.")
    if memory is None:
        memory = history.init(spec.history, size, np)
    return history.update(spec.history, memory, observation, np)


def activate(name: str, values: Any, xp: Any) -> Any:
    """Applies an activation by name in numpy or jax.numpy."""
    if name == "swish":
        return values / (1.0 + xp.exp(-values))
    if name == "relu":
        return xp.maximum(values, 0.0)
    if name == "tanh":
        return xp.tanh(values)
    if name == "elu":
        return xp.where(values > 0, values, xp.exp(xp.minimum(values, 0.0)) - 1.0)
    raise ArtifactError(f"Unknown activation '{name}' in policy.json.")


def _check_actions(policy: AnyPolicy, observations: np.ndarray, switched: np.ndarray) -> np.ndarray:
    policy.reset()
    actions = []
    for observation, flag in zip(observations, switched, strict=True):
        staged = isinstance(policy, StagedPolicy)
        actions.append(policy.act(observation, bool(flag)) if staged else policy.act(observation))
    policy.reset()
    return np.stack(actions)


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def save(
    policy: AnyPolicy,
    folder: str | os.PathLike[str],
    observations: np.ndarray,
    switched: np.ndarray | None = None,
) -> pathlib.Path:
    """Writes the artifact; an earlier one is replaced whole or left intact.

    Args:
      policy: what to save.
      folder: the directory.
      observations: [T, n] a recorded sequence, for check.npz.
      switched: [T] the switch's state with each observation, for a staged policy.

    Raises:
      ArtifactError: the folder cannot be written.
    """
    observations = np.asarray(observations, np.float32)
    switched = np.zeros(len(observations), bool) if switched is None else np.asarray(switched, bool)
    if isinstance(policy, StagedPolicy):
        parts = {"pick": policy.pick, "insert": policy.insert}
        body: dict[str, Any] = {
            "kind": "staged",
            "switch": config.to_dict(policy.switch),
            "parts": {
                name: {"hash": part.hash, **config.to_dict(part.spec), "trained": part.trained}
                for name, part in parts.items()
            },
        }
        weights = {
            f"{name}/{key}": value
            for name, part in parts.items()
            for key, value in part.weights.items()
        }
    else:
        body, weights = config.to_dict(policy.spec), policy.weights
    description = {
        "format_version": FORMAT_VERSION,
        "hash": policy.hash,
        **body,
        "trained": policy.trained,
    }
    actions = _check_actions(policy, observations, switched)
    files = {
        "policy.json": json.dumps(description, indent=2).encode() + b"\n",
        "weights.npz": _npz(weights),
        "check.npz": _npz({"observations": observations, "switched": switched, "actions": actions}),
    }

    def write(path: pathlib.Path) -> None:
        for name, content in files.items():
            (path / name).write_bytes(content)

    return runlog.write_folder_atomic(folder, write)


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # a damaged archive fails in a dozen ways
        raise ArtifactError(f"{path} is missing or damaged ({error}).") from error


def describe(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads policy.json.

    Raises:
      ArtifactError: missing, damaged, or written by a newer version of this package.
    """
    path = pathlib.Path(folder) / "policy.json"
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no policy: {path} is missing.")
    try:
        description = json.loads(path.read_text())
        version = int(description["format_version"])
        if version < 1:
            raise ValueError(f"format {version}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({type(error).__name__}: {error}).") from error
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{folder} has format {version}; this alohas2r reads up to {FORMAT_VERSION}: upgrade alohas2r."
        )
    return description


def load(folder: str | os.PathLike[str]) -> AnyPolicy | StudentPolicy:
    """Reads an artifact and verifies that it still computes what it did when it was saved.

    A student needs JAX; teachers are read with NumPy alone.

    Raises:
      ArtifactError: missing, truncated, too new, inconsistent, or its check fails.
    """
    description = describe(folder)
    if description.get("kind") == "student":
        from alohas2r import student

        return student.load(folder)
    weights = _read_npz(pathlib.Path(folder) / "weights.npz")
    try:
        if description.get("kind") == "staged":
            policy: AnyPolicy = _staged(description, weights)
        else:
            policy = _state(description, weights)
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{folder}/policy.json is not a valid policy: {error}") from error
    if policy.hash != description.get("hash"):
        raise ArtifactError(
            f"{folder} is damaged: its weights or description differ from its hash."
        )
    check = _read_npz(pathlib.Path(folder) / "check.npz")
    if not {"observations", "switched", "actions"} <= check.keys():
        raise ArtifactError(
            f"{folder}/check.npz is damaged: it lacks observations, switched or actions."
        )
    try:
        actions = _check_actions(policy, check["observations"], check["switched"])
        if actions.shape != check["actions"].shape:
            raise ValueError(f"actions {check['actions'].shape}, not {actions.shape}")
        difference = np.abs(actions - check["actions"]).max()
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{folder}/check.npz is damaged ({error}).") from error
    if not difference <= CHECK_TOLERANCE:
        raise ArtifactError(
            f"{folder} fails its check: actions differ by {difference:.2g} on this machine."
        )
    return policy


def _state(description: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> StatePolicy:
    fields = {field.name: description[field.name] for field in dataclasses.fields(PolicySpec)}
    return StatePolicy(
        config.from_dict(PolicySpec, fields), weights, description.get("trained", {})
    )


def _staged(description: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> StagedPolicy:
    parts = {
        name: _state(
            description["parts"][name],
            {
                key.removeprefix(f"{name}/"): value
                for key, value in weights.items()
                if key.startswith(f"{name}/")
            },
        )
        for name in ("pick", "insert")
    }
    switch = config.from_dict(Switch, description["switch"])
    return StagedPolicy(parts["pick"], parts["insert"], switch, description.get("trained", {}))
