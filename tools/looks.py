"""Looks of the arms, the objects and the workcell: primitives and small convex meshes.

LINKS maps a link (without its arm's prefix) or an object to its visual geoms, in the link's
frame. Nothing here collides or has mass. Looks that a wrist camera can see are in geom group 2 (the
default here); what only videos need (`GROUP_VIDEO`) is in group 1, so that a ray caster that is
given groups 0 and 2 has few geoms to test.

Source: the links' extents are those of tests/data/aloha_facts.json; the fingers were triangulated
from the published wrist views (tests/data/README.md says how).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

# What an attribute of MJCF holds.
Value: TypeAlias = str | float | Sequence[float]
Look = dict[str, Value]
Point = tuple[float, float, float]

GROUP_VIDEO = "1"

# name -> rgba, specular, shininess (and a texture's name)
MATERIALS: dict[str, Look] = {
    "table": {"rgba": [0.05, 0.05, 0.05, 1.0], "specular": 0.3, "shininess": 0.3},
    "black": {"rgba": [0.15, 0.15, 0.15, 1.0], "specular": 0.6, "shininess": 0.5},
    "servo": {"rgba": [0.1, 0.1, 0.1, 1.0], "specular": 0.3, "shininess": 0.3},
    "rail": {"rgba": [0.22, 0.22, 0.22, 1.0], "specular": 0.3, "shininess": 0.3},
    "wood": {"rgba": [0.5, 0.38, 0.26, 1.0], "specular": 0.1, "shininess": 0.1},
    "floor": {"texture": "floor", "texrepeat": [6, 6], "specular": 0.0, "shininess": 0.0},
    "socket_inside": {"rgba": [1.0, 1.0, 1.0, 1.0], "specular": 0.3, "shininess": 0.3},
}
TEXTURES: dict[str, Look] = {
    "sky": {
        "type": "skybox",
        "builtin": "gradient",
        "rgb1": [0.93, 0.94, 0.96],
        "rgb2": [0.62, 0.66, 0.72],
        "width": "64",
        "height": "384",
    },
    "floor": {
        "type": "2d",
        "builtin": "flat",
        "mark": "edge",
        "rgb1": [0.62, 0.62, 0.62],
        "markrgb": [0.45, 0.45, 0.45],
        "width": "128",
        "height": "128",
    },
}


def millimetres(*points: Point) -> list[Point]:
    """Returns the points in metres."""
    return [(x / 1000, y / 1000, z / 1000) for x, y, z in points]


def mirrored(points: list[Point]) -> list[Point]:
    """Returns the points of the right finger for those of the left one (y changes sign)."""
    return [(x, -y, z) for x, y, z in points]


def chamfered(low: Point, high: Point, cut: float, plan: float = 0.0) -> list[Point]:
    """Returns a box (mm) whose upper edges are cut off by `cut`, its plan's corners by `plan`."""
    points = []
    for z, inset in ((low[2], 0.0), (high[2] - cut, 0.0), (high[2], cut)):
        x0, y0, x1, y1 = low[0] + inset, low[1] + inset, high[0] - inset, high[1] - inset
        if plan:
            for x, y, sx, sy in (
                (x0, y0, 1, 1),
                (x1, y0, -1, 1),
                (x1, y1, -1, -1),
                (x0, y1, 1, -1),
            ):
                points += [(x + sx * plan, y, z), (x, y + sy * plan, z)]
        else:
            points += [(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)]
    return millimetres(*points)


def bracket(axis: str, stations: list[Point]) -> list[Point]:
    """Returns a bracket (mm) of rectangular sections: distance along the axis, half sizes."""
    points = []
    for along, half_y, half in stations:
        for y in (-half_y, half_y):
            for other in (-half, half):
                points.append((along, y, other) if axis == "x" else (other, y, along))
    return millimetres(*points)


def on_inner_face(x: float, y: float) -> Point:
    """Returns the point (mm) of a left finger's inner face, which leans to the sliding axis."""
    return (x, y, 27.0 - 0.118 * (y + 89.95))


def on_upper_face(y: float, z: float) -> Point:
    """Returns the point (mm) of a left finger's upper face, which falls towards the tip."""
    return (12.68 - 0.3474 * (y + 89.95), y, z)


# The left finger, in its link's frame: x down, y towards the wrist (the tip is at -90 mm), z
# towards the other finger. Two rails leave a common tip in a V; the upper one ends in a rounded
# shoulder. First the corners of the inner face, then those of the outer side.
UPPER_RAIL = millimetres(
    on_inner_face(12.68, -89.95),
    on_inner_face(21.8, -89.66),
    on_inner_face(16.2, -71.5),
    on_inner_face(-10.54, -23.1),
    on_inner_face(-10.3, -20.2),
    on_inner_face(-8.6, -17.8),
    on_inner_face(-4.0, -16.1),
    on_inner_face(-1.8, -19.9),
    on_upper_face(-46.4, 2.2),
    on_upper_face(-36.5, 0.2),
    (-11.8, -22.0, 0.0),
    (-11.3, -19.0, 0.0),
    (-7.5, -15.0, 0.0),
    (0.0, -12.6, 0.0),
    (7.4, -46.4, 2.2),
)
LOWER_RAIL = millimetres(
    on_inner_face(16.2, -71.5),
    on_inner_face(21.8, -89.66),
    on_inner_face(30.0, -14.0),
    on_inner_face(41.7, -14.0),
    (22.3, -46.4, 2.2),
    (33.1, -46.4, 2.2),
    (24.7, -36.5, 0.0),
    (35.8, -36.5, 0.0),
    (30.0, -14.0, 0.0),
    (41.7, -14.0, 0.0),
)

MESHES: dict[str, list[Point]] = {
    "left_finger_upper": UPPER_RAIL,
    "left_finger_lower": LOWER_RAIL,
    "right_finger_upper": mirrored(UPPER_RAIL),
    "right_finger_lower": mirrored(LOWER_RAIL),
    "base_plate": chamfered((-110, -102, 0), (102, 102, 14), cut=4, plan=58),
    "base_rear": chamfered((-197.4, -62, 0), (-60, 62, 66), cut=16),
    "elbow": chamfered((-15.7, -36, 262), (73, 36, 320.9), cut=8),
    "elbow_fork": bracket("x", [(36, 50, 18.8), (52, 50, 18.8), (86, 22, 18.8)]),
    "shoulder_fork": bracket("z", [(36, 51.2, 14.7), (47, 51.2, 14.7), (84, 22, 14.7)]),
}


def box(name: str, low: Point, high: Point, material: str = "black", **extra: Value) -> Look:
    """Returns a box look between two corners (mm)."""
    return {
        "name": name,
        "type": "box",
        "size": [(b - a) / 2000 for a, b in zip(low, high, strict=True)],
        "pos": [(a + b) / 2000 for a, b in zip(low, high, strict=True)],
        "material": material,
        **extra,
    }


def cylinder(
    name: str, start: Point, end: Point, radius: float, material: str, **extra: Value
) -> Look:
    """Returns a cylinder look between two points (mm)."""
    return {
        "name": name,
        "type": "cylinder",
        "size": [radius / 1000],
        "fromto": [value / 1000 for value in (*start, *end)],
        "material": material,
        **extra,
    }


def mesh(name: str, material: str = "black", **extra: Value) -> Look:
    """Returns a look of one of MESHES, which are given in the link's own frame."""
    return {"name": name, "type": "mesh", "mesh": name, "material": material, **extra}


def both_sides(
    name: str, low: Point, high: Point, material: str = "black", **extra: Value
) -> list[Look]:
    """Returns a box and its mirror image in y."""
    return [
        box(f"{name}_left", low, high, material, **extra),
        box(
            f"{name}_right",
            (low[0], -high[1], low[2]),
            (high[0], -low[1], high[2]),
            material,
            **extra,
        ),
    ]


VIDEO = {"group": GROUP_VIDEO}

# The D405 looks along (0, sin 25, cos 25 deg) of the gripper base. Its front is drawn 7 mm behind
# the camera's centre, so that a camera that randomization moves back does not end up inside it.
CAMERA_TILT = [0.9762959, -0.21644, 0.0, 0.0]

LINKS: dict[str, list[Look]] = {
    "base_link": [
        mesh("base_plate", **VIDEO),
        mesh("base_rear", **VIDEO),
        cylinder("base_drum", (0, 0, 10), (0, 0, 74), 62, "black", **VIDEO),
    ],
    "shoulder_link": [
        cylinder("shoulder_turntable", (0, 0, -3), (0, 0, 9), 61, "black", **VIDEO),
        box("shoulder_servos", (-28, -44, 9), (28, 44, 61.4), "servo", **VIDEO),
    ],
    "upper_arm_link": [
        *both_sides("shoulder_bracket", (-15.7, 45, -3.8), (15.7, 51.8, 46), **VIDEO),
        mesh("shoulder_fork", **VIDEO),
        box("upper_arm", (-15.2, -22.5, 60), (15.2, 22.5, 290)),
        mesh("elbow", "servo", **VIDEO),
        cylinder("elbow_axle", (59.55, -51.8, 300), (59.55, 51.8, 300), 13.5, "black", **VIDEO),
    ],
    "upper_forearm_link": [
        *both_sides("elbow_bracket", (-3.8, 44, -19.4), (40, 50.5, 19.4), **VIDEO),
        mesh("elbow_fork", **VIDEO),
        box("forearm", (60, -22.5, -19.4), (200, 22.5, 19.4)),
    ],
    "lower_forearm_link": [
        cylinder("forearm_collar", (-5, 0, 0), (10, 0, 0), 22.9, "black", **VIDEO),
        box("forearm_roll", (10, -22.5, -22.5), (84, 22.5, 22.5)),
        box("wrist_servo", (66, -18, -18), (113.7, 28, 18), "servo", **VIDEO),
        cylinder("wrist_axle", (100, -29.7, 0), (100, 44.6, 0), 11, "black", **VIDEO),
    ],
    "wrist_link": [
        *both_sides("wrist_bracket", (-5.2, 22.5, -14), (34, 27.3, 14), **VIDEO),
        box("wrist", (28, -22.5, -20.1), (69.7, 22.5, 35)),
    ],
    "gripper_base": [
        box("gripper_servo", (-14.2, -35.4, -38.6), (14.2, 11.2, -2.9), "servo", **VIDEO),
        box("gripper_bar", (-75, -12, -3), (75, 30.6, 21.7)),
        box("gripper_top", (-23.5, -35.2, -2.5), (23.5, -10, 8), **VIDEO),
        box("camera_post", (-23.5, -74, -41.8), (23.5, -35.2, -36.5), **VIDEO),
        {
            "name": "camera_plate",
            "type": "box",
            "size": [0.0235, 0.021, 0.0025],
            "pos": [0, -0.0936, -0.0321],
            "quat": CAMERA_TILT,
            "material": "black",
            **VIDEO,
        },
        {
            "name": "camera_body",
            "type": "box",
            "size": [0.021, 0.021, 0.008],
            "pos": [0, -0.0888, -0.0232],
            "quat": CAMERA_TILT,
            "material": "servo",
        },
    ],
    "left_finger_link": [
        mesh("left_finger_upper"),
        mesh("left_finger_lower"),
        box("left_finger_carriage", (-8, -17, 0), (38, 9.3, 9), **VIDEO),
    ],
    "right_finger_link": [
        mesh("right_finger_upper"),
        mesh("right_finger_lower"),
        box("right_finger_carriage", (-8, -9.3, 0), (38, 17, 9), **VIDEO),
    ],
    # White sheets on the inner faces of the socket's walls (the walls are 4 mm thick).
    "socket": [
        box("socket_inside_B", (-40, -18, -18), (47.9, 18, -17.8), "socket_inside"),
        box("socket_inside_T", (-40, -18, 17.8), (47.9, 18, 18), "socket_inside"),
        box("socket_inside_L", (-40, -18, -18), (47.9, -17.8, 18), "socket_inside"),
        box("socket_inside_R", (-40, 17.8, -18), (47.9, 18, 18), "socket_inside"),
    ],
}

# The workcell: a board framed by extrusions, on four legs.
WORLD: list[Look] = [
    {
        "name": "floor",
        "type": "plane",
        "size": [6, 6, 0.1],
        "pos": [0, 0, -0.75],
        "material": "floor",
        **VIDEO,
    },
    box("board", (-610, -370, -18), (610, 370, -0.5), "wood", **VIDEO),
    box("rail_front", (-630, -390, -22), (630, -370, -2), "rail", **VIDEO),
    box("rail_back", (-630, 370, -2), (630, 390, 18), "rail", **VIDEO),
    *[
        box(f"rail_{name}", (x - 10, -370, 0), (x + 10, 370, 20), "rail", **VIDEO)
        for name, x in (
            ("left_outer", -600),
            ("left_inner", -440),
            ("right_inner", 440),
            ("right_outer", 600),
        )
    ],
    *[
        box(f"leg_{name}", (x - 20, y - 20, -750), (x + 20, y + 20, -22), "rail", **VIDEO)
        for name, x, y in (
            ("front_left", -600, -360),
            ("front_right", 600, -360),
            ("back_left", -600, 360),
            ("back_right", 600, 360),
        )
    ],
]
