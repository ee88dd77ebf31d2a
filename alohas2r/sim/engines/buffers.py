"""Sizes of the buffers that engines on GPUs set aside beforehand."""

from __future__ import annotations

import dataclasses

from alohas2r.config import check


@dataclasses.dataclass(frozen=True)
class BufferConfig:
    """Sizes of the buffers of the engine `warp`; the engine `cpu` needs none.

    Where they are too small, an error says what to set.

    Attributes:
      contacts: contacts of one simulation, on average over all; 0 for what the scene needs.
      constraints: constraint rows of one simulation; 0 for what the scene needs.
    """

    contacts: int = 0
    constraints: int = 0

    def __post_init__(self) -> None:
        check(0 <= self.contacts <= 100_000, "contacts must be in 0..100000")
        check(0 <= self.constraints <= 100_000, "constraints must be in 0..100000")
