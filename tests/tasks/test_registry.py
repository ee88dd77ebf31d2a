from __future__ import annotations

import dataclasses
import importlib.metadata
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

import alohas2r
from alohas2r import config
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.envs.noise import NoiseConfig
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.evaluation import episodes, evaluate
from alohas2r.learning.ppo import envs as ppo_envs
from alohas2r.learning.ppo import presets
from alohas2r.policies import artifact
from alohas2r.policies.state import StatePolicy
from alohas2r.tasks import protocol, registry
from alohas2r.tasks.pick.task import PickTask
from alohas2r.tasks.protocol import EVAL_V1, Conditions
from alohas2r.tasks.registry import TaskEntry, find_task, task_names

pytestmark = pytest.mark.compiles

BUILT_IN = {"pick", "insert"}


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in task_names():
        find_task(name)
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@dataclasses.dataclass(frozen=True)
class ShortProtocol(protocol.TaskProtocol):
    """Two steps of picking."""

    name: str = "short-v1"
    steps: int = 2


class Raise(PickTask):
    """A task from outside: picking, with two more sensors."""

    extra_sensors = (("box_grip_pos", 3), ("box_quat", 4))


def raising(**changes: Any) -> TaskEntry[Any, Any]:
    pick = find_task("pick")
    entry = dataclasses.replace(
        pick,
        name="raise_it",
        task=Raise,
        protocol=ShortProtocol(),
        conditions=lambda rules: Conditions(
            dataclasses.replace(pick.config, steps=rules.steps),
            EVAL_V1.control,
            NoiseConfig(joint_pos=0.0),
        ),
        scorer=lambda rules, context: pick.scorer(
            dataclasses.replace(EVAL_V1, pick=dataclasses.replace(EVAL_V1.pick, steps=rules.steps)),
            context,
        ),
        presets={"default": ("total_steps=1000", "ppo.num_envs=4", "task.stages=2")},
    )
    return dataclasses.replace(entry, **changes)


def test_every_task_is_found_by_its_name_and_can_be_set_up() -> None:
    assert set(task_names()) >= BUILT_IN
    for name in task_names():
        entry = find_task(name)
        assert entry.name == name
        conditions = entry.conditions(entry.protocol)
        settings = conditions.task
        assert config.digest(settings) == config.digest(type(settings)(**vars(settings)))
        assert len(entry.protocol.hash) == 64
        keys = episodes.episode_keys(0, 0, 2)
        env, context, scorer, robots = episodes.set_up(
            entry, entry.protocol, HistoryConfig(()), keys, threads=1
        )
        assert env.config == conditions.env(HistoryConfig(()))
        assert robots is None
        assert scorer().steps == settings.steps
        assert context.shape == (2, env.task.context_size)
        assert env.task.action_size == 7 * len(env.task.scene.arms)
        assert presets.find_preset(name, "default").phase == name


def test_names_and_scenes_are_known_without_jax() -> None:
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "from alohas2r.tasks.registry import task_names\n"
        "from alohas2r.sim import scene\n"
        "import alohas2r.cli.app, alohas2r.cli.train, alohas2r.cli.evaluate\n"
        "print(*task_names()); scene.load_physics('insert')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == set(task_names())


def test_unknown_tasks_are_answered_with_the_closest_one() -> None:
    with pytest.raises(ConfigError, match=r"Unknown task 'pik'.*Did you mean 'pick'"):
        find_task("pik")
    for helper in ("registry", "protocol", "scoring"):
        with pytest.raises(ConfigError, match="Unknown task"):
            find_task(helper)


def test_a_name_is_given_once() -> None:
    entry = alohas2r.register_task(raising())
    assert alohas2r.register_task(entry) is entry
    assert find_task("raise_it") is entry
    assert "raise_it" in task_names()
    with pytest.raises(ConfigError, match="'raise_it' already"):
        alohas2r.register_task(raising())
    for wrong in ({"name": "two words"}, {"name": "no_default", "presets": {"quick": ()}}):
        with pytest.raises(ConfigError, match="preset 'default'"):
            alohas2r.register_task(raising(**wrong))


def test_a_package_declares_its_task_as_an_entry_point(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere.py").write_text(
        "import dataclasses\n"
        "from alohas2r.tasks.registry import find_task\n"
        "ENTRY = dataclasses.replace(find_task('pick'), name='elsewhere')\n"
    )
    information = tmp_path / "elsewhere-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1\n")
    (information / "entry_points.txt").write_text(
        "[alohas2r.tasks]\nelsewhere = elsewhere:ENTRY\nother = elsewhere:ENTRY\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert {"elsewhere", "other"} <= set(task_names())
    assert find_task("elsewhere").scene == "pick"
    with pytest.raises(ConfigError, match="'other' registers another one"):
        find_task("other")


def test_a_task_from_outside_is_trained_and_evaluated_like_any_other(
    random_policy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    alohas2r.register_task(raising())
    settings = presets.find_preset("raise_it", "default")
    assert config.override(settings, ["task.stages=3"]) != settings
    env = ppo_envs.make_env(settings, 0, threads=1)
    assert isinstance(env.task, Raise)
    _, _, readout = env.reset(jax.random.split(jax.random.PRNGKey(0), 4))
    signals = env.extract(readout)
    np.testing.assert_array_equal(signals.extra["box_grip_pos"], signals.grip_pos[:, 0])
    assert signals.extra["box_quat"].shape == (4, 4)
    pick = artifact.load(random_policy, StatePolicy)
    policy = StatePolicy(dataclasses.replace(pick.spec, phase="raise_it"), pick.weights, {})
    folder = artifact.save(policy, tmp_path / "policy", {"observations": np.zeros((2, 53))})
    result = evaluate.evaluate(folder, 2, seed=1, threads=1)
    assert (result["protocol"], result["phase"]) == ("short-v1", "raise_it")
    assert result["protocol_hash"] == ShortProtocol().hash
    assert len(result["table"]["success"]) == 2


def test_a_policy_of_a_task_that_is_not_there_is_refused(
    random_policy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    pick = artifact.load(random_policy, StatePolicy)
    policy = StatePolicy(dataclasses.replace(pick.spec, phase="juggle"), pick.weights, {})
    folder = artifact.save(policy, tmp_path / "policy", {"observations": np.zeros((2, 53))})
    with pytest.raises(ArtifactError, match=r"task that is not known here.*'juggle'"):
        evaluate.evaluate(folder, 1)
