"""Writes xmls/*.xml from the table of model facts and the looks in looks.py.

The two arms are the same arm twice, and both scenes share it, so the MJCF is generated: run
`python tools/build_xmls.py` after changing a number or a look; a test compares the result with the
files.

Source: tests/data/aloha_facts.json (masses, inertias, joints, actuators, collision geoms, sites,
cameras).
"""

from __future__ import annotations

import functools
import json
import pathlib
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import hulls  # noqa: E402
import looks  # noqa: E402

from alohas2r.core.types import JsonObject  # noqa: E402

FACTS = json.loads((ROOT / "tests/data/aloha_facts.json").read_text())

# The block of the pick scene: 96 mm long, half size 10..30 mm, 30..100 g. Source: the published report.
BLOCK_HALF_LENGTH, BLOCK_HALF_SIDE, BLOCK_MASS = 0.048, 0.02, 0.065


def numbers(values: float | Sequence[float]) -> str:
    """Formats a number or a list of numbers for an MJCF attribute."""
    if isinstance(values, (int, float)):
        values = [values]
    return " ".join(f"{value:.7g}" for value in values)


def element(parent: ET.Element, tag: str, **attributes: looks.Value | None) -> ET.Element:
    """Adds an element; numbers and lists become strings, None is left out."""
    made = {}
    for key, value in attributes.items():
        if value is None:
            continue
        made[key.rstrip("_")] = value if isinstance(value, str) else numbers(value)
    return ET.SubElement(parent, tag, made)


def inertial(parent: ET.Element, body: JsonObject) -> None:
    """Adds a body's mass, centre of mass and inertia."""
    element(
        parent,
        "inertial",
        pos=body["inertial_pos"],
        quat=body["inertial_quat"],
        mass=body["mass"],
        diaginertia=body["diaginertia"],
    )


def collision_geom(parent: ET.Element, geom: JsonObject, **extra: looks.Value | None) -> None:
    """Adds a geom that collides, with its contact parameters."""
    sizes = {"capsule": 2, "box": 3, "sphere": 1}[geom["type"]]
    element(
        parent,
        "geom",
        name=geom["name"],
        type=geom["type"],
        size=geom["size"][:sizes],
        pos=geom["pos"],
        quat=geom["quat"],
        contype=geom["contype"],
        conaffinity=geom["conaffinity"],
        condim=geom["condim"],
        friction=geom["friction"],
        solref=geom["solref"],
        solimp=geom["solimp"][:3],
        rgba=geom["rgba"],
        **extra,
    )


# How the hulls touch: as the published capsules do.
TOUCH = next(
    {"condim": geom["condim"], "friction": geom["friction"], "solref": geom["solref"]}
    | {"solimp": geom["solimp"][:3], "rgba": geom["rgba"]}
    for body in FACTS["bodies"]
    for geom in body["collision_geoms"]
    if "finger" in geom["name"]
)


def hull_geoms(parent: ET.Element, side: str, link: str) -> None:
    """Adds the shapes of a link that collide in the contact scenes."""
    for hull in hulls.HULLS.get(link, ()):
        shape = {key: value for key, value in hull.items() if key not in ("name", "material")}
        name = f"{side}/{hull['name']}"
        element(parent, "geom", class_="collision", name=name, contype="1", **shape, **TOUCH)


def arm(parent: ET.Element, side: str, contact: bool) -> None:
    """Adds one arm: kinematics, inertias, shapes that collide, sites, camera and looks.

    Args:
      parent: where its base goes.
      side: "left" or "right".
      contact: whether hulls of all parts collide instead of the published capsules.
    """
    elements = {"world": parent}
    for body in FACTS["bodies"]:
        if not body["name"].startswith(side + "/"):
            continue
        link = body["name"].split("/")[1]
        node = element(
            elements[body["parent"]], "body", name=body["name"], pos=body["pos"], quat=body["quat"]
        )
        elements[body["name"]] = node
        inertial(node, body)
        for joint in body["joints"]:
            element(
                node,
                "joint",
                name=joint["name"],
                type=joint["type"],
                axis=joint["axis"],
                range=joint["range"],
                damping=joint["damping"],
                armature=joint["armature"] or None,
                frictionloss=joint["frictionloss"] or None,
                actuatorfrcrange=joint["actuatorfrcrange"],
            )
        if contact:
            hull_geoms(node, side, link)
        for geom in () if contact else body["collision_geoms"]:
            collision_geom(node, geom, class_="collision")
        for look in looks.LINKS.get(link, ()):
            attributes = {key: value for key, value in look.items() if key != "name"}
            element(node, "geom", class_="look", name=f"{side}/{look['name']}", **attributes)
        for site in body["sites"]:
            element(node, "site", name=site["name"], pos=site["pos"], quat=site["quat"])
        for camera in body["cameras"]:
            element(
                node,
                "camera",
                name=camera["name"],
                pos=camera["pos"],
                quat=camera["quat"],
                fovy=camera["fovy_deg"],
                resolution="32 32",
            )


def world(root: ET.Element, contact: bool) -> ET.Element:
    """Adds options, defaults, assets, table, lights and fixed cameras; returns the worldbody."""
    options = FACTS["options"]
    element(root, "compiler", angle="radian", autolimits="true")
    element(
        root,
        "option",
        timestep=options["timestep"],
        integrator=options["integrator"],
        solver="Newton",
        cone=options["cone"],
        iterations=options["iterations"],
        ls_iterations=options["ls_iterations"],
        impratio=options["impratio"],
    )
    element(root, "size", memory="2M" if contact else "400K")
    element(root, "statistic", center="0 0 0.15", extent=1.2)
    visual = element(root, "visual")
    element(visual, "headlight", diffuse=[0.3] * 3, ambient=[0.25] * 3, specular=[0] * 3)
    element(visual, "global", offwidth="1280", offheight="960", azimuth=90, elevation=-25)
    element(visual, "map", znear=0.005, zfar=20)
    element(visual, "quality", shadowsize="2048")
    default = element(root, "default")
    element(default, "site", size=[0.004], group="4", rgba=[0.5, 0.5, 0.5, 0.3])
    collision = element(default, "default", class_="collision")
    element(collision, "geom", group="3")
    look = element(default, "default", class_="look")
    element(look, "geom", group="2", contype="0", conaffinity="0", mass="0")
    asset = element(root, "asset")
    for name, texture in looks.TEXTURES.items():
        element(asset, "texture", name=name, **texture)
    for name, material in looks.MATERIALS.items():
        element(asset, "material", name=name, **material)
    for name, vertices in (looks.MESHES | (hulls.MESHES if contact else {})).items():
        element(
            asset,
            "mesh",
            name=name,
            inertia="shell",
            vertex=[x for vertex in vertices for x in vertex],
        )
    worldbody = element(root, "worldbody")
    facts = FACTS["world"]
    element(worldbody, "site", name="worldref")
    table = facts["table"]
    element(
        worldbody,
        "geom",
        name="table",
        type="plane",
        pos=table["pos"],
        size=[*table["half_size"], 0.01],
        material="table",
        friction=table["friction"],
        condim=table["condim"],
        contype="1",
        conaffinity="1",
    )
    for look in looks.WORLD:
        element(worldbody, "geom", class_="look", **look)
    for camera in facts["cameras"]:
        element(
            worldbody,
            "camera",
            name=camera["name"],
            pos=camera["pos"],
            quat=camera["quat"],
            fovy=camera["fovy_deg"],
        )
    return worldbody


def lights(worldbody: ET.Element, sides: tuple[str, ...]) -> None:
    """Adds the lights: a spot over each arm that follows its gripper, and one directional light."""
    for index, light in enumerate(FACTS["world"]["lights"]):
        target = light["target"]
        if target is not None and target.split("/")[0] not in sides:
            target = None
        element(
            worldbody,
            "light",
            name=("spot_left", "spot_right", "sun")[index],
            pos=light["pos"],
            dir=light["dir"],
            type="directional" if light["type"] == 1 else "spot",
            mode="targetbody" if target else "fixed",
            target=target,
            cutoff=light["cutoff"],
            diffuse=light["diffuse"],
            ambient=light["ambient"],
            specular=light["specular"],
        )


def arm_sensors(sensor: ET.Element, side: str) -> None:
    """Everything the tasks read about one arm, in its base frame (contact forces: world frame)."""
    base = {"reftype": "xbody", "refname": f"{side}/base_link"}
    for site in ("left_fingertip", "right_fingertip", "left_finger", "right_finger"):
        element(
            sensor,
            "framepos",
            name=f"{side}/{site}_pos",
            objtype="site",
            objname=f"{side}/{site}",
            **base,
        )
    element(
        sensor,
        "framequat",
        name=f"{side}/gripper_quat",
        objtype="site",
        objname=f"{side}/gripper",
        **base,
    )
    for finger in ("left", "right"):
        element(
            sensor,
            "contact",
            name=f"{side}/{finger}_finger_force",
            body1=f"{side}/{finger}_finger_link",
            data="found force",
            reduce="netforce",
            num="1",
        )
    for geom in ("left_finger_bottom", "right_finger_bottom", "gripper_base"):
        element(
            sensor,
            "contact",
            name=f"{side}/{geom}_on_table",
            geom1=f"{side}/{geom}",
            geom2="table",
            data="found",
            reduce="mindist",
            num="1",
        )


def object_sensors(sensor: ET.Element, side: str, name: str) -> None:
    """Everything the tasks read about one object, in the base frame of the arm that handles it."""
    base = {"reftype": "xbody", "refname": f"{side}/base_link"}
    for kind, label in (
        ("framepos", "pos"),
        ("framequat", "quat"),
        ("framelinvel", "linvel"),
        ("frameangvel", "angvel"),
    ):
        element(sensor, kind, name=f"{name}_{label}", objtype="xbody", objname=name, **base)
    element(
        sensor,
        "framepos",
        name=f"{name}_grip_pos",
        objtype="site",
        objname=f"{name}_grip_here",
        **base,
    )


def actuators(root: ET.Element, sides: tuple[str, ...]) -> None:
    """Adds the position actuators of the given arms."""
    parent = element(root, "actuator")
    for actuator in FACTS["actuators"]:
        if actuator["name"].split("/")[0] in sides:
            element(
                parent,
                "position",
                name=actuator["name"],
                joint=actuator["joint"],
                kp=actuator["kp"],
                ctrlrange=actuator["ctrlrange"],
            )


def contact_sensors(sensor: ET.Element) -> None:
    """The forces that only the two-arm contact scene has (world frame)."""
    pairs = {
        "left/hand_on_peg": {"subtree1": "left/gripper_link", "body2": "peg"},
        "right/hand_on_socket": {"subtree1": "right/gripper_link", "body2": "socket"},
        "arm_on_arm": {"subtree1": "left/base_link", "subtree2": "right/base_link"},
    }
    for name, pair in pairs.items():
        element(
            sensor,
            "contact",
            name=f"{name}_force",
            **pair,
            data="found force",
            reduce="netforce",
            num="1",
        )


def contacts_and_equalities(
    root: ET.Element, sides: tuple[str, ...], bodies: set[str], contact: bool
) -> None:
    """Adds the pairs that never touch and the coupling of the fingers."""
    pairs = element(root, "contact")
    excluded = FACTS["contact_excludes"]
    if contact:
        apart = (*hulls.APART, *hulls.PASS_THROUGH)
        excluded = [[f"{side}/{link}" for link in pair] for side in sides for pair in apart]
    for body1, body2 in excluded:
        if body1 in bodies and body2 in bodies:
            element(pairs, "exclude", body1=body1, body2=body2)
    equality = element(root, "equality")
    for constraint in FACTS["equality"]:
        if constraint["joint1"].split("/")[0] in sides:
            element(
                equality,
                "joint",
                name=constraint["joint1"].split("/")[0] + "/fingers",
                joint1=constraint["joint1"],
                joint2=constraint["joint2"],
                polycoef=constraint["polycoef"],
                solref=constraint["solref"],
                solimp=constraint["solimp"][:3],
            )


def mocap_target(worldbody: ET.Element, name: str, rgba: list[float], half: list[float]) -> None:
    """A body without contacts that shows where an object shall go."""
    body = element(worldbody, "body", name=name, mocap="true")
    element(body, "geom", class_="look", name=name, type="box", size=half, rgba=rgba, group="5")


def keyframes(
    root: ET.Element, names: tuple[str, ...], sides: tuple[str, ...], free: list[list[float]]
) -> None:
    """Adds keyframes; `free` is the pose of the one-arm scene's block (x, y, z, quaternion)."""
    parent = element(root, "keyframe")
    for name in names:
        key = FACTS["keyframes"][name]
        if sides == ("left",):
            element(
                parent, "key", name=name, qpos=[*key["qpos"][:8], *free[0]], ctrl=key["ctrl"][:7]
            )
        else:
            element(parent, "key", name=name, qpos=key["qpos"], ctrl=key["ctrl"])


def scene_pick(contact: bool = False) -> ET.Element:
    """One arm and a block; `contact` as in `arm`."""
    root = ET.Element("mujoco", model="alohas2r pick" + " contact" * contact)
    sides = ("left",)
    worldbody = world(root, contact)
    lights(worldbody, sides)
    arm(worldbody, "left", contact)
    half = [BLOCK_HALF_LENGTH, BLOCK_HALF_SIDE, BLOCK_HALF_SIDE]
    box = element(worldbody, "body", name="box", pos=[-0.18, -0.125, 0.0008 + BLOCK_HALF_SIDE])
    element(box, "freejoint", name="box")
    element(
        box,
        "geom",
        name="box",
        type="box",
        size=half,
        mass=BLOCK_MASS,
        condim=4,
        friction=[1, 0.03, 0.001],
        solref=[0.02, 1],
        rgba=[1, 0, 0, 1],
    )
    element(box, "site", name="box_grip_here", pos=[-0.02, 0, 0])
    element(box, "site", name="box_end_2", pos=[BLOCK_HALF_LENGTH, 0, 0])
    mocap_target(worldbody, "box_mocap_target", [0, 1, 0, 0.3], half)
    bodies = {body["name"] for body in FACTS["bodies"] if body["name"].startswith("left/")}
    contacts_and_equalities(root, sides, bodies, contact)
    actuators(root, sides)
    sensor = element(root, "sensor")
    arm_sensors(sensor, "left")
    object_sensors(sensor, "left", "box")
    keyframes(root, ("home",), sides, [[-0.18, -0.125, 0.0008 + BLOCK_HALF_SIDE, 1, 0, 0, 0]])
    return root


def scene_insert(contact: bool = False) -> ET.Element:
    """Two arms, socket and peg; `contact` as in `arm`."""
    root = ET.Element("mujoco", model="alohas2r insert" + " contact" * contact)
    sides = ("left", "right")
    worldbody = world(root, contact)
    lights(worldbody, sides)
    for side in sides:
        arm(worldbody, side, contact)
    for body in FACTS["bodies"]:
        if body["name"] not in ("socket", "peg"):
            continue
        node = element(worldbody, "body", name=body["name"], pos=body["pos"], quat=body["quat"])
        element(node, "freejoint", name=body["name"])
        inertial(node, body)
        for geom in body["collision_geoms"]:
            collision_geom(node, geom)
        for look in looks.LINKS.get(body["name"], ()):
            element(node, "geom", class_="look", **look)
        for site in body["sites"]:
            element(node, "site", name=site["name"], pos=site["pos"], quat=site["quat"])
    mocap_target(worldbody, "socket_mocap_target", [0, 0, 1, 0.3], [0.048, 0.022, 0.022])
    mocap_target(worldbody, "peg_mocap_target", [1, 0, 0, 0.3], [0.048, 0.01, 0.01])
    contacts_and_equalities(root, sides, {body["name"] for body in FACTS["bodies"]}, contact)
    actuators(root, sides)
    sensor = element(root, "sensor")
    for side, name in (("left", "socket"), ("right", "peg")):
        arm_sensors(sensor, side)
        object_sensors(sensor, side, name)
    element(
        sensor,
        "framepos",
        name="peg_end_in_socket",
        objtype="site",
        objname="peg_end1",
        reftype="site",
        refname="socket_rear",
    )
    if contact:
        contact_sensors(sensor)
    keyframes(root, ("home", "preinsert"), sides, [])
    return root


def elliptic(build: Callable[..., ET.Element], name: str) -> ET.Element:
    """A contact scene whose friction cones are ellipses; with ten iterations they would diverge."""
    root = build(contact=True)
    root.set("model", f"alohas2r {name} elliptic")
    option = root.find("option")
    assert option is not None
    option.attrib |= {"cone": "elliptic", "iterations": "50", "ls_iterations": "20"}
    return root


def render(root: ET.Element) -> str:
    """The file's text, with a line saying where it comes from."""
    ET.indent(root, "  ")
    body = ET.tostring(root, encoding="unicode")
    note = "Written by tools/build_xmls.py; change the tables there, not this file."
    return f"<!-- {note} -->\n{body}\n"


SCENES = {
    "scene_pick.xml": scene_pick,
    "scene_insert.xml": scene_insert,
    "scene_pick_contact.xml": functools.partial(scene_pick, contact=True),
    "scene_insert_contact.xml": functools.partial(scene_insert, contact=True),
    "scene_pick_elliptic.xml": functools.partial(elliptic, scene_pick, "pick"),
    "scene_insert_elliptic.xml": functools.partial(elliptic, scene_insert, "insert"),
}


def main() -> None:
    """Writes the files."""
    for name, build in SCENES.items():
        (ROOT / "xmls" / name).write_text(render(build()))


if __name__ == "__main__":
    main()
