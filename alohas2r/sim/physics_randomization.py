"""Randomized physics: per-environment model fields, consistent in size, mass, inertia and bounding volumes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import mujoco
import numpy as np

from alohas2r.config import check
from alohas2r.sim.objects import HALF_LENGTH, HOLE_HALF, SOCKET_HALF
from alohas2r.sim.scene import Scene

# Folded into an episode's key to draw its physics. `split` and small `fold_in`s give the same keys, so a stream of
# its own needs a number that no `split` reaches.
STREAM = 0x5EED


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """The pick scene's block. Source: the published report.

    Attributes:
      half_side: range of half the side of its square section (m).
      mass: range of its mass (kg).
      skew: the half side is low + (high - low) * uniform ** skew; below 1 there are more large blocks.
      weights: relative frequency of equal parts of the half side's range, from thin to wide (before skew).
    """

    half_side: tuple[float, float] = (0.010, 0.030)
    mass: tuple[float, float] = (0.030, 0.100)
    skew: float = 1.0
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        check(
            len(self.weights) > 0 and min(self.weights) > 0,
            f"weights must be one or more numbers > 0, not {self.weights}",
        )
        check(
            0.002 <= self.half_side[0] <= self.half_side[1] <= 0.035,
            "half_side must lie in 0.002..0.035 m",
        )
        check(0 < self.skew <= 10, f"skew must be in (0, 10], not {self.skew}")
        check(0.001 <= self.mass[0] <= self.mass[1] <= 1.0, "mass must lie in 0.001..1 kg")


def box_inertia(half: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Returns the principal inertia [N, 3] (kg m^2) of solid boxes of half sizes [N, 3] and masses [N].

    Source: I_xx = m (y^2 + z^2) / 3 for half sizes.
    """
    squares = half**2
    return mass[:, None] / 3 * (squares.sum(1, keepdims=True) - squares)


def resize_box(
    scene: Scene, geom: str, half: np.ndarray, mass: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the model fields that give a one-box body other sizes and masses.

    Size, mass, inertia, bounding sphere, bounding box and the body's bounding volume change together: with any
    of them left behind, contacts are missed and the simulation explodes.

    Args:
      scene: the scene.
      geom: name of the box; its body has no other colliding geom.
      half: [N, 3] half sizes (m).
      mass: [N] (kg).

    Returns:
      Model field -> [N, ...].
    """
    model = scene.model
    number = scene.id("geom", geom)
    body = int(model.geom_bodyid[number])
    count = half.shape[0]

    def repeated(name: str) -> np.ndarray:
        return np.repeat(np.asarray(getattr(model, name))[None], count, 0)

    size, bound, box = repeated("geom_size"), repeated("geom_rbound"), repeated("geom_aabb")
    box = box.reshape(count, model.ngeom, 6)
    size[:, number] = half
    bound[:, number] = np.linalg.norm(half, axis=1)
    box[:, number] = np.concatenate([np.zeros((count, 3)), half], 1)
    masses, inertias = repeated("body_mass"), repeated("body_inertia")
    masses[:, body] = mass
    inertias[:, body] = box_inertia(half, mass)
    fields = {
        "geom_size": size,
        "geom_rbound": bound,
        "geom_aabb": box,
        "body_mass": masses,
        "body_inertia": inertias,
    }
    # Only the bodies' volumes, which precede the meshes', can differ between simulations.
    volumes = repeated("bvh_aabb")[:, : int(model.body_bvhnum.sum())]
    first, length = int(model.body_bvhadr[body]), int(model.body_bvhnum[body])
    if length:
        # In the body's inertial frame; a body that is one centred box has one volume, the box itself.
        volumes[:, first : first + length, :3] = 0
        volumes[:, first : first + length, 3:] = half[:, None]
        fields["bvh_aabb"] = volumes
    return fields


def sample_block(
    scene: Scene, config: BlockConfig, uniform: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Turns uniform draws [N, 2] into blocks.

    Returns:
      Model fields, and the context [N, 2] = half side (m), mass (kg) that tasks may read.
    """
    low, high = config.half_side
    # The inverse of the piecewise linear distribution function that the weights describe.
    cumulative = np.concatenate([[0.0], np.cumsum(config.weights)]) / sum(config.weights)
    share = np.interp(uniform[:, 0], cumulative, np.linspace(0, 1, len(cumulative)))
    half_side = low + share**config.skew * (high - low)
    mass = config.mass[0] + uniform[:, 1] * (config.mass[1] - config.mass[0])
    half = np.stack(
        [
            np.full_like(half_side, scene.model.geom_size[scene.id("geom", "box"), 0]),
            half_side,
            half_side,
        ],
        1,
    )
    return resize_box(scene, "box", half, mass), np.stack([half_side, mass], 1)


@dataclasses.dataclass(frozen=True)
class InsertRandomization:
    """The insertion scene's physics; factors are uniform about 1.

    Actuator dynamics and friction are what simulations of position-controlled arms get wrong first.

    Attributes:
      peg_half_side: range of half the side of the peg's square section (m).
      mass: range of the factor on each object's mass and inertia.
      friction: range of the factor on the sliding friction of fingers and objects.
      gain: range of the factor on each actuator's position gain.
      damping: range of the factor on each arm joint's damping.
      skew: as in BlockConfig, for the peg.
    """

    peg_half_side: tuple[float, float] = (0.010, 0.017)
    mass: tuple[float, float] = (0.7, 1.3)
    friction: tuple[float, float] = (0.7, 1.3)
    gain: tuple[float, float] = (0.85, 1.15)
    damping: tuple[float, float] = (0.85, 1.15)
    skew: float = 1.0

    def __post_init__(self) -> None:
        check(
            0.005 <= self.peg_half_side[0] <= self.peg_half_side[1] < HOLE_HALF,
            "peg_half_side must lie in 5..18 mm",
        )
        for name in ("mass", "friction", "gain", "damping"):
            low, high = getattr(self, name)
            check(0.2 <= low <= high <= 5, f"{name} must be a range of factors within 0.2..5")
        check(0 < self.skew <= 10, f"skew must be in (0, 10], not {self.skew}")


NOMINAL = InsertRandomization((0.010, 0.010), (1, 1), (1, 1), (1, 1), (1, 1))
INSERT_DRAWS = 64  # uniform draws that one insertion variant takes


def sample_insert(
    scene: Scene, config: InsertRandomization, uniform: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Turns uniform draws [N, INSERT_DRAWS] into variants of the insertion scene.

    The peg keeps the density of its nominal size, times the mass factor.

    Returns:
      Model fields, and the peg's half side [N] (m).
    """
    model = scene.model
    count = uniform.shape[0]
    column = iter(range(INSERT_DRAWS))

    def factor(bounds: tuple[float, float]) -> np.ndarray:
        return bounds[0] + uniform[:, next(column)] * (bounds[1] - bounds[0])

    low, high = config.peg_half_side
    half_side = low + uniform[:, next(column)] ** config.skew * (high - low)
    peg_geom = scene.id("geom", "red_peg")
    nominal = model.geom_size[peg_geom]
    half = np.stack([np.full(count, nominal[0]), half_side, half_side], 1)
    peg_body, socket_body = scene.id("body", "peg"), scene.id("body", "socket")
    mass = model.body_mass[peg_body] * (half_side / nominal[1]) ** 2 * factor(config.mass)
    fields = resize_box(scene, "red_peg", half, mass)
    socket = factor(config.mass)
    fields["body_mass"][:, socket_body] *= socket
    fields["body_inertia"][:, socket_body] *= socket[:, None]
    friction = np.repeat(model.geom_friction[None], count, 0)
    bodies = [peg_body, socket_body] + [
        scene.id("body", f"{arm.name}/{finger}_finger_link")
        for arm in scene.arms
        for finger in ("left", "right")
    ]
    sliding = factor(config.friction)
    for body in bodies:
        friction[:, model.geom_bodyid == body, 0] *= sliding[:, None]
    gain = np.repeat(model.actuator_gainprm[None], count, 0)
    bias = np.repeat(model.actuator_biasprm[None], count, 0)
    damping = np.repeat(model.dof_damping.reshape(1, -1), count, 0)
    for arm in scene.arms:
        for actuator, dof in zip(arm.ctrl, arm.qvel[:7], strict=True):
            strength, viscous = factor(config.gain), factor(config.damping)
            gain[:, actuator, 0] *= strength
            bias[:, actuator, 1] *= strength
            damping[:, dof] *= viscous
    fields |= {
        "geom_friction": friction,
        "actuator_gainprm": gain,
        "actuator_biasprm": bias,
        "dof_damping": damping,
    }
    return fields, half_side


@dataclasses.dataclass(frozen=True)
class ObjectRanges:
    """Sizes of peg and socket beyond the peg's section.

    Attributes:
      peg_half_length: range (m).
      hole_half: range of half the hole's width (m); never less than the peg's half side and `play`.
      play: least half play of the peg in the hole (m).
    """

    peg_half_length: tuple[float, float] = (HALF_LENGTH, HALF_LENGTH)
    hole_half: tuple[float, float] = (HOLE_HALF, HOLE_HALF)
    play: float = 0.001

    def __post_init__(self) -> None:
        low, high = self.peg_half_length
        check(0.03 <= low <= high <= 0.08, "peg_half_length must lie in 30..80 mm")
        check(0.01 <= self.hole_half[0] <= self.hole_half[1] <= 0.021, "hole_half: 10..21 mm")
        check(0 <= self.play <= 0.01, f"play must be in 0..0.01 m, not {self.play}")

    @property
    def vary(self) -> bool:
        """Whether any size differs from the nominal one."""
        return self != ObjectRanges()


_LENGTH_COLUMN, _HOLE_COLUMN = 40, 41  # of the draws, after those of `sample_insert`


def sample_objects(
    config: ObjectRanges, half_side: np.ndarray, uniform: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns half lengths of pegs and half widths of holes, [N] each (m).

    Args:
      config: the ranges. half_side: [N] of the pegs (m). uniform: [N, INSERT_DRAWS] draws.
    """
    low, high = config.peg_half_length
    length = low + uniform[:, _LENGTH_COLUMN] * (high - low)
    low, high = config.hole_half
    hole = low + uniform[:, _HOLE_COLUMN] * (high - low)
    return length, np.maximum(hole, half_side + config.play)


def _volumes(model: mujoco.MjModel, body: int) -> slice:
    """Returns where the bounding volumes of a body are."""
    first = int(model.body_bvhadr[body])
    return slice(first, first + int(model.body_bvhnum[body]))


def resize_objects(
    scene: Scene, fields: Mapping[str, np.ndarray], half_length: np.ndarray, hole: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns model fields [N, ...] with pegs of other lengths and sockets of other holes on top of `fields`.

    The socket keeps its outside and its mass; its walls grow inwards or thin. Serves physics and pictures.

    Args:
      scene: an insertion scene, with or without its looks. fields: model field -> [N, ...]; what is missing is
        nominal. half_length: [N] of the pegs (m). hole: [N] half widths of the holes (m).
    """
    model, count = scene.model, len(hole)
    resized = dict(fields)

    def taken(name: str) -> np.ndarray:
        given = fields.get(name)
        value = getattr(model, name)[None].repeat(count, 0) if given is None else np.array(given)
        return value.reshape(count, *getattr(model, name).shape).astype(np.float64)

    size, place, site = taken("geom_size"), taken("geom_pos"), taken("site_pos")
    bound, box = taken("geom_rbound"), taken("geom_aabb").reshape(count, model.ngeom, 6)
    size[:, scene.id("geom", "red_peg"), 0] = half_length
    for end, sign in (("peg_end1", 1), ("peg_end2", -1)):
        site[:, scene.id("site", end), 0] = sign * half_length
    thickness = (SOCKET_HALF - hole) / 2
    axes = {"B": (2, -1), "T": (2, 1), "L": (1, -1), "R": (1, 1)}
    changed = [scene.id("geom", "red_peg"), scene.id("geom", "socket-W")]
    size[:, changed[1], 1] = size[:, changed[1], 2] = hole
    for wall, (axis, sign) in axes.items():
        geom = scene.id("geom", f"socket-{wall}")
        size[:, geom, 2] = thickness
        if axis == 1:
            size[:, geom, 1] = hole
        place[:, geom, axis] = sign * (hole + thickness)
        changed.append(geom)
        lining = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, f"socket_inside_{wall}")
        if lining >= 0:
            place[:, lining, axis] = sign * (hole - 0.0001)
            size[:, lining, 3 - axis] = hole
    bound[:, changed] = np.linalg.norm(size[:, changed], axis=-1)
    box[:, changed, 3:] = size[:, changed]
    mass, inertia = taken("body_mass"), taken("body_inertia")
    peg, socket = scene.id("body", "peg"), scene.id("body", "socket")
    mass[:, peg] *= half_length / HALF_LENGTH
    inertia[:, peg] = box_inertia(size[:, changed[0]], mass[:, peg])
    volumes = fields.get("bvh_aabb")
    if volumes is None:  # only the bodies' volumes, which precede the meshes'
        volumes = model.bvh_aabb[None, : int(model.body_bvhnum.sum())].repeat(count, 0)
    volumes = np.array(volumes)
    volumes[:, _volumes(model, peg), 3:] = size[:, changed[0]][:, None]
    # Walls grow inwards, or along the wider hole, by no more than this; volumes that are too large miss no contact.
    volumes[:, _volumes(model, socket), 3:] += np.abs(HOLE_HALF - hole)[:, None, None]
    return resized | {
        **{"geom_size": size, "geom_pos": place, "site_pos": site, "geom_rbound": bound},
        **{"geom_aabb": box, "body_mass": mass, "body_inertia": inertia, "bvh_aabb": volumes},
    }
