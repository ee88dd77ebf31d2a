"""Measures exported policies: the ONNX file acts, everything else is as for the artifact it was made from.

Measuring and control stay jitted; between them the file's network runs once per step, for all episodes together.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.core import progress
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.embodiment.joints import SIDES
from alohas2r.envs import vision as env_vision
from alohas2r.envs.env import Env
from alohas2r.envs.vision import EVALUATION, Seen, Senses, SensesConfig
from alohas2r.policies import staged
from alohas2r.policies.networks import mlp
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.onnx.exported import ExportedPolicy
from alohas2r.policies.spec import StudentSpec
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.state import StatePolicy
from alohas2r.policies.vision import StudentPolicy
from alohas2r.rendering import registry as renderers
from alohas2r.tasks.insert import hold_out
from alohas2r.tasks.insert import scoring as insert_scoring
from alohas2r.tasks.insert.hold_out import HoldOutConfig, HoldOutTask
from alohas2r.tasks.insert.scoring import insert_env, insert_episodes
from alohas2r.tasks.pick import scoring as pick_scoring
from alohas2r.tasks.pick.scoring import pick_env, pick_episodes
from alohas2r.tasks.protocol import Protocol
from alohas2r.tasks.single_arm import TABLE_HEIGHT


def run_pick(
    policy: StatePolicy,
    protocol: Protocol,
    keys: jax.Array,
    threads: int = 0,
    meter: progress.Meter | None = None,
    done_before: int = 0,
    engine: str = "cpu",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs one episode per key.

    Returns:
      Per-episode results, each [N], and the states qpos [T, N, nq] (float32) for videos.
    """
    env, block = pick_env(protocol, policy.spec.history, keys, threads, engine)

    @jax.jit
    def act(state: Any, readout: Any) -> tuple[Any, jax.Array]:
        state, features, _ = env.observe(state, readout)
        return env.control(state, readout, policy.apply(features, jnp))

    return pick_episodes(
        env,
        block,
        lambda state, readout, _: act(state, readout),
        protocol,
        keys,
        meter,
        done_before,
    )


def run_insert(
    policy: StagedPolicy,
    protocol: Protocol,
    keys: jax.Array,
    threads: int = 0,
    meter: progress.Meter | None = None,
    done_before: int = 0,
    engine: str = "cpu",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs one whole episode per key with the staged teacher.

    Returns:
      Per-episode results, each [N], and the states qpos [T, N, nq] (float32) for videos.
    """
    env, half = insert_env(protocol, policy.spec.history, keys, threads, engine)

    @jax.jit
    def act(state: Any, readout: Any) -> tuple[Any, jax.Array]:
        state, features, _ = env.observe(state, readout)
        return env.control(state, readout, policy.apply(features, state.task.switched, jnp))

    return insert_episodes(
        env, half, lambda state, readout, _: act(state, readout), protocol, keys, meter, done_before
    )


def run(
    policy: staged.AnyPolicy | StudentPolicy | ExportedPolicy,
    protocol: Protocol,
    keys: jax.Array,
    threads: int = 0,
    meter: progress.Meter | None = None,
    done_before: int = 0,
    renderer: str = "auto",
    engine: str = "cpu",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs one episode per key with any policy; see run_pick, run_insert, student_eval.run_student, onnx_eval.run.

    Students and exported files run on the engine "cpu" only.
    """
    if isinstance(policy, StudentPolicy):
        return run_student(policy, protocol, keys, threads, meter, done_before, renderer=renderer)
    if isinstance(policy, StagedPolicy):
        return run_insert(policy, protocol, keys, threads, meter, done_before, engine)
    if isinstance(policy, StatePolicy):
        return run_pick(policy, protocol, keys, threads, meter, done_before, engine)

    return run_exported(policy, protocol, keys, threads, meter, done_before, renderer=renderer)


SOCKET_HALF = 0.022  # m; half the socket's height. Source: recipe, section 1.
_SENSES = 0x5E5E  # stream of the student's random numbers


class StudentRunner:
    """Runs the same episodes with one student after the other; what is compiled serves them all.

    Starts, physics and action delays of an episode are those that a teacher gets for the same key.

    Args:
      spec: of the students.
      protocol: distributions, delays and thresholds.
      keys: [N, 2] of the episodes.
      threads: of physics and ray caster; 0 for all cores.
      renderer: see senses.RENDERERS.
      missing: whether one object is held out in every episode.
      conditions: noise and randomization of what the student observes.
    """

    def __init__(
        self,
        spec: StudentSpec,
        protocol: Protocol,
        keys: jax.Array,
        threads: int = 0,
        renderer: str = "auto",
        missing: bool = False,
        conditions: SensesConfig = EVALUATION,
    ):
        self.spec, self.protocol, self.keys, self.missing = spec, protocol, keys, missing
        sees = spec.has_rgb or spec.has_depth
        memory = HistoryConfig(()) if sees else spec.history
        self.env, self.half = insert_scoring.insert_env(protocol, memory, keys, threads)
        if missing:
            env = self.env
            task = HoldOutTask(env.task.scene, env.task.config, HoldOutConfig(one=True))
            self.env = Env(task, env.engine, env.config, np.asarray(env.context))
        self.senses: Senses | None = None
        if sees:
            drawer = renderers.make_renderer(renderer, spec.cameras.size, threads)
            self.senses = Senses(spec, conditions, self.half, drawer)
        self._base_height = np.array([arm.base_pos[2] for arm in self.env.task.scene.arms])
        # Lifted as in `InsertMeasures`: 5 cm above lying on the table.
        socket = np.full(len(keys), SOCKET_HALF)
        self._raised = np.stack([socket, self.half], 1) + TABLE_HEIGHT + 0.05
        self._step = jax.jit(self._step_all)

    def _step_all(self, weights: Any, state: Any, readout: Any, sense: Any, drawn: Any) -> Any:
        """Observes and acts; returns new states, the observation, targets, and what hold-out counts."""
        spec = self.spec
        switched = state.task.switched
        signals = self.env.extract(readout)
        state, known, _ = self.env.observe(state, readout)
        if self.senses is None:
            size = self.env.task.observation_size
            seen = Seen(None, None, known[:, :size], known)
        else:
            frames, brightness = drawn
            sense, seen = self.senses.perceive(sense, frames, brightness, signals)
        tree = vision_network.tree_of(weights)
        rgb = None if seen.rgb is None else vision_network.encode(spec, tree["encoder"], seen.rgb)
        features = mlp.normalize(seen.features, weights["mean"], weights["std"])
        logits, _ = vision_network.head(spec, tree["head"], rgb, seen.depth, features, switched)
        state, ctrl = self.env.control(state, readout, jnp.tanh(logits))
        closed = hold_out.closed_on_air(signals, spec.switch.empty_travel)
        high = signals.object_pos[..., 2] + self._base_height > self._raised
        return state, sense, seen, ctrl, closed, high

    def run(
        self,
        weights: Mapping[str, np.ndarray],
        meter: progress.Meter | None = None,
        done_before: int = 0,
        recorded: list[Seen] | None = None,
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Runs all episodes from their start with a student of these weights; see `run_student`."""
        known = {name: jnp.asarray(value) for name, value in weights.items()}
        count = len(self.keys)
        sense = None
        if self.senses is not None:
            fold = jax.vmap(lambda key: jax.random.fold_in(key, _SENSES))
            sense = self.senses.reset(fold(self.keys))
        closed_on_air, lifted = np.zeros((count, 2), bool), np.zeros((count, 2), bool)
        held_out = np.zeros((count, 2), bool)

        def act(state: Any, readout: Any, alive: np.ndarray) -> tuple[Any, jax.Array]:
            nonlocal sense, held_out
            drawn = None
            if self.senses is not None and sense is not None:
                drawn = self.senses.draw(sense, readout.qpos)
            state, sense, seen, ctrl, closed, high = self._step(known, state, readout, sense, drawn)
            if recorded is not None:
                recorded.append(jax.tree.map(np.asarray, seen))
            if self.missing:
                if not held_out.any():
                    held_out = np.asarray(state.task.held_out)
                closed_on_air[alive] |= np.asarray(closed)[alive]
                lifted[alive] |= np.asarray(high)[alive]
            return state, ctrl

        table, qpos = insert_scoring.insert_episodes(
            self.env, self.half, act, self.protocol, self.keys, meter, done_before
        )
        if self.missing:
            table["missing_left"] = held_out[:, 0]
            table["closed_on_air"] = np.asarray((closed_on_air & held_out).any(1))
            table["other_lifted"] = np.asarray((lifted & ~held_out).any(1))
        return table, qpos


def run_student(
    found: StudentPolicy,
    protocol: Protocol,
    keys: jax.Array,
    threads: int = 0,
    meter: progress.Meter | None = None,
    done_before: int = 0,
    *,
    renderer: str = "auto",
    missing: bool = False,
    conditions: SensesConfig = EVALUATION,
    recorded: list[Seen] | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs one whole episode per key with a student.

    Args:
      found: the student.
      protocol, keys, threads, renderer, conditions: see `StudentRunner`.
      meter: receives counts of episodes, on top of `done_before`.
      missing: whether one object is held out in every episode; adds the columns "missing_left" (else the right
        one is), "closed_on_air" (the gripper on that side closed on nothing) and "other_lifted".
      recorded: receives what the students observe in each step, for videos.

    Returns:
      As `evaluate.run_insert`.
    """
    runner = StudentRunner(found.spec, protocol, keys, threads, renderer, missing, conditions)
    return runner.run(found.weights, meter, done_before, recorded)


def run_exported(
    policy: ExportedPolicy,
    protocol: Protocol,
    keys: jax.Array,
    threads: int = 0,
    meter: progress.Meter | None = None,
    done_before: int = 0,
    *,
    renderer: str = "auto",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs one whole episode per key.

    Args:
      policy: what acts.
      protocol: distributions, noise, delays and thresholds.
      keys: [N, 2] of the episodes.
      threads: of physics and ray caster; 0 for all cores.
      meter: receives counts of episodes, on top of `done_before`.
      renderer: of a student's pictures; see senses.RENDERERS.

    Returns:
      As `evaluate.run_pick`, `evaluate.run_insert` or `student_eval.run_student`.
    """
    spec = policy.spec
    if isinstance(spec, StudentSpec):
        return _run_exported_student(
            policy, spec, protocol, keys, threads, meter, done_before, renderer
        )
    make = pick_scoring.pick_env if policy.kind == "state" else insert_scoring.insert_env
    env, varied = make(protocol, spec.history, keys, threads)
    observe, control = jax.jit(env.observe), jax.jit(env.control)

    def act(state: Any, readout: Any, alive: np.ndarray) -> tuple[Any, jax.Array]:
        del alive
        switched = np.asarray(state.task.switched) if policy.kind == "staged" else None
        state, features, _ = observe(state, readout)
        inputs = {"features": np.asarray(features)}
        inputs |= {} if switched is None else {"switched": switched}
        return control(state, readout, _actions(policy, inputs))

    episodes = (
        pick_scoring.pick_episodes if policy.kind == "state" else insert_scoring.insert_episodes
    )
    return episodes(env, varied, act, protocol, keys, meter, done_before)


def _run_exported_student(
    policy: ExportedPolicy,
    spec: StudentSpec,
    protocol: Protocol,
    keys: jax.Array,
    threads: int,
    meter: progress.Meter | None,
    done_before: int,
    renderer: str,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs a student with the random numbers that `student_eval.run_student` gives the artifact."""
    sees = spec.has_rgb or spec.has_depth
    memory = HistoryConfig(()) if sees else spec.history
    env, half = insert_scoring.insert_env(protocol, memory, keys, threads)
    eyes, sense = None, None
    if sees:
        drawer = renderers.make_renderer(renderer, spec.cameras.size, threads)
        eyes = Senses(spec, env_vision.EVALUATION, half, drawer)
        stream = functools.partial(jax.random.fold_in, data=_SENSES)
        sense = eyes.reset(jax.vmap(stream)(keys))
    perceive = jax.jit(lambda *given: _perceive(env, eyes, *given))
    control = jax.jit(env.control)

    def act(state: Any, readout: Any, alive: np.ndarray) -> tuple[Any, jax.Array]:
        nonlocal sense
        del alive
        drawn = None if eyes is None or sense is None else eyes.draw(sense, readout.qpos)
        state, sense, seen = perceive(state, readout, sense, drawn)
        seen = jax.tree.map(np.asarray, seen)
        inputs = {"features": seen.features, "switched": np.asarray(state.task.switched)}
        for kind, pictures in (("rgb", seen.rgb), ("depth", seen.depth)):
            if pictures is not None:
                inputs |= {f"{side}_{kind}": pictures[:, i] for i, side in enumerate(SIDES)}
        return control(state, readout, _actions(policy, inputs))

    return insert_scoring.insert_episodes(env, half, act, protocol, keys, meter, done_before)


def _perceive(
    env: Env, eyes: Senses | None, state: Any, readout: Any, sense: Any, drawn: Any
) -> tuple[Any, Any, Seen]:
    """Measures what a student observes (traceable): new states of environment and senses, and what is seen."""
    state, known, _ = env.observe(state, readout)
    if eyes is None:  # the teacher's own observation
        return state, sense, Seen(None, None, known[:, : env.task.observation_size], known)
    frames, brightness = drawn
    sense, seen = eyes.perceive(sense, frames, brightness, env.extract(readout))
    return state, sense, seen


def _actions(policy: ExportedPolicy, inputs: dict[str, np.ndarray]) -> jax.Array:
    """Runs the network for all episodes at once -> [N, n]."""
    names = [one.name for one in policy.file.interface.network_inputs]
    return jnp.asarray(policy.file.network({name: inputs[name] for name in names}))
