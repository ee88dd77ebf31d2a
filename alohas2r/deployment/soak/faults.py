"""What can go wrong around a run: each kind is a row of docs/safety.md, and says how it may end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from alohas2r.deployment.soak.stage import Stage
from alohas2r.embodiment.joints import SIDES
from alohas2r.errors import BackendUnavailable, RobotFault
from alohas2r.robots.base import Frame
from alohas2r.robots.dynamixel.arm import IDS, SERVOS
from alohas2r.robots.emulator.bus import Faults

Draw = np.random.Generator
Heal = Callable[[], object]
# Servos whose loss the arm's pose does not survive, unlike one of a pair.
_SHADOWS = tuple(servo.id for servo in SERVOS if servo.shadow_of is not None)


class Kind(NamedTuple):
    """A kind of fault.

    Attributes:
      name: what it is called in a result.
      strike: lets it happen, and returns what ends it; None: nothing does, or it is over at once.
      freezes: whether its row may end in a hold for good, which asks for a person.
    """

    name: str
    strike: Callable[[Stage, Draw], Heal | None]
    freezes: bool = False


def _side(draw: Draw) -> str:
    return SIDES[int(draw.integers(2))]


def _servo(draw: Draw, ids: tuple[int, ...] = IDS) -> int:
    return int(draw.choice(ids))


def _signal(*numbers: signal.Signals) -> Callable[[Stage, Draw], None]:
    def strike(stage: Stage, draw: Draw) -> None:
        for number in numbers:
            signal.raise_signal(number)

    return strike


def _bus(disturb: Callable[[Draw], Faults]) -> Callable[[Stage, Draw], Heal]:
    def strike(stage: Stage, draw: Draw) -> Heal:
        side = _side(draw)
        stage.emulator.set_faults(side, disturb(draw))
        return lambda: stage.emulator.set_faults(side)

    return strike


def _pull(stage: Stage, draw: Draw) -> Heal:
    side = _side(draw)
    stage.emulator.unplug(side)
    return lambda: stage.emulator.plug(side)


def _overload(stage: Stage, draw: Draw) -> None:
    side, servo = _side(draw), _servo(draw)
    stage.fallen.add((side, servo))
    stage.emulator.overload(side, servo)


def _heat(celsius: int) -> Callable[[Stage, Draw], Heal]:
    def strike(stage: Stage, draw: Draw) -> Heal:
        side, servo = _side(draw), _servo(draw)
        if celsius > 80:
            stage.fallen.add((side, servo))
        stage.emulator.heat(side, servo, celsius)
        return lambda: stage.emulator.heat(side, servo, 35)

    return strike


def _supply(volts: float) -> Callable[[Stage, Draw], Heal]:
    def strike(stage: Stage, draw: Draw) -> Heal:
        side = _side(draw)
        stage.emulator.feed(side, volts)
        return lambda: stage.emulator.feed(side, 12.0)

    return strike


def _restart(stage: Stage, draw: Draw) -> None:
    side, servo = _side(draw), _servo(draw)
    stage.fallen.add((side, servo))
    stage.emulator.reboot(side, servo)


def _slip(stage: Stage, draw: Draw) -> None:
    stage.emulator.poke(_side(draw), _servo(draw, _SHADOWS), "Homing_Offset", 100)


def _weaken(stage: Stage, draw: Draw) -> Heal:
    side, servo = _side(draw), _servo(draw, (1, 6, 7, 8))
    stage.emulator.poke(side, servo, "Position_P_Gain", 0)
    return lambda: stage.emulator.poke(side, servo, "Position_P_Gain", 800)


def _camera(spoil: Callable[[Frame, Frame], Frame]) -> Callable[[Stage, Draw], Heal]:
    """Returns what spoils a camera's pictures, from the present one and the one when it struck."""

    def strike(stage: Stage, draw: Draw) -> Heal:
        camera = stage.cameras[int(draw.integers(2))]
        kept: list[Frame] = []

        def spoiled(frame: Frame) -> Frame:
            kept.append(frame) if not kept else None
            return spoil(frame, kept[0])

        def heal() -> None:
            camera.spoil = None

        camera.spoil = spoiled
        return heal

    return strike


def _lost(frame: Frame, kept: Frame) -> Frame:
    raise RobotFault("The camera has no picture: pictures stopped coming.")


def _frame(rgb: np.ndarray, depth: np.ndarray, like: Frame) -> Frame:
    return Frame(rgb, depth, like.time_s, like.number, grey=like.grey)


def _swap(stage: Stage, draw: Draw) -> Heal:
    left, right = stage.cameras

    def swap() -> None:
        left.source, right.source = right.source, left.source

    swap()
    return swap


def _policy(spoil: Callable[[np.ndarray], np.ndarray]) -> Callable[[Stage, Draw], Heal]:
    def strike(stage: Stage, draw: Draw) -> Heal:
        def heal() -> None:
            stage.policy.spoil = None

        stage.policy.spoil = spoil
        return heal

    return strike


def _fails(action: np.ndarray) -> np.ndarray:
    raise BackendUnavailable("The policy is gone.")


def _late(action: np.ndarray) -> np.ndarray:
    raise TimeoutError("no answer within 40 ms")


def _server(stage: Stage, draw: Draw) -> Heal:
    server = stage.server
    if server is None:
        return _policy(_fails)(stage, draw)
    server.stop()
    return server.start


def _pause(stage: Stage, draw: Draw) -> None:
    seconds = float(draw.uniform(0.15, 0.5))
    if stage.stepped:
        stage.emulator.step(seconds)  # the world goes on meanwhile
    time.sleep(seconds)


def _terminal(stage: Stage, draw: Draw) -> None:
    stage.display.gone = True
    if threading.current_thread() is threading.main_thread():
        signal.raise_signal(signal.SIGHUP)


SIGNALS = (
    Kind("SIGINT", _signal(signal.SIGINT)),
    Kind("SIGTERM", _signal(signal.SIGTERM)),
    Kind("SIGHUP", _signal(signal.SIGHUP)),
    Kind("SIGINT twice", _signal(signal.SIGINT, signal.SIGINT), freezes=True),
    Kind("several signals", _signal(signal.SIGTERM, signal.SIGHUP, signal.SIGTERM)),
    Kind("terminal gone", _terminal),
)
BUS = (
    Kind("lost answers", _bus(lambda draw: Faults(drop=float(draw.uniform(0.02, 0.3)))), True),
    Kind(
        "damaged answers", _bus(lambda draw: Faults(corrupt=float(draw.uniform(0.02, 0.2)))), True
    ),
    Kind("noise on the bus", _bus(lambda draw: Faults(garbage=0.3)), True),
    Kind(
        "late answers", _bus(lambda draw: Faults(latency_s=float(draw.uniform(0.002, 0.02)))), True
    ),
    Kind("silent servo", _bus(lambda draw: Faults(silent=(_servo(draw),))), True),
    Kind("silent arm", _bus(lambda draw: Faults(silent=IDS)), True),
    Kind("bus pulled", _pull, True),
)
SERVO = (
    Kind("overload", _overload, True),
    Kind("hot servo", _heat(75)),
    Kind("overheated servo", _heat(85), True),
    Kind("weak supply", _supply(10.2)),
    Kind("supply error", _supply(9.0), True),
    Kind("servo restarts", _restart, True),
    Kind("pair comes apart", _slip, True),
    Kind("joint without force", _weaken, True),
)
CAMERA = (
    Kind("camera lost", _camera(_lost)),
    Kind("pictures stop", _camera(lambda frame, kept: kept)),
    Kind("colour frozen", _camera(lambda frame, kept: _frame(kept.rgb, frame.depth, frame))),
    Kind("depth frozen", _camera(lambda frame, kept: _frame(frame.rgb, kept.depth, frame))),
    Kind("colour black", _camera(lambda f, kept: _frame(np.zeros_like(f.rgb), f.depth, f))),
    Kind("depth unknown", _camera(lambda f, kept: _frame(f.rgb, np.zeros_like(f.depth), f))),
    Kind("depth in mm", _camera(lambda f, kept: _frame(f.rgb, 1000 * f.depth, f))),
    Kind("depth negative", _camera(lambda f, kept: _frame(f.rgb, -f.depth, f))),
    Kind("depth not a number", _camera(lambda f, kept: _frame(f.rgb, np.nan * f.depth, f))),
    Kind("cameras swapped", _swap),
)
POLICY = (
    Kind("action not finite", _policy(lambda action: action * np.nan)),
    Kind("action in degrees", _policy(lambda action: 57.3 * action + 3)),
    Kind("action of another size", _policy(lambda action: action[:7])),
    Kind("policy gone", _policy(_fails)),
    Kind("policy late", _policy(_late)),
    Kind("policy server restarts", _server),
)
LOOP = (Kind("loop pauses", _pause, True),)
KINDS = SIGNALS + BUS + SERVO + CAMERA + POLICY + LOOP
BY_NAME = {kind.name: kind for kind in KINDS}


def kinds_here() -> tuple[Kind, ...]:
    """Returns the kinds that can strike in this thread: signals reach the main thread alone."""
    main = threading.current_thread() is threading.main_thread()
    return KINDS if main else tuple(kind for kind in KINDS if kind not in SIGNALS)
