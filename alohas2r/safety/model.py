"""How far the arms are from each other and the table."""

from __future__ import annotations

import functools
from typing import NamedTuple

import mujoco
import numpy as np

from alohas2r.embodiment import joints
from alohas2r.embodiment.joints import IS_GRIPPER, SIDES
from alohas2r.safety.config import SafetyConfig
from alohas2r.sim import scene


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


NEITHER = np.zeros(len(SIDES), bool)
NEITHER.setflags(write=False)


class SafetyModel:
    """Both arms as capsules, the table as a plane; knows nothing of objects."""

    def __init__(self, config: SafetyConfig) -> None:
        """Builds the model from the insertion scene's kinematics."""
        self.model = compile_safety_model()
        self._data = mujoco.MjData(self.model)
        joint = {
            name: int(self.model.joint(name).qposadr[0])
            for name in (self.model.joint(i).name for i in range(self.model.njnt))
        }
        self._joints = np.array(
            [
                joint[f"{side}/{name}"]
                for side in SIDES
                for name in (*joints.ARM_JOINTS, joints.FINGER_JOINTS[0])
            ]
        )
        self._second_fingers = np.array(
            [joint[f"{side}/{joints.FINGER_JOINTS[1]}"] for side in SIDES]
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
            return Clearance(REACH, REACH, NEITHER)
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
def compile_safety_model() -> mujoco.MjModel:
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
    if link in [f"{finger}_link" for finger in joints.FINGER_JOINTS]:
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
