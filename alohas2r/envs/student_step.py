"""The first half of a student's step: what it observes, the same in collection, evaluation and an artifact's check.

The second half, encoding and deciding, is the policy's.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from alohas2r.core.types import PyTree
from alohas2r.envs.env import Env
from alohas2r.envs.task import EnvState
from alohas2r.envs.vision import Seen, Senses, SensesState
from alohas2r.rendering.protocol import Frames
from alohas2r.sim.signals import Readout, Signals

# Pictures of the environments and what the senses have to know of their looks, as `Senses.draw` returns them.
Drawn = tuple[Frames | None, PyTree]


class Observed(NamedTuple):
    """One observation of N environments, and the states after it."""

    state: EnvState
    sense: SensesState | None  # None of a student that observes what a teacher does
    seen: Seen  # what the student observes
    known: (
        jax.Array
    )  # [N, F] what a teacher observes; [N, D, F] where the state is measured D times
    signals: Signals  # the exact state
    privileged: jax.Array  # [N, P] what a critic knows of it


def draw(senses: Senses | None, sense: SensesState | None, readout: Readout) -> Drawn | None:
    """Draws what the cameras are pointed at, on the host; None for a student without senses of its own."""
    if senses is None or sense is None:
        return None
    return senses.draw(sense, readout.qpos)


def draw_traced(senses: Senses | None, sense: SensesState | None, readout: Readout) -> Drawn | None:
    """Does the same as `draw`, inside `jax.jit`."""
    if senses is None or sense is None:
        return None
    return senses.draw_traced(sense, readout.qpos)


def perceive(
    env: Env,
    senses: Senses,
    state: EnvState,
    readout: Readout,
    sense: SensesState,
    drawn: Drawn,
) -> tuple[SensesState, Seen]:
    """Returns what senses perceive that only look on, and their state after it (traceable); arguments as `observe`."""
    frames, told = drawn
    felt = env.felt(state, env.extract(readout))
    return senses.perceive(sense, frames, told, felt, state.held)


def observe(
    env: Env,
    senses: Senses | None,
    state: EnvState,
    readout: Readout,
    sense: SensesState | None,
    drawn: Drawn | None,
) -> Observed:
    """Measures the state as a student does (traceable).

    Args:
      env: the environments.
      senses: the student's; None if it observes what a teacher does.
      state, readout, sense: of the environments.
      drawn: their pictures, from `draw`.
    """
    signals = env.extract(readout)
    # What the student's own side counts in, before the step moves the targets.
    felt = env.felt(state, signals)
    command = None
    if senses is not None and senses.spec.commanded:
        command = state.task.target_pos
    state, known, privileged = env.observe(state, readout)
    if senses is None or sense is None or drawn is None:
        first = known if known.ndim == 2 else known[:, 0]
        seen = Seen(None, None, first[:, : env.task.observation_size], first)
        return Observed(state, sense, seen, known, signals, privileged)
    frames, told = drawn
    sense, seen = senses.perceive(sense, frames, told, felt, state.held, command)
    return Observed(state, sense, seen, known, signals, privileged)
