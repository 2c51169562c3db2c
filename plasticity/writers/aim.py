"""Aim, https://aimstack.io, written for aim 3.29: a local repository, ``.aim``, or a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .service import ServiceWriter, kept_id, require_package


class AimWriter(ServiceWriter):
    """Write to a run of Aim: ``run``, else a new one, ``aim.Run(**init)``.

    Scalars, distributions and texts are tracked under their tags, settings are the run's parameters. A run that was
    given stays open at the end.
    """

    def __init__(self, run: Any = None, *, folder: Path | None = None, **init: Any) -> None:
        self._aim = require_package("aim")
        super().__init__("Aim", owned=run is None, folder=folder)
        quiet = {"experiment": "plasticity", "system_tracking_interval": None, "capture_terminal_logs": False}
        self.run = self._aim.Run(**{**quiet, **init}) if run is None else run

    @classmethod
    def of_folder(cls, folder: Path) -> AimWriter:
        """Return the writer of a run folder; a resumed run goes on in the same run of Aim."""
        if (folder / "aim.id").exists():
            return cls(folder=folder, run_hash=kept_id(folder, "aim", str), force_resume=True)
        writer = cls(folder=folder)
        kept_id(folder, "aim", lambda: writer.run.hash)
        writer.run.name = folder.name
        return writer

    def _settings(self, settings: Mapping[str, Any]) -> None:
        """Set the run's parameters."""
        for name, value in settings.items():
            self.run[name] = _plain(value)

    def _text(self, step: int, tag: str, markdown: str) -> None:
        """Write a text."""
        self.run.track(self._aim.Text(markdown), name=tag, step=step)

    def _scalars(self, step: int, numbers: dict[str, float]) -> None:
        for tag, number in numbers.items():
            self.run.track(number, name=tag, step=step)

    def _distribution(self, step: int, tag: str, numbers: NDArray[np.float64]) -> None:
        self.run.track(self._aim.Distribution(numbers), name=tag, step=step)

    def _end(self, succeeded: bool) -> None:
        if self.owned:
            self.run.close()


def _plain(value: Any) -> Any:
    """Return a setting as Aim keeps it: numbers, texts, and sequences and mappings of them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
