"""Worlds that nobody here wrote: any MJCF with two ALOHA arms and a table of names stands in for the robot."""
