"""Read the options of a command into its dataclass; whatever is wrong with them is one line."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from typing import Any

import tyro

from .contents import nearest
from .options import options

_HELP = ("-h", "--help")
_BOX = "╭╮╰╯│─ "
_PLAIN = {
    "invalid literal for int() with base 10:": "a whole number is needed, got",
    "could not convert string to float:": "a number is needed, got",
}
"""Python's words -> ours."""


class UsageError(ValueError):
    """Options that cannot be read."""

    exit_code = 2


def read_arguments(kind: type, command: str, arguments: Sequence[str]) -> Any:
    """Return an instance of the dataclass ``kind`` with these options; UsageError says in one line which one is wrong.

    ``command``: its name behind ``plasticity``, such as ``eval``.
    """
    flags = [flag for option in options(kind) for flag in option.flags]
    require_flags(arguments, [*flags, *_HELP])
    return parse_arguments(kind, command, arguments)


def require_flags(arguments: Sequence[str], known: Iterable[str]) -> None:
    """Raise UsageError, with the nearest one, for a flag that is not known."""
    known = list(known)
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag.replace("_", "-") not in known:
            raise UsageError(f"no option {flag}; {nearest(flag, known)}add --help for all of them")


def parse_arguments(kind: Any, command: str, arguments: Sequence[str]) -> Any:
    """Return what tyro makes of the options; UsageError with the first lines of what it says."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(kind, prog=f"plasticity {command}", args=list(arguments))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_first_part(said.getvalue()) or f"cannot read {' '.join(arguments)}") from None


def _first_part(text: str) -> str:
    """Return a message without its frame and title, up to its first rule, in one line."""
    words: list[str] = []
    for line in text.splitlines()[1:]:
        inside = line.strip(_BOX)
        if inside.strip("-"):
            words += inside.split()
        elif words:  # a rule, of hyphens where the terminal knows nothing else
            break
    message = " ".join(words)
    for python, plain in _PLAIN.items():
        message = message.replace(python, plain)
    return message
