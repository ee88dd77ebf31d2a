"""Demonstrations of a task, in the log that learning reads."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Literal

from alohas2r.config import check, to_dict
from alohas2r.core.files import make_folder, write_atomic
from alohas2r.core.types import JsonObject
from alohas2r.deployment.config import LIMITS
from alohas2r.deployment.deploy import log_header
from alohas2r.deployment.log import LogWriter
from alohas2r.deployment.loop import Deployment
from alohas2r.deployment.online.coach import Judge
from alohas2r.deployment.online.deciders import Alone, Scripted
from alohas2r.deployment.online.explorer import LEASH_RAD, Acting, Explorer
from alohas2r.deployment.online.insert_coach import CoachedInsertion
from alohas2r.deployment.online.inserter import Inserter, Unsaid
from alohas2r.deployment.online.keyboard import Keyboard, Shown
from alohas2r.deployment.online.opened import (
    attended_config,
    open_world,
    seeing,
    shipped_student,
    slower_by,
    stage_config,
)
from alohas2r.deployment.online.scripts import ScriptedExpert
from alohas2r.deployment.online.stage import Attended, Ended, Plan, ResetDraws, Stage
from alohas2r.deployment.online.truth import Knowing, Start, Truth
from alohas2r.deployment.pause import Pause
from alohas2r.deployment.report import Outcome, Report
from alohas2r.deployment.rig import RigConfig, open_rig
from alohas2r.errors import ArtifactError
from alohas2r.policies.online.config import LOGS
from alohas2r.policies.online.demonstrations import ABOUT
from alohas2r.policies.online.eyes import read_eyes
from alohas2r.policies.online.insertion import TASK, InsertSpec
from alohas2r.policies.online.spec import OnlineSpec
from alohas2r.policies.online.tasks import make_spec
from alohas2r.policies.onnx.base import Base, insert_spec, read_base

_TRIES = 5  # episodes for each that is wanted, before it is given up
PAST_S = 1.0  # that an example of a reward goes on after success
PERSON_S = 60.0  # that a person has for an episode
PERSONS = ("keyboard", "leader", "spacemouse")  # with what a person shows a task


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """What is demonstrated.

    Attributes:
      task: name of the task. by: who shows it.
      episodes: how many that succeed. seed: of their starts.
      tries: of insert, how many episodes, whatever comes of them, each of which goes on for PAST_S after success:
        examples of a reward; 0: until enough have succeeded.
    """

    task: str
    by: Literal["script", "keyboard", "leader", "spacemouse", "student"] = "script"
    episodes: int = 10
    seed: int = 0
    tries: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        choices = ("student",) if self.task == TASK else ("script", *PERSONS)
        check(
            self.by in choices,
            f"--by must be {' or '.join(choices)} where {self.task} is shown, not '{self.by}'",
        )
        check(1 <= self.episodes <= 10_000, f"episodes must be in 1..10000, not {self.episodes}")
        check(0 <= self.tries <= 10_000, f"tries must be in 0..10000, not {self.tries}")
        check(
            not self.tries or self.task == TASK,
            f"--tries goes with {TASK}: a reward is learnt of no other task",
        )


class _Director:
    """Episodes until so many have succeeded, or so many in all."""

    def __init__(self, config: DemoConfig) -> None:
        self._config = config
        self.tries = self.successes = self.true_successes = self.steps = 0

    def next(self) -> Plan | None:
        most = self._config.tries or _TRIES * self._config.episodes
        enough = not self._config.tries and self.successes >= self._config.episodes
        if enough or self.tries >= most:
            return None
        return Plan(self.tries, (self._config.seed, self.tries), True, True, False)

    def ended(self, episode: Ended, state: Start | None) -> None:
        self.tries += 1
        self.successes += episode.success
        self.true_successes += episode.truth
        self.steps += episode.steps


def demonstrate(
    config: DemoConfig,
    rig: RigConfig,
    out: str | os.PathLike[str],
    student: str | os.PathLike[str] | None = None,
    on_step: Callable[[Report], None] | None = None,
    person: Keyboard | None = None,
    mode: Literal["slow", "full"] = "slow",
    pause: Pause | None = None,
) -> JsonObject:
    """Records demonstrations on simulated, emulated or real arms.

    Real arms are led by a person, from the start pose. After an episode they set down what they hold, fold up and let
    go, until `pause` says that the object is where it shall be. Whatever ends the run, what had succeeded is kept.

    Args:
      config: of what. rig: which arms; pictures are as the student takes them.
      out: a new folder for the log.
      student: whose eyes learning will have; of an insertion the exported file that shows it; the shipped one if None.
      on_step: called after each control step.
      person: who shows it, if not a script, with keys and what their hand moves; of an insertion, who judges it.
      mode: at whose speed limits real arms move. pause: what is waited for between their episodes.

    Returns:
      "task", "by", "world_params", "episodes" that succeeded, "tries", "true_successes" (None on real arms), "seconds"
      of acting, "stopped" (why there are fewer than were asked for; "" if there are not), "out".

    Raises:
      ConfigError: real arms, which no script knows how to lead, and no simulation to judge, or a setting out of range.
      RobotFault: an arm or a camera is missing, or not as expected.
      ArtifactError: the folder holds something already, or no episode succeeded.
    """
    _check_rig(config, rig, person)
    eyes = student or shipped_student(config.task)
    base = read_base(eyes) if config.task == TASK else None
    spec = insert_spec(base) if base else make_spec(config.task, *read_eyes(eyes, "left")[1:])
    folder = pathlib.Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder} exists already; choose another folder, or remove it.")
    make_folder(folder)
    director = _Director(config)
    rig = dataclasses.replace(rig, seed=config.seed)
    deploy = attended_config(spec, mode) if rig.real else stage_config(spec)
    header = log_header(deploy, LIMITS[deploy.mode], rig.robot, config.by)
    header |= {
        "task": config.task,
        "seed": config.seed,
        "stepped": rig.stepped,
        "world_params": str(rig.params),
        "student": str(eyes),
    }
    if isinstance(spec, InsertSpec):
        header["student_hash"] = spec.student_hash
    path = folder / LOGS / "0000.run"
    with contextlib.ExitStack() as stack:
        if rig.real:
            arms = stack.enter_context(open_rig(seeing(rig, spec.cameras), judged=False))
            acting = _attended(spec, base, person, slower_by(spec, mode))
            log, hooks = stack.enter_context(LogWriter(path, header)), None
            attendant = Attended(acting, director, log)
        else:
            arms, simulation, truth = stack.enter_context(open_world(spec, rig))
            acting, attendant = _acting(spec, base, truth, config, person), None
            log = stack.enter_context(LogWriter(path, header))
            hooks = Stage(acting, simulation, truth, director, log, not rig.stepped)
        deployment = Deployment(
            arms.robot,
            arms.cameras,
            acting,
            deploy,
            hooks,
            log,
            on_step=on_step,
            pause=pause,
            attendant=attendant,
        )
        outcome = deployment.run(hooks)
    stopped = why_stopped(outcome) if director.next() is not None else ""
    if stopped and not (rig.real and director.successes):
        wanted = config.tries or config.episodes
        raise ArtifactError(
            f"The demonstrations were stopped ({stopped}); {director.successes} of {wanted} had succeeded."
            f" Begin anew in another --out than {folder}."
        )
    if not director.successes and not config.tries:
        raise ArtifactError(f"None of {director.tries} demonstrations of {config.task} succeeded.")
    result: JsonObject = {
        "task": config.task,
        "by": config.by,
        "world_params": str(rig.params),
        "episodes": director.successes,
        "tries": director.tries,
        "true_successes": None if rig.real else director.true_successes,
        "seconds": director.steps * LIMITS[deploy.mode].period_s,
        "stopped": stopped,
    }
    about = {**result, "spec": to_dict(spec), "robot": rig.robot, "seed": config.seed}
    write_atomic(folder / ABOUT, json.dumps(about, indent=2).encode() + b"\n")
    return {**result, "out": str(folder)}


def _acting(
    spec: OnlineSpec | InsertSpec,
    base: Base | None,
    truth: Knowing,
    config: DemoConfig,
    person: Keyboard | None,
) -> Acting:
    """Returns what acts: a student, a script or a person."""
    if isinstance(spec, InsertSpec):
        assert base is not None
        past_s = PAST_S if config.tries else 0.0
        if isinstance(person, Judge):
            judged, reward = _judged(spec, person), Unsaid(TASK)
            return Inserter(spec, judged, base, truth.done, past_s, reward)
        return Inserter(spec, Alone(spec), base, truth.done, past_s)
    assert isinstance(truth, Truth)
    back = ResetDraws(spec, (config.seed,), False)
    if person is None:
        return Explorer(spec, Scripted(ScriptedExpert(spec, truth.grip)), back, truth.done)
    return Explorer(spec, Shown(spec, person), back, truth.done, PERSON_S)


def _attended(
    spec: OnlineSpec | InsertSpec, base: Base | None, person: Keyboard | None, slower: float
) -> Acting:
    """Returns what acts on real arms, slower than it wants by so many times: a person, or a student that one judges."""
    if isinstance(spec, InsertSpec):
        assert base is not None
        assert isinstance(person, Judge)
        judged, reward = _judged(spec, person), Unsaid(TASK)
        return Inserter(spec, judged, base, None, reward=reward, leash_rad=LEASH_RAD, slower=slower)
    assert person is not None
    return Explorer(spec, Shown(spec, person), lambda felt: None, None, PERSON_S, LEASH_RAD)


def _judged(spec: InsertSpec, person: Judge) -> CoachedInsertion:
    """Returns the student alone, whose episodes a person judges; how long they last is said elsewhere."""
    return CoachedInsertion(spec, Alone(spec), person, sys.maxsize)


def _check_rig(config: DemoConfig, rig: RigConfig, person: Keyboard | None) -> None:
    """Raises ConfigError if what demonstrates cannot do so on these arms."""
    check(
        person is None or not rig.stepped,
        "a person cannot show or judge anything while time stands still: leave out --stepped",
    )
    if config.task == TASK:
        check(
            isinstance(person, Judge) or not rig.real,
            f"only a simulation knows whether the peg is in: with --robot {rig.robot} you say so, by keys (--judge)",
        )
        return
    check(
        person is not None or not rig.real,
        "a script knows where objects are in a simulation only: use --robot sim or emulated, or lead real arms"
        f" yourself (--by {' or '.join(PERSONS)})",
    )


def why_stopped(outcome: Outcome) -> str:
    """Returns in words why a run ended before its time."""
    return "; ".join(reason for _, reason in outcome.reasons if reason) or "nobody said why"
