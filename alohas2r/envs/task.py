"""What an environment asks of a task, and its state."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import jax

from alohas2r.config import check, later
from alohas2r.core.types import PyTree
from alohas2r.embodiment.history import HistoryConfig, HistoryState
from alohas2r.envs.actuation import ControlConfig, ControlState
from alohas2r.envs.noise import DelayState, Measured, NoiseConfig
from alohas2r.sim.scene import Scene
from alohas2r.sim.signals import Signals
from alohas2r.sim.variation import Held, VariationConfig

CONES = PYRAMIDAL, ELLIPTIC = "pyramidal", "elliptic"  # of friction
# How the part of an observation ends by name that is an arm's targets less its joint positions.
TARGETS_LEFT = "target_ctrl_minus_joint_pos"


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """What stands between the task and the policy.

    Attributes:
      control: action scale and delays.
      noise: observation noise and delay.
      history: what the policy remembers.
      contacts: whether everything that can touch does, as in the scenes NAME_contact.
      variation: what differs from robot to robot; nothing by default.
      cone: of friction, "pyramidal" or "elliptic". Under stiff arms a pyramid lets go of what is gripped; an ellipse
        does not, and is solved until it has converged: the scenes NAME_elliptic, for contacts alone.
    """

    control: ControlConfig = ControlConfig()
    noise: NoiseConfig = NoiseConfig()
    history: HistoryConfig = HistoryConfig()
    contacts: bool = False
    variation: VariationConfig = VariationConfig()
    cone: str = later(PYRAMIDAL)

    def __post_init__(self) -> None:
        check(self.cone in CONES, f"cone must be {' or '.join(CONES)}, not '{self.cone}'.")
        check(self.contacts or self.cone == PYRAMIDAL, "cone=elliptic needs contacts=true.")

    def scene_of(self, name: str) -> str:
        """Returns the name of a task's scene under these conditions."""
        if not self.contacts:
            return name
        return f"{name}_contact" if self.cone == PYRAMIDAL else f"{name}_elliptic"


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


class Outcome(NamedTuple):
    """What a task says of one environment's new state."""

    state: PyTree  # the task's own state
    reward: jax.Array  # []
    done: jax.Array  # [] bool, whether the episode ends; time-out included
    truncated: jax.Array  # [] bool, cut off by time alone, so that the future still has a value
    measures: PyTree  # a NamedTuple of what scorers and training metrics read


class TaskConfig(Protocol):
    """What every task's configuration has."""

    @property
    def steps(self) -> int:
        """Control steps per episode."""
        ...


class Task(Protocol):
    """A task on a scene: pure functions of one environment, which `Env` maps over the batch.

    Its state is a NamedTuple that has at least `step`, the control steps since the reset ([] int32, or [A] where
    each arm has its own clock), and `stage`, that of a curriculum ([] int32; it survives resets).
    Its measures have at least `joint_speed` (fastest arm joint, rad/s) and `contact_force` (largest finger force, N).

    Attributes:
      scene: where it takes place. config: its settings.
      action_size: numbers a policy gives: 7 for each arm.
      extra_sensors: name and size of each sensor of the MJCF that is wanted in `Signals.extra`.
      observation_spec: name, size and unit of each part of what a policy may observe; observation_size: their sum.
      context_size: numbers that are fixed per environment, such as sizes and masses.
      privileged_size: numbers that the critic sees.
    """

    @property
    def scene(self) -> Scene: ...  # noqa: D102

    @property
    def config(self) -> TaskConfig: ...  # noqa: D102

    @property
    def action_size(self) -> int: ...  # noqa: D102

    @property
    def extra_sensors(self) -> tuple[tuple[str, int], ...]: ...  # noqa: D102

    @property
    def observation_spec(self) -> tuple[tuple[str, int, str], ...]: ...  # noqa: D102

    @property
    def observation_size(self) -> int: ...  # noqa: D102

    @property
    def context_size(self) -> int: ...  # noqa: D102

    @property
    def privileged_size(self) -> int: ...  # noqa: D102

    def reset(self, key: jax.Array, context: jax.Array, stage: jax.Array) -> tuple[PyTree, Start]:
        """Draws a start.

        Args:
          key: random key.
          context: [C] what is fixed in this environment.
          stage: [] int32, to be kept.

        Returns:
          The task's state and the start.
        """
        ...

    def observation(self, measured: Measured, state: PyTree) -> jax.Array:
        """Returns what a policy observes [observation_size] of a measurement."""
        ...

    def privileged(self, signals: Signals, state: PyTree, context: jax.Array) -> jax.Array:
        """Returns what the critic sees [privileged_size]: exact, undelayed."""
        ...

    def step(self, signals: Signals, state: PyTree, context: jax.Array) -> Outcome:
        """Scores a new state."""
        ...


class Now(NamedTuple):
    """What a guide knows of one environment, exactly."""

    qpos: jax.Array  # [nq] of the simulation
    signals: Signals  # joints and targets in terms of readings
    under_way: (
        jax.Array
    )  # [action_size] by how much the last steps changed the targets (rad; m of the grippers)


@runtime_checkable
class Guided(Protocol):
    """A task that knows what might be done: a policy may imitate it before reinforcement goes on."""

    def guide(self, now: Now, state: PyTree, context: jax.Array, scale: float) -> jax.Array:
        """Returns what to do, in -1..1 [action_size], in one environment.

        Args:
          now: the exact state. state: the task's. context: [C] what is fixed in this environment.
          scale: change of a target by an action of 1 (rad).
        """
        ...


class EnvState(NamedTuple):
    """State of N environments beside the physics; every leaf has a leading axis N."""

    key: jax.Array  # [N] random keys
    task: PyTree
    control: ControlState
    delay: DelayState
    history: HistoryState
    context: jax.Array  # [N, C] what is fixed per environment (sizes, masses)
    held: Held | None = None  # likewise, of robots that vary


class Scored(NamedTuple):
    """Outcome of a control step, each [N]."""

    reward: jax.Array
    done: jax.Array  # bool; the environment has been given a new start
    finite: jax.Array  # bool; whether the state was finite
    truncated: jax.Array  # bool; done by time alone, so that the future still has a value
    measures: PyTree  # of the task, as `Outcome` has them
    reset_qpos: jax.Array  # [N, nq] new starts; used where done
    reset_ctrl: jax.Array  # [N, nu]
    reset_qvel: jax.Array | None  # [N, nv]; at rest if None
