"""How a world differs from the project's own scene: kinematics, cameras, gripper, step responses, pictures."""

from __future__ import annotations

import os

import mujoco
import numpy as np

from alohas2r.core.types import JsonObject
from alohas2r.embodiment.joints import ARM_JOINTS, IS_GRIPPER, JOINTS, PER_ARM, SIDES
from alohas2r.robots.worlds.world import World, WorldRobot, WorldView
from alohas2r.sim import scene

OWN = "own-contact"  # the table of the project's own scene
_POSES = 20  # random ones, within _REACH (rad) of home
_REACH = 0.4
_TRAVELS_M = (0.012, 0.018, 0.024, 0.030, 0.036)
_STEP_RAD, _STEP_M = 0.05, -0.01
_RESPONSE_STEPS = 20  # control periods


def compare(name: str | os.PathLike[str]) -> tuple[JsonObject, np.ndarray]:
    """Opens a world and compares it with the project's own scene.

    Args:
      name: a table's path, or the name of one that comes with this package.

    Returns:
      What is mapped and how it differs, and a picture [H, W, 3] uint8: our wrist views on the left, the world's on the
      right, each at camera size and, below, as a policy gets them.

    Raises:
      ConfigError, BackendUnavailable: as World.
    """
    world, own = World(name), World(OWN)
    left, right = world.table.left, world.table.right
    result: JsonObject = {
        "world": world.name,
        "world_hash": world.digest,
        "timestep_s": float(world.model.opt.timestep),
        "substeps": world.built.substeps,
        "mapped": {
            **{
                f"{side}/{joint}": theirs
                for side, arm in zip(SIDES, (left, right), strict=True)
                for joint, theirs in zip(ARM_JOINTS, arm.joints, strict=True)
            },
            "left/gripper": ", ".join(left.gripper.joints),
            "right/gripper": ", ".join(right.gripper.joints),
            "left camera": world.built.cameras[0],
            "right camera": world.built.cameras[1],
            "socket": world.model.body(world.built.object_bodies[0]).name,
            "peg": world.model.body(world.built.object_bodies[1]).name,
        },
        "kinematics": _kinematics(world, own),
        "cameras": _cameras(world, own),
        "table_above_own_mm": round(1000 * (_rest_height(world) - _rest_height(own)), 1),
        "gripper": _gripper(world, own),
        "step_responses": _responses(world, own),
    }
    own.place(scene.load("insert").home_qpos)
    world.place(scene.load("insert").home_qpos)
    views = [_views(own), _views(world)]
    tall = max(len(view) for view in views)
    return result, np.concatenate(
        [np.pad(view, ((0, tall - len(view)), (0, 0), (0, 0))) for view in views], 1
    )


def _hand(world: World, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and position of the last hinge's body in its arm's base frame."""
    arm = world.built.arms[side]
    joint = int(np.flatnonzero(world.model.jnt_qposadr == arm.qpos[-1])[0])
    body = int(world.model.jnt_bodyid[joint])
    turn, base = world.data.xmat[arm.base].reshape(3, 3), world.data.xpos[arm.base]
    return turn.T @ world.data.xmat[body].reshape(3, 3), turn.T @ (world.data.xpos[body] - base)


def _angle_deg(first: np.ndarray, second: np.ndarray) -> float:
    cosine = (np.trace(first.T @ second) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _kinematics(world: World, own: World) -> JsonObject:
    """How far the hands of both are apart at the same joint angles, beyond what they are at home."""
    draw = np.random.default_rng(0)
    home = scene.load("insert").home_qpos
    addresses = np.concatenate([arm.qpos[:PER_ARM] for arm in scene.load("insert").arms])
    fixed: list[tuple[np.ndarray, np.ndarray]] = []
    most = {"mm": 0.0, "deg": 0.0}
    for number in range(_POSES + 1):
        qpos = home.copy()
        if number:
            qpos[addresses] += np.where(
                IS_GRIPPER, 0.0, draw.uniform(-_REACH, _REACH, len(addresses))
            )
        world.place(qpos)
        own.place(qpos)
        for side in range(len(SIDES)):
            (our_turn, our_pos), (turn, pos) = _hand(own, side), _hand(world, side)
            apart = our_turn.T @ turn, our_turn.T @ (pos - our_pos)
            if number == 0:
                fixed.append(apart)
                continue
            gap = 1000 * float(np.linalg.norm(apart[1] - fixed[side][1]))
            most["mm"] = max(most["mm"], gap)
            most["deg"] = max(most["deg"], _angle_deg(fixed[side][0], apart[0]))
    world.place(home)
    own.place(home)
    return {
        "poses": _POSES,
        "hand_apart_at_home_mm": [round(1000 * float(np.linalg.norm(pos)), 2) for _, pos in fixed],
        "most_beyond_that_mm": round(most["mm"], 2),
        "most_beyond_that_deg": round(most["deg"], 2),
    }


def _cameras(world: World, own: World) -> JsonObject:
    """How far the wrist cameras of both are apart at home, and their fields of view."""
    result: JsonObject = {}
    for side, name in enumerate(SIDES):
        poses = []
        for one in (own, world):
            arm, camera = one.built.arms[side], one.data.cam(one.built.cameras[side])
            turn, base = one.data.xmat[arm.base].reshape(3, 3), one.data.xpos[arm.base]
            poses.append((turn.T @ camera.xmat.reshape(3, 3), turn.T @ (camera.xpos - base)))
        number = world.model.camera(world.built.cameras[side]).id
        result[name] = {
            "apart_mm": round(1000 * float(np.linalg.norm(poses[1][1] - poses[0][1])), 1),
            "apart_deg": round(_angle_deg(poses[0][0], poses[1][0]), 2),
            "fovy_deg": round(float(world.model.cam_fovy[number]), 2),
        }
    return result


def _rest_height(world: World) -> float:
    """Height (m) of the table under the socket at home, in the own scene's frame."""
    poses, _ = world.objects()
    return float(poses[0, 2])


def _gap(world: World, side: int) -> float:
    """Least distance (m) between the fingers of a hand."""
    model, data = world.model, world.data
    touches = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    first, second = (
        np.flatnonzero(touches & (model.geom_bodyid == body))
        for body in world.built.arms[side].fingers[:2]
    )
    ends = np.zeros(6)
    return min(
        mujoco.mj_geomDistance(model, data, int(one), int(other), 0.2, ends)
        for one in first
        for other in second
    )


def _gripper(world: World, own: World) -> JsonObject:
    """Gap between the fingers by travel, ours and the world's; how much more the world's table should say."""
    result: JsonObject = {}
    home = scene.load("insert").home_qpos
    for side, name in enumerate(SIDES):
        if len(world.built.arms[side].fingers) < 2:
            continue
        rows = []
        for travel in _TRAVELS_M:
            qpos = home.copy()
            for arm in scene.load("insert").arms:
                qpos[arm.qpos[6:8]] = travel
            world.place(qpos)
            own.place(qpos)
            rows.append((1000 * travel, 1000 * _gap(own, side), 1000 * _gap(world, side)))
        apart = np.array([(theirs - ours) / 2 for _, ours, theirs in rows])
        result[name] = {
            "travel_mm": [round(row[0], 2) for row in rows],
            "own_gap_mm": [round(row[1], 2) for row in rows],
            "world_gap_mm": [round(row[2], 2) for row in rows],
            "world_travel_reads_too_little_by_mm": round(float(np.median(apart)), 2),
        }
    world.place(home)
    own.place(home)
    return result


def _responses(world: World, own: World) -> JsonObject:
    """Time (s) until a joint has gone 63% of a step, and where it ends, ours and the world's."""
    result: JsonObject = {}
    home = scene.load("insert").home_qpos
    for index, joint in enumerate(JOINTS):
        step = _STEP_M if IS_GRIPPER[index] else _STEP_RAD
        figures = []
        for one in (own, world):
            curves = []
            for size in (0.0, step):  # what gravity does meanwhile is taken off
                one.place(home)
                robot = WorldRobot(one)
                robot.enable()
                target = one.position()
                target[index] += size
                robot.command(target)
                curve = []
                for _ in range(_RESPONSE_STEPS):
                    one.advance()
                    curve.append(one.position()[index])
                curves.append(np.array(curve))
            share = np.concatenate([[0.0], (curves[1] - curves[0]) / step])
            above = np.flatnonzero(share >= 0.63)
            late = np.nan
            if above.size:
                last = int(above[0])
                late = 0.05 * (
                    last - 1 + (0.63 - share[last - 1]) / (share[last] - share[last - 1])
                )
            figures.append((late, float(share[-1])))
        result[joint] = {
            "own_63_s": _rounded(figures[0][0]),
            "world_63_s": _rounded(figures[1][0]),
            "own_end": round(figures[0][1], 3),
            "world_end": round(figures[1][1], 3),
        }
    return result


def _rounded(value: float) -> float | None:
    return round(float(value), 3) if np.isfinite(value) else None


def _views(world: World) -> np.ndarray:
    """Both wrist views of a world, left arm above: at camera size, and beside it as a policy gets them."""
    rows = []
    with WorldView(world, 32) as view:
        for side, (rgb, _) in enumerate(view.raw()):
            height = rgb.shape[0]
            frame = view.frame(side)
            far = np.clip(frame.depth / 0.4, 0, 1)
            grey = np.where((frame.depth > 0) & (far < 1), 255 * (1 - 0.9 * far), 0)
            small = [frame.rgb, np.repeat(grey.astype(np.uint8)[..., None], 3, -1)]
            index = np.arange(height) * 32 // height
            rows.append(np.concatenate([rgb, *(one[index][:, index] for one in small)], 1))
    return np.concatenate(rows)
