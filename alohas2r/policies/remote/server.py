"""A policy behind a websocket, in the protocol of OpenPI: any client of it can drive this policy.

The server's first frame is its metadata. Each binary frame from a client is one observation, each
binary frame back its action; both are msgpack with NumPy arrays in them. A text frame back says what
was wrong with the request; the connection stays open and the policy's memory as it was. Every
connection has a memory of its own. `GET /healthz` answers 200.
Source: the message format of the published openpi-client (msgpack_numpy, websocket_client_policy).
"""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import http
import logging
import os
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import websockets
from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as websocket_serve
from websockets.http11 import Request, Response

from alohas2r.config import check, to_dict
from alohas2r.core.types import JsonObject
from alohas2r.core.version import __version__
from alohas2r.errors import Alohas2rError, ArtifactError, BackendUnavailable
from alohas2r.policies.delays import trained_delays
from alohas2r.policies.onnx.runtime import OnnxPolicy
from alohas2r.policies.remote.messages import RESET, TIMING, decode, encode
from alohas2r.policies.remote.units import check_units

# A library logs, and leaves it to the application whether anything becomes of it.
_LOGGER = logging.getLogger(__name__)
_LOGGER.addHandler(logging.NullHandler())


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """How a policy is served.

    Attributes:
      host: address to listen on; "0.0.0.0" for all, which needs an API key or a trusted network.
      port: 0 for a free one.
      api_key: what clients must send as "Authorization: Api-Key ..."; "" for none.
      max_message_bytes: a longer request closes the connection.
      max_clients: connections at the same time; more are refused.
      close_timeout_s: how long a client may take to say goodbye.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str = dataclasses.field(default="", repr=False)
    max_message_bytes: int = 1 << 20
    max_clients: int = 32
    close_timeout_s: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(0 <= self.port <= 65535, f"port = {self.port} must be in 0..65535")
        check(self.api_key.isascii(), "api_key must be ASCII")
        check(
            1024 <= self.max_message_bytes <= 1 << 30,
            f"max_message_bytes = {self.max_message_bytes} must be in 1024..2^30",
        )
        check(1 <= self.max_clients <= 10_000, f"max_clients = {self.max_clients} must be 1..10000")
        check(0 < self.close_timeout_s <= 60, "close_timeout_s must be in (0, 60]")


def metadata(policy: OnnxPolicy) -> JsonObject:
    """Returns the first frame: which policy this is, what it takes and what it gives."""
    return {
        "server": f"alohas2r {__version__}",
        "policy": policy.hash,
        "interface": to_dict(policy.interface),
        "optional": {RESET: "true starts a new episode, as a new connection does"},
        "actions": {"shape": [1, policy.action_size], **policy.action},
        "switch": policy.description.get("switch"),
        "cameras": policy.description.get("cameras"),
        "delays": trained_delays(policy.description)._asdict(),
        "action_horizon": 1,
    }


class PolicyServer:
    """Serves one policy to any number of clients from one event loop, a request at a time.

    Attributes:
      config: how.
      port: the one it listens on, once it does.
      counts: "connections", "refused", "requests", "errors" so far.
    """

    def __init__(self, policy: OnnxPolicy, config: ServerConfig) -> None:
        """Prepares; nothing is opened yet."""
        self.config = config
        self.port = config.port
        self.counts = {"connections": 0, "refused": 0, "requests": 0, "errors": 0}
        self._policy = policy
        self._greeting = encode(metadata(policy))
        self._clients = 0

    async def start(self) -> Server:
        """Starts to listen.

        Raises:
          BackendUnavailable: the port is taken or not allowed, or the host is none of this machine.
        """
        config = self.config
        try:
            server = await websocket_serve(
                self._talk,
                config.host,
                config.port,
                process_request=self._admit,
                compression=None,
                max_size=config.max_message_bytes,
                max_queue=2,
                close_timeout=config.close_timeout_s,
                logger=_LOGGER,
            )
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise BackendUnavailable(
                f"Cannot listen on {config.host} port {config.port}: {reason}; choose another "
                "host or port."
            ) from error
        self.port = int(next(iter(server.sockets)).getsockname()[1])
        return server

    async def run(self, stop: asyncio.Event, ready: Callable[[int], None] | None = None) -> None:
        """Serves until `stop` is set, then says goodbye to every client.

        Args:
          stop: set it in the same event loop.
          ready: called with the port once clients can connect.
        """
        server = await self.start()
        try:
            if ready is not None:
                ready(self.port)
            await stop.wait()
        finally:
            server.close()
            await server.wait_closed()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answers a request that is not for the websocket, or may not have it."""
        if request.path.partition("?")[0] == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self.config.api_key:
            given = ", ".join(request.headers.get_all("Authorization"))
            wanted = f"Api-Key {self.config.api_key}"
            if not hmac.compare_digest(given.encode(errors="replace"), wanted.encode()):
                self.counts["refused"] += 1
                return connection.respond(
                    http.HTTPStatus.UNAUTHORIZED, "Send the header 'Authorization: Api-Key KEY'.\n"
                )
        if self._clients >= self.config.max_clients:
            self.counts["refused"] += 1
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "Too many clients.\n")
        return None

    async def _talk(self, connection: ServerConnection) -> None:
        self._clients += 1
        self.counts["connections"] += 1
        episode = _Episode(self._policy.fork(), self.counts)
        try:
            await connection.send(self._greeting)
            async for message in connection:
                started = time.perf_counter()
                await connection.send(episode.answer(message))
                episode.before_ms = (time.perf_counter() - started) * 1000
        except websockets.ConnectionClosed:
            pass
        finally:
            self._clients -= 1


class _Episode:
    """One connection's policy.

    Attributes:
      before_ms: how long the request before took in all; None for the first.
    """

    def __init__(self, policy: OnnxPolicy, counts: dict[str, int]) -> None:
        self.before_ms: float | None = None
        self._policy, self._counts = policy, counts

    def answer(self, message: str | bytes) -> str | bytes:
        """Returns the answer to one request: bytes, or text that says what was wrong with it."""
        self._counts["requests"] += 1
        started = time.perf_counter()
        try:
            request = decode(message) if isinstance(message, bytes) else message
            if not isinstance(request, dict):
                raise ArtifactError(
                    f"A request must be a binary frame with a map, not {type(request).__name__}."
                )
            fresh = request.pop(RESET, False)
            if not isinstance(fresh, bool | np.bool_):
                raise ArtifactError(f"'{RESET}' must be true or false.")
            check_units(request)
            policy = self._policy.fork() if fresh else self._policy
            actions = policy.act(request)
        except Alohas2rError as error:
            self._counts["errors"] += 1
            return f"{type(error).__module__}.{type(error).__name__}: {error}"
        self._policy = policy
        timing = {"infer_ms": (time.perf_counter() - started) * 1000}
        if self.before_ms is not None:
            timing["prev_total_ms"] = self.before_ms
        return encode({"actions": actions[None], TIMING: timing})


def serve(
    policy_path: str | os.PathLike[str],
    config: ServerConfig | None = None,
    ready: Callable[[str, int], None] | None = None,
) -> dict[str, int]:
    """Serves an exported policy until Ctrl-C or SIGTERM.

    Args:
      policy_path: the ONNX file.
      config: how; the defaults if None.
      ready: called with host and port once clients can connect.

    Returns:
      "connections", "refused", "requests", "errors": how many there were.

    Raises:
      ArtifactError: the file cannot be read or fails its check.
      BackendUnavailable: the port is taken, or the like.
    """
    config = config or ServerConfig()
    server = PolicyServer(OnnxPolicy.load(policy_path), config)

    def listening(port: int) -> None:
        if ready is not None:
            ready(server.config.host, port)

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        signals: tuple[signal.Signals, ...] = ()
        if threading.current_thread() is threading.main_thread():
            signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, stop.set)
        try:
            await server.run(stop, listening)
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    asyncio.run(main())
    return dict(server.counts)
