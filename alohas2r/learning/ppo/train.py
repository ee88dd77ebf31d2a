"""Teacher training: the loop around the learner, with checkpoints, resume, metrics and the finished artifact."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import alohas2r
from alohas2r import config
from alohas2r.core import assets, files
from alohas2r.core import progress as core_progress
from alohas2r.core import stop as core_stop
from alohas2r.core.machine import describe_machine, peak_memory_gb
from alohas2r.envs.env import Env
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.evaluation import episodes as evaluation_episodes
from alohas2r.evaluation import evaluate
from alohas2r.learning.ppo.envs import make_env
from alohas2r.learning.ppo.learner import Ppo
from alohas2r.learning.ppo.policy import record_check, to_policy
from alohas2r.learning.ppo.presets import InsertTrainConfig, TrainConfig, find_preset
from alohas2r.learning.run import log as run_log
from alohas2r.learning.run.checkpoint import Checkpoint
from alohas2r.policies import artifact
from alohas2r.policies import staged as policies_staged
from alohas2r.policies.state import StatePolicy
from alohas2r.sim.engines import registry as engines
from alohas2r.sim.engines.base import snapshot
from alohas2r.sim.engines.buffers import BufferConfig
from alohas2r.tasks.insert import switch_states
from alohas2r.tasks.registry import find_task


def _quick_rates(
    found: StatePolicy | policies_staged.StagedPolicy,
    episodes: int,
    seed: int,
    threads: int,
    engine: str,
) -> dict[str, float]:
    keys = evaluation_episodes.episode_keys(seed, 0, episodes)
    table = evaluate.run(found, None, keys, threads, engine=engine).table
    watched = evaluate.watched(find_task(found.spec.phase), table)
    return {f"eval/{name}": value for name, value in watched.items()}


def _due(update: int, updates: int, times: int) -> bool:
    """Whether one of `times` evenly spread events falls on this update (1 .. updates)."""
    return times > 0 and (update * times) // updates > ((update - 1) * times) // updates


@jax.jit
def _finite(rollout: Any) -> jax.Array:
    """Returns [T, N]: whether all that the learner takes from that step is finite."""
    values = (rollout.features, rollout.privileged, rollout.reward, rollout.log_prob)
    flat = [jnp.isfinite(value).reshape(*rollout.reward.shape, -1) for value in values]
    return jnp.concatenate(flat, -1).all(-1)


def _guard(rollout: Any, scores: Sequence[Any], physics_before: Any, folder: pathlib.Path) -> None:
    """Raises if learning data is not finite, naming the environment and keeping its state.

    Environments whose physics diverge are restarted by `Env.score`; what must never happen is a non-finite
    number that reaches the learner.
    """
    finite = np.asarray(_finite(rollout))
    if finite.all():
        return
    step, env = (int(index[0]) for index in np.nonzero(~finite))
    dump = folder / "nonfinite.npz"
    arrays = {
        "state_before_unroll": physics_before.rows[env],
        "features": np.asarray(rollout.features[:, env]),
        "privileged": np.asarray(rollout.privileged[:, env]),
        "raw_action": np.asarray(rollout.raw_action[:, env]),
        "reward": np.asarray(rollout.reward[:, env]),
    }
    files.write_atomic(dump, lambda file: np.savez(file, **arrays))
    raise ArtifactError(
        f"Environment {env} gave a non-finite number in step {step} of the unroll; its state is in {dump}."
    )


def train(
    phase: str = "pick",
    preset: str = "default",
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    seed: int = 0,
    threads: int = 0,
    minutes: float | None = None,
    progress: core_progress.Progress | None = None,
    pick: str | os.PathLike[str] | None = None,
    engine: str = engines.AUTO,
) -> dict[str, Any]:
    """Trains a teacher and writes its artifact to `out`/policy; for insertion the whole teacher to `out`/teacher.

    Insertion starts from switch states, `out`/switch_states.npz, collected with the pick policy if the file is
    missing or belongs to another one.

    Args:
      phase: name of the task.
      preset: "default" or "quick".
      out: folder of the run; runs/<phase> if None.
      resume: continue the run in `out` to the same result as an unbroken run.
      overrides: "key=value" settings on top of the preset.
      seed: of everything random.
      threads: of the physics; 0 for all cores. Part of what makes a run reproducible.
      minutes: stop (resumably) after this time.
      progress: receives reports.
      pick: the pick policy that insertion follows; the shipped one if None.
      engine: "cpu"; "warp"; or "auto": the engine of the run that is resumed, else "warp" where there is CUDA, else
        "cpu". Switch states are collected on the CPU engine in any case.

    Returns:
      "policy": the artifact's folder, or None if stopped early; "steps", "finished", "wall_s",
      "peak_memory_gb" of this process, last metrics.

    Raises:
      ConfigError: unknown setting, value out of range, or another configuration than the run that is resumed.
      ArtifactError: the folder cannot be written, or the checkpoint is missing or damaged.
      BackendUnavailable: the engine cannot run here.
      ModelError: the engine's buffers are too small; the message says what to set.
    """
    settings = config.override(find_preset(phase, preset), overrides)
    folder = files.make_folder(out if out is not None else pathlib.Path("runs") / phase)
    checkpoint = Checkpoint(folder / "checkpoint")
    plan: dict[str, Any] = {"config": config.to_dict(settings), "seed": seed, "pick": None}
    states, pick_policy = None, None
    if isinstance(settings, InsertTrainConfig):
        pick = assets.data_path("params") / "pick" if pick is None else pick
        pick_policy = artifact.load(pick, StatePolicy)
        if pick_policy.spec.phase != "pick":
            raise ArtifactError(f"{pick} is no pick policy.")
        plan["pick"] = pick_policy.hash
    described = folder / "config.json"
    if resume and engine == engines.AUTO:
        engine = _engine_of(described)
    plan["engine"] = engine = engines.choose(engine)
    if resume:
        _check_same(described, settings, plan)
    elif checkpoint.exists():
        raise ConfigError(
            f"{folder} holds a run already; add --resume to continue it, or choose another --out."
        )

    if isinstance(settings, InsertTrainConfig) and pick is not None and pick_policy is not None:
        collect = dataclasses.replace(settings.collect, physics=settings.task.physics)
        states = switch_states.ensure(
            folder / "switch_states.npz", pick, collect, seed, threads, progress
        )
        if settings.env.history != pick_policy.spec.history:
            raise ConfigError(
                f"env.history.rates must be those of the pick policy, {pick_policy.spec.history.rates}."
            )
    stages = settings.stages()
    ends = np.cumsum([stage.updates for stage in stages])
    updates = int(ends[-1])
    root = jax.random.PRNGKey(seed)

    def enter(stage: int) -> tuple[Env, Ppo, Any, Any, Any]:
        """Starts the environments of a stage."""
        env = make_env(stages[stage], seed, threads, states, stage, engine)
        keys = jax.random.split(jax.random.fold_in(root, 1 + stage), settings.ppo.num_envs)
        return env, Ppo(stages[stage].ppo, env), *env.reset(keys, stagger=True)

    done_updates, wall_before, stage = 0, 0.0, 0
    env, learner_of, state, physics, readout = enter(stage)
    learner = learner_of.init(jax.random.fold_in(root, 0))
    if resume:
        (learner, *there), extra = checkpoint.load((learner, state, snapshot(physics), readout))
        done_updates, wall_before = int(extra["updates"]), float(extra["wall_s"])
        stage = min(int(np.searchsorted(ends, done_updates, side="right")), len(stages) - 1)
        if stage:
            env, learner_of, state, physics, readout = enter(stage)
        if not stage or done_updates > ends[stage - 1]:
            state, physics, readout = there
    else:
        files.write_atomic(described, json.dumps(plan, indent=2).encode() + b"\n")
    per_update = settings.ppo.steps_per_update
    started = time.monotonic()
    figures: dict[str, float] = {}

    def wall() -> float:
        return wall_before + time.monotonic() - started

    def save(update: int) -> None:
        extra = {"updates": update, "wall_s": wall(), "version": alohas2r.__version__}
        checkpoint.save((learner, state, snapshot(physics), readout), extra)

    with (
        run_log.RunLog(
            folder, updates * per_update, label=f"train {phase}", progress=progress
        ) as log,
        core_stop.StopSignal() as stop,
    ):
        if resume:
            log.resume(done_updates * per_update)
        log.start()
        for update in range(done_updates + 1, updates + 1):
            if update == ends[stage] + 1:
                stage += 1
                env, learner_of, state, physics, readout = enter(stage)
            first = int(ends[stage]) - stages[stage].updates
            share = jnp.float32((update - 1 - first) / stages[stage].updates)
            before = snapshot(physics)
            rollout, final, state, physics, readout, scores = learner_of.rollout(
                learner, state, physics, readout
            )
            _guard(rollout, scores, before, folder)
            learner, metrics = learner_of.update(learner, rollout, final, share)
            measures = jax.tree.map(lambda x: np.asarray(x, np.float32), scores[-1].measures)
            figures = {name: float(value) for name, value in metrics.items()}
            figures |= {
                f"train/{name}": float(getattr(measures, name).mean())
                for name in (
                    "reached",
                    "grasped",
                    "lifted",
                    "success",
                    "stage",
                    "dropped",
                    "in_place",
                )
                if hasattr(measures, name)
            }
            figures["train/unstable"] = float(
                np.mean([(~np.asarray(s.finite)).mean() for s in scores])
            )
            done_updates = update
            expired = minutes is not None and (time.monotonic() - started) > 60 * minutes
            if not np.isfinite(figures["loss/value"] + figures["loss/policy"]):
                raise ArtifactError(
                    f"The loss is not finite in update {update}; the last checkpoint in {folder} is good: resume with"
                    " a smaller ppo.learning_rate_range."
                )
            if _due(update, updates, settings.evaluations):
                found = to_policy(settings, env, learner, {})
                if pick_policy is not None and isinstance(settings, InsertTrainConfig):
                    found = policies_staged.StagedPolicy(
                        pick_policy, found, settings.task.switch, {}
                    )
                figures |= _quick_rates(
                    found,
                    settings.evaluation_episodes,
                    (seed + 1_000_003) % evaluation_episodes.SEEDS,
                    threads,
                    engine,
                )
            log.write(update * per_update, figures)
            if stop or expired or update == updates or _due(update, updates, settings.checkpoints):
                save(update)
            if stop or expired:
                break

    finished = done_updates == updates
    result: dict[str, Any] = {
        "phase": phase,
        "engine": engine,
        "steps": done_updates * per_update,
        "finished": finished,
        "wall_s": round(wall(), 1),
        "peak_memory_gb": round(peak_memory_gb(), 2),
        "out": str(folder),
        "policy": None,
        "metrics": figures,
    }
    if finished:
        trained = {
            "command": f"alohas2r train-teacher --phase {phase} --preset {preset} --seed {seed}"
            + f" --engine {engine}"
            + "".join(f" --set {setting}" for setting in overrides),
            "config": plan["config"],
            "engine": engine,
            "seed": seed,
            "steps": result["steps"],
            "wall_s": result["wall_s"],
            "peak_memory_gb": result["peak_memory_gb"],
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": describe_machine(),
            "alohas2r": alohas2r.__version__,
            "parents": {} if pick_policy is None else {"pick": pick_policy.hash},
        }
        found = to_policy(settings, env, learner, trained)
        observations = record_check(found, env, seed)
        result["policy"] = str(
            artifact.save(found, folder / "policy", {"observations": observations})
        )
        if pick_policy is not None and isinstance(settings, InsertTrainConfig):
            teacher = policies_staged.StagedPolicy(
                pick_policy,
                found,
                settings.task.switch,
                {"alohas2r": alohas2r.__version__, "date": trained["date"]},
            )
            switched = np.arange(len(observations)) >= len(observations) // 2
            recorded = {"observations": observations, "switched": switched}
            result["teacher"] = str(artifact.save(teacher, folder / "teacher", recorded))
    return result


def _engine_of(described: pathlib.Path) -> str:
    """Returns the engine of a run, "auto" if it cannot be read; `_check_same` says why."""
    try:
        return str(json.loads(described.read_text()).get("engine", "cpu"))
    except (OSError, ValueError, AttributeError):
        return engines.AUTO


def _check_same(described: pathlib.Path, settings: TrainConfig, plan: dict[str, Any]) -> None:
    try:
        earlier = json.loads(described.read_text())
        # Runs from before there was a choice of engines say nothing about it.
        buffers = {"engine": config.to_dict(BufferConfig())}
        before = config.from_dict(type(settings), buffers | earlier["config"])
        others = {name: earlier[name] for name in ("seed", "pick")}
        others["engine"] = earlier.get("engine", "cpu")
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{described.parent} holds no run to resume; leave out --resume to start one."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{described} is damaged ({error}); start a new run with another --out."
        ) from error
    changes = config.difference(before, settings)
    changes += [
        f"{name}: {value} -> {plan[name]}" for name, value in others.items() if value != plan[name]
    ]
    if changes:
        raise ConfigError(
            f"The run in {described.parent} was started with another configuration: {'; '.join(changes)}."
        )
