"""Sweeps: one training command over settings and seeds, resumable, with the worst stopped early."""
