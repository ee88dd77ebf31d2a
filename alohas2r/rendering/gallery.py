"""Pictures of randomized looks side by side, and scenes to draw them of."""

from __future__ import annotations

import mujoco.batch
import numpy as np

from alohas2r.config import check
from alohas2r.core import assets
from alohas2r.core.types import Array
from alohas2r.embodiment import camera as camera_contract
from alohas2r.errors import ConfigError
from alohas2r.rendering import corruption, visual_randomization
from alohas2r.rendering import protocol as rendering_protocol
from alohas2r.rendering import registry as renderers
from alohas2r.sim import scene

SCENES = ("twoarm", "cartpole")
FILES = {"twoarm": "insert"}  # names of scenes that are called otherwise elsewhere


def looks_grid(
    rows: int = 8,
    columns: int = 8,
    name: str = "insert",
    seed: int = 0,
    size: int = 32,
    scale: int = 2,
    backend: str = "raycast",
) -> np.ndarray:
    """Draws what a student will see: random poses and looks, before and after corruption.

    Left half: pictures as rendered; right half: the same after corruption and preprocessing. Each place
    of the grid shows colour above depth (near is bright, nothing is black), one column per camera.

    Args:
      rows, columns: of the grid of environments.
      name: of the scene.
      seed: of poses, looks and corruption.
      size: side of a picture, pixels; scale: how many pixels each is drawn as.
      backend: renderer.

    Returns:
      [H, W, 3] uint8.

    Raises:
      ConfigError: a number out of range.
      BackendUnavailable: the renderer cannot run here.
    """
    for text, number in (("rows", rows), ("columns", columns), ("scale", scale)):
        check(1 <= number <= 64, f"{text} = {number} must lie in 1..64.")
    import jax

    count = rows * columns
    prepared, poses, sample = gallery_scene(name, count, seed)
    frames = renderers.make(backend, prepared, width=size, height=size).render(poses, sample)
    bank = corruption.line_bank(size, size)
    noisy = jax.jit(corruption.corrupt)(
        jax.random.key(seed), frames.rgb, frames.depth, sample["brightness"], bank
    )

    def half(rgb: Array, depth: Array) -> np.ndarray:
        rgb, depth = camera_contract.preprocess(np.asarray(rgb), np.asarray(depth))
        shade = np.where(depth > 0, 1 - 0.85 * depth, 0)
        both = np.concatenate([rgb, np.repeat(shade[..., None], 3, -1)], 2)  # [N, C, 2 H, W, 3]
        both = np.pad(both, [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)], constant_values=0.5)
        grid = both.reshape(rows, columns, *both.shape[1:]).transpose(0, 3, 1, 2, 4, 5)
        return grid.reshape(rows * both.shape[2], -1, 3)

    whole = np.concatenate([half(frames.rgb, frames.depth), half(*noisy)], 1)
    whole = np.round(whole * 255).astype(np.uint8)
    return whole.repeat(scale, 0).repeat(scale, 1)


def random_poses(loaded: scene.Scene, count: int, seed: int = 0) -> np.ndarray:
    """Returns plausible poses [count, nq]: arms near home, grippers open or closed, objects before them."""
    random = np.random.default_rng(seed)
    poses = np.repeat(loaded.home_qpos[None], count, 0)
    for arm in loaded.arms:
        poses[:, arm.qpos[:6]] += random.normal(0, 0.15, (count, 6))
        poses[:, arm.qpos[6:]] = random.uniform(0.002, 0.037, (count, 1))
        side = np.sign(arm.base_pos[0])
        place = arm.object_qpos
        poses[:, place[0]] = side * random.uniform(0.05, 0.25, count)
        poses[:, place[1]] = random.uniform(-0.15, 0.15, count)
        poses[:, place[2]] = random.uniform(0.02, 0.2, count)
        turn = random.normal(size=(count, 4))
        poses[:, place[3:]] = turn / np.linalg.norm(turn, axis=1, keepdims=True)
    return poses


def cartpole() -> mujoco.MjSpec:
    """Returns the cart-pole scene.

    Raises:
      ModelError: the file is not there.
    """
    return mujoco.MjSpec.from_file(str(assets.data_path("xmls") / "cartpole.xml"))


def gallery_scene(
    name: str, count: int, seed: int
) -> tuple[rendering_protocol.Prepared, np.ndarray, dict[str, np.ndarray]]:
    """Returns the model to draw, poses and looks of a scene."""
    import jax

    if name == "cartpole":
        prepared = rendering_protocol.prepare(cartpole())
        random = np.random.default_rng(seed)
        poses = np.stack([random.uniform(-1, 1, count), random.uniform(-3, 3, count)], 1)
        return (
            prepared,
            poses,
            {**visual_randomization.repeat(prepared.nominal, count), "brightness": np.ones(count)},
        )
    loaded = scene.load(FILES.get(name, name))
    sample = visual_randomization.sample_looks(jax.random.key(seed), count, loaded)
    sample = {field: np.asarray(value) for field, value in sample.items()}
    return rendering_protocol.prepare(loaded), random_poses(loaded, count, seed), sample


def parse_grid(text: str) -> tuple[int, int]:
    """Returns rows and columns of a grid given as "8x8".

    Raises:
      ConfigError: it is none.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"'{text}' is no grid; give rows x columns, such as 8x8.")
    return int(parts[0]), int(parts[1])
