"""Distillation of a teacher that sees: it acts on pictures of its own."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
import pytest
import student_cases

from alohas2r.embodiment.history import HistoryConfig
from alohas2r.envs import student_step
from alohas2r.errors import ConfigError
from alohas2r.learning.dagger.distiller import make_distiller
from alohas2r.learning.dagger.train import load_teacher
from alohas2r.policies import artifact
from alohas2r.policies.spec import CameraSpec, StudentNetworkConfig, make_pixel_spec
from alohas2r.policies.staged_pixels import StagedPixelsPolicy
from alohas2r.policies.switch import Switch
from alohas2r.policies.vision import PixelPolicy
from alohas2r.sim import scene
from alohas2r.tasks.starts import InsertStart

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with student_cases.compiled_once(tmp_path_factory):
        yield


@pytest.fixture(scope="module")
def teacher() -> StagedPixelsPolicy:
    """Two untrained policies from pixels that react to what they see."""
    network = StudentNetworkConfig(hidden=(8,), embedding=4, patches=(2, 3))
    draw = np.random.default_rng(0)

    def untrained(name: str) -> PixelPolicy:
        cameras, memory = CameraSpec(size=16), HistoryConfig((0.5,))
        spec = make_pixel_spec(scene.load(name), network, cameras, memory, 0.02)
        weights = {
            name: draw.normal(0, 0.3, shape) for name, shape in PixelPolicy.shapes(spec).items()
        }
        weights["std"] = np.ones_like(weights["std"])
        return PixelPolicy(spec, weights, {})

    targets = InsertStart().targets_in_bases()
    return StagedPixelsPolicy.join(
        untrained("pick"), untrained("insert"), Switch(), targets, {"who": "test"}
    )


def settings(*more: str) -> Any:
    own = ("cameras.size=16", "draws=1", "hold_out.probability=0,0", *more)
    return student_cases.settings("rgb", *own)


def test_labels_are_what_the_teacher_does_on_pictures_of_its_own(
    teacher: StagedPixelsPolicy,
) -> None:
    distiller = make_distiller(settings(), teacher, student_cases.encoder(), 3, 1, "exact")
    begun, setup = distiller.init(), distiller.setup
    world, tutor = begun.world, setup.tutor
    assert tutor is not None
    assert world.tutor is not None
    shown = tutor.draw(world.tutor, world.readout.qpos)
    _, seen = jax.jit(lambda *given: student_step.perceive(setup.env, tutor, *given))(
        world.env, world.readout, world.tutor, shown
    )
    assert seen.depth is not None
    depth, vector = np.asarray(seen.depth), np.asarray(seen.vector)
    expected = []
    for number in range(len(vector)):
        teacher.reset()
        observation = {
            "left_depth": depth[number, 0],
            "right_depth": depth[number, 1],
            "proprioception": vector[number],
            "switched": np.asarray(world.env.task.switched)[number],
        }
        expected.append(teacher.act(observation))
    teacher.reset()
    state, data = distiller.collect(begun)
    first = np.asarray(data.samples.label).reshape(2, 4, 14)[0]
    np.testing.assert_allclose(first, expected, atol=1e-5)
    assert np.abs(first).max() > 0.01
    # The pictures are its own: not those of the student, which are in colour, with another noise.
    assert data.samples.depth is None
    assert state.world.tutor is not None
    assert np.asarray(state.world.tutor.seen).max() == 2  # two steps, but where an episode ended
    _, figures = distiller.update(state, data)
    assert np.isfinite(list(figures.values())).all()


@pytest.mark.parametrize(
    ("more", "renderer", "words"),
    [
        (("draws=4",), "exact", "draws: it observes once"),
        (("precision=1",), "exact", "precision: it does not say how sure it is"),
        (("contacts=true",), "exact", "it knows the nominal robot alone"),
        ((), "opengl", "the renderer 'opengl'"),
    ],
)
def test_what_does_not_go_with_such_a_teacher_is_refused(
    teacher: StagedPixelsPolicy, more: tuple[str, ...], renderer: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        make_distiller(settings(*more), teacher, None, 3, 1, renderer)
    assert "\n" not in str(error.value)


def test_a_teacher_is_read_whatever_kind_it_is_of(
    teacher: StagedPixelsPolicy, tmp_path: pathlib.Path
) -> None:
    draw = np.random.default_rng(2)
    rows = {
        name: draw.uniform(0, 0.3, (4, *shape)).astype(dtype)
        for name, (shape, dtype, _) in teacher.spec.inputs.items()
    }
    artifact.save(teacher, tmp_path / "seeing", rows)
    assert load_teacher(tmp_path / "seeing").hash == teacher.hash
    known = load_teacher(student_cases.save_teacher(tmp_path / "knowing"))
    assert known.hash == student_cases.staged().hash
