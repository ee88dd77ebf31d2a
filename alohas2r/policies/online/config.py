"""Settings of learning on the robot, which actor and learner share."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Literal, TypeAlias

from alohas2r.config import check, from_dict, override, to_dict
from alohas2r.core.files import write_atomic
from alohas2r.core.types import JsonObject
from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.embodiment.robots import REAL, RobotName
from alohas2r.errors import ArtifactError, ConfigError, did_you_mean
from alohas2r.policies.online.insertion import TASK, InsertSpec, PacedSpec
from alohas2r.policies.online.spec import LearntSpec, OnlineSpec, SeeingSpec
from alohas2r.sim.changed import NOMINAL, WorldParams

SETTINGS = "online.json"
# Rewards of an insertion: what only a simulation knows; what a person says.
TRUTH, PERSON = "truth", "person"
LOGS, PUBLISHED, LEARNER, POLICY = "log", "published", "learner", "policy"
# What looks at pictures: a student's first layers, or an encoder of its own. Of an arm that learns it on, that is what
# it begins with; the others leave it as it is.
FERM, STUDENT = "ferm", "student"
ENCODERS = (STUDENT, "supervised", "contrastive")
FERM_ENCODERS = ("contrastive", "supervised", "scratch")
# What runs do not say that are older than it.
_BEFORE = {
    "together": False,
    "soft": False,
    "normalized": True,
    "steady": 0.0,
    "tempo": False,
    "possible": False,
    "bins": 0,
    "offline_updates": 0,
    "offline_weight": 0.4,
    "encoder": STUDENT,
    "encoder_steps": 1600,
    "encoder_tau": 0.05,
}
_STEPS_PER_MINUTE = round(60 / CONTROL_PERIOD_S)


@dataclasses.dataclass(frozen=True)
class OnlineConfig:
    """How something is learnt.

    Attributes:
      arm: which of ARMS the settings began with.
      minutes: of acting.
      chunk: decisions between two versions of the weights.
      updates: of the critics, for each decision.
      warmup: decisions before the first update.
      batch: decisions of an update, half of them demonstrations.
      n_step: decisions over which rewards are added up. discount: for each.
      critics: how many. least_of: over how many of them, drawn anew, the least value is taken.
      tau: share of the critics that their slow copies take over in an update.
      learning_rate: of the critics. policy_rate: of the policy. policy_every: updates of the critics for one of it.
      temperature: worth of entropy; the first one, if it is tuned. tuned: whether it follows the entropy.
      demo_weight: of the distance from demonstrations in the policy's loss.
      offline_updates: of the critics, of demonstrations and earlier runs alone, before anything is done.
      offline_weight: in these, of the policy's distance from what was executed, in units of the critics' values
        (TD3+BC).
      clone_steps: of cloning the demonstrations beforehand; 0: nothing is cloned. feature_noise: in these.
      hidden: layers of all networks.
      scale: how much of a policy's action is added to the base's; 0: the task's own.
      loudest: largest logarithm of the spread with which the policy explores.
      steady: how much of a decision's exploration is that of the one before it, 0 to 1; 0: each is drawn anew.
      together: whether demonstrations lie among the own decisions, instead of being half of each batch.
      soft: whether a value counts the entropy to come. normalized: whether layers of the critics are.
      possible: whether critics judge of a policy's action what the arm could execute; they learn of no other.
      bins: of the distribution that a critic says, as HL-Gauss does; 0: a critic says a number.
      tempo: of insert, whether the policy sets the tempo of the arms as well, 0.4 to 1.2 in each control step.
      encoder: what looks at pictures. encoder_steps: of learning it beforehand.
      encoder_tau: share of it that its slow copy takes over in an update.
      evaluate_minutes: of acting between evaluations. evaluate_episodes: of each; final_episodes: of the last.
    """

    arm: str
    minutes: float = 30.0
    chunk: int = 20
    updates: int = 16
    warmup: int = 200
    batch: int = 128
    n_step: int = 3
    discount: float = 0.95
    critics: int = 2
    least_of: int = 2
    tau: float = 0.01
    learning_rate: float = 3e-4
    policy_rate: float = 1e-4
    policy_every: int = 4
    temperature: float = 0.01
    tuned: bool = False
    demo_weight: float = 0.0
    offline_updates: int = 0
    offline_weight: float = 0.4
    clone_steps: int = 3000
    feature_noise: float = 0.05
    hidden: tuple[int, ...] = (256, 256)
    scale: float = 0.0
    loudest: float = -1.0
    steady: float = 0.0
    together: bool = False
    soft: bool = False
    normalized: bool = True
    possible: bool = False
    bins: int = 0
    tempo: bool = False
    encoder: str = STUDENT
    encoder_steps: int = 1600
    encoder_tau: float = 0.05
    evaluate_minutes: float = 5.0
    evaluate_episodes: int = 20
    final_episodes: int = 200

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(0 < self.minutes <= 10_000, f"minutes must lie in (0, 10000], not {self.minutes}")
        check(1 <= self.least_of <= self.critics, "least_of must lie in 1..critics")
        for name in ("chunk", "batch", "n_step", "policy_every"):
            check(getattr(self, name) >= 1, f"{name} must be at least 1")
        check(self.batch >= 2, "batch must be at least 2")
        check(
            self.updates % self.policy_every == 0,
            f"updates = {self.updates} must be a multiple of policy_every = {self.policy_every}",
        )
        check(0 <= self.discount < 1, f"discount must lie in [0, 1), not {self.discount}")
        check(0 < self.tau <= 1, f"tau must lie in (0, 1], not {self.tau}")
        rates = self.learning_rate > 0 and self.policy_rate > 0
        check(rates, "learning_rate and policy_rate must be positive")
        check(self.temperature >= 0, "temperature must not be negative")
        check(self.warmup >= 0, "warmup must not be negative")
        check(
            self.offline_updates >= 0 and self.offline_updates % self.policy_every == 0,
            f"offline_updates = {self.offline_updates} must be a multiple of policy_every = {self.policy_every}",
        )
        check(self.offline_weight >= 0, "offline_weight must not be negative")
        check(self.clone_steps >= 0, "clone_steps must not be negative")
        check(
            self.bins == 0 or 2 <= self.bins <= 1000,
            f"bins must be 0 or lie in 2..1000, not {self.bins}",
        )
        check(
            not (self.bins and self.soft),
            "with bins a value lies in 0..1, in which no entropy can be counted: soft must be false",
        )
        check(0 <= self.steady <= 1, f"steady must lie in 0..1, not {self.steady}")
        check(0 <= self.scale <= 1, f"scale must lie in 0..1, not {self.scale}")
        known = FERM_ENCODERS if self.arm == FERM else ENCODERS
        check(
            self.encoder in known,
            f"the encoder of the arm {self.arm} must be one of {', '.join(known)}, not '{self.encoder}'",
        )
        check(self.encoder_steps >= 0, "encoder_steps must not be negative")
        check(0 < self.encoder_tau <= 1, f"encoder_tau must lie in (0, 1], not {self.encoder_tau}")
        check(
            self.arm != FERM or not self.clone_steps,
            f"the arm {FERM} clones nothing: clone_steps must stay 0",
        )
        check(self.evaluate_minutes > 0, "evaluate_minutes must be positive")
        check(self.evaluate_episodes >= 0, "evaluate_episodes must not be negative")
        check(self.final_episodes >= 0, "final_episodes must not be negative")

    @property
    def learns(self) -> bool:
        """Whether anything is learnt of what the robot does."""
        return self.updates > 0

    def decisions(self, hold: int) -> int:
        """Returns how many the robot makes, one in so many control steps; whole chunks."""
        wanted = round(self.minutes * _STEPS_PER_MINUTE / hold)
        return self.chunk * max(1, wanted // self.chunk) if self.learns else 0


# Source of the settings: see docs/online.md.
ARMS = {
    "bc": OnlineConfig("bc", updates=0),
    "residual": OnlineConfig("residual"),
    "warm": OnlineConfig("warm", demo_weight=2.0),
    "rlpd": OnlineConfig(
        "rlpd",
        updates=20,
        policy_every=20,
        n_step=1,
        critics=10,
        least_of=1,
        tau=0.005,
        policy_rate=3e-4,
        temperature=0.1,
        tuned=True,
        loudest=2.0,
        possible=True,
        clone_steps=0,
    ),
    FERM: OnlineConfig(
        FERM,
        updates=10,
        policy_every=2,
        n_step=1,
        discount=0.99,
        learning_rate=1e-3,
        policy_rate=1e-3,
        temperature=0.1,
        tuned=True,
        loudest=2.0,
        possible=True,
        clone_steps=0,
        hidden=(1024, 1024),
        together=True,
        soft=True,
        normalized=False,
        encoder="contrastive",
    ),
}
# Where time does not stand still an update must not take longer than the robot.
REAL_TIME = {FERM: ("updates=2",)}


# Of insertion, with a decision in every control step. One alone changes too little for critics to learn its worth, so
# exploration stays the same for an episode, and returns add up two seconds.
INSERT_ARMS = {
    "residual": OnlineConfig(
        "residual",
        updates=4,
        n_step=40,
        discount=0.99,
        bins=51,
        steady=1.0,
        loudest=-1.5,
        clone_steps=0,
        feature_noise=0.0,
    ),
}


def find_arm(name: str, overrides: tuple[str, ...] = (), task: str = "") -> OnlineConfig:
    """Returns an arm's settings for a task with changes.

    Raises:
      ConfigError: no such arm or setting.
    """
    arms = INSERT_ARMS if task == TASK else ARMS
    if name not in arms:
        raise ConfigError(f"There is no arm '{name}' of {task}.{did_you_mean(name, arms)}")
    config = override(arms[name], overrides)
    check(
        task != TASK or config.encoder == STUDENT,
        f"an insertion is seen by the student that is corrected: the encoder must stay {STUDENT}",
    )
    check(
        task != TASK or not config.possible,
        f"what an arm can execute is known beforehand of reach and pick only: possible must be false of {TASK}",
    )
    check(task == TASK or not config.tempo, f"only a policy of {TASK} sets its tempo")
    return config


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnRun:
    """What a run is, as its folder says.

    Attributes:
      spec: the policy. config: how it learns.
      seed: of all that is drawn. stepped: whether actor and learner wait for each other.
      robot: one of ROBOTS.
      demos: folders of demonstrations. student: whose eyes the policy has, or the file that is corrected; eyes_hash:
        of that student.
      resets: "robot": it goes back to a start itself; "placed": the simulation puts everything to a new start.
      offline: folders of earlier runs, whose decisions are learnt from as well.
      world: what is otherwise in its world than in the nominal one, for learning and evaluations.
    """

    spec: LearntSpec
    config: OnlineConfig
    seed: int
    stepped: bool
    robot: RobotName
    demos: tuple[str, ...]
    student: str
    eyes_hash: str
    resets: Literal["robot", "placed"]
    offline: tuple[str, ...]
    world: WorldParams = NOMINAL

    @property
    def real(self) -> bool:
        """Whether real arms learn."""
        return self.robot in REAL

    @property
    def decisions(self) -> int:
        """How many the robot makes."""
        return self.config.decisions(self.spec.hold)

    def write(self, folder: pathlib.Path) -> None:
        """Writes it into the run's folder."""
        write_atomic(folder / SETTINGS, json.dumps(to_dict(self), indent=2).encode() + b"\n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineRun(LearnRun):
    """One of an arm that is led in places of its gripper."""

    spec: OnlineSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeeingRun(OnlineRun):
    """One with eyes of its own; of the student it has what pictures are like."""

    spec: SeeingSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class InsertRun(LearnRun):
    """One of a residual of the insertion.

    Attributes:
      reward: "truth": what only a simulation knows, whether the peg is in; "person": what one says by keys; else the
        folder of a classifier.
      classifier_hash: of that; "" where there is none.
    """

    spec: InsertSpec
    reward: str
    classifier_hash: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PacedRun(InsertRun):
    """One of a residual that sets the tempo as well."""

    spec: PacedSpec


AnyRun: TypeAlias = OnlineRun | InsertRun


def read_online_run(folder: str | os.PathLike[str]) -> AnyRun:
    """Reads what a run is.

    Raises:
      ArtifactError: there is none, or it is damaged.
    """
    path = pathlib.Path(folder) / SETTINGS
    try:
        return parse_online_run(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} holds no run to resume; leave out --resume.") from error
    except OSError as error:
        raise ArtifactError(f"{path} is damaged ({error}).") from error


def parse_online_run(content: bytes, name: str) -> AnyRun:
    """Reads what a run is from its file's content; see `read_online_run`."""
    try:
        described: JsonObject = json.loads(content)
        of: type[AnyRun] = OnlineRun
        # Runs that are older than a key of their world do not say it.
        world = {**to_dict(NOMINAL), **described.get("world", {})}
        earlier: JsonObject = {}
        if described["spec"]["task"] == TASK:
            of = PacedRun if described["config"].get("tempo") else InsertRun
            earlier = {"classifier_hash": ""}
        elif "encoder" in described["spec"]:
            of = SeeingRun
        settings = {**_BEFORE, **described["config"]}
        return from_dict(of, {**earlier, **described, "config": settings, "world": world})
    except (ConfigError, KeyError) as error:
        raise ArtifactError(f"{name} is damaged: {error}") from error
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{name} is damaged ({error}).") from error
