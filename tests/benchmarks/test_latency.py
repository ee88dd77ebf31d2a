"""Latency measurements: what they count, that all variants are the same policy, that nothing stays."""

from __future__ import annotations

import multiprocessing
import pathlib
import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax2onnx")
pytest.importorskip("websockets")

import onnx_cases

from alohas2r.benchmarks import latency
from alohas2r.core.progress import Report
from alohas2r.errors import ArtifactError, BackendUnavailable, ConfigError
from alohas2r.policies.onnx import network
from alohas2r.policies.onnx.runtime import OnnxPolicy

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    return onnx_cases.exported("staged", tmp_path_factory)


def check_figures(found: dict[str, Any], count: int) -> None:
    assert found["count"] == count
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["worst_ms"]
    assert 0 < found["mean_ms"] <= found["worst_ms"]


def test_all_variants_in_one_run(staged: tuple[pathlib.Path, pathlib.Path]) -> None:
    reports: list[Report] = []
    found = latency.bench_policy(
        staged[0], acts=100, paced_s=0.1, rate_hz=100, progress=reports.append
    )
    for name in ("onnx", "jax", "server"):
        check_figures(found[name]["flat_out"], 100)
        check_figures(found[name]["paced"], 10)
        assert found[name]["flat_out"]["p50_ms"] < 50  # the robot's period
    # The server adds a round trip to the same computation.
    assert found["server"]["flat_out"]["p50_ms"] > found["onnx"]["flat_out"]["p50_ms"]
    assert reports[-1].done == reports[-1].total == 3 * 110
    for mode in ("flat_out", "paced"):
        ratio = found["onnx"][mode]["p50_ms"] / found["jax"][mode]["p50_ms"]
        assert found["onnx_over_jax"][mode] == pytest.approx(ratio, abs=1e-3)
    assert found["machine"]["threads"] == 1
    assert multiprocessing.active_children() == []


def test_a_file_alone(staged: tuple[pathlib.Path, pathlib.Path]) -> None:
    found = latency.bench_policy(staged[1], acts=20, paced_s=0)
    assert found["jax"] is None
    assert found["onnx_over_jax"] is None
    check_figures(found["onnx"]["flat_out"], 20)
    assert found["server"]["paced"] is None


def test_the_jitted_policy_is_the_same(staged: tuple[pathlib.Path, pathlib.Path]) -> None:
    file = OnnxPolicy.load(staged[1])
    act = latency._jitted(network.load_network(staged[0], samples=8))
    for observation in file.examples():
        np.testing.assert_allclose(act(observation), file.act(observation), rtol=0, atol=1e-5)


def test_pacing_starts_actions_a_period_apart() -> None:
    started = []

    def act(_: Any) -> np.ndarray:
        started.append(time.perf_counter())
        time.sleep(0.002)
        return np.zeros(1)

    seconds = latency._timed(act, [{}], 10, 0.02)
    assert len(seconds) == 10
    assert min(seconds) >= 0.002
    # On average: a late start does not put off the next ones.
    assert started[-1] - started[0] == pytest.approx(9 * 0.02, abs=0.05)
    assert np.diff(started).min() > 0.002


def test_what_cannot_be_measured(
    staged: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    for acts, paced_s, rate_hz in ((0, 1, 20), (1, -1, 20), (1, 1, 0)):
        with pytest.raises(ConfigError):
            latency.bench_policy(staged[1], acts, paced_s, rate_hz)
    for path in (tmp_path, tmp_path / "nowhere.onnx"):
        with pytest.raises(ArtifactError):
            latency.bench_policy(path, 1, 0)
    with (
        pytest.raises(BackendUnavailable, match="ended before"),
        latency._served(tmp_path / "nowhere.onnx"),
    ):
        pass
    assert multiprocessing.active_children() == []
