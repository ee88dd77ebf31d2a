"""What the monitor makes of streams, servos and actions that are not what they seem."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from alohas2r.deployment.loop import start_pose
from alohas2r.robots.base import Frame, Proprio, ServoFault
from alohas2r.safety.monitor import Finding, Level, Monitor
from alohas2r.safety.reactions import Mode, Reactions

HOME = start_pose()


def reading(**changes: object) -> Proprio:
    zeros = np.zeros(14)
    calm = Proprio(
        time_s=0.0,
        position=HOME,
        velocity=zeros,
        current=zeros,
        age_s=zeros,
        temperature_c=np.full(14, 40.0),
        voltage_v=np.full(14, 12.0),
        hardware_error=np.zeros(14, int),
        torque=np.ones(14, bool),
        pair_gap=zeros,
    )
    return dataclasses.replace(calm, **changes)  # pyright: ignore[reportArgumentType]


def with_one(value: float, others: np.ndarray, joint: int = 2) -> np.ndarray:
    changed = others.copy()
    changed[joint] = value
    return changed


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"torque": with_one(0, np.ones(14, bool))}, "torque lost"),
        ({"torque": with_one(0, np.ones(14, bool), 13)}, "torque lost"),  # a gripper's, too
        ({"pair_gap": with_one(0.15, np.zeros(14))}, "pair disagrees"),
        ({"pair_gap": with_one(-0.15, np.zeros(14), 8)}, "pair disagrees"),
    ],
)
def test_torque_that_went_off_and_pairs_that_disagree_hold_the_arms(change, kind: str) -> None:
    monitor = Monitor()
    assert monitor.proprio(reading(), HOME) == []
    (finding,) = monitor.proprio(reading(**change), HOME)
    assert (finding.kind, finding.level) == (kind, Level.FREEZE)
    assert Reactions().update([finding], 0.0) is Mode.FROZEN
    # Arms that are not powered have no torque, and a person may turn a joint by hand.
    assert monitor.proprio(reading(**change), None) == []


def test_what_is_not_known_is_neither_hot_nor_weak_nor_off() -> None:
    unknown = np.full(14, np.nan)
    silent = reading(temperature_c=unknown, voltage_v=unknown, torque=None, pair_gap=None)
    assert Monitor().proprio(silent, HOME) == []
    half = with_one(9.0, unknown)
    assert [one.kind for one in Monitor().proprio(reading(voltage_v=half), HOME)] == ["low voltage"]


class Show:
    """Pictures of a live, noisy camera whose left one has a fault."""

    def __init__(self, fault: Callable[[Frame, Frame], Frame]) -> None:
        self.fault = fault
        self.rng = np.random.default_rng(0)
        self.first: Frame | None = None

    def frame(self, step: int) -> Frame:
        rgb = self.rng.integers(0, 255, (32, 32, 3), np.uint8)
        depth = self.rng.uniform(0.1, 0.3, (32, 32)).astype(np.float32)
        return Frame(rgb, depth, 0.05 * step, step, 0.05 * step, step)

    def __call__(self, step: int) -> dict[str, Frame]:
        left = self.frame(step)
        self.first = self.first or left
        return {"left": self.fault(left, self.first), "right": self.frame(step)}


def change(**what: Callable[[Frame, Frame], object]) -> Callable[[Frame, Frame], Frame]:
    def made(now: Frame, first: Frame) -> Frame:
        values = {name: one(now, first) for name, one in what.items()}
        return dataclasses.replace(now, **values)  # pyright: ignore[reportArgumentType]

    return made


FAULTS = {
    "colour frozen": (change(rgb=lambda now, first: first.rgb), "frozen camera", "colour"),
    "depth frozen": (change(depth=lambda now, first: first.depth), "frozen camera", "depth"),
    "colour number": (change(number=lambda now, first: first.number), "frozen camera", "colour"),
    "depth number": (
        change(depth_number=lambda now, first: first.number),
        "frozen camera",
        "depth",
    ),
    "colour old": (change(time_s=lambda now, first: first.time_s), "stale camera", "colour"),
    "depth old": (change(depth_time_s=lambda now, first: first.time_s), "stale camera", "depth"),
    "colour black": (change(rgb=lambda now, first: 0 * now.rgb), "black camera", "colour"),
    "depth unknown": (change(depth=lambda now, first: 0 * now.depth), "black camera", "depth"),
    "depth negative": (change(depth=lambda now, first: -now.depth), "broken depth", "depth"),
    "depth in mm": (change(depth=lambda now, first: 1000 * now.depth), "broken depth", "depth"),
    "depth no number": (change(depth=lambda now, first: now.depth / 0), "broken depth", "depth"),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", FAULTS)
def test_each_stream_of_a_camera_is_judged_for_itself(name: str) -> None:
    fault, kind, stream = FAULTS[name]
    show, monitor = Show(fault), Monitor()
    found: list[Finding] = []
    for step in range(8):
        position = HOME + 0.02 * step * (np.arange(14) % 7 == 0)
        found += monitor.frames(show(step), position, 0.05 * step, approaching=False)
    assert {one.kind for one in found} == {kind}
    assert all(f"the left camera's {stream}" in one.text for one in found)
    assert all(one.level is Level.HOLD for one in found)


def test_a_stream_that_is_shown_twice_is_no_finding() -> None:
    """A camera at 30 Hz whose picture was dropped once."""
    show, monitor = Show(lambda now, first: now), Monitor()
    kept: dict[str, Frame] = {}
    for step in range(12):
        if step % 3 != 2:
            kept = show(step)
        position = HOME + 0.02 * step * np.ones(14)
        assert monitor.frames(kept, position, 0.05 * step, approaching=False) == []


def test_actions_in_other_units_are_bad_actions() -> None:
    monitor = Monitor()
    assert monitor.action(np.linspace(-1, 1, 14)) == []
    (finding,) = monitor.action(HOME)  # joint targets
    assert finding.kind == "bad action"
    assert "reaches 1.5, not within -1 to 1" in finding.text


def test_pictures_tell_swapped_cameras_during_the_approach_only() -> None:
    rng = np.random.default_rng(0)
    still = rng.integers(0, 200, (32, 32, 3))
    for approaching in (False, True):
        monitor, position = Monitor(), HOME.copy()
        found: list[Finding] = []
        for step in range(16):
            position = position.copy()
            position[0] += 0.02
            frames = {}
            for side, moving in (("left", False), ("right", True)):
                shown = np.roll(still, step * moving, axis=1) + rng.integers(0, 6, still.shape)
                depth = rng.uniform(0.1, 0.3, (32, 32)).astype(np.float32)
                rgb = np.clip(shown, 0, 255).astype(np.uint8)
                frames[side] = Frame(rgb, depth, 0.05 * step, step)
            found += monitor.frames(frames, position, 0.05 * step, approaching)
        assert bool(found) == approaching
        if found:
            assert "serial numbers are swapped, or the arms' serial ports" in found[0].text


def test_pictures_of_noise_swap_nothing() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):  # approaches
        monitor, position = Monitor(), HOME.copy()
        for step in range(12):
            position = position.copy()
            position[0] += 0.02
            frames = {}
            for side in ("left", "right"):
                rgb = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                depth = rng.uniform(0.1, 0.3, (8, 8)).astype(np.float32)
                frames[side] = Frame(rgb, depth, 0.05 * step, step)
            assert monitor.frames(frames, position, 0.05 * step) == []


@pytest.mark.parametrize("kind", ["torque lost", "pair disagrees", "motor fault"])
def test_a_fault_of_the_hardware_ends_a_retreat_in_a_hold(kind: str) -> None:
    reactions = Reactions()
    reactions.retreat("the run is over")
    assert reactions.update([Finding(kind, Level.FREEZE, "it is gone")], 0.0) is Mode.FROZEN


def test_a_servo_that_shut_down_is_named_with_what_to_do() -> None:
    fault = ServoFault("left", 5, "elbow_shadow", "overload")
    bits = with_one(0x20, np.zeros(14, int))
    (finding,) = Monitor().proprio(reading(hardware_error=bits, servo_faults=(fault,)), None)
    assert "left servo 5 (elbow_shadow) reports overload" in finding.text
    assert finding.text.endswith("torque-off --anywhere --reboot left:5")
