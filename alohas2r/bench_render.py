"""Measures the renderers: a sweep over scenes, sizes and batches, and ratios taken within one run.

Absolute figures depend on the machine and on what else it does; the ratios are taken from rounds in
which both sides take turns, so that they hold on a busy machine as well.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.resources
import io
import os
import pathlib
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import mujoco
import mujoco.batch
import numpy as np

from alohas2r import images, looks, renderers, scene
from alohas2r.config import check
from alohas2r.errors import ArtifactError, BackendUnavailable, ConfigError, did_you_mean
from alohas2r.renderers import base, drawing

SCENES = ("twoarm", "cartpole")
BACKENDS = ("raycast", "warp", "opengl", "madrona")
WRIST = "twoarm"  # the scene of the ratios
_FILES = {"twoarm": "insert"}  # names of scenes that are called otherwise elsewhere
_CALLS = 3  # of a measurement at least: one that compiles, two that count
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
            ("sizes", base.MAX_SIDE),
            ("environments", 1 << 20),
            ("ratio_envs", _MANY),
        ):
            for value in np.ravel(getattr(self, name)):
                check(1 <= value <= most, f"{name}: {value} must lie in 1..{most}.")
        check(self.threads >= 0, f"threads = {self.threads} must not be negative.")
        check(0 < self.seconds <= self.longest, "seconds must lie in (0, longest].")
        check(self.budget > 0, "budget must be positive.")


def bench_render(
    config: BenchConfig | None = None, progress: Progress | None = None
) -> dict[str, Any]:
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
    result: dict[str, Any] = {"machine": _machine(), "ratios": {}, "rows": [], "skipped": []}
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


def ratios(config: BenchConfig | None = None) -> dict[str, Any]:
    """Takes the ratios that do not depend on the machine: two wrist cameras, 32 x 32, random looks.

    Returns:
      raycast_vs_bare_rays: against `Batch.ray` with normals on the same geoms and rays, one core each;
      mujoco_caster_vs_bare_rays: likewise, the caster that uses `Batch.ray` itself; two_threads_vs_one:
        two threads on all cores against one on one core;
      shadows_vs_none; raycast_vs_warp on one core (None without Warp on a CPU); corruption_per_second:
      environments through corruption and preprocessing of both cameras on one core;
      environments_per_second of each side; and memory_mb_1024: the process's peak memory while it
      draws 1,024 environments with shadows on all threads.
    """
    config = config or BenchConfig()
    count = config.ratio_envs
    prepared, poses, sample = _scene(WRIST, _MANY, config.seed)

    def caster(**options: Any) -> renderers.Renderer:
        return renderers.make("raycast", prepared, **options)

    _forget_peak()
    caster(shadows=True, threads=config.threads).render(poses, sample)
    memory_mb = _peak_mb()
    poses, sample = poses[:count], {field: value[:count] for field, value in sample.items()}
    sides: dict[str, Callable[[], Any]] = {}
    drawn = {
        "raycast": caster(shadows=False, threads=1),
        "raycast, two threads": caster(shadows=False, threads=2),
        "raycast, shadows": caster(shadows=True, threads=1),
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
    took = _take_turns(quick, rounds=14, spread=("raycast, two threads",))
    beside = _take_turns(
        {name: call for name, call in sides.items() if name in ("raycast", *slow)}, rounds=4
    )

    def ratio(slower: str, faster: str) -> float:
        turns = beside if slower in beside and faster in beside else took
        return statistics.median(a / b for a, b in zip(turns[slower], turns[faster], strict=True))

    return {
        "raycast_vs_bare_rays": ratio("bare rays", "raycast"),
        "mujoco_caster_vs_bare_rays": ratio("bare rays", "raycast, mujoco caster"),
        "two_threads_vs_one": ratio("raycast", "raycast, two threads"),
        "shadows_vs_none": ratio("raycast", "raycast, shadows"),
        "raycast_vs_warp": ratio("warp", "raycast") if "warp" in drawn else None,
        "corruption_per_second": count / min(took["corruption"]),
        "environments_per_second": {
            name: count / min(times) for name, times in {**beside, **took}.items()
        },
        "memory_mb_1024": memory_mb,
    }


def published() -> list[dict[str, Any]]:
    """Returns other people's figures: renderer, hardware, scene, physics, size, environments, source."""
    file = importlib.resources.files("alohas2r") / "data" / "published_rendering.csv"
    rows: list[dict[str, Any]] = []
    for row in csv.DictReader(io.StringIO(file.read_text("utf-8"))):
        sizes = {name: int(row[name]) for name in ("width", "height", "environments")}
        speed = float(row["frames_per_second"])
        rows.append(
            {**row, **sizes, "physics": row["physics"] == "yes", "frames_per_second": speed}
        )
    return rows


def write_csv(result: dict[str, Any], path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes measured and published rows into one table.

    Raises:
      ArtifactError: the file cannot be written.
    """
    path = pathlib.Path(path)
    hardware = result["machine"]["name"]
    rows = [{**row, "hardware": hardware, "source": "measured"} for row in result["rows"]]
    rows += result["published"]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.getvalue(), "utf-8")
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error.strerror}.") from error
    return path


def plot(result: dict[str, Any], path: str | os.PathLike[str]) -> pathlib.Path:
    """Draws frames per second over picture size: our measurements beside the published curves.

    Raises:
      ConfigError: the name does not end in .png.
      BackendUnavailable: matplotlib is not installed.
      ArtifactError: the file cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() != ".png":
        raise ConfigError(f"'{path}' must end in .png.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendUnavailable(
            "The plot needs matplotlib: pip install 'alohas2r[train]'."
        ) from error
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subplots(1, 2, sharey=True)
    hardware = result["machine"]["name"]
    for axes, physics in zip(parts, (False, True), strict=True):
        curves: dict[tuple[str, str], dict[float, float]] = {}
        for row in result["rows"]:
            if row["physics"] == physics:
                curve = curves.setdefault((row["renderer"], row["scene"]), {})
                side = float(np.sqrt(row["width"] * row["height"]))
                curve[side] = max(curve.get(side, 0), row["frames_per_second"])
        for (renderer, name), curve in sorted(curves.items()):
            sides = sorted(curve)
            axes.plot(
                sides, [curve[side] for side in sides], "o-", label=f"{renderer}, {name}: here"
            )
        others: dict[str, list[tuple[float, float]]] = {}
        for row in result["published"]:
            if row["physics"] == physics:
                label = f"{row['renderer']}, {row['scene']}: {row['hardware']}"
                side = float(np.sqrt(row["width"] * row["height"]))
                others.setdefault(label, []).append((side, row["frames_per_second"]))
        for label, points in others.items():
            axes.plot(
                *zip(*sorted(points), strict=True), "s--", label=f"{label} (published)", alpha=0.7
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("picture side (pixels)")
        axes.set_title("with physics" if physics else "pictures only")
        axes.grid(True, which="major", alpha=0.3)
        if curves or others:
            axes.legend(fontsize=7)
    parts[0].set_ylabel("pictures per second")
    figure.suptitle(f"here: {hardware}", fontsize=9)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error.strerror}.") from error
    return path


def looks_grid(
    rows: int = 8,
    columns: int = 8,
    name: str = "insert",
    seed: int = 0,
    size: int = 32,
    scale: int = 2,
    backend: str = "raycast",
) -> np.ndarray:
    """Draws what a student will see: random poses and looks, before and after corruption.

    Left half: pictures as rendered; right half: the same after corruption and preprocessing. Each place
    of the grid shows colour above depth (near is bright, nothing is black), one column per camera.

    Args:
      rows, columns: of the grid of environments.
      name: of the scene.
      seed: of poses, looks and corruption.
      size: side of a picture, pixels; scale: how many pixels each is drawn as.
      backend: renderer.

    Returns:
      [H, W, 3] uint8.

    Raises:
      ConfigError: a number out of range.
      BackendUnavailable: the renderer cannot run here.
    """
    for text, number in (("rows", rows), ("columns", columns), ("scale", scale)):
        check(1 <= number <= 64, f"{text} = {number} must lie in 1..64.")
    import jax

    count = rows * columns
    prepared, poses, sample = _scene(name, count, seed)
    frames = renderers.make(backend, prepared, width=size, height=size).render(poses, sample)
    bank = images.line_bank(size, size)
    noisy = jax.jit(images.corrupt)(
        jax.random.key(seed), frames.rgb, frames.depth, sample["brightness"], bank
    )
    goal = images.PreprocessConfig(size, size)

    def half(rgb: Any, depth: Any) -> np.ndarray:
        rgb, depth = images.preprocess(np.asarray(rgb), np.asarray(depth), goal)
        shade = np.where(depth > 0, 1 - 0.85 * depth, 0)
        both = np.concatenate([rgb, np.repeat(shade[..., None], 3, -1)], 2)  # [N, C, 2 H, W, 3]
        both = np.pad(both, [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)], constant_values=0.5)
        grid = both.reshape(rows, columns, *both.shape[1:]).transpose(0, 3, 1, 2, 4, 5)
        return grid.reshape(rows * both.shape[2], -1, 3)

    whole = np.concatenate([half(frames.rgb, frames.depth), half(*noisy)], 1)
    whole = np.round(whole * 255).astype(np.uint8)
    return whole.repeat(scale, 0).repeat(scale, 1)


def random_poses(loaded: scene.Scene, count: int, seed: int = 0) -> np.ndarray:
    """Returns plausible poses [count, nq]: arms near home, grippers open or closed, objects before them."""
    random = np.random.default_rng(seed)
    poses = np.repeat(loaded.home_qpos[None], count, 0)
    for arm in loaded.arms:
        poses[:, arm.qpos[:6]] += random.normal(0, 0.15, (count, 6))
        poses[:, arm.qpos[6:]] = random.uniform(0.002, 0.037, (count, 1))
        side = np.sign(arm.base_pos[0])
        place = arm.object_qpos
        poses[:, place[0]] = side * random.uniform(0.05, 0.25, count)
        poses[:, place[1]] = random.uniform(-0.15, 0.15, count)
        poses[:, place[2]] = random.uniform(0.02, 0.2, count)
        turn = random.normal(size=(count, 4))
        poses[:, place[3:]] = turn / np.linalg.norm(turn, axis=1, keepdims=True)
    return poses


def cartpole() -> mujoco.MjSpec:
    """Returns the cart-pole scene.

    Raises:
      ModelError: the file is not there.
    """
    return mujoco.MjSpec.from_file(str(scene.data_path("xmls") / "cartpole.xml"))


def _scene(
    name: str, count: int, seed: int
) -> tuple[renderers.Prepared, np.ndarray, dict[str, np.ndarray]]:
    """Returns the model to draw, poses and looks of a scene."""
    import jax

    if name == "cartpole":
        prepared = renderers.prepare(cartpole())
        random = np.random.default_rng(seed)
        poses = np.stack([random.uniform(-1, 1, count), random.uniform(-3, 3, count)], 1)
        return (
            prepared,
            poses,
            {**looks.repeat(prepared.nominal, count), "brightness": np.ones(count)},
        )
    loaded = scene.load(_FILES.get(name, name))
    sample = looks.sample_looks(jax.random.key(seed), count, loaded)
    sample = {field: np.asarray(value) for field, value in sample.items()}
    return renderers.prepare(loaded), random_poses(loaded, count, seed), sample


def parse_grid(text: str) -> tuple[int, int]:
    """Returns rows and columns of a grid given as "8x8".

    Raises:
      ConfigError: it is none.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"'{text}' is no grid; give rows x columns, such as 8x8.")
    return int(parts[0]), int(parts[1])


def _sweep(
    config: BenchConfig, backend: str, name: str, size: int, begin: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measures one renderer at one size of pictures; returns rows and what was left out."""
    rows, skipped = [], []
    most = max(config.environments, default=1)
    prepared, poses, sample = _scene(name, most, config.seed)
    options: dict[str, Any] = {"width": size, "height": size, "shadows": config.shadows}
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
            elif left < _CALLS * len(config.physics) * expected:
                reason = f"the budget of {config.budget:g} s is used up"
            if reason:
                skipped.append({"environments": count, "reason": reason})
                continue
            if backend == "warp":  # its batches have a fixed size
                renderer = renderers.make(backend, prepared, **options)
            some = {field: value[:count] for field, value in sample.items()}
            for physics in config.physics:
                step = _physics(name, poses[:count], config.threads) if physics else None
                _forget_peak()

                def call(draw: Any = renderer.render, step: Any = step, some: Any = some) -> None:
                    draw(poses[: len(next(iter(some.values())))] if step is None else step(), some)

                try:
                    took = _repeat(call, config.seconds)
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
                        "memory_mb": _peak_mb(),
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
        model, substeps = scene.load(_FILES.get(name, name)).model, scene.SUBSTEPS
    batch = mujoco.batch.Batch(model, len(poses), threads or len(os.sched_getaffinity(0)))
    qpos, ctrl = batch.bind("qpos"), batch.bind("ctrl")
    qpos[:] = poses
    if name != "cartpole":
        ctrl[:] = scene.load(_FILES.get(name, name)).home_ctrl

    def step() -> np.ndarray:
        batch.step(nstep=substeps)
        return qpos

    return step


def _bare_rays(prepared: renderers.Prepared, poses: np.ndarray) -> Callable[[], Any]:
    """Returns a function that casts every pixel's ray with `Batch.ray` and does nothing else."""
    model, side = prepared.model, 32
    batch = mujoco.batch.Batch(model, len(poses), 1)
    batch.bind("qpos")[:] = poses
    places, frames = batch.bind("cam_xpos"), batch.bind("cam_xmat")
    batch.forward(stage=int(mujoco.mjtStage.mjSTAGE_POS))
    starts, directions = [], []
    for camera in prepared.camera_ids:
        x, y = drawing.pinhole(model, int(camera), side, side)
        ray = np.stack(np.broadcast_arrays(x[None], y[:, None], -1.0), -1).reshape(-1, 3)
        ray /= np.linalg.norm(ray, axis=1, keepdims=True)
        directions.append(ray @ frames[:, camera].reshape(-1, 3, 3).transpose(0, 2, 1))
        starts.append(np.repeat(places[:, camera, None], len(ray), 1))
    start, direction = np.concatenate(starts, 1), np.concatenate(directions, 1)
    return lambda: batch.ray(start, direction, normal=True)


def _corruption(
    frames: renderers.Frames, sample: dict[str, np.ndarray], seed: int
) -> Callable[[], Any]:
    """Returns a function that corrupts and preprocesses pictures on one core."""
    import jax

    side = frames.depth.shape[-1]
    bank = jax.numpy.asarray(images.line_bank(side, side))

    def both(key: Any, rgb: Any, depth: Any, brightness: Any, bank: Any) -> Any:
        return images.preprocess(*images.corrupt(key, rgb, depth, brightness, bank))

    run = jax.jit(both, compiler_options={"xla_cpu_multi_thread_eigen": False})
    key = jax.random.key(seed)
    return lambda: jax.block_until_ready(
        run(key, frames.rgb, frames.depth, sample["brightness"], bank)
    )


def _take_turns(
    sides: dict[str, Callable[[], Any]], rounds: int, spread: tuple[str, ...] = ()
) -> dict[str, list[float]]:
    """Returns the times (s) of each side's calls in rounds in which all take turns.

    Each has one core, since compiled code may take more threads than it was told to; those in `spread` have all.
    A first call in each turn is not timed: it finds threads and caches as the side before left them.
    """
    took: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            with contextlib.nullcontext() if name in spread else _one_core():
                call()
                start = time.perf_counter()
                call()
                took[name].append(time.perf_counter() - start)
    return took


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Keeps all threads of this process on one core, where the system can (Linux)."""
    tasks = pathlib.Path("/proc/self/task")
    if not (hasattr(os, "sched_setaffinity") and tasks.is_dir()):
        yield
        return
    cores = os.sched_getaffinity(0)

    def move(where: set[int]) -> None:
        for task in tasks.iterdir():
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(int(task.name), where)

    move({min(cores)})
    try:
        yield
    finally:
        move(cores)


def _repeat(call: Callable[[], Any], seconds: float) -> list[float]:
    """Returns the times (s) of calls after a first one, two of them at least."""
    call()
    took: list[float] = []
    while len(took) < _CALLS - 1 or sum(took) < seconds:
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return took


def _machine() -> dict[str, Any]:
    """Returns the processor's name, cores and load."""
    name = platform.processor() or platform.machine()
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0))
    return {"name": f"{name}, {cores} cores", "cores": cores, "load": os.getloadavg()[0]}


def _forget_peak() -> None:
    """Makes the process's peak memory start anew, where Linux allows it."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_mb() -> float:
    """Returns the process's peak memory in MB."""
    try:
        for line in pathlib.Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


__all__ = [
    "BenchConfig",
    "bench_render",
    "cartpole",
    "looks_grid",
    "parse_grid",
    "plot",
    "published",
    "random_poses",
    "ratios",
    "write_csv",
]
