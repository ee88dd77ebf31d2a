"""Where experience comes from: folders of demonstrations, and the segments of a run's log as they grow."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

from alohas2r.core.records import Record, RecordReader
from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.learning.online.experience import Chains, Closed, Row
from alohas2r.policies.online.config import LOGS
from alohas2r.policies.online.demonstrations import check_demos
from alohas2r.policies.online.spec import LearntSpec


def read_demos(folders: Sequence[str], spec: LearntSpec) -> list[Row | Closed]:
    """Returns the rows of all demonstrations that succeeded.

    Raises:
      ArtifactError: a folder holds none, another task or another arm, is damaged, or no episode succeeded.
    """
    rows: list[Row | Closed] = []
    for folder in folders:
        check_demos(pathlib.Path(folder), spec)
        for path in segments(pathlib.Path(folder) / LOGS):
            records = RecordReader(path, strict=True).poll()
            _check_rate(path, records)
            chains = Chains(spec)
            episode: list[Row | Closed] = []
            for record in records:
                if record.kind == "episode":
                    episode = []
                made = chains.take(record)
                episode += made
                if any(isinstance(one, Closed) and one.terminated for one in made):
                    rows, episode = rows + episode, []
    if not rows:
        raise ArtifactError(
            f"None of the demonstrations in {', '.join(folders) or 'no folder'} succeeded; record others with"
            " alohas2r demonstrate."
        )
    return rows


def read_earlier(folder: str, spec: LearntSpec) -> list[Row | Closed]:
    """Returns the rows of an earlier run of the same task, whoever acted in it.

    Raises:
      ArtifactError: there is no such run, it is damaged, or its log holds no decision.
    """
    logs, chains = pathlib.Path(folder) / LOGS, Chains(spec)
    rows = [one for record in Tail(logs).poll() for one in chains.take(record)]
    if not rows:
        raise ArtifactError(
            f"{folder} holds no decisions to learn from; --offline takes folders of alohas2r learn."
        )
    return rows


def _check_rate(path: pathlib.Path, records: Sequence[Record]) -> None:
    period_s = records[0].values.get("period_s") if records else None
    if period_s != CONTROL_PERIOD_S:
        raise ConfigError(
            f"{path} was logged every {period_s} s; this policy moves every {CONTROL_PERIOD_S} s."
        )


def segments(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the segments of a log, in order."""
    return sorted(folder.glob("*.run"))


class Tail:
    """The records of a run's log in order, segment by segment, as they are written.

    A segment that goes on with a stepped run says up to where the one before it counts: what lies beyond was done anew.

    Args:
      folder: of the segments.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._readers: list[RecordReader] = []

    def poll(self) -> Iterator[Record]:
        """Yields the records that were not read yet.

        Raises:
          ArtifactError: a segment is damaged.
        """
        paths = segments(self._folder)
        self._readers += [RecordReader(path, strict=True) for path in paths[len(self._readers) :]]
        limits = [self._limit(path) for path in paths[1:]]
        for index, reader in enumerate(self._readers):
            limit = limits[index] if index < len(limits) else None
            for record in reader.poll():
                if limit is None or record.end <= limit:
                    yield record

    def _limit(self, path: pathlib.Path) -> int | None:
        """Returns up to which byte the segment before counts; None: all of it, or not known yet."""
        first = RecordReader(path).poll(1)
        if not first:
            return None
        end = first[0].values.get("continues_at")
        return None if end is None else int(end)
