"""How fast a GPU trains: a few updates of each training."""

from __future__ import annotations

import itertools
import signal
import statistics
import time

from alohas2r.benchmarks.gpu.job import Job, Scene
from alohas2r.core import progress
from alohas2r.core.types import JsonObject
from alohas2r.errors import ModelError


class Clock:
    """Takes a training's reports, notes its speed, and stops it cleanly once enough updates are timed.

    Args:
      job: where figures go.
      label: of the training's own reports; others come from what it does beforehand.
    """

    def __init__(self, job: Job, label: str):
        self._job, self._label = job, label
        self._began = time.monotonic()
        self._before: list[float] = []  # times of reports about other work
        self._marks: list[tuple[float, int]] = []
        self._stopped = False

    def __call__(self, report: progress.Report) -> None:
        """Notes a report's time and what is known by now."""
        now = time.monotonic()
        if report.label != self._label:
            self._before.append(now)
            return
        self._marks.append((now, report.done))
        self._job.note(**self.figures())
        enough = len(self._marks) > self._job.scale.updates
        late = self._job.left_s < 0 and len(self._marks) > 1
        if (enough or late) and not self._stopped:
            self._stopped = True
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C: saves a checkpoint and returns

    def figures(self) -> JsonObject:
        """Returns what is known by now: speed (None until two updates are done) and start-up time."""
        (first, done), *_ = self._marks
        begun = self._before[-1] if self._before else self._began
        known: JsonObject = {
            "steps_per_update": done,
            "updates": len(self._marks) - 1,
            "first_update_s": first - begun,
            "steps_per_s": None,
            "jit_s": None,
        }
        times = [mark[0] for mark in self._marks]
        if len(times) > 1:
            update = statistics.median(b - a for a, b in itertools.pairwise(times))
            known |= {"steps_per_s": done / update, "jit_s": max(first - begun - update, 0.0)}
        if len(self._before) > 1:
            known["before_s"] = self._before[-1] - self._before[0]
        return known

    def finish(self) -> None:
        """Raises if there is no speed.

        Raises:
          ModelError: fewer than two updates were done.
        """
        if len(self._marks) < 2:
            raise ModelError("fewer than two updates fitted into the time")


def ppo(job: Job, phase: Scene) -> None:
    """Trains a teacher for a few updates, and times an evaluation as training makes it."""
    from alohas2r import config
    from alohas2r.core import assets
    from alohas2r.evaluation import evaluate
    from alohas2r.learning.ppo import presets, train

    changes = job.scale.overrides.get(phase, ())
    default = presets.find_preset(phase, "default")
    stages = default.stages()
    job.note(
        environments=config.override(
            presets.find_preset(phase, job.scale.preset), changes
        ).ppo.num_envs,
        preset={
            "steps": sum(stage.updates for stage in stages) * default.ppo.steps_per_update,
            "compilations": len(stages),
            "evaluations": default.evaluations,
            "evaluation_episodes": default.evaluation_episodes,
            "before": default.collect.rounds
            if isinstance(default, presets.FollowingTrainConfig)
            else 0,
        },
    )
    clock = Clock(job, f"train {phase}")
    result = train.train(
        phase,
        job.scale.preset,
        job.scratch / phase,
        overrides=changes,
        progress=clock,
        engine="warp",
    )
    job.note(engine=result["engine"])
    clock.finish()
    if job.scale.evaluate and job.left_s > 0:
        shipped = assets.data_path("params") / ("pick" if phase == "pick" else "teacher")
        table = evaluate.evaluate(shipped, default.evaluation_episodes, engine="warp")
        job.note(evaluation_s=table["wall_s"])


def pretraining(job: Job) -> None:
    """Trains the encoder for a few rounds on pictures that Warp draws."""
    from alohas2r.learning.encoder import config as encoder_config
    from alohas2r.learning.encoder import train as pretrain

    default = encoder_config.find_preset("default")
    job.note(
        renderer="warp",
        preset={
            "steps": default.rounds * default.passes * default.pictures,
            "compilations": 1,
        },
    )
    clock = Clock(job, "pretrain encoder")
    pretrain.pretrain_encoder(
        job.scale.preset,
        job.scale.overrides.get("pretrain", ()),
        job.scratch / "encoder",
        renderer="warp",
        progress=clock,
    )
    clock.finish()


def distillation(job: Job) -> None:
    """Distils the shipped teacher for a few iterations, physics and pictures both on Warp."""
    from alohas2r import config
    from alohas2r.learning.dagger import config as dagger_config
    from alohas2r.learning.dagger import train as dagger

    changes = job.scale.overrides.get("distill", ())
    default = dagger_config.find_preset("default")
    job.note(
        environments=config.override(dagger_config.find_preset(job.scale.preset), changes).num_envs,
        preset={"steps": default.iterations * default.samples, "compilations": 1},
    )
    clock = Clock(job, "distill")
    result = dagger.distill(
        preset=job.scale.preset,
        overrides=changes,
        out=job.scratch / "distill",
        engine="warp",
        renderer="warp",
        progress=clock,
    )
    job.note(engine=result["engine"], renderer="warp")
    clock.finish()
