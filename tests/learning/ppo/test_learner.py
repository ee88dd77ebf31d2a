from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.training.distribution import NormalTanhDistribution
from scipy import integrate

from alohas2r.envs.env import Env
from alohas2r.envs.task import EnvConfig
from alohas2r.errors import ConfigError
from alohas2r.learning.ppo import gae as ppo_gae
from alohas2r.learning.ppo.config import PpoConfig
from alohas2r.learning.ppo.learner import LearnerState, Ppo, Rollout
from alohas2r.learning.ppo.loss import clipped_loss
from alohas2r.policies.networks import mlp
from alohas2r.policies.networks.mlp import NetworkConfig
from alohas2r.sim import physics_randomization, scene
from alohas2r.sim.engines.cpu import CpuEngine
from alohas2r.sim.physics_randomization import BlockConfig
from alohas2r.tasks.building import build, count_draws
from alohas2r.tasks.insert.config import InsertConfig
from alohas2r.tasks.pick.config import PickConfig
from alohas2r.tasks.pick.task import PickTask
from alohas2r.tasks.registry import find_task

pytestmark = pytest.mark.compiles

COUNT, UNROLL, STEPS = 4, 6, 4


def by_hand(
    rewards: np.ndarray,
    done: np.ndarray,
    values: np.ndarray,
    bootstrap: np.ndarray,
    discount: float,
    gae: float,
) -> np.ndarray:
    """The definition: a discounted sum of temporal differences up to the end of the episode."""
    steps, count = rewards.shape
    following = np.concatenate([values[1:], bootstrap[None]])
    advantages = np.zeros_like(values)
    for env in range(count):
        for start in range(steps):
            weight = 1.0
            for step in range(start, steps):
                future = 0.0 if done[step, env] else discount * following[step, env]
                advantages[start, env] += weight * (rewards[step, env] + future - values[step, env])
                if done[step, env]:
                    break
                weight *= discount * gae
    return advantages


@pytest.mark.parametrize(("discount", "gae"), [(0.97, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.9)])
def test_advantages_are_those_of_the_definition(discount: float, gae: float) -> None:
    draw = np.random.default_rng(0)
    rewards, values = draw.normal(size=(2, 12, 5))
    done = draw.random((12, 5)) < 0.2
    bootstrap = draw.normal(size=5)
    advantages, returns = ppo_gae.generalized_advantages(
        jnp.asarray(rewards),
        jnp.asarray(done),
        jnp.asarray(values),
        jnp.asarray(bootstrap),
        discount,
        gae,
    )
    expected = by_hand(rewards, done, values, bootstrap, discount, gae)
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    np.testing.assert_allclose(returns, expected + values, atol=1e-5)


def test_with_lambda_one_the_value_target_is_the_discounted_return() -> None:
    rewards = np.random.default_rng(1).normal(size=(8, 1))
    done = np.zeros((8, 1), bool)
    _, returns = ppo_gae.generalized_advantages(
        jnp.asarray(rewards), jnp.asarray(done), jnp.zeros((8, 1)), jnp.array([2.0]), 0.9, 1.0
    )
    expected = 2.0
    for reward in rewards[::-1, 0]:
        expected = reward + 0.9 * expected
    assert float(returns[0, 0]) == pytest.approx(expected, abs=1e-5)


def test_divergence_of_two_policies_is_the_integral() -> None:
    dist = NormalTanhDistribution(event_size=1)
    draw = np.random.default_rng(2)
    for _ in range(5):
        first, second = (jnp.asarray(draw.normal(size=2), jnp.float32) for _ in range(2))
        found = float(ppo_gae.normal_kl(dist, first, second))
        normals = [dist.create_dist(logits) for logits in (first, second)]
        (mean, spread), (other_mean, other_spread) = (
            (float(normal.loc[0]), float(normal.scale[0])) for normal in normals
        )

        def log_density(x: float, mean: float, spread: float) -> float:
            return -0.5 * ((x - mean) / spread) ** 2 - np.log(spread * np.sqrt(2 * np.pi))

        def integrand(
            x: float,
            mean: float = mean,
            spread: float = spread,
            other_mean: float = other_mean,
            other_spread: float = other_spread,
        ) -> float:
            here, there = log_density(x, mean, spread), log_density(x, other_mean, other_spread)
            return np.exp(here) * (here - there)

        expected, _ = integrate.quad(integrand, mean - 12 * spread, mean + 12 * spread, limit=200)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_divergence_is_zero_for_equal_policies_and_adds_up_over_actions() -> None:
    dist = NormalTanhDistribution(event_size=3)
    draw = np.random.default_rng(3)
    first, second = (jnp.asarray(draw.normal(size=(4, 6)), jnp.float32) for _ in range(2))
    np.testing.assert_allclose(ppo_gae.normal_kl(dist, first, first), 0, atol=1e-6)
    whole = ppo_gae.normal_kl(dist, first, second)
    one = NormalTanhDistribution(event_size=1)
    parts = [ppo_gae.normal_kl(one, first[:, [i, i + 3]], second[:, [i, i + 3]]) for i in range(3)]
    np.testing.assert_allclose(whole, sum(parts), rtol=1e-4)
    assert (np.asarray(whole) > 0).all()


@pytest.fixture(scope="module")
def learner() -> Ppo:
    loaded = scene.load_physics("pick")
    draws = np.random.default_rng(0).random((COUNT, 2))
    fields, context = physics_randomization.sample_block(loaded, BlockConfig(), draws)
    engine = CpuEngine(loaded, COUNT, 1, fields)
    env = Env(PickTask(loaded, PickConfig(steps=STEPS)), engine, EnvConfig(), context)
    config = PpoConfig(
        num_envs=COUNT,
        unroll=UNROLL,
        epochs=4,
        minibatches=2,
        learning_rate=3e-3,
        learning_rate_range=(1e-4, 3e-2),
        network=NetworkConfig((16,), (16,)),
    )
    return Ppo(config, env)


@pytest.fixture(scope="module")
def start(learner: Ppo) -> LearnerState:
    return learner.init(jax.random.PRNGKey(0))


@pytest.fixture(scope="module")
def rollouts(learner: Ppo, start: LearnerState) -> list[tuple[Any, ...]]:
    """The same unroll twice."""
    found = []
    for _ in range(2):
        begin = learner.env.reset(jax.random.split(jax.random.PRNGKey(1), COUNT))
        found.append(learner.rollout(start, *begin))
    return found


def test_the_same_state_gives_the_same_rollout(rollouts: list[tuple[Any, ...]]) -> None:
    (first, final, *_), (second, final_again, *_) = rollouts
    jax.tree.map(np.testing.assert_array_equal, first, second)
    np.testing.assert_array_equal(final, final_again)


def test_a_rollout_records_what_the_policy_saw_and_did(
    learner: Ppo, start: LearnerState, rollouts: list[tuple[Any, ...]]
) -> None:
    rollout, final, state, _, readout, scores = rollouts[0]
    assert rollout.features.shape == (UNROLL, COUNT, learner.env.features)
    assert final.shape == (COUNT, learner.env.task.privileged_size)
    logits = learner.logits(start.params, start.policy_stats, rollout.features)
    np.testing.assert_allclose(rollout.logits, logits, atol=1e-5)
    log_prob = learner.distribution.log_prob(logits, rollout.raw_action)
    np.testing.assert_allclose(rollout.log_prob, log_prob, atol=1e-4)
    for step, scored in enumerate(scores):
        np.testing.assert_array_equal(rollout.reward[step], scored.reward)
        assert bool(np.asarray(rollout.done[step]).all()) == ((step + 1) % STEPS == 0)
    signal = learner.env.extract(readout)
    np.testing.assert_allclose(final[:, -3:], signal.object_pos[:, 0], atol=1e-6)
    assert (np.asarray(state.task.step) == UNROLL % STEPS).all()
    # Actions are drawn, not the mean.
    assert np.asarray(rollout.raw_action - rollout.logits[..., :7]).std() > 0.1


SHAPE = (16, 32)
GOAL = 0.5


def bandit(learner: Ppo, state: LearnerState, seed: int) -> Rollout:
    """One-step episodes that pay for actions close to a goal, whatever is seen."""
    keys = jax.random.split(jax.random.PRNGKey(seed), 3)
    features = jax.random.normal(keys[0], (*SHAPE, learner.env.features))
    privileged = jax.random.normal(keys[1], (*SHAPE, learner.env.task.privileged_size))
    logits = learner.logits(state.params, state.policy_stats, features)
    raw = learner.distribution.sample_no_postprocessing(logits, keys[2])
    reward = 10 - 10 * jnp.abs(jnp.tanh(raw) - GOAL).mean(-1)
    return Rollout(
        features=features,
        privileged=privileged,
        raw_action=raw,
        log_prob=learner.distribution.log_prob(logits, raw),
        logits=logits,
        reward=reward,
        done=jnp.ones(SHAPE, bool),
        truncated=jnp.zeros(SHAPE, bool),
    )


@pytest.fixture(scope="module")
def trained(learner: Ppo, start: LearnerState) -> tuple[LearnerState, list[dict[str, float]]]:
    state, history = start, []
    make = jax.jit(lambda state, seed: bandit(learner, state, seed))
    final = jnp.zeros((SHAPE[1], learner.env.task.privileged_size))
    for update in range(60):
        state, metrics = learner.update(state, make(state, update), final, jnp.float32(update / 60))
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def test_learning_finds_the_goal(
    learner: Ppo, trained: tuple[LearnerState, list[dict[str, float]]]
) -> None:
    state, history = trained
    rewards = [row["train/reward"] for row in history]
    assert np.mean(rewards[:3]) < 5
    assert np.mean(rewards[-3:]) > 7.5
    features = jax.random.normal(jax.random.PRNGKey(99), (64, learner.env.features))
    mode = learner.distribution.mode(learner.logits(state.params, state.policy_stats, features))
    np.testing.assert_allclose(np.asarray(mode).mean(0), GOAL, atol=0.2)


def test_the_critic_learns_and_figures_stay_in_bounds(
    learner: Ppo, trained: tuple[LearnerState, list[dict[str, float]]]
) -> None:
    state, history = trained
    assert history[-1]["loss/value"] < 0.2 * history[0]["loss/value"]
    low, high = learner.config.learning_rate_range
    for row in history:
        assert np.isfinite(list(row.values())).all()
        assert low * 0.999 <= row["loss/learning_rate"] <= high * 1.001
        assert 0 <= row["loss/clipped"] <= 1
    # The step size keeps the divergence near its target.
    assert np.mean([row["loss/kl"] for row in history[5:]]) < 4 * learner.config.target_kl[0]
    assert int(state.updates) == len(history)


def test_an_update_is_a_function_of_its_arguments(learner: Ppo, start: LearnerState) -> None:
    rollout = bandit(learner, start, 0)
    final = jnp.zeros((SHAPE[1], learner.env.task.privileged_size))
    first, _ = learner.update(start, rollout, final, jnp.float32(0))
    second, _ = learner.update(start, rollout, final, jnp.float32(0))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start.params, first.params)
    assert all(jax.tree.leaves(moved))
    # The statistics of what was seen went in.
    mean = np.asarray(first.policy_stats.mean)
    np.testing.assert_allclose(mean, np.asarray(rollout.features).mean((0, 1)), atol=1e-2)


def test_an_episode_that_was_only_cut_off_goes_on_in_value(
    learner: Ppo, start: LearnerState
) -> None:
    """Cutting off pays the discounted value of the state, as if the episode went on in place."""
    rollout = bandit(learner, start, 0)
    final = jnp.zeros((SHAPE[1], learner.env.task.privileged_size))
    cut = rollout._replace(truncated=jnp.ones(SHAPE, bool))
    ended, _ = learner.update(start, rollout, final, jnp.float32(0))
    values = learner.values(start.params, ended.value_stats, rollout.privileged)
    paid = rollout._replace(
        reward=rollout.reward + learner.config.discount * values / learner.config.reward_scale
    )
    first, _ = learner.update(start, cut, final, jnp.float32(0))
    second, _ = learner.update(start, paid, final, jnp.float32(0))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), first.params, second.params
    )
    difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), first.params, ended.params)
    assert max(jax.tree.leaves(difference)) > 1e-3


@pytest.fixture(scope="module")
def inserting() -> Ppo:
    """An insertion whose guide alone is imitated at first, and half at the end."""
    entry = find_task("insert")
    settings = dataclasses.replace(InsertConfig(), steps=40)
    draws = np.random.default_rng(0).random((COUNT, count_draws(entry, EnvConfig())))
    env = build(entry, settings, EnvConfig(), draws, 1).env
    config = dataclasses.replace(PpoConfig(), num_envs=COUNT, unroll=UNROLL, minibatches=2)
    network = NetworkConfig((16,), (16,))
    free = (100.0, 100.0)  # the step size does not shrink while one rollout is learnt by heart
    return Ppo(dataclasses.replace(config, network=network, guide=(1.0, 0.5), target_kl=free), env)


def test_a_guide_is_imitated(inserting: Ppo) -> None:
    learner = inserting.init(jax.random.PRNGKey(0))
    begin = inserting.env.reset(jax.random.split(jax.random.PRNGKey(1), COUNT))
    rollout, final, *_ = inserting.rollout(learner, *begin)
    assert rollout.wanted is not None
    assert rollout.wanted.shape == (UNROLL, COUNT, 14)
    np.testing.assert_allclose(
        rollout.wanted[0], jax.jit(inserting.env.guided)(begin[0], begin[2]), atol=1e-6
    )
    apart = []
    for _ in range(40):  # where it stood still, so that nothing but the guide changes
        learner, figures = inserting.update(learner, rollout, final, jnp.float32(0))
        apart.append(float(figures["loss/guide"]))
    logits = inserting.logits(learner.params, learner.policy_stats, rollout.features)
    mode = inserting.distribution.mode(logits)
    assert float(jnp.square(mode - rollout.wanted).sum(-1).mean()) < 0.2 * apart[0]


def test_reinforcement_takes_over_from_a_guide(inserting: Ppo) -> None:
    draw = np.random.default_rng(4)
    actions = inserting.env.task.action_size
    shapes = {"raw_action": actions, "logits": 2 * actions}
    batch = {name: jnp.asarray(draw.normal(size=(8, size))) for name, size in shapes.items()}
    batch |= {name: jnp.asarray(draw.normal(size=8)) for name in ("advantage", "return")}
    batch["log_prob"] = inserting.distribution.log_prob(batch["logits"], batch["raw_action"])
    guided = batch | {"guided": jnp.zeros((8, actions))}
    value, key = jnp.zeros(8), jax.random.PRNGKey(0)
    given = inserting.config, inserting.distribution, batch["logits"] + 0.1, value

    def loss(rows: dict[str, jax.Array], share: float) -> float:
        return float(clipped_loss(*given, rows, key, jnp.float32(0.01), share)[0])

    critic = inserting.config.value_weight * float(jnp.square(batch["return"]).mean())
    mode = inserting.distribution.mode(batch["logits"] + 0.1)
    imitation = float(jnp.square(mode).sum(-1).mean())
    assert loss(guided, 0.0) == pytest.approx(loss(batch, 0.0), rel=1e-5)
    assert loss(guided, 1.0) == pytest.approx(imitation + critic, rel=1e-5)
    halves = (loss(guided, 0.0) + loss(guided, 1.0)) / 2
    assert loss(guided, 0.5) == pytest.approx(halves, rel=1e-5)


def test_networks_normalize_and_limit_their_inputs() -> None:
    found = mlp.normalize(jnp.array([1.0, 5.0, 1e6, -1e6]), jnp.float32(1.0), jnp.float32(2.0))
    np.testing.assert_allclose(found, [0, 2, 10, -10])
    network = mlp.policy_network(NetworkConfig((8,), (8,)), 3)
    params = network.init(jax.random.PRNGKey(0), jnp.zeros((1, 4)))
    inputs = jax.random.normal(jax.random.PRNGKey(1), (100, 4))
    outputs = np.asarray(network.apply(params, inputs))
    assert outputs.shape == (100, 6)
    assert np.abs(outputs).max() < 0.5  # actions start near zero


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"num_envs": 0}, "num_envs"),
        ({"unroll": 0}, "unroll"),
        ({"minibatches": 7}, "minibatches = 7 must divide"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate_range": (1e-2, 1e-3)}, "learning_rate_range"),
        ({"discount": 1.5}, "discount"),
        ({"gae": -0.1}, "gae"),
        ({"clipping": 1.0}, "clipping"),
        ({"entropy": (-0.1, 0.0)}, "entropy"),
        ({"target_kl": (0.0, 0.1)}, "target_kl"),
        ({"max_gradient": 0.0}, "max_gradient"),
        ({"reward_scale": 0.0}, "reward_scale"),
        ({"guide": (1.5, 0.0)}, "guide"),
        ({"guide": (1.0, -0.1)}, "guide"),
    ],
)
def test_values_out_of_range(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        dataclasses.replace(PpoConfig(), **changes)
    with pytest.raises(ConfigError, match="activation"):
        NetworkConfig(activation="sigmoid")
    with pytest.raises(ConfigError, match="layers"):
        NetworkConfig(policy=())
