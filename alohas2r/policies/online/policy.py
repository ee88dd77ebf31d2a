"""A policy that was learnt on a robot, as an artifact: it sees what a robot gives and drives both arms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np

from alohas2r import config
from alohas2r.core.files import digest
from alohas2r.core.types import Array, JsonObject
from alohas2r.embodiment.control import ACTION_SCALE
from alohas2r.embodiment.joints import CONTROL_PERIOD_S, JOINTS
from alohas2r.errors import ArtifactError
from alohas2r.policies.online import networks
from alohas2r.policies.online.encoder import look
from alohas2r.policies.online.recent import recent_actions
from alohas2r.policies.online.spec import HOLD, PROPRIOCEPTION, RECENT, OnlineSpec, SeeingSpec
from alohas2r.sim import scene

ONLINE = "online"
# What evaluation says, which has no task of the kind.
NOT_EVALUATED = (
    "{path} was learnt on a robot for '{task}', no task of evaluations: alohas2r learn evaluates such policies,"
    " alohas2r deploy runs them."
)


class OnlinePolicy:
    """Base and policy together, deterministic.

    It decides in every fourth control step and moves in between as it decided.

    Args:
      spec: its description. weights: eyes or encoder, base, policy and normalization by name.
      trained: how it was trained.

    Raises:
      ArtifactError: the weights do not fit the description.
    """

    file: ClassVar[str] = "policy.json"
    called: ClassVar[str] = "policy learnt on a robot"
    made_by: ClassVar[str] = "alohas2r learn"
    output: ClassVar[str] = "actions"

    def __init__(
        self, spec: OnlineSpec, weights: Mapping[str, np.ndarray], trained: Mapping[str, object]
    ) -> None:
        self.spec = spec
        self.weights = {name: np.asarray(value, np.float32) for name, value in weights.items()}
        self.trained: JsonObject = dict(trained)
        own = {name: value.shape for name, value in self.weights.items() if "eyes/" not in name}
        if own != networks.shapes(spec):
            raise ArtifactError("The weights do not fit the policy's description.")
        self._past: list[np.ndarray] = []
        self._step = 0
        self._action = np.zeros(len(JOINTS), np.float32)

    @property
    def action_size(self) -> int:
        """Number of actions."""
        return len(JOINTS)

    @property
    def hash(self) -> str:
        """Identifies what it computes."""
        return digest(self.spec, self.weights)

    def reset(self) -> None:
        """Forgets the past."""
        self._past, self._step = [], 0

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the actions [14] in [-1, 1] for an observation."""
        spec = self.spec
        if self._step % HOLD == 0:
            felt = np.asarray(observation["proprioception"], np.float32)
            self._past = [*self._past, felt][-(RECENT + 1) :]
            recent = recent_actions(spec, self._past)
            pictures = (
                np.asarray(observation[f"{spec.side}_{kind}"])[None] for kind in ("rgb", "depth")
            )
            seen = look(spec, self.weights, *pictures)[0]
            features = np.concatenate([seen, spec.own(felt), recent.ravel()]).astype(np.float32)
            _, wanted = networks.decide(spec, self.weights, features)
            self._action = spec.move(felt, wanted).astype(np.float32)
        self._step += 1
        return self._action.copy()

    def describe(self) -> JsonObject:
        """Returns what policy.json says of it."""
        return {"kind": ONLINE, "phase": self.spec.task, "spec": config.to_dict(self.spec)}

    @classmethod
    def build(cls, description: JsonObject, weights: Mapping[str, np.ndarray]) -> Self:
        """Makes it of its description and weights."""
        of = SeeingSpec if "encoder" in description["spec"] else OnlineSpec
        spec = config.from_dict(of, description["spec"])
        return cls(spec, weights, description.get("trained", {}))

    def check_inputs(self, recorded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns each of the inputs as it was recorded, [T, ...]."""
        return {name: np.asarray(recorded[name]) for name in self.spec.inputs}

    def answer(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the actions [T, n] for recorded observations, one after the other."""
        self.reset()
        steps = range(len(next(iter(rows.values()))))
        actions = [self.act({name: row[step] for name, row in rows.items()}) for step in steps]
        self.reset()
        return np.stack(actions)


def action_of(spec: OnlineSpec) -> JsonObject:
    """Returns what its actions mean, as other policies say it."""
    insert = scene.load("insert")
    order = np.concatenate([arm.ctrl for arm in insert.arms])
    return {
        "joints": list(JOINTS),
        "scale": ACTION_SCALE,
        "low": insert.ctrl_low[order].tolist(),
        "high": insert.ctrl_high[order].tolist(),
        "control_period_s": CONTROL_PERIOD_S,
    }


def network_actions(
    spec: OnlineSpec,
    weights: Mapping[str, Array],
    seen: Array,
    felt: Array,
    xp: Array,
) -> Array:
    """Returns the actions [B, 14] of decisions, for an exported file.

    Args:
      spec: the policy. weights: all of them.
      seen: [B, n] what is seen of the pictures.
      felt: [B, 4 * 32] proprioception now, and at the last three decisions, newest first.
      xp: the array namespace.
    """
    at = [felt[..., PROPRIOCEPTION * i : PROPRIOCEPTION * (i + 1)] for i in range(RECENT + 1)]
    recent = [spec.executed(at[i + 1], at[i], xp=xp) for i in reversed(range(RECENT))]
    features = xp.concatenate([seen, spec.own(at[0]), *recent], -1)
    _, wanted = networks.decide(spec, weights, features, xp=xp)
    return spec.move(at[0], wanted, xp)
