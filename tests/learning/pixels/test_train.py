"""A training from pixels: what is learnt from is what was acted on; resumed to the bit; its policy is like others."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from alohas2r import config
from alohas2r.cli import app
from alohas2r.deployment.each_arm import EachArm
from alohas2r.envs.vision import Seen, pack_depth, unpack_depth
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.evaluation import evaluate
from alohas2r.evaluation.actors import network_inputs
from alohas2r.evaluation.filming import wrist_views
from alohas2r.learning.dagger.train import load_teacher
from alohas2r.learning.pixels import config as pixels_config
from alohas2r.learning.pixels import train as pixels
from alohas2r.learning.pixels.learner import PixelPpo, Weights
from alohas2r.learning.pixels.train import Given, PixelTraining
from alohas2r.learning.run.checkpoint import Checkpoint
from alohas2r.learning.run.loop import Run, Schedule
from alohas2r.policies import artifact
from alohas2r.policies.vision import PixelPolicy
from alohas2r.sim import scene
from alohas2r.tasks.pick.sight import LEAST_PIXELS, block_pixels
from alohas2r.tasks.starts import InsertStart

pytestmark = pytest.mark.compiles

TINY = (
    *("ppo.num_envs=8", "ppo.unroll=4", "ppo.minibatches=2", "ppo.epochs=2"),
    *("ppo.network.value=8", "network.hidden=8", "network.embedding=4", "network.patches=2,3"),
    *("cameras.size=16", "senses.corrupt.line_bank=16", "task.steps=6"),
    *("total_steps=64", "evaluations=0", "checkpoints=4"),
)


class Judged(NamedTuple):
    """What a minibatch of all rows says, and which way it moves what."""

    figures: dict[str, jax.Array]
    told: Any  # slopes of what the pictures must tell, by the parameters
    critic: dict[str, jax.Array]  # slopes of the critic's loss, by what is observed
    actor: dict[str, jax.Array]  # of the policy's


class Collected:
    """A training of two updates, and its first unroll."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.settings = config.override(pixels_config.find_preset("pick", "quick"), TINY)
        self.training = PixelTraining(self.settings, Given(folder, 3, 1, "exact"))
        training = self.training
        assert isinstance(training.ppo, PixelPpo)
        self.ppo = training.ppo
        self.state, self.data = training.collect(training.init())
        self.rows = self.ppo._prepare(self.state.learner, self.data.rollout, self.data.final).rows
        self.updated, self.figures = training.update(self.state, self.data)
        unbroken, _ = training.update(*training.collect(self.updated))
        self.unbroken = training.checkpointed(unbroken)
        self.readout = training.init().readout

        def judge(params: Any, rows: dict[str, jax.Array]) -> Judged:
            def part(*names: str) -> Any:
                def total(params: Any, seen: dict[str, jax.Array]) -> jax.Array:
                    said = self.ppo.loss(params, rows | seen, key, weights)[1]
                    return sum((said[name] for name in names), jnp.float32(0))

                return total

            key, weights = jax.random.PRNGKey(0), Weights(jnp.float32(0.01), jnp.float32(1))
            seen = {name: rows[name] for name in ("privileged", "features")}
            return Judged(
                self.ppo.loss(params, rows, key, weights)[1],
                jax.grad(part("loss/objects", "loss/sighted"))(params, seen)["policy"],
                jax.grad(part("loss/value"), 1)(params, seen),
                jax.grad(part("loss/policy"), 1)(params, seen),
            )

        self.judge = jax.jit(judge)


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Collected:
    return Collected(tmp_path_factory.mktemp("pixels"))


def largest(tree: Any) -> float:
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_pictures_are_kept_as_whole_tenths_of_a_millimetre_and_cut_off(
    collected: Collected,
) -> None:
    depth = jnp.array([0.0, 0.12345, 0.4, 0.40001, 5.0, -1.0, jnp.nan])
    packed = pack_depth(depth, 0.4)
    np.testing.assert_array_equal(packed, [0, 1234, 4000, 0, 0, 0, 0])
    every = jnp.arange(4001, dtype=jnp.uint16)
    np.testing.assert_array_equal(pack_depth(unpack_depth(every), 0.4), every)
    rollout, sense = collected.data.rollout, collected.state.sense
    assert rollout.depth is not None
    assert (rollout.depth.dtype, rollout.depth.shape) == (jnp.uint16, (4, 8, 1, 16, 16))
    assert 0 < rollout.depth.max() <= 4000
    assert sense is not None
    assert sense.depth is not None
    assert sense.depth.dtype == jnp.uint16


def test_what_is_learnt_from_is_what_was_acted_on(collected: Collected) -> None:
    params, rows = collected.state.learner.params, collected.rows
    judged = collected.judge(params, rows)
    assert abs(float(judged.figures["loss/kl"])) < 1e-6
    assert float(judged.figures["loss/clipped"]) == 0.0
    # The critic sees the state, and the policy does not.
    assert largest(judged.critic["privileged"]) > 0
    assert largest(judged.critic["features"]) == 0
    assert largest(judged.actor["features"]) > 0
    assert largest(judged.actor["privileged"]) == 0
    # What the pictures must tell teaches what looks at them, and not what acts on it.
    assert largest(judged.told["patches0"]) > 0
    assert largest(judged.told["wrist_depth"]) > 0
    assert largest(judged.told["layer0"]) == 0
    # With other pictures the policy would have acted otherwise.
    other = collected.judge(params, rows | {"depth": rows["depth"][::-1]})
    assert float(other.figures["loss/kl"]) > 1e-9


def test_an_update_takes_a_step_per_minibatch(collected: Collected) -> None:
    after, before = collected.updated.learner, collected.state.learner
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.params, before.params)
    assert min(jax.tree.leaves(moved)) > 0
    counts = [leaf for leaf in jax.tree.leaves(after.optimizer) if leaf.dtype == jnp.int32]
    assert [int(count) for count in counts] == [4]  # two epochs of two
    assert np.isfinite(list(collected.figures.values())).all()
    assert np.asarray(after.policy_stats.count.lo) == 32


def test_a_camera_sees_what_is_in_front_of_it(collected: Collected) -> None:
    arm = scene.load("pick").arms[0]
    qpos = np.array(collected.readout.qpos)
    half = np.asarray(collected.training.env.context)[:, 0]
    pixels = block_pixels(qpos, half)
    assert (pixels >= LEAST_PIXELS).any()
    away = qpos.copy()
    away[:, arm.object_qpos[0]] -= 1.0  # behind the arm
    assert block_pixels(away, half).max() == 0
    same = np.repeat(qpos[[np.argmax(pixels)]], 8, 0)
    assert (np.diff(block_pixels(same, np.linspace(0.01, 0.03, 8))) >= 0).all()
    # What the learner takes for in sight, of the same states: it knows nothing of fingers in between.
    signals = collected.training.env.extract(collected.readout)
    sighted = np.asarray(collected.ppo.sight(signals, jnp.asarray(half)))[:, 0]
    assert sighted[pixels >= LEAST_PIXELS].all()
    behind = signals._replace(object_pos=signals.object_pos - jnp.array([1.0, 0, 0]))
    assert not np.asarray(collected.ppo.sight(behind, jnp.asarray(half))).any()


def test_an_encoder_learns_from_pictures_and_nothing_else_does(collected: Collected) -> None:
    training = PixelTraining(
        dataclasses.replace(collected.settings, pictures=1),
        collected.training.given._replace(start="encoder"),
    )
    assert training.iterations == 3
    begun = training.init()
    before = begun.learner.params
    state, data = training.collect(begun)
    rollout = data.rollout
    assert rollout.depth is not None
    assert rollout.objects is not None
    apart = np.asarray(rollout.objects)
    assert np.abs(apart[1:] - apart[:-1]).max(-1).min() > 1e-4  # each picture shows another place
    state, figures = training.update(state, data)
    after = state.learner.params
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after, before)
    assert min(jax.tree.leaves([moved["policy"][name] for name in ("patches0", "objects1")])) > 0
    assert max(jax.tree.leaves([moved["value"], moved["policy"]["layer0"]])) == 0
    assert figures["loss/learning_rate"] == pytest.approx(collected.settings.ppo.learning_rate)
    # The policy goes on from there; whatever else learning has gathered begins anew.
    state, _ = training.collect(state)
    assert int(state.learner.updates) == 1
    jax.tree.map(np.testing.assert_array_equal, state.learner.params["policy"], after["policy"])
    assert float(state.learner.policy_stats.count.lo) == 0
    assert largest(state.learner.optimizer) == 0


@pytest.fixture(scope="module")
def trained(collected: Collected, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run that was stopped after its first update, and resumed."""
    folder = tmp_path_factory.mktemp("runs") / "broken"
    collected.training.given = collected.training.given._replace(folder=folder)
    for resume, minutes in ((False, 0.0), (True, None)):
        with Run(folder, collected.settings, {"seed": 3}, resume) as run:
            schedule = Schedule(checkpoints=4, minutes=minutes)
            result = run.train(collected.training, "alohas2r train-pixels", {}, schedule)
        assert result["finished"] is resume
    return folder


def test_a_run_that_is_resumed_ends_with_the_bits_of_an_unbroken_one(
    collected: Collected, trained: pathlib.Path
) -> None:
    kept, _ = Checkpoint(trained / "checkpoint").load(collected.unbroken)
    jax.tree.map(np.testing.assert_array_equal, kept, collected.unbroken)


def test_a_training_goes_on_with_what_another_had_learnt_under_other_settings(
    collected: Collected, trained: pathlib.Path
) -> None:
    other = config.override(collected.settings, ["task.steps=5", "total_steps=32"])
    given = collected.training.given
    begun = PixelTraining(other, given._replace(seed=4, begun=trained / "checkpoint")).first()
    earlier = collected.unbroken.learner
    new = begun._replace(key=earlier.key, updates=earlier.updates)
    jax.tree.map(np.testing.assert_array_equal, new, earlier)
    assert int(begun.updates) == 0
    assert (begun.key != earlier.key).any()
    with pytest.raises(ArtifactError, match=r"no run of train-pixels to go on from"):
        pixels.train(start_from=trained / "policy", out=trained.with_name("other"))


def test_its_policy_describes_itself(trained: pathlib.Path) -> None:
    policy = evaluate.load_policy(trained / "policy")
    assert isinstance(policy, PixelPolicy)
    assert [*policy.spec.inputs] == ["wrist_depth", "proprioception"]
    assert (policy.spec.vector_size, policy.action_size) == (19, 7)
    assert not any(name.startswith("head/objects") for name in policy.weights)
    seen = Seen(None, jnp.ones((2, 1, 16, 16)), jnp.zeros((2, 19)), jnp.zeros((2, 57)))
    assert [*network_inputs(policy.spec, seen, None)] == ["features", "wrist_depth"]
    with pytest.raises(ConfigError, match="cannot be evaluated by 'eval-v2'"):
        evaluate.pixel_conditions(evaluate.find_rules("pick", "eval-v2"))
    with pytest.raises(ArtifactError, match="no staged teacher, but 'pixels'"):
        load_teacher(trained / "policy")


def test_a_film_has_room_for_a_second_camera() -> None:
    (column,) = wrist_views(None, np.full((1, 8, 8), 200, np.uint8), 16)
    assert column.shape == (16, 8, 3)
    assert (column[:8] == 200).all()
    assert (column[8:] == 0).all()


def test_on_a_robot_each_arm_acts_as_if_it_were_alone(trained: pathlib.Path) -> None:
    first, second = (artifact.load(trained / "policy", PixelPolicy) for _ in range(2))
    acting = EachArm((first, second))
    draw = np.random.default_rng(0)
    depths = draw.uniform(0, 0.4, (2, 16, 16)).astype(np.float32)
    joints = draw.uniform(-0.1, 0.1, (2, 2, 8)).astype(np.float32)  # positions, and less targets
    both = {
        "left_depth": depths[0],
        "right_depth": depths[1],
        "proprioception": joints.reshape(-1),
        "switched": np.array(False),
    }
    actions = acting.act(both).reshape(2, 7)
    acting.reset()
    for side, arm in enumerate(scene.load("insert").arms):
        turn = np.zeros(9)
        mujoco.mju_quat2Mat(turn, arm.base_quat)
        place = arm.base_pos + turn.reshape(3, 3) @ acting.targets[side]
        np.testing.assert_allclose(place, InsertStart().targets[side], atol=1e-6)
        vector = np.concatenate([*joints[:, side], acting.targets[side]])
        alone = first.act({"wrist_depth": depths[side], "proprioception": vector})
        np.testing.assert_allclose(alone, actions[side], atol=1e-6)
        first.reset()
    assert acting.renewals == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": "teacher"}, "start must be one of scratch, encoder"),
        ({"start": "encoder", "start_from": "runs/pick"}, "leave --start out"),
        ({"phase": "handover"}, "'handover' cannot be learnt from pixels"),
        ({"preset": "fast"}, "Unknown preset 'fast'"),
        ({"renderer": "warp"}, "renderer must be one of raycast, exact"),
        ({"overrides": ["auxiliary=-1"]}, r"auxiliary must be in 0\.\.100"),
        ({"overrides": ["pictures=0"]}, r"pictures must be in 1\.\.10000"),
        ({"overrides": ["senses.looks=transfer"]}, "leave env.variation and senses.looks"),
        ({"overrides": ["cameras.size=30"]}, "multiple of 8"),
    ],
)
def test_bad_input_is_refused_in_a_line(
    options: dict[str, Any], words: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        pixels.train(**{"preset": "quick", "out": tmp_path / "run", **options})
    assert "\n" not in str(error.value)


@pytest.mark.long
def test_the_commands_take_a_policy_from_pixels_like_any_other(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "run", tmp_path / "policy.onnx"

    def done(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        assert app.main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    chosen = [
        part
        for setting in (
            *TINY,
            "pictures=1",
            "refine.steps=32",
            "evaluations=2",
            "evaluation_episodes=2",
        )
        for part in ("--set", setting)
    ]
    command = ["train-pixels", "--preset", "quick", "--out", str(out), "--renderer", "exact"]
    command += ["--start", "encoder", "--threads", "1", "--seed", "3", *chosen]
    result: dict[str, Any] = {}
    for turn in range(
        4
    ):  # each stops after an update: of pictures, two of the first stage, one of the second
        result = done(*command, "--minutes", "0", *(["--resume"] if turn else []))
        assert result["steps"] == 32 * (turn + 1)
    assert result["finished"]
    assert "eval/success" in result["metrics"]
    assert result["chosen"]["steps"] in (64, 128)  # of whichever evaluation was best
    done("export", str(out / "policy"), "--out", str(file))
    tables = []
    for policy in (out / "policy", file):
        episodes = ["--episodes", "2", "--seed", "7"]
        result = done("evaluate", str(policy), *episodes)
        assert (result["phase"], result["protocol"]) == ("pick", "eval-v1")
        tables.append(result)
    for name in ("position_error_mm", "success", "seen_at_start", "success_by_sight"):
        assert tables[0][name] == tables[1][name]
    for robot in ("sim", "emulated"):
        log = tmp_path / f"{robot}.run"
        run = ["deploy", "--robot", robot, "--stepped", "--policy", str(file), "--seconds", "0.5"]
        result = done(*run, "--log", str(log))
        assert (result["aborted"], result["interventions"]) == (0, {})
        assert done("replay", str(log))["policy"]["reproduced"]
