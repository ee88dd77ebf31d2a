"""Environments behind Stable-Baselines3's vector interface.

Source of the interface: https://stable-baselines3.readthedocs.io, "Vectorized Environments".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from alohas2r.core.types import JsonObject
from alohas2r.envs.wrappers.gymnasium import Observation, VectorTaskEnv, row
from alohas2r.errors import ConfigError


class StableBaselinesEnv(VecEnv):
    """N environments for learners of Stable-Baselines3; `infos` bring "is_success" at an episode's end."""

    def __init__(self, envs: VectorTaskEnv):
        """Wraps vector environments, as `alohas2r.make_env` returns them."""
        self.envs = envs
        self.render_mode = envs.render_mode
        self._actions: np.ndarray | None = None
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Observation:
        """Starts all environments; with the seed that `seed` was given last."""
        observed, _ = self.envs.reset(seed=self._seeds[0])
        self._reset_seeds()
        return observed

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions [N, A]."""
        self._actions = actions

    def step_wait(self) -> tuple[Observation, np.ndarray, np.ndarray, list[JsonObject]]:
        """Takes the step; returns observations, rewards [N], dones [N], information."""
        if self._actions is None:
            raise ConfigError("step_async must be called before step_wait.")
        observed, reward, terminated, truncated, info = self.envs.step(self._actions)
        done = terminated | truncated
        infos: list[JsonObject] = [{} for _ in range(self.num_envs)]
        success, final = info.get("success"), info.get("final_obs")
        for index in np.flatnonzero(done):
            infos[index]["TimeLimit.truncated"] = bool(truncated[index])
            if isinstance(final, np.ndarray):
                infos[index]["terminal_observation"] = row(final, int(index))
            if isinstance(success, np.ndarray):
                infos[index]["is_success"] = bool(success[index])
        return observed, reward.astype(np.float32), done, infos

    def close(self) -> None:
        """Gives back what pictures took."""
        self.envs.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Returns a picture of each scene."""
        pictures = self.envs.render()
        return [None] * self.num_envs if pictures is None else list(pictures)

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[object]:
        """Returns an attribute, which all environments share, for each."""
        value = getattr(self.envs, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(
        self, attr_name: str, value: object, indices: int | Iterable[int] | None = None
    ) -> None:
        """Sets an attribute of all environments; of some it is not possible."""
        if indices is not None:
            raise ConfigError("The environments share their attributes; leave out indices.")
        setattr(self.envs, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: object,
        indices: int | Iterable[int] | None = None,
        **method_kwargs: object,
    ) -> list[object]:
        """Is not possible: the environments are one object."""
        raise ConfigError(f"The environments are one object; call envs.{method_name} yourself.")

    def env_is_wrapped(
        self, wrapper_class: type, indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        """Returns False for each: there are no wrappers."""
        return [False for _ in self._get_indices(indices)]
