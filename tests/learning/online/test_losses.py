import functools

import jax
import jax.numpy as jnp
import numpy as np
import online_cases
import optax
import pytest

from alohas2r.errors import ConfigError
from alohas2r.learning.online import losses
from alohas2r.policies.online.config import OnlineConfig, find_arm


def test_a_number_is_spread_over_bins_about_itself():
    config = OnlineConfig("residual", bins=51)
    numbers = np.array([0.0, 0.01, 0.37, 0.5, 0.993, 1.0])
    share = losses.spread(config, jnp.asarray(numbers))
    middles = np.linspace(-0.1, 1.1, 103)[1::2]
    assert share.shape == (6, 51)
    assert share.min() >= 0
    np.testing.assert_allclose(share.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(share @ middles, numbers, atol=1e-4)
    deviation = np.sqrt((share * (middles - numbers[:, None]) ** 2).sum(-1))
    np.testing.assert_allclose(deviation, 0.8 * 1.2 / 51, rtol=0.03)
    # What a value cannot be counts as the nearest that it can.
    beyond = losses.spread(config, jnp.array([-3.0, 7.0]))
    np.testing.assert_allclose(beyond, share[jnp.array([0, -1])], atol=1e-6)


@pytest.mark.parametrize("bins", [0, 51])
def test_critics_come_to_say_what_they_are_told(bins):
    spec, draw = online_cases.spec(), np.random.default_rng(0)
    config = OnlineConfig("residual", critics=3, hidden=(64,), bins=bins)
    critics = jax.tree.map(jnp.asarray, losses.init_critics(spec, config, draw))
    seen = draw.normal(size=(64, spec.features)).astype(np.float32)
    action = draw.uniform(-1, 1, (64, spec.actions)).astype(np.float32)
    told = np.linspace(0, 1, 64, dtype=np.float32)
    optimizer = optax.adam(3e-3)
    memory = optimizer.init(critics)

    @jax.jit
    def update(critics, memory):
        loss = functools.partial(losses.critic_loss, config)
        slope, _ = jax.grad(loss, has_aux=True)(critics, told, seen, action)
        change, memory = optimizer.update(slope, memory, critics)
        return optax.apply_updates(critics, change), memory

    for _ in range(300):
        critics, memory = update(critics, memory)
    said = losses.values(config, critics, seen, action)
    assert said.shape == (3, 64)
    np.testing.assert_allclose(said, np.tile(told, (3, 1)), atol=0.03)
    assert losses.critic_loss(config, critics, told, seen, action)[1] == pytest.approx(
        0.5, abs=0.02
    )


def test_odd_bins_are_refused():
    for bins in (-1, 1, 1001):
        with pytest.raises(ConfigError, match=r"bins must be 0 or lie in 2\.\.1000"):
            find_arm("residual", (f"bins={bins}",))
    with pytest.raises(ConfigError, match="soft must be false"):
        find_arm("ferm", ("bins=51",))
    with pytest.raises(ConfigError, match="possible must be false of insert"):
        find_arm("residual", ("possible=true",), "insert")
