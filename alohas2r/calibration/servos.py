"""What moves tell of the servos: gains, damping, dry friction, play and delay, by simulated arms that move alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from alohas2r.calibration.arms import COUNT, Moves, Servos, dry, simulate
from alohas2r.embodiment.joints import IS_GRIPPER, PER_ARM, SIDES
from alohas2r.robots.dynamixel.registers import RAD_PER_TICK

# Differences that count alike: of an arm joint, a tick (rad); of a finger's travel (m); of its force (N). A gripper is
# told more finely than that, but moves in steps, whose exact moments must not outweigh all other joints.
POSITION, TRAVEL_M, FORCE_N = RAD_PER_TICK, 2e-4, 1.0
OUTLIERS = 3.0  # times that, from where on a difference counts less
SETTLE_S = 1.0  # from the start, until arms move as their commands say
BLOCK_S = 1.0  # differences within it count as one observation for the intervals
EVALUATIONS, TOLERANCE = 20, 1e-4
FIRST_STEPS = 450  # of a run, on which the fit begins
DELAYS_S, TRIED_STEPS = (
    (0.0, 0.05, 0.1, 0.15, 0.2),
    160,
)  # that are tried at first, and on how much of a run
# By how much each kind of parameter is changed to see what follows; those of factors are logarithms.
NUDGES = {"gain": 0.01, "damping": 0.01, "friction": 0.05, "play": 1e-3, "delay": 1e-3}
KINDS = tuple(NUDGES)
# How much of each is as much of a step as of the others.
SCALES = {"gain": 0.1, "damping": 0.1, "friction": 0.2, "play": 4e-3, "delay": 5e-3}
LOW = {"gain": np.log(0.1), "damping": np.log(0.1), "friction": 0.0, "play": 0.0, "delay": -0.05}
HIGH = {"gain": np.log(10.0), "damping": np.log(10.0), "friction": 5.0, "play": 0.09, "delay": 0.5}
START = {"gain": 0.0, "damping": 0.0, "friction": 1.0, "play": 0.004, "delay": 0.05}


class Moved(NamedTuple):
    """Moves, and what the grippers' servos said of their force.

    Attributes:
      moves: see there.
      force: [T, 2] of the left and the right gripper (N); NaN where it is not known.
    """

    moves: Moves
    force: np.ndarray

    def first(self, steps: int) -> Moved:
        """Returns their beginning."""
        return Moved(Moves(*(values[:steps] for values in self.moves)), self.force[:steps])


class Estimate(NamedTuple):
    """What was found; each as value and ends of its 95% interval [..., 3].

    Attributes:
      gain, damping, friction: [14, 3] factors on the nominal ones; friction NaN where the nominal joint has none.
      play: [14, 3] rad; NaN for grippers.
      delay: [2, 3] of each arm's commands (s).
      explained: [14] which share of each joint's motion is explained.
      fitted: for each stretch, [T, 14] where the joints would have been (rad; m).
    """

    gain: np.ndarray
    damping: np.ndarray
    friction: np.ndarray
    play: np.ndarray
    delay: np.ndarray
    explained: np.ndarray
    fitted: list[np.ndarray]


class _Column(NamedTuple):
    """A parameter: its kind, and of which joint it is, or of which arm if it is a delay."""

    kind: str
    of: int


def _columns() -> list[_Column]:
    joints = range(COUNT)
    rubs = dry()
    return [
        *(_Column("gain", joint) for joint in joints),
        *(_Column("damping", joint) for joint in joints),
        *(_Column("friction", joint) for joint in joints if rubs[joint]),
        *(_Column("play", joint) for joint in joints if not IS_GRIPPER[joint]),
        *(_Column("delay", side) for side in range(len(SIDES))),
    ]


class _Fit:
    """Differences between moves and simulated moves, by the parameters.

    A parameter of a joint is taken to change this joint's motion alone: with servos that hold their targets, what one
    joint does hardly moves the others. So one more pair of arms tells the slopes by all parameters of a kind.
    """

    def __init__(self, stretches: Sequence[Moved], threads: int) -> None:
        self._stretches, self._threads = stretches, threads
        self.columns = _columns()
        self._where = {
            kind: np.array([i for i, one in enumerate(self.columns) if one.kind == kind])
            for kind in KINDS
        }
        self._of = {
            kind: np.array([one.of for one in self.columns if one.kind == kind]) for kind in KINDS
        }
        self._known: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def every(self, kind: str, value: float) -> tuple[np.ndarray, float]:
        """Returns which parameters are of a kind, and a value for all of them."""
        return self._where[kind], value

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the least and the largest values."""
        low, high = ([table[one.kind] for one in self.columns] for table in (LOW, HIGH))
        return np.array(low), np.array(high)

    def servos(self, rows: np.ndarray) -> Servos:
        """Returns the arms of parameters [E, parameters]."""
        shape = len(rows), COUNT
        full = {"gain": np.ones(shape), "damping": np.ones(shape), "friction": np.ones(shape)}
        full |= {"play": np.zeros(shape), "delay": np.zeros((len(rows), len(SIDES)))}
        for kind in KINDS:
            values = rows[:, self._where[kind]]
            full[kind][:, self._of[kind]] = (
                np.exp(values) if kind in ("gain", "damping") else values
            )
        return Servos(**full)

    def differences(self, rows: np.ndarray, steps: int | None = None) -> np.ndarray:
        """Returns [E, T, 14 + 2] in units of what counts alike: of positions, and of the grippers' forces.

        Args:
          rows: [E, parameters]. steps: of the first stretch alone; None: all of all.
        """
        servos, parts = self.servos(rows), []
        for one in self._stretches if steps is None else [self._stretches[0].first(steps)]:
            response = simulate(one.moves, servos, self._threads)
            off = response.position - one.moves.position
            off = off / np.where(IS_GRIPPER, TRAVEL_M, POSITION)
            force = (response.force[..., IS_GRIPPER] - one.force) / FORCE_N
            part = np.concatenate([off, np.nan_to_num(force)], -1)
            early = one.moves.times_s - one.moves.times_s[0] < SETTLE_S
            part[:, early] = 0.0
            parts.append(part)
        return np.concatenate(parts, 1)

    def residuals(self, values: np.ndarray) -> np.ndarray:
        """Returns [T * 16]."""
        return self._at(values)[0].reshape(-1)

    def slopes(self, values: np.ndarray) -> np.ndarray:
        """Returns [T * 16, parameters]."""
        slopes = self._at(values)[1]
        return slopes.reshape(-1, slopes.shape[-1])

    def _at(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._known is not None and np.array_equal(self._known[0], values):
            return self._known[1], self._known[2]
        rows = np.tile(values, (1 + len(KINDS), 1))
        for row, kind in enumerate(KINDS):
            rows[1 + row, self._where[kind]] += NUDGES[kind]
        off = self.differences(rows)
        slopes = np.zeros((*off.shape[1:], len(values)))
        for row, kind in enumerate(KINDS):
            change = (off[1 + row] - off[0]) / NUDGES[kind]
            for column, index in zip(self._where[kind], self._of[kind], strict=True):
                for place in _shown(kind, int(index)):
                    slopes[:, place, column] = change[:, place]
        self._known = values.copy(), off[0], slopes
        return off[0], slopes


def _shown(kind: str, index: int) -> list[int]:
    """Returns which of the 16 differences a parameter shows in."""
    joints = range(index * PER_ARM, (index + 1) * PER_ARM) if kind == "delay" else [index]
    grippers = [int(one) for one in np.flatnonzero(IS_GRIPPER)]
    return [*joints, *(COUNT + grippers.index(one) for one in joints if one in grippers)]


def fit(stretches: Sequence[Moved], threads: int = 1) -> Estimate:
    """Finds the servos whose simulated arms move as those of a run did.

    Args:
      stretches: of one or more runs. threads: for the simulation.
    """
    problem = _Fit(stretches, threads)
    start = np.array([START[one.kind] for one in problem.columns])
    late, _ = problem.every("delay", 0.0)
    tries = np.tile(start, (len(DELAYS_S), 1))
    tries[:, late] = np.array(DELAYS_S)[:, None]
    tried = problem.differences(tries, TRIED_STEPS)
    for side, column in enumerate(late):
        own = tried[..., side * PER_ARM : (side + 1) * PER_ARM]
        cost = np.log1p((own / OUTLIERS) ** 2).sum((1, 2))
        start[column] = DELAYS_S[int(np.argmin(cost))]
    # Most of the way on a part of the moves, which takes less time, and by squares, which lead there straight.
    part = _Fit([one.first(FIRST_STEPS) for one in stretches[:1]], threads)
    values = _solve(problem, _solve(part, start, "linear"), "soft_l1")
    return _estimate(problem, values, stretches)


def _solve(problem: _Fit, start: np.ndarray, loss: str) -> np.ndarray:
    """Returns the parameters at which what is left is least, from a start; `loss` as SciPy names it."""
    low, high = problem.bounds()
    scales = np.array([SCALES[one.kind] for one in problem.columns])
    return least_squares(
        problem.residuals,
        np.clip(start, low + 1e-6, high - 1e-6),
        problem.slopes,  # pyright: ignore[reportArgumentType]  (a function, says SciPy's manual)
        (low, high),
        x_scale=scales,
        loss=loss,
        f_scale=OUTLIERS,
        max_nfev=EVALUATIONS,
        ftol=TOLERANCE,
        xtol=TOLERANCE,
    ).x


def _estimate(problem: _Fit, values: np.ndarray, stretches: Sequence[Moved]) -> Estimate:
    half = _half_widths(problem, values, stretches)
    low, high = problem.bounds()
    ends = np.stack([values, np.maximum(values - half, low), np.minimum(values + half, high)], -1)
    tables = {kind: np.full((COUNT, 3), np.nan) for kind in KINDS}
    tables["delay"] = np.full((len(SIDES), 3), np.nan)
    for one, row in zip(problem.columns, ends, strict=True):
        tables[one.kind][one.of] = np.exp(row) if one.kind in ("gain", "damping") else row
    fitted, measured = [], []
    for stretch in stretches:
        response = simulate(stretch.moves, problem.servos(values[None]))
        fitted.append(response.position[0])
        measured.append(stretch.moves.position)
    whole, told = np.concatenate(measured), np.concatenate(fitted)
    spread = ((whole - whole.mean(0)) ** 2).sum(0)
    explained = 1 - ((whole - told) ** 2).sum(0) / np.maximum(spread, 1e-12)
    return Estimate(**tables, explained=explained, fitted=fitted)


def _half_widths(problem: _Fit, values: np.ndarray, stretches: Sequence[Moved]) -> np.ndarray:
    """Returns half widths of the 95% intervals; the differences of a second count as one observation.

    Source: the sandwich estimator for clustered observations, as in Cameron and Miller (2015).
    """
    count = len(values)
    rest, slopes = problem.residuals(values), problem.slopes(values)
    weight = 1 / np.sqrt(1 + (rest / OUTLIERS) ** 2)  # of the loss soft_l1
    square = slopes.T @ (weight[:, None] * slopes)
    inverse = np.linalg.pinv(square, hermitian=True)
    period_s = float(np.median(np.diff(stretches[0].moves.times_s)))
    block = max(1, round(BLOCK_S / period_s)) * (COUNT + len(SIDES))
    spread = np.zeros((count, count))
    for first in range(0, len(rest), block):
        own = slice(first, first + block)
        push = slopes[own].T @ (weight[own] * rest[own])
        spread += np.outer(push, push)
    half = 1.96 * np.sqrt(np.maximum(np.diag(inverse @ spread @ inverse), 0.0))
    # What moves nothing is not known at all.
    return np.where(np.diag(square) > 1e-9, half, np.inf)
