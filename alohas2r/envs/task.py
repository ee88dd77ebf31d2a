"""What an environment asks of a task, and its state."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from alohas2r.embodiment.history import HistoryConfig, HistoryState
from alohas2r.envs.actuation import ControlConfig, ControlState
from alohas2r.envs.noise import DelayState, NoiseConfig


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """What stands between the task and the policy.

    Attributes:
      control: action scale and delays.
      noise: observation noise and delay.
      history: what the policy remembers.
    """

    control: ControlConfig = ControlConfig()
    noise: NoiseConfig = NoiseConfig()
    history: HistoryConfig = HistoryConfig()


class Start(NamedTuple):
    """Where an episode of one environment begins; what is None starts empty."""

    qpos: jax.Array  # [nq]
    ctrl: jax.Array  # [nu]
    qvel: jax.Array | None = None  # [nv]; at rest if None
    actions: jax.Array | None = None  # past actions, as ControlState
    delay: jax.Array | None = None  # past observations, as DelayState
    delay_count: jax.Array | None = None
    averages: jax.Array | None = None  # as HistoryState
    seen: jax.Array | None = None


class EnvState(NamedTuple):
    """State of N environments beside the physics; every leaf has a leading axis N."""

    key: jax.Array  # [N] random keys
    task: Any
    control: ControlState
    delay: DelayState
    history: HistoryState
    context: jax.Array  # [N, C] what is fixed per environment (sizes, masses)


class Scored(NamedTuple):
    """Outcome of a control step, each [N]."""

    reward: jax.Array
    done: jax.Array  # bool; the environment has been given a new start
    finite: jax.Array  # bool; whether the state was finite
    truncated: jax.Array  # bool; done by time alone, so that the future still has a value
    measures: Any
    reset_qpos: jax.Array  # [N, nq] new starts; used where done
    reset_ctrl: jax.Array  # [N, nu]
    reset_qvel: jax.Array | None  # [N, nv]; at rest if None
