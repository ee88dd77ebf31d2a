"""Rewards that a robot computes, of pictures as they are drawn."""

import numpy as np
import online_cases
import pytest

from alohas2r.policies.online.tasks import BOX, WAIST, Reward
from alohas2r.rendering import registry
from alohas2r.sim import scene

INSERT = scene.load("insert")
LEFT, RIGHT = INSERT.arms
SPEC = online_cases.spec()


@pytest.fixture(scope="module")
def renderer():
    return registry.make("raycast", INSERT, width=32, height=32, batch=1)


def _rewarded(renderer, place: np.ndarray, qpos: np.ndarray) -> bool:
    """Returns whether reach is rewarded where a gripper was led to, near there."""
    home = qpos[LEFT.qpos][:7]
    own = SPEC.arm.joints(home, place)
    qpos = qpos.copy()
    qpos[LEFT.qpos] = [*own, own[6]]
    _, depth = renderer.render(qpos[None])
    felt = online_cases.proprioception(np.concatenate([own, qpos[RIGHT.qpos][:7]]))
    reward = Reward(SPEC)
    reward.update(felt, np.asarray(depth)[0, 0])
    return reward.holds


def test_an_empty_table_is_no_reach_wherever_the_gripper_is(renderer):
    draw = np.random.default_rng(0)
    qpos = INSERT.home_qpos.copy()
    qpos[LEFT.object_qpos[0]] -= 1.0
    waist = float(qpos[LEFT.qpos[0]])
    low, high = (
        np.array([waist + end, *rest]) for end, rest in zip((-WAIST, WAIST), BOX, strict=True)
    )
    places = draw.uniform(low, high, (600, 5))
    places[:, 2] = draw.uniform(low[2], 0.03, 600)
    places[:300, 4] = draw.uniform(low[4], 0.012, 300)  # fingers in front of what lies between them
    assert not any(_rewarded(renderer, place, qpos) for place in places)


def test_what_lies_between_opened_fingers_is_a_reach(renderer):
    draw = np.random.default_rng(1)
    qpos = INSERT.home_qpos.copy()
    waist = float(qpos[LEFT.qpos[0]])
    for _ in range(20):
        reach, angle = draw.uniform(0.31, 0.40), waist + draw.uniform(-0.25, 0.25)
        qpos[LEFT.object_qpos[:2]] = LEFT.base_pos[:2] + _across(reach, angle)
        half = angle / 2
        qpos[LEFT.object_qpos[3:]] = np.cos(half), 0, 0, np.sin(half)
        assert _rewarded(renderer, np.array([angle, reach, 0.002, 0.64, 0.037]), qpos)


def _across(reach: float, angle: float) -> np.ndarray:
    """Returns what lies so far from an arm's base, seen along its own axes, in the world [2]."""
    w, _, _, z = LEFT.base_quat
    turned = angle + 2 * np.arctan2(z, w)
    return reach * np.array([np.cos(turned), np.sin(turned)])
