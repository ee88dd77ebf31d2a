"""Asks a policy server for actions."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

import numpy as np

from alohas2r.errors import ArtifactError
from alohas2r.policies.onnx.interface import Interface
from alohas2r.policies.remote.connection import Connection
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
        self._connection = Connection(
            url, api_key, "policy server", connect_timeout_s=connect_timeout_s
        )
        self.url, self.metadata = self._connection.url, self._connection.metadata
        self.timing: dict[str, float] = {}
        self._timeout_s = timeout_s
        self._reset = False
        described = self.metadata.get("interface")
        try:
            self.interface = None if described is None else Interface.read(described)
        except Exception as error:  # whatever such a description leads to
            self.close()
            raise self._connection.missing(error) from error

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
        answer = self._connection.ask(encode(request), self._timeout_s)
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
        self._connection.close()
