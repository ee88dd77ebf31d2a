"""Many runs on emulated arms, one after the other, with faults at random moments, and what became of each.

A run is what a person would start: arms in the sleep pose, episodes with release and a reset of the parts between
them, and rest. It must end in one of the states of docs/safety.md, whatever strikes; what does not is reported.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from alohas2r.config import check
from alohas2r.core import stop as core_stop
from alohas2r.core.types import JsonObject
from alohas2r.deployment.config import DeployConfig
from alohas2r.deployment.loop import Deployment
from alohas2r.deployment.pacer import ClockPacer, SteppedPacer
from alohas2r.deployment.pause import Next
from alohas2r.deployment.report import Outcome
from alohas2r.deployment.soak.faults import SIGNALS, Kind, kinds_here
from alohas2r.deployment.soak.stage import (
    Display,
    DisturbedCamera,
    DisturbedPacer,
    DisturbedPolicy,
    LocalServer,
    Seams,
    Stage,
    WatchedRobot,
)
from alohas2r.deployment.terms import Terms, load_policy, terms
from alohas2r.embodiment import joints
from alohas2r.embodiment.joints import SIDES
from alohas2r.embodiment.poses import SLEEP_POSE
from alohas2r.errors import Alohas2rError, ArtifactError
from alohas2r.policies.remote.served import ANSWER_S, STEPPED_ANSWER_S, ServedPolicy
from alohas2r.robots.base import Camera
from alohas2r.robots.dynamixel.arm import IDS, DynamixelConfig
from alohas2r.robots.dynamixel.driver import DynamixelRobot
from alohas2r.robots.dynamixel.registers import RAD_PER_TICK
from alohas2r.robots.emulator.cameras import EmulatedCameras
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.emulator.server import EmulatorConfig
from alohas2r.robots.simulated import StubCamera
from alohas2r.safety.config import FULL, SLOW, SafetyConfig
from alohas2r.safety.paths import at_rest
from alohas2r.safety.reactions import Mode
from alohas2r.sim import scene

if TYPE_CHECKING:
    from alohas2r.policies.onnx.runtime import OnnxPolicy

# Ways are not what short runs try: arms take them quickly, at half of what the servos allow.
HASTY = SafetyConfig(max_speed=1.5, max_acceleration=30.0, tracking_error=0.6)
CROSSINGS = 7  # of seams in a control step under the policy
PAUSE_STEPS = 20  # between two episodes
PARTS = ("socket", "peg")


@dataclasses.dataclass(frozen=True)
class SoakConfig:
    """How long, and what goes wrong.

    Attributes:
      hours: of operation, of the arms' own time; None: `runs` decides.
      runs: how many runs; None: `hours` decides.
      faults: "random": of all kinds, at random moments; "none": nothing, so that every alarm is a false one.
      every_s: mean time between two faults, of the arms' own time (s).
      seed: of everything that is random.
      stepped: whether the arms' time stands still while the loop works, so that it passes as fast as it can.
      episodes: in a run that nothing ends.
      episode_s: how long each lasts.
      hasty: whether approach and retreat are quick, for many short runs.
      pictures: whether cameras show the scene; otherwise noise, which costs nothing.
      served: whether the policy runs on a server of its own.
    """

    hours: float | None = None
    runs: int | None = None
    faults: Literal["random", "none"] = "random"
    every_s: float = 60.0
    seed: int = 0
    stepped: bool = True
    episodes: int = 10
    episode_s: float = 10.0
    hasty: bool = False
    pictures: bool = True
    served: bool = True

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check((self.hours is None) != (self.runs is None), "give one of hours and runs")
        check(self.hours is None or 0 < self.hours <= 1000, "hours must lie in (0, 1000]")
        check(self.runs is None or 1 <= self.runs <= 1_000_000, "runs must be in 1..1000000")
        check(self.faults in ("random", "none"), "faults must be random or none")
        check(self.every_s >= 0.5, "every_s must be at least 0.5 s")
        check(self.episodes >= 1 and self.episode_s > 0, "episodes must last")


def fuzz_config(runs: int, seed: int = 0) -> SoakConfig:
    """Returns many short runs, with a fault every second."""
    return SoakConfig(
        runs=runs, every_s=1.5, seed=seed, episodes=2, episode_s=0.8, hasty=True, pictures=False
    )


class Row(NamedTuple):
    """What became of a run.

    Attributes:
      number: which; together with the seed it says everything that happens in it.
      kinds: the faults that struck, in order.
      ended: "asleep", "frozen", or "refused": before torque went on.
      why: the last reason, in words.
      whole: whether all episodes were run.
      episodes: how many were run to their end.
      seconds: of the arms' own time.
      commands: how many were sent.
      resets: how often the scene was reset; released: in how many the arms lay at rest without torque, and no
        part was held.
      problems: what is not as docs/safety.md says; empty if nothing.
    """

    number: int
    kinds: tuple[str, ...]
    ended: str
    why: str
    whole: bool
    episodes: int
    seconds: float
    commands: int
    resets: int
    released: int
    problems: tuple[str, ...]


class _Reset:
    """A person between two episodes: looks how the arms left the scene, and puts the parts back."""

    LYING = 0.05  # height below which a part lies on the table (m)

    def __init__(self, emulator: Emulator, draw: np.random.Generator) -> None:
        self._emulator, self._draw = emulator, draw
        self._polls = 0
        self.resets = self.released = 0

    def begin(self, now_s: float) -> None:
        """Looks, and puts the parts back."""
        state = self._emulator.state()
        self.resets += 1
        lying = all(state.qpos[_first(part) + 2] < self.LYING for part in PARTS)
        self.released += bool(
            lying and not state.torque.any() and at_rest(_arms(state.qpos), RAD_PER_TICK)
        )
        qpos = state.qpos.copy()
        put_parts(qpos, self._draw)
        self._emulator.place(qpos)
        self._polls = 0

    def poll(self, now_s: float) -> Next | None:
        """Goes on after a second."""
        self._polls += 1
        return Next.NEXT if self._polls > PAUSE_STEPS else None

    def end(self) -> None:
        """Needs nothing."""


class Soak:
    """Emulated arms, a policy, and runs on them."""

    def __init__(self, config: SoakConfig, policy: OnnxPolicy, emulator: Emulator) -> None:
        """Joins an entered emulator and a policy."""
        self.config = config
        self._policy, self._emulator = policy, emulator
        self._terms: Terms = terms(policy)
        self._server = LocalServer(policy.fork()) if config.served else None
        self._lenses = self._cameras()

    def run(self, number: int) -> Row:
        """Makes run `number`, and reports what became of it."""
        draw = np.random.default_rng((self.config.seed, number))
        emulator = self._emulator
        self._prepare(draw)
        seams = Seams()
        limits = HASTY if self.config.hasty else FULL
        reply_s = 0.2 if self.config.stepped else 0.03
        wires = DynamixelConfig(ports=emulator.ports, reply_timeout_s=reply_s)
        robot = WatchedRobot(DynamixelRobot(wires), limits, seams)
        inner = SteppedPacer(emulator.step) if self.config.stepped else ClockPacer()
        pacer = DisturbedPacer(inner, seams)
        struck: list[Kind] = []
        reset = _Reset(emulator, draw)
        outcome, why, problems = None, "", []
        with contextlib.ExitStack() as stack:
            stage = self._stage(stack, robot, seams)
            self._plan(stage, draw, struck)
            try:
                stack.enter_context(robot)
                deployment = Deployment(
                    robot,
                    stage.cameras,
                    stage.policy,
                    self._deploy(),
                    pacer,
                    safety=HASTY if self.config.hasty else None,
                    slow=HASTY if self.config.hasty else SLOW,
                    on_step=stage.display,
                    pause=reset,
                )
                outcome = deployment.run()
                why = "; ".join(text for _, text in outcome.reasons if text)
            except (Alohas2rError, KeyboardInterrupt) as error:
                why = str(error) or "Ctrl-C three times"
            except Exception:  # whatever it is, it is what this looks for
                why = "crash"
                problems.append(traceback.format_exc())
            seams.forget()
            problems += self._judge(outcome, why, struck, robot, stage.fallen)
        return Row(
            number=number,
            kinds=tuple(kind.name for kind in struck),
            ended="refused" if outcome is None else outcome.mode.value,
            why=why,
            whole=outcome is not None and outcome.episodes == self.config.episodes,
            episodes=0 if outcome is None else outcome.episodes,
            seconds=pacer.steps * joints.CONTROL_PERIOD_S,
            commands=robot.commands,
            resets=reset.resets,
            released=reset.released,
            problems=tuple(problems),
        )

    def _prepare(self, draw: np.random.Generator) -> None:
        """Mends everything, as a person does, and brings arms and parts to where a run starts."""
        emulator = self._emulator
        emulator.reset()
        if self._server is not None:
            self._server.start()
        qpos = scene.load("insert").home_qpos.copy()
        put_parts(qpos, draw)
        for place, arm in enumerate(scene.load("insert").arms):
            pose = SLEEP_POSE.reshape(2, -1)[place]
            qpos[arm.qpos[: len(pose)]] = pose
            qpos[arm.qpos[len(pose) :]] = pose[-1]
        emulator.place(qpos)

    def _stage(self, stack: contextlib.ExitStack, robot: WatchedRobot, seams: Seams) -> Stage:
        policy = self._policy.fork()
        if self._server is not None:
            timeout_s = STEPPED_ANSWER_S if self.config.stepped else ANSWER_S
            source = stack.enter_context(
                ServedPolicy(f"ws://127.0.0.1:{self._server.port}", timeout_s=timeout_s)
            )
        else:
            source = policy
        return Stage(
            self._emulator,
            robot,
            [DisturbedCamera(camera, seams) for camera in self._lenses],
            DisturbedPolicy(source, policy.interface, seams),
            Display(seams),
            self._server,
            seams,
            self.config.stepped,
        )

    def _deploy(self) -> DeployConfig:
        return DeployConfig(
            mode="full",
            episodes=self.config.episodes,
            episode_s=self.config.episode_s,
            action_scale=self._terms.action_scale,
            switch=self._terms.switch,
            frozen_s=0.0,
        )

    def _plan(self, stage: Stage, draw: np.random.Generator, struck: list[Kind]) -> None:
        """Lets faults strike at random crossings, one after the other, until the run ends."""
        if self.config.faults == "none":
            return
        kinds = kinds_here()
        mean = self.config.every_s / joints.CONTROL_PERIOD_S * CROSSINGS

        def strike() -> None:
            kind = kinds[int(draw.integers(len(kinds)))]
            struck.append(kind)
            ahead = int(draw.exponential(mean))
            stage.seams.at(stage.seams.crossed + 1 + ahead, strike)
            brief = draw.random() < 0.5
            ends = stage.seams.crossed + 1 + int(draw.exponential(5 * CROSSINGS))
            heal = kind.strike(stage, draw)
            if heal is not None and brief:
                stage.seams.at(ends, heal)

        stage.seams.at(1 + int(draw.exponential(mean)), strike)

    def _judge(
        self,
        outcome: Outcome | None,
        why: str,
        struck: Sequence[Kind],
        robot: WatchedRobot,
        fallen: set[tuple[str, int]],
    ) -> list[str]:
        """Returns in what the end of a run is not one of the states of docs/safety.md."""
        problems = [f"command beyond limits: {text}" for text in robot.beyond]
        state = self._emulator.state()
        resting = at_rest(_arms(state.qpos), RAD_PER_TICK)
        on = {
            (side, IDS[index])
            for place, side in enumerate(SIDES)
            for index in np.flatnonzero(state.torque[place])
        }
        off = {(side, servo) for side in SIDES for servo in IDS} - on - fallen
        if outcome is None:
            if robot.powered and "Torque may be on" not in why:
                problems.append(f"the run ended by an error after torque went on: {why}")
            elif on and "Torque may be on" not in why:
                problems.append(f"torque is on at {sorted(on)} of a run that was refused: {why}")
        elif outcome.mode is Mode.ASLEEP:
            if on:
                problems.append(f"asleep with torque on at {sorted(on)}")
            if robot.powered and not resting:
                problems.append("torque went off elsewhere than in the sleep pose")
        elif outcome.mode is Mode.FROZEN:
            if off and not resting:
                problems.append(f"let go of {sorted(off)} while holding: {why}")
            asked_for = [kind.name for kind in struck if kind in SIGNALS]
            twice = (
                len(asked_for) > 1 and "SIGINT" in asked_for
            )  # SIGTERM and SIGHUP are as Ctrl-C once
            if not twice and not any(kind.freezes for kind in struck):
                problems.append(f"held for good, which no fault that struck asks for: {why}")
        else:
            problems.append(f"the run ended in {outcome.mode.value}")
        if not struck and why and not asked(why):
            over = "request: the run is over"
            early = outcome is None or [text for _, text in outcome.reasons] not in (
                [over, ""],
                [over],
            )
            if early:
                problems.append(f"a false alarm: {why}")
        return problems

    def _cameras(self) -> Sequence[Camera]:
        if not self.config.pictures:
            return [StubCamera(side, self._terms.size) for side in SIDES]
        from alohas2r.rendering import registry as renderers

        size = self._terms.size
        renderer = renderers.make("raycast", scene.load("insert"), width=size, height=size, batch=1)
        return EmulatedCameras(self._emulator, renderer).cameras()

    def close(self) -> None:
        """Ends the policy server."""
        if self._server is not None:
            self._server.stop()


def soak(
    config: SoakConfig,
    file: str | os.PathLike[str],
    on_run: Callable[[Row], object] | None = None,
) -> JsonObject:
    """Makes runs on emulated arms, and sums up what became of them.

    Args:
      config: how long, and what goes wrong.
      file: the exported policy.
      on_run: called after each run. A signal from outside ends the present run and the soak.

    Returns:
      See `summary`, with "signals": whether signals were among the faults.

    Raises:
      ArtifactError: the policy is missing, damaged, or none for a robot.
      RobotFault: the emulator does not start.
    """
    policy = load_policy(file)
    if terms(policy).single:
        raise ArtifactError(f"{file} is a policy of one arm; a soak needs one of two.")
    rows: list[Row] = []
    seconds = 0.0
    with (
        Emulator(EmulatorConfig(not config.stepped, config.seed, set_up=True)) as emulator,
        # For signals between two runs; within one they are the run's own.
        core_stop.StopSignal.patient() as stop,
    ):
        runner = Soak(config, policy, emulator)
        begun_s = time.monotonic()
        try:
            while not stop and (
                len(rows) < config.runs
                if config.runs is not None
                else seconds < 3600 * (config.hours or 0)
            ):
                row = runner.run(len(rows))
                rows.append(row)
                seconds += row.seconds
                if on_run is not None:
                    on_run(row)
                if asked(row.why) and not {kind.name for kind in SIGNALS} & set(row.kinds):
                    break
        finally:
            runner.close()
        clock_s = time.monotonic() - begun_s
    main = threading.current_thread() is threading.main_thread()
    return {
        **summary(rows),
        "clock_hours": clock_s / 3600,
        "stepped": config.stepped,
        "signals": main,
        "seed": config.seed,
    }


def asked(why: str) -> bool:
    """Returns whether a signal ended a run, by what it says of its reasons."""
    return any(f"request: {name}" in why for name in ("Ctrl-C", "SIGTERM", "SIGHUP"))


def summary(rows: Sequence[Row]) -> JsonObject:
    """Sums runs up.

    Returns:
      "hours" of the arms' own time, "runs", "episodes", "ended" by how, "failures": runs that ended before all their
      episodes were run, "mean_time_between_failures_s", "interventions": holds for good, which ask for a person,
      "commands", "commands_beyond_limits", "crashes", "false_alarms", "resets" and how many "released" everything,
      "faults": by kind, how often it struck and how runs with it ended, and "problems" in words.
    """
    ended = collections.Counter(row.ended for row in rows)
    kinds: dict[str, collections.Counter[str]] = {}
    for row in rows:
        for name in row.kinds:
            kinds.setdefault(name, collections.Counter())["struck"] += 1
        for name in set(row.kinds):
            kinds[name]["went on" if row.whole else row.ended] += 1
    seconds = sum(row.seconds for row in rows)
    failures = sum(not row.whole for row in rows)
    problems = [
        f"run {row.number} ({', '.join(row.kinds)}): {text}"
        for row in rows
        for text in row.problems
    ]
    return {
        "hours": seconds / 3600,
        "runs": len(rows),
        "episodes": sum(row.episodes for row in rows),
        "ended": dict(ended),
        "failures": failures,
        "mean_time_between_failures_s": seconds / failures if failures else None,
        "interventions": ended["frozen"],
        "commands": sum(row.commands for row in rows),
        "commands_beyond_limits": sum("beyond limits" in text for text in problems),
        "crashes": sum("Traceback" in text for text in problems),
        "false_alarms": sum("a false alarm" in text for text in problems),
        "resets": sum(row.resets for row in rows),
        "released": sum(row.released for row in rows),
        "faults": {name: dict(count) for name, count in sorted(kinds.items())},
        "problems": problems,
    }


def put_parts(qpos: np.ndarray, draw: np.random.Generator) -> None:
    """Puts the parts where the insertion task starts, within a centimetre, in joint positions [nq]."""
    home = scene.load("insert").home_qpos
    for part in PARTS:
        first = _first(part)
        qpos[first : first + 7] = home[first : first + 7]
        qpos[first : first + 2] += draw.uniform(-0.01, 0.01, 2)


def _first(part: str) -> int:
    """Returns where a part's position begins in the joint positions [nq]."""
    model = scene.load("insert").model
    return int(model.jnt_qposadr[int(model.body(part).jntadr[0])])


def _arms(qpos: np.ndarray) -> np.ndarray:
    """Returns the positions [14] of both arms in joint positions [nq]."""
    return np.concatenate([qpos[arm.qpos[: joints.PER_ARM]] for arm in scene.load("insert").arms])
