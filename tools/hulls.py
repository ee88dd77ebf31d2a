"""Collision shapes of the arms in the contact scenes: boxes, cylinders and small convex hulls.

HULLS maps a link (without its arm's prefix) to the shapes that collide, in the link's frame, in the
form of looks.py. Together they reach as far as the published parts of the link do, and no further.
The parts of the fingers and the gripper that sensors name keep the names of the published capsules.

Source: the links' extents are those of tests/data/aloha_facts.json; the fingers' rails are those of
looks.py with fewer corners, which makes contacts cheaper.
"""

from __future__ import annotations

import looks
from looks import Look, box, cylinder, mesh, on_inner_face

# The left finger's rails; see looks.UPPER_RAIL and LOWER_RAIL.
TOP_RAIL = looks.millimetres(
    on_inner_face(12.68, -89.95),
    on_inner_face(21.8, -89.66),
    on_inner_face(16.2, -71.5),
    on_inner_face(-10.54, -21.0),
    on_inner_face(-2.0, -16.1),
    (-2.45, -46.4, 2.2),
    (7.4, -46.4, 2.2),
    (-11.8, -20.0, 0.0),
    (0.0, -12.6, 0.0),
)
BOTTOM_RAIL = looks.millimetres(
    on_inner_face(16.2, -71.5),
    on_inner_face(21.8, -89.66),
    on_inner_face(30.0, -14.0),
    on_inner_face(41.7, -14.0),
    (24.7, -36.5, 0.0),
    (35.8, -36.5, 0.0),
    (30.0, -14.0, 0.0),
    (41.7, -14.0, 0.0),
)

MESHES: dict[str, list[looks.Point]] = {
    "left_finger_top_hull": TOP_RAIL,
    "left_finger_bottom_hull": BOTTOM_RAIL,
    "right_finger_top_hull": looks.mirrored(TOP_RAIL),
    "right_finger_bottom_hull": looks.mirrored(BOTTOM_RAIL),
}


def rail(name: str) -> Look:
    """Returns one of the rails."""
    return mesh(f"{name}_hull") | {"name": name}


HULLS: dict[str, list[Look]] = {
    "base_link": [
        mesh("base_plate") | {"name": "base_plate_hull"},
        mesh("base_rear") | {"name": "base_rear_hull"},
        cylinder("base_drum_hull", (0, 0, 10), (0, 0, 75), 62, ""),
    ],
    "shoulder_link": [
        cylinder("shoulder_turntable_hull", (0, 0, -3), (0, 0, 9), 61, ""),
        # Two upright XM540 servos, each 33.5 x 58.5 x 44 mm. Source: ROBOTIS e-manual, XM540-W270.
        box("shoulder_servos_hull", (-16.75, -44, 3), (16.75, 44, 61.4)),
    ],
    "upper_arm_link": [
        box("shoulder_bracket_hull", (-15.7, -51.8, -3.8), (15.7, 51.8, 60)),
        box("upper_arm_hull", (-15.2, -22.5, 60), (15.2, 22.5, 290)),
        box("elbow_hull", (-15.7, -51.8, 262), (73, 51.8, 320.9)),
    ],
    "upper_forearm_link": [
        box("elbow_bracket_hull", (-3.8, -50.5, -19.4), (60, 50.5, 19.4)),
        box("forearm_hull", (60, -22.5, -19.4), (200, 22.5, 19.4)),
    ],
    "lower_forearm_link": [
        box("forearm_roll_hull", (-5, -22.9, -22.9), (84, 22.9, 22.9)),
        box("wrist_servo_hull", (66, -18, -18), (113.7, 28, 18)),
        cylinder("wrist_axle_hull", (100, -29.7, 0), (100, 44.6, 0), 11, ""),
    ],
    "wrist_link": [box("wrist_hull", (-5.2, -27.3, -20.1), (69.7, 27.3, 35))],
    "gripper_base": [
        box("gripper_base", (-75, -12, -3), (75, 30.6, 21.7)),
        box("gripper_servo_hull", (-14.2, -35.4, -38.6), (14.2, 11.2, -2.9)),
        box("camera_hull", (-23.5, -114, -41.8), (23.5, -35.2, -0.8)),
    ],
    "left_finger_link": [
        rail("left_finger_top"),
        rail("left_finger_bottom"),
        box("left_finger_carriage_hull", (-8, -17, 0), (38, 9.3, 9)),
    ],
    "right_finger_link": [
        rail("right_finger_top"),
        rail("right_finger_bottom"),
        box("right_finger_carriage_hull", (-8, -9.3, 0), (38, 17, 9)),
    ],
}

# Pairs of links of one arm that are not neighbours and that no angles of the joints between them bring together: all
# angles are tried in tests/sim/test_contact_scenes.py. (MuJoCo leaves neighbours out itself.)
APART = (
    ("base_link", "shoulder_link"),
    ("shoulder_link", "upper_forearm_link"),
    ("upper_forearm_link", "wrist_link"),
    ("lower_forearm_link", "left_finger_link"),
    ("lower_forearm_link", "right_finger_link"),
    ("wrist_link", "left_finger_link"),
    ("wrist_link", "right_finger_link"),
)
# The fingers of one hand: below 7.9 mm of travel the published model's tips pass through each other, as no rigid ones
# could; what stops them there is the gripper's range.
PASS_THROUGH = (("left_finger_link", "right_finger_link"),)
