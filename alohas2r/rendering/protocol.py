"""What all renderers share: the model that is drawn, and the checks of what comes in."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import mujoco
import numpy as np

from alohas2r.core.types import Array
from alohas2r.errors import ConfigError, did_you_mean
from alohas2r.rendering import stereo, visual_randomization
from alohas2r.rendering.looks import nominal as nominal_looks
from alohas2r.rendering.looks.config import (
    CLUTTER_KINDS,
    COLUMNS,
    EXTRA_KINDS,
    FAMILIES,
    FAMILY_TEXTURES,
    RAILS,
    SLOTS,
    TEXTURES,
)
from alohas2r.sim import scene
from alohas2r.sim.scene import Scene


class Renderer(Protocol):
    """Draws N environments at once."""

    name: str
    prepared: Prepared

    def render(self, poses: Array, looks: Looks | None = None) -> Frames:
        """Draws every environment from every camera.

        Args:
          poses: [N, nq] or [N, nq + 7 nmocap] joint positions (and positions and orientations of the
            mocap bodies).
          looks: model field -> [N, ...], as from `looks.sample_looks`; None for the model's own.

        Returns:
          The pictures; depth is 0 where nothing is seen.
        """
        ...


CAMERAS = ("wrist_cam_left", "wrist_cam_right")
GROUPS = (0, 2)  # geom groups that wrist cameras see; group 1 is detail for videos, 3.. is hidden
RGBD = ("rgb", "depth")
DEPTH = ("depth",)
OUTPUTS = (RGBD, DEPTH)  # what a renderer can draw; without colour nothing is shaded
MAX_SIDE = 8192  # pixels; beyond it a picture is a mistake
MAX_BYTES = 16 << 30  # of one call's pictures

# What a renderer draws: a scene of this package, any other scene, or what `prepare` returned.
Source: TypeAlias = "Scene | mujoco.MjSpec | Prepared"
Looks = Mapping[str, Array]


class Frames(NamedTuple):
    """Pictures of N environments from C cameras; the first row is on top."""

    rgb: Array  # [N, C, H, W, 3] uint8; None of a renderer of depth alone
    depth: Array  # [N, C, H, W] float32, metres along the optical axis; 0 where nothing is seen


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """The reduced model that is drawn: what can be seen and what carries it, without physics.

    Attributes:
      model: the reduced model; its lights are fixed (see `looks.nominal`).
      cameras: names; camera_ids: [C] their ids.
      geoms: [G] ids, in the scene's model, of the geoms that are left.
      scene_geoms: ngeom of the scene's model.
      nominal: the looks without randomization, for the reduced model.
      transfer: family of the looks "transfer" that it is drawn with, with textures, clutter and a room; `geoms` then
        goes on with the extra things' numbers, from `scene_geoms` on. Empty for other looks.
      rig: the right imagers that are drawn, which no scene has; None if there are none.
    """

    model: mujoco.MjModel
    cameras: tuple[str, ...]
    camera_ids: np.ndarray
    geoms: np.ndarray
    scene_geoms: int
    nominal: dict[str, np.ndarray]
    transfer: str = ""
    rig: stereo.Rig | None = None


TRANSFER_GEOMS = (
    "table",
    "socket-W",
    "red_peg",
)  # of a scene that the looks "transfer" can be drawn of


def prepare(
    source: Source,
    cameras: Sequence[str] | None = None,
    groups: Sequence[int] = GROUPS,
    transfer: str = "",
) -> Prepared:
    """Compiles the reduced model of a scene: hidden geoms, actuators, sensors and contacts are left out.

    Args:
      source: a scene of this package, or a specification (which is left as it is).
      cameras: names of the cameras, among them "NAME_r" for the right imager of any camera NAME; None for the wrist
        cameras, or for all if the scene has none.
      groups: geom groups that are seen.
      transfer: family of the looks "transfer" that are to be drawn; pictures are square then. Empty for other looks.

    Raises:
      ConfigError: no camera, an unknown one, or one that is no perspective camera; a scene without the objects that
        the looks "transfer" are about, or right imagers with these looks.
    """
    if isinstance(source, Prepared):
        return source
    spec = scene.spec(source.name) if isinstance(source, Scene) else source.copy()
    original = source.model if isinstance(source, Scene) else spec.compile()
    nominal = visual_randomization.nominal(original)
    geoms = np.flatnonzero(np.isin(original.geom_group, list(groups)))
    if not geoms.size:
        raise ConfigError(f"No geom is in the groups {tuple(groups)}: there is nothing to draw.")

    for kind in ("sensors", "actuators", "equalities", "keys", "excludes", "pairs", "tendons"):
        for element in list(getattr(spec, kind)):
            spec.delete(element)
    for geom in list(spec.geoms):
        if geom.group not in groups:
            spec.delete(geom)
    used = {geom.meshname for geom in spec.geoms}
    for mesh in list(spec.meshes):
        if mesh.name not in used:
            spec.delete(mesh)
    for body in spec.bodies[1:]:  # geoms that gave a body its mass may be gone
        body.explicitinertial = True
        body.mass, body.inertia, body.ipos, body.iquat = 1, [1, 1, 1], [0, 0, 0], [1, 0, 0, 0]
    for light, pos, direction in zip(
        spec.lights, nominal["light_pos"], nominal["light_dir"], strict=True
    ):
        light.mode = mujoco.mjtCamLight.mjCAMLIGHT_FIXED
        light.pos, light.dir = pos, direction
    if transfer:
        if transfer not in FAMILIES:
            raise ConfigError(f"Unknown family '{transfer}'.{did_you_mean(transfer, FAMILIES)}")
        _add_extras(spec, original)
    rights = _add_rights(spec, original, cameras or ())
    if rights and transfer:
        raise ConfigError(
            "The looks 'transfer' are drawn for the left imagers alone; choose other looks."
        )
    spec.option.disableflags |= int(
        mujoco.mjtDisableBit.mjDSBL_CONTACT | mujoco.mjtDisableBit.mjDSBL_CONSTRAINT
    )
    model = spec.compile()
    model.stat.extent = original.stat.extent  # it scales the far plane

    names = [model.camera(index).name for index in range(model.ncam)]
    if cameras is None:
        cameras = [name for name in CAMERAS if name in names] or names
    if not cameras:
        raise ConfigError("There is no camera to draw from.")
    for name in cameras:
        if name not in names:
            raise ConfigError(f"There is no camera '{name}'.{did_you_mean(name, names)}")
    camera_ids = np.array([names.index(name) for name in cameras])
    if (model.cam_projection[camera_ids] != mujoco.mjtProjection.mjPROJ_PERSPECTIVE).any():
        raise ConfigError("An orthographic camera cannot be drawn; choose perspective cameras.")
    if not transfer:
        nominal["geom_rgba"] = nominal["geom_rgba"][geoms]
        rig = None
        if rights:
            own = [original.camera(index).name for index in range(original.ncam)]
            rig = stereo.Rig(
                np.array([names.index(name) for name in own]),
                np.array([names.index(name) for name, _ in rights]),
                np.array([own.index(left) for _, left in rights]),
                *(nominal[name] for name in ("cam_pos", "cam_quat")),
            )
            nominal["cam_pos"], nominal["cam_quat"] = model.cam_pos.copy(), model.cam_quat.copy()
        return Prepared(model, tuple(cameras), camera_ids, geoms, original.ngeom, nominal, rig=rig)
    nominal = {
        name: value
        for name, value in nominal_looks.transfer(original).items()
        if name in LOOK_FIELDS or name in TRANSFER_FIELDS
    }
    model.cam_sensorsize[:] = 1
    model.cam_intrinsic[:] = nominal["cam_intrinsic"]
    # Else MuJoCo takes a geom that was compiled without a turn of its own for one that never has any.
    extra = [model.geom(name).id for name in EXTRA_NAMES]
    model.geom_sameframe[extra] = int(mujoco.mjtSameFrame.mjSAMEFRAME_NONE)
    # The scene's geoms come in its order, the extra ones among them with those of the world.
    numbers = {original.geom(geom).name: geom for geom in geoms}
    numbers |= {name: original.ngeom + index for index, name in enumerate(EXTRA_NAMES)}
    order = np.array([numbers[model.geom(geom).name] for geom in range(model.ngeom)])
    return Prepared(model, tuple(cameras), camera_ids, order, original.ngeom, nominal, transfer)


def _add_rights(
    spec: mujoco.MjSpec, original: mujoco.MjModel, cameras: Sequence[str]
) -> list[tuple[str, str]]:
    """Adds the right imagers among the cameras that are asked for; returns their names and those of their left ones."""
    names = [original.camera(index).name for index in range(original.ncam)]
    pairs = [
        (name, name.removesuffix(stereo.SUFFIX))
        for name in cameras
        if name not in names and name.removesuffix(stereo.SUFFIX) in names
    ]
    for name, left in pairs:
        camera, index = spec.camera(left), names.index(left)
        pos, quat = stereo.right_pose(
            original.cam_pos[index], original.cam_quat[index], np.zeros(3), np.zeros(3), np
        )
        camera.parent.add_camera(
            name=name, pos=pos, quat=quat, fovy=camera.fovy, resolution=camera.resolution
        )
    return pairs


EXTRA_NAMES = (
    *(f"rail{index}" for index in range(RAILS)),
    *(f"clutter{index}" for index in range(len(CLUTTER_KINDS))),
)


def _add_extras(spec: mujoco.MjSpec, original: mujoco.MjModel) -> None:
    """Adds what the looks "transfer" draw beside a scene's geoms.

    Raises:
      ConfigError: the scene has not what these looks are about.
    """
    names = {original.geom(geom).name for geom in range(original.ngeom)}
    missing = [name for name in TRANSFER_GEOMS if name not in names]
    if missing:
        raise ConfigError(
            f"The looks 'transfer' are of the scene insert; this one has no geom '{missing[0]}'."
        )
    fields = nominal_looks.extras()
    for index, (name, kind) in enumerate(zip(EXTRA_NAMES, EXTRA_KINDS, strict=True)):
        spec.worldbody.add_geom(
            name=name,
            type=getattr(mujoco.mjtGeom, f"mjGEOM_{kind.upper()}"),
            size=fields["extra_size"][index],
            pos=fields["extra_pos"][index],
            contype=0,
            conaffinity=0,
            group=0,
        )


def refuse_transfer(prepared: Prepared, name: str) -> None:
    """Raises ConfigError if a model is prepared for the looks "transfer", which a renderer cannot draw."""
    if prepared.transfer:
        raise ConfigError(
            f"The renderer '{name}' cannot draw the looks 'transfer'; choose raycast, or exact."
        )


def check_outputs(outputs: Sequence[str]) -> bool:
    """Returns whether colour is to be drawn beside depth.

    Raises:
      ConfigError: neither ("rgb", "depth") nor ("depth",).
    """
    if tuple(outputs) not in OUTPUTS:
        choices = " or ".join(map(str, OUTPUTS))
        raise ConfigError(f"outputs = {tuple(outputs)} must be {choices}.")
    return "rgb" in outputs


def check_size(width: int, height: int) -> tuple[int, int]:
    """Returns the picture's size as integers.

    Raises:
      ConfigError: it is out of range.
    """
    if not (1 <= int(width) <= MAX_SIDE and 1 <= int(height) <= MAX_SIDE):
        raise ConfigError(
            f"A picture of {width} x {height} is out of range: 1..{MAX_SIDE} pixels a side."
        )
    return int(width), int(height)


def check_poses(prepared: Prepared, poses: Array, width: int, height: int) -> np.ndarray:
    """Returns poses as [N, nq] or [N, nq + 7 nmocap] float64.

    The mocap part is all positions, then all orientations (w, x, y, z), as in MuJoCo's state.

    Raises:
      ConfigError: another shape, or more pictures than memory should hold.
    """
    poses = np.asarray(poses, np.float64)
    model = prepared.model
    sizes = sorted({model.nq, model.nq + 7 * model.nmocap})
    if poses.ndim != 2 or poses.shape[1] not in sizes:
        raise ConfigError(f"poses must be [N, {' or '.join(map(str, sizes))}], not {poses.shape}.")
    size = len(poses) * len(prepared.cameras) * width * height * 7
    if size > MAX_BYTES:
        raise ConfigError(
            f"{len(poses)} environments at {width} x {height} make {size / 2**30:.0f} GiB of pictures;"
            f" draw at most {MAX_BYTES * len(poses) // size} at a time."
        )
    return poses


# Fields of looks -> shape of one environment's values, in sizes of the model.
_SHAPES: dict[str, tuple[str | int, ...]] = {
    "geom_rgba": ("ngeom", 4),
    "geom_size": ("ngeom", 3),
    "geom_pos": ("ngeom", 3),
    "body_pos": ("nbody", 3),
    "body_quat": ("nbody", 4),
    "cam_pos": ("ncam", 3),
    "cam_quat": ("ncam", 4),
    "light_pos": ("nlight", 3),
    "light_dir": ("nlight", 3),
    "light_castshadow": ("nlight",),
    "light_active": ("nlight",),
    "light_ambient": ("nlight", 3),
    "light_diffuse": ("nlight", 3),
    "light_specular": ("nlight", 3),
}
LOOK_FIELDS = tuple(_SHAPES)
# Likewise, of the looks "transfer"; see `looks.draw`.
_TRANSFER_SHAPES: dict[str, tuple[str | int, ...]] = {
    "cam_intrinsic": ("ncam", 4),
    "table_half": (2,),
    "finger_shift": (3,),
    "extra_pos": (len(EXTRA_KINDS), 3),
    "extra_quat": (len(EXTRA_KINDS), 4),
    "extra_size": (len(EXTRA_KINDS), 3),
    "extra_rgba": (len(EXTRA_KINDS), 4),
    "paint": (len(SLOTS), len(COLUMNS)),
    "room_rgb": (2, 3),
    "room_size": (3,),
    "radiance": (),
}
TRANSFER_FIELDS = tuple(_TRANSFER_SHAPES)


def check_looks(prepared: Prepared, looks: Looks | None, n: int) -> dict[str, np.ndarray]:
    """Returns looks [N, ...] for the reduced model, with every field of `nominal` in it.

    Fields that describe the scene's geoms are cut down to those that are drawn; what does not change a
    picture, such as "brightness", is left out.

    Args:
      prepared: the model.
      looks: as from `looks.sample_looks`, with the scene's geoms; None for none.
      n: number of environments.

    Raises:
      ConfigError: a field has another shape, or looks "transfer" are given for a model without them.
    """
    model = prepared.model
    if looks is not None and prepared.rig is not None:
        looks = stereo.rigged(prepared.rig, looks, np)
    result: dict[str, np.ndarray] = {}
    shapes = _SHAPES | _TRANSFER_SHAPES if prepared.transfer else _SHAPES
    if not prepared.transfer and looks is not None and "paint" in looks:
        raise ConfigError(
            "This renderer was made for other looks than 'transfer'; give make_renderer the looks."
        )
    if prepared.transfer and looks is not None and "paint" in looks:
        numbers = [TEXTURES.index(name) for name in FAMILY_TEXTURES[prepared.transfer]]
        if not np.isin(np.asarray(looks["paint"])[..., 0], [0, *numbers]).all():
            raise ConfigError(
                f"This renderer was made for textures of the family '{prepared.transfer}', not for these looks."
            )
    for name, shape in shapes.items():
        given = None if looks is None else looks.get(name)
        if given is None:
            if name in prepared.nominal:
                value = prepared.nominal[name]
                result[name] = np.broadcast_to(value, (n, *value.shape))
            continue
        wanted = tuple(
            prepared.scene_geoms
            if size == "ngeom"
            else getattr(model, size)
            if isinstance(size, str)
            else size
            for size in shape
        )
        value = np.asarray(given)
        if value.shape != (n, *wanted):
            raise ConfigError(f"looks['{name}'] must be {(n, *wanted)}, not {value.shape}.")
        per_geom = not prepared.transfer and shape and shape[0] == "ngeom"
        result[name] = value[:, prepared.geoms] if per_geom else value
    return assembled(prepared, result, np) if prepared.transfer else result


@functools.lru_cache(maxsize=16)
def _finger_axes(model: mujoco.MjModel) -> np.ndarray:
    """Returns [ngeom, 3, 3]: the shift in a geom's body that a finger's shift along, apart and towards the camera is.

    In the hand's frame fingers point along z and open along x, and its camera looks from -y.
    """
    axes = np.zeros((model.ngeom, 3, 3), np.float32)
    for geom, body in enumerate(model.geom_bodyid):
        if model.body(body).name.endswith("finger_link"):
            turn = np.zeros(9)
            mujoco.mju_quat2Mat(turn, model.body_quat[body])
            side = np.sign(model.body_pos[body, 0])
            hand = np.array([[0, side, 0], [0, 0, -1], [1, 0, 0]], np.float32)
            axes[geom] = turn.reshape(3, 3).T @ hand
    return axes


def assembled(prepared: Prepared, values: Mapping[str, Array], xp: Array) -> dict[str, Array]:
    """Returns looks "transfer" [N, ...] with fields of the scene's geoms and of the extra things put together.

    Args:
      prepared: the model.
      values: all its fields, of the scene's geoms and of the extra things.
      xp: NumPy or JAX's.

    Returns:
      geom_rgba, geom_size, geom_pos and geom_quat of the reduced model's geoms beside the other fields.
    """
    model, count = prepared.model, len(values["radiance"])
    own = prepared.geoms < prepared.scene_geoms

    def of_geoms(field: str, extra: str) -> Array:
        given = values.get(field)
        if given is None:
            size = np.zeros((prepared.scene_geoms, getattr(model, field).shape[1]))
            size[prepared.geoms[own]] = getattr(model, field)[own]
            given = xp.broadcast_to(xp.asarray(size, np.float32), (count, *size.shape))
        return xp.concatenate([given, values[extra]], 1)[:, prepared.geoms]

    size, place = of_geoms("geom_size", "extra_size"), of_geoms("geom_pos", "extra_pos")
    table = model.geom("table").id
    # What lies on the table goes up with it.
    raised = (place[:, table, 2] - model.geom_pos[table, 2])[:, None, None] * ~own[:, None]
    place = place + raised * np.array([0, 0, 1], np.float32)
    place = place + xp.einsum("gij,nj->ngi", _finger_axes(model), values["finger_shift"])
    put_in = ("extra_", "finger_shift")  # what geoms' own fields hold now
    half = xp.concatenate([values["table_half"], size[:, table, 2:]], 1)
    before, after = size[:, :table], size[:, table + 1 :]
    return {
        **{name: value for name, value in values.items() if not name.startswith(put_in)},
        "geom_rgba": of_geoms("geom_rgba", "extra_rgba"),
        "geom_size": xp.concatenate([before, half[:, None], after], 1),
        "geom_pos": place,
        "geom_quat": of_geoms("geom_quat", "extra_quat"),
    }
