"""Loads the MJCF scenes and resolves everything in them by name.

Indices (joint addresses, actuator ids, sensor slices) are looked up here once, and nowhere typed in.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib

import mujoco
import numpy as np

from alohas2r.core.assets import data_path
from alohas2r.embodiment.joints import ACTUATORS, ARM_JOINTS, FINGER_JOINTS, SIDES
from alohas2r.errors import ModelError, did_you_mean

SUBSTEPS = 10  # physics steps of 5 ms per control step of 50 ms. Source: the published report.

_GRIP = "_grip_pos"  # of the sensors that say which object an arm handles
_BODIES = (int(mujoco.mjtObj.mjOBJ_BODY), int(mujoco.mjtObj.mjOBJ_XBODY))
_registered: dict[str, pathlib.Path] = {}  # scenes from outside the package


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
    """Where one arm's quantities are.

    Attributes:
      name: "left" or "right".
      qpos: [8] addresses in qpos: six arm joints, two fingers.
      qvel: [8] addresses in qvel, likewise.
      ctrl: [7] actuator ids: six arm joints, gripper.
      object_name: the body that this arm handles.
      object_sensors: what the names of that object's sensors in this arm's base frame begin with.
      object_qpos: [7] addresses of that body's free joint in qpos.
      object_qvel: [6] likewise in qvel.
      base_pos: [3] base frame in the world (m); base_quat: [4] (w, x, y, z).
    """

    name: str
    qpos: np.ndarray
    qvel: np.ndarray
    ctrl: np.ndarray
    object_name: str
    object_sensors: str
    object_qpos: np.ndarray
    object_qvel: np.ndarray
    base_pos: np.ndarray
    base_quat: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A compiled scene with its names resolved.

    Attributes:
      name: what it is called.
      model: the compiled model.
      arms: left first.
      sensors: sensor name -> slice of sensordata.
      home_qpos: [nq], home_ctrl: [nu]: keyframe "home".
      ctrl_low, ctrl_high: [nu] actuator ranges (rad; metres of finger travel).
    """

    name: str
    model: mujoco.MjModel
    arms: tuple[Arm, ...]
    sensors: dict[str, slice]
    home_qpos: np.ndarray
    home_ctrl: np.ndarray
    ctrl_low: np.ndarray
    ctrl_high: np.ndarray

    def sensor(self, name: str, dim: int) -> slice:
        """Returns where a sensor's values are in sensordata.

        Raises:
          ModelError: no such sensor, or it has another size than `dim`.
        """
        if name not in self.sensors:
            raise ModelError(
                f"scene_{self.name}.xml has no sensor '{name}'.{did_you_mean(name, self.sensors)}"
            )
        where = self.sensors[name]
        if where.stop - where.start != dim:
            raise ModelError(
                f"Sensor '{name}' has {where.stop - where.start} values; {dim} are needed."
            )
        return where

    def id(self, kind: str, name: str) -> int:
        """Returns the id of a named element: kind is "body", "geom", "site", "camera", "light", "joint" ...

        Raises:
          ModelError: there is none of that name.
        """
        number = mujoco.mj_name2id(
            self.model, getattr(mujoco.mjtObj, f"mjOBJ_{kind.upper()}"), name
        )
        if number < 0:
            raise ModelError(f"scene_{self.name}.xml has no {kind} '{name}'.")
        return number


def register_scene(name: str, path: str | os.PathLike[str]) -> None:
    """Makes an MJCF file known as a scene; those in xmls/, scene_NAME.xml, need no registration.

    An arm handles the object whose grip point the sensor "..._grip_pos" reports in that arm's base frame. The names of
    the object's other sensors begin likewise: "..._pos", "..._quat", "..._linvel" and "..._angvel".

    Raises:
      ModelError: another file has that name already.
    """
    path = pathlib.Path(path).resolve()
    if name in names() and _path(name) != path:
        raise ModelError(f"There is a scene '{name}' already, {_path(name)}; choose another name.")
    _registered[name] = path


def names() -> tuple[str, ...]:
    """Returns the names of all scenes."""
    shipped = data_path("xmls").glob("scene_*.xml")
    return tuple(sorted({path.stem.removeprefix("scene_") for path in shipped} | {*_registered}))


def _path(name: str) -> pathlib.Path:
    return _registered.get(name) or (data_path("xmls") / f"scene_{name}.xml").resolve()


def spec(name: str) -> mujoco.MjSpec:
    """Returns the editable specification of a scene.

    Raises:
      ModelError: unknown scene, or the file is missing or damaged.
    """
    if name not in names():
        choices = did_you_mean(name, names()) if names() else f" {data_path('xmls')} holds none."
        raise ModelError(f"Unknown scene '{name}'.{choices}")
    path = _path(name)
    try:
        return mujoco.MjSpec.from_file(str(path))
    except ValueError as error:
        raise ModelError(f"{path} could not be read: {str(error).splitlines()[0]}") from error


@functools.cache
def load(name: str) -> Scene:
    """Compiles a scene once per process; treat its model as read-only.

    Raises:
      ModelError: unknown scene, damaged file, or a name that is missing in it.
    """
    return resolve(name, spec(name).compile())


@functools.cache
def load_physics(name: str) -> Scene:
    """Compiles a scene without its looks, for physics: the same dynamics, about twice as fast.

    Geoms that cannot collide and have no mass are left out; nothing else refers to them. Ids of geoms differ from
    those of `load`; states do not.

    Raises:
      ModelError: as `load`.
    """
    specification = spec(name)
    for geom in list(specification.geoms):
        if geom.classname.name == "look":
            specification.delete(geom)
    used = {geom.meshname for geom in specification.geoms}
    for mesh in list(specification.meshes):
        if mesh.name not in used:
            specification.delete(mesh)
    return resolve(name, specification.compile())


def resolve(name: str, model: mujoco.MjModel) -> Scene:
    """Resolves the names of a compiled model of the scene `name`.

    Raises:
      ModelError: a joint, actuator, body or keyframe is missing.
    """

    def lookup(kind: str, element: str) -> int:
        number = mujoco.mj_name2id(model, getattr(mujoco.mjtObj, f"mjOBJ_{kind}"), element)
        if number < 0:
            raise ModelError(f"scene_{name}.xml has no {kind.lower()} '{element}'.")
        return number

    arms = []
    for side in SIDES:
        base = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, f"{side}/base_link")
        if base < 0:
            continue
        prefix = _handled(model, base)
        if prefix is None:
            raise ModelError(
                f"scene_{name}.xml has no sensor '...{_GRIP}' whose reference is {side}/base_link:"
                " it must say which object that arm handles."
            )
        joints = [lookup("JOINT", f"{side}/{joint}") for joint in (*ARM_JOINTS, *FINGER_JOINTS)]
        body = int(model.sensor_objid[lookup("SENSOR", f"{prefix}_pos")])
        free = int(model.body_jntadr[body])
        if free < 0 or model.jnt_type[free] != mujoco.mjtJoint.mjJNT_FREE:
            raise ModelError(f"scene_{name}.xml: '{model.body(body).name}' has no free joint.")
        arms.append(
            Arm(
                name=side,
                qpos=model.jnt_qposadr[joints].copy(),
                qvel=model.jnt_dofadr[joints].copy(),
                ctrl=np.array([lookup("ACTUATOR", f"{side}/{actuator}") for actuator in ACTUATORS]),
                object_name=model.body(body).name,
                object_sensors=prefix,
                object_qpos=model.jnt_qposadr[free] + np.arange(7),
                object_qvel=model.jnt_dofadr[free] + np.arange(6),
                base_pos=model.body_pos[base].copy(),
                base_quat=model.body_quat[base].copy(),
            )
        )
    if not arms:
        raise ModelError(
            f"scene_{name}.xml has no arm: neither left/base_link nor right/base_link."
        )
    sensors = {
        model.sensor(index).name: slice(
            int(model.sensor_adr[index]), int(model.sensor_adr[index] + model.sensor_dim[index])
        )
        for index in range(model.nsensor)
    }
    home = lookup("KEY", "home")
    return Scene(
        name=name,
        model=model,
        arms=tuple(arms),
        sensors=sensors,
        home_qpos=model.key_qpos[home].copy(),
        home_ctrl=model.key_ctrl[home].copy(),
        ctrl_low=model.actuator_ctrlrange[:, 0].copy(),
        ctrl_high=model.actuator_ctrlrange[:, 1].copy(),
    )


def _handled(model: mujoco.MjModel, base: int) -> str | None:
    """Returns what the sensors of the object begin with that the arm on this base handles, or None."""
    for index in range(model.nsensor):
        name = model.sensor(index).name
        of_base = model.sensor_refid[index] == base
        if name.endswith(_GRIP) and of_base and model.sensor_reftype[index] in _BODIES:
            return name.removesuffix(_GRIP)
    return None
