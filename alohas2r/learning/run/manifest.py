"""What a run was started with, kept in its folder, so that another configuration cannot continue it.

One rule for all runs: a folder holds a run from the moment its manifest is written, which is the first thing a run
does. `--resume` continues that run from its newest checkpoint, or from its beginning if it was killed before the
first; without a manifest there is nothing to resume, which is an error. A start without `--resume` is refused where
there is a checkpoint, and begins anew where there is none.
"""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import mujoco

import alohas2r
from alohas2r import config
from alohas2r.core import assets, files
from alohas2r.core.machine import describe_machine
from alohas2r.core.types import Json, JsonObject
from alohas2r.errors import ArtifactError, ConfigError, ModelError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

NAME = "config.json"
# What a run used of which its manifest says nothing, because there was no choice when it began.
_ONLY_CHOICE = {"engine": "cpu"}


def exists(folder: pathlib.Path) -> bool:
    """Whether a run was started in a folder."""
    return (folder / NAME).is_file()


def recorded(folder: pathlib.Path, name: str, otherwise: str) -> str:
    """Returns what a run was started with; `otherwise` if that cannot be read, of which `begin` says why."""
    try:
        described = json.loads((folder / NAME).read_text())
        return str(described.get(name) or _ONLY_CHOICE.get(name, otherwise))
    except (OSError, ValueError, AttributeError):
        return otherwise


def described(folder: pathlib.Path) -> JsonObject:
    """Returns what a run that has begun was started with."""
    return json.loads((folder / NAME).read_text())


def begin(
    folder: pathlib.Path,
    settings: DataclassInstance,
    identity: Mapping[str, Json],
    resume: bool,
    has_checkpoint: bool,
) -> None:
    """Writes the manifest of a new run, or checks that a resumed one has the same.

    What an older manifest does not name yet is taken as it is now.

    Args:
      folder: of the run.
      settings: its configuration, a frozen dataclass.
      identity: plain values that make the run what it is as well: the seed, engine and renderer, hashes of
        artifacts.
      resume: whether the run is continued.
      has_checkpoint: whether the folder holds a checkpoint.

    Raises:
      ConfigError: another configuration, or a run is there already and is not to be resumed.
      ArtifactError: there is nothing to resume, or the manifest is damaged.
    """
    path = folder / NAME
    if not resume:
        if has_checkpoint:
            raise ConfigError(
                f"{folder} holds a run already; add --resume to continue it, or choose another --out."
            )
        plan = {"config": config.to_dict(settings), **identity}
        files.write_atomic(path, json.dumps(plan, indent=2).encode() + b"\n")
        return
    try:
        earlier = _ONLY_CHOICE | json.loads(path.read_text())
        before = config.from_dict(
            type(settings), _filled(earlier["config"], config.to_dict(settings))
        )
        changes = config.difference(before, settings)
        changes += [
            f"{name}: {earlier[name]} -> {value}"
            for name, value in identity.items()
            if name in earlier and earlier[name] != value
        ]
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{folder} holds no run to resume; leave out --resume to start one."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path} is damaged ({error}); start a new run with another --out."
        ) from error
    if changes:
        raise ConfigError(
            f"The run in {folder} was started with another configuration: {'; '.join(changes)}."
        )


def _filled(earlier: JsonObject, now: JsonObject) -> JsonObject:
    """Returns a recorded configuration, with what it lacks as it is now."""
    return now | {
        name: _filled(value, now[name]) if isinstance(now.get(name), dict) else value
        for name, value in earlier.items()
    }


def command(name: str, options: Mapping[str, object], overrides: Sequence[str]) -> str:
    """Returns the command that makes an artifact again.

    Args:
      name: of the command.
      options: name -> value; those that are None, or 0 threads, are left out.
      overrides: "key=value" settings.
    """
    words = ["alohas2r", name]
    for option, value in options.items():
        if value is not None:
            words += [f"--{option.replace('_', '-')}", str(value)]
    for setting in overrides:
        words += ["--set", setting]
    return shlex.join(words)


def named(path: str | os.PathLike[str]) -> str:
    """Returns how a command names an artifact: what comes with this package without where that is installed."""
    try:
        return str(pathlib.Path("params", pathlib.Path(path).resolve().relative_to(_shipped())))
    except (ValueError, ModelError):
        return os.fspath(path)


def _shipped() -> pathlib.Path:
    return assets.data_path("params").resolve()


def provenance(
    again: str,
    settings: DataclassInstance,
    identity: Mapping[str, Json],
    parents: Mapping[str, str | None],
    figures: Mapping[str, Json],
) -> JsonObject:
    """Returns how an artifact was trained, for its description.

    Args:
      again: the command that trains it again.
      settings: the configuration.
      identity: as `begin` takes it.
      parents: role -> hash of the artifacts that it learnt from.
      figures: what was measured: steps, time (s), memory (GB).
    """
    return {
        "command": again,
        "config": config.to_dict(settings),
        **{
            name: value
            for name, value in identity.items()
            if value is not None and name not in parents
        },
        **figures,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {
            **describe_machine(),
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "mujoco": mujoco.__version__,
        },
        "alohas2r": alohas2r.__version__,
        "parents": dict(parents),
    }


def due(event: int, events: int, times: int) -> bool:
    """Whether one of `times` evenly spread occasions falls on this event (1 .. events); the last one does."""
    return times > 0 and (event * times) // events > ((event - 1) * times) // events
