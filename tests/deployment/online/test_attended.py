"""Demonstrations on arms whose world nobody knows: a person leads, puts things back and says when it goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import threading
from collections.abc import Sequence

import numpy as np
import online_cases
import pytest

from alohas2r.cli import app
from alohas2r.core.records import RecordReader
from alohas2r.deployment import config as deploy_config
from alohas2r.deployment import rig as rigs
from alohas2r.deployment.deploy import log_header
from alohas2r.deployment.log import LogWriter, read_run
from alohas2r.deployment.loop import Deployment
from alohas2r.deployment.online.deciders import Scripted
from alohas2r.deployment.online.demonstrate import DemoConfig, demonstrate
from alohas2r.deployment.online.explorer import Explorer
from alohas2r.deployment.online.keyboard import Keyboard
from alohas2r.deployment.online.stage import Attended, Ended, Plan
from alohas2r.deployment.online.truth import Start
from alohas2r.deployment.pacer import SteppedPacer
from alohas2r.deployment.pause import KeyPause, Next
from alohas2r.deployment.rig import RigConfig
from alohas2r.errors import ConfigError
from alohas2r.learning.online.experience import Closed, read_all
from alohas2r.policies.online.demonstrations import ABOUT, check_demos
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.emulator.server import EmulatorConfig
from alohas2r.robots.realsense.record import write_recording
from alohas2r.robots.simulated import SimulatedRobot, SimulatedWorld, StubCamera
from alohas2r.safety.config import FULL, SafetyConfig
from alohas2r.safety.paths import at_rest
from alohas2r.safety.reactions import Mode

pytestmark = pytest.mark.compiles
SPEC = online_cases.spec("reach")
EPISODE_S = 6.0


class Near(StubCamera):
    """There is always something between the fingers: reached is what is low."""

    FAR_M = 0.12


class Downwards:
    """Leads the gripper down; in the episodes that are named it stays where it is."""

    gave_up = False

    def __init__(self, idle: Sequence[int]) -> None:
        self._idle, self._number = idle, -1

    def begin(self, seed: Sequence[int]) -> None:
        self._number += 1

    def act(self, proprioception: np.ndarray) -> np.ndarray:
        return np.array([0, 0, 0 if self._number in self._idle else -1, 0, 1], np.float32)


class Until:
    """Episodes until two have succeeded."""

    def __init__(self) -> None:
        self.episodes: list[Ended] = []

    def next(self) -> Plan | None:
        if sum(one.success for one in self.episodes) == 2:
            return None
        number = len(self.episodes)
        return Plan(number, (0, number), True, True, False)

    def ended(self, episode: Ended, state: Start | None) -> None:
        assert state is None
        self.episodes.append(episode)


class Person:
    """Presses keys in the pauses, and sees how the arms stand there."""

    def __init__(self, robot: SimulatedRobot, *keys: Next) -> None:
        self._robot, self._keys = robot, list(keys)
        self.resting: list[tuple[bool, bool]] = []

    def begin(self, now_s: float) -> None:
        self.resting.append((self._robot.enabled, at_rest(self._robot.read().position)))

    def poll(self, now_s: float) -> Next | None:
        return self._keys.pop(0)

    def end(self) -> None: ...


@pytest.mark.parametrize(
    ("idle", "keys", "came"),
    [
        ((1,), (Next.NEXT, Next.NEXT), [True, False, True]),
        ((0, 1, 2), (Next.NEXT, Next.STOP), [False, False]),
    ],
)
def test_a_person_attends_episodes_from_the_start_pose_to_rest(
    tmp_path: pathlib.Path, idle: tuple[int, ...], keys: tuple[Next, ...], came: list[bool]
) -> None:
    world = SimulatedWorld()
    robot = SimulatedRobot(world)
    person, director = Person(robot, *keys), Until()
    acting = Explorer(
        SPEC, Scripted(Downwards(idle), "human"), lambda felt: None, None, EPISODE_S - 0.1
    )
    config = deploy_config.DeployConfig(
        mode="full", episodes=100, episode_s=EPISODE_S, frozen_s=0.0
    )
    path = tmp_path / "attended.run"
    with LogWriter(path, log_header(config, FULL, "sim", "person")) as log:
        outcome = Deployment(
            robot,
            [Near("left"), Near("right")],
            acting,
            config,
            SteppedPacer(world.advance),
            log,
            slow=FULL,
            pause=person,
            attendant=Attended(acting, director, log),
        ).run()
    assert outcome.mode is Mode.ASLEEP
    assert [one.success for one in director.episodes] == came
    assert outcome.episodes == len(came)
    assert person.resting == [(False, True)] * len(keys)  # none after the last
    run = read_run(path)
    ends = [one for one in read_all(SPEC, RecordReader(path).poll()) if isinstance(one, Closed)]
    assert sum(one.reward for one in ends) == sum(came)
    firsts = [
        step.arrays["observation/proprioception"][:6]
        for step in run.steps
        if step.values.get("learning", {}).get("decision") and step.values["step"] == 0
    ]
    assert len(firsts) == len(came)
    assert np.ptp(firsts, 0).max() < 0.03  # all began where the others did


def near_recording(path: pathlib.Path) -> str:
    """A camera that always sees something between its fingers, and whose pictures change."""
    draw = np.random.default_rng(0)
    pictures = (
        (
            draw.integers(20, 236, (96, 96, 3), dtype=np.uint8),
            draw.uniform(0.10, 0.12, (96, 96)).astype(np.float32),
        )
        for _ in range(30)
    )
    write_recording(path, pictures)
    return str(path)


@pytest.mark.alone
@pytest.mark.slow
def test_real_arms_are_led_from_serial_ports_and_what_succeeded_is_kept(
    terminal: tuple[int, object], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver, a recorded camera and the clock of real arms; a hand at the keys that stops after the first."""
    hand, stream = terminal
    late = dict(missed_deadlines=1000, patience_s=60.0, proprio_age_s=30.0)
    late |= dict(silent_s=60.0, frame_age_s=60.0)  # the machine may be
    for mode in ("slow", "full"):
        busy: SafetyConfig = dataclasses.replace(deploy_config.LIMITS[mode], **late)
        monkeypatch.setitem(deploy_config.LIMITS, mode, busy)
    quick = rigs.DynamixelConfig
    monkeypatch.setattr(
        rigs, "DynamixelConfig", lambda **given: quick(**given, reply_timeout_s=0.5)
    )
    recordings = near_recording(tmp_path / "l.db3"), near_recording(tmp_path / "r.db3")
    said: list[str] = []
    over = threading.Event()

    def press() -> None:
        while not over.wait(0.05):
            stop = any("Torque is off" in line for line in said)
            os.write(hand, b"s" if stop else b"f")

    pressing = threading.Thread(target=press)
    with Emulator(EmulatorConfig(set_up=True)) as emulator:
        rig = RigConfig("aloha", ports=emulator.ports, recordings=recordings)
        pause = KeyPause(said.append, stream, again=False)  # pyright: ignore[reportArgumentType]
        with Keyboard(said.append, stream) as person:  # pyright: ignore[reportArgumentType]
            pressing.start()
            try:
                result = demonstrate(
                    *(DemoConfig("reach", "keyboard", 2), rig, tmp_path / "demos"),
                    person=person,
                    mode="full",
                    pause=pause,
                )
            finally:
                over.set()
                pressing.join()
        assert not emulator.state().torque.any()
    assert (result["episodes"], result["tries"], result["true_successes"]) == (1, 1, None)
    assert "stopped" in str(result["stopped"])
    about = json.loads((tmp_path / "demos" / ABOUT).read_text())
    assert about["robot"] == "aloha"
    check_demos(tmp_path / "demos", online_cases.spec("reach", hidden=(256, 256)))


def test_a_pause_without_another_try_knows_two_keys(terminal: tuple[int, object]) -> None:
    hand, stream = terminal
    said: list[str] = []
    pause = KeyPause(said.append, stream, again=False)  # pyright: ignore[reportArgumentType]
    pause.begin(0.0)
    assert "again" not in said[0]
    for key, wanted in ((b"a", None), (b"n", Next.NEXT), (b"s", Next.STOP)):
        os.write(hand, key)
        assert pause.poll(0.0) is wanted
    pause.end()


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (("--mode", "slow"), "--mode, --ports and --cameras go with real arms"),
        (("--robot", "emulated", "--cameras", "1", "2"), "go with real arms"),
        (("--robot", "aloha", "--by", "keyboard"), "serial numbers"),
        (("--robot", "aloha", "--cameras", "1", "2", "--stepped"), "cannot be stepped"),
        (("--robot", "aloha", "--cameras", "1", "2"), "--by keyboard or leader or spacemouse"),
        (
            ("--robot", "aloha", "--cameras", "1", "2", "--world-params", "delay=1"),
            "--world-params",
        ),
    ],
)
def test_what_real_arms_cannot_be_told_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, more: tuple[str, ...], part: str
) -> None:
    capsys.readouterr()
    assert app.main(["demonstrate", "reach", "--out", str(tmp_path / "demos"), *more]) == 1
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1
    assert not (tmp_path / "demos").exists()


def test_nobody_shows_an_insertion_on_real_arms(tmp_path: pathlib.Path) -> None:
    rig = RigConfig("aloha", serials=("1", "2"))
    with pytest.raises(ConfigError, match="simulation only"):
        demonstrate(DemoConfig("insert", "student"), rig, tmp_path / "demos")
