"""What a sweep tries: values, ranges, seeds, what a sampler draws, and what is stopped early."""

from __future__ import annotations

import math
import pathlib

import pytest
import sweep_cases
from hypothesis import given
from hypothesis import strategies as st

from alohas2r.errors import ConfigError
from alohas2r.experiments.sweep import space, state, stopping
from alohas2r.experiments.sweep.space import Choices, Range

SETTINGS = sweep_cases.Settings()


def test_values_ranges_and_lists_are_read() -> None:
    read = space.parse_space(
        ["a=1,2", "b=1e-4:1e-3:log", "c=(1,2),(3,4)", "d=x", "e=-1:2", "f=(64,64)"]
    )
    assert read == {
        "a": Choices(("1", "2")),
        "b": Range(1e-4, 1e-3, log=True),
        "c": Choices(("(1,2)", "(3,4)")),
        "d": Choices(("x",)),
        "e": Range(-1.0, 2.0),
        "f": Choices(("(64,64)",)),
    }
    assert space.varied(read) == ["a", "b", "c", "e"]


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["a"], "write key=value"),
        (["=1"], "write key=value"),
        (["a="], "empty"),
        (["a=1,,2"], "empty"),
        (["a=1,1"], "twice"),
        (["a=64,64"], "brackets"),
        (["a=1", "a=2"], "set twice"),
        (["a=2:1"], "larger"),
        (["a=0:1:log"], "above 0"),
    ],
)
def test_what_is_no_setting_is_said(settings: list[str], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        space.parse_space(settings)


@given(st.lists(st.integers(0, 50), min_size=1, unique=True))
def test_seeds_are_read_as_they_are_written(seeds: list[int]) -> None:
    assert space.parse_seeds(",".join(map(str, seeds))) == tuple(seeds)
    last = max(seeds)
    assert space.parse_seeds(f"0..{last}") == tuple(range(last + 1))


@pytest.mark.parametrize("text", ["", "x", "0..", "..3", "0...3", "-1", "1.5", "2..1", "0,0", "1,"])
def test_malformed_seeds_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        space.parse_seeds(text)


def test_a_grid_is_every_combination_and_each_changes_one_key() -> None:
    read = space.parse_space(["a=1,2,3", "b=x,y", "c=0"])
    grid = space.grid(read)
    assert len(grid) == len({tuple(one.items()) for one in grid}) == 6
    each = space.one_at_a_time(read)
    assert each[0] == {"a": "1", "b": "x", "c": "0"}
    assert len(each) == 1 + 2 + 1
    for one in each[1:]:
        assert sum(one[key] != each[0][key] for key in one) == 1
        assert one in grid
    with pytest.raises(ConfigError, match="--sampler"):
        space.grid(space.parse_space(["a=0:1"]))


def test_ranges_of_whole_numbers_are_known_by_the_setting() -> None:
    known = space.typed(space.parse_space(["number=1:8", "rate=0:1"]), SETTINGS)
    assert known == {"number": Range(1, 8, whole=True), "rate": Range(0, 1)}
    for text, part in (
        ("numbr=1:8", "Did you mean 'number'"),
        ("fails=0:1", "true or false"),
        ("number=1:2.5", "whole number"),
    ):
        with pytest.raises(ConfigError, match=part):
            space.typed(space.parse_space([text]), SETTINGS)


@given(st.floats(1e-6, 1e6), st.floats(1.001, 1e3), st.floats(0, 1))
def test_what_is_drawn_stays_in_its_range(low: float, ratio: float, share: float) -> None:
    one = Range(low, low * ratio)
    value = one.low + share * (one.high - one.low)
    written = float(one.text(value))
    assert one.low <= written <= one.high
    assert math.isclose(written, value, rel_tol=1e-5)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_sampler_draws_within_its_ranges_and_the_same_again(
    tmp_path: pathlib.Path, sampler: str
) -> None:
    pytest.importorskip("optuna")
    from alohas2r.experiments.sweep import proposals

    drawn: list[list[dict[str, str]]] = []
    for folder in ("a", "b"):
        asked = sweep_cases.plan(
            "rate=0.001:1:log",
            "number=1:5",
            "fails=true,false",
            "pause=0",
            sampler=sampler,
            trials=20,
        )
        sweep = state.begin(tmp_path / folder, _typed(asked), 1, [])
        for _ in range(20):
            values = proposals.propose(sweep)
            trial = sweep.add(values)
            score = 1 - abs(math.log10(float(values["rate"])) + 1)  # best at 0.1
            for seed in trial.runs:
                trial.runs[seed] = state.RunState("done", 1, score)
        drawn.append([dict(trial.values) for trial in sweep.trials])
    assert drawn[0] == drawn[1]
    for values in drawn[0]:
        assert 0.001 <= float(values["rate"]) <= 1
        assert int(values["number"]) in range(1, 6)
        assert values["fails"] in ("true", "false")
        assert values["pause"] == "0"
    assert len({values["rate"] for values in drawn[0]}) > 10
    if sampler == "tpe":  # it has learnt where the best are
        late = [abs(math.log10(float(values["rate"])) + 1) for values in drawn[0][10:]]
        early = [abs(math.log10(float(values["rate"])) + 1) for values in drawn[0][:6]]
        assert sum(late) / len(late) < sum(early) / len(early)


def test_a_sampler_is_told_of_what_failed_was_stopped_or_goes_on(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("optuna")
    from alohas2r.experiments.sweep import proposals

    asked = _typed(sweep_cases.plan("rate=0:1", sampler="tpe", trials=6, seeds=(0,)))
    sweep = state.begin(tmp_path, asked, 1, [])
    for run in (state.RunState("failed", 1), state.RunState("open", 1), state.RunState()):
        sweep.add(proposals.propose(sweep)).runs[0] = run
    sweep.trials[2].stopped = {"step": 10, "value": 0.1, "better": 0.75}
    assert 0 <= float(proposals.propose(sweep)["rate"]) <= 1


def _typed(asked: state.Plan) -> state.Plan:
    from alohas2r.experiments.sweep.sweep import prepared

    return prepared(asked, SETTINGS)[0]


def test_a_plan_says_what_does_not_go_together() -> None:
    plan = sweep_cases.plan
    for wrong, part in (
        (lambda: plan("rate=0.5", sampler="tpe"), "--trials"),
        (lambda: plan("rate=0.5", trials=3), "--trials goes with"),
        (lambda: plan("rate=0.5", sampler="tpe", trials=3), "several values"),
        (lambda: plan("rate=0.5", seeds=()), "seed"),
        (lambda: plan("rate=0.5", stop_worst=1.0), "stop_worst"),
        (lambda: plan("rate=0.5", sampler="magic"), "sampler"),
    ):
        with pytest.raises(ConfigError, match=part):
            wrong()


def curve(*values: float) -> list[tuple[int, float]]:
    return [(10 * (index + 1), value) for index, value in enumerate(values)]


def test_the_worst_share_is_stopped_and_nothing_else() -> None:
    curves = {number: [curve(0.0, number / 10)] for number in range(5)}
    assert set(stopping.behind(curves, 0.5, True)) == {0, 1}
    assert set(stopping.behind(curves, 0.25, True)) == {0}
    losses = {number: [curve(1.0, number / 10)] for number in range(5)}
    assert set(stopping.behind(losses, 0.5, False)) == {3, 4}
    assert stopping.behind(curves, 0.5, True)[0] == (20, 0.0, 1.0)


def test_a_configuration_is_compared_at_the_step_that_it_has_reached() -> None:
    # The others were no better at this step, though they are now.
    curves = {number: [curve(0.1, 0.1, 0.9)] for number in range(4)} | {4: [curve(0.1)]}
    assert not stopping.behind(curves, 0.5, True)
    curves[4] = [curve(0.1, 0.05)]  # what it had reached once, counts
    assert not stopping.behind(curves, 0.5, True)
    curves[4] = [curve(0.0, 0.0)]
    assert stopping.behind(curves, 0.5, True) == {4: (20, 0.0, 1.0)}


def test_of_few_or_equal_ones_none_is_stopped() -> None:
    assert not stopping.behind({n: [curve(n)] for n in range(3)}, 0.5, True)
    assert not stopping.behind({n: [curve(0.5)] for n in range(9)}, 0.5, True)
    assert not stopping.behind({n: [[]] for n in range(9)}, 0.5, True)
    # A configuration's seeds count together.
    curves = {n: [curve(0.5), curve(0.5)] for n in range(4)} | {4: [curve(0.2), curve(0.8)]}
    assert not stopping.behind(curves, 0.5, True)
