"""What is recorded is what was measured, commanded and seen in the episodes of an evaluation."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

pytest.importorskip("jax")

import student_cases

from alohas2r.datasets import record as recording
from alohas2r.datasets.episode import Episode
from alohas2r.datasets.runs import from_run
from alohas2r.deployment.log import LogWriter
from alohas2r.embodiment.aloha import CAMERAS, to_units
from alohas2r.embodiment.joints import IS_GRIPPER, PER_ARM
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.evaluation import evaluate
from alohas2r.evaluation.episodes import episode_keys
from alohas2r.sim import scene
from alohas2r.tasks.protocol import EVAL_V1

pytestmark = pytest.mark.compiles
STEPS, COUNT, SEED, SIDE = 6, 2, 5, 16
SHORT = dataclasses.replace(
    EVAL_V1, name="short", insert=dataclasses.replace(EVAL_V1.insert, steps=STEPS)
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return student_cases.save_teacher(tmp_path_factory.mktemp("teachers") / "teacher")


@pytest.fixture(scope="module")
def episodes(teacher: pathlib.Path) -> list[Episode]:
    """Two short episodes as they are, without noise."""
    made = recording.record(
        teacher,
        COUNT,
        SEED,
        size=SIDE,
        depth=True,
        protocol=SHORT,
        ideal=True,
        threads=1,
        renderer="exact",
    )
    assert made.about.source["protocol_hash"] == SHORT.hash
    return list(made.episodes)


def test_states_are_those_of_the_evaluation(episodes: list[Episode], teacher: pathlib.Path) -> None:
    policy = evaluate.load_policy(teacher)
    qpos = evaluate.run(policy, SHORT, episode_keys(SEED, 0, COUNT), 1).qpos
    arms = scene.load("insert").arms
    joints = np.concatenate([arm.qpos[:PER_ARM] for arm in arms])
    for index, episode in enumerate(episodes):
        assert len(episode) == STEPS
        np.testing.assert_allclose(episode.state, to_units(qpos[:, index, joints]), atol=2e-3)
    assert episodes[0].state.shape == (STEPS, 14)
    assert [one.number for one in episodes] == [0, 1]
    assert (episodes[0].state[0] != episodes[1].state[0]).any()


def test_actions_are_targets_near_the_joints(episodes: list[Episode]) -> None:
    for episode in episodes:
        moved = np.abs(episode.action[0] - episode.state[0])[~IS_GRIPPER]
        assert moved.max() < EVAL_V1.control.scale + 0.05
        assert np.ptp(episode.action, axis=0).max() > 0
        assert episode.velocity is not None
        # What was reached after a step is what its velocity says, to first order.
        step = np.diff(episode.state, axis=0)[:, ~IS_GRIPPER]
        about = 0.05 * (episode.velocity[1:] + episode.velocity[:-1])[:, ~IS_GRIPPER] / 2
        np.testing.assert_allclose(step, about, atol=0.02)


def test_both_cameras_see(episodes: list[Episode]) -> None:
    for episode in episodes:
        assert set(episode.images) == set(episode.depth) == set(CAMERAS)
        for camera in CAMERAS:
            assert episode.images[camera].shape == (STEPS, SIDE, SIDE, 3)
            assert episode.images[camera].std() > 5
            metres = episode.depth[camera] / 1e4
            assert 0.03 < np.median(metres[metres > 0]) < 0.4
        left, right = (episode.images[camera].astype(int) for camera in CAMERAS)
        assert np.abs(left - right).mean() > 1


def test_groups_fit_into_memory() -> None:
    assert recording.at_once(100, 200, 96, depth=False) == 100
    assert recording.at_once(400, 200, 96, depth=False) == 134
    assert recording.at_once(3, 200, 512, depth=True) == 3
    assert recording.at_once(10_000, 200, 32, depth=True) < 2_000


def test_other_policies_and_numbers_are_refused(random_policy: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="no wrist cameras"):
        recording.record(random_policy, 1)
    with pytest.raises(ConfigError, match="even"):
        recording.record(random_policy, 1, size=33)


def test_a_run_on_arms_becomes_episodes(tmp_path: pathlib.Path) -> None:
    draw = np.random.default_rng(0)

    def values(episode: int) -> dict[str, object]:
        return {"episode": episode, "mode": "run", "interventions": [], "findings": []}

    with LogWriter(tmp_path / "one.run", {"robot": "sim", "policy": "p.onnx"}) as log:
        log.write("step", values(0), {"position": np.zeros(14)})  # the approach
        for number, steps in ((0, 4), (1, 3)):
            for _ in range(steps):
                arrays: dict[str, np.ndarray] = {
                    "position": draw.normal(size=14),
                    "velocity": draw.normal(size=14),
                    "command": draw.normal(size=14),
                    "action": draw.normal(size=14),
                }
                for side in ("left", "right"):
                    arrays[f"observation/{side}_rgb"] = np.full((8, 8, 3), number, np.uint8)
                    arrays[f"observation/{side}_depth"] = np.full((8, 8), 0.25, np.float32)
                log.write("step", values(number), arrays)
    made = from_run(tmp_path / "one.run")
    taken = list(made.episodes)
    assert [len(one) for one in taken] == [4, 3]
    assert [one.success for one in taken] == [None, None]
    assert (taken[1].images["cam_left_wrist"] == 1).all()
    assert (taken[0].depth["cam_right_wrist"] == 2500).all()
    assert made.about.source["policy"] == "p.onnx"
    with LogWriter(tmp_path / "idle.run", {}) as log:
        log.write("step", values(0), {"position": np.zeros(14)})
    with pytest.raises(ArtifactError, match="did not act"):
        from_run(tmp_path / "idle.run")
