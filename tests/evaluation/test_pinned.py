"""The same protocol and seed give the same episodes, whatever JAX is set to."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from alohas2r.errors import ConfigError
from alohas2r.evaluation import episodes
from alohas2r.tasks.registry import find_task, task_names

# Prints the draws' digest, and every column of a few steps of the teacher and of the student.
SCRIPT = """
import json, sys
import jax
import numpy as np
from alohas2r.core import assets
from alohas2r.evaluation import episodes, evaluate
from alohas2r.tasks.protocol import EVAL_V1, modified
jax.random.normal(jax.random.key(0), (3,))  # whatever else the process does
short, found = modified(EVAL_V1, seconds=0.25), {}
for name in ("teacher", "student"):
    policy = evaluate.load_policy(assets.data_path("params") / name)
    table, qpos, _ = evaluate.run(policy, short, episodes.episode_keys(7, 0, 2), 1, "exact")
    found[name] = {key: np.asarray(column, float).tolist() for key, column in table.items()}
    found[name]["qpos"] = np.asarray(qpos, float).tolist()
result = evaluate.evaluate(assets.data_path("params") / "teacher", 1, 7, 1, protocol=short)
found["draws"], found["hash"] = result["draws"], result["protocol_hash"]
print(json.dumps(found))
"""
SETTINGS = (
    {"JAX_ENABLE_X64": "1"},
    {"JAX_DEFAULT_PRNG_IMPL": "rbg"},
    {"JAX_THREEFRY_PARTITIONABLE": "0", "JAX_ENABLE_CUSTOM_PRNG": "1"},
)
# The first draws of seed 7, for all time: other ones are other episodes.
DRAWS = {"pick": "f29d907214489450", "insert": "2604db2041052325"}


def run(settings: dict[str, str]) -> dict[str, object]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=clean | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_ambient_settings_do_not_change_the_episodes() -> None:
    expected = run({})
    assert expected["draws"] == DRAWS["insert"]
    for settings in SETTINGS:
        found = run(settings)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == value, (settings, name)


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
