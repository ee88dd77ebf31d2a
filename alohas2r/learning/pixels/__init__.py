"""Policies by reinforcement learning from wrist depth."""
