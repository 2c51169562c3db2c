"""MLflow, https://mlflow.org, written for mlflow 3.17: a server, or a local store of files or SQLite without one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from time import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .records import as_json, dotted
from .service import ServiceWriter, kept_id, require_package

QUANTILES = (0, 10, 25, 50, 75, 90, 100)
"""Percentiles that stand for a distribution, because MLflow has no histograms."""
MAX_METRICS, MAX_PARAMS = 1000, 100
"""The most that one request may hold (MLflow's documented limits of log-batch)."""


class MLflowWriter(ServiceWriter):
    """Write to a run of MLflow: ``run`` (one or its id), else the active one, else a new one of ``experiment``.

    ``uri``: the store, default MLflow's own (``MLFLOW_TRACKING_URI``). ``experiment``: default
    ``MLFLOW_EXPERIMENT_NAME``, or ``plasticity``. Scalars are metrics, characters that MLflow refuses replaced by
    ``_``; a distribution is its percentiles, ``<tag>/p50`` and so on; settings are parameters and ``settings.json``;
    texts and the details of events are artifacts, a file each. A run that was given stays open at the end.
    """

    def __init__(
        self,
        run: Any = None,
        *,
        experiment: str | None = None,
        name: str | None = None,
        uri: str | None = None,
        folder: Path | None = None,
    ) -> None:
        mlflow = require_package("mlflow")
        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        present = run if run is not None or experiment or name or uri else mlflow.active_run()
        super().__init__("MLflow", owned=present is None, folder=folder)
        self.run_id: str = self._create(experiment, name) if present is None else _id_of(present)

    @classmethod
    def of_folder(cls, folder: Path) -> MLflowWriter:
        """Return the writer of a run folder; a resumed run goes on in the same run of MLflow."""
        number = kept_id(folder, "mlflow", lambda: cls(name=folder.name).run_id)
        writer = cls(number, folder=folder)
        writer.owned = True
        writer._client.update_run(number, status="RUNNING")
        return writer

    def _settings(self, settings: Mapping[str, Any]) -> None:
        """Write parameters, of a resumed run those that are new, because MLflow's cannot change; all in a file."""
        known = self._client.get_run(self.run_id).data.params
        found = {_key(name): str(value) for name, value in dotted(settings).items()}
        params = [self._entities.Param(name, value) for name, value in found.items() if name not in known]
        for begin in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(self.run_id, params=params[begin : begin + MAX_PARAMS])
        self._client.log_text(self.run_id, as_json(settings), "settings.json")

    def _text(self, step: int, tag: str, markdown: str) -> None:
        """Write a text as the artifact ``<tag>/<step>.md``."""
        self._client.log_text(self.run_id, markdown, f"{_key(tag)}/{int(step)}.md")

    def _scalars(self, step: int, numbers: dict[str, float]) -> None:
        now = int(time() * 1000)
        metrics = [self._entities.Metric(_key(tag), number, now, step) for tag, number in numbers.items()]
        for begin in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[begin : begin + MAX_METRICS])

    def _distribution(self, step: int, tag: str, numbers: NDArray[np.float64]) -> None:
        values = np.percentile(numbers, QUANTILES).tolist()
        self._scalars(step, {f"{tag}/p{share}": value for share, value in zip(QUANTILES, values, strict=True)})

    def _create(self, experiment: str | None, name: str | None) -> str:
        title = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", "plasticity")
        there = self._client.get_experiment_by_name(title)
        number = self._client.create_experiment(title) if there is None else there.experiment_id
        return str(self._client.create_run(number, run_name=name).info.run_id)

    def _end(self, succeeded: bool) -> None:
        if self.owned:
            self._client.set_terminated(self.run_id, "FINISHED" if succeeded else "FAILED")


def _id_of(run: Any) -> str:
    """Return the id of a run, or an id as it is."""
    return run if isinstance(run, str) else str(run.info.run_id)


def _key(tag: str) -> str:
    """Return a tag with the characters alone that MLflow allows everywhere, and without empty parts of a path."""
    return "/".join(part for part in re.sub(r"[^\w\-. /]", "_", tag).split("/") if part.strip("."))
