"""What stands between a policy and the servos.

`Guard` turns any wanted target into one that is safe to send: within the joint limits, no faster
and no more abruptly than allowed, and on a path that keeps clear of the table and the other arm.
`Monitor` looks at what comes back (joints, motors, pictures, timing) and reports findings.
`Reactions` turns findings into what to do, in this order: clamp, hold, guarded retreat to the sleep
pose, torque off there. A hardware fault ends in hold: torque is never cut in the air.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import mujoco
import numpy as np

from alohas2r import scene
from alohas2r.config import check
from alohas2r.robots import (
    IS_GRIPPER,
    JOINTS,
    PER_ARM,
    SIDES,
    SLEEP_POSE,
    STAGED_POSE,
    Frame,
    Proprio,
)


@dataclasses.dataclass(frozen=True)
class SafetyConfig:
    """Limits. Arm joints in rad, grippers in m of finger travel.

    A step of zero must always be allowed: an arm that may accelerate less in one control step than
    it may move could not stop in time, so `max_acceleration * period_s >= max_speed` is required.

    Attributes:
      period_s: control period.
      position_margin: distance kept from the ends of the arm joints' ranges.
      max_speed: of every joint's target, per second.
      max_acceleration: of every joint's target, per second squared.
      arm_clearance: least distance between the two arms' safety capsules (m).
      table_clearance: least height of links above the table (m).
      finger_table_clearance: the same for the fingers' own capsules; a little below zero, because
        targets slightly under the table are how fingers rest on it.
      tracking_error: largest distance of an arm joint from its target.
      tracking_steps: for how many steps in a row that may be exceeded.
      proprio_age_s: joint readings older than this are not acted on.
      silent_s: a servo silent for this long is a hardware fault.
      frame_age_s: pictures older than this are not acted on.
      black_steps: after how many black pictures in a row a camera counts as blind.
      frozen_travel: a picture that stays the same to the last bit while its arm moves this far
        counts as frozen.
      bad_actions: after how many unusable actions in a row the policy counts as broken.
      missed_deadlines: after how many late control steps in a row the arms are held.
      temperature_note_c: servo temperature worth a note.
      temperature_limit_c: servo temperature that is too hot to go on.
      least_voltage_v: supply voltage below which the arms are brought to rest.
      patience_s: how long a hold may last before the arms retreat.
    """

    period_s: float = scene.CONTROL_PERIOD_S
    position_margin: float = 0.02
    max_speed: float = 0.4
    max_acceleration: float = 16.0
    arm_clearance: float = 0.01
    table_clearance: float = 0.005
    finger_table_clearance: float = -0.005
    tracking_error: float = 0.3
    tracking_steps: int = 5
    proprio_age_s: float = 0.1
    silent_s: float = 0.5
    frame_age_s: float = 0.15
    black_steps: int = 4
    frozen_travel: float = 0.03
    bad_actions: int = 3
    missed_deadlines: int = 3
    temperature_note_c: float = 60.0
    temperature_limit_c: float = 72.0
    least_voltage_v: float = 10.5
    patience_s: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(0 < self.period_s <= 0.2, "period_s must lie in (0, 0.2]")
        check(0 <= self.position_margin <= 0.2, "position_margin must lie in 0..0.2")
        check(0 < self.max_speed <= 3, "max_speed must lie in (0, 3]")
        check(
            self.max_acceleration * self.period_s >= self.max_speed,
            f"max_acceleration = {self.max_acceleration} must be at least max_speed / period_s ="
            f" {self.max_speed / self.period_s}, or the arm could not stop within one step",
        )
        check(-0.02 <= self.finger_table_clearance <= 0.05, "finger_table_clearance: -0.02..0.05")
        check(0 <= self.table_clearance <= 0.05, "table_clearance must lie in 0..0.05")
        check(0 <= self.arm_clearance <= 0.05, "arm_clearance must lie in 0..0.05")
        check(self.tracking_error > 0, "tracking_error must be positive")
        for name in ("tracking_steps", "black_steps", "bad_actions", "missed_deadlines"):
            check(getattr(self, name) >= 1, f"{name} must be at least 1")
        check(0 < self.proprio_age_s < self.silent_s, "0 < proprio_age_s < silent_s must hold")
        check(self.frame_age_s > 0, "frame_age_s must be positive")
        check(self.patience_s >= 0, "patience_s must not be negative")
        check(
            self.temperature_note_c <= self.temperature_limit_c < 80,
            "temperature_note_c <= temperature_limit_c < 80, where servos shut down, must hold",
        )


# A policy's full action moves a target by 0.02 per step, and the next may be the opposite.
FULL = SafetyConfig()
SLOW = SafetyConfig(max_speed=0.15, max_acceleration=4.0)


class Capsule(NamedTuple):
    """A capsule around a part of a link, in the link's frame (m)."""

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radius: float
    table: bool = True  # whether it is kept off the table, too


# Drawn around the outlines of the links. The fingers' thin capsules, which may come close to the
# table, are the scene's own; the thick ones are for the other arm only.
# Source: extents of the parts of each link in the published model.
CAPSULES: dict[str, tuple[Capsule, ...]] = {
    "shoulder_link": (Capsule((0, 0, 0.01), (0, 0, 0.05), 0.089, table=False),),
    "upper_arm_link": (Capsule((0.029, 0, 0.01), (0.029, 0, 0.307), 0.07),),
    "upper_forearm_link": (Capsule((0.015, 0, 0), (0.181, 0, 0), 0.058),),
    "lower_forearm_link": (Capsule((0.013, 0.0075, 0), (0.096, 0.0075, 0), 0.048),),
    "wrist_link": (Capsule((0.012, 0, 0.0075), (0.053, 0, 0.0075), 0.043),),
    "gripper_base": (
        Capsule((-0.062, -0.002, 0.0095), (0.062, -0.002, 0.0095), 0.038),
        Capsule((0, -0.025, -0.0208), (0, 0.001, -0.0208), 0.026),
        # The camera's post; the camera with its plate, which lean back by 25 degrees.
        Capsule((-0.0185, -0.0449, -0.0391), (0.0185, -0.0449, -0.0391), 0.0115),
        Capsule((-0.0185, -0.0643, -0.0391), (0.0185, -0.0643, -0.0391), 0.0115),
        Capsule((-0.019, -0.0749, -0.0281), (0.019, -0.0749, -0.0281), 0.0165),
        Capsule((-0.019, -0.0881, -0.022), (0.019, -0.0881, -0.022), 0.0165),
        Capsule((-0.019, -0.1013, -0.0159), (0.019, -0.1013, -0.0159), 0.0165),
    ),
    # The carriage; the prongs are convex shapes, see _add_shapes.
    "left_finger_link": (
        Capsule((-0.0043, -0.0039, 0.0052), (0.0342, -0.0041, 0.0045), 0.015, False),
    ),
    "right_finger_link": (
        Capsule((-0.0043, 0.0039, 0.0052), (0.0342, 0.0041, 0.0045), 0.015, False),
    ),
}
FINGER_MARGIN = 0.001  # by which the convex shapes of the prongs are larger than the scene's (m)
# The base does not move; a box [centre, half size] serves.
BASE_BOX = ((-0.048, 0.0, 0.0395), (0.15, 0.102, 0.0395))
REACH = 0.08  # distances beyond this are not computed (m); each shape's margin is half of it
_TABLE, _LINK, _FINGER = 0, 1, 2


class Clearance(NamedTuple):
    """How far a pose is from what it must not touch, beyond the required distance.

    Attributes:
      table: of the arm that is closest to the table (m), at most REACH; negative: too close.
      arms: between the two arms, likewise.
      sides: [2] which arms take part in the closest pair.
    """

    table: float
    arms: float
    sides: np.ndarray

    @property
    def slack(self) -> float:
        """The smaller of both distances (m)."""
        return min(self.table, self.arms)


_NEITHER = np.zeros(len(SIDES), bool)
_NEITHER.setflags(write=False)


class SafetyModel:
    """Both arms as capsules, the table as a plane; knows nothing of objects."""

    def __init__(self, config: SafetyConfig) -> None:
        """Builds the model from the insertion scene's kinematics."""
        self.model = _safety_model()
        self._data = mujoco.MjData(self.model)
        joint = {
            name: int(self.model.joint(name).qposadr[0])
            for name in (self.model.joint(i).name for i in range(self.model.njnt))
        }
        self._joints = np.array(
            [
                joint[f"{side}/{name}"]
                for side in SIDES
                for name in (*scene.ARM_JOINTS, scene.FINGER_JOINTS[0])
            ]
        )
        self._second_fingers = np.array(
            [joint[f"{side}/{scene.FINGER_JOINTS[1]}"] for side in SIDES]
        )
        kinds, sides = [], []
        for index in range(self.model.ngeom):
            name = self.model.geom(index).name
            finger = "_finger_top" in name or "_finger_bottom" in name
            kinds.append(_TABLE if name == "table" else _FINGER if finger else _LINK)
            sides.append([name.startswith(side) for side in SIDES])
        kind = np.array(kinds)
        self._sides = np.array(sides)
        table = self._on_table = (kind[:, None] == _TABLE) | (kind[None] == _TABLE)
        finger = (kind[:, None] == _FINGER) | (kind[None] == _FINGER)
        self._required = np.where(
            table & finger,
            config.finger_table_clearance,
            np.where(table, config.table_clearance, config.arm_clearance),
        )

    def clearance(self, pose: np.ndarray) -> Clearance:
        """Returns how far a pose [14] is from table and collision."""
        first, second, slack = self._pairs(pose)
        if not len(slack):
            return Clearance(REACH, REACH, _NEITHER)
        on_table = self._on_table[first, second]
        table = float(slack.min(where=on_table, initial=REACH))
        arms = float(slack.min(where=~on_table, initial=REACH))
        closest = int(slack.argmin())
        return Clearance(table, arms, self._sides[first[closest]] | self._sides[second[closest]])

    def closest(self, pose: np.ndarray) -> tuple[tuple[int, int], float]:
        """Returns the two geoms that are closest in a pose [14], and their slack (m), at most REACH."""
        first, second, slack = self._pairs(pose)
        if not len(slack):
            return (-1, -1), REACH
        index = int(slack.argmin())
        return (int(first[index]), int(second[index])), float(slack[index])

    def between(self, pose: np.ndarray, pair: tuple[int, int]) -> float:
        """Returns the slack of two geoms in a pose [14] (m), at most REACH."""
        self._place(pose)
        distance = mujoco.mj_geomDistance(self.model, self._data, *pair, REACH, None)
        return float(distance - self._required[pair])

    def _pairs(self, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the geoms of each pair within REACH of each other, and the slack of each (m)."""
        self._place(pose)
        mujoco.mj_collision(self.model, self._data)
        first, second = self._data.contact.geom.T
        return first, second, self._data.contact.dist - self._required[first, second]

    def _place(self, pose: np.ndarray) -> None:
        self._data.qpos[self._joints] = pose
        self._data.qpos[self._second_fingers] = pose[IS_GRIPPER]
        mujoco.mj_kinematics(self.model, self._data)


@functools.cache
def _safety_model() -> mujoco.MjModel:
    """Builds the capsule model: the scene's joints, and geoms that only the safety check sees."""
    source = scene.load("insert").model
    spec = mujoco.MjSpec()
    table = spec.worldbody.add_geom(name="table", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1, 1, 1])
    table.pos = source.geom("table").pos
    table.contype, table.conaffinity, table.margin = 4, 0, REACH / 2
    made: dict[int, mujoco.MjsBody] = {0: spec.worldbody}
    for index in range(1, source.nbody):
        name, parent = source.body(index).name, int(source.body_parentid[index])
        side = name.partition("/")[0]
        if side not in SIDES or parent not in made:
            continue
        body = made[parent].add_body(
            name=name, pos=source.body_pos[index], quat=source.body_quat[index]
        )
        body.explicitinertial, body.mass, body.inertia = True, 1.0, [1.0, 1.0, 1.0]
        made[index] = body
        first, count = int(source.body_jntadr[index]), int(source.body_jntnum[index])
        for joint in range(first, first + max(count, 0)):
            body.add_joint(
                name=source.joint(joint).name,
                type=mujoco.mjtJoint(int(source.jnt_type[joint])),
                axis=source.jnt_axis[joint],
                pos=source.jnt_pos[joint],
            )
        _add_shapes(spec, body, source, index, side)
    return spec.compile()


def _add_shapes(
    spec: mujoco.MjSpec, body: mujoco.MjsBody, source: mujoco.MjModel, index: int, side: str
) -> None:
    """Adds a link's safety shapes, and the scene's own finger capsules and prongs."""
    link = body.name.partition("/")[2]
    # Bits: 1 left arm, 2 right arm, 4 table. Each arm meets the other arm and the table.
    own, other = (1, 2) if side == SIDES[0] else (2, 1)

    def shared(name: str, table: bool) -> dict[str, object]:
        bits = other | (4 if table else 0)
        return {"name": name, "contype": own, "conaffinity": bits, "margin": REACH / 2}

    for number, capsule in enumerate(CAPSULES.get(link, ())):
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_CAPSULE,
            fromto=[*capsule.start, *capsule.end],
            size=[capsule.radius, 0, 0],
            **shared(f"{body.name}_{number}", capsule.table),
        )
    if link == "base_link":
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=BASE_BOX[0],
            size=BASE_BOX[1],
            **shared(f"{body.name}_0", table=False),
        )
    if link in [f"{finger}_link" for finger in scene.FINGER_JOINTS]:
        for geom in np.flatnonzero(source.geom_bodyid == index).tolist():
            name = source.geom(geom).name
            if source.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
                corners = _corners(source, geom)
                grown = corners + FINGER_MARGIN * np.sign(corners - corners.mean(0))
                spec.add_mesh(name=name, uservert=grown.ravel())
                body.add_geom(
                    type=mujoco.mjtGeom.mjGEOM_MESH, meshname=name, **shared(name, table=False)
                )
            elif source.geom_conaffinity[geom]:
                body.add_geom(
                    type=mujoco.mjtGeom.mjGEOM_CAPSULE,
                    pos=source.geom_pos[geom],
                    quat=source.geom_quat[geom],
                    size=source.geom_size[geom],
                    **shared(name, table=True),
                )


def _corners(source: mujoco.MjModel, geom: int) -> np.ndarray:
    """Returns the corners [n, 3] of a mesh geom in its body's frame (m)."""
    mesh = source.mesh(source.geom_dataid[geom])
    first, count = int(mesh.vertadr[0]), int(mesh.vertnum[0])
    turn = np.empty(9)
    mujoco.mju_quat2Mat(turn, source.geom_quat[geom])
    corners = source.mesh_vert[first : first + count].astype(float)
    return corners @ turn.reshape(3, 3).T + source.geom_pos[geom]


class Decision(NamedTuple):
    """A target that is safe to send.

    Attributes:
      command: [14] what to send.
      interventions: what had to be changed: "not finite", "joint limit", "speed", "acceleration",
        "collision". Empty: the wanted target as it was.
    """

    command: np.ndarray
    interventions: tuple[str, ...]


class Guard:
    """Limits every target before it is sent.

    Each limit allows a step of zero, and with a step every shorter one; so whatever several limits
    leave of a step together still satisfies each of them.

    Attributes:
      config: the limits.
      counts: how often each intervention was necessary.
    """

    SWEEPS = 3  # halvings of a step's path that is not plainly clear
    _TOLERANCE = 1e-9  # differences of distances below this are rounding (m)
    _SLIDES = 6  # pairs of links that a step is led around
    _NUDGE = 1e-4  # of a joint, to see which way leads apart (rad)
    _FLAT = 1e-6  # square of a gradient of distance below which no joint leads apart (m^2 / rad^2)
    _SPARE = 1e-4  # by how much further apart than necessary (m)

    def __init__(self, config: SafetyConfig = FULL) -> None:
        """Builds the safety model; call `start` before `limit`."""
        insert = scene.load("insert")
        order = np.concatenate([arm.ctrl for arm in insert.arms])
        margin = np.where(IS_GRIPPER, 0.0, config.position_margin)
        self.config = config
        self.counts: collections.Counter[str] = collections.Counter()
        # The sleep pose lies at the very end of the shoulder's range.
        self._low = np.minimum(insert.ctrl_low[order] + margin, SLEEP_POSE)
        self._high = np.maximum(insert.ctrl_high[order] - margin, SLEEP_POSE)
        # A rounding error is no excess.
        self._most = config.max_speed * config.period_s * (1 + 1e-9)
        self._change = config.max_acceleration * config.period_s**2 * (1 + 1e-9)
        self._model = SafetyModel(config)
        self._clearance = self._model.clearance
        self._levers = _levers()
        self._last = np.zeros(len(JOINTS))
        self._step = np.zeros(len(JOINTS))
        self._last_clearance = Clearance(0.0, 0.0, _NEITHER)

    @property
    def last(self) -> np.ndarray:
        """[14] the last command, from which the next one is limited."""
        return self._last.copy()

    @property
    def slack(self) -> float:
        """How far the last command is from collision, beyond the clearance (m)."""
        return self._last_clearance.slack

    def start(self, pose: np.ndarray) -> None:
        """Takes a pose [14] that is held as the last command: at rest there."""
        self._take(np.array(pose, float))
        self._step = np.zeros(len(JOINTS))

    def sent(self, command: np.ndarray) -> None:
        """Notes what the robot made of the last decision, from which the next step starts."""
        if np.abs(command - self._last).max() > self._TOLERANCE:
            self._step = self._step + command - self._last
            self._take(np.array(command, float))

    def limit(self, wanted: np.ndarray, measured: np.ndarray | None = None) -> Decision:
        """Turns a wanted target into one that is safe to send, and takes it as the last command.

        Args:
          wanted: [14] whatever the policy asks for, even if it is not finite.
          measured: [14] measured positions. The pose that the arms are about to reach, which lags
            behind the targets, is then checked for collisions as well.
        """
        interventions: list[str] = []
        last = self._last
        finite = np.isfinite(wanted)
        if not finite.all():
            interventions.append("not finite")
            wanted = np.where(finite, wanted, last)
        # A start beyond a limit may only lead back, not further out.
        low, high = np.minimum(self._low, last), np.maximum(self._high, last)
        command = np.minimum(np.maximum(wanted, low), high)
        if (command != wanted).any():
            interventions.append("joint limit")
        step = command - last
        slower = np.minimum(np.maximum(step, -self._most), self._most)
        if (slower != step).any():
            interventions.append("speed")
        smoother = np.minimum(
            np.maximum(slower, self._step - self._change), self._step + self._change
        )
        if (smoother != slower).any():
            interventions.append("acceleration")
        step = self._avoid(smoother, measured)
        if step is not smoother:
            interventions.append("collision")
        self.counts.update(interventions)
        self._step = step
        return Decision(self._last.copy(), tuple(interventions))

    def _take(self, command: np.ndarray) -> None:
        self._last = command
        self._last_clearance = self._clearance(command)

    def _avoid(self, step: np.ndarray, measured: np.ndarray | None) -> np.ndarray:
        """Takes what comes near a step and stays clear, and returns it.

        First the whole step; then the part of it that leads along the obstacle; then the arms that are too close keep
        their joints still and move only their fingers; then they do not move at all; then no arm does.
        """
        lag_before = None if measured is None else self._clearance(measured).slack
        offending = self._try(step, measured, lag_before)
        if offending is None:
            return step
        along = self._slide(step)
        if along is not None and self._try(along, measured, lag_before) is None:
            return along
        for _ in range(3):
            arms = np.repeat(offending, PER_ARM)
            still = np.where(arms & ~IS_GRIPPER, 0.0, step)
            if (still == step).all():
                still = np.where(arms, 0.0, step)
            if (still == step).all():
                break
            step = still
            offending = self._try(step, measured, lag_before)
            if offending is None:
                return step
        return np.zeros_like(step)

    def _try(
        self, step: np.ndarray, measured: np.ndarray | None, lag_before: float | None
    ) -> np.ndarray | None:
        """Takes a step if it stays clear; otherwise returns which arms come too close."""
        end = self._last + step
        reached = self._clearance(end)
        offending = self._offends(end, reached)
        if offending is None and measured is not None and lag_before is not None:
            lagging = self._clearance(measured + step)
            if lagging.slack < min(0.0, lag_before) - self._TOLERANCE:
                offending = lagging.sides
        if offending is None:
            self._last, self._last_clearance = end, reached
        return offending

    def _slide(self, step: np.ndarray) -> np.ndarray | None:
        """Turns a step that comes too close into one along the obstacle, or returns None if it finds none.

        It stays within the limits of range, speed and acceleration as far as standing still does.

        Source: projection onto the linearized constraint, as in Faverjon and Tournassoud, A local based approach for
        path planning of manipulators with a high number of degrees of freedom (1987).
        """
        least = -self._TOLERANCE
        if self._last_clearance.slack < least:  # too close already, and only to be left
            return None
        slowest = np.maximum(np.minimum(0.0, self._step - self._change), -self._most)
        fastest = np.minimum(np.maximum(0.0, self._step + self._change), self._most)
        low, high = np.minimum(self._low, self._last), np.maximum(self._high, self._last)
        for _ in range(self._SLIDES):
            end = self._last + step
            pair, slack = self._model.closest(end)
            if slack >= least:
                return step
            gradient = np.zeros_like(step)
            for joint in np.flatnonzero(~IS_GRIPPER):
                beside = end.copy()
                beside[joint] += self._NUDGE
                gradient[joint] = (self._model.between(beside, pair) - slack) / self._NUDGE
            square = float(gradient @ gradient)
            if square < self._FLAT:
                return None
            step = step + gradient * ((least - slack + self._SPARE) / square)
            step = np.clip(self._last + np.clip(step, slowest, fastest), low, high) - self._last
        return step

    def _offends(self, end: np.ndarray, after: Clearance) -> np.ndarray | None:
        """Returns which arms come too close on the way to a pose, or None if none does.

        A pose that is too close already may be left, but not worsened.
        """
        before = self._last_clearance
        least = min(0.0, before.slack) - self._TOLERANCE
        if after.slack < least:
            return after.sides
        # No point of an arm moves further than this.
        moved = np.abs(end - self._last) * self._levers
        paths = (float(moved[:PER_ARM].sum()), float(moved[PER_ARM:].sum()))
        return self._sweep(self._last, before, end, after, paths, least, self.SWEEPS)

    def _sweep(
        self,
        start: np.ndarray,
        before: Clearance,
        end: np.ndarray,
        after: Clearance,
        paths: tuple[float, float],
        least: float,
        depth: int,
    ) -> np.ndarray | None:
        """Looks between two clear poses, as far as they are too near an obstacle to be sure."""
        together = sum(paths)
        table_is_clear = before.table + after.table - max(paths) >= 2 * least
        arms_are_clear = before.arms + after.arms - together >= 2 * least
        if (table_is_clear and arms_are_clear) or depth == 0 or together < 0.01:
            return None
        middle = (start + end) / 2
        between = self._clearance(middle)
        if between.slack < least:
            return between.sides
        half = (paths[0] / 2, paths[1] / 2)
        first = self._sweep(start, before, middle, between, half, least, depth - 1)
        if first is not None:
            return first
        return self._sweep(middle, between, end, after, half, least, depth - 1)


@functools.cache
def _levers() -> np.ndarray:
    """Returns [14] how far a unit step of each joint moves any point of its arm at most (m).

    The reach from each joint to the fingertips along the stretched arm, links' thickness included.
    """
    source = scene.load("insert").model
    levers = []
    for side in SIDES:
        bodies = [int(source.joint(f"{side}/{joint}").bodyid[0]) for joint in scene.ARM_JOINTS]
        finger = int(source.joint(f"{side}/{scene.FINGER_JOINTS[0]}").bodyid[0])
        palm = int(source.body_parentid[finger])
        chain = [*bodies, palm, finger]
        # From the fingertips back: each joint's lever is the next one's plus the link between.
        reach = 0.1 + float(np.linalg.norm(source.body_pos[finger]))
        reach += float(np.linalg.norm(source.body_pos[palm]))
        along = [reach]
        for body in reversed(chain[1:6]):
            reach += float(np.linalg.norm(source.body_pos[body]))
            along.append(reach)
        # Roll joints turn the links behind them about an axis that runs along the arm.
        levers += [*reversed(along), 1.0]
    return np.array(levers)


class Level(enum.IntEnum):
    """How grave a finding is."""

    NOTE = 0  # logged
    HOLD = 1  # stand still until it is over, or patience ends
    RETREAT = 2  # bring the arms to the sleep pose
    FREEZE = 3  # hold, and stay: the hardware cannot be relied on to move


class Finding(NamedTuple):
    """Something that is not as it should be."""

    kind: str
    level: Level
    text: str


class Monitor:
    """Looks at readings, pictures, actions and timing, and reports what is wrong with them.

    Attributes:
      config: the limits.
      counts: how often each kind of finding came up.
    """

    def __init__(self, config: SafetyConfig = FULL) -> None:
        """Starts with nothing seen."""
        self.config = config
        self.counts: collections.Counter[str] = collections.Counter()
        self._strayed = 0
        self._bad_actions = 0
        self._late = 0
        self._eyes = {side: _Eye() for side in SIDES}
        self._position: np.ndarray | None = None
        self._votes: collections.deque[bool] = collections.deque(maxlen=24)

    def proprio(self, reading: Proprio, command: np.ndarray | None) -> list[Finding]:
        """Judges a reading of the joints.

        Args:
          reading: what the robot returned.
          command: [14] the target that was in force, or None if the arms are not powered.
        """
        found: list[Finding] = []
        config = self.config
        faulty = np.flatnonzero(reading.hardware_error)
        if faulty.size:
            names = ", ".join(
                f"{JOINTS[i]} ({int(reading.hardware_error[i]):#04x})" for i in faulty
            )
            found.append(Finding("motor fault", Level.FREEZE, f"hardware error in {names}"))
        if not np.isfinite(reading.position).all():
            found.append(Finding("bad reading", Level.FREEZE, "joint positions are not finite"))
            return self._count(found)
        oldest = int(reading.age_s.argmax())
        age_s = float(reading.age_s[oldest])
        if age_s > config.proprio_age_s:
            level = Level.FREEZE if age_s > config.silent_s else Level.HOLD
            text = f"{JOINTS[oldest]} was last heard {age_s:.2f} s ago"
            found.append(Finding("silent servo", level, text))
        found += self._health(reading)
        if command is not None:
            error = np.where(IS_GRIPPER, 0.0, np.abs(reading.position - command))
            worst = int(error.argmax())
            self._strayed = self._strayed + 1 if error[worst] > config.tracking_error else 0
            if self._strayed >= config.tracking_steps:
                text = f"{JOINTS[worst]} is {error[worst]:.2f} rad from its target"
                found.append(Finding("tracking error", Level.RETREAT, text))
        return self._count(found)

    def frames(
        self, frames: Mapping[str, Frame], position: np.ndarray, now_s: float
    ) -> list[Finding]:
        """Judges the pictures of both wrist cameras.

        Args:
          frames: the newest picture of "left" and "right".
          position: [14] measured positions, which tell whether pictures must have changed.
          now_s: the monotonic clock.
        """
        found: list[Finding] = []
        before = position if self._position is None else self._position
        moved = np.abs(np.where(IS_GRIPPER, 0.0, position - before)).reshape(2, PER_ARM).sum(axis=1)
        self._position = position.copy()
        changes = np.zeros(len(SIDES))
        for index, side in enumerate(SIDES):
            frame = frames[side]
            age_s = now_s - frame.time_s
            if age_s > self.config.frame_age_s:
                text = f"the {side} camera's picture is {age_s:.2f} s old"
                found.append(Finding("stale camera", Level.HOLD, text))
            eye = self._eyes[side]
            changes[index] = eye.look(frame, float(moved[index]))
            if eye.unchanged_travel > self.config.frozen_travel:
                text = f"the {side} camera shows the same picture while its arm moves"
                found.append(Finding("frozen camera", Level.HOLD, text))
            if eye.black >= self.config.black_steps:
                text = f"the {side} camera has been black for {eye.black} pictures"
                found.append(Finding("black camera", Level.HOLD, text))
        if self._swapped(moved, changes):
            text = "each camera's picture moves with the other arm: swap the serial numbers"
            found.append(Finding("swapped cameras", Level.RETREAT, text))
        return self._count(found)

    def action(self, action: np.ndarray | None) -> list[Finding]:
        """Judges what the policy returned; None: it did not answer in time."""
        if action is not None and np.isfinite(action).all():
            self._bad_actions = 0
            return []
        self._bad_actions += 1
        broken = self._bad_actions >= self.config.bad_actions
        if action is None:
            # A slow server may recover: patience decides, not a count.
            return self._count([Finding("late policy", Level.HOLD, "the policy did not answer")])
        level = Level.RETREAT if broken else Level.HOLD
        return self._count([Finding("bad action", level, "the policy's action is not finite")])

    def timing(self, duration_s: float) -> list[Finding]:
        """Judges how long a control step took."""
        if duration_s <= self.config.period_s:
            self._late = 0
            return []
        self._late += 1
        self.counts["missed deadline"] += 1
        if self._late < self.config.missed_deadlines:
            return []
        text = f"{self._late} control steps in a row took longer than {self.config.period_s} s"
        return self._count([Finding("slow loop", Level.HOLD, text)])

    def _health(self, reading: Proprio) -> list[Finding]:
        hottest, weakest = int(reading.temperature_c.argmax()), int(reading.voltage_v.argmin())
        heat, volts = float(reading.temperature_c[hottest]), float(reading.voltage_v[weakest])
        found = []
        if heat >= self.config.temperature_note_c:
            too_hot = heat >= self.config.temperature_limit_c
            level = Level.RETREAT if too_hot else Level.NOTE
            found.append(Finding("hot servo", level, f"{JOINTS[hottest]} is at {heat:.0f} C"))
        if volts < self.config.least_voltage_v:
            text = f"{JOINTS[weakest]} has {volts:.1f} V only"
            found.append(Finding("low voltage", Level.RETREAT, text))
        return found

    def _swapped(self, moved: np.ndarray, changes: np.ndarray) -> bool:
        """Counts, for steps in which one arm alone moves, whether the other's picture changed."""
        mover = int(moved.argmax())
        if moved[mover] > 0.008 and moved[mover] > 4 * moved[1 - mover] and changes.max() > 0:
            self._votes.append(bool(changes[1 - mover] > changes[mover]))
        return len(self._votes) >= 6 and sum(self._votes) > 0.75 * len(self._votes)

    def _count(self, found: list[Finding]) -> list[Finding]:
        self.counts.update(finding.kind for finding in found)
        return found


class _Eye:
    """What one camera has shown lately."""

    def __init__(self) -> None:
        self.black = 0
        self.unchanged_travel = 0.0
        self._frame: Frame | None = None

    def look(self, frame: Frame, moved: float) -> float:
        """Takes a picture; returns how much it differs from the one before (grey levels)."""
        before, self._frame = self._frame, frame
        dark = frame.rgb.max() < 8 and not frame.depth.any()
        self.black = self.black + 1 if dark else 0
        if before is None:
            return 0.0
        change = float(np.abs(frame.rgb.astype(int) - before.rgb).mean())
        # Black pictures are all alike; they are judged by their number.
        same = not dark and change == 0 and np.array_equal(frame.depth, before.depth)
        self.unchanged_travel = self.unchanged_travel + moved if same else 0.0
        return change


class Mode(enum.Enum):
    """What the arms are doing."""

    RUN = "run"
    HOLD = "hold"
    RETREAT = "retreat"
    ASLEEP = "asleep"
    FROZEN = "frozen"


class Reactions:
    """Decides, from findings, what the arms do next; it only gets more careful in one run.

    RUN and HOLD alternate as causes come and go. A hold that outlasts patience, and any graver
    finding, turns to RETREAT; nothing leads back. FROZEN holds for good.

    Attributes:
      mode: what to do now.
      reasons: the findings that led to each change of mode, in order.
    """

    # While retreating, the arms need neither the policy nor the cameras.
    _FOR_RETREAT = frozenset({"motor fault", "bad reading", "silent servo", "tracking error"})

    def __init__(self, config: SafetyConfig = FULL) -> None:
        """Starts in RUN."""
        self.config = config
        self.mode = Mode.RUN
        self.reasons: list[tuple[Mode, str]] = []
        self._held_since_s: float | None = None

    def update(self, findings: Sequence[Finding], now_s: float) -> Mode:
        """Takes the findings of a control step and returns what to do in it.

        Args:
          findings: everything that the monitor reported in this step.
          now_s: the monotonic clock.
        """
        if self.mode in (Mode.FROZEN, Mode.ASLEEP):
            return self.mode
        if self.mode is Mode.RETREAT:
            relevant = [one for one in findings if one.kind in self._FOR_RETREAT]
            # Nothing is left to fall back on: what would start a retreat now ends in a hold.
            grave = [one for one in relevant if one.level >= Level.RETREAT]
            return self._change(Mode.FROZEN, grave) if grave else self.mode
        worst = max(findings, key=lambda one: one.level, default=None)
        if worst is None or worst.level == Level.NOTE:
            self._held_since_s = None
            return self._change(Mode.RUN, []) if self.mode is Mode.HOLD else self.mode
        if worst.level == Level.FREEZE:
            return self._change(Mode.FROZEN, [worst])
        if worst.level == Level.RETREAT:
            return self._change(Mode.RETREAT, [worst])
        if self._held_since_s is None:
            self._held_since_s = now_s
        if now_s - self._held_since_s >= self.config.patience_s:
            return self._change(Mode.RETREAT, [worst])
        return self._change(Mode.HOLD, [worst])

    def retreat(self, reason: str) -> None:
        """Starts the retreat on request: the end of a run, or Ctrl-C."""
        if self.mode in (Mode.RUN, Mode.HOLD):
            self._change(Mode.RETREAT, [Finding("request", Level.RETREAT, reason)])

    def freeze(self, reason: str) -> None:
        """Holds for good: a bus is gone, a second Ctrl-C, a retreat that is stuck."""
        if self.mode is not Mode.FROZEN:
            self._change(Mode.FROZEN, [Finding("request", Level.FREEZE, reason)])

    def arrived(self) -> None:
        """Notes that the arms rest in the sleep pose, where torque may go off."""
        if self.mode is Mode.RETREAT:
            self._change(Mode.ASLEEP, [])

    def _change(self, mode: Mode, findings: Sequence[Finding]) -> Mode:
        if mode is not self.mode:
            text = "; ".join(f"{one.kind}: {one.text}" for one in findings)
            self.reasons.append((mode, text))
            self.mode = mode
        return mode


class Path:
    """A way through some poses, each joint arriving at each pose together with the others.

    Attributes:
      stuck: whether it has not come closer for two seconds.
    """

    PATIENCE_STEPS = 40
    TOLERANCE = 0.15  # how close to a pose counts as there (rad)

    def __init__(self, poses: Sequence[np.ndarray], config: SafetyConfig = SLOW) -> None:
        """Starts at its first pose.

        Args:
          poses: [14] each; a joint that is not a number stays where it is.
          config: how fast to move.
        """
        self._most = config.max_speed * config.period_s
        self._poses = list(poses)
        self._best = np.inf
        self._waited = 0
        self.stuck = False

    def target(self, last: np.ndarray, measured: np.ndarray) -> np.ndarray | None:
        """Returns the next target [14], or None once the last pose is reached.

        Args:
          last: [14] the last command.
          measured: [14] measured positions.
        """
        while self._poses:
            pose = np.where(np.isnan(self._poses[0]), last, self._poses[0])
            ahead = pose - last
            furthest = float(np.abs(ahead).max())
            # Grippers may be kept from arriving by what they hold.
            lag = float(np.abs(np.where(IS_GRIPPER, 0.0, pose - measured)).max())
            if furthest > 1e-6 or lag > self.TOLERANCE:
                self._watch(furthest + lag)
                return last + ahead * min(1.0, self._most / max(furthest, 1e-12))
            self._poses.pop(0)
            self._best, self._waited = np.inf, 0
        return None

    def _watch(self, distance: float) -> None:
        if distance < self._best - 1e-3:
            self._best, self._waited = distance, 0
        else:
            self._waited += 1
        self.stuck = self._waited >= self.PATIENCE_STEPS


def retreat_path(config: SafetyConfig = SLOW) -> Path:
    """Returns the way to the sleep pose: let go, rise to the staged pose, fold up."""
    return Path([np.where(IS_GRIPPER, SLEEP_POSE, np.nan), STAGED_POSE, SLEEP_POSE], config)


def approach_path(pose: np.ndarray, config: SafetyConfig = SLOW) -> Path:
    """Returns the way from rest to a start pose [14], one arm after the other.

    That only one arm moves at a time lets the monitor tell whether the cameras are swapped.
    """
    arms = np.arange(len(JOINTS)) // PER_ARM
    steps = [
        np.where(arms == arm, goal, np.nan)
        for arm in range(len(SIDES))
        for goal in (STAGED_POSE, pose)
    ]
    return Path(steps, config)


def at_rest(measured: np.ndarray) -> bool:
    """Returns whether both arms [14] are folded in the sleep pose, where torque may go off."""
    away = np.where(IS_GRIPPER, 0.0, np.abs(measured - SLEEP_POSE))
    return bool(away.max() < Path.TOLERANCE)
