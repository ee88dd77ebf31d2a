"""Demonstrations on arms whose world nobody knows: a person leads, puts things back and says when it goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Self

import numpy as np
import online_cases
import pytest

from alohas2r.cli import app
from alohas2r.core.records import RecordReader
from alohas2r.deployment import config as deploy_config
from alohas2r.deployment import rig as rigs
from alohas2r.deployment.deploy import log_header
from alohas2r.deployment.log import LogWriter
from alohas2r.deployment.loop import Deployment
from alohas2r.deployment.online import opened
from alohas2r.deployment.online.coach import Judge
from alohas2r.deployment.online.deciders import Scripted
from alohas2r.deployment.online.demonstrate import DemoConfig, demonstrate
from alohas2r.deployment.online.explorer import LEASH_RAD, Explorer
from alohas2r.deployment.online.insert_coach import InsertCoach
from alohas2r.deployment.online.keyboard import Keyboard
from alohas2r.deployment.online.learn import learn
from alohas2r.deployment.online.opened import shipped_base
from alohas2r.deployment.online.runs import LearnConfig
from alohas2r.deployment.online.stage import Attended, Ended, Plan, ResetDraws
from alohas2r.deployment.online.truth import Start
from alohas2r.deployment.pacer import SteppedPacer
from alohas2r.deployment.pause import KeyPause, Next
from alohas2r.deployment.rig import RigConfig
from alohas2r.embodiment.control import ACTION_SCALE
from alohas2r.embodiment.joints import two_fingers
from alohas2r.embodiment.observation import proprioception as joint_values
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.learning.online.examples import read_trials
from alohas2r.learning.online.experience import Closed, read_all
from alohas2r.policies import artifact
from alohas2r.policies.online.config import LOGS
from alohas2r.policies.online.demonstrations import ABOUT, check_demos
from alohas2r.policies.online.policy import OnlinePolicy
from alohas2r.policies.onnx.base import insert_spec, read_base
from alohas2r.rendering import registry as renderers
from alohas2r.robots.emulator.cameras import EmulatedCameras
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.emulator.server import EmulatorConfig
from alohas2r.robots.realsense.record import write_recording
from alohas2r.robots.simulated import SimulatedRobot, SimulatedWorld, StubCamera
from alohas2r.safety.config import FULL, SafetyConfig
from alohas2r.safety.paths import at_rest
from alohas2r.safety.reactions import Mode
from alohas2r.sim import scene

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
    """Episodes until two have succeeded; `placed` says which of them a person begins, the last of it all others."""

    def __init__(self, placed: Sequence[bool] = (True,), failing: int = 100) -> None:
        self.episodes: list[Ended] = []
        self._placed, self._failing = placed, failing

    def next(self) -> Plan | None:
        number = len(self.episodes)
        if number == self._failing:
            raise ArtifactError("The learner ended.")
        if sum(one.success for one in self.episodes) == 2:
            return None
        return Plan(
            number, (0, number), [*self._placed, *[self._placed[-1]] * number][number], True, False
        )

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


class Played:
    """Attended episodes on simulated arms that are not asked about their world."""

    def __init__(
        self,
        folder: pathlib.Path,
        idle: Sequence[int],
        director: Until,
        *keys: Next,
        back: bool = False,
    ) -> None:
        world = SimulatedWorld()
        robot = SimulatedRobot(world)
        self.person, self.path = Person(robot, *keys), folder / "attended.run"
        way = ResetDraws(SPEC, (0,), back)
        decider = Scripted(Downwards(idle), "human")
        acting = Explorer(SPEC, decider, way, None, EPISODE_S, LEASH_RAD)
        config = deploy_config.DeployConfig(mode="full", episodes=100, episode_s=60.0, frozen_s=0.0)
        with LogWriter(self.path, log_header(config, FULL, "sim", "person")) as log:
            self.attended = Attended(acting, director, log)
            self.outcome = Deployment(
                robot,
                [Near("left"), Near("right")],
                acting,
                config,
                SteppedPacer(world.advance),
                log,
                slow=FULL,
                pause=self.person,
                attendant=self.attended,
            ).run()

    def starts(self) -> np.ndarray:
        """Where the left arm's joints [E, 6] were when it first decided in an episode."""
        rows, number = [], -1
        for record in RecordReader(self.path).poll():
            if record.values.get("learning", {}).get("decision"):
                if record.values["episode"] != number:
                    rows.append(record.arrays["observation/proprioception"][:6])
                number = record.values["episode"]
        return np.array(rows)


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
    director = Until()
    played = Played(tmp_path, idle, director, *keys)
    assert played.outcome.mode is Mode.ASLEEP
    assert [one.success for one in director.episodes] == came
    assert all(one.helped for one in director.episodes)
    assert played.outcome.episodes == len(came)
    assert played.person.resting == [(False, True)] * len(keys)  # none after the last
    ends = read_all(SPEC, RecordReader(played.path).poll())
    assert sum(one.reward for one in ends if isinstance(one, Closed)) == sum(came)
    assert len(played.starts()) == len(came)
    assert np.ptp(played.starts(), 0).max() < 0.03  # all began where the others did


def test_arms_that_go_back_by_themselves_go_on_until_they_are_helpless(
    tmp_path: pathlib.Path,
) -> None:
    director = Until((True, False))
    played = Played(tmp_path, (1, 2, 3), director, Next.NEXT, back=True)
    assert played.outcome.mode is Mode.ASLEEP
    assert [one.success for one in director.episodes] == [True, False, False, False, True]
    assert [one.helped for one in director.episodes] == [True, False, False, False, True]
    assert played.person.resting == [(False, True)]  # after three failures in a row
    records = RecordReader(played.path).poll()
    asked = [one for one in records if one.values.get("text") == "asked for help"]
    assert len(asked) == 1
    home = played.starts()[0]
    assert np.abs(played.starts() - home).max() < 0.2


def test_arms_go_to_rest_before_it_is_said_that_the_learner_ended(tmp_path: pathlib.Path) -> None:
    played = Played(tmp_path, (), Until(failing=1))
    assert played.outcome.mode is Mode.ASLEEP
    assert "The learner ended" in str(played.attended.failed)


def test_what_holds_an_arm_is_not_pushed_harder() -> None:
    acting = Explorer(
        SPEC, Scripted(Downwards(()), "human"), lambda felt: None, None, 60.0, LEASH_RAD
    )
    acting.begin((0,), True, False)
    targets, measured = np.tile(online_cases.HOME, 2), np.tile(online_cases.HOME, 2)
    depth = np.full((32, 32), 0.3, np.float32)
    wanted = []
    for _ in range(40):
        position = two_fingers(measured)
        felt = joint_values(position, targets.reshape(2, 7)).astype(np.float32)
        seen = {"proprioception": felt, "left_rgb": np.zeros((32, 32, 3), np.uint8)}
        action = acting.act({**seen, "left_depth": depth})
        assert np.abs(action).max() <= 1
        assert not action[7:].any()
        targets = targets + ACTION_SCALE * action
        wanted.append(np.abs(targets - measured)[:6].max())
    assert 0.09 < max(wanted) <= LEASH_RAD + 1e-6  # without: as far as the hand goes down


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


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine may be late, and the emulator with it."""
    late = dict(missed_deadlines=1000, patience_s=60.0, proprio_age_s=30.0)
    late |= dict(silent_s=60.0, frame_age_s=60.0)
    for mode in ("slow", "full"):
        patient: SafetyConfig = dataclasses.replace(deploy_config.LIMITS[mode], **late)
        monkeypatch.setitem(deploy_config.LIMITS, mode, patient)
    quick = rigs.DynamixelConfig
    monkeypatch.setattr(
        rigs, "DynamixelConfig", lambda **given: quick(**given, reply_timeout_s=0.5)
    )


class Hand:
    """A person who presses keys over and over, others while torque is off."""

    def __init__(self, hand: int, stream: object, acting: bytes, resting: bytes) -> None:
        self._hand, self.stream = hand, stream
        self._acting, self._resting = acting, resting
        self.said: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._press)

    def __enter__(self) -> Self:
        self.pause = KeyPause(self.said.append, self.stream, again=False)  # pyright: ignore[reportArgumentType]
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _press(self) -> None:
        while not self._over.wait(0.05):
            resting = any("Torque is off" in line for line in self.said)
            os.write(self._hand, self._resting if resting else self._acting)


@pytest.mark.alone
@pytest.mark.slow
def test_real_arms_are_led_from_serial_ports_and_what_succeeded_is_kept(
    terminal: tuple[int, object], tmp_path: pathlib.Path, busy: None
) -> None:
    """The driver, a recorded camera and the clock of real arms; a person who stops after the first."""
    recordings = near_recording(tmp_path / "l.db3"), near_recording(tmp_path / "r.db3")
    with Emulator(EmulatorConfig(set_up=True)) as emulator, Hand(*terminal, b"f", b"s") as hand:
        rig = RigConfig("aloha", ports=emulator.ports, recordings=recordings)
        with Keyboard(hand.said.append, hand.stream) as person:  # pyright: ignore[reportArgumentType]
            result = demonstrate(
                DemoConfig("reach", "keyboard", 2),
                rig,
                tmp_path / "demos",
                person=person,
                mode="full",
                pause=hand.pause,
            )
        assert not emulator.state().torque.any()
    assert (result["episodes"], result["tries"], result["true_successes"]) == (1, 1, None)
    assert "stopped" in str(result["stopped"])
    about = json.loads((tmp_path / "demos" / ABOUT).read_text())
    assert about["robot"] == "aloha"
    check_demos(tmp_path / "demos", online_cases.spec("reach", hidden=(256, 256)))


def inserted_from(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Records an insertion that the student shows in simulation; returns the world's state [Q] at its start."""
    monkeypatch.setattr(opened, "STARTS", 2)
    rig = RigConfig("sim", stepped=True)
    assert demonstrate(DemoConfig("insert", "student", 1), rig, folder)["episodes"] == 1
    records = RecordReader(folder / LOGS / "0000.run").poll()
    return next(one.arrays["qpos"] for one in records if one.kind == "episode")


def seeing_rig(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> RigConfig:
    """Real arms at an emulator's ports, whose cameras are drawn: nothing is plugged in here."""
    renderer = renderers.make("raycast", scene.load("insert"), width=32, height=32, batch=1)
    drawn = EmulatedCameras(emulator, renderer).cameras()
    monkeypatch.setattr(rigs, "_cameras", lambda config: drawn)
    return RigConfig("aloha", ports=emulator.ports, serials=("1", "2"))


@pytest.mark.alone
@pytest.mark.long
def test_real_arms_learn_with_a_person_beside(
    terminal: tuple[int, object],
    tmp_path: pathlib.Path,
    busy: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = demonstrate(
        DemoConfig("reach", episodes=2), RigConfig("sim", stepped=True), tmp_path / "demos"
    )
    settings = ("minutes=0.1", "chunk=10", "warmup=5", "batch=16", "updates=4", "clone_steps=300")
    config = LearnConfig(
        "reach",
        "residual",
        (str(shown["out"]),),
        (*settings, "hidden=(16, 16)", "final_episodes=1"),
        robot="aloha",
        resets="robot",
    )
    with Emulator(EmulatorConfig(set_up=True)) as emulator, Hand(*terminal, b"", b"n") as hand:
        rig = seeing_rig(emulator, monkeypatch)
        result = learn(config, tmp_path / "run", rig=rig, mode="full", pause=hand.pause)
        assert not emulator.state().torque.any()
    assert result["protocol"] == "learn-v1+modified+aloha"
    assert result["minutes"] >= 0.1
    assert result["evaluations"][-1]["final"]
    assert any("Torque is off" in line for line in hand.said)  # before the evaluation
    segments = [RecordReader(path).poll() for path in (tmp_path / "run" / "log").iterdir()]
    said = [one.values["learning"] for rows in segments for one in rows if "learning" in one.values]
    assert {one["truth"] for one in said if one} == {None}
    assert artifact.load(tmp_path / "run" / "policy", OnlinePolicy)


class Watching(Hand):
    """A person who says so when the peg is in, and goes on while torque is off."""

    def __init__(self, hand: int, stream: object, emulator: Emulator) -> None:
        super().__init__(hand, stream, b"y", b"n")
        self._emulator = emulator
        self._objects = [arm.object_qpos[:3] for arm in scene.load("insert").arms]

    def _press(self) -> None:
        pressed = False
        while not self._over.wait(0.1):
            if not self._emulator.state().torque.any():
                os.write(self._hand, self._resting)
                pressed = False
            elif self.apart() > 0.1:
                pressed = False
            elif self.apart() < 0.09 and not pressed:  # each is 12 cm long
                os.write(self._hand, self._acting)
                pressed = True

    def apart(self) -> float:
        """Returns how far apart the middles of peg and socket are (m)."""
        peg, socket = (self._emulator.state().qpos[one] for one in self._objects)
        return float(np.linalg.norm(peg - socket))


@pytest.mark.alone
@pytest.mark.long
@pytest.mark.parametrize("by", ["classifier", "person"])
def test_real_arms_insert_with_a_person_beside(
    terminal: tuple[int, object],
    tmp_path: pathlib.Path,
    busy: None,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
) -> None:
    """By a classifier that takes what is held for inserted, or by a person's keys; arms go back by themselves."""
    begun = inserted_from(tmp_path / "demos", monkeypatch)
    online_cases.written(online_cases.always(read_base(shipped_base())), tmp_path / "told")
    settings = ("minutes=0.01", "chunk=5", "warmup=5", "batch=16", "hidden=(16, 16)")
    config = LearnConfig(
        "insert",
        "residual",
        (str(tmp_path / "demos"),),
        (*settings, "final_episodes=1"),
        robot="aloha",
        reward="person" if by == "person" else str(tmp_path / "told"),
    )
    with Emulator(EmulatorConfig(set_up=True)) as emulator, contextlib.ExitStack() as stack:
        emulator.place(begun)  # where the student has shown that it can
        rig, coach = seeing_rig(emulator, monkeypatch), None
        watching = Watching(*terminal, emulator)
        hand = stack.enter_context(Hand(*terminal, b"", b"n") if by == "classifier" else watching)
        if by == "person":
            coach = stack.enter_context(InsertCoach(hand.said.append, hand.stream))  # pyright: ignore[reportArgumentType]
        result = learn(
            config, tmp_path / "run", coach=coach, rig=rig, mode="full", pause=hand.pause
        )
        assert not emulator.state().torque.any()
    assert result["protocol"] == "learn-insert-v1+modified+aloha"
    assert result["successes"] >= 1
    assert result["reset_minutes"] > 0
    assert result["evaluations"][-1]["final"]
    segments = [RecordReader(path).poll() for path in (tmp_path / "run" / "log").iterdir()]
    said = [one.values["learning"] for rows in segments for one in rows if "learning" in one.values]
    assert {"base", "policy", "reset"} <= {one["source"] for one in said if one}
    assert {one["truth"] for one in said if one} == {None}
    marks = {one.get("marked") for one in said if one}
    assert ("success" in marks) == (by == "person")


@pytest.mark.alone
@pytest.mark.long
def test_a_person_judges_insertions_of_real_arms(
    terminal: tuple[int, object],
    tmp_path: pathlib.Path,
    busy: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = inserted_from(tmp_path / "sim", monkeypatch)
    with Emulator(EmulatorConfig(set_up=True)) as emulator, Watching(*terminal, emulator) as hand:
        emulator.place(begun)
        rig = seeing_rig(emulator, monkeypatch)
        with Judge(hand.said.append, hand.stream) as person:  # pyright: ignore[reportArgumentType]
            result = demonstrate(
                DemoConfig("insert", "student", tries=1),
                rig,
                tmp_path / "demos",
                person=person,
                mode="full",
                pause=hand.pause,
            )
        assert not emulator.state().torque.any()
    assert (result["episodes"], result["tries"], result["true_successes"]) == (1, 1, None)
    check_demos(tmp_path / "demos", insert_spec(read_base(shipped_base())))
    (trial,) = read_trials([tmp_path / "demos"], 384).trials
    assert trial.inserted is not None
    assert sum(trial.examples()[1]) >= 20


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


def test_of_real_arms_a_person_judges_an_insertion(tmp_path: pathlib.Path) -> None:
    rig = RigConfig("aloha", serials=("1", "2"))
    with pytest.raises(ConfigError, match="only a simulation knows whether the peg is in"):
        demonstrate(DemoConfig("insert", "student"), rig, tmp_path / "demos")
