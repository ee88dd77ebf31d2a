"""A worker simulates some worlds of a training, with the policy inside: one exchange per update.

A world is a fixed part of the environments. What it does depends on its number, its state and what it acts with, never
on the worker that it lives with: so worlds can be handed from worker to worker, and their bits stay the same.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import jax
import mujoco
import numpy as np

import alohas2r
from alohas2r.core.types import PyTree

WORLD = 256  # environments of a world
Plan = TypeVar("Plan")


class Part(NamedTuple):
    """Which of a training's environments make up one world."""

    number: int
    first: int
    last: int  # the first one after it
    total: int  # environments of all worlds


def parts(total: int, size: int = WORLD) -> list[Part]:
    """Returns the worlds of so many environments; the last may be smaller."""
    firsts = range(0, total, size)
    return [Part(n, first, min(first + size, total), total) for n, first in enumerate(firsts)]


class World(Protocol):
    """One world; its state is a tree of arrays of which later calls leave an earlier one alone."""

    @property
    def model(self) -> str:
        """Digest of the compiled scene."""
        ...

    def begin(self, stage: int) -> PyTree:
        """Returns the state at the beginning of a stage of the training."""
        ...

    def roll(self, stage: int, acting: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        """Lets the policy act for one unroll; returns the state after it and the samples, arrays of NumPy."""
        ...


class Order(NamedTuple):
    """What all worlds are to do next.

    Attributes:
      version: number of the rollout, from 0.
      stage: of the training.
      begins: whether environments begin anew, as at the start of a stage.
      hand_over: whether the states after it are wanted as well.
    """

    version: int
    stage: int
    begins: bool
    hand_over: bool = False


class Rolled(NamedTuple):
    """What one world did.

    Attributes:
      version: of the order; -1 if the worker did not have the state that the order is about.
      samples: raw, environment by environment.
      digest: SHA-256 of the state after it.
      state: after it, where it was to be handed over.
    """

    version: int
    samples: PyTree = None
    digest: str = ""
    state: PyTree = None


class Identity(NamedTuple):
    """What a worker computes with."""

    package: str  # version of alohas2r
    code: str  # digest of its sources
    model: str  # of the compiled scene
    libraries: str
    host: str
    process: int


class _Held(NamedTuple):
    """A world as a worker has it."""

    world: World
    version: int | None = None  # of the next rollout; None before there is a state
    state: PyTree = None
    before: PyTree = None  # the state before the last rollout


class Worker(Generic[Plan]):
    """Some worlds of a training.

    Args:
      build: makes a world: (plan, its number, another world whose compiled functions it may use) -> world.
      plan: of the training; both can be sent to another process.
      numbers: of the worlds.
      xla_threads: threads of XLA in this process; 0 to leave it as it is.
      like: another worker's world in this process.
    """

    def __init__(
        self,
        build: Callable[[Plan, int, World | None], World],
        plan: Plan,
        numbers: Sequence[int],
        xla_threads: int = 0,
        like: World | None = None,
    ) -> None:
        if xla_threads:
            os.environ["NPROC"] = str(xla_threads)
        self._build, self._plan, self._like = build, plan, like
        self._held: dict[int, _Held] = {}
        for number in numbers:
            self._add(number)

    @property
    def first(self) -> World | None:
        """The world that has compiled what the others use."""
        return next((held.world for held in self._held.values()), self._like)

    def identity(self) -> Identity:
        """Returns what this worker computes with."""
        return identity(self.first.model if self.first else "")

    def roll(self, order: Order, acting: PyTree, numbers: Sequence[int]) -> dict[int, Rolled]:
        """Lets some worlds carry out an order.

        Args:
          order: what to do. acting: what the policy acts with. numbers: of the worlds.

        Returns:
          What each did, by number.
        """
        return {number: self._roll(order, acting, number) for number in numbers}

    def begin(self, stage: int, numbers: Sequence[int]) -> dict[int, PyTree]:
        """Returns the states in which worlds begin a stage, without going on from there."""
        return {number: self._add(number).world.begin(stage) for number in numbers}

    def states(self, version: int, numbers: Sequence[int]) -> dict[int, PyTree]:
        """Returns the states before a rollout, by number of the world: before the last one or the next.

        A world whose state is another one is left out.
        """
        result = {}
        for number in numbers:
            held = self._add(number)
            if held.version == version:
                result[number] = held.state
            elif held.version == version + 1:
                result[number] = held.before
        return result

    def restore(self, version: int, states: Mapping[int, PyTree]) -> list[int]:
        """Takes over worlds in states as `states` returned them; returns their numbers."""
        for number, state in states.items():
            held = self._add(number)
            self._held[number] = held._replace(version=version, state=state, before=None)
        return list(states)

    def _add(self, number: int) -> _Held:
        if number not in self._held:
            self._held[number] = _Held(self._build(self._plan, number, self.first))
        return self._held[number]

    def _roll(self, order: Order, acting: PyTree, number: int) -> Rolled:
        held = self._add(number)
        if order.begins:
            state = held.world.begin(order.stage)
        elif held.version == order.version:
            state = held.state
        else:
            return Rolled(-1)
        after, samples = held.world.roll(order.stage, acting, state)
        before = held.state if order.begins else state
        self._held[number] = held._replace(version=order.version + 1, state=after, before=before)
        return Rolled(order.version, samples, digest(after), after if order.hand_over else None)


def digest(state: PyTree) -> str:
    """Returns the SHA-256 of a state's arrays, one after the other."""
    hasher = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        value = np.ascontiguousarray(leaf)
        hasher.update(f"{value.dtype}{value.shape}".encode())
        hasher.update(value.reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


def digest_of_model(model: mujoco.MjModel) -> str:
    """Returns the SHA-256 of a compiled scene."""
    buffer = np.zeros(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return hashlib.sha256(buffer.data).hexdigest()


def identity(model: str) -> Identity:
    """Returns what this process computes with.

    Args:
      model: digest of the compiled scene.
    """
    libraries = f"jax {jax.__version__}, mujoco {mujoco.__version__}"
    where = socket.gethostname(), os.getpid()
    return Identity(alohas2r.__version__, _code(), model, libraries, *where)


@functools.cache
def _code() -> str:
    """Returns the SHA-256 of this package's sources."""
    root = pathlib.Path(alohas2r.__file__).parent
    hasher = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        hasher.update(path.relative_to(root).as_posix().encode())
        hasher.update(path.read_bytes())
    return hasher.hexdigest()
