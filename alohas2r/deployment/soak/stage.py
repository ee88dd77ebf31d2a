"""A run's surroundings, in which faults strike: robot, cameras, policy, display, and a local policy server."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from alohas2r.deployment.pacer import Pacer
from alohas2r.deployment.report import Report
from alohas2r.embodiment.joints import IS_GRIPPER
from alohas2r.embodiment.poses import SLEEP_POSE
from alohas2r.errors import RobotFault
from alohas2r.policies.onnx.runtime import OnnxPolicy
from alohas2r.policies.protocol import Policy
from alohas2r.policies.remote.server import PolicyServer, ServerConfig
from alohas2r.robots.base import Camera, Frame, Proprio
from alohas2r.robots.dynamixel.driver import DynamixelRobot
from alohas2r.robots.emulator.client import Emulator
from alohas2r.safety.config import SafetyConfig
from alohas2r.safety.model import SafetyModel
from alohas2r.sim import scene

_TOLERANCE = 1e-6  # of a command (rad; m)


class Seams:
    """Counts how often the loop crosses into its surroundings: to wait, read, look, act, command, show.

    A step crosses five to seven times; what is due at a crossing happens before it.

    Attributes:
      crossed: how often so far.
    """

    def __init__(self) -> None:
        """Starts with nothing due."""
        self.crossed = 0
        self._due: list[tuple[int, Callable[[], object]]] = []

    def at(self, crossing: int, happens: Callable[[], object]) -> None:
        """Lets something happen at a crossing, or at the next one if that is over."""
        self._due.append((crossing, happens))
        self._due.sort(key=lambda one: one[0])

    def cross(self) -> None:
        """Crosses, and lets happen what is due."""
        self.crossed += 1
        while self._due and self._due[0][0] <= self.crossed:
            self._due.pop(0)[1]()

    def forget(self) -> None:
        """Lets nothing more happen."""
        self._due.clear()


class WatchedRobot:
    """Two arms on their buses; every command is compared with the limits.

    Attributes:
      commands: how many came.
      beyond: what was beyond the limits, in words.
      powered: whether torque was ever switched on.
    """

    def __init__(self, robot: DynamixelRobot, limits: SafetyConfig, seams: Seams) -> None:
        """Joins an arm driver that is not entered yet; `limits` are the widest ones that are ever in force."""
        insert = scene.load("insert")
        order = np.concatenate([arm.ctrl for arm in insert.arms])
        self._low = np.minimum(insert.ctrl_low[order], SLEEP_POSE)
        self._high = np.maximum(insert.ctrl_high[order], SLEEP_POSE)
        self._most = limits.max_speed * limits.period_s
        self._model = SafetyModel(limits)
        self._robot, self._seams = robot, seams
        self._last: np.ndarray | None = None
        self._start = np.zeros(0)
        self._slack = 0.0
        self.commands = 0
        self.beyond: list[str] = []
        self.powered = False

    def __enter__(self) -> Self:
        """Connects."""
        self._robot.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnects; arms that hold keep holding."""
        self._robot.__exit__(kind, error, trace)

    def read(self) -> Proprio:
        """Reads both arms."""
        self._seams.cross()
        return self._robot.read()

    def setup_problems(self) -> tuple[str, ...]:
        """Returns what is set up otherwise than readings and commands rely on."""
        return self._robot.setup_problems()

    def command(self, ctrl: np.ndarray) -> np.ndarray:
        """Sends targets [14] and returns what was sent."""
        self._seams.cross()
        self.commands += 1
        wrong = self._wrong(ctrl)
        try:
            sent = self._robot.command(ctrl)
        except RobotFault:
            if wrong and not self._robot.stopped:  # what stopped servos are told is not sent
                self.beyond.append(wrong)
            raise
        if wrong:
            self.beyond.append(wrong)
        self._last = sent
        return sent

    def stop(self) -> None:
        """Holds both arms where they are."""
        self._robot.stop()

    def enable(self) -> None:
        """Switches torque on."""
        self._seams.cross()
        self._robot.enable()
        self.powered = True
        self._begin()

    def disable(self) -> None:
        """Switches torque off."""
        self._seams.cross()
        self._robot.disable()

    def rearm(self) -> None:
        """Lets servos that stopped by their watchdog move again."""
        self._robot.rearm()
        self._begin()

    def _begin(self) -> None:
        """Commands begin anew, from where the arms are."""
        self._last = None

    def _before(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns [14] the lowest and the highest of what a command may start from.

        That is the command before. After torque went on it is where the servos hold the arms, or a guard's reading of
        where they are, a little below.
        """
        if self._last is not None:
            return self._last, self._last
        held, position = self._robot.goals(), self._robot.read().position
        held = np.where(np.isnan(held), position, held)
        return np.minimum(held, position), np.maximum(held, position)

    def _wrong(self, ctrl: np.ndarray) -> str:
        """Returns in which way a command is beyond the limits; "" if it is not."""
        if not np.isfinite(ctrl).all():
            return f"not finite: {ctrl}"
        first = self._last is None
        lowest, highest = self._before()
        steps = np.maximum(lowest - ctrl, ctrl - highest)
        step = np.where(IS_GRIPPER & first, 0.0, steps).max()
        # Guards may begin from a reading a moment older than this one.
        if step > self._most + (0.01 if first else _TOLERANCE):
            return f"a step of {step:.4f}, not at most {self._most:.4f}"
        low, high = np.minimum(self._low, lowest), np.maximum(self._high, highest)
        if (ctrl < low - _TOLERANCE).any() or (ctrl > high + _TOLERANCE).any():
            return f"beyond the joints' ranges: {ctrl}"
        slack = self._model.clearance(ctrl).slack
        least = min(0.0, *(self._model.clearance(start).slack for start in (lowest, highest)))
        if slack < least - (1e-3 if first else _TOLERANCE):
            return f"{1000 * slack:.1f} mm closer than allowed, {1000 * least:.1f} mm before"
        return ""


class DisturbedCamera:
    """A wrist camera whose pictures something may happen to.

    Attributes:
      name: "left" or "right".
      source: the camera.
      spoil: what becomes of a picture; may raise RobotFault. None: nothing.
    """

    def __init__(self, source: Camera, seams: Seams) -> None:
        """Shows what an entered camera shows."""
        self.name = source.name
        self.source = source
        self.spoil: Callable[[Frame], Frame] | None = None
        self._seams = seams

    def __enter__(self) -> Self:
        """Needs nothing."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves nothing."""

    def read(self, max_age_s: float) -> Frame:
        """Returns the newest picture, or what became of it."""
        self._seams.cross()
        frame = self.source.read(max_age_s)
        return frame if self.spoil is None else self.spoil(frame)


class DisturbedPolicy:
    """A policy whose answers something may happen to.

    Attributes:
      interface: what the policy takes.
      spoil: what becomes of an action; may raise Alohas2rError. None: nothing.
    """

    def __init__(self, source: Policy, interface: object, seams: Seams) -> None:
        """Answers as a policy does."""
        self.interface = interface
        self.spoil: Callable[[np.ndarray], np.ndarray] | None = None
        self._source, self._seams = source, seams

    def reset(self) -> None:
        """Forgets the past."""
        self._source.reset()

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the action, or what became of it."""
        self._seams.cross()
        action = self._source.act(observation)
        return action if self.spoil is None else self.spoil(action)


class DisturbedPacer:
    """The run's time: the `Pacer` protocol.

    Attributes:
      realtime: whether time passes by itself.
      steps: how many control steps began.
    """

    def __init__(self, pacer: Pacer, seams: Seams) -> None:
        """Keeps the world's time, or the clock's."""
        self.realtime = pacer.realtime
        self.steps = 0
        self._pacer, self._seams = pacer, seams

    def wait(self) -> None:
        """Returns when the next control step is due."""
        self.steps += 1
        self._seams.cross()
        self._pacer.wait()

    def now_s(self) -> float:
        """Returns the time by which holds are measured."""
        return self._pacer.now_s()


class Display:
    """Looks at every step, until its terminal is gone."""

    def __init__(self, seams: Seams) -> None:
        """Starts with a terminal."""
        self.gone = False
        self._seams = seams

    def __call__(self, report: Report) -> None:
        """Takes a control step. Raises OSError without a terminal."""
        self._seams.cross()
        if self.gone:
            raise BrokenPipeError("the terminal is gone")


class LocalServer:
    """A policy server in a thread, which can end and come back on its port.

    Attributes:
      port: where it listens.
    """

    def __init__(self, policy: OnnxPolicy) -> None:
        """Prepares; entering the context starts it."""
        self.port = 0
        self._policy = policy
        self._thread: threading.Thread | None = None
        self._end: Callable[[], object] = lambda: None

    def __enter__(self) -> Self:
        """Starts."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends."""
        self.stop()

    def start(self) -> None:
        """Serves, on the port that it had before.

        Raises:
          RobotFault: it does not come up.
        """
        if self._thread is not None:
            return
        ready = threading.Event()
        # A port is free again a moment after its last connection ended.
        server = PolicyServer(self._policy, ServerConfig(port=self.port))

        async def main() -> None:
            stop, loop = asyncio.Event(), asyncio.get_running_loop()
            self._end = lambda: loop.call_soon_threadsafe(stop.set)
            await server.run(stop, lambda _: ready.set())

        self._thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
        self._thread.start()
        if not ready.wait(30):
            raise RobotFault("The local policy server does not start.")
        self.port = server.port

    def stop(self) -> None:
        """Ends, and says goodbye to its clients."""
        if self._thread is not None:
            self._end()
            self._thread.join()
            self._thread = None


@dataclasses.dataclass
class Stage:
    """What faults act on.

    Attributes:
      emulator: the arms' world.
      robot, cameras, policy, display: what the loop is given.
      server: the policy's server, if it has one.
      seams: when things happen.
      stepped: whether the world's time stands still while the loop works.
      fallen: servos (side, id) that a fault has let go of.
    """

    emulator: Emulator
    robot: WatchedRobot
    cameras: Sequence[DisturbedCamera]
    policy: DisturbedPolicy
    display: Display
    server: LocalServer | None
    seams: Seams
    stepped: bool = True
    fallen: set[tuple[str, int]] = dataclasses.field(default_factory=set)
