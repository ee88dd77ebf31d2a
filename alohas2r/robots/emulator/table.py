"""The emulated servo's control table."""

from __future__ import annotations

from typing import NamedTuple

from alohas2r.robots.dynamixel.registers import XL430_W250, XM430_W350, XM540_W270

FACTORY_P_GAIN = 800  # the gain that corresponds to the scene's actuators


class Field(NamedTuple):
    """One entry of the control table."""

    address: int
    size: int
    writable: bool
    default: int
    low: int = 0
    high: int = -1  # -1: whatever the size holds
    signed: bool = False


# Source: ROBOTIS e-Manual, control tables of the XM540-W270 and XM430-W350.
FIELDS: dict[str, Field] = {
    "Model_Number": Field(0, 2, False, 0),
    "Model_Information": Field(2, 4, False, 0),
    "Firmware_Version": Field(6, 1, False, 46),
    "ID": Field(7, 1, True, 1, 0, 252),
    "Baud_Rate": Field(8, 1, True, 3, 0, 7),
    "Return_Delay_Time": Field(9, 1, True, 250, 0, 254),
    "Drive_Mode": Field(10, 1, True, 0, 0, 0x0D),
    "Operating_Mode": Field(11, 1, True, 3, 0, 16),
    "Secondary_ID": Field(12, 1, True, 255, 0, 255),
    "Protocol_Type": Field(13, 1, True, 2, 1, 2),
    "Homing_Offset": Field(20, 4, True, 0, -1044479, 1044479, signed=True),
    "Moving_Threshold": Field(24, 4, True, 10, 0, 1023),
    "Temperature_Limit": Field(31, 1, True, 80, 0, 100),
    "Max_Voltage_Limit": Field(32, 2, True, 160, 95, 160),
    "Min_Voltage_Limit": Field(34, 2, True, 95, 95, 160),
    "PWM_Limit": Field(36, 2, True, 885, 0, 885),
    "Current_Limit": Field(38, 2, True, 2047, 0, 2047),
    "Velocity_Limit": Field(44, 4, True, 128, 0, 1023),
    "Max_Position_Limit": Field(48, 4, True, 4095, 0, 4095),
    "Min_Position_Limit": Field(52, 4, True, 0, 0, 4095),
    "Startup_Configuration": Field(60, 1, True, 0, 0, 3),
    "Shutdown": Field(63, 1, True, 52),
    "Torque_Enable": Field(64, 1, True, 0, 0, 1),
    "LED": Field(65, 1, True, 0, 0, 1),
    "Status_Return_Level": Field(68, 1, True, 2, 0, 2),
    "Registered_Instruction": Field(69, 1, False, 0),
    "Hardware_Error_Status": Field(70, 1, False, 0),
    "Velocity_I_Gain": Field(76, 2, True, 1920, 0, 16383),
    "Velocity_P_Gain": Field(78, 2, True, 100, 0, 16383),
    "Position_D_Gain": Field(80, 2, True, 0, 0, 16383),
    "Position_I_Gain": Field(82, 2, True, 0, 0, 16383),
    "Position_P_Gain": Field(84, 2, True, FACTORY_P_GAIN, 0, 16383),
    "Feedforward_2nd_Gain": Field(88, 2, True, 0, 0, 16383),
    "Feedforward_1st_Gain": Field(90, 2, True, 0, 0, 16383),
    "Bus_Watchdog": Field(98, 1, True, 0, 0, 127),
    "Goal_PWM": Field(100, 2, True, 885, -885, 885, signed=True),
    "Goal_Current": Field(102, 2, True, 0, -2047, 2047, signed=True),
    "Goal_Velocity": Field(104, 4, True, 0, -1023, 1023, signed=True),
    "Profile_Acceleration": Field(108, 4, True, 0, 0, 32767),
    "Profile_Velocity": Field(112, 4, True, 0, 0, 32767),
    "Goal_Position": Field(116, 4, True, 0, -1048575, 1048575, signed=True),
    "Realtime_Tick": Field(120, 2, False, 0),
    "Moving": Field(122, 1, False, 0),
    "Moving_Status": Field(123, 1, False, 0),
    "Present_PWM": Field(124, 2, False, 0, signed=True),
    "Present_Current": Field(126, 2, False, 0, signed=True),
    "Present_Velocity": Field(128, 4, False, 0, signed=True),
    "Present_Position": Field(132, 4, False, 0, signed=True),
    "Velocity_Trajectory": Field(136, 4, False, 0, signed=True),
    "Position_Trajectory": Field(140, 4, False, 0, signed=True),
    "Present_Input_Voltage": Field(144, 2, False, 120),
    "Present_Temperature": Field(146, 1, False, 35),
}
EEPROM_END = 64
TABLE_SIZE = 662
# Indirect addresses and the data behind them: (first address, first datum, how many).
INDIRECT = ((168, 224, 28), (578, 634, 28))
GOALS = ("Goal_PWM", "Goal_Current", "Goal_Velocity", "Goal_Position")
OPERATING_MODES = (0, 1, 3, 4, 5, 16)
FIELD_AT = {field.address: name for name, field in FIELDS.items()}
RAM_DEFAULTS = {
    name: field.default
    for name, field in FIELDS.items()
    if field.address >= EEPROM_END and field.writable
}
# The limits of the models, where they differ from the table above.
MODEL_LIMITS = {
    XM540_W270: {"Current_Limit": 2047, "Velocity_Limit": 128},
    XM430_W350: {"Current_Limit": 1193, "Velocity_Limit": 200},
    XL430_W250: {"Velocity_Limit": 265},
}
