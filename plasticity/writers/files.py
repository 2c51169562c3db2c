"""The base of writers of files: records that cannot be written are dropped and counted; training goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .records import RecordWriter


class FileWriter(RecordWriter):
    """Write into ``folder``, which is made if missing.

    The constructor raises OSError for a folder that cannot be written, and a closed writer RuntimeError. Later, records
    that cannot be written, on a full disk for example, are dropped and counted in ``dropped``; the first drop of a kind
    is reported through ``logging``, the total when the writer is closed. Writing goes on as soon as there is space
    again.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder)
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def close(self, succeeded: bool = True) -> None:
        """Close the files; more than once is fine."""
        if not self.closed:
            self._end(succeeded)
            self.closed = True
            self._tell_dropped()

    def sync(self) -> None:
        """Wait until everything is on the disk itself, safe from a power cut: takes milliseconds, not for every row."""

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(succeeded=kind is None)

    def _end(self, succeeded: bool) -> None:
        """Close the files."""
        raise NotImplementedError

    def _attempt(self, kind: str, write: Callable[[], None]) -> None:
        """Call ``write``; count one more of ``kind`` as dropped where it cannot be written."""
        self.require_open()
        try:
            write()
        except (OSError, ValueError, TypeError) as error:
            self._drop(kind, str(error))
