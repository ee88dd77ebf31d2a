"""The CPU engine: C MuJoCo on `mujoco.batch.Batch`, a thread pool over many simulations."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

import mujoco.batch
import numpy as np

from alohas2r.core import threads as core_threads
from alohas2r.errors import ModelError
from alohas2r.sim.scene import SUBSTEPS, Scene
from alohas2r.sim.signals import Readout


class Physics(NamedTuple):
    """The whole state of N simulations, and what they last reported; plain arrays.

    `rows` may be the engine's own buffer, which the next step overwrites: copy it to keep it.
    """

    rows: np.ndarray  # [N, nstate] float64, MuJoCo's mjSTATE_INTEGRATION
    sensordata: np.ndarray  # [N, nsensordata] float64


class CpuEngine:
    """Steps N simulations of a scene on all cores.

    Results are the same bits at any thread count and batch size.

    Args:
      scene: the scene.
      num_envs: N.
      threads: threads to use; 0 for all cores.
      fields: model field -> [N, ...] values per simulation, as from `randomize`.
      substeps: physics steps per control step.

    Raises:
      ModelError: a field that the model lacks or of the wrong shape.
    """

    name = "cpu"
    traceable = False

    def __init__(
        self,
        scene: Scene,
        num_envs: int,
        threads: int = 0,
        fields: Mapping[str, np.ndarray] | None = None,
        substeps: int = SUBSTEPS,
    ):
        self.scene = scene
        self.num_envs = num_envs
        self.substeps = substeps
        self.threads = threads or len(core_threads.cores())
        # Left to itself MuJoCo restarts a diverged simulation in silence from its default pose; it must be seen.
        model = copy.copy(scene.model)
        model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
        self.batch = mujoco.batch.Batch(model, num_envs, nthread=self.threads)
        for name, values in (fields or {}).items():
            try:
                target = self.batch.expand(name)
                target[:] = np.asarray(values).reshape(target.shape)
            except (ValueError, AttributeError) as error:
                raise ModelError(
                    f"Model field '{name}' cannot take these values: {error}"
                ) from error
        if fields:
            self.batch.set_const()
        self._qpos = self.batch.bind("qpos")
        self._qvel = self.batch.bind("qvel")
        self._ctrl = self.batch.bind("ctrl")
        self._sensordata = self.batch.bind("sensordata")
        self._rows = self.batch.state

    def reset(
        self,
        physics: Physics | None,
        mask: np.ndarray,
        qpos: np.ndarray,
        ctrl: np.ndarray,
        qvel: np.ndarray | None = None,
    ) -> tuple[Physics, Readout]:
        """Restarts the masked simulations and runs their whole forward pass.

        Args:
          physics: the state of all simulations; None for a first reset.
          mask: [N] which simulations restart.
          qpos: [N, nq], ctrl: [N, nu], qvel: [N, nv] (zero if None); rows outside the mask are ignored.

        Returns:
          The new state and the readout of all simulations.
        """
        self._load(physics)
        ids = np.flatnonzero(mask)
        if ids.size:
            self.batch.reset(ids, stage=int(mujoco.mjtStage.mjSTAGE_NONE))
            self._qpos[ids] = qpos[ids]
            self._ctrl[ids] = ctrl[ids]
            if qvel is not None:
                self._qvel[ids] = qvel[ids]
            self.batch.forward(ids)
        return self._physics(), self._readout()

    def step(self, physics: Physics, ctrl: np.ndarray) -> tuple[Physics, Readout]:
        """Advances all simulations by one control step.

        Args:
          physics: the state, from the last call or a copy of an earlier one.
          ctrl: [N, nu] actuator targets.

        Returns:
          The new state and the readout; frames describe the new state.
        """
        self._load(physics)
        self._ctrl[:] = ctrl
        self.batch.step(nstep=self.substeps, stage=int(mujoco.mjtStage.mjSTAGE_VEL))
        return self._physics(), self._readout()

    def readout(self, physics: Physics) -> Readout:
        """Returns what a state reports, without stepping."""
        self._load(physics)
        return self._readout(physics.sensordata)

    def check(self, physics: Physics) -> None:
        """Does nothing: C MuJoCo's buffers grow as needed."""

    def _load(self, physics: Physics | None) -> None:
        if physics is not None and physics.rows is not self._rows:
            self._rows[:] = physics.rows

    def _physics(self) -> Physics:
        return Physics(self._rows, self._sensordata)

    def _readout(self, sensordata: np.ndarray | None = None) -> Readout:
        return Readout(
            self._qpos.astype(np.float32),
            self._qvel.astype(np.float32),
            self._ctrl.astype(np.float32),
            (self._sensordata if sensordata is None else sensordata).astype(np.float32),
        )
