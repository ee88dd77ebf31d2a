"""Episodes of a policy in a foreign world, judged as at home."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from alohas2r.core import stats
from alohas2r.core.progress import Meter, Progress
from alohas2r.core.stats import quantiles
from alohas2r.core.stop import StopSignal
from alohas2r.core.types import JsonObject, PyTree
from alohas2r.deployment.each_arm import EachArm
from alohas2r.deployment.observation import observe
from alohas2r.deployment.terms import terms
from alohas2r.deployment.trials import Trials
from alohas2r.deployment.trials import World as Hooked
from alohas2r.embodiment.control import next_target
from alohas2r.embodiment.joints import CONTROL_PERIOD_S, GRIPPERS, SIDES, two_fingers
from alohas2r.envs.noise import exact
from alohas2r.envs.task import Outcome
from alohas2r.errors import ArtifactError, Interrupted, RobotFault
from alohas2r.policies import artifact
from alohas2r.policies.onnx.runtime import OnnxPolicy
from alohas2r.policies.protocol import Policy, select
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.switch import Switch
from alohas2r.policies.vision import StudentPolicy
from alohas2r.rendering import video as films
from alohas2r.rendering.offscreen import Offscreen, free_camera
from alohas2r.robots.base import Camera
from alohas2r.robots.worlds.world import World, WorldRobot, WorldView
from alohas2r.sim import scene
from alohas2r.sim.kinematics import tip_heights
from alohas2r.sim.signals import Readout, extractor, upright
from alohas2r.tasks.insert.config import InsertConfig
from alohas2r.tasks.insert.task import InsertTask
from alohas2r.tasks.protocol import EVAL_V1
from alohas2r.tasks.registry import find_task
from alohas2r.tasks.scoring import Table

# Success that a robot can reach: half of the peg inside the mouth. What eval-v1 asks for, 30 mm more, needs a hand to
# pass through the other hand's object; it is reported as "deep".
REACHABLE = dataclasses.replace(
    EVAL_V1,
    name="eval-v1+half",
    insert=dataclasses.replace(EVAL_V1.insert, inserted_x=0.0),
)
FILMED = 4  # episodes of a video


class Measured(NamedTuple):
    """A world's state as the project's own scene would report it, and the contacts that this comes from."""

    readout: Readout
    hand_on_other: np.ndarray  # [2] N, between a hand and the other hand's object


class Reporter:
    """Turns a world's state into a readout of the project's own insertion scene."""

    def __init__(self, world: World) -> None:
        """Compiles the own scene with its right base where the world's is."""
        self._world = world
        spec = scene.spec("insert")
        base = spec.body("right/base_link")
        base.pos, base.quat = world.right_base()
        self.scene = scene.resolve("insert", spec.compile())
        self._model = self.scene.model
        self._model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
        self._data = mujoco.MjData(self._model)

    def measure(self, targets: np.ndarray) -> Measured:
        """Returns the present state.

        Args:
          targets: [14] what the arms were told.
        """
        data, world = self._data, self._world
        joints, rates = two_fingers(world.position()), two_fingers(world.velocity())
        poses, velocities = world.objects()
        for side, arm in enumerate(self.scene.arms):
            data.qpos[arm.qpos], data.qvel[arm.qvel] = joints[side], rates[side]
            data.qpos[arm.object_qpos] = poses[side]
            data.qvel[arm.object_qvel] = velocities[side]
            data.ctrl[arm.ctrl] = targets[7 * side : 7 * side + 7]
        mujoco.mj_forward(self._model, data)
        touched = world.contacts()
        sensors = data.sensordata.copy()
        for side, name in enumerate(SIDES):
            for finger, label in enumerate(("left", "right")):
                force = touched.finger_force[side, finger]
                where = self.scene.sensor(f"{name}/{label}_finger_force", 4)
                sensors[where] = [float(force.any()), *force]
            for part in ("left_finger_bottom", "right_finger_bottom", "gripper_base"):
                where = self.scene.sensor(f"{name}/{part}_on_table", 1)
                sensors[where] = touched.on_table[side]
        values = (data.qpos, data.qvel, data.ctrl, sensors)
        readout = Readout(*(jnp.asarray(value, jnp.float32) for value in values))
        return Measured(readout, touched.hand_on_other)


class WorldTrials(Trials):
    """The episodes of a seed in a foreign world: starts as in eval-v1, judged by the same task.

    Attributes:
      reporter: what measures the world.
    """

    def __init__(
        self,
        world: World,
        episodes: int,
        seed: int = 0,
        episode_s: float | None = None,
        realtime: bool = False,
    ) -> None:
        """Draws the starts.

        Args:
          world: where.
          episodes: how many. seed: as that of `evaluate`.
          episode_s: how long an episode lasts; None for as long as in eval-v1.
          realtime: whether to wait for the clock.
        """
        self.reporter = Reporter(world)
        self._targets = world.position()
        self._foreign = world
        self._columns: dict[int, dict[str, float]] = {}
        self._deep = 0
        seconds = REACHABLE.insert.steps * CONTROL_PERIOD_S if episode_s is None else episode_s
        hooked = Hooked(self._place, world.advance, self._read)
        super().__init__(hooked, episodes, seed, realtime, seconds, REACHABLE)

    def sent(self, targets: np.ndarray) -> None:
        """Notes the targets [14] that the arms were told."""
        self._targets = targets

    def _place(self, qpos: np.ndarray, targets: np.ndarray) -> None:
        self._foreign.place(qpos, targets)
        self._targets = targets

    def _read(self) -> Readout:
        self._measured = self.reporter.measure(self._targets)
        return self._measured.readout

    @property
    def readout(self) -> Readout:
        """Of the state that was measured last."""
        return self._measured.readout

    def begin(self, episode: int) -> np.ndarray:
        """Places everything for an episode and returns the targets [14] that hold it there."""
        targets = super().begin(episode)
        self._columns[episode] = {
            "depth_mm": np.nan,
            "offset_at_mouth_mm": np.nan,
            "hand_on_other_n": 0.0,
            "deep": 0.0,
        }
        self._deep = 0
        self._read()
        return targets

    def _measure(self, episode: int, task: PyTree) -> Outcome:
        outcome = super()._measure(episode, task)
        if episode in self._columns:
            self._note(self._columns[episode], outcome)
        return outcome

    def _note(self, row: dict[str, float], outcome: Outcome) -> None:
        """Keeps what a step adds to an episode's row."""
        measures = outcome.measures
        end = 1000 * np.asarray(measures.peg_end)
        row["hand_on_other_n"] = max(
            row["hand_on_other_n"], float(self._measured.hand_on_other.max())
        )
        if bool(measures.entered):
            if np.isnan(row["offset_at_mouth_mm"]):
                row["offset_at_mouth_mm"] = float(np.hypot(end[1], end[2]))
            row["depth_mm"] = float(np.nanmax([row["depth_mm"], -end[0]]))
        deep = bool(measures.in_place) and end[0] <= 1000 * EVAL_V1.insert.inserted_x
        self._deep = self._deep + 1 if deep else 0
        row["deep"] = float(row["deep"] or self._deep >= EVAL_V1.insert.hold_steps)

    def result(self) -> JsonObject:
        """Returns what `Trials` does, with the world's name and hash."""
        world = self._foreign
        return super().result() | {"world": world.name, "world_hash": world.digest}

    def table(self) -> Table:
        """Returns a row per episode that began."""
        rows = sorted(self._scorers)
        tables = [self._scorers[episode].table() for episode in rows]
        table = {name: np.concatenate([one[name] for one in tables]) for name in tables[0]}
        for name in next(iter(self._columns.values())):
            values = np.array([self._columns[episode][name] for episode in rows])
            table[name] = values.astype(bool) if name == "deep" else values
        return table


class Actor(Protocol):
    """What acts in a world."""

    switch: Switch
    scale: float

    def reset(self) -> None:
        """Forgets the past, at the start of an episode."""
        ...

    def act(self, command: np.ndarray, switched: bool) -> np.ndarray:
        """Returns the actions [14] for the world's present state, after the targets [14] of the last step."""
        ...


class PixelActor:
    """A student, an exported file, with the world's wrist cameras."""

    def __init__(self, policy: OnnxPolicy, robot: WorldRobot, view: WorldView) -> None:
        """Takes the policy's own scale and switch."""
        wants = terms(policy)
        self.switch, self.scale = wants.switch, wants.action_scale
        self._robot, self._view = robot, view
        self._policy: Policy = EachArm((policy, policy.fork())) if wants.single else policy

    def reset(self) -> None:
        """Forgets the past."""
        self._policy.reset()

    def act(self, command: np.ndarray, switched: bool) -> np.ndarray:
        """Looks and acts."""
        frames = {side: self._view.frame(index) for index, side in enumerate(SIDES)}
        observation = observe(self._robot.read(), frames, command, switched)
        return np.asarray(self._policy.act(select(self._policy, observation)), float)


class StateActor:
    """A teacher on the exact state, as the world's own physics has it."""

    def __init__(self, policy: StagedPolicy, trials: WorldTrials) -> None:
        """Compiles its observation."""
        self.switch, self.scale = policy.switch, policy.spec.action.scale
        self._policy, self._trials = policy, trials
        task = InsertTask(trials.reporter.scene, InsertConfig(start=EVAL_V1.insert.start))
        extract = extractor(trials.reporter.scene)
        state = trials.start_of(0)
        self._observe = jax.jit(
            lambda readout: task.observation(exact(upright(extract(readout))), state)
        )

    def reset(self) -> None:
        """Forgets the past."""
        self._policy.reset()

    def act(self, command: np.ndarray, switched: bool) -> np.ndarray:
        """Acts on what is."""
        del command
        return self._policy.act(np.asarray(self._observe(self._trials.readout)), switched)


class _TrialsRobot(WorldRobot):
    """Tells the trials what the arms were told."""

    def __init__(self, world: World, trials: WorldTrials) -> None:
        super().__init__(world)
        self._trials = trials

    def command(self, ctrl: np.ndarray) -> np.ndarray:
        """Sets targets [14] and returns them, clipped to their ranges."""
        sent = super().command(ctrl)
        self._trials.sent(sent)
        return sent


@contextlib.contextmanager
def open_world(
    name: str,
    size: int,
    fovy_deg: float,
    episodes: int,
    seed: int,
    episode_s: float,
    realtime: bool,
    pictures: bool,
) -> Iterator[tuple[WorldRobot, tuple[Camera, ...], WorldTrials]]:
    """Opens the foreign world of `--robot sim --world`.

    Args:
      name: a table's path, or the name of one that comes with this package.
      size, fovy_deg: of the pictures that the policy takes.
      episodes, seed, episode_s, realtime: as WorldTrials.
      pictures: whether the world draws any.

    Yields:
      Robot and wrist cameras, which are yet to be entered, and the episodes.
    """
    world = World(name)
    trials = WorldTrials(world, episodes, seed, episode_s, realtime)
    robot = _TrialsRobot(world, trials)
    if not pictures:
        yield robot, (), trials
        return
    with WorldView(world, size, fovy_deg) as view:
        yield robot, view.cameras(), trials


def evaluate_world(
    policy_path: str | os.PathLike[str],
    world_name: str | os.PathLike[str],
    episodes: int = 50,
    seed: int = 0,
    progress: Progress | None = None,
    video: str | os.PathLike[str] | None = None,
    stop: StopSignal | None = None,
) -> JsonObject:
    """Runs a policy's episodes in a foreign world, one after the other.

    Args:
      policy_path: an exported student (.onnx), a student's folder that holds one, or a teacher, which acts on the exact
        state.
      world_name: a table's path, or the name of one that comes with this package.
      episodes: how many. seed: of the starts, which are those of `evaluate`.
      progress: receives counts of episodes.
      video: a new .mp4 or .webp with the first episodes.
      stop: ends the work after the episode that is running.

    Returns:
      As `evaluate` does, with "world" and "world_hash", and what only a world tells: "deep" (eval-v1's own depth),
      "depth_mm" past the socket's centre, "offset_at_mouth_mm", "hand_on_other_n" (largest force between a hand and
      the other hand's object).

    Raises:
      ConfigError, BackendUnavailable: the world cannot be opened.
      ArtifactError: the policy cannot be read, or is none for a world.
      Interrupted: a stop was asked for; with the result of the episodes that had ended, and no video.
    """
    started = time.monotonic()
    policy = _policy(policy_path)
    world = World(world_name)
    meter = Meter("evaluate", episodes, progress, unit="episodes")
    trials = WorldTrials(world, episodes, seed)
    robot = WorldRobot(world)
    film = None if video is None else _Film(world, films.check_path(video, *films.FILMS))
    if isinstance(policy, StagedPolicy):
        actor: Actor = StateActor(policy, trials)
        done = _run(actor, world, robot, trials, episodes, meter, film, stop)
    else:
        wants = terms(policy)
        with WorldView(world, wants.size, wants.fovy_deg) as view:
            actor = PixelActor(policy, robot, view)
            done = _run(actor, world, robot, trials, episodes, meter, film, stop)
    if not done:
        raise Interrupted(0, episodes, "episodes", None)
    table = trials.table()
    if film is not None and done == episodes:
        film.write(table["success"])
    summary = find_task("insert").scorer(REACHABLE, np.zeros((1, 2))).summary(table)
    result = {
        "protocol": REACHABLE.name,
        "protocol_hash": REACHABLE.hash,
        "world": world.name,
        "world_hash": world.digest,
        "policy": policy.hash,
        "phase": "insert",
        "episodes": done,
        "seed": seed,
        **summary,
        "deep": stats.rate_of(table["deep"]),
        **{
            name: quantiles(table[name][np.isfinite(table[name])])
            for name in ("depth_mm", "offset_at_mouth_mm", "hand_on_other_n")
        },
        "peak_joint_speed_rad_s": quantiles(table["peak_joint_speed"]),
        "peak_contact_force_n": quantiles(table["peak_contact_force"]),
        "wall_s": round(time.monotonic() - started, 2),
        "table": table,
    }
    if done < episodes:
        raise Interrupted(done, episodes, "episodes", result | {"of": episodes})
    return result


def _policy(path: str | os.PathLike[str]) -> OnnxPolicy | StagedPolicy:
    path = pathlib.Path(path)
    if path.is_file() or path.suffix.lower() == ".onnx":
        return OnnxPolicy.load(path)
    policy = artifact.load(path)
    if isinstance(policy, StagedPolicy):
        return policy
    if isinstance(policy, StudentPolicy):
        if (path / "policy.onnx").is_file():
            return OnnxPolicy.load(path / "policy.onnx")
        raise ArtifactError(f"A world runs exported students: alohas2r export {path}")
    raise ArtifactError(f"{path} is no policy for the insertion; a world needs one.")


def _run(
    actor: Actor,
    world: World,
    robot: WorldRobot,
    trials: WorldTrials,
    episodes: int,
    meter: Meter,
    film: _Film | None,
    stop: StopSignal | None,
) -> int:
    """Runs episodes until a stop is asked for; returns how many."""
    robot.enable()
    for episode in range(episodes):
        if stop:
            return episode
        command = trials.begin(episode)
        actor.reset()
        switched = np.array(False)
        for _ in range(trials.steps):
            position = world.position()
            switched = actor.switch.update(
                switched,
                tip_heights(two_fingers(position)),
                position[list(GRIPPERS)],
                command[list(GRIPPERS)],
            )
            action = actor.act(command, bool(switched))
            command = robot.command(
                next_target(command, action, world.low, world.high, actor.scale)
            )
            trials.sent(command)
            if film is not None and episode < FILMED:
                film.add(episode)
            try:
                if trials.over():
                    break
            except RobotFault:  # it has diverged: the episode is lost
                break
        meter.update(episode + 1)
    return episodes


class _Film:
    """The first episodes side by side, each with what both wrists see."""

    HEIGHT, WIDTH = 160, 216

    def __init__(self, world: World, path: pathlib.Path) -> None:
        self._world, self._path = world, path
        self._view = Offscreen(world.model, self.HEIGHT, self.WIDTH, shadows=False)
        self._wrists = Offscreen(world.model, self.HEIGHT, self.HEIGHT, shadows=False)
        view = find_task("insert").view
        left, right = (world.data.xpos[arm.base] for arm in world.built.arms)
        middle = (left + right) / 2 + [0, 0, 0.1]
        self._camera = free_camera(tuple(middle), view[1], view[2], view[3])
        self._pictures: dict[int, list[np.ndarray]] = {}

    def add(self, episode: int) -> None:
        """Adds a picture of the present state."""
        data = self._world.data
        parts = [self._view.picture(data, self._camera)]
        parts += [self._wrists.picture(data, name) for name in self._world.built.cameras]
        self._pictures.setdefault(episode, []).append(np.concatenate(parts, 1))

    def write(self, success: np.ndarray) -> None:
        """Writes the film; a green border marks success, a red one failure."""
        self._view.close()
        self._wrists.close()
        longest = max(len(pictures) for pictures in self._pictures.values())

        def frame(step: int) -> np.ndarray:
            shown = [
                films.border(
                    pictures[min(step, len(pictures) - 1)],
                    films.GREEN if success[episode] else films.RED,
                )
                for episode, pictures in sorted(self._pictures.items())
            ]
            return films.tile(np.stack(shown))

        films.write_video(self._path, (frame(step) for step in range(longest)))
