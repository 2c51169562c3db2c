"""Read a growing file of JSON lines, each part once."""

from __future__ import annotations

from pathlib import Path

from plasticity.storage.files import open_plain


class Tail:
    """The whole lines of ``path`` that were not read yet; a line that is still being written waits for its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._inode = -1

    def fresh(self) -> tuple[bool, list[bytes]]:
        """Return whether the file began anew since the last call, and its new lines; nothing where there is no file."""
        try:
            with open_plain(self.path) as file:
                status = self.path.stat()
                again = status.st_size < self._offset or status.st_ino != self._inode
                if again:
                    self._offset, self._inode = 0, status.st_ino
                file.seek(self._offset)
                new = file.read()
        except OSError:
            return False, []
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        return again, whole.splitlines()
