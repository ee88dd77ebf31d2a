"""The replay: features of what was seen, and what came of each decision, for returns over several of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from alohas2r.core.types import Array
from alohas2r.learning.online.experience import Closed, Row
from alohas2r.policies.online.encoder import look
from alohas2r.policies.online.spec import LearntSpec, OnlineSpec, SeeingSpec

# Pictures are learnt from as they are and shifted by one pixel each way (rows, columns).
SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
# Features, or a mapping of what was seen by name.
Shown: TypeAlias = Array


class Batch(NamedTuple):
    """Decisions to learn from.

    Attributes:
      features: [B, F], or where pictures are kept what was seen, by name, [B, ...].
      action: [B, A] that was executed, returns: [B] discounted rewards of up to n decisions.
      next_features: likewise, of where they led. discount: [B] of the value there; 0 where the task was done.
      demo: [B] whether the decision is a demonstration's.
    """

    features: Shown
    action: np.ndarray
    returns: np.ndarray
    next_features: Shown
    discount: np.ndarray
    demo: np.ndarray


class Replay:
    """Rows in the order in which they were seen; grows as needed.

    Args:
      spec: what learns. eyes: frozen weights that look at pictures.
      demos: whether its rows are demonstrations.
      pictures: whether pictures are kept instead of features, for an encoder that learns: "rgb" [H, W, 3] uint8,
        "depth" [H, W] m, and "felt" [31], what is not seen.
    """

    def __init__(
        self,
        spec: LearntSpec,
        eyes: Mapping[str, np.ndarray],
        demos: bool,
        pictures: bool = False,
    ) -> None:
        self._spec, self._eyes, self._demos = spec, eyes, demos
        self.size = 0
        size = 256
        self._pictures = pictures
        self._shifts = 1 if spec.given or pictures else len(SHIFTS)
        self._features: Array  # of numbers, or of pictures and what was felt
        if pictures:
            assert isinstance(spec, SeeingSpec)
            self._features = np.zeros((size, 1), _kept(spec))
        else:
            self._features = np.zeros((size, self._shifts, spec.features), np.float32)
        self._action = np.zeros((size, spec.actions), np.float32)
        self._reward = np.zeros(size, np.float32)
        self._terminated, self._closed = np.zeros(size, bool), np.zeros(size, bool)
        self._usable: list[int] = []  # rows whose outcome is known

    @property
    def decisions(self) -> int:
        """How many can be learnt from."""
        return len(self._usable)

    def add(self, rows: Sequence[Row | Closed]) -> None:
        """Appends what was read, in order."""
        for one in rows:
            if isinstance(one, Row):
                self._append(one)
            else:
                at = self.size - 1
                self._action[at], self._reward[at] = one.action, one.reward
                self._terminated[at], self._closed[at] = one.terminated, True
                self._usable.append(at)

    def _append(self, row: Row) -> None:
        if self.size == len(self._reward):
            for name in ("_features", "_action", "_reward", "_terminated", "_closed"):
                value = self.__dict__[name]
                self.__dict__[name] = np.concatenate([value, np.zeros_like(value)])
        if self._pictures:
            assert isinstance(self._spec, SeeingSpec)
            rgb, depth = (row.inputs[f"{self._spec.side}_{kind}"] for kind in ("rgb", "depth"))
            self._features[self.size, 0] = (rgb, depth, _felt(self._spec, row))
        elif isinstance(self._spec, OnlineSpec):
            self._features[self.size] = features_of(self._spec, self._eyes, row)
        else:
            self._features[self.size] = row.features
        self.size += 1

    def outcome(self, at: np.ndarray, steps: int, discount: float) -> tuple[np.ndarray, ...]:
        """Returns what came of decisions over up to so many steps.

        Args:
          at: [B] rows. steps: decisions. discount: of each.

        Returns:
          [B] discounted rewards; [B] the row where they led; [B] the discount of its value, 0 where the task was done.
        """
        returns, factor = np.zeros(len(at), np.float32), np.ones(len(at), np.float32)
        now, going = at.copy(), np.ones(len(at), bool)
        for _ in range(steps):
            going &= self._closed[now]  # what came of it is known
            returns += np.where(going, factor * self._reward[now], 0)
            done = going & self._terminated[now]
            factor = np.where(done, 0, np.where(going, factor * discount, factor))
            going &= ~done
            now = np.where(going, now + 1, now)
        return returns, now, factor.astype(np.float32)

    def sample(self, draw: np.random.Generator, count: int, steps: int, discount: float) -> Batch:
        """Draws decisions with replacement, each with a shift of its own."""
        at = np.asarray(self._usable)[draw.integers(0, len(self._usable), count)]
        shifts = draw.integers(0, self._shifts, (2, count))
        returns, reached, factor = self.outcome(at, steps, discount)
        return Batch(
            features=_by_name(self._features[at, shifts[0]]),
            action=self._action[at],
            returns=returns,
            next_features=_by_name(self._features[reached, shifts[1]]),
            discount=factor,
            demo=np.full(count, self._demos),
        )

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and standard deviation [F] of the features; of those that hardly vary, a spread of 0.01.

        A base's action among them stays as it is, and so does what an encoder that learns will see.
        """
        if self._pictures:
            values = self._features["felt"][: self.size, 0]
            seen = np.zeros(self._spec.features - values.shape[1], np.float32)
            mean = np.concatenate([seen, values.mean(0)])
            return mean, np.concatenate([seen + 1, np.maximum(values.std(0), np.float32(0.01))])
        values = self._features[: self.size, 0]
        mean, std = values.mean(0), np.maximum(values.std(0), 0.01).astype(np.float32)
        if self._spec.given:
            mean[-self._spec.actions :], std[-self._spec.actions :] = 0.0, 1.0
        return mean, std


def half_and_half(
    demos: Replay, own: Replay, draw: np.random.Generator, count: int, steps: int, discount: float
) -> Batch:
    """Draws half of a batch from demonstrations, half from own decisions; all from one if the other has none."""
    half = count // 2
    if not own.decisions or not demos.decisions:
        return (demos if demos.decisions else own).sample(draw, count, steps, discount)
    return _joined(
        demos.sample(draw, half, steps, discount),
        own.sample(draw, count - half, steps, discount),
    )


def all_together(
    demos: Replay, own: Replay, draw: np.random.Generator, count: int, steps: int, discount: float
) -> Batch:
    """Draws a batch from demonstrations and own decisions as if they lay in one replay."""
    total = demos.decisions + own.decisions
    share = int(draw.binomial(count, demos.decisions / total))
    if share in (0, count):
        return (demos if share else own).sample(draw, count, steps, discount)
    return _joined(
        demos.sample(draw, share, steps, discount),
        own.sample(draw, count - share, steps, discount),
    )


def _joined(one: Batch, other: Batch) -> Batch:
    """Returns two batches as one."""

    def both(first: Shown, second: Shown) -> Shown:
        if isinstance(first, dict):
            return {name: np.concatenate([first[name], second[name]]) for name in first}
        return np.concatenate([first, second])

    return Batch(*(both(*pair) for pair in zip(one, other, strict=True)))


def _kept(spec: SeeingSpec) -> np.dtype:
    """Returns what is kept of a row."""
    size, felt = spec.cameras.size, spec.features - spec.seen
    shown = [("rgb", np.uint8, (size, size, 3)), ("depth", np.float32, (size, size))]
    return np.dtype([*shown, ("felt", np.float32, (felt,))])


def _by_name(kept: np.ndarray) -> Shown:
    """Returns features as they are, pictures by name."""
    if kept.dtype.names is None:
        return kept
    return {name: np.ascontiguousarray(kept[name]) for name in kept.dtype.names}


def features_of(spec: OnlineSpec, eyes: Mapping[str, np.ndarray], row: Row) -> np.ndarray:
    """Returns the features of a row for each of SHIFTS, [S, F]."""
    rgb, depth = (row.inputs[f"{spec.side}_{kind}"] for kind in ("rgb", "depth"))
    several = [np.stack([_shifted(one, shift) for shift in SHIFTS]) for one in (rgb, depth)]
    seen = look(spec, eyes, several[0], several[1])
    felt = _felt(spec, row)
    return np.concatenate([seen, np.broadcast_to(felt, (len(SHIFTS), len(felt)))], 1).astype(
        np.float32
    )


def _felt(spec: OnlineSpec, row: Row) -> np.ndarray:
    """Returns what is not seen: what the arm feels, and what was executed lately."""
    return np.concatenate([spec.own(row.proprioception), row.recent.ravel()])


def _shifted(picture: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    """Moves a picture by whole pixels; its edges are repeated."""
    rows, columns = shift
    padded = np.pad(picture, ((1, 1), (1, 1), *[(0, 0)] * (picture.ndim - 2)), "edge")
    height, width = picture.shape[:2]
    return padded[1 - rows : 1 - rows + height, 1 - columns : 1 - columns + width]
