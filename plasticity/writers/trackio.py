"""Trackio, https://github.com/gradio-app/trackio, written for trackio 0.43: local, nothing leaves the machine."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .service import ServiceWriter, kept_id, require_package


class TrackioWriter(ServiceWriter):
    """Write to a run of Trackio: ``run``, else a new one, ``trackio.init(**init)``, of the project ``plasticity``.

    Scalars and histograms go under their tags, texts and events as Markdown, settings into the run's configuration.
    A run that was given stays open at the end. ``trackio show`` shows it; ``TRACKIO_DIR`` says where it is kept.
    """

    def __init__(self, run: Any = None, *, folder: Path | None = None, **init: Any) -> None:
        self._trackio = require_package("trackio")
        super().__init__("Trackio", owned=run is None, folder=folder)
        quiet = {"project": "plasticity", "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self.run = self._trackio.init(**{**quiet, **init}) if run is None else run

    @classmethod
    def of_folder(cls, folder: Path) -> TrackioWriter:
        """Return the writer of a run folder, in ``TRACKIO_PROJECT`` or ``plasticity``; a resumed run goes on in it."""
        name = kept_id(folder, "trackio", lambda: f"{folder.name}-{uuid.uuid4().hex[:6]}")
        return cls(folder=folder, project=os.environ.get("TRACKIO_PROJECT", "plasticity"), name=name, resume="allow")

    def _settings(self, settings: Mapping[str, Any]) -> None:
        """Add the settings to the run's configuration, which Trackio sends with the first row."""
        self.run.config.update(dict(settings))

    def _text(self, step: int, tag: str, markdown: str) -> None:
        """Write a text."""
        self.run.log({tag: self._trackio.Markdown(markdown)}, step=step)

    def _scalars(self, step: int, numbers: dict[str, float]) -> None:
        self.run.log(numbers, step=step)

    def _distribution(self, step: int, tag: str, numbers: NDArray[np.float64]) -> None:
        self.run.log({tag: self._trackio.Histogram(numbers)}, step=step)

    def _end(self, succeeded: bool) -> None:
        if self.owned:
            self.run.finish()
