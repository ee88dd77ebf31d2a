"""Worlds that differ from the nominal one in a few numbers: a thicker peg, late commands, other or noisy cameras."""

from __future__ import annotations

import copy
import dataclasses

import mujoco
import numpy as np

from alohas2r.config import check, to_dict
from alohas2r.core.types import Array
from alohas2r.errors import ConfigError, did_you_mean
from alohas2r.sim import physics_randomization
from alohas2r.sim.objects import PEG_HALF
from alohas2r.sim.scene import Scene

NOMINAL_PEG_MM = 2000 * PEG_HALF
PEG_MM = 10.0, 35.0
MOST_DELAY = 10  # control steps
MOST_MM, MOST_DEG = 50.0, 30.0
# Keys of whole numbers, and what is said beside a value that is none.
_WHOLE = {"delay": ", of whole steps", "sensor": ""}
SPELLING = "peg=MM,delay=STEPS,camera=MM:DEG,sensor=0|1"


@dataclasses.dataclass(frozen=True)
class WorldParams:
    """What is otherwise in a world.

    Attributes:
      peg: side of the peg's square section (mm); it keeps its density.
      delay: by how many control steps of 50 ms every command comes later.
      camera: how far both wrist cameras are moved along their own x axis (mm), to the right in their pictures, and how
        far they are turned about their own y axis, which points up in them (degrees, right-handed: to the left).
      sensor: 1: wrist cameras' pictures are a sensor's, with the noise that students are trained with, see
        `rendering.corruption`; 0: they are as drawn.
    """

    peg: float = NOMINAL_PEG_MM
    delay: int = 0
    camera: tuple[float, float] = (0.0, 0.0)
    sensor: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        low, high = PEG_MM
        check(low <= self.peg <= high, f"peg = {self.peg:g} must lie in {low:g}..{high:g} mm")
        check(
            0 <= self.delay <= MOST_DELAY,
            f"delay = {self.delay} must lie in 0..{MOST_DELAY} control steps",
        )
        check(self.sensor in (0, 1), f"sensor = {self.sensor} must be 0 or 1")
        check_camera(self.camera)

    @property
    def raised_m(self) -> float:
        """How much higher than the nominal one the peg's middle is where it lies (m)."""
        return self.peg / 2000 - PEG_HALF

    def __str__(self) -> str:
        """Returns it as `parse` reads it; what is nominal is left out."""
        said = []
        if self.peg != NOMINAL_PEG_MM:
            said.append(f"peg={self.peg:g}")
        if self.delay:
            said.append(f"delay={self.delay}")
        if any(self.camera):
            said.append(f"camera={self.camera[0]:g}:{self.camera[1]:g}")
        if self.sensor:
            said.append(f"sensor={self.sensor}")
        return ",".join(said)


def check_camera(camera: tuple[float, float]) -> None:
    """Raises a ConfigError where cameras would be moved (mm) or turned (degrees) too far."""
    moved, turned = camera
    check(
        abs(moved) <= MOST_MM and abs(turned) <= MOST_DEG,
        f"camera = {moved:g}:{turned:g} must lie within {MOST_MM:g} mm and {MOST_DEG:g} degrees, either way",
    )


NOMINAL = WorldParams()


def parse(text: str) -> WorldParams:
    """Reads "peg=33,delay=3,camera=30:12"; what is left out is nominal, "" is the nominal world.

    Raises:
      ConfigError: another spelling, an unknown key, one twice, or a number out of range.
    """
    values: dict[str, float | int | tuple[float, float]] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = (one.strip() for one in part.partition("="))
        if not equals:
            raise ConfigError(
                f"--world-params '{part}' must be spelt {SPELLING} here; a robot file of alohas2r calibrate goes with"
                " train-teacher, distill and evaluate."
            )
        if name not in to_dict(NOMINAL):
            raise ConfigError(
                f"--world-params knows no '{name}'.{did_you_mean(name, to_dict(NOMINAL))}"
            )
        check(name not in values, f"--world-params has '{name}' twice")
        values[name] = _read(name, value)
    return dataclasses.replace(NOMINAL, **values)


def _read(name: str, text: str) -> float | int | tuple[float, float]:
    """Returns the value of a key."""
    try:
        if name in _WHOLE:
            return int(text)
        if name == "peg":
            return float(text)
        moved, turned = (float(one) for one in text.split(":"))
    except ValueError as error:
        raise ConfigError(
            f"--world-params {name}={text} must be a number as in {SPELLING}{_WHOLE.get(name, '')}."
        ) from error
    return moved, turned


def home_qpos(params: WorldParams, loaded: Scene) -> np.ndarray:
    """Returns joint positions [nq] of the keyframe home, with the peg on the table."""
    qpos = loaded.home_qpos.copy()
    qpos[_peg_height(loaded)] += params.raised_m
    return qpos


def _peg_height(loaded: Scene) -> int:
    """Returns where the peg's height is in qpos."""
    return next(int(arm.object_qpos[2]) for arm in loaded.arms if arm.object_name == "peg")


def resize_peg(params: WorldParams, loaded: Scene, model: mujoco.MjModel) -> None:
    """Gives a model of the insertion scene, not the shared one, the peg of a changed world.

    Source of its mass: as `physics_randomization.sample_insert`, the density stays.
    """
    if params.peg == NOMINAL_PEG_MM:
        return
    half = np.array([params.peg / 2000])
    nominal = model.geom_size[loaded.id("geom", "red_peg")]
    mass = model.body_mass[loaded.id("body", "peg")] * (half / nominal[1]) ** 2
    sizes = np.array([[nominal[0], half[0], half[0]]])
    fields = physics_randomization.resize_box(loaded, "red_peg", sizes, mass)
    for name, values in fields.items():
        own = getattr(model, name)
        own[: len(values[0])] = values[0].reshape(-1, *own.shape[1:])
    mujoco.mj_setConst(model, mujoco.MjData(model))


def physics(params: WorldParams, loaded: Scene) -> mujoco.MjModel:
    """Returns the insertion scene's model in a changed world; the shared one where nothing about it differs."""
    if params.peg == NOMINAL_PEG_MM:
        return loaded.model
    model = copy.copy(loaded.model)
    resize_peg(params, loaded, model)
    return model


def looks(params: WorldParams, loaded: Scene) -> dict[str, np.ndarray] | None:
    """Returns what the wrist cameras' pictures show otherwise: model field -> [1, ...]; None: nothing."""
    if (params.peg, params.camera) == (NOMINAL_PEG_MM, NOMINAL.camera):
        return None
    model = loaded.model
    size, place, turn = (
        one[None].copy() for one in (model.geom_size, model.cam_pos, model.cam_quat)
    )
    size[0, loaded.id("geom", "red_peg"), 1:] = params.peg / 2000
    place, turn = moved_cameras(params.camera, loaded, place, turn)
    return {"geom_size": size, "cam_pos": place, "cam_quat": turn}


def moved_cameras(
    camera: tuple[float, float], loaded: Scene, place: Array, turn: Array, xp: Array = np
) -> tuple[Array, Array]:
    """Returns where cameras are once the wrists' are moved and turned.

    Args:
      camera: by how much, as of `WorldParams`; they are moved along the x axis that they have in the scene.
      place: [..., ncam, 3] (m), turn: [..., ncam, 4] where they were before, as the model's cam_pos and cam_quat.
      xp: the array namespace.
    """
    moved, half = camera[0] / 1000, np.radians(camera[1]) / 2
    along, about = np.zeros((loaded.model.ncam, 3)), np.tile([1.0, 0.0], (loaded.model.ncam, 1))
    for arm in loaded.arms:
        wrist = loaded.id("camera", f"wrist_cam_{arm.name}")
        mujoco.mju_rotVecQuat(along[wrist], np.array([moved, 0, 0]), loaded.model.cam_quat[wrist])
        about[wrist] = np.cos(half), np.sin(half)
    along, about = along.astype(place.dtype), about.astype(turn.dtype)
    cos, sin = about[:, 0], about[:, 1]
    w, x, y, z = (turn[..., axis] for axis in range(4))
    turned = [w * cos - y * sin, x * cos - z * sin, y * cos + w * sin, z * cos + x * sin]
    return place + along, xp.stack(turned, -1)
