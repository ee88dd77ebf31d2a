"""Commands that draw."""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from alohas2r.cli.common import (
    Json,
    Phase,
    Seed,
    Threads,
    command,
    library,
    policy_folder,
    progress_display,
    show,
    working,
)
from alohas2r.errors import BackendUnavailable, ConfigError
from alohas2r.runlog import Report


@command("render", "Look")
def render(
    out: Annotated[pathlib.Path, typer.Option(help="The picture (.png) or video (.mp4).")],
    scene: Annotated[Phase | None, typer.Option(help="Draw a scene in its home position.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="Film a policy at work: its folder, such as params/pick.")
    ] = None,
    camera: Annotated[
        str, typer.Option(help="Camera of the scene, such as overhead_cam or wrist_cam_left.")
    ] = "teleoperator_pov",
    width: Annotated[int, typer.Option(min=2, help="In pixels.")] = 960,
    height: Annotated[int, typer.Option(min=2, help="In pixels.")] = 720,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of the policy to film.")] = 9,
    randomize: Annotated[
        bool, typer.Option("--randomize", help="Draw what a student will see: a grid of looks.")
    ] = False,
    grid: Annotated[str, typer.Option(help="Rows x columns of the looks.")] = "8x8",
    size: Annotated[int, typer.Option(min=1, help="Side of a look's pictures, in pixels.")] = 32,
    seed: Seed = 0,
) -> None:
    """Draw a scene, film a policy, or draw what a student will see.

    A scene becomes a picture from a camera or, as a video, a walk around it.

    With --randomize, a picture shows random poses and looks from both wrists, colour above depth:
    on the left as rendered, on the right after the sensors' corruption.
    """
    if randomize:
        if policy is not None:
            raise ConfigError("Give either --randomize or --policy FOLDER, not both.")
        bench, video = library("bench_render"), library("video")
        video.check_path(out, ".png")
        rows, columns = bench.parse_grid(grid)
        with working("Drawing"):
            picture = bench.looks_grid(rows, columns, scene or "insert", seed, size)
            video.write_png(out, picture)
    elif policy is not None and scene is None:
        evaluate = library("evaluate")
        folder = policy_folder(policy)
        library("video").check_path(out, ".mp4")
        with working("Writing the video"):
            evaluate.write_video(folder, out, episodes=episodes, seed=seed)
    elif scene is not None and policy is None:
        video = library("video")
        with working("Drawing"):
            video.write_scene(out, scene, camera=camera, height=height, width=width)
    else:
        raise ConfigError(
            "Give either --scene pick, --scene insert, --randomize, or --policy FOLDER."
        )
    Console(stderr=True).print(f"Wrote {out}", highlight=False, markup=False, soft_wrap=True)


@command("bench-render", "Measure")
def bench_render(
    renderers: Annotated[
        str, typer.Option(help="Of raycast, warp, opengl, madrona; commas between.")
    ] = "raycast,warp,opengl,madrona",
    scenes: Annotated[
        str, typer.Option(help="Of twoarm (two wrist cameras) and cartpole (one camera).")
    ] = "twoarm,cartpole",
    sizes: Annotated[str, typer.Option(help="Sides of the pictures, in pixels.")] = "32,64,128,256",
    envs: Annotated[str, typer.Option(help="Environments drawn at once.")] = "1,64,1024",
    physics: Annotated[
        bool | None,
        typer.Option(help="Only with, or only without, a control step before each picture."),
    ] = None,
    shadows: Annotated[
        bool, typer.Option(help="Whether lights cast shadows in the sweep.")
    ] = False,
    ratios: Annotated[
        bool, typer.Option(help="Whether to take the ratios, which need no quiet machine.")
    ] = True,
    seconds: Annotated[float, typer.Option(help="Least time of a measurement.")] = 0.3,
    budget: Annotated[
        float, typer.Option(help="Seconds after which nothing further is begun.")
    ] = 215.0,
    csv: Annotated[
        pathlib.Path | None, typer.Option(help="Also write all rows, ours and published, here.")
    ] = None,
    plot: Annotated[pathlib.Path | None, typer.Option(help="Also draw them here (.png).")] = None,
    threads: Threads = 0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure the renderers: pictures per second by renderer, scene, size and batch.

    Ratios come from rounds in which both sides take turns, so they hold on a busy machine as well.
    Renderers that cannot run here are listed with the reason.
    """
    bench, video = library("bench_render"), library("video")
    config = bench.BenchConfig(
        backends=_names(renderers),
        scenes=_names(scenes),
        sizes=_numbers(sizes),
        environments=_numbers(envs),
        physics=(False, True) if physics is None else (physics,),
        shadows=shadows,
        threads=threads,
        seconds=seconds,
        budget=budget,
        ratios=ratios,
        seed=seed,
    )
    if plot is not None:
        video.check_path(plot, ".png")
    with progress_display() as display:

        def tell(share: float, what: str) -> None:
            display(Report("bench-render", round(100 * share), 100, f"%: {what}", 0.0, None, {}))

        result = bench.bench_render(config, tell)
    if csv is not None:
        bench.write_csv(result, csv)
    if plot is not None:
        bench.plot(result, plot)
    if as_json:
        show(result, "bench-render", True)
        return
    if result["ratios"]:
        show(result["ratios"], f"Ratios ({result['machine']['name']})", False)
    table = Table(title="Pictures per second", title_justify="left")
    for name in ("renderer", "device", "scene", "physics", "size", "envs", "per s", "peak MB"):
        table.add_column(name, justify="right" if name in ("size", "envs", "per s") else "left")
    for row in result["rows"]:
        size = f"{row['width']} x {row['height']}"
        table.add_row(
            *(row["renderer"], row["device"], row["scene"], "yes" if row["physics"] else "no"),
            *(size, str(row["environments"]), f"{row['frames_per_second']:,.0f}"),
            f"{row['memory_mb']:,.0f}",
        )
    console = Console()
    console.print(table)
    for skip in result["skipped"]:
        cell = [str(skip[name]) for name in ("scene", "width", "environments") if name in skip]
        where = " ".join([skip["renderer"], *cell])
        console.print(f"skipped {where}: {skip['reason']}", highlight=False, markup=False)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str) -> tuple[int, ...]:
    numbers = []
    for part in _names(text):
        try:
            numbers.append(int(part))
        except ValueError:
            raise ConfigError(f"'{part}' is no whole number; give some such as 32,64.") from None
    return tuple(numbers)


@command("view", "Look")
def view(
    scene: Annotated[Phase, typer.Option(help="The scene to open.")] = "pick",
) -> None:
    """Open a scene in MuJoCo's viewer: drag, pull and run it by hand."""
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise BackendUnavailable(
            "The viewer needs a display, and there is none (DISPLAY is not set); "
            f"alohas2r render --scene {scene} --out {scene}.png draws without one."
        )
    import mujoco
    import mujoco.viewer

    from alohas2r import scene as scenes

    loaded = scenes.load(scene)
    data = mujoco.MjData(loaded.model)
    mujoco.mj_resetDataKeyframe(loaded.model, data, loaded.id("key", "home"))
    mujoco.viewer.launch(loaded.model, data)
