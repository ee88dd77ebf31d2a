"""A world's table of names: a TOML file, read and checked.

docs/worlds.md explains every key. A table may start from another one (`extends`) and say only what differs, so that a
variant such as a wooden table is one line.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import pathlib
import tomllib
from collections.abc import Mapping
from typing import Literal

import numpy as np

from alohas2r.config import check, from_dict
from alohas2r.core.assets import data_path
from alohas2r.core.types import JsonObject, Untyped
from alohas2r.embodiment.joints import ARM_JOINTS
from alohas2r.errors import BackendUnavailable, ConfigError, did_you_mean

TABLES = pathlib.Path(__file__).parent / "tables"
Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class GripperTable:
    """How a gripper of the world is read and driven.

    Attributes:
      joints: its slides or hinges; the first one is read, and all are driven.
      travel: pairs of the first joint's value and the travel (m) of a finger of the project's own there, by which
        the gap between the fingertips is the same; linear in between and beyond.
      signs: what the first joint's value is multiplied by for each joint, such as -1 for a finger that mirrors it.
    """

    joints: tuple[str, ...]
    travel: tuple[tuple[float, float], ...]
    signs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check(len(self.joints) > 0, "joints must name at least one joint of the gripper")
        check(
            not self.signs or len(self.signs) == len(self.joints),
            f"signs must be one number per joint ({len(self.joints)}), not {self.signs}",
        )
        check(len(self.travel) >= 2, "travel must have two or more pairs of joint value and metres")
        steps = np.diff(np.array(self.travel), axis=0)
        check(
            bool((steps[:, 1] > 0).all() and ((steps[:, 0] > 0).all() or (steps[:, 0] < 0).all())),
            "travel must be pairs with growing metres, and joint values that only grow or only fall",
        )


@dataclasses.dataclass(frozen=True)
class ArmTable:
    """One arm of the world.

    Attributes:
      base: the body that stands where left/base_link or right/base_link of the project's own scene does.
      joints: the six hinges, waist to wrist_rotate.
      gripper: see GripperTable.
      signs: +1 or -1 for each hinge: -1 where it turns the other way than the project's own.
      offsets: value of each hinge (rad) where the project's own stands at 0.
      actuators: names of the position actuators of hinges and gripper joints; () to find them by their joints.
    """

    base: str
    joints: tuple[str, ...]
    gripper: GripperTable
    signs: tuple[float, ...] = (1.0,) * len(ARM_JOINTS)
    offsets: tuple[float, ...] = (0.0,) * len(ARM_JOINTS)
    actuators: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("joints", "signs", "offsets"):
            count = len(getattr(self, name))
            check(
                count == len(ARM_JOINTS),
                f"{name} must be {len(ARM_JOINTS)} values ({', '.join(ARM_JOINTS)}), not {count}",
            )
        check(
            all(abs(sign) == 1 for sign in self.signs), f"signs must be 1 or -1, not {self.signs}"
        )
        wanted = len(ARM_JOINTS) + len(self.gripper.joints)
        check(
            not self.actuators or len(self.actuators) == wanted,
            f"actuators must be {wanted} names, one per joint, not {len(self.actuators)}",
        )


@dataclasses.dataclass(frozen=True)
class CameraTable:
    """One wrist camera: one of the MJCF by name, or a mount on a body.

    Attributes:
      camera: name of a camera of the MJCF.
      body: where a camera is mounted instead.
      pos: of the mount in the body's frame (m). quat: (w, x, y, z); a camera looks along its -z.
    """

    camera: str = ""
    body: str = ""
    pos: Vector = (0.0, 0.0, 0.0)
    quat: Quaternion = (1.0, 0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        check(
            bool(self.camera) != bool(self.body),
            "give either camera = a camera of the MJCF, or body = where one is mounted",
        )


@dataclasses.dataclass(frozen=True)
class CamerasTable:
    """The wrist cameras, their pictures at camera size.

    Attributes:
      left, right: see CameraTable.
      width, height: of the pictures (pixels). The middle of a D405's 480 x 270; what lies beside it is cropped anyway.
      fovy_deg: vertical field of view; 0 for that of the MJCF's camera, which a mount does not have.
      shadow_size: most pixels of a shadow map's side; where there is no GPU they take most of the time. 0: no shadows.
    """

    left: CameraTable
    right: CameraTable
    width: int = 270
    height: int = 270
    fovy_deg: float = 0.0
    shadow_size: int = 1024

    def __post_init__(self) -> None:
        check(
            16 <= self.width <= 1920 and 16 <= self.height <= 1080,
            f"a picture of {self.width} x {self.height} is out of range: 16..1920 x 16..1080",
        )
        check(
            0 <= self.shadow_size <= 8192,
            f"shadow_size must lie in 0..8192 pixels, not {self.shadow_size}",
        )
        check(
            self.fovy_deg == 0 or 5 <= self.fovy_deg <= 150,
            f"fovy_deg must lie in 5..150, not {self.fovy_deg:g}",
        )
        check(
            self.fovy_deg > 0 or not (self.left.body or self.right.body),
            "fovy_deg must be given for a camera that is mounted on a body",
        )


@dataclasses.dataclass(frozen=True)
class ObjectsTable:
    """Socket and peg.

    Attributes:
      socket, peg: bodies of the MJCF with a free joint and the project's own shape and frame; "" to add ours.
      remove: bodies of the MJCF that are in the way.
      friction: factor on the sliding friction of the objects that are added.
    """

    socket: str = ""
    peg: str = ""
    remove: tuple[str, ...] = ()
    friction: float = 1.0

    def __post_init__(self) -> None:
        check(bool(self.socket) == bool(self.peg), "give both socket and peg, or neither")
        check(0.05 <= self.friction <= 5, f"friction must lie in 0.05..5, not {self.friction:g}")


@dataclasses.dataclass(frozen=True)
class LookTable:
    """What is drawn otherwise than the MJCF says; physics stays.

    Attributes:
      table: "wood", "checks" or "stripes": a sheet so painted covers the table; "" leaves what is there.
      table_rgb: colour of the sheet, or of its lighter parts; () for that of wood, or to leave what is there.
      surfaces: geoms of the MJCF that say how large the sheet is; () for 1.22 m x 0.74 m between the bases.
      peg_rgb, socket_rgb: colours of the objects that are added; () for red and blue.
      clutter: boxes and cylinders that lie about, at least 4 cm from where the objects may be.
      clutter_seed: which ones.
      light: factor on all lights.
    """

    table: Literal["", "wood", "checks", "stripes"] = ""
    table_rgb: tuple[float, ...] = ()
    surfaces: tuple[str, ...] = ()
    peg_rgb: tuple[float, ...] = ()
    socket_rgb: tuple[float, ...] = ()
    clutter: int = 0
    clutter_seed: int = 0
    light: float = 1.0

    def __post_init__(self) -> None:
        for name in ("table_rgb", "peg_rgb", "socket_rgb"):
            value = getattr(self, name)
            check(
                len(value) in (0, 3) and all(0 <= part <= 1 for part in value),
                f"{name} must be three numbers in 0..1, not {value}",
            )
        check(0 <= self.clutter <= 20, f"clutter must lie in 0..20, not {self.clutter}")
        check(0 <= self.light <= 10, f"light must lie in 0..10, not {self.light:g}")


@dataclasses.dataclass(frozen=True)
class WorldTable:
    """A world: an MJCF file and what its names mean.

    Attributes:
      name: what results call it.
      model: path of the MJCF file, relative to the table or, with `package`, to that package.
      left, right: the arms.
      cameras: the wrist cameras.
      package: Python package that the file belongs to; it is looked for, not imported.
      menagerie: name of a robot of MuJoCo Menagerie, whose files the package mujoco-menagerie brings (downloads once);
        `model` is then a file among them.
      install: how to get that package, for the message where it is missing.
      objects: socket and peg.
      look: what is drawn otherwise.
    """

    name: str
    model: str
    left: ArmTable
    right: ArmTable
    cameras: CamerasTable
    package: str = ""
    menagerie: str = ""
    install: str = ""
    objects: ObjectsTable = ObjectsTable()
    look: LookTable = LookTable()


def shipped() -> tuple[str, ...]:
    """Returns the names of the tables that come with this package."""
    return tuple(sorted(path.stem for path in TABLES.glob("*.toml")))


def find_table(name: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path of a table: a file, or the name of one that comes with this package.

    Raises:
      ConfigError: there is neither.
    """
    path = pathlib.Path(name)
    if path.is_file():
        return path
    inside = TABLES / f"{path.name.removesuffix('.toml')}.toml"
    if path.parent == pathlib.Path() and inside.is_file():
        return inside
    raise ConfigError(f"There is no world {name}.{did_you_mean(str(name), shipped())}")


def read_table(name: str | os.PathLike[str]) -> tuple[WorldTable, pathlib.Path]:
    """Reads and checks a table.

    Returns:
      The table, and the path of its MJCF file.

    Raises:
      ConfigError: no such file, not TOML, an unknown key, or a value out of range; the text names it.
      BackendUnavailable: the package that has the MJCF file is not installed.
    """
    path = find_table(name)
    values = _merged(path, ())
    folder = pathlib.Path(values.pop("folder"))
    try:
        table = from_dict(WorldTable, values, partial=True)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if table.package:
        folder = _package_folder(table)
    elif table.menagerie:
        folder = _menagerie_folder(table)
    model = folder / table.model
    if not model.is_file():
        raise ConfigError(f"{path}: there is no MJCF file {model}.")
    return table, model


def _merged(path: pathlib.Path, seen: tuple[pathlib.Path, ...]) -> JsonObject:
    """Reads a table together with those that it extends."""
    if path.resolve() in seen:
        raise ConfigError(f"{path} extends itself.")
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is no readable TOML file: {error}.") from None
    base = values.pop("extends", None)
    own = {"folder": str(path.parent)} if "model" in values or base is None else {}
    if base is None:
        return values | own
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends must be a file or the name of a world, not {base!r}.")
    beside = path.parent / base
    parent = beside if beside.is_file() else find_table(base)
    return _over(_merged(parent, (*seen, path.resolve())), values | own)


def _over(low: Mapping[str, object], high: Mapping[str, object]) -> JsonObject:
    """Returns one tree of tables with the values of another laid over it."""
    merged: JsonObject = dict(low)
    for key, value in high.items():
        under = merged.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            merged[key] = _over(under, value)
        else:
            merged[key] = value
    return merged


def _package_folder(table: WorldTable) -> pathlib.Path:
    """Finds a package without importing it, for what it imports may not be there."""
    if table.package == "alohas2r":
        return data_path("xmls")
    spec = importlib.util.find_spec(table.package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise BackendUnavailable(
            f"The world '{table.name}' needs the files of the package {table.package}, which is not installed:"
            f" {table.install or f'pip install {table.package}'}"
        )
    return pathlib.Path(places[0])


def _menagerie_folder(table: WorldTable) -> pathlib.Path:
    """Finds the files of a robot of MuJoCo Menagerie, and lets their package download them where they are missing."""
    try:
        menagerie: Untyped = importlib.import_module("mujoco_menagerie")
    except ImportError:
        raise BackendUnavailable(
            f"The world '{table.name}' needs MuJoCo Menagerie's files: pip install 'alohas2r[worlds]'"
        ) from None
    try:
        return pathlib.Path(menagerie.get(table.menagerie).path(progress=None))
    except (menagerie.MenagerieError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise BackendUnavailable(
            f"The world '{table.name}' needs MuJoCo Menagerie's {table.menagerie}, which could not be downloaded"
            f" ({reason}); it needs a network once, or a checkout that MENAGERIE_ROOT names."
        ) from None
