from __future__ import annotations

import json
import pathlib

import pytest

pytest.importorskip("brax")

from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.experiments import contamination
from alohas2r.learning.run import curves
from alohas2r.learning.run import log as run_log

pytestmark = pytest.mark.compiles


@pytest.mark.long
def test_both_ways_are_trained_for_equal_steps_and_drawn(tmp_path: pathlib.Path) -> None:
    result = contamination.run(tmp_path, steps=512, num_envs=8)
    assert set(result) == set(contamination.LABELS)
    assert result["one"]["steps"] == result["both"]["steps"] == [256, 512]
    for rows in result.values():
        for name in ("reached", "lifted", "success"):
            assert all(0 <= value <= 1 for value in rows[name])
    assert json.loads((tmp_path / "contamination.json").read_text()) == result
    assert (tmp_path / "contamination.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="steps"):
        contamination.run(tmp_path, steps=0)


def test_learning_curves_are_drawn_from_a_runs_metrics(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ArtifactError, match="no metrics"):
        curves.training_curve(tmp_path, tmp_path / "curve.png")
    with run_log.RunLog(tmp_path, 300) as log:
        for step in (100, 200, 300):
            log.write(step, {"train/reward": step / 300, "train/stage": 1.0, "eval/success": 0.5})
    path = curves.training_curve(tmp_path, tmp_path / "curve.png", "a title")
    assert path.read_bytes().startswith(b"\x89PNG")
