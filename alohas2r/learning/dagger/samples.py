"""What is learnt from, and what learning changes."""

from __future__ import annotations

from typing import NamedTuple

import jax

from alohas2r.core.types import Array, PyTree


class LearnerState(NamedTuple):
    """What learning changes."""

    params: PyTree  # "head", and "encoder" where it learns
    averaged: PyTree  # likewise; empty if nothing is averaged
    optimizer: PyTree
    stats: PyTree  # running statistics of the features
    iteration: jax.Array  # [] int32 iterations done
    key: jax.Array  # [2] never changes


class Learnt(NamedTuple):
    """What a gradient step changes."""

    params: PyTree
    averaged: PyTree
    optimizer: PyTree


class Samples(NamedTuple):
    """Samples of B; pictures that the student lacks are None."""

    rgb: Array  # [B, C, H, W, 3] uint8 (of pairs 4 channels), or once encoded as `networks.vision.encode` returns
    depth: Array  # [B, C, H, W] m
    features: jax.Array  # [B, F]
    switched: jax.Array  # [B] bool
    label: jax.Array  # [B, 14] the teacher's actions
    future: jax.Array  # [B, K, 14] its actions in the next steps
    known: jax.Array  # [B, K] bool, whether the episode and the iteration last so long
    weight: jax.Array  # [B, 14] of the squared errors
    objects: jax.Array  # [B, 2, 3] where they are from the fingertips, in the gripper's frame (m)
    present: jax.Array  # [B, 2] bool, not held out
    near: jax.Array | None = None  # [B, C, 8, 8] exact inverse depth, of students that see pairs


def balanced(samples: Samples) -> Samples:
    """Divides the weights by their mean."""
    return samples._replace(weight=samples.weight / samples.weight.mean())
