"""The insertion as the registry has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from alohas2r import config
from alohas2r.sim import physics_randomization
from alohas2r.sim.scene import Scene
from alohas2r.tasks import protocol as task_protocol
from alohas2r.tasks.follows import Follows
from alohas2r.tasks.insert import switch_states
from alohas2r.tasks.insert.config import INSERT_NOISE, InsertConfig, InsertRefineConfig
from alohas2r.tasks.insert.scoring import DepthScorer, InsertScorer, peg_sizes
from alohas2r.tasks.insert.task import InsertTask
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
    scene: Scene, settings: InsertConfig, draws: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    fields, half = physics_randomization.sample_insert(scene, settings.physics, draws)
    context = [half, np.arange(len(half))]
    if settings.sized:
        length, hole = physics_randomization.sample_objects(settings.objects, half, draws)
        context += [length, hole]
    if settings.objects.vary:
        fields = physics_randomization.resize_objects(scene, fields, *context[2:])
    return fields, np.stack(context, 1)


def _conditions(protocol: Protocol) -> Conditions[InsertConfig]:
    rules = protocol.insert
    task = InsertConfig(
        steps=rules.steps,
        start=rules.start,
        physics=rules.physics,
        inserted_x=rules.inserted_x,
        hole=rules.hole,
        grip_distance=rules.grip_distance,
        hold_steps=rules.hold_steps,
        fall_height=rules.fall_height,
    )
    if isinstance(protocol, TransferProtocol):
        task = dataclasses.replace(
            task,
            objects=protocol.insert.objects,
            inside=protocol.insert.inside,
            switch=protocol.insert.switch,
        )
        return Conditions(
            task, protocol.control, rules.noise, True, protocol.variation, protocol.cone
        )
    return Conditions(task, protocol.control, rules.noise)


def _scorer(protocol: Protocol, context: np.ndarray) -> InsertScorer:
    if isinstance(protocol, TransferProtocol):
        return DepthScorer(protocol.insert, context)
    return InsertScorer(protocol.insert, context[:, 0])


_OF_ROBOTS = ("action_delay_ms", "view_delay_ms", "zero_deg", "travel_mm", "base_mm")
_CLEARANCE = tuple({"peg_mm": float(side)} for side in (20, 24, 28, 32, 34))
_DELAYS_MS = (50.0, 100.0, 150.0)
_OF_TRANSFER = {
    "clearance": _CLEARANCE,
    "latency": (
        {"action_delay_ms": 0.0, "view_delay_ms": 0.0},
        *({"action_delay_ms": late} for late in _DELAYS_MS),
        *({"view_delay_ms": late} for late in _DELAYS_MS),
        *({"action_delay_ms": late, "view_delay_ms": late} for late in _DELAYS_MS),
    ),
    "calibration": (
        *({"zero_deg": off} for off in (0.5, 1.0, 1.5)),
        *({"travel_mm": off} for off in (1.0, 2.0, 3.0)),
        *({"base_mm": off} for off in (5.0, 10.0, 15.0)),
        {"zero_deg": 1.5, "travel_mm": 3.0, "base_mm": 15.0},
    ),
}


def _modified(protocol: Protocol, condition: Mapping[str, float]) -> Protocol:
    steps = int(condition.get("extra_delay_steps", 0))
    if isinstance(protocol, TransferProtocol):
        of_robots = {name: condition[name] for name in _OF_ROBOTS if name in condition}
        protocol = task_protocol.varied(protocol, **of_robots)
    return task_protocol.modified(
        protocol,
        peg_mm=condition.get("peg_mm"),
        extra_delay_steps=steps,
        seconds=condition.get("seconds"),
    )


ENTRY = register(
    TaskEntry(
        name="insert",
        scene="insert",
        config=InsertConfig(steps=140),
        noise=INSERT_NOISE,
        task=InsertTask,
        randomize=_randomize,
        draws=physics_randomization.INSERT_DRAWS,
        protocol=EVAL_V1,
        conditions=_conditions,
        scorer=_scorer,
        watched=("success", "held_at_end", "lifted_both", "switched", "entered", "dropped"),
        presets={
            "default": (
                "total_steps=4e6",
                *("ppo.entropy=0.01,0.003", "ppo.target_kl=0.015,0.008", "ppo.reward_scale=0.04"),
                *("evaluations=8", "evaluation_episodes=256"),
                "refine.steps=5e6",
            ),
            "transfer": (
                "total_steps=10e6",
                *("ppo.entropy=0.006,0.001", "ppo.target_kl=0.015,0.008", "ppo.reward_scale=0.04"),
                *("evaluations=6", "evaluation_episodes=256", "protocol=eval-v2"),
                "refine.steps=0",
                *("collect.rounds=4", "collect.steps=200"),
                *config.overrides("task.physics", EVAL_V2.insert.physics),
                *config.overrides("task.objects", EVAL_V2.insert.objects),
                *config.overrides("task.switch", EVAL_V2.insert.switch),
                *("task.inside=0.5", "task.steps=200", f"env.control.scale={TRANSFER_SCALE}"),
                "env.contacts=true",
                *config.overrides("env.noise", EVAL_V2.insert.noise),
                *config.overrides("env.variation", EVAL_V2.variation),
            ),
            "quick": (
                "total_steps=100e3",
                *("ppo.num_envs=128", "ppo.unroll=32", "ppo.minibatches=4"),
                *("ppo.network.policy=64,64", "ppo.network.value=64,64"),
                *("collect.variants=128", "collect.rounds=1"),
                *("evaluations=1", "evaluation_episodes=32", "checkpoints=5"),
            ),
        },
        second=InsertRefineConfig(),
        view=((0.0, 0.0, 0.17), 0.95, 90.0, -26.0),
        sizes=peg_sizes,
        follows=Follows(
            task="pick",
            file="switch_states.npz",
            collect=switch_states.CollectConfig(),
            ensure=switch_states.ensure_for,
            load=switch_states.load,
            begin=switch_states.begin,
            staged=switch_states.staged,
        ),
        sweeps={
            EVAL_V1.name: {
                "clearance": _CLEARANCE,
                "latency": tuple({"extra_delay_steps": steps} for steps in range(5)),
                "recovery": ({"seconds": 15.0},),
            },
            EVAL_V2.name: _OF_TRANSFER,
            EVAL_V3.name: _OF_TRANSFER,
        },
        modified=_modified,
        protocols=(EVAL_V2, EVAL_V3),
    )
)
