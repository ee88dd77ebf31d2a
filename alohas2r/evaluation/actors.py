"""What acts in an evaluation: policies on the exact state, students with their senses, and exported files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.core.types import Array, PyTree
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.envs import student_step
from alohas2r.envs.env import Env
from alohas2r.envs.student_step import Drawn
from alohas2r.envs.task import EnvState
from alohas2r.envs.vision import EVALUATION, Seen, Senses, SensesConfig, SensesState
from alohas2r.evaluation.episodes import Setting
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.onnx.exported import ExportedPolicy
from alohas2r.policies.spec import PolicySpec, StudentSpec
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.state import StatePolicy
from alohas2r.rendering import registry as renderers
from alohas2r.rendering.protocol import DEPTH, RGBD
from alohas2r.sim.signals import Readout
from alohas2r.tasks.insert.appearance import pictured_geometry

_SENSES = 0x5E5E  # stream of the student's random numbers


class Recorder(Protocol):
    """Receives what students observe in each step, as NumPy arrays; a list does."""

    def append(self, seen: Seen, /) -> None:
        """Takes one observation of N environments."""
        ...


class StateActor:
    """A teacher: a policy of one task, or a staged one, on the noisy state.

    Args:
      env: where it acts. policy: the teacher.
      after: the same teacher in other environments; what it has compiled serves this one as well.
    """

    def __init__(
        self, env: Env, policy: StatePolicy | StagedPolicy, after: StateActor | None = None
    ):
        def act(state: EnvState, readout: Readout) -> tuple[EnvState, jax.Array]:
            state, features, _ = env.observe(state, readout)
            if isinstance(policy, StagedPolicy):
                actions = policy.apply(features, state.task.switched, jnp)
            else:
                actions = policy.apply(features, jnp)
            return env.control(state, readout, actions)

        self._act = jax.jit(act) if after is None else after._act

    def reset(self, keys: jax.Array) -> None:
        """Does nothing: the environments hold what is remembered."""

    def act(self, state: EnvState, readout: Readout) -> tuple[EnvState, jax.Array]:
        """Observes and acts in all environments."""
        return self._act(state, readout)


class Eyes:
    """What a student of a specification perceives in N environments; the same for its artifact and its exported file.

    Args:
      spec: of the student.
      setting: the environments; the first number of their context is half the side of the peg (m).
      threads: of the ray caster; 0 for all cores.
      renderer: see `rendering.registry`.
      conditions: noise and randomization of what is observed.
    """

    def __init__(
        self,
        spec: StudentSpec,
        setting: Setting,
        threads: int = 0,
        renderer: str = "auto",
        conditions: SensesConfig = EVALUATION,
    ):
        self.env = setting.env
        self.senses: Senses | None = None
        if spec.has_rgb or spec.has_depth:
            drawer = renderers.make_renderer(
                renderer,
                spec.cameras.size,
                threads,
                looks=conditions.looks,
                outputs=DEPTH if spec.from_pixels else RGBD,
                drawn=spec.phase,
                paired=spec.paired,
            )
            geometry = pictured_geometry(setting.context, setting.robots, spec.phase)
            longest = self.env.config.variation.longest_sense
            self.senses = Senses(spec, conditions, setting.context[:, 0], drawer, geometry, longest)

    def reset(self, keys: jax.Array) -> SensesState | None:
        """Returns the senses' state at the start of the episodes; None for a student without cameras."""
        fold = jax.vmap(lambda key: jax.random.fold_in(key, _SENSES))
        return None if self.senses is None else self.senses.reset(fold(keys))

    def causes(self, sense: SensesState | None) -> dict[str, np.ndarray]:
        """Returns what the causes of the episodes' looks came to, name -> [N]; empty where looks have none."""
        if self.senses is None or sense is None or not self.senses.has_causes:
            return {}
        return self.senses.causes(sense)

    def draw(self, sense: SensesState | None, readout: Readout) -> Drawn | None:
        """Renders what the cameras see."""
        return student_step.draw(self.senses, sense, readout)

    def observe(
        self, state: EnvState, readout: Readout, sense: SensesState | None, drawn: Drawn | None
    ) -> tuple[EnvState, SensesState | None, Seen]:
        """Measures what is observed (traceable); returns new states of environments and senses, and what is seen."""
        after = student_step.observe(self.env, self.senses, state, readout, sense, drawn)
        return after.state, after.sense, after.seen


class VisionActor:
    """A student; `use` lets one after the other of the same specification act by what is compiled once.

    Args:
      eyes: what they perceive. spec: their description.
      recorded: receives what they observe in each step, for videos; None for no record.
      after: students of the same specification and conditions in other environments; what they have compiled serves
        these as well.
    """

    def __init__(
        self,
        eyes: Eyes,
        spec: StudentSpec,
        recorded: Recorder | None = None,
        after: VisionActor | None = None,
    ):
        self.eyes, self.recorded = eyes, recorded
        self.weights: Mapping[str, jax.Array] = {}
        self._sense: SensesState | None = None

        def step(
            weights: PyTree,
            state: EnvState,
            readout: Readout,
            sense: SensesState | None,
            drawn: Drawn | None,
        ) -> tuple[EnvState, SensesState | None, Seen, jax.Array]:
            switched = state.task.switched if spec.switches else None
            state, sense, seen = eyes.observe(state, readout, sense, drawn)
            actions = vision_network.forward(spec, weights, network_inputs(spec, seen, switched))
            state, ctrl = eyes.env.control(state, readout, actions)
            return state, sense, seen, ctrl

        self._step = jax.jit(step) if after is None else after._step

    def use(self, weights: Mapping[str, np.ndarray]) -> None:
        """Lets a student of these weights act."""
        self.weights = {name: jnp.asarray(value) for name, value in weights.items()}

    def reset(self, keys: jax.Array) -> None:
        """Draws looks and sensors anew."""
        self._sense = self.eyes.reset(keys)

    def causes(self) -> dict[str, np.ndarray]:
        """Returns what the causes of the episodes' looks came to, name -> [N]."""
        return self.eyes.causes(self._sense)

    def act(self, state: EnvState, readout: Readout) -> tuple[EnvState, jax.Array]:
        """Observes and acts in all environments."""
        drawn = self.eyes.draw(self._sense, readout)
        state, self._sense, seen, ctrl = self._step(
            self.weights, state, readout, self._sense, drawn
        )
        if self.recorded is not None:
            self.recorded.append(jax.tree.map(np.asarray, seen))
        return state, ctrl


class ExportedActor:
    """An ONNX file: measuring and control stay compiled, and between them its network runs for all episodes at once.

    Random numbers are those that the artifact gets which the file was made from.

    Args:
      env: where it acts. policy: the file. eyes: what it perceives; None for one that sees nothing.
      recorded: receives what it observes in each step, for videos.
      after: the same file in other environments; what it has compiled serves this one as well.
    """

    def __init__(
        self,
        env: Env,
        policy: ExportedPolicy,
        eyes: Eyes | None = None,
        recorded: Recorder | None = None,
        after: ExportedActor | None = None,
    ):
        self._policy, self._eyes, self._recorded = policy, eyes, recorded
        self._sense: SensesState | None = None
        if after is not None:
            self._observe, self._control, self._look = after._observe, after._control, after._look
            return
        self._observe, self._control = jax.jit(env.observe), jax.jit(env.control)
        self._look = None if eyes is None else jax.jit(eyes.observe)

    def reset(self, keys: jax.Array) -> None:
        """Draws looks and sensors anew, where there are any."""
        if self._eyes is not None:
            self._sense = self._eyes.reset(keys)

    def causes(self) -> dict[str, np.ndarray]:
        """Returns what the causes of the episodes' looks came to, name -> [N]."""
        return {} if self._eyes is None else self._eyes.causes(self._sense)

    def act(self, state: EnvState, readout: Readout) -> tuple[EnvState, jax.Array]:
        """Observes and acts in all environments."""
        spec = self._policy.spec
        names = [one.name for one in self._policy.file.interface.network_inputs]
        switched = np.asarray(state.task.switched) if "switched" in names else None
        if self._eyes is None or self._look is None or not isinstance(spec, StudentSpec):
            state, features, _ = self._observe(state, readout)
            inputs = {"features": np.asarray(features), "switched": switched}
        else:
            drawn = self._eyes.draw(self._sense, readout)
            state, self._sense, seen = self._look(state, readout, self._sense, drawn)
            seen = jax.tree.map(np.asarray, seen)
            if self._recorded is not None:
                self._recorded.append(seen)
            inputs = network_inputs(spec, seen, switched)
        actions = self._policy.file.network({name: inputs[name] for name in names})
        return self._control(state, readout, jnp.asarray(actions))


def network_inputs(spec: StudentSpec, seen: Seen, switched: Array | None) -> dict[str, Array]:
    """Returns what N students' networks take of one observation, by name; of NumPy or JAX arrays as they are."""
    inputs: dict[str, Array] = {"features": seen.features}
    if switched is not None:
        inputs["switched"] = switched
    return inputs | spec.named_pictures(seen.rgb, seen.depth)


def memory_of(spec: PolicySpec | StudentSpec) -> HistoryConfig:
    """Returns what the environments remember for a policy: nothing for one that sees, whose senses remember."""
    sees = isinstance(spec, StudentSpec) and (spec.has_rgb or spec.has_depth)
    return HistoryConfig(()) if sees else spec.history
