"""The learner on another machine than the robot: a websocket server that keeps one run and learns from it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

from alohas2r.config import check
from alohas2r.core.files import make_folder
from alohas2r.core.lock import FolderLock
from alohas2r.core.types import JsonObject
from alohas2r.core.version import __version__
from alohas2r.errors import Alohas2rError, ArtifactError
from alohas2r.learning.online.mirror import Mirror
from alohas2r.policies.online import remote
from alohas2r.policies.remote.connection import is_local
from alohas2r.policies.remote.host import Host, ServerConfig
from alohas2r.policies.remote.messages import decode_request, encode

Value = TypeVar("Value")
_CLIENTS = 4  # at once: one counts, others may be on their way out


def serve_learner(
    out: str | os.PathLike[str],
    host: str,
    port: int,
    api_key: str,
    ready: Callable[[str, int], None] | None = None,
) -> JsonObject:
    """Learns for one robot elsewhere until Ctrl-C or SIGTERM; goes on with the run in the folder if there is one.

    Args:
      out: folder of the run here. host, port: where it listens; 0 for a free port.
      api_key: what the robot's side must send; "" for none. ready: called with host and port once it listens.

    Returns:
      "connections", "refused", "requests", "errors": how many there were; "out".

    Raises:
      ConfigError: other machines may reach it, and there is no key.
      ArtifactError: the folder cannot be written or is in use. BackendUnavailable: the port is taken, or the like.
    """
    check(
        bool(api_key) or is_local(f"ws://{host}"),
        f"a learner that listens on {host} needs a key, as it writes what it is sent",
    )
    folder = make_folder(out)
    config = ServerConfig(host, port, api_key, remote.MOST_BYTES, _CLIENTS)
    with FolderLock(folder):
        desk = _Desk(Mirror(folder))
        greeting = encode({"server": f"alohas2r {__version__}", "learner": remote.VERSION})
        try:
            counts = Host(config, greeting, desk.open).serve(ready)
        finally:
            desk.mirror.end()
    return {**counts, "out": str(folder)}


class _Desk:
    """Who is served: the connection that said hello last.

    Attributes:
      mirror: the run. served: that connection.
    """

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self.served: _Robot | None = None

    def open(self) -> _Robot:
        """Returns what answers a new connection."""
        return _Robot(self)


class _Robot:
    """One connection of a robot's side: `Talk`."""

    def __init__(self, desk: _Desk) -> None:
        self.before_ms: float | None = None
        self._desk = desk

    def answer(self, message: str | bytes) -> str | bytes:
        """Returns the answer to one message, or text that says what was wrong with it."""
        try:
            return encode(self._answer(decode_request(message)))
        except Alohas2rError as error:
            return " ".join(str(error).split())

    def _answer(self, request: Mapping[str, object]) -> dict[str, object]:
        mirror, kind = self._desk.mirror, _field(request, "kind", str)
        if kind == "hello":
            kept = mirror.meet(_field(request, "run", bytes), _field(request, "sizes", bytes))
            self._desk.served = self
            return {"have": json.dumps(kept).encode()}
        if self._desk.served is not self:
            raise ArtifactError(
                "Another connection has taken this one's place, or none said hello."
            )
        if kind == "policy":
            return dict(mirror.policy())
        if kind != "sync":
            raise ArtifactError("There is no such kind of message.")
        name, data, size = _field(request, "name", str), _field(request, "data", bytes), 0
        version = _field(request, "version", int)
        if remote.digest(data) != _field(request, "digest", str):
            raise ArtifactError("The message's data differ from their digest.")
        if name:
            size = mirror.append(name, _field(request, "offset", int), data)
        state, said = mirror.tend()
        newer, content = mirror.news(version)
        return {"size": size, "state": state, "said": said[:900], "version": newer, "data": content}


def _field(request: Mapping[str, object], name: str, kind: type[Value]) -> Value:
    value = request.get(name)
    if type(value) is not kind:
        raise ArtifactError(f"The message's '{name}' is missing, or no {kind.__name__}.")
    return value
