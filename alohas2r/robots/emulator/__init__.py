"""An emulated bus of servos over simulated arms."""
