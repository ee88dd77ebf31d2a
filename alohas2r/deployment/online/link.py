"""The robot's side of a learner on another machine: the run's files go there as they grow, weights come back."""

from __future__ import annotations

import contextlib
import json
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from alohas2r.core.files import write_atomic, write_folder_atomic
from alohas2r.core.types import Untyped
from alohas2r.errors import Alohas2rError, ArtifactError, BackendUnavailable, ConfigError
from alohas2r.policies import artifact
from alohas2r.policies.online import published, remote
from alohas2r.policies.online.config import LOGS, POLICY, PUBLISHED, SETTINGS, AnyRun
from alohas2r.policies.remote.connection import Connection
from alohas2r.policies.remote.messages import decode, encode

_ANSWER_S = 60.0  # the other side may have to read a long log first
_PAUSES_S = (0.2, 10.0)  # between tries to connect: the first, doubled up to the last
_GONE_S = 600.0  # without an answer, after which nobody waits for weights any longer
_POLL_S, _STEPPED_POLL_S = 0.1, 0.02


@contextlib.contextmanager
def remote_learner(
    folder: pathlib.Path, run: AnyRun, url: str, api_key: str
) -> Iterator[Callable[[], bool]]:
    """Lets another machine learn; gives whether it still does, which raises if it failed or is gone for long.

    Args:
      folder: of the run. run: what it is. url: "ws://host:port" of `alohas2r learner`. api_key: if it wants one.

    Raises:
      BackendUnavailable: there is no learner, or it refuses the key.
      ArtifactError: it keeps another run, or failed. ConfigError: as ArtifactError, with other settings.
    """
    link = Link(folder, run, url, api_key)
    link.connect()
    thread = threading.Thread(target=link.keep, name="learner", daemon=True)
    thread.start()
    try:
        yield link.alive
        while not link.finished():
            link.alive()
            time.sleep(_STEPPED_POLL_S)
    finally:
        link.close()
        thread.join(_ANSWER_S)


class Link:
    """A connection that is made anew whenever it is lost.

    Args:
      folder, run, url, api_key: as `remote_learner`.
    """

    def __init__(self, folder: pathlib.Path, run: AnyRun, url: str, api_key: str) -> None:
        self._folder, self._spec, self._url, self._key = folder, run.spec, url, api_key
        self._poll_s = _STEPPED_POLL_S if run.stepped else _POLL_S
        self._inputs = remote.inputs(run)
        self._sent: dict[str, int] = {}  # acknowledged bytes by name
        self._connection: Connection | None = None
        self._closed, self._done = threading.Event(), False
        self._error: Alohas2rError | None = None
        self._heard_s, self._trouble = time.monotonic(), ""

    def alive(self) -> bool:
        """Returns whether the learner still learns, or is searched for.

        Raises:
          ArtifactError, ConfigError: it failed, keeps another run by now, or was not found for long.
        """
        if self._error is not None:
            raise self._error
        if time.monotonic() - self._heard_s > _GONE_S:
            raise ArtifactError(
                f"No learner for {_GONE_S / 60:g} minutes: {self._trouble} --resume --out {self._folder} goes on."
            )
        return not self._done

    def finished(self) -> bool:
        """Returns whether all is learnt, and all of the log was sent."""
        return self._done and self._unsent() is None

    def connect(self) -> None:
        """Connects and compares what is there with what is here.

        Raises: as `remote_learner`.
        """
        connection = Connection(self._url, self._key, "learner", remote.MOST_BYTES)
        try:
            if connection.metadata.get("learner") != remote.VERSION:
                raise ArtifactError(
                    f"At {connection.url} is no learner that this version talks to; alohas2r learner is one."
                )
            sizes = {name: path.stat().st_size for name, path in self._inputs.items()}
            described = (self._folder / SETTINGS).read_bytes()
            request = {"kind": "hello", "run": described, "sizes": json.dumps(sizes).encode()}
            self._sent = self._compared(_ask(connection, request), connection.url)
        except BaseException:
            connection.close()
            raise
        self._connection, self._heard_s = connection, time.monotonic()

    def _compared(self, reply: Mapping[str, Untyped], url: str) -> dict[str, int]:
        """Returns how many bytes of each file are there, all of them as they are here."""
        here, sent = self._files(), {}
        for name, (size, digest) in json.loads(reply["have"]).items():
            path = here.get(name)
            same = path is not None and size <= path.stat().st_size
            if path is None or not same or remote.digest_of(path, size) != digest:
                raise ArtifactError(
                    f"The learner at {url} keeps another run ({name} differs); give it another --out."
                )
            sent[name] = int(size)
        return sent

    def _files(self) -> dict[str, pathlib.Path]:
        """Returns what the learner must have, in the order in which it does."""
        logs = {f"{LOGS}/{path.name}": path for path in sorted((self._folder / LOGS).glob("*.run"))}
        return self._inputs | logs

    def _unsent(self) -> tuple[str, bytes] | None:
        """Returns what is to be sent next: of which file, and what."""
        for name, path in self._files().items():
            sent = self._sent.get(name, 0)
            if path.stat().st_size > sent:
                with open(path, "rb") as file:
                    file.seek(sent)
                    return name, file.read(remote.CHUNK)
        return None

    def keep(self) -> None:
        """Keeps both sides alike until `close`; connects anew as often as it must."""
        pause_s = _PAUSES_S[0]
        while not self._closed.is_set() and self._error is None:
            try:
                busy = self._turn()
            except (ArtifactError, BackendUnavailable) as error:
                self._trouble = str(error)
                self._drop()
                self._closed.wait(pause_s)
                pause_s = min(2 * pause_s, _PAUSES_S[1])
            except Exception as error:  # nobody sees those of a thread
                self._error = ArtifactError(f"The learner's answer is none: {error!r}.")
            else:
                pause_s = _PAUSES_S[0]
                self._closed.wait(0.0 if busy else self._poll_s)
        self._drop()

    def close(self) -> None:
        """Lets `keep` come to its end."""
        self._closed.set()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _turn(self) -> bool:
        """Sends what is next and takes what is new; whether there was either."""
        if self._connection is None:
            try:
                self.connect()
            except (ArtifactError, ConfigError) as error:  # it would say so again
                self._error = error
                return False
        connection, folder = self._connection, self._folder / PUBLISHED
        assert connection is not None
        unsent = self._unsent()
        name, data = unsent or ("", b"")
        newest = published.newest(folder)
        request = {"kind": "sync", "name": name, "offset": self._sent.get(name, 0), "data": data}
        request |= {"digest": remote.digest(data), "version": -1 if newest is None else newest}
        reply = _ask(connection, request)
        if unsent is not None:
            self._sent[name] = int(reply["size"])
        version, content = int(reply["version"]), bytes(reply["data"])
        if version >= 0:
            published.from_bytes(self._spec, version, content, f"Version {version}")
            write_atomic(published.path_of(folder, version), content)
            published.tidy(folder)
        elif reply["state"] == remote.DONE and not self._done:
            self._take_policy(_ask(connection, {"kind": "policy"}))
        if reply["state"] == remote.FAILED:
            self._error = ArtifactError(str(reply["said"]))
        self._heard_s = time.monotonic()
        return unsent is not None or version >= 0

    def _take_policy(self, files: Mapping[str, Untyped]) -> None:
        """Writes what was learnt, if it is whole and computes what it did there."""

        def write(path: pathlib.Path) -> None:
            for name in remote.POLICY_FILES:
                (path / name).write_bytes(files[name])
            artifact.load(path)

        write_folder_atomic(self._folder / POLICY, write)
        self._done = True


def _ask(connection: Connection, request: Mapping[str, object]) -> dict[str, Untyped]:
    """Returns the answer to a request; raises as `Connection.ask`."""
    reply = decode(connection.ask(encode(request), _ANSWER_S))
    if not isinstance(reply, dict):
        raise ArtifactError(f"The learner at {connection.url} answers with no map.")
    return reply
