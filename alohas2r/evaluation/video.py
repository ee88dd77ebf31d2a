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
    table, qpos, _ = run(policy, entry.protocol, episode_keys(seed, 0, episodes))
    sizes = None if entry.sizes is None else entry.sizes(table)
    return video.write_rollouts(
        path,
        scene.load(entry.scene),
        qpos,
        table["success"],
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
    table, qpos, _ = runner.run()
    entry = find_task(student.spec.phase)
    loaded = scene.load(entry.scene)
    camera = free_camera(*entry.view)
    colours = [video.GREEN if good else video.RED for good in table["success"]]
    data = mujoco.MjData(loaded.model)

    def frames() -> Iterator[np.ndarray]:
        with Offscreen(loaded.model, height, width, shadows=False) as view:
            for positions, seen in zip(qpos, recorded, strict=True):
                pictures = []
                for episode in range(episodes):
                    data.qpos[:] = positions[episode]
                    video.update_kinematics(loaded.model, data)
                    whole = [view.picture(data, camera), *_wrist_views(seen, episode, height)]
                    pictures.append(video.border(np.concatenate(whole, 1), colours[episode]))
                yield video.tile(np.stack(pictures))

    return video.write_video(path, frames())


def _wrist_views(seen: Seen, episode: int, height: int) -> list[np.ndarray]:
    """Returns columns [height, height / 2, 3] of pictures, left camera above; none for a blind student."""
    side = height // 2
    columns = []
    for pictures in (seen.rgb, seen.depth):
        if pictures is None:
            continue
        views = np.asarray(pictures[episode])
        if views.ndim == 3:  # depth: near is bright, unknown is black
            grey = np.where((views > 0) & (views < DEPTH_CUTOFF), 1 - 0.9 * views / DEPTH_CUTOFF, 0)
            views = np.repeat((255 * grey).astype(np.uint8)[..., None], 3, -1)
        index = (np.arange(side) * views.shape[1]) // side
        columns.append(np.concatenate([view[index][:, index] for view in views]))
    return columns
