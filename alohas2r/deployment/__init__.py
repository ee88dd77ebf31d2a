"""Runs a policy on a robot, and looks at the run afterwards."""
