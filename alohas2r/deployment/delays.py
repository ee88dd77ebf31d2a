"""How late arms and cameras are, by a run in which one joint moved: delays that come on top of the simulation.

Both are found in the same way: as the shift by which one signal explains the other best.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mujoco
import numpy as np

from alohas2r.deployment.log import Run, Step
from alohas2r.embodiment.joints import ARM_JOINTS, JOINTS, PER_ARM, SIDES
from alohas2r.errors import ConfigError, RobotFault
from alohas2r.policies.delays import Delays
from alohas2r.robots.simulated import SimulatedWorld

SHIFTS_S = -0.05, 0.4
COARSE_S, FINE_S = 0.01, 0.001
LEAST_EXPLAINED = 0.8  # share of a signal; with less, a shift means nothing
COMPONENTS = 8  # of the pictures, that follow the joint
TOLERANCE_S = 0.01  # of a measured delay


class Shift(NamedTuple):
    """By how much one signal comes after the other.

    Attributes:
      seconds: the shift that explains most.
      explained: which share of the variance, 0 to 1.
    """

    seconds: float
    explained: float


class Measured(NamedTuple):
    """Delays of one arm and its camera.

    Attributes:
      side: "left" or "right".
      command: from a command to the motion, beyond the simulated arm's; counted from the reading of the joints in
        whose control step it was sent.
      picture: from the motion to the picture that shows it, when the loop takes it.
      times_s, wanted, moved, simulated: [T] the control steps, and the joint as commanded, measured, and as the
        simulated arm moves on the same commands (rad).
      seen: [T] the joint as the pictures tell it (rad).
    """

    side: str
    command: Shift
    picture: Shift
    times_s: np.ndarray
    wanted: np.ndarray
    moved: np.ndarray
    simulated: np.ndarray
    seen: np.ndarray


def measure(run: Run) -> tuple[Measured, ...]:
    """Finds the delays in the log of a run in which one joint of each arm moved.

    Raises:
      ConfigError: the run is none of `probe`.
      RobotFault: an arm did not follow, or nothing can be seen of its motion.
    """
    joint = run.header.get("joint")
    if joint not in ARM_JOINTS:
        raise ConfigError("The log is none of measure-delay: nothing is known of its motion.")
    steps = [one for one in run.steps if "action" in one.arrays and "command" in one.arrays]
    if not steps:
        raise ConfigError("The log has no step of the motion: it ended before.")
    period_s = float(run.header["period_s"])
    stepped = bool(run.header.get("stepped"))
    times_s = (
        period_s * np.arange(len(steps))
        if stepped
        else np.array([float(one.values["time_s"]) for one in steps])
    )
    simulated_s, simulated = _simulate(steps, times_s)
    return tuple(
        _side(
            side, place * PER_ARM + ARM_JOINTS.index(joint), steps, times_s, simulated_s, simulated
        )
        for place, side in enumerate(SIDES)
    )


def _side(
    side: str,
    index: int,
    steps: Sequence[Step],
    times_s: np.ndarray,
    simulated_s: np.ndarray,
    simulated: np.ndarray,
) -> Measured:
    wanted = np.array([one.arrays["command"][index] for one in steps])
    moved = np.array([one.arrays["position"][index] for one in steps])
    # Only while this arm moves: the other's motion is in its pictures, too.
    going = np.flatnonzero(np.abs(np.diff(wanted, prepend=wanted[0])) > 1e-6)
    if not len(going):
        raise RobotFault(f"The {side} arm was not moved; was the motion ended?")
    own = slice(max(0, going[0] - 10), going[-1] + 10)

    def motion(shift_s: float) -> np.ndarray:
        return np.interp(times_s[own] - shift_s, simulated_s, simulated[:, index])[:, None]

    command = _best(lambda shift_s: (moved[own], motion(shift_s)))
    if command.explained < LEAST_EXPLAINED:
        raise RobotFault(
            f"The {side} {JOINTS[index].partition('/')[2]} does not follow its commands as the simulated one does"
            f" ({command.explained:.0%} of the motion is explained): is it blocked, or its gains changed?"
        )
    scores = _scores(np.array([one.arrays[f"observation/{side}_rgb"] for one in steps])[own])

    def angle(shift_s: float) -> np.ndarray:
        return np.interp(times_s[own] - shift_s, times_s, moved)

    picture = _best(lambda shift_s: (angle(shift_s), scores))
    if picture.explained < LEAST_EXPLAINED:
        raise RobotFault(
            f"The {side} camera's pictures do not follow its arm ({picture.explained:.0%} of the motion is seen): put"
            " something with an edge in its view, and check that it is no other arm's camera."
        )
    seen = _fit(angle(picture.seconds), scores)[1]
    whole = np.full(len(steps), np.nan)
    whole[own] = seen
    response = np.interp(times_s, simulated_s, simulated[:, index])
    return Measured(side, command, picture, times_s, wanted, moved, response, whole)


def _simulate(steps: Sequence[Step], times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns times [M] and joint positions [M, 14] of the simulated arms on the same commands."""
    world = SimulatedWorld()
    qpos = world.data.qpos.copy()
    start = steps[0].arrays["position"]
    qpos[world.joints] = start
    world.place(qpos, steps[0].arrays["command"])
    tick_s = float(world.model.opt.timestep)
    at_s, rows, now_s = [], [], float(times_s[0])
    ends = np.append(times_s[1:], times_s[-1] + 0.05)
    for one, end_s in zip(steps, ends, strict=True):
        world.data.ctrl[world.actuators] = np.clip(one.arrays["command"], world.low, world.high)
        while now_s < end_s - tick_s / 2:
            at_s.append(now_s)
            rows.append(world.data.qpos[world.joints].copy())
            mujoco.mj_step(world.model, world.data)
            now_s += tick_s
    return np.array(at_s), np.array(rows)


def _scores(pictures: np.ndarray) -> np.ndarray:
    """Returns the pictures [T, H, W, 3] along the directions in which they differ most [T, COMPONENTS]."""
    flat = pictures.reshape(len(pictures), -1).astype(float)
    flat -= flat.mean(axis=0)
    left, size, _ = np.linalg.svd(flat, full_matrices=False)
    return left[:, :COMPONENTS] * size[:COMPONENTS]


def _best(pair: Callable[[float], tuple[np.ndarray, np.ndarray]]) -> Shift:
    """Returns the shift at which the second signal explains most of the first."""
    shifts_s, best = np.arange(*SHIFTS_S, COARSE_S), Shift(0.0, -np.inf)
    for _ in range(2):  # coarse, then fine
        explained = [_fit(*pair(float(shift_s)))[0] for shift_s in shifts_s]
        index = int(np.argmax(explained))
        best = Shift(float(shifts_s[index]), explained[index])
        shifts_s = best.seconds + np.arange(-COARSE_S, COARSE_S + FINE_S / 2, FINE_S)
    return best


def _fit(signal: np.ndarray, by: np.ndarray) -> tuple[float, np.ndarray]:
    """Explains a signal [T] by others [T, N]; returns the share that is explained, and what they make of it [T]."""
    columns = np.column_stack([by, np.ones(len(by))])
    weights, *_ = np.linalg.lstsq(columns, signal, rcond=None)
    fitted = columns @ weights
    spread = float(((signal - signal.mean()) ** 2).sum())
    left = float(((signal - fitted) ** 2).sum())
    return 1 - left / spread if spread > 1e-12 else 0.0, fitted


def beyond(
    measured: Sequence[tuple[str, float | None, float | None]], trained: Delays
) -> list[str]:
    """Returns which measured delays a policy was not trained for, in words.

    Args:
      measured: side, command and picture delay (s); None: not measured.
      trained: the longest delays that it met.
    """
    texts = []
    for side, command_s, picture_s in measured:
        for what, seconds, most_s in (
            ("arm follows", command_s, trained.command_s),
            ("camera shows", picture_s, trained.picture_s),
        ):
            if seconds is not None and seconds > most_s + TOLERANCE_S:
                texts.append(
                    f"the {side} {what} after {1000 * seconds:.0f} ms, beyond the {1000 * most_s:.0f} ms of training"
                )
    return texts


def require_trained(
    measured: Sequence[tuple[str, float | None, float | None]], trained: Delays
) -> None:
    """Refuses arms and cameras that are later than any that a policy was trained for.

    Raises:
      ConfigError: one is.
    """
    late = beyond(measured, trained)
    if late:
        raise ConfigError(
            f"The policy was not trained for this robot's delays: {'; '.join(late)}. Look for the cause (latency timer,"
            " exposure, a hub), measure again with alohas2r measure-delay, or train with longer delays. --any-delay"
            " runs it all the same."
        )


def draw(measured: Sequence[Measured], folder: str | os.PathLike[str]) -> pathlib.Path:
    """Draws what was commanded, done, simulated and seen into FOLDER/delays.png.

    Raises:
      ModuleNotFoundError: matplotlib is missing.
      ArtifactError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from alohas2r.core import figures

    figure, axes = plt.subplots(len(measured), 1, figsize=(12, 8), layout="constrained")
    for axis, one in zip(np.atleast_1d(axes), measured, strict=True):
        seconds = one.times_s - one.times_s[0]
        for values, label, style in (
            (one.wanted, "command", "k:"),
            (one.simulated, "simulated", "C0-"),
            (one.moved, "measured", "C1-"),
            (one.seen, "pictures", "C2--"),
        ):
            axis.plot(seconds, values, style, label=label, linewidth=1)
        axis.set_title(
            f"{one.side}: motion {1000 * one.command.seconds:.0f} ms after the simulated arm's, pictures"
            f" {1000 * one.picture.seconds:.0f} ms after the motion"
        )
        axis.set_xlabel("s")
        axis.set_ylabel("rad")
        axis.legend(loc="upper right")
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return figures.save(figure, folder / "delays.png")
