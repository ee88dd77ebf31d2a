"""A run that is killed again and again ends as one that was not."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from alohas2r.deployment.online.demonstrate import DemoConfig, demonstrate
from alohas2r.deployment.online.director import EVALUATIONS
from alohas2r.deployment.rig import RigConfig
from alohas2r.policies import artifact
from alohas2r.policies.online.policy import OnlinePolicy

pytestmark = pytest.mark.long

KILLS = int(os.environ.get("ALOHAS2R_KILLS", "6"))
PATIENCE_S = 600


def start(folder: pathlib.Path, demos: pathlib.Path) -> subprocess.Popen[bytes]:
    """Begins the run in a folder, or goes on with it."""
    words = ["learn", "pick", "--demos", str(demos), "--out", str(folder), "--stepped"]
    words += ["--minutes", "0.6", *(["--resume"] if (folder / "online.json").exists() else [])]
    for setting in (
        *("chunk=10", "warmup=20", "batch=16", "updates=4", "hidden=(16, 16)", "clone_steps=50"),
        *("evaluate_minutes=0.3", "evaluate_episodes=1", "final_episodes=1"),
    ):
        words += ["--set", setting]
    command = [sys.executable, "-m", "alohas2r.cli", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def children(process: subprocess.Popen[bytes]) -> list[int]:
    path = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(one) for one in path.read_text().split()] if path.exists() else []


def test_killed_at_random_moments_it_comes_to_the_same(tmp_path):
    demos = tmp_path / "demos"
    demonstrate(DemoConfig("pick", episodes=2), RigConfig("sim", stepped=True), demos)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole, demos).wait(PATIENCE_S) == 0
    draw, kills = random.Random(3), 0
    while True:
        process = start(broken, demos)
        if kills < KILLS:
            begun_s = time.monotonic()
            # Most of the time nothing can be lost yet: programs start.
            wait_s = draw.uniform(0.5, 4.0)
            logs = broken / "log"
            before = len(list(logs.glob("*.run"))) if logs.exists() else 0
            while process.poll() is None and time.monotonic() - begun_s < PATIENCE_S:
                if logs.exists() and len(list(logs.glob("*.run"))) > before:
                    break
                time.sleep(0.02)
            time.sleep(wait_s)
            if process.poll() is None:
                learner = children(process)
                victim = draw.choice([process.pid, *learner])
                os.kill(victim, signal.SIGKILL)
                kills += 1
        if process.wait(PATIENCE_S) == 0:
            break
    assert kills
    assert (whole / EVALUATIONS).read_text() == (broken / EVALUATIONS).read_text()
    one, other = (
        artifact.load(folder / "policy", OnlinePolicy).weights for folder in (whole, broken)
    )
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])
