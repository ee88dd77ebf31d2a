"""Runs at Weights & Biases: on its servers, or kept in the run's folder until `wandb sync`."""

from __future__ import annotations

import logging
import os
import pathlib
import secrets
from collections.abc import Mapping

from alohas2r.core.types import JsonObject, Untyped
from alohas2r.learning.run.loggers.base import END_WAIT_S, Outcome, RunInfo

PROJECT = "alohas2r"
_SERVICE_WAIT_S = 300.0  # for wandb's own process to start
_PICTURES, _VIDEOS, _PAGES = (".png", ".jpg", ".gif"), (".mp4",), (".html",)


class WeightsAndBiases:
    """Figures over steps, the manifest as configuration, files and media.

    WANDB_PROJECT, WANDB_ENTITY, WANDB_DIR and the like mean what they always do. Without WANDB_MODE it is online
    where there is a key that its servers take, and offline otherwise. A resumed run goes on with the same id.

    Raises:
      ModuleNotFoundError: the package wandb is not installed.
    """

    name = "wandb"

    def __init__(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing to its makers
        import wandb

        self._wandb: Untyped = wandb
        self._run: Untyped = None

    def begin(self, run: RunInfo, earlier: JsonObject) -> JsonObject:
        """Opens the run, or goes on with the earlier one."""
        # stderr is the run's. A service that is read from disk for the first time, beside a training that takes all
        # cores, is not there within wandb's own 30 s; here nothing waits for it but the end of the run.
        quiet = self._wandb.Settings(
            silent=True, show_warnings=False, x_service_wait=_SERVICE_WAIT_S
        )
        self._wandb.setup(settings=quiet)
        kept = {"id": earlier.get("id") or secrets.token_hex(4)}
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=kept["id"],
            name=run.name,
            group=run.folder.absolute().parent.name,
            job_type=run.label,
            resume="allow",
            config=run.manifest,
            allow_val_change=True,
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            mode=os.environ.get("WANDB_MODE") or self._mode(run.folder),
            reinit="create_new",
            settings=self._wandb.Settings(
                silent=True, show_warnings=False, console="off", finish_timeout=0.8 * END_WAIT_S
            ),
        )
        # Steps of its own would refuse what a resumed run does again.
        self._run.define_metric("env_steps")
        self._run.define_metric("*", step_metric="env_steps")
        return kept

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the figures of a step."""
        self._run.log({**values, "env_steps": step})

    def finish(self, outcome: Outcome) -> None:
        """Hands over files and media, and closes the run."""
        self._run.summary.update({**outcome.figures, "status": outcome.status})
        for path in outcome.files:
            self._run.save(str(path), base_path=str(outcome.folder), policy="now")
            medium = self._medium(path)
            if medium is not None:
                self._run.log({f"media/{path.relative_to(outcome.folder)}": medium})
        self._run.finish(exit_code=int(outcome.status == "failed"))

    def _medium(self, path: pathlib.Path) -> Untyped:
        """Returns what the run's page shows of a file; None for nothing."""
        if path.suffix in _PICTURES:
            return self._wandb.Image(str(path))
        if path.suffix in _VIDEOS:
            return self._wandb.Video(str(path))
        return self._wandb.Html(path.read_text()) if path.suffix in _PAGES else None

    def _mode(self, folder: pathlib.Path) -> str:
        """Returns whether there is somebody to log in; a server that is out of reach is said."""
        try:
            return "online" if self._wandb.login(prompt=False) else "offline"
        except self._wandb.Error as error:
            logging.getLogger("alohas2r").warning(
                "--log wandb: %s; kept in %s until wandb sync.",
                " ".join(str(error).split()),
                folder,
            )
            return "offline"
