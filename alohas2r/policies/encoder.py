"""Trained colour encoders."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from flax import traverse_util

from alohas2r.core.types import Array, JsonObject, PyTree
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.networks.vision import Encoder


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderArtifact:
    """A trained colour encoder.

    Attributes:
      filters: of the three convolutions. size: side of the pictures that it was trained on (pixels).
      params: of networks.vision.Encoder.
      trained: how.
    """

    file: ClassVar[str] = "encoder.json"
    called: ClassVar[str] = "encoder"
    made_by: ClassVar[str] = "alohas2r pretrain-encoder"
    output: ClassVar[str] = "outputs"

    filters: tuple[int, int, int]
    size: int
    params: PyTree
    trained: JsonObject

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """Parameters by name."""
        flat = traverse_util.flatten_dict(dict(self.params), sep="/")
        return {str(name): np.asarray(value) for name, value in flat.items()}

    @property
    def hash(self) -> str:
        """Identifies what the encoder computes."""
        digest = hashlib.sha256(json.dumps([self.filters, self.size]).encode())
        for name, value in sorted(self.weights.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def encode(self, rgb: Array) -> np.ndarray:
        """Encodes pictures [N, H, W, 3] uint8 -> [N, filters[-1]]."""
        outputs = Encoder(self.filters).apply(
            {"params": self.params}, vision_network.scale_rgb(rgb)
        )
        return np.asarray(outputs)

    def describe(self) -> JsonObject:
        """Returns what encoder.json says of it."""
        return {"kind": "encoder", "filters": list(self.filters), "size": self.size}

    @classmethod
    def build(cls, description: JsonObject, weights: Mapping[str, np.ndarray]) -> EncoderArtifact:
        """Makes an encoder of its description and weights."""
        first, second, third = (int(count) for count in description["filters"])
        params = traverse_util.unflatten_dict(dict(weights), sep="/")
        size, trained = int(description["size"]), dict(description["trained"])
        return cls((first, second, third), size, params, trained)

    def check_inputs(self, recorded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the recorded pictures, "rgb" [T, H, W, 3] uint8."""
        return {"rgb": np.asarray(recorded["rgb"])}

    def answer(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns what recorded pictures are encoded to, [T, filters[-1]]."""
        return self.encode(rows["rgb"])
