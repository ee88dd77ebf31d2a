"""Draws the looks "transfer" of an episode from a random key (JAX).

A sample is a dict of plain arrays [N, ...], like that of `visual_randomization.sample_looks`: model fields, fields of
what is drawn beside the model's geoms (`extra_*`), of textures (`paint`, `room_*`) and of the sensors
(`SENSOR_FIELDS`); beside them `cause_NAME`, what the causes of an episode came to. Every cause has random numbers of
its own, so that one can be left out without a change of another.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from alohas2r.core.types import Array
from alohas2r.rendering import visual_randomization
from alohas2r.rendering.looks import clutter, nominal, texture
from alohas2r.rendering.looks.config import (
    CAUSES,
    FAMILIES,
    FAMILY_TEXTURES,
    SLOTS,
    TEXTURES,
    TransferConfig,
)
from alohas2r.rendering.looks.random import Draws, colour
from alohas2r.rendering.visual_randomization import rotated
from alohas2r.sim import scene

CAUSE = "cause_"  # how the keys of what a cause came to begin
_FAMILY_STREAM = 0x10C5  # of a family's random keys
_AT_ONCE = 64  # environments that are drawn together
_MOST_DRAWS = 400  # random numbers of a cause

_WARM = np.array([0.6, 0.0, -0.8], np.float32)  # what a warm tint adds to red, green and blue
_ARMS = ("upper_arm", "forearm", "wrist", "gripper", "camera_body", "finger")
_ROOM = np.array([[1.3, 1.2, 0.4], [3.0, 3.0, 0.9]])  # m; smallest and largest room, as in `paint`
_PIXELS = 32  # in which the principal point's shift is given

Sample = dict[str, Array]


def sample_looks(
    key: Array,
    n: int,
    model: mujoco.MjModel,
    config: TransferConfig,
    start: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Draws looks for n environments.

    Args:
      key: a random key.
      n: number of environments.
      model: the scene's.
      config: the ranges.
      start: [n, 2, 2] where the objects are at the start, from which clutter keeps away (m); None for nowhere.
    """
    start = np.full((n, 2, 2), 1e3, np.float32) if start is None else np.asarray(start, np.float32)
    parts = []
    for first in range(0, max(n, 1), _AT_ONCE):
        ids = np.arange(first, first + _AT_ONCE)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(ids)
        parts.append(sampler(model, config)(keys, np.resize(start[ids[ids < n]], (_AT_ONCE, 2, 2))))
    return {name: np.concatenate([np.asarray(p[name]) for p in parts])[:n] for name in parts[0]}


@functools.lru_cache(maxsize=16)
def sampler(model: mujoco.MjModel, config: TransferConfig) -> Array:
    """Returns a compiled function from keys [K] and starts [K, 2, 2] to looks [K, ...]."""
    return jax.jit(jax.vmap(functools.partial(_sample, model, config)))


def _sample(model: mujoco.MjModel, config: TransferConfig, key: Array, start: Array) -> Sample:
    """Draws the looks of one episode."""
    key = jax.random.fold_in(key, _FAMILY_STREAM + FAMILIES.index(config.family))
    # One call for all causes: every call of a random function takes the compiler a while.
    numbers = jax.random.uniform(key, (len(CAUSES), _MOST_DRAWS))
    episode = Episode(model, config, start)
    for number, cause in enumerate(CAUSES):
        if cause in config.causes:
            getattr(episode, cause)(Draws(numbers[number]))
    return episode.finish()


class Episode:
    """One episode's looks while they are drawn: a method for each of CAUSES.

    Args:
      model: the scene's.
      config: the ranges.
      start: [2, 2] where the objects are at the start (m).
    """

    def __init__(self, model: mujoco.MjModel, config: TransferConfig, start: Array):
        self.model, self.config, self.start = model, config, start
        self.sample: Sample = {k: jnp.asarray(v) for k, v in nominal.transfer(model).items()}
        # Slot -> numbers [texture.DRAWS], first colour [3], limits [texture.LIMITS].
        self._textures: dict[str, tuple[Array, Array, np.ndarray]] = {}
        self._table = model.geom("table").id

    def _named(self, *names: str) -> np.ndarray:
        """Returns the ids of geoms whose names contain one of these, of those that wrist cameras see."""
        model = self.model
        return np.array(
            [
                geom
                for geom in range(model.ngeom)
                if model.geom_group[geom] in (0, 2)
                and any(name in model.geom(geom).name for name in names)
            ],
            int,
        )

    def _paint(self, ids: np.ndarray | int, rgb: Array) -> None:
        """Gives geoms a colour."""
        self.sample["geom_rgba"] = self.sample["geom_rgba"].at[ids, :3].set(rgb)

    def _came_to(self, **values: Array) -> None:
        """Notes what a cause came to."""
        self.sample |= {
            CAUSE + name: jnp.asarray(value, jnp.float32) for name, value in values.items()
        }

    def table(self, draws: Draws) -> None:
        """The table: colour, texture, gloss, seams; its size, and rails around it."""
        ranges, shape = self.config.table_surface, self.config.table
        base = colour(
            draws.within(ranges.albedo), draws.within(ranges.saturation) ** 2, draws.one()
        )
        self._paint(self._table, base)
        self._textures["table"] = draws.take(texture.DRAWS), base, texture.limits(ranges)
        half = jnp.stack([draws.within(shape.half_x), draws.within(shape.half_y)])
        some = draws.chance(shape.rails)
        size = draws.within(shape.rail_width), draws.within(shape.rail_height)
        height = float(self.model.geom_pos[self._table, 2])
        places, sizes = clutter.rails(half, some, *size, height)
        rail = colour(draws.one(), draws.one() ** 2, draws.one())
        count = places.shape[0]
        self.sample |= {
            "table_half": half,
            "extra_pos": self.sample["extra_pos"].at[:count].set(places),
            "extra_size": self.sample["extra_size"].at[:count].set(sizes),
            "extra_rgba": self.sample["extra_rgba"].at[:count, :3].set(rail),
        }

    def room(self, draws: Draws) -> None:
        """Walls and floor: colours, one texture and seams for both, and how far they are."""
        ranges, colours = self.config.room_surface, []
        for _ in ("wall", "floor"):
            saturation = draws.within(ranges.saturation) ** 2
            colours.append(colour(draws.within(ranges.albedo), saturation, draws.one()))
        self._textures["room"] = draws.take(texture.DRAWS), colours[1], texture.limits(ranges)
        self.sample["room_rgb"] = jnp.stack(colours)
        self.sample["room_size"] = _ROOM[0] + draws.take(3) * (_ROOM[1] - _ROOM[0])

    def objects(self, draws: Draws) -> None:
        """Socket and peg: their own hues, any, alike, or the table's; texture and gloss."""
        ranges = self.config.objects
        low, high = ranges.lightness
        several = colour(
            low + draws.take(4) * (high - low),
            jnp.sqrt(ranges.saturation[0] + draws.take(4) * np.ptp(ranges.saturation)),
            draws.take(4),
        )
        socket, peg, end, inside = several
        choice = draws.one()
        own = choice < ranges.own
        alike = ~own & (choice < ranges.own + ranges.alike)
        like_table = ~own & ~alike & (choice < ranges.own + ranges.alike + ranges.table)
        weak, red_part, blue_part = 0.12 * draws.one(), draws.one(), draws.one()
        blue = jnp.stack([weak, weak, 0.5 + 0.5 * blue_part])
        red = jnp.stack([0.3 + 0.7 * red_part, 0.6 * weak, 0.6 * weak])
        which = draws.chance(0.5)
        table = self.sample["geom_rgba"][self._table, :3] * (0.85 + 0.3 * draws.one())
        socket = jnp.where(own, blue, jnp.where(like_table & which, table, socket))
        peg = jnp.where(own, red, jnp.where(like_table & ~which, table, peg))
        peg = jnp.where(alike, socket + 0.1 * (draws.one() - 0.5), peg)
        end = jnp.where(own, red, jnp.where(draws.chance(ranges.end), end, socket))
        grey = 0.4 + 0.6 * draws.one()
        inside = jnp.where(draws.chance(0.5), inside, socket)
        inside = jnp.where(draws.chance(0.5), grey, inside)
        parts = socket, peg, end, inside
        socket, peg, end, inside = (jnp.clip(rgb, 0, 1) for rgb in parts)
        self._paint(self._named("socket-B", "socket-T", "socket-L", "socket-R"), socket)
        self._paint(self.model.geom("socket-W").id, end)
        self._paint(self._named("socket_inside"), inside)
        self._paint(self.model.geom("red_peg").id, peg)
        for slot, base in (("socket", socket), ("peg", peg)):
            self._textures[slot] = draws.take(texture.DRAWS), base, texture.limits(ranges)

    def grippers(self, draws: Draws) -> None:
        """Arms and hands: grey to black, tape on some fingers."""
        ranges = self.config.grippers
        parts, fingers = self._named(*_ARMS), self._named("finger")
        # Squared, as most are black.
        lightness = ranges.lightness[0] + draws.one() ** 2 * np.ptp(ranges.lightness)
        grey = jnp.clip(lightness * (1 + ranges.spread * (2 * draws.take(parts.size) - 1)), 0, 1)
        self._paint(parts, grey[:, None])
        taped = draws.take(fingers.size) < ranges.tape
        tape = colour(draws.one(), draws.one(), draws.one())
        own = self.sample["geom_rgba"][fingers, :3]
        self._paint(fingers, jnp.where(taped[:, None], tape, own))
        shift = (2 * draws.take(3) - 1) * np.array(ranges.fingers, np.float32)
        self.sample["finger_shift"] = shift
        self._came_to(tape=taped.sum())

    def clutter(self, draws: Draws) -> None:
        """Things that lie about."""
        ranges = self.config.clutter
        height = float(self.model.geom_pos[self._table, 2])
        placed = clutter.place(draws, ranges, self.config.family, self.start, height)
        count = placed["extra_pos"].shape[0]
        colours = colour(draws.take(count), draws.take(count), draws.take(count))
        for name in ("extra_pos", "extra_quat", "extra_size"):
            self.sample[name] = self.sample[name].at[-count:].set(placed[name])
        self.sample["extra_rgba"] = self.sample["extra_rgba"].at[-count:, :3].set(colours)
        self._textures["clutter"] = draws.take(texture.DRAWS), colours[0], texture.limits(ranges)
        self._came_to(clutter=placed["count"], clutter_nearest=placed["nearest"])

    def light(self, draws: Draws) -> None:
        """Lamps: how much light, from ambient alone to lamps with shadows; tints, places, directions."""
        ranges, count = self.config.light, self.model.nlight
        level = draws.log_within(ranges.level, draws.centred())
        direct = ranges.direct[0] + draws.one() ** 2 * np.ptp(ranges.direct)
        on = draws.take(count) < ranges.on
        share = jnp.where(on, 0.2 + draws.take(count), 0)
        share = share / jnp.maximum(share.sum(), 0.5)
        # Lamps of a room differ less than rooms do.
        tint = ranges.tint[0] + (0.4 * draws.take(count) + 0.6 * draws.one()) * np.ptp(ranges.tint)
        diffuse = direct * share[:, None] * (1 + tint[:, None] * _WARM)
        place = draws.take(3 * count).reshape(count, 3) * 2 - 1
        axis, angle = _turn(draws, count, ranges.angle)
        cast = draws.chance(ranges.shadows) & jnp.ones(count, bool)
        # A white table is about as bright as it is without lamps, whatever burns.
        norm = 1 / (nominal.HEADLIGHT + 0.8 * diffuse.mean(-1).sum())
        self.sample |= {
            "light_diffuse": diffuse,
            "light_specular": 0.5 * diffuse,
            "light_active": on,
            "light_pos": self.sample["light_pos"] + ranges.position * place,
            "light_dir": rotated(self.sample["light_dir"], axis, angle),
            "light_castshadow": cast,
            "radiance": 0.9 * norm,
            "light": level,
        }
        self._came_to(light=level, light_direct=direct, light_tint=tint.mean())

    def exposure(self, draws: Draws) -> None:
        """Fixed or automatic exposure."""
        ranges = self.config.camera
        exposure = draws.log_within(ranges.exposure, draws.centred())
        automatic = draws.chance(ranges.automatic)
        self.sample |= {
            "exposure": jnp.where(automatic, exposure**ranges.compensation, exposure),
            "automatic": automatic.astype(jnp.float32),
            "target": draws.within(ranges.target),
            "lag": draws.log_within(ranges.lag),
        }
        self._came_to(exposure=exposure, automatic_exposure=automatic)

    def colour(self, draws: Draws) -> None:
        """White balance, gamma, and colour channels that are mixed."""
        ranges = self.config.camera
        red, blue = draws.within(ranges.white_balance), draws.within(ranges.white_balance)
        gains = jnp.exp(jnp.stack([red, jnp.zeros_like(red), blue]))
        mixed = draws.chance(ranges.mixed)
        weights = draws.take(9).reshape(3, 3) ** 2
        mix = weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-3)
        # A row for each channel that comes out, a column for each that goes in.
        matrix = jnp.where(mixed, mix, jnp.eye(3)) * gains[:, None]
        gamma = draws.log_within(ranges.gamma)
        self.sample |= {"colours": matrix, "gamma": gamma}
        balance = jnp.maximum(jnp.abs(red), jnp.abs(blue))
        self._came_to(white_balance=balance, channels_mixed=mixed, gamma=gamma)

    def optics(self, draws: Draws) -> None:
        """Blur, vignetting, noise."""
        ranges = self.config.camera
        drawn = {
            name: draws.within(getattr(ranges, name)) for name in ("blur", "vignetting", "noise")
        }
        self.sample |= drawn
        self._came_to(**drawn)

    def without_colour(self, draws: Draws) -> None:
        """Grey pictures, or none."""
        ranges, choice = self.config.camera, draws.one()
        dark = choice < ranges.dark
        grey = (~dark & (choice < ranges.dark + ranges.grey)).astype(jnp.float32)
        self.sample |= {"grey": grey, "kept": jnp.where(dark, 0.0, 1.0)}
        self._came_to(without_colour=jnp.where(dark, 2.0, grey))

    def depth(self, draws: Draws) -> None:
        """What the depth sensor loses and where it errs."""
        ranges = self.config.depth
        even = {"nearest": ranges.nearest, "depth_scale": ranges.scale, "depth_noise": ranges.noise}
        even |= {"shiny": ranges.shiny, "edges": ranges.edges}
        drawn = {name: draws.within(limits) for name, limits in even.items()}
        for name in ("speckles", "dropout", "blobs", "blackout"):  # squared: mostly few
            limits = getattr(ranges, name)
            drawn[name] = limits[0] + draws.one() ** 2 * (limits[1] - limits[0])
        drawn["side"] = jnp.where(draws.chance(ranges.shadow), 1.0, -1.0)
        self.sample |= drawn
        holes = drawn["dropout"] + drawn["blobs"]
        self._came_to(
            depth_scale=drawn["depth_scale"], depth_noise=drawn["depth_noise"], depth_holes=holes
        )

    def mount(self, draws: Draws) -> None:
        """Where the wrist cameras sit, and what they show."""
        ranges, model = self.config.mount, self.model
        ids = np.array([model.camera(name).id for name in visual_randomization.WRIST_CAMERAS])
        count = len(ids)
        moved = (draws.take(3 * count).reshape(count, 3) * 2 - 1) * jnp.asarray(ranges.position)
        axis, angle = _turn(draws, count, ranges.angle)
        wider = ranges.fov[0] + draws.take(count) * np.ptp(ranges.fov)
        shift = ranges.principal[0] + draws.take(2 * count) * np.ptp(ranges.principal)
        fovy = jnp.radians(jnp.asarray(model.cam_fovy[ids], jnp.float32) + wider)
        focal = 0.5 / jnp.tan(fovy / 2)
        intrinsic = jnp.concatenate(
            [jnp.stack([focal, focal], 1), shift.reshape(count, 2) / _PIXELS], 1
        )
        turned = rotated(self.sample["cam_quat"][ids], axis, angle)
        self.sample |= {
            "cam_pos": self.sample["cam_pos"].at[ids].add(moved),
            "cam_quat": self.sample["cam_quat"].at[ids].set(turned),
            "cam_intrinsic": self.sample["cam_intrinsic"].at[ids].set(intrinsic),
        }
        self._came_to(
            mount_position=jnp.linalg.norm(moved, axis=-1).max(),
            mount_angle=jnp.degrees(angle.max()),
            fov=wider.mean(),
            principal=jnp.abs(shift).max(),
        )

    def finish(self) -> Sample:
        """Returns the sample, with textures, and with what follows from several causes together."""
        if self._textures:
            family = FAMILY_TEXTURES[self.config.family]
            kinds = np.array([TEXTURES.index(name) for name in family])
            slots = np.array([SLOTS.index(slot) for slot in self._textures])
            numbers, bases, limits = (
                jnp.stack(list(map(jnp.asarray, part)))
                for part in zip(*self._textures.values(), strict=True)
            )
            rows = texture.draw(numbers, bases, limits, kinds)
            self.sample["paint"] = self.sample["paint"].at[slots].set(rows)
        rgba, paint = self.sample["geom_rgba"], texture.columns(self.sample["paint"])
        names = "table", "socket-B", "red_peg"
        table, socket, peg = (rgba[self.model.geom(name).id, :3] for name in names)
        kinds_of = dict(zip(SLOTS, paint["kind"], strict=True))
        self._came_to(
            table_albedo=table.mean(),
            table_saturation=table.max() - table.min(),
            table_texture=kinds_of["table"],
            table_contrast=paint["strength"][0],
            table_gloss=jnp.maximum(paint["specular"][0], 0),
            objects_apart=_apart(socket, peg),
            peg_table_apart=_apart(peg, table),
            socket_table_apart=_apart(socket, table),
            peg_texture=kinds_of["peg"],
            socket_texture=kinds_of["socket"],
            grippers_lightness=rgba[self._named(*_ARMS), :3].mean(),
        )
        return self.sample


def _turn(draws: Draws, count: int, most: float) -> tuple[Array, Array]:
    """Returns axes [K, 3] and angles [K, 1] (rad) of random turns by up to `most` degrees."""
    axis = draws.take(3 * count).reshape(count, 3) - 0.5
    axis = axis / jnp.maximum(jnp.linalg.norm(axis, axis=-1, keepdims=True), 1e-3)
    return axis, jnp.radians(draws.take(count)[:, None] * most)


def _apart(one: Array, other: Array) -> Array:
    """Returns how much two colours differ, in 0..1."""
    return jnp.linalg.norm(one - other) / np.sqrt(3)


@functools.lru_cache(maxsize=16)
def cause_names(config: TransferConfig) -> tuple[str, ...]:
    """Returns the keys of what the causes come to in samples."""
    model = scene.load("insert").model
    key = jax.eval_shape(lambda: jax.random.PRNGKey(0))
    start = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    sample = jax.eval_shape(functools.partial(_sample, model, config), key, start)
    return tuple(name for name in sample if name.startswith(CAUSE))


def causes(sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns what the causes of N episodes came to: name -> [N] float32."""
    return {
        name.removeprefix(CAUSE): np.asarray(value, np.float32)
        for name, value in sample.items()
        if name.startswith(CAUSE)
    }
