from __future__ import annotations

import csv
import dataclasses
import itertools
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from alohas2r.core import progress, stats
from alohas2r.embodiment import history, joints
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.evaluation import episodes, evaluate
from alohas2r.evaluation import report as evaluation_report
from alohas2r.policies import artifact
from alohas2r.policies import spec as policies_spec
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.state import StatePolicy
from alohas2r.policies.switch import Switch
from alohas2r.sim import scene
from alohas2r.tasks import protocol
from alohas2r.tasks.insert.scoring import InsertScorer
from alohas2r.tasks.insert.task import InsertTask
from alohas2r.tasks.protocol import EVAL_V1
from alohas2r.tasks.registry import find_task

pytestmark = pytest.mark.compiles

EPISODES = 3
RATE = {"rate", "low", "high"}
# What a script that reads the result may rely on.
PICK_KEYS = {
    *("protocol", "protocol_hash", "episodes", "success", "precise", "stages"),
    *("position_error_mm", "rotation_error_deg", "time_to_success_s", "wall_s"),
}
INSERT_KEYS = {
    *("protocol", "protocol_hash", "episodes", "success", "held_at_end", "dropped", "stages"),
    *("retries", "time_to_success_s", "peak_joint_speed_rad_s", "peak_contact_force_n", "wall_s"),
}


def test_episode_keys_do_not_depend_on_how_many_there_are() -> None:
    many = np.asarray(episodes.episode_keys(7, 0, 10))
    np.testing.assert_array_equal(episodes.episode_keys(7, 0, 3), many[:3])
    np.testing.assert_array_equal(episodes.episode_keys(7, 4, 5), many[4:9])
    other = np.asarray(episodes.episode_keys(8, 0, 10))
    assert len(np.unique(np.concatenate([many, other]), axis=0)) == 20


class Result:
    def __init__(self, path: pathlib.Path) -> None:
        self.reports: list[progress.Report] = []
        self.result = evaluate.evaluate(
            path, EPISODES, seed=7, threads=1, progress=self.reports.append
        )
        self.table: dict[str, np.ndarray] = self.result["table"]


@pytest.fixture(scope="module")
def pick(random_policy: pathlib.Path) -> Result:
    return Result(random_policy)


@pytest.fixture(scope="module")
def loose(random_policy: pathlib.Path) -> dict[str, np.ndarray]:
    """Two of the same episodes under thresholds that everything meets."""
    found = artifact.load(random_policy, StatePolicy)
    rules = dataclasses.replace(EVAL_V1.pick, success=(100.0, 181.0), precise=(1e-9, 1e-9))
    generous = dataclasses.replace(EVAL_V1, name="loose", pick=rules)
    return evaluate.run(found, generous, episodes.episode_keys(7, 0, 2), threads=2).table


def check_rates(result: dict[str, Any], table: dict[str, np.ndarray], names: list[str]) -> None:
    for name in names:
        value = result[name] if name in result else result["stages"][name]
        assert value.keys() == RATE
        assert value == stats.rate(int(table[name].sum()), EPISODES)


def test_pick_result_has_the_promised_keys_and_wilson_intervals(pick: Result) -> None:
    result = pick.result
    assert result.keys() >= PICK_KEYS
    assert (result["protocol"], result["protocol_hash"]) == ("eval-v1", EVAL_V1.hash)
    assert (result["episodes"], result["seed"]) == (EPISODES, 7)
    assert result["stages"].keys() == {"reached", "grasped", "lifted", "crossed", "out", "unstable"}
    check_rates(result, pick.table, ["success", "precise", *result["stages"]])
    for name in ("position_error_mm", "rotation_error_deg", "time_to_success_s"):
        values = pick.table[name]
        expected = None if not np.isfinite(values).any() else round(float(np.nanmedian(values)), 3)
        assert result[name]["median"] == expected
        assert result[name].keys() == {"median", "p90", "p99"}
    assert result["wall_s"] > 0
    assert all(column.shape == (EPISODES,) for column in pick.table.values())


def test_progress_counts_episodes(pick: Result) -> None:
    done = [report.done for report in pick.reports]
    assert done == sorted(done)
    assert done[-1] == EPISODES
    assert {(report.total, report.unit) for report in pick.reports} == {(EPISODES, "episodes")}


def test_an_episode_is_the_same_to_rounding_whatever_is_evaluated_beside_it(
    pick: Result, loose: dict[str, np.ndarray]
) -> None:
    scored = ("success", "precise", "time_to_success_s")
    for name in loose.keys() - set(scored):
        np.testing.assert_allclose(
            loose[name], pick.table[name][:2], rtol=1e-4, atol=1e-3, err_msg=name
        )
    np.testing.assert_array_equal(loose["block_mass_g"], pick.table["block_mass_g"][:2])


def test_thresholds_decide_what_is_a_success(loose: dict[str, np.ndarray]) -> None:
    kept = ~(loose["crossed"] | loose["out"] | loose["unstable"])
    np.testing.assert_array_equal(loose["success"], kept)
    assert kept.any()
    assert not loose["precise"].any()
    # Within the thresholds all the time: since the first step.
    np.testing.assert_allclose(loose["time_to_success_s"][kept], 0.05)


def test_blocks_are_those_of_the_protocol(pick: Result) -> None:
    assert (np.abs(pick.table["block_half_side_mm"] - 20) <= 10).all()
    assert (np.abs(pick.table["block_mass_g"] - 65) <= 35).all()
    assert len(np.unique(pick.table["block_mass_g"])) == EPISODES


def test_table_as_csv(pick: Result, tmp_path: pathlib.Path) -> None:
    path = evaluation_report.write_csv(pick.result, tmp_path / "new" / "episodes.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["episode"] for row in rows] == ["0", "1", "2"]
    for name, column in pick.table.items():
        found = [float(row[name]) for row in rows]
        np.testing.assert_allclose(found, column.astype(float), rtol=1e-5)
    with pytest.raises(ArtifactError, match="could not be written"):
        evaluation_report.write_csv(pick.result, path / "inside.csv")


def make_state(phase: str, seed: int, scale: float, lift: float = 0.0) -> StatePolicy:
    """A linear policy with random weights that raises the arms if told to."""
    insert = scene.load("insert")
    arms = insert.arms[:1] if phase == "pick" else insert.arms
    parts = InsertTask.observation_spec[:10] if phase == "pick" else InsertTask.observation_spec
    ctrl = np.concatenate([arm.ctrl for arm in arms])
    names = tuple(f"{arm.name}/{joint}" for arm in arms for joint in joints.ACTUATORS)
    spec = policies_spec.PolicySpec(
        kind="state",
        phase=phase,
        observation=tuple(
            policies_spec.ObservationPart(
                name.removeprefix("left/") if phase == "pick" else name, size, unit
            )
            for name, size, unit in parts
        ),
        history=history.HistoryConfig(),
        action=policies_spec.ActionSpec(
            names,
            0.02,
            tuple(insert.ctrl_low[ctrl].tolist()),
            tuple(insert.ctrl_high[ctrl].tolist()),
            0.05,
        ),
        hidden=(4,),
        activation="tanh",
    )
    draw = np.random.default_rng(seed)
    features = spec.history.size(spec.observation_size)
    sizes = (features, 4, 2 * len(names))
    weights = {"mean": np.zeros(features), "std": np.ones(features)}
    for layer, shape in enumerate(itertools.pairwise(sizes)):
        weights[f"layer{layer}/kernel"] = draw.normal(0, scale, shape)
        weights[f"layer{layer}/bias"] = np.zeros(shape[1])
    weights["layer1/bias"][1 : len(names) : 7] = -lift  # the shoulders
    return StatePolicy(spec, weights, {})


@pytest.fixture(scope="module")
def staged_path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    pick, insert = make_state("pick", 0, 0.01, lift=3.0), make_state("insert", 1, 0.1)
    staged = StagedPolicy(pick, insert, Switch(), {})
    folder = tmp_path_factory.mktemp("policies") / "staged"
    return artifact.save(
        staged, folder, {"observations": np.zeros((2, 109)), "switched": np.array([False, True])}
    )


def test_staged_result_has_the_promised_keys(staged_path: pathlib.Path) -> None:
    short = protocol.modified(EVAL_V1, seconds=2.0)
    result = evaluate.evaluate(staged_path, EPISODES, seed=3, threads=1, protocol=short)
    assert result.keys() >= INSERT_KEYS
    assert (result["protocol"], result["protocol_hash"]) == ("eval-v1+seconds=2", short.hash)
    stages = {"grasped_both", "lifted_both", "switched", "entered", "inserted", "dropped"}
    assert result["stages"].keys() >= stages
    table = result["table"]
    check_rates(result, table, ["success", "held_at_end", *result["stages"]])
    assert result["dropped"] == result["stages"]["dropped"]
    # Empty hands go up: the switch goes by the height of the fingertips, the objects stay behind.
    assert table["switched"].all()
    assert (table["attempts"] >= 1).all()
    for name in ("lifted_both", "entered", "inserted", "dropped", "held_at_end"):
        assert not table[name].any()
    assert result["time_to_success_s"]["kaplan_meier_median"] is None
    assert (table["peak_joint_speed"] > 0.1).all()
    assert (table["arm_distance_mm"] > 0).all()
    np.testing.assert_allclose(table["peg_mm"], 20)


def test_policies_that_cannot_be_evaluated_are_refused(
    tmp_path: pathlib.Path, random_policy: pathlib.Path
) -> None:
    alone = artifact.save(
        make_state("insert", 1, 0.1), tmp_path / "alone", {"observations": np.zeros((1, 109))}
    )
    with pytest.raises(ArtifactError, match="for 'insert' alone"):
        evaluate.evaluate(alone)
    found = artifact.load(random_policy, StatePolicy)
    parts = found.spec.observation
    renamed = (dataclasses.replace(parts[0], name="angles"), *parts[1:])
    other = StatePolicy(dataclasses.replace(found.spec, observation=renamed), found.weights, {})
    path = artifact.save(other, tmp_path / "other", {"observations": np.zeros((1, 53))})
    with pytest.raises(ArtifactError, match="other observations"):
        evaluate.evaluate(path)
    for wrong in (0, -1, 10**7):
        with pytest.raises(ConfigError, match="episodes"):
            evaluate.evaluate(random_policy, wrong)
    with pytest.raises(ArtifactError, match="holds no policy"):
        evaluate.evaluate(tmp_path / "nowhere")


def test_one_environment_per_episode_with_its_own_start(random_policy: pathlib.Path) -> None:
    """Starts, blocks and noise come from the episode's key alone."""
    found = artifact.load(random_policy)
    keys = episodes.episode_keys(0, 0, 4)
    assert isinstance(found, StatePolicy)
    pick, memory = find_task("pick"), found.spec.history
    env, blocks, *_ = episodes.set_up(pick, EVAL_V1, memory, keys, threads=1)
    few_env, few_blocks, *_ = episodes.set_up(pick, EVAL_V1, memory, keys[1:3], threads=1)
    np.testing.assert_array_equal(blocks[1:3], few_blocks)
    state, _, readout = env.reset(keys)
    few_state, _, few_readout = few_env.reset(keys[1:3])
    jax.tree.map(
        lambda many, few: np.testing.assert_allclose(many[1:3], few, atol=1e-6),
        (state.task, readout),
        (few_state.task, few_readout),
    )
    assert len(np.unique(np.asarray(readout.qpos)[:, 0])) == 4


def test_success_is_reported_by_time_up_to_the_end_of_the_episode() -> None:
    names = (
        *("grasped_both", "lifted_both", "switched", "entered", "inserted", "dropped", "out"),
        *("unstable", "held_at_end", "retried", "retry_succeeded", "success"),
    )
    table: dict[str, np.ndarray] = {name: np.array([True, True, True, False]) for name in names}
    table["time_to_success_s"] = np.array([3.9, 4.1, 8.0, np.nan])
    for name in ("arm_distance_mm", "peak_joint_speed", "peak_contact_force"):
        table[name] = np.ones(4)
    for seconds, expected in (
        (15.0, {"4": 0.25, "6": 0.5, "8": 0.75, "10": 0.75, "15": 0.75}),
        (8.0, {"4": 0.25, "6": 0.5, "8": 0.75}),
    ):
        rules = protocol.modified(EVAL_V1, seconds=seconds).insert
        found = InsertScorer(rules, np.zeros(4)).summary(table)
        rates = {limit: rate["rate"] for limit, rate in found["success_within_s"].items()}
        assert rates == expected
        # The episode that never succeeded counts as still running at its end.
        assert found["time_to_success_s"]["kaplan_meier_median"] == pytest.approx(4.1)
