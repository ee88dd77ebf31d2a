"""A foreign world for tests: the project's contact scene, moved, turned, renamed, and with other conventions."""

from __future__ import annotations

import pathlib

import mujoco
import numpy as np

from alohas2r.embodiment.joints import ARM_JOINTS, SIDES
from alohas2r.sim import scene

PLACE, YAW_DEG = (0.3, 0.5, 0.1), 90.0
FLIPPED = ("forearm_roll", "wrist_angle")  # joints that turn the other way
SHIFTED, SHIFT_RAD = "elbow", 0.3  # a joint that counts from elsewhere


def write_foreign(folder: pathlib.Path, **changes: str) -> pathlib.Path:
    """Writes an MJCF file and its table, and returns the table's path.

    Args:
      folder: where.
      **changes: text that stands in the table instead of other text: a key of `_PARTS` = the new lines.
    """
    child = scene.spec("insert_contact")
    for key in list(child.keys):
        child.delete(key)
    for side in SIDES:
        for name in FLIPPED:
            joint, servo = child.joint(f"{side}/{name}"), child.actuator(f"{side}/{name}")
            joint.axis = -np.asarray(joint.axis)
            joint.range, servo.ctrlrange = -joint.range[::-1], -servo.ctrlrange[::-1]
        joint, servo = child.joint(f"{side}/{SHIFTED}"), child.actuator(f"{side}/{SHIFTED}")
        joint.ref = SHIFT_RAD
        joint.range, servo.ctrlrange = joint.range + SHIFT_RAD, servo.ctrlrange + SHIFT_RAD
    foreign = mujoco.MjSpec()
    for name in ("integrator", "cone", "iterations", "ls_iterations", "impratio"):
        setattr(foreign.option, name, getattr(child.option, name))
    foreign.option.timestep = child.option.timestep
    foreign.visual.map.znear, foreign.visual.map.zfar = (
        child.visual.map.znear,
        child.visual.map.zfar,
    )
    foreign.memory = child.memory
    half = np.radians(YAW_DEG) / 2
    frame = foreign.worldbody.add_frame(pos=PLACE, quat=[np.cos(half), 0, 0, np.sin(half)])
    foreign.attach(child, prefix="their_", frame=frame)
    foreign.compile()
    (folder / "foreign.xml").write_text(foreign.to_xml())
    parts = _parts() | changes
    path = folder / "foreign.toml"
    path.write_text("\n".join(parts.values()))
    return path


def _parts() -> dict[str, str]:
    parts = {"head": 'name = "foreign"\nmodel = "foreign.xml"'}
    signs = [-1.0 if joint in FLIPPED else 1.0 for joint in ARM_JOINTS]
    offsets = [SHIFT_RAD if joint == SHIFTED else 0.0 for joint in ARM_JOINTS]
    for side in SIDES:
        joints = ", ".join(f'"their_{side}/{joint}"' for joint in ARM_JOINTS)
        parts |= {
            f"{side}": f'[{side}]\nbase = "their_{side}/base_link"',
            f"{side}_joints": f"joints = [{joints}]",
            f"{side}_signs": f"signs = {signs}\noffsets = {offsets}",
            f"{side}_gripper": f'gripper = {{ joints = ["their_{side}/left_finger",'
            f' "their_{side}/right_finger"], travel = [[0.0, 0.0], [0.041, 0.041]] }}',
        }
    parts["cameras"] = "[cameras]\nwidth = 96\nheight = 96\n" + "\n".join(
        f'{side} = {{ camera = "their_wrist_cam_{side}" }}' for side in SIDES
    )
    parts["objects"] = '[objects]\nsocket = "their_socket"\npeg = "their_peg"'
    return parts
