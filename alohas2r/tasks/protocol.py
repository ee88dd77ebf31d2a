"""The frozen evaluation protocol. Results of different policies compare only under one protocol and its hash."""

from __future__ import annotations

import dataclasses
from typing import Generic, TypeVar

from alohas2r import config
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.envs.actuation import ControlConfig
from alohas2r.envs.noise import NoiseConfig
from alohas2r.envs.task import ELLIPTIC, PYRAMIDAL, EnvConfig
from alohas2r.policies.switch import Switch
from alohas2r.sim.physics_randomization import BlockConfig, InsertRandomization, ObjectRanges
from alohas2r.sim.variation import NEUTRAL, ROBOTS, VariationConfig
from alohas2r.tasks.starts import InsertStart, PickStart

Settings = TypeVar("Settings")  # of a task


@dataclasses.dataclass(frozen=True)
class Conditions(Generic[Settings]):
    """What a protocol says of episodes.

    Attributes:
      task: settings of the task. control: action scale and delays. noise: of the observation.
      contacts, variation, cone: as in `envs.task.EnvConfig`.
    """

    task: Settings
    control: ControlConfig
    noise: NoiseConfig
    contacts: bool = False
    variation: VariationConfig = NEUTRAL
    cone: str = PYRAMIDAL

    def env(self, memory: HistoryConfig, scale: float | None = None) -> EnvConfig:
        """Returns the environments' configuration.

        Args:
          memory: of the policy. scale: by which its actions move the targets; that of the conditions if None.
        """
        control = self.control if scale is None else dataclasses.replace(self.control, scale=scale)
        return EnvConfig(control, self.noise, memory, self.contacts, self.variation, self.cone)


@dataclasses.dataclass(frozen=True)
class PickProtocol:
    """Pick: success at the end of the episode, by two pairs of thresholds (m, geodesic deg)."""

    steps: int = 160
    start: PickStart = PickStart(
        waist=(-0.2, 0.45),
        radius=(0.20, 0.45),
        angle_deg=(-25.0, 35.0),
        yaw_deg=5.0,
        target=(-0.10, 0.0, 0.25),
        target_range=0.1,
    )
    block: BlockConfig = BlockConfig(half_side=(0.010, 0.030), mass=(0.030, 0.100))
    success: tuple[float, float] = (0.040, 15.0)
    precise: tuple[float, float] = (0.020, 10.0)
    crossed_x: float = 0.073


@dataclasses.dataclass(frozen=True)
class InsertProtocol:
    """Insert: whole episodes from the home pose; success is having inserted at some time.

    Attributes:
      steps: control steps per episode.
      start: distribution of starts.
      physics: of objects and arms.
      noise: observation noise with two arms.
      inserted_x, hole, grip_distance, hold_steps: see tasks.insert.InsertConfig.
      fall_height: an object that was lifted and lies below this (m) was dropped.
    """

    steps: int = 200
    start: InsertStart = InsertStart(
        waist=0.1,
        radius=(0.27, 0.42),
        angle_deg=14.5,
        yaw_deg=5.0,
        targets=((-0.10, 0.0, 0.25), (0.10, 0.0, 0.25)),
    )
    physics: InsertRandomization = InsertRandomization(
        (0.010, 0.010), (1, 1), (1, 1), (1, 1), (1, 1)
    )
    noise: NoiseConfig = NoiseConfig(
        joint_pos=0.1,
        joint_vel=0.1,
        object_pos=0.015,
        object_linvel=0.015,
        object_angvel=0.2,
        tip_to_grip=0.015,
        gripper_angle_deg=5.0,
        object_angle_deg=7.5,
        delay_weights=(0.83, 0.104, 0.02, 0.014),
    )
    inserted_x: float = -0.030
    hole: float = 0.018
    grip_distance: float = 0.030
    hold_steps: int = 5
    fall_height: float = 0.07


@dataclasses.dataclass(frozen=True)
class TaskProtocol:
    """Base of protocols: a name that is never used for other numbers, and a hash of the numbers."""

    name: str

    @property
    def hash(self) -> str:
        """Identifies every number of the protocol."""
        return config.digest(self)


@dataclasses.dataclass(frozen=True)
class PlainProtocol(TaskProtocol, Generic[Settings]):
    """Conditions of a task that has a protocol of its own: settings of the task, action delays, observation noise."""

    task: Settings
    control: ControlConfig
    noise: NoiseConfig

    def conditions(self) -> Conditions[Settings]:
        """Returns them as the registry asks for them."""
        return Conditions(self.task, self.control, self.noise)


@dataclasses.dataclass(frozen=True)
class Protocol(TaskProtocol):
    """Distributions, noise, delays and thresholds of an evaluation; nothing in it comes from the policy."""

    control: ControlConfig
    noise: NoiseConfig
    pick: PickProtocol
    insert: InsertProtocol


EVAL_V1 = Protocol(
    name="eval-v1",
    control=ControlConfig(
        scale=0.02,
        delay_weights=(0.83, 0.104, 0.02, 0.014),
        gripper_delay_steps=3,
        extra_delay_steps=0,
    ),
    noise=NoiseConfig(
        joint_pos=0.1,
        joint_vel=0.1,
        object_pos=0.015,
        object_linvel=0.015,
        object_angvel=0.2,
        tip_to_grip=0.015,
        gripper_angle_deg=5.0,
        object_angle_deg=5.0,
        delay_weights=(0.83, 0.104, 0.02, 0.014),
    ),
    pick=PickProtocol(),
    insert=InsertProtocol(),
)


# Half widths of the noise on servos' readings (rad, rad/s): they tell their angle to 0.0015 rad (4096 steps a turn) and
# their speed to 0.024 rad/s; what else a reading is off stays so, and is part of the variation.
# Source: manual of the XM540-W270.
SERVO_POS, SERVO_VEL = 0.005, 0.05


# Change of a target by a full action (rad; m) of policies for robots that differ. Slower actions forgive delay: picking
# with 150 ms of delay both ways succeeds in 0.52 of the episodes at 0.012, in 0.25 at 0.020.
TRANSFER_SCALE = 0.012


@dataclasses.dataclass(frozen=True)
class TransferInsert(InsertProtocol):
    """Insertion that a robot can reach, with objects of any size.

    Attributes:
      objects: lengths of pegs, widths of holes.
      inside: share of the peg that must be inside.
      switch: when insertion takes over; a gripper is empty when it closes further than any object or calibration lets.
    """

    physics: InsertRandomization = InsertRandomization(
        (0.009, 0.017), (0.5, 2.0), (1, 1), (1, 1), (1, 1)
    )
    noise: NoiseConfig = dataclasses.replace(
        InsertProtocol.noise, joint_pos=SERVO_POS, joint_vel=SERVO_VEL
    )
    steps: int = 300
    objects: ObjectRanges = ObjectRanges((0.040, 0.065), (0.017, 0.020))
    inside: float = 0.5
    switch: Switch = Switch(empty_travel=0.010)


@dataclasses.dataclass(frozen=True)
class TransferProtocol(Protocol):
    """A protocol of robots that differ: contacts, variation, looks.

    Attributes:
      insert: see TransferInsert.
      variation: of the robots.
      looks: of what a student sees, see `rendering.looks.config.find_looks`; empty for those of the scene.
      cone: of friction, as in `envs.task.EnvConfig`.
    """

    insert: TransferInsert = TransferInsert()
    variation: VariationConfig = ROBOTS
    looks: str = "transfer held out"
    cone: str = config.later(PYRAMIDAL)


EVAL_V2 = TransferProtocol(
    name="eval-v2",
    control=EVAL_V1.control,
    noise=dataclasses.replace(EVAL_V1.noise, joint_pos=SERVO_POS, joint_vel=SERVO_VEL),
    pick=PickProtocol(steps=200, block=BlockConfig(half_side=(0.009, 0.026), mass=(0.030, 0.100))),
)
# The same, where what is gripped is not lost to the shape of a friction cone.
EVAL_V3 = dataclasses.replace(EVAL_V2, name="eval-v3", cone=ELLIPTIC)
_NOMINAL_INSERT = TransferInsert(
    physics=InsertRandomization((0.010, 0.010), (1, 1), (1, 1), (1, 1), (1, 1)),
    objects=ObjectRanges(),
)


def without_causes(protocol: TransferProtocol) -> TransferProtocol:
    """Returns a protocol of the nominal robot and objects in nominal light, under another name and hash."""
    return dataclasses.replace(
        protocol,
        name=f"{protocol.name}+causes=none",
        insert=_NOMINAL_INSERT,
        variation=NEUTRAL,
        looks="",
    )


def varied(
    protocol: TransferProtocol,
    *,
    action_delay_ms: float = 0.0,
    view_delay_ms: float = 0.0,
    zero_deg: float = 0.0,
    travel_mm: float = 0.0,
    base_mm: float = 0.0,
) -> TransferProtocol:
    """Returns the protocol of an otherwise nominal robot, under another name and hash.

    Args:
      protocol: to start from.
      action_delay_ms: constant delay of commands. view_delay_ms: of what is seen.
      zero_deg: half range of what each joint's reading is off. travel_mm: of the finger travel's.
      base_mm: of each base's place, per axis.

    Raises:
      ConfigError: a number out of range.
    """
    nominal = without_causes(protocol)
    action_s, view_s = action_delay_ms / 1000, view_delay_ms / 1000
    variation = dataclasses.replace(
        nominal.variation,
        action_delay_s=(action_s, action_s),
        view_delay_s=(view_s, view_s),
        zero_deg=zero_deg,
        travel_m=travel_mm / 1000,
        base_m=base_mm / 1000,
    )
    given = {
        **{"actions": (action_delay_ms, "ms"), "view": (view_delay_ms, "ms")},
        **{"zeros": (zero_deg, "deg"), "travel": (travel_mm, "mm"), "base": (base_mm, "mm")},
    }
    name = nominal.name + "".join(f"+{what}={x:g}{unit}" for what, (x, unit) in given.items() if x)
    return dataclasses.replace(nominal, name=name, variation=variation)


def modified(
    protocol: Protocol,
    *,
    peg_mm: float | None = None,
    extra_delay_steps: int = 0,
    seconds: float | None = None,
) -> Protocol:
    """Returns a protocol with other conditions, under another name and hash; the same one if nothing is changed.

    Args:
      protocol: to start from.
      peg_mm: side of the peg's square section (mm).
      extra_delay_steps: constant action delay on top of the random one.
      seconds: length of an insertion episode.

    Raises:
      ConfigError: a number out of range.
    """
    name = protocol.name
    insert = protocol.insert
    if peg_mm is not None:
        half = peg_mm / 2000
        insert = dataclasses.replace(
            insert, physics=dataclasses.replace(insert.physics, peg_half_side=(half, half))
        )
        name += f"+peg={peg_mm:g}mm"
    if seconds is not None:
        config.check(0.05 <= seconds <= 500, f"seconds must be in 0.05..500, not {seconds:g}")
        insert = dataclasses.replace(insert, steps=round(seconds / CONTROL_PERIOD_S))
        name += f"+seconds={seconds:g}"
    control = protocol.control
    if extra_delay_steps:
        control = dataclasses.replace(control, extra_delay_steps=extra_delay_steps)
        name += f"+delay={extra_delay_steps}"
    return dataclasses.replace(protocol, name=name, control=control, insert=insert)
