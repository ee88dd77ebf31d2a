"""The third task: a block goes from one arm to the other."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alohas2r.core import assets
from alohas2r.envs.env import Env
from alohas2r.envs.task import EnvConfig
from alohas2r.errors import ConfigError
from alohas2r.evaluation import evaluate
from alohas2r.sim import scene
from alohas2r.tasks import handover
from alohas2r.tasks.building import build
from alohas2r.tasks.handover import HandoverConfig, HandoverState, HandoverTask
from alohas2r.tasks.registry import find_task

pytestmark = pytest.mark.compiles

# Results of different versions of this package compare only while this stays as it is.
HASH = "b87ebe2b85311513fe4bad6278b8dc1c4fd5862575d329277690ddcf5cc21ffa"


def environments(raised: float, count: int = 12) -> Env:
    draws = np.random.default_rng(0).random((count, handover.ENTRY.draws))
    settings = dataclasses.replace(handover.ENTRY.config, raised=raised)
    return build(handover.ENTRY, settings, EnvConfig(), draws)[0]


def keys(count: int = 12) -> jax.Array:
    return jax.random.split(jax.random.PRNGKey(0), count)


def test_the_protocol_is_frozen() -> None:
    assert handover.HANDOVER_V1.hash == HASH
    assert handover.HANDOVER_V1.task.raised == 0  # every episode begins on the table


def test_it_is_found_by_its_name() -> None:
    assert find_task("handover") is handover.ENTRY
    with pytest.raises(ConfigError, match="handover"):
        find_task("handovr")
    with pytest.raises(ConfigError, match="raised"):
        HandoverConfig(raised=1.5)


def test_starts_on_the_table_lie_before_the_giver() -> None:
    env = environments(raised=0.0)
    _, _, readout = env.reset(keys())
    block = np.asarray(readout.qpos)[:, env.task.scene.arms[0].object_qpos]
    base = env.task.scene.arms[0].base_pos
    radius = np.linalg.norm(block[:, :2] - base[:2], axis=1)
    assert (radius > 0.26).all()
    assert (radius < 0.43).all()
    np.testing.assert_allclose(block[:, 2], 0.0128, atol=1e-4)


def test_a_raised_block_stays_in_the_closed_gripper() -> None:
    env = environments(raised=1.0)
    state, physics, readout = env.reset(keys())
    ctrl = np.array(readout.ctrl)
    for step in range(40):
        state, physics, readout, scored = env.advance(state, physics, jnp.asarray(ctrl))
        assert step < 3 or np.asarray(scored.measures.grasped).all()  # once the fingers press
        assert not np.asarray(scored.done).any()
    # Let go by both, it falls: dropped, and the episode ends with a loss.
    for arm in env.task.scene.arms:
        ctrl[:, arm.ctrl[6]] = 0.037
    rewards, dropped = [], np.zeros(12, bool)
    for _ in range(12):
        state, physics, readout, scored = env.advance(state, physics, jnp.asarray(ctrl))
        dropped |= np.asarray(scored.measures.dropped) & np.asarray(scored.done)
        rewards.append(np.asarray(scored.reward))
    assert dropped.all()
    assert (np.min(rewards, 0) < -1).all()


def test_the_giver_lets_go_and_leaves_where_the_receiver_holds() -> None:
    """Starts in which both hold, by hand: the giver opens, then lifts its hand away; that is a success."""
    env = environments(raised=1.0, count=64)
    state, physics, readout = env.reset(keys(64))
    giver, receiver = env.task.scene.arms
    ctrl = np.array(readout.ctrl)
    both = ctrl[:, receiver.ctrl[6]] < 0.03
    assert 3 <= both.sum() <= 32
    success, dropped = np.zeros(64, bool), np.zeros(64, bool)
    for step in range(60):
        if step == 5:
            state, physics, readout, scored = env.advance(state, physics, jnp.asarray(ctrl))
            assert (np.asarray(scored.measures.both_held) == both).all()
            assert not np.asarray(scored.measures.success).any()
            ctrl[:, giver.ctrl[6]] = 0.037
        if step > 15:
            ctrl[:, giver.ctrl[1]] -= 0.02
        state, physics, readout, scored = env.advance(state, physics, jnp.asarray(ctrl))
        success |= np.asarray(scored.measures.success)
        dropped |= np.asarray(scored.measures.dropped)
    assert (success == both).all()
    assert (dropped == ~both).all()


def test_the_observation_says_the_same_to_both_arms() -> None:
    """The scene turned by 180 degrees about z exchanges the arms, and the halves of the observation."""
    task = HandoverTask(scene.load_physics("handover"), HandoverConfig())
    place, turn = np.asarray(task._target_pos), np.asarray(task._target_mat)
    np.testing.assert_allclose(place[0], place[1], atol=1e-5)
    np.testing.assert_allclose(turn[0], np.eye(3), atol=1e-6)
    np.testing.assert_allclose(turn[1], np.diag([-1, -1, 1]), atol=1e-6)


@pytest.mark.parametrize("alone", [0, 8, 9])
def test_success_needs_the_block_alone_for_ten_steps(alone: int) -> None:
    env = environments(raised=1.0, count=1)
    task = env.task
    state, _, readout = env.reset(keys(1))
    signals = jax.tree.map(lambda leaf: leaf[0], env.extract(readout))
    inward = jnp.stack([signals.finger_axis, -signals.finger_axis], 1)  # [2, 2, 3]
    held_right = signals._replace(
        tip_pos=signals.grip_pos + jnp.array([[0.0, 0.0, 0.2], [0.0, 0.0, 0.0]]),
        finger_force=5 * inward * jnp.array([0.0, 1.0])[:, None, None],
    )
    before = jax.tree.map(lambda leaf: leaf[0], state.task)
    assert isinstance(before, HandoverState)
    before = before._replace(alone=jnp.int32(alone), best=jnp.float32(0))
    outcome = task.step(held_right, before, jnp.array([0.05]))
    assert bool(outcome.measures.received)
    assert bool(outcome.measures.success) is (alone >= 9)
    # A finger of the giver that still touches it undoes all of that.
    both = held_right._replace(finger_force=5 * inward)
    outcome = task.step(both, before, jnp.array([0.05]))
    assert not bool(outcome.measures.received)
    assert int(outcome.state.alone) == 0


def test_it_trains_and_its_policy_is_evaluated(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from alohas2r.cli import app

    small = ["total_steps=512", "ppo.num_envs=8", "ppo.unroll=8", "ppo.minibatches=2"]
    small += ["ppo.network.policy=8", "ppo.network.value=8", "evaluations=0", "checkpoints=1"]
    chosen = [part for setting in small for part in ("--set", setting)]
    arguments = ["train-teacher", "--phase", "handover", "--preset", "quick", "--json"]
    assert app.main([*arguments, "--out", str(tmp_path), *chosen]) == 0
    policy = json.loads(capsys.readouterr().out)["policy"]
    assert app.main(["evaluate", policy, "--episodes", "4", "--seed", "7", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["protocol"] == "handover-v1"
    assert result["protocol_hash"] == HASH
    assert set(result["stages"]) == set(handover.FLAGS)


def test_the_shipped_policy_hands_over() -> None:
    result = evaluate.evaluate(assets.data_path("params") / "handover", 16, seed=7)
    assert result["protocol_hash"] == HASH
    assert result["stages"]["lifted"]["rate"] == 1
    assert result["success"]["rate"] >= 0.8
