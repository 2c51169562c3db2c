"""Modules that ``plasticity --import MODULE`` imports first: they register probes, methods, environments, agents."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

COMPLETION, IMPORT = "--install-completion", "--import"
IMPORTED: list[str] = []
"""Modules imported so far in this process, in order; a run records them."""


def take_imports(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the modules that the command line begins with, ``--import MODULE`` each, and what follows them."""
    rest, modules = list(arguments), []
    while rest and rest[0].partition("=")[0] == IMPORT:
        first = rest.pop(0)
        if first == IMPORT and not rest:
            raise ValueError(f"{IMPORT} needs the name of a module, such as my_package.my_module")
        modules.append(first.partition("=")[2] if "=" in first else rest.pop(0))
    for index, argument in enumerate(rest):
        if argument.partition("=")[0] == IMPORT:
            module = argument.partition("=")[2] or " ".join(rest[index + 1 : index + 2])
            raise ValueError(f"{IMPORT} comes before the command: plasticity {IMPORT} {module} {rest[0]} ...")
    return modules, rest


def import_modules(modules: Sequence[str]) -> None:
    """Import modules, also from the current directory; ImportError says in one line which one failed, and where."""
    if modules and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as ``python -m`` does
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")):
            raise ImportError(f"{IMPORT} {module}: a module is needed, such as my_package.my_module, not a path")
        try:
            import_module(module)
        except (Exception, SystemExit) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == module:
                where = f"neither {os.getcwd()} nor the installed packages have it"
                hint = f"; did you mean {module[:-3]}?" if module.endswith(".py") else ""
                raise ImportError(f"{IMPORT} {module}: there is no such module; {where}{hint}") from error
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ImportError(f"{IMPORT} {module}: {reason}{_where(error)}") from error
        if module not in IMPORTED:
            IMPORTED.append(module)


def import_flags() -> list[str]:
    """Return the flags that make another process import the same modules."""
    return [part for module in IMPORTED for part in (IMPORT, module)]


def require_imports(record: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError unless every module that a run was trained with is imported.

    A run folder may come from somebody else, so nothing that it names is ever imported for that reason alone.
    """
    missing = [str(module) for module in record.get("imports", []) if module not in IMPORTED]
    if missing:
        flags = " ".join(f"{IMPORT} {module}" for module in missing)
        raise ValueError(
            f"{folder} was trained with {flags}; if you trust that, put it in front: plasticity {flags} ..."
        )


def _where(error: BaseException) -> str:
    """Return the file and line that an error came from; a SyntaxError names them itself."""
    trace = None if isinstance(error, SyntaxError) else error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})"
