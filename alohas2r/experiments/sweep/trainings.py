"""Commands that can be swept, in one table; what they import is imported when one is asked for its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from alohas2r import config
from alohas2r.config import check
from alohas2r.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Option of a command, as Python names it -> value.
Options: TypeAlias = Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class Training:
    """A command that trains in a folder of its own: --out, --seed, --threads, --set, --resume, --json.

    Attributes:
      name: of the command.
      settings: returns the configuration that its options choose, before any --set.
      metric: the figure by which its runs are compared, if none is named.
      program: what Python is given to run it.
    """

    name: str
    settings: Callable[[Options], DataclassInstance]
    metric: str
    program: tuple[str, ...] = ("-m", "alohas2r.cli")


def _teacher(options: Options) -> DataclassInstance:
    from alohas2r.learning.ppo import presets as ppo

    return ppo.find_preset(str(options["phase"]), str(options["preset"]))


def _pixels(options: Options) -> DataclassInstance:
    from alohas2r.learning.pixels import config as pixels

    return pixels.find_preset(str(options["phase"]), str(options["preset"]))


def _encoder(options: Options) -> DataclassInstance:
    from alohas2r.learning.encoder import config as encoder

    chosen = (str(options[name]) for name in ("preset", "data", "method"))
    return encoder.find_preset(*chosen)


def _student(options: Options) -> DataclassInstance:
    from alohas2r.learning.dagger import config as dagger
    from alohas2r.learning.dagger.train import FINETUNE

    preset = dagger.find_preset(str(options["preset"]), str(options["observation"]))
    return dataclasses.replace(preset, finetune=options["encoder"] == FINETUNE)


TRAININGS = {
    training.name: training
    for training in (
        Training("train-teacher", _teacher, "eval/success"),
        Training("train-pixels", _pixels, "eval/success"),
        Training("pretrain-encoder", _encoder, "held/accuracy"),
        Training("distill", _student, "eval/success"),
    )
}


def find_training(name: str) -> Training:
    """Returns a training by its command.

    Raises:
      ConfigError: there is none of that name.
    """
    if name not in TRAININGS:
        hint = did_you_mean(name, TRAININGS)
        choices = "" if "Valid" in hint else f" Valid choices: {', '.join(TRAININGS)}."
        raise ConfigError(f"'{name}' is no command that can be swept.{hint}{choices}")
    return TRAININGS[name]


def check_metric(metric: str, settings: DataclassInstance) -> None:
    """Makes sure that runs are evaluated at all, where they are compared by an evaluation.

    Raises:
      ConfigError: they are not.
    """
    evaluations = config.flatten(settings).get("evaluations")
    check(
        evaluations != 0 or not metric.startswith("eval/"),
        f"These runs are not evaluated, so they have no {metric}: add --set evaluations=1, or choose a figure of"
        " their metrics.jsonl by --metric.",
    )
