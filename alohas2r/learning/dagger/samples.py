"""What is learnt from, and what learning changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax


class LearnerState(NamedTuple):
    """What learning changes."""

    params: Any  # "head", and "encoder" where it learns
    averaged: Any  # likewise; empty if nothing is averaged
    optimizer: Any
    stats: Any  # running statistics of the features
    iteration: jax.Array  # [] int32 iterations done
    key: jax.Array  # [2] never changes


class Samples(NamedTuple):
    """Samples of B; pictures that the student lacks are None."""

    rgb: Any  # [B, C, H, W, 3] uint8, or once encoded as `student.encode` returns
    depth: Any  # [B, C, H, W] m
    features: jax.Array  # [B, F]
    switched: jax.Array  # [B] bool
    label: jax.Array  # [B, 14] the teacher's actions
    future: jax.Array  # [B, K, 14] its actions in the next steps
    known: jax.Array  # [B, K] bool, whether the episode and the iteration last so long
    weight: jax.Array  # [B, 14] of the squared errors
    objects: jax.Array  # [B, 2, 3] where they are from the fingertips, in the gripper's frame (m)
    present: jax.Array  # [B, 2] bool, not held out


def balanced(samples: Samples) -> Samples:
    """Divides the weights by their mean."""
    return samples._replace(weight=samples.weight / samples.weight.mean())
