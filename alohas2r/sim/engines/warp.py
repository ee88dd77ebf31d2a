"""The Warp engine: MuJoCo Warp through `mujoco.mjx`, for NVIDIA GPUs, and on a CPU as the reference in tests."""

from __future__ import annotations

import copy
import enum
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.core
import jax.numpy as jnp
import mujoco.batch
import numpy as np

from alohas2r.core.types import Array, PyTree, Untyped
from alohas2r.errors import BackendUnavailable, ModelError
from alohas2r.sim.engines.cpu import CpuEngine
from alohas2r.sim.scene import SUBSTEPS, Scene
from alohas2r.sim.signals import Readout

_INSTALL = "pip install 'mujoco-mjx[warp]>=3.17'"
# Model fields that may differ between simulations of the CPU engine although Warp has one value for all: it has no
# bounding volume hierarchy, uses the length of a degree of freedom for sleeping only, and never the mass at qpos0.
_UNUSED = ("bvh_aabb", "dof_M0", "dof_length")
# Room for contacts of one simulation, on average over the batch, for each geom that moves. Contacts that are near
# enough to be looked at count too. Trained and random policies need up to 1.5 at once.
_CONTACTS_PER_GEOM = 3
_FEW = 8  # Few simulations share room for so many, as one of them may need more than the average.


class WarpPhysics(NamedTuple):
    """The whole state of N simulations, and what they last reported; JAX arrays, never overwritten."""

    qpos: jax.Array  # [N, nq]
    qvel: jax.Array  # [N, nv]
    ctrl: jax.Array  # [N, nu]
    warmstart: jax.Array  # [N, nv] last acceleration, where the solver starts
    sensordata: jax.Array  # [N, nsensordata]
    contacts: jax.Array  # [] int32 most contacts of all simulations at once so far
    constraints: jax.Array  # [] int32 most constraint rows of one simulation so far
    lost: (
        jax.Array
    )  # [N] int32 other things that did not fit so far, bits of mujoco_warp's OverflowType

    @property
    def rows(self) -> np.ndarray:
        """The state [N, nq + 2 nv + nu] in one array."""
        parts = (self.qpos, self.qvel, self.ctrl, self.warmstart)
        return np.concatenate([np.asarray(part) for part in parts], 1)


def most_contacts(model: mujoco.MjModel) -> int:
    """Returns how many contacts the moving geoms of a model are given room for in one simulation."""
    moving = model.body_weldid[model.geom_bodyid] > 0
    collides = (model.geom_contype > 0) | (model.geom_conaffinity > 0)
    return max(4, _CONTACTS_PER_GEOM * int((moving & collides).sum()))


def most_constraints(model: mujoco.MjModel, contacts: int) -> int:
    """Returns the constraint rows of a model with all its equalities, dry joints and limits, and so many contacts."""
    size = {
        mujoco.mjtEq.mjEQ_CONNECT: 3,
        mujoco.mjtEq.mjEQ_WELD: 6,
    }
    equalities = sum(size.get(mujoco.mjtEq(kind), 1) for kind in model.eq_type)
    dry = int((model.dof_frictionloss > 0).sum())
    limits = int(model.jnt_limited.sum())
    # A pyramid over a cone of dimension d has 2 (d - 1) edges.
    edges = max(1, 2 * (int(model.geom_condim.max(initial=1)) - 1))
    return equalities + dry + limits + edges * contacts


def _overflow_type() -> type[enum.IntFlag]:
    from mujoco.mjx.third_party.mujoco_warp._src.types import OverflowType

    return OverflowType


class WarpEngine:
    """Steps N simulations of a scene with MuJoCo Warp: on the first NVIDIA GPU, or else on one CPU core.

    `reset` and `step` are pure functions of JAX arrays that can be called inside `jax.jit`. There, what overflows its
    buffer is only noted in the state, and the caller asks `check` from time to time; outside, both ask it themselves.
    The results are the same bits each time on a CPU; on a GPU sums may be taken in another order.

    Args:
      scene: the scene.
      num_envs: N.
      threads: of what is computed beforehand on the CPU; 0 for all cores.
      fields: model field -> [N, ...] values per simulation, as from `randomize`.
      substeps: physics steps per control step.
      contacts: room for contacts of one simulation, on average over all; 0 for what the scene needs.
      constraints: room for constraint rows of one simulation; 0 for what the scene needs.

    Raises:
      BackendUnavailable: Warp is not installed, or cannot simulate this scene.
      ModelError: a field that the model lacks or of the wrong shape, or that cannot differ between simulations.
    """

    name = "warp"
    traceable = True

    def __init__(
        self,
        scene: Scene,
        num_envs: int,
        threads: int = 0,
        fields: Mapping[str, np.ndarray] | None = None,
        substeps: int = SUBSTEPS,
        contacts: int = 0,
        constraints: int = 0,
    ):
        try:
            import warp as wp
            from mujoco import mjx
        except ImportError as error:
            raise BackendUnavailable(
                f"The engine 'warp' needs Warp: {_INSTALL} ({error})."
            ) from error
        wp.config.log_level = max(wp.config.log_level, wp.LOG_WARNING)
        self.scene = scene
        self.num_envs = num_envs
        self.substeps = substeps
        self.contacts = contacts or most_contacts(scene.model)
        self.constraints = constraints or most_constraints(scene.model, self.contacts)
        self._room = self.contacts * max(num_envs, _FEW)
        # C MuJoCo takes the fields in and derives from them what follows (mj_setConst), each simulation by itself.
        native = CpuEngine(scene, num_envs, threads, fields)
        self.threads = native.threads
        frames = copy.copy(scene.model)
        frames.opt.iterations = 1  # whose forces are not looked at
        self._mjx = mjx
        try:
            self._model = self._quiet(mjx.put_model(scene.model, impl="warp"))
            self._frames = self._quiet(mjx.put_model(frames, impl="warp"))
            self._data = mjx.make_data(
                scene.model,
                impl="warp",
                naconmax=self._room,
                njmax=self.constraints,
            )
        except (RuntimeError, NotImplementedError, ValueError) as error:
            raise BackendUnavailable(
                f"Warp cannot simulate this scene: {error}; {_INSTALL}."
            ) from error
        self._fields = self._carried(native.batch)
        needed = scene.model.sensor_needstage == int(mujoco.mjtStage.mjSTAGE_ACC)
        self._forces = np.repeat(needed, scene.model.sensor_dim)  # [nsensordata]
        self._step = jax.jit(self._step_all)
        self._reset = jax.jit(self._reset_all)

    def reset(
        self,
        physics: WarpPhysics | None,
        mask: Array,
        qpos: Array,
        ctrl: Array,
        qvel: Array | None = None,
    ) -> tuple[WarpPhysics, Readout]:
        """Restarts the masked simulations and runs their whole forward pass.

        Args:
          physics: the state of all simulations; None for a first reset.
          mask: [N] which simulations restart.
          qpos: [N, nq], ctrl: [N, nu], qvel: [N, nv] (zero if None); rows outside the mask are ignored.

        Returns:
          The new state and the readout of all simulations.

        Raises:
          ModelError: contacts or constraints did not fit (outside of `jax.jit`).
        """
        model = self.scene.model
        count = self.num_envs
        before = physics
        if before is None:
            before = WarpPhysics(
                qpos=jnp.tile(jnp.asarray(model.qpos0, jnp.float32), (count, 1)),
                qvel=jnp.zeros((count, model.nv)),
                ctrl=jnp.zeros((count, model.nu)),
                warmstart=jnp.zeros((count, model.nv)),
                sensordata=jnp.zeros((count, model.nsensordata)),
                contacts=jnp.zeros((), jnp.int32),
                constraints=jnp.zeros((), jnp.int32),
                lost=jnp.zeros((), jnp.int32),
            )
        start = (
            jnp.asarray(qpos, jnp.float32),
            jnp.zeros((count, model.nv)) if qvel is None else jnp.asarray(qvel, jnp.float32),
            jnp.asarray(ctrl, jnp.float32),
        )
        after: WarpPhysics = self._reset(before, jnp.asarray(mask, bool), *start)
        self._check_now(after)
        return after, self.readout(after)

    def step(self, physics: WarpPhysics, ctrl: Array) -> tuple[WarpPhysics, Readout]:
        """Advances all simulations by one control step.

        Args:
          physics: the state, from the last call or any earlier one.
          ctrl: [N, nu] actuator targets.

        Returns:
          The new state and the readout; frames describe the new state.

        Raises:
          ModelError: contacts or constraints did not fit (outside of `jax.jit`).
        """
        physics = self._step(physics, jnp.asarray(ctrl, jnp.float32))
        self._check_now(physics)
        return physics, self.readout(physics)

    def readout(self, physics: WarpPhysics) -> Readout:
        """Returns what a state reports, without stepping."""
        return Readout(physics.qpos, physics.qvel, physics.ctrl, physics.sensordata)

    def check(self, physics: WarpPhysics) -> None:
        """Looks whether all contacts and constraints since the first reset have fitted into their buffers.

        Raises:
          ModelError: they have not; the message names the number to set.
        """
        contacts, constraints, lost = (
            int(value)
            for value in jax.device_get((physics.contacts, physics.constraints, physics.lost))
        )
        if contacts > self._room:
            wanted = math.ceil(1.5 * contacts / max(self.num_envs, _FEW))
            raise ModelError(
                f"{contacts} contacts or nearly touching pairs of geoms at once in {self.num_envs} simulations; there"
                f" is room for {self._room}: set engine.contacts={wanted} (now {self.contacts} per simulation)."
            )
        if constraints > self.constraints:
            raise ModelError(
                f"{constraints} constraint rows in one simulation; there is room for {self.constraints}: set"
                f" engine.constraints={math.ceil(1.5 * constraints)}."
            )
        if lost:
            raise ModelError(
                f"A collision buffer was too small ({_overflow_type()(lost)}): set engine.contacts="
                f"{2 * self.contacts} (now {self.contacts} per simulation)."
            )

    def _check_now(self, physics: WarpPhysics) -> None:
        if not isinstance(physics.contacts, jax.core.Tracer):
            self.check(physics)

    @staticmethod
    def _quiet(model: Untyped) -> Untyped:
        """Returns the model without messages from the device: `check` says what there is to say."""
        return model.tree_replace({"opt._impl.warn_overflow": 0})

    @staticmethod
    def _watched(overflow: jax.Array) -> jax.Array:
        """Returns the bits of buffers among those of all simulations [N]; reaching an iteration limit is no fault."""
        kinds = _overflow_type()
        bits = sum(int(kinds[name]) for name in ("CCD", "CONTACT_MATCH", "NJMAX_NNZ"))
        return jax.lax.reduce(overflow & bits, np.int32(0), jax.lax.bitwise_or, (0,))

    def _carried(self, batch: mujoco.batch.Batch) -> dict[str, jax.Array]:
        """Returns the model fields that differ between simulations, or from the scene's, as Warp wants them."""
        from mujoco.mjx.warp import types

        batched = types._BATCH_DIM["Model"]  # field -> whether Warp can have one per simulation
        fields = {}
        for name in sorted(mujoco.batch.MODEL_FIELDS):
            values = batch.expanded(name)
            if values is None or name in _UNUSED:
                continue
            if not batched.get(name):
                raise ModelError(f"The engine 'warp' has the model field '{name}' only once.")
            nominal = getattr(self._model, name)
            shaped = np.asarray(values, np.float32).reshape(self.num_envs, *nominal.shape)
            if (shaped != np.asarray(nominal)).any():
                fields[name] = jnp.asarray(shaped)
        return fields

    def _over(self, model: Untyped) -> tuple[Untyped, Untyped]:
        """Returns a model with the fields of each simulation, and the axes to map over."""
        axes = jax.tree.map(lambda _: None, model).tree_replace(dict.fromkeys(self._fields, 0))
        return model.tree_replace(self._fields), axes

    def _forward(
        self, nominal: Untyped, qpos: jax.Array, qvel: jax.Array, ctrl: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Runs the whole forward pass of all simulations.

        Args:
          nominal: the model without the simulations' own fields.
          qpos: [N, nq]. qvel: [N, nv]. ctrl: [N, nu].

        Returns:
          Sensors [N, nsensordata], where the solver is to start [N, nv], contacts [], constraint rows [N], lost [N].
        """

        def one(model: Untyped, qpos: jax.Array, qvel: jax.Array, ctrl: jax.Array) -> PyTree:
            data = self._data.replace(qpos=qpos, qvel=qvel, ctrl=ctrl)
            data = self._mjx.forward(model, data)
            inner = data._impl
            contacts = jnp.maximum(inner.nacon[0], inner.ncollision[0])
            return data.sensordata, data.qacc_warmstart, contacts, inner.nefc, inner.overflow

        model, axes = self._over(nominal)
        mapped = jax.vmap(one, in_axes=(axes, 0, 0, 0), out_axes=(0, 0, None, 0, 0))
        return mapped(model, qpos, qvel, ctrl)

    def _reset_all(
        self,
        physics: WarpPhysics,
        mask: jax.Array,
        qpos: jax.Array,
        qvel: jax.Array,
        ctrl: jax.Array,
    ) -> WarpPhysics:
        def restart() -> WarpPhysics:
            sensors, warmstart, contacts, constraints, lost = self._forward(
                self._model, qpos, qvel, ctrl
            )

            def pick(new: jax.Array, old: jax.Array) -> jax.Array:
                return jnp.where(mask[:, None], new, old)

            return WarpPhysics(
                qpos=pick(qpos, physics.qpos),
                qvel=pick(qvel, physics.qvel),
                ctrl=pick(ctrl, physics.ctrl),
                warmstart=pick(warmstart, physics.warmstart),
                sensordata=pick(sensors, physics.sensordata),
                contacts=jnp.maximum(physics.contacts, contacts),
                constraints=jnp.maximum(physics.constraints, constraints.max()),
                lost=physics.lost | self._watched(lost),
            )

        return jax.lax.cond(mask.any(), restart, lambda: physics)

    def _step_all(self, physics: WarpPhysics, ctrl: jax.Array) -> WarpPhysics:
        def substeps(
            model: Untyped, qpos: jax.Array, qvel: jax.Array, ctrl: jax.Array, warmstart: jax.Array
        ) -> PyTree:
            data = self._data.replace(qpos=qpos, qvel=qvel, ctrl=ctrl, qacc_warmstart=warmstart)

            def substep(_: int, carry: PyTree) -> PyTree:
                data, contacts, constraints = carry
                data = self._mjx.step(model, data)
                inner = data._impl
                contacts = jnp.maximum(contacts, jnp.maximum(inner.nacon[0], inner.ncollision[0]))
                return data, contacts, jnp.maximum(constraints, inner.nefc)

            zero = jnp.zeros((), jnp.int32)
            data, contacts, constraints = jax.lax.fori_loop(
                0, self.substeps, substep, (data, zero, zero)
            )
            new = (data.qpos, data.qvel, data.qacc_warmstart, data.sensordata)
            return (*new, contacts, constraints, data._impl.overflow)

        model, axes = self._over(self._model)
        mapped = jax.vmap(substeps, in_axes=(axes, 0, 0, 0, 0), out_axes=(0, 0, 0, 0, None, 0, 0))
        qpos, qvel, warmstart, forces, contacts, constraints, lost = mapped(
            model, physics.qpos, physics.qvel, ctrl, physics.warmstart
        )
        # The sensors of a step describe the state before its last substep. Forces stay so; the others must not lag.
        fresh, _, more, _, _ = self._forward(self._frames, qpos, qvel, ctrl)
        return WarpPhysics(
            qpos=qpos,
            qvel=qvel,
            ctrl=ctrl,
            warmstart=warmstart,
            sensordata=jnp.where(self._forces, forces, fresh),
            contacts=jnp.maximum(physics.contacts, jnp.maximum(contacts, more)),
            constraints=jnp.maximum(physics.constraints, constraints.max()),
            lost=physics.lost | self._watched(lost),
        )
