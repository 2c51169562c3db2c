"""Read the options of a command into its dataclass; whatever is wrong with them is one line."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from typing import Any

import tyro

from .contents import nearest
from .options import options
from .waiting import say_importing

_HELP = ("-h", "--help")
_BOX = "╭╮╰╯│─ "
_PLAIN = {
    r"invalid literal for int\(\) with base 10:": "a whole number is needed, got",
    r"could not convert string to float:": "a number is needed, got",
    r"no type matching \{None\}\|INT could be instantiated from \[(.*)\]": r"a whole number is needed, got \1",
    r"no type matching \{None\}\|FLOAT could be instantiated from \[(.*)\]": r"a number is needed, got \1",
    r"^Unrecognized options: (.*)": r"no option takes \1; add --help for all of them",
}
"""Words of Python and tyro -> ours."""
_CHOICE = re.compile(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)\.")


class UsageError(ValueError):
    """Options that cannot be read."""

    exit_code = 2


def read_arguments(kind: type, command: str, arguments: Sequence[str], imports: str = "") -> Any:
    """Return an instance of the dataclass ``kind`` with these options; UsageError says in one line which one is wrong.

    ``command``: its name behind ``plasticity``, such as ``eval``. ``imports``: the module that it imports next and
    that takes a second or more, such as ``torch``; a terminal is told.
    """
    flags = [flag for option in options(kind) for flag in option.flags]
    require_flags(arguments, [*flags, *_HELP])
    read = parse_arguments(kind, command, arguments)
    if imports and sys.stderr.isatty():
        say_importing(command, imports)
    return read


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
    for theirs, plain in _PLAIN.items():
        message = re.sub(theirs, plain, message)
    if found := _CHOICE.search(message):
        known = re.findall("'([^']*)'", found[3])
        message = f"{message} {nearest(found[1], known)}".rstrip()
    return message
