"""Files that are there whole or not at all, and a lock on a folder."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
import warnings
from pathlib import Path
from typing import Any, BinaryIO, TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # anywhere else
    msvcrt = None  # type: ignore[assignment]

LOCK = "run.lock"
NO_LOCKS = {getattr(errno, name) for name in ("ENOTSUP", "EOPNOTSUPP", "ENOSYS", "ENOLCK")}
"""Errors of disks, such as some of networks, that have no locks."""
FAR = 2**30
"""Place of the byte that Windows locks: what it locks cannot be read, and the holder's number should be."""


class Output:
    """A new file that is hashed as it is written; leaving the ``with`` block means that it is on the disk itself.

    Raises OSError if the file exists, and wherever the system does not take the data.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        self._hash = hashlib.sha256()
        self.size = 0
        """Bytes written so far."""

    def write(self, data: Any) -> None:
        """Write bytes, or any contiguous array, which is not copied."""
        rest = memoryview(data).cast("B")
        self._hash.update(rest)
        self.size += len(rest)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def digest(self) -> str:
        """Return the SHA-256 of the bytes written so far, in hexadecimal."""
        return self._hash.hexdigest()

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                _sync(self._fd)
        finally:
            os.close(self._fd)


class Input:
    """A file that is hashed as it is read; OSError unless it is a plain file, as opposed to a link, pipe or folder."""

    def __init__(self, path: Path) -> None:
        self._file = open(_open_plain(path, "O_NOFOLLOW"), "rb", buffering=0)  # noqa: SIM115
        self._hash = hashlib.sha256()
        self.size = os.fstat(self._file.fileno()).st_size
        """Bytes in the file when it was opened."""

    def read(self, size: int) -> bytes:
        """Return the next ``size`` bytes; EOFError if there are fewer."""
        data = bytearray(size)
        self.read_into(data)
        return bytes(data)

    def read_into(self, buffer: Any) -> None:
        """Fill a writable array with the next bytes; EOFError if there are fewer."""
        rest = memoryview(buffer).cast("B")
        while rest:
            piece = rest[: 2**24]
            count = self._file.readinto(piece)
            if not count:
                raise EOFError("it ends too early")
            self._hash.update(piece[:count])
            rest = rest[count:]

    def digest(self) -> str:
        """Return the SHA-256 of the bytes read so far, in hexadecimal."""
        return self._hash.hexdigest()

    def __enter__(self) -> Input:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def open_plain(path: Path) -> BinaryIO:
    """Open a file, or what a link to it leads to, for reading; OSError for a pipe, a device or a folder.

    Such a pipe would wait for its writer for ever, and such a device may never end.
    """
    return open(_open_plain(path), "rb")


def open_text(path: Path, errors: str = "strict") -> TextIO:
    """Open a file of UTF-8 text, a mark of byte order before it or not; OSError as for :func:`open_plain`."""
    return io.TextIOWrapper(open_plain(path), encoding="utf-8-sig", errors=errors)


def _open_plain(path: Path, *flags: str) -> int:
    chosen = sum(getattr(os, flag, 0) for flag in (*flags, "O_NONBLOCK", "O_BINARY"))  # opening a pipe does not wait
    fd = os.open(path, os.O_RDONLY | chosen)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return fd


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, and a crash at any moment, finds the old one or the new one, never half of it.

    Raises OSError that names ``path``, which is then as it was.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)  # of a process that was killed
        with Output(partial) as file:
            file.write(data)
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, f"{error.strerror}; it was not written", str(path)) from error


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk itself; systems and disks that cannot do that are left alone."""
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        _sync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, *NO_LOCKS):
            raise
    finally:
        os.close(fd)


def _sync(fd: int) -> None:
    """Wait until an open file is on the disk itself: on macOS, fsync alone stops at the memory of the drive."""
    whole = getattr(fcntl, "F_FULLFSYNC", None)
    if whole is not None:
        try:
            fcntl.fcntl(fd, whole)
            return
        except OSError:
            pass  # a disk that does not know it
    os.fsync(fd)


def file_name(text: str) -> str:
    """Return a text as part of a file's name: what some system does not allow there becomes a hyphen."""
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]+', "-", text)


def printable(text: str) -> str:
    """Return a text for a terminal or a table: letters that a line may not hold are written as Python writes them.

    These are line ends, escape sequences of terminals, letters that turn the direction of a text, lone surrogates.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def require_free(folder: Path) -> None:
    """Raise RuntimeError that names the process which holds the lock of a folder, if one does."""
    if (folder / LOCK).exists():
        with RunLock(folder):
            pass


def _lock(fd: int) -> None:
    """Lock an open file until it is closed; BlockingIOError if another process has it."""
    if fcntl is not None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    os.lseek(fd, FAR, os.SEEK_SET)
    try:
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except PermissionError as error:
        raise BlockingIOError(error.errno, error.strerror) from error
    finally:
        os.lseek(fd, 0, os.SEEK_SET)


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder; nothing is written to it."""
    try:
        fd = _open_plain(folder / LOCK)
    except OSError:
        return False
    try:
        _lock(fd)
    except OSError as error:
        return error.errno not in NO_LOCKS
    finally:
        os.close(fd)
    return False


class RunLock:
    """Keep a second process out of ``folder``, as a ``with`` block; RuntimeError names the process that is in it.

    The system gives the lock back when its holder ends, however it ends; forked children hold it too. It rests with an
    open file, ``run.lock``, which stays in the folder, empty; on a network it is as good as that system's ``flock``.
    On a system or disk without locks there is a RuntimeWarning.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / LOCK
        self._fd: int | None = None

    def __enter__(self) -> RunLock:
        if fcntl is None and msvcrt is None:
            return self._without("this system has no flock")
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            _lock(self._fd)
        except OSError as error:
            holder = os.read(self._fd, 20).decode(errors="replace").strip()
            os.close(self._fd)
            self._fd = None
            if error.errno in NO_LOCKS:
                return self._without(f"its disk has no locks ({error.strerror})")
            if not isinstance(error, BlockingIOError):
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            process = f"process {holder}" if holder.isdigit() else "another process"
            raise RuntimeError(f"{self.path.parent} is in use by {process}: wait until it ends, or stop it") from error
        os.truncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())
        return self

    def _without(self, reason: str) -> RunLock:
        warnings.warn(f"{self.path.parent} is not locked: {reason}", RuntimeWarning, stacklevel=3)
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.truncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None
