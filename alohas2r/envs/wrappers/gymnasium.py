"""Environments behind Gymnasium's interfaces: many at once (`VectorEnv`), or one.

Actions are [-1, 1] per joint and gripper, as everywhere in this package. An observation is the noisy, delayed
measurement that a teacher gets ("state"), or a student's pictures and joints ("rgbd", "depth", "rgb").
Source of the interface: Gymnasium's documentation, https://gymnasium.farama.org.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import SupportsFloat

import gymnasium
import jax
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from alohas2r.core.types import PyTree
from alohas2r.embodiment.joints import SIDES
from alohas2r.envs.env import Env
from alohas2r.envs.student_step import draw, observe
from alohas2r.envs.task import EnvState
from alohas2r.envs.vision import Seen, Senses, SensesState
from alohas2r.errors import ConfigError
from alohas2r.rendering.offscreen import Offscreen, free_camera
from alohas2r.rendering.video import update_kinematics
from alohas2r.sim import scene
from alohas2r.sim.signals import Readout

Observation = np.ndarray | dict[str, np.ndarray]
Info = dict[str, object]
# Point looked at (m), distance (m), azimuth and elevation (degrees).
View = tuple[tuple[float, float, float], float, float, float]

FINAL_ROWS = 32  # final observations that are measured together, so that nothing is compiled again
_SENSES_STREAM = 1  # of an episode's random numbers


class VectorTaskEnv(VectorEnv[Observation, np.ndarray, np.ndarray]):
    """N environments of a task, simulated together; one that ends begins anew in the same step.

    Where an environment ended, `infos["final_obs"][i]` is what was observed last, and the returned observation is
    that of the new start (autoreset mode SAME_STEP). `infos` holds the task's measures of the step too, each [N].
    """

    def __init__(
        self,
        env: Env,
        view: View,
        senses: Senses | None = None,
        render_mode: str | None = None,
        size: tuple[int, int] = (480, 640),
    ):
        """Wraps environments.

        Args:
          env: the environments.
          view: of pictures of the scene, for `render`.
          senses: cameras and joints of a student; None for a teacher's observation.
          render_mode: "rgb_array" for pictures of all scenes, or None.
          size: height and width of such a picture.

        Raises:
          ConfigError: unknown render mode.
        """
        modes = ("rgb_array",)
        if render_mode is not None and render_mode not in modes:
            raise ConfigError(f"render_mode must be None or 'rgb_array', not '{render_mode}'.")
        self.metadata = {
            "render_modes": list(modes),
            "render_fps": 20,
            "autoreset_mode": AutoresetMode.SAME_STEP,
        }
        self.env, self.senses, self.render_mode = env, senses, render_mode
        self.num_envs = env.num_envs
        self.single_action_space = spaces.Box(-1.0, 1.0, (env.task.action_size,), np.float32)
        self.single_observation_space = _observation_space(env, senses)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._view, self._size = view, size
        self._offscreen: Offscreen | None = None
        self._key = jax.random.PRNGKey(0)
        self._state: EnvState | None = None
        self._physics: PyTree = None
        self._readout: Readout | None = None
        self._sense: SensesState | None = None
        self._elapsed = np.zeros(self.num_envs, int)  # [N] steps of the episode
        self._observe = jax.jit(self._observe_all)
        self._control = jax.jit(env.control)
        self._split = jax.jit(lambda key: jax.random.split(key, self.num_envs))

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: Mapping[str, object] | None = None,
    ) -> tuple[Observation, Info]:
        """Starts all environments anew.

        Args:
          seed: of the starts and all noise from here on; None goes on with the random numbers of before.
          options: none are known.

        Returns:
          The observations and no information.

        Raises:
          ConfigError: a list of seeds (environments share one), or unknown options.
        """
        if options:
            raise ConfigError(f"reset takes no options, not {', '.join(options)}.")
        if isinstance(seed, list):
            raise ConfigError("reset takes one seed for all environments, not a list.")
        super().reset(seed=seed)
        self._key = jax.random.PRNGKey(int(self.np_random.integers(2**31)))
        keys = self._split(self._key)
        self._elapsed[:] = 0
        self._state, self._physics, self._readout = self.env.reset(keys)
        if self.senses is not None:
            fold = jax.vmap(lambda key: jax.random.fold_in(key, _SENSES_STREAM))
            self._sense = self.senses.reset(fold(keys))
        return self._measure(), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, Info]:
        """Takes a control step of 50 ms in all environments.

        Args:
          actions: [N, A] in [-1, 1]; what is beyond is clipped.

        Returns:
          Observations, rewards [N], terminated [N], truncated [N] (the time was over), information.
        """
        state, readout = self._begun()
        acted = np.clip(np.asarray(actions, np.float32), -1.0, 1.0)
        state, ctrl = self._control(state, readout, acted)
        engine = self.env.engine
        physics, readout = engine.step(self._physics, np.asarray(ctrl))
        after, scored = self.env.score_jit(state, readout)
        done = np.asarray(scored.done)
        self._elapsed += 1
        # Learners of this package may treat the end of time as a goal missed; here it is what it is.
        truncated = done & np.asarray(scored.finite) & (self._elapsed >= self.env.task.config.steps)
        self._elapsed[done] = 0
        info: Info = _measures(scored.measures, self.num_envs)
        if done.any():
            final = self._final(np.flatnonzero(done), state, readout)
            last = dict(info)
            info |= {
                "final_obs": final,
                "_final_obs": done,
                "final_info": last,
                "_final_info": done,
            }
            qvel = None if scored.reset_qvel is None else np.asarray(scored.reset_qvel)
            physics, readout = engine.reset(
                physics, done, np.asarray(scored.reset_qpos), np.asarray(scored.reset_ctrl), qvel
            )
            if self.senses is not None and self._sense is not None:
                self._sense = self.senses.restart_some(self._sense, scored.done)
        self._state, self._physics, self._readout = after, physics, readout
        reward = np.asarray(scored.reward, np.float64)
        return self._measure(), reward, done & ~truncated, truncated, info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Returns a picture [H, W, 3] uint8 of each scene, or None without a render mode."""
        if self.render_mode is None:
            return None
        _, readout = self._begun()
        whole = scene.load(self.env.task.scene.name)
        if self._offscreen is None:
            self._offscreen = Offscreen(whole.model, *self._size, shadows=False)
        data, camera = mujoco.MjData(whole.model), free_camera(*self._view)
        pictures = []
        for qpos in np.asarray(readout.qpos):
            data.qpos[:] = qpos
            update_kinematics(whole.model, data)
            pictures.append(self._offscreen.picture(data, camera))
        return tuple(pictures)

    def close_extras(self, **kwargs: object) -> None:
        """Gives back what pictures took."""
        if self._offscreen is not None:
            self._offscreen.close()
            self._offscreen = None

    def _begun(self) -> tuple[EnvState, Readout]:
        if self._state is None or self._readout is None:
            raise gymnasium.error.ResetNeeded("Call reset before step or render.")
        return self._state, self._readout

    def _observe_all(
        self, state: EnvState, readout: Readout, sense: SensesState | None, drawn: PyTree
    ) -> tuple[EnvState, SensesState | None, Seen]:
        observed = observe(self.env, self.senses, state, readout, sense, drawn)
        return observed.state, observed.sense, observed.seen

    def _measure(self) -> Observation:
        """Observes all environments; their noise and delays go on from here."""
        state, readout = self._begun()
        drawn = draw(self.senses, self._sense, readout)
        self._state, self._sense, seen = self._observe(state, readout, self._sense, drawn)
        return _observation(seen, self.senses)

    def _final(self, ended: np.ndarray, state: EnvState, readout: Readout) -> np.ndarray:
        """Returns what environments observe at their end, [N] objects; None where they go on."""
        final = np.full(self.num_envs, None, object)
        if self.senses is not None:  # pictures of all are drawn together
            drawn = draw(self.senses, self._sense, readout)
            _, _, seen = self._observe(state, readout, self._sense, drawn)
            pictures = _observation(seen, self.senses)
            for index in ended:
                final[index] = row(pictures, index)
            return final
        for first in range(0, len(ended), FINAL_ROWS):
            some = ended[first : first + FINAL_ROWS]
            padded = np.resize(some, FINAL_ROWS)
            part = jax.tree.map(lambda leaf, at=padded: leaf[at], (state, readout))
            _, _, seen = self._observe(*part, None, None)
            rows = np.asarray(seen.vector)
            for position, index in enumerate(some):
                final[index] = rows[position]
        return final


class TaskEnv(gymnasium.Env[Observation, np.ndarray]):
    """One environment of a task, as `gymnasium.make` gives it; it does not begin anew by itself."""

    def __init__(self, vector: VectorTaskEnv):
        """Wraps environments of which there is one."""
        self.vector = vector
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
        self.render_mode = vector.render_mode
        self.observation_space = vector.single_observation_space
        self.action_space = vector.single_action_space
        self._ended = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[Observation, Info]:
        """Starts an episode; see `VectorTaskEnv.reset`."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**31))
        rows, info = self.vector.reset(seed=drawn, options=options)
        self._ended = False
        return row(rows, 0), info

    def step(self, action: np.ndarray) -> tuple[Observation, SupportsFloat, bool, bool, Info]:
        """Takes a control step; see `VectorTaskEnv.step`."""
        if self._ended:
            raise gymnasium.error.ResetNeeded("The episode has ended: call reset.")
        rows, reward, terminated, truncated, info = self.vector.step(np.asarray(action)[None])
        final = info.get("final_obs")
        observation = row(rows, 0) if final is None else final[0]  # pyright: ignore[reportIndexIssue]
        self._ended = bool(terminated[0] or truncated[0])
        measures = {
            name: value[0]
            for name, value in info.items()
            if isinstance(value, np.ndarray) and not name.startswith(("_", "final"))
        }
        return observation, float(reward[0]), bool(terminated[0]), bool(truncated[0]), measures

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns a picture [H, W, 3] uint8 of the scene, or None without a render mode."""
        pictures = self.vector.render()
        return None if pictures is None else pictures[0]

    def close(self) -> None:
        """Gives back what pictures took."""
        self.vector.close()


def _observation_space(env: Env, senses: Senses | None) -> spaces.Space:
    """Returns the space of one environment's observation."""

    def numbers(*shape: int) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, shape, np.float32)

    if senses is None:
        return numbers(env.task.observation_size)
    spec = senses.spec
    side, cameras = spec.cameras.size, len(SIDES)
    parts: dict[str, spaces.Space] = {"proprioception": numbers(spec.vector_size)}
    if spec.has_rgb:
        parts["rgb"] = spaces.Box(0, 255, (cameras, side, side, 3), np.uint8)
    if spec.has_depth:
        parts["depth"] = spaces.Box(0.0, np.inf, (cameras, side, side), np.float32)
    return spaces.Dict(parts)


def _observation(seen: Seen, senses: Senses | None) -> Observation:
    """Returns [N, ...] as the observation space has it."""
    vector = np.asarray(seen.vector, np.float32)
    if senses is None:
        return vector
    rows = {"proprioception": vector}
    if seen.rgb is not None:
        rows["rgb"] = np.asarray(seen.rgb)
    if seen.depth is not None:
        rows["depth"] = np.asarray(seen.depth, np.float32)
    return rows


def row(rows: Observation, index: int) -> Observation:
    """Returns one environment's observation."""
    if isinstance(rows, dict):
        return {name: value[index] for name, value in rows.items()}
    return rows[index]


def _measures(measures: PyTree, count: int) -> Info:
    """Returns a task's measures by name, those of one number an environment."""
    rows = {name: np.asarray(value) for name, value in measures._asdict().items()}
    return {name: value for name, value in rows.items() if value.shape == (count,)}
