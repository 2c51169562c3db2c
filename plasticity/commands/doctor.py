"""``plasticity doctor``: what of this machine and installation works, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from .arguments import read_arguments
from .tested import TESTED, Tested

PROGRAM = """
#include <Python.h>
#include <omp.h>
extern "C" int threads() { return omp_get_max_threads() + PY_MAJOR_VERSION; }
"""
"""A program in C++ that needs what compiled updates need: a compiler, OpenMP and the headers of Python."""
FRAME = """
from dm_control import suite
env = suite.load("cartpole", "balance")
env.step(env.action_spec().minimum)
print("stepped", flush=True)
env.physics.render(16, 16)
print("rendered")
"""
"""A program that runs and draws a task of dm_control, in a process of its own: drivers of displays may end it."""
LONGEST_CHECK = 60
"""Seconds that a process of a check may take."""


@dataclass(frozen=True)
class DoctorConfig:
    """Check this machine and installation: versions, compiler, CUDA, threads, dm_control, rendering, run folder."""

    out: Path = Path("runs")
    """Folder in which runs would be written."""


@dataclass(frozen=True)
class Checkup:
    """The result of one check; ``state``: ok, note (it works with less), or wrong."""

    state: str
    name: str
    text: str


def main(arguments: Sequence[str]) -> int:
    """Print a line per check, each as it is done; return 1 if something is wrong."""
    config, wrong = read_arguments(DoctorConfig, "doctor", arguments), False
    for one in findings(config.out):
        print(f"{one.state:<5}  {one.name:<17}  {one.text}", flush=True)
        wrong |= one.state == "wrong"
    return int(wrong)


def findings(out: Path) -> Iterator[Checkup]:
    """Yield the result of every check."""
    yield from map(_checked, (python, torch_works, compiler, devices, cuda, threads, rendering))
    yield folder(out)
    yield from packages(TESTED)


def python() -> Checkup:
    """Check the interpreter and the package."""
    return Checkup("ok", "python", f"{platform.python_version()}, plasticity {version('plasticity-toolkit')}")


def torch_works() -> Checkup:
    """Check that PyTorch multiplies."""
    import torch

    product = torch.eye(2) @ torch.ones(2, 2)
    return Checkup("ok" if product.sum() == 4 else "wrong", "arithmetic", "PyTorch multiplies")


def compiler() -> Checkup:
    """Compile a program as compiled updates need it on a CPU."""
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        return Checkup("note", "compiler", "no C++ compiler: updates are not compiled, on a CPU 1.5 to 3 times slower")
    if error := compile_error(found):
        return Checkup("note", "compiler", f"{found} cannot compile updates, which are then eager and slower: {error}")
    return Checkup("ok", "compiler", f"{found} compiles, with OpenMP and the headers of Python")


def compile_error(path: str) -> str:
    """Return the first error of a compiler at :data:`PROGRAM`, empty where it compiles."""
    import sysconfig

    with TemporaryDirectory() as place:
        source = Path(place) / "program.cpp"
        source.write_text(PROGRAM, encoding="utf-8")
        options = ["-shared", "-fPIC", "-fopenmp", f"-I{sysconfig.get_paths()['include']}"]
        command = [path, *options, str(source), "-o", str(Path(place) / "program.so")]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=LONGEST_CHECK)
    lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
    return (lines or ["it failed without a word"])[0].strip() if done.returncode else ""


def devices() -> Checkup:
    """Name the devices that PyTorch sees."""
    import torch

    found = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Checkup("ok", "devices", ", ".join(["cpu", *found]))


def cuda() -> Checkup:
    """Check that a graphics card is usable where there is a driver for one."""
    import torch

    if torch.cuda.is_available():
        total = float((torch.eye(2, device="cuda") @ torch.ones(2, 2, device="cuda")).sum())
        state = "ok" if total == 4 else "wrong"
        return Checkup(state, "cuda", f"CUDA {torch.version.cuda} multiplies: --device cuda")
    if shutil.which("nvidia-smi") is None:
        return Checkup("ok", "cuda", "no driver of NVIDIA here: runs are on the CPU")
    why = "is built without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda} finds no device"
    advice = "install a build for your driver, https://pytorch.org/get-started/locally"
    return Checkup("wrong", "cuda", f"there is a driver of NVIDIA, but this PyTorch {why}: {advice}")


def threads() -> Checkup:
    """Say whether the number of threads suits small networks."""
    if os.environ.get("OMP_NUM_THREADS") == "1":
        return Checkup("ok", "threads", f"OMP_NUM_THREADS=1, {os.cpu_count()} processors")
    return Checkup("note", "threads", "set OMP_NUM_THREADS=1: small networks are slower with more threads")


def rendering() -> Checkup:
    """Run a task of dm_control and draw a frame of it."""
    if not _version("dm-control"):
        return Checkup("note", "rendering", "not tried, without dm-control: environments dmc/... and dmc-pixels/...")
    done = subprocess.run(
        [sys.executable, "-c", FRAME], capture_output=True, encoding="utf-8", errors="replace", timeout=LONGEST_CHECK
    )
    backend = os.environ.get("MUJOCO_GL", "chosen by itself")
    if "rendered" in done.stdout:
        return Checkup("ok", "rendering", f"dm_control runs and draws, MUJOCO_GL {backend}")
    error = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
    if "stepped" in done.stdout:
        advice = "install EGL (Debian: libegl1 libgl1-mesa-dri) or OSMesa (libosmesa6), and set no other MUJOCO_GL"
        return Checkup(
            "note", "rendering", f"dm_control runs but cannot draw, so no dmc-pixels/...: {advice} ({error})"
        )
    return Checkup("wrong", "rendering", f"dm_control does not run, so no dmc/...: {error}")


def folder(path: Path) -> Checkup:
    """Check that runs can be written, and how much space there is."""
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    try:
        TemporaryFile(dir=there).close()
    except OSError as error:
        return Checkup("wrong", "run folder", f"{there} cannot be written; pass another --out ({error})")
    free = shutil.disk_usage(there).free / 2**30
    return Checkup("ok" if free > 1 else "note", "run folder", f"{path}: {free:.0f} GiB free")


def packages(tested: Sequence[Tested]) -> list[Checkup]:
    """Say which versions are installed beside those that were tested, and in one line which packages are not there."""
    found = {one: _version(one.package) for one in tested}
    lines = [package(one, there) for one, there in found.items() if there]
    if missing := [one.package for one, there in found.items() if not there]:
        advice = "uses, tested versions and how to install: docs/integrations.md#tested-versions"
        lines.append(Checkup("note", "not installed", f"{', '.join(missing)} ({advice})"))
    return lines


def package(tested: Tested, found: str) -> Checkup:
    """Say which version of a package is installed beside the one that was tested."""
    if found.partition("+")[0] in (tested.version, *tested.others):
        return Checkup("ok", tested.package, f"{found}, as tested")
    return Checkup("note", tested.package, f"{found}; tested is {tested.version}")


def _version(package: str) -> str:
    """Return the installed version of a package, empty without."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _checked(check: Callable[[], Checkup]) -> Checkup:
    """Return what a check finds; an error of it is a finding, too."""
    try:
        return check()
    except Exception as error:
        return Checkup("wrong", check.__name__, f"{type(error).__name__}: {error}; Python is {sys.executable}")
