"""Trainings small enough to go through them several times, and worlds that only count."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from alohas2r import config
from alohas2r.core.types import PyTree
from alohas2r.learning.fleet.base import Fleet, Setup
from alohas2r.learning.fleet.worker import Order, Rolled, World, parts
from alohas2r.learning.ppo import presets
from alohas2r.learning.ppo.apart import PpoWorld
from alohas2r.learning.ppo.train import Teacher, TeacherPlan, teacher_world
from alohas2r.learning.run.loop import Algorithm

# As the fleet has it, before anybody imports Ray: no statistics, and all addresses on loopback.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

SMALL = (
    *("ppo.num_envs=8", "ppo.unroll=4", "ppo.minibatches=2", "ppo.epochs=2"),
    *("ppo.network.policy=8", "ppo.network.value=8", "task.steps=6"),
    *("total_steps=160", "refine.steps=0", "evaluations=0", "checkpoints=4"),
)
TWO_STAGES = (*SMALL, "total_steps=64", "refine.steps=32")
SEED, UPDATES = 3, 5
State = TypeVar("State")
Data = TypeVar("Data")


class Small:
    """A teacher's training in worlds of a size, and what has compiled its worlds.

    Args:
      folder: of the run. world: environments of a world. settings: of the training.
    """

    def __init__(self, folder: pathlib.Path, world: int, settings: Sequence[str] = SMALL) -> None:
        self.settings = config.override(presets.find_preset("pick", "quick"), settings)
        plain = config.to_dict(self.settings)
        self.plan = TeacherPlan("pick", plain, SEED, 1, "cpu", None, world)
        self.worlds = parts(8, world)
        self.lender: World | None = None
        given = self.settings, folder, SEED, 1, "cpu", None
        self.teacher = Teacher(*given, part=self.worlds[0])
        self.model = PpoWorld(self.teacher).model

    def build(self, plan: TeacherPlan, number: int, like: World | None) -> World:
        """Makes a world that uses what the first one ever made has compiled."""
        made = teacher_world(plan, number, like or self.lender)
        self.lender = self.lender or made
        return made

    @property
    def setup(self) -> Setup[TeacherPlan]:
        """What a fleet in this process simulates."""
        return Setup(self.build, self.plan, len(self.worlds), self.model)


class Recorded:
    """A fleet, and all that was asked of it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.orders: list[tuple[Order, Any]] = []
        self.rolled: list[list[Rolled]] = []
        self.begin, self.states, self.restore = fleet.begin, fleet.states, fleet.restore
        self.close = fleet.close

    def order(self, order: Order, acting: PyTree) -> None:
        self.orders.append((order, acting))
        self.fleet.order(order, acting)

    def gather(self) -> list[Rolled]:
        self.rolled.append(self.fleet.gather())
        return self.rolled[-1]


def go_on(
    apart: Algorithm[State, Data], state: State, updates: int
) -> tuple[State, list[dict[str, Any]]]:
    """Makes some updates."""
    figures = []
    for _ in range(updates):
        state, data = apart.collect(state)
        state, said = apart.update(state, data)
        figures.append(said)
    return state, figures


def same(one: PyTree, other: PyTree) -> bool:
    """Whether two trees hold the same bits."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


class Counted(NamedTuple):
    """What `CountingWorld` has added up."""

    rollouts: np.ndarray  # []
    total: np.ndarray  # [4]


class CountingWorld:
    """A world that adds up random numbers and what it acts with.

    Args:
      plan: name of the scene. number: of the world.
    """

    def __init__(self, plan: str, number: int) -> None:
        self.model, self._number = plan, number

    def begin(self, stage: int) -> Counted:
        """Returns zeros, and the numbers of world and stage."""
        return Counted(np.zeros((), np.int64), np.array([0.0, 0.0, self._number, stage]))

    def roll(self, stage: int, acting: PyTree, state: Counted) -> tuple[Counted, np.ndarray]:
        """Adds to them."""
        draw = np.random.default_rng([self._number, stage, int(state.rollouts)])
        samples = draw.normal(size=4) + acting
        return Counted(state.rollouts + 1, state.total + samples), samples


def counting(plan: str, number: int, like: World | None) -> CountingWorld:
    """Makes one, with nothing that it could use of another."""
    del like
    if not plan:
        raise ValueError("there is no such scene")
    return CountingWorld(plan, number)
