"""Checkpoints of a whole run: any tree of arrays, written by orbax, whole or not at all."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from alohas2r.core import files
from alohas2r.errors import ArtifactError


class Checkpoint:
    """The newest state of a run in a folder.

    Args:
      folder: where it is kept; replaced as a whole by each save.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = pathlib.Path(folder).absolute()

    def exists(self) -> bool:
        """Whether there is a checkpoint to load."""
        files.recover_folder(self.folder)
        for left in self.folder.parent.glob(f".{self.folder.name}.*.part"):
            shutil.rmtree(left, ignore_errors=True)  # by a run that was killed while saving
        return (self.folder / "extra.json").is_file()

    def save(self, tree: Any, extra: dict[str, Any]) -> None:
        """Writes the leaves of a tree of arrays, and a few plain values.

        Raises:
          ArtifactError: the disk is full, or the like; the earlier checkpoint is intact.
        """
        import orbax.checkpoint as ocp

        leaves = {
            f"{index:04d}": np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(tree))
        }

        def write(path: pathlib.Path) -> None:
            try:
                with ocp.PyTreeCheckpointer() as checkpointer:
                    checkpointer.save(path / "arrays", leaves)
            except OSError:
                raise
            except Exception as error:  # tensorstore reports a full disk as ValueError and the like
                raise OSError(None, str(error).splitlines()[0]) from error
            (path / "extra.json").write_text(json.dumps(extra))

        files.write_folder_atomic(self.folder, write)

    def load(self, template: Any) -> tuple[Any, dict[str, Any]]:
        """Reads what `save` wrote.

        Args:
          template: a tree of the same structure, shapes and dtypes.

        Returns:
          The tree, JAX arrays where the template has them and numpy elsewhere, and the plain values.

        Raises:
          ArtifactError: missing, damaged, or of another structure.
        """
        import orbax.checkpoint as ocp

        if not self.exists():
            raise ArtifactError(
                f"{self.folder.parent} holds no checkpoint yet; leave out --resume to start anew."
            )
        try:
            extra = json.loads((self.folder / "extra.json").read_text())
            leaves = jax.tree.leaves(template)
            arguments = {
                f"{index:04d}": ocp.RestoreArgs(restore_type=np.ndarray)
                for index in range(len(leaves))
            }
            with ocp.PyTreeCheckpointer() as checkpointer:
                found = checkpointer.restore(self.folder / "arrays", restore_args=arguments)
        except Exception as error:
            raise ArtifactError(
                f"The checkpoint {self.folder} is damaged ({str(error).splitlines()[0]})."
            ) from error
        restored = []
        for index, leaf in enumerate(leaves):
            value = found[f"{index:04d}"]
            if value.shape != leaf.shape or value.dtype != leaf.dtype:
                raise ArtifactError(
                    f"The checkpoint {self.folder} belongs to another configuration."
                )
            restored.append(jax.numpy.asarray(value) if isinstance(leaf, jax.Array) else value)
        return jax.tree.unflatten(jax.tree.structure(template), restored), extra
