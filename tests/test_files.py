"""Files that are there whole or not at all, and the lock on a folder, with real processes."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plasticity.storage import files
from plasticity.storage.files import Input, Output, RunLock, write_atomically
from plasticity.storage.record import read_record, write_record


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, b"old")
    opened = path.open("rb")
    write_atomically(path, b"new and longer")
    assert opened.read() == b"old"  # whoever reads the old one goes on reading the old one
    opened.close()
    assert path.read_bytes() == b"new and longer"
    assert names(tmp_path) == ["run.json"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_is_one_error_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "run.json"
    write_record(tmp_path, {"agent": "old", "config": {}})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left on device; it was not written") as caught:
        write_record(tmp_path, {"agent": "new", "config": {}})
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert read_record(tmp_path)["agent"] == "old"
    assert names(tmp_path) == ["run.json"]


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    (tmp_path / "a.partial").write_bytes(b"half")
    (tmp_path / "b.partial").symlink_to(outside)
    write_atomically(tmp_path / "a", b"whole")
    write_atomically(tmp_path / "b", b"whole")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"whole"
    assert outside.read_bytes() == b"mine"
    assert names(tmp_path) == ["a", "b", "outside"]


def test_data_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    for call in ("write", "fsync", "replace"):
        real = getattr(os, call)
        monkeypatch.setattr(os, call, lambda *a, call=call, real=real: (order.append(call), real(*a))[1])
    write_atomically(tmp_path / "x", b"data")
    assert order == ["write", "fsync", "replace", "fsync"]


def test_short_writes_and_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    with Output(tmp_path / "x") as file:
        file.write(b"abc")
        file.write(b"")
        assert (file.size, file.digest()) == (3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        file.write(bytes(range(10)))
    with pytest.raises(FileExistsError):
        Output(tmp_path / "x")
    with Input(tmp_path / "x") as file:
        assert file.size == 13
        assert file.read(3) == b"abc"
        assert file.digest() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        with pytest.raises(EOFError, match="it ends too early"):
            file.read(11)


# -- the lock ----------------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from plasticity.storage.files import RunLock
with RunLock(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


@contextmanager
def hold(folder: Path) -> Iterator[subprocess.Popen]:
    """A process that is in ``folder``, or was refused: its first line says which."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], **pipes) as process:
        try:
            process.first_line = process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_a_second_run_in_a_folder_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    with hold(tmp_path) as first:
        assert first.first_line == "in\n"
        with pytest.raises(RuntimeError, match=f"is in use by process {first.pid}: wait until it ends, or stop it"):
            RunLock(tmp_path).__enter__()
        (tmp_path / "other").mkdir()
        with RunLock(tmp_path / "other"):
            pass
        with hold(tmp_path) as second:
            assert second.first_line == ""
            assert f"RuntimeError: {tmp_path} is in use by process {first.pid}" in second.stderr.read()
        first.communicate()  # closes its stdin, so that it leaves
        assert first.returncode == 0
    with RunLock(tmp_path):
        assert (tmp_path / "run.lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(RuntimeError, match=f"process {os.getpid()}"):
            RunLock(tmp_path).__enter__()
    assert (tmp_path / "run.lock").read_text() == ""


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with hold(tmp_path) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert (tmp_path / "run.lock").read_text() == f"{first.pid}\n"
        with RunLock(tmp_path) as lock, pytest.raises(RuntimeError, match=f"process {os.getpid()}:"):
            RunLock(lock.path.parent).__enter__()


def test_a_lock_can_be_taken_again_and_says_so_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = RunLock(tmp_path)
    for _ in range(2):
        with lock:
            pass
    with pytest.raises(FileNotFoundError, match=r"run\.lock"):
        RunLock(tmp_path / "absent").__enter__()
    monkeypatch.setattr(files, "fcntl", None)
    with pytest.warns(RuntimeWarning, match="is not locked: this system has no flock"), RunLock(tmp_path):
        pass


def test_a_lock_without_a_number_is_still_a_lock(tmp_path: Path) -> None:
    with RunLock(tmp_path) as lock:
        lock.path.write_bytes(b"\xff not a number")
        with pytest.raises(RuntimeError, match="is in use by another process"):
            RunLock(tmp_path).__enter__()
