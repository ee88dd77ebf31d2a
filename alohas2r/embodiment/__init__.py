"""The contract between simulation and robot, in NumPy alone."""
