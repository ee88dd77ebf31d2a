"""A training whose environments are a fleet's: workers let what is learnt act, the learner learns.

With lag 0, round v acts with what was learnt after v updates, and the learner waits for it. With lag 1 it acts with
that after v - 1, while the learner makes update v - 1: by number, never by what happens to be there. Either way the
same run comes to the same bits with any number of workers.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from alohas2r.core.types import PyTree
from alohas2r.learning.fleet.base import HAND_OVER, Fleet
from alohas2r.learning.fleet.worker import Order
from alohas2r.learning.run.loop import Algorithm

Learner = TypeVar("Learner")
Data = TypeVar("Data")


class ApartState(NamedTuple, Generic[Learner]):
    """All that changes in a training whose environments are elsewhere."""

    learner: Learner
    next: Learner | None = None  # with lag 1: what the next round acts with
    worlds: tuple[PyTree, ...] | None = (
        None  # only in a checkpoint, and before they go to the fleet
    )


class Apart(abc.ABC, Generic[Learner, Data]):
    """What a run trains when its environments are a fleet's; subclasses say what is learnt.

    Args:
      training: the same training with environments of its own, which are those of world 0.
      fleet: of all worlds. lag: 0 or 1.
    """

    def __init__(self, training: Algorithm[Any, Any], fleet: Fleet, lag: int) -> None:
        self.fleet, self.lag = fleet, lag
        self.label, self.iterations = training.label, training.iterations
        self.steps_per_iteration = training.steps_per_iteration
        self.losses, self.remedy = training.losses, training.remedy
        self.artifacts = training.artifacts
        self._ordered: int | None = None  # the round under way

    @abc.abstractmethod
    def first(self) -> Learner:
        """Returns the learner before the first update."""

    @abc.abstractmethod
    def version(self, learner: Learner) -> int:
        """Returns how many updates a learner has made, which is the number of the next round."""

    @abc.abstractmethod
    def acting(self, learner: Learner) -> Learner:
        """Returns of a learner what acts, as arrays of NumPy."""

    @abc.abstractmethod
    def numbered(self, acting: Learner, version: int) -> Learner:
        """Returns what acts in a round: its number, not that of the updates, decides what is drawn."""

    @abc.abstractmethod
    def joined(self, rolled: Sequence[Any]) -> Data:
        """Returns what all worlds did in a round, as if they were one."""

    def entered(self, learner: Learner) -> Learner:
        """Returns the learner as the next round finds it, where a new stage may begin."""
        return learner

    def stage_of(self, version: int) -> int:
        """Returns the stage that a round belongs to."""
        del version
        return 0

    def init(self) -> ApartState[Learner]:
        """Returns the state before the first round."""
        learner = self.first()
        return ApartState(learner, self.acting(learner) if self.lag else None)

    def collect(self, state: ApartState[Learner]) -> tuple[ApartState[Learner], Data]:
        """Waits for the next round; with lag 1, lets the one after it begin."""
        learner = self.entered(state.learner)
        version = self.version(learner)
        if state.worlds is not None:
            self.fleet.restore(version, state.worlds)
        if self._ordered != version:
            self._order(version, self.acting(learner) if state.next is None else state.next)
        rolled = [one.samples for one in self.fleet.gather()]
        ahead: Learner | None = None
        if self.lag:
            ahead = self.acting(learner)
            if version + 1 < self.iterations:
                self._order(version + 1, ahead)
        return ApartState(learner, ahead), self.joined(rolled)

    def _order(self, version: int, acting: Learner) -> None:
        stage = self.stage_of(version)
        begins = version == 0 or stage != self.stage_of(version - 1)
        hand_over = (version + 1) % HAND_OVER == 0
        self.fleet.order(Order(version, stage, begins, hand_over), self.numbered(acting, version))
        self._ordered = version

    def worlds(self, state: ApartState[Learner]) -> Sequence[PyTree]:
        """Returns the states of all worlds before the next round."""
        if state.worlds is not None:
            return state.worlds
        if self._ordered is None:
            return self.fleet.begin(0)
        return self.fleet.states(self.version(state.learner))

    def checkpointed(self, state: ApartState[Learner]) -> ApartState[Learner]:
        """Returns the state with that of all worlds."""
        return state._replace(worlds=tuple(self.worlds(state)))

    def restored(self, kept: ApartState[Learner]) -> ApartState[Learner]:
        """Returns the state; the worlds go to the fleet when they are needed."""
        self._ordered = None
        return kept
