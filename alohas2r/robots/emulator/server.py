"""Two arms' Dynamixel buses on pseudo-terminals, with physics behind them.

Each bus speaks protocol 2.0 as nine servos of a ViperX 300 S would, so that unmodified software for
real arms runs against it: control tables with their access rules, status packets, shadows, the bus
watchdog, reboots, and faults on demand. The joints move in the MuJoCo insertion scene, in real time
or step by step. The emulator runs in a process of its own, `serve`; an `Emulator` starts it, or
joins one that runs, and steps, inspects and disturbs it over a control socket.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import heapq
import json
import math
import multiprocessing.process
import os
import pathlib
import pty
import select
import selectors
import socket
import termios
import time
import tty
from collections.abc import Callable

import numpy as np

from alohas2r.config import check
from alohas2r.core import stop as core_stop
from alohas2r.core.types import JsonObject, Untyped
from alohas2r.embodiment.joints import SIDES
from alohas2r.errors import Alohas2rError, ConfigError, RobotFault, did_you_mean
from alohas2r.robots.dynamixel import adapter
from alohas2r.robots.dynamixel.arm import SERVOS, GripperLinkage
from alohas2r.robots.dynamixel.leader import LEADER_SERVOS
from alohas2r.robots.emulator.bus import BusEmulator, Faults
from alohas2r.robots.emulator.hidden import HiddenConfig
from alohas2r.robots.emulator.servo import OVERHEATING, OVERLOAD, VOLTAGE_ERROR, Servo
from alohas2r.robots.emulator.world import World

# Whether a terminal is kept by one program. Source: Linux, asm-generic/ioctls.h.
TIOCGEXCL = 0x80045440


@dataclasses.dataclass(frozen=True)
class EmulatorConfig:
    """How the emulator runs.

    Attributes:
      realtime: whether the physics follows the clock; otherwise it moves only when told to.
      seed: of the disturbances.
      set_up: whether the servos are set up as those of an arm in use; else they are as their maker
        ships them, but for their ids and baud rate.
      linkage: the grippers' cranks.
      hidden: from which robots it is one; by default the simulated one.
      leaders: whether the servos are those of leader arms, which hands move: `place` does.
    """

    realtime: bool = True
    seed: int = 0
    set_up: bool = False
    linkage: GripperLinkage = dataclasses.field(default_factory=GripperLinkage)
    hidden: HiddenConfig = dataclasses.field(default_factory=HiddenConfig)
    leaders: bool = False

    def __post_init__(self) -> None:
        """Checks that the settings fit together."""
        check(not (self.leaders and self.set_up), "leaders are not set up as followers are")


class _Port:
    """A pseudo-terminal under a path of its own."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        os.set_blocking(self.master, False)
        path.unlink(missing_ok=True)
        path.symlink_to(os.ttyname(self.slave))

    def free(self) -> None:
        """Lets a port be opened again that a program kept for itself until it was killed.

        On a real port the operating system does that when its last holder ends; of a
        pseudo-terminal, this process holds the other end.
        """
        kept = fcntl.ioctl(self.slave, TIOCGEXCL, bytes(4)) != bytes(4)
        if kept and not adapter.holders(os.ttyname(self.slave)):
            fcntl.ioctl(self.slave, termios.TIOCNXCL)

    def baud(self) -> int:
        return termios.tcgetattr(self.slave)[4]

    def drain(self) -> bytes:
        """Returns all bytes that the other side has written so far.

        The kernel hands bytes on a moment after they were written; a mark written behind them
        tells when the last of them has come. More may be written behind the mark meanwhile, and a
        port that is opened or flushed meanwhile loses the mark.
        """
        mark = b"\x00end of what was written\x00"
        os.write(self.slave, mark)
        data = bytearray()
        while mark not in data and select.select([self.master], [], [], 1.0)[0]:
            data += os.read(self.master, 4096)
        return bytes(data.replace(mark, b""))

    def close(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.slave)
        os.close(self.master)


class Server:
    """The event loop of the emulator's process: two buses, the physics, the control socket."""

    # A starved emulator lets its world run slower rather than jump: no time passes unattended.
    MAX_LAG_S = 0.05
    ABANDONED_S = 1.0  # without a packet, a port may have been left behind
    LOOK_UP_S = 0.2  # how often to see whether a signal asked to stop

    def __init__(self, config: EmulatorConfig, directory: pathlib.Path) -> None:
        self._config = config
        self._directory = directory
        kinds = LEADER_SERVOS if config.leaders else SERVOS
        self._world = World(config.linkage, config.hidden, kinds)
        self._buses = {
            side: BusEmulator(side, self._world, config.seed + place)
            for place, side in enumerate(SIDES)
        }
        if config.set_up:
            self._world.set_up()
        self._ports: dict[str, _Port] = {}
        self._heard_s: dict[str, float] = dict.fromkeys(SIDES, time.monotonic())
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, int, str, bytes]] = []
        self._count = 0
        self._stopping = False
        for side in SIDES:
            self._plug(side)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(directory / "control"))
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        parent = multiprocessing.process.parent_process()
        if parent is not None:  # end with the process that started us, however it ends
            self._selector.register(parent.sentinel, selectors.EVENT_READ, self.stop)

    def run(self) -> None:
        """Serves until `stop`."""
        start_s = time.monotonic()
        while not self._stopping:
            for key, _ in self._selector.select(self._patience(start_s)):
                key.data()
            if self._config.realtime:
                start_s = self._follow_clock(start_s)
            self._flush()
            self._free_ports()
        for port in self._ports.values():
            port.close()
        self._listener.close()
        (self._directory / "control").unlink(missing_ok=True)

    def _free_ports(self) -> None:
        """Looks, when nothing has been heard for a while, whether a port's user was killed."""
        now_s = time.monotonic()
        for side, port in self._ports.items():
            if now_s - self._heard_s[side] > self.ABANDONED_S:
                self._heard_s[side] = now_s
                with contextlib.suppress(OSError):
                    port.free()

    def _patience(self, start_s: float) -> float:
        """Returns how long to wait for packets before something else is due."""
        waits = []
        now_s = time.monotonic()
        if self._config.realtime:
            waits.append(start_s + self._world.time_s + self._world.model.opt.timestep - now_s)
        if self._due:
            waits.append(self._due[0][0] - now_s)
        return max(0.0, min(waits, default=self.LOOK_UP_S))

    def _follow_clock(self, start_s: float) -> float:
        dt = self._world.model.opt.timestep
        lag = time.monotonic() - start_s - self._world.time_s
        if lag > self.MAX_LAG_S:
            start_s += lag - dt
            lag = dt
        self._advance(int(lag / dt))
        return start_s

    def _advance(self, steps: int) -> None:
        for _ in range(steps):
            for bus in self._buses.values():
                bus.watch(self._world.time_s)
            self._world.step()

    def _plug(self, side: str) -> None:
        port = _Port(self._directory / side)
        self._ports[side] = port
        self._buses[side].baud = port.baud
        self._selector.register(port.master, selectors.EVENT_READ, lambda: self._receive(side))

    def _unplug(self, side: str) -> None:
        port = self._ports.pop(side, None)
        if port is not None:
            self._selector.unregister(port.master)
            port.close()

    def _receive(self, side: str) -> None:
        port = self._ports.get(side)
        if port is None:  # pulled in the same moment
            return
        try:
            data = os.read(port.master, 4096)
        except (BlockingIOError, OSError):
            return
        self._take(side, data)

    def _take(self, side: str, data: bytes) -> None:
        bus = self._buses[side]
        if data:
            self._heard_s[side] = time.monotonic()
        due_s = time.monotonic() + bus.faults.latency_s
        for answer in bus.receive(data, self._world.time_s):
            self._count += 1
            heapq.heappush(self._due, (due_s, self._count, side, answer))
        self._flush()

    def _flush(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            _, _, side, answer = heapq.heappop(self._due)
            if side in self._ports:
                try:
                    os.write(self._ports[side].master, answer)
                except BlockingIOError:
                    continue  # nobody reads: the bytes are lost, as on a wire

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        stream = connection.makefile("rwb")

        def serve() -> None:
            line = stream.readline()
            if not line:
                self._selector.unregister(connection)
                stream.close()
                connection.close()
                return
            try:
                reply = {"ok": self._control(**json.loads(line))}
            except (Alohas2rError, TypeError, ValueError, KeyError, IndexError) as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            stream.write(json.dumps(reply).encode() + b"\n")
            stream.flush()

        self._selector.register(connection, selectors.EVENT_READ, serve)

    def _control(self, op: str, **arguments: Untyped) -> object:
        operations: dict[str, Callable[..., object]] = {
            "state": self._state,
            "step": self._step,
            "place": self._place,
            "faults": self._set_faults,
            "overload": lambda side, servo: self._servo(side, servo).fail(OVERLOAD),
            "temperature": self._heat,
            "voltage": self._set_voltage,
            "reboot": lambda side, servo: self._servo(side, servo).reboot(),
            "turn": self._turn,
            "unplug": self._unplug,
            "plug": self._replug,
            "peek": lambda side, servo, name: self._servo(side, servo)[name],
            "poke": self._poke,
            "instructions": lambda side: dict(self._buses[side].instructions),
            "reset": self._reset,
            "stop": self.stop,
        }
        if op not in operations:
            raise ConfigError(f"Unknown operation '{op}'.{did_you_mean(op, operations)}")
        self._drain()  # what was sent over the buses before comes first
        return operations[op](**arguments)

    def _servo(self, side: str, servo: int) -> Servo:
        return next(one for one in self._world.servos[side] if one.kind.id == servo)

    def _poke(self, side: str, servo: int, name: str, value: int) -> None:
        self._servo(side, servo)[name] = value

    def _drain(self) -> None:
        for side, port in self._ports.items():
            self._take(side, port.drain())

    def _state(self) -> JsonObject:
        world = self._world
        return {
            "time_s": world.time_s,
            "qpos": world.data.qpos.tolist(),
            "qvel": world.data.qvel.tolist(),
            "goals": world.goals().tolist(),
            "torque": [[servo.torque for servo in world.servos[side]] for side in SIDES],
            "watchdog": [[servo["Bus_Watchdog"] for servo in world.servos[side]] for side in SIDES],
        }

    def _step(self, seconds: float) -> float:
        self._advance(round(seconds / self._world.model.opt.timestep))
        return self._world.time_s

    def _place(
        self,
        qpos: list[float],
        qvel: list[float] | None = None,
        goals: list[float] | None = None,
    ) -> None:
        speeds, wanted = (None if one is None else np.array(one) for one in (qvel, goals))
        self._world.place(np.array(qpos), speeds, wanted)

    def _set_faults(self, side: str, **faults: Untyped) -> None:
        if "silent" in faults:
            faults["silent"] = tuple(faults["silent"])
        self._buses[side].faults = Faults(**faults)

    def _heat(self, side: str, servo: int, celsius: int) -> None:
        one = self._servo(side, servo)
        one["Present_Temperature"] = celsius
        if celsius > one["Temperature_Limit"]:
            one.fail(OVERHEATING)

    def _set_voltage(self, side: str, tenths: int, servo: int | None) -> None:
        for one in self._world.servos[side]:
            if servo is None or one.kind.id == servo:
                one["Present_Input_Voltage"] = tenths
                if not one["Min_Voltage_Limit"] <= tenths <= one["Max_Voltage_Limit"]:
                    one.fail(VOLTAGE_ERROR)

    def _turn(self, side: str, servo: int, turns: int) -> None:
        one = self._servo(side, servo)
        one.turns -= turns
        one.changed = True

    def _replug(self, side: str) -> None:
        if side not in self._ports:
            self._plug(side)

    def _reset(self) -> None:
        for side, bus in self._buses.items():
            self._replug(side)
            bus.faults = Faults()
            bus.instructions.clear()
            for servo in self._world.servos[side]:
                servo.factory_reset(keep_id=False)
                servo.silent_until_s = -math.inf
        if self._config.set_up:
            self._world.set_up()
        self._world.place(self._world.home)

    def stop(self) -> None:
        """Makes `run` return."""
        self._stopping = True


def serve(
    config: EmulatorConfig,
    directory: str | os.PathLike[str],
    ready: Callable[[], None] | None = None,
) -> None:
    """Runs an emulator in this process until it is told to stop, or until Ctrl-C or SIGTERM.

    Args:
      config: how it runs.
      directory: where the ports `left` and `right` and the socket `control` appear.
      ready: called once the ports are there.

    Raises:
      RobotFault: an emulator runs in that directory already.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    control = directory / "control"
    if control.exists():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(control)) == 0:
                raise RobotFault(f"An emulator runs in {directory} already.")
        control.unlink()  # left behind by one that was killed
    server = Server(config, directory)
    with core_stop.StopSignal(server.stop):
        if ready is not None:
            ready()
        server.run()
