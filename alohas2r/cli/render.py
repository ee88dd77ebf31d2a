"""Commands that draw."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
from typing import Annotated

import typer
from rich.console import Console

from alohas2r.cli.app import Scene, Seed, command, library, policy_folder
from alohas2r.cli.display import working
from alohas2r.core.types import Untyped
from alohas2r.errors import BackendUnavailable, ConfigError
from alohas2r.sim import scene as scenes


@command("render", "Look")
def render(
    out: Annotated[pathlib.Path, typer.Option(help="The picture (.png) or video (.mp4, .webp).")],
    scene: Annotated[Scene | None, typer.Option(help="Draw a scene in its home position.")] = None,
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
    looks: Annotated[
        str, typer.Option(help="Set of looks: today, transfer, 'transfer held out', nominal.")
    ] = "today",
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
        gallery, video = library("rendering.gallery"), library("rendering.video")
        video.check_path(out, ".png")
        rows, columns = gallery.parse_grid(grid)
        with working("Drawing"):
            picture = gallery.looks_grid(rows, columns, scene or "insert", seed, size, looks=looks)
            video.write_png(out, picture)
    elif policy is not None and scene is None:
        video = library("rendering.video")
        video.check_path(out, *video.FILMS)
        folder = policy_folder(policy)
        with working("Writing the video"):
            library("evaluation.video").write_video(folder, out, episodes=episodes, seed=seed)
    elif scene is not None and policy is None:
        video = library("rendering.video")
        with working("Drawing"):
            video.write_scene(out, scene, camera=camera, height=height, width=width)
    else:
        raise ConfigError("Give either --scene NAME, --randomize, or --policy FOLDER.")
    Console(stderr=True).print(f"Wrote {out}", highlight=False, markup=False, soft_wrap=True)


@command("view", "Look")
def view(
    policy: Annotated[
        str | None,
        typer.Argument(
            help="Show this policy at work: its folder, such as params/student, or an exported file.",
            show_default=False,
        ),
    ] = None,
    scene: Annotated[Scene | None, typer.Option(help="The scene to open (pick).")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Conditions of the policy, as in evaluate (eval-v1).")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Open a scene in MuJoCo's viewer, to drag, pull and run it by hand; or watch a policy at work.

    A policy goes through the episodes of evaluate in real time, one after the other, until the window is closed.
    """
    if policy is None and protocol is not None:
        raise ConfigError("--protocol is of a policy: alohas2r view POLICY --protocol NAME.")
    if policy is not None and scene is not None:
        raise ConfigError("Give either a policy, whose task names the scene, or --scene.")
    shown = scene or "pick"
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        instead = f"--scene {shown} --out {shown}.png" if policy is None else f"--policy {policy}"
        instead += "" if policy is None else " --out film.mp4"
        raise BackendUnavailable(
            "The viewer needs a display, and there is none (DISPLAY is not set); "
            f"alohas2r render {instead} draws without one."
        )
    import mujoco
    import mujoco.viewer

    if policy is None:
        loaded = scenes.load(shown)
        data = mujoco.MjData(loaded.model)
        mujoco.mj_resetDataKeyframe(loaded.model, data, loaded.id("key", "home"))
        mujoco.viewer.launch(loaded.model, data)
        return
    viewing, folder = library("evaluation.viewing"), policy_folder(policy)
    with contextlib.ExitStack() as opened, contextlib.redirect_stdout(sys.stderr):

        def show(model: mujoco.MjModel, data: mujoco.MjData) -> _Viewer:
            handle = mujoco.viewer.launch_passive(
                model, data, show_left_ui=False, show_right_ui=False
            )
            return _Viewer(opened.enter_context(handle))

        good = viewing.play(folder, show, seed, protocol)
    text = f"{sum(good)} of {len(good)} episodes succeeded."
    Console(stderr=True).print(text, highlight=False, markup=False)


class _Viewer:
    """MuJoCo's viewer as a window of `evaluation.viewing`."""

    def __init__(self, handle: Untyped) -> None:
        self._handle = handle

    def update(self) -> bool:
        """Shows the present state; returns whether the window is still open."""
        if self._handle.is_running():
            self._handle.sync()
        return self._handle.is_running()
