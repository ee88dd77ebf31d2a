"""Picking up a block with one arm."""

GYMNASIUM = "BlockPicking"  # alohas2r/BlockPicking-v1
