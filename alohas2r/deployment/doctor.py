"""What a computer lacks to train, to draw, or to drive two arms: one line for each thing looked at.

Nothing is changed: ports are opened to read only, and torque stays as it is.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from alohas2r.config import to_dict
from alohas2r.deployment import robot_file as robots
from alohas2r.deployment.diagnosis import Line, Status, examine_arm
from alohas2r.deployment.robot_file import RobotFile
from alohas2r.embodiment.camera import BASELINE_M
from alohas2r.embodiment.joints import SIDES
from alohas2r.errors import Alohas2rError, BackendUnavailable, RobotFault
from alohas2r.robots.dynamixel import adapter
from alohas2r.robots.dynamixel.arm import DynamixelConfig

# Packages of each extra that something does not work without, by the name they are imported as.
PACKAGES = {
    "": ("mujoco", "numpy", "onnxruntime", "rich", "typer"),
    "train": ("av", "brax", "flax", "jax", "matplotlib", "onnx", "optax", "orbax", "tensorboardX"),
    "export": ("jax2onnx",),
    "robot": ("dynamixel_sdk", "msgpack", "pyrealsense2", "websockets"),
    "datasets": ("h5py", "pyarrow"),
    "loggers": ("mlflow", "wandb"),
    "sweep": ("optuna", "ray"),
}
ADAPTERS = adapter.ADAPTERS
BASELINE_OFF_M = (
    0.001  # by how much the distance of a camera's imagers may differ from the simulated
)
PLACE_M = 0.01  # how far the arms may be from where the simulated ones are


def examine(
    ports: Sequence[str] | None = None,
    policy: str | os.PathLike[str] | None = None,
    cameras: Sequence[str] | None = None,
    robot_file: str | os.PathLike[str] | None = None,
) -> list[Line]:
    """Looks at everything: machine, packages, GL, GPU, ports, servos, cameras, policy.

    What nobody asked for may be absent: without `ports`, `cameras` or `policy`, a machine with
    nothing attached gets warnings, no failures.

    Args:
      ports: serial ports of the left and the right arm, which then must work.
      policy: an exported policy, which then must be sound.
      cameras: serial numbers of the left and the right camera, which then must be there.
      robot_file: what is known about the arms; None: robot.toml, if there is one. What it says
        counts as asked for.
    """
    known: list[Line] = []
    try:
        robot = robots.load(robot_file)
    except Alohas2rError as error:
        robot = None
        known.append(Line("robot file", "fail", str(error), "alohas2r setup-robot writes one."))
    if robot is not None:
        known += _robot(robot, robots.where(robot_file))
        ports, cameras = ports or robot.ports, cameras or robot.serials
    checks: list[Callable[[], Iterator[Line]]] = [
        machine,
        packages,
        gl,
        gpu,
        lambda: arms(ports),
        lambda: wrist_cameras(cameras),
        lambda: artifact(policy),
    ]
    return known + [line for look in checks for line in look()]


def _robot(robot: RobotFile, path: pathlib.Path) -> Iterator[Line]:
    """Looks at what a robot file says, and compares measures with the simulated arms."""
    from alohas2r.sim import scene

    missing = [
        name for name, value in to_dict(robot).items() if value is None and name != "exposure_us"
    ]
    missing += ["cameras"] if robot.serials is None else []
    missing += ["grippers"] if robot.gripper_closed_rad is None else []
    text = f"{path}, without {', '.join(missing)}" if missing else f"{path}"
    yield Line("robot file", "pass", text, "alohas2r setup-robot adds it." if missing else "")
    model = scene.load("insert").model
    left, right = (model.body(f"{side}/base_link").pos for side in SIDES)
    simulated = float(np.linalg.norm(left - right))
    for name, value, wanted in (
        ("base distance", robot.base_distance_m, simulated),
        ("table height", robot.table_height_m, -float(left[2])),
    ):
        if value is None:
            continue
        wrong = abs(value - wanted) > PLACE_M
        text = f"{1000 * value:.0f} mm; the simulated arms' is {1000 * wanted:.0f} mm"
        remedy = "Move the arms: the policy knows the simulated place only." if wrong else ""
        yield Line(name, "warn" if wrong else "pass", text, remedy)


def machine() -> Iterator[Line]:
    """Looks at the operating system, Python, cores, memory and disk."""
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    linux = sys.platform.startswith("linux")
    remedy = "" if linux else "Drive arms from Linux; training and simulation may work here."
    yield Line("system", "pass" if linux else "warn", system, remedy)
    cores = os.cpu_count() or 1
    few = cores < 2
    remedy = "The control loop wants a core of its own: use a machine with two or more."
    yield Line("cores", "warn" if few else "pass", str(cores), remedy if few else "")
    memory = pathlib.Path("/proc/meminfo")
    if memory.exists():
        entries = (line.split() for line in memory.read_text().splitlines())
        gib = next(int(words[1]) for words in entries if words[0] == "MemAvailable:") / 2**20
        few = gib < 2
        remedy = "Training needs about 2 GiB; close other programs." if few else ""
        yield Line("memory", "warn" if few else "pass", f"{gib:.1f} GiB free", remedy)
    free_gib = shutil.disk_usage(".").free / 2**30
    few = free_gib < 1
    remedy = "Logs and checkpoints need room: free at least 1 GiB." if few else ""
    yield Line("disk", "fail" if few else "pass", f"{free_gib:.0f} GiB free here", remedy)


def packages() -> Iterator[Line]:
    """Looks at which packages are installed, extra by extra."""
    distributions = importlib.metadata.packages_distributions()  # reads every installed file list
    for extra, names in PACKAGES.items():
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        label = f"packages [{extra}]" if extra else "packages"
        wanted = f"alohas2r[{extra}]" if extra else "alohas2r"
        if missing:
            status: Status = "warn" if extra else "fail"
            yield Line(label, status, f"missing: {', '.join(missing)}", f"pip install '{wanted}'")
        else:
            yield Line(label, "pass", ", ".join(_version(name, distributions) for name in names))


def _version(module: str, distributions: Mapping[str, list[str]]) -> str:
    known = distributions.get(module, [module])
    try:
        return f"{module} {importlib.metadata.version(known[0])}"
    except importlib.metadata.PackageNotFoundError:
        return module


def gl() -> Iterator[Line]:
    """Looks whether pictures can be drawn by OpenGL without a display."""
    from alohas2r.rendering.offscreen import Offscreen
    from alohas2r.sim import scene

    try:
        with Offscreen(scene.load("pick").model, 32, 32):
            pass
    except (BackendUnavailable, RuntimeError) as error:
        remedy = "apt-get install libegl1 libgl1-mesa-dri (videos of scenes need it, training not)"
        yield Line("OpenGL", "warn", " ".join(str(error).split()), remedy)
    else:
        yield Line("OpenGL", "pass", "draws without a display")


def gpu() -> Iterator[Line]:
    """Looks for an NVIDIA GPU and for what uses it."""
    program = shutil.which("nvidia-smi")
    name = ""
    if program is not None:
        query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        try:
            name = subprocess.run(
                query, capture_output=True, text=True, timeout=20, check=True
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError) as error:
            remedy = "Install or mend the NVIDIA driver; the CPU serves meanwhile."
            yield Line("GPU", "warn", f"nvidia-smi fails: {error}", remedy)
            return
    if not name:
        yield Line("GPU", "pass", "none; the CPU serves (a GPU is faster, not needed)")
    elif importlib.util.find_spec("warp") is None:
        yield Line("GPU", "warn", name, "pip install 'alohas2r[warp]' to use it")
    else:
        yield Line("GPU", "pass", "; ".join(name.splitlines()))


def arms(ports: Sequence[str] | None) -> Iterator[Line]:
    """Looks at both serial ports, their permissions and adapters, and every servo behind them."""
    asked = ports is not None
    for side, port in zip(SIDES, ports or DynamixelConfig.ports, strict=True):
        label = f"{side} port"
        path = pathlib.Path(port)
        if not path.exists():
            remedy = "Plug in and power the arm; the udev rule in docs/deploy.md gives it its name."
            yield Line(label, "fail" if asked else "warn", f"there is no {port}", remedy)
            continue
        if not os.access(port, os.R_OK | os.W_OK):
            remedy = "sudo usermod -aG dialout $USER, then log in again"
            yield Line(label, "fail", f"{port} may not be opened", remedy)
            continue
        yield Line(label, "pass", f"{port} -> {path.resolve()}")
        yield from latency(side, path)
        yield from examine_arm(side, port)


def latency(side: str, path: pathlib.Path) -> Iterator[Line]:
    """Looks how long a USB adapter collects bytes before it hands them on."""
    timer = ADAPTERS / path.resolve().name / "latency_timer"
    label = f"{side} latency timer"
    if not timer.exists():
        yield Line(label, "warn", "unknown: no USB adapter of FTDI", "Nothing, if it is no U2D2.")
        return
    milliseconds = int(timer.read_text())
    slow = milliseconds > adapter.LATENCY_MS
    remedy = f"echo {adapter.LATENCY_MS} | sudo tee {timer}; the udev rule in docs/deploy.md makes it last"
    yield Line(label, "fail" if slow else "pass", f"{milliseconds} ms", remedy if slow else "")


def wrist_cameras(serials: Sequence[str] | None) -> Iterator[Line]:
    """Looks at the RealSense cameras: serial numbers, firmware, speed of their USB ports."""
    from alohas2r.robots.realsense.config import find_cameras

    try:
        cameras = find_cameras()
    except (BackendUnavailable, RobotFault) as error:
        yield Line("cameras", "fail" if serials else "warn", str(error), "As it says.")
        return
    if not cameras:
        remedy = "Plug two D405 into USB 3 ports."
        yield Line("cameras", "fail" if serials else "warn", "none is plugged in", remedy)
        return
    for camera in cameras:
        text = f"{camera.name}, firmware {camera.firmware}, USB {camera.usb}"
        label = f"camera {camera.serial}"
        if not camera.usb.startswith("3"):
            yield Line(label, "fail", text, "Use a USB 3 port and cable; both streams need it.")
        elif "D405" not in camera.name:
            yield Line(label, "warn", text, "The policy is made for the D405's near depth.")
        else:
            yield Line(label, "pass", text)
    for side, serial in zip(SIDES, serials or (), strict=False):
        if serial not in [camera.serial for camera in cameras]:
            text = f"{serial} is not plugged in"
            yield Line(f"{side} camera", "fail", text, "Check the serial number and the cable.")
    yield from _baselines([camera.serial for camera in cameras])
    if len(cameras) < len(SIDES):
        remedy = "Two arms need two cameras: check the other one's cable."
        yield Line("cameras", "warn", f"{len(cameras)} of {len(SIDES)}", remedy)


def _baselines(serials: Sequence[str]) -> Iterator[Line]:
    """Looks how far apart the imagers of cameras are, which a policy that sees pairs of pictures relies on."""
    from alohas2r.robots.realsense.config import baselines

    try:
        measured = baselines()
    except (BackendUnavailable, RobotFault) as error:
        yield Line("baselines", "warn", str(error), "As it says.")
        return
    for serial in (one for one in serials if one in measured):
        value, label = measured[serial], f"camera {serial} baseline"
        wanted = f"the simulated pair's is {1000 * BASELINE_M:.1f} mm"
        if value is None:
            remedy = "It matters to a policy that sees pairs of pictures alone."
            yield Line(label, "warn", f"the camera does not say; {wanted}", remedy)
        elif abs(value - BASELINE_M) > BASELINE_OFF_M:
            remedy = "This is no D405: a policy that sees pairs of pictures would misjudge every distance."
            yield Line(label, "fail", f"{1000 * value:.1f} mm; {wanted}", remedy)
        else:
            yield Line(label, "pass", f"{1000 * value:.1f} mm")


def artifact(policy: str | os.PathLike[str] | None) -> Iterator[Line]:
    """Looks whether a policy loads, passes its own check, and takes what a robot has."""
    from alohas2r.deployment import terms

    if policy is None:
        remedy = "Name one to check it: alohas2r doctor --policy FILE"
        yield Line("policy", "pass", "none was named", remedy)
        return
    try:
        exported = terms.load_policy(policy)
        wants = terms.terms(exported)
        text = f"{policy}: {wants.hash[:12]}, pictures of {wants.size} x {wants.size}"
        yield Line("policy", "pass", f"{text}, verified to {exported.verify():.1g}")
    except Alohas2rError as error:
        yield Line("policy", "fail", str(error), "Export it again, or name another file.")
