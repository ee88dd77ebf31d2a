"""Policies that explore, whatever their weights, behind the guard: no command is beyond its limits."""

import math
from collections.abc import Callable

import numpy as np
import online_cases
import pytest

from alohas2r.core import assets
from alohas2r.deployment.online.deciders import Learned, Looking
from alohas2r.deployment.online.explorer import LEASH_RAD, Acting, Explorer, Phase
from alohas2r.deployment.online.inserter import Inserter
from alohas2r.deployment.online.opened import shipped_base
from alohas2r.embodiment.control import ACTION_SCALE, next_target
from alohas2r.embodiment.joints import IS_GRIPPER, PER_ARM, SIDES, two_fingers
from alohas2r.embodiment.observation import proprioception
from alohas2r.embodiment.poses import SLEEP_POSE
from alohas2r.policies.online import networks
from alohas2r.policies.online.eyes import read_eyes
from alohas2r.policies.online.published import Published
from alohas2r.policies.online.spec import LearntSpec
from alohas2r.policies.onnx.base import insert_spec, read_base
from alohas2r.safety.config import FULL, SLOW, SafetyConfig
from alohas2r.safety.guard import Guard
from alohas2r.sim import scene

INSERT = scene.load("insert")
ORDER = np.concatenate([arm.ctrl for arm in INSERT.arms])
HOME, LOW, HIGH = INSERT.home_ctrl[ORDER], INSERT.ctrl_low[ORDER], INSERT.ctrl_high[ORDER]
PICTURES = 32  # different ones
EPISODE = 50  # policies until the arms are back at home
STEADY = 0.9


class _Walk:
    """Commands of policies that are drawn anew for each decision, from home on.

    Args:
      acting: what acts. learned: takes the weights. spec: theirs.
      scale: of actions. config: of the guard.
    """

    def __init__(
        self,
        acting: Acting,
        learned: Learned,
        spec: LearntSpec,
        scale: float,
        config: SafetyConfig,
    ) -> None:
        self._acting, self._learned, self._hold, self._scale = acting, learned, spec.hold, scale
        self._shapes = networks.shapes(spec)
        self._draw = np.random.default_rng(0)
        self._pictures = [self._picture() for _ in range(PICTURES)]
        self.guard = Guard(config)
        self.decisions = 0

    def commands(self, policies: int) -> tuple[np.ndarray, float]:
        """Returns the commands [T, 14] of so many policies, and how far the closest came to a collision (m)."""
        self.guard.start(HOME)
        commands, nearest, measured = [HOME], math.inf, HOME
        for number in range(policies):
            self._learned.use(Published(number, self._weights()))
            for _ in range(self._hold):
                if self._acting.phase is Phase.IDLE:
                    self._acting.begin((number,), True, False)
                joints = proprioception(
                    two_fingers(measured), commands[-1].reshape(len(SIDES), PER_ARM)
                )
                seen = {
                    "proprioception": joints.astype(np.float32),
                    "switched": np.array(True),
                    **self._pictures[self._draw.integers(PICTURES)],
                }
                actions = self._acting.act(seen)
                assert np.isfinite(actions).all()
                assert np.abs(actions).max() <= 1
                self.decisions += "wanted" in self._acting.notes().arrays
                wanted = next_target(commands[-1], actions, LOW, HIGH, self._scale)
                command = self.guard.limit(wanted, measured).command
                measured = measured + 0.5 * (command - measured)
                commands.append(command)
                nearest = min(nearest, self.guard.slack)
        return np.array(commands), nearest

    def _weights(self) -> dict[str, np.ndarray]:
        """Draws a policy, from one that hardly does anything to one whose numbers are absurd."""
        size = 10 ** self._draw.uniform(-3, 3)
        weights = {
            name: (size * self._draw.normal(size=shape)).astype(np.float32)
            for name, shape in self._shapes.items()
        }
        weights["std"] = np.maximum(np.abs(weights["std"]), np.float32(1e-3))
        return weights

    def _picture(self) -> dict[str, np.ndarray]:
        """Draws what both cameras show."""
        seen = online_cases.observed(HOME, self._draw)
        named = {name.removeprefix("observation/"): value for name, value in seen.items()}
        return {name: named[name] for name in named if name != "proprioception"}


def picking(leash_rad: float, config: SafetyConfig) -> _Walk:
    spec = online_cases.spec("pick")
    eyes, *_ = read_eyes(assets.data_path("params") / "student", spec.side)
    learned = Looking(spec, eyes, STEADY)
    acting = Explorer(spec, learned, lambda felt: None, leash_rad=leash_rad)
    return _Walk(acting, learned, spec, ACTION_SCALE, config)


def inserting(leash_rad: float, config: SafetyConfig) -> _Walk:
    base = read_base(shipped_base())
    spec = insert_spec(base, hidden=(16, 16))
    learned = Learned(spec, STEADY)
    acting = Inserter(spec, learned, base, lambda: False, leash_rad=leash_rad)
    return _Walk(acting, learned, spec, spec.student.action.scale, config)


@pytest.mark.parametrize("walk_of", [picking, inserting])
@pytest.mark.parametrize(("leash_rad", "config"), [(math.inf, FULL), (LEASH_RAD, SLOW)])
@pytest.mark.parametrize("policies", [200, pytest.param(25_000, marks=pytest.mark.long)])
def test_no_command_of_a_policy_that_explores_is_beyond_limits(
    walk_of: Callable[[float, SafetyConfig], _Walk],
    leash_rad: float,
    config: SafetyConfig,
    policies: int,
) -> None:
    walk = walk_of(leash_rad, config)
    margin = np.where(IS_GRIPPER, 0.0, config.position_margin)
    for _ in range(policies // EPISODE):
        commands, nearest = walk.commands(EPISODE)
        assert (commands >= np.minimum(LOW + margin, SLEEP_POSE) - 1e-9).all()
        assert (commands <= np.maximum(HIGH - margin, SLEEP_POSE) + 1e-9).all()
        moves = np.diff(commands, axis=0, prepend=[HOME])  # at rest before
        assert np.abs(moves).max() <= config.max_speed * config.period_s + 1e-9
        changes = np.diff(moves, axis=0)
        assert np.abs(changes).max() <= config.max_acceleration * config.period_s**2 + 1e-9
        assert nearest >= -1e-9
        assert np.abs(moves).max() > 1e-3  # something moves
    assert walk.decisions >= 0.9 * policies
    assert walk.guard.counts  # it was needed
