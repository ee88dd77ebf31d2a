"""Episodes on simulated arms: what they cost the loop beside them."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from alohas2r.deployment.trials import Reading, Trials, World
from alohas2r.sim import scene

pytestmark = pytest.mark.compiles


def test_no_step_compiles_so_that_none_is_late() -> None:
    """The servos stop by themselves when they hear nothing for the time that compiling takes."""
    model = scene.load_physics("insert").model
    placed = [(model.qpos0, np.zeros(14))]

    def state() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        qpos, targets = placed[-1]
        return qpos, np.zeros(model.nv), targets

    world = World(lambda qpos, targets: placed.append((qpos, targets)), None, Reading(state))
    trials = Trials(world, 3, seed=7)
    compiled: list[str] = []
    listening = True

    def listen(event: str, duration_secs: float, **_: object) -> None:
        if listening and "compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    for episode in (0, 2, 1):
        targets = trials.begin(episode)
        np.testing.assert_array_equal(targets, trials.targets[episode])
        for _ in range(3):
            assert not trials.over()
    assert compiled == []
    np.asarray(jax.jit(lambda x: x + 3.0)(np.ones(7)))  # what compiles is heard
    listening = False
    assert compiled
    result = trials.result()
    assert len(result["table"]["success"]) == 3
    assert result["success"]["rate"] == 0
