"""What all tests share."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings

from alohas2r.embodiment import joints
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.policies import artifact
from alohas2r.policies import spec as policies_spec
from alohas2r.policies import state as state_policy
from alohas2r.sim import scene

# The same examples in every run; single examples may compile, so none has a deadline.
settings.register_profile("alohas2r", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "alohas2r"))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder of this run that all its workers see."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Lets tests marked `alone` wait until no other worker runs a test, and the others for them."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    folder = item.config.cache.mkdir("alone")
    with (folder / "door").open("w") as door, (folder / "room").open("w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)  # who waits for an empty room lets nobody in before
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_compiled_twice(shared_folder: pathlib.Path) -> None:
    """Keeps what takes JAX long to compile; many tests make the same functions anew."""
    with contextlib.suppress(ImportError):
        import jax

        jax.config.update("jax_compilation_cache_dir", str(shared_folder / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiles the functions of modules marked `compiles` quickly rather than well: they run but a few times.

    So do the processes that such a module starts; they find what this one has compiled.
    """
    if request.node.get_closest_marker("compiles") is None:
        yield
        return
    import jax

    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name.upper(), "true")
        patch.setenv(
            "JAX_COMPILATION_CACHE_DIR", str(jax.config.values["jax_compilation_cache_dir"])
        )
        jax.config.update(name, True)
        yield
        jax.config.update(name, before)


@pytest.fixture(scope="session")
def random_policy(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The artifact of an untrained pick policy, with small random weights."""
    pytest.importorskip("jax")
    from alohas2r.tasks.pick.task import PickTask

    loaded = scene.load("pick")
    ctrl = loaded.arms[0].ctrl
    spec = policies_spec.PolicySpec(
        kind="state",
        phase="pick",
        observation=tuple(
            policies_spec.ObservationPart(*part) for part in PickTask.observation_spec
        ),
        history=HistoryConfig(),
        action=policies_spec.ActionSpec(
            joints=joints.ACTUATORS,
            scale=0.02,
            low=tuple(loaded.ctrl_low[ctrl].tolist()),
            high=tuple(loaded.ctrl_high[ctrl].tolist()),
            control_period_s=joints.CONTROL_PERIOD_S,
        ),
        hidden=(8,),
        activation="swish",
    )
    draw = np.random.default_rng(0)
    features = spec.history.size(spec.observation_size)
    sizes = (features, 8, 2 * len(joints.ACTUATORS))
    weights = {"mean": np.zeros(features), "std": np.ones(features)}
    for layer, shape in enumerate(itertools.pairwise(sizes)):
        weights[f"layer{layer}/kernel"] = draw.normal(0, 0.3, shape)
        weights[f"layer{layer}/bias"] = draw.normal(0, 0.3, shape[1])
    found = state_policy.StatePolicy(spec, weights, {"seed": 0})
    folder = tmp_path_factory.mktemp("policies") / "random"
    return artifact.save(
        found, folder, {"observations": draw.normal(size=(5, spec.observation_size))}
    )
