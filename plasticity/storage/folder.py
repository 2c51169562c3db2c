"""The checkpoints of one run: the last few and the best one, and the newest that is not damaged."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

from .checkpoint import CheckpointError, load, partial_of, read_manifest, remove, save

_NAME = re.compile(r"\d{6,18}-step-\d{1,18}", re.ASCII)
_LEFTOVER = re.compile(rf"\.{_NAME.pattern}\.partial", re.ASCII)


class Checkpoints:
    """The folder ``root`` with checkpoints ``<number>-step-<step>``, of which the last ``keep`` and the best stay.

    The number counts the saves, so that a run which went back to an older checkpoint never writes over what it left
    behind. Only one process may save at a time: see :class:`plasticity.storage.files.RunLock`.
    """

    def __init__(self, root: Path | str, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep is a number of checkpoints, at least 1; got {keep}")
        self.root, self.keep = Path(root), keep

    def save(self, step: int, state: Any, score: float | None = None) -> Path:
        """Save the state at ``step`` and return its folder; then remove those that are not kept.

        ``score``: higher is better; one that is not finite counts as none. Raises what the ``save`` of one checkpoint
        raises, and leaves all older ones as they are then.
        """
        self._remove_leftovers()
        number = max((_number_and_step(folder)[0] for folder in self.all()), default=0) + 1
        score = float(score) if score is not None and math.isfinite(score) else None
        folder = save(self.root / f"{number:06d}-step-{int(step)}", state, {"step": int(step), "score": score})
        self._prune()
        return folder

    def all(self) -> list[Path]:
        """Return the folders of all checkpoints, damaged ones too, in the order in which they were saved."""
        folders = self.root.iterdir() if self.root.is_dir() else ()
        found = [folder for folder in folders if _NAME.fullmatch(folder.name) and not folder.is_symlink()]
        return sorted(found, key=_number_and_step)

    def latest(self) -> Path | None:
        """Return the folder that was saved last, None if there is none; it may be damaged."""
        return next(reversed(self.all()), None)

    def best(self) -> Path | None:
        """Return the folder with the highest score, the later of equals; None where none has a readable score."""
        scored = [(score, folder) for folder in self.all() if (score := _score(folder)) not in (None, -math.inf)]
        return max(reversed(scored), key=lambda pair: pair[0] or 0.0, default=(0.0, None))[1]

    def load_latest(self) -> tuple[int, Any]:
        """Return (step, state) of the newest checkpoint that is whole; a warning names each damaged one passed over.

        Raises CheckpointError if there is none, with what is wrong with each.
        """
        reasons = []
        for folder in reversed(self.all()):
            try:
                state = load(folder)
            except CheckpointError as error:
                reasons.append(str(error))
                continue
            for reason in reasons:
                warnings.warn(f"{reason}; going back to {folder.name}", RuntimeWarning, stacklevel=2)
            return _number_and_step(folder)[1], state
        raise CheckpointError("; ".join([f"{self.root} holds no checkpoint that can be read", *reasons]))

    def _prune(self) -> None:
        # What is damaged counts for nothing and is left alone: a newer version may have written it.
        readable = [folder for folder in self.all() if _score(folder) is not None]
        kept = {*readable[-self.keep :], self.best()}
        for folder in readable:
            if folder not in kept:
                _remove(folder)

    def _remove_leftovers(self) -> None:
        """Remove checkpoints that a crash left half written or half removed."""
        for folder in self.root.iterdir() if self.root.is_dir() else ():
            if _LEFTOVER.fullmatch(folder.name):
                _remove(folder)


def step_of_name(folder: Path) -> int:
    """Return the step in the name of a checkpoint, 0 for another folder."""
    return _number_and_step(folder)[1] if _NAME.fullmatch(folder.name) else 0


def _number_and_step(folder: Path) -> tuple[int, int]:
    number, step = folder.name.split("-step-")
    return int(number), int(step)


def _score(folder: Path) -> float | None:
    """Return the score of a checkpoint, -inf for one without; None where the manifest cannot be read."""
    try:
        score = read_manifest(folder)["notes"].get("score")
    except CheckpointError:
        return None
    return score if isinstance(score, float) else -math.inf


def _remove(folder: Path) -> None:
    """Remove a checkpoint, first its name: a crash in between leaves nothing that looks like a damaged one."""
    try:
        leftover = folder if _LEFTOVER.fullmatch(folder.name) else partial_of(folder)
        if leftover != folder:
            remove(leftover)
            folder.rename(leftover)
        remove(leftover)
    except OSError as error:
        warnings.warn(f"{folder} could not be removed: {error.strerror}", RuntimeWarning, stacklevel=4)
