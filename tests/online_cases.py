"""What tests of learning on the robot share."""

from __future__ import annotations

import json
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from alohas2r.core import assets
from alohas2r.core.records import RecordReader
from alohas2r.deployment.online.insert_way import InsertBack
from alohas2r.deployment.online.stage import Ended, Plan, ResetDraws
from alohas2r.deployment.online.truth import Start
from alohas2r.embodiment.joints import two_fingers
from alohas2r.embodiment.observation import proprioception as joint_values
from alohas2r.policies import artifact
from alohas2r.policies.online import networks
from alohas2r.policies.online.classifier import ClassifierSpec, SuccessClassifier
from alohas2r.policies.online.eyes import read_eyes
from alohas2r.policies.online.spec import OnlineSpec
from alohas2r.policies.online.tasks import make_spec
from alohas2r.policies.onnx.base import Base, insert_spec

HOME = np.array([0.25, -0.4, 1.5, 0.0, -0.73, 0.0, 0.037])


def spec(task: str = "reach", **changes: Any) -> OnlineSpec:
    """Returns a policy with the shipped student's eyes."""
    _, cameras, network = read_eyes(assets.data_path("params") / "student", "left")
    settings: dict[str, Any] = {"hidden": (16, 16), **changes}
    return make_spec(task, cameras, network, **settings)


def proprioception(targets: np.ndarray) -> np.ndarray:
    """Returns what arms feel [32] that are where they were told [14]."""
    position = two_fingers(np.asarray(targets, float))
    return joint_values(position, position[:, :7]).astype(np.float32)


def observed(targets: np.ndarray, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns what a step's record has of an observation: random pictures, arms where they were told [14]."""
    arrays = {"observation/proprioception": proprioception(targets)}
    for side in ("left", "right"):
        arrays[f"observation/{side}_rgb"] = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        arrays[f"observation/{side}_depth"] = draw.uniform(0.05, 0.5, (32, 32)).astype(np.float32)
    return arrays


def an_episode(log: pathlib.Path, decision: int) -> tuple[int, int]:
    """Returns where in a log the episode of acting starts in which so many decisions were made, and where that was."""
    start = before = made = 0
    for record in RecordReader(log).poll():
        said = record.values.get("learning", {})
        if record.kind == "episode":
            start = before
        made += bool(said.get("decision")) and not said["evaluation"]
        if made == decision:
            return start, record.end
        before = record.end
    raise AssertionError(f"{log} has {made} decisions")


def wait_for(there: Callable[[], bool], seconds: float = 300.0) -> None:
    """Waits until something is so."""
    patience_s = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < patience_s
        time.sleep(0.02)


def always(base: Base, hidden: int = 2, sure: float = 20.0) -> SuccessClassifier:
    """A classifier that is as sure of all that it sees."""
    spec = insert_spec(base)
    of = ClassifierSpec(student_hash=spec.student_hash, pictures=spec.pictures, hidden=(hidden,))
    shapes = networks.mlp_shapes(of.names[0], of.sizes)
    weights = {name: np.zeros(shape) for name, shape in shapes.items()}
    weights["reward/0/layer1/bias"][:] = sure
    scales = {"mean": np.zeros(of.features), "std": np.ones(of.features)}
    return SuccessClassifier(of, weights | scales, {})


def written(classifier: SuccessClassifier, folder: pathlib.Path) -> None:
    """Writes a classifier as an artifact."""
    rows = {
        "pictures": np.zeros((1, classifier.spec.pictures)),
        "proprioception": np.zeros((1, 32)),
    }
    artifact.save(classifier, folder, rows)


class Unplaced:
    """So many episodes, of which only the first is placed, since nothing was before it: `Director`.

    Args:
      back: ways back that are drawn by the number of their episode. episodes: how many.
    """

    def __init__(self, back: InsertBack | ResetDraws, episodes: int) -> None:
        self.over: list[Ended] = []
        self._back, self._episodes = back, episodes

    def next(self) -> Plan | None:
        """Returns the next episode."""
        self._back.number = number = len(self.over)
        plan = Plan(number, (0, number), False, False, False)
        return plan if number < self._episodes else None

    def ended(self, episode: Ended, state: Start | None) -> None:
        """Keeps it."""
        self.over.append(episode)


class LearnerServer:
    """`alohas2r learner` in a process of its own; the key is the environment's."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Returns when it listens."""
        words = ["learner", "--out", str(self.folder), "--port", str(self.port), "--json"]
        command = [sys.executable, "-m", "alohas2r.cli", *words]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert self.url in line, line + self.process.stderr.read()

    def stop(self) -> dict[str, Any]:
        """Ends it with a signal and returns what it printed."""
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, err
        return json.loads(out)

    def kill(self) -> None:
        """Ends it at once."""
        self.process.kill()
        self.process.communicate()
