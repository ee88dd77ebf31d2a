"""A policy that a server runs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import numpy as np

from alohas2r.errors import ArtifactError, BackendUnavailable

# What a run depends on, of the server's first frame.
TERMS = ("policy", "interface", "actions", "action_horizon", "switch", "cameras")


# How long an action may take (s): within a control step, and where time stands still until it is there.
ANSWER_S = 0.04
STEPPED_ANSWER_S = 5.0


class ServedPolicy:
    """A policy on a server, asked at most for as long as a control step can wait.

    A connection that failed or was late is given up, as its answer would be taken for the next one,
    and made anew in a thread of its own; until then every `act` fails at once. The server then
    starts without memory of the past. A server that comes back as another policy, or with other terms, is refused
    for good: the robot was set up for the first.

    Attributes:
      url: the server's address.
      interface: what the policy takes; None if the server does not say.
      metadata: what the server says about itself.
      renewals: how often the connection was made anew.
    """

    RETRY_S = 0.2

    def __init__(self, url: str, api_key: str = "", timeout_s: float = ANSWER_S) -> None:
        """Connects.

        Args:
          url: "ws://host:port", or "host:port".
          api_key: if the server wants one.
          timeout_s: how long an action may take.

        Raises:
          BackendUnavailable: no server there, or it refuses.
        """
        from alohas2r.policies.remote.client import PolicyClient

        self._connect = lambda: PolicyClient(url, api_key, timeout_s)
        client = self._connect()
        self.url = client.url
        self.interface, self.metadata = client.interface, client.metadata
        self.renewals = 0
        self._refusal = ""
        self._client: PolicyClient | None = client
        self._next: PolicyClient | None = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

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
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        for client in (self._client, self._next):
            if client is not None:
                client.close()

    def reset(self) -> None:
        """Lets the policy forget the past with the next observation."""
        if self._client is not None:
            self._client.reset()

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the actions [14] for an observation.

        Raises:
          ArtifactError: the server refuses the observation, or has become another policy.
          BackendUnavailable: the server is gone or late; it is searched for.
        """
        if self._refusal:
            raise ArtifactError(self._refusal)
        if self._client is None and self._next is not None:
            self._client, self._next = self._next, None
            self.renewals += 1
        if self._client is None:
            raise BackendUnavailable(f"The policy server at {self.url} is gone; trying again.")
        try:
            return self._client.act(observation)
        except BackendUnavailable:
            self._client = None
            self._thread = threading.Thread(target=self._renew, name="policy server", daemon=True)
            self._thread.start()
            raise

    def _renew(self) -> None:
        while not self._closed.wait(self.RETRY_S):
            try:
                client = self._connect()
            except BackendUnavailable:
                continue
            changed = [key for key in TERMS if client.metadata.get(key) != self.metadata.get(key)]
            if changed:
                client.close()
                self._refusal = (
                    f"The policy server at {self.url} came back as another policy: {', '.join(changed)} changed. Start"
                    " the run anew."
                )
            else:
                self._next = client
            return
