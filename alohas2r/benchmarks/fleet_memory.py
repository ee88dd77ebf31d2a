"""A process that simulates, or learns from, so many environments, and says its peak of memory (GB): for `bench-fleet`.

Run as a program: simulator|learner TRAINING PHASE ENVIRONMENTS.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile

import jax
import numpy as np

from alohas2r.benchmarks.fleet import Subject
from alohas2r.core.machine import peak_memory_gb
from alohas2r.learning.fleet.worker import WORLD, parts
from alohas2r.learning.ppo.apart import Samples, acting, together

_SMALL = 8  # environments of what the learner's data is repeated from
_UPDATES = 2


def simulate(training: str, phase: str, environments: int, folder: pathlib.Path) -> None:
    """Lets the policy act in all worlds, one after the other, as a worker does."""
    subject = Subject(training, phase, environments, folder)
    plan, like, states = subject.plan(WORLD, 0), None, []
    worlds = []
    for part in parts(environments, WORLD):
        worlds.append(subject.build(plan, part.number, like))
        like = worlds[0]
    policy = acting(subject.training(parts(environments, WORLD)[0], 0).first())
    states = [world.begin(0) for world in worlds]
    for _ in range(_UPDATES):
        rolled = [world.roll(0, policy, state) for world, state in zip(worlds, states, strict=True)]
        states = [state for state, _ in rolled]


def learn(training: str, phase: str, environments: int, folder: pathlib.Path) -> None:
    """Learns from as much data, repeated from that of a few environments."""
    small = Subject(training, phase, _SMALL, folder)
    world = small.build(small.plan(_SMALL, 0), 0, None)
    part = parts(_SMALL, _SMALL)[0]
    learner = small.training(part, 0).first()
    _, samples = world.roll(0, acting(learner), world.begin(0))
    assert isinstance(samples, Samples)
    times = environments // _SMALL
    whole = Subject(training, phase, environments, folder)
    learning = whole.training(part, 0)  # with few environments of its own
    for _ in range(_UPDATES):
        data = together([jax.tree.map(np.copy, samples)] * times)
        learner, _ = learning.learn(learner, data)


def main() -> None:
    """Does it."""
    what, training, phase, size = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        do = simulate if what == "simulator" else learn
        do(training, phase, int(size), pathlib.Path(folder))
    sys.stdout.write(f"{peak_memory_gb():.4f}\n")


if __name__ == "__main__":
    main()
