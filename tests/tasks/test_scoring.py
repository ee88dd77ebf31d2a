"""The scorer of tasks whose success is an event."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.tasks.scoring import Step, SuccessScorer, stages_reached


class Measures(NamedTuple):
    """Of three episodes in one step."""

    held: np.ndarray
    success: np.ndarray
    joint_speed: np.ndarray
    contact_force: np.ndarray


def test_success_is_the_first_time_and_what_holds_at_the_end_is_told_apart() -> None:
    """Episode 0 succeeds and keeps it, 1 succeeds and loses it, 2 ends early and then counts no more."""
    scorer = SuccessScorer(4, 3, ("held", "out", "unstable"), "held")
    held = np.array([[0, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 1]], bool)
    done = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 0], [1, 1, 1]], bool)
    going = np.ones(3, bool)
    for number in range(4):
        zeros = np.zeros(3)
        measures = Measures(held[number], held[number], zeros + number, zeros)
        finite = np.ones(3, bool)
        scorer.update(Step(number, going.copy(), None, None, done[number], finite, measures))  # pyright: ignore[reportArgumentType]
        going &= ~done[number]
    table = scorer.table()
    assert table["success"].tolist() == [True, True, False]
    assert table["held_at_end"].tolist() == [True, False, False]
    assert table["out"].tolist() == [False, False, True]
    assert table["peak_joint_speed"].tolist() == [3, 3, 1]
    np.testing.assert_allclose(table["time_to_success_s"], [2 * CONTROL_PERIOD_S] * 2 + [np.nan])
    summary = scorer.summary(table)
    assert summary["stages"].keys() == {"held", "out", "unstable"}
    # When each stage was reached, for films: the step is counted from 1, and 0 is never.
    assert scorer.reached["held"].tolist() == [2, 2, 0]
    reached = stages_reached(scorer.reached, table)
    assert list(reached) == ["held", "success"]
    assert reached["success"].tolist() == [2, 2, 0]
    told = stages_reached({"crossed": np.ones(3, int)}, {**table, "inserted": table["success"]})
    assert list(told) == ["inserted"]
