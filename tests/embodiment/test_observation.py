"""One proprioception for NumPy and JAX."""

import numpy as np
import pytest

from alohas2r.embodiment.observation import proprioception


def test_numpy_and_jax_agree_and_each_number_is_where_it_belongs() -> None:
    jnp = pytest.importorskip("jax.numpy")
    draw = np.random.default_rng(0)
    position, target = draw.normal(size=(5, 2, 8)).astype(np.float32), draw.normal(size=(5, 2, 7))
    target = target.astype(np.float32)
    ours = proprioception(position, target)
    assert ours.shape == (5, 32)
    np.testing.assert_array_equal(ours[:, :16].reshape(5, 2, 8), position)
    errors = ours[:, 16:].reshape(5, 2, 8)
    np.testing.assert_array_equal(errors[..., :7], position[..., :7] - target)
    np.testing.assert_array_equal(errors[..., 7], position[..., 7] - target[..., 6])
    theirs = proprioception(jnp.asarray(position), jnp.asarray(target), jnp)
    np.testing.assert_array_equal(np.asarray(theirs), ours)
