"""What a folder of demonstrations says of itself."""

from __future__ import annotations

import json
import pathlib

from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies.online.spec import LearntSpec

ABOUT = "demonstrations.json"


def check_demos(folder: pathlib.Path, spec: LearntSpec) -> None:
    """Makes sure that a folder holds demonstrations of what is to be learnt.

    Raises:
      ArtifactError: it holds none, or is damaged. ConfigError: they are of another task, arm or camera.
    """
    path = folder / ABOUT
    try:
        about: JsonObject = json.loads(path.read_text())
        task = str(about["task"])
        unlike = spec.unlike(about["spec"]) if task == spec.task else ""
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{folder} holds no demonstrations; alohas2r demonstrate records them."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({type(error).__name__}: {error}).") from error
    if task != spec.task:
        raise ConfigError(f"{folder} demonstrates '{task}', not '{spec.task}'.")
    if unlike:
        raise ConfigError(f"{folder} {unlike}.")
