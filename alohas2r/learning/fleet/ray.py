"""A fleet of actors on a Ray cluster, of which any may be killed at any moment: the bits stay the same.

An actor that dies comes back by itself, but with the state of its constructor and without a word. So Ray asks nothing
twice (`max_task_retries=0`), every answer says of which rollout it is, and the learner's side keeps what it takes to
get any world to where it was: the states that were last handed over, and the orders since.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from alohas2r.core.types import PyTree, Untyped
from alohas2r.errors import BackendUnavailable
from alohas2r.learning.fleet.base import Setup, check_identity, divide, in_order
from alohas2r.learning.fleet.worker import Identity, Order, Rolled, Worker, identity

PATIENCE_S = 120.0  # for a worker to come back, or for the cluster to find a place for it
_ASK_AGAIN_S = 0.2
_CONNECT_S = 5.0
_TRIES = 100  # how often the same rollout may be lost
Plan = TypeVar("Plan")


class Resources(NamedTuple):
    """What each worker takes of the cluster."""

    cpus: float = 1
    gpus: float = 0
    xla_threads: int = 0  # as XLA decides there if 0


_ONE_CPU = Resources()


class _Seat:
    """An actor, its worlds, and the answer that it owes."""

    def __init__(self, actor: Untyped, numbers: list[int]) -> None:
        self.actor, self.numbers = actor, numbers
        self.asked: Untyped = None


class RayFleet(Generic[Plan]):
    """Workers as actors.

    Args:
      setup: what to simulate. workers: how many.
      address: of the cluster's head, HOST:PORT; if empty, a cluster of this machine that ends with this object.
      resources: of each worker.
      patience_s: how long a worker may be away before its worlds go to the others.

    Raises:
      BackendUnavailable: Ray is not installed, the cluster does not answer, or has no room for the workers.
      ConfigError: workers that compute with something else than this process.
    """

    def __init__(
        self,
        setup: Setup[Plan],
        workers: int,
        address: str = "",
        resources: Resources = _ONE_CPU,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._ray = _connect(workers, address, resources)
        self._ours, self._patience_s = identity(setup.model), patience_s
        self._worlds = setup.worlds
        self._base: tuple[int, Mapping[int, PyTree]] = (0, {})  # states before a rollout
        self._since: list[
            tuple[Order, Untyped]
        ] = []  # from that rollout on, with what it acts with
        self._digests: dict[tuple[int, int], str] = {}  # by rollout and world
        self._repeated: dict[int, Rolled] = {}  # of the rollout under way
        kind = self._ray.remote(Worker).options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        try:
            self._seats = [
                _Seat(kind.remote(setup.build, setup.plan, numbers, resources.xla_threads), numbers)
                for numbers in divide(setup.worlds, workers)
            ]
            for seat in self._seats:
                if not self._awaken(seat):
                    raise BackendUnavailable(
                        f"The cluster has no room for {workers} workers of {resources.cpus:g} CPUs and"
                        f" {resources.gpus:g} GPUs each: take fewer --workers, or add machines to it."
                    )
        except BaseException:
            self.close()
            raise

    def order(self, order: Order, acting: PyTree) -> None:
        """Lets all worlds begin to carry out an order."""
        kept = self._ray.put(acting)
        self._since.append((order, kept))
        self._repeated = {}
        for seat in self._seats:
            seat.asked = seat.actor.roll.remote(order, kept, seat.numbers)

    def gather(self) -> list[Rolled]:
        """Waits for them, and repeats what workers took with them that died."""
        order, _ = self._since[-1]
        for seat in self._seats:
            if seat.asked is not None:
                answer = self._answer(seat.asked)
                self._repeated |= {} if answer is None else _of(order.version, answer)
                seat.asked = None
        for _ in range(_TRIES):
            lacking = set(range(self._worlds)) - set(self._repeated)
            if not lacking:
                break
            self._recover(lacking)
        else:
            raise _lost()
        rolled, self._repeated = in_order([self._repeated]), {}
        for number, one in enumerate(rolled):
            self._digests[order.version, number] = one.digest
        if order.hand_over:
            self._keep(order.version + 1, [one.state for one in rolled])
        return rolled

    def begin(self, stage: int) -> list[PyTree]:
        """Returns the states in which worlds begin a stage."""
        return self._ask_all(lambda seat: seat.actor.begin.remote(stage, seat.numbers))

    def states(self, version: int) -> list[PyTree]:
        """Returns the states before a rollout, once it has ended if it is under way."""
        states = self._ask_all(lambda seat: seat.actor.states.remote(version, seat.numbers))
        self._keep(version, states)
        return states

    def restore(self, version: int, states: Sequence[PyTree]) -> None:
        """Puts all worlds into these states; one that dies meanwhile is put right when it is asked for more."""
        self._since, self._digests, self._repeated = [], {}, {}
        self._base = version, dict(enumerate(states))
        for seat in self._seats:
            own = {number: states[number] for number in seat.numbers}
            self._answer(seat.actor.restore.remote(version, own))

    def process(self, worker: int) -> int | None:
        """Returns the number of a worker's process, once it has done what it was told; None if it is away."""
        answer: Identity | None = self._answer(self._seats[worker].actor.identity.remote())
        return None if answer is None else answer.process

    def close(self) -> None:
        """Ends all actors, and the cluster where it was this object's own."""
        self._ray.shutdown()

    def _keep(self, version: int, states: Sequence[PyTree]) -> None:
        """Notes states to begin from, and forgets what led to them."""
        self._base = version, dict(enumerate(states))
        self._since = [one for one in self._since if one[0].version >= version]
        self._digests = {at: one for at, one in self._digests.items() if at[0] >= version}

    def _ask_all(self, ask: Callable[[_Seat], Untyped]) -> list[PyTree]:
        """Returns what all worlds answer; workers that cannot are put right and asked again."""
        for _ in range(_TRIES):
            asked = [ask(seat) for seat in self._seats]
            answers = [self._answer(one) or {} for one in asked]
            lacking = set(range(self._worlds)) - {n for answer in answers for n in answer}
            if not lacking:
                return in_order(answers)
            self._recover(lacking)
        raise _lost()

    def _answer(self, asked: Untyped) -> Untyped:
        """Returns an actor's answer; None if it died, or is away.

        Raises:
          BackendUnavailable: it cannot even begin.
          Exception: what the worker raised.
        """
        try:
            return self._ray.get(asked)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause or error from None
        except self._ray.exceptions.RayActorError as error:
            if error.actor_init_failed:
                why = [line for line in str(error).splitlines() if line.strip()][-1].strip()
                raise BackendUnavailable(
                    f"A worker of the cluster cannot begin ({why}): install the same alohas2r there."
                ) from None
            return None
        except self._ray.exceptions.RayError:  # a node took the answer with it
            return None

    def _awaken(self, seat: _Seat) -> bool:
        """Waits until an actor answers; returns whether it does.

        Raises:
          ConfigError: it computes with something else than this process.
        """
        until = time.monotonic() + self._patience_s
        while True:
            asked = seat.actor.identity.remote()
            left = max(until - time.monotonic(), 0.0)
            if self._ray.wait([asked], timeout=left)[0]:
                answer: Identity | None = self._answer(asked)
                if answer is not None:
                    check_identity(self._ours, answer)
                    return True
            if time.monotonic() >= until:
                return False
            time.sleep(_ASK_AGAIN_S)

    def _recover(self, lacking: set[int]) -> None:
        """Gets worlds to where they were, on the actors that had them if these come back, else on the others.

        What they did in the rollout under way is noted as repeated; one that dies again is still lacking.
        """
        for seat in [seat for seat in self._seats if lacking.intersection(seat.numbers)]:
            if not self._awaken(seat):
                self._give_up(seat)
        for seat in self._seats:
            numbers = [number for number in seat.numbers if number in lacking]
            if numbers:
                self._repeated |= self._replay(seat, numbers)

    def _give_up(self, seat: _Seat) -> None:
        """Hands the worlds of an actor that is gone to the others.

        Raises:
          BackendUnavailable: there are no others.
        """
        self._seats.remove(seat)
        with contextlib.suppress(Exception):  # it is gone
            self._ray.kill(seat.actor)
        if not self._seats:
            raise _lost()
        shares = np.array_split(np.array(seat.numbers), len(self._seats))
        for other, share in zip(self._seats, shares, strict=True):
            other.numbers = [*other.numbers, *share.tolist()]

    def _replay(self, seat: _Seat, numbers: list[int]) -> dict[int, Rolled]:
        """Puts worlds into the states that were kept and repeats what they did since.

        Returns:
          What they did in the last rollout; nothing if the actor died.

        Raises:
          BackendUnavailable: they did something else than before.
        """
        version, states = self._base
        if states:
            own = {number: states[number] for number in numbers}
            if self._answer(seat.actor.restore.remote(version, own)) is None:
                return {}
        last: dict[int, Rolled] = {}
        for order, acting in self._since:
            answer = self._answer(seat.actor.roll.remote(order, acting, numbers))
            last = {} if answer is None else _of(order.version, answer)
            if len(last) < len(numbers):
                return {}
            for number, one in last.items():
                before = self._digests.get((order.version, number), one.digest)
                if one.digest != before:
                    raise BackendUnavailable(
                        f"World {number} came to another state when rollout {order.version} was repeated"
                        f" ({one.digest[:12]}, not {before[:12]}): the cluster's machines do not compute alike."
                    )
        return last


def _of(version: int, answer: Mapping[int, Rolled]) -> dict[int, Rolled]:
    """Returns the part of an answer that is of a rollout."""
    return {number: one for number, one in answer.items() if one.version == version}


def _lost() -> BackendUnavailable:
    return BackendUnavailable(
        "All workers of the cluster are gone; --resume goes on from the newest checkpoint, with any number of them."
    )


def _connect(workers: int, address: str, resources: Resources) -> Untyped:
    """Returns Ray, connected to a cluster.

    Raises:
      BackendUnavailable: it is not installed, or the cluster does not answer.
    """
    # Before Ray is imported: no statistics to anybody.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    host, _, port = address.rpartition(":")
    if host in ("", "localhost", "127.0.0.1"):
        # Every address is of the loopback interface then, as Ray has it where clusters of several machines are
        # switched off.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            'A fleet on a cluster needs Ray: pip install "alohas2r[cluster]".'
        ) from error
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Ray starts its programs at once; nothing of this process goes on in the copy that JAX warns of.
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
    if not address:
        ray.init(
            address="local",
            num_cpus=max(round(workers * resources.cpus), 1),
            num_gpus=None if resources.gpus else 0,
            include_dashboard=False,
            **quiet,
        )
        return ray
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # else it tries for minutes
    try:
        socket.create_connection((host, int(port)), _CONNECT_S).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:  # ConnectionError is an OSError
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackendUnavailable(
            f"There is no Ray cluster at '{address}' ({why}): give --address HOST:PORT as `ray start --head` says it."
        ) from error
    return ray
