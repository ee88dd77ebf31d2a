"""Episodes on arms that nobody puts in place: release, pause, approach, and the next one."""

import collections
import io
import os
import pathlib
import pty
import time
from collections.abc import Mapping
from typing import NamedTuple

import mujoco
import numpy as np
import pytest

from alohas2r.deployment.config import DeployConfig
from alohas2r.deployment.log import LogWriter
from alohas2r.deployment.loop import Deployment
from alohas2r.deployment.pacer import ClockPacer, SteppedPacer
from alohas2r.deployment.pause import KeyPause, Next, Pause, TimedPause
from alohas2r.deployment.report import Report
from alohas2r.embodiment.joints import IS_GRIPPER
from alohas2r.errors import ConfigError, RobotFault
from alohas2r.robots.base import Proprio
from alohas2r.robots.simulated import SimulatedRobot, SimulatedWorld, StubCamera, cameras
from alohas2r.safety.config import FULL
from alohas2r.safety.paths import at_rest
from alohas2r.safety.reactions import Mode
from alohas2r.sim import scene

INSERT = scene.load("insert")
PARTS = ("socket", "peg")
STUDENT = pathlib.Path(__file__).parents[2] / "params/student/policy.onnx"
SHORT = DeployConfig(mode="full", episode_s=0.2, episodes=3, frozen_s=0.0)


class Still:
    """Wants nothing."""

    def __init__(self) -> None:
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.zeros(14)


class Left(NamedTuple):
    """How an episode left the scene: the parts' heights (m), and how far fingers are from them (m)."""

    heights: np.ndarray
    clearance: float
    torque: bool
    at_rest: bool


class Person:
    """Puts the parts back between episodes, and looks at how the arms left them."""

    def __init__(self, world: SimulatedWorld, robot: SimulatedRobot, starts: np.ndarray) -> None:
        self.world, self.robot, self.starts = world, robot, starts
        self.left: list[Left] = []
        self._polls = 0

    def begin(self, now_s: float) -> None:
        data = self.world.data
        heights = np.array([data.body(part).xpos[2] for part in PARTS])
        tips = data.site_xpos[
            [INSERT.id("site", f"{side}/{finger}_fingertip") for side, finger in _FINGERS]
        ]
        places = np.array([data.body(part).xpos for part in PARTS])
        gaps = np.linalg.norm(tips[:, None] - places[None], axis=-1)
        position = self.robot.read().position
        self.left.append(Left(heights, gaps.min(), self.robot.enabled, at_rest(position)))
        put_back(self.world, self.starts[len(self.left) % len(self.starts)])
        self._polls = 0

    def poll(self, now_s: float) -> Next | None:
        self._polls += 1
        return Next.NEXT if self._polls > 4 else None

    def end(self) -> None:
        pass


_FINGERS = [(side, finger) for side in ("left", "right") for finger in ("left", "right")]


def put_back(world: SimulatedWorld, qpos: np.ndarray) -> None:
    """Moves the parts, and nothing else, to where they are in `qpos`."""
    model, data = world.model, world.data
    for part in PARTS:
        joint = int(model.body(part).jntadr[0])
        first = int(model.jnt_qposadr[joint])
        data.qpos[first : first + 7] = qpos[first : first + 7]
        speed = int(model.jnt_dofadr[joint])
        data.qvel[speed : speed + 6] = 0
    mujoco.mj_forward(model, data)


def stubs() -> list[StubCamera]:
    return [StubCamera("left"), StubCamera("right", seed=1)]


def run_pausing(pause: Pause, policy: Still, config: DeployConfig = SHORT):
    world = SimulatedWorld()
    robot = SimulatedRobot(world)
    reports: list[Report] = []
    deployment = Deployment(
        robot,
        stubs(),
        policy,
        config,
        SteppedPacer(world.advance),
        slow=FULL,
        on_step=reports.append,
        pause=pause,
    )
    return deployment.run(), robot, reports


class Keys:
    """Presses keys, and sees in what state the arms are then."""

    def __init__(self, *keys: Next) -> None:
        self.keys = list(keys)
        self.begun = self.ended = 0

    def begin(self, now_s: float) -> None:
        self.begun += 1

    def poll(self, now_s: float) -> Next | None:
        return self.keys.pop(0)

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize(
    ("keys", "episodes", "resets"),
    [
        ([Next.NEXT, Next.NEXT], 3, 3),
        ([Next.AGAIN, Next.NEXT, Next.NEXT], 3, 4),
        ([Next.NEXT, Next.STOP], 2, 2),
    ],
)
def test_a_person_says_what_comes_next(keys: list[Next], episodes: int, resets: int) -> None:
    pause, policy = Keys(*keys), Still()
    outcome, robot, _ = run_pausing(pause, policy)
    assert outcome.mode is Mode.ASLEEP
    assert outcome.episodes == episodes
    assert policy.resets - 2 == resets  # the pre-flight check asks and resets twice
    assert pause.begun == pause.ended == len(keys)
    assert not robot.enabled


def test_an_end_of_the_run_in_the_pause_leaves_torque_off() -> None:
    import signal

    class Pressing(Keys):
        def poll(self, now_s: float) -> Next | None:
            signal.raise_signal(signal.SIGINT)
            return None

    outcome, robot, _ = run_pausing(Pressing(), Still())
    assert (outcome.mode, outcome.episodes, robot.enabled) == (Mode.ASLEEP, 1, False)


def test_time_ends_a_pause() -> None:
    pause = TimedPause(2.0)
    pause.begin(10.0)
    assert [pause.poll(now_s) for now_s in (10.0, 11.9, 12.0)] == [None, None, Next.NEXT]
    _, _, reports = run_pausing(TimedPause(1.0), Still(), SHORT)
    pauses = [one for one in reports if not one.frames and one.mode is Mode.RUN]
    assert len(pauses) in (38, 40, 42)  # two of a second each


def test_keys_are_taken_one_by_one_without_waiting() -> None:
    ours, theirs = pty.openpty()
    said: list[str] = []
    with os.fdopen(theirs, buffering=1, newline="") as stream:
        pause = KeyPause(said.append, stream)
        pause.begin(0.0)
        assert "press n" in said[0]
        assert pause.poll(0.0) is None
        for key, wanted in ((b"x", None), (b"a", Next.AGAIN), (b"N", Next.NEXT), (b"s", Next.STOP)):
            os.write(ours, key)
            assert pause.poll(0.0) is wanted
        pause.end()
    os.close(ours)
    with pytest.raises(ConfigError, match="--reset-seconds"):
        KeyPause(said.append, io.StringIO())


def test_the_shipped_student_plays_on_while_a_person_resets_the_scene() -> None:
    """The parts are set down and let go of, the cameras raise no alarm, and torque is off meanwhile."""
    pytest.importorskip("jax")
    from alohas2r.deployment.trials import Reading, Trials, World
    from alohas2r.policies.onnx.runtime import OnnxPolicy
    from alohas2r.rendering import registry as renderers

    count = int(os.environ.get("ALOHAS2R_EPISODES", "2"))
    world = SimulatedWorld()
    robot = SimulatedRobot(world)

    def state() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return world.data.qpos, world.data.qvel, world.data.ctrl[world.actuators]

    starts = Trials(World(world.place, world.advance, Reading(state)), count, 7).starts
    world.place(starts[0])
    renderer = renderers.make("raycast", INSERT, width=32, height=32, batch=1)
    person = Person(world, robot, starts)
    config = DeployConfig(mode="full", episodes=count, frozen_s=0.0, action_scale=0.02)
    deployment = Deployment(
        robot,
        cameras(world, renderer),
        OnnxPolicy.load(STUDENT),
        config,
        SteppedPacer(world.advance),
        slow=FULL,
        pause=person,
    )
    outcome = deployment.run()
    person.begin(0.0)  # the last one, too
    assert outcome.mode is Mode.ASLEEP
    assert outcome.episodes == count
    assert outcome.findings == {}
    for one in person.left:
        assert (one.torque, one.at_rest) == (False, True)
        assert one.heights.max() < 0.05  # on the table, one on the other at most
        assert one.clearance > 0.05


def test_grippers_are_open_after_the_way_aside_without_a_pause() -> None:
    world = SimulatedWorld()
    robot = SimulatedRobot(world)
    closed = np.tile([0, 0, 0, 0, 0, 0, -1.0], 2)

    class Close(Still):
        opened: list[float] = []  # noqa: RUF012

        def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
            self.opened.append(float(robot.read().position[IS_GRIPPER].min()))
            return closed

    policy = Close()
    config = DeployConfig(mode="full", episode_s=1.0, episodes=2, frozen_s=0.0)
    outcome = Deployment(
        robot, stubs(), policy, config, SteppedPacer(world.advance), slow=FULL
    ).run()
    assert outcome.episodes == 2
    assert (
        policy.opened[21] < 0.02
    )  # at the end of the first episode; the pre-flight check asks twice
    assert policy.opened[22] > 0.035  # at the start of the second


def test_a_log_that_cannot_be_written_brings_the_arms_to_rest(tmp_path: pathlib.Path) -> None:
    world = SimulatedWorld()
    robot = SimulatedRobot(world)

    class Full(Still):
        calls = 0

        def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
            self.calls += 1
            if self.calls == 5:  # as if the disk were full
                os.close(log._file)
            return np.zeros(14)

    config = DeployConfig(mode="full", episode_s=1.0, approach=False, frozen_s=0.0)
    log = LogWriter(tmp_path / "run", {"period_s": 0.05})
    outcome = Deployment(
        robot, stubs(), Full(), config, SteppedPacer(world.advance), log, slow=FULL
    ).run()
    assert outcome.mode is Mode.ASLEEP
    assert outcome.reasons[0][0] == "retreat"
    assert "cannot be written" in outcome.reasons[0][1]
    assert not robot.enabled


class Failing(SimulatedRobot):
    """Fails in one of its calls, from some time on."""

    def __init__(self, world: SimulatedWorld, call: str, number: int) -> None:
        super().__init__(world)
        self.call, self.number = call, number
        self.calls: collections.Counter[str] = collections.Counter()

    def fail(self, call: str) -> None:
        self.calls[call] += 1
        if call == self.call and self.calls[call] >= self.number:
            raise RobotFault("the bus is gone")

    def read(self) -> Proprio:
        self.fail("read after enable" if self.calls["enabled"] and not self.calls["read"] else "")
        return super().read()

    def enable(self) -> None:
        self.fail("enable")
        super().enable()
        self.calls["enabled"] += 1

    def disable(self) -> None:
        self.fail("disable")
        super().disable()


@pytest.mark.parametrize(
    ("call", "number", "mode", "torque"),
    [
        ("read after enable", 1, Mode.FROZEN, True),
        ("disable", 1, Mode.FROZEN, True),
        ("enable", 2, Mode.ASLEEP, False),
    ],
)
def test_arms_that_fail_as_torque_goes_on_or_off_end_in_a_known_state(
    call: str, number: int, mode: Mode, torque: bool
) -> None:
    world = SimulatedWorld()
    robot = Failing(world, call, number)
    pacer, pause = SteppedPacer(world.advance), Keys(*[Next.NEXT] * 3)
    outcome = Deployment(
        robot, stubs(), Still(), SHORT, pacer, safety=FULL, slow=FULL, pause=pause
    ).run()
    assert (outcome.mode, robot.enabled) == (mode, torque)
    assert "the bus is gone" in " ".join(text for _, text in outcome.reasons)


def test_torque_that_does_not_go_on_at_all_is_an_error() -> None:
    world = SimulatedWorld()
    robot = Failing(world, "enable", 1)
    with pytest.raises(RobotFault, match="the bus is gone"):
        Deployment(robot, stubs(), Still(), SHORT, SteppedPacer(world.advance)).run()
    assert not robot.enabled


def test_arms_that_answer_too_slowly_are_refused_with_the_likely_cause() -> None:
    class Slow(SimulatedRobot):
        def read(self) -> Proprio:
            time.sleep(0.04)  # as an adapter with a latency timer of 16 ms
            return super().read()

    robot = Slow(SimulatedWorld())
    with pytest.raises(RobotFault, match=r"pace: reading both arms takes 4\d ms .*latency timers"):
        Deployment(robot, stubs(), Still(), SHORT, ClockPacer()).run()
    assert not robot.enabled
