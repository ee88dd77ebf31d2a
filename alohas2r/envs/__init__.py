"""Batched environments: physics, actuation, noise, senses."""
