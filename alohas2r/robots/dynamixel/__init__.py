"""Arms of Dynamixel servos on serial buses."""
