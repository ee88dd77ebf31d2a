"""Checkpoints of a whole run: any tree of arrays, written by orbax, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import TypeVar

import jax
import numpy as np

from alohas2r.core import files
from alohas2r.core.types import JsonObject, PyTree
from alohas2r.errors import ArtifactError

FORMAT = 2  # 1, before there was a format, is the same without the digest
Tree = TypeVar("Tree")
_EXTRA = "extra.json"


class Checkpoint:
    """The newest state of a run in a folder.

    Only the run that owns the folder may save, load or tidy up; anybody may ask whether there is one.

    Args:
      folder: where it is kept; replaced as a whole by each save.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = pathlib.Path(folder).absolute()

    def exists(self) -> bool:
        """Whether there is a checkpoint to load; changes nothing."""
        folders = (self.folder, files.earlier_folder(self.folder))
        return any((folder / _EXTRA).is_file() for folder in folders)

    def tidy(self) -> None:
        """Puts right what a run left that was killed while saving."""
        files.recover_folder(self.folder)
        for left in self.folder.parent.glob(f".{self.folder.name}.*.part"):
            shutil.rmtree(left, ignore_errors=True)

    def save(self, tree: PyTree, extra: JsonObject) -> None:
        """Writes the leaves of a tree of arrays, a few plain values, and a digest of both.

        Raises:
          ArtifactError: the disk is full, or the like; the earlier checkpoint is intact.
        """
        import orbax.checkpoint as ocp

        leaves = {
            f"{index:04d}": np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(tree))
        }
        described = {"format": FORMAT, "leaves": len(leaves), "values": extra}
        described["digest"] = _digest(leaves, extra)

        def write(path: pathlib.Path) -> None:
            try:
                with ocp.PyTreeCheckpointer() as checkpointer:
                    checkpointer.save(path / "arrays", leaves)
            except OSError:
                raise
            except Exception as error:  # tensorstore reports a full disk as ValueError and the like
                raise OSError(None, str(error).splitlines()[0]) from error
            (path / _EXTRA).write_text(json.dumps(described))

        files.write_folder_atomic(self.folder, write)

    def keep(self, iterations: int, count: int) -> None:
        """Keeps the state just saved under its number as well ("checkpoint-00120"), and of such the last ones.

        Files are shared with the newest checkpoint where the disk can; where this fails the run goes on without.

        Args:
          iterations: that the state has behind it; states that claim more are of a part that was gone back on.
          count: how many are kept.
        """
        with contextlib.suppress(OSError):
            kept = self.numbered(iterations)
            shutil.rmtree(kept, ignore_errors=True)
            part = kept.with_name(f".{self.folder.name}.{iterations}.part")  # `tidy` removes it
            shutil.copytree(self.folder, part, copy_function=_link)
            part.rename(kept)
        states = self._kept()
        last = [path for number, path in states if number <= iterations][-count:]
        for _, path in states:
            if path not in last:
                shutil.rmtree(path, ignore_errors=True)

    def forget(self) -> None:
        """Removes what `keep` kept."""
        for _, path in self._kept():
            shutil.rmtree(path, ignore_errors=True)

    def numbered(self, iterations: int) -> pathlib.Path:
        """Returns where `keep` keeps a state."""
        return self.folder.with_name(f"{self.folder.name}-{iterations:05d}")

    def _kept(self) -> list[tuple[int, pathlib.Path]]:
        """Returns the iterations and folders of what `keep` kept."""
        pattern = re.compile(re.escape(self.folder.name) + r"-(\d+)")
        matches = [(pattern.fullmatch(path.name), path) for path in self.folder.parent.iterdir()]
        return sorted((int(match[1]), path) for match, path in matches if match is not None)

    def load_first(self, template: Tree) -> Tree:
        """Reads the first part of what `save` wrote.

        Args:
          template: a tree with as many leaves as are wanted, of the same shapes and dtypes.

        Raises:
          ArtifactError: as `load`.
        """
        return self._load(template, first=True)[0]

    def load(self, template: Tree) -> tuple[Tree, JsonObject]:
        """Reads what `save` wrote.

        Args:
          template: a tree of the same structure, shapes and dtypes.

        Returns:
          The tree, JAX arrays where the template has them and numpy elsewhere, and the plain values.

        Raises:
          ArtifactError: missing, damaged, of another structure, or written by a newer version.
        """
        self.tidy()
        return self._load(template)

    def _load(self, template: Tree, first: bool = False) -> tuple[Tree, JsonObject]:
        if not self.exists():
            raise ArtifactError(
                f"{self.folder.parent} holds no checkpoint yet; leave out --resume to start anew."
            )
        described = self._described()
        extra, digest = _values(described)
        if described.get("format", 1) > FORMAT:
            raise ArtifactError(
                f"The checkpoint {self.folder} was written by a newer version: upgrade alohas2r."
            )
        leaves = jax.tree.leaves(template)
        count = int(described.get("leaves", len(leaves)))
        if count < len(leaves) or (count > len(leaves) and not first):
            raise self._foreign()
        arrays = self._read(count)
        if digest is not None and _digest(arrays, extra) != digest:
            raise self._damaged("its content differs from its digest")
        restored = []
        for value, leaf in zip(arrays.values(), leaves, strict=not first):
            if value.shape != leaf.shape or value.dtype != leaf.dtype:
                raise self._foreign()
            restored.append(jax.numpy.asarray(value) if isinstance(leaf, jax.Array) else value)
        return jax.tree.unflatten(jax.tree.structure(template), restored), extra

    def values(self) -> JsonObject:
        """Returns the plain values alone.

        Raises:
          ArtifactError: they are damaged.
        """
        return _values(self._described())[0]

    def digest(self) -> str:
        """Returns the SHA-256 of the state and its plain values, as it was noted; "" in a checkpoint without one.

        Raises:
          ArtifactError: it is missing or damaged.
        """
        return _values(self._described())[1] or ""

    def _described(self) -> JsonObject:
        """Reads the description, with plain values and perhaps a digest in it."""
        try:
            described = json.loads((self.folder / _EXTRA).read_text())
            _values(described)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        return described

    def _read(self, count: int) -> dict[str, np.ndarray]:
        """Reads so many leaves."""
        import orbax.checkpoint as ocp

        names = [f"{index:04d}" for index in range(count)]
        try:
            arguments = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
            with ocp.PyTreeCheckpointer() as checkpointer:
                arrays = checkpointer.restore(self.folder / "arrays", restore_args=arguments)
            return {name: np.asarray(arrays[name]) for name in names}
        except Exception as error:  # a damaged folder fails in a dozen ways
            raise self._damaged(str(error).splitlines()[0]) from error

    def _damaged(self, how: str) -> ArtifactError:
        return ArtifactError(f"The checkpoint {self.folder} is damaged ({how}).")

    def _foreign(self) -> ArtifactError:
        return ArtifactError(
            f"The checkpoint {self.folder} belongs to another configuration, or to another version of alohas2r."
        )


def _link(source: str, target: str) -> None:
    """Gives a file, which is never written again, a second name; copies it where the disk has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _values(described: JsonObject) -> tuple[JsonObject, str | None]:
    """Returns the plain values of a checkpoint's description, and its digest if it has one."""
    named = {"format", "leaves", "values", "digest"}
    if not named & described.keys():  # from before there was a format
        return dict(described), None
    return dict(described["values"]), str(described["digest"])


def _digest(leaves: Mapping[str, np.ndarray], extra: JsonObject) -> str:
    """Returns a SHA-256 of named arrays and plain values."""
    hasher = hashlib.sha256(json.dumps(extra, sort_keys=True).encode())
    for name, value in leaves.items():
        hasher.update(f"{name} {value.dtype} {value.shape}".encode())
        hasher.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()
