"""Picking up a block with one arm."""
