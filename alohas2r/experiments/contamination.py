"""The reward contamination experiment: one arm alone against both arms at once, at equal steps.

Trained together, each arm is paid for what the other does, and learning slows down. That is why the pick policy is
learned with one arm and then drives both, each in its own base frame. Source: recipe, section 3 (the published
report's appendix).
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.config import check
from alohas2r.core import figures, files
from alohas2r.core import progress as core_progress
from alohas2r.envs.env import Env
from alohas2r.experiments.both import BothTask
from alohas2r.learning.ppo import envs as ppo_envs
from alohas2r.learning.ppo import presets
from alohas2r.learning.ppo.learner import Ppo
from alohas2r.sim import objects, scene
from alohas2r.sim.engines.cpu import CpuEngine
from alohas2r.sim.physics_randomization import BlockConfig
from alohas2r.tasks.pick.config import PickConfig

LABELS = {
    "one": "one arm (7 actions, 53 observations)",
    "both": "both arms at once (14 actions, 106 observations)",
}


def run(
    out: str | os.PathLike[str],
    steps: int = 4_000_000,
    seed: int = 0,
    num_envs: int = 1024,
    threads: int = 0,
    progress: core_progress.Progress | None = None,
) -> dict[str, Any]:
    """Trains both ways from scratch and writes contamination.json and contamination.png.

    Both learn with the pick phase's default configuration; the single arm's blocks are as large as peg and socket.

    Args:
      out: folder for the results.
      steps: environment steps of each training.
      seed: of both.
      num_envs: environments.
      threads: of the physics; 0 for all cores.
      progress: receives reports.

    Returns:
      {"one": {...}, "both": {...}}: lists of steps, and of the shares of arms per step that have reached the grip
      point, lifted, or are in success, while exploring.

    Raises:
      ConfigError: a number out of range. ArtifactError: the folder cannot be written.
    """
    check(steps >= 1, f"steps must be >= 1, not {steps}")
    folder = files.make_folder(out)
    settings = presets.find_preset("pick", "default")
    assert isinstance(settings.task, PickConfig)
    block = BlockConfig(half_side=(objects.PEG_HALF, objects.SOCKET_HALF))
    task = dataclasses.replace(settings.task, block=block)
    settings = dataclasses.replace(
        settings,
        task=task,
        ppo=dataclasses.replace(settings.ppo, num_envs=num_envs),
    )
    result: dict[str, Any] = {}
    updates = -(-steps // settings.ppo.steps_per_update)
    meter = core_progress.Meter(
        "contamination", 2 * updates * settings.ppo.steps_per_update, progress
    )
    for number, name in enumerate(LABELS):
        env = (
            ppo_envs.make_env(settings, seed, threads)
            if name == "one"
            else _both(task, settings, threads)
        )
        ppo = Ppo(settings.ppo, env)
        learner = ppo.init(jax.random.PRNGKey(seed))
        state, physics, readout = env.reset(
            jax.random.split(jax.random.PRNGKey(seed + 1), num_envs), stagger=True
        )
        rows: dict[str, list[float]] = {"steps": [], "reached": [], "lifted": [], "success": []}
        for update in range(updates):
            rollout, final, state, physics, readout, scores = ppo.rollout(
                learner, state, physics, readout
            )
            learner, _ = ppo.update(learner, rollout, final, jnp.float32(update / updates))
            rows["steps"].append((update + 1) * settings.ppo.steps_per_update)
            for key in ("reached", "lifted", "success"):
                rows[key].append(
                    float(
                        np.mean([np.asarray(getattr(s.measures, key)).mean() for s in scores[::8]])
                    )
                )
            meter.update((number * updates + update + 1) * settings.ppo.steps_per_update)
        result[name] = rows
    files.write_atomic(folder / "contamination.json", json.dumps(result).encode() + b"\n")
    plot(result, folder / "contamination.png")
    return result


def _both(task: PickConfig, settings: presets.TrainConfig, threads: int) -> Env:
    loaded = scene.load_physics("insert")
    count = settings.ppo.num_envs
    model = loaded.model
    sizes = [objects.SOCKET_HALF, objects.PEG_HALF]
    masses = [float(model.body_mass[loaded.id("body", name)]) for name in ("socket", "peg")]
    context = np.tile([sizes[0], masses[0], sizes[1], masses[1]], (count, 1))
    engine = CpuEngine(loaded, count, threads=threads)
    return Env(BothTask(loaded, task), engine, settings.env, context)


def plot(result: dict[str, Any], path: str | os.PathLike[str]) -> pathlib.Path:
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
