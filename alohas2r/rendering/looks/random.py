"""Random numbers and colours that the looks are drawn with (JAX)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from alohas2r.core.types import Array
from alohas2r.rendering.looks.config import Range


class Draws:
    """Hands out random numbers in [0, 1), one after the other."""

    def __init__(self, numbers: Array):
        self._numbers = numbers
        self._used = 0

    def take(self, count: int) -> Array:
        """Returns the next `count` numbers."""
        taken = self._numbers[self._used : self._used + count]
        self._used += count
        assert taken.shape[0] == count, "a stream of random numbers is too short"
        return taken

    def one(self) -> Array:
        """Returns the next number."""
        return self.take(1)[0]

    def within(self, limits: Range) -> Array:
        """Returns the next number, in a range."""
        return limits[0] + self.one() * (limits[1] - limits[0])

    def log_within(self, limits: Range, share: Array | None = None) -> Array:
        """Returns a number in a range whose logarithm is uniform, or where `share` of it says."""
        low, high = np.log(limits[0]), np.log(limits[1])
        part = self.one() if share is None else share
        return jnp.exp(low + part * (high - low))

    def centred(self) -> Array:
        """Returns a number in [0, 1) that is mostly near the middle: the mean of two."""
        return self.take(2).mean()

    def chance(self, share: float) -> Array:
        """Returns whether something comes about that has this share."""
        return self.one() < share


def colour(lightness: Array, saturation: Array, hue: Array) -> Array:
    """Returns red, green and blue [..., 3] whose mean is `lightness`, as saturated as that allows; hue in 0..1."""
    lightness, saturation, hue = (jnp.asarray(v)[..., None] for v in (lightness, saturation, hue))
    offsets = np.array([0.0, 4.0, 2.0], np.float32)
    pure = jnp.clip(jnp.abs(jnp.mod(hue * 6 + offsets, 6) - 3) - 1, 0, 1)
    apart = pure - pure.mean(-1, keepdims=True)
    space = jnp.where(apart > 0, 1 - lightness, lightness) / jnp.maximum(jnp.abs(apart), 1e-6)
    return jnp.clip(lightness + apart * saturation * space.min(-1, keepdims=True), 0, 1)
