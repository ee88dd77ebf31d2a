"""A SpaceMouse is read from its reports, as they come through a file descriptor."""

import os
import pathlib
import pty
import struct
import time

import numpy as np
import pytest

from alohas2r.errors import RobotFault
from alohas2r.robots import spacemouse
from alohas2r.robots.spacemouse import FULL, MULTI_AXIS, SILENT_S, UDEV_RULE, SpaceMouse, find


@pytest.fixture
def plugged():
    """A device whose reports stay apart, as those of hidraw do: where it is read, and what writes to it."""
    reads, writes = os.pipe2(os.O_DIRECT)
    yield f"/proc/self/fd/{reads}", writes
    os.close(reads)
    os.close(writes)


@pytest.fixture
def mouse(plugged):
    one = SpaceMouse(plugged[0])
    one.open()
    yield one, plugged[1]
    one.close()


def moved(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}h", *values)


def test_reports_say_how_the_cap_is_pushed(mouse):
    one, writes = mouse
    assert not one.read().axes.any()
    # As a SpaceNavigator says it: places and turns apart.
    os.write(writes, b"\x01" + moved(350, -350, 175))
    os.write(writes, b"\x02" + moved(0, 350, -350))
    half = (0.5 - spacemouse.DEAD_ZONE) / (1 - spacemouse.DEAD_ZONE)
    np.testing.assert_allclose(one.read().axes, [1, -1, half, 0, 1, -1])
    np.testing.assert_allclose(one.read().axes, [1, -1, half, 0, 1, -1])  # it stays so
    os.write(writes, b"\x01" + moved(0, 0, 0))
    np.testing.assert_allclose(one.read().axes, [0, 0, 0, 0, 1, -1])
    # As a wireless one says it: all in one. The newest counts.
    os.write(writes, b"\x01" + moved(350, 350, 350, 350, 350, 350))
    os.write(writes, b"\x01" + moved(-350, 0, 0, 350, 0, 0))
    np.testing.assert_allclose(one.read().axes, [-1, 0, 0, 1, 0, 0])


def test_the_ends_of_the_range_and_the_dead_zone(mouse):
    one, writes = mouse
    os.write(writes, b"\x01" + moved(-32768, 32767, 500, 0, 0, 0))
    np.testing.assert_array_equal(one.read().axes, [-1, 1, 1, 0, 0, 0])
    rest = int(FULL * spacemouse.DEAD_ZONE)
    os.write(writes, b"\x01" + moved(rest, -rest, rest + 2, 0, 0, -rest - 2))
    axes = one.read().axes
    assert not axes[[0, 1, 3, 4]].any()
    assert 0 < axes[2] < 0.01 > -axes[5] > 0  # no step where the zone ends


@pytest.mark.parametrize(
    "report",
    [b"\x01", b"\x01\x5e", b"\x01" + moved(350, 350) + b"\x01", b"\x02\x5e\x01", b"\x03\x01"],
)
def test_what_is_cut_off_or_of_another_kind_counts_for_nothing(mouse, report):
    one, writes = mouse
    os.write(writes, b"\x01" + moved(350, 0, 0))
    os.write(writes, report)
    os.write(writes, b"\x17\x64\x01" + bytes(10))  # how full the battery is
    pressed = one.read()
    np.testing.assert_array_equal(pressed.axes, [1, 0, 0, 0, 0, 0])
    assert pressed.buttons == ()


def test_a_button_counts_when_it_goes_down(mouse):
    one, writes = mouse
    for mask in (1, 3, 2, 0, 2):
        os.write(writes, bytes([3, mask, 0]))
    assert one.read().buttons == (0, 1, 1)
    assert one.read().buttons == ()


def test_one_that_falls_silent_leads_nothing(mouse):
    one, writes = mouse
    os.write(writes, b"\x01" + moved(350, 0, 0))
    assert one.read().axes[0] == 1
    time.sleep(SILENT_S / 2)
    os.write(writes, b"\x01" + moved(350, 0, 0))
    assert one.read().axes[0] == 1
    time.sleep(SILENT_S / 2 + 0.05)
    assert one.read().axes[0] == 1
    time.sleep(SILENT_S / 2 + 0.05)
    assert one.read().axes[0] == 0


def test_one_that_is_pulled_is_said_to_be_gone(plugged):
    path, writes = plugged
    one = SpaceMouse(path)
    with pytest.raises(RobotFault, match="is not open"):
        one.read()
    one.open()
    ends = os.dup(writes)
    os.write(writes, b"\x01" + moved(350, 0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), writes)
    os.close(ends)
    with pytest.raises(RobotFault, match="is gone"):
        one.read()
    one.close()
    # A device that is taken away answers with an error instead.
    here, there = pty.openpty()
    one = SpaceMouse(os.ttyname(there))
    one.open()
    one.read()
    os.close(here)
    with pytest.raises(RobotFault, match=r"is gone \((Input/output error|nothing)"):
        one.read()
    one.close()
    os.close(there)


def describe(folder: pathlib.Path, number: int, ids: str, descriptor: bytes) -> None:
    about = folder / f"hidraw{number}" / "device"
    about.mkdir(parents=True)
    (about / "uevent").write_text(f"DRIVER=hid-generic\nHID_ID={ids}\nHID_NAME=any\n")
    (about / "report_descriptor").write_bytes(descriptor)


def test_the_first_that_is_plugged_in_is_found(tmp_path):
    keyboard = b"\x05\x01\x09\x06\xa1\x01"
    with pytest.raises(RobotFault, match="No SpaceMouse is plugged in"):
        find(str(tmp_path))
    describe(tmp_path, 0, "0003:0000046D:0000C31C", keyboard)  # Logitech makes others
    describe(tmp_path, 1, "0003:0000256F:0000C652", keyboard)  # a receiver's other end
    describe(tmp_path, 2, "0003:00001234:0000C635", MULTI_AXIS + b"\xa1\x01")
    (tmp_path / "hidraw3").mkdir()
    with pytest.raises(RobotFault, match="No SpaceMouse is plugged in"):
        find(str(tmp_path))
    describe(tmp_path, 10, "0003:0000256F:0000C635", MULTI_AXIS + b"\xa1\x01")
    describe(tmp_path, 9, "0003:0000046D:0000C626", keyboard + MULTI_AXIS + b"\xa1\x01")
    assert find(str(tmp_path)) == "/dev/hidraw9"


def test_one_that_cannot_be_opened_is_said_in_a_line(tmp_path):
    with pytest.raises(RobotFault, match="cannot be opened"):
        SpaceMouse(str(tmp_path / "hidraw0")).open()
    place = tmp_path / "hidraw1"
    place.touch(mode=0o000)
    os.chmod(tmp_path, 0o711)
    for folder in (tmp_path.parent, tmp_path.parent.parent):
        os.chmod(folder, 0o711)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(RobotFault, match="may not be read") as refused:
            SpaceMouse(str(place)).open()
    finally:
        if root:
            os.seteuid(0)
    assert UDEV_RULE in str(refused.value)
