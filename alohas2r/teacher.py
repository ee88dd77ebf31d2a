"""Teacher training: the loop around the learner, with checkpoints, resume, metrics and the finished artifact."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import resource
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

import alohas2r
from alohas2r import config, engines, evaluate, policy, randomize, runlog, scene, switch_states
from alohas2r.checkpoint import Checkpoint
from alohas2r.engines import BufferConfig
from alohas2r.engines.cpu import snapshot
from alohas2r.env import Env, EnvConfig
from alohas2r.errors import ArtifactError, ConfigError, did_you_mean
from alohas2r.networks import NetworkConfig
from alohas2r.ppo import LearnerState, Ppo, PpoConfig
from alohas2r.protocol import EVAL_V1
from alohas2r.randomize import BlockConfig
from alohas2r.switch_states import CollectConfig, SwitchStates
from alohas2r.tasks.insert import InsertConfig, InsertReward, InsertTask
from alohas2r.tasks.pick import PickConfig, PickReward, PickTask

PHASES = ("pick", "insert")


@dataclasses.dataclass(frozen=True)
class SecondStage:
    """A second stage of a training, from where the first one ends, that asks for sureness.

    The first stage learns fastest when each step near the goal is paid; but then a second's waiting for a better
    view costs more than a sure grasp is worth. In the second stage most is paid in an episode's last step, and the
    discount looks as far as that.

    Attributes:
      steps: environment steps; 0 for none.
      entropy, target_kl, discount, reward_scale: as in PpoConfig, for this stage.
    """

    steps: int = 0
    entropy: tuple[float, float] = (0.004, 0.0005)
    target_kl: tuple[float, float] = (0.012, 0.003)
    discount: float = 0.995
    reward_scale: float = 0.03

    def __post_init__(self) -> None:
        config.check(0 <= self.steps <= 10**11, "steps must be in 0..1e11")

    def task(self, task: Any) -> Any:
        """Returns the first stage's task with what this stage changes in it."""
        return task


@dataclasses.dataclass(frozen=True)
class RefineConfig(SecondStage):
    """The second stage of picking, on harder blocks.

    Attributes:
      weights: relative frequency of equal parts of the blocks' range of sizes, from thin to wide.
      reward: weights of the reward.
    """

    weights: tuple[float, ...] = (4.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 4.0, 6.0)
    reward: PickReward = PickReward(hold=0.02, stay=0.01, grip=0.03, finish=40.0)

    def task(self, task: PickConfig) -> PickConfig:
        """Returns the task on this stage's blocks, with its reward."""
        block = dataclasses.replace(task.block, skew=1.0, weights=self.weights)
        return dataclasses.replace(task, block=block, reward=self.reward)


@dataclasses.dataclass(frozen=True)
class InsertRefineConfig(SecondStage):
    """The second stage of insertion.

    Attributes:
      reward: weights of the reward.
    """

    reward: InsertReward = InsertReward(
        align=0.05,
        depth=0.1,
        inserted=2.0,
        grip=0.05,
        level=0.02,
        slow=0.05,
        finish=40.0,
        near=-1.0,
    )

    def task(self, task: InsertConfig) -> InsertConfig:
        """Returns the task with this stage's reward."""
        return dataclasses.replace(task, reward=self.reward)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A teacher training.

    Attributes:
      phase: "pick" or "insert".
      total_steps: environment steps.
      task: the task.
      env: control, noise, history.
      ppo: the learner.
      evaluations: how many evaluations on the way, evenly spread; the last is at the end.
      evaluation_episodes: episodes of each.
      checkpoints: how many checkpoints on the way, evenly spread.
      refine: a second stage; none by default.
      engine: sizes of the buffers of the engine "warp".
    """

    phase: str = "pick"
    total_steps: int = 24_000_000
    task: PickConfig = PickConfig()
    env: EnvConfig = EnvConfig()
    ppo: PpoConfig = PpoConfig()
    evaluations: int = 10
    evaluation_episodes: int = 512
    checkpoints: int = 60
    refine: RefineConfig = RefineConfig()
    engine: BufferConfig = BufferConfig()

    def __post_init__(self) -> None:
        config.check(
            self.phase in PHASES, f"phase must be one of {', '.join(PHASES)}, not '{self.phase}'"
        )
        config.check(1 <= self.total_steps <= 10**11, "total_steps must be in 1..1e11")
        config.check(0 <= self.evaluations <= 10_000, "evaluations must be in 0..10000")
        config.check(
            1 <= self.evaluation_episodes <= 100_000, "evaluation_episodes must be in 1..100000"
        )
        config.check(0 <= self.checkpoints <= 100_000, "checkpoints must be in 0..100000")

    @property
    def updates(self) -> int:
        """Number of updates of the first stage."""
        return -(-self.total_steps // self.ppo.steps_per_update)

    def stages(self) -> list[TrainConfig]:
        """Returns one configuration per stage; they differ in data and schedule, never in shapes."""
        if not self.refine.steps:
            return [self]
        second = dataclasses.replace(
            self,
            total_steps=self.refine.steps,
            task=self.refine.task(self.task),
            ppo=dataclasses.replace(
                self.ppo,
                entropy=self.refine.entropy,
                target_kl=self.refine.target_kl,
                discount=self.refine.discount,
                reward_scale=self.refine.reward_scale,
            ),
        )
        return [self, second]


@dataclasses.dataclass(frozen=True)
class InsertTrainConfig(TrainConfig):
    """An insertion training.

    Attributes:
      task: the insertion task.
      collect: the switch states to start from; one physics variant per environment.
    """

    phase: str = "insert"
    total_steps: int = 16_000_000
    evaluations: int = 8
    evaluation_episodes: int = 256
    task: InsertConfig = InsertConfig(steps=140)  # pyright: ignore[reportIncompatibleVariableOverride]
    env: EnvConfig = EnvConfig(noise=switch_states.INSERT_NOISE)
    ppo: PpoConfig = PpoConfig(reward_scale=0.04)
    collect: CollectConfig = CollectConfig()
    refine: InsertRefineConfig = InsertRefineConfig()  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        super().__post_init__()
        config.check(
            self.collect.variants == self.ppo.num_envs,
            f"collect.variants = {self.collect.variants} must equal ppo.num_envs = {self.ppo.num_envs}",
        )


PRESETS: dict[str, dict[str, TrainConfig]] = {
    "pick": {
        "default": TrainConfig(
            total_steps=12_000_000,
            task=PickConfig(block=BlockConfig(skew=0.7)),
            ppo=PpoConfig(entropy=(0.01, 0.003), target_kl=(0.015, 0.008)),
            refine=RefineConfig(steps=27_000_000),
        ),
        "quick": TrainConfig(
            total_steps=300_000,
            ppo=PpoConfig(
                num_envs=256, unroll=32, minibatches=4, network=NetworkConfig((64, 64), (64, 64))
            ),
            evaluations=1,
            evaluation_episodes=64,
            checkpoints=5,
        ),
    },
    "insert": {
        "default": InsertTrainConfig(
            total_steps=4_000_000,
            ppo=PpoConfig(entropy=(0.01, 0.003), target_kl=(0.015, 0.008), reward_scale=0.04),
            refine=InsertRefineConfig(steps=5_000_000),
        ),
        "quick": InsertTrainConfig(
            total_steps=100_000,
            ppo=PpoConfig(
                num_envs=128, unroll=32, minibatches=4, network=NetworkConfig((64, 64), (64, 64))
            ),
            collect=CollectConfig(variants=128, rounds=1),
            evaluations=1,
            evaluation_episodes=32,
            checkpoints=5,
        ),
    },
}


def find_preset(phase: str, name: str) -> TrainConfig:
    """Returns a preset.

    Raises:
      ConfigError: unknown phase or preset.
    """
    if phase not in PRESETS:
        raise ConfigError(f"Unknown phase '{phase}'.{did_you_mean(phase, PRESETS)}")
    if name not in PRESETS[phase]:
        raise ConfigError(f"Unknown preset '{name}'.{did_you_mean(name, PRESETS[phase])}")
    return PRESETS[phase][name]


def make_env(
    settings: TrainConfig,
    seed: int,
    threads: int = 0,
    states: SwitchStates | None = None,
    stage: int = 0,
    engine: str = "cpu",
) -> Env:
    """Returns the training environments of a configuration; every environment keeps its own physics.

    Args:
      settings: the configuration.
      seed: of the blocks.
      threads: of the physics; 0 for all cores.
      states: the switch states that insertion starts from; whole episodes if None.
      stage: number of the training stage; each has blocks of its own.
      engine: "auto", "cpu" or "warp".
    """
    loaded = scene.load_physics(settings.phase)
    count = settings.ppo.num_envs
    if isinstance(settings, InsertTrainConfig):
        if states is None:
            draws, physics, pool = np.random.default_rng([seed, 0]), settings.task.physics, None
            draws = draws.random((count, randomize.INSERT_DRAWS))
        else:
            draws, physics = states.draws, states.physics
            pool = jax.tree.map(jnp.asarray, states.pool)
        fields, half = randomize.sample_insert(loaded, physics, draws)
        context = np.stack([half, np.arange(count)], 1)
        task = InsertTask(loaded, settings.task, pool)
    else:
        draws = np.random.default_rng([seed, stage]).random((count, 2))
        fields, context = randomize.sample_block(loaded, settings.task.block, draws)
        task = PickTask(loaded, settings.task)
    made = engines.make(engine, loaded, count, threads, fields, settings.engine)
    return Env(task, made, settings.env, context)


def to_policy(
    settings: TrainConfig, env: Env, learner: LearnerState, trained: dict[str, Any]
) -> policy.StatePolicy:
    """Returns the learner's deterministic policy."""
    model = env.task.scene
    single = len(model.arms) == 1
    ctrl = np.concatenate([arm.ctrl for arm in model.arms])
    layers = learner.params["policy"]["params"]
    weights = {
        "mean": np.asarray(learner.policy_stats.mean),
        "std": np.asarray(learner.policy_stats.std),
    }
    for index in range(len(layers)):
        weights[f"layer{index}/kernel"] = np.asarray(layers[f"Dense_{index}"]["kernel"])
        weights[f"layer{index}/bias"] = np.asarray(layers[f"Dense_{index}"]["bias"])
    spec = policy.PolicySpec(
        kind="state",
        phase=settings.phase,
        observation=tuple(policy.ObservationPart(*part) for part in env.task.observation_spec),
        history=settings.env.history,
        action=policy.ActionSpec(
            joints=tuple(
                name if single else f"{arm.name}/{name}"
                for arm in model.arms
                for name in scene.ACTUATORS
            ),
            scale=settings.env.control.scale,
            low=tuple(float(x) for x in model.ctrl_low[ctrl]),
            high=tuple(float(x) for x in model.ctrl_high[ctrl]),
            control_period_s=scene.CONTROL_PERIOD_S,
        ),
        hidden=settings.ppo.network.policy,
        activation=settings.ppo.network.activation,
    )
    return policy.StatePolicy(spec, weights, trained)


def with_policy(learner: LearnerState, policy_path: str | os.PathLike[str]) -> LearnerState:
    """Returns the learner with an artifact's weights and normalization in its policy.

    Raises:
      ArtifactError: the artifact cannot be read, or its network has other shapes.
    """
    found = policy.load(policy_path)
    if not isinstance(found, policy.StatePolicy):
        raise ArtifactError(f"{policy_path} is no policy of one phase.")
    layers = learner.params["policy"]["params"]
    new = {
        name: {
            kind: jnp.asarray(found.weights.get(f"layer{name.split('_')[1]}/{kind}", 0))
            for kind in layer
        }
        for name, layer in layers.items()
    }
    if jax.tree.map(jnp.shape, new) != jax.tree.map(jnp.shape, layers):
        raise ArtifactError(f"{policy_path} has a network of other shapes than this configuration.")
    stats_now = learner.policy_stats.replace(
        mean=jnp.asarray(found.weights["mean"]), std=jnp.asarray(found.weights["std"])
    )
    return learner._replace(
        params={**learner.params, "policy": {"params": new}}, policy_stats=stats_now
    )


def _machine() -> dict[str, Any]:
    return {
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "mujoco": mujoco.__version__,
    }


def _peak_memory_gb() -> float:
    """Returns the most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _quick_rates(
    found: policy.AnyPolicy, episodes: int, seed: int, threads: int, engine: str
) -> dict[str, float]:
    keys = evaluate.episode_keys(seed, 0, episodes)
    table, _ = evaluate.run(found, EVAL_V1, keys, threads, engine=engine)
    staged = isinstance(found, policy.StagedPolicy)
    names = (
        ("success", "held_at_end", "lifted_both", "switched", "entered", "dropped")
        if staged
        else ("success", "precise", "lifted", "crossed")
    )
    rates = {f"eval/{name}": float(table[name].mean()) for name in names}
    if not staged:
        rates["eval/position_error_mm"] = float(np.nanmedian(table["position_error_mm"]))
        rates["eval/rotation_error_deg"] = float(np.nanmedian(table["rotation_error_deg"]))
    return rates


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
    runlog.write_atomic(dump, lambda file: np.savez(file, **arrays))
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
    progress: runlog.Progress | None = None,
    pick: str | os.PathLike[str] | None = None,
    engine: str = engines.AUTO,
) -> dict[str, Any]:
    """Trains a teacher and writes its artifact to `out`/policy; for insertion the whole teacher to `out`/teacher.

    Insertion starts from switch states, `out`/switch_states.npz, collected with the pick policy if the file is
    missing or belongs to another one.

    Args:
      phase: "pick" or "insert".
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
    folder = runlog.make_folder(out if out is not None else pathlib.Path("runs") / phase)
    checkpoint = Checkpoint(folder / "checkpoint")
    plan: dict[str, Any] = {"config": config.to_dict(settings), "seed": seed, "pick": None}
    states, pick_policy = None, None
    if isinstance(settings, InsertTrainConfig):
        pick = scene.data_path("params") / "pick" if pick is None else pick
        pick_policy = policy.load(pick)
        if not isinstance(pick_policy, policy.StatePolicy) or pick_policy.spec.phase != "pick":
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
        runlog.write_atomic(described, json.dumps(plan, indent=2).encode() + b"\n")
    per_update = settings.ppo.steps_per_update
    started = time.monotonic()
    figures: dict[str, float] = {}

    def wall() -> float:
        return wall_before + time.monotonic() - started

    def save(update: int) -> None:
        extra = {"updates": update, "wall_s": wall(), "version": alohas2r.__version__}
        checkpoint.save((learner, state, snapshot(physics), readout), extra)

    with (
        runlog.RunLog(
            folder, updates * per_update, label=f"train {phase}", progress=progress
        ) as log,
        runlog.StopSignal() as stop,
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
                    found = policy.StagedPolicy(pick_policy, found, settings.task.switch, {})
                figures |= _quick_rates(
                    found, settings.evaluation_episodes, seed + 1_000_003, threads, engine
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
        "peak_memory_gb": round(_peak_memory_gb(), 2),
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
            "machine": _machine(),
            "alohas2r": alohas2r.__version__,
            "parents": {} if pick_policy is None else {"pick": pick_policy.hash},
        }
        found = to_policy(settings, env, learner, trained)
        observations = _record(found, env, seed)
        result["policy"] = str(policy.save(found, folder / "policy", observations))
        if pick_policy is not None and isinstance(settings, InsertTrainConfig):
            teacher = policy.StagedPolicy(
                pick_policy,
                found,
                settings.task.switch,
                {"alohas2r": alohas2r.__version__, "date": trained["date"]},
            )
            switched = np.arange(len(observations)) >= len(observations) // 2
            result["teacher"] = str(
                policy.save(teacher, folder / "teacher", observations, switched)
            )
    return result


def _record(found: policy.StatePolicy, env: Env, seed: int, steps: int = 40) -> np.ndarray:
    """Returns the observations [steps, n] of one environment while the policy acts."""
    fresh = Env(env.task, env.engine, env.config, np.asarray(env.context))
    state, physics, readout = fresh.reset(jax.random.split(jax.random.PRNGKey(seed), env.num_envs))
    size = env.task.observation_size
    rows = []

    @jax.jit
    def act(state: Any, readout: Any) -> Any:
        state, features, _ = fresh.observe(state, readout)
        state, ctrl = fresh.control(state, readout, found.apply(features, jnp))
        return state, ctrl, features[0, :size]

    for _ in range(steps):
        state, ctrl, row = act(state, readout)
        rows.append(np.asarray(row))
        state, physics, readout, _ = fresh.advance(state, physics, ctrl)
    return np.stack(rows)


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
