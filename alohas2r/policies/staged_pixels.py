"""Two policies from pixels, and the switch between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np

from alohas2r.core.types import Array
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies.spec import StagedPixelsSpec, StudentSpec, staged_pixels_spec
from alohas2r.policies.switch import Switch
from alohas2r.policies.vision import PixelPolicy, StudentPolicy


class StagedPixelsPolicy(StudentPolicy):
    """A pick policy from pixels drives each arm until the switch, then an insertion policy from pixels drives both.

    Its weights are those of both, "pick/..." and "insert/...".
    """

    called: ClassVar[str] = "staged policy from pixels"
    made_by: ClassVar[str] = "alohas2r train-pixels --phase insert"

    @classmethod
    def join(
        cls,
        pick: PixelPolicy,
        insert: PixelPolicy,
        switch: Switch,
        targets: Array,
        trained: Mapping[str, object],
    ) -> Self:
        """Returns both as one.

        Args:
          pick: of one arm. insert: of both. switch: when the second takes over.
          targets: [2, 3] where each arm brings its object, in its base frame (m).
          trained: how it was made, for policy.json.

        Raises:
          ArtifactError: they do not go together.
        """
        try:
            spec = staged_pixels_spec(pick.spec, insert.spec, switch, targets)
        except ConfigError as error:
            raise ArtifactError(f"The two policies cannot be one: {error}") from error
        weights = {f"pick/{name}": value for name, value in pick.weights.items()}
        weights |= {f"insert/{name}": value for name, value in insert.weights.items()}
        return cls(spec, weights, trained)

    @classmethod
    def shapes(cls, spec: StudentSpec) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of both parts' weights."""
        assert isinstance(spec, StagedPixelsSpec)
        parts = {"pick": spec.pick, "insert": spec.insert}
        return {
            f"{part}/{name}": shape
            for part, own in parts.items()
            for name, shape in StudentPolicy.shapes(own).items()
        }

    @property
    def switch(self) -> Switch:
        """When the second takes over."""
        return self.spec.switch

    @property
    def normalization(self) -> tuple[np.ndarray, np.ndarray]:
        """That of the insertion policy."""
        return self.weights["insert/mean"], self.weights["insert/std"]
