"""A policy behind a websocket, in the protocol of OpenPI: any client of it can drive this policy.

The server's first frame is its metadata. Each binary frame from a client is one observation, each
binary frame back its action; both are msgpack with NumPy arrays in them. A text frame back says what
was wrong with the request; the connection stays open and the policy's memory as it was. Every
connection has a memory of its own. `GET /healthz` answers 200.
Source: the message format of the published openpi-client (msgpack_numpy, websocket_client_policy).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np

from alohas2r.config import to_dict
from alohas2r.core.types import JsonObject
from alohas2r.core.version import __version__
from alohas2r.errors import Alohas2rError, ArtifactError
from alohas2r.policies.delays import trained_delays
from alohas2r.policies.onnx.runtime import OnnxPolicy
from alohas2r.policies.remote.host import Host, ServerConfig
from alohas2r.policies.remote.messages import RESET, TIMING, decode_request, encode
from alohas2r.policies.remote.units import check_units


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


class PolicyServer(Host):
    """Serves one policy to any number of clients from one event loop, a request at a time."""

    def __init__(self, policy: OnnxPolicy, config: ServerConfig) -> None:
        """Prepares; nothing is opened yet."""
        super().__init__(config, encode(metadata(policy)), lambda: _Episode(policy.fork()))


class _Episode:
    """One connection's policy.

    Attributes:
      before_ms: how long the request before took in all; None for the first.
    """

    def __init__(self, policy: OnnxPolicy) -> None:
        self.before_ms: float | None = None
        self._policy = policy

    def answer(self, message: str | bytes) -> str | bytes:
        """Returns the answer to one request: bytes, or text that says what was wrong with it."""
        started = time.perf_counter()
        try:
            request = decode_request(message)
            fresh = request.pop(RESET, False)
            if not isinstance(fresh, bool | np.bool_):
                raise ArtifactError(f"'{RESET}' must be true or false.")
            check_units(request)
            policy = self._policy.fork() if fresh else self._policy
            actions = policy.act(request)
        except Alohas2rError as error:
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
    return PolicyServer(OnnxPolicy.load(policy_path), config or ServerConfig()).serve(ready)
