"""Which servos are on a bus, and why one is not heard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from alohas2r.errors import RobotFault
from alohas2r.robots.dynamixel import adapter
from alohas2r.robots.dynamixel.arm import IDS, SERVO_BY_ID, SERVOS
from alohas2r.robots.dynamixel.bus import Bus, servo_text
from alohas2r.robots.dynamixel.registers import (
    BAUD_RATES,
    FIRMWARE_VERSION,
    LEAST_FIRMWARE,
    MODEL_NAMES,
    MODEL_NUMBER,
    RAD_PER_TICK,
    TICKS_PER_TURN,
    signed_value,
)

SLOW_REPLY_S = 0.05  # longer than any adapter's latency timer
WIZARD = "Set it with Dynamixel Wizard, with this servo alone on the adapter"
# Two servos of a joint that disagree by more press against each other. They are stiff: at 0.05 rad
# each is driven with an eighth of its voltage against its twin. Source: ROBOTIS e-Manual, Position PID
# Gain (84): P gain 800 is 6.25 of 885 steps of PWM a tick.
PAIR_ERROR_RAD = 0.05


class ServoInfo(NamedTuple):
    """A servo that answered."""

    id: int
    model: int
    firmware: int


def discover(bus: Bus, ids: Sequence[int] = IDS) -> list[ServoInfo]:
    """Returns which of the servos are there.

    Raises:
      RobotFault: the port is gone.
    """
    answers = bus.sync_read(ids, MODEL_NUMBER.address, FIRMWARE_VERSION.address + 1)
    return [
        ServoInfo(servo_id, signed_value(data, MODEL_NUMBER), signed_value(data, FIRMWARE_VERSION))
        for servo_id, data in sorted(answers.items())
    ]


def check_servos(servos: Sequence[ServoInfo], bus: Bus) -> None:
    """Compares the servos on a bus with those of an arm.

    Raises:
      RobotFault: one is missing or of another model, or its firmware is too old.
    """
    infos = {servo.id: servo for servo in servos}
    missing = [servo.id for servo in SERVOS if servo.id not in infos]
    if missing:
        raise RobotFault(explain_silence(bus, missing))
    wrong = [
        f"servo {servo.id} ({servo.name}) is model {infos[servo.id].model}, not {servo.model}"
        f" ({MODEL_NAMES[servo.model]})"
        for servo in SERVOS
        if infos[servo.id].model != servo.model
    ]
    if wrong:
        raise RobotFault(f"{bus.port}: {'; '.join(wrong)}. This is not a ViperX 300 S.")
    old = [servo_text(servo.id) for servo in servos if servo.firmware < LEAST_FIRMWARE]
    if old:
        raise RobotFault(
            f"{bus.port}: the firmware of {', '.join(old)} is older than {LEAST_FIRMWARE}, which"
            " knows no Drive_Mode: joints would turn the wrong way. Update it with Dynamixel Wizard."
        )


def explain_silence(bus: Bus, missing: Sequence[int]) -> str:
    """Says why servos are not heard, as far as that can be told from here.

    Raises:
      RobotFault: the port is gone.
    """
    names = ", ".join(f"{servo_id} ({SERVO_BY_ID[servo_id].name})" for servo_id in missing)
    text = f"{bus.port}: no answer from servo {names} of {len(SERVOS)}."
    with bus.patience(SLOW_REPLY_S):
        late = [servo.id for servo in discover(bus, missing)]
    if late:
        return (
            f"{bus.port}: the answers come too late, after more than {1000 * bus.reply_timeout_s:.0f}"
            " ms: the latency timer of the USB adapter stands at its default of 16 ms. Set it to"
            f" {adapter.LATENCY_MS} ms: {adapter.latency_remedy(bus.port)}."
        )
    astray = _at_other_rates(bus, missing)
    if astray:
        where = ", ".join(
            f"{servo_text(servo_id)} at {rate} baud" for servo_id, rate in astray.items()
        )
        return f"{text} It answers otherwise: {where}, not 1000000. {WIZARD}."
    if len(missing) == len(SERVOS):
        return (
            f"{text} Is the arm's power on (12 V at its power hub), and is this the arm's adapter?"
            " Ids must be 1..9 and the baud rate 1 Mbps."
        )
    heard = [servo_id for servo_id in IDS if servo_id not in missing]
    if min(missing) > max(heard):
        return (
            f"{text} All servos up to {max(heard)} answer: check the cable between"
            f" {servo_text(max(heard))} and {servo_text(min(missing))}, at both ends."
        )
    return (
        f"{text} Check its cables; a new servo has id 1 and 57600 baud, and two servos of one id"
        f" drown each other. {WIZARD}."
    )


def _at_other_rates(bus: Bus, missing: Sequence[int]) -> dict[int, int]:
    """Returns the missing servos that answer at another baud rate, and at which."""
    astray: dict[int, int] = {}
    for rate in BAUD_RATES.values():
        if rate == bus.baudrate or rate > 1_000_000:
            continue
        with bus.patience(SLOW_REPLY_S, rate):
            # A new servo has id 1, whatever it is to become.
            for servo in discover(bus, [*missing, 1]):
                astray[servo.id] = rate
    return astray


def pair_errors(ticks: Mapping[int, int]) -> dict[int, float]:
    """Returns, by the shadow's id, how far it says it is from its master (rad).

    Args:
      ticks: positions by id; a pair of which one is missing is left out.
    """
    return {
        servo.id: (ticks[servo.id] - ticks[servo.shadow_of]) * RAD_PER_TICK
        for servo in SERVOS
        if servo.shadow_of is not None and servo.id in ticks and servo.shadow_of in ticks
    }


def misplaced(ticks: Mapping[int, int], side: str) -> list[str]:
    """Returns what is wrong with where servos say they are: turned by whole turns, or at odds.

    Args:
      ticks: positions by id, read without torque.
      side: of which arm.
    """
    texts = []
    for servo_id, tick in sorted(ticks.items()):
        turns = tick // TICKS_PER_TURN
        if turns:
            beyond = tick if tick < 0 else tick - TICKS_PER_TURN + 1
            whole = abs(beyond) * 360 / TICKS_PER_TURN
            texts.append(
                f"{side} {servo_text(servo_id)} was turned past the end of its turn: it reads {tick},"
                f" not 0..{TICKS_PER_TURN - 1}, and would jump by a whole turn when torque goes on."
                f" Turn it back by hand by at least {whole:.0f} degrees, or, if its cable is not"
                " wound up, switch the arm's power off and on"
            )
    for shadow_id, error in pair_errors(ticks).items():
        master_id = SERVO_BY_ID[shadow_id].shadow_of
        if master_id is not None and abs(error) > PAIR_ERROR_RAD:
            texts.append(
                f"{side} {servo_text(master_id)} and its twin, {servo_text(shadow_id)}, are"
                f" {abs(error) * 57.29578:.1f} degrees apart and would work against each other:"
                " a horn has slipped, or one has another Homing_Offset (alohas2r setup-arms)"
            )
    return texts
