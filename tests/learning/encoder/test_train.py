from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import pathlib
import pickle
import shutil
import tarfile
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
import student_cases

from alohas2r import config
from alohas2r.cli import app
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.learning.encoder import cifar10, contrastive
from alohas2r.learning.encoder import config as encoder_config
from alohas2r.learning.encoder import pictures as encoder_pictures
from alohas2r.learning.encoder import train as pretrain
from alohas2r.learning.encoder.config import PretrainConfig
from alohas2r.learning.encoder.learner import Pretrainer
from alohas2r.learning.encoder.pictures import Pictures
from alohas2r.learning.run import curves
from alohas2r.learning.run.log import METRICS, read_metrics
from alohas2r.policies import artifact
from alohas2r.policies.encoder import EncoderArtifact
from alohas2r.rendering import visual_randomization
from alohas2r.sim import scene

Archives = dict[str, tuple[str, str]]
PER_BATCH = 12


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with student_cases.compiled_once(tmp_path_factory):
        yield


def draw_batches() -> list[tuple[np.ndarray, np.ndarray]]:
    """Six batches of planes [M, 3072] and classes [M]: a class is a colour, in noise."""
    draw = np.random.default_rng(0)
    batches = []
    for _ in range(6):
        label = draw.integers(0, 10, PER_BATCH).astype(np.uint8)
        planes = draw.integers(0, 40, (PER_BATCH, 3, 1024)).astype(np.uint8)
        planes[:, 0] += (label * 20)[:, None]
        planes[:, 2] += (200 - label * 20).astype(np.uint8)[:, None]
        batches.append((planes.reshape(PER_BATCH, -1), label))
    return batches


NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def write_archive(folder: pathlib.Path, kind: str) -> Archives:
    """Writes a small archive in one of the two standard formats and returns its checksum."""
    name = f"cifar-10-{kind}.tar.gz"
    inside = cifar10.CIFAR10[name][1]
    with tarfile.open(folder / name, "w:gz") as archive:
        for batch, (planes, label) in zip(NAMES, draw_batches(), strict=True):
            if kind == "binary":
                content = np.concatenate([label[:, None], planes], 1).tobytes()
                batch += ".bin"
            else:  # Python 2 wrote byte strings, which is what bytes are read as
                table = {
                    b"batch_label": b"training batch",
                    b"labels": label.tolist(),
                    b"data": planes,
                    b"filenames": [b"a.png"] * PER_BATCH,
                }
                content = pickle.dumps(table, protocol=2)
            member = tarfile.TarInfo(f"{inside}/{batch}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    digest = hashlib.md5((folder / name).read_bytes()).hexdigest()
    return {name: (digest, inside)}


@pytest.mark.parametrize("kind", ["binary", "python"])
def test_both_formats_of_cifar10_give_the_same_pictures(tmp_path: pathlib.Path, kind: str) -> None:
    train, test = cifar10.read_cifar10(tmp_path, write_archive(tmp_path, kind))
    assert train.rgb.shape == (5 * PER_BATCH, 32, 32, 3)
    assert test.rgb.shape == (PER_BATCH, 32, 32, 3)
    batches = draw_batches()
    np.testing.assert_array_equal(test.label, batches[5][1])
    np.testing.assert_array_equal(train.label, np.concatenate([b[1] for b in batches[:5]]))
    # Planes of red, green and blue; rows from the top.
    planes = batches[0][0][3].reshape(3, 32, 32)
    np.testing.assert_array_equal(train.rgb[3, 5, 7], planes[:, 5, 7])


def test_other_archives_are_refused_with_instructions(tmp_path: pathlib.Path) -> None:
    address = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    write_archive(tmp_path, "binary")
    with pytest.raises(ArtifactError, match="MD5") as caught:
        cifar10.read_cifar10(tmp_path)
    for part in ("not the original", "c32a1d4ab5d03f1284b67883e8d87530", address, "--data-dir"):
        assert part in str(caught.value)
    for folder in (tmp_path / "empty", None):
        with pytest.raises(ArtifactError, match="cifar-10-python") as caught:
            cifar10.read_cifar10(folder)
        assert address in str(caught.value)


def test_an_archive_that_would_run_code_is_refused(tmp_path: pathlib.Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return pathlib.Path.touch, (tmp_path / "touched",)

    name, inside = "cifar-10-python.tar.gz", "cifar-10-batches-py"
    with tarfile.open(tmp_path / name, "w:gz") as archive:
        for batch in NAMES:
            content = pickle.dumps({b"data": Evil()})
            member = tarfile.TarInfo(f"{inside}/{batch}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    digest = hashlib.md5((tmp_path / name).read_bytes()).hexdigest()
    with pytest.raises(ArtifactError, match="is not data"):
        cifar10.read_cifar10(tmp_path, {name: (digest, inside)})
    assert not (tmp_path / "touched").exists()


def test_an_encoder_can_be_trained_on_cifar10_and_its_run_be_plotted(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = write_archive(tmp_path, "binary")
    settings = ("filters=4,4,8", "rounds=60", "batch=10", "learning_rate=0.01", "checkpoints=1")
    result = pretrain.pretrain_encoder(
        "quick", settings, tmp_path / "run", "cifar10", tmp_path, archives=archives
    )
    assert result["finished"]
    assert result["steps"] == 60 * 5 * PER_BATCH
    # A class is a colour: more than guessing, on pictures it has not seen.
    assert result["metrics"]["held/accuracy"] > 0.3
    found = artifact.load(result["encoder"], EncoderArtifact)
    assert found.filters == (4, 4, 8)
    assert found.trained["metrics"]["held/accuracy"] == pytest.approx(
        result["metrics"]["held/accuracy"], abs=1e-3
    )
    left, right = curves_of(tmp_path / "run", monkeypatch)
    assert left.keys() == {"right, held back", "right, learnt from"}
    assert right.keys() == {"held back", "learnt from"}
    rows = read_metrics(tmp_path / "run" / METRICS)
    assert left["right, held back"] == [
        row["held/accuracy"] for row in rows if "held/accuracy" in row
    ]
    assert right["learnt from"] == [row["train/loss"] for row in rows]


def curves_of(
    run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, list[float]], ...]:
    """Returns what `plot` draws of a run, side by side: label -> values."""
    figures: list[Any] = []
    monkeypatch.setattr(curves, "save", lambda figure, path: figures.append(figure) or path)
    assert app.main(["plot", str(run), "--out", str(run / "curve.png")]) == 0
    (figure,) = figures
    return tuple(
        {line.get_label(): list(line.get_ydata()) for line in axis.lines}
        for axis in figure.axes[:2]
    )


def tiny(out: pathlib.Path, *more: str) -> list[str]:
    chosen = [part for setting in student_cases.TINY_ENCODER for part in ("--set", setting)]
    start = ["pretrain-encoder", "--preset", "quick", "--renderer", "exact", "--out", str(out)]
    return [*start, "--threads", "1", "--json", *chosen, *more]


def test_a_stopped_pretraining_resumes_to_the_same_bits(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert app.main(tiny(tmp_path / "whole")) == 0
    assert json.loads(capsys.readouterr().out)["finished"] is True
    assert any(
        len(values) == 2 for values in curves_of(tmp_path / "whole", monkeypatch)[1].values()
    )
    capsys.readouterr()
    assert app.main(tiny(tmp_path / "parts", "--minutes", "0")) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["finished"] is False
    assert "--resume" in captured.err
    assert app.main(tiny(tmp_path / "parts", "--resume")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["finished"] is True
    hashes = [
        artifact.load(tmp_path / name / "encoder", EncoderArtifact).hash
        for name in ("whole", "parts")
    ]
    assert hashes[0] == hashes[1]
    assert app.main(tiny(tmp_path / "parts", "--resume", "--set", "batch=4")) == 1
    assert "batch: 8 -> 4" in capsys.readouterr().err


def test_encoders_are_verified_when_they_are_loaded(tmp_path: pathlib.Path) -> None:
    folder = student_cases.save_encoder(tmp_path / "encoder")
    found, given = artifact.load(folder, EncoderArtifact), student_cases.encoder()
    assert found.hash == given.hash
    pictures = np.random.default_rng(1).integers(0, 255, (2, 32, 32, 3), np.uint8)
    np.testing.assert_allclose(found.encode(pictures), given.encode(pictures), atol=1e-6)
    assert np.abs(given.encode(pictures)).max() > 1e-3
    other = student_cases.encoder(seed=1)
    artifact.save(other, tmp_path / "other", {"rgb": pictures})
    shutil.copy(tmp_path / "other" / "weights.npz", folder / "weights.npz")
    with pytest.raises(ArtifactError, match="differ from its hash"):
        artifact.load(folder, EncoderArtifact)
    (folder / "encoder.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        artifact.load(folder, EncoderArtifact)
    with pytest.raises(ArtifactError, match="pretrain-encoder"):
        artifact.load(tmp_path, EncoderArtifact)


@pytest.fixture(scope="module")
def shot() -> tuple[PretrainConfig, Pictures]:
    settings = PretrainConfig(pictures=64, batch=32, held=2)
    studio = encoder_pictures.Studio(settings, 1, "exact")
    return settings, studio.shoot(jax.random.PRNGKey(0), 64)


def test_labels_say_what_is_in_the_pictures(shot: tuple[PretrainConfig, Pictures]) -> None:
    _, pictures = shot
    assert pictures.rgb.shape == (64, 32, 32, 3)
    assert 0.1 < pictures.visible.mean() < 0.9
    seen = pictures.position[pictures.visible]
    # In front of the camera, within its field of view but for what sticks out.
    assert (seen[:, 2] < 0.02).all()
    assert (np.linalg.norm(seen, axis=1) < 1.2).all()
    away = pictures.position[..., 2] < -2
    assert not pictures.visible[away].any()
    rows = pictures.rotation.reshape(-1, 2, 3)
    product = rows @ rows.transpose(0, 2, 1)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(2), product.shape), atol=1e-5)


def test_an_object_straight_ahead_is_seen_where_the_label_says() -> None:
    """A peg in the air before a camera: its label is where it was put, in the camera's frame."""
    settings = PretrainConfig(pictures=2, batch=2, held=2)
    studio = encoder_pictures.Studio(settings, 1, "exact")
    insert = scene.load("insert")
    data = mujoco.MjData(insert.model)
    data.qpos[:] = insert.home_qpos
    mujoco.mj_kinematics(insert.model, data)
    mujoco.mj_comPos(insert.model, data)
    mujoco.mj_camlight(insert.model, data)
    camera = insert.id("camera", "wrist_cam_left")
    frame = data.cam_xmat[camera].reshape(3, 3)
    wanted = np.array([0.01, 0.02, -0.15])
    poses = np.repeat(insert.home_qpos[None], 2, 0)
    peg = insert.arms[1].object_qpos
    poses[0, peg[:3]] = data.cam_xpos[camera] + frame @ wanted
    poses[1, peg[:3]] = data.cam_xpos[camera] - frame @ wanted  # behind it
    sample = visual_randomization.repeat(visual_randomization.nominal(insert.model), 2)
    frames = studio.renderer.render(poses, sample)
    visible, position, rotation = studio._know(
        poses, sample, np.full(2, 0.01), np.asarray(frames.depth)
    )
    assert visible.reshape(2, 2, 2)[0, 0, 1]
    assert not visible.reshape(2, 2, 2)[1, 0, 1]
    np.testing.assert_allclose(position.reshape(2, 2, 2, 3)[0, 0, 1], wanted, atol=1e-4)
    moved = dict(sample, cam_pos=sample["cam_pos"] + np.float32(0.01))
    assert np.abs(moved["cam_pos"] - sample["cam_pos"]).max() > 0.009
    _, unmoved, _ = studio._know(poses, moved, np.full(2, 0.01), np.asarray(frames.depth))
    np.testing.assert_array_equal(unmoved, position)  # in the frame that the camera should have
    quat = np.empty(9)
    mujoco.mju_quat2Mat(quat, poses[0, peg[3:]])
    expected = (frame.T @ quat.reshape(3, 3))[:2].reshape(-1)
    np.testing.assert_allclose(rotation.reshape(2, 2, 2, 6)[0, 0, 1], expected, atol=1e-4)


@pytest.mark.parametrize("method", encoder_config.METHODS)
def test_both_methods_learn_from_pictures(
    shot: tuple[PretrainConfig, Pictures], method: str
) -> None:
    settings = dataclasses.replace(shot[0], method=method, filters=(8, 8, 16), learning_rate=3e-3)
    pretrainer = Pretrainer(settings, 0, 60)
    learner = pretrainer.init()
    target_before = jax.tree.map(np.array, learner.target)
    key, losses = jax.random.PRNGKey(1), []
    first = float(pretrainer.measure(learner, shot[1], key)["loss"])
    for index in range(30):
        learner, figures = pretrainer.train(learner, shot[1], jax.random.fold_in(key, index))
        losses.append(float(figures["loss"].mean()))
    if method == "contrastive":
        # Without knowledge the loss is log(batch).
        assert np.mean(losses[-5:]) < 0.8 * math.log(settings.batch)
        # The key encoder follows slowly.
        for before, after, ahead in zip(
            *map(jax.tree.leaves, (target_before, learner.target, learner.params["encoder"])),
            strict=True,
        ):
            assert (before != np.asarray(after)).any()
            assert (np.asarray(after) != np.asarray(ahead)).any()
    else:
        assert np.mean(losses[-5:]) < 0.8 * first
        assert not learner.target


def test_the_contrastive_loss_by_hand() -> None:
    codes = 6 * jnp.eye(4)
    loss, figures = contrastive.info_nce(jnp.eye(4), codes, codes)
    # Scores 36 for the right key, 0 for the three others.
    assert float(loss) == pytest.approx(math.log1p(3 * math.exp(-36)), abs=1e-6)
    assert float(figures["accuracy"]) == 1
    loss, _ = contrastive.info_nce(jnp.zeros((4, 4)), codes, codes)
    assert float(loss) == pytest.approx(math.log(4))
    # Nothing flows back into the keys.
    gradient = jax.grad(lambda keys: contrastive.info_nce(jnp.eye(4), codes, keys)[0])(codes)
    assert not np.asarray(gradient).any()


@pytest.mark.parametrize("name", encoder_config.PRESETS)
@pytest.mark.parametrize("data", encoder_config.DATA)
@pytest.mark.parametrize("method", encoder_config.METHODS)
def test_presets_are_configurations(name: str, data: str, method: str) -> None:
    preset = encoder_config.find_preset(name, data, method)
    assert (preset.data, preset.method) == (data, method)
    plain = json.loads(json.dumps(config.to_dict(preset)))
    assert config.from_dict(PretrainConfig, plain) == preset


def test_unknown_presets_and_values_out_of_range() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'quick'"):
        encoder_config.find_preset("quik")
    with pytest.raises(ConfigError, match="method must be one of"):
        encoder_config.find_preset("quick", "sim", "contrast")
    for change in ("pictures=3", "momentum=1", "batch=100000", "size=4"):
        with pytest.raises(ConfigError, match=change.split("=")[0]):
            config.override(PretrainConfig(), [change])
