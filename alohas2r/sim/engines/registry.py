"""Physics engines behind one interface: reset, step, readout.

`cpu` is C MuJoCo on all cores; `warp` is MuJoCo Warp through mujoco.mjx, for NVIDIA GPUs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from alohas2r.errors import ConfigError, did_you_mean
from alohas2r.sim.engines.base import Engine
from alohas2r.sim.engines.buffers import BufferConfig
from alohas2r.sim.scene import Scene

ENGINES = ("cpu", "warp")
AUTO = "auto"


def choose(name: str = AUTO) -> str:
    """Returns the name of an engine; for "auto" that of "warp" where Warp and JAX find CUDA, else of "cpu".

    Raises:
      ConfigError: unknown engine.
    """
    if name != AUTO:
        if name not in ENGINES:
            raise ConfigError(f"Unknown engine '{name}'.{did_you_mean(name, (AUTO, *ENGINES))}")
        return name
    try:
        import jax
        import warp
        from mujoco.mjx.third_party import mujoco_warp  # noqa: F401

        cuda = jax.default_backend() == "gpu" and warp.get_cuda_device_count() > 0
    except (ImportError, RuntimeError):
        cuda = False
    return "warp" if cuda else "cpu"


def make(
    name: str,
    scene: Scene,
    num_envs: int,
    threads: int = 0,
    fields: Mapping[str, np.ndarray] | None = None,
    buffers: BufferConfig | None = None,
) -> Engine:
    """Creates an engine.

    Args:
      name: "auto", "cpu" or "warp".
      scene: the scene.
      num_envs: simulations.
      threads: CPU threads; 0 for all cores.
      fields: model field -> [N, ...] values per simulation, as from `randomize`.
      buffers: sizes of buffers; from the scene if None.

    Raises:
      ConfigError: unknown engine.
      ModelError: a field that the model lacks or of the wrong shape.
      BackendUnavailable: the engine cannot run here; the message says what it needs.
    """
    if choose(name) == "cpu":
        from alohas2r.sim.engines.cpu import CpuEngine

        return CpuEngine(scene, num_envs, threads, fields)
    from alohas2r.sim.engines.warp import WarpEngine

    return WarpEngine(
        scene, num_envs, threads, fields, **dataclasses.asdict(buffers or BufferConfig())
    )
