"""Pretraining of the colour encoder: on rendered wrist pictures, or on CIFAR-10.

Rendered pictures need nothing but this package. From them the encoder learns either to tell which objects are in
sight and where they are (supervised), or to recognize a picture among others after a random crop (contrastive).
The result is an artifact of its own: encoder.json, weights.npz (no pickle) and check.npz.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import pickle
import tarfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import optax
from flax import traverse_util

import alohas2r
from alohas2r import config, images, looks, plan, policy, runlog, scene, student, switching
from alohas2r.checkpoint import Checkpoint
from alohas2r.config import check
from alohas2r.errors import ArtifactError, ConfigError, did_you_mean
from alohas2r.images import CorruptConfig
from alohas2r.renderers import base
from alohas2r.renderers.raycast import Worker
from alohas2r.senses import make_renderer
from alohas2r.student import Encoder

FORMAT_VERSION = 1
CHECK_TOLERANCE = 1e-4
DATA = ("sim", "cifar10")
METHODS = ("supervised", "contrastive")
OBJECTS = ("socket", "peg")
CLASSES = 10  # of CIFAR-10
_ROUND, _SHIFT, _ORDER, _WEIGHTS, _HELD = range(5)
_POSE_SCALE = 0.1  # m; size of one unit of the predicted positions
_RECORDED = 8  # pictures in the artifact's check

# Archive -> MD5, folder inside. Source: https://www.cs.toronto.edu/~kriz/cifar.html
CIFAR10 = {
    "cifar-10-python.tar.gz": ("c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"),
    "cifar-10-binary.tar.gz": ("c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin"),
}
CIFAR10_ADDRESS = "https://www.cs.toronto.edu/~kriz/"

Tree = Any


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """A pretraining of the encoder.

    Attributes:
      data: "sim", or "cifar10".
      method: "supervised", or "contrastive" (bilinear InfoNCE on random crops with a momentum key encoder; source:
        Srinivas et al., CURL (2020); Zhan et al., FERM (2020)).
      rounds: rounds of new pictures; of CIFAR-10, passes over the training set.
      pictures: rendered anew in each round.
      passes: over a round's pictures.
      batch: pictures of a gradient step.
      learning_rate: of Adam at the start; it falls to nothing along a cosine.
      shift: crops move by up to so many pixels; 0 where positions are to be found.
      momentum: share of its past that the key encoder keeps in each step.
      held: pictures that are only for testing.
      size: side of rendered pictures (pixels).
      filters: of the three convolutions.
      corrupt: what the cameras do to rendered pictures.
      checkpoints: how many on the way, evenly spread.
    """

    data: str = "sim"
    method: str = "supervised"
    rounds: int = 100
    pictures: int = 8192
    passes: int = 2
    batch: int = 256
    learning_rate: float = 1e-3
    shift: int = 0
    momentum: float = 0.95
    held: int = 2048
    size: int = 32
    filters: tuple[int, int, int] = (32, 64, 64)
    corrupt: CorruptConfig = CorruptConfig()
    checkpoints: int = 20

    def __post_init__(self) -> None:
        for name, choices in (("data", DATA), ("method", METHODS)):
            value = getattr(self, name)
            check(value in choices, f"{name} must be one of {', '.join(choices)}, not '{value}'")
        for name in ("rounds", "passes", "batch", "checkpoints"):
            check(1 <= getattr(self, name) <= 10**6, f"{name} must be in 1..1e6")
        for name in ("pictures", "held"):
            value = getattr(self, name)
            check(2 <= value <= 10**6 and value % 2 == 0, f"{name} must be even, in 2..1e6")
        check(self.batch <= self.pictures, "batch must not exceed pictures")
        check(self.learning_rate > 0, "learning_rate must be > 0")
        check(0 <= self.shift <= 16, "shift must be in 0..16 pixels")
        check(0 <= self.momentum < 1, "momentum must be in [0, 1)")
        check(8 <= self.size <= 512, "size must be in 8..512 pixels")


PRESETS = {
    "default": PretrainConfig(),
    "quick": PretrainConfig(rounds=4, pictures=1024, batch=128, held=256, checkpoints=2),
}


def find_preset(name: str, data: str = "sim", method: str = "supervised") -> PretrainConfig:
    """Returns a preset.

    Raises:
      ConfigError: unknown preset, data or method.
    """
    if name not in PRESETS:
        raise ConfigError(f"Unknown preset '{name}'.{did_you_mean(name, PRESETS)}")
    found = dataclasses.replace(PRESETS[name], data=data, method=method)
    if data == "cifar10":  # a round is one pass over 50,000 pictures
        return dataclasses.replace(found, passes=1, shift=4)
    if method == "contrastive":
        return dataclasses.replace(found, shift=4)
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderArtifact:
    """A trained colour encoder.

    Attributes:
      filters: of the three convolutions. size: side of the pictures that it was trained on (pixels).
      params: of student.Encoder.
      trained: how.
    """

    filters: tuple[int, int, int]
    size: int
    params: Tree
    trained: Mapping[str, Any]

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """Parameters by name."""
        flat = traverse_util.flatten_dict(dict(self.params), sep="/")
        return {str(name): np.asarray(value) for name, value in flat.items()}

    @property
    def hash(self) -> str:
        """Identifies what the encoder computes."""
        found = hashlib.sha256(json.dumps([self.filters, self.size]).encode())
        for name, value in sorted(self.weights.items()):
            found.update(name.encode())
            found.update(np.ascontiguousarray(value).tobytes())
        return found.hexdigest()

    def encode(self, rgb: Any) -> np.ndarray:
        """Encodes pictures [N, H, W, 3] uint8 -> [N, filters[-1]]."""
        outputs = Encoder(self.filters).apply({"params": self.params}, student.scale_rgb(rgb))
        return np.asarray(outputs)


def save_encoder(
    found: EncoderArtifact, folder: str | os.PathLike[str], pictures: np.ndarray
) -> pathlib.Path:
    """Writes the artifact; an earlier one is replaced whole or left intact.

    Args:
      found: the encoder. folder: the directory.
      pictures: [N, H, W, 3] uint8, for its check.

    Raises:
      ArtifactError: the folder cannot be written.
    """
    description = {
        "format_version": FORMAT_VERSION,
        "kind": "encoder",
        "hash": found.hash,
        "filters": list(found.filters),
        "size": found.size,
        "trained": dict(found.trained),
    }
    files = {
        "encoder.json": json.dumps(description, indent=2).encode() + b"\n",
        "weights.npz": policy._npz(found.weights),
        "check.npz": policy._npz({"rgb": pictures, "outputs": found.encode(pictures)}),
    }

    def write(path: pathlib.Path) -> None:
        for name, content in files.items():
            (path / name).write_bytes(content)

    return runlog.write_folder_atomic(folder, write)


def load_encoder(folder: str | os.PathLike[str]) -> EncoderArtifact:
    """Reads an encoder and verifies that it still computes what it did when it was saved.

    Raises:
      ArtifactError: missing, damaged, too new, or its check fails.
    """
    path = pathlib.Path(folder) / "encoder.json"
    if not path.is_file():
        raise ArtifactError(
            f"{folder} holds no encoder: {path} is missing; `alohas2r pretrain-encoder` makes one."
        )
    try:
        description = json.loads(path.read_text())
        version = int(description["format_version"])
        filters = description["filters"]
        found = EncoderArtifact(
            filters=(int(filters[0]), int(filters[1]), int(filters[2])),
            size=int(description["size"]),
            params=traverse_util.unflatten_dict(
                dict(policy._read_npz(pathlib.Path(folder) / "weights.npz")), sep="/"
            ),
            trained=dict(description["trained"]),
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ArtifactError(f"{path} is damaged ({type(error).__name__}: {error}).") from error
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{folder} has format {version}; this alohas2r reads up to {FORMAT_VERSION}: upgrade alohas2r."
        )
    if found.hash != description.get("hash"):
        raise ArtifactError(
            f"{folder} is damaged: its weights or description differ from its hash."
        )
    recorded = policy._read_npz(pathlib.Path(folder) / "check.npz")
    try:
        difference = np.abs(found.encode(recorded["rgb"]) - recorded["outputs"]).max()
    except Exception as error:  # flax has its own errors for wrong shapes
        raise ArtifactError(f"{folder}/check.npz is damaged ({type(error).__name__}).") from error
    if not difference <= CHECK_TOLERANCE:
        raise ArtifactError(
            f"{folder} fails its check: outputs differ by {difference:.2g} on this machine."
        )
    return found


class Pictures(NamedTuple):
    """Pictures with what is to be known of them; O objects. Classes are for CIFAR-10, the rest is rendered."""

    rgb: np.ndarray  # [M, H, W, 3] uint8
    label: np.ndarray  # [M] int32 class
    visible: np.ndarray  # [M, O] bool
    position: np.ndarray  # [M, O, 3] in the nominal camera's frame (m)
    rotation: np.ndarray  # [M, O, 6] first two rows of the rotation in that frame


def random_poses(random: np.random.Generator, count: int) -> np.ndarray:
    """Draws poses of the insertion scene as they come up in an episode, [count, nq].

    Arms are anywhere between home and the moment before insertion, each object lies before its arm, is held by
    it, or is out of the way.
    """
    loaded = scene.load("insert")
    model = loaded.model
    key = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_KEY, "preinsert")
    before = model.key_qpos[key] if key >= 0 else loaded.home_qpos
    poses = np.repeat(loaded.home_qpos[None], count, 0)
    on_the_way = random.random((count, 1)) * (random.random((count, 1)) < 0.7)
    joints = np.concatenate([arm.qpos[:6] for arm in loaded.arms])
    poses[:, joints] += on_the_way * (before - loaded.home_qpos)[joints]
    poses[:, joints] += random.normal(0, 0.12, (count, len(joints)))
    tips = switching.tip_midpoints(np.stack([poses[:, arm.qpos] for arm in loaded.arms], 1))
    for index, arm in enumerate(loaded.arms):
        half = 0.022 if arm.object_name == "socket" else 0.010
        base_mat = np.empty(9)
        mujoco.mju_quat2Mat(base_mat, arm.base_quat)
        base_mat = base_mat.reshape(3, 3)
        radius, angle = random.uniform(0.2, 0.45, count), random.uniform(-0.4, 0.7, count)
        local = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.zeros(count)], 1)
        place = arm.base_pos + local @ base_mat.T
        place[:, 2] = 0.0008 + half
        yaw, tilt = angle + random.normal(0, 0.15, count), np.zeros((count, 2))
        held = random.random(count) < 0.5
        yaw = np.where(held, random.normal(0, 0.3, count), yaw)
        tilt[held] = random.normal(0, 0.2, (int(held.sum()), 2))
        turn = np.stack([np.ones(count), tilt[:, 0] / 2, tilt[:, 1] / 2, np.tan(yaw / 2)], 1)
        turn /= np.linalg.norm(turn, axis=1, keepdims=True)
        quat = np.empty((count, 4))
        for row in range(count):
            mujoco.mju_mulQuat(quat[row], arm.base_quat, turn[row])
        matrix = _matrices(quat)
        # Held at the grip point, 20 mm behind the centre. Source: recipe, section 1.
        in_hand = tips[:, index] + matrix @ np.array([0.02, 0, 0])
        in_hand += random.normal(0, 0.004, (count, 3))
        place = np.where(held[:, None], in_hand, place)
        place[random.random(count) < 0.07] = (0.0, 0.0, -5.0)
        poses[:, arm.object_qpos] = np.concatenate([place, quat], 1)
        width = np.where(held, half + 0.008, random.choice([0.002, 0.037], count))
        poses[:, arm.qpos[6:]] = width[:, None]
    return poses


def _matrices(quat: np.ndarray) -> np.ndarray:
    """Turns quaternions [N, 4] into matrices [N, 3, 3]."""
    found = np.empty((len(quat), 9))
    for row, value in enumerate(quat):
        mujoco.mju_quat2Mat(found[row], value)
    return found.reshape(-1, 3, 3)


class Studio:
    """Renders random wrist pictures and says what is in them.

    Args:
      settings: the configuration. threads, renderer: see `senses.make_renderer`.
    """

    def __init__(self, settings: PretrainConfig, threads: int = 0, renderer: str = "auto"):
        self.settings = settings
        self.renderer = make_renderer(renderer, settings.size, threads)
        self._scene = scene.load("insert")
        self._corrupt = jax.jit(functools.partial(images.corrupt, config=settings.corrupt))

    def shoot(self, key: jax.Array, count: int) -> Pictures:
        """Returns `count` pictures, both cameras' of count / 2 poses; the same ones for the same key."""
        poses_key, looks_key, noise_key = jax.random.split(key, 3)
        random = np.random.default_rng(np.asarray(poses_key).tolist())
        number = count // 2
        poses = random_poses(random, number)
        sample = looks.sample_looks(looks_key, number, self._scene)
        half = random.uniform(0.010, 0.017, number)
        sizes = np.repeat(self._scene.model.geom_size[None], number, 0)
        sizes[:, self._scene.id("geom", "red_peg"), 1:] = half[:, None]
        sample["geom_size"] = sizes
        frames = self.renderer.render(poses, sample)
        blank = np.zeros((1, self.settings.size, self.settings.size), np.float16)
        rgb, _ = self._corrupt(noise_key, frames.rgb, frames.depth, sample["brightness"], blank)
        visible, position, rotation = self._know(poses, sample, half, np.asarray(frames.depth))
        whole = np.asarray(rgb).reshape(-1, *rgb.shape[2:])
        return Pictures(whole, np.zeros(len(whole), np.int32), visible, position, rotation)

    def _know(
        self, poses: np.ndarray, sample: Mapping[str, Any], half: np.ndarray, depth: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns visibility [M, O], position [M, O, 3] and rotation [M, O, 6].

        Positions and rotations are those in the frame that each camera would have without randomization, which is
        fixed to its gripper: what the arm has to know. Where the camera really is can only be read from the picture.
        """
        prepared = self.renderer.prepared
        number, size = len(poses), self.settings.size
        worker = Worker(prepared, number)
        exact = {name: value for name, value in sample.items() if not name.startswith("cam_")}
        fixed = worker.place(poses, base.check_looks(prepared, exact, number))
        fixed_pos, fixed_mat = fixed["cam_xpos"].copy(), fixed["cam_xmat"].copy()
        placed = worker.place(poses, base.check_looks(prepared, sample, number))
        camera_pos, camera_mat = placed["cam_xpos"], placed["cam_xmat"]  # [N, C, 3], [N, C, 3, 3]
        fovy = prepared.model.cam_fovy[prepared.camera_ids[0]]
        focal = size / 2 / np.tan(np.deg2rad(fovy) / 2)
        found: tuple[list[np.ndarray], ...] = ([], [], [])
        for arm in self._scene.arms:
            pose = poses[:, arm.object_qpos]
            matrix = _matrices(pose[:, 3:])
            centre = np.einsum("ncji,ncj->nci", camera_mat, pose[:, None, :3] - camera_pos)
            turned = np.einsum("ncji,njk->ncik", camera_mat, matrix)
            across = np.full(number, 0.022) if arm.object_name == "socket" else half
            corners = np.stack(
                np.meshgrid([-0.9, 0.0, 0.9], [-0.9, 0.9], [-0.9, 0.9], indexing="ij"), -1
            ).reshape(-1, 3)
            extent = np.stack([np.full(number, 0.048), across, across], 1)
            points = corners[None] * extent[:, None]  # [N, P, 3]
            points = np.einsum("ncij,npj->ncpi", turned, points) + centre[:, :, None]
            ahead = np.maximum(-points[..., 2], 1e-6)
            column = np.floor(size / 2 + focal * points[..., 0] / ahead).astype(int)
            row = np.floor(size / 2 - focal * points[..., 1] / ahead).astype(int)
            inside = (points[..., 2] < -0.01) & (np.minimum(row, column) >= 0)
            inside &= np.maximum(row, column) < size
            row, column = np.clip(row, 0, size - 1), np.clip(column, 0, size - 1)
            env, camera = np.ogrid[:number, :2]
            drawn = depth[env[..., None], camera[..., None], row, column]
            # A point is seen if what is drawn there is about as far away.
            seen = inside & (np.abs(drawn - ahead) < 0.015)
            found[0].append(seen.sum(-1) >= 2)
            apart = pose[:, None, :3] - fixed_pos
            found[1].append(np.einsum("ncji,ncj->nci", fixed_mat, apart))
            turned = np.einsum("ncji,njk->ncik", fixed_mat, matrix)
            found[2].append(turned[..., :2, :].reshape(number, 2, 6))
        visible, position, rotation = (np.stack(parts, 2) for parts in found)
        return (
            visible.reshape(-1, len(OBJECTS)),
            position.reshape(-1, len(OBJECTS), 3).astype(np.float32),
            rotation.reshape(-1, len(OBJECTS), 6).astype(np.float32),
        )


class _PlainUnpickler(pickle.Unpickler):
    """Reads NumPy arrays, bytes, lists and dicts, and nothing that could run code."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy.core.numeric", "_frombuffer"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not data")
        return super().find_class(module, name)


def read_cifar10(
    folder: str | os.PathLike[str] | None,
    archives: Mapping[str, tuple[str, str]] | None = None,
) -> tuple[Pictures, Pictures]:
    """Reads CIFAR-10 from one of its two standard archives and returns its training and test pictures.

    Args:
      folder: holds cifar-10-python.tar.gz or cifar-10-binary.tar.gz.
      archives: name -> MD5 and folder inside; those of CIFAR-10 if None.

    Raises:
      ArtifactError: there is no archive, or it is not the original one.
    """
    archives = CIFAR10 if archives is None else archives
    if folder is None:
        raise ArtifactError(f"--data cifar10 needs --data-dir. {_where(archives)}")
    present = [name for name in archives if (pathlib.Path(folder) / name).is_file()]
    if not present:
        raise ArtifactError(f"{folder} holds no CIFAR-10 archive. {_where(archives)}")
    path = pathlib.Path(folder) / present[0]
    checksum, inside = archives[present[0]]
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != checksum:
            raise ArtifactError(
                f"{path} is not the original archive: its MD5 is {digest.hexdigest()}, not {checksum}."
                f" Remove it and download it again. {_where(archives)}"
            )
        with tarfile.open(path, "r:gz") as archive:
            binary = inside.endswith("bin")
            names = [f"data_batch_{number}" for number in range(1, 6)]
            read = _read_binary if binary else _read_python
            suffix = ".bin" if binary else ""

            def batch(name: str) -> tuple[np.ndarray, np.ndarray]:
                member = archive.extractfile(f"{inside}/{name}{suffix}")
                if member is None:
                    raise KeyError(name)
                return read(member.read())

            train = [batch(name) for name in names]
            test = [batch("test_batch")]
    except (OSError, tarfile.TarError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise ArtifactError(f"{path} is damaged ({type(error).__name__}: {error}).") from error
    return _classes(train), _classes(test)


def _where(archives: Mapping[str, Any]) -> str:
    """Says where to get CIFAR-10."""
    names = list(archives)
    return (
        f"Download {CIFAR10_ADDRESS}{names[0]} (or {' or '.join(names[1:])}) into a folder"
        " and give it with --data-dir."
    )


def _read_binary(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Reads a batch: per picture one byte of class, then red, green and blue planes of 32 x 32."""
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return rows[:, 1:], rows[:, 0]


def _read_python(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Reads a batch: a dict with "data" [M, 3072] of the same order, and "labels"."""
    batch = _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    data = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3 * 32 * 32)
    return data, np.asarray(batch[b"labels"])


def _classes(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Pictures:
    planes = np.concatenate([part[0] for part in parts]).reshape(-1, 3, 32, 32)
    label = np.concatenate([part[1] for part in parts]).astype(np.int32)
    if not len(label) or label.min() < 0 or label.max() >= CLASSES:
        raise ValueError("classes out of range")
    count = len(label)
    return Pictures(
        np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        label,
        np.zeros((count, len(OBJECTS)), bool),
        np.zeros((count, len(OBJECTS), 3), np.float32),
        np.zeros((count, len(OBJECTS), 6), np.float32),
    )


class _Finder(nn.Module):
    """What reads the code in supervised training: classes of CIFAR-10, or objects of rendered pictures."""

    data: str

    @nn.compact
    def __call__(self, code: jax.Array) -> jax.Array:
        if self.data == "cifar10":
            return nn.Dense(CLASSES)(code)
        values = nn.relu(nn.Dense(128)(code))
        return nn.Dense(len(OBJECTS) * 10)(values).reshape(-1, len(OBJECTS), 10)


class LearnerState(NamedTuple):
    """What learning changes."""

    params: Tree  # "encoder", and "finder" or "bilinear"
    target: Tree  # the key encoder; empty where there is none
    optimizer: Any
    updates: jax.Array  # [] int32


class Pretrainer:
    """Losses and updates of both methods.

    Args:
      settings: the configuration.
      seed: of everything random.
      updates: gradient steps in all, over which the learning rate falls.
    """

    def __init__(self, settings: PretrainConfig, seed: int, updates: int):
        self.settings, self.seed = settings, seed
        self.encoder = Encoder(settings.filters)
        self.finder = _Finder(settings.data)
        schedule = optax.cosine_decay_schedule(settings.learning_rate, max(updates, 1))
        self.optimizer = optax.adam(schedule)
        self._step = jax.jit(self._one_step, donate_argnums=0)
        self.measure = jax.jit(self._measure)

    def init(self) -> LearnerState:
        """Returns the learner before the first step."""
        keys = jax.random.split(jax.random.fold_in(jax.random.PRNGKey(self.seed), _WEIGHTS), 2)
        size = self.settings.size if self.settings.data == "sim" else 32
        encoder = jax.jit(self.encoder.init)(keys[0], jnp.zeros((1, size, size, 3)))["params"]
        code = jnp.zeros((1, self.settings.filters[-1]))
        params: dict[str, Tree] = {"encoder": encoder}
        target: Tree = {}
        if self.settings.method == "supervised":
            params["finder"] = self.finder.init(keys[1], code)["params"]
        else:
            side = code.shape[1]
            # At first, how alike two codes are.
            params["bilinear"] = 0.1 * jnp.eye(side) + 0.01 * jax.random.normal(
                keys[1], (side, side)
            )
            target = encoder
        return LearnerState(params, target, self.optimizer.init(params), jnp.zeros((), jnp.int32))

    def encode(self, params: Tree, rgb: Any) -> jax.Array:
        """Encodes pictures [B, H, W, 3] uint8."""
        return self.encoder.apply({"params": params}, student.scale_rgb(rgb))  # pyright: ignore[reportReturnType]

    def loss(
        self, params: Tree, target: Tree, key: jax.Array, batch: Pictures, shift: int
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss of a batch, and figures; see PretrainConfig.method."""
        query_key, key_key, flip_key = jax.random.split(key, 3)
        rgb = images.random_shift(query_key, jnp.asarray(batch.rgb), shift)
        if self.settings.data == "cifar10" and shift:
            flip = jax.random.bernoulli(flip_key, shape=(len(rgb), 1, 1, 1))
            rgb = jnp.where(flip, rgb[:, :, ::-1], rgb)
        code = self.encode(params["encoder"], rgb)
        if self.settings.method == "contrastive":
            other = images.random_shift(key_key, jnp.asarray(batch.rgb), shift)
            codes = _standardized(code), _standardized(self.encode(target, other))
            return info_nce(params["bilinear"], *codes)
        outputs: Any = self.finder.apply({"params": params["finder"]}, code)
        if self.settings.data == "cifar10":
            losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch.label)
            right = jnp.argmax(outputs, -1) == batch.label
            return losses.mean(), {"accuracy": right.mean()}
        visible = jnp.asarray(batch.visible, jnp.float32)
        seen = optax.sigmoid_binary_cross_entropy(outputs[..., 0], visible).mean()
        apart = outputs[..., 1:4] - jnp.clip(batch.position / _POSE_SCALE, -4, 4)
        turned = outputs[..., 4:] - batch.rotation
        count = jnp.maximum(visible.sum(), 1)
        position = (jnp.square(apart).mean(-1) * visible).sum() / count
        rotation = (jnp.square(turned).mean(-1) * visible).sum() / count
        figures = {
            "accuracy": ((outputs[..., 0] > 0) == batch.visible).mean(),
            "position_error_mm": 1000
            * _POSE_SCALE
            * ((jnp.linalg.norm(apart, axis=-1) * visible).sum() / count),
            "rotation_loss": rotation,
        }
        return seen + position + rotation, figures

    def train(
        self, learner: LearnerState, pictures: Pictures, key: jax.Array
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        """Passes once over pictures [M], in whole batches; returns figures of each batch.

        One compiled step per batch: inside a compiled loop XLA's gradients of convolutions are some fifty times
        slower on a CPU.
        """
        settings = self.settings
        count = pictures.rgb.shape[0]
        batches = count // settings.batch
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, _ORDER), count))
        learner = jax.tree.map(
            jnp.copy, learner
        )  # the steps reuse the memory of what they are given
        rows = []
        for chosen in order[: batches * settings.batch].reshape(batches, -1):
            batch = jax.tree.map(lambda leaf, chosen=chosen: np.asarray(leaf)[chosen], pictures)
            learner, figures = self._step(learner, batch, key)
            rows.append(figures)
        return learner, jax.tree.map(lambda *values: jnp.stack(values), *rows)

    def _one_step(
        self, learner: LearnerState, batch: Pictures, key: jax.Array
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        """Takes one gradient step on a batch."""
        settings = self.settings
        shift_key = jax.random.fold_in(jax.random.fold_in(key, _SHIFT), learner.updates)
        (loss, figures), gradient = jax.value_and_grad(self.loss, has_aux=True)(
            learner.params, learner.target, shift_key, batch, settings.shift
        )
        updates, optimizer = self.optimizer.update(gradient, learner.optimizer)
        params: Any = optax.apply_updates(learner.params, updates)
        target = learner.target
        if settings.method == "contrastive":
            target = optax.incremental_update(params["encoder"], target, 1 - settings.momentum)
        new = LearnerState(params, target, optimizer, learner.updates + 1)
        return new, {"loss": loss, **figures}

    def _measure(
        self, learner: LearnerState, pictures: Pictures, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns figures on pictures [M] that nothing was learnt from."""
        settings = self.settings
        shift = settings.shift if settings.method == "contrastive" else 0
        size = min(settings.batch, pictures.rgb.shape[0])
        batches = pictures.rgb.shape[0] // size

        def one(index: jax.Array) -> dict[str, jax.Array]:
            batch = jax.tree.map(
                lambda leaf: jax.lax.dynamic_slice_in_dim(jnp.asarray(leaf), index * size, size),
                pictures,
            )
            loss, figures = self.loss(
                learner.params, learner.target, jax.random.fold_in(key, index), batch, shift
            )
            return {"loss": loss, **figures}

        found = jax.lax.map(one, jnp.arange(batches))
        return {name: value.mean() for name, value in found.items()}


def _standardized(code: jax.Array) -> jax.Array:
    """Gives each code [B, E] mean 0 and variance 1, as the layer norm in CURL does."""
    code = code - code.mean(-1, keepdims=True)
    return code / (jnp.sqrt(jnp.square(code).mean(-1, keepdims=True)) + 1e-6)


def info_nce(
    bilinear: jax.Array, queries: jax.Array, keys: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the contrastive loss: which of the keys [B, E] belongs to each query [B, E].

    Without any knowledge it is log(B). Source: van den Oord et al., CPC (2018), eq. 4; bilinear similarity as
    in CURL.
    """
    logits = queries @ bilinear @ jax.lax.stop_gradient(keys).T
    labels = jnp.arange(len(logits))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), {"accuracy": (jnp.argmax(logits, -1) == labels).mean()}


def pretrain_encoder(
    preset: str = "default",
    overrides: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    data: str = "sim",
    data_dir: str | os.PathLike[str] | None = None,
    method: str = "supervised",
    seed: int = 0,
    threads: int = 0,
    resume: bool = False,
    minutes: float | None = None,
    progress: runlog.Progress | None = None,
    renderer: str = "auto",
    archives: Mapping[str, tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """Trains the colour encoder and writes its artifact to `out`/encoder.

    Args:
      preset: "default" or "quick".
      overrides: "key=value" settings on top of the preset.
      out: folder of the run; runs/encoder if None.
      data: "sim" for rendered wrist pictures, or "cifar10".
      data_dir: folder with an archive of CIFAR-10.
      method: "supervised" or "contrastive".
      seed: of everything random.
      threads: of the renderer; 0 for all cores.
      resume: continue the run in `out` to the same result as an unbroken run.
      minutes: stop (resumably) after this time.
      progress: receives reports.
      renderer: see senses.RENDERERS.
      archives: see `read_cifar10`.

    Returns:
      "encoder": the artifact's folder, or None if stopped early; "finished", "wall_s", and "metrics" on pictures
      that nothing was learnt from.

    Raises:
      ConfigError: unknown setting, value out of range, or another configuration than the run that is resumed.
      ArtifactError: CIFAR-10 is missing, the folder cannot be written, or the checkpoint is damaged.
    """
    settings = config.override(find_preset(preset, data, method), overrides)
    train, shoot = None, None
    root = jax.random.PRNGKey(seed)
    if settings.data == "cifar10":
        train, held = read_cifar10(data_dir, archives)
        settings = dataclasses.replace(settings, size=32)
    else:
        studio = Studio(settings, threads, renderer)
        shoot = studio.shoot
        held = None
    folder = runlog.make_folder(out if out is not None else pathlib.Path("runs") / "encoder")
    checkpoint = Checkpoint(folder / "checkpoint")
    plan.begin(folder, settings, {"seed": seed}, resume, checkpoint.exists())
    if shoot is not None:
        held = shoot(jax.random.fold_in(root, _HELD), settings.held)
    assert held is not None
    count = settings.pictures if train is None else len(train.label)
    per_round = settings.passes * (count // settings.batch)
    pretrainer = Pretrainer(settings, seed, per_round * settings.rounds)
    learner = pretrainer.init()
    done, wall_before = 0, 0.0
    if resume and checkpoint.exists():
        learner, extra = checkpoint.load(learner)
        done, wall_before = int(extra["rounds"]), float(extra["wall_s"])
    started = time.monotonic()
    figures: dict[str, float] = {}

    def wall() -> float:
        return wall_before + time.monotonic() - started

    total = settings.rounds * count * settings.passes
    with (
        runlog.RunLog(folder, total, label="pretrain encoder", progress=progress) as log,
        runlog.StopSignal() as stop,
    ):
        if resume:
            log.resume(done * count * settings.passes)
        log.start()
        for number in range(done + 1, settings.rounds + 1):
            key = jax.random.fold_in(jax.random.fold_in(root, _ROUND), number)
            pictures = train if shoot is None else shoot(key, settings.pictures)
            assert pictures is not None
            found: dict[str, jax.Array] = {}
            for part in range(settings.passes):
                learner, found = pretrainer.train(learner, pictures, jax.random.fold_in(key, part))
            figures = {f"train/{name}": float(value.mean()) for name, value in found.items()}
            figures |= _held_figures(pretrainer, learner, held, root)
            done = number
            log.write(number * count * settings.passes, figures)
            expired = minutes is not None and (time.monotonic() - started) > 60 * minutes
            last = number == settings.rounds
            if stop or expired or last or plan.due(number, settings.rounds, settings.checkpoints):
                extra = {"rounds": number, "wall_s": wall(), "version": alohas2r.__version__}
                checkpoint.save(learner, extra)
            if stop or expired:
                break

    finished = done == settings.rounds
    if finished and not figures:
        figures = _held_figures(pretrainer, learner, held, root)
    result: dict[str, Any] = {
        "data": settings.data,
        "method": settings.method,
        "steps": done * count * settings.passes,
        "finished": finished,
        "wall_s": round(wall(), 1),
        "out": str(folder),
        "encoder": None,
        "metrics": figures,
    }
    if finished:
        command = (
            f"alohas2r pretrain-encoder --preset {preset} --data {settings.data}"
            f" --method {settings.method} --seed {seed}"
            + "".join(f" --set {setting}" for setting in overrides)
        )
        trained = plan.provenance(
            command, settings, seed, result["steps"], result["wall_s"], {}
        ) | {"metrics": {k: round(v, 4) for k, v in figures.items()}}
        found_encoder = EncoderArtifact(
            settings.filters, settings.size, learner.params["encoder"], trained
        )
        result["encoder"] = str(
            save_encoder(found_encoder, folder / "encoder", held.rgb[:_RECORDED])
        )
    return result


def _held_figures(
    pretrainer: Pretrainer, learner: LearnerState, held: Pictures, root: jax.Array
) -> dict[str, float]:
    found = pretrainer.measure(learner, held, jax.random.fold_in(root, _HELD))
    return {f"held/{name}": float(value) for name, value in found.items()}
