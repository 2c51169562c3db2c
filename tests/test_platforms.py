"""Other Pythons and other systems: what is simulated here runs on Python 3.10 to 3.14, Linux, macOS and Windows."""

import ast
import errno
import multiprocessing
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from plasticity import cli, clone
from plasticity.agents import products
from plasticity.commands import seeds, stopping
from plasticity.envs import graphics, make_env
from plasticity.storage import files

ROOT = Path(__file__).parents[1]
INSTALLED = sorted(file for part in ("plasticity", "agents", "envs") for file in (ROOT / part).rglob("*.py"))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")

# -- Python 3.10 to 3.14 -----------------------------------------------------------------------------------------------

NEWER = {
    "ExceptionGroup",
    "BaseExceptionGroup",
    "StrEnum",
    "Self",
    "Never",
    "TaskGroup",
    "override",
    "batched",
    "add_note",
}
"""Names of the standard library that Python 3.10 does not have and that a hand reaches for."""


def newer_names(file):
    """The names that a source takes from a newer Python; SyntaxError for newer syntax."""
    tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 10))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
    names = {alias.name for node in imports for alias in node.names}
    return (names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}) & NEWER


def test_sources_are_python_3_10():
    assert {str(file.relative_to(ROOT)): names for file in INSTALLED if (names := newer_names(file))} == {}


def test_newer_syntax_and_names_are_found(tmp_path):
    file = tmp_path / "newer.py"
    file.write_text("try: pass\nexcept* ValueError: pass\n", encoding="utf-8")
    with pytest.raises(SyntaxError):
        newer_names(file)
    file.write_text("from typing import Self\nerror.batched(2)\n", encoding="utf-8")
    assert newer_names(file) == {"Self", "batched"}


def test_metadata_names_every_python():
    supported = SpecifierSet(re.search(r'requires-python = "(.*)"', PYPROJECT)[1])
    assert all(python in supported for python in PYTHONS)
    assert "3.9" not in supported
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    assert named == list(PYTHONS)


def test_dm_control_is_asked_for_where_it_can_be_installed():
    asked = [Requirement(text) for text in re.findall(r'^    "(dm-control.*)",$', PYPROJECT, re.MULTILINE)]
    for python in PYTHONS:
        wanted = [one for one in asked if one.marker is None or one.marker.evaluate({"python_version": python})]
        assert bool(wanted) == (python in ("3.10", "3.11", "3.12"))


@pytest.fixture
def no_dm_control(monkeypatch):
    """Python 3.13: dm_control is not there."""
    monkeypatch.setitem(sys.modules, "dm_control", None)


@pytest.mark.usefixtures("no_dm_control")
@pytest.mark.parametrize("name", ["dmc/cheetah-run", "dmc/nothing-here", "dmc-pixels/cheetah-run", "cdmc/walker"])
def test_without_dm_control_its_tasks_say_what_to_do(name, capsys):
    assert cli.main(["train", "sac", "--env", name]) == 1
    *_, line = capsys.readouterr().err.splitlines()  # after the line that PyTorch is being imported
    assert re.search(
        r"(dmc(-pixels)?|cdmc)/[\w-]+ needs dm-control: pip install dm-control; on Python 3\.13 and newer", line
    )
    assert "pip install --no-deps dm-control" in line


@pytest.mark.usefixtures("no_dm_control")
def test_without_dm_control_all_else_is_there(capsys):
    make_env("Pendulum-v1").close()
    with pytest.raises(ValueError, match='did you mean "CartPole-v1"'):
        make_env("CartPol-v1")
    assert cli.main(["list", "envs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("CartPole-v1" in line for line in lines)
    assert not any(line.strip().startswith("dmc") for line in lines)
    assert sum("not installed: dmc/<domain>-<task>" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("backend", "loaded"), [("egl", ["triton"]), ("osmesa", ["triton"]), ("disabled", []), ("glfw", [])]
)
def test_triton_is_loaded_before_mesa(monkeypatch, tmp_path, backend, loaded):
    """Both bring LLVM, and the process ends if Mesa's comes first."""
    (tmp_path / "triton.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))  # so that it is put back afterwards
    monkeypatch.delitem(sys.modules, "triton")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    monkeypatch.setenv("MUJOCO_GL", backend)
    graphics.set_default_gl()
    assert [name for name in ("triton",) if name in sys.modules] == loaded


# -- installed, and called in a clone ----------------------------------------------------------------------------------

NOT_IN_PLACE = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f).lower()]; "
"""An installation that is not in place: the working directory, a clone, is all that Python finds."""


@pytest.mark.parametrize("part", ["agents", "envs"])
@pytest.mark.some(1)
def test_a_clone_as_working_directory_has_all_parts(part):
    """`pip install .`, then `python -m plasticity` or a notebook there: Python finds the clone's folder first."""
    code = f"{NOT_IN_PLACE}import plasticity.{part} as part; print(part.__file__)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == str(ROOT / part / "__init__.py"), result.stderr


def test_an_installed_package_has_no_finder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(clone, "BESIDE", {"plasticity.agents": tmp_path / "agents"})
    monkeypatch.setattr(sys, "meta_path", [])
    clone.find_beside()
    assert sys.meta_path == []


# -- encodings ---------------------------------------------------------------------------------------------------------


def text_without_encoding(tree):
    """Yield the lines of calls that read or write text in the encoding of the system."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in ("read_text", "write_text") and len(node.args) < 2:
            yield node.lineno
        is_method = isinstance(node.func, ast.Attribute)
        if name == "open" and not (is_method and getattr(node.func.value, "id", "") in ("os", "webbrowser", "browser")):
            words = [*node.args[0 if is_method else 1 :], *(w.value for w in node.keywords if w.arg == "mode")]
            mode = words[0].value if words and isinstance(words[0], ast.Constant) else "r"
            if "b" not in str(mode):
                yield node.lineno
        if name in ("run", "Popen", "check_output") and any(
            word.arg in ("text", "universal_newlines") and getattr(word.value, "value", False) for word in node.keywords
        ):
            yield node.lineno


@pytest.mark.parametrize("code", ["p.read_text()", "open(p)", "p.open('w')", "run(c, text=True)", "p.write_text(t)"])
def test_reading_in_the_encoding_of_the_system_is_found(code):
    assert list(text_without_encoding(ast.parse(code))) == [1]


def test_text_is_read_and_written_in_utf8():
    others = [file for part in ("examples", "docs") for file in (ROOT / part).rglob("*.py")]
    found = {str(f.relative_to(ROOT)): [*text_without_encoding(ast.parse(f.read_text(encoding="utf-8")))]
             for f in INSTALLED + others}  # fmt: skip
    assert {file: lines for file, lines in found.items() if lines} == {}


def test_help_in_a_locale_of_ascii(tmp_path):
    """Windows with an old code page, or LANG=C: nothing that is printed ends in a UnicodeEncodeError."""
    env = {
        **os.environ,
        "PYTHONIOENCODING": "ascii:strict",
        "PYTHONUTF8": "0",
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
    }
    code = (
        "from plasticity.cli import main; assert not any(main(['help', *topic]) for topic in ([], ['redo'], ['cbp']))"
    )
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, cwd=tmp_path, timeout=60)
    assert (result.returncode, result.stderr) == (0, b"")


# -- Windows -----------------------------------------------------------------------------------------------------------


class FakeMsvcrt(types.ModuleType):
    """Windows' locks of bytes, as far as they are used: by file and place, mandatory, gone when the file is closed."""

    LK_NBLCK = 2

    def __init__(self):
        super().__init__("msvcrt")
        self.held = {}

    def locking(self, fd, mode, count):
        """Lock `count` bytes from the file's position on."""
        assert mode == self.LK_NBLCK
        place = os.fstat(fd).st_ino, os.lseek(fd, 0, os.SEEK_CUR), count
        holder = self.held.get(place)
        if holder not in (None, fd) and self.is_open(holder, place[0]):  # the same number: opened again
            raise PermissionError(13, "Permission denied")
        self.held[place] = fd

    @staticmethod
    def is_open(fd, inode):
        """Return whether a descriptor still is that of a file."""
        try:
            return os.fstat(fd).st_ino == inode
        except OSError:
            return False


@pytest.fixture
def windows(monkeypatch):
    """The parts of Windows that matter to runs: other locks, no SIGHUP, groups of processes."""
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(files, "msvcrt", FakeMsvcrt())
    monkeypatch.setattr(stopping, "sys", types.SimpleNamespace(platform="win32", stderr=sys.stderr))
    monkeypatch.setattr(stopping.signal, "CTRL_BREAK_EVENT", 1, raising=False)
    monkeypatch.setattr(stopping.subprocess, "CREATE_NEW_PROCESS_GROUP", 0x200, raising=False)


@pytest.mark.usefixtures("windows")
def test_lock_of_windows_keeps_a_second_process_out(tmp_path):
    with files.RunLock(tmp_path):
        assert (tmp_path / files.LOCK).read_text(encoding="utf-8").strip() == str(os.getpid())
        with pytest.raises(RuntimeError, match=f"in use by process {os.getpid()}"), files.RunLock(tmp_path):
            pass
    with files.RunLock(tmp_path):
        pass
    files.require_free(tmp_path)


@pytest.mark.usefixtures("windows")
def test_signals_of_windows_are_ctrl_break():
    """SIGINT cannot be sent there, and SIGTERM kills without a word."""
    sent = []
    stopping.pass_on(types.SimpleNamespace(send_signal=sent.append), stopping.signal.SIGTERM)
    assert sent == [stopping.signal.CTRL_BREAK_EVENT]
    assert stopping.own_group() == {"creationflags": 0x200}
    assert "SIGBREAK" in stopping.NAMES_OF_SIGNALS


@pytest.mark.usefixtures("windows")
def test_training_and_resuming_where_windows_differs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = "--steps 40 --hidden 4 4 --num-steps 10 --num-minibatches 1 --eval-episodes 1 --compile off --quiet"
    assert cli.main(["train", "ppo", "--env", "CartPole-v1", "--name", "run", *short.split()]) == 0
    assert cli.main(["train", "--resume", "runs/run", "--env", "CartPole-v1", "--steps", "60", "--quiet"]) == 0
    assert "not locked" not in capsys.readouterr().err


# -- macOS -------------------------------------------------------------------------------------------------------------


class FakeFcntl:
    """The fcntl of macOS, as far as it is used; ``errors``: call -> the error with which this disk answers it."""

    F_FULLFSYNC, LOCK_EX, LOCK_NB = 51, 2, 4

    def __init__(self, **errors):
        self.errors, self.calls = errors, []

    def fcntl(self, fd, what):
        self.calls.append(what)
        if "fcntl" in self.errors:
            raise OSError(self.errors["fcntl"], "not here")

    def flock(self, fd, how):
        if "flock" in self.errors:
            raise OSError(self.errors["flock"], "not here")


@pytest.mark.parametrize("known", [True, False])
def test_files_are_on_the_disk_of_a_mac_itself(known, tmp_path, monkeypatch):
    """fsync stops at the memory of the drive there; a disk of a network knows no more than fsync."""
    fake, plain = FakeFcntl(**({} if known else {"fcntl": errno.ENOTSUP})), []
    monkeypatch.setattr(files, "fcntl", fake)
    monkeypatch.setattr(files.os, "fsync", plain.append)
    files.write_atomically(tmp_path / "file", b"text")
    assert fake.calls == [fake.F_FULLFSYNC] * 2  # the file and its folder
    assert len(plain) == (0 if known else 2)


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_sync", lambda fd: (_ for _ in ()).throw(OSError(errno.EINVAL, "Invalid argument")))
    files.sync_folder(tmp_path)
    monkeypatch.setattr(files, "_sync", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        files.sync_folder(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK])
def test_a_disk_without_locks_is_said_and_used(number, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", FakeFcntl(flock=number))
    with pytest.warns(RuntimeWarning, match="is not locked: its disk has no locks"), files.RunLock(tmp_path):
        assert not files.is_locked(tmp_path)


def test_a_name_that_differs_by_case_alone_is_the_same_folder_there(tmp_path, monkeypatch, capsys):
    """macOS and Windows: both spellings lead to one folder, here by a link."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "Mine"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}", encoding="utf-8")
    (tmp_path / "runs" / "mine").symlink_to(folder)
    for several, said in (([], "mine is not empty; pass another"), (["--seeds", "2"], "mine is a run itself")):
        words = ["train", "ppo", "--env", "CartPole-v1", "--steps", "10", "--name", "mine", *several, "--quiet"]
        assert cli.main(words) == 1
        assert said in capsys.readouterr().err
    assert [file.name for file in folder.iterdir()] == ["run.json"]


LINUX_ALONE = (
    r"os\.fork|preexec_fn|multiprocessing|import resource|/proc/|sched_\w+|epoll|signalfd|SIGRTMIN|\.getloadavg"
)
"""Names of Linux alone, and of fork, which is no safe way to make a process on macOS: Accelerate ends it."""


def test_nothing_of_linux_alone_is_needed(monkeypatch):
    found = {str(f.relative_to(ROOT)): set(re.findall(LINUX_ALONE, f.read_text(encoding="utf-8"))) for f in INSTALLED}
    assert {file: names for file, names in found.items() if names} == {"agents/products.py": {"/proc/"}}
    monkeypatch.setattr(products, "Path", lambda name: Path("/nowhere") / name.lstrip("/"))
    products.processor.cache_clear()
    assert (products.processor(), products.onednn_is_faster(), products.bf16_is_emulated()) == ("", False, False)
    products.processor.cache_clear()


def test_signals_are_those_that_the_system_has():
    """SIGINFO, which Ctrl-T sends on a Mac, ends nothing; SIGBREAK is on Windows alone."""
    assert {number.name for number in stopping.ENDING} == {"SIGTERM", "SIGINT", "SIGHUP"}


def watched(log):
    """Train a watched model for some steps."""
    import torch

    import plasticity

    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters())
    with plasticity.watch(model, optimizer, every=2, log=log):
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(16, 3)).square().mean().backward()
            optimizer.step()


@pytest.mark.slow
def test_processes_are_spawned_there_and_watch_as_well(tmp_path):
    """The start method of macOS and Windows: a process that imports everything anew."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=watched, args=(tmp_path / str(number),)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    assert all((tmp_path / str(number) / "metrics.jsonl").stat().st_size for number in range(2))


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dmc/cheetah-run", "dmc-cheetah-run"),
        ("minigrid:MiniGrid-Empty-5x5-v0", "minigrid-MiniGrid-Empty-5x5-v0"),
        (r"a\b", "a-b"),
        ('what?"<x>|*', "what-x-"),
        ("permute/CartPole-v1", "permute-CartPole-v1"),
    ],
)
def test_names_are_allowed_everywhere(text, name):
    assert files.file_name(text) == name


def test_folders_of_environments_have_such_names():
    from plasticity.commands.parsing import parse

    config = parse("ppo", ["--env", "some_module:Maze-v0", "--seeds", "2"])
    assert seeds.Seeds("ppo", config, [], {"interventions": {}}).name == "ppo_some_module-Maze-v0"
