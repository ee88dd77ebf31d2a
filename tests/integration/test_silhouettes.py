"""The fingers, as the wrist cameras see them, have the published silhouette.

Rays are cast, so no graphics driver is needed. tests/data/README.md says how the masks were made.
"""

from __future__ import annotations

import pathlib

import mujoco
import numpy as np
import pytest
from PIL import Image

from alohas2r.sim import scene

DATA = pathlib.Path(__file__).parents[1] / "data"
SIZE = 192
OPEN_M, CLOSED_M = 0.037, 0.0036  # finger travel in the two reference pictures
STOP_M = 0.002  # the gripper actuator's lower limit
WRIST_GROUPS = np.array([1, 0, 1, 0, 0, 0], np.uint8)  # objects and looks
ARMS = {"pick": ("left",), "insert": ("left", "right")}
SIDES = [(name, side) for name, sides in ARMS.items() for side in sides]


@pytest.fixture(scope="module")
def masks() -> dict[str, np.ndarray]:
    """Returns the reference masks, [192, 192] bool."""
    sheet = np.asarray(Image.open(DATA / "wrist_gripper_masks.png").convert("L")) > 127
    assert sheet.shape == (SIZE, 2 * SIZE)
    return {"home": sheet[:, :SIZE], "closed": sheet[:, SIZE:]}


def posed(name: str, side: str, travel: float) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """Returns a scene at keyframe home with one gripper's fingers at a travel (m)."""
    model = scene.load(name).model
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key("home").id)
    for finger in ("left", "right"):
        data.joint(f"{side}/{finger}_finger").qpos = travel
    mujoco.mj_forward(model, data)
    return model, data


def cast(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    side: str,
    size: int = SIZE,
    shift: np.ndarray | None = None,
    turn: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Casts one ray through each pixel centre of a wrist camera.

    Returns:
      [size, size] body id of the geom that each ray hits (-1: none), and its distance (m).
    """
    camera = data.cam(f"wrist_cam_{side}")
    tangent = np.tan(np.radians(model.cam(f"wrist_cam_{side}").fovy[0]) / 2)
    across = ((np.arange(size) + 0.5) / size * 2 - 1) * tangent
    x, y = np.meshgrid(across, -across)
    frame = camera.xmat.reshape(3, 3)
    if turn is not None:
        frame = frame @ turn
    rays = np.stack([x, y, -np.ones_like(x)], -1).reshape(-1, 3) @ frame.T
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    origin = camera.xpos + (0 if shift is None else frame @ shift)
    count = size * size
    geoms, distances = np.zeros(count, np.int32), np.zeros(count)
    mujoco.mj_multiRay(
        model, data, origin, rays.ravel(), WRIST_GROUPS, 1, -1, geoms, distances, None, count, 10.0
    )
    bodies = np.where(geoms >= 0, model.geom_bodyid[geoms], -1)
    return bodies.reshape(size, size), distances.reshape(size, size)


def gripper_pixels(name: str, side: str, travel: float) -> np.ndarray:
    """Returns [192, 192] bool: the pixels that show the camera's own arm."""
    model, data = posed(name, side, travel)
    own = [i for i in range(model.nbody) if model.body(i).name.startswith(side + "/")]
    return np.isin(cast(model, data, side)[0], own)


def overlap(ours: np.ndarray, reference: np.ndarray) -> float:
    """Returns the intersection over union of two masks."""
    return (ours & reference).sum() / (ours | reference).sum()


@pytest.mark.parametrize(("name", "side"), SIDES)
@pytest.mark.parametrize(
    ("view", "travel", "least"),
    [("home", OPEN_M, 0.97), ("closed", CLOSED_M, 0.95), ("closed", STOP_M, 0.85)],
)
def test_gripper_has_the_published_silhouette(
    name: str,
    side: str,
    view: str,
    travel: float,
    least: float,
    masks: dict[str, np.ndarray],
) -> None:
    assert overlap(gripper_pixels(name, side, travel), masks[view]) >= least


def test_the_measure_tells_a_wrong_pose_apart(masks: dict[str, np.ndarray]) -> None:
    half_open = gripper_pixels("insert", "left", 0.02)
    assert overlap(half_open, masks["home"]) < 0.8
    assert overlap(half_open, masks["closed"]) < 0.8


def test_masks_follow_the_edges_of_the_picture(masks: dict[str, np.ndarray]) -> None:
    """Inside the masks' lower image half lie all unlit finger faces and no table."""
    sheet = np.asarray(Image.open(DATA / "wrist_views.png").convert("RGB")).astype(int).sum(2)
    for row, column in np.ndindex(2, 2):
        view = sheet[row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE]
        mask = masks[("home", "closed")[column]]
        unlit = view < 40
        unlit[: SIZE // 2] = False  # beyond the table's edge
        assert unlit.sum() > 100
        assert mask[unlit].mean() > 0.99
        lower = mask[SIZE // 2 :]
        assert 0.1 < lower.mean() < 0.6
        assert not mask[: SIZE // 2].any()


@pytest.mark.parametrize("side", ARMS["insert"])
def test_an_arm_hides_nothing_else_from_its_camera(side: str) -> None:
    """At home, a wrist camera sees of its own arm nothing but the fingers."""
    model, data = posed("insert", side, OPEN_M)
    seen = {model.body(body).name for body in np.unique(cast(model, data, side)[0]) if body >= 0}
    own = {name for name in seen if name.startswith(side + "/")}
    assert own == {f"{side}/left_finger_link", f"{side}/right_finger_link"}


def test_a_displaced_camera_is_never_inside_its_own_case() -> None:
    """With the recipe's displacements (12.5, 5, 5 mm; 5 deg) no ray starts on or in the case."""
    model, data = posed("insert", "left", OPEN_M)
    random = np.random.default_rng(0)
    corners = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), -1).reshape(-1, 3)
    for corner in corners:
        axis = random.normal(size=3)
        quat, turn = np.zeros(4), np.zeros(9)
        mujoco.mju_axisAngle2Quat(quat, axis / np.linalg.norm(axis), np.radians(5))
        mujoco.mju_quat2Mat(turn, quat)
        shift = corner * (0.0125, 0.005, 0.005)
        _, distances = cast(model, data, "left", 64, shift, turn.reshape(3, 3))
        assert distances[distances >= 0].min() > 0.02


def test_the_arms_look_alike_to_their_cameras() -> None:
    """The right arm is the left one turned: their fingers cover the same pixels."""
    for travel in (OPEN_M, CLOSED_M):
        left, right = (gripper_pixels("insert", side, travel) for side in ARMS["insert"])
        assert overlap(left, right) > 0.999
