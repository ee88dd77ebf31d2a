"""Measures a policy that a server runs, under the protocol: servers of this package, and OpenPI's with ALOHA's names.

A server may answer with a chunk of actions and may take its time: the arms hold still while it thinks, for as many
control steps as that lasts, then carry out what it said.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.config import check, from_dict
from alohas2r.core.progress import Meter, Progress
from alohas2r.core.stats import quantiles
from alohas2r.core.stop import StopSignal
from alohas2r.core.types import JsonObject
from alohas2r.embodiment.aloha import CAMERAS, INSERT_TASK, from_units, to_units
from alohas2r.embodiment.camera import DEPTH_CUTOFF, FOVY_DEG
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.embodiment.joints import CONTROL_PERIOD_S, PER_ARM
from alohas2r.envs.env import Env
from alohas2r.envs.task import EnvState
from alohas2r.envs.vision import Seen, SensesState
from alohas2r.errors import ArtifactError, BackendUnavailable, Interrupted
from alohas2r.evaluation.actors import Eyes
from alohas2r.evaluation.episodes import (
    Halted,
    draws_digest,
    episode_keys,
    halting,
    run_episodes,
    set_up,
)
from alohas2r.evaluation.evaluate import check_episodes, join, student_conditions
from alohas2r.policies.remote.client import PolicyClient
from alohas2r.policies.spec import CameraSpec, StudentNetworkConfig, StudentSpec, make_spec
from alohas2r.policies.switch import Switch
from alohas2r.sim import scene
from alohas2r.sim.signals import Readout
from alohas2r.tasks.protocol import TaskProtocol
from alohas2r.tasks.registry import find_task
from alohas2r.tasks.scoring import Scorer, Table

AT_ONCE = 32  # episodes, each with a connection of its own; a server of this package takes no more
_TASK = "insert"


@dataclasses.dataclass(frozen=True)
class ServedConfig:
    """How a server is asked.

    Attributes:
      execute: actions of an answer that are carried out before the next is asked for; 0 for all.
      inference_ms: how long an answer takes in the simulation; as long as it really does if None.
      size: side of the pictures (pixels) of a server that does not say.
      timeout_s: longest real time of an answer.
    """

    execute: int = 0
    inference_ms: float | None = None
    size: int = 96
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        check(0 <= self.execute <= 1000, f"execute must be in 0..1000, not {self.execute}")
        check(
            self.inference_ms is None or 0 <= self.inference_ms <= 60_000,
            f"inference_ms must be in 0..60000, not {self.inference_ms}",
        )
        check(8 <= self.size <= 512, f"size must be in 8..512, not {self.size}")


class Answer(NamedTuple):
    """What a server said, and how long it took."""

    actions: np.ndarray  # [H, n]
    took_s: float


class Plan:
    """What one episode does next: the actions of the last answer, after steps in which the server still thinks.

    Attributes:
      held: steps without an action so far.
    """

    def __init__(self, execute: int = 0):
        self._execute, self._waiting, self.held = execute, 0, 0
        self._left: collections.deque[np.ndarray] = collections.deque()

    def next(self, ask: Callable[[], Answer]) -> np.ndarray | None:
        """Returns the action [n] of this control step; None where the arms hold still.

        Args:
          ask: asks the server about the present observation; called only where nothing is left to do.
        """
        if not self._waiting and not self._left:
            answer = ask()
            count = self._execute or len(answer.actions)
            self._left.extend(answer.actions[:count])
            # Less than a period costs nothing: the command goes out before the next one is due.
            self._waiting = int(answer.took_s / CONTROL_PERIOD_S + 1e-9)
        if self._waiting:
            self._waiting -= 1
            self.held += 1
            return None
        return self._left.popleft()


class Dialect(Protocol):
    """How a server wants observations, and what its actions mean.

    Attributes:
      spec: of the pictures and joints that it is given. scale: of actions; the protocol's if None.
    """

    spec: StudentSpec
    scale: float | None

    def observation(self, seen: Seen, index: int, switched: bool) -> JsonObject:
        """Returns what the server is asked about one of N episodes."""
        ...

    def action(self, answered: np.ndarray, present: np.ndarray, scale: float) -> np.ndarray:
        """Returns the action [14] in [-1, 1] for an answer [n], from the present targets [14]."""
        ...


class OwnDialect:
    """A server of this package, which says what it takes: `alohas2r serve`.

    Args:
      client: a connection to it.

    Raises:
      ArtifactError: it does not say what an evaluation depends on.
    """

    def __init__(self, client: PolicyClient):
        said, interface = client.metadata, client.interface
        assert interface is not None
        missing = [name for name in ("policy", "actions", "switch") if not said.get(name)]
        if missing or "scale" not in said["actions"]:
            raise ArtifactError(
                f"The policy server at {client.url} does not say {', '.join(missing) or 'its scale'}; serve the"
                " exported policy with alohas2r serve of this version."
            )
        shapes = {one.name: one.shape for one in interface.inputs}
        if "wrist_depth" in shapes:
            raise ArtifactError(
                f"The policy at {client.url} is one of a single arm; evaluate its artifact or its exported file."
            )
        self._names = tuple(shapes)
        pictures = [
            shape for name, shape in shapes.items() if name.endswith(("_rgb", "_depth", "_grey"))
        ]
        colour = any(name.endswith("_rgb") for name in shapes)
        deep = any(name.endswith("_depth") for name in shapes)
        kind = "rgbd" if colour and deep else "depth" if deep else "rgb"
        if any(name.endswith("_grey") for name in shapes):
            kind = "stereo"
        cameras = said.get("cameras") or {}
        size = pictures[0][0] if pictures else CameraSpec().size
        self.scale: float | None = float(said["actions"]["scale"])
        self.spec = _spec(
            kind,
            CameraSpec(
                size,
                float(cameras.get("fovy_deg", FOVY_DEG)),
                float(cameras.get("depth_cutoff", DEPTH_CUTOFF)),
            ),
            from_dict(Switch, said["switch"]),
        )

    def observation(self, seen: Seen, index: int, switched: bool) -> JsonObject:
        """Returns what the server is asked about one of N episodes."""
        values: JsonObject = {
            "proprioception": np.asarray(seen.vector[index], np.float32),
            "switched": np.asarray(switched),
        }
        pictures = self.spec.named_pictures(seen.rgb, seen.depth)
        values |= {name: np.asarray(picture[index]) for name, picture in pictures.items()}
        return {name: values[name] for name in self._names}

    def action(self, answered: np.ndarray, present: np.ndarray, scale: float) -> np.ndarray:
        """Returns the action [14] in [-1, 1] for an answer [14]."""
        del present, scale
        return answered


class OpenPiDialect:
    """A server of OpenPI with ALOHA's names: "state", "images", "prompt" in, absolute targets out.

    Source of the names: OpenPI's `aloha_policy.py`. Targets are reached as fast as the protocol lets targets move.

    Args:
      size: side of the pictures (pixels).
    """

    scale: float | None = None

    def __init__(self, size: int):
        self.spec = _spec("rgb", CameraSpec(size), Switch())

    def observation(self, seen: Seen, index: int, switched: bool) -> JsonObject:
        """Returns what the server is asked about one of N episodes."""
        del switched
        assert seen.rgb is not None
        positions = np.asarray(seen.vector[index, :16]).reshape(2, -1)[:, :PER_ARM]
        images = {
            camera: np.ascontiguousarray(np.asarray(seen.rgb[index, place]).transpose(2, 0, 1))
            for place, camera in enumerate(CAMERAS)
        }
        return {"state": to_units(positions.reshape(-1)), "images": images, "prompt": INSERT_TASK}

    def action(self, answered: np.ndarray, present: np.ndarray, scale: float) -> np.ndarray:
        """Returns the action [14] in [-1, 1] that moves the present targets towards those of an answer."""
        if answered.shape != present.shape:
            raise ArtifactError(
                f"The policy server gives {answered.shape[-1]} numbers per action, not 14 targets of two ALOHA arms."
            )
        return np.clip((from_units(answered) - present) / scale, -1, 1)


def _spec(observation: str, cameras: CameraSpec, switch: Switch) -> StudentSpec:
    network, memory = StudentNetworkConfig(), HistoryConfig(())
    return make_spec(scene.load(_TASK), observation, network, cameras, memory, switch, 0.02)


def dialect_of(client: PolicyClient, config: ServedConfig) -> Dialect:
    """Returns how a server is talked to: what it says it takes, or OpenPI's names."""
    return OpenPiDialect(config.size) if client.interface is None else OwnDialect(client)


class ServedActor:
    """A policy on a server, asked by one connection for each of N episodes.

    Attributes:
      answers_s: how long each answer took.

    Args:
      env: the environments. eyes: what is observed in them. dialect: how the server is asked.
      clients: N connections. config: chunks and time.
    """

    def __init__(
        self,
        env: Env,
        eyes: Eyes,
        dialect: Dialect,
        clients: Sequence[PolicyClient],
        config: ServedConfig,
    ):
        self._env, self._eyes, self._dialect = env, eyes, dialect
        self._clients, self._config = clients, config
        self._look, self._control = jax.jit(eyes.observe), jax.jit(env.control)
        loaded = env.engine.scene
        self._actuators = np.concatenate([arm.ctrl for arm in loaded.arms])
        self._sense: SensesState | None = None
        self._plans: list[Plan] = []
        self._clock = np.zeros(len(clients), int)
        self._over = np.zeros(len(clients), bool)
        self.answers_s: list[float] = []

    @property
    def held(self) -> int:
        """Control steps in which arms held still for the server."""
        return sum(plan.held for plan in self._plans)

    def reset(self, keys: jax.Array) -> None:
        """Begins the episodes anew."""
        self._sense = self._eyes.reset(keys)
        self._plans = [Plan(self._config.execute) for _ in self._clients]
        self._clock[:], self._over[:] = -1, False
        for client in self._clients:
            client.reset()

    def act(self, state: EnvState, readout: Readout) -> tuple[EnvState, jax.Array]:
        """Observes and acts in all environments; those that began anew are left alone."""
        clock = np.asarray(state.task.step).reshape(len(self._clients), -1)[:, 0]
        self._over |= clock < self._clock
        self._clock = clock.copy()
        switched = np.asarray(state.task.switched)
        drawn = self._eyes.draw(self._sense, readout)
        state, self._sense, seen = self._look(state, readout, self._sense, drawn)
        seen = jax.tree.map(np.asarray, seen)
        present = self._present(state, readout)
        scale = self._env.config.control.scale
        actions = np.zeros((len(self._clients), len(self._actuators)), np.float32)
        for index in np.flatnonzero(~self._over):

            def ask(index: int = int(index)) -> Answer:
                observed = self._dialect.observation(seen, index, bool(switched[index]))
                return self._ask(index, observed)

            answered = self._plans[index].next(ask)
            if answered is not None:
                actions[index] = self._dialect.action(answered, present[index], scale)
        return self._control(state, readout, jnp.asarray(actions))

    def _present(self, state: EnvState, readout: Readout) -> np.ndarray:
        """Returns the present targets [N, 14] as the policy's side counts them."""
        if self._env.held is not None:
            return np.asarray(state.control.actions)[:, 0]
        return np.asarray(readout.ctrl)[:, self._actuators]

    def _ask(self, index: int, observed: JsonObject) -> Answer:
        started = time.monotonic()
        actions = self._clients[index].infer(observed)
        took = time.monotonic() - started
        self.answers_s.append(took)
        fixed = self._config.inference_ms
        return Answer(actions, took if fixed is None else fixed / 1000)


class _Group(NamedTuple):
    """Episodes that were run side by side."""

    table: Table
    answers_s: list[float]
    held: int
    steps: int
    scorer: Scorer
    dialect: Dialect
    said: JsonObject  # by the server about itself


def evaluate_server(
    url: str,
    episodes: int = 100,
    seed: int = 0,
    threads: int = 0,
    progress: Progress | None = None,
    protocol: TaskProtocol | None = None,
    config: ServedConfig | None = None,
    api_key: str = "",
    renderer: str = "auto",
    stop: StopSignal | None = None,
) -> JsonObject:
    """Measures a policy that a server runs, in the episodes in which `evaluate` measures a file.

    Args:
      url: "ws://host:port". episodes, seed, threads, progress, protocol, renderer, stop: as `evaluate`.
      config: how it is asked. api_key: if the server wants one.

    Returns:
      As `evaluate` does, with "server", "asked" (what the server speaks, chunks, time per answer, steps held).

    Raises:
      BackendUnavailable: no server there. ArtifactError: it refuses, or is no policy for these arms.
      ConfigError: a number out of range.
      Interrupted: a stop was asked for, or the server is gone; with the result of the groups of episodes that had
        ended.
    """
    started = time.monotonic()
    check_episodes(episodes)
    config = ServedConfig() if config is None else config
    entry = find_task(_TASK)
    rules: TaskProtocol = entry.protocol if protocol is None else protocol
    meter = Meter("evaluate", episodes, progress, unit="episodes")
    groups: list[_Group] = []

    def result() -> JsonObject:
        wall_s = round(time.monotonic() - started, 2)
        about = {"draws": draws_digest(entry, seed), "wall_s": wall_s}
        return _result(url, rules, config, seed, groups) | about

    try:
        for first in range(0, episodes, AT_ONCE):
            keys = episode_keys(seed, first, min(AT_ONCE, episodes - first))
            with contextlib.ExitStack() as stack:
                clients = [
                    stack.enter_context(PolicyClient(url, api_key, config.timeout_s))
                    for _ in range(len(keys))
                ]
                dialect = dialect_of(clients[0], config)
                setting = set_up(
                    entry, rules, HistoryConfig(()), keys, threads, scale=dialect.scale
                )
                eyes = Eyes(dialect.spec, setting, threads, renderer, student_conditions(rules))
                actor = ServedActor(setting.env, eyes, dialect, clients, config)
                scorer = setting.scorer()
                watch = halting(stop)
                played = run_episodes(setting.env, actor, scorer, keys, meter, first, watch)
                counts = actor.held, int(played.steps.sum())
                said = clients[0].metadata
            groups.append(_Group(scorer.table(), actor.answers_s, *counts, scorer, dialect, said))
    except (Halted, BackendUnavailable) as error:
        why = "" if isinstance(error, Halted) else str(error)
        if why and not groups:
            raise
        done = sum(len(group.table["success"]) for group in groups)
        part = result() | {"of": episodes} if groups else None
        raise Interrupted(done, episodes, "episodes", part, why) from None
    return result()


def _result(
    url: str, rules: TaskProtocol, config: ServedConfig, seed: int, groups: Sequence[_Group]
) -> JsonObject:
    """Returns what groups of episodes came to."""
    table, last = join([group.table for group in groups]), groups[-1]
    answers = [took for group in groups for took in group.answers_s]
    return {
        "protocol": rules.name,
        "protocol_hash": rules.hash,
        "policy": str(last.said.get("policy", "not said")),
        "server": url,
        "phase": _TASK,
        "engine": "cpu",
        "episodes": len(table["success"]),
        "seed": seed,
        **last.scorer.summary(table),
        "asked": {
            "speaks": "alohas2r" if isinstance(last.dialect, OwnDialect) else "openpi",
            "execute": config.execute or "all",
            "inference_ms": "as measured" if config.inference_ms is None else config.inference_ms,
            "answers": len(answers),
            "held_steps": sum(group.held for group in groups),
            "steps": sum(group.steps for group in groups),
        },
        "answer_ms": quantiles(1000 * np.array(answers)),
        "peak_joint_speed_rad_s": quantiles(table["peak_joint_speed"]),
        "peak_contact_force_n": quantiles(table["peak_contact_force"]),
        "table": table,
    }
