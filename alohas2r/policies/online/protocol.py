"""The frozen numbers by which learning on a robot is compared."""

from __future__ import annotations

import dataclasses

from alohas2r.config import digest
from alohas2r.policies.online.config import AnyRun
from alohas2r.policies.online.insertion import TASK
from alohas2r.policies.online.spec import HOLD
from alohas2r.policies.online.tasks import START, TASKS, OnlineStart, OnlineTask
from alohas2r.sim.changed import NOMINAL


@dataclasses.dataclass(frozen=True)
class LearnProtocol:
    """Unaided, deterministic evaluations in the nominal simulation, counted by the truth; changed worlds are named.

    Attributes:
      name: never used for other numbers.
      evaluate_minutes: of acting between evaluations. evaluate_episodes: of each. final_episodes: of the last.
      tasks: with how long their episodes last. start: where those of one arm begin; insertions begin as in eval-v1.
      hold: control steps of a decision.
    """

    name: str = "learn-v1"
    evaluate_minutes: float = 5.0
    evaluate_episodes: int = 20
    final_episodes: int = 200
    tasks: tuple[OnlineTask, ...] = (TASKS["reach"], TASKS["pick"])
    start: OnlineStart = START
    hold: int = HOLD

    @property
    def hash(self) -> str:
        """Identifies the numbers."""
        return digest(self)[:16]


LEARN_V1 = LearnProtocol()
LEARN_INSERT_V1 = LearnProtocol(name="learn-insert-v1", tasks=(TASKS[TASK],), hold=1)


def protocol_of(run: AnyRun) -> LearnProtocol:
    """Returns a task's protocol, or what a run's settings, arms and changed world make of it under another name."""
    config, world, task = run.config, run.world, run.spec.task
    rules = LEARN_INSERT_V1 if task == TASK else LEARN_V1
    other = dataclasses.replace(
        rules,
        evaluate_minutes=config.evaluate_minutes,
        evaluate_episodes=config.evaluate_episodes,
        final_episodes=config.final_episodes,
    )
    name = rules.name if other == rules else f"{rules.name}+modified"
    if world != NOMINAL:
        name += f"+world({world})"
    if run.real:  # placed by a person, judged by the reward
        name += f"+{run.robot}"
    return dataclasses.replace(other, name=name)
