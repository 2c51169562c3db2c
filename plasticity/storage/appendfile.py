"""A file that only ever holds whole records, also after a full disk or a killed process."""

from __future__ import annotations

import errno
import os
from pathlib import Path


class AppendFile:
    """Append records to ``path``, each handed to the system at once; OSError if the file cannot be opened.

    Nothing waits in a buffer, so a killed process loses no record that ``append`` returned from. A record that was
    written in part (full disk) is cut off again before the next one, so writing resumes once there is space.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_file():  # opening a pipe would wait for its reader
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        self._file = path.open("ab", buffering=0)
        self._end = self._file.seek(0, os.SEEK_END)
        self._torn = False

    def append(self, record: bytes) -> None:
        """Write one record; raise OSError if it cannot be written whole."""
        if self._file.closed:
            raise OSError(f"{self.path.name} is closed")
        if self._torn:
            self._file.truncate(self._end)
        self._torn = True
        rest = memoryview(record)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._torn = False
        self._end += len(record)

    def sync(self) -> None:
        """Wait until all records are on the disk itself (milliseconds); OSError if that fails."""
        if not self._file.closed:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; more than once is fine, OSError if the system reports a late failure."""
        self._file.close()
