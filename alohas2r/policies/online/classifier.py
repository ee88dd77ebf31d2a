"""A classifier that tells an insertion by the wrists' pictures and what the arms feel: a reward; NumPy alone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import ClassVar, NamedTuple, Self

import numpy as np

from alohas2r import config
from alohas2r.config import check
from alohas2r.core.files import digest
from alohas2r.core.types import JsonObject
from alohas2r.embodiment.joints import HELD_GAP_M, PER_ARM, SIDES
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies import artifact
from alohas2r.policies.online import networks
from alohas2r.policies.online.insertion import TASK, InsertSpec
from alohas2r.policies.online.spec import PROPRIOCEPTION
from alohas2r.policies.online.tasks import Held
from alohas2r.policies.switch import EMPTY_TRAVEL_M

REWARD = "reward"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierSpec:
    """Everything but the weights.

    Attributes:
      student_hash: of the exported student whose first layers look at the pictures.
      pictures: how many numbers these make of both wrists' pictures.
      task: what it tells. hidden: layers. networks: how many tell it together, by the mean of their log odds.
      sure: probability above which a control step counts. steps: how many in a row are the reward.
    """

    student_hash: str
    pictures: int
    task: str = TASK
    hidden: tuple[int, ...] = (64, 64)
    networks: int = 1
    sure: float = 0.9
    steps: int = 5

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self.task == TASK, f"task must be {TASK}, not '{self.task}'")
        check(self.pictures >= 1, f"pictures must be at least 1, not {self.pictures}")
        check(bool(self.hidden) and min(self.hidden) >= 1, "hidden needs layers of 1 or more")
        check(self.networks >= 1, f"networks must be at least 1, not {self.networks}")
        check(0 < self.sure < 1, f"sure must lie in (0, 1), not {self.sure}")
        check(self.steps >= 1, f"steps must be at least 1, not {self.steps}")

    @property
    def features(self) -> int:
        """Numbers that the network gets."""
        return self.pictures + PROPRIOCEPTION

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of a network's input, hidden layers and output."""
        return self.features, *self.hidden, 1

    @property
    def names(self) -> tuple[str, ...]:
        """Of the networks, in the names of their weights."""
        return tuple(f"{REWARD}/{index}" for index in range(self.networks))


class SuccessClassifier:
    """Tells an insertion, as an artifact.

    Args:
      spec: its description. weights: "mean", "std" and "reward/N/layerI/...".
      trained: how it was trained.

    Raises:
      ArtifactError: the weights do not fit the description.
    """

    file: ClassVar[str] = "classifier.json"
    called: ClassVar[str] = "classifier of insertions"
    made_by: ClassVar[str] = "alohas2r train-reward"
    output: ClassVar[str] = "probability"

    def __init__(
        self, spec: ClassifierSpec, weights: Mapping[str, np.ndarray], trained: Mapping[str, object]
    ) -> None:
        self.spec = spec
        self.weights = {name: np.asarray(value, np.float32) for name, value in weights.items()}
        self.trained: JsonObject = dict(trained)
        found = {name: value.shape for name, value in self.weights.items()}
        wanted = {"mean": (spec.features,), "std": (spec.features,)}
        for name in spec.names:
            wanted |= networks.mlp_shapes(name, spec.sizes)
        if found != wanted:
            raise ArtifactError("The weights do not fit the classifier's description.")
        broken = [name for name, value in self.weights.items() if not np.isfinite(value).all()]
        if broken:
            raise ArtifactError(f"The classifier's {broken[0]} is not finite.")

    @property
    def hash(self) -> str:
        """Identifies what it computes."""
        return digest(self.spec, self.weights)

    def probability(self, pictures: np.ndarray, proprioception: np.ndarray) -> np.ndarray:
        """Returns how likely the peg is in, [...].

        Args:
          pictures: [..., n] what the student's first layers make of both wrists' pictures, left first.
          proprioception: [..., 32] of both arms.
        """
        features = np.concatenate([pictures, proprioception], -1).astype(np.float32)
        normal = networks.normalize(self.weights, features)
        layers = len(self.spec.hidden)
        said = [
            networks.mlp(self.weights, name, normal, layers)[..., 0] for name in self.spec.names
        ]
        return 0.5 * (1 + np.tanh(0.5 * np.mean(said, 0)))

    def describe(self) -> JsonObject:
        """Returns what classifier.json says of it."""
        return {"kind": REWARD, "phase": self.spec.task, "spec": config.to_dict(self.spec)}

    @classmethod
    def build(cls, description: JsonObject, weights: Mapping[str, np.ndarray]) -> Self:
        """Makes it of its description and weights."""
        spec = config.from_dict(ClassifierSpec, description["spec"])
        return cls(spec, weights, description.get("trained", {}))

    def check_inputs(self, recorded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns "pictures" [T, n] and "proprioception" [T, 32] as they were recorded."""
        return {name: np.asarray(recorded[name]) for name in ("pictures", "proprioception")}

    def answer(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the probabilities [T] of recorded inputs."""
        return self.probability(rows["pictures"], rows["proprioception"])


class Look(NamedTuple):
    """What is seen and felt in a control step of an insertion: pictures [n], proprioception [32]."""

    pictures: np.ndarray
    proprioception: np.ndarray


class InsertReward(Held):
    """The reward of an insertion that a robot computes: both grippers hold, and a classifier is sure for long enough.

    Args:
      classifier: what tells.
    """

    def __init__(self, classifier: SuccessClassifier) -> None:
        super().__init__(classifier.spec.task, classifier.spec.steps)
        self._classifier = classifier

    def update(self, look: Look | None) -> bool:
        """Takes a control step, None where the policy does not insert; returns whether the peg is in."""
        if look is None or not holds(look.proprioception).all():
            return self.take(False)
        return self.take(bool(self._classifier.probability(*look) > self._classifier.spec.sure))


def rewarded(classifier: SuccessClassifier, looks: Iterable[Look | None]) -> int | None:
    """Returns the first of an episode's control steps with the reward; None if it never comes."""
    reward = InsertReward(classifier)
    return next((step for step, look in enumerate(looks) if reward.update(look)), None)


def holds(proprioception: np.ndarray) -> np.ndarray:
    """Returns which grippers hold something [2]: their fingers stop before they are where they are told to be."""
    parts = proprioception.reshape(2, len(SIDES), PER_ARM + 1)
    travel, short = parts[0, :, PER_ARM - 1], parts[1, :, PER_ARM - 1]
    return (travel > EMPTY_TRAVEL_M) & (short > HELD_GAP_M)


def read_classifier(folder: str | os.PathLike[str], spec: InsertSpec) -> SuccessClassifier:
    """Reads a classifier for a student's insertions.

    Raises:
      ArtifactError: missing or damaged. ConfigError: it looks through another student's layers.
    """
    classifier = artifact.load(folder, SuccessClassifier)
    own = classifier.spec
    if own.student_hash != spec.student_hash:
        raise ConfigError(
            f"{folder} looks through another student ({own.student_hash[:12]}) than --base ({spec.student_hash[:12]});"
            " train-reward makes one of this student's logs."
        )
    if own.pictures != spec.pictures:
        raise ConfigError(
            f"{folder} takes {own.pictures} numbers of pictures; the student gives {spec.pictures}."
        )
    return classifier
