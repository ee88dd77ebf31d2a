"""Runs in an MLflow store: folders beside the run, or the server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping

from alohas2r.core.types import Json, JsonObject, Untyped
from alohas2r.learning.run.loggers.base import Outcome, RunInfo

EXPERIMENT = "alohas2r"
FOLDER = "mlruns"  # beside the run's folder, so that runs of a kind share it
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_LONGEST = 500  # characters of a parameter that every store takes


class Mlflow:
    """Metrics over steps, the manifest's values as parameters, files as artifacts.

    A resumed run goes on with the same run of MLflow. One that was stopped is marked as killed until then.

    Raises:
      ModuleNotFoundError: the package mlflow (mlflow-skinny will do) is not installed.
    """

    name = "mlflow"

    def __init__(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing to its makers
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # plain folders need no database
        import mlflow
        from mlflow import entities

        self._mlflow: Untyped = mlflow
        self._entities: Untyped = entities
        self._client: Untyped = None
        self._id = ""

    def begin(self, run: RunInfo, earlier: JsonObject) -> JsonObject:
        """Opens the run, or goes on with the earlier one."""
        store = os.environ.get("MLFLOW_TRACKING_URI") or earlier.get("uri")
        store = store or (run.folder.absolute().parent / FOLDER).as_uri()
        self._client = self._mlflow.MlflowClient(tracking_uri=store)
        if "run_id" in earlier:
            self._id = str(earlier["run_id"])
            self._client.update_run(self._id, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            experiment = self._client.get_experiment_by_name(name)
            number = (
                self._client.create_experiment(name)
                if experiment is None
                else experiment.experiment_id
            )
            tags = {"label": run.label, "folder": str(run.folder)}
            self._id = self._client.create_run(number, run_name=run.name, tags=tags).info.run_id
            param = self._entities.Param
            params = [param(name, value) for name, value in _flat("", run.manifest)]
            for first in range(0, len(params), 100):  # at most so many a call
                self._client.log_batch(self._id, params=params[first : first + 100])
        return {"uri": store, "run_id": self._id}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the figures of a step."""
        now = int(1000 * time.time())
        metric = self._entities.Metric
        metrics = [metric(_plain(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, outcome: Outcome) -> None:
        """Hands over the files, and closes the run."""
        for name, value in outcome.figures.items():
            self._client.log_metric(self._id, _plain(f"run/{name}"), value)
        for path in outcome.files:
            inside = path.relative_to(outcome.folder).parent.as_posix()
            self._client.log_artifact(self._id, str(path), None if inside == "." else inside)
        self._client.set_terminated(self._id, _STATUS[outcome.status])


def _flat(prefix: str, value: Json) -> Iterator[tuple[str, str]]:
    """Yields the leaves of a manifest by their paths: ("config.ppo.discount", "0.97")."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), inner)
    else:
        yield _plain(prefix), str(value)[:_LONGEST]


def _plain(name: str) -> str:
    """Returns a name with nothing that MLflow refuses."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)
