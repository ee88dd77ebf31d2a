"""Starts an emulator and talks to it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing.process
import os
import pathlib
import shutil
import signal
import socket
import tempfile
import time
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from alohas2r.core.types import Json, Untyped
from alohas2r.embodiment import joints
from alohas2r.errors import ConfigError, RobotFault
from alohas2r.robots.emulator.bus import Faults
from alohas2r.robots.emulator.server import EmulatorConfig, Server


def _serve_child(config: EmulatorConfig, directory: pathlib.Path) -> None:
    """Runs an emulator for the process that started this one, which alone decides about Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Server(config, directory).run()


class EmulatedState(NamedTuple):
    """What an emulator's world looks like."""

    time_s: float  # simulated
    qpos: np.ndarray  # [nq] of the insertion scene
    qvel: np.ndarray  # [nv]
    goals: np.ndarray  # [14] what the servos strive for (rad, m)
    torque: np.ndarray  # [2, 9] bool
    watchdog: np.ndarray  # [2, 9] the Bus_Watchdog values; 255: stopped by it


class Emulator:
    """A handle on an emulator in another process.

    Attributes:
      directory: where its ports are.
      ports: serial ports of the left and the right arm.
    """

    def __init__(
        self, config: EmulatorConfig | None = None, directory: str | os.PathLike[str] | None = None
    ) -> None:
        """Prepares. Entering the context starts the emulator, or joins the one that runs.

        Args:
          config: how it runs.
          directory: joins the emulator that runs there; None starts one in a new directory, which
            ends with the context.
        """
        self._config = config or EmulatorConfig()
        self._owned = directory is None
        self.directory = pathlib.Path(directory or ".")
        self._process: multiprocessing.process.BaseProcess | None = None
        self._socket: socket.socket | None = None
        self._stream: Untyped = None

    @property
    def ports(self) -> tuple[str, str]:
        """Serial ports of the left and the right arm."""
        return str(self.directory / "left"), str(self.directory / "right")

    def __enter__(self) -> Self:
        """Starts or joins.

        Raises:
          RobotFault: it does not come up, or none runs in the directory.
        """
        if self._owned:
            self.directory = pathlib.Path(tempfile.mkdtemp(prefix="alohas2r-"))
            context = multiprocessing.get_context("spawn")
            self._process = context.Process(
                target=_serve_child, args=(self._config, self.directory), daemon=True
            )
            self._process.start()
        patience_s = time.monotonic() + (60.0 if self._owned else 1.0)
        while True:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._socket.connect(str(self.directory / "control"))
                break
            except OSError as error:
                self._socket.close()
                ended = self._process is not None and not self._process.is_alive()
                if ended or time.monotonic() > patience_s:
                    self.__exit__(None, None, None)
                    raise RobotFault(f"No emulator answers in {self.directory}.") from error
                time.sleep(0.02)
        self._stream = self._socket.makefile("rwb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves; an emulator that this handle started ends."""
        if self._process is not None:
            if self._stream is not None and self._process.is_alive():
                self.stop()
            self._process.join(2.0)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process.close()
            self._process = None
            shutil.rmtree(self.directory, ignore_errors=True)
        for end in (self._stream, self._socket):
            if end is not None:
                with contextlib.suppress(OSError):  # what it still had to say, nobody hears
                    end.close()
        self._stream = self._socket = None

    def state(self) -> EmulatedState:
        """Returns what the world looks like now."""
        reply = self._ask("state")
        return EmulatedState(reply.pop("time_s"), **{k: np.array(v) for k, v in reply.items()})

    def step(self, seconds: float = joints.CONTROL_PERIOD_S) -> float:
        """Advances a stepped emulator; returns its time (s)."""
        return float(self._ask("step", seconds=seconds))

    def place(
        self,
        qpos: np.ndarray,
        qvel: np.ndarray | None = None,
        goals: np.ndarray | None = None,
    ) -> None:
        """Puts arms and objects somewhere [nq]; servos with torque strive for goals [14], or hold there."""
        speeds, wanted = (None if one is None else one.tolist() for one in (qvel, goals))
        self._ask("place", qpos=qpos.tolist(), qvel=speeds, goals=wanted)

    def set_faults(self, side: str, faults: Faults | None = None) -> None:
        """Disturbs a bus from now on; None ends all disturbances."""
        self._ask("faults", side=side, **dataclasses.asdict(faults or Faults()))

    def overload(self, side: str, servo: int) -> None:
        """Lets a servo shut down by overload."""
        self._ask("overload", side=side, servo=servo)

    def heat(self, side: str, servo: int, celsius: int) -> None:
        """Sets a servo's temperature; above its limit (80) it shuts down."""
        self._ask("temperature", side=side, servo=servo, celsius=celsius)

    def feed(self, side: str, volts: float, servo: int | None = None) -> None:
        """Sets the supply voltage of an arm or of one servo; beyond its limits it reports an error."""
        self._ask("voltage", side=side, tenths=round(10 * volts), servo=servo)

    def reboot(self, side: str, servo: int) -> None:
        """Restarts a servo past the bus, as a moment without power does: its torque goes off."""
        self._ask("reboot", side=side, servo=servo)

    def turn(self, side: str, servo: int, turns: int) -> None:
        """Turns a servo without torque by whole turns, as a hand may turn a wrist."""
        self._ask("turn", side=side, servo=servo, turns=turns)

    def unplug(self, side: str) -> None:
        """Takes a bus away, as pulling its USB plug does."""
        self._ask("unplug", side=side)

    def plug(self, side: str) -> None:
        """Brings a bus back, under the same path."""
        self._ask("plug", side=side)

    def peek(self, side: str, servo: int, name: str) -> int:
        """Reads a servo's control table past the bus."""
        return int(self._ask("peek", side=side, servo=servo, name=name))

    def poke(self, side: str, servo: int, name: str, value: int) -> None:
        """Writes a servo's control table past the bus and its rules."""
        self._ask("poke", side=side, servo=servo, name=name, value=value)

    def reset(self) -> None:
        """Gives every servo its factory values, plugs everything in, and puts the arms home."""
        self._ask("reset")

    def stop(self) -> None:
        """Ends the emulator, also one that this handle has only joined."""
        self._ask("stop")

    def instructions(self, side: str) -> dict[int, int]:
        """Returns how many instructions of each kind a bus has heard."""
        counts = self._ask("instructions", side=side)
        return {int(kind): count for kind, count in counts.items()}

    def _ask(self, op: str, **arguments: Json) -> Untyped:
        try:
            self._stream.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
            self._stream.flush()
            line = self._stream.readline()
        except (OSError, AttributeError) as error:
            raise RobotFault(f"The emulator in {self.directory} is gone.") from error
        if not line:
            raise RobotFault(f"The emulator in {self.directory} is gone.")
        reply = json.loads(line)
        if "error" in reply:
            raise ConfigError(f"The emulator refuses {op}: {reply['error']}")
        return reply["ok"]
