"""A reward that is learnt from logs: which episodes it is learnt from and measured by, and by which rule."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import pytest

from alohas2r.config import to_dict
from alohas2r.deployment.log import LogWriter
from alohas2r.deployment.online.opened import shipped_base
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.learning.online import reward
from alohas2r.learning.online.examples import REACTION, SURE, Trial, read_trials
from alohas2r.learning.online.reward import RewardConfig, measure, split, train_reward
from alohas2r.policies import artifact
from alohas2r.policies.online import networks
from alohas2r.policies.online.classifier import (
    ClassifierSpec,
    InsertReward,
    Look,
    SuccessClassifier,
    holds,
    read_classifier,
    rewarded,
)
from alohas2r.policies.onnx.base import insert_spec, read_base

pytestmark = pytest.mark.compiles
N = 4  # numbers of pictures in these tests
GRIPPERS = np.array([6, 7, 14, 15])


def felt(held: bool = True) -> np.ndarray:
    values = np.zeros(32, np.float32)
    values[GRIPPERS] = 0.03
    values[16 + GRIPPERS] = 0.02 if held else 0.0
    return values


def look(says: float, held: bool = True) -> Look:
    return Look(np.array([says, 0, 0, 0], np.float32), felt(held))


def by_the_first() -> SuccessClassifier:
    """A classifier that is sure where the first of its numbers is 1, and sure of the contrary at -1."""
    spec = ClassifierSpec(student_hash="s", pictures=N, hidden=(2,))
    shapes = networks.mlp_shapes(spec.names[0], spec.sizes)
    weights = {name: np.zeros(shape) for name, shape in shapes.items()}
    weights["reward/0/layer0/kernel"][0] = 1, -1
    weights["reward/0/layer1/kernel"][:, 0] = 5, -5
    size = {"mean": np.zeros(spec.features), "std": np.ones(spec.features)}
    return SuccessClassifier(spec, weights | size, {})


def trial(says: Sequence[float | None], inserted: int | None, start: int = 0) -> Trial:
    looks = [None if one is None else look(one) for one in says]
    return Trial(looks, inserted, (start,), "")


def record(
    folder: pathlib.Path,
    episodes: Sequence[tuple[int, bool, Sequence[Look | None]]],
    header: dict | None = None,
    **said: object,
) -> pathlib.Path:
    """Logs episodes: where the peg lay (cm), whether it was in at the end, what was seen."""
    about = {"task": "insert", "student_hash": "s", "world_params": "", **(header or {})}
    with LogWriter(folder / "log" / "0000.run", about) as log:
        for number, (place, done, looks) in enumerate(episodes):
            log.write("episode", {"number": number}, {"qpos": np.full(30, place / 100)})
            for step, one in enumerate(looks):
                last = step == len(looks) - 1
                learning = {"evaluation": False, "truth": done and last, **said}
                learning |= {"terminated": done and last, "truncated": last and not done}
                arrays = {"observation/proprioception": felt()}
                if one is not None:
                    arrays["learning/features"] = np.append(one.pictures, [7.0, 7.0])
                    arrays["observation/proprioception"] = one.proprioception
                log.write("step", {"step": step, "episode": number, "learning": learning}, arrays)
    return folder


def test_it_takes_a_sure_classifier_and_both_grippers_for_five_steps_in_a_row():
    classifier = by_the_first()
    one, no = look(1.0), look(-1.0)
    assert holds(felt()).all()
    assert not holds(felt(False)).all()
    empty = felt()
    empty[GRIPPERS[2:]] = 0.01  # the right fingers have closed on nothing
    assert not holds(empty).all()
    assert rewarded(classifier, [no, *[one] * 4, no, *[one] * 5]) == 10
    assert rewarded(classifier, [*[one] * 4, look(1.0, False), *[one] * 4]) is None
    assert rewarded(classifier, [*[one] * 4, None, *[one] * 4]) is None
    rule = InsertReward(classifier)
    assert [rule.update(one) for _ in range(6)] == [False] * 4 + [True] * 2
    assert rule.holds
    rule.reset()
    assert not rule.update(one)


def test_figures_by_hand():
    one, no = 1.0, -1.0
    trials = [
        trial([None, no, *[one] * 5, *[no] * 4], None),  # a false success
        trial([no] * 4 + [one] * 5, None),  # of which the truth could not tell any more
        trial([no] * 9, None),
        trial([*[one] * 4, no, *[one] * 4], None),
        trial([no, no, *[one] * 5], 6),  # told with the truth
        trial([no, *[one] * 5, no, no], 6),  # a step before it, of which four were in
        trial([*[one] * 5, *[no] * 5], 9),  # before the peg was in
        trial([no] * 9, 8),  # never told
    ]
    told = measure(by_the_first(), trials)
    assert (told["failed"], told["false"], told["succeeded"]) == (3, 1, 4)
    assert (told["true"], told["early"], told["undecided"]) == (2, 1, 1)
    assert told["false_rate"]["rate"] == pytest.approx(1 / 3)
    assert told["false_rate"]["low"] < 1 / 3 < told["false_rate"]["high"]


def test_of_the_steps_before_a_key_nobody_knows():
    says = [None, *[-1.0] * 4, *[1.0] * 8]
    marked = trial(says, 6 + SURE - 1)._replace(unsure=3)  # the key came in the seventh step
    looks, there = marked.examples()
    assert there == [False] * 2 + [True] * 7
    assert [one.pictures[0] for one in looks] == [-1.0] * 2 + [1.0] * 7
    for begun, figures in ((0, (1, 0)), (1, (0, 1)), (6, (0, 1))):  # rewarded four steps later
        says = [*[-1.0] * begun, *[1.0] * (13 - begun)]
        one = trial(says, marked.inserted)._replace(unsure=1)  # it may have been in from step 5 on
        told = measure(by_the_first(), [one])
        assert (told["early"], told["true"]) == figures


def test_the_steps_that_the_truth_counted_are_examples_of_insertion():
    says = [None, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    looks, there = trial(says, 7).examples()
    assert there == [False, False, *[True] * 6]
    assert len(looks) == 8
    assert not any(trial(says, None).examples()[1])


def test_episodes_that_began_alike_are_never_in_both_parts():
    trials = [trial([0.1 * at], 0 if at % 3 else None, start=at // 2) for at in range(40)]
    for seed in range(3):
        kept, left = split(trials, 0.4, seed)
        assert not {one.start for one in kept} & {one.start for one in left}
        assert sorted(map(id, [*kept, *left])) == sorted(map(id, trials))
        for part in (kept, left):
            assert {one.inserted is None for one in part} == {True, False}
        assert [id(one) for one in split(trials, 0.4, seed)[1]] == [id(one) for one in left]
    with pytest.raises(ArtifactError, match="demonstrate insert --tries"):
        split(trials[:2], 0.4, 0)


def test_what_is_read_of_a_log(tmp_path):
    seen = [None, *[look(-1.0 + 0.01 * step) for step in range(6)]]
    episodes = [(1, False, seen), (2, True, seen[:5]), (1, False, seen), (3, False, [None] * 4)]
    run = record(tmp_path / "a", episodes)
    trials, student, repeats = read_trials([run], N)
    # The third is a repeat of the first; the last never came to insert.
    assert (student, repeats, len(trials)) == ("s", 1, 2)
    assert [one.inserted for one in trials] == [None, 4]
    assert trials[0].looks[0] is None
    found, given = ([one.pictures for one in looks if one] for looks in (trials[0].looks, seen))
    np.testing.assert_array_equal(found, given)
    assert trials[0].start != trials[1].start
    evaluated = record(tmp_path / "b", episodes, evaluation=True)
    assert not read_trials([evaluated], N).trials
    with pytest.raises(ConfigError, match="is of 'pick'"):
        read_trials([record(tmp_path / "c", episodes, {"task": "pick"})], N)
    with pytest.raises(ConfigError, match="another student"):
        read_trials([run, record(tmp_path / "d", episodes, {"student_hash": "t"})], N)
    with pytest.raises(ArtifactError, match="you do, by the keys of --judge"):
        read_trials([record(tmp_path / "e", episodes, truth=None)], N)
    with pytest.raises(ArtifactError, match="holds no log"):
        read_trials([tmp_path / "nowhere"], N)
    cut = run / "log" / "0000.run"
    cut.write_bytes(cut.read_bytes()[:-40])  # killed while it wrote: the last episode is left out
    assert len(read_trials([run], N).trials) == 2


def test_what_a_person_said_of_real_arms_is_read(tmp_path):
    """Nobody knows where anything lay: no two episodes begin alike. One without a key is left out."""
    seen = [look(-1.0 + 0.01 * step) for step in range(50)]
    with LogWriter(
        tmp_path / "log" / "0000.run", {"task": "insert", "student_hash": "s", "world_params": ""}
    ) as log:
        for number, mark in enumerate(("success", "failure", "")):
            log.write("episode", {"number": number}, {})
            for step, one in enumerate(seen):
                last = step == len(seen) - 1
                learning = {"evaluation": False, "truth": None, "terminated": False}
                learning["truncated"] = last and mark != "success"
                learning["terminated"] = last and mark == "success"
                if mark and (step >= 40 or step == 20):  # the first was taken back
                    learning["marked"] = mark if last else "wait"
                arrays = {"learning/features": np.append(one.pictures, number)[: N + 1]}
                arrays["observation/proprioception"] = one.proprioception + 0.001 * number
                said = {"step": step, "episode": number, "learning": learning}
                log.write("step", said, arrays)
    trials, _, repeats = read_trials([tmp_path], N)
    assert (len(trials), repeats) == (2, 0)
    assert [one.inserted is None for one in trials] == [False, True]
    assert trials[0].start != trials[1].start
    _, there = trials[0].examples()
    assert (sum(there), len(there)) == (10, 50 - REACTION)
    assert trials[0].open == 40 - REACTION
    assert not any(trials[1].examples()[1])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A classifier of the shipped student, learnt from logs in which some numbers of the pictures tell."""
    folder = tmp_path_factory.mktemp("reward")
    base = read_base(shipped_base())
    size, draw = insert_spec(base).pictures, np.random.default_rng(0)

    def seen(there: bool) -> Look:
        pictures = draw.normal(size=size).astype(np.float32)
        pictures[:48] += 2.0 if there else -2.0
        return Look(pictures, felt() + draw.normal(0, 1e-4, 32).astype(np.float32))

    episodes = [
        (at, at % 2 == 0, [None, *[seen(False) for _ in range(12)], *[seen(at % 2 == 0)] * 5])
        for at in range(32)
    ]
    run = record(folder / "run", episodes, {"student_hash": base.policy.hash})
    config = RewardConfig(steps=600, hidden=(16,), noise=0.1, networks=2, held_out=0.5)
    result = train_reward([run], shipped_base(), folder / "reward", config)
    return run, folder / "reward", result, config


def test_it_tells_episodes_that_it_has_not_seen(made):
    run, folder, result, config = made
    held = result["held_out"]
    assert (held["failed"], held["succeeded"]) == (8, 8)
    assert (held["false"], held["true"], held["early"]) == (0, 8, 0)
    assert result["worlds"]["nominal"] == held
    stored = artifact.load(folder, SuccessClassifier)
    assert stored.hash == result["hash"]
    assert stored.trained["held_out"] == held
    assert stored.trained["config"] == to_dict(config)
    assert stored.trained["runs"] == [str(run)]
    again = train_reward([run], shipped_base(), folder.parent / "again", config)
    assert again["hash"] == result["hash"]


def test_the_reward_asks_for_more_than_a_failure_that_was_not_learnt_from_came_to(made):
    """Failures that look like insertions for as long as the reward asks raise what it asks for; shorter ones do not."""
    run, _, result, config = made
    size = insert_spec(read_base(shipped_base())).pictures
    trials = read_trials([run], size)
    successes = [one for one in trials.trials if one.inserted is not None]
    failures = [one for one in trials.trials if one.inserted is None]
    assert result["sure"] == 0.9  # none of them did

    def sure(seen: int) -> float:
        """Of a classifier that is asked of one more failure, in which as many steps are those of a success."""
        alike = [*failures[0].looks[:-seen], *successes[0].looks[-seen:], *failures[0].looks[-5:]]
        one = failures[0]._replace(looks=alike, start=(-1,))
        spec = ClassifierSpec(student_hash="s", pictures=size, hidden=(8,), networks=2)
        learnt = reward.learn(spec, [*successes, *failures, one], config, 0)
        assert learnt.spec.names == ("reward/0", "reward/1")
        assert rewarded(learnt, one.looks) is None
        return learnt.spec.sure

    assert sure(4) == 0.9
    assert 0.95 < sure(5) < 1


@pytest.mark.parametrize(
    ("surest", "wanted"), [(0, 0.9), (0.5, 0.9), (0.95, 0.9884), (0.99999, 0.999994), (1, 0.999994)]
)
def test_what_the_reward_asks_for_by_the_surest_failure(surest, wanted):
    spec = ClassifierSpec(student_hash="s", pictures=N)
    assert reward.sure_enough(spec, surest, RewardConfig()) == pytest.approx(
        wanted, abs=1e-6 if wanted > 0.99 else 1e-3
    )


def test_networks_tell_together_by_the_mean_of_their_odds():
    one = by_the_first()
    spec = dataclasses.replace(one.spec, networks=2)
    weights = {
        **one.weights,
        **{key.replace("/0/", "/1/", 1): value for key, value in one.weights.items()},
    }
    weights["reward/1/layer1/kernel"] = 3 * weights["reward/0/layer1/kernel"]
    both = SuccessClassifier(spec, weights, {})
    odds = [
        np.log(p / (1 - p)) for p in (one.probability(*look(0.3)), both.probability(*look(0.3)))
    ]
    assert odds[1] == pytest.approx(2 * odds[0], rel=1e-5)
    with pytest.raises(ArtifactError, match="do not fit"):
        SuccessClassifier(spec, one.weights, {})


def test_labels_decide_not_what_else_differs(made, monkeypatch):
    """Whose truth says nothing of the pictures is not told: the measure is no tautology."""
    run, folder, _, config = made
    trials = read_trials([run], insert_spec(read_base(shipped_base())).pictures)
    turned = [one._replace(inserted=None if one.inserted else 15) for one in trials.trials]
    monkeypatch.setattr(reward, "read_trials", lambda *_: trials._replace(trials=turned))
    held = train_reward([run], shipped_base(), folder.parent / "turned", config)["held_out"]
    assert held["true"] < held["succeeded"]


def test_a_classifier_that_is_missing_damaged_or_of_another_student_is_refused(made, tmp_path):
    _, folder, *_ = made
    spec = insert_spec(read_base(shipped_base()))
    assert read_classifier(folder, spec).spec.student_hash == spec.student_hash
    with pytest.raises(ArtifactError, match="holds no classifier of insertions"):
        read_classifier(tmp_path, spec)
    with pytest.raises(ArtifactError, match="is no policy"):
        artifact.load(folder)
    same = artifact.load(folder, SuccessClassifier)
    changed = {**to_dict(same.spec), "student_hash": "0" * 64}
    foreign = SuccessClassifier.build({**same.describe(), "spec": changed}, same.weights)
    rows = {"pictures": np.zeros((2, spec.pictures)), "proprioception": np.zeros((2, 32))}
    other = artifact.save(foreign, tmp_path / "other", rows)
    with pytest.raises(ConfigError, match="looks through another student"):
        read_classifier(other, spec)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in folder.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    weights = damaged / "weights.npz"
    weights.write_bytes(weights.read_bytes()[:-99])
    with pytest.raises(ArtifactError, match=r"weights\.npz is missing or damaged"):
        read_classifier(damaged, spec)
