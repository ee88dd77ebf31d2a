"""Data parallelism: every process simulates and learns, and all share the mean of their gradients.

The other way of using several devices, to compare a fleet with. Processes are brought together by `jax.distributed`: on
CPUs gradients go by gloo. One that dies ends all of them; the run goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Generic, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from alohas2r.core import threads as core_threads
from alohas2r.core.types import JsonObject, PyTree, Untyped
from alohas2r.errors import BackendUnavailable
from alohas2r.learning.fleet.worker import World
from alohas2r.learning.ppo.algorithm import PpoAlgorithm, PpoData, PpoState, check_finite
from alohas2r.learning.ppo.apart import Before, PpoWorld, acting, together
from alohas2r.learning.ppo.learner import LearnerState
from alohas2r.learning.run.loop import Figures

Plan = TypeVar("Plan")
_END_S = 10.0  # for a process to end by itself


class ParallelState(NamedTuple):
    """All that changes; learner and worlds are with the processes, but in a checkpoint."""

    learner: LearnerState | None
    updates: np.ndarray  # []
    worlds: tuple[PyTree, ...] | None = None


class Watched(NamedTuple):
    """What the controller is told of a rollout."""

    measures: PyTree
    finite: list[np.ndarray]


class Rank(Generic[Plan]):
    """One of the processes, in it.

    Args:
      build, plan: see `Worker`. rank: its number, and that of its world.
    """

    def __init__(self, build: Callable[[Plan, int, World | None], World], plan: Plan, rank: int):
        world = build(plan, rank, None)
        assert isinstance(world, PpoWorld)
        self.world, self.training = world, world.training
        self.state: PyTree = None
        self.learner = self.training.first()
        self._data: PpoData | None = None

    def collect(self, version: int) -> Watched:
        """Lets the policy act for one unroll."""
        training = self.training
        stage = training.stage_of(version + 1)
        if stage != training.stage:
            training.enter(stage)
            self.learner = training.entered(self.learner)
            self.state = None
        if self.state is None:
            self.state = self.world.begin(stage)
        self.state, samples = self.world.roll(stage, acting(self.learner), self.state)
        check_finite(samples.rollout, Before(samples.before), training.folder)
        self._data = together([samples])
        return Watched(self._data.measures, list(self._data.finite))

    def update(self) -> Figures:
        """Learns from it, together with the other processes."""
        assert self._data is not None
        self.learner, figures = self.training.learn(self.learner, self._data)
        self._data = None
        return figures

    def kept(self) -> tuple[LearnerState, PyTree]:
        """Returns learner and world."""
        if self.state is None:
            self.state = self.world.begin(self.training.stage)
        return jax.tree.map(np.asarray, self.learner), self.state

    def restore(self, learner: LearnerState, state: PyTree) -> None:
        """Takes over learner and world."""
        self.training.enter(self.training.stage_of(int(learner.updates)))
        self.learner, self.state = jax.tree.map(jax.numpy.asarray, learner), state


def _serve(
    pipe: Connection,
    build: Callable[[Plan, int, World | None], World],
    plan: Plan,
    rank: int,
    ranks: int,
    address: str,
) -> None:
    """Is one of the processes until it is told to end."""
    os.environ["NPROC"] = str(max(len(core_threads.cores()) // ranks, 1))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, ranks, rank)
    try:
        served = Rank(build, plan, rank)
        calls: dict[str, Callable[..., object]] = {
            "collect": served.collect,
            "update": served.update,
            "kept": served.kept,
            "restore": served.restore,
        }
        pipe.send(None)
        while True:
            name, arguments = pipe.recv()
            if name == "end":
                break
            pipe.send(calls[name](*arguments))
    except EOFError:
        return  # the controller is gone
    except Exception as error:
        with contextlib.suppress(OSError):
            pipe.send(error)
        raise
    jax.distributed.shutdown()


class Ranks(Generic[Plan]):
    """Processes of this machine that learn together.

    Args:
      build, plan: see `Worker`; of worlds as large as each process's share.
      ranks: how many.

    Raises:
      BackendUnavailable: one of them died.
    """

    def __init__(
        self, build: Callable[[Plan, int, World | None], World], plan: Plan, ranks: int
    ) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self._pipes: list[Untyped] = []
        self._processes = []
        for rank in range(ranks):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, build, plan, rank, ranks, address), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self.count = ranks
        self._answers()

    def ask(self, name: str, *each: tuple[object, ...]) -> list[Untyped]:
        """Calls a method of `Rank` in all processes; returns what each says.

        Args:
          name: of the method. each: its arguments, one tuple for each process; none if left out.
        """
        for rank, pipe in enumerate(self._pipes):
            with contextlib.suppress(OSError):  # it is noticed when it does not answer
                pipe.send((name, each[rank] if each else ()))
        return self._answers()

    def _answers(self) -> list[Untyped]:
        answers = []
        for pipe in self._pipes:
            try:
                answers.append(pipe.recv())
            except (EOFError, OSError):
                raise BackendUnavailable(
                    "One of the processes that learn together died, so all of them have to end: --resume goes on"
                    " from the newest checkpoint."
                ) from None
            if isinstance(answers[-1], Exception):
                raise answers[-1]
        return answers

    def close(self) -> None:
        """Ends them."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(("end", ()))
            pipe.close()
        for process in self._processes:
            process.join(_END_S)
            if process.is_alive():
                process.kill()
                process.join()


@contextlib.contextmanager
def together_in(
    build: Callable[[Plan, int, World | None], World], plan: Plan, ranks: int
) -> Iterator[Ranks[Plan]]:
    """Starts processes that learn together, and ends them."""
    processes = Ranks(build, plan, ranks)
    try:
        yield processes
    finally:
        processes.close()


class Together(Protocol):
    """Processes that learn together, as `Ranks`."""

    @property
    def count(self) -> int:
        """How many."""
        ...

    def ask(self, name: str, *each: tuple[object, ...]) -> list[Untyped]:
        """Calls a method of `Rank` in all of them."""
        ...


class DataParallel:
    """A training by PPO in processes that all simulate and learn.

    Args:
      training: evaluates and writes the artifacts; its own environments are those of the first process.
      ranks: the processes.
    """

    def __init__(self, training: PpoAlgorithm, ranks: Together) -> None:
        self.training, self.ranks = training, ranks
        self.label, self.iterations = training.label, training.iterations
        self.steps_per_iteration = training.steps_per_iteration
        self.losses, self.remedy = training.losses, training.remedy
        self.artifacts = training.artifacts

    def init(self) -> ParallelState:
        """Returns the state before the first update."""
        return ParallelState(None, np.zeros((), np.int32))

    def collect(self, state: ParallelState) -> tuple[ParallelState, list[Watched]]:
        """Lets the policy act in all processes."""
        version = int(state.updates)
        self.training.enter(self.training.stage_of(version + 1))
        if state.worlds is not None:
            self.ranks.ask("restore", *[(state.learner, world) for world in state.worlds])
        watched = self.ranks.ask("collect", *[(version,)] * self.ranks.count)
        return ParallelState(None, state.updates), watched

    def update(self, state: ParallelState, data: list[Watched]) -> tuple[ParallelState, Figures]:
        """Learns in all processes."""
        said: list[Figures] = self.ranks.ask("update")
        figures = {name: float(np.mean([one[name] for one in said])) for name in said[0]}
        measures = jax.tree.map(
            lambda *leaves: np.concatenate(leaves), *[one.measures for one in data]
        )
        finite = [np.concatenate(step) for step in zip(*[one.finite for one in data], strict=True)]
        watched = self.training.watch(measures, finite)
        figures |= {f"train/{name}": value for name, value in watched.items()}
        return ParallelState(None, np.asarray(state.updates + 1)), figures

    def _whole(self, state: ParallelState) -> ParallelState:
        if state.worlds is not None:
            return state
        kept = self.ranks.ask("kept")
        return ParallelState(kept[0][0], state.updates, tuple(world for _, world in kept))

    def evaluate(self, state: ParallelState) -> Figures:
        """Returns figures of the policy."""
        return self.training.judge(self._learner(state))

    def _learner(self, state: ParallelState) -> LearnerState:
        learner = self._whole(state).learner
        assert learner is not None
        return learner

    def finish(self, state: ParallelState, trained: JsonObject, figures: Figures) -> dict[str, str]:
        """Writes the artifacts."""
        whole = self._whole(state)
        assert whole.worlds is not None
        assert whole.learner is not None
        return self.training.finish(PpoState(whole.learner, *whole.worlds[0]), trained, figures)

    def checkpointed(self, state: ParallelState) -> ParallelState:
        """Returns the state with learner and worlds."""
        return self._whole(state)

    def restored(self, kept: ParallelState) -> ParallelState:
        """Returns the state; it goes to the processes when they are needed."""
        self.training.enter(self.training.stage_of(int(kept.updates)))
        return kept
