"""What a student observes in simulation: poses -> renderer -> corruption -> delay -> pictures and proprioception.

All of it belongs to the student; the teacher has its own measurement with its own noise. Pictures and
proprioception of an environment arrive with one common delay. Looks and brightness stay with an environment for
an episode.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.config import check
from alohas2r.embodiment import history
from alohas2r.embodiment.control import DELAY_WEIGHTS
from alohas2r.embodiment.history import HistoryState
from alohas2r.embodiment.observation import proprioception
from alohas2r.policies.networks.stereo import INVERSE_SIDE, inverse_depth
from alohas2r.policies.spec import StudentSpec
from alohas2r.rendering import corruption as rendering_corruption
from alohas2r.rendering import stereo, visual_randomization
from alohas2r.rendering.corruption import CorruptConfig
from alohas2r.rendering.looks import draw as transfer_draw
from alohas2r.rendering.looks import nominal as nominal_looks
from alohas2r.rendering.looks import sensor as transfer_sensor
from alohas2r.rendering.looks.config import TransferConfig, find_looks
from alohas2r.rendering.protocol import Frames
from alohas2r.sim import scene
from alohas2r.sim.changed import check_camera, moved_cameras
from alohas2r.sim.signals import Signals
from alohas2r.sim.variation import Held

_AT_ONCE = 64  # looks that are drawn together, so that the compiler rounds alike for any number
_LOOKS, _STEPS = 1, 2  # streams of random numbers
_MOST_LOOKS = 4096  # that an episode can have, one after the other
# Scene -> the geom whose section differs from environment to environment.
_RESIZED = {"insert": "red_peg", "pick": "box"}


@dataclasses.dataclass(frozen=True)
class SensesConfig:
    """Noise and randomization of what the student observes. Source of all values: the published report.

    Attributes:
      joint_pos: half width of the uniform noise on the arm joints' positions (rad); the fingers are exact.
      delay_weights: relative probability that an observation is 0, 1, 2, ... steps old.
      corrupt: what the cameras do to pictures.
      corruption: whether they do it at all.
      looks: how colours, cameras, lights and sensors are randomized: true for "today", as `corrupt` and
        `visual_randomization.TABLE` say; false for not at all; "transfer" or "transfer held out", of
        `rendering.looks.config`, or their ranges, which take the place of `corrupt`.
      shadows: share of the environments whose lights may cast shadows; shadows take a good part of the time.
      looks_steps: after so many steps an episode gets other looks, so that a student meets more of them; 0 for never.
      camera: how far both wrist cameras are moved (mm) and turned (degrees) on top of that, as in
        `sim.changed.WorldParams`: mounted as on one certain robot.
    """

    joint_pos: float = 0.1
    delay_weights: tuple[float, ...] = DELAY_WEIGHTS
    corrupt: CorruptConfig = CorruptConfig()
    corruption: bool = True
    looks: bool | str | TransferConfig = True
    shadows: float = 0.25
    looks_steps: int = 0
    camera: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        check(0 <= self.joint_pos <= 1, f"joint_pos must be in 0..1 rad, not {self.joint_pos}")
        check(
            0 < len(self.delay_weights) <= 32
            and min(self.delay_weights) >= 0
            and sum(self.delay_weights) > 0,
            "delay_weights must be 1 to 32 numbers >= 0 with a positive sum",
        )
        check(0 <= self.shadows <= 1, f"shadows must be in 0..1, not {self.shadows}")
        check(
            0 <= self.looks_steps <= 10_000,
            f"looks_steps must be in 0..10000, not {self.looks_steps}",
        )
        find_looks(self.looks)
        check_camera(self.camera)

    @property
    def transfer(self) -> TransferConfig | None:
        """The ranges of the looks "transfer"; None for others."""
        return find_looks(self.looks)


# What the evaluation protocol adds for a student: every noise, and shadows wherever the looks have them.
EVALUATION = SensesConfig(shadows=1.0)
# What a policy from pixels sees, in training and evaluation: depth with the disparities of a D405, 18 mm x 848 pixels
# wide, in eighths of a pixel. Source: its data sheet.
PIXEL_SENSES = SensesConfig(corrupt=CorruptConfig(disparity=64.0), shadows=0.0)
DEPTH_UNIT = 1e-4  # m; of depth that is kept as whole numbers, the unit of a D405
IDEAL = SensesConfig(joint_pos=0, delay_weights=(1.0,), corruption=False, looks=False, shadows=0)


class SensesState(NamedTuple):
    """State of N environments' senses; D delays, C cameras. Pictures that a student lacks are None."""

    root: jax.Array  # [N, 2] random key of the environment; never changes
    episode: jax.Array  # [N] int32 number of the episode; with `root` it gives the looks
    key: jax.Array  # [N, 2] random key of the steps
    rgb: jax.Array | None  # [N, D, C, H, W, 3] uint8; of pairs 4 channels, see `Seen`
    depth: jax.Array | None  # [N, D, C, H, W] m; of policies from pixels uint16, see `pack_depth`
    vector: jax.Array  # [N, D, n]
    slot: jax.Array  # [N] int32 which of D is the newest, the same for all; one slot before it what is a step older
    seen: jax.Array  # [N] int32 observations since the reset
    memory: HistoryState
    # Of the looks "transfer"; None for others.
    gain: jax.Array | None = None  # [N, C] logarithm of the automatic exposure's gain
    start: jax.Array | None = (
        None  # [N, 2, 2] where the objects were at the start of the episode (m)
    )
    near: jax.Array | None = None  # [N, D, C, 8, 8] of students that see pairs, see `Seen`


class Seen(NamedTuple):
    """One observation of N environments, as the student's networks take it."""

    rgb: (
        jax.Array | None
    )  # [N, C, H, W, 3] uint8; of pairs 4 channels, the last the right imager's grey
    depth: jax.Array | None  # [N, C, H, W] m
    vector: jax.Array  # [N, n] what arrived
    features: jax.Array  # [N, F] with its moving averages
    near: jax.Array | None = (
        None  # [N, C, 8, 8] exact inverse depth of pairs, see `networks.stereo`
    )


class Senses:
    """The student's senses in N environments.

    Args:
      spec: the student; it says of which scene which pictures there are.
      config: noise and randomization.
      peg_half_side: [N] half the side of each environment's peg, or block (m).
      renderer: as `make_renderer` returns.
      geometry: what else differs from the scene in an environment's pictures: model field -> [N, ...].
      longest: delay (steps) that pictures or readings may have on top, where robots vary.
    """

    def __init__(
        self,
        spec: StudentSpec,
        config: SensesConfig,
        peg_half_side: np.ndarray,
        renderer: Any,
        geometry: Mapping[str, np.ndarray] | None = None,
        longest: int = 0,
    ):
        self.spec, self.config, self.renderer = spec, config, renderer
        self.num_envs = len(peg_half_side)
        self._scene = scene.load(spec.phase)
        self._packed = spec.from_pixels
        model = self._scene.model
        sizes = np.repeat(model.geom_size[None], self.num_envs, 0)
        sizes[:, self._scene.id("geom", _RESIZED[spec.phase]), 1:] = np.asarray(peg_half_side)[
            :, None
        ]
        self._geometry = {"geom_size": sizes, **(geometry or {})}
        self._delays = len(config.delay_weights) + longest
        count = round(config.shadows * self.num_envs)
        # Together, so that a renderer that draws batch by batch meets shadows in as few as possible.
        self._may_cast = np.arange(self.num_envs) < count
        self._transfer = config.transfer
        self._rights = len(spec.views) if spec.paired else 0  # right imagers
        # Places of the objects' x and y in qpos.
        self._places = np.array([arm.object_qpos[:2] for arm in self._scene.arms])
        self._looks: dict[str, np.ndarray] = {}
        self._drawn_for: tuple[np.ndarray, np.ndarray] | None = None

    @functools.cached_property
    def _bank(self) -> jax.Array | None:
        """The lines that depth pictures may have, where there are any."""
        if not (self.spec.has_depth and self.config.corruption) or self._transfer is not None:
            return None
        side = self.spec.cameras.size
        with jax.ensure_compile_time_eval():
            return jnp.asarray(rendering_corruption.line_bank(side, side, self.config.corrupt))

    def reset(self, keys: jax.Array) -> SensesState:
        """Starts all environments with one random key each, [N, 2]."""
        spec, count = self.spec, self.num_envs
        delays, size = self._delays, spec.cameras.size
        shape = (count, delays, len(spec.views), size, size)
        kind = jnp.uint16 if self._packed else jnp.float32
        memory = history.init(spec.history, spec.vector_size, jnp, (count,))
        if not spec.history.rates:
            memory = memory._replace(averages=None)  # a checkpoint takes no empty arrays
        return SensesState(
            root=jnp.asarray(keys),
            episode=jnp.zeros(count, jnp.int32),
            key=jax.vmap(functools.partial(jax.random.fold_in, data=_STEPS))(keys),
            rgb=jnp.zeros((*shape, 4 if spec.paired else 3), jnp.uint8) if spec.has_rgb else None,
            depth=jnp.zeros(shape, kind) if spec.has_depth else None,
            vector=jnp.zeros((count, delays, spec.vector_size), jnp.float32),
            slot=jnp.zeros(count, jnp.int32),
            seen=jnp.zeros(count, jnp.int32),
            memory=memory,
            gain=None if self._transfer is None else jnp.zeros(shape[:1] + shape[2:3], jnp.float32),
            start=None if self._transfer is None else jnp.zeros((count, 2, 2), jnp.float32),
            near=jnp.zeros((*shape[:3], INVERSE_SIDE, INVERSE_SIDE), jnp.float32)
            if spec.paired
            else None,
        )

    @staticmethod
    def restart(state: SensesState, done: jax.Array) -> SensesState:
        """Begins a new episode where `done` [N]: other looks, and nothing remembered (traceable).

        Pictures and vectors of the last episode stay in the buffers, but `seen` makes sure that none arrives.
        """

        def cleared(leaf: jax.Array) -> jax.Array:
            return jnp.where(done.reshape(-1, *[1] * (leaf.ndim - 1)), 0, leaf)

        return state._replace(
            episode=state.episode + done,
            seen=cleared(state.seen),
            memory=jax.tree.map(cleared, state.memory),
        )

    def restart_some(self, state: SensesState, done: jax.Array) -> SensesState:
        """Does the same as `restart`, compiled, without copying the buffers."""
        small = _restart(state._replace(rgb=None, depth=None, vector=None), done)
        return small._replace(rgb=state.rgb, depth=state.depth, vector=state.vector)

    def looks(self, state: SensesState, qpos: Any = None) -> dict[str, np.ndarray]:
        """Returns the looks of the present steps: model field -> [N, ...], and what the sensors need.

        Args:
          state: of the senses.
          qpos: [N, nq]; at the start of an episode the looks "transfer" keep clutter away from where the objects are.
        """
        root, drawing = np.asarray(state.root), np.asarray(self._drawing(state))
        if not self._looks:
            self._looks = self._nominal()
        if not self.config.looks:
            return self._looks
        changed = np.ones(self.num_envs, bool)
        if self._drawn_for is not None:
            changed = (self._drawn_for[0] != root).any(1) | (self._drawn_for[1] != drawing)
        ids = np.flatnonzero(changed)
        start = self._start(state, qpos, np) if ids.size else None
        for first in range(0, len(ids), _AT_ONCE):
            some = ids[first : first + _AT_ONCE]
            padded = np.resize(some, _AT_ONCE)
            drawn = self._sample(
                root[padded], drawing[padded], None if start is None else start[padded]
            )
            drawn |= self._mounted(drawn, np)
            for name, value in drawn.items():
                value = np.asarray(value)[: len(some)]
                if self._looks[name].dtype != value.dtype:
                    self._looks[name] = self._looks[name].astype(value.dtype)
                self._looks[name][some] = value
            self._looks["light_castshadow"][some] &= self._may_cast[some, None]
        self._drawn_for = root.copy(), drawing.copy()
        return self._looks

    def _drawing(self, state: SensesState) -> Any:
        """Returns the numbers [N] of the looks that the environments have now."""
        if not self.config.looks_steps:
            return state.episode
        return state.episode * _MOST_LOOKS + state.seen // self.config.looks_steps

    @property
    def has_causes(self) -> bool:
        """Whether the looks have causes that can be told."""
        return self._transfer is not None

    def causes(self, state: SensesState, qpos: Any = None) -> dict[str, np.ndarray]:
        """Returns what the causes of the present episodes' looks came to: name -> [N] float32.

        Args:
          state: of the senses. qpos: [N, nq], see `looks`.
        """
        return transfer_draw.causes(self.looks(state, qpos))

    def _sample(self, root: Any, drawing: Any, start: Any) -> dict[str, Any]:
        """Draws the looks [K, ...] with these numbers; see `_sample_looks`."""
        if self._transfer is None:
            return _sample_looks(root, drawing, name=self.spec.phase, rights=self._rights)
        return _sample_transfer(root, drawing, start, config=self._transfer)

    def _mounted(self, looks: Mapping[str, Any], xp: Any) -> dict[str, Any]:
        """Returns where the cameras of looks [..., ncam, 3 or 4] are on a robot that has them mounted elsewhere."""
        if self.config.camera == (0.0, 0.0):
            return {}
        place, turn = moved_cameras(
            self.config.camera, self._scene, looks["cam_pos"], looks["cam_quat"], xp
        )
        return {"cam_pos": place, "cam_quat": turn}

    def _start(self, state: SensesState, qpos: Any, xp: Any) -> Any:
        """Returns where the objects were at the start of the episodes, [N, 2, 2] (m); None where it does not matter."""
        if state.start is None:
            return None
        if qpos is None:
            return xp.asarray(state.start)
        return xp.where(
            xp.asarray(state.seen)[:, None, None] == 0,
            xp.asarray(qpos)[:, self._places],
            xp.asarray(state.start),
        ).astype(np.float32)

    def _nominal(self) -> dict[str, np.ndarray]:
        """Returns looks without randomization, of each environment's peg."""
        model = self._scene.model
        base: dict[str, np.ndarray] = {
            **visual_randomization.nominal(model),
            visual_randomization.BRIGHTNESS: np.ones((), np.float32),
        }
        if self._transfer is not None:
            names = transfer_draw.cause_names(self._transfer)
            base = {
                **nominal_looks.transfer(model),
                **dict.fromkeys(names, np.zeros((), np.float32)),
            }
        if self.spec.paired:
            base |= stereo.no_error(self._rights)
        base |= self._mounted(base, np)
        looks = visual_randomization.repeat(base, self.num_envs)
        looks |= self._geometry
        looks["light_castshadow"][~self._may_cast] = False
        return looks

    def looks_traced(self, state: SensesState, qpos: Any = None) -> dict[str, jax.Array]:
        """Returns the same as `looks`, inside `jax.jit`.

        All are drawn anew each time, which gives the same looks for the same numbers: on a device that draws the
        pictures it takes no time, and there is nothing to keep.
        """
        looks = {name: jnp.asarray(value) for name, value in self._nominal().items()}
        if self.config.looks:
            drawn = self._sample(state.root, self._drawing(state), self._start(state, qpos, jnp))
            looks |= drawn | self._mounted(drawn, jnp)
            looks["light_castshadow"] &= jnp.asarray(self._may_cast)[:, None]
        return looks

    def draw_traced(self, state: SensesState, qpos: jax.Array) -> tuple[Frames | None, Any]:
        """Does the same as `draw`, inside `jax.jit`; for the renderer "warp" with capacity for all environments."""
        looks = self.looks_traced(state, qpos)
        told = self._told(looks, self._start(state, qpos, jnp))
        if not (self.spec.has_rgb or self.spec.has_depth):
            return None, told
        return self.renderer.draw(qpos, looks), told

    def draw(self, state: SensesState, qpos: Any) -> tuple[Frames | None, Any]:
        """Renders what the cameras are pointed at, before any corruption.

        Args:
          state: of the senses. qpos: [N, nq] of the scene.

        Returns:
          The pictures, or None if the student sees none, and what `perceive` has to know of the environments' looks:
          their brightness [N], or fields of the sensors by name.
        """
        looks = self.looks(state, qpos)
        told = self._told(looks, self._start(state, qpos, np))
        if not (self.spec.has_rgb or self.spec.has_depth):
            return None, told
        return self.renderer.render(qpos, looks), told

    def _told(self, looks: dict[str, Any], start: Any) -> Any:
        """Returns what `perceive` has to know of looks."""
        if self._transfer is None:
            return looks[visual_randomization.BRIGHTNESS]
        return {name: looks[name] for name in nominal_looks.SENSOR_FIELDS} | {"start": start}

    def perceive(
        self,
        state: SensesState,
        frames: Frames | None,
        told: Any,
        signals: Signals,
        held: Held | None = None,
        command: jax.Array | None = None,
    ) -> tuple[SensesState, Seen]:
        """Corrupts and delays what is drawn, and measures the joints (traceable).

        Args:
          state: of the senses.
          frames, told: from `draw`.
          signals: the state [N, ...]; exact, but that joints and targets are in terms of readings where robots vary.
          held: of robots that vary: then pictures and readings are late by different times, and targets, which the
            policy's own side knows, not at all.
          command: [N, 3] where the object is commanded to; None of a student that is not told.
        """
        config, spec = self.config, self.spec
        keys = jax.vmap(functools.partial(jax.random.split, num=4))(state.key)  # [N, 4, 2]
        rgb, depth = (None, None) if frames is None else (frames.rgb, frames.depth)
        right = near = None
        if spec.paired and frames is not None:  # the right imagers come last
            right = stereo.luma(jnp.asarray(frames.rgb)[:, self._rights :])
            rgb, depth = frames.rgb[:, : self._rights], frames.depth[:, : self._rights]
            near = inverse_depth(depth)
        if self._transfer is not None:
            state, rgb, depth = self._sensed(state, keys[:, 1], rgb, depth, told)
        elif frames is not None and config.corruption:
            bank = self._bank
            if bank is None:  # depth is not observed
                bank = jnp.zeros((1, *frames.depth.shape[2:4]), jnp.float16)
            rgb, depth = rendering_corruption.corrupt(
                keys[:, 1], rgb, depth, told, bank, config.corrupt
            )
            if right is not None:
                right = rendering_corruption.corrupt_grey(keys[:, 1], right, told, config.corrupt)
        if right is not None:
            rgb = jnp.concatenate([jnp.asarray(rgb), right[..., None]], -1)

        arms = signals.qpos.shape[1]
        noise = jax.vmap(lambda key: jax.random.uniform(key, (arms, 6), minval=-1.0, maxval=1.0))(
            keys[:, 2]
        )
        noise = config.joint_pos * jnp.pad(noise, ((0, 0), (0, 0), (0, 2)))
        vector = proprioception(signals.qpos + noise, signals.ctrl, jnp)
        if command is not None:
            vector = jnp.concatenate([vector, command], -1)
        if self._packed and depth is not None:
            depth = pack_depth(depth, spec.cameras.depth_cutoff)

        weights = jnp.array(config.delay_weights) / sum(config.delay_weights)
        drawn = jax.vmap(jax.random.uniform)(keys[:, 3])
        steps = jnp.sum(drawn[:, None] > jnp.cumsum(weights)[:-1], -1)
        view, reading = (steps, steps)
        if held is not None:
            view, reading = steps + held.view_delay, steps + held.reading_delay
        slot = (state.slot + 1) % self._delays

        def push(past: jax.Array | None, newest: Any, late: jax.Array) -> tuple[Any, Any]:
            if past is None:
                return None, None
            row = jnp.asarray(newest)[:, None]
            kept = jax.lax.dynamic_update_slice_in_dim(past, row, slot[0], 1)
            late = jnp.minimum(late, state.seen)
            return kept, kept[jnp.arange(len(late)), (slot - late) % self._delays]

        rgbs, rgb = push(state.rgb, rgb, view)
        depths, depth = push(state.depth, depth, view)
        nears, near = push(state.near, near, view)
        vectors, vector = push(state.vector, vector, reading)
        if held is not None:
            positions = vector[:, : 8 * arms].reshape(-1, arms, 8)
            rest = vector[:, 16 * arms :]
            vector = proprioception(positions, signals.ctrl, jnp)
            vector = jnp.concatenate([vector, rest], -1)
        memory, features = history.update(spec.history, state.memory, vector, jnp)
        state = state._replace(
            key=keys[:, 0],
            rgb=rgbs,
            depth=depths,
            vector=vectors,
            slot=slot,
            seen=state.seen + 1,
            memory=memory,
            near=nears,
        )
        if self._packed and depth is not None:
            depth = unpack_depth(depth)
        return state, Seen(rgb, depth, vector, features, near)

    def _sensed(
        self, state: SensesState, keys: jax.Array, rgb: Any, depth: Any, told: Any
    ) -> tuple[SensesState, Any, Any]:
        """Returns the state and the pictures after the sensors of the looks "transfer"."""
        assert self._transfer is not None
        fields = {name: told[name] for name in nominal_looks.SENSOR_FIELDS}
        noise = self.config.corruption
        if rgb is None and depth is None:
            return state._replace(start=jnp.asarray(told["start"])), None, None
        rgb, depth, gain = transfer_sensor.sense(
            keys, rgb, depth, fields, state.gain, state.seen == 0, self._transfer, noise
        )
        return state._replace(gain=gain, start=jnp.asarray(told["start"])), rgb, depth


_restart = jax.jit(Senses.restart)


def pack_depth(depth: jax.Array, cutoff: float) -> jax.Array:
    """Turns depth (m) into whole DEPTH_UNIT, uint16; what is beyond the cut-off is 0."""
    near = jnp.where((depth > 0) & (depth <= np.float32(cutoff)), depth, 0)
    return jnp.round(near * np.float32(1 / DEPTH_UNIT)).astype(jnp.uint16)


def unpack_depth(packed: jax.Array) -> jax.Array:
    """Turns what `pack_depth` made into depth (m)."""
    return packed.astype(jnp.float32) * np.float32(DEPTH_UNIT)


@functools.partial(jax.jit, static_argnames="config")
def _sample_transfer(root: Any, drawing: Any, start: Any, config: TransferConfig) -> dict[str, Any]:
    """Does the same as `_sample_looks` with the looks "transfer", from where the objects start [K, 2, 2] (m)."""

    def one(key: jax.Array, drawing: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, _LOOKS), drawing)

    sample = transfer_draw.sampler(scene.load("insert").model, config)
    return sample(jax.vmap(one)(root, drawing), start)


@functools.partial(jax.jit, static_argnames=("name", "rights"))
def _sample_looks(root: Any, drawing: Any, name: str = "insert", rights: int = 0) -> dict[str, Any]:
    """Draws the looks [K, ...] of a scene from environments' keys [K, 2] and the drawings' numbers [K].

    Those of `rights` right imagers do not change the others.
    """

    def one(key: jax.Array, drawing: jax.Array) -> dict[str, Any]:
        key = jax.random.fold_in(jax.random.fold_in(key, _LOOKS), drawing)
        looks = visual_randomization.sample_looks(key, 1, scene.load(name))
        drawn = {name: value[0] for name, value in looks.items()}
        return drawn | (stereo.sample_rig(key, rights) if rights else {})

    return jax.vmap(one)(root, drawing)
