"""Where the shipped data is."""

from __future__ import annotations

import contextlib
import os
import pathlib

from alohas2r.errors import ModelError


def data_path(kind: str) -> pathlib.Path:
    """Returns the folder of shipped data, "xmls" or "params", in a checkout or an installed wheel.

    The environment variable ALOHAS2R_DATA names another folder that holds both.

    Raises:
      ModelError: the folder is not there.
    """
    package = pathlib.Path(__file__).resolve().parent.parent
    override = os.environ.get("ALOHAS2R_DATA")
    candidates = (
        [pathlib.Path(override) / kind]
        if override
        else [package / "_data" / kind, package.parent / kind]
    )
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise ModelError(
        f"The folder {kind}/ was not found at {' or '.join(map(str, candidates))}; reinstall alohas2r."
    )


def policy_path(name: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the folder or file of a policy: the path as given or, if there is none, the shipped one.

    So "params/pick", "pick" and "params/student/policy.onnx" work in any directory, also from an installed package.
    """
    path = pathlib.Path(name).expanduser()
    if path.exists():
        return path
    relative = pathlib.Path(*path.parts[1:]) if path.parts[:1] == ("params",) else path
    with contextlib.suppress(ModelError):
        shipped = data_path("params") / relative
        if relative.parts and not relative.is_absolute() and shipped.exists():
            return shipped
    return path
