"""Randomized looks: what may differ in appearance between environments, as one declared table.

A sample of looks is a dict of plain arrays with a leading axis N, named after model fields, so that
every renderer draws the same picture from the same sample. It stays with an environment for an
episode. Two entries are no model fields: renderers ignore "brightness" and "pixel_noise", and
`images.corrupt` applies them.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Mapping

import mujoco
import numpy as np

from alohas2r.core.types import Array
from alohas2r.errors import ConfigError, ModelError, did_you_mean
from alohas2r.sim.scene import Scene

KINDS = ("scale", "gray", "offset", "rotation", "chance")


@dataclasses.dataclass(frozen=True)
class Look:
    """One line of the table: which values of which field are drawn, and how.

    Attributes:
      field: a model field (geom_rgba, cam_pos, cam_quat, light_pos, light_dir, light_castshadow), or
        "brightness", which belongs to the sensor and has no elements.
      names: patterns (as in a shell) of the elements' names, e.g. "socket-[BTLR]".
      kind: "scale": the value is drawn from [low, high]; "gray": one draw for red, green and blue;
        "offset": a draw is added; "rotation": turned about a random axis by a random angle in
        [low, high] degrees; "chance": true with probability high.
      low, high: range per component (or one number for all): colours 0..1, metres, degrees.
      components: which components of the field, e.g. (2,) for blue.
    """

    field: str
    kind: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    names: tuple[str, ...] = ()
    components: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        """Checks the line.

        Raises:
          ConfigError: unknown kind, or ranges of the wrong size or order.
        """
        if self.kind not in KINDS:
            raise ConfigError(
                f"Unknown kind of look '{self.kind}'.{did_you_mean(self.kind, KINDS)}"
            )
        if len(self.low) != len(self.high) or any(
            low > high for low, high in zip(self.low, self.high, strict=True)
        ):
            raise ConfigError(f"The range of the look '{self.field}' is {self.low}..{self.high}.")


# Source of the ranges: the published report.
BLUE_PARTS = ("socket-[BTLR]",)
RED_PARTS = ("socket-W", "red_peg", "box")
WRIST_CAMERAS = ("wrist_cam_left", "wrist_cam_right")
TABLE: tuple[Look, ...] = (
    Look("geom_rgba", "scale", (0.5,), (1.0,), BLUE_PARTS, (2,)),
    Look("geom_rgba", "offset", (0.0,), (0.12,), BLUE_PARTS, (0, 1)),
    Look("geom_rgba", "scale", (0.0,), (1.0,), RED_PARTS, (0,)),
    Look("geom_rgba", "offset", (0.0,), (0.07,), RED_PARTS, (1, 2)),
    Look("geom_rgba", "gray", (0.0,), (0.1,), ("table",)),
    Look("cam_pos", "offset", (-0.0125, -0.005, -0.005), (0.0125, 0.005, 0.005), WRIST_CAMERAS),
    Look("cam_quat", "rotation", (0.0,), (5.0,), WRIST_CAMERAS, (0, 1, 2, 3)),
    Look("light_pos", "offset", (-1.0,), (1.0,), ("*",)),
    Look("light_dir", "rotation", (0.0,), (10.0,), ("*",)),
    Look("light_castshadow", "chance", (0.0,), (0.75,), ("*",)),
    Look("brightness", "scale", (0.5,), (2.5,), components=(0,)),
)

_ELEMENTS = {"geom": ("ngeom", "geom"), "cam": ("ncam", "camera"), "light": ("nlight", "light")}
BRIGHTNESS = "brightness"
_AT_ONCE = 64  # environments that are drawn together


def nominal(model: mujoco.MjModel, qpos: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Returns the looks of a model as it is, without randomization.

    Colours of materials are resolved into geom_rgba. A light that follows or aims at a body is
    given where it is at `qpos` and treated as fixed from then on: lamps in a room do not move, and a
    light that tracks a body would overwrite its randomized direction.

    Args:
      model: the compiled model.
      qpos: [nq] the pose at which moving lights are frozen; None for the keyframe "home", or qpos0.

    Returns:
      geom_rgba [ngeom, 4], cam_pos [ncam, 3], cam_quat [ncam, 4], light_pos and light_dir [nlight, 3]
      (in the frame of the light's body), light_castshadow [nlight] bool.
    """
    data = mujoco.MjData(model)
    if qpos is None:
        home = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_KEY, "home")
        qpos = model.key_qpos[home] if home >= 0 else model.qpos0
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)
    rgba = model.geom_rgba.copy()
    for geom in range(model.ngeom):
        material = model.geom_matid[geom]
        # A geom with a material has this default colour unless it was given one of its own.
        if material >= 0 and np.array_equal(rgba[geom], np.array([0.5, 0.5, 0.5, 1], np.float32)):
            rgba[geom] = model.mat_rgba[material]
    light_pos, light_dir = model.light_pos.copy(), model.light_dir.copy()
    for light in range(model.nlight):
        if model.light_mode[light] != mujoco.mjtCamLight.mjCAMLIGHT_FIXED:
            body = model.light_bodyid[light]
            frame = data.xmat[body].reshape(3, 3)
            light_pos[light] = frame.T @ (data.light_xpos[light] - data.xpos[body])
            light_dir[light] = frame.T @ data.light_xdir[light]
    return {
        "geom_rgba": rgba,
        "cam_pos": model.cam_pos.copy(),
        "cam_quat": model.cam_quat.copy(),
        "light_pos": light_pos,
        "light_dir": light_dir,
        "light_castshadow": model.light_castshadow.astype(bool),
    }


def elements(model: mujoco.MjModel, look: Look) -> list[int]:
    """Returns the ids of the elements that a line of the table is about."""
    count, kind = _ELEMENTS[look.field.split("_")[0]]
    names = [getattr(model, kind)(index).name for index in range(getattr(model, count))]
    return [
        index
        for index, name in enumerate(names)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in look.names)
    ]


def sample_looks(
    key: Array, n: int, scene: Scene | mujoco.MjModel, table: tuple[Look, ...] = TABLE
) -> dict[str, Array]:
    """Draws the looks of n environments.

    Element i depends on the key and i alone, not on n.

    Args:
      key: a JAX random key.
      n: number of environments.
      scene: a scene, or its model.
      table: what is drawn; lines whose names match nothing in this scene are left out.

    Returns:
      As `nominal`, with a leading axis n, and brightness [n].

    Raises:
      ModelError: the table names a field that has no looks.
    """
    import jax.numpy as jnp
    from jax import core

    model = scene if isinstance(scene, mujoco.MjModel) else scene.model
    sampler = _sampler(model, table)
    if isinstance(key, core.Tracer):
        return sampler(key, jnp.arange(n))
    # Always as many at once: the compiler may round another number of them otherwise.
    parts = [sampler(key, np.arange(_AT_ONCE) + start) for start in range(0, max(n, 1), _AT_ONCE)]
    return {
        name: np.concatenate([np.asarray(part[name]) for part in parts])[:n] for name in parts[0]
    }


@functools.lru_cache(maxsize=16)
def _sampler(model: mujoco.MjModel, table: tuple[Look, ...]) -> Array:
    """Returns a compiled function from a random key and the environments' numbers [n] to looks."""
    import jax
    import jax.numpy as jnp

    base: dict[str, np.ndarray] = {
        **nominal(model),
        BRIGHTNESS: np.ones(1, np.float32),
    }
    lines = []
    for look in table:
        if look.field not in base:
            raise ModelError(f"'{look.field}' has no looks.{did_you_mean(look.field, base)}")
        ids = [0] if look.field == BRIGHTNESS else elements(model, look)
        lines.append((look, np.array(ids, int)))

    counts = [ids.size * _draws(look) for look, ids in lines]
    turned = [3 * ids.size if look.kind == "rotation" else 0 for look, ids in lines]

    def one(key: Array) -> dict[str, Array]:
        # One call each: every call of a random function takes the compiler a while.
        uniform_key, normal_key = jax.random.split(key)
        uniforms = jnp.split(jax.random.uniform(uniform_key, (sum(counts),)), np.cumsum(counts))
        normals = jnp.split(jax.random.normal(normal_key, (sum(turned),)), np.cumsum(turned))
        sample = {name: jnp.asarray(value) for name, value in base.items()}
        for (look, ids), uniform, normal in zip(lines, uniforms, normals, strict=False):
            if ids.size:
                sample[look.field] = _draw(look, ids, sample[look.field], uniform, normal)
        sample["geom_rgba"] = jnp.clip(sample["geom_rgba"], 0, 1)
        sample[BRIGHTNESS] = sample[BRIGHTNESS][0]
        return sample

    def several(key: Array, numbers: Array) -> dict[str, Array]:
        return jax.vmap(one)(jax.vmap(functools.partial(jax.random.fold_in, key))(numbers))

    return jax.jit(several)


def repeat(looks: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """Returns looks without an environment axis, as from `nominal`, repeated for n environments."""
    return {name: np.repeat(np.asarray(value)[None], n, 0) for name, value in looks.items()}


def _draws(look: Look) -> int:
    """Returns how many uniform numbers an element of a line of the table takes."""
    return len(look.components) if look.kind in ("scale", "offset") else 1


def _draw(look: Look, ids: np.ndarray, value: Array, uniform: Array, normal: Array) -> Array:
    """Applies one line of the table to the field `value` of one environment.

    Args:
      look: the line; ids: of its elements.
      value: the field.
      uniform: [K * _draws(look)] random numbers in [0, 1); normal: [3 K] for a rotation's axes.
    """
    import jax.numpy as jnp

    low, high = jnp.asarray(look.low, jnp.float32), jnp.asarray(look.high, jnp.float32)
    count = len(look.components)
    uniform = uniform.reshape(ids.size, -1)
    if look.kind == "chance":
        return value.at[ids].set(uniform[:, 0] < high[0])
    if look.kind == "rotation":
        axis = normal.reshape(-1, 3)
        axis = axis / jnp.linalg.norm(axis, axis=-1, keepdims=True)
        angle = jnp.radians(low[0] + uniform * (high[0] - low[0]))
        return value.at[ids].set(rotated(value[ids], axis, angle))
    drawn = jnp.broadcast_to(low + uniform * (high - low), (ids.size, count))
    if value.ndim == 1:
        return value.at[ids].set(drawn[:, 0])
    where = (ids[:, None], np.array(look.components)[None])
    if look.kind == "offset":
        return value.at[where].add(drawn)
    return value.at[where].set(drawn)


def rotated(value: Array, axis: Array, angle: Array) -> Array:
    """Turns directions [K, 3] or orientations [K, 4] about axes [K, 3] by angles [K, 1] (rad)."""
    import jax.numpy as jnp

    if value.shape[-1] == 4:
        turn = jnp.concatenate([jnp.cos(angle / 2), jnp.sin(angle / 2) * axis], -1)
        w0, v0, w1, v1 = turn[:, :1], turn[:, 1:], value[:, :1], value[:, 1:]
        w = w0 * w1 - jnp.sum(v0 * v1, -1, keepdims=True)
        return jnp.concatenate([w, w0 * v1 + w1 * v0 + jnp.cross(v0, v1)], -1)
    along = axis * jnp.sum(axis * value, -1, keepdims=True)
    across = jnp.cross(axis, value)
    return along + (value - along) * jnp.cos(angle) + across * jnp.sin(angle)
