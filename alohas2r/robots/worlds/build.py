"""From a world's table to its compiled model: names resolved, objects placed, looks changed."""

from __future__ import annotations

import hashlib
import pathlib
from typing import NamedTuple

import mujoco
import numpy as np

from alohas2r.core.types import Untyped
from alohas2r.embodiment.joints import CONTROL_PERIOD_S, SIDES
from alohas2r.errors import ConfigError, did_you_mean
from alohas2r.robots.worlds.table import ArmTable, CameraTable, WorldTable
from alohas2r.sim import scene

OBJECTS = ("socket", "peg")
_PREFIX = "alohas2r/"  # of what is added to a world
_BACK_WALL = "socket-W"  # of the socket; it keeps its colour
_TEXELS = 256
_WOOD = (0.72, 0.53, 0.33)
_SHEET = np.array(
    [0.61, 0.37]
)  # m, half sizes of a painted sheet where no geom says how large the table is
_SHEET_M = 0.0003  # how high it lies on the table
_NEAR_M = 0.005  # nothing nearer than this is drawn
_EXTENTS = {"joint": "joints", "actuator": "actuators", "body": "bodies", "camera": "cameras"}
# The ring, in an arm's base frame, in which eval-v1 puts objects, and 4 cm more (m).
_FREE_RING = (0.27 - 0.09, 0.42 + 0.09)


class ArmNames(NamedTuple):
    """Where an arm's quantities are in the compiled model.

    Attributes:
      qpos, qvel: [6] addresses of the hinges. grip_qpos, grip_qvel: [K] of the gripper's joints.
      ctrl: [6] actuators of the hinges. grip_ctrl: [K'] of the gripper; grip_signs: [K'] by which it is driven.
      base: body id. fingers: ids of the bodies that the gripper's joints move.
    """

    qpos: np.ndarray
    qvel: np.ndarray
    grip_qpos: np.ndarray
    grip_qvel: np.ndarray
    ctrl: np.ndarray
    grip_ctrl: np.ndarray
    grip_signs: np.ndarray
    base: int
    fingers: tuple[int, ...]


class Built(NamedTuple):
    """A world's compiled model.

    Attributes:
      model: the model. digest: identifies every number of it, and of the table.
      arms: left first.
      object_qpos: [2, 7] addresses of socket and peg; object_qvel: [2, 6]. object_bodies: their ids.
      cameras: names of the wrist cameras, left first.
      substeps: physics steps per control period.
    """

    model: mujoco.MjModel
    digest: str
    arms: tuple[ArmNames, ...]
    object_qpos: np.ndarray
    object_qvel: np.ndarray
    object_bodies: tuple[int, ...]
    cameras: tuple[str, str]
    substeps: int


def build(table: WorldTable, path: pathlib.Path) -> Built:
    """Compiles a world.

    Args:
      table: its names. path: its MJCF file.

    Raises:
      ConfigError: the file is damaged, a name is missing, an actuator is of another kind; one line names it.
    """
    where = f"World '{table.name}'"
    try:
        spec = mujoco.MjSpec.from_file(str(path))
    except ValueError as error:
        raise ConfigError(
            f"{where}: {path} could not be read: {str(error).splitlines()[0]}"
        ) from None
    for key in list(spec.keys):  # their sizes no longer fit
        spec.delete(key)
    spec.memory = -1  # as much as is needed with what is added
    _remove(spec, table, where)
    try:
        spec.copy().compile()
    except ValueError as error:
        raise ConfigError(f"{where} cannot be compiled: {str(error).splitlines()[0]}") from None
    objects = _add_objects(spec, table, where)
    cameras = (
        _add_camera(spec, table, "left", table.cameras.left, where),
        _add_camera(spec, table, "right", table.cameras.right, where),
    )
    _light(spec, table.look.light)
    _paint(spec, table, where)
    _litter(spec, table, where)
    try:
        model = spec.compile()
    except ValueError as error:
        raise ConfigError(f"{where} cannot be compiled: {str(error).splitlines()[0]}") from None
    # A simulation that diverges must be seen, not restarted in silence.
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    model.vis.map.znear = _NEAR_M / model.stat.extent
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = min(model.vis.quality.shadowsize, table.cameras.shadow_size)
    screen = model.vis.global_
    screen.offwidth = max(screen.offwidth, table.cameras.width, 640)
    screen.offheight = max(screen.offheight, table.cameras.height, 480)
    substeps = round(CONTROL_PERIOD_S / model.opt.timestep)
    if substeps < 1 or abs(substeps * model.opt.timestep - CONTROL_PERIOD_S) > 1e-6:
        raise ConfigError(
            f"{where}: a control period of {CONTROL_PERIOD_S} s is no whole number of its time steps of"
            f" {model.opt.timestep:g} s."
        )
    arms = tuple(
        _arm_names(model, side, arm, where)
        for side, arm in zip(SIDES, (table.left, table.right), strict=True)
    )
    free = [_free_joint(model, name, where) for name in objects]
    return Built(
        model=model,
        digest=_digest(table, model),
        arms=arms,
        object_qpos=np.stack([model.jnt_qposadr[joint] + np.arange(7) for joint in free]),
        object_qvel=np.stack([model.jnt_dofadr[joint] + np.arange(6) for joint in free]),
        object_bodies=tuple(int(model.jnt_bodyid[joint]) for joint in free),
        cameras=cameras,
        substeps=substeps,
    )


def _digest(table: WorldTable, model: mujoco.MjModel) -> str:
    """Returns what identifies a world: its table, and every number of the compiled model."""
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return hashlib.sha256(repr(table).encode() + buffer.tobytes()).hexdigest()[:16]


def _named(spec: mujoco.MjSpec, kind: str, name: str, where: str, what: str) -> Untyped:
    """Returns an element of the specification.

    Raises:
      ConfigError: there is none of that name.
    """
    element = getattr(spec, kind)(name)
    if element is None:
        names = [one.name for one in getattr(spec, _EXTENTS.get(kind, f"{kind}s")) if one.name]
        raise ConfigError(
            f"{where} has no {kind} '{name}', which the table calls {what}.{did_you_mean(name, names)}"
        )
    return element


def _remove(spec: mujoco.MjSpec, table: WorldTable, where: str) -> None:
    for name in table.objects.remove:
        spec.delete(_named(spec, "body", name, where, "objects.remove"))


def _add_objects(spec: mujoco.MjSpec, table: WorldTable, where: str) -> tuple[str, str]:
    """Adds the project's own socket and peg, unless the world has them; returns the names of their bodies."""
    own = (table.objects.socket, table.objects.peg)
    if all(own):
        for name, what in zip(own, OBJECTS, strict=True):
            _named(spec, "body", name, where, f"objects.{what}")
        return own
    for name in OBJECTS:
        _copy_object(spec, name, table)
    return f"{_PREFIX}socket", f"{_PREFIX}peg"


def _copy_object(spec: mujoco.MjSpec, name: str, table: WorldTable) -> None:
    """Adds the project's own socket or peg, as the contact scene has it."""
    source = scene.load("insert_contact").model
    number = source.body(name).id
    colour = table.look.socket_rgb if name == "socket" else table.look.peg_rgb
    body = spec.worldbody.add_body(name=f"{_PREFIX}{name}")
    body.explicitinertial = True
    body.mass, body.inertia = float(source.body_mass[number]), source.body_inertia[number]
    body.ipos, body.iquat = source.body_ipos[number], source.body_iquat[number]
    body.add_freejoint(name=f"{_PREFIX}{name}")
    for geom in np.flatnonzero(source.geom_bodyid == number):
        touches = bool(source.geom_contype[geom])
        material = int(source.geom_matid[geom])
        rgba = source.geom_rgba[geom] if material < 0 else source.mat_rgba[material]
        if len(colour) and touches and source.geom(geom).name != _BACK_WALL:
            rgba = [*colour, 1]
        friction = source.geom_friction[geom].copy()
        friction[0] *= table.objects.friction
        body.add_geom(
            name=f"{_PREFIX}{source.geom(geom).name}",
            type=mujoco.mjtGeom(int(source.geom_type[geom])),
            size=source.geom_size[geom],
            pos=source.geom_pos[geom],
            quat=source.geom_quat[geom],
            contype=int(touches),
            conaffinity=int(touches),
            condim=int(source.geom_condim[geom]),
            friction=friction,
            solref=source.geom_solref[geom],
            solimp=source.geom_solimp[geom],
            rgba=rgba,
            mass=0,
        )


def _add_camera(
    spec: mujoco.MjSpec, table: WorldTable, side: str, camera: CameraTable, where: str
) -> str:
    """Finds or mounts a wrist camera, sets its field of view, and returns its name."""
    if camera.camera:
        element = _named(spec, "camera", camera.camera, where, f"cameras.{side}.camera")
        if table.cameras.fovy_deg:
            element.fovy = table.cameras.fovy_deg
        return camera.camera
    body = _named(spec, "body", camera.body, where, f"cameras.{side}.body")
    name = f"{_PREFIX}wrist_cam_{side}"
    body.add_camera(name=name, pos=camera.pos, quat=camera.quat, fovy=table.cameras.fovy_deg)
    return name


def _light(spec: mujoco.MjSpec, factor: float) -> None:
    """Makes all lights brighter or darker."""
    if factor != 1:
        for light in (*spec.lights, spec.visual.headlight):
            light.diffuse = np.asarray(light.diffuse) * factor
            light.ambient = np.asarray(light.ambient) * factor


def _paint(spec: mujoco.MjSpec, table: WorldTable, where: str) -> None:
    """Lays a painted sheet on the table; it is only seen."""
    look = table.look
    if not (look.table or look.table_rgb):
        return
    model = spec.copy().compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    middle = np.mean(
        [data.xpos[_body_id(model, arm.base, where)] for arm in (table.left, table.right)], 0
    )[:2]
    low, high = middle - _SHEET, middle + _SHEET
    if look.surfaces:
        corners = []
        for name in look.surfaces:
            _named(spec, "geom", name, where, "look.surfaces")
            geom = model.geom(name).id
            turn, size = data.geom_xmat[geom].reshape(3, 3), model.geom_aabb[geom, 3:]
            if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE:
                size = model.geom_size[geom] * [1, 1, 0]
            centre = data.geom_xpos[geom] + turn @ model.geom_aabb[geom, :3]
            reach = np.abs(turn) @ size
            corners += [centre - reach, centre + reach]
        low, high = np.min(corners, 0)[:2], np.max(corners, 0)[:2]
    height = table_height(model, data, np.array([middle[0], middle[1]])) + _SHEET_M
    colour = np.array(look.table_rgb or _WOOD)
    material = spec.add_material(name=f"{_PREFIX}table", specular=0.1, shininess=0.1)
    if look.table:
        texture = spec.add_texture(
            name=f"{_PREFIX}table",
            type=mujoco.mjtTexture.mjTEXTURE_2D,
            width=_TEXELS,
            height=_TEXELS,
            nchannel=3,
        )
        texture.data = _picture(look.table, colour).tobytes()
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = texture.name
        material.texuniform, material.texrepeat = True, [2, 2]
    material.rgba = [1, 1, 1, 1] if look.table else [*colour, 1]
    spec.worldbody.add_geom(
        name=f"{_PREFIX}sheet",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[*(high - low) / 2, 0.1],
        pos=[*(high + low) / 2, height],
        material=material.name,
        contype=0,
        conaffinity=0,
    )


def _picture(kind: str, colour: np.ndarray) -> np.ndarray:
    """Returns a texture [n, n, 3] uint8; half a metre a side."""
    y, x = np.mgrid[:_TEXELS, :_TEXELS] / _TEXELS
    if kind == "checks":
        dark = ((8 * x).astype(int) + (8 * y).astype(int)) % 2
    elif kind == "stripes":
        dark = (10 * x).astype(int) % 2
    else:  # rings of a log, sawn along
        bent = x + 0.04 * np.sin(2 * np.pi * y) + 0.015 * np.sin(6 * np.pi * y + 2 * np.pi * x)
        dark = 0.5 + 0.5 * np.sin(60 * bent) * (0.6 + 0.4 * np.sin(4 * np.pi * bent + 2))
    share = 1 - (0.75 if kind in ("checks", "stripes") else 0.35) * dark
    return np.clip(255 * share[..., None] * colour, 0, 255).astype(np.uint8)


def _litter(spec: mujoco.MjSpec, table: WorldTable, where: str) -> None:
    """Adds things that lie about; they neither move nor collide."""
    look = table.look
    if not look.clutter:
        return
    model = spec.copy().compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    bases = [_pose(data, _body_id(model, arm.base, where)) for arm in (table.left, table.right)]
    draw = np.random.default_rng(look.clutter_seed)
    placed: list[np.ndarray] = []
    number = 0
    while len(placed) < look.clutter and number < 10_000:
        number += 1
        middle = (bases[0][1] + bases[1][1]) / 2
        spot = middle[:2] + draw.uniform([-0.45, -0.33], [0.45, 0.33])
        half = draw.uniform(0.008, 0.035, 3)
        free = all(
            not _FREE_RING[0] - 0.05 < np.linalg.norm(spot - base[:2]) < _FREE_RING[1]
            or abs(_angle(spot, base, turn)) > 0.62
            for turn, base in bases
        )
        apart = all(np.linalg.norm(spot - other) > 0.08 for other in placed)
        if not (free and apart):
            continue
        try:
            top = table_height(model, data, spot)
        except ConfigError:  # beside the table
            continue
        placed.append(spot)
        spec.worldbody.add_geom(
            name=f"{_PREFIX}clutter{len(placed)}",
            type=[mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER][number % 2],
            size=half,
            pos=[*spot, top + (half[2] if number % 2 == 0 else half[1])],
            euler=[0, 0, draw.uniform(-np.pi, np.pi)],
            rgba=[*draw.uniform(0, 1, 3), 1],
            contype=0,
            conaffinity=0,
        )


def _pose(data: mujoco.MjData, body: int) -> tuple[np.ndarray, np.ndarray]:
    return data.xmat[body].reshape(3, 3).copy(), data.xpos[body].copy()


def _angle(spot: np.ndarray, base: np.ndarray, turn: np.ndarray) -> float:
    """Direction of a spot [2] from a base (rad), less that of the home waist."""
    local = turn.T @ np.array([*(spot - base[:2]), 0.0])
    return float(np.arctan2(local[1], local[0])) - 0.25


def _body_id(model: mujoco.MjModel, name: str, where: str) -> int:
    number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name)
    if number < 0:
        names = [model.body(index).name for index in range(model.nbody)]
        raise ConfigError(
            f"{where} has no body '{name}', which the table calls base.{did_you_mean(name, names)}"
        )
    return number


def table_height(model: mujoco.MjModel, data: mujoco.MjData, spot: np.ndarray) -> float:
    """Returns how high (m, world) what does not move and can be touched reaches at a spot [2].

    Raises:
      ConfigError: there is nothing.
    """
    fixed = model.body_weldid[model.geom_bodyid] == 0
    touch = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    kept = model.geom_group.copy()
    model.geom_group[:] = np.where(fixed & touch, 0, 5)
    hit = np.zeros(1, np.int32)
    try:
        seen = np.array([1, 0, 0, 0, 0, 0], np.uint8)
        far = mujoco.mj_ray(model, data, [*spot, 1.5], [0, 0, -1.0], seen, 1, -1, hit)
    finally:
        model.geom_group[:] = kept
    if far < 0:
        raise ConfigError(
            f"There is no table at x = {spot[0]:.2f}, y = {spot[1]:.2f} m of the world: nothing there can be touched."
        )
    return 1.5 - float(far)


def _arm_names(model: mujoco.MjModel, side: str, arm: ArmTable, where: str) -> ArmNames:
    joints = [_joint(model, name, f"{side}.joints", where) for name in arm.joints]
    grips = [_joint(model, name, f"{side}.gripper.joints", where) for name in arm.gripper.joints]
    for joint in joints:
        if model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_HINGE:
            raise ConfigError(f"{where}: joint '{model.joint(joint).name}' is no hinge.")
    names = [*arm.actuators] or [""] * (len(joints) + len(grips))
    drives = [
        _actuator(model, joint, name, where, required=number < len(joints))
        for number, (joint, name) in enumerate(zip([*joints, *grips], names, strict=True))
    ]
    hinges, gripper = drives[: len(joints)], drives[len(joints) :]
    signs = np.array(arm.gripper.signs or (1.0,) * len(grips))
    driven = [number for number, drive in enumerate(gripper) if drive is not None]
    if not driven:
        raise ConfigError(
            f"{where}: no position actuator drives {side}.gripper, joint '{arm.gripper.joints[0]}'."
        )
    return ArmNames(
        qpos=model.jnt_qposadr[joints].copy(),
        qvel=model.jnt_dofadr[joints].copy(),
        grip_qpos=model.jnt_qposadr[grips].copy(),
        grip_qvel=model.jnt_dofadr[grips].copy(),
        ctrl=np.array(hinges, int),
        grip_ctrl=np.array([gripper[number] for number in driven], int),
        grip_signs=signs[driven],
        base=_body_id(model, arm.base, where),
        fingers=tuple(int(model.jnt_bodyid[joint]) for joint in grips),
    )


def _joint(model: mujoco.MjModel, name: str, what: str, where: str) -> int:
    number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, name)
    if number < 0:
        names = [model.joint(index).name for index in range(model.njnt)]
        raise ConfigError(
            f"{where} has no joint '{name}', which the table calls {what}.{did_you_mean(name, names)}"
        )
    return number


def _actuator(
    model: mujoco.MjModel, joint: int, name: str, where: str, required: bool
) -> int | None:
    """Returns the position actuator of a joint.

    Raises:
      ConfigError: there is none, or it is of another kind.
    """
    label = model.joint(joint).name
    if name:
        number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_ACTUATOR, name)
        if number < 0:
            names = [model.actuator(index).name for index in range(model.nu)]
            raise ConfigError(f"{where} has no actuator '{name}'.{did_you_mean(name, names)}")
    else:
        direct = (int(mujoco.mjtTrn.mjTRN_JOINT), int(mujoco.mjtTrn.mjTRN_JOINTINPARENT))
        of_joint = np.isin(model.actuator_trntype, direct) & (model.actuator_trnid[:, 0] == joint)
        if not of_joint.any():
            if not required:
                return None
            raise ConfigError(
                f"{where}: nothing drives joint '{label}'; the arms need a position actuator for each."
            )
        number = int(np.flatnonzero(of_joint)[0])
    gain, bias = model.actuator_gainprm[number], model.actuator_biasprm[number]
    position = (
        model.actuator_gaintype[number] == mujoco.mjtGain.mjGAIN_FIXED
        and model.actuator_biastype[number] == mujoco.mjtBias.mjBIAS_AFFINE
        and gain[0] > 0
        and abs(gain[0] + bias[1]) < 1e-6 * gain[0]
    )
    if not position:
        kind = "a motor" if model.actuator_biastype[number] == 0 else "of another kind"
        raise ConfigError(
            f"{where}: the actuator of joint '{label}' is {kind}; a world needs position servos"
            " (<position>), whose ctrl is the joint's target."
        )
    return number


def _free_joint(model: mujoco.MjModel, body: str, where: str) -> int:
    number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, body)
    joint = int(model.body_jntadr[number])
    if joint < 0 or model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_FREE:
        raise ConfigError(f"{where}: the body '{body}' has no free joint; an object needs one.")
    return joint
