"""Physics engines behind one interface: reset, step, readout.

`cpu` is C MuJoCo on all cores; `warp` is MuJoCo Warp through mujoco.mjx, for NVIDIA GPUs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from alohas2r.config import check
from alohas2r.errors import ConfigError, did_you_mean
from alohas2r.scene import Scene
from alohas2r.signals import Readout

ENGINES = ("cpu", "warp")
AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class BufferConfig:
    """Sizes of the buffers of the engine `warp`; the engine `cpu` needs none.

    Where they are too small, an error says what to set.

    Attributes:
      contacts: contacts of one simulation, on average over all; 0 for what the scene needs.
      constraints: constraint rows of one simulation; 0 for what the scene needs.
    """

    contacts: int = 0
    constraints: int = 0

    def __post_init__(self) -> None:
        check(0 <= self.contacts <= 100_000, "contacts must be in 0..100000")
        check(0 <= self.constraints <= 100_000, "constraints must be in 0..100000")


class Engine(Protocol):
    """Steps N simulations of a scene.

    The physics state is a NamedTuple of arrays, numpy's or JAX's, the whole of what a checkpoint needs; its `rows`
    are the simulations' states [N, n]. Where `traceable`, `reset` and `step` can be called inside `jax.jit`.
    """

    name: str
    traceable: bool
    scene: Scene
    num_envs: int
    threads: int
    substeps: int

    def reset(
        self, physics: Any, mask: Any, qpos: Any, ctrl: Any, qvel: Any = None
    ) -> tuple[Any, Readout]:
        """Restarts the masked simulations and runs their whole forward pass."""
        ...

    def step(self, physics: Any, ctrl: Any) -> tuple[Any, Readout]:
        """Advances all simulations by one control step."""
        ...

    def readout(self, physics: Any) -> Readout:
        """Returns what a state reports, without stepping."""
        ...

    def check(self, physics: Any) -> None:
        """Raises ModelError if something did not fit into the engine's buffers since the first reset."""
        ...


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

        found = jax.default_backend() == "gpu" and warp.get_cuda_device_count() > 0
    except (ImportError, RuntimeError):
        found = False
    return "warp" if found else "cpu"


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
        from alohas2r.engines.cpu import CpuEngine

        return CpuEngine(scene, num_envs, threads, fields)
    from alohas2r.engines.warp import WarpEngine

    return WarpEngine(
        scene, num_envs, threads, fields, **dataclasses.asdict(buffers or BufferConfig())
    )
