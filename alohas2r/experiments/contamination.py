"""The reward contamination experiment: one arm alone against both arms at once, at equal steps.

Trained together, each arm is paid for what the other does, and learning slows down. That is why the pick policy is
learned with one arm and then drives both, each in its own base frame. Source: the published report's appendix.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from alohas2r.config import check
from alohas2r.core import figures, files
from alohas2r.core.progress import Progress
from alohas2r.core.types import JsonObject, PyTree
from alohas2r.envs.env import Env
from alohas2r.envs.task import Scored
from alohas2r.experiments.both import BothTask
from alohas2r.learning.ppo import envs as ppo_envs
from alohas2r.learning.ppo import presets
from alohas2r.learning.ppo.algorithm import PpoAlgorithm, PpoState, Stage
from alohas2r.learning.run import manifest
from alohas2r.learning.run.log import METRICS, read_metrics
from alohas2r.learning.run.loop import Figures, Run, Schedule
from alohas2r.sim import objects, scene
from alohas2r.sim.engines.cpu import CpuEngine
from alohas2r.sim.physics_randomization import BlockConfig
from alohas2r.tasks.pick.config import PickConfig

LABELS = {
    "one": "one arm (7 actions, 53 observations)",
    "both": "both arms at once (14 actions, 106 observations)",
}
SHARES = ("reached", "lifted", "success")
CHECKPOINTS = 20  # of each way
Curves = dict[str, dict[str, list[float]]]


class _Way(PpoAlgorithm):
    """One of the two trainings; what it leaves is its metrics."""

    artifacts = ()

    def measured(self, scores: Sequence[Scored]) -> PyTree:
        """Returns the means of every eighth step's measures."""
        eighth = [scored.measures for scored in scores[::8]]
        return jax.tree.map(lambda *steps: np.mean(steps, axis=0, dtype=np.float64), *eighth)

    def finish(self, state: PpoState, trained: JsonObject, figures: Figures) -> dict[str, str]:
        """Writes nothing."""
        del state, trained, figures
        return {}


def run(
    out: str | os.PathLike[str],
    steps: int = 4_000_000,
    seed: int = 0,
    num_envs: int = 1024,
    threads: int = 0,
    progress: Progress | None = None,
) -> Curves:
    """Trains both ways from scratch and writes contamination.json and contamination.png.

    Both learn with the pick phase's default configuration; the single arm's blocks are as large as peg and socket.
    Each has a run in a folder of its own, "one" and "both"; called again, both go on where they were.

    Args:
      out: folder for the results.
      steps: environment steps of each training.
      seed: of both.
      num_envs: environments.
      threads: of the physics; 0 for all cores.
      progress: receives reports.

    Returns:
      {"one": {...}, "both": {...}}: lists of steps, and of the shares of arms per step that have reached the grip
      point, lifted, or are in success, while exploring. If stopped early, as far as they came.

    Raises:
      ConfigError: a number out of range, or the folder holds an experiment with other numbers.
      ArtifactError: the folder cannot be written.
    """
    check(steps >= 1, f"steps must be >= 1, not {steps}")
    folder = files.make_folder(out)
    settings = presets.find_preset("pick", "default").with_envs(num_envs)
    assert isinstance(settings.task, PickConfig)
    task = dataclasses.replace(settings.task, block=BlockConfig(half_side=(0.010, 0.022)))
    settings = dataclasses.replace(settings, task=task, total_steps=steps)
    curves: Curves = {}
    for name in LABELS:
        resume = manifest.exists(folder / name)
        with Run(folder / name, settings, {"seed": seed, "way": name}, resume) as own:
            way = _way(name, task, settings, seed, threads, own.folder)
            result = own.train(way, "", {}, Schedule(checkpoints=CHECKPOINTS), progress)
            rows = read_metrics(own.folder / METRICS)
        curves[name] = {
            "steps": [row["step"] for row in rows],
            **{share: [row[f"train/{share}"] for row in rows] for share in SHARES},
        }
        if not result["finished"]:
            return curves
    files.write_atomic(folder / "contamination.json", json.dumps(curves).encode() + b"\n")
    plot(curves, folder / "contamination.png")
    return curves


def _way(
    name: str,
    task: PickConfig,
    settings: presets.TrainConfig,
    seed: int,
    threads: int,
    folder: pathlib.Path,
) -> _Way:
    def make_env() -> Env:
        if name == "one":
            return ppo_envs.make_env(settings, seed, threads)
        return _both(task, settings, threads)

    stage = Stage(settings.ppo, settings.updates, make_env, jax.random.PRNGKey(seed + 1))
    return _Way(f"contamination, {name}", [stage], jax.random.PRNGKey(seed), folder)


def _both(task: PickConfig, settings: presets.TrainConfig, threads: int) -> Env:
    loaded = scene.load_physics("insert")
    count = settings.ppo.num_envs
    model = loaded.model
    sizes = [objects.SOCKET_HALF, objects.PEG_HALF]
    masses = [float(model.body_mass[loaded.id("body", name)]) for name in ("socket", "peg")]
    context = np.tile([sizes[0], masses[0], sizes[1], masses[1]], (count, 1))
    engine = CpuEngine(loaded, count, threads=threads)
    return Env(BothTask(loaded, task), engine, settings.env, context)


def plot(result: Curves, path: str | os.PathLike[str]) -> pathlib.Path:
    """Draws the learning curves of both ways.

    Raises:
      ArtifactError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), sharex=True, layout="constrained")
    for axis, key in zip(axes, ("reached", "lifted", "success"), strict=True):
        for name, label in LABELS.items():
            axis.plot(np.array(result[name]["steps"]) / 1e6, result[name][key], label=label)
        highest = max(max(rows[key]) for rows in result.values())
        axis.set(title=key, xlabel="environment steps (millions)")
        axis.set_ylim(0, max(1.15 * highest, 0.01))  # no noise drawn large
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of arms, exploring")
    axes[0].legend(fontsize=7, loc="upper left")
    return figures.save(figure, path)
