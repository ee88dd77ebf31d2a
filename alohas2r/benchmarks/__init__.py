"""Measures speed: physics, rendering, distillation, latency, GPUs."""
