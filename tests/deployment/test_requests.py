"""Signals at any moment of a run: the arms retreat, and torque goes off in the sleep pose and nowhere else."""

import functools
import os
import pathlib
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping

import numpy as np
import pytest

import alohas2r
from alohas2r.deployment.config import DeployConfig
from alohas2r.deployment.loop import Deployment
from alohas2r.deployment.pacer import SteppedPacer
from alohas2r.deployment.report import Outcome
from alohas2r.deployment.requests import Requests
from alohas2r.embodiment.poses import SLEEP_POSE
from alohas2r.robots.simulated import SimulatedRobot, SimulatedWorld, StubCamera
from alohas2r.safety.config import SafetyConfig
from alohas2r.safety.paths import at_rest
from alohas2r.safety.reactions import Mode
from alohas2r.sim import scene

INSERT = scene.load("insert")
PACKAGE = str(pathlib.Path(alohas2r.__file__).parent)
# The ways are not what is tried here: the arms take them quickly.
HASTY = SafetyConfig(max_speed=1.5, max_acceleration=30.0, tracking_error=1.0)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Still:
    """Wants nothing."""

    def reset(self) -> None:
        pass

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.zeros(14)


class Witness(SimulatedRobot):
    """Notes in which pose torque goes off."""

    def __init__(self, world: SimulatedWorld) -> None:
        super().__init__(world)
        self.let_go_at: list[np.ndarray] = []

    def disable(self) -> None:
        self.let_go_at.append(self.read().position)
        super().disable()


class Moments:
    """Counts the lines of the package that one control step runs, and does something at one of them."""

    def __init__(self, at: int, happens: Callable[[], None]) -> None:
        self.at, self.happens = at, happens
        self.lines = 0

    def __call__(self, frame: types.FrameType, event: str, argument: object) -> object:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                self.happens()
        return self


class Traced(SteppedPacer):
    """Watches the third control step, from the wait before it to the one after."""

    def __init__(self, advance: Callable[[], object], moments: Moments) -> None:
        super().__init__(advance)
        self.moments = moments
        self.waits = 0
        self.before = sys.gettrace()  # of whoever measures coverage

    def wait(self) -> None:
        self.waits += 1
        frame = sys._getframe(1)
        if self.waits == 3:
            frame.f_trace = self.moments  # pyright: ignore[reportAttributeAccessIssue]
            sys.settrace(self.moments)  # pyright: ignore[reportArgumentType]
        elif self.waits == 4:
            sys.settrace(self.before)
            frame.f_trace = None
        super().wait()


def run_traced(at: int, happens: Callable[[], None]) -> tuple[Outcome, Witness, Moments]:
    world = SimulatedWorld()
    pose = INSERT.home_qpos.copy()
    pose[world.joints] = SLEEP_POSE + 0.05 * (np.arange(14) % 7 < 3)
    world.place(pose)
    robot, moments = Witness(world), Moments(at, happens)
    pacer = Traced(world.advance, moments)
    config = DeployConfig(mode="full", episode_s=0.3, approach=False, frozen_s=0.0)
    eyes = [StubCamera("left"), StubCamera("right", seed=1)]
    deployment = Deployment(robot, eyes, Still(), config, pacer, safety=HASTY, slow=HASTY)
    try:
        outcome = deployment.run()
    finally:
        sys.settrace(pacer.before)
    return outcome, robot, moments


@functools.cache
def lines_of_a_step() -> int:
    return run_traced(0, lambda: None)[2].lines


def moments(count: int) -> np.ndarray:
    """Returns that many lines of a step, spread over all of it; more with ALOHAS2R_MOMENTS=all."""
    total = lines_of_a_step()
    if os.environ.get("ALOHAS2R_MOMENTS") == "all":
        count = total
    return np.unique(np.linspace(1, total, count).round().astype(int))


def test_a_signal_at_any_point_of_a_step_ends_in_the_sleep_pose_without_torque() -> None:
    assert lines_of_a_step() > 200
    for index, at in enumerate(moments(90)):
        number = SIGNALS[index % len(SIGNALS)]
        outcome, robot, _ = run_traced(int(at), functools.partial(signal.raise_signal, number))
        assert outcome.mode is Mode.ASLEEP, at
        assert outcome.reasons[0][1].startswith("request: ")
        assert not robot.enabled
        assert [at_rest(pose) for pose in robot.let_go_at] == [True]


def test_two_ctrl_c_at_any_point_of_a_step_hold_and_never_let_go() -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    for at in moments(20):
        outcome, robot, _ = run_traced(int(at), twice)
        assert outcome.mode is Mode.FROZEN, at
        assert robot.enabled
        assert not robot.let_go_at


def test_the_end_of_a_session_sends_several_signals_and_is_one_request() -> None:
    def both() -> None:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)

    outcome, robot, _ = run_traced(100, both)
    assert outcome.mode is Mode.ASLEEP
    assert outcome.reasons[0] == ("retreat", "request: SIGHUP")
    assert not robot.enabled


def test_a_signal_before_torque_goes_on_leaves_it_off() -> None:
    class Pressed(Still):
        def reset(self) -> None:
            signal.raise_signal(signal.SIGINT)

    world = SimulatedWorld()
    robot = Witness(world)
    eyes = [StubCamera("left"), StubCamera("right", seed=1)]
    config = DeployConfig(mode="full", episode_s=0.3, approach=False, frozen_s=0.0)
    outcome = Deployment(robot, eyes, Pressed(), config, SteppedPacer(world.advance)).run()
    assert (outcome.mode, outcome.steps, robot.enabled) == (Mode.ASLEEP, 0, False)
    assert not robot.let_go_at


def test_a_person_ends_a_hold_with_one_ctrl_c() -> None:
    class Faulty(Witness):
        def read(self):
            reading = super().read()
            if self.enabled:
                reading.hardware_error[3] = 0x20
            return reading

    world = SimulatedWorld()
    steps: list[int] = []

    def advance() -> None:
        steps.append(len(steps))
        if len(steps) == 20:
            signal.raise_signal(signal.SIGINT)
        world.advance()

    robot = Faulty(world)
    eyes = [StubCamera("left"), StubCamera("right", seed=1)]
    config = DeployConfig(mode="full", episode_s=0.3, approach=False)  # holds until somebody comes
    outcome = Deployment(robot, eyes, Still(), config, SteppedPacer(advance)).run()
    assert (outcome.mode, len(steps)) == (Mode.FROZEN, 20)
    assert robot.enabled


def test_a_loop_that_hangs_is_left_by_the_third_ctrl_c() -> None:
    class Hanging(Still):
        calls = 0

        def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
            self.calls += 1
            if self.calls > 4:
                for _ in range(3):
                    time.sleep(0.01)
                    signal.raise_signal(signal.SIGINT)
            return np.zeros(14)

    world = SimulatedWorld()
    robot = Witness(world)
    eyes = [StubCamera("left"), StubCamera("right", seed=1)]
    config = DeployConfig(mode="full", episode_s=0.3, approach=False, frozen_s=0.0)
    outcome = Deployment(robot, eyes, Hanging(), config, SteppedPacer(world.advance)).run()
    assert outcome.mode is Mode.FROZEN
    assert robot.enabled
    assert not robot.let_go_at


def test_signals_are_latched_in_order_and_given_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Requests() as requests:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert requests.take() == ["SIGHUP", "Ctrl-C", "SIGTERM"]
        assert requests.take() == []
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    others: list[list[str]] = []

    def elsewhere() -> None:
        with Requests() as requests:
            others.append(requests.take())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert others == [[]]
