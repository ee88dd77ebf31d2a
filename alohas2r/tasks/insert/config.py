"""Settings of the insertion."""

from __future__ import annotations

import dataclasses

from alohas2r.config import check
from alohas2r.envs.noise import NoiseConfig
from alohas2r.policies.switch import Switch
from alohas2r.sim.objects import HOLE_HALF
from alohas2r.sim.physics_randomization import InsertRandomization, ObjectRanges
from alohas2r.tasks.stages import SecondStage
from alohas2r.tasks.starts import InsertStart

# Object rotations are noisier with two arms. Source: the published report.
INSERT_NOISE = NoiseConfig(object_angle_deg=7.5)


@dataclasses.dataclass(frozen=True)
class InsertReward:
    """Weights of the reward terms, all paid every step after the switch.

    Attributes:
      align: peg axis on the socket axis (lateral offset and angle).
      depth: peg end close to its final place, while aligned or inside.
      inserted: the peg is in and both objects are held.
      grip: both fingertips at their grip points.
      level: both objects in their nominal rotation.
      slow: slow joints. home: near the home pose.
      finish: once, in the last step, when both objects are held and the peg is in; a fifth of it for `depth`. Paid at
        the same time however long the insertion takes, so that it rewards a sure insertion rather than a quick one.
      dropped: paid once when an object falls or a grasp is lost; ends the episode.
      near: grippers nearer to each other than `near_distance`: all of it where they touch, in proportion between.
      near_distance: see near (m).
      pushed: force between a hand and the other hand's object, in proportion up to `pushed_force`, where they touch.
      pushed_force: see pushed (N).
    """

    align: float = 0.5
    depth: float = 1.5
    inserted: float = 2.0
    grip: float = 0.4
    level: float = 0.2
    slow: float = 0.1
    home: float = 0.02
    finish: float = 0.0
    dropped: float = -10.0
    near: float = -0.3
    near_distance: float = 0.06
    pushed: float = 0.0
    pushed_force: float = 20.0


@dataclasses.dataclass(frozen=True)
class InsertConfig:
    """The insertion task.

    Attributes:
      steps: control steps per episode.
      start: distribution of starts.
      physics: randomized physics.
      reward: weights.
      switch: when insertion takes over.
      inserted_x: depth of the peg's end in the socket's frame that counts as inserted (m).
      hole: half width of the hole (m).
      grip_distance: largest distance of fingertips from the grip point that counts as held (m).
      hold_steps: consecutive steps for `inserted`.
      fall_height: an object below this has fallen (m, world).
      tilt_deg: an object tilted further is lost (training).
      objects: lengths of pegs, widths of holes.
      inside: share of the peg's length that must be inside the socket to count as inserted; 0 to go by `inserted_x`
        and `hole` alone.
    """

    steps: int = 100
    start: InsertStart = InsertStart()
    physics: InsertRandomization = InsertRandomization()
    reward: InsertReward = InsertReward()
    switch: Switch = Switch()
    inserted_x: float = -0.030
    hole: float = HOLE_HALF
    grip_distance: float = 0.030
    hold_steps: int = 5
    fall_height: float = 0.07
    tilt_deg: float = 80.0
    objects: ObjectRanges = ObjectRanges()
    inside: float = 0.0

    def __post_init__(self) -> None:
        check(1 <= self.steps <= 10_000, f"steps must be in 1..10000, not {self.steps}")
        check(0 <= self.inside <= 0.8, f"inside must be in 0..0.8, not {self.inside}")
        check(1 <= self.hold_steps <= 100, f"hold_steps must be in 1..100, not {self.hold_steps}")

    @property
    def sized(self) -> bool:
        """Whether lengths of pegs and widths of holes matter."""
        return self.objects.vary or self.inside > 0


@dataclasses.dataclass(frozen=True)
class InsertRefineConfig(SecondStage[InsertConfig]):
    """The second stage of insertion.

    Attributes:
      reward: weights of the reward.
    """

    reward: InsertReward = InsertReward(
        align=0.05,
        depth=0.1,
        inserted=2.0,
        grip=0.05,
        level=0.02,
        slow=0.05,
        finish=40.0,
        near=-1.0,
    )

    def task(self, task: InsertConfig) -> InsertConfig:
        """Returns the task with this stage's reward."""
        return dataclasses.replace(task, reward=self.reward)
