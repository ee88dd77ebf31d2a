"""What a resumable run was started with, kept in its folder, so that another configuration cannot continue it."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax
import mujoco

import alohas2r
from alohas2r import config
from alohas2r.core import files
from alohas2r.errors import ArtifactError, ConfigError

NAME = "config.json"


def begin(
    folder: pathlib.Path, settings: Any, others: Mapping[str, Any], resume: bool, exists: bool
) -> None:
    """Writes the plan of a new run, or checks that a resumed one has the same.

    Args:
      folder: of the run.
      settings: its configuration, a frozen dataclass.
      others: plain values that belong to the plan as well, such as the seed and hashes of artifacts.
      resume: whether the run is continued.
      exists: whether the folder holds a checkpoint.

    Raises:
      ConfigError: another configuration, or a run is there already and is not to be resumed.
      ArtifactError: there is nothing to resume, or the plan is damaged.
    """
    path = folder / NAME
    if not resume:
        if exists:
            raise ConfigError(
                f"{folder} holds a run already; add --resume to continue it, or choose another --out."
            )
        plan = {"config": config.to_dict(settings), **others}
        files.write_atomic(path, json.dumps(plan, indent=2).encode() + b"\n")
        return
    try:
        earlier = json.loads(path.read_text())
        before = config.from_dict(type(settings), earlier["config"])
        changes = config.difference(before, settings)
        changes += [
            f"{name}: {earlier[name]} -> {value}"
            for name, value in others.items()
            if earlier[name] != value
        ]
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{folder} holds no run to resume; leave out --resume to start one."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} is damaged ({error}); start a new run with another --out."
        ) from error
    if changes:
        raise ConfigError(
            f"The run in {folder} was started with another configuration: {'; '.join(changes)}."
        )


def provenance(
    command: str,
    settings: Any,
    seed: int,
    steps: int,
    wall_s: float,
    parents: Mapping[str, str | None],
) -> dict[str, Any]:
    """Returns how an artifact was trained, for its description.

    Args:
      command: that trains it again.
      settings: the configuration. seed: of everything random. steps: environment steps or pictures.
      wall_s: time that it took (s). parents: role -> hash of the artifacts that it learnt from.
    """
    return {
        "command": command,
        "config": config.to_dict(settings),
        "seed": seed,
        "steps": steps,
        "wall_s": wall_s,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {
            "processor": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "device": jax.devices()[0].device_kind,
            "python": platform.python_version(),
            "jax": jax.__version__,
            "mujoco": mujoco.__version__,
        },
        "alohas2r": alohas2r.__version__,
        "parents": dict(parents),
    }


def due(event: int, events: int, times: int) -> bool:
    """Whether one of `times` evenly spread occasions falls on this event (1 .. events); the last one does."""
    return times > 0 and (event * times) // events > ((event - 1) * times) // events
