"""A run that is killed again and again ends as one that was not."""

import contextlib
import functools
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import online_cases
import pytest

from alohas2r.deployment.online.demonstrate import DemoConfig, demonstrate
from alohas2r.deployment.online.director import EVALUATIONS
from alohas2r.deployment.rig import RigConfig
from alohas2r.policies import artifact

pytestmark = pytest.mark.long

KILLS = int(os.environ.get("ALOHAS2R_KILLS", "6"))
PATIENCE_S = 600


HOW = {
    "pick": ["--minutes", "0.6", "--set", "clone_steps=50"],
    "insert": ["--minutes", "0.2", "--reward", "truth"],
}


def start(
    task: str, folder: pathlib.Path, demos: pathlib.Path, learner: str = ""
) -> subprocess.Popen[bytes]:
    """Begins the run in a folder, or goes on with it."""
    words = ["learn", task, "--demos", str(demos), "--out", str(folder), "--stepped"]
    words += [*HOW[task], *(["--resume"] if (folder / "online.json").exists() else [])]
    for setting in (
        *("chunk=10", "warmup=20", "batch=16", "updates=4", "hidden=(16, 16)"),
        *("evaluate_minutes=0.3", "evaluate_episodes=1", "final_episodes=1"),
    ):
        words += ["--set", setting]
    words += ["--learner", learner] if learner else []
    command = [sys.executable, "-m", "alohas2r.cli", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def children(process: subprocess.Popen[bytes]) -> list[int]:
    path = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(one) for one in path.read_text().split()] if path.exists() else []


@pytest.fixture(scope="module")
def task(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def demos(task: str, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("killed") / "demos"
    by = "student" if task == "insert" else "script"
    demonstrate(DemoConfig(task, by, episodes=2), RigConfig("sim", stepped=True), folder)
    return folder


@pytest.fixture(scope="module")
def whole(task: str, demos: pathlib.Path) -> pathlib.Path:
    folder = demos.with_name("whole")
    assert start(task, folder, demos).wait(PATIENCE_S) == 0
    return folder


def _acts(process: subprocess.Popen[bytes], logs: pathlib.Path, before: int) -> bool:
    """Returns whether a run that was started writes its log, or has ended: before that nothing can be lost."""
    return process.poll() is not None or len(list(logs.glob("*.run"))) > before


@pytest.mark.parametrize(
    ("task", "elsewhere"),
    [("pick", False), ("pick", True), ("insert", False), ("insert", True)],
    ids=["pick-beside", "pick-elsewhere", "insert-beside", "insert-elsewhere"],
    indirect=["task"],
    scope="module",
)
def test_killed_at_random_moments_it_comes_to_the_same(task, elsewhere, demos, whole, tmp_path):
    broken, draw, kills, segments = tmp_path / "broken", random.Random(3), 0, 0
    logs = broken / "log"
    with contextlib.ExitStack() as stack:
        server = None
        if elsewhere:
            server = stack.enter_context(online_cases.LearnerServer(tmp_path / "there"))
        while True:
            process = start(task, broken, demos, "" if server is None else server.url)
            online_cases.wait_for(functools.partial(_acts, process, logs, segments), PATIENCE_S)
            segments = len(list(logs.glob("*.run")))
            while kills < KILLS and process.poll() is None:
                time.sleep(draw.uniform(0.5, 4.0))
                kills += 1
                if server is not None and draw.random() < 0.5:
                    server.kill()
                    server.start()
                elif process.poll() is None:
                    mine = children(process) if server is None else []
                    os.kill(draw.choice([process.pid, *mine]), signal.SIGKILL)
                    break
            if process.wait(PATIENCE_S) == 0:
                break
    assert kills
    assert (whole / EVALUATIONS).read_text() == (broken / EVALUATIONS).read_text()
    one, other = (artifact.load(folder / "policy").weights for folder in (whole, broken))
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])
