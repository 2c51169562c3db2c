"""``plasticity doctor``: what of this machine and installation works, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .arguments import read_arguments

OPTIONAL_PACKAGES = {
    "dm-control": "environments dmc/...: pip install dm-control",
    "tensorboard": "plasticity dashboard: pip install tensorboard",
    "matplotlib": "plasticity report: pip install -e '.[report]'",
    "ale-py": "environments atari/...: pip install -e '.[atari]'",
    "minatar": "environments minatar/...: pip install -e '.[minatar]'",
}
"""Package that only some commands need -> for what, and how to install it."""


@dataclass(frozen=True)
class DoctorConfig:
    """Check this machine and installation: versions, compiler, devices, threads, optional packages, run folder."""

    out: Path = Path("runs")
    """Folder in which runs would be written."""


@dataclass(frozen=True)
class Checkup:
    """The result of one check; ``state``: ok, note (it works with less), or wrong."""

    state: str
    name: str
    text: str


def main(arguments: Sequence[str]) -> int:
    """Print a line per check; return 1 if something is wrong."""
    config = read_arguments(DoctorConfig, "doctor", arguments)
    findings = [*(_checked(check) for check in (python, torch_works, compiler, devices, threads)), folder(config.out)]
    findings += [package(name, use) for name, use in OPTIONAL_PACKAGES.items()]
    for one in findings:
        print(f"{one.state:<5}  {one.name:<12}  {one.text}")
    return int(any(one.state == "wrong" for one in findings))


def python() -> Checkup:
    """Check the interpreter and the package."""
    return Checkup("ok", "python", f"{platform.python_version()}, plasticity {version('plasticity-toolkit')}")


def torch_works() -> Checkup:
    """Check that PyTorch multiplies."""
    import torch

    product = torch.eye(2) @ torch.ones(2, 2)
    return Checkup("ok" if product.sum() == 4 else "wrong", "torch", torch.__version__)


def compiler() -> Checkup:
    """Look for the compiler that compiled updates need on a CPU."""
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    if found := next((path for name in names if name and (path := shutil.which(name))), None):
        return Checkup("ok", "compiler", found)
    return Checkup("note", "compiler", "no C++ compiler: updates are not compiled, on a CPU 1.5 to 3 times slower")


def devices() -> Checkup:
    """Name the devices that PyTorch sees."""
    import torch

    found = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Checkup("ok", "devices", ", ".join(["cpu", *found]))


def threads() -> Checkup:
    """Say whether the number of threads suits small networks."""
    if os.environ.get("OMP_NUM_THREADS") == "1":
        return Checkup("ok", "threads", f"OMP_NUM_THREADS=1, {os.cpu_count()} processors")
    return Checkup("note", "threads", "set OMP_NUM_THREADS=1: small networks are slower with more threads")


def folder(path: Path) -> Checkup:
    """Check that runs can be written, and how much space there is."""
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return Checkup("wrong", "run folder", f"{there} cannot be written; pass another --out")
    free = shutil.disk_usage(there).free / 2**30
    return Checkup("ok" if free > 1 else "note", "run folder", f"{path}: {free:.0f} GiB free")


def package(name: str, use: str) -> Checkup:
    """Say whether an optional package is installed."""
    try:
        return Checkup("ok", name, version(name))
    except PackageNotFoundError:
        return Checkup("note", name, f"not installed, needed for {use}")


def _checked(check: Callable[[], Checkup]) -> Checkup:
    """Return what a check finds; an error of it is a finding, too."""
    try:
        return check()
    except Exception as error:
        return Checkup("wrong", check.__name__, f"{type(error).__name__}: {error}; Python is {sys.executable}")
