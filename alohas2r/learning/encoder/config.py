"""Settings of the encoder's training, and its presets."""

from __future__ import annotations

import dataclasses

from alohas2r.config import check
from alohas2r.errors import ConfigError, did_you_mean
from alohas2r.rendering.corruption import CorruptConfig
from alohas2r.rendering.looks.config import TransferConfig, find_looks

DATA = ("sim", "cifar10")
METHODS = ("supervised", "contrastive")
ROUND_STREAM, SHIFT_STREAM, ORDER_STREAM, WEIGHTS_STREAM, HELD_STREAM = range(5)
POSE_SCALE = 0.1  # m; size of one unit of the predicted positions
CHECK_ROWS = 8  # pictures in the artifact's check


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """A pretraining of the encoder.

    Attributes:
      data: "sim", or "cifar10".
      method: "supervised", or "contrastive" (bilinear InfoNCE on random crops with a momentum key encoder; source:
        Srinivas et al., CURL (2020); Zhan et al., FERM (2020)).
      rounds: rounds of new pictures; of CIFAR-10, passes over the training set.
      pictures: rendered anew in each round.
      passes: over a round's pictures.
      batch: pictures of a gradient step.
      learning_rate: of Adam at the start; it falls to nothing along a cosine.
      shift: crops move by up to so many pixels; 0 where positions are learnt.
      momentum: share of its past that the key encoder keeps in each step.
      held: pictures that are only for testing.
      size: side of rendered pictures (pixels).
      filters: of the three convolutions.
      corrupt: what the cameras do to rendered pictures.
      looks: of rendered pictures, as in `envs.vision.SensesConfig`: true for "today", or the name or the ranges of
        another set, whose sensors then take the place of `corrupt`.
      checkpoints: how many on the way, evenly spread.
    """

    data: str = "sim"
    method: str = "supervised"
    rounds: int = 100
    pictures: int = 8192
    passes: int = 2
    batch: int = 256
    learning_rate: float = 1e-3
    shift: int = 0
    momentum: float = 0.95
    held: int = 2048
    size: int = 32
    filters: tuple[int, int, int] = (32, 64, 64)
    corrupt: CorruptConfig = CorruptConfig()
    checkpoints: int = 20
    looks: bool | str | TransferConfig = True

    def __post_init__(self) -> None:
        find_looks(self.looks)
        check(self.looks is not False, "looks must be a set of looks, not false")
        for name, choices in (("data", DATA), ("method", METHODS)):
            value = getattr(self, name)
            check(value in choices, f"{name} must be one of {', '.join(choices)}, not '{value}'")
        for name in ("rounds", "passes", "batch", "checkpoints"):
            check(1 <= getattr(self, name) <= 10**6, f"{name} must be in 1..1e6")
        for name in ("pictures", "held"):
            value = getattr(self, name)
            check(2 <= value <= 10**6 and value % 2 == 0, f"{name} must be even, in 2..1e6")
        check(self.batch <= self.pictures, "batch must not exceed pictures")
        check(self.learning_rate > 0, "learning_rate must be > 0")
        check(0 <= self.shift <= 16, "shift must be in 0..16 pixels")
        check(0 <= self.momentum < 1, "momentum must be in [0, 1)")
        check(8 <= self.size <= 512, "size must be in 8..512 pixels")


PRESETS = {
    "default": PretrainConfig(),
    "quick": PretrainConfig(rounds=4, pictures=1024, batch=128, held=256, checkpoints=2),
}


def find_preset(name: str, data: str = "sim", method: str = "supervised") -> PretrainConfig:
    """Returns a preset.

    Raises:
      ConfigError: unknown preset, data or method.
    """
    if name not in PRESETS:
        raise ConfigError(f"Unknown preset '{name}'.{did_you_mean(name, PRESETS)}")
    preset = dataclasses.replace(PRESETS[name], data=data, method=method)
    if data == "cifar10":  # a round is one pass over 50,000 pictures
        return dataclasses.replace(preset, passes=1, shift=4)
    if method == "contrastive":
        return dataclasses.replace(preset, shift=4)
    return preset
