"""The tempo of an insertion in a changed world: the same policy at several action scales, measured, and the best kept.

Late commands are repaired by slower movements alone, to a large part. What learns there is compared with this row.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from alohas2r import config as configs
from alohas2r.config import check
from alohas2r.core import stats
from alohas2r.core.files import make_folder, write_atomic
from alohas2r.core.lock import FolderLock
from alohas2r.core.types import JsonObject
from alohas2r.deployment.config import DeployConfig
from alohas2r.deployment.loop import Deployment
from alohas2r.deployment.online.demonstrate import why_stopped
from alohas2r.deployment.online.opened import shipped_base
from alohas2r.deployment.report import Outcome
from alohas2r.deployment.rig import Rig, RigConfig, open_rig
from alohas2r.deployment.terms import load_policy, terms
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies.online.spec import TEMPOS
from alohas2r.sim.changed import NOMINAL, WorldParams

if TYPE_CHECKING:
    from alohas2r.deployment.trials import Trials
    from alohas2r.policies.onnx.runtime import OnnxPolicy

TEMPO_RUN, TEMPO_ROWS, POLICY = "tempo.json", "tempos.jsonl", "policy.onnx"
GRID = (0.4, 0.6, 0.8, 1.0)
TASK = "insert"
# Reasons of a run's end that are a person's or the system's, as `Reactions` notes them.
_STOPS = tuple(f"request: {name}" for name in ("Ctrl-C", "SIGTERM", "SIGHUP"))


@dataclasses.dataclass(frozen=True)
class TempoConfig:
    """What is measured.

    Attributes:
      base: the exported policy.
      tempos: factors of its action scale.
      episodes: of each, all from the same starts. final_episodes: of the best, from other starts.
      seconds: how long an episode lasts at most; one that has inserted is over.
      robot: simulated or emulated arms. stepped: whether time stands still between control steps.
      seed: of the starts. world: what is otherwise in the world than in the nominal one.
    """

    base: str
    tempos: tuple[float, ...] = GRID
    episodes: int = 20
    final_episodes: int = 20
    seconds: float = 15.0
    robot: Literal["sim", "emulated"] = "sim"
    stepped: bool = False
    seed: int = 0
    world: WorldParams = NOMINAL

    def __post_init__(self) -> None:
        """Checks the ranges."""
        low, high = TEMPOS
        for tempo in self.tempos:
            check(low <= tempo <= high, f"tempo = {tempo:g} must lie in {low:g}..{high:g}")
        check(
            0 < len(set(self.tempos)) == len(self.tempos),
            "tempos must be numbers, each of them once",
        )
        check(1 <= self.episodes <= 10_000, f"episodes must be in 1..10000, not {self.episodes}")
        check(
            0 <= self.final_episodes <= 10_000,
            f"final_episodes must be in 0..10000, not {self.final_episodes}",
        )
        check(0.05 <= self.seconds <= 500, f"seconds must be in 0.05..500, not {self.seconds:g}")
        check(self.robot in ("sim", "emulated"), "learn needs --robot sim or emulated")


@dataclasses.dataclass(frozen=True)
class _Described:
    """What a run is, as its folder says: what is measured, and the hash of the policy."""

    config: TempoConfig
    base_hash: str


class TempoEpisode(NamedTuple):
    """An episode that is over: its tempo, its number among so many, and whether it inserted."""

    tempo: float
    number: int
    episodes: int
    success: bool


class _Stretch:
    """Some of the episodes of trials, each over as soon as it has inserted: `Hooks`.

    Attributes:
      begun: how many episodes began.
    """

    def __init__(self, trials: Trials, first: int, tell: Callable[[int, bool], object]) -> None:
        self._trials, self._first, self._tell = trials, first, tell
        self.begun = 0

    def begin(self, episode: int) -> np.ndarray:
        """Places everything for an episode and returns the targets [14] that hold it there."""
        if episode >= self.begun:  # the loop asks for the first one twice
            self.close()
            self.begun = episode + 1
        return self._trials.begin(self._first + episode)

    def over(self) -> bool:
        """Lets the step's time pass; whether the episode is over."""
        return self._trials.over() or self._trials.succeeded

    def close(self) -> None:
        """Tells of the last episode."""
        if self.begun:
            self._tell(self.begun - 1, self._trials.succeeded)


def learn_tempo(
    config: TempoConfig,
    out: str | os.PathLike[str],
    resume: bool = False,
    tell: Callable[[TempoEpisode], object] | None = None,
) -> JsonObject:
    """Measures an insertion policy at several tempos and exports it with the best one.

    Of those that succeed equally often, the fastest is best. It is measured once more from other starts: the success by
    which it was chosen is too good by chance.

    Args:
      config: what is measured. out: folder of the run. resume: whether to go on with the run in it.
      tell: after each episode.

    Returns:
      "task", "arm", "protocol" with its hash, "world_params", "seed", "tempo", "success" (from other starts; None
      without them), "tempos" (a row for each that was measured: "tempo", "final", "episodes", "successes", "rate" with
      "low" and "high", "time_to_success_s", "aborted"), "base", "wall_s", "policy", "policy_hash", "out".

    Raises:
      ConfigError: settings that do not fit together, or other ones than the run was begun with.
      ArtifactError: the policy is none for the insertion, or damaged; the run was stopped.
      RobotFault: the pre-flight check fails.
    """
    folder, begun_s = make_folder(out), time.monotonic()
    with FolderLock(folder):
        base = _base(config.base)
        _begin(_Described(config, base.hash), folder, resume)
        rows = _rows(folder)
        rig = RigConfig(config.robot, stepped=config.stepped, seed=config.seed, params=config.world)
        wants = terms(base)
        rig = dataclasses.replace(
            rig,
            size=wants.size,
            fovy_deg=wants.fovy_deg,
            depth_cutoff=wants.depth_cutoff,
            stereo=wants.paired,
        )
        count = config.episodes + config.final_episodes
        with open_rig(rig, episodes=count, episode_s=config.seconds) as arms:
            assert arms.trials is not None
            rules = arms.trials.protocol
            for tempo in config.tempos:
                if not any(row["tempo"] == tempo for row in rows):
                    rows.append(_measure(config, arms, folder, tempo, False, tell))
                    _keep(folder, rows)
            best = best_of(rows)
            if config.final_episodes and not any(row["final"] for row in rows):
                rows.append(_measure(config, arms, folder, best, True, tell))
                _keep(folder, rows)
    shutil.copyfile(_tried(folder, best), folder / f".{POLICY}")
    os.replace(folder / f".{POLICY}", folder / POLICY)
    if config.world != NOMINAL:
        rules = dataclasses.replace(rules, name=f"{rules.name}+world({config.world})")
    return {
        "task": TASK,
        "arm": "tempo",
        "protocol": rules.name,
        "protocol_hash": rules.hash,
        "world_params": str(config.world),
        "seed": config.seed,
        "tempo": best,
        "success": next((row["rate"] for row in rows if row["final"]), None),
        "tempos": rows,
        "base": config.base,
        "wall_s": round(time.monotonic() - begun_s, 1),
        "policy": str(folder / POLICY),
        "policy_hash": load_policy(folder / POLICY).hash,
        "out": str(folder),
    }


def _base(path: str) -> OnnxPolicy:
    policy = load_policy(path)
    if policy.description.get("phase") != TASK or terms(policy).single:
        raise ArtifactError(
            f"{path} is no policy of the insertion with both arms; --base takes an exported student, such as"
            f" {shipped_base()}."
        )
    return policy


def _begin(described: _Described, folder: pathlib.Path, resume: bool) -> None:
    """Writes what the run is, or compares it."""
    path = folder / TEMPO_RUN
    if not resume:
        if path.exists():
            raise ConfigError(
                f"{folder} holds a run already; add --resume to continue it, or choose another --out."
            )
        write_atomic(path, json.dumps(configs.to_dict(described), indent=2).encode() + b"\n")
        return
    try:
        found = configs.from_dict(_Described, json.loads(path.read_text()), partial=True)
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} holds no run to resume; leave out --resume.") from error
    except (OSError, ValueError, ConfigError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); start anew in another --out.") from error
    changes = configs.difference(found, described)
    if changes:
        raise ConfigError(
            f"The run in {folder} was started with another configuration: {'; '.join(changes)}."
        )


def _rows(folder: pathlib.Path) -> list[JsonObject]:
    """Returns what was measured already."""
    path = folder / TEMPO_ROWS
    try:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); start anew in another --out.") from error


def _keep(folder: pathlib.Path, rows: list[JsonObject]) -> None:
    write_atomic(folder / TEMPO_ROWS, "".join(f"{json.dumps(row)}\n" for row in rows).encode())


def best_of(rows: list[JsonObject]) -> float:
    """Returns the tempo with most successes; of equals the fastest."""
    tried = [row for row in rows if not row["final"]]
    return float(max(tried, key=lambda row: (row["successes"], row["tempo"]))["tempo"])


def _tried(folder: pathlib.Path, tempo: float) -> pathlib.Path:
    return folder / f"tempo-{tempo:g}.onnx"


def _measure(
    config: TempoConfig,
    arms: Rig,
    folder: pathlib.Path,
    tempo: float,
    final: bool,
    tell: Callable[[TempoEpisode], object] | None,
) -> JsonObject:
    """Runs the episodes of a tempo as `deploy` runs its file; returns the row."""
    from alohas2r.policies.onnx.rescale import rescale

    assert arms.trials is not None
    file = _tried(folder, tempo)
    rescale(config.base, file, tempo)
    policy = load_policy(file)
    wants = terms(policy)
    count = config.final_episodes if final else config.episodes
    first = config.episodes if final else 0

    def note(number: int, success: bool) -> None:
        if tell is not None:
            tell(TempoEpisode(tempo, number, count, success))

    hooks = _Stretch(arms.trials, first, note)
    deploy = DeployConfig(
        mode="full",
        episodes=count,
        episode_s=config.seconds,
        action_scale=wants.action_scale,
        switch=wants.switch,
        approach=False,
        retreat=False,
        frozen_s=0.0,
    )
    deployment = Deployment(arms.robot, arms.cameras, policy, deploy, arms.trials)
    outcome = deployment.run(hooks)
    arms.robot.disable()  # simulated arms are placed again; the next run powers them
    check_whole(outcome, hooks.begun, count, folder)
    hooks.close()
    table = arms.trials.rows(first, count)
    done = table["success"]
    times = table["time_to_success_s"][done]
    return {
        "tempo": tempo,
        "final": final,
        "episodes": count,
        "successes": int(done.sum()),
        **stats.rate_of(done),
        "time_to_success_s": float(np.median(times)) if len(times) else None,
        "aborted": outcome.aborted,
    }


def check_whole(outcome: Outcome, begun: int, count: int, folder: pathlib.Path) -> None:
    """Makes sure that a tempo's episodes were run to their end.

    Args:
      outcome: of the control loop. begun, count: how many episodes began, and how many there are. folder: of the run.

    Raises:
      ArtifactError: somebody stopped it, or a fault did.
    """
    asked = any(reason.startswith(_STOPS) for _, reason in outcome.reasons)
    if asked or begun < count:
        raise ArtifactError(
            f"The run was stopped ({why_stopped(outcome)}); --resume --out {folder} continues."
        )
