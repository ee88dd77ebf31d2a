"""A person shows a task at the keyboard."""

import os

import numpy as np
import online_cases
import pytest

from alohas2r.core import assets
from alohas2r.core.records import Record
from alohas2r.deployment.online.coach import Coach, Coached
from alohas2r.deployment.online.deciders import Looking, Scripted
from alohas2r.deployment.online.demonstrate import DemoConfig, demonstrate
from alohas2r.deployment.online.explorer import Explorer, Phase
from alohas2r.deployment.online.keyboard import HELP, Keyboard
from alohas2r.deployment.online.learn import learn
from alohas2r.deployment.online.runs import LearnConfig
from alohas2r.deployment.rig import RigConfig
from alohas2r.errors import ConfigError
from alohas2r.learning.online.experience import Closed, Row, read_all
from alohas2r.policies.online import networks
from alohas2r.policies.online.eyes import read_eyes
from alohas2r.policies.online.published import Published
from alohas2r.policies.online.tasks import find_online_task
from alohas2r.policies.protocol import Notes

FELT = online_cases.proprioception(np.tile(online_cases.HOME, 2))


def test_keys_move_the_gripper_from_where_it_is(terminal):
    person, stream = terminal
    said: list[str] = []
    with Keyboard(said.append, stream) as keyboard:
        os.write(person, b"wwww")  # before the episode
        keyboard.begin(())
        np.testing.assert_array_equal(keyboard.act(FELT), [0, 0, 0, 0, 1])
        os.write(person, b"aaawz")
        np.testing.assert_array_equal(keyboard.act(FELT), [1, 1, 0, 0, 1])
        os.write(person, b"Rf g d")  # up and down is neither; space twice as well
        np.testing.assert_array_equal(keyboard.act(FELT), [-1, 0, 0, 1, 1])
        os.write(person, b" ")
        np.testing.assert_array_equal(keyboard.act(FELT), [0, 0, 0, 0, -1])
        np.testing.assert_array_equal(keyboard.act(FELT), [0, 0, 0, 0, -1])  # it stays closed
        assert not keyboard.gave_up
        os.write(person, b"x")
        keyboard.act(FELT)
        assert keyboard.gave_up
        keyboard.begin(())
        assert not keyboard.gave_up
    assert said == [HELP]


def test_an_episode_that_is_given_up_is_over(terminal):
    person, stream = terminal
    with Keyboard(print, stream) as keyboard:
        explorer = Explorer(SPEC, Scripted(keyboard, "human"), lambda felt: None, seconds=1.0)
        explorer.begin((), True, False)
        seen = {
            "proprioception": FELT,
            "left_rgb": np.zeros((32, 32, 3), np.uint8),
            "left_depth": np.full((32, 32), 0.3, np.float32),
        }
        os.write(person, b"a")
        assert explorer.act(seen)[0] > 0
        assert explorer.notes().values["source"] == "human"
        os.write(person, b"x")
        for _ in range(5):
            explorer.act(seen)
        assert explorer.phase is Phase.IDLE
        assert explorer.notes().values == {} or not explorer.success
        explorer.begin((), True, False)
        for _ in range(21):
            explorer.act(seen)
        assert explorer.phase is Phase.IDLE  # a second has passed
        assert explorer.steps == 20


class Played:
    """What is done and logged in the episodes of a policy that a person helps."""

    def __init__(self, person: int, coach: Coach) -> None:
        eyes, *_ = read_eyes(assets.data_path("params") / "student", SPEC.side)
        learned = Looking(SPEC, eyes)
        weights = {name: np.full(shape, 0.01) for name, shape in networks.shapes(SPEC).items()}
        learned.use(Published(7, weights))
        decider = Coached(SPEC, learned, coach)
        self.explorer = Explorer(SPEC, decider, lambda felt: None, seconds=60.0)
        self._person, self._draw = person, np.random.default_rng(0)
        self.records: list[Record] = []

    def steps(self, keys: str = "", count: int = 4) -> Notes:
        """Presses keys, goes through control steps, and returns the notes of the first, which decides."""
        os.write(self._person, keys.encode())
        notes = Notes({}, {})
        for number in range(count):
            arrays = online_cases.observed(np.tile(online_cases.HOME, 2), self._draw)
            seen = {name.removeprefix("observation/"): value for name, value in arrays.items()}
            arrays["action"] = self.explorer.act(seen)
            said = {"episode": 0, "mode": "run", "step": len(self.records)}
            said["learning"] = self.explorer.notes().values
            self.records.append(Record("step", said, arrays, 0))
            notes = self.explorer.notes() if number == 0 else notes
        return notes


def test_a_person_takes_over_gives_back_and_judges(terminal):
    person, stream = terminal
    said: list[str] = []
    with Coach(said.append, stream) as coach:
        played = Played(person, coach)
        played.explorer.begin((0,), True, False)
        first = played.steps("w")  # nobody has taken over
        assert (first.values["source"], first.values["version"]) == ("policy", 7)
        assert np.abs(first.arrays["wanted"]).max() > 1e-3
        first = played.steps("c")
        assert (first.values["source"], first.values["version"]) == ("human", 7)
        np.testing.assert_array_equal(first.arrays["wanted"], np.zeros(5))  # the fingers as well
        np.testing.assert_array_equal(played.steps("a").arrays["wanted"], [1, 0, 0, 0, 0])
        np.testing.assert_array_equal(played.steps(" ").arrays["wanted"], [0, 0, 0, 0, -1])
        assert played.steps("cw").values["source"] == "policy"
        assert not played.steps("y").values["decision"]
        assert not played.records[-1].arrays["action"].any()  # it stands meanwhile
        assert played.steps("u").values["decision"]
        played.steps("c")
        played.steps("n")
        played.steps("y", 21)
        assert played.explorer.phase is Phase.IDLE
        assert played.explorer.success
        rows = read_all(SPEC, played.records)
        sources = [one.source for one in rows if isinstance(one, Row)]
        assert sources == ["policy", "human", "human", "human", "policy", "policy", "human"]
        ends = [(one.reward, one.terminated) for one in rows if isinstance(one, Closed)]
        assert ends == [(0.0, False)] * 6 + [(1.0, True)]
        assert said[1:4] == ["You lead.", "The policy leads.", "success; u takes it back"]


def test_a_failure_is_marked_and_evaluations_are_unaided(terminal):
    person, stream = terminal
    with Coach(lambda line: None, stream) as coach:
        played = Played(person, coach)
        played.explorer.begin((0,), True, False)
        played.steps()
        played.steps("n", 21)
        last = played.records[-1].values["learning"]
        assert (last["truncated"], last["terminated"], last["reward"]) == (True, False, 0.0)
        for explores in (False, True):  # the policy's time is the same with and without a person
            played.explorer.begin((1,), explores, not explores)
            assert played.steps("cy" if not explores else "").values["source"] == "policy"
            while played.explorer.phase is Phase.ACT:
                played.steps(count=1)
            assert played.explorer.steps == find_online_task(SPEC.task).steps
            assert played.records[-1].values["learning"]["truncated"]


def test_what_a_person_cannot_do_is_said(tmp_path, terminal):
    _, stream = terminal
    with open(os.devnull) as nothing, pytest.raises(ConfigError, match="needs a terminal"):
        Keyboard(print, nothing)
    config = LearnConfig("reach", "bc", ("demos",), stepped=True)
    with pytest.raises(ConfigError, match="cannot help while time stands still"):
        learn(config, tmp_path / "run", coach=Coach(print, stream))
    with pytest.raises(ConfigError, match="while time stands still"):
        demonstrate(
            DemoConfig("reach", "keyboard"),
            RigConfig("sim", stepped=True),
            tmp_path / "demos",
            person=Keyboard(print, stream),
        )


SPEC = online_cases.spec()
