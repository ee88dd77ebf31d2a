"""What a robot and a learner on another machine say to each other, and what files are called there.

A message is a map of text, numbers and bytes, and has one answer; a text frame says what was wrong with it. Files only
ever grow: the learner keeps a beginning of each of the robot's, and says how long it is.

"hello": "run", the content of online.json; "sizes", JSON, bytes by name of all that is learnt from beside the log.
  Answer: "have", JSON, by name the bytes that are there and their digest.
"sync": "name", "offset", "data", "digest", what follows in a file, or "" for nothing; "version", the newest one here.
  Answer: "size" of that file by now; "state" of the learner, "said" if it failed; "version", "data", the next one.
"policy": no more. Answer: the result's files by name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re

from alohas2r.policies.online.config import LOGS, AnyRun, InsertRun
from alohas2r.policies.online.demonstrations import ABOUT

VERSION = 1  # of the messages
INPUTS = "inputs"  # folder of the run on the learner's machine
CHUNK = 1 << 20  # bytes of a file in a message
MOST_BYTES = 1 << 26  # of a message
WAITS, LEARNS, DONE, FAILED = "waits", "learns", "done", "failed"
POLICY_FILES = ("policy.json", "weights.npz", "check.npz")
_STUDENT = ("policy.json", "weights.npz")
_EXPORTED = "policy.onnx"  # the student that is corrected
_RUN = r"[\w-]{1,64}\.run"
_NAMES = re.compile(
    rf"{LOGS}/{_RUN}|{INPUTS}/(demos|offline)/\d{{1,4}}/({re.escape(ABOUT)}|{LOGS}/{_RUN})"
    rf"|{INPUTS}/student/({'|'.join(map(re.escape, (*_STUDENT, _EXPORTED)))})",
    re.ASCII,
)


def is_name(name: object) -> bool:
    """Returns whether a file of that name may lie in the run's folder on the learner's machine."""
    return isinstance(name, str) and _NAMES.fullmatch(name) is not None


def inputs(run: AnyRun) -> dict[str, pathlib.Path]:
    """Returns what a run learns from beside its log: names for the other side, and the files here."""
    student = pathlib.Path(run.student)
    found = {f"{INPUTS}/student/{name}": student / name for name in _STUDENT}
    if isinstance(run, InsertRun):
        found = {f"{INPUTS}/student/{_EXPORTED}": student}
    for kind, folders in (("demos", run.demos), ("offline", run.offline)):
        for number, folder in enumerate(map(pathlib.Path, folders)):
            paths = [folder / ABOUT] if kind == "demos" else []
            for path in (*paths, *sorted((folder / LOGS).glob("*.run"))):
                found[f"{INPUTS}/{kind}/{number}/{path.relative_to(folder).as_posix()}"] = path
    return found


def at_hand(run: AnyRun, folder: pathlib.Path) -> AnyRun:
    """Returns a run with what it learns from where it lies: in its folder, if that came from another machine."""
    here = folder / INPUTS
    if not here.exists():
        return run
    return dataclasses.replace(
        run,
        student=str(here / "student" / (_EXPORTED if isinstance(run, InsertRun) else "")),
        demos=tuple(str(here / "demos" / str(number)) for number in range(len(run.demos))),
        offline=tuple(str(here / "offline" / str(number)) for number in range(len(run.offline))),
    )


def digest(data: bytes) -> str:
    """Returns the SHA-256 of what a message carries."""
    return hashlib.sha256(data).hexdigest()


def digest_of(path: pathlib.Path, size: int) -> str:
    """Returns the SHA-256 of a file's first bytes."""
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(min(size, CHUNK)):
            hasher.update(data)
            size -= len(data)
    return hasher.hexdigest()
