"""A person beside an insertion: takes over one arm from where it is, and says what succeeded."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TextIO

import numpy as np
import online_cases
import pytest

from alohas2r.core.records import Record
from alohas2r.deployment.online.coach import Judge
from alohas2r.deployment.online.deciders import Alone, Learned
from alohas2r.deployment.online.explorer import Phase
from alohas2r.deployment.online.insert_coach import FINE, CoachedInsertion, InsertCoach
from alohas2r.deployment.online.insert_way import arms_of
from alohas2r.deployment.online.inserter import Inserter, Unsaid
from alohas2r.deployment.online.opened import shipped_base
from alohas2r.embodiment.joints import IS_GRIPPER
from alohas2r.embodiment.polar import SCALE
from alohas2r.learning.online.experience import Closed, Row, read_all
from alohas2r.policies.online import networks
from alohas2r.policies.online.insertion import TASK
from alohas2r.policies.online.published import Published
from alohas2r.policies.onnx.base import insert_spec, read_base

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def base():
    return read_base(shipped_base())


class Beside:
    """Episodes of a student's insertion beside which a person presses keys; what is told is followed at once."""

    def __init__(
        self,
        base,
        terminal,
        coach: type[InsertCoach] | type[Judge] = InsertCoach,
        truth: Callable | None = None,
    ) -> None:
        self.person, stream = terminal
        self.said: list[str] = []
        self.coach = coach(self.said.append, stream)
        self.spec = insert_spec(base, (8,))
        chooser = Alone(self.spec)
        if coach is InsertCoach:
            chooser = Learned(self.spec)
            shapes = networks.shapes(self.spec)
            chooser.use(Published(7, {name: np.full(one, 0.01) for name, one in shapes.items()}))
        aided = CoachedInsertion(self.spec, chooser, self.coach, 40, judged=truth is None)
        self.one = Inserter(
            self.spec, aided, base, truth, reward=Unsaid(TASK), slower=1.0, seconds=60.0
        )
        self.examples = [dict(seen) for seen in base.policy.examples() if seen["switched"]]
        home = np.tile([0.25, -0.4, 1.0, 0.0, -0.4, 0.0, 0.02], 2)
        home[7] = -0.25
        self.targets = home
        self.records: list[Record] = []

    def step(self, keys: str = "", switched: bool = True) -> np.ndarray:
        """Presses keys, goes through a control step, and returns the actions [14]."""
        os.write(self.person, keys.encode())
        felt = online_cases.proprioception(self.targets)
        seen = {**self.examples[0], "proprioception": felt, "switched": np.array(switched)}
        actions = self.one.act(seen)
        notes, step = self.one.notes(), len(self.records)
        arrays = {f"observation/{name}": value for name, value in seen.items()}
        arrays |= {f"learning/{name}": value for name, value in notes.arrays.items()}
        values = {"episode": 0, "mode": "run", "step": step, "learning": notes.values}
        self.records.append(Record("step", values, {**arrays, "action": actions}, 0))
        self.targets = self.targets + self.spec.student.action.scale * actions
        return actions

    def places(self) -> np.ndarray:
        """Returns where both grippers are told to be [2, 4] (rad, m, m, rad)."""
        parts = zip(arms_of(self.spec), np.split(self.targets, 2), strict=True)
        return np.array([one.arm.polar(own)[:4] for one, own in parts])

    @property
    def last(self) -> dict:
        """What the log says of the last step."""
        return dict(self.records[-1].values["learning"])


def test_a_person_leads_one_arm_from_where_it_is(base, terminal: tuple[int, TextIO]) -> None:
    beside = Beside(base, terminal)
    with beside.coach:
        beside.one.begin((0,), True, False)
        assert np.abs(beside.step("w")).max() > 1e-3  # the student's; nobody has taken over
        assert beside.last["source"] == "policy"
        actions = beside.step("c")
        assert beside.last["source"] == "human"
        assert np.abs(actions[~IS_GRIPPER]).max() < 1e-6
        side = 0
        for key, which in (("r", 2), ("2", None), ("w", 1)):
            side = 1 if key == "2" else side
            before = beside.places()
            beside.step(key)
            moved = beside.places() - before
            assert np.abs(moved[1 - side]).max() < 1e-6  # the other stands
            if which is None:
                assert np.abs(moved[side]).max() < 1e-6
            else:
                assert moved[side][which] == pytest.approx(FINE * SCALE[which], rel=0.2)
        assert "You lead the right arm." in beside.said
        assert np.abs(beside.step("c")).max() > 1e-3
        assert beside.last["source"] == "policy"


def test_what_a_person_says_ends_an_episode_and_is_learnt_from(
    base, terminal: tuple[int, TextIO]
) -> None:
    beside = Beside(base, terminal)
    with beside.coach:
        beside.one.begin((0,), True, False)
        beside.step(switched=False)
        assert beside.last["source"] == "base"
        for keys in ("", "c", "r", "c"):
            beside.step(keys)
        before = beside.targets
        beside.step("y")
        assert (beside.last["marked"], beside.last["decision"]) == ("wait", False)
        np.testing.assert_array_equal(beside.targets, before)  # it stands meanwhile
        beside.step("u")
        assert "marked" not in beside.last
        beside.step("y")
        for _ in range(20):
            assert beside.one.phase is Phase.ACT
            beside.step()
        assert (beside.one.phase, beside.one.success) == (Phase.IDLE, True)
        assert (beside.last["marked"], beside.last["terminated"]) == ("success", True)
    rows = read_all(beside.spec, beside.records)
    assert [one.source for one in rows if isinstance(one, Row)] == [
        *("policy", "human", "human", "policy", "policy")
    ]
    ends = [(one.reward, one.terminated) for one in rows if isinstance(one, Closed)]
    assert ends == [(0.0, False)] * 4 + [(1.0, True)]
    executed = [one.action for one in rows if isinstance(one, Closed)]
    assert np.abs(executed[1]).max() < 1e-5  # of the takeover itself
    assert np.abs(executed[2][:6]).max() > 1e-3
    assert np.abs(executed[2][6:]).max() < 1e-5  # the right arm stood


def test_a_policy_has_as_long_as_without_a_person(base, terminal: tuple[int, TextIO]) -> None:
    beside = Beside(base, terminal)
    with beside.coach:
        beside.one.begin((0,), True, False)
        beside.step("c")
        for _ in range(60):
            beside.step()
        assert beside.one.phase is Phase.ACT
        beside.step("c")
        for _ in range(39):
            assert beside.one.phase is Phase.ACT
            beside.step()
        beside.step()
        assert beside.one.phase is Phase.IDLE
        assert (beside.last["truncated"], "marked" in beside.last) == (True, False)


def test_where_nobody_else_knows_a_person_judges_evaluations_without_leading(
    base, terminal: tuple[int, TextIO]
) -> None:
    beside = Beside(base, terminal)
    with beside.coach:
        beside.one.begin((0,), False, True)
        beside.step("c")
        assert beside.last["source"] == "policy"
        for _ in range(21):
            beside.step("y" if not beside.coach.leads and "marked" not in beside.last else "")
        beside.step()
        assert (beside.one.phase, beside.one.success) == (Phase.IDLE, True)


def test_evaluations_of_a_simulation_go_by_the_truth(base, terminal: tuple[int, TextIO]) -> None:
    steps = iter(range(100))
    beside = Beside(base, terminal, truth=lambda: next(steps) >= 30)
    with beside.coach:
        beside.one.begin((0,), False, True)
        while beside.one.phase is Phase.ACT:
            beside.step("n")
        assert len(beside.records) == 31
        assert beside.last["terminated"]
        assert beside.one.true_success
        assert "marked" not in beside.last


def test_who_judges_leads_nothing(base, terminal: tuple[int, TextIO]) -> None:
    beside = Beside(base, terminal, Judge)
    with beside.coach:
        beside.one.begin((0,), True, False)
        beside.step("c")
        assert beside.last["source"] == "demo"
        actions = beside.step("w")
        assert np.abs(actions).max() > 1e-3
        for _ in range(21):
            beside.step("n" if "marked" not in beside.last else "")
        assert beside.one.phase is Phase.IDLE
        assert (beside.last["marked"], beside.last["truncated"]) == ("failure", True)
        assert all("learning/features" in one.arrays for one in beside.records)
