"""Light on surfaces, as MuJoCo Warp's renderer has it; on tiles of pixels in the camera's frame (JAX).

Source: mujoco_warp, render.py of version 3.17: ambient, diffuse and Blinn-Phong specular light of the
headlight and of directional, point and spot lights with attenuation and cone; points in shadow
keep a fraction of a light's contribution; colours are clipped and cut to 8 bits.

Arrays are [T, P]: P pixels of T tiles, one tile being part of one view (camera of an environment).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from alohas2r.core.types import Array
from alohas2r.rendering.looks import paint
from alohas2r.rendering.looks.paint import Painted
from alohas2r.rendering.looks.texture import once
from alohas2r.rendering.protocol import Prepared

SHADOW_FRACTION = 0.3  # of a light's contribution that reaches a point in shadow
SHADOW_LIFT = 1e-4  # m; shadow rays start this far above the surface
SHADOW_GAP = 1e-3  # m; and end this far before the light
ENDLESS = 1e8  # m; length of shadow rays to a directional light
MAX_SHININESS = 128.0
DEFAULT_SPECULAR, DEFAULT_SHININESS, DEFAULT_EMISSION = 0.5, 64.0, 0.0
NO_LIGHT_AMBIENT = 0.3

Vec = Array  # three arrays


class Surface(NamedTuple):
    """What T tiles of P pixels show."""

    view: Array  # [T] number of the view, E * C in all
    env: Array  # [T] number of the environment
    ray: Vec  # x, y, -1: directions of the rays; a ray's parameter is the planar depth
    depth: Array  # [T, P] m; 0 where nothing is seen
    hit: Array  # [T, P] bool
    number: Array  # [T, P] geom id; 0 where nothing is seen
    normal: Vec  # towards the camera


class Light(NamedTuple):
    """What one light does to surfaces if nothing stands in its way."""

    diffuse: Array  # [T, P]
    gloss: Array  # [T, P]
    asked: Array  # [T, P] bool: whether it matters if something stands in the way


class Pixels(NamedTuple):
    """What `compose` needs of a surface."""

    env: Array  # [T]
    hit: Array  # [T, P] bool
    number: Array  # [T, P]
    head: tuple[Array, Array]  # diffuse and specular light [T, P] of the headlight
    albedo: list[Array] | None = None  # three arrays [T, P], of what is painted


@dataclasses.dataclass(frozen=True, eq=False)
class Materials:
    """Specular, shininess exponent and emission [G] of each geom's material."""

    specular: np.ndarray
    shininess: np.ndarray
    emission: np.ndarray


def materials(model: mujoco.MjModel) -> Materials:
    """Returns the geoms' materials."""
    table = np.array(
        [[DEFAULT_SPECULAR, DEFAULT_SHININESS, DEFAULT_EMISSION]] * model.ngeom, np.float32
    )
    for geom, number in enumerate(model.geom_matid):
        if number >= 0:
            shininess = model.mat_shininess[number] * MAX_SHININESS
            table[geom] = model.mat_specular[number], shininess, model.mat_emission[number]
    return Materials(*table.T.copy())


def lights_in_view(scene: dict[str, Array]) -> tuple[Array, Array]:
    """Returns places and directions [E * C, L, 3] of the lights in the cameras' frames.

    Args:
      scene: cam_xpos [E, C, 3], cam_xmat [E, C, 3, 3], light_xpos and light_xdir [E, L, 3].
    """
    rotation = scene["cam_xmat"][:, :, None]
    apart = scene["light_xpos"][:, None] - scene["cam_xpos"][:, :, None]
    aim = jnp.broadcast_to(scene["light_xdir"][:, None], apart.shape)

    def turned(vector: Array) -> Array:
        parts = [sum(rotation[..., k, b] * vector[..., k] for k in range(3)) for b in range(3)]
        return jnp.stack(parts, -1).reshape(vector.shape[0] * vector.shape[1], *vector.shape[2:])

    return turned(apart), turned(aim)


def rays_to_light(
    model: mujoco.MjModel, places: tuple[Array, Array], view: Array, light: Array, point: Vec
) -> tuple[Vec, Array]:
    """Returns unit directions from points to a light and how far it is, [T, P] m.

    Args:
      model: for the lights' types.
      places: from `lights_in_view`.
      view: [T]; light: its number, or [T] numbers.
      point: in the cameras' frames, three arrays [T, P].
    """
    sun = jnp.asarray(model.light_type == int(mujoco.mjtLightType.mjLIGHT_DIRECTIONAL))[light]
    sun = jnp.broadcast_to(sun, view.shape)[:, None]
    place, aim = places[0][view, light], places[1][view, light]
    apart = [place[:, k, None] - point[k] for k in range(3)]
    distance = jnp.sqrt(dot(apart, apart))
    scale = 1 / jnp.maximum(distance, np.float32(1e-9))
    to_light = [jnp.where(sun, -aim[:, k, None], apart[k] * scale) for k in range(3)]
    return to_light, jnp.where(sun, np.float32(ENDLESS), distance)


def illuminate(
    model: mujoco.MjModel,
    scene: dict[str, Array],
    places: tuple[Array, Array],
    surface: Surface,
    light: Array,
    to_light: Vec,
    distance: Array,
    painted: Painted | None = None,
) -> Light:
    """Returns what a light does.

    Args:
      model: constants of lights and materials.
      scene: light_active and light_castshadow [E, L].
      places: from `lights_in_view`.
      surface: what is lit.
      light: its number.
      to_light, distance: from `rays_to_light`.
      painted: gloss of what is painted; None for the materials' everywhere.
    """
    spot_type, sun_type = mujoco.mjtLightType.mjLIGHT_SPOT, mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
    kind = jnp.asarray(model.light_type)[light]
    near, linear, square = jnp.asarray(model.light_attenuation, jnp.float32)[light]
    fall = near + distance * (linear + distance * square)
    weight = jnp.where(kind == int(sun_type), 1, 1 / jnp.maximum(fall, np.float32(1e-9)))
    if (model.light_type == int(spot_type)).any():
        aim = places[1][surface.view, light]
        along = -dot(to_light, [aim[:, k, None] for k in range(3)])
        edge = jnp.asarray(np.cos(np.radians(model.light_cutoff)), jnp.float32)[light]
        exponent = jnp.asarray(model.light_exponent, jnp.float32)[light]
        cone = jnp.where(along < edge, 0, power(along, exponent))
        weight = jnp.where(kind == int(spot_type), weight * cone, weight)
    active = scene["light_active"][surface.env, light][:, None] > 0
    diffuse, gloss = _reflect(
        materials(model), surface, to_light, jnp.where(surface.hit & active, weight, 0), painted
    )
    shadow = scene["light_castshadow"][surface.env, light][:, None] > 0
    return Light(diffuse, gloss, (diffuse > 0) & shadow)


def paint_of(
    prepared: Prepared, scene: dict[str, Array], frames: Array, surface: Surface
) -> Painted:
    """Returns what surfaces are like under the looks "transfer"; see `looks.paint.paint`."""
    ray, normal = surface.ray, surface.normal
    slant = -dot(normal, ray) * jax.lax.rsqrt(ray[0] ** 2 + ray[1] ** 2 + 1)
    seen = surface.depth, surface.hit, surface.number, slant
    model, family = prepared.model, prepared.transfer
    seen_as = paint.paint(model, family, scene, frames, surface.view, surface.env, list(ray), *seen)
    own, gloss = materials(model), seen_as.specular < 0
    specular = jnp.where(gloss, _pick(own.specular, surface.number), seen_as.specular)
    shininess = jnp.where(gloss, _pick(own.shininess, surface.number), seen_as.shininess)
    return seen_as._replace(specular=once(specular), shininess=once(shininess))


def pixels(model: mujoco.MjModel, surface: Surface, painted: Painted | None = None) -> Pixels:
    """Returns what `compose` needs of a surface."""
    none = jnp.zeros_like(surface.depth)
    head = none, none
    if model.vis.headlight.active:
        weight = jnp.where(surface.hit, np.float32(1), 0)
        head = _reflect(materials(model), surface, (0.0, 0.0, 1.0), weight, painted)
        if not model.vis.headlight.specular.any():
            head = head[0], none
    albedo = None if painted is None else painted.albedo
    return Pixels(surface.env, surface.hit, surface.number, head, albedo)


def compose(
    model: mujoco.MjModel, scene: dict[str, Array], some: Pixels, light: Light | None, hidden: Array
) -> Array:
    """Returns the pixels' colours [T, P] as 0xBBGGRR; 0 where nothing is seen.

    Args:
      model: constants of headlight and materials.
      scene: rgb [E, G, 3] of the geoms; light_active [E, L]; light_ambient, light_diffuse and
        light_specular [E, L, 3].
      some: the pixels.
      light: from `illuminate`, every field with a leading axis L; None if the model has no light.
      hidden: [L, T, P] bool, whether something stands between a point and a light; None for nothing.
    """
    head = model.vis.headlight
    glow: list[Array] = [_pick(materials(model).emission, some.number)] * 3
    shine: list[Array] = [np.float32(0)] * 3
    if head.active:
        for k in range(3):
            glow[k] = (
                glow[k] + np.float32(head.ambient[k]) + some.head[0] * np.float32(head.diffuse[k])
            )
            shine[k] = some.head[1] * np.float32(head.specular[k]) if head.specular[k] else shine[k]
    elif light is None:
        glow = [part + np.float32(NO_LIGHT_AMBIENT) for part in glow]
    for number in range(model.nlight if light is not None else 0):
        assert light is not None
        diffuse, gloss = light.diffuse[number], light.gloss[number]
        if hidden is not None:
            left = jnp.where(hidden[number], np.float32(SHADOW_FRACTION), 1)
            diffuse, gloss = diffuse * left, gloss * left
        active = scene["light_active"][:, number] > 0
        for k in range(3):
            ambient = jnp.where(active, scene["light_ambient"][:, number, k], 0)
            glow[k] += ambient[some.env][:, None]
            glow[k] += diffuse * scene["light_diffuse"][:, number, k][some.env][:, None]
            shine[k] += gloss * scene["light_specular"][:, number, k][some.env][:, None]
    if some.albedo is not None:
        return _developed(scene, some, glow, shine)
    row = some.env[:, None] * model.ngeom + some.number
    packed: Array = 0
    for k in range(3):
        value = jnp.clip(scene["rgb"][:, :, k].reshape(-1)[row] * glow[k] + shine[k], 0, 1)
        packed |= (value * np.float32(255)).astype(jnp.int32) << (8 * k)
    return jnp.where(some.hit, packed, 0)


def _developed(
    scene: dict[str, Array], some: Pixels, glow: list[Array], shine: list[Array]
) -> Array:
    """Returns the colours of painted pixels as 0xBBGGRR: roots of radiance; the room where nothing is hit."""
    assert some.albedo is not None
    scale, packed = scene["radiance"][some.env][:, None], 0
    for k in range(3):
        lit = (some.albedo[k] * glow[k] + shine[k]) * scale
        value = jnp.clip(jnp.where(some.hit, lit, some.albedo[k] * paint.ROOM_LIGHT), 0, 1)
        packed |= (jnp.sqrt(value) * np.float32(255) + 0.5).astype(jnp.int32) << (8 * k)
    return packed


def _reflect(
    material: Materials,
    surface: Surface,
    to_light: Vec,
    weight: Array,
    painted: Painted | None = None,
) -> tuple[Array, Array]:
    """Returns diffuse and specular light [T, P] from one direction."""
    inverse = jax.lax.rsqrt(surface.ray[0] ** 2 + surface.ray[1] ** 2 + 1)
    middle = [a - b * inverse for a, b in zip(to_light, surface.ray, strict=True)]
    facing = jnp.maximum(dot(surface.normal, to_light), 0)
    scale = jax.lax.rsqrt(jnp.maximum(dot(middle, middle), np.float32(1e-20)))
    if painted is None:
        specular = _pick(material.specular, surface.number)
        shininess = _pick(material.shininess, surface.number)
    else:
        specular, shininess = painted.specular, painted.shininess
    gloss = power(jnp.maximum(dot(surface.normal, middle) * scale, 0), shininess) * specular
    shiny = (facing > 0) & (specular > 0) & (shininess > 0)
    return facing * weight, jnp.where(shiny, gloss * weight, 0)


def dot(a: Vec, b: Vec) -> Array:
    """Returns the dot products of vectors given as three arrays each."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def power(base: Array, exponent: Array) -> Array:
    """Returns max(base, 0) ** exponent for exponents that are not negative; 0 ** 0 is 1."""
    result = jnp.exp(jnp.log(jnp.maximum(base, np.float32(1e-30))) * exponent)
    return jnp.where((base <= 0) & (exponent > 0), 0, result)


def _pick(values: np.ndarray, number: Array) -> Array:
    """Returns values[number], without looking up what is the same everywhere."""
    if (values == values[0]).all():
        return values[0]
    return jnp.asarray(values)[number]
