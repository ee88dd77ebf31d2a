"""A person shows a task at the keyboard."""

import os
import pty

import numpy as np
import online_cases
import pytest

from alohas2r.deployment.online.demonstrate import DemoConfig, demonstrate
from alohas2r.deployment.online.explorer import Explorer, Phase, Scripted
from alohas2r.deployment.online.keyboard import HELP, Keyboard
from alohas2r.deployment.rig import RigConfig
from alohas2r.errors import ConfigError

FELT = online_cases.proprioception(np.tile(online_cases.HOME, 2))


@pytest.fixture
def terminal():
    person, end = pty.openpty()
    with open(end, closefd=False) as stream:
        yield person, stream
    os.close(person)
    os.close(end)


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


def test_what_a_person_cannot_do_is_said(tmp_path, terminal):
    _, stream = terminal
    with open(os.devnull) as nothing, pytest.raises(ConfigError, match="needs a terminal"):
        Keyboard(print, nothing)
    with pytest.raises(ConfigError, match="while time stands still"):
        demonstrate(
            DemoConfig("reach", "keyboard"),
            RigConfig("sim", stepped=True),
            tmp_path / "demos",
            rule=Keyboard(print, stream),
        )


SPEC = online_cases.spec()
