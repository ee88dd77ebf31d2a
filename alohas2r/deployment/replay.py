"""What a run's log tells afterwards: pictures, a video, timing, and whether the policy acts the same.

Everything comes from the log alone; the policy is asked again with the very observations that it had.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from alohas2r.config import from_dict
from alohas2r.core.files import make_folder
from alohas2r.core.types import JsonObject, Untyped
from alohas2r.deployment import log as drive_log
from alohas2r.deployment import terms
from alohas2r.deployment.each_arm import EachArm
from alohas2r.embodiment.joints import JOINTS, PER_ARM, SIDES
from alohas2r.errors import ArtifactError, BackendUnavailable
from alohas2r.policies import protocol
from alohas2r.policies.protocol import Policy
from alohas2r.safety.config import SafetyConfig

# Actions in [-1, 1]; the same machine repeats them to the bit, another one rounds differently.
TOLERANCE = 1e-4
_COLOURS = {
    "hold": "tab:orange",
    "retreat": "tab:purple",
    "asleep": "tab:gray",
    "frozen": "tab:red",
}


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """What came of asking the policy again.

    Attributes:
      policy: file.
      same_policy: whether its hash is the logged one.
      difference: largest difference of any action from the logged one.
      reproduced: whether that is nothing but rounding.
    """

    policy: str
    same_policy: bool
    difference: float
    reproduced: bool


class _Selecting:
    """Hands a policy what it takes of the logged observations."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def reset(self) -> None:
        self._policy.reset()

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._policy.act(protocol.select(self._policy, observation))


def reproduce(run: drive_log.Run, policy: str | os.PathLike[str]) -> Reproduction:
    """Asks a policy again with the logged observations and compares its actions with the logged ones.

    Args:
      run: a run.
      policy: an exported policy.

    Raises:
      ArtifactError: the policy is missing or damaged, or did not act in this run.
    """
    exported = terms.load_policy(policy)
    acting: Policy = _Selecting(exported)
    if terms.terms(exported).single:
        acting = EachArm((exported, exported.fork()))
    difference = drive_log.replay(run, acting)
    same = exported.hash == run.header.get("policy_hash")
    return Reproduction(str(policy), same, difference, difference <= TOLERANCE)


def plot(run: drive_log.Run, path: str | os.PathLike[str]) -> pathlib.Path:
    """Draws joints and commands, interventions, modes and timing of a run as PNG.

    Raises:
      ArtifactError: the run has no steps, or the file cannot be written.
      ModuleNotFoundError: matplotlib is missing.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from alohas2r.core import figures as core_figures

    if not run.steps:
        raise ArtifactError("The run has no control steps; there is nothing to draw.")
    period_s = float(run.header["period_s"])
    times = run.stack("time_s")
    stepped = bool(run.header.get("stepped"))
    seconds = period_s * np.arange(len(times)) if stepped else times - times[0]
    figure, axes = plt.subplots(
        PER_ARM + 1, len(SIDES), figsize=(14, 18), sharex=True, layout="constrained"
    )
    position = run.stack("position")
    commanded = np.array(["command" in step.arrays for step in run.steps])
    command = run.stack("command")
    for index, joint in enumerate(JOINTS):
        axis = axes[index % PER_ARM, index // PER_ARM]
        gripper = index % PER_ARM == PER_ARM - 1
        scale = 1000 if gripper else 1
        if commanded.any():
            axis.plot(seconds[commanded], scale * command[:, index], lw=0.8, label="command")
        axis.plot(seconds, scale * position[:, index], lw=0.8, label="measured")
        axis.set_ylabel(f"{joint} ({'mm' if gripper else 'rad'})", fontsize=8)
        _shade(axis, run, seconds)
    axes[0, 0].legend(loc="upper right", fontsize=8)
    changed = np.array([bool(step.values["interventions"]) for step in run.steps])
    timing, guarded = axes[-1]
    for part in ("total", "infer", "read", "look"):
        timing.plot(seconds, 1000 * run.stack(f"{part}_s"), lw=0.8, label=part)
    timing.axhline(1000 * period_s, color="black", lw=0.8, ls=":")
    timing.set_ylabel("ms", fontsize=8)
    timing.legend(loc="upper right", fontsize=8)
    kinds = sorted({one for step in run.steps for one in step.values["interventions"]})
    for row, kind in enumerate(kinds):
        hit = np.array([kind in step.values["interventions"] for step in run.steps])
        guarded.plot(seconds[hit], np.full(hit.sum(), row), "|", ms=8)
    guarded.set_yticks(range(len(kinds)), kinds, fontsize=8)
    guarded.set_title(f"guard: {int(changed.sum())} of {len(changed)} steps changed", fontsize=8)
    for axis in (timing, guarded):
        axis.set_xlabel("s")
        _shade(axis, run, seconds)
    header = run.header
    title = f"{header.get('robot')}, {header.get('policy')}, {header.get('started')}"
    figure.suptitle(title, fontsize=10)
    return core_figures.save(figure, path)


def _shade(axis: Untyped, run: drive_log.Run, seconds: np.ndarray) -> None:
    """Colours the stretches in which the arms did not follow the policy."""
    modes = [step.values["mode"] for step in run.steps]
    edges = [0, *(i for i in range(1, len(modes)) if modes[i] != modes[i - 1]), len(modes)]
    for first, last in itertools.pairwise(edges):
        colour = _COLOURS.get(modes[first])
        if colour is not None:
            end = seconds[min(last, len(modes) - 1)]
            axis.axvspan(seconds[first], end, color=colour, alpha=0.15, lw=0)


def video(run: drive_log.Run, path: str | os.PathLike[str]) -> pathlib.Path | None:
    """Writes what both wrist cameras showed the policy as MP4; None if it saw nothing.

    Raises:
      ArtifactError: the file cannot be written.
      BackendUnavailable: the package av is not installed.
    """
    from alohas2r.rendering import video as rendering_video

    pictures = drive_log.views(run)
    if next(iter(pictures), None) is None:
        return None
    rate_hz = round(1 / float(run.header["period_s"]))
    return rendering_video.write_video(path, drive_log.views(run), rate_hz)


def replay(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    policy: str | os.PathLike[str] | None = None,
) -> JsonObject:
    """Reads a run, draws it, and asks its policy again.

    Args:
      path: the log.
      out: folder for "plots.png" and "video.mp4"; None: the log's name with "-replay" after it.
      policy: the exported policy; None: the file that the log names.

    Returns:
      "run", figures of `drivelog.summarize`, "limits" that held, "written": files, "skipped": what
      could not be done and why, and "policy": the `Reproduction` as a dict, or None.

    Raises:
      ArtifactError: no run, or the policy that was asked for is missing or damaged.
    """
    path = pathlib.Path(path)
    run = drive_log.read_run(path)
    folder = make_folder(path.with_name(f"{path.stem}-replay") if out is None else out)
    written: list[str] = []
    skipped: list[str] = []
    try:
        written.append(str(plot(run, folder / "plots.png")))
    except ModuleNotFoundError as error:
        skipped.append(f"plots: {error.name} is missing (pip install 'alohas2r[train]')")
    try:
        film = video(run, folder / "video.mp4")
        if film is None:
            skipped.append("video: the policy saw no pictures")
        else:
            written.append(str(film))
    except BackendUnavailable as error:
        skipped.append(f"video: {error}")
    again: Reproduction | None = None
    named = str(run.header.get("policy", ""))
    if policy is not None:
        again = reproduce(run, policy)
    elif pathlib.Path(named).is_file():
        again = reproduce(run, named)
    else:
        skipped.append(f"policy: {named or 'none'} is no file here; name one with --policy")
    limits = from_dict(SafetyConfig, run.header["safety"])
    figures = drive_log.summarize(run)
    if run.header.get("stepped"):  # there was no pace to keep
        del figures["rate_hz"], figures["late_steps"]
    return {
        "run": str(path),
        "robot": run.header.get("robot"),
        "started": run.header.get("started"),
        "max_speed": limits.max_speed,
        **figures,
        "events": [str(event.get("text", "")) for event in run.events],
        "written": written,
        "skipped": skipped,
        "policy": None if again is None else dataclasses.asdict(again),
    }
