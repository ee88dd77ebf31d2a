"""A fleet of threads in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

from alohas2r.core.types import PyTree
from alohas2r.learning.fleet.base import Setup, divide, in_order
from alohas2r.learning.fleet.worker import Order, Rolled, Worker

Plan = TypeVar("Plan")
Answer = TypeVar("Answer")


class _Seat(NamedTuple, Generic[Plan]):
    """A worker, and the one thread on which all that is asked of it is done in turn."""

    worker: Worker[Plan]
    thread: ThreadPoolExecutor
    numbers: list[int]


class LocalFleet(Generic[Plan]):
    """Workers, each in a thread of its own.

    Args:
      setup: what to simulate. workers: how many.
    """

    def __init__(self, setup: Setup[Plan], workers: int) -> None:
        self._rolling: list[Future[dict[int, Rolled]]] = []
        self._seats: list[_Seat[Plan]] = []
        for numbers in divide(setup.worlds, workers):
            like = self._seats[0].worker.first if self._seats else None
            worker = Worker(setup.build, setup.plan, numbers, like=like)
            self._seats.append(_Seat(worker, ThreadPoolExecutor(1, "worker"), numbers))

    def _ask(self, what: Callable[[_Seat[Plan]], Answer]) -> list[Future[Answer]]:
        return [seat.thread.submit(what, seat) for seat in self._seats]

    def order(self, order: Order, acting: PyTree) -> None:
        """Lets all worlds begin to carry out an order."""
        self._rolling = self._ask(lambda seat: seat.worker.roll(order, acting, seat.numbers))

    def gather(self) -> list[Rolled]:
        """Waits for them."""
        return in_order([future.result() for future in self._rolling])

    def begin(self, stage: int) -> list[PyTree]:
        """Returns the states in which worlds begin a stage."""
        asked = self._ask(lambda seat: seat.worker.begin(stage, seat.numbers))
        return in_order([future.result() for future in asked])

    def states(self, version: int) -> list[PyTree]:
        """Returns the states before a rollout, once it has ended if it is under way."""
        asked = self._ask(lambda seat: seat.worker.states(version, seat.numbers))
        return in_order([future.result() for future in asked])

    def restore(self, version: int, states: Sequence[PyTree]) -> None:
        """Puts all worlds into these states."""
        asked = self._ask(
            lambda seat: seat.worker.restore(
                version, {number: states[number] for number in seat.numbers}
            )
        )
        for future in asked:
            future.result()

    def close(self) -> None:
        """Waits for what is under way."""
        for seat in self._seats:
            seat.thread.shutdown(cancel_futures=True)
