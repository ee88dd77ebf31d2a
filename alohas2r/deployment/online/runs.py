"""What a run of learning is, from what was asked for."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Literal

from alohas2r.config import check
from alohas2r.deployment.online.opened import shipped_student
from alohas2r.embodiment.robots import REAL, ROBOTS, RobotName
from alohas2r.policies import artifact
from alohas2r.policies.online.classifier import read_classifier
from alohas2r.policies.online.config import (
    PERSON,
    REAL_TIME,
    STUDENT,
    TRUTH,
    AnyRun,
    InsertRun,
    OnlineRun,
    PacedRun,
    SeeingRun,
    find_arm,
)
from alohas2r.policies.online.demonstrations import check_demos
from alohas2r.policies.online.eyes import read_eyes
from alohas2r.policies.online.insertion import TASK
from alohas2r.policies.online.spec import EncoderSpec, LearntSpec, SeeingSpec
from alohas2r.policies.online.tasks import make_spec
from alohas2r.policies.onnx.base import insert_spec, read_base
from alohas2r.sim.changed import NOMINAL, WorldParams

# Evaluations that a person attends.
ATTENDED = ("evaluate_episodes=0", "final_episodes=20")
CROP = 0.84  # of a picture's side, that an encoder sees at a time. Source: FERM, 84 of 100 pixels


@dataclasses.dataclass(frozen=True)
class LearnConfig:
    """What is learnt, how and on which arms.

    Attributes:
      task: name of the task. arm: of ARMS; of insert "residual". overrides: "key=value" settings of the arm.
      demos: folders of demonstrations. robot: one of ROBOTS; a person attends real arms.
      stepped: whether time stands still between control steps, and actor and learner wait for each other.
      resets: "robot", "placed", or "" for the task's own: pick and insert go back to a start by themselves, reach is
        placed, on real arms by a person.
      seed: of all that is drawn. student: whose eyes the policy has, of insert the exported file that is corrected;
        "": the shipped one.
      offline: folders of earlier runs of the task, whose decisions are learnt from as well.
      world: what is otherwise in the world than in the nominal one, for learning and evaluations.
      reward: of insert, the folder of a classifier, "person", who says it by keys, or "truth", which only a simulation
        knows; "": the task's own.
      encoder: what looks at pictures; "": the arm's own.
    """

    task: str
    arm: str
    demos: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    robot: RobotName = "sim"
    stepped: bool = False
    resets: Literal["robot", "placed", ""] = ""
    seed: int = 0
    student: str = ""
    offline: tuple[str, ...] = ()
    world: WorldParams = NOMINAL
    reward: str = ""
    encoder: str = ""

    def __post_init__(self) -> None:
        """Checks what fits together."""
        check(self.robot in ROBOTS, f"robot must be one of {', '.join(ROBOTS)}")
        check(self.resets in ("robot", "placed", ""), "resets must be robot or placed")
        check(
            bool(self.demos),
            "learn needs demonstrations: --demos FOLDER, which alohas2r demonstrate makes",
        )
        inserts = self.task == TASK
        real = self.robot in REAL
        check(
            not (real and self.reward == TRUTH),
            f"only a simulation knows the truth: learn insert --robot {self.robot} needs --reward FOLDER, which"
            " alohas2r train-reward makes, or --reward person",
        )
        check(not (real and self.stepped), f"the time of --robot {self.robot} cannot be stepped")
        check(
            bool(self.reward) == inserts,
            "insert, and no other task, needs --reward: a folder of alohas2r train-reward, --reward person, who says it"
            " by keys, or --reward truth, which only a simulation knows",
        )


def plan_run(config: LearnConfig) -> AnyRun:
    """Returns what a run is.

    Raises:
      ConfigError: an unknown task, arm or setting. ArtifactError: no such student, or no demonstrations.
    """
    overrides = config.overrides
    if not config.stepped:
        overrides = (*REAL_TIME.get(config.arm, ()), *overrides)
    if config.robot in REAL:
        overrides = (*ATTENDED, *overrides)
    if config.encoder:
        overrides = (*overrides, f"encoder={config.encoder}")
    settings = find_arm(config.arm, overrides, config.task)
    student = config.student or shipped_student(config.task)
    scale = settings.scale or None
    spec: LearntSpec
    make: Callable[..., AnyRun]
    if config.task == TASK:
        check(not settings.clone_steps, "of insert nothing is cloned: clone_steps must stay 0")
        base = read_base(student)
        insert = insert_spec(base, settings.hidden, scale, settings.loudest, settings.tempo)
        reward, told = config.reward, ""
        if reward not in (TRUTH, PERSON):
            told = read_classifier(reward, insert).hash
            reward = str(pathlib.Path(reward).resolve())
        run = PacedRun if settings.tempo else InsertRun
        make = functools.partial(run, spec=insert, reward=reward, classifier_hash=told)
        spec, student_hash = insert, base.policy.hash
    else:
        _, cameras, network = read_eyes(student, "left")
        seeing = settings.encoder != STUDENT
        polar = make_spec(
            config.task,
            cameras,
            network,
            hidden=settings.hidden,
            base=config.arm in ("bc", "residual"),
            policy=settings.learns,
            scale=scale,
            loudest=settings.loudest,
            encoder=EncoderSpec(crop=round(CROP * cameras.size)) if seeing else None,
        )
        of = SeeingRun if isinstance(polar, SeeingSpec) else OnlineRun
        make = functools.partial(of, spec=polar)
        spec, student_hash = polar, str(artifact.describe(student)["hash"])
    for demo in config.demos:
        check_demos(pathlib.Path(demo), spec)
    return make(
        config=settings,
        seed=config.seed,
        stepped=config.stepped,
        robot=config.robot,
        demos=tuple(str(pathlib.Path(demo).resolve()) for demo in config.demos),
        student=student,
        eyes_hash=student_hash,
        resets=config.resets or ("placed" if config.task == "reach" else "robot"),
        offline=tuple(str(pathlib.Path(one).resolve()) for one in config.offline),
        world=config.world,
    )
