"""Engine, task, control and noise joined into a batch of environments with automatic reset.

A control step has three parts: `observe` and `control` (JAX), the engine's physics, and `score` (JAX). On a CPU
engine a Python loop joins them; learners jit the two JAX parts together with their own networks. Where the engine is
traceable, learners put all three into one compiled loop over steps.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.core.types import PyTree
from alohas2r.embodiment import control as embodiment_control
from alohas2r.embodiment import history
from alohas2r.embodiment.history import HistoryState
from alohas2r.embodiment.joints import PER_ARM
from alohas2r.envs import actuation, noise
from alohas2r.envs.actuation import ControlState
from alohas2r.envs.noise import DelayState
from alohas2r.envs.task import (
    TARGETS_LEFT,
    EnvConfig,
    EnvState,
    Guided,
    Now,
    Scored,
    Start,
    Task,
)
from alohas2r.errors import ModelError
from alohas2r.sim import physics_randomization, signals
from alohas2r.sim.engines.base import Engine
from alohas2r.sim.signals import Readout
from alohas2r.sim.variation import Held, read, undo


class Env:
    """N environments of a task.

    Args:
      task: what is to be done, such as `tasks.pick.task.PickTask`.
      engine: an engine with N simulations.
      config: control, noise, history, variation.
      context: [N, C] per-environment constants that belong to the engine's model fields.
      held: likewise, where robots vary.
    """

    def __init__(
        self,
        task: Task,
        engine: Engine,
        config: EnvConfig,
        context: np.ndarray,
        held: Held | None = None,
    ):
        if context.shape != (engine.num_envs, task.context_size):
            raise ModelError(
                f"context must be [{engine.num_envs}, {task.context_size}], not {context.shape}."
            )
        self.task = task
        self.engine = engine
        self.config = config
        self.num_envs = engine.num_envs
        self.context = jnp.asarray(context, jnp.float32)
        self.held = None if held is None else Held(*(jnp.asarray(value) for value in held))
        variation = config.variation
        self._longest_action = variation.steps("action_delay_s")[1]
        self._longest_view = variation.steps("view_delay_s")[1]
        self._extract = signals.extractor(task.scene, task.extra_sensors)
        self.features = config.history.size(task.observation_size)
        self._low = jnp.asarray(task.scene.ctrl_low, jnp.float32)
        self._high = jnp.asarray(task.scene.ctrl_high, jnp.float32)
        arms = task.scene.arms
        self._joints = np.concatenate([arm.qpos[:PER_ARM] for arm in arms])  # in qpos, [A * 7]
        self._actuators = np.concatenate([arm.ctrl for arm in arms])  # in ctrl, [A * 7]
        self._second_fingers = np.array([arm.qpos[PER_ARM] for arm in arms])
        self._grippers = np.arange(len(arms)) * PER_ARM + PER_ARM - 1  # among the A * 7
        self._object_heights = np.unique([arm.object_qpos[2] for arm in arms])
        self._targets_seen = _target_places(task, len(arms))
        self._start = jax.jit(self._start_all)
        self.score_jit = jax.jit(self.score)
        self._advance = jax.jit(self.advance_traced)

    @property
    def privileged_size(self) -> int:
        """Numbers that the critic sees: what the task shows it, and what is held."""
        size = self.task.privileged_size
        return size if self.held is None else size + _knowledge(self.held).shape[-1]

    def extract(self, readout: Readout) -> signals.Signals:
        """Returns the signals [N, ...] of a readout (traceable).

        Where objects can be pushed about, they roll over. Their section is square, so a quarter turn changes nothing:
        of the four rotations that look alike, the one nearest to upright is seen and scored.
        """
        signal = self._extract(readout)
        return signals.upright(signal) if self.config.contacts else signal

    def _fresh(
        self, key: jax.Array, context: jax.Array, held: Held | None, stage: jax.Array
    ) -> tuple[EnvState, Start]:
        """Starts one environment; nothing of the last episode but the curriculum stage goes in."""
        key, start_key = jax.random.split(key)
        task, start = self.task.reset(start_key, context, stage)
        past = actuation.init(self.config.control, self.task.action_size)
        if held is not None:
            start, targets = self._calibrated(held, start)
            past = actuation.init_targets(self.config.control, self._longest_action, targets)
        delay = noise.init_delay(self.config.noise, self.task.observation_size, self._longest_view)
        memory = history.init(self.config.history, self.task.observation_size, jnp)
        if start.actions is not None:
            past = ControlState(start.actions)
        if start.delay is not None and start.delay_count is not None:
            delay = DelayState(start.delay, start.delay_count)
        if start.averages is not None:
            memory = HistoryState(start.averages, start.seen)
        return EnvState(key, task, past, delay, memory, context, held), start

    def _calibrated(self, held: Held, start: Start) -> tuple[Start, jax.Array]:
        """Returns a start of a robot that varies, and its targets [A * 7] in terms of readings.

        A start at rest is one of readings, with objects on the table; others are states as they were.
        """
        targets = start.ctrl[self._actuators]
        if start.qvel is not None:
            return start, targets
        joints = undo(held, start.qpos[self._joints])
        qpos = start.qpos.at[self._joints].set(joints)
        qpos = qpos.at[self._second_fingers].set(joints[self._grippers])
        qpos = qpos.at[self._object_heights].add(held.table)
        ctrl = start.ctrl.at[self._actuators].set(undo(held, targets))
        return start._replace(qpos=qpos, ctrl=ctrl), targets

    def _start_all(
        self, keys: jax.Array, context: jax.Array, held: Held | None
    ) -> tuple[EnvState, Start]:
        return jax.vmap(self._fresh)(keys, context, held, jnp.zeros(len(keys), jnp.int32))

    def share(self, other: Env) -> None:
        """Uses what another batch of environments, of the same task and configuration, has compiled."""
        self._start, self.score_jit = other._start, other.score_jit

    def reset(self, keys: jax.Array, stagger: bool = False) -> tuple[EnvState, PyTree, Readout]:
        """Starts all environments.

        Args:
          keys: [N] random keys, one per environment.
          stagger: whether the episodes' clocks start scattered over an episode, so that resets spread.

        Returns:
          Environment state, physics, readout.
        """
        state, start = self._start(keys, self.context, self.held)
        if stagger:
            key = jax.random.fold_in(keys[0], physics_randomization.STREAM)
            clocks = jax.random.randint(key, (self.num_envs,), 0, self.task.config.steps)
            step = state.task.step  # [N], or [N, A] where each arm has its own clock
            clocks = clocks.reshape(-1, *[1] * (step.ndim - 1))
            state = state._replace(
                task=state.task._replace(step=jnp.broadcast_to(clocks, step.shape))
            )
        mask = np.ones(self.num_envs, bool)
        qvel = None if start.qvel is None else np.asarray(start.qvel)
        physics, readout = self.engine.reset(
            None, mask, np.asarray(start.qpos), np.asarray(start.ctrl), qvel
        )
        return state, physics, readout

    def observe(self, state: EnvState, readout: Readout) -> tuple[EnvState, jax.Array, jax.Array]:
        """Measures the state with noise, delays and filters it (traceable; [N, ...] in and out).

        Returns:
          The new state, the policy's features [N, F] and the critic's view [N, P] (exact, undelayed).
        """
        return jax.vmap(self._observe_one)(state, self.extract(readout))

    def guided(self, state: EnvState, readout: Readout) -> jax.Array:
        """Returns what the task's guide would do [N, A * 7], from the exact state (traceable)."""
        task = self.task
        assert isinstance(task, Guided)
        scale = self.config.control.scale

        def one(now: Now, own: PyTree, context: jax.Array) -> jax.Array:
            return task.guide(now, own, context, scale)

        signal = self.felt(state, self.extract(readout))
        now = Now(jnp.asarray(readout.qpos), signal, self._under_way(state))
        return jax.vmap(one)(now, state.task, state.context)

    def _under_way(self, state: EnvState) -> jax.Array:
        """Returns by how much targets [N, A * 7] changed in those of the last steps whose effect may be to come."""
        past = state.control.actions  # [N, history, A * 7]
        if state.held is None:
            return self.config.control.scale * past[:, :-1].sum(1)
        return past[:, 0] - past[:, -1]

    def felt(self, state: EnvState, signal: signals.Signals) -> signals.Signals:
        """Returns signals [N, ...] with joints and targets in terms of readings, where robots vary (traceable)."""
        if state.held is None:
            return signal

        def one(held: Held, past: jax.Array, qpos: jax.Array) -> tuple[jax.Array, jax.Array]:
            return read_joints(held, qpos), past[0].reshape(-1, PER_ARM)

        qpos, targets = jax.vmap(one)(state.held, state.control.actions, signal.qpos)
        return signal._replace(qpos=qpos, ctrl=targets)

    def _observe_one(
        self, state: EnvState, signal: signals.Signals
    ) -> tuple[EnvState, jax.Array, jax.Array]:
        key, noise_key, delay_key = jax.random.split(state.key, 3)
        measured = noise.measure(self.config.noise, noise_key, signal)
        late: jax.Array | int = 0
        if state.held is not None:
            late = state.held.view_delay
            targets = state.control.actions[0].reshape(measured.ctrl.shape)
            if self._targets_seen is not None:  # they join below
                targets = jnp.zeros_like(targets)
            measured = measured._replace(qpos=read_joints(state.held, measured.qpos), ctrl=targets)
        observation = self.task.observation(measured, state.task)
        delay_state, arrived = noise.delay(
            self.config.noise, state.delay, delay_key, observation, late
        )
        if state.held is not None and self._targets_seen is not None:
            # What is seen is late; the targets are the policy's own. Their difference is all the motion to come.
            arrived = arrived.at[self._targets_seen].add(state.control.actions[0])
        memory, features = history.update(self.config.history, state.history, arrived, jnp)
        privileged = self.task.privileged(signal, state.task, state.context)
        if state.held is not None:
            privileged = jnp.concatenate([privileged, _knowledge(state.held)])
        return state._replace(key=key, delay=delay_state, history=memory), features, privileged

    def control(
        self, state: EnvState, readout: Readout, action: jax.Array
    ) -> tuple[EnvState, jax.Array]:
        """Turns actions [N, A * 7] into actuator targets [N, nu] with delays (traceable)."""

        def one(state: EnvState, ctrl: jax.Array, action: jax.Array) -> tuple[EnvState, jax.Array]:
            key, delay_key = jax.random.split(state.key)
            past, effective = actuation.delayed(
                self.config.control, state.control, delay_key, action
            )
            target = embodiment_control.next_target(
                ctrl, effective, self._low, self._high, self.config.control.scale
            )
            return state._replace(key=key, control=past), target

        def varied(
            state: EnvState, ctrl: jax.Array, action: jax.Array, qpos: jax.Array
        ) -> tuple[EnvState, jax.Array]:
            assert state.held is not None
            key, delay_key = jax.random.split(state.key)
            limits = self._low[self._actuators], self._high[self._actuators]
            past, target = actuation.commanded(
                self.config.control,
                state.control,
                delay_key,
                action,
                state.held,
                limits,
                qpos[self._joints],
            )
            return state._replace(key=key, control=past), ctrl.at[self._actuators].set(target)

        if self.held is not None:
            return jax.vmap(varied)(
                state, jnp.asarray(readout.ctrl), action, jnp.asarray(readout.qpos)
            )
        return jax.vmap(one)(state, readout.ctrl, action)

    def score(self, state: EnvState, readout: Readout) -> tuple[EnvState, Scored]:
        """Scores the new physics state and starts anew where an episode ended (traceable).

        Where `done`, the caller resets the physics to `reset_qpos`, `reset_ctrl`. A non-finite state ends the
        episode with reward 0.
        """
        flat = jnp.concatenate([readout.qpos, readout.qvel, readout.sensordata], -1)
        finite = jnp.isfinite(flat).all(-1)
        return jax.vmap(self._score_one)(state, self.extract(readout), finite)

    def _score_one(
        self, state: EnvState, signal: signals.Signals, finite: jax.Array
    ) -> tuple[EnvState, Scored]:
        task, reward, done, truncated, measures = self.task.step(signal, state.task, state.context)
        done = done | ~finite
        reward = jnp.where(finite, reward, 0.0)
        state = state._replace(task=task)
        fresh, start = self._fresh(state.key, state.context, state.held, task.stage)
        state = jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, state)
        scored = Scored(
            reward, done, finite, truncated & finite, measures, start.qpos, start.ctrl, start.qvel
        )
        return state, scored

    def advance(
        self, state: EnvState, physics: PyTree, ctrl: jax.Array
    ) -> tuple[EnvState, PyTree, Readout, Scored]:
        """Steps the physics, scores, and resets the environments that are done.

        Raises:
          ModelError: something did not fit into the engine's buffers.
        """
        if self.engine.traceable:
            after = self._advance(state, physics, ctrl)
            self.engine.check(after[1])
            return after
        physics, readout = self.engine.step(physics, np.asarray(ctrl))
        state, scored = self.score_jit(state, readout)
        done = np.asarray(scored.done)
        if done.any():
            qvel = None if scored.reset_qvel is None else np.asarray(scored.reset_qvel)
            physics, readout = self.engine.reset(
                physics, done, np.asarray(scored.reset_qpos), np.asarray(scored.reset_ctrl), qvel
            )
        return state, physics, readout, scored

    def advance_traced(
        self, state: EnvState, physics: PyTree, ctrl: jax.Array
    ) -> tuple[EnvState, PyTree, Readout, Scored]:
        """The same as `advance`, inside `jax.jit` on a traceable engine; the caller asks `engine.check` later."""
        physics, readout = self.engine.step(physics, ctrl)
        state, scored = self.score(state, readout)
        physics, readout = self.engine.reset(
            physics, scored.done, scored.reset_qpos, scored.reset_ctrl, scored.reset_qvel
        )
        return state, physics, readout, scored


def read_joints(held: Held, qpos: jax.Array) -> jax.Array:
    """Returns what is read [A, 8] where joints and fingers are at `qpos` [A, 8]."""
    arm = read(held, qpos[:, :PER_ARM].reshape(-1)).reshape(-1, PER_ARM)
    return jnp.concatenate([arm, arm[:, -1:]], -1)  # one servo moves both fingers


def _target_places(task: Task, arms: int) -> np.ndarray | None:
    """Returns where targets stand in a task's observation, less joint positions, [A * 7]; None if they do not."""
    places, start = [], 0
    for name, size, _ in task.observation_spec:
        if name.endswith(TARGETS_LEFT):
            places.append(np.arange(start, start + size))
        start += size
    return np.concatenate(places) if len(places) == arms else None


def _knowledge(held: Held) -> jax.Array:
    """Returns what a critic is told of one robot, about 1 in size (any leading axes)."""
    delays = jnp.stack([held.action_delay, held.view_delay], -1) / 3.0
    parts = [held.offset * 30, (held.scale - 1) * 20, held.backlash * 50, jnp.log(held.gain)]
    return jnp.concatenate([*parts, held.table[..., None] * 30, delays], -1)
