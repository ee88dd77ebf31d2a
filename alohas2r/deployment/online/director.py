"""Which episodes a robot that learns goes through: acting, evaluations, and when it takes another version."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable

import numpy as np

from alohas2r.core.files import write_atomic
from alohas2r.core.types import JsonObject
from alohas2r.deployment.online.deciders import Learned
from alohas2r.deployment.online.stage import Ended, Plan
from alohas2r.deployment.online.truth import Start
from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.errors import ArtifactError
from alohas2r.policies.online import published
from alohas2r.policies.online.config import PUBLISHED, AnyRun

STATE, ARRAYS, EVALUATIONS = "actor.json", "actor.npz", "evaluations.jsonl"
_POLL_S = 0.02
_STEPS_PER_MINUTE = 60 / CONTROL_PERIOD_S
_EVALUATION_SEED = (
    1  # beside the run's own: starts of evaluations are the same for all arms of a seed
)


@dataclasses.dataclass
class Progress:
    """How far a run is; what `--resume` goes on from.

    Attributes:
      episode: the next one's number. decisions, steps: of acting so far, evaluations left out.
      reset_steps: of ways back. returns: of the robot's own ways back, how many were judged; returned: led to a start.
      successes, true_successes: episodes of acting. helped: how often a person was asked.
      failures: episodes of acting in a row that failed.
      aborted: episodes that the guard ended. evaluated: evaluations that are over.
      evaluation: outcomes of the one that is under way: by the reward and by the truth.
      log_end: up to where the newest segment counts (bytes). version: of the weights that acted last.
      final: whether the last evaluation is over.
    """

    episode: int = 0
    decisions: int = 0
    steps: int = 0
    reset_steps: int = 0
    episodes: int = 0
    successes: int = 0
    true_successes: int = 0
    helped: int = 0
    returns: int = 0
    returned: int = 0
    failures: int = 0
    aborted: int = 0
    evaluated: int = 0
    evaluation: list[tuple[bool, bool]] = dataclasses.field(default_factory=list)
    log_end: int = 0
    version: int = -1
    final: bool = False

    @property
    def minutes(self) -> float:
        """Of acting."""
        return self.steps / _STEPS_PER_MINUTE


def read_progress(folder: pathlib.Path) -> tuple[Progress, Start | None]:
    """Reads how far a run is, and the world's state there, None where nobody knows it.

    Raises:
      ArtifactError: damaged.
    """
    path = folder / STATE
    if not path.exists():
        return Progress(), None
    try:
        said = json.loads(path.read_text())
        qpos, targets = said.pop("qpos"), said.pop("targets")
        progress = Progress(**said)
        progress.evaluation = [(bool(a), bool(b)) for a, b in progress.evaluation]
        if not qpos:
            return progress, None
        return progress, Start(np.array(qpos, float), np.array(targets, float))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); start anew in another --out.") from error


class LearnDirector:
    """Says which episodes there are; see `stage.Director`.

    Args:
      folder: of the run. run: what it is. learned: what acts.
      progress: how far it is.
      alive: whether the learner runs; raises if it ended with an error.
      log_end: returns up to where the log is written (bytes).
      tell: is told of each episode.
      state: the world's at the end of the last episode; None before the first.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        run: AnyRun,
        learned: Learned,
        progress: Progress,
        alive: Callable[[], bool],
        log_end: Callable[[], int],
        tell: Callable[[Progress, Ended], object] | None = None,
        state: Start | None = None,
    ) -> None:
        self._state = state
        self._folder, self._run, self._learned = folder, run, learned
        self.progress = progress
        self._alive, self._log_end, self._tell = alive, log_end, tell
        self.refused = ""  # why a newer version was not taken

    @property
    def _final(self) -> bool:
        return self.progress.decisions >= self._run.decisions

    def next(self) -> Plan | None:
        """Returns the next episode; takes the version of the weights that it begins with."""
        progress, config, seed = self.progress, self._run.config, self._run.seed
        wanted = self._due()
        if wanted is not None and len(progress.evaluation) >= wanted:
            self._note_evaluation()
            wanted = self._due()
        if progress.final or (self._final and wanted == 0):
            return None
        self._take_version()
        if wanted is not None and wanted > 0:
            number = len(progress.evaluation)
            kind = (seed + _EVALUATION_SEED, 10**6 + number + (10**6 if self._final else 0))
            return Plan(progress.episode, kind, True, False, True)
        placed = self._run.resets == "placed"
        assert config.learns
        return Plan(progress.episode, (seed, progress.episode), placed, True, False)

    def ended(self, episode: Ended, state: Start | None) -> None:
        """Counts an episode, and keeps how far the run is."""
        one, plan = self.progress, episode.plan
        one.episode += 1
        one.aborted += episode.aborted
        if plan.evaluation:
            one.evaluation.append((episode.success, episode.truth))
        else:
            one.decisions += episode.decisions
            one.steps += episode.steps
            one.reset_steps += episode.reset_steps
            one.episodes += 1
            one.successes += episode.success
            one.true_successes += episode.truth
            one.helped += episode.helped
            one.returns += episode.returned is not None
            one.returned += bool(episode.returned)
            one.failures = episode.failures
        one.log_end, one.version, self._state = self._log_end(), self._learned.version, state
        self._save()
        if self._tell is not None:
            self._tell(one, episode)

    def _save(self) -> None:
        """Keeps how far the run is, and the world's state where anybody knows it."""
        kept = dataclasses.asdict(self.progress)
        state = self._state or Start(np.zeros(0), np.zeros(0))
        kept |= {"qpos": state.qpos.tolist(), "targets": state.targets.tolist()}
        write_atomic(self._folder / STATE, json.dumps(kept).encode())

    def _due(self) -> int | None:
        """Returns of how many episodes an evaluation is due; None: of none."""
        progress, config = self.progress, self._run.config
        if progress.final:
            return None
        if self._final:
            return config.final_episodes
        every = round(config.evaluate_minutes * _STEPS_PER_MINUTE)
        if progress.steps >= (progress.evaluated + 1) * every and config.evaluate_episodes:
            return config.evaluate_episodes
        return None

    def _note_evaluation(self) -> None:
        progress, final = self.progress, self._final
        outcomes = progress.evaluation
        row: JsonObject = {
            "minutes": round(progress.minutes, 3),
            "reset_minutes": round(progress.reset_steps / _STEPS_PER_MINUTE, 3),
            "decisions": progress.decisions,
            "version": progress.version,
            "episodes": len(outcomes),
            "success": sum(truth for _, truth in outcomes) / max(1, len(outcomes)),
            "rewarded": sum(success for success, _ in outcomes) / max(1, len(outcomes)),
            "final": final,
        }
        path = self._folder / EVALUATIONS
        earlier = path.read_text().splitlines() if path.exists() else []
        # Killed after this and before what follows, it is written once more, in the same place.
        rows = [*earlier[: progress.evaluated], json.dumps(row)] if outcomes else earlier
        write_atomic(path, "".join(f"{one}\n" for one in rows).encode())
        progress.evaluated += bool(outcomes)
        progress.evaluation, progress.final = [], final
        self._save()

    def _take_version(self) -> None:
        """Takes the newest weights; in a stepped run, and at its end, waits for those that the log is due.

        Real arms, which stand with torque meanwhile, never wait.
        """
        run, config = self._run, self._run.config
        folder = self._folder / PUBLISHED
        due = 0
        if config.learns and not run.real and (run.stepped or self._final):
            due = min(self.progress.decisions, run.decisions) // config.chunk
        while (newest := published.newest(folder)) is None or newest < due:
            if not self._alive():
                raise ArtifactError(
                    f"The learner ended before version {due}; see {self._folder}. --resume goes on."
                )
            time.sleep(_POLL_S)
        version = due if run.stepped else newest
        if version == self._learned.version:
            return
        try:
            self._learned.use(published.read_version(folder, run.spec, version))
        except ArtifactError as error:
            if run.stepped or self._learned.version < 0:
                raise
            self.refused = str(error)  # the last version goes on acting
