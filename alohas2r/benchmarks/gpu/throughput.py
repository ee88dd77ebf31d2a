"""How fast a GPU steps physics and draws pictures."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from alohas2r.benchmarks.gpu.job import Job, Scene, repeat
from alohas2r.core.types import Array, JsonObject, PyTree

if TYPE_CHECKING:
    import numpy as np

    from alohas2r.learning.ppo.presets import TrainConfig
    from alohas2r.rendering.protocol import Prepared


def physics_settings(phase: Scene, environments: int) -> TrainConfig:
    """Returns the default training's configuration with another number of environments.

    Raises:
      ConfigError: a number out of range.
    """
    from alohas2r.learning.ppo import presets

    return presets.find_preset(phase, "default").with_envs(environments)


def physics(job: Job, phase: Scene) -> None:
    """Steps the training's randomized simulations under random actions."""
    import jax
    import jax.numpy as jnp

    from alohas2r.envs.actuation import ControlConfig
    from alohas2r.evaluation import episodes
    from alohas2r.learning.ppo import envs as ppo_envs

    def measure(environments: int) -> JsonObject:
        started = time.monotonic()
        env = ppo_envs.make_env(physics_settings(phase, environments), 0, engine="warp")
        engine, loaded = env.engine, env.engine.scene
        _, physics, _ = env.reset(episodes.episode_keys(0, 0, environments))
        jax.block_until_ready(physics)
        built_s = time.monotonic() - started
        shape = (job.scale.steps, environments, len(loaded.home_ctrl))
        actions = jax.random.uniform(jax.random.PRNGKey(0), shape, minval=-1.0, maxval=1.0)
        walk = physics.ctrl + ControlConfig().scale * jnp.cumsum(actions, 0)
        targets = jnp.clip(walk, jnp.asarray(loaded.ctrl_low), jnp.asarray(loaded.ctrl_high))

        @jax.jit
        def run(physics: PyTree, targets: jax.Array) -> PyTree:
            return jax.lax.scan(lambda p, ctrl: (engine.step(p, ctrl)[0], None), physics, targets)

        first, took, last = repeat(lambda: run(physics, targets), job.scale.seconds)
        engine.check(last[0])
        typical = statistics.median(took)
        return {
            "control_steps_per_s": job.scale.steps * environments / typical,
            "physics_steps_per_s": job.scale.steps * environments * engine.substeps / typical,
            "built_s": built_s,
            "jit_s": max(first - typical, 0.0),
            "calls": len(took),
        }

    job.each([{"environments": count} for count in job.scale.environments], measure)


def rendering(job: Job) -> None:
    """Draws both wrist cameras' pictures of random poses and looks, with and without shadows."""
    import jax
    import numpy as np

    from alohas2r.rendering import registry as renderers

    prepared, all_poses, all_looks = views(max(job.scale.environments))
    cameras = len(prepared.cameras)

    def measure(environments: int, shadows: bool) -> JsonObject:
        poses = jax.device_put(np.asarray(all_poses[:environments], np.float32))
        sample = jax.device_put({name: value[:environments] for name, value in all_looks.items()})
        started = time.monotonic()
        drawer: Array = renderers.make("warp", prepared, shadows=shadows, capacity=environments)
        built_s = time.monotonic() - started
        draw = jax.jit(drawer.draw)
        first, took, _ = repeat(lambda: draw(poses, sample), job.scale.seconds)
        typical = statistics.median(took)
        _, copied, _ = repeat(lambda: jax.tree.map(np.asarray, draw(poses, sample)), 0)
        return {
            "environments_per_s": environments / typical,
            "pictures_per_s": cameras * environments / typical,
            "environments_per_s_copied": environments / statistics.median(copied),
            "built_s": built_s,
            "jit_s": max(first - typical, 0.0),
            "calls": len(took),
        }

    units = [
        {"environments": count, "shadows": shadows}
        for count in job.scale.environments
        for shadows in (False, True)
    ]
    job.each(units, measure)


def views(count: int) -> tuple[Prepared, np.ndarray, dict[str, np.ndarray]]:
    """Returns the insertion scene as renderers want it, poses [count, nq], and looks."""
    import jax
    import numpy as np

    from alohas2r.rendering import gallery, visual_randomization
    from alohas2r.rendering import protocol as rendering_protocol
    from alohas2r.sim import scene

    loaded = scene.load("insert")
    sample = visual_randomization.sample_looks(jax.random.key(0), count, loaded)
    sample = {name: np.asarray(value) for name, value in sample.items()}
    return rendering_protocol.prepare(loaded), gallery.random_poses(loaded, count), sample
