"""What a fleet refuses, in a line each."""

from __future__ import annotations

import pathlib
import socket
import sys
from typing import Any

import pytest
from fleet_cases import counting

from alohas2r.cli import app
from alohas2r.errors import BackendUnavailable, ConfigError
from alohas2r.learning.fleet.base import FleetConfig, Setup, check_identity, divide
from alohas2r.learning.fleet.ray import RayFleet
from alohas2r.learning.fleet.worker import identity, parts
from alohas2r.learning.ppo import train as ppo


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lag": 2}, "lag must be 0 or 1, not 2"),
        ({"workers": 0}, "workers must be at least 1, not 0"),
        ({"world": 0}, "world must be at least 1, not 0"),
        ({"kind": "mpi"}, "fleet must be one of local, ray, data-parallel, not 'mpi'"),
        ({"address": "here:1"}, "choose --fleet ray"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FleetConfig(**options)


def test_worlds_are_parts_of_the_environments() -> None:
    assert [(part.first, part.last) for part in parts(600, 256)] == [
        (0, 256),
        (256, 512),
        (512, 600),
    ]
    assert divide(5, 2) == [[0, 1, 2], [3, 4]]
    assert FleetConfig(workers=3).check_worlds(600) == 3


def test_there_are_not_more_workers_than_worlds(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="3 workers are more than the 2 worlds of 4") as error:
        ppo.train(
            "pick",
            "quick",
            tmp_path,
            overrides=["ppo.num_envs=8"],
            fleet=FleetConfig(workers=3, world=4),
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lag", "1", "--workers", "2"], "--workers, --lag belong to a fleet"),
        (["--fleet", "local", "--lag", "2"], "lag must be 0 or 1, not 2"),
        (["--fleet", "local", "--workers", "9"], "take at most --workers"),
    ],
)
def test_the_commands_say_so_in_a_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    for command in (["train-teacher", "--phase", "pick"], ["train-pixels"]):
        assert app.main([*command, "--preset", "quick", "--out", str(tmp_path), *words]) == 1
        assert said in " ".join(capsys.readouterr().err.split())


def test_a_worker_with_other_code_or_another_scene_is_refused_with_both_digests() -> None:
    ours = identity("a" * 64)
    check_identity(ours, ours._replace(host="other", process=1))
    for changed, words in (
        ({"code": "c" * 64, "package": "0.0"}, f"other code .*c{{40}}, not {ours.code[:40]}"),
        ({"model": "b" * 64}, "other scene .*b{40}, not a{40}"),
        ({"libraries": "jax 0.1"}, "other libraries .*jax 0.1, not jax "),
    ):
        with pytest.raises(ConfigError, match=words) as error:
            check_identity(ours, ours._replace(**changed))
        assert "\n" not in str(error.value)


def test_a_cluster_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(counting, "scene", 4, "scene")
    with socket.socket() as free:  # nobody listens
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        for wrong in (address, "somewhere", "127.0.0.1:port"):
            pytest.importorskip("ray")
            with pytest.raises(BackendUnavailable, match="There is no Ray cluster at") as error:
                RayFleet(setup, 2, wrong)
            assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendUnavailable, match=r"pip install \"alohas2r\[cluster\]\""):
        RayFleet(setup, 2)
