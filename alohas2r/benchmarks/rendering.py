"""Measures the renderers: a sweep over scenes, sizes and batches, and ratios taken within one run.

Absolute figures depend on the machine and on what else it does; the ratios are taken from rounds in
which both sides take turns, so that they hold on a busy machine as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Callable

import mujoco.batch
import numpy as np

from alohas2r.benchmarks.rendering_plot import published
from alohas2r.benchmarks.timing import CALLS, repeat, take_turns
from alohas2r.config import check
from alohas2r.core import threads as core_threads
from alohas2r.core.machine import describe_machine, forget_peak, peak_mb
from alohas2r.core.types import Array, JsonObject
from alohas2r.embodiment import camera as camera_contract
from alohas2r.errors import BackendUnavailable, ConfigError, did_you_mean
from alohas2r.rendering import corruption
from alohas2r.rendering import protocol as rendering_protocol
from alohas2r.rendering import registry as renderers
from alohas2r.rendering.gallery import FILES, SCENES, cartpole, gallery_scene
from alohas2r.rendering.protocol import Frames, Looks
from alohas2r.rendering.raycast import tiles
from alohas2r.sim import scene

BACKENDS = ("raycast", "warp", "opengl", "madrona")
WRIST = "twoarm"  # the scene of the ratios
_MANY = 1024  # environments whose memory is measured

Progress = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What is measured.

    Attributes:
      backends: renderers; those that cannot run here are listed with the reason.
      scenes: "twoarm" (two arms, two wrist cameras) and "cartpole" (one camera).
      sizes: side of the square pictures, pixels.
      environments: batch sizes.
      physics: whether pictures are drawn with or without a control step before each.
      shadows: whether lights cast shadows in the sweep.
      threads: of the ray caster and the physics; 0 for all cores.
      seconds: least time of a measurement; longest: cells whose single call would take longer are left
        out (s).
      budget: time after which no further cell is begun (s).
      ratios: whether to take the ratios.
      ratio_envs: environments that the ratios are taken with.
      seed: of poses and looks.
    """

    backends: tuple[str, ...] = BACKENDS
    scenes: tuple[str, ...] = SCENES
    sizes: tuple[int, ...] = (32, 64, 128, 256)
    environments: tuple[int, ...] = (1, 64, 1024)
    physics: tuple[bool, ...] = (False, True)
    shadows: bool = False
    threads: int = 0
    seconds: float = 0.3
    longest: float = 2.5
    budget: float = 215.0
    ratios: bool = True
    ratio_envs: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks names and ranges.

        Raises:
          ConfigError: an unknown renderer or scene, or a value out of range.
        """
        for name, what, choices in (
            ("backends", "renderer", renderers.BACKENDS),
            ("scenes", "scene", SCENES),
        ):
            for value in getattr(self, name):
                check(value in choices, f"Unknown {what} '{value}'.{did_you_mean(value, choices)}")
        for name, most in (
            ("sizes", rendering_protocol.MAX_SIDE),
            ("environments", 1 << 20),
            ("ratio_envs", _MANY),
        ):
            for value in np.ravel(getattr(self, name)):
                check(1 <= value <= most, f"{name}: {value} must lie in 1..{most}.")
        check(self.threads >= 0, f"threads = {self.threads} must not be negative.")
        check(0 < self.seconds <= self.longest, "seconds must lie in (0, longest].")
        check(self.budget > 0, "budget must be positive.")


def bench_render(config: BenchConfig | None = None, progress: Progress | None = None) -> JsonObject:
    """Measures the renderers.

    Args:
      config: what is measured.
      progress: called with the share that is done and what is next.

    Returns:
      machine; ratios (see `ratios`); rows, one per cell of the sweep: renderer, device, scene, physics,
      shadows, width, height, cameras, environments, frames_per_second (pictures of one camera),
      environments_per_second, calls, memory_mb (the process's peak); skipped: renderer, cell and
      reason; published: other people's figures (see `published`); seconds it all took.

    Raises:
      ConfigError: a scene without any camera.
    """
    config = config or BenchConfig()
    begin = time.perf_counter()
    tell = progress or (lambda share, text: None)
    machine = describe_machine()
    machine |= {
        "name": f"{machine['processor']}, {machine['cores']} cores",
        "load": os.getloadavg()[0],
    }
    result: JsonObject = {"machine": machine, "ratios": {}, "rows": [], "skipped": []}
    if config.ratios:
        tell(0, "ratios")
        result["ratios"] = ratios(config)
    cells = [
        (backend, name, size)
        for size in config.sizes
        for name in config.scenes
        for backend in config.backends
    ]
    unavailable: set[str] = set()
    for number, (backend, name, size) in enumerate(cells):
        tell((number + 1) / (len(cells) + 1), f"{backend}, {name}, {size} pixels")
        skip = {"renderer": backend, "scene": name, "width": size}
        if backend in unavailable:
            continue
        if time.perf_counter() - begin > config.budget:
            result["skipped"].append(
                {**skip, "reason": f"the budget of {config.budget:g} s is used up"}
            )
            continue
        try:
            rows, skipped = _sweep(config, backend, name, size, begin)
        except BackendUnavailable as error:
            unavailable.add(backend)
            result["skipped"].append({"renderer": backend, "reason": f"not measured here: {error}"})
            continue
        result["rows"] += rows
        result["skipped"] += [{**skip, **more} for more in skipped]
    tell(1, "done")
    result["published"] = published()
    result["seconds"] = time.perf_counter() - begin
    return result


def ratios(config: BenchConfig | None = None) -> JsonObject:
    """Takes the ratios that do not depend on the machine: two wrist cameras, 32 x 32, random looks.

    Returns:
      raycast_vs_bare_rays: against `Batch.ray` with normals on the same geoms and rays, one core each;
      mujoco_caster_vs_bare_rays: likewise, the caster that uses `Batch.ray` itself; two_threads_vs_one:
        two threads on all cores against one on one core;
      depth_vs_rgbd: depth alone against colour and depth without shadows, one core each;
      shadows_vs_none; raycast_vs_warp on one core (None without Warp on a CPU); corruption_per_second:
      environments through corruption and preprocessing of both cameras on one core;
      environments_per_second of each side; and memory_mb_1024: the process's peak memory while it
      draws 1,024 environments with shadows on all threads.
    """
    config = config or BenchConfig()
    count = config.ratio_envs
    prepared, poses, sample = gallery_scene(WRIST, _MANY, config.seed)

    def caster(**options: object) -> rendering_protocol.Renderer:
        return renderers.make("raycast", prepared, **options)

    forget_peak()
    caster(shadows=True, threads=config.threads).render(poses, sample)
    memory_mb = peak_mb()
    poses, sample = poses[:count], {field: value[:count] for field, value in sample.items()}
    sides: dict[str, Callable[[], object]] = {}
    drawn = {
        "raycast": caster(shadows=False, threads=1),
        "raycast, two threads": caster(shadows=False, threads=2),
        "raycast, shadows": caster(shadows=True, threads=1),
        "raycast, depth": caster(outputs=("depth",), threads=1),
        "raycast, mujoco caster": caster(shadows=False, threads=1, caster="mujoco"),
    }
    if "warp" in config.backends:
        with contextlib.suppress(BackendUnavailable):
            warp = renderers.make("warp", prepared, shadows=False)
            if getattr(warp, "device", "cpu") == "cpu":
                drawn["warp"] = warp
    for name, renderer in drawn.items():
        sides[name] = lambda renderer=renderer: renderer.render(poses, sample)
    sides["bare rays"] = _bare_rays(prepared, poses)
    sides["corruption"] = _corruption(drawn["raycast"].render(poses, sample), sample, config.seed)
    slow = ("raycast, mujoco caster", "warp", "bare rays")  # take seconds a call, not tenths
    quick = {name: call for name, call in sides.items() if name not in slow}
    took = take_turns(quick, rounds=14, spread=("raycast, two threads",))
    beside = take_turns(
        {name: call for name, call in sides.items() if name in ("raycast", *slow)}, rounds=4
    )

    def ratio(slower: str, faster: str) -> float:
        turns = beside if slower in beside and faster in beside else took
        return statistics.median(a / b for a, b in zip(turns[slower], turns[faster], strict=True))

    return {
        "raycast_vs_bare_rays": ratio("bare rays", "raycast"),
        "mujoco_caster_vs_bare_rays": ratio("bare rays", "raycast, mujoco caster"),
        "two_threads_vs_one": ratio("raycast", "raycast, two threads"),
        "depth_vs_rgbd": ratio("raycast", "raycast, depth"),
        "shadows_vs_none": ratio("raycast", "raycast, shadows"),
        "raycast_vs_warp": ratio("warp", "raycast") if "warp" in drawn else None,
        "corruption_per_second": count / min(took["corruption"]),
        "environments_per_second": {
            name: count / min(times) for name, times in {**beside, **took}.items()
        },
        "memory_mb_1024": memory_mb,
    }


def _sweep(
    config: BenchConfig, backend: str, name: str, size: int, begin: float
) -> tuple[list[JsonObject], list[JsonObject]]:
    """Measures one renderer at one size of pictures; returns rows and what was left out."""
    rows, skipped = [], []
    most = max(config.environments, default=1)
    prepared, poses, sample = gallery_scene(name, most, config.seed)
    options: JsonObject = {"width": size, "height": size, "shadows": config.shadows}
    if backend == "raycast":
        options["threads"] = config.threads
    renderer = renderers.make(backend, prepared, **options)
    cameras = len(prepared.cameras)
    rate = 0.0  # environments per second so far
    try:
        for count in sorted(config.environments):
            expected = count / rate if rate else 0.0
            left = config.budget - (time.perf_counter() - begin)
            reason = ""
            if expected > config.longest:
                reason = f"a call would take about {expected:.0f} s"
            elif left < CALLS * len(config.physics) * expected:
                reason = f"the budget of {config.budget:g} s is used up"
            if reason:
                skipped.append({"environments": count, "reason": reason})
                continue
            if backend == "warp":  # its batches have a fixed size
                renderer = renderers.make(backend, prepared, **options)
            some = {field: value[:count] for field, value in sample.items()}
            for physics in config.physics:
                step = _physics(name, poses[:count], config.threads) if physics else None
                forget_peak()

                def call(
                    draw: Callable[..., Frames] = renderer.render,
                    step: Callable[..., object] | None = step,
                    some: Looks = some,
                ) -> None:
                    draw(poses[: len(next(iter(some.values())))] if step is None else step(), some)

                try:
                    took = repeat(call, config.seconds)
                except (ConfigError, MemoryError) as error:
                    skipped.append({"environments": count, "reason": str(error)})
                    continue
                best = min(took)
                rate = max(rate, count / best)
                rows.append(
                    {
                        "renderer": backend,
                        "device": getattr(renderer, "device", "cpu"),
                        "scene": name,
                        "physics": physics,
                        "shadows": config.shadows,
                        "width": size,
                        "height": size,
                        "cameras": cameras,
                        "environments": count,
                        "frames_per_second": count * cameras / best,
                        "environments_per_second": count / best,
                        "calls": len(took),
                        "memory_mb": peak_mb(),
                    }
                )
    finally:
        if hasattr(renderer, "close"):
            renderer.close()  # pyright: ignore[reportAttributeAccessIssue]
    return rows, skipped


def _physics(name: str, poses: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """Returns a function that advances simulations by a control step and returns their poses [N, nq]."""
    if name == "cartpole":
        model, substeps = cartpole().compile(), 1
    else:
        model, substeps = scene.load(FILES.get(name, name)).model, scene.SUBSTEPS
    batch = mujoco.batch.Batch(model, len(poses), threads or len(core_threads.cores()))
    qpos, ctrl = batch.bind("qpos"), batch.bind("ctrl")
    qpos[:] = poses
    if name != "cartpole":
        ctrl[:] = scene.load(FILES.get(name, name)).home_ctrl

    def step() -> np.ndarray:
        batch.step(nstep=substeps)
        return qpos

    return step


def _bare_rays(prepared: rendering_protocol.Prepared, poses: np.ndarray) -> Callable[[], object]:
    """Returns a function that casts every pixel's ray with `Batch.ray` and does nothing else."""
    model, side = prepared.model, 32
    batch = mujoco.batch.Batch(model, len(poses), 1)
    batch.bind("qpos")[:] = poses
    places, frames = batch.bind("cam_xpos"), batch.bind("cam_xmat")
    batch.forward(stage=int(mujoco.mjtStage.mjSTAGE_POS))
    starts, directions = [], []
    for camera in prepared.camera_ids:
        x, y = tiles.pinhole(model, int(camera), side, side)
        ray = np.stack(np.broadcast_arrays(x[None], y[:, None], -1.0), -1).reshape(-1, 3)
        ray /= np.linalg.norm(ray, axis=1, keepdims=True)
        directions.append(ray @ frames[:, camera].reshape(-1, 3, 3).transpose(0, 2, 1))
        starts.append(np.repeat(places[:, camera, None], len(ray), 1))
    start, direction = np.concatenate(starts, 1), np.concatenate(directions, 1)
    return lambda: batch.ray(start, direction, normal=True)


def _corruption(
    frames: rendering_protocol.Frames, sample: dict[str, np.ndarray], seed: int
) -> Callable[[], object]:
    """Returns a function that corrupts and preprocesses pictures on one core."""
    import jax

    side = frames.depth.shape[-1]
    bank = jax.numpy.asarray(corruption.line_bank(side, side))

    def both(key: Array, rgb: Array, depth: Array, brightness: Array, bank: Array) -> Array:
        return camera_contract.preprocess(*corruption.corrupt(key, rgb, depth, brightness, bank))

    run = jax.jit(both, compiler_options={"xla_cpu_multi_thread_eigen": False})
    key = jax.random.key(seed)
    return lambda: jax.block_until_ready(
        run(key, frames.rgb, frames.depth, sample["brightness"], bank)
    )
