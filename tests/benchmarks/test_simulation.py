from __future__ import annotations

import numpy as np
import pytest

from alohas2r.benchmarks import recording, simulation
from alohas2r.core import progress
from alohas2r.errors import ConfigError
from alohas2r.sim import scene

pytestmark = pytest.mark.alone


def test_one_run_measures_physics_environment_and_training() -> None:
    reports: list[progress.Report] = []
    result = simulation.bench_sim(
        phase="pick", envs=2, seconds=0.2, threads=1, progress=reports.append
    )
    assert (result["phase"], result["engine"]) == ("pick", "cpu")
    assert (result["envs"], result["threads"]) == (2, 1)
    assert result["substeps"] == scene.SUBSTEPS
    assert result["turns"] >= 3
    raw, environment, training = (
        result[f"{name}_steps_per_s"] for name in ("raw", "environment", "training")
    )
    # An update costs something on top of what it learns from.
    assert 0 < training < environment
    assert raw > 0
    assert result["environment_over_raw"] == pytest.approx(environment / raw, abs=2e-3)
    assert result["training_over_raw"] == pytest.approx(training / raw, abs=2e-3)
    assert reports[-1].done == 100


def test_recording_leaves_the_engine_as_it_is() -> None:
    from alohas2r.sim.engines.cpu import CpuEngine

    pick = scene.load_physics("pick")
    qpos, ctrl = np.tile(pick.home_qpos, (2, 1)), np.tile(pick.home_ctrl, (2, 1))
    plain, recorded = CpuEngine(pick, 2, 1), recording.Recording(CpuEngine(pick, 2, 1))
    rows = []
    for engine in (plain, recorded):
        physics, _ = engine.reset(None, np.ones(2, bool), qpos, ctrl)
        physics, _ = engine.step(physics, ctrl + 0.1)
        rows.append(physics.rows.copy())
    np.testing.assert_array_equal(*rows)
    np.testing.assert_array_equal(recorded.targets, [ctrl + 0.1])


def test_nothing_is_measured_in_no_time() -> None:
    with pytest.raises(ConfigError, match="seconds"):
        simulation.bench_sim(seconds=0)
    with pytest.raises(ConfigError, match="'pik'"):
        simulation.bench_sim(phase="pik", seconds=0.1)
