"""Runs with faults at random moments: each ends in a state of docs/safety.md, and none in a traceback."""

import os
import pathlib
import signal

import pytest

pytest.importorskip("dynamixel_sdk")

from alohas2r.deployment.soak.faults import KINDS
from alohas2r.deployment.soak.runs import Row, Soak, SoakConfig, fuzz_config, soak, summary
from alohas2r.deployment.terms import load_policy
from alohas2r.errors import ConfigError
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.emulator.server import EmulatorConfig

pytestmark = pytest.mark.alone

STUDENT = pathlib.Path(__file__).parents[2] / "params/student/policy.onnx"
# More with ALOHAS2R_FUZZ=1000.
RUNS = int(os.environ.get("ALOHAS2R_FUZZ", "0"))


def fuzz(runs: int, seed: int) -> None:
    result = soak(fuzz_config(runs, seed), STUDENT)
    assert result["problems"] == []
    assert result["crashes"] == result["commands_beyond_limits"] == 0
    assert sum(result["ended"].values()) == runs
    assert set(result["ended"]) <= {"asleep", "frozen", "refused"}
    assert result["commands"] > 10 * runs


def test_a_few_runs_with_faults_at_random_moments() -> None:
    fuzz(5, 3)


@pytest.mark.long
def test_many_runs_with_faults_at_random_moments() -> None:
    fuzz(RUNS or 100, 4)


def test_a_signal_between_two_runs_ends_them_and_keeps_the_result() -> None:
    result = soak(fuzz_config(50, 3), STUDENT, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert result["runs"] == 1


def test_what_is_not_as_it_should_be_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard that lets everything through, and a loop with an error, do not pass."""
    from alohas2r.deployment import acting
    from alohas2r.safety.guard import Decision, Guard

    config = SoakConfig(
        runs=1, faults="none", episodes=1, episode_s=0.5, hasty=True, pictures=False, served=False
    )
    with Emulator(EmulatorConfig(realtime=False, set_up=True)) as emulator:
        runner = Soak(config, load_policy(STUDENT), emulator)
        with monkeypatch.context() as patch:
            patch.setattr(Guard, "limit", lambda self, wanted, measured: Decision(wanted + 0.2, ()))
            row = runner.run(0)
        assert any("beyond limits: a step of 0." in text for text in row.problems)
        with monkeypatch.context() as patch:
            patch.setattr(acting.Actor, "act", lambda *_: 1 / 0)
            row = runner.run(1)
        assert any("ZeroDivisionError" in text for text in row.problems)
        row = runner.run(2)
        assert (row.ended, row.whole, row.problems) == ("asleep", True, ())


def test_every_kind_of_fault_has_a_name_of_its_own() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) > 30


def test_a_summary_counts_what_became_of_the_runs() -> None:
    whole = Row(0, ("hot servo",), "asleep", "", True, 10, 600.0, 900, 9, 9, ())
    early = Row(1, ("hot servo", "overload"), "frozen", "x", False, 2, 300.0, 400, 2, 1, ())
    wrong = Row(2, (), "asleep", "x", False, 0, 100.0, 1, 0, 0, ("a false alarm: x",))
    result = summary([whole, early, wrong])
    assert result["mean_time_between_failures_s"] == 500.0
    assert (result["failures"], result["interventions"], result["false_alarms"]) == (2, 1, 1)
    assert (result["resets"], result["released"], result["episodes"]) == (11, 10, 12)
    assert result["faults"]["hot servo"] == {"struck": 2, "went on": 1, "frozen": 1}
    assert result["problems"] == ["run 2 (): a false alarm: x"]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"hours": 1.0, "runs": 3},
        {"runs": 0},
        {"hours": -1.0},
        {"runs": 1, "every_s": 0.0},
        {"runs": 1, "episodes": 0},
    ],
)
def test_a_soak_refuses_nonsense(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        SoakConfig(**wrong)  # pyright: ignore[reportArgumentType]
