from __future__ import annotations

import pytest

from alohas2r.core.progress import Meter, Report


def test_meter_reports_speed_and_time_left_without_the_first_slow_update() -> None:
    now, reports = [0.0], []
    meter = Meter("train", 1000, reports.append, unit="rows", clock=lambda: now[0])
    now[0] = 50.0  # compiling
    meter.update(100, {"loss": 1.0})
    for done in range(200, 1001, 100):
        now[0] += 2.0
        meter.update(done)
    assert reports[0] == Report("train", 100, 1000, "rows", 0.0, None, {"loss": 1.0})
    for report in reports[1:]:
        assert report.per_s == pytest.approx(50.0)
        assert report.left_s == pytest.approx((1000 - report.done) / 50.0)
    assert reports[-1].left_s == 0.0


def test_no_time_left_is_given_before_it_can_be_known() -> None:
    """An evaluation of four episodes in 200 steps each, of which the first compiles for 20 s."""
    now, reports = [0.0], []
    meter = Meter("evaluate", 4, reports.append, unit="episodes", clock=lambda: now[0])
    for step in range(200):
        now[0] += 20.0 if step == 0 else 0.01
        meter.update(4 * (step + 1) // 200)
    known = [report for report in reports if report.left_s is not None]
    assert known
    assert min(report.done for report in known) == 2
    for report in known:
        assert report.left_s == pytest.approx(0.5 * (4 - report.done))


def test_meter_follows_a_change_of_speed_and_counts_resumed_work_as_no_speed() -> None:
    now, reports = [0.0], []
    meter = Meter("train", 10_000, reports.append, done=5_000, clock=lambda: now[0])
    for update in range(100):
        now[0] += 1.0 if update < 50 else 0.5
        meter.update(5_000 + 10 * (update + 1))
    assert reports[10].per_s == pytest.approx(10.0)
    assert reports[-1].per_s == pytest.approx(20.0)


@pytest.mark.parametrize(
    "error", [OSError("gone"), ValueError("closed"), BrokenPipeError(), SystemExit(1)]
)
def test_what_shows_the_reports_may_fail(error: BaseException) -> None:
    calls = []

    def broken(report: Report) -> None:
        calls.append(report)
        raise error

    meter = Meter("train", 10, broken)
    for done in range(1, 4):
        meter.update(done)
    assert len(calls) == 1  # it is not asked again


def test_an_interrupt_while_something_is_shown_is_one() -> None:
    def interrupted(report: Report) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Meter("train", 10, interrupted).update(1)
