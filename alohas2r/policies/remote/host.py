"""A websocket server: a key, a first frame, and an answer to every message; `GET /healthz` answers 200."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import http
import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Protocol

import websockets
from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as websocket_serve
from websockets.http11 import Request, Response

from alohas2r.config import check
from alohas2r.errors import BackendUnavailable

# A library logs, and leaves it to the application whether anything becomes of it.
_LOGGER = logging.getLogger(__name__)
_LOGGER.addHandler(logging.NullHandler())


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """How something is served.

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


class Talk(Protocol):
    """What answers the messages of one connection.

    Attributes:
      before_ms: how long the request before took in all; None for the first.
    """

    before_ms: float | None

    def answer(self, message: str | bytes) -> str | bytes:
        """Returns the answer to one message: bytes, or text that says what was wrong with it."""
        ...


class Host:
    """Serves any number of clients from one event loop, a message at a time.

    Args:
      config: how. greeting: the first frame of every connection.
      talk: makes what answers a connection's messages.

    Attributes:
      config: how.
      port: the one it listens on, once it does.
      counts: "connections", "refused", "requests", "errors" so far.
    """

    def __init__(self, config: ServerConfig, greeting: bytes, talk: Callable[[], Talk]) -> None:
        self.config = config
        self.port = config.port
        self.counts = {"connections": 0, "refused": 0, "requests": 0, "errors": 0}
        self._greeting, self._new = greeting, talk
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

    def serve(self, ready: Callable[[str, int], None] | None = None) -> dict[str, int]:
        """Serves until Ctrl-C or SIGTERM.

        Args:
          ready: called with host and port once clients can connect.

        Returns:
          "connections", "refused", "requests", "errors": how many there were.

        Raises:
          BackendUnavailable: the port is taken, or the like.
        """

        def listening(port: int) -> None:
            if ready is not None:
                ready(self.config.host, port)

        async def main() -> None:
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            signals: tuple[signal.Signals, ...] = ()
            if threading.current_thread() is threading.main_thread():
                signals = (signal.SIGINT, signal.SIGTERM)
            for number in signals:
                loop.add_signal_handler(number, stop.set)
            try:
                await self.run(stop, listening)
            finally:
                for number in signals:
                    loop.remove_signal_handler(number)

        asyncio.run(main())
        return dict(self.counts)

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
        talk = self._new()
        try:
            await connection.send(self._greeting)
            async for message in connection:
                started = time.perf_counter()
                self.counts["requests"] += 1
                answer = talk.answer(message)
                self.counts["errors"] += isinstance(answer, str)
                await connection.send(answer)
                talk.before_ms = (time.perf_counter() - started) * 1000
        except websockets.ConnectionClosed:
            pass
        finally:
            self._clients -= 1
