"""A policy behind a websocket, in the protocol of OpenPI: any client of it can drive this policy.

The server's first frame is its metadata. Each binary frame from a client is one observation, each
binary frame back its action; both are msgpack with NumPy arrays in them. A text frame back says what
was wrong with the request; the connection stays open and the policy's memory as it was. Every
connection has a memory of its own. `GET /healthz` answers 200.
Source: the message format of the published openpi-client (msgpack_numpy, websocket_client_policy).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import http
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import msgpack
import numpy as np
import websockets
from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as websocket_serve
from websockets.http11 import Request, Response
from websockets.sync.client import ClientConnection, connect

import alohas2r
from alohas2r.config import check, from_dict, to_dict
from alohas2r.errors import Alohas2rError, ArtifactError, BackendUnavailable
from alohas2r.onnx_policy import Interface, OnnxPolicy

# A library logs, and leaves it to the application whether anything becomes of it.
_LOGGER = logging.getLogger(__name__)
_LOGGER.addHandler(logging.NullHandler())

RESET = "reset"  # an optional key of a request
TIMING = "server_timing"
_KINDS = "buif"  # of arrays in a message: bool, unsigned, integer, floating point
_MOST_ITEMS = 64  # keys of a map, numbers in a list
_MOST_CONTAINERS = 256  # maps and lists in a message
_MOST_DIMENSIONS = 8
_MOST_TEXT = 1024


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


def encode(message: Any) -> bytes:
    """Returns a message as msgpack; it may hold NumPy arrays and numbers at any depth."""
    packed = msgpack.packb(message, default=_encode_array)
    assert packed is not None
    return packed


def _encode_array(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in _KINDS:
        described = {b"dtype": value.dtype.str}
        if isinstance(value, np.ndarray):
            data = {b"data": value.tobytes(), b"shape": list(value.shape)}
            return {b"__ndarray__": True, **described, **data}
        return {b"__npgeneric__": True, **described, b"data": value.item()}
    raise TypeError(f"a message cannot hold {type(value).__name__}")


def decode(message: bytes) -> Any:
    """Returns what `encode` or an OpenPI client was given; arrays are read-only.

    A message cannot make this allocate much more than its own length.

    Raises:
      ArtifactError: it is no msgpack, is cut off, or describes an impossible array.
    """
    left = _MOST_CONTAINERS

    def spend(found: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ArtifactError(f"The message holds more than {_MOST_CONTAINERS} maps and lists.")
        return _decode_array(found) if isinstance(found, dict) else found

    try:
        return msgpack.unpackb(
            message,
            object_hook=spend,
            list_hook=spend,
            max_str_len=_MOST_TEXT,
            max_bin_len=len(message),
            max_array_len=_MOST_ITEMS,
            max_map_len=_MOST_ITEMS,
            max_ext_len=0,
        )
    except ArtifactError:
        raise
    except Exception as error:  # msgpack's have no common base; some hold the whole message
        reason = f"{type(error).__name__} {str(error)[:200]}".strip()
        raise ArtifactError(f"The message is no valid msgpack: {reason}") from None


def _decode_array(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" in found:
        dtype, shape, data = found.get(b"dtype"), found.get(b"shape"), found.get(b"data")
        if not (
            isinstance(shape, list)
            and len(shape) <= _MOST_DIMENSIONS
            and all(type(size) is int and 0 <= size < 1 << 31 for size in shape)
            and isinstance(data, bytes)
        ):
            raise ArtifactError("An array in the message lacks its shape or data.")
        kind, count = _dtype(dtype), 1
        for size in shape:
            count *= size
        if len(data) != count * kind.itemsize:
            raise ArtifactError(
                f"An array in the message says {kind} {shape} and has {len(data)} bytes."
            )
        return np.frombuffer(data, kind).reshape(shape)
    if b"__npgeneric__" in found:
        value = found.get(b"data")
        if not isinstance(value, bool | int | float):
            raise ArtifactError("A number in the message has no value.")
        return _dtype(found.get(b"dtype")).type(value)
    return found


def _dtype(text: Any) -> np.dtype[Any]:
    try:
        dtype = np.dtype(text) if isinstance(text, str) and len(text) <= 4 else None
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or dtype.kind not in _KINDS:
        raise ArtifactError(f"An array in the message has the unknown type {str(text)[:40]!r}.")
    return dtype


def metadata(policy: OnnxPolicy) -> dict[str, Any]:
    """Returns the first frame: which policy this is, what it takes and what it gives."""
    return {
        "server": f"alohas2r {alohas2r.__version__}",
        "policy": policy.hash,
        "interface": to_dict(policy.interface),
        "optional": {RESET: "true starts a new episode, as a new connection does"},
        "actions": {"shape": [1, policy.action_size], **policy.action},
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


class PolicyClient:
    """A served policy, used like a local one.

    Attributes:
      metadata: the server's first frame.
      interface: what goes in and comes out; None if the server does not say.
      timing: "server_timing" of the last action.
    """

    def __init__(
        self, url: str, api_key: str = "", timeout_s: float = 1.0, connect_timeout_s: float = 5.0
    ) -> None:
        """Connects.

        Args:
          url: "ws://host:port", or "host:port".
          api_key: if the server wants one.
          timeout_s: how long an action may take.
          connect_timeout_s: how long connecting may take.

        Raises:
          BackendUnavailable: no server there, or it refuses.
        """
        self.url = url if "://" in url else f"ws://{url}"
        self.timing: dict[str, float] = {}
        self._timeout_s = timeout_s
        self._reset = False
        headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        try:
            with contextlib.ExitStack() as stack:
                self._connection: ClientConnection = stack.enter_context(
                    connect(
                        self.url,
                        compression=None,
                        additional_headers=headers,
                        open_timeout=connect_timeout_s,
                        close_timeout=1.0,
                    )
                )
                greeting = self._connection.recv(timeout=connect_timeout_s)
                found = decode(greeting) if isinstance(greeting, bytes) else None
                if not isinstance(found, dict):
                    raise ArtifactError("its first frame holds no metadata")
                described = found.get("interface")
                self.interface = None if described is None else from_dict(Interface, described)
                stack.pop_all()  # stays open
        except (OSError, websockets.WebSocketException, ValueError, Alohas2rError) as error:
            raise BackendUnavailable(f"No policy server at {self.url}: {error}.") from error
        self.metadata: dict[str, Any] = found

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnects."""
        self.close()

    def reset(self) -> None:
        """Lets the policy forget the past with the next observation."""
        self._reset = True

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Returns the action [n] for one observation.

        Raises:
          ArtifactError: the server refuses the observation; the message says why.
          BackendUnavailable: the server is gone or too slow; the connection is closed then, as a
            late answer would be taken for that to the next request.
        """
        request = {**observation, RESET: True} if self._reset else dict(observation)
        try:
            self._connection.send(encode(request))
            answer = self._connection.recv(timeout=self._timeout_s)
        except (OSError, websockets.WebSocketException) as error:
            self.close()
            slow = isinstance(error, TimeoutError)
            reason = f"did not answer within {self._timeout_s} s" if slow else f"is gone: {error}"
            raise BackendUnavailable(f"The policy server at {self.url} {reason}.") from error
        if isinstance(answer, str):
            raise ArtifactError(f"The policy server refuses the request: {answer}")
        self._reset = False
        reply = decode(answer)
        try:
            self.timing = dict(reply.get(TIMING, {}))
            return np.array(reply["actions"], np.float32)[0]
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ArtifactError(f"The policy server's answer is none: {error!r}.") from error

    def close(self) -> None:
        """Disconnects; safe to call twice."""
        self._connection.close()
