"""Robots and cameras, real, emulated and simulated."""
