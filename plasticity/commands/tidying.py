"""Delete or move the folder of a run, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from plasticity.storage.files import LOCK, RunLock, require_free
from plasticity.storage.record import CHECKPOINTS, MODEL, RECORD
from plasticity.storage.rows import METRICS_FILE
from plasticity.storage.scores import SCORES_FILE

WRITTEN = (
    MODEL,
    CHECKPOINTS,
    METRICS_FILE,
    SCORES_FILE,
    "metrics.csv",
    "scores.csv",
    "settings.csv",
    "events.csv",
    "video.mp4",
    "events.out.tfevents.*",
    RECORD,
)
"""Names, as globs, of what a run writes into its folder; the record last, so that half a deletion can be repeated."""


def require_alone(folder: Path) -> None:
    """Raise ValueError for a run with other runs in its folder."""
    if inner := next((path for path in folder.rglob(RECORD) if path.parent != folder), None):
        raise ValueError(f"{folder} holds another run, {inner.parent}; choose with --name")


def delete(folder: Path) -> list[str]:
    """Delete what a run wrote, and its folder if that is empty then; return the names of what stays.

    Links are removed, not followed. Raises RuntimeError for a run that is being trained.
    """
    from plasticity.storage.checkpoint import remove  # with PyTorch, which takes a second

    with RunLock(folder):
        for glob in WRITTEN:
            for path in [path for path in folder.iterdir() if fnmatchcase(path.name, glob)]:
                if path.is_dir() and not path.is_symlink():
                    remove(path)
                else:
                    path.unlink()
    (folder / LOCK).unlink(missing_ok=True)  # only now: Windows removes no file that is open
    kept = sorted(path.name for path in folder.iterdir())
    if not kept:
        folder.rmdir()
    return kept


def archive(folder: Path, root: Path, target: Path) -> Path:
    """Move a run from its place below ``root`` to the same place below ``target``, and return that.

    Raises RuntimeError for a run that is being trained, ValueError where something stands in its place, or where
    ``target`` lies within the run.
    """
    place = target / (folder.relative_to(root) if folder != root else folder.absolute().name)
    if place.exists() or place.is_symlink():
        raise ValueError(f"{place} exists already, so {folder} was not moved")
    if place.absolute().is_relative_to(folder.absolute()):
        raise ValueError(f"{place} lies within {folder}; pass another --archive")
    require_alone(folder)
    require_free(folder)  # not locked meanwhile: Windows moves no file that is open
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, place)
    return place


def size_of(folders: Sequence[Path]) -> int:
    """Return the bytes of all files below some folders."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)
