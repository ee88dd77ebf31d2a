from __future__ import annotations

import dataclasses
import json
import pathlib
import shlex

import numpy as np
import pytest

from alohas2r.core import assets
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.learning.run import manifest


@dataclasses.dataclass(frozen=True)
class Settings:
    """A configuration."""

    rate: float = 0.1
    size: int = 3


IDENTITY = {"seed": 1, "engine": "cpu", "renderer": "exact", "teacher": "ab12"}


def begin(
    folder: pathlib.Path,
    resume: bool,
    settings: Settings = Settings(),
    checkpoint: bool = False,
    **changes: str | int,
) -> None:
    manifest.begin(folder, settings, {**IDENTITY, **changes}, resume, checkpoint)


def test_a_run_is_one_from_its_manifest_on(tmp_path: pathlib.Path) -> None:
    assert not manifest.exists(tmp_path)
    with pytest.raises(ArtifactError, match="holds no run to resume; leave out --resume"):
        begin(tmp_path, resume=True)
    begin(tmp_path, resume=False)
    assert manifest.exists(tmp_path)
    begin(tmp_path, resume=True)  # killed before its first checkpoint
    begin(tmp_path, resume=True, checkpoint=True)
    with pytest.raises(ConfigError, match="holds a run already; add --resume"):
        begin(tmp_path, resume=False, checkpoint=True)
    begin(tmp_path, resume=False, seed=2)  # without a checkpoint there is nothing to lose
    assert manifest.recorded(tmp_path, "seed", "") == "2"


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 2), ("engine", "warp"), ("renderer", "raycast"), ("teacher", "cd34")],
)
def test_nothing_is_switched_unseen(tmp_path: pathlib.Path, name: str, value: str | int) -> None:
    begin(tmp_path, resume=False)
    with pytest.raises(ConfigError, match=f"{name}: {IDENTITY[name]} -> {value}"):
        manifest.begin(tmp_path, Settings(), {**IDENTITY, name: value}, True, False)
    with pytest.raises(ConfigError, match="size: 3 -> 4"):
        begin(tmp_path, resume=True, settings=Settings(size=4))


def test_an_older_manifest_that_does_not_name_something_is_accepted(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / manifest.NAME
    path.write_text(json.dumps({"config": {"rate": 0.1}, "seed": 1}))
    begin(tmp_path, resume=True)
    assert manifest.recorded(tmp_path, "renderer", "auto") == "auto"
    assert manifest.recorded(tmp_path, "engine", "auto") == "cpu"  # there was no other
    with pytest.raises(ConfigError, match="engine: cpu -> warp"):
        begin(tmp_path, resume=True, engine="warp")
    with pytest.raises(ConfigError, match=r"rate: 0.1 -> 0.2"):
        begin(tmp_path, resume=True, settings=Settings(rate=0.2))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"config": 3}', ""])
def test_rubble_is_named(tmp_path: pathlib.Path, content: str) -> None:
    (tmp_path / manifest.NAME).write_text(content)
    with pytest.raises(ArtifactError, match=r"config\.json is damaged"):
        begin(tmp_path, resume=True)
    assert manifest.recorded(tmp_path, "seed", "auto") == "auto"


def test_a_command_is_read_by_a_shell_as_it_was_meant() -> None:
    options = {"seed": 3, "pick": None, "teacher": "a folder/it's", "encoder": "none"}
    options["start_from"] = "params/pick"
    command = manifest.command("distill", options, ["hold_out.probability=(0.1, 0.2)"])
    assert shlex.split(command) == [
        *("alohas2r", "distill", "--seed", "3", "--teacher", "a folder/it's"),
        *("--encoder", "none", "--start-from", "params/pick"),
        *("--set", "hold_out.probability=(0.1, 0.2)"),
    ]


def test_what_comes_with_the_package_is_named_wherever_it_is(tmp_path: pathlib.Path) -> None:
    shipped = assets.data_path("params") / "teacher"
    assert manifest.named(shipped) == manifest.named(str(shipped)) == "params/teacher"
    assert manifest.named(tmp_path) == str(tmp_path)


@pytest.mark.parametrize("times", [0, 1, 3, 7, 20, 50])
def test_events_are_spread_evenly_and_the_last_is_at_the_end(times: int) -> None:
    updates = 20
    due = [update for update in range(1, updates + 1) if manifest.due(update, updates, times)]
    assert len(due) == min(times, updates)
    if times:
        assert due[-1] == updates
        gaps = np.diff([0, *due])
        assert gaps.max() - gaps.min() <= 1
