"""The pick task as the registry has it."""

from __future__ import annotations

import numpy as np

from alohas2r import config
from alohas2r.envs.noise import NoiseConfig
from alohas2r.sim import physics_randomization
from alohas2r.sim.scene import Scene
from alohas2r.tasks.pick.config import PickConfig, RefineConfig
from alohas2r.tasks.pick.scoring import PickScorer, block_sizes
from alohas2r.tasks.pick.task import PickTask
from alohas2r.tasks.protocol import (
    EVAL_V1,
    EVAL_V2,
    EVAL_V3,
    TRANSFER_SCALE,
    Conditions,
    Protocol,
    TransferProtocol,
)
from alohas2r.tasks.registry import TaskEntry, register


def _randomize(
    scene: Scene, settings: PickConfig, draws: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    return physics_randomization.sample_block(scene, settings.block, draws)


def _conditions(protocol: Protocol) -> Conditions[PickConfig]:
    rules = protocol.pick
    task = PickConfig(
        steps=rules.steps, start=rules.start, block=rules.block, crossed_x=rules.crossed_x
    )
    if isinstance(protocol, TransferProtocol):
        return Conditions(
            task, protocol.control, protocol.noise, True, protocol.variation, protocol.cone
        )
    return Conditions(task, protocol.control, protocol.noise)


def _scorer(protocol: Protocol, context: np.ndarray) -> PickScorer:
    return PickScorer(protocol.pick, context)


ENTRY = register(
    TaskEntry(
        name="pick",
        scene="pick",
        config=PickConfig(),
        noise=NoiseConfig(),
        task=PickTask,
        randomize=_randomize,
        draws=2,
        protocol=EVAL_V1,
        conditions=_conditions,
        scorer=_scorer,
        watched=(
            *("success", "precise", "lifted", "crossed"),
            *("position_error_mm", "rotation_error_deg"),
        ),
        presets={
            "default": (
                "total_steps=12e6",
                "task.block.skew=0.7",
                "ppo.entropy=0.01,0.003",
                "ppo.target_kl=0.015,0.008",
                "refine.steps=27e6",
            ),
            "transfer": (
                "total_steps=8e6",
                # The socket, heavier than any block, is picked up by the same policy.
                *("task.block.half_side=0.009,0.026", "task.block.mass=0.03,0.25"),
                *("task.block.skew=0.7", "task.steps=200"),
                f"env.control.scale={TRANSFER_SCALE}",
                "ppo.entropy=0.006,0.001",
                "ppo.target_kl=0.015,0.008",
                "refine.steps=0",
                *("evaluations=8", "evaluation_episodes=256", "protocol=eval-v2"),
                "env.contacts=true",
                *config.overrides("env.noise", EVAL_V2.noise),
                *config.overrides("env.variation", EVAL_V2.variation),
            ),
            "quick": (
                "total_steps=300e3",
                *("ppo.num_envs=256", "ppo.unroll=32", "ppo.minibatches=4"),
                *("ppo.network.policy=64,64", "ppo.network.value=64,64"),
                *("evaluations=1", "evaluation_episodes=64", "checkpoints=5"),
            ),
        },
        second=RefineConfig(),
        protocols=(EVAL_V2, EVAL_V3),
        view=((-0.25, 0.0, 0.18), 1.0, 120.0, -22.0),
        sizes=block_sizes,
    )
)
