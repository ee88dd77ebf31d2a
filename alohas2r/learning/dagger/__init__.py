"""Distillation by online DAgger."""
