"""Learns to tell an insertion, and says how often that is wrong on episodes that it was not learnt from."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import shlex
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alohas2r.config import check, to_dict
from alohas2r.core import stats
from alohas2r.core.files import make_folder
from alohas2r.core.types import Array, JsonObject, PyTree
from alohas2r.errors import ArtifactError
from alohas2r.learning.online.examples import Trial, read_trials
from alohas2r.learning.run import manifest
from alohas2r.policies import artifact
from alohas2r.policies.online import networks
from alohas2r.policies.online.classifier import (
    ClassifierSpec,
    SuccessClassifier,
    holds,
    rewarded,
)
from alohas2r.policies.onnx.base import insert_spec, read_base

_GROUP = 50  # steps of one compiled call
_MOST_ODDS = 12.0  # logarithm of the odds beyond which no reward asks for more: what single precision tells from 1
_CHECKED = 32  # examples that the artifact's check holds


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """How a classifier is learnt.

    Attributes:
      steps: of learning. batch: examples of each, a third of them insertions.
      learning_rate: of AdamW. weight_decay: of it. noise: of normalized features.
      hidden: layers. networks: how many tell together; each learns from all starts but its own part of them.
      margin: of log odds, by which they must be surer for the reward than the surest of them was of a failure that it
        had not learnt from.
      held_out: share of the starts whose episodes are left to the measurement.
    """

    steps: int = 2000
    batch: int = 96
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    noise: float = 0.8
    hidden: tuple[int, ...] = (64, 64)
    networks: int = 8
    margin: float = 1.5
    held_out: float = 0.4

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self.steps >= 1, f"steps must be at least 1, not {self.steps}")
        check(self.batch >= 3, f"batch must be at least 3, not {self.batch}")
        check(self.learning_rate > 0, "learning_rate must be positive")
        check(self.weight_decay >= 0, "weight_decay must not be negative")
        check(self.noise >= 0, "noise must not be negative")
        check(self.networks >= 2, f"networks must be at least 2, not {self.networks}")
        check(self.margin >= 0, "margin must not be negative")
        check(0 < self.held_out < 1, f"held_out must lie in (0, 1), not {self.held_out}")


def train_reward(
    runs: Sequence[str | os.PathLike[str]],
    student: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: RewardConfig | None = None,
    seed: int = 0,
) -> JsonObject:
    """Learns a classifier of insertions from logs whose truth a simulation knows.

    Args:
      runs: folders of `demonstrate insert` and `learn insert`. student: the exported file whose features they hold.
      out: folder of the classifier. config: how; as it stands if None. seed: of all that is drawn.

    Returns:
      "task", "runs", "episodes", "repeats" that were left out, "examples" of insertions and of others, "sure": the
      probability that the reward asks for, "learnt_from" and "held_out" as `measure` says, "worlds": the held-out part
      by world, "student_hash", "hash", "out".

    Raises:
      ArtifactError: a log is missing, damaged, or lacks what is needed; there are too few successes or failures.
      ConfigError: a log is of another task or student.
    """
    config, folders = config or RewardConfig(), [pathlib.Path(run) for run in runs]
    pictures = insert_spec(base := read_base(student)).pictures
    trials, found, repeats = read_trials(folders, pictures)
    if found != base.policy.hash:
        raise ArtifactError(
            f"{folders[0]} is of another student ({found[:12]}) than --base {student} ({base.policy.hash[:12]})."
        )
    kept, left = split(trials, config.held_out, seed)
    make_folder(out)
    spec = ClassifierSpec(
        student_hash=found, pictures=pictures, hidden=config.hidden, networks=config.networks
    )
    there, others = _examples(kept)
    classifier = learn(spec, kept, config, seed)
    spec = classifier.spec
    told = [(one, rewarded(classifier, one.looks)) for one in left]
    worlds = sorted({trial.world for trial in left})
    figures: JsonObject = {
        "task": spec.task,
        "runs": [manifest.named(folder) for folder in folders],
        "episodes": len(trials),
        "repeats": repeats,
        "examples": {"inserted": len(there), "not_inserted": len(others)},
        "sure": spec.sure,
        "learnt_from": measure(classifier, kept),
        "held_out": tally(told),
        "worlds": {
            world or "nominal": tally([pair for pair in told if pair[0].world == world])
            for world in worlds
        },
        "student_hash": found,
    }
    words = [
        "alohas2r",
        "train-reward",
        *map(str, figures["runs"]),
        "--base",
        manifest.named(student),
    ]
    command = shlex.join([*words, "--seed", str(seed)])
    trained = {**figures, "command": command, "seed": seed, "config": to_dict(config)}
    classifier = SuccessClassifier(spec, classifier.weights, trained)
    some = np.concatenate([there, others])[:: max(1, (len(there) + len(others)) // _CHECKED)]
    rows = {"pictures": some[:, :pictures], "proprioception": some[:, pictures:]}
    artifact.save(classifier, out, rows)
    return {**figures, "hash": classifier.hash, "out": str(out)}


def split(trials: Sequence[Trial], share: float, seed: int) -> tuple[list[Trial], list[Trial]]:
    """Returns the episodes to learn from and those to measure by; all that began alike are in the same part.

    Args:
      trials: episodes. share: of the starts with the same outcomes that are left to the measurement. seed: of the draw.

    Raises:
      ArtifactError: one of the parts lacks successes or failures.
    """
    left = set()
    draw = np.random.default_rng([seed, 11])
    for starts in _alike(trials):
        count = round(share * len(starts))
        left |= {starts[at] for at in draw.permutation(len(starts))[:count]}
    parts = (
        [one for one in trials if one.start not in left],
        [one for one in trials if one.start in left],
    )
    if any({one.inserted is None for one in part} != {True, False} for part in parts):
        succeeded = sum(one.inserted is not None for one in trials)
        raise ArtifactError(
            f"{succeeded} successes and {len(trials) - succeeded} failures are too few to learn from and to measure by:"
            " alohas2r demonstrate insert --tries N records more; with --world-params peg=34 most fail."
        )
    return parts


def measure(classifier: SuccessClassifier, trials: Sequence[Trial]) -> JsonObject:
    """Returns what the reward says of episodes, as `tally` does."""
    return tally([(one, rewarded(classifier, one.looks)) for one in trials])


def tally(told: Sequence[tuple[Trial, int | None]]) -> JsonObject:
    """Counts what a reward says of episodes, with 95% Wilson intervals.

    Args:
      told: episodes, and the first of their control steps with the reward; None if it never came.

    Returns:
      "failed": episodes in which the peg was never in; "false": of these with the reward, "false_rate"; "undecided":
      left out of both, as the reward came in the last steps, too late for the truth, which needs some, to say so.
      "succeeded": the others; "true": of these with the reward once the peg was in, "true_rate"; "early": with the
      reward in control steps of which in none the peg can have been in.
    """
    failed = wrong = undecided = true = early = succeeded = 0
    for one, when in told:
        if one.inserted is not None:
            succeeded += 1
            early += when is not None and when < one.open
            true += when is not None and when >= one.open
        elif when is not None and when >= one.told:
            undecided += 1
        else:
            failed += 1
            wrong += when is not None
    return {
        "failed": failed,
        "false": wrong,
        "false_rate": dict(stats.rate(wrong, failed)),
        "undecided": undecided,
        "succeeded": succeeded,
        "true": true,
        "true_rate": dict(stats.rate(true, succeeded)),
        "early": early,
    }


def _examples(trials: Sequence[Trial]) -> tuple[np.ndarray, np.ndarray]:
    """Returns what was seen while both grippers held something: [N, F] with the peg in, and [M, F] without."""
    rows: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for trial in trials:
        for look, there in zip(*trial.examples(), strict=True):
            if holds(look.proprioception).all():
                rows[not there].append(np.concatenate(look))
    if not all(rows):
        raise ArtifactError(
            "In none of the episodes to learn from both grippers held something, with the peg in and without."
        )
    return np.stack(rows[0]), np.stack(rows[1])


def _alike(trials: Sequence[Trial]) -> list[list[tuple[int, ...]]]:
    """Returns the starts from which all succeeded, all failed, and some did, in order."""
    outcomes: dict[tuple[int, ...], set[bool]] = {}
    for one in trials:
        outcomes.setdefault(one.start, set()).add(one.inserted is not None)
    kinds = ({True}, {False}, {True, False})
    return [sorted(start for start, found in outcomes.items() if found == kind) for kind in kinds]


def _parts(trials: Sequence[Trial], count: int, seed: int) -> list[list[Trial]]:
    """Returns episodes in so many parts with about as many failures each; all that began alike are in the same one."""
    draw = np.random.default_rng([seed, 17])
    starts = [starts[at] for starts in _alike(trials) for at in draw.permutation(len(starts))]
    part_of = {start: at % count for at, start in enumerate(starts)}
    return [[one for one in trials if part_of[one.start] == at] for at in range(count)]


def learn(
    spec: ClassifierSpec, trials: Sequence[Trial], config: RewardConfig, seed: int
) -> SuccessClassifier:
    """Learns the networks, and how sure is sure enough, by what each says of failures that it did not learn from."""
    every = np.concatenate(_examples(trials))
    mean, std = every.mean(0), np.maximum(every.std(0), 0.001)
    scales = {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}
    weights, surest = dict(scales), 0.0
    parts = _parts(trials, spec.networks, seed)
    update = _update(spec, config)
    for index, (name, part) in enumerate(zip(spec.names, parts, strict=True)):
        others = [one for at in range(len(parts)) if at != index for one in parts[at]]
        draw = np.random.default_rng([seed, 13, index])
        learnt = _learn_one(update, scales, _examples(others), spec, config, draw)
        alone = SuccessClassifier(dataclasses.replace(spec, networks=1), {**scales, **learnt}, {})
        failures = [one for one in part if one.inserted is None]
        surest = max([surest, *(_surest(alone, one) for one in failures)])
        weights |= {key.replace(spec.names[0], name): value for key, value in learnt.items()}
    return SuccessClassifier(
        dataclasses.replace(spec, sure=sure_enough(spec, surest, config)), weights, {}
    )


def _surest(classifier: SuccessClassifier, failure: Trial) -> float:
    """Returns the probability below which the reward would come in a failure, 0 if it never would."""
    said = [
        float(classifier.probability(*look)) if look and holds(look.proprioception).all() else 0.0
        for look in failure.looks[: failure.told]
    ]
    steps = classifier.spec.steps
    return max((min(said[at : at + steps]) for at in range(len(said) - steps + 1)), default=0.0)


def sure_enough(spec: ClassifierSpec, surest: float, config: RewardConfig) -> float:
    """Returns the probability that the reward asks for, at least the description's, given the surest of failures."""
    if surest <= 0:
        return spec.sure
    odds = np.log(surest) - np.log(max(1 - surest, np.exp(-_MOST_ODDS))) + config.margin
    return max(spec.sure, float(1 / (1 + np.exp(-min(odds, _MOST_ODDS)))))


def _learn_one(
    update: Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]],
    scales: Mapping[str, np.ndarray],
    examples: tuple[np.ndarray, np.ndarray],
    spec: ClassifierSpec,
    config: RewardConfig,
    draw: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Learns a network of examples [N, F] with the peg in and [M, F] without; returns its weights."""
    first = networks.init_mlp(draw, spec.names[0], spec.sizes)
    learnt: PyTree = {name: jnp.asarray(value) for name, value in first.items()}
    state: PyTree = _optimizer(config).init(learnt)
    positives = config.batch // 3
    for begun in range(0, config.steps, _GROUP):
        count = min(_GROUP, config.steps - begun)
        chosen = (
            part[draw.integers(0, len(part), (count, size))]
            for part, size in zip(examples, (positives, config.batch - positives), strict=True)
        )
        normal = networks.normalize(scales, np.concatenate(list(chosen), 1))
        noise = config.noise * draw.normal(size=normal.shape)
        learnt, state = update(learnt, state, (normal + noise).astype(np.float32))
    return {name: np.asarray(value) for name, value in learnt.items()}


def _optimizer(config: RewardConfig) -> optax.GradientTransformation:
    return optax.adamw(config.learning_rate, weight_decay=config.weight_decay)


def _update(
    spec: ClassifierSpec, config: RewardConfig
) -> Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]]:
    """Returns what learns from batches [T, batch, F], of each of which the first third are insertions."""
    optimizer = _optimizer(config)
    labels = jnp.arange(config.batch) < config.batch // 3

    def loss(learnt: Mapping[str, Array], normal: Array) -> Array:
        said = networks.mlp(learnt, spec.names[0], normal, len(spec.hidden), jnp)[:, 0]
        return optax.sigmoid_binary_cross_entropy(said, labels).mean()

    def step(carried: PyTree, normal: Array) -> PyTree:
        learnt, state = carried
        change, state = optimizer.update(jax.grad(loss)(learnt, normal), state, learnt)
        return (optax.apply_updates(learnt, change), state), None

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(learnt: PyTree, state: PyTree, batches: Array) -> tuple[PyTree, PyTree]:
        (learnt, state), _ = jax.lax.scan(step, (learnt, state), batches)
        return learnt, state

    return update
