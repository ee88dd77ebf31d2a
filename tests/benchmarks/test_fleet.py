"""What simulators apart bring: the laws by hand, and one small measurement of all layouts."""

from __future__ import annotations

import json
import pathlib

import pytest

from alohas2r.benchmarks import fleet
from alohas2r.benchmarks.fleet import Memory, Subject
from alohas2r.cli import app
from alohas2r.errors import ConfigError


def test_memory_that_is_held_once_lets_more_environments_fit() -> None:
    nothing_fixed = Memory(0.0, 1e-3, 0.0, 3e-3)
    for devices in range(2, 9):
        parallel, apart = fleet.fitting(nothing_fixed, 4.0, devices)
        assert apart <= parallel == devices * 1000
    # Three devices simulate, one learns: 4 (8 - 6) / 2e-3 against min(3 (8 - 3) / 1e-3, (8 - 3) / 1e-3).
    assert fleet.fitting(Memory(3.0, 1e-3, 3.0, 1e-3), 8.0, 4) == (4000, 5000)
    assert fleet.fitting(Memory(3.0, 1e-3, 3.0, 1e-3), 5.0, 4) == (0, 2000)


def test_speed_by_hand() -> None:
    # Of ten seconds eight simulate: five devices apart take 8 / 4 + 2, or the longer of the two.
    assert fleet.speeding(0.8, 5) == pytest.approx((5.0, 2.5, 5.0))
    assert fleet.speeding(0.5, 2) == pytest.approx((2.0, 1.0, 2.0))
    assert all(max(fleet.speeding(share / 10, 4)) == 4 for share in range(1, 10))


def test_a_line_through_peaks_of_memory() -> None:
    sizes = [100, 200, 400, 800]
    assert fleet.line(sizes, [1 + 0.002 * size for size in sizes]) == pytest.approx((1.0, 0.002))


def test_a_subject_is_the_training_of_a_command(tmp_path: pathlib.Path) -> None:
    for training, kind in (("teacher", "PickTrainConfig"), ("pixels", "PickTrainConfig")):
        subject = Subject(training, "pick", 1024, tmp_path)
        assert type(subject.settings).__name__ == kind
        assert subject.settings.ppo.num_envs == 1024
        plan = subject.plan(32, 1)
        assert (plan.world, plan.parallel) == (32, False)
    layouts = fleet._layouts(subject, (1, 2, 3), "local")
    named = [(one.kind, one.workers, one.lag) for one in layouts]
    assert named[:3] == [("local", 1, 0), ("local", 2, 0), ("local", 3, 0)]
    assert named[6:] == [("data-parallel", 2, 0)]  # 1,024 by three is no whole number


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"training": "student"}, "training must be one of teacher, pixels"),
        ({"kind": "data-parallel"}, "fleet must be local or ray"),
        ({"seconds": 0}, "seconds must be > 0"),
        ({"memory": (1, 2, 3)}, "four sizes or more"),
        ({"budget": 0}, "budget must be > 0 GB"),
        ({"workers": (5,)}, "5 workers are more than the 4 worlds"),
    ],
)
def test_bad_input(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fleet.bench_fleet(**{"environments": 1024, **options})  # pyright: ignore[reportArgumentType]


@pytest.mark.long
@pytest.mark.parametrize("training", ["teacher", "pixels"])
def test_all_is_measured(capsys: pytest.CaptureFixture[str], training: str) -> None:
    words = ["--training", training, "--envs", "512", "--workers", "1,2", "--seconds", "0.1"]
    sizes = ["--memory", "--sizes", "64,128,192,256"] if training == "teacher" else []
    assert app.main(["bench-fleet", *words, *sizes, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["layout"] for row in result["rows"]] == [
        *("one process", "lag 0", "lag 0", "lag 1", "lag 1", "data-parallel")
    ]
    assert min(row["steps_per_s"] for row in result["rows"]) > 0
    assert 0 < result["simulating"] < 1
    if sizes:
        memory = result["memory"]
        assert len(memory["simulator_gb"]) == len(memory["learner_gb"]) == 4
        assert [row["devices"] for row in memory["fit"]] == list(range(2, 9))
        assert memory["s_kb"] > 0


@pytest.mark.long
def test_workers_that_are_killed_change_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    assert (
        app.main(["bench-fleet", "--kills", "2", "--envs", "512", "--workers", "2", "--json"]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["same_parameters"]
    assert result["updates"] >= 10
    assert result["cost_s"] > 0  # they really died
