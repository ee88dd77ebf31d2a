"""Small teachers, encoders and settings to distil with."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from alohas2r import config
from alohas2r.core import assets
from alohas2r.embodiment import joints
from alohas2r.learning.dagger import config as dagger_config
from alohas2r.policies import artifact
from alohas2r.policies import encoder as encoder_artifact
from alohas2r.policies import spec as policies_spec
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.state import StatePolicy
from alohas2r.policies.switch import Switch
from alohas2r.sim import scene
from alohas2r.tasks.insert.task import InsertTask

# The smallest distillation in which nothing is left out.
TINY = (
    "iterations=4",
    "num_envs=4",
    "steps=2",
    "batch=4",
    "epochs=2",
    "shifts=1",
    "evaluations=0",
    "checkpoints=4",
    "task.steps=6",
    "network.hidden=16",
    "network.filters=4,4,8",
    "network.embedding=8",
    "senses.corrupt.line_bank=16",
)
TINY_ENCODER = (
    "rounds=2",
    "pictures=16",
    "passes=1",
    "batch=8",
    "held=8",
    "filters=4,4,8",
    "checkpoints=2",
)


def insertion_policy(pick: StatePolicy, seed: int = 0, scale: float = 0.05) -> StatePolicy:
    """An untrained insertion policy that remembers what the pick policy does."""
    insert = scene.load("insert")
    ctrl = np.concatenate([arm.ctrl for arm in insert.arms])
    names = tuple(f"{arm.name}/{joint}" for arm in insert.arms for joint in joints.ACTUATORS)
    spec = policies_spec.PolicySpec(
        kind="state",
        phase="insert",
        observation=tuple(
            policies_spec.ObservationPart(*part) for part in InsertTask.observation_spec
        ),
        history=pick.spec.history,
        action=policies_spec.ActionSpec(
            names,
            0.02,
            tuple(insert.ctrl_low[ctrl].tolist()),
            tuple(insert.ctrl_high[ctrl].tolist()),
            0.05,
        ),
        hidden=(8,),
        activation="swish",
    )
    draw = np.random.default_rng(seed)
    features = spec.history.size(spec.observation_size)
    sizes = (features, 8, 2 * len(names))
    weights = {"mean": np.zeros(features), "std": np.ones(features)}
    for layer, shape in enumerate(itertools.pairwise(sizes)):
        weights[f"layer{layer}/kernel"] = draw.normal(0, scale, shape)
        weights[f"layer{layer}/bias"] = draw.normal(0, scale, shape[1])
    return StatePolicy(spec, weights, {"seed": seed})


def staged() -> StagedPolicy:
    """The shipped pick policy, and an untrained insertion policy."""
    pick = artifact.load(assets.data_path("params") / "pick")
    assert isinstance(pick, StatePolicy)
    return StagedPolicy(pick, insertion_policy(pick), Switch(), {"who": "test"})


def save_teacher(folder: pathlib.Path) -> pathlib.Path:
    found = staged()
    rows = np.random.default_rng(1).normal(0, 0.1, (4, found.spec.observation_size))
    return artifact.save(
        found, folder, {"observations": rows, "switched": np.array([False, False, True, True])}
    )


def encoder(
    seed: int = 0, filters: tuple[int, int, int] = (4, 4, 8)
) -> encoder_artifact.EncoderArtifact:
    """An untrained encoder."""
    picture = np.zeros((1, 32, 32, 3), np.float32)
    params: Any = vision_network.Encoder(filters).init(jax.random.PRNGKey(seed), picture)["params"]
    return encoder_artifact.EncoderArtifact(
        filters, 32, jax.tree.map(np.asarray, params), {"seed": seed}
    )


def save_encoder(folder: pathlib.Path) -> pathlib.Path:
    pictures = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    return artifact.save(encoder(), folder, {"rgb": pictures})


# How tests compile: nothing twice in a session, also not in another process, and quickly rather than well.
_COMPILING = {
    "jax_compilation_cache_dir": "",
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_disable_most_optimizations": True,
}


def compile_environment() -> dict[str, str]:
    """Environment variables with which another process compiles as this one and finds what it has compiled."""
    return {name.upper(): str(jax.config.values[name]) for name in _COMPILING}


@contextlib.contextmanager
def compiled_once(factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what is compiled in a folder of the test session."""
    before = {name: jax.config.values[name] for name in _COMPILING}
    folder = before["jax_compilation_cache_dir"] or str(factory.getbasetemp() / "compiled")
    for name, value in (_COMPILING | {"jax_compilation_cache_dir": folder}).items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def settings(observation: str = "rgbd", *more: str) -> dagger_config.DistillConfig:
    return config.override(dagger_config.find_preset("quick", observation), (*TINY, *more))
