"""Mounts that are put in are found, by pictures of a renderer that shares nothing with the search."""

import dataclasses
import json

import mujoco
import numpy as np
import pytest

from alohas2r.cli import app
from alohas2r.deployment import camera_check
from alohas2r.deployment.camera_check import Mount, View, check_camera, views_of
from alohas2r.deployment.log import Run, Step
from alohas2r.errors import ConfigError, RobotFault
from alohas2r.rendering.visual_randomization import nominal
from alohas2r.sim import scene

pytest.importorskip("jax")

INSERT = scene.load("insert")
SIZE = 48
JOINTS = np.concatenate([INSERT.home_qpos[arm.qpos[:7]] for arm in INSERT.arms])
STRAIGHT = Mount(np.zeros(3), np.zeros(3))


@pytest.fixture(scope="module")
def renderer():
    from alohas2r.rendering import registry

    return registry.make("raycast", INSERT, width=SIZE, height=SIZE, batch=1)


def see(renderer, side: str, mount: Mount, qpos: np.ndarray | None = None) -> View:
    """What a camera shows that is mounted so, with noise and holes as of a real one; parts lie on the table."""
    looks = nominal(INSERT.model)
    camera = INSERT.model.camera(f"wrist_cam_{side}").id
    turn, angle = np.zeros(4), float(np.linalg.norm(mount.turn_rad))
    mujoco.mju_axisAngle2Quat(turn, mount.turn_rad / max(angle, 1e-12), angle)
    turned = np.zeros(4)
    mujoco.mju_mulQuat(turned, looks["cam_quat"][camera].astype(float), turn)
    looks["cam_quat"][camera] = turned
    looks["cam_pos"][camera] += mount.offset_m
    qpos = INSERT.home_qpos if qpos is None else qpos
    drawn = renderer.render(qpos[None], {name: value[None] for name, value in looks.items()})
    index = ("left", "right").index(side)
    noise = np.random.default_rng(0)
    depth = np.asarray(drawn.depth)[0, index] + noise.normal(0, 0.002, (SIZE, SIZE))
    depth[noise.random((SIZE, SIZE)) < 0.1] = 0
    return View(JOINTS, np.asarray(drawn.rgb)[0, index], depth.astype(np.float32))


@pytest.mark.parametrize(
    ("side", "offset_mm", "turn_deg", "inside"),
    [
        ("left", (6, -3, 4), (1.7, -1.2, 2.3), True),
        ("right", (0, 0, 0), (0, 0, 0), True),
        ("right", (20, 0, 0), (5.7, 0, 0), False),
    ],
)
def test_a_mount_is_found(renderer, side, offset_mm, turn_deg, inside) -> None:
    mount = Mount(np.array(offset_mm) / 1000, np.radians(turn_deg))
    check = check_camera(side, [see(renderer, side, mount)])
    np.testing.assert_allclose(check.mount.offset_m, mount.offset_m, atol=0.002)
    np.testing.assert_allclose(check.mount.turn_rad, mount.turn_rad, atol=0.01)
    assert (check.inside, check.upside_down) == (inside, False)
    assert check.after_mm < 3
    assert check.overlay.shape == (SIZE * camera_check.STRETCH,) * 2 + (3,)
    assert (check.overlay == (0, 255, 0)).all(axis=-1).any()


def test_a_camera_that_hangs_upside_down_is_named(renderer) -> None:
    view = see(renderer, "left", STRAIGHT)
    turned = View(view.joints, view.rgb[::-1, ::-1], view.depth[::-1, ::-1])
    check = check_camera("left", [turned])
    assert check.upside_down
    np.testing.assert_allclose(check.mount.offset_m, 0, atol=0.002)


def test_pictures_that_show_nothing_of_the_arm_are_refused(renderer) -> None:
    view = see(renderer, "left", STRAIGHT)
    with pytest.raises(RobotFault, match=r"Depth is known in \d%.*start pose"):
        check_camera("left", [view._replace(depth=np.zeros_like(view.depth))])
    noise = np.random.default_rng(1).uniform(0.05, 0.39, view.depth.shape)
    with pytest.raises(RobotFault, match="nothing in common"):
        check_camera("left", [view._replace(depth=noise)])


def test_the_command_reads_a_log_and_writes_overlays(
    renderer, capsys, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(camera_check, "STARTS", 20)
    monkeypatch.setattr(camera_check, "DESCENTS", 1)
    arrays = {"position": JOINTS}
    for side in ("left", "right"):
        view = see(renderer, side, STRAIGHT)
        arrays |= {f"observation/{side}_rgb": view.rgb, f"observation/{side}_depth": view.depth}
    run = Run({}, [Step({}, arrays)] * 9, [], None)
    assert len(views_of(run, "left")) == camera_check.VIEWS
    with pytest.raises(ConfigError, match="no pictures"):
        views_of(dataclasses.replace(run, steps=[]), "left")
    monkeypatch.setattr("alohas2r.deployment.log.read_run", lambda path: run)
    out = tmp_path / "overlays"
    code = app.main(["check-cameras", "--run", "x.run", "--out", str(out), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert code == 0
    assert result["left"]["inside_training"] is result["right"]["inside_training"] is True
    assert {path.name for path in out.iterdir()} == {"left.png", "right.png"}
