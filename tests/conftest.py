"""What all tests share."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib

import numpy as np
import pytest
from hypothesis import settings

from alohas2r import policy, scene
from alohas2r.history import HistoryConfig

# The same examples in every run; single examples may compile, so none has a deadline.
settings.register_profile("alohas2r", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "alohas2r"))


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_compiled_twice(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps what takes JAX long to compile; many tests make the same functions anew."""
    with contextlib.suppress(ImportError):
        import jax

        folder = tmp_path_factory.getbasetemp() / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="session")
def random_policy(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The artifact of an untrained pick policy, with small random weights."""
    pytest.importorskip("jax")
    from alohas2r.tasks.pick import PickTask

    loaded = scene.load("pick")
    ctrl = loaded.arms[0].ctrl
    spec = policy.PolicySpec(
        kind="state",
        phase="pick",
        observation=tuple(policy.ObservationPart(*part) for part in PickTask.observation_spec),
        history=HistoryConfig(),
        action=policy.ActionSpec(
            joints=scene.ACTUATORS,
            scale=0.02,
            low=tuple(loaded.ctrl_low[ctrl].tolist()),
            high=tuple(loaded.ctrl_high[ctrl].tolist()),
            control_period_s=scene.CONTROL_PERIOD_S,
        ),
        hidden=(8,),
        activation="swish",
    )
    draw = np.random.default_rng(0)
    features = spec.history.size(spec.observation_size)
    sizes = (features, 8, 2 * len(scene.ACTUATORS))
    weights = {"mean": np.zeros(features), "std": np.ones(features)}
    for layer, shape in enumerate(itertools.pairwise(sizes)):
        weights[f"layer{layer}/kernel"] = draw.normal(0, 0.3, shape)
        weights[f"layer{layer}/bias"] = draw.normal(0, 0.3, shape[1])
    found = policy.StatePolicy(spec, weights, {"seed": 0})
    folder = tmp_path_factory.mktemp("policies") / "random"
    return policy.save(found, folder, draw.normal(size=(5, spec.observation_size)))
