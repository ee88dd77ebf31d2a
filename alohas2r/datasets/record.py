"""Records demonstrations: runs a policy under a protocol and keeps what it measured, what it commanded, what it saw."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import jax
import numpy as np

from alohas2r.core.progress import Meter, Progress
from alohas2r.core.types import JsonObject, PyTree
from alohas2r.core.version import __version__
from alohas2r.datasets.episode import About, Episode, check_sizes, to_depth_units
from alohas2r.embodiment.aloha import CAMERAS, INSERT_TASK, to_units
from alohas2r.embodiment.control import next_target
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.embodiment.joints import PER_ARM, SIDES
from alohas2r.envs.vision import IDEAL, Seen, SensesState
from alohas2r.errors import ConfigError
from alohas2r.evaluation.actors import Eyes
from alohas2r.evaluation.episodes import Acted, Setting, draws_digest, episode_keys, pinned
from alohas2r.evaluation.evaluate import Evaluable, Runner, load_policy, student_conditions
from alohas2r.policies.spec import CameraSpec, StudentNetworkConfig, StudentSpec, make_spec
from alohas2r.policies.switch import Switch
from alohas2r.sim import scene
from alohas2r.tasks.protocol import TaskProtocol
from alohas2r.tasks.registry import find_task

MEMORY = 2e9  # bytes of pictures that are held at once: so many episodes are simulated together
_SCENE = "insert"  # of the two wrist cameras


class Recording(NamedTuple):
    """Demonstrations that are yet to be made."""

    about: About
    episodes: Iterator[Episode]


def record(
    policy_path: str | os.PathLike[str],
    episodes: int,
    seed: int = 0,
    *,
    size: int = 96,
    depth: bool = False,
    protocol: TaskProtocol | None = None,
    ideal: bool = False,
    only_successes: bool = False,
    threads: int = 0,
    renderer: str = "auto",
    progress: Progress | None = None,
) -> Recording:
    """Returns the demonstrations of a policy, made as they are asked for.

    Args:
      policy_path: a teacher, a student or an exported file, for two arms with wrist cameras.
      episodes: how many are run; episode i of a seed is that of `evaluate`.
      seed: of the episodes.
      size: side of the pictures (pixels).
      depth: whether depth is recorded beside colour.
      protocol: the conditions; those of the policy's task if None.
      ideal: whether pictures and joints are recorded without noise, delay and randomized looks; what the policy
        itself observes is that of the protocol all the same.
      only_successes: whether episodes that fail are left out.
      threads: of physics and ray caster; 0 for all cores.
      renderer: of the pictures.
      progress: receives counts of episodes.

    Raises:
      ArtifactError: the policy cannot be read. ConfigError: a number out of range, or a policy without wrist cameras.
    """
    check_sizes(episodes, size)
    policy = load_policy(policy_path)
    entry = find_task(policy.spec.phase)
    if entry.scene != _SCENE:
        raise ConfigError(
            f"{policy_path} is a policy for '{entry.name}', whose scene has no wrist cameras of both arms; record one"
            f" for '{_SCENE}'."
        )
    rules = entry.protocol if protocol is None else protocol
    source: JsonObject = {
        "policy": str(policy_path),
        "policy_hash": policy.hash,
        "protocol": rules.name,
        "protocol_hash": rules.hash,
        "draws": draws_digest(entry, seed),
        "seed": seed,
        "senses": "ideal" if ideal else "as in the protocol",
        "only_successes": only_successes,
        "alohas2r": __version__,
    }
    conditions = IDEAL if ideal else student_conditions(rules)

    def run() -> Iterator[Episode]:
        meter = Meter("record", episodes, progress, unit="episodes")
        count = at_once(episodes, entry.conditions(rules).task.steps, size, depth)
        runner: Runner | None = None
        look: Look | None = None
        for first in range(0, episodes, count):
            keys = episode_keys(seed, first, min(count, episodes - first))
            # What is compiled for the first group serves them all.
            runner = Runner(policy, rules, keys, threads, renderer, after=runner)
            spec = camera_spec(policy, size, depth)
            eyes = Eyes(spec, runner.setting, threads, renderer, conditions)
            look = look or look_with(eyes)
            kept = _Steps(runner.setting, eyes, look)
            kept.reset(keys)
            ran = runner.run(meter, first, watch=kept.take)
            for index in range(len(keys)):
                good = bool(ran.table["success"][index])
                if good or not only_successes:
                    yield kept.episode(index, int(ran.steps[index]), good, first + index)

    return Recording(About(INSERT_TASK, source), run())


def at_once(episodes: int, steps: int, size: int, depth: bool) -> int:
    """Returns how many episodes are simulated together: groups of about one size that MEMORY holds."""
    bytes_each = steps * len(CAMERAS) * size**2 * (5 if depth else 3)
    groups = math.ceil(episodes / max(1, int(MEMORY / bytes_each)))
    return math.ceil(episodes / groups)


def camera_spec(policy: Evaluable, size: int, depth: bool) -> StudentSpec:
    """Returns what describes joints and pictures of both wrist cameras, of any size."""
    return make_spec(
        scene.load(_SCENE),
        "rgbd" if depth else "rgb",
        StudentNetworkConfig(),
        CameraSpec(size=size),
        HistoryConfig(()),
        Switch(),
        policy.spec.action.scale,
    )


class _Seen(NamedTuple):
    """What N environments saw in a step."""

    rgb: np.ndarray  # [N, 2, H, W, 3] uint8
    depth: np.ndarray | None  # [N, 2, H, W] uint16
    vector: np.ndarray  # [N, 32]


# (step, state of the senses, what is drawn) -> the senses' new state, what is seen.
Look: TypeAlias = Callable[[Acted, SensesState, PyTree], tuple[SensesState, Seen]]


def look_with(eyes: Eyes) -> Look:
    """Returns how a step is seen, compiled: with any eyes of the same camera, conditions and task."""
    env, senses = eyes.env, eyes.senses
    assert senses is not None

    @jax.jit
    def look(acted: Acted, sense: SensesState, drawn: PyTree) -> tuple[SensesState, Seen]:
        signals = env.extract(acted.readout)
        felt = env.felt(acted.before, signals)
        frames, told = drawn
        return senses.perceive(sense, frames, told, felt, acted.before.held)

    return look


class _Steps:
    """What N episodes measured, commanded and saw, step by step.

    Args:
      setting: the episodes. eyes: what is recorded of them. look: how.
    """

    def __init__(self, setting: Setting, eyes: Eyes, look: Look):
        self._env = env = setting.env
        self._eyes, self._look = eyes, look
        self._sense: SensesState | None = None
        self._seen: list[_Seen] = []
        self._actions: list[np.ndarray] = []
        self._velocities: list[np.ndarray] = []
        loaded = env.engine.scene
        self._actuators = np.concatenate([arm.ctrl for arm in loaded.arms])
        self._joints = np.concatenate([arm.qvel[:PER_ARM] for arm in loaded.arms])
        self._limits = loaded.ctrl_low[self._actuators], loaded.ctrl_high[self._actuators]

    @pinned()
    def reset(self, keys: jax.Array) -> None:
        """Draws looks and sensors of the episodes of these keys [N, 2]."""
        self._sense = self._eyes.reset(keys)

    def take(self, acted: Acted) -> None:
        """Keeps a step."""
        drawn = self._eyes.draw(self._sense, acted.readout)
        assert self._sense is not None
        self._sense, seen = self._look(acted, self._sense, drawn)
        depth = None if seen.depth is None else to_depth_units(np.asarray(seen.depth))
        self._seen.append(_Seen(np.asarray(seen.rgb), depth, np.asarray(seen.vector)))
        self._actions.append(self._commanded(acted))
        self._velocities.append(np.asarray(acted.readout.qvel)[:, self._joints])

    def _commanded(self, acted: Acted) -> np.ndarray:
        """Returns the targets [N, 14] that the policy asks for in this step, whenever they arrive."""
        newest = np.asarray(acted.after.control.actions)[:, 0]
        if self._env.held is not None:  # targets, as the policy's side counts them
            return newest
        present = np.asarray(acted.readout.ctrl)[:, self._actuators]
        return next_target(present, newest, *self._limits, self._env.config.control.scale)

    def episode(self, index: int, steps: int, success: bool, number: int) -> Episode:
        """Returns one of the episodes, of so many steps."""
        seen = self._seen[:steps]
        positions = np.stack([one.vector[index, :16] for one in seen]).reshape(steps, 2, -1)
        images: dict[str, np.ndarray] = {}
        depth: dict[str, np.ndarray] = {}
        for side, camera in enumerate(CAMERAS):
            images[camera] = np.stack([one.rgb[index, side] for one in seen])
            shown = [one.depth[index, side] for one in seen if one.depth is not None]
            if shown:
                depth[camera] = np.stack(shown)
        velocity = np.stack([one[index] for one in self._velocities[:steps]])
        return Episode(
            state=to_units(positions[..., :PER_ARM].reshape(steps, -1)),
            velocity=to_rates(velocity),
            action=to_units(np.stack([one[index] for one in self._actions[:steps]])),
            images=images,
            depth=depth,
            success=success,
            number=number,
        )


def to_rates(velocity: np.ndarray) -> np.ndarray:
    """Turns velocities [..., 14] (rad/s; m/s) into ALOHA's units per second."""
    return to_units(velocity) - to_units(np.zeros(len(SIDES) * PER_ARM))
