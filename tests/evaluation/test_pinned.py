"""The same protocol and seed give the same episodes, whatever JAX is set to."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pinned_cases
import pytest

from alohas2r.errors import ConfigError
from alohas2r.evaluation import episodes
from alohas2r.tasks.registry import find_task, task_names

pytestmark = pytest.mark.compiles
SETTINGS = (
    {"JAX_ENABLE_X64": "1"},
    {"JAX_DEFAULT_PRNG_IMPL": "rbg"},
    {"JAX_THREEFRY_PARTITIONABLE": "0", "JAX_ENABLE_CUSTOM_PRNG": "1"},
)
TOGETHER = {name: value for settings in SETTINGS for name, value in settings.items()}
# The first draws of seed 7, for all time: other ones are other episodes.
DRAWS = {"pick": "f29d907214489450", "insert": "2604db2041052325"}


def run(settings: dict[str, str]) -> dict[str, object]:
    """Returns the figures of a process of its own, with settings of JAX."""
    kept = "JAX_DISABLE_MOST_OPTIMIZATIONS"  # as what it is compared with was compiled
    clean = {
        name: value
        for name, value in os.environ.items()
        if name == kept or not name.startswith("JAX_")
    }
    paths = os.pathsep.join(part for part in sys.path if part)
    code = "import json, pinned_cases; print(json.dumps(pinned_cases.figures()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"PYTHONPATH": paths} | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def expected() -> dict[str, object]:
    return json.loads(json.dumps(pinned_cases.figures()))


@pytest.mark.long
@pytest.mark.parametrize("settings", [TOGETHER, *SETTINGS])
def test_ambient_settings_do_not_change_the_episodes(
    settings: dict[str, str], expected: dict[str, object]
) -> None:
    assert expected["draws"] == DRAWS["insert"]
    under_settings = run(settings)
    assert under_settings.keys() == expected.keys()
    for name, value in expected.items():
        assert under_settings[name] == value, name


def test_the_first_draws_are_those_that_they_have_always_been() -> None:
    found = {name: episodes.draws_digest(find_task(name), 7) for name in DRAWS}
    assert found == DRAWS
    others = {episodes.draws_digest(find_task("pick"), seed) for seed in range(7)}
    assert len(others | {DRAWS["pick"]}) == 8
    for name in task_names():
        assert len(episodes.draws_digest(find_task(name), 0)) == 16


def test_seeds_that_the_generator_cannot_tell_apart_are_refused() -> None:
    for seed in (-1, 2**32, 2**64 + 3):
        with pytest.raises(ConfigError, match=r"seed must be in 0\.\.4294967295"):
            episodes.episode_keys(seed, 0, 1)
    first, last = episodes.episode_keys(0, 0, 1), episodes.episode_keys(2**32 - 1, 0, 1)
    assert (first != last).any()
