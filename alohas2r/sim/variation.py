"""What differs from one robot to the next and stays for an episode: servos, calibration, delays, contacts, table.

One declared table of ranges for every task. A draw of it gives two things: model fields, which the physics engine
takes, and `Held`, which stands between the arms and the policy: what is read is not what is, and what is commanded
arrives late.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import mujoco
import numpy as np

from alohas2r.config import check, later
from alohas2r.core.types import Array
from alohas2r.embodiment.joints import CONTROL_PERIOD_S, PER_ARM
from alohas2r.sim.scene import Scene

VARIATION_DRAWS = 160  # uniform numbers that one environment's variation takes
_FACTORS = (
    "stiffness",
    "rigidity",
    "gain",
    "gripper_gain",
    "damping",
    "joint_friction",
    "force",
    "friction",
    "softness",
)


@dataclasses.dataclass(frozen=True)
class VariationConfig:
    """Ranges; all neutral by default.

    Factors are drawn log-uniformly (uniformly where the range begins at 0), each joint for itself. Source of the
    ranges of `ROBOTS`: reports of users of such arms, and what simulations of others differ in.

    Attributes:
      stiffness: factor on the position gains of all arm joints of a robot at once, as its servos are set up
        alike; their damping goes with its root, which keeps the damping ratio.
      rigidity: factor on both the gain and the damping of each arm joint, as friction in its gears makes it: it
        follows as slowly, but hangs less and gives way less.
      gain: factor on each arm joint's position gain; gripper_gain: on the gripper's.
      damping: factor on each joint's damping.
      joint_friction: factor on each joint's dry friction.
      force: factor on each joint's largest torque, as the servos' current limits set it.
      backlash_deg: play of each joint about its target.
      zero_deg: half range of what each joint's reading is off.
      travel_m: half range of what the finger travel's reading is off; travel_scale: factor on it.
      base_m: half range of each base's place, per axis; base_deg: largest angle by which it is turned.
      table_m: range of the table's height above nominal.
      friction: factor on the sliding friction of fingers and objects, the same for all.
      softness: factor on the time constant of their contacts.
      action_delay_s: range of the delay of commands; view_delay_s: of what is seen of the objects (a student's
        pictures, a teacher's measurement); reading_delay_s: of a student's joint positions. Whole control steps.
    """

    stiffness: tuple[float, float] = (1.0, 1.0)
    rigidity: tuple[float, float] = later((1.0, 1.0))
    gain: tuple[float, float] = (1.0, 1.0)
    gripper_gain: tuple[float, float] = (1.0, 1.0)
    damping: tuple[float, float] = (1.0, 1.0)
    joint_friction: tuple[float, float] = (1.0, 1.0)
    force: tuple[float, float] = (1.0, 1.0)
    backlash_deg: tuple[float, float] = (0.0, 0.0)
    zero_deg: float = 0.0
    travel_m: float = 0.0
    travel_scale: tuple[float, float] = (1.0, 1.0)
    base_m: float = 0.0
    base_deg: float = 0.0
    table_m: tuple[float, float] = (0.0, 0.0)
    friction: tuple[float, float] = (1.0, 1.0)
    softness: tuple[float, float] = (1.0, 1.0)
    action_delay_s: tuple[float, float] = (0.0, 0.0)
    view_delay_s: tuple[float, float] = (0.0, 0.0)
    reading_delay_s: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for name in _FACTORS:
            low, high = getattr(self, name)
            check(0 <= low <= high <= 10, f"{name} must be a range of factors within 0..10")
        low, high = self.travel_scale
        check(0.5 <= low <= high <= 2, "travel_scale must be a range of factors within 0.5..2")
        check(0 <= self.backlash_deg[0] <= self.backlash_deg[1] <= 5, "backlash_deg: 0..5")
        check(0 <= self.zero_deg <= 10, f"zero_deg must be in 0..10, not {self.zero_deg}")
        check(0 <= self.travel_m <= 0.01, f"travel_m must be in 0..0.01, not {self.travel_m}")
        check(0 <= self.base_m <= 0.1, f"base_m must be in 0..0.1, not {self.base_m}")
        check(0 <= self.base_deg <= 10, f"base_deg must be in 0..10, not {self.base_deg}")
        check(-0.1 <= self.table_m[0] <= self.table_m[1] <= 0.1, "table_m must lie in -0.1..0.1 m")
        for name in ("action_delay_s", "view_delay_s", "reading_delay_s"):
            low, high = getattr(self, name)
            check(0 <= low <= high <= 1, f"{name} must be a range within 0..1 s")

    @property
    def varies(self) -> bool:
        """Whether anything differs from the nominal robot."""
        return self != NEUTRAL

    @property
    def draws(self) -> int:
        """Uniform numbers that one environment takes, on top of the task's own."""
        return VARIATION_DRAWS if self.varies else 0

    @property
    def longest_sense(self) -> int:
        """Longest delay of pictures and readings, in control steps."""
        return max(self.steps("view_delay_s")[1], self.steps("reading_delay_s")[1])

    def steps(self, name: str) -> tuple[int, int]:
        """Returns the range of a delay in control steps, both ends included."""
        low, high = getattr(self, name)
        return round(low / CONTROL_PERIOD_S), round(high / CONTROL_PERIOD_S)


NEUTRAL = VariationConfig()
# What real ALOHAs differ in.
ROBOTS = VariationConfig(
    gain=(0.4, 2.0),
    gripper_gain=(0.5, 6.0),
    damping=(0.5, 2.0),
    joint_friction=(0.0, 2.0),
    force=(0.6, 1.0),
    backlash_deg=(0.0, 1.0),
    zero_deg=1.5,
    travel_m=0.002,
    travel_scale=(0.95, 1.05),
    base_m=0.015,
    base_deg=1.5,
    table_m=(0.0, 0.030),
    friction=(0.4, 1.5),
    softness=(1.0, 2.0),
    action_delay_s=(0.0, 0.15),
    view_delay_s=(0.0, 0.15),
    reading_delay_s=(0.0, 0.05),
)


class Held(NamedTuple):
    """What stands between arms and policy in N environments; J = 7 for each arm, left first.

    A reading is scale * what is + offset; a command in terms of readings is turned back likewise.
    """

    offset: Array  # [N, J] rad; m for the gripper
    scale: Array  # [N, J]
    backlash: Array  # [N, J] rad
    gain: Array  # [N, J] factor on the position gain; only critics are told
    table: Array  # [N] m, the table's height above nominal
    action_delay: Array  # [N] control steps
    view_delay: Array  # [N]
    reading_delay: Array  # [N]


class Robots(NamedTuple):
    """N drawn robots.

    Attributes:
      drawn: factors on and shifts of model fields, as `apply` and `moved` take them.
      held: what stands between arms and policy.
      causes: each drawn quantity as one number per robot, name -> [N]; those of many joints summed up.
    """

    drawn: dict[str, np.ndarray]
    held: Held
    causes: dict[str, np.ndarray]

    def some(self, where: slice) -> Robots:
        """Returns some of them."""
        return Robots(
            {name: value[where] for name, value in self.drawn.items()},
            Held(*(value[where] for value in self.held)),
            {name: value[where] for name, value in self.causes.items()},
        )


def read(held: Held, value: Array) -> Array:
    """Returns what is read [..., J] where joints and fingers are at `value` [..., J]."""
    return held.scale * value + held.offset


def undo(held: Held, reading: Array) -> Array:
    """Returns where joints and fingers are [..., J] that read `reading` [..., J]."""
    return (reading - held.offset) / held.scale


def sample(scene: Scene, config: VariationConfig, uniform: np.ndarray) -> Robots:
    """Turns uniform draws [N, VARIATION_DRAWS] in [0, 1) into robots.

    Args:
      scene: where. config: the ranges. uniform: the draws.
    """
    count, arms = len(uniform), len(scene.arms)
    column = iter(range(VARIATION_DRAWS))

    def draw(size: int) -> np.ndarray:
        return uniform[:, [next(column) for _ in range(size)]]

    def factor(bounds: tuple[float, float], size: int) -> np.ndarray:
        low, high = bounds
        share = draw(size)
        if low <= 0:
            return low + share * (high - low)
        return np.exp(math.log(low) + share * (math.log(high) - math.log(low)))

    def within(half: float, size: int) -> np.ndarray:
        return half * (2 * draw(size) - 1)

    def each_arm(joints: np.ndarray, gripper: np.ndarray) -> np.ndarray:
        """Puts six joints [N, A * 6] and the gripper [N, A] of each arm in order, [N, A * 7]."""
        both = [joints.reshape(count, arms, 6), gripper.reshape(count, arms, 1)]
        return np.concatenate(both, -1).reshape(count, -1)

    gain = each_arm(factor(config.gain, arms * 6), factor(config.gripper_gain, arms))
    damping = factor(config.damping, arms * PER_ARM)
    dry = factor(config.joint_friction, arms * PER_ARM)
    force = factor(config.force, arms * PER_ARM)
    low, high = np.deg2rad(config.backlash_deg)
    backlash = each_arm(low + draw(arms * 6) * (high - low), np.zeros((count, arms)))
    zero = within(math.radians(config.zero_deg), arms * 6)
    travel = within(config.travel_m, arms)
    scale = config.travel_scale[0] + draw(arms) * (config.travel_scale[1] - config.travel_scale[0])
    place = within(config.base_m, arms * 3).reshape(count, arms, 3)
    turn = draw(arms * 3).reshape(count, arms, 3)
    table = config.table_m[0] + draw(1)[:, 0] * (config.table_m[1] - config.table_m[0])
    sliding, softness = factor(config.friction, 1)[:, 0], factor(config.softness, 1)[:, 0]
    delays = {}
    for name in ("action_delay_s", "view_delay_s", "reading_delay_s"):
        first, last = config.steps(name)
        drawn = first + np.floor(draw(1)[:, 0] * (last - first + 1))
        delays[name] = np.minimum(drawn, last).astype(np.int32)
    stiffness = np.repeat(factor(config.stiffness, 1), arms * 6, 1)
    rigidity = factor(config.rigidity, arms * 6)
    neutral = np.ones((count, arms))
    gain = gain * each_arm(stiffness * rigidity, neutral)
    damping = damping * each_arm(np.sqrt(stiffness) * rigidity, neutral)
    held = Held(
        offset=each_arm(zero, travel).astype(np.float32),
        scale=each_arm(np.ones((count, arms * 6)), scale).astype(np.float32),
        backlash=backlash.astype(np.float32),
        gain=gain.astype(np.float32),
        table=table.astype(np.float32),
        action_delay=delays["action_delay_s"],
        view_delay=delays["view_delay_s"],
        reading_delay=delays["reading_delay_s"],
    )
    rotation = math.radians(config.base_deg) * np.cbrt(turn[..., :1]) * _directions(turn[..., 1:])
    drawn = {
        **{"gain": gain, "damping": damping, "joint_friction": dry, "force": force},
        **{"place": place, "rotation": rotation, "table": table},
        **{"friction": sliding, "softness": softness},
    }
    return Robots(drawn, held, _causes(drawn, held, np.rad2deg(zero), travel, scale))


def _causes(
    drawn: dict[str, np.ndarray],
    held: Held,
    zero_deg: np.ndarray,
    travel: np.ndarray,
    scale: np.ndarray,
) -> dict[str, np.ndarray]:
    """Returns what was drawn as one number per robot, name -> [N].

    Args:
      drawn, held: of the robots. zero_deg: [N, A * 6] what joints' readings are off.
      travel, scale: [N, A] of the finger travel's reading (m).
    """
    gain, place, rotation = drawn["gain"], drawn["place"], drawn["rotation"]
    arm_joints = np.arange(gain.shape[1]) % PER_ARM < 6
    delays = {
        "action_delay_ms": held.action_delay,
        "view_delay_ms": held.view_delay,
        "reading_delay_ms": held.reading_delay,
    }
    return {
        "gain": np.exp(np.log(gain[:, arm_joints]).mean(1)),
        "gripper_gain": np.exp(np.log(gain[:, ~arm_joints]).mean(1)),
        "damping": drawn["damping"].mean(1),
        "joint_friction": drawn["joint_friction"].mean(1),
        "backlash_deg": np.rad2deg(held.backlash[:, arm_joints].mean(1)),
        "zero_deg": np.sqrt((zero_deg**2).mean(1)),
        "travel_mm": 1000 * (travel + (scale - 1) * 0.018)[:, -1],
        "base_mm": 1000 * np.linalg.norm(place, axis=-1).mean(1),
        "base_deg": np.rad2deg(np.linalg.norm(rotation, axis=-1).mean(1)),
        "table_mm": 1000 * drawn["table"],
        "friction": drawn["friction"],
        "softness": drawn["softness"],
        **{name: 1000 * CONTROL_PERIOD_S * value for name, value in delays.items()},
    }


def _directions(uniform: np.ndarray) -> np.ndarray:
    """Returns unit vectors [..., 3], uniform on the sphere, from uniform numbers [..., 2]."""
    height, angle = 2 * uniform[..., 0] - 1, 2 * math.pi * uniform[..., 1]
    flat = np.sqrt(1 - height**2)
    return np.stack([flat * np.cos(angle), flat * np.sin(angle), height], -1)


def apply(
    scene: Scene, fields: Mapping[str, np.ndarray], drawn: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns model fields [N, ...] with a variation on top of what a task has drawn.

    Args:
      scene: where. fields: of the task, model field -> [N, ...]. drawn: from `sample`.
    """
    model, count = scene.model, len(drawn["table"])
    varied = dict(fields)

    def taken(name: str) -> np.ndarray:
        if name in fields:
            return np.array(fields[name], np.float64).reshape(count, *getattr(model, name).shape)
        return np.repeat(np.asarray(getattr(model, name), np.float64)[None], count, 0)

    gain, bias = taken("actuator_gainprm"), taken("actuator_biasprm")
    damping, dry = taken("dof_damping"), taken("dof_frictionloss")
    force = taken("jnt_actfrcrange")
    for index, arm in enumerate(scene.arms):
        for joint in range(PER_ARM):
            row = index * PER_ARM + joint
            actuator = arm.ctrl[joint]
            gain[:, actuator, 0] *= drawn["gain"][:, row]
            bias[:, actuator, 1] *= drawn["gain"][:, row]
            # The gripper's one servo moves both fingers.
            for dof in arm.qvel[joint : joint + 1] if joint < 6 else arm.qvel[6:8]:
                damping[:, dof] *= drawn["damping"][:, row]
                dry[:, dof] *= drawn["joint_friction"][:, row]
                force[:, model.dof_jntid[dof]] *= drawn["force"][:, row, None]
    varied |= {
        **{"actuator_gainprm": gain, "actuator_biasprm": bias, "dof_damping": damping},
        **{"dof_frictionloss": dry, "jnt_actfrcrange": force},
    }
    touching = _gripped_geoms(scene)
    friction, softness = taken("geom_friction"), taken("geom_solref")
    friction[:, touching, 0] *= drawn["friction"][:, None]
    softness[:, touching, 0] *= drawn["softness"][:, None]
    varied |= {"geom_friction": friction, "geom_solref": softness}
    return varied | moved(scene, drawn, taken("geom_pos"))


def moved(
    scene: Scene, drawn: dict[str, np.ndarray], geom_pos: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Returns where bases and table are: model fields "body_pos", "body_quat", "geom_pos" [N, ...] of a scene.

    Renderers take the same fields, of their own scene.

    Args:
      scene: where. drawn: from `sample`.
      geom_pos: [N, ngeom, 3] what has been moved already; the scene's own if None.
    """
    model, count = scene.model, len(drawn["table"])
    body_pos = np.repeat(model.body_pos[None], count, 0)
    body_quat = np.repeat(model.body_quat[None], count, 0)
    for index, arm in enumerate(scene.arms):
        base = scene.id("body", f"{arm.name}/base_link")
        body_pos[:, base] += drawn["place"][:, index]
        for row in range(count):
            turned = np.array([1.0, 0.0, 0.0, 0.0])
            rotation = drawn["rotation"][row, index]
            angle = float(np.linalg.norm(rotation))
            if angle > 0:
                mujoco.mju_axisAngle2Quat(turned, rotation / angle, angle)
            mujoco.mju_mulQuat(body_quat[row, base], turned, model.body_quat[base])
    if geom_pos is None:
        geom_pos = np.repeat(model.geom_pos[None], count, 0)
    geom_pos[:, scene.id("geom", "table"), 2] += drawn["table"]
    return {"body_pos": body_pos, "body_quat": body_quat, "geom_pos": geom_pos}


def _gripped_geoms(scene: Scene) -> np.ndarray:
    """Returns the ids of the geoms of fingers and objects."""
    bodies = {scene.id("body", arm.object_name) for arm in scene.arms} | {
        scene.id("body", f"{arm.name}/{finger}_finger_link")
        for arm in scene.arms
        for finger in ("left", "right")
    }
    return np.flatnonzero(np.isin(scene.model.geom_bodyid, sorted(bodies)))
