"""Settings of the pick task."""

from __future__ import annotations

import dataclasses

from alohas2r.config import check
from alohas2r.sim.physics_randomization import BlockConfig
from alohas2r.tasks.stages import SecondStage
from alohas2r.tasks.starts import PickStart


@dataclasses.dataclass(frozen=True)
class PickReward:
    """Weights of the reward terms.

    The first five are paid only for progress: each step pays how far their sum exceeds its best so far. The
    others are paid every step.

    Attributes:
      reach: fingertips close to the grip point.
      bring: block close to the target, once the grip point has been reached.
      lifted: block's centre 5 cm above its start.
      grasped: both fingers press on the block, at its grip point.
      success: block within the thresholds of the curriculum stage.
      hold: every step: lifted block close to the target, on a wide and a narrow scale.
      stay: every step: success by the thresholds of the curriculum stage.
      grip: every step: a lifted block held close to its grip point; held near an edge it creeps out of the fingers.
      finger_force: every step: finger force when grasped, up to 7 N.
      no_table: every step: no contact of fingers or gripper with the table.
      slow: every step: slow joints.
      home: every step: near the home pose.
      finish: once, in the last step: lifted block close to the target, on the same scales as `hold`. Paid at the
        same time however long the grasp takes, so that it rewards a sure grasp rather than a quick one.
      pressed: every step: force of a finger that touches while the block is not grasped, in proportion up to
        `pressed_force`; a finger that has landed on top of a block must come up again.
      pressed_force: see pressed (N).
      crossed: paid once when the far end of the block crosses the middle of the table; ends the episode.
    """

    reach: float = 4.0
    bring: float = 16.0
    lifted: float = 0.5
    grasped: float = 0.5
    success: float = 0.5
    hold: float = 0.25
    stay: float = 0.1
    grip: float = 0.0
    finger_force: float = 0.007
    no_table: float = 0.005
    slow: float = 0.005
    home: float = 0.001
    finish: float = 0.0
    pressed: float = 0.0
    pressed_force: float = 20.0
    crossed: float = -1.0


@dataclasses.dataclass(frozen=True)
class PickConfig:
    """The pick task.

    Attributes:
      steps: control steps per episode.
      start: distribution of starts.
      block: distribution of blocks.
      reward: weights.
      rotation_weight: of the rotation error against the position error in `bring`.
      stages: number of curriculum stages; position_mm and angle_deg: first and last thresholds.
      reach_distance: distance at which the grip point counts as reached (m).
      crossed_x: where the far end of the block must not go (m, world).
    """

    steps: int = 160
    start: PickStart = PickStart()
    block: BlockConfig = BlockConfig()
    reward: PickReward = PickReward()
    rotation_weight: float = 0.23
    stages: int = 5
    position_mm: tuple[float, float] = (40.0, 5.0)
    angle_deg: tuple[float, float] = (15.0, 2.5)
    reach_distance: float = 0.015
    crossed_x: float = 0.073

    def __post_init__(self) -> None:
        check(1 <= self.steps <= 10_000, f"steps must be in 1..10000, not {self.steps}")
        check(1 <= self.stages <= 100, f"stages must be in 1..100, not {self.stages}")
        check(0 <= self.rotation_weight <= 1, "rotation_weight must be in [0, 1]")


@dataclasses.dataclass(frozen=True)
class RefineConfig(SecondStage[PickConfig]):
    """The second stage of picking, on harder blocks.

    Attributes:
      weights: relative frequency of equal parts of the blocks' range of sizes, from thin to wide.
      reward: weights of the reward.
    """

    weights: tuple[float, ...] = (4.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 4.0, 6.0)
    reward: PickReward = PickReward(hold=0.02, stay=0.01, grip=0.03, finish=40.0)

    def task(self, task: PickConfig) -> PickConfig:
        """Returns the task on this stage's blocks, with its reward."""
        block = dataclasses.replace(task.block, skew=1.0, weights=self.weights)
        return dataclasses.replace(task, block=block, reward=self.reward)
