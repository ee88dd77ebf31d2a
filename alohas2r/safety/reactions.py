"""What follows from a finding."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from alohas2r.safety.config import FULL, SafetyConfig
from alohas2r.safety.monitor import Finding, Level


class Mode(enum.Enum):
    """What the arms are doing."""

    RUN = "run"
    HOLD = "hold"
    RETREAT = "retreat"
    ASLEEP = "asleep"
    FROZEN = "frozen"


class Reactions:
    """Decides, from findings, what the arms do next; it only gets more careful in one run.

    RUN and HOLD alternate as causes come and go. A hold that outlasts patience, and any graver
    finding, turns to RETREAT; nothing leads back. FROZEN holds for good.

    Attributes:
      mode: what to do now.
      reasons: the findings that led to each change of mode, in order.
    """

    # While retreating, the arms need neither the policy nor the cameras.
    _FOR_RETREAT = frozenset(
        {
            *("motor fault", "bad reading", "silent servo", "tracking error"),
            *("torque lost", "pair disagrees"),
        }
    )

    def __init__(self, config: SafetyConfig = FULL) -> None:
        """Starts in RUN."""
        self.config = config
        self.mode = Mode.RUN
        self.reasons: list[tuple[Mode, str]] = []
        self._held_since_s: float | None = None

    def update(self, findings: Sequence[Finding], now_s: float) -> Mode:
        """Takes the findings of a control step and returns what to do in it.

        Args:
          findings: everything that the monitor reported in this step.
          now_s: the monotonic clock.
        """
        if self.mode in (Mode.FROZEN, Mode.ASLEEP):
            return self.mode
        if self.mode is Mode.RETREAT:
            relevant = [one for one in findings if one.kind in self._FOR_RETREAT]
            # Nothing is left to fall back on: what would start a retreat now ends in a hold.
            grave = [one for one in relevant if one.level >= Level.RETREAT]
            return self._change(Mode.FROZEN, grave) if grave else self.mode
        worst = max(findings, key=lambda one: one.level, default=None)
        if worst is None or worst.level == Level.NOTE:
            self._held_since_s = None
            return self._change(Mode.RUN, []) if self.mode is Mode.HOLD else self.mode
        if worst.level == Level.FREEZE:
            return self._change(Mode.FROZEN, [worst])
        if worst.level == Level.RETREAT:
            return self._change(Mode.RETREAT, [worst])
        if self._held_since_s is None:
            self._held_since_s = now_s
        if now_s - self._held_since_s >= self.config.patience_s:
            return self._change(Mode.RETREAT, [worst])
        return self._change(Mode.HOLD, [worst])

    def retreat(self, reason: str) -> None:
        """Starts the retreat on request: the end of a run, or Ctrl-C."""
        if self.mode in (Mode.RUN, Mode.HOLD):
            self._change(Mode.RETREAT, [Finding("request", Level.RETREAT, reason)])

    def freeze(self, reason: str) -> None:
        """Holds for good: a bus is gone, a second Ctrl-C, a retreat that is stuck."""
        if self.mode is not Mode.FROZEN:
            self._change(Mode.FROZEN, [Finding("request", Level.FREEZE, reason)])

    def arrived(self) -> None:
        """Notes that the arms rest in the sleep pose, where torque may go off."""
        if self.mode is Mode.RETREAT:
            self._change(Mode.ASLEEP, [])

    def _change(self, mode: Mode, findings: Sequence[Finding]) -> Mode:
        if mode is not self.mode:
            text = "; ".join(f"{one.kind}: {one.text}" for one in findings)
            self.reasons.append((mode, text))
            self.mode = mode
        return mode
