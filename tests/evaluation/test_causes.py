"""Success by quantile of each cause."""

from __future__ import annotations

import itertools
import pathlib

import numpy as np
import pytest

from alohas2r.errors import ConfigError
from alohas2r.evaluation import causes
from alohas2r.tasks.protocol import EVAL_V1, EVAL_V2, without_causes

COUNT = 1000


def table() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    delay = draw.integers(0, 4, COUNT) * 50.0
    return {
        "success": draw.random(COUNT) < 1 - delay / 200,
        "cause_delay_ms": delay,
        "cause_gain": draw.random(COUNT),
        "cause_same": np.ones(COUNT),
        "peg_mm": draw.uniform(18, 34, COUNT),
        "time_to_success_s": draw.random(COUNT),
    }


def test_a_cause_that_costs_success_is_told_from_one_that_does_not() -> None:
    groups = causes.by_quantile(table())
    assert set(groups) == {"delay_ms", "gain", "peg_mm"}
    delays = [group["rate"] for group in groups["delay_ms"]]
    assert [group["from"] for group in groups["delay_ms"]] == [0, 50, 100, 150]
    np.testing.assert_allclose(delays, [1, 0.75, 0.5, 0.25], atol=0.08)
    gains = [group["rate"] for group in groups["gain"]]
    assert len(gains) == causes.QUANTILES
    assert max(gains) - min(gains) < 0.15
    for rows in groups.values():
        assert sum(row["episodes"] for row in rows) == COUNT
        assert all(row["low"] <= row["rate"] <= row["high"] for row in rows)
        assert all(a["to"] <= b["from"] for a, b in itertools.pairwise(rows))


def test_the_plot_is_a_picture(tmp_path: pathlib.Path) -> None:
    groups = causes.by_quantile(table())
    path = causes.plot(groups, tmp_path / "causes.png", "a policy", 0.6)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_causes_there_is_nothing_to_report() -> None:
    with pytest.raises(ConfigError, match="eval-v2"):
        causes.by_quantile({"success": np.ones(4, bool), "cause_gain": np.ones(4)})


def test_the_protocols_differ_and_the_nominal_one_draws_nothing() -> None:
    nominal = without_causes(EVAL_V2)
    assert len({EVAL_V1.hash, EVAL_V2.hash, nominal.hash}) == 3
    assert nominal.name == "eval-v2+causes=none"
    assert not nominal.variation.varies
    assert not nominal.insert.objects.vary
    assert nominal.insert.inside == EVAL_V2.insert.inside
    assert EVAL_V2.looks == "transfer held out"
