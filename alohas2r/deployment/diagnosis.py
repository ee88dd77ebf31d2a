"""What is said about the servos of an arm: one line for each thing looked at. Nothing is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from alohas2r.errors import BackendUnavailable, RobotFault
from alohas2r.robots.dynamixel import setup
from alohas2r.robots.dynamixel.arm import IDS, SERVOS, DynamixelConfig
from alohas2r.robots.dynamixel.bus import Bus, servo_text
from alohas2r.robots.dynamixel.discovery import (
    SLOW_REPLY_S,
    ServoInfo,
    check_servos,
    discover,
    misplaced,
)
from alohas2r.robots.dynamixel.registers import (
    CURRENT_LIMIT,
    CURRENT_UNIT_A,
    DRIVE_MODE,
    EEPROM_END,
    ERROR_REMEDIES,
    HARDWARE_ERROR,
    INPUT_VOLTAGE,
    LEAST_FIRMWARE,
    MODEL_NAMES,
    PRESENT_POSITION,
    TEMPERATURE,
    TORQUE_ENABLE,
    VOLTAGE_UNIT_V,
    describe_error,
    signed_value,
)

Status = Literal["pass", "warn", "fail"]
TOO_HOT_C = 60
# Of the 12 V supply; the loop retreats below 10.5 V. Source: ROBOTIS e-Manual, recommended voltage.
WEAK_V, LEAST_V, MOST_V = 11.3, 10.5, 15.0


@dataclasses.dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
      name: what.
      status: "pass", "warn": some things do not work, "fail": nothing that needs it does.
      text: what was seen.
      remedy: what to do; "" if nothing.
    """

    name: str
    status: Status
    text: str
    remedy: str = ""


def examine_arm(side: str, port: str) -> Iterator[Line]:
    """Looks at every servo of an arm: model, firmware, set-up, place, torque, health, supply."""
    label = f"{side} servos"
    try:
        # A slow adapter is reported elsewhere; here it shall not look like dead servos.
        with Bus(port, reply_timeout_s=SLOW_REPLY_S) as bus:
            infos = discover(bus)
            old = any(servo.firmware < LEAST_FIRMWARE for servo in infos)
            if not old:
                check_servos(infos, bus)
            tables = setup.read_tables(bus, [servo.id for servo in infos])
    except BackendUnavailable as error:
        yield Line(label, "warn", str(error), "pip install 'alohas2r[robot]'")
        return
    except RobotFault as fault:
        yield Line(label, "fail", str(fault), "As it says; docs/deploy.md shows the wiring.")
        return
    yield from _models(side, infos)
    if {servo.id for servo in infos} == set(IDS):
        yield from _setup(side, port, tables)
        yield from _places(side, tables)
        yield from _torque(side, tables)
    yield from _supply(side, tables)
    yield from _health(side, tables)


def _models(side: str, infos: Sequence[ServoInfo]) -> Iterator[Line]:
    versions = sorted({servo.firmware for servo in infos})
    models = sorted({MODEL_NAMES.get(servo.model, str(servo.model)) for servo in infos})
    text = f"{len(infos)} of {len(IDS)}, {' and '.join(models)}, firmware {versions}"
    old = versions[0] < LEAST_FIRMWARE
    newer = f"Update the firmware to {LEAST_FIRMWARE} or later with Dynamixel Wizard."
    yield Line(f"{side} servos", "fail" if old else "pass", text, newer if old else "")
    if len(versions) > 1:
        remedy = "Bring all servos to the same firmware with Dynamixel Wizard."
        yield Line(f"{side} firmware", "warn", f"{versions} side by side", remedy)


def _setup(side: str, port: str, tables: Mapping[int, bytes]) -> Iterator[Line]:
    label, config = f"{side} set-up", DynamixelConfig()
    differences = setup.compare(tables, config)
    chosen = [one for one in differences if not one.rule.written]
    powered = any(signed_value(table, TORQUE_ENABLE) for table in tables.values())
    locked = [one for one in differences if powered and one.rule.register.address < EEPROM_END]
    if chosen:
        yield Line(label, "fail", setup.explain(port, chosen), setup.COMMAND)
    elif locked:
        remedy = f"Bring the arm to rest, then: alohas2r torque-off --side {side}"
        yield Line(label, "fail", f"{locked[0]}; torque is on, so it cannot be set", remedy)
    elif differences:
        text = f"{len(differences)} settings that each run writes at its start are not there yet"
        yield Line(label, "pass", text)
    else:
        yield Line(label, "pass", "as it must be")
    gripper = SERVOS[-1]
    amperes = signed_value(tables[gripper.id], CURRENT_LIMIT) * CURRENT_UNIT_A
    if not chosen and amperes < config.gripper_current_a:
        text = f"the gripper's Current_Limit allows {amperes:.2f} A: a grip weaker than in training"
        remedy = f"{setup.COMMAND} --full-grip raises it; parts that slip are a reason to."
        yield Line(f"{side} grip", "warn", text, remedy)


def _places(side: str, tables: Mapping[int, bytes]) -> Iterator[Line]:
    ticks = {
        servo.id: signed_value(tables[servo.id], PRESENT_POSITION)
        for servo in SERVOS
        # One that is not set up yet counts the other way.
        if signed_value(tables[servo.id], DRIVE_MODE) & 1 == servo.reverse
    }
    wrong = misplaced(ticks, side)
    text = "; ".join(wrong) or "within their turn, both servos of each joint agree"
    yield Line(f"{side} joints", "fail" if wrong else "pass", text, "As it says." if wrong else "")


def _torque(side: str, tables: Mapping[int, bytes]) -> Iterator[Line]:
    powered = [one for one, table in tables.items() if signed_value(table, TORQUE_ENABLE)]
    if powered:
        text = f"on at servos {', '.join(map(str, sorted(powered)))}: a run ended in a hold"
        remedy = f"Support the arm, then: alohas2r torque-off --side {side} --anywhere"
        yield Line(f"{side} torque", "warn", text, remedy)
    else:
        yield Line(f"{side} torque", "pass", "off")


def _supply(side: str, tables: Mapping[int, bytes]) -> Iterator[Line]:
    volts = {
        one: signed_value(data, INPUT_VOLTAGE) * VOLTAGE_UNIT_V for one, data in tables.items()
    }
    lowest, highest = min(volts, key=volts.__getitem__), max(volts.values())
    text = f"{volts[lowest]:.1f} V at {servo_text(lowest)}, at most {highest:.1f} V"
    status: Status = "pass"
    remedy = ""
    if volts[lowest] < LEAST_V or highest > MOST_V:
        status = "fail"
    elif volts[lowest] < WEAK_V:
        status = "warn"
    if status != "pass":
        remedy = (
            "Measure the supply (12 V, 10 A or more for each arm) and its plugs; a supply of 5 V, a"
            " thin cable or a shared supply sinks when the arms move."
        )
    yield Line(f"{side} supply", status, text, remedy)


def _health(side: str, tables: Mapping[int, bytes]) -> Iterator[Line]:
    errors = {one: signed_value(table, HARDWARE_ERROR) for one, table in sorted(tables.items())}
    faulty = {servo: bits for servo, bits in errors.items() if bits}
    if faulty:
        text = ", ".join(f"servo {servo}: {describe_error(bits)}" for servo, bits in faulty.items())
        first = min(faulty)
        cause = " ".join(
            remedy
            for bit, remedy in ERROR_REMEDIES.items()
            if any(bits & bit for bits in faulty.values())
        )
        remedy = (
            f"{cause} Support the arm, then: alohas2r torque-off --reboot {side}:{first} --anywhere"
        )
        yield Line(f"{side} health", "fail", text, remedy)
        return
    hottest = max(signed_value(table, TEMPERATURE) for table in tables.values())
    hot = hottest >= TOO_HOT_C
    remedy = "Let it cool down; find out what it pushes against." if hot else ""
    yield Line(f"{side} health", "warn" if hot else "pass", f"at most {hottest} C", remedy)
