"""Insertion from pixels after picking from pixels, beginning as a student: the whole way at the smallest scale."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alohas2r import config
from alohas2r.cli import app
from alohas2r.deployment.each_arm import EachArm
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.evaluation import evaluate
from alohas2r.learning.pixels import follow
from alohas2r.learning.pixels import train as pixels
from alohas2r.learning.pixels.config import StudentStartConfig, find_preset
from alohas2r.learning.pixels.follow import before
from alohas2r.learning.pixels.imitation import TetheredPpo
from alohas2r.learning.pixels.learner import Weights
from alohas2r.learning.pixels.train import PixelTraining
from alohas2r.learning.ppo.algorithm import PpoData, PpoState
from alohas2r.learning.ppo.start import first_policy
from alohas2r.policies import artifact
from alohas2r.policies.spec import StagedPixelsSpec, make_pixel_spec
from alohas2r.policies.staged_pixels import StagedPixelsPolicy
from alohas2r.policies.vision import PixelPolicy
from alohas2r.sim import kinematics, scene
from alohas2r.tasks.insert import switch_states

pytestmark = pytest.mark.compiles

TINY = (
    *("ppo.num_envs=4", "ppo.unroll=4", "ppo.minibatches=2", "ppo.epochs=1"),
    *("ppo.network.value=8", "network.hidden=8", "network.embedding=4", "network.patches=2,3"),
    *("cameras.size=16", "senses.corrupt.line_bank=16", "history.rates=0.5"),
    *("collect.variants=4", "collect.rounds=1", "collect.steps=40"),
    *("student.updates=1", "student.critic_updates=1", "student.tether_share=1"),
    *("total_steps=32", "evaluations=0", "checkpoints=1"),
)
ROWS = 5


def recorded(spec: Any, rows: int = ROWS) -> dict[str, np.ndarray]:
    """Returns observations that a policy takes, at random."""
    draw, values = np.random.default_rng(1), {}
    for name, (shape, dtype, _) in spec.inputs.items():
        values[name] = draw.uniform(0, 0.3, (rows, *shape)).astype(dtype)
    if spec.switches:
        values["switched"] = np.arange(rows) >= 2
    return values


@pytest.fixture(scope="module")
def pick(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A pick policy from pixels that raises its empty arm, nearly whatever it sees."""
    settings = config.override(find_preset("insert", "quick"), TINY)
    spec = make_pixel_spec(
        scene.load("pick"),
        settings.network,
        settings.cameras,
        settings.history,
        settings.env.control.scale,
    )
    draw = np.random.default_rng(4)
    shapes = PixelPolicy.shapes(spec).items()
    weights = {name: draw.normal(0, 0.1, shape) for name, shape in shapes}
    weights["std"] = np.ones_like(weights["std"])
    weights["head/layer1/bias"][[1, 6]] = -3.0, 1.0  # the shoulder up, the gripper open
    policy = PixelPolicy(spec, weights, {})
    return artifact.save(policy, tmp_path_factory.mktemp("pick") / "policy", recorded(spec))


class Trained:
    """A run, and what each of its updates began with, learnt from and ended with."""

    def __init__(self, pick: pathlib.Path, out: pathlib.Path, patch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[PpoState, PpoData, PpoState]] = []
        trainings: list[PixelTraining] = []
        update = PixelTraining.update

        def watched(self_: PixelTraining, state: PpoState, data: PpoData) -> Any:
            after, figures = update(self_, state, data)
            self.steps.append((state, data, after))
            trainings.append(self_)
            return after, figures

        patch.setattr(PixelTraining, "update", watched)
        self.result = pixels.train(
            "insert",
            "quick",
            "student",
            out,
            overrides=TINY,
            threads=1,
            renderer="exact",
            pick=pick,
            seed=3,
        )
        self.training, self.teacher = trainings[-1], first_policy("params/teacher", "insert")


@pytest.fixture(scope="module")
def trained(pick: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with pytest.MonkeyPatch.context() as patch:
        return Trained(pick, tmp_path_factory.mktemp("insert") / "run", patch)


def moved(after: Any, before: Any) -> float:
    """Returns the largest change of a tree of numbers."""
    changes = jax.tree.map(
        lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), after, before
    )
    return max(jax.tree.leaves(changes))


def test_episodes_begin_where_the_pick_policy_hands_over_and_nothing_is_remembered(
    trained: Trained, pick: pathlib.Path
) -> None:
    kept = switch_states.load(pathlib.Path(trained.result["out"]) / "switch_states.npz")
    assert kept.pick == artifact.load(pick, PixelPolicy).hash
    assert kept.rate == 1
    insert = scene.load_physics("insert")
    joints = np.stack([kept.pool.qpos[..., arm.qpos] for arm in insert.arms], -2)
    assert (kinematics.tip_heights(joints) > 0.17).all()
    state = trained.training.env.reset(jax.random.split(jax.random.PRNGKey(0), 4))[0]
    assert np.asarray(state.task.switched).all()
    assert np.asarray(state.history.seen).max() == 0  # the teacher's averages begin anew
    np.testing.assert_array_equal(state.control.actions, kept.pool.actions[:, 0])


def test_a_student_learns_what_its_teacher_would_do_and_nothing_else(trained: Trained) -> None:
    before, data, after = trained.steps[0]
    rollout = data.rollout
    assert rollout.wanted is not None
    assert rollout.wanted.shape == (4, 4, 14)
    exact = np.asarray(rollout.privileged)[0]
    size = trained.training.env.task.observation_size
    # At the first step the averages are the observation, which nothing disturbs.
    features = np.tile(exact[:, :size], 1 + len(trained.teacher.spec.history.rates))
    np.testing.assert_allclose(rollout.wanted[0], trained.teacher.apply(features, np), atol=1e-4)
    first, last = before.learner.params, after.learner.params
    assert moved(last["policy"], first["policy"]) > 0
    assert moved(last["value"], first["value"]) == 0
    # It acts with the spread that is asked for, whatever it sees, and goes on doing so.
    for policy in (first["policy"], last["policy"]):
        spread = jax.nn.softplus(policy["layer1"]["bias"][14:]) + 0.001
        np.testing.assert_allclose(spread, 0.15, atol=1e-3)


def test_reinforcement_begins_with_the_critic_alone_and_then_with_a_tether(
    trained: Trained,
) -> None:
    imitated = trained.steps[0][2].learner
    (begun, _, taught), (_, _, let_go) = trained.steps[1], trained.steps[2]
    for name in ("policy", "value"):
        fresh = moved(begun.learner.params[name], imitated.params[name]) > 0
        assert fresh is (name == "value")
    assert moved(taught.learner.params["policy"], imitated.params["policy"]) == 0
    assert moved(taught.learner.params["value"], begun.learner.params["value"]) > 0
    assert float(taught.learner.learning_rate) == float(imitated.learning_rate)
    assert moved(let_go.learner.params["policy"], imitated.params["policy"]) > 0
    assert moved(let_go.learner.start, imitated.params["policy"]) == 0


def test_the_tether_pulls_back_to_the_student(trained: Trained) -> None:
    ppo, learner = trained.training.ppo, trained.steps[2][2].learner
    assert isinstance(ppo, TetheredPpo)
    data = trained.steps[2][1]
    rows = ppo._prepare(learner, data.rollout, data.final).rows
    key = jax.random.PRNGKey(0)

    @jax.jit
    def slope(weight: jax.Array, acts: jax.Array) -> Any:
        weights = Weights(jnp.float32(0), jnp.float32(1), weight, acts)
        loss = jax.grad(ppo.loss, has_aux=True)
        return loss(learner.params, rows, key, weights, learner.start)

    plain, figures = slope(jnp.float32(0), jnp.asarray(True))
    tied, _ = slope(jnp.float32(2), jnp.asarray(True))
    assert float(figures["loss/from_start"]) > 0
    assert moved(tied["policy"], plain["policy"]) > 0
    assert moved(tied["value"], plain["value"]) == 0
    alone, _ = slope(jnp.float32(2), jnp.asarray(False))
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(alone["policy"])) == 0
    # It gets weaker, and ends with its share of the stage; the critic's updates come first.
    settings = StudentStartConfig(critic_updates=2, tether=0.5, tether_share=0.3)
    ppo.student, ppo.updates = settings, 10
    told = [ppo.weigh(jnp.float32(share)) for share in (0.0, 0.1, 0.2, 0.3)]
    assert [one.acts is None or bool(one.acts) for one in told] == [False, False, True, True]
    assert told[3].tether is None
    np.testing.assert_allclose(
        np.array([one.tether for one in told[:3]]), [0.5, 1 / 3, 1 / 6], atol=1e-6
    )


def test_the_run_ends_with_the_same_numbers_and_both_policies_as_one(
    trained: Trained, pick: pathlib.Path
) -> None:
    result, learner = trained.result, trained.steps[2][2].learner
    assert result["finished"]
    alone = artifact.load(result["policy"], PixelPolicy)
    np.testing.assert_allclose(
        alone.weights["head/layer0/kernel"], learner.params["policy"]["layer0"]["kernel"], atol=1e-5
    )
    staged = evaluate.load_policy(result["staged"])
    assert isinstance(staged, StagedPixelsPolicy)
    assert isinstance(staged.spec, StagedPixelsSpec)
    assert staged.spec.insert == alone.spec
    parents = staged.trained["parents"]
    assert parents == {"teacher": trained.teacher.hash, "pick": artifact.load(pick).hash}
    assert [*staged.spec.inputs] == ["left_depth", "right_depth", "proprioception", "switched"]
    with pytest.raises(ArtifactError, match="from pixels for 'insert' alone"):
        evaluate.load_policy(result["policy"])


def test_before_the_switch_each_arm_picks_and_after_it_both_insert(
    trained: Trained, pick: pathlib.Path
) -> None:
    apart = EachArm([artifact.load(pick, PixelPolicy) for _ in range(2)])
    insert = artifact.load(trained.result["policy"], PixelPolicy)
    staged = artifact.load(trained.result["staged"], StagedPixelsPolicy)
    assert isinstance(staged.spec, StagedPixelsSpec)
    seen = recorded(staged.spec)
    for step in range(ROWS):
        observation = {name: rows[step] for name, rows in seen.items()}
        actions, switched = staged.act(observation), bool(observation["switched"])
        each, after = apart.act(observation), insert.act(observation)
        np.testing.assert_allclose(actions, after if switched else each, atol=1e-5)
        assert np.abs(after - each).max() > 0.01


def test_policies_that_do_not_go_together_are_refused(
    pick: pathlib.Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert = artifact.load(trained.result["policy"], PixelPolicy)
    first = artifact.load(pick, PixelPolicy)
    with pytest.raises(
        ArtifactError, match="cannot be one: the first policy must be one from pixels"
    ):
        StagedPixelsPolicy.join(insert, insert, insert.spec.switch, np.zeros((2, 3)), {})
    with pytest.raises(ArtifactError, match="the second policy must be one from pixels"):
        StagedPixelsPolicy.join(first, first, first.spec.switch, np.zeros((2, 3)), {})
    with pytest.raises(ArtifactError, match="three numbers for each arm"):
        StagedPixelsPolicy.join(first, insert, first.spec.switch, np.zeros((1, 3)), {})
    settings = config.override(find_preset("insert", "quick"), TINY)
    for setting, words in (("cameras.size=24", "cameras"), ("env.control.scale=0.01", "scale")):
        with pytest.raises(ConfigError, match=f"{words} must be that of the pick policy"):
            before("insert", pick, config.override(settings, [setting]))
    with pytest.raises(ArtifactError, match="is a policy for 'insert'"):
        before("insert", trained.result["policy"], settings)
    with pytest.raises(ConfigError, match="follows no other policy"):
        before("pick", pick, find_preset("pick", "quick"))
    monkeypatch.setattr(follow, "SHIPPED", "nothing")
    with pytest.raises(ArtifactError, match="name it with --pick"):
        before("insert", None, settings)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"teacher": "params/pick"}, "goes with the start 'student' alone"),
        (
            {"start": "student", "overrides": ["env.control.scale=0.05"]},
            r"set env\.control\.scale=",
        ),
        ({"start": "student", "overrides": ["student.sigma=2"]}, r"sigma must be in 0\.01\.\.1"),
        (
            {"start": "student", "overrides": ["student.updates=0"]},
            r"updates must be in 1\.\.100000",
        ),
        ({"start": "student", "overrides": ["student.tether_share=0"]}, "tether_share must be in"),
        ({"overrides": ["ppo.guide=1,0"]}, "a guide is for teachers"),
    ],
)
def test_bad_input_is_refused_in_a_line(
    options: dict[str, Any], words: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises((ConfigError, ArtifactError), match=words) as error:
        pixels.train(**{"preset": "quick", "out": tmp_path / "run", **options})
    assert "\n" not in str(error.value)


def test_the_manifest_says_what_it_began_with(trained: Trained) -> None:
    described = json.loads((pathlib.Path(trained.result["policy"]) / "policy.json").read_text())
    command = described["trained"]["command"]
    assert "--phase insert" in command
    assert "--start student" in command
    assert "--teacher params/teacher" in command


@pytest.mark.long
def test_the_commands_take_both_as_one_like_a_student(
    trained: Trained, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    staged, file = trained.result["staged"], tmp_path / "policy.onnx"

    def done(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        assert app.main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    done("export", staged, "--out", str(file))
    tables = [
        done("evaluate", str(policy), "--episodes", "2", "--seed", "7") for policy in (staged, file)
    ]
    for name in ("success", "stages", "held_at_end"):
        assert tables[0][name] == tables[1][name]
    assert tables[0]["phase"] == "insert"
    assert tables[0]["stages"]["switched"]["rate"] == 1  # empty, but up
    for robot in ("sim", "emulated"):
        log = tmp_path / f"{robot}.run"
        run = ["deploy", "--robot", robot, "--stepped", "--policy", str(file), "--seconds", "2"]
        result = done(*run, "--log", str(log))
        assert result["aborted"] == 0
        assert done("replay", str(log))["policy"]["reproduced"]
