"""A policy at work in a window: the episodes of the protocol, until it is closed."""

from __future__ import annotations

import pathlib
import time

import mujoco
import numpy as np
import pytest

from alohas2r.evaluation.episodes import episode_keys
from alohas2r.evaluation.evaluate import Runner, load_policy
from alohas2r.evaluation.viewing import play

pytestmark = pytest.mark.compiles


class Watching:
    """Keeps the states that it is shown, and closes after some."""

    def __init__(self, most: int) -> None:
        self._most, self.states = most, list[np.ndarray]()
        self._data: mujoco.MjData | None = None

    def __call__(self, model: mujoco.MjModel, data: mujoco.MjData) -> Watching:
        self._data = data
        return self

    def update(self) -> bool:
        assert self._data is not None
        self.states.append(self._data.qpos.copy())
        return len(self.states) < self._most


@pytest.mark.long
def test_it_shows_the_episodes_of_an_evaluation_until_it_is_closed(
    random_policy: pathlib.Path,
) -> None:
    window = Watching(most=170)  # an episode and the beginning of the next
    assert play(random_policy, window, seed=7, realtime=False) == [False]
    ran = Runner(load_policy(random_policy), None, episode_keys(7, 0, 1)).run()
    lasted = int(ran.steps[0])
    np.testing.assert_allclose(np.stack(window.states[:lasted]), ran.qpos[:lasted, 0], atol=1e-6)
    assert np.abs(window.states[lasted] - window.states[0]).max() > 1e-3  # another start
    started, window = time.monotonic(), Watching(most=20)
    assert play(random_policy, window, seed=7) == []
    assert time.monotonic() - started > 19 * 0.05
