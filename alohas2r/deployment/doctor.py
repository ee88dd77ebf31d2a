"""What a computer lacks to train, to draw, or to drive two arms: one line for each thing looked at.

Nothing is changed: ports are opened to read only, and torque stays as it is.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from alohas2r.embodiment.joints import SIDES
from alohas2r.errors import Alohas2rError, BackendUnavailable, RobotFault
from alohas2r.robots.dynamixel.arm import IDS, DynamixelConfig
from alohas2r.robots.dynamixel.bus import Bus, check_servos, discover
from alohas2r.robots.dynamixel.registers import (
    HARDWARE_ERROR,
    MODEL_NAMES,
    TEMPERATURE,
    describe_error,
)

Status = Literal["pass", "warn", "fail"]
# Packages of each extra that something does not work without, by the name they are imported as.
PACKAGES = {
    "": ("mujoco", "numpy", "onnxruntime", "rich", "typer"),
    "train": ("av", "brax", "flax", "jax", "matplotlib", "onnx", "optax", "orbax", "tensorboardX"),
    "export": ("jax2onnx",),
    "robot": ("dynamixel_sdk", "msgpack", "pyrealsense2", "websockets"),
}
LATENCY_MS = 1  # of the USB adapter; its default of 16 takes a third of a control step
ADAPTERS = pathlib.Path("/sys/bus/usb-serial/devices")
TOO_HOT_C = 60
# Older firmware lacks Drive_Mode, without which three joints of each arm turn the wrong way.
# Source: ROBOTIS e-Manual, XM540-W270, Drive Mode (10): available after firmware version 38.
LEAST_FIRMWARE = 38


@dataclasses.dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
      name: what.
      status: "pass", "warn": some things do not work, "fail": nothing that needs it does.
      text: what was found.
      remedy: what to do; "" if nothing.
    """

    name: str
    status: Status
    text: str
    remedy: str = ""


def examine(
    ports: Sequence[str] | None = None,
    policy: str | os.PathLike[str] | None = None,
    cameras: Sequence[str] | None = None,
) -> list[Line]:
    """Looks at everything: machine, packages, GL, GPU, ports, servos, cameras, policy.

    What nobody asked for may be absent: without `ports`, `cameras` or `policy`, a machine with
    nothing attached gets warnings, no failures.

    Args:
      ports: serial ports of the left and the right arm, which then must work.
      policy: an exported policy, which then must be sound.
      cameras: serial numbers of the left and the right camera, which then must be there.
    """
    checks: list[Callable[[], Iterator[Line]]] = [
        machine,
        packages,
        gl,
        gpu,
        lambda: arms(ports),
        lambda: wrist_cameras(cameras),
        lambda: artifact(policy),
    ]
    return [line for look in checks for line in look()]


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
    for extra, names in PACKAGES.items():
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        label = f"packages [{extra}]" if extra else "packages"
        wanted = f"alohas2r[{extra}]" if extra else "alohas2r"
        if missing:
            status: Status = "warn" if extra else "fail"
            yield Line(label, status, f"missing: {', '.join(missing)}", f"pip install '{wanted}'")
        else:
            yield Line(label, "pass", ", ".join(_version(name) for name in names))


def _version(module: str) -> str:
    known = importlib.metadata.packages_distributions().get(module, [module])
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
        yield from _servos(side, port)


def latency(side: str, path: pathlib.Path) -> Iterator[Line]:
    """Looks how long a USB adapter collects bytes before it hands them on."""
    timer = ADAPTERS / path.resolve().name / "latency_timer"
    label = f"{side} latency timer"
    if not timer.exists():
        yield Line(label, "warn", "unknown: no USB adapter of FTDI", "Nothing, if it is no U2D2.")
        return
    found = int(timer.read_text())
    slow = found > LATENCY_MS
    remedy = f"echo {LATENCY_MS} | sudo tee {timer}; the udev rule in docs/deploy.md makes it last"
    yield Line(label, "fail" if slow else "pass", f"{found} ms", remedy if slow else "")


def _servos(side: str, port: str) -> Iterator[Line]:
    label = f"{side} servos"
    remedy = "Check power, cables along the chain, ids and the baud rate (1 Mbps)."
    try:
        # A slow adapter is reported above; here it shall not look like dead servos.
        with Bus(port, reply_timeout_s=0.05) as bus:
            found = discover(bus)
            check_servos(found, port)
            errors = bus.read_all(IDS, HARDWARE_ERROR)
            degrees = bus.read_all(IDS, TEMPERATURE)
    except BackendUnavailable as error:
        yield Line(label, "warn", str(error), "pip install 'alohas2r[robot]'")
        return
    except RobotFault as fault:
        yield Line(label, "fail", str(fault), remedy)
        return
    versions = sorted({servo.firmware for servo in found})
    models = sorted({MODEL_NAMES[servo.model] for servo in found})
    text = f"{len(found)} of {len(IDS)}, {' and '.join(models)}, firmware {versions}"
    old = versions[0] < LEAST_FIRMWARE
    newer = f"Update the firmware to {LEAST_FIRMWARE} or later with Dynamixel Wizard."
    yield Line(label, "fail" if old else "pass", text, newer if old else "")
    if len(versions) > 1:
        remedy = "Bring all servos to the same firmware with Dynamixel Wizard."
        yield Line(f"{side} firmware", "warn", f"{versions} side by side", remedy)
    faulty = {servo: describe_error(bits) for servo, bits in errors.items() if bits}
    if faulty:
        text = ", ".join(f"servo {servo}: {error}" for servo, error in faulty.items())
        first = min(faulty)
        remedy = f"Support the arm, then: alohas2r torque-off --reboot {side}:{first} --anywhere"
        yield Line(f"{side} health", "fail", text, remedy)
    else:
        hottest = max(degrees.values(), default=0)
        hot = hottest >= TOO_HOT_C
        remedy = "Let it cool down; find out what it pushes against." if hot else ""
        yield Line(f"{side} health", "warn" if hot else "pass", f"at most {hottest} C", remedy)


def wrist_cameras(serials: Sequence[str] | None) -> Iterator[Line]:
    """Looks at the RealSense cameras: serial numbers, firmware, speed of their USB ports."""
    from alohas2r.robots.realsense.config import find_cameras

    try:
        found = find_cameras()
    except BackendUnavailable as error:
        yield Line("cameras", "fail" if serials else "warn", str(error), "as it says")
        return
    if not found:
        remedy = "Plug two D405 into USB 3 ports."
        yield Line("cameras", "fail" if serials else "warn", "none is plugged in", remedy)
        return
    for camera in found:
        text = f"{camera.name}, firmware {camera.firmware}, USB {camera.usb}"
        label = f"camera {camera.serial}"
        if not camera.usb.startswith("3"):
            yield Line(label, "fail", text, "Use a USB 3 port and cable; both streams need it.")
        elif "D405" not in camera.name:
            yield Line(label, "warn", text, "The policy is made for the D405's near depth.")
        else:
            yield Line(label, "pass", text)
    for side, serial in zip(SIDES, serials or (), strict=False):
        if serial not in [camera.serial for camera in found]:
            text = f"{serial} is not plugged in"
            yield Line(f"{side} camera", "fail", text, "Check the serial number and the cable.")
    if len(found) < len(SIDES):
        remedy = "Two arms need two cameras: check the other one's cable."
        yield Line("cameras", "warn", f"{len(found)} of {len(SIDES)}", remedy)


def artifact(policy: str | os.PathLike[str] | None) -> Iterator[Line]:
    """Looks whether a policy loads, passes its own check, and takes what a robot has."""
    from alohas2r.deployment import terms

    if policy is None:
        remedy = "Name one to check it: alohas2r doctor --policy FILE"
        yield Line("policy", "pass", "none was named", remedy)
        return
    try:
        with terms.open_policy(policy, None) as found:
            wants = terms.terms(found)
            text = f"{policy}: {wants.hash[:12]}, pictures of {wants.size} x {wants.size}"
            yield Line("policy", "pass", f"{text}, verified to {found.verify():.1g}")
    except Alohas2rError as error:
        yield Line("policy", "fail", str(error), "Export it again, or name another file.")
