"""Weights & Biases, https://docs.wandb.ai, for wandb 0.31: online, offline (``WANDB_MODE=offline``), disabled."""

from __future__ import annotations

import html
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .service import ServiceWriter, kept_id, require_package

STEP_METRIC = "plasticity/step"
"""The metric against which all others are drawn: a loop that logs to the same run counts steps of its own."""


class WandbWriter(ServiceWriter):
    """Write to a run of Weights & Biases: ``run``, else the one that is open, else a new one, ``wandb.init(**init)``.

    Scalars and histograms go under their tags, texts and events as HTML, settings into the run's configuration. The
    steps are in ``plasticity/step``, the x-axis of all of it, so that rows of other loggers in the run are not
    disturbed. A run that was given stays open at the end.
    """

    def __init__(self, run: Any = None, *, folder: Path | None = None, **init: Any) -> None:
        self._wandb = require_package("wandb")
        present = run if run is not None or init else self._wandb.run
        super().__init__("Weights & Biases", owned=present is None, folder=folder)
        beside = {"reinit": "create_new"} if self._wandb.run is not None else {}
        self.run = self._wandb.init(**{**beside, **init}) if present is None else present
        self._known: set[str] = set()

    @classmethod
    def of_folder(cls, folder: Path) -> WandbWriter:
        """Return the writer of a run folder, in ``WANDB_PROJECT`` or ``plasticity``; a resumed run goes on in it."""
        project, number = os.environ.get("WANDB_PROJECT", "plasticity"), kept_id(folder, "wandb", _new_id)
        return cls(folder=folder, project=project, id=number, name=folder.name, dir=str(folder), resume="allow")

    def _settings(self, settings: Mapping[str, Any]) -> None:
        """Add the settings to the run's configuration, nested as they are."""
        self.run.config.update(dict(settings), allow_val_change=True)

    def _text(self, step: int, tag: str, markdown: str) -> None:
        """Write a text, as preformatted HTML."""
        self._send(step, {tag: self._wandb.Html(f"<pre>{html.escape(markdown)}</pre>", inject=False)})

    def _scalars(self, step: int, numbers: dict[str, float]) -> None:
        self._send(step, numbers)

    def _distribution(self, step: int, tag: str, numbers: NDArray[np.float64]) -> None:
        self._send(step, {tag: self._wandb.Histogram(numbers)})

    def _send(self, step: int, values: Mapping[str, Any]) -> None:
        for tag in values.keys() - self._known:
            self.run.define_metric(tag, step_metric=STEP_METRIC)
            self._known.add(tag)
        self.run.log({STEP_METRIC: int(step), **values})

    def _end(self, succeeded: bool) -> None:
        if self.owned:
            self.run.finish(exit_code=0 if succeeded else 1)


def _new_id() -> str:
    return uuid.uuid4().hex[:8]
