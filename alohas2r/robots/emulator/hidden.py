"""What an emulated robot hides: it differs from the simulated one as `sim.variation` says, and nothing tells how."""

from __future__ import annotations

import collections
import dataclasses

import mujoco
import numpy as np

from alohas2r.config import check
from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.sim import changed, scene, variation
from alohas2r.sim.changed import NOMINAL_PEG_MM, WorldParams
from alohas2r.sim.variation import NEUTRAL, Robots, VariationConfig

STILL = "base_m", "base_deg", "table_m"  # of a variation, which the pictures would not show
MOST_DELAY_S = 0.5


@dataclasses.dataclass(frozen=True)
class HiddenConfig:
    """From which robots an emulated one is drawn.

    Attributes:
      variation: the ranges; those of bases and table must be neutral, since its cameras draw the scene's own. Delays of
        readings and of what is seen have no effect: its buses and cameras have their own.
      seed: of the draw.
      command_delay_s: of commands, on top of what is drawn.
      peg_mm: side of the square section of the peg that lies there (mm).
    """

    variation: VariationConfig = NEUTRAL
    seed: int = 0
    command_delay_s: float = 0.0
    peg_mm: float = NOMINAL_PEG_MM

    def __post_init__(self) -> None:
        for name in STILL:
            check(
                getattr(self.variation, name) == getattr(NEUTRAL, name),
                f"{name} of an emulated robot must stay {getattr(NEUTRAL, name)}: its cameras draw the scene's own",
            )
        check(
            0 <= self.command_delay_s <= MOST_DELAY_S,
            f"command_delay_s = {self.command_delay_s} must lie in 0..{MOST_DELAY_S} s",
        )
        _ = self.world  # raises if the peg is out of range

    @property
    def world(self) -> WorldParams:
        """What lies there."""
        return WorldParams(peg=self.peg_mm)


def draw(config: HiddenConfig) -> Robots:
    """Returns the one robot that a configuration hides."""
    uniform = np.random.default_rng(config.seed).random((1, variation.VARIATION_DRAWS))
    return variation.sample(scene.load("insert"), config.variation, uniform)


class Hidden:
    """The hidden robot between servos and physics; joints [14], left arm first, rad and m.

    Attributes:
      scale, offset: [14] a reading is scale * what is + offset.
    """

    def __init__(self, config: HiddenConfig, model: mujoco.MjModel) -> None:
        """Draws the robot and changes the model's joints and actuators accordingly."""
        robots = draw(config)
        changed.resize_peg(config.world, scene.load("insert"), model)
        held = robots.held
        self.offset = np.asarray(held.offset[0], np.float64)
        self.scale = np.asarray(held.scale[0], np.float64)
        self._play = np.asarray(held.backlash[0], np.float64) / 2
        if config.variation.varies:
            fields = variation.apply(scene.load("insert"), {}, robots.drawn)
            for name, values in fields.items():
                getattr(model, name)[:] = values[0].reshape(getattr(model, name).shape)
            mujoco.mj_setConst(model, mujoco.MjData(model))
        delay_s = config.command_delay_s + float(held.action_delay[0]) * CONTROL_PERIOD_S
        self._steps = round(delay_s / model.opt.timestep)
        self._late: collections.deque[np.ndarray] = collections.deque()

    @property
    def late(self) -> bool:
        """Whether commands arrive late."""
        return self._steps > 0

    def reading(self, index: int, value: float) -> float:
        """Returns what a joint reads that is at `value`."""
        return float(self.scale[index] * value + self.offset[index])

    def actual(self, index: int, reading: float) -> float:
        """Returns where a joint is that reads `reading`."""
        return float((reading - self.offset[index]) / self.scale[index])

    def arrived(self, goal: np.ndarray) -> np.ndarray:
        """Takes the goals [14] of this physics step and returns those that have arrived."""
        if not self._steps:
            return goal
        if not self._late:
            self.hold(goal)
        self._late.append(goal.copy())
        return self._late.popleft()

    def hold(self, goal: np.ndarray, joints: np.ndarray | None = None) -> None:
        """Forgets goals that are under way: these [14] hold, of all joints or of some [14] bool."""
        if joints is None or not self._late:
            self._late = collections.deque([goal.copy() for _ in range(self._steps)])
            return
        for waiting in self._late:
            waiting[joints] = goal[joints]

    def played(self, target: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Returns the targets [14] that take hold: within its play, a joint is not driven."""
        return target - np.clip(target - position, -self._play, self._play)
