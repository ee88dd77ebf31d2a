"""What a policy that learns on the robot is, beside its weights."""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Literal

import numpy as np

from alohas2r.config import check, digest
from alohas2r.core.types import Array
from alohas2r.embodiment import polar
from alohas2r.embodiment.control import ACTION_SCALE
from alohas2r.embodiment.joints import PER_ARM, SIDES
from alohas2r.embodiment.polar import Box, PlanarArm
from alohas2r.policies.spec import CameraSpec, StudentNetworkConfig
from alohas2r.sim import kinematics, scene

HOLD = 4  # control steps of a decision: five decisions a second
RECENT = 3  # executed actions that a policy observes
JOINT_VALUES = 2 * (PER_ARM + 1)  # positions, and positions less targets, of one arm
TEMPOS = 0.4, 1.2  # by which movements may be slowed down or sped up
PROPRIOCEPTION = 2 * JOINT_VALUES  # of both arms
CHANNELS = 4  # of a picture: colour and depth
TaskName = Literal["reach", "pick"]
Inputs = dict[str, tuple[tuple[int, ...], str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearntSpec(abc.ABC):
    """What actor and learner must know of any policy that learns on a robot.

    Attributes:
      task: what is learnt.
      hidden: layers of base and policy.
      base: whether there is a base, made of demonstrations, to which the policy adds.
      policy: whether there is a policy that learns by reward.
      scale: how much of a policy's action is added to the base's.
      loudest: largest logarithm of the spread with which the policy explores, before tanh.
    """

    task: str
    hidden: tuple[int, ...] = (256, 256)
    base: bool = True
    policy: bool = True
    scale: float = 0.4
    loudest: float = -1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(0 < self.scale <= 1, f"scale must lie in (0, 1], not {self.scale}")
        check(-4 <= self.loudest <= 2, f"loudest must lie in -4..2, not {self.loudest}")
        check(bool(self.hidden) and min(self.hidden) >= 1, "hidden needs layers of 1 or more")

    @property
    def digest(self) -> str:
        """Identifies it."""
        return digest(self)

    @property
    def given(self) -> bool:
        """Whether its base is made elsewhere: what that wants are the last of the features, an action's numbers."""
        return False

    @property
    @abc.abstractmethod
    def hold(self) -> int:
        """Control steps of a decision."""

    @property
    @abc.abstractmethod
    def actions(self) -> int:
        """Numbers of an action."""

    @property
    def outputs(self) -> int:
        """Numbers that the policy draws of an action: one more than it has where it sets the tempo as well."""
        return self.actions

    @property
    @abc.abstractmethod
    def features(self) -> int:
        """Numbers that the networks get of an observation."""

    @property
    @abc.abstractmethod
    def inputs(self) -> Inputs:
        """What such a policy takes: name -> shape, dtype, unit."""

    @abc.abstractmethod
    def executed(self, before: Array, after: Array) -> Array:
        """Returns the action [..., A] that was executed between the proprioception [..., 32] of two decisions."""

    def possible(self, features: Array, action: Array, xp: Array = np) -> Array:
        """Returns what of an action [..., A] would be executed, as far as it is known beforehand; here all of it.

        Args:
          features: [..., F] of the decision, not normalized. action: [..., A] in [-1, 1]. xp: the array namespace.
        """
        return action

    @abc.abstractmethod
    def unlike(self, other: Mapping[str, object]) -> str:
        """Returns why demonstrations of another description, as plain values, do not serve; "" if they do."""


def _targets(own: Array) -> Array:
    """Returns an arm's last targets [..., 7] from what it feels [..., 16]."""
    return own[..., :PER_ARM] - own[..., PER_ARM + 1 : 2 * PER_ARM + 1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineSpec(LearntSpec):
    """One arm that is led in places of its gripper: everything but the weights.

    Attributes:
      task: what is learnt.
      side: which arm learns; the other stands still.
      arm: its lengths. box: where its gripper may be led.
      low, high: [7] ranges of its targets (rad; m).
      cameras, network: of the student whose eyes it has.
      tempo: factor of every movement.
    """

    task: TaskName
    side: Literal["left", "right"]
    arm: PlanarArm
    box: Box
    low: tuple[float, ...]
    high: tuple[float, ...]
    cameras: CameraSpec
    network: StudentNetworkConfig
    tempo: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        check(self.task in ("reach", "pick"), f"task must be reach or pick, not '{self.task}'")
        check(self.side in SIDES, f"side must be one of {', '.join(SIDES)}, not '{self.side}'")
        check(len(self.low) == len(self.high) == PER_ARM, f"an arm has {PER_ARM} ranges")
        check(self.base or self.policy, "a policy needs a base, or a policy that learns, or both")
        low, high = TEMPOS
        check(low <= self.tempo <= high, f"tempo must lie in {low}..{high}, not {self.tempo}")

    @property
    def hold(self) -> int:
        """Control steps of a decision."""
        return HOLD

    @property
    def actions(self) -> int:
        """Numbers of an action."""
        return polar.SIZE

    @property
    def features(self) -> int:
        """Numbers that the networks get of an observation."""
        return self.seen + JOINT_VALUES + RECENT * self.actions

    @property
    def seen(self) -> int:
        """Numbers that pictures are reduced to."""
        kinds = 2 + bool(self.network.places) + bool(self.network.patches)
        return kinds * self.network.embedding

    @property
    def inputs(self) -> Inputs:
        """What such a policy takes: name -> shape, dtype, unit."""
        size = self.cameras.size
        return {
            f"{self.side}_rgb": ((size, size, 3), "uint8", "sRGB"),
            f"{self.side}_depth": ((size, size), "float32", "m"),
            "proprioception": ((PROPRIOCEPTION,), "float32", ""),
        }

    def own(self, proprioception: Array) -> Array:
        """Returns this arm's part [..., 16] of a robot's proprioception [..., 32]."""
        parts = proprioception.reshape(*proprioception.shape[:-1], 2, len(SIDES), PER_ARM + 1)
        place = SIDES.index(self.side)
        return parts[..., place, :].reshape(*proprioception.shape[:-1], JOINT_VALUES)

    def targets(self, proprioception: Array) -> Array:
        """Returns the last targets [..., 7] of this arm: what was commanded."""
        return _targets(self.own(proprioception))

    def move(self, proprioception: Array, action: Array, xp: Array = np) -> Array:
        """Returns the joint actions [..., 14] in [-1, 1] by which a decision is carried out, for HOLD steps.

        They lead straight in the joints to where the decision leads the gripper, slower where a joint were too fast.

        Args:
          proprioception: [..., 32] at the decision.
          action: [..., 5] in [-1, 1].
          xp: the array namespace.
        """
        own = self._arm_actions(self.targets(proprioception), action, xp)
        still = xp.zeros_like(own)
        both = [own, still] if self.side == "left" else [still, own]
        return xp.concatenate(both, -1)

    def executed(self, before: Array, after: Array, steps: int = HOLD, xp: Array = np) -> Array:
        """Returns the action [..., 5] that was executed between two observations: from the commands after the guard.

        Args:
          before: [..., 32] proprioception at the decision. after: at the next.
          steps: control steps that a whole decision takes. xp: the array namespace.
        """
        return polar.executed(self.arm, self.targets(before), self.targets(after), steps, xp)

    def possible(self, features: Array, action: Array, xp: Array = np) -> Array:
        """Returns what of an action [..., 5] would be executed: within box and ranges, no faster than joints are."""
        before = _targets(features[..., self.seen : self.seen + JOINT_VALUES])
        low, high = (xp.asarray(np.array(end, np.float32)) for end in (self.low, self.high))
        moved = HOLD * ACTION_SCALE * self._arm_actions(before, action, xp)
        after = xp.minimum(xp.maximum(before + moved, low), high)
        return polar.executed(self.arm, before, after, HOLD, xp)

    def _arm_actions(self, targets: Array, action: Array, xp: Array) -> Array:
        """Returns the actions [..., 7] of this arm in [-1, 1] that carry out a decision from its last targets."""
        step = self.tempo * polar.toward(self.arm, self.box, targets, action, HOLD, xp)
        arm, gripper = step[..., :-1], step[..., -1:]
        fastest = xp.abs(arm).max(-1, keepdims=True)
        arm = arm / xp.maximum(fastest / ACTION_SCALE, 1.0)
        return xp.clip(xp.concatenate([arm, gripper], -1) / ACTION_SCALE, -1.0, 1.0)

    def unlike(self, other: Mapping[str, object]) -> str:
        """Returns why demonstrations of another arm or camera do not serve; "" if they do.

        Raises:
          KeyError, TypeError: it is no such description.
        """
        cameras = other["cameras"]
        assert isinstance(cameras, Mapping)
        side, size = str(other["side"]), int(cameras["size"])
        if side == self.side and size == self.cameras.size:
            return ""
        own = f"{self.side} arm with {self.cameras.size}"
        return f"is of the {side} arm with pictures of {size} pixels, not of the {own}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """Convolutions over the middle of a wrist camera's picture of colour and depth.

    Attributes:
      crop: side of what they see (pixels); in learning it lies anywhere in the picture.
      layers: convolutions of 3 x 3, the first of every other place. filters: of each.
      features: numbers that these are reduced to, normalized.
    """

    crop: int = 27
    layers: int = 4
    filters: int = 32
    features: int = 50

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self.layers >= 1, f"layers must be at least 1, not {self.layers}")
        check(self.filters >= 1, f"filters must be at least 1, not {self.filters}")
        check(self.features >= 2, f"features must be at least 2, not {self.features}")
        check(self.side >= 1, f"a crop of {self.crop} pixels is too small for {self.layers} layers")

    @property
    def side(self) -> int:
        """Of what the last convolution gives."""
        return (self.crop - 1) // 2 - 2 * (self.layers - 1)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of its weights by name, "encoder/..."."""
        channels = [CHANNELS, *[self.filters] * self.layers]
        wanted: dict[str, tuple[int, ...]] = {}
        for index, (inputs, outputs) in enumerate(itertools.pairwise(channels)):
            wanted[f"encoder/layer{index}/kernel"] = (3, 3, inputs, outputs)
            wanted[f"encoder/layer{index}/bias"] = (outputs,)
        wanted["encoder/out/kernel"] = (self.side**2 * self.filters, self.features)
        for part in ("out/bias", "norm/scale", "norm/bias"):
            wanted[f"encoder/{part}"] = (self.features,)
        return wanted


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeeingSpec(OnlineSpec):
    """An arm that has eyes of its own, which were made for what it does, instead of a student's.

    Attributes:
      encoder: what looks at pictures; its weights are among those that are published.
    """

    encoder: EncoderSpec

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        size = self.cameras.size
        check(
            self.encoder.crop <= size,
            f"a crop of {self.encoder.crop} pixels does not lie in pictures of {size}",
        )

    @property
    def seen(self) -> int:
        """Numbers that pictures are reduced to."""
        return self.encoder.features


def planar_arm(side: str = "left") -> PlanarArm:
    """Returns the lengths of an arm of the scene."""
    insert = scene.load("insert")
    arm = insert.arms[SIDES.index(side)]
    model = insert.model
    place = {
        name: model.body(int(model.joint(f"{side}/{name}").bodyid[0])).pos
        for name in ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle")
    }
    joints = np.zeros((len(SIDES), PER_ARM + 1))
    tip = kinematics.tip_midpoints(joints)[SIDES.index(side)]
    apart = kinematics.quaternion_matrix(arm.base_quat).T @ (tip - arm.base_pos)
    shoulder = float(place["waist"][2] + place["shoulder"][2])
    upper = float(place["elbow"][0]), float(place["elbow"][2])
    forearm = float(place["forearm_roll"][0] + place["wrist_angle"][0])
    tip_x = float(apart[0]) - upper[0] - forearm
    return PlanarArm(shoulder, upper, forearm, (tip_x, float(apart[2]) - shoulder - upper[1]))
