"""Films of episodes."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import mujoco
import numpy as np

from alohas2r.embodiment.camera import DEPTH_CUTOFF
from alohas2r.envs.vision import Seen
from alohas2r.evaluation.episodes import episode_keys
from alohas2r.evaluation.evaluate import Runner, check_episodes, load_policy, run
from alohas2r.policies.vision import StudentPolicy
from alohas2r.rendering import video
from alohas2r.rendering.offscreen import Offscreen, free_camera
from alohas2r.sim import scene
from alohas2r.tasks.protocol import TaskProtocol
from alohas2r.tasks.registry import find_task


def write_video(
    policy_path: str | os.PathLike[str],
    path: str | os.PathLike[str],
    episodes: int = 9,
    seed: int = 0,
) -> pathlib.Path:
    """Writes a grid of episodes as a video; a green border marks success, a red one failure.

    Raises:
      ArtifactError: the policy cannot be read, or the file cannot be written.
      BackendUnavailable: no way to render or to encode.
    """
    check_episodes(episodes)
    policy = load_policy(policy_path)
    if isinstance(policy, StudentPolicy):
        return write_student_video(policy, path, episodes, seed)
    entry = find_task(policy.spec.phase)
    ran = run(policy, entry.protocol, episode_keys(seed, 0, episodes))
    sizes = None if entry.sizes is None else entry.sizes(ran.table)
    return video.write_rollouts(
        path,
        scene.load(entry.scene),
        ran.qpos,
        ran.table["success"],
        sizes,
        camera=free_camera(*entry.view),
    )


def write_student_video(
    student: StudentPolicy,
    path: str | os.PathLike[str],
    episodes: int = 4,
    seed: int = 0,
    *,
    threads: int = 0,
    renderer: str = "auto",
    protocol: TaskProtocol | None = None,
    height: int = 240,
    width: int = 320,
) -> pathlib.Path:
    """Films episodes: the scene, and beside it what the student sees with both wrists.

    Left camera above, right camera below, colour and then depth, as noisy and delayed as they arrive. A green
    border marks success, a red one failure.

    Raises:
      ConfigError: the name does not end in ".mp4". ArtifactError: the file cannot be written.
      BackendUnavailable: no OpenGL, or the package av is not installed.
    """
    path = video.check_path(path)
    recorded: list[Seen] = []
    keys = episode_keys(seed, 0, episodes)
    runner = Runner(student, protocol, keys, threads, renderer, recorded=recorded)
    ran = runner.run()
    entry = find_task(student.spec.phase)
    loaded = scene.load(entry.scene)
    camera = free_camera(*entry.view)
    colours = [video.GREEN if good else video.RED for good in ran.table["success"]]
    data = mujoco.MjData(loaded.model)

    def frames() -> Iterator[np.ndarray]:
        with Offscreen(loaded.model, height, width, shadows=False) as view:
            for positions, seen in zip(ran.qpos, recorded, strict=True):
                pictures = []
                for episode in range(episodes):
                    data.qpos[:] = positions[episode]
                    video.update_kinematics(loaded.model, data)
                    rgb, depth = (
                        None if kind is None else np.asarray(kind[episode])
                        for kind in (seen.rgb, seen.depth)
                    )
                    columns = wrist_views(rgb, None if depth is None else greys(depth), height)
                    whole = [view.picture(data, camera), *columns]
                    pictures.append(video.border(np.concatenate(whole, 1), colours[episode]))
                yield video.tile(np.stack(pictures))

    return video.write_video(path, frames())


def greys(depth: np.ndarray) -> np.ndarray:
    """Returns depth [...] (m) as uint8: near is bright, unknown or too far is black."""
    shown = (depth > 0) & (depth < DEPTH_CUTOFF)
    return (255 * np.where(shown, 1 - 0.9 * depth / DEPTH_CUTOFF, 0)).astype(np.uint8)


def wrist_views(rgb: np.ndarray | None, depth: np.ndarray | None, height: int) -> list[np.ndarray]:
    """Returns what both wrist cameras see as columns [height, height / 2, 3], left camera above.

    Args:
      rgb: [2, H, W, 3] uint8; None for a student without.
      depth: [2, H, W] uint8, see `greys`; likewise.
    """
    side = height // 2
    columns = []
    for views in (rgb, None if depth is None else np.repeat(depth[..., None], 3, -1)):
        if views is None:
            continue
        index = (np.arange(side) * views.shape[1]) // side
        columns.append(np.concatenate([view[index][:, index] for view in views]))
    return columns
