"""Asks a policy server for actions."""

from __future__ import annotations

import contextlib
import urllib.parse
import urllib.request
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import numpy as np
from websockets.sync.client import ClientConnection, connect

from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError, BackendUnavailable
from alohas2r.policies.onnx.interface import Interface
from alohas2r.policies.remote.messages import RESET, TIMING, decode, encode


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
                        proxy=None if _is_local(self.url) else True,
                    )
                )
                greeting = self._connection.recv(timeout=connect_timeout_s)
                metadata = decode(greeting) if isinstance(greeting, bytes) else None
                if not isinstance(metadata, dict):
                    raise ArtifactError("its first frame holds no metadata")
                described = metadata.get("interface")
                self.interface = None if described is None else Interface.read(described)
                stack.pop_all()  # stays open
        except Exception as error:  # whatever the library raises; it has no common base
            proxy = _proxy(self.url)
            advice = (
                f" The proxy {proxy} stands in between: unset it, or set no_proxy." if proxy else ""
            )
            reason = str(error) or type(error).__name__
            raise BackendUnavailable(
                f"No policy server at {self.url}: {reason.rstrip('.')}.{advice}"
            ) from error
        self.metadata: JsonObject = metadata

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

    def act(self, observation: Mapping[str, object]) -> np.ndarray:
        """Returns the action [n] for one observation, the first of those that the server gives.

        Raises: as `infer`.
        """
        return self.infer(observation)[0]

    def infer(self, observation: Mapping[str, object]) -> np.ndarray:
        """Returns the actions [H, n] for one observation: now, and for the steps to come.

        Raises:
          ArtifactError: the server refuses the observation; the message says why.
          BackendUnavailable: the server is gone or too slow; the connection is closed then, as a
            late answer would be taken for that to the next request.
        """
        request = {**observation, RESET: True} if self._reset else dict(observation)
        try:
            self._connection.send(encode(request))
            answer = self._connection.recv(timeout=self._timeout_s)
        except Exception as error:  # whatever the library raises; it has no common base
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
            actions = np.array(reply["actions"], np.float32)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"The policy server's answer is none: {error!r}.") from error
        if actions.ndim != 2 or not len(actions):
            raise ArtifactError(
                f"The policy server's answer is none: actions are {list(actions.shape)}, not [steps, numbers]."
            )
        return actions

    def close(self) -> None:
        """Disconnects; safe to call twice."""
        with contextlib.suppress(Exception):  # what cannot be closed is closed already
            self._connection.close()


def _is_local(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _proxy(url: str) -> str:
    """Returns the proxy of the environment that would stand in between, "" for none."""
    if _is_local(url):
        return ""
    proxies = urllib.request.getproxies()
    host = urllib.parse.urlsplit(url).hostname or ""
    if urllib.request.proxy_bypass(host):
        return ""
    return proxies.get("all") or proxies.get("http", "") or proxies.get("https", "")
