"""Where the shipped data is."""

from __future__ import annotations

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
