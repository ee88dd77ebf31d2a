"""How a distillation encodes colour pictures: in compiled JAX, or, frozen, by another library on a CPU's threads."""

from __future__ import annotations

import concurrent.futures
import functools
from typing import Protocol

import jax
import numpy as np

from alohas2r.core.types import Array, PyTree
from alohas2r.learning.dagger.config import PICTURES_AT_ONCE, DistillConfig
from alohas2r.learning.dagger.host_buffers import aligned
from alohas2r.learning.dagger.samples import Samples
from alohas2r.learning.dagger.student_step import Encode
from alohas2r.policies.networks import cpu_encoder
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.spec import StudentSpec
from alohas2r.rendering import augmentation


class Encoding(Protocol):
    """Encodes pictures of one step while collecting, and of all samples before learning."""

    def encode(self, params: PyTree, rgb: Array) -> Array:
        """Encodes the pictures [N, C, H, W, 3] of a step with the encoder's parameters."""
        ...

    def augment(self, key: jax.Array, frozen: PyTree, samples: Samples) -> Samples:
        """Shifts the pictures of samples, and encodes them if the encoder is among what is frozen.

        What it returns is valid until the next call but one.
        """
        ...


def traceable_code(spec: StudentSpec) -> Encode:
    """Returns what encodes pictures inside `jax.jit`, as fast as this machine can."""
    on_cpu = jax.default_backend() == "cpu"
    encode = cpu_encoder.encode_in_products if on_cpu else vision_network.encode
    return functools.partial(encode, spec)


class TracedEncoding:
    """Encodes in compiled JAX.

    Args:
      settings: the configuration. code: see `traceable_code`.
    """

    def __init__(self, settings: DistillConfig, code: Encode) -> None:
        self._settings, self._code = settings, code
        self.encode = jax.jit(code)
        self.augment = jax.jit(self._augment)

    def _augment(self, key: jax.Array, frozen: PyTree, samples: Samples) -> Samples:
        rgb, depth = augmentation.shift_pictures(
            key, samples.rgb, samples.depth, self._settings.shift
        )
        if rgb is not None and frozen:
            count = rgb.shape[0]
            chunk = next(
                size for size in range(min(PICTURES_AT_ONCE, count), 0, -1) if count % size == 0
            )
            chunks = rgb.reshape(-1, chunk, *rgb.shape[1:])
            rgb = jax.lax.map(functools.partial(self._code, frozen["encoder"]), chunks)
            rgb = rgb.reshape(count, *rgb.shape[2:])
        return samples._replace(rgb=rgb, depth=depth)


class FrozenEncoding:
    """Encodes by `FrozenEncoder` on a CPU, which takes a fraction of JAX's time; for encoders that do not learn.

    Args:
      settings: the configuration. spec: of the student.
      params: of the encoder. threads: to use.
    """

    def __init__(
        self, settings: DistillConfig, spec: StudentSpec, params: PyTree, threads: int
    ) -> None:
        # It needs a package that a GPU does without.
        from alohas2r.policies.networks.frozen_encoder import FrozenEncoder

        self._settings, self._threads = settings, threads
        self._encoder = FrozenEncoder(spec, params)
        self._shift = jax.jit(augmentation.shift_pictures, static_argnums=3)
        # While one shift's codes are learnt from the next one's are made.
        self._codes: list[np.ndarray | None] = [None] * min(settings.shifts, 2)
        self._turn = 0

    def encode(self, params: PyTree, rgb: Array) -> Array:
        """Encodes the pictures of a step; the parameters are those that it was made with."""
        del params
        return self._encoder(rgb)

    def augment(self, key: jax.Array, frozen: PyTree, samples: Samples) -> Samples:
        """Shifts the pictures of samples and encodes them on all threads."""
        del frozen
        rgb, depth = self._shift(key, samples.rgb, samples.depth, self._settings.shift)
        pictures = np.asarray(rgb)
        code = self._next(pictures)

        def some(start: int) -> None:
            stop = start + PICTURES_AT_ONCE
            code[start:stop] = self._encoder(pictures[start:stop])

        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(some, range(0, len(pictures), PICTURES_AT_ONCE)))
        return samples._replace(rgb=jax.device_put(code, may_alias=True), depth=depth)

    def _next(self, pictures: np.ndarray) -> np.ndarray:
        """Returns memory for the codes of pictures."""
        self._turn = (self._turn + 1) % len(self._codes)
        code = self._codes[self._turn]
        if code is None or len(code) != len(pictures):
            first = self._encoder(pictures[:1])
            code = aligned((len(pictures), *first.shape[1:]), first.dtype)
            self._codes[self._turn] = code
        return code
