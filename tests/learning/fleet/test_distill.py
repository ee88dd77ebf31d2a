"""A distillation whose environments are a fleet's: the same samples as without, the same bits with any workers."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import student_cases
from fleet_cases import Recorded, go_on, same

from alohas2r import config
from alohas2r.cli import app
from alohas2r.errors import ConfigError
from alohas2r.learning.dagger import train as dagger
from alohas2r.learning.dagger import worlds as worlds_of_a_distillation
from alohas2r.learning.dagger.apart import (
    DistillApart,
    DistillPlan,
    DistillWorld,
    distill_world,
    kept,
)
from alohas2r.learning.dagger.distiller import make_distiller
from alohas2r.learning.fleet.base import FleetConfig, Setup
from alohas2r.learning.fleet.local import LocalFleet
from alohas2r.learning.fleet.worker import World, parts
from alohas2r.policies import artifact
from alohas2r.policies.vision import StudentPolicy

pytestmark = pytest.mark.compiles
ROUNDS, SEED = 3, 3


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with student_cases.compiled_once(tmp_path_factory):
        yield


class Small:
    """Two worlds of two environments, and the same four without a fleet."""

    def __init__(self) -> None:
        self.settings = student_cases.settings(
            "rgb", "cameras.size=16", "draws=1", f"iterations={ROUNDS}", "average=0"
        )
        teacher, encoder = student_cases.staged(), student_cases.encoder()
        given = self.settings, teacher, encoder, SEED, 1, "exact", "cpu"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worlds_of_a_distillation, "WORLD_SIZE", 2)
            self.plain = make_distiller(*given)
        worlds = parts(4, 2)
        self.distiller = make_distiller(*given, part=worlds[0], like=self.plain)
        plan = DistillPlan(
            config.to_dict(self.settings),
            kept(teacher),
            kept(encoder),
            SEED,
            1,
            "exact",
            "cpu",
            2,
        )
        self.lender: World = DistillWorld(self.plain)
        model = DistillWorld(self.distiller).model
        self.setup = Setup(self.build, plan, len(worlds), model)
        # With one worker, lag 0: after each round.
        with_one, _ = self.apart(1, 0)
        state, self.states = with_one.init(), list[Any]()
        for _ in range(ROUNDS):
            state, _ = go_on(with_one, state, 1)
            self.states.append(with_one.checkpointed(state))
        with_one.fleet.close()

    def build(self, plan: DistillPlan, number: int, like: World | None) -> World:
        return distill_world(plan, number, like or self.lender)

    def apart(self, workers: int, lag: int) -> tuple[DistillApart, Recorded]:
        fleet = Recorded(LocalFleet(self.setup, workers))
        return DistillApart(self.distiller, fleet, lag), fleet


@pytest.fixture(scope="module")
def small() -> Small:
    return Small()


def test_worlds_apart_give_the_samples_of_a_training_without_a_fleet(small: Small) -> None:
    _, whole = small.plain.collect(small.plain.init())
    training, fleet = small.apart(2, 0)
    _, apart = training.collect(training.init())
    fleet.close()
    assert same(apart.samples, whole.samples)
    assert len(np.unique(np.asarray(apart.samples.rgb).reshape(8, -1), axis=0)) == 8


def test_the_bits_are_the_same_with_any_number_of_workers_and_after_a_checkpoint(
    small: Small,
) -> None:
    training, fleet = small.apart(2, 0)
    state, _ = go_on(training, training.init(), 1)
    assert same(state.learner, small.states[0].learner)
    begun = training.restored(training.checkpointed(state))
    fleet.close()
    other, fleet = small.apart(1, 0)
    state, _ = go_on(other, begun, ROUNDS - 1)
    assert same(other.checkpointed(state), small.states[-1])
    fleet.close()


def test_with_a_lag_a_round_acts_with_the_student_before_the_newest(small: Small) -> None:
    training, fleet = small.apart(2, 1)
    state, learners, figures = training.init(), [], []
    for _ in range(ROUNDS):
        learners.append(state.learner)
        state, figures = go_on(training, state, 1)
    assert {"loss/imitation", "train/switched", "train/unstable"} <= figures[0].keys()
    versions = [order.version for order, _ in fleet.orders]
    assert versions == [0, 1, 2]
    for (_, acted), learner in zip(
        fleet.orders, (learners[0], learners[0], learners[1]), strict=True
    ):
        assert same(acted.params, learner.params)
    # The teacher acts in the first round alone, whatever the student has learnt by then.
    assert [int(acted.iteration) for _, acted in fleet.orders] == versions
    fleet.close()


def test_the_command_trains_on_a_fleet_and_resumes_with_another_number_of_workers(
    small: Small, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dagger, "distill_world", small.build)
    teacher = student_cases.save_teacher(tmp_path / "teacher")
    encoder = student_cases.save_encoder(tmp_path / "encoder")
    plain = config.flatten(small.settings)
    preset = config.flatten(dagger.find_preset("quick", "rgb"))

    def text(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)

    overrides = [f"{key}={text(value)}" for key, value in plain.items() if preset[key] != value]
    for workers, resume, minutes in ((2, False, 0.0), (1, True, None)):
        result = dagger.distill(
            "quick",
            overrides,
            teacher,
            encoder,
            "rgb",
            tmp_path / "run",
            SEED,
            1,
            resume=resume,
            minutes=minutes,
            renderer="exact",
            engine="cpu",
            fleet=FleetConfig("local", workers, world=2),
        )
        assert result["finished"] is resume
    found = artifact.load(result["student"], StudentPolicy)
    last = small.distiller.learner.to_policy(small.states[-1].learner, {})
    assert found.hash == last.hash
    assert "--fleet local --workers 1 --lag 0" in found.trained["command"]


def test_bad_input_is_refused_in_a_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for fleet, words in (
        (FleetConfig("local", 2), "num_envs = 64 makes: take at most --workers 1"),
        (FleetConfig("data-parallel", 2), "distill has no --fleet data-parallel"),
    ):
        with pytest.raises(ConfigError, match=words):
            dagger.distill("quick", out=tmp_path / "run", fleet=fleet)
    assert app.main(["distill", "--workers", "2", "--out", str(tmp_path / "run")]) == 1
    assert "belong to a fleet" in capsys.readouterr().err
