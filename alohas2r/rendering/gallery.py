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
from alohas2r.rendering import registry as renderers
from alohas2r.rendering.looks import sensor
from alohas2r.rendering.looks.config import TODAY, TRAIN, TransferConfig, find_looks
from alohas2r.rendering.looks.draw import sample_looks
from alohas2r.rendering.looks.nominal import SENSOR_FIELDS
from alohas2r.rendering.protocol import Prepared, prepare
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
    looks: str = TODAY,
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
      looks: name of a set of looks, see `looks.config.LOOKS`.

    Returns:
      [H, W, 3] uint8.

    Raises:
      ConfigError: a number out of range, unknown looks, or looks that are not of this scene.
      BackendUnavailable: the renderer cannot run here.
    """
    for text, number in (("rows", rows), ("columns", columns), ("scale", scale)):
        check(1 <= number <= 64, f"{text} = {number} must lie in 1..64.")
    import jax

    count = rows * columns
    transfer = find_looks(looks)
    prepared, poses, sample = gallery_scene(name, count, seed, transfer)
    frames = renderers.make(backend, prepared, width=size, height=size).render(poses, sample)
    if transfer is None:
        bank = corruption.line_bank(size, size)
        noisy = jax.jit(corruption.corrupt)(
            jax.random.key(seed), frames.rgb, frames.depth, sample["brightness"], bank
        )
    else:
        fields = {field: sample[field] for field in SENSOR_FIELDS}
        keys, first = jax.random.split(jax.random.key(seed), count), np.ones(count, bool)
        gain = np.zeros(frames.depth.shape[:2], np.float32)
        noisy = sensor.compiled(transfer)(keys, frames.rgb, frames.depth, fields, gain, first)[:2]

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
    name: str, count: int, seed: int, transfer: TransferConfig | None = None
) -> tuple[Prepared, np.ndarray, dict[str, np.ndarray]]:
    """Returns the model to draw, poses and looks of a scene: today's, or others of these ranges.

    Raises:
      ConfigError: the scene has no such looks.
    """
    import jax

    if name == "cartpole" and transfer is None:
        prepared = prepare(cartpole())
        random = np.random.default_rng(seed)
        poses = np.stack([random.uniform(-1, 1, count), random.uniform(-3, 3, count)], 1)
        return (
            prepared,
            poses,
            {**visual_randomization.repeat(prepared.nominal, count), "brightness": np.ones(count)},
        )
    if name == "cartpole":
        prepare(cartpole(), transfer=TRAIN)
    loaded = scene.load(FILES.get(name, name))
    if transfer is not None:
        poses = random_poses(loaded, count, seed)
        start = np.stack([poses[:, arm.object_qpos[:2]] for arm in loaded.arms], 1)
        prepared = prepare(loaded, transfer=transfer.family)
        key = jax.random.key(seed)
        return prepared, poses, sample_looks(key, count, loaded.model, transfer, start)
    sample = visual_randomization.sample_looks(jax.random.key(seed), count, loaded)
    sample = {field: np.asarray(value) for field, value in sample.items()}
    return prepare(loaded), random_poses(loaded, count, seed), sample


def parse_grid(text: str) -> tuple[int, int]:
    """Returns rows and columns of a grid given as "8x8".

    Raises:
      ConfigError: it is none.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"'{text}' is no grid; give rows x columns, such as 8x8.")
    return int(parts[0]), int(parts[1])
