"""A connection to a websocket server of this package, or of OpenPI: its first frame, then answers."""

from __future__ import annotations

import contextlib
import urllib.parse
import urllib.request

from websockets.sync.client import ClientConnection, connect

from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError, BackendUnavailable
from alohas2r.policies.remote.messages import decode


class Connection:
    """An open connection; closed for good by the first answer that does not come.

    Args:
      url: "ws://host:port", or "host:port". api_key: if the server wants one.
      what: there should be, in words. max_bytes: a longer answer closes the connection.
      connect_timeout_s: how long connecting may take.

    Attributes:
      url: the server's address.
      metadata: the server's first frame.

    Raises:
      BackendUnavailable: no server there, or it refuses.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        what: str,
        max_bytes: int = 1 << 20,
        connect_timeout_s: float = 5.0,
    ) -> None:
        self.url = url if "://" in url else f"ws://{url}"
        self._what = what
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
                        max_size=max_bytes,
                        proxy=None if is_local(self.url) else True,
                    )
                )
                greeting = self._connection.recv(timeout=connect_timeout_s)
                metadata = decode(greeting) if isinstance(greeting, bytes) else None
                if not isinstance(metadata, dict):
                    raise ArtifactError("its first frame holds no metadata")
                stack.pop_all()  # stays open
        except Exception as error:  # whatever the library raises; it has no common base
            raise self.missing(error) from error
        self.metadata: JsonObject = metadata

    def missing(self, error: Exception) -> BackendUnavailable:
        """Returns what says that there is no such server, and why."""
        proxy = _proxy(self.url)
        advice = (
            f" The proxy {proxy} stands in between: unset it, or set no_proxy." if proxy else ""
        )
        reason = str(error) or type(error).__name__
        return BackendUnavailable(f"No {self._what} at {self.url}: {reason.rstrip('.')}.{advice}")

    def ask(self, message: bytes, timeout_s: float) -> bytes:
        """Returns the answer to a message.

        Raises:
          ArtifactError: the server refuses the message; it says why.
          BackendUnavailable: the server is gone or too slow; the connection is closed then, as a
            late answer would be taken for that to the next message.
        """
        try:
            self._connection.send(message)
            answer = self._connection.recv(timeout=timeout_s)
        except Exception as error:  # whatever the library raises; it has no common base
            self.close()
            slow = isinstance(error, TimeoutError)
            reason = f"did not answer within {timeout_s} s" if slow else f"is gone: {error}"
            raise BackendUnavailable(f"The {self._what} at {self.url} {reason}.") from error
        if isinstance(answer, str):
            raise ArtifactError(f"The {self._what} refuses the request: {answer}")
        return answer

    def close(self) -> None:
        """Disconnects; safe to call twice."""
        with contextlib.suppress(Exception):  # what cannot be closed is closed already
            self._connection.close()


def is_local(url: str) -> bool:
    """Returns whether an address is this machine's own."""
    host = urllib.parse.urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _proxy(url: str) -> str:
    """Returns the proxy of the environment that would stand in between, "" for none."""
    if is_local(url):
        return ""
    proxies = urllib.request.getproxies()
    host = urllib.parse.urlsplit(url).hostname or ""
    if urllib.request.proxy_bypass(host):
        return ""
    return proxies.get("all") or proxies.get("http", "") or proxies.get("https", "")
