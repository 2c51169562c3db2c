"""The command line: ``plasticity <command>``. Each command is a module in ``commands/``, imported when it is called."""

from __future__ import annotations

import sys
import textwrap
import warnings
from collections.abc import Sequence
from importlib import import_module

from .commands.contents import nearest
from .commands.imports import COMPLETION, IMPORT, import_modules, take_imports
from .storage.files import printable

COMMANDS = {
    "train": ("plasticity.commands.train", "train an agent, with probes and interventions"),
    "eval": ("plasticity.commands.evaluate", "play episodes with the agent of a run"),
    "video": ("plasticity.commands.video", "film episodes of the agent of a run, as mp4 or GIF"),
    "probe": ("plasticity.commands.probe", "measure the networks of a saved agent"),
    "diagnose": ("plasticity.commands.diagnose", "say whether a saved agent can still learn, and what would help"),
    "fuse": ("plasticity.commands.fuse", "mix a saved agent with an earlier one of its own"),
    "reset-to": ("plasticity.commands.reset_to", "overwrite neurons of a saved agent with those of an earlier one"),
    "list": ("plasticity.commands.listing", "list agents, environments, probes, methods and all else, by name"),
    "help": ("plasticity.commands.help", "describe one of them, with its options, units and source"),
    "report": ("plasticity.commands.report", "write curves, heat maps and tables of runs as one page"),
    "compare": ("plasticity.commands.compare", "compare configurations over seeds, with intervals"),
    "bench": ("plasticity.commands.bench", "train methods on streams of tasks, beside fresh agents, and compare them"),
    "stream": ("plasticity.commands.stream", "train a network on a stream of supervised tasks"),
    "runs": ("plasticity.commands.runs", "list runs, with status, steps and return"),
    "doctor": ("plasticity.commands.doctor", "check this machine and installation"),
    "dashboard": ("plasticity.commands.dashboard", "open TensorBoard on a folder of runs"),
}

EXPECTED = (ValueError, OSError, FloatingPointError, ImportError, RuntimeError)
"""Errors whose message is all that a person needs."""
LONGEST = 400
"""Characters that are shown of an error of several lines."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; errors are one line on stderr unless ``--debug`` is given."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    name, before = "", warnings.formatwarning
    try:
        warnings.formatwarning = before if debug else _warning
        for stream in (sys.stdout, sys.stderr):  # names of files need not be UTF-8, nor the terminal
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        modules, arguments = take_imports(arguments)
        import_modules(modules)
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_usage())
            return 0
        if arguments[0] == "--version":
            from importlib.metadata import version

            print(f"plasticity {version('plasticity-toolkit')}")
            return 0
        name, *rest = arguments
        if name == COMPLETION:
            return int(import_module("plasticity.commands.completion").main(rest))
        if name not in COMMANDS:
            hint = nearest(name, [*COMMANDS, IMPORT, "--help", "--version", "--debug", COMPLETION])
            print(f"plasticity: no command {name!r}; {hint}there are {', '.join(COMMANDS)}", file=sys.stderr)
            return 2
        return int(import_module(COMMANDS[name][0]).main(rest) or 0)
    except KeyboardInterrupt:
        print(f"plasticity {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        if debug or not (getattr(error, "__notes__", []) or isinstance(error, EXPECTED)):
            raise
        print(f"{f'plasticity {name}'.rstrip()}: {_line(error)}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    finally:
        warnings.formatwarning = before


def _warning(message: Warning | str, *_: object, **__: object) -> str:
    """Return a warning in one line, without the place in the source that raised it."""
    return f"warning: {message}\n"


def _line(error: Exception) -> str:
    """Return an error in one line, with the notes of where in training it was raised."""
    kind = "" if isinstance(error, EXPECTED) else f"{type(error).__name__}: "
    notes, text = getattr(error, "__notes__", []), str(error)
    if "\n" in text:  # a compiler's errors have pages: --debug shows them
        text = textwrap.shorten(text, LONGEST)
    return printable(f"{kind}{text}" + (f" ({', '.join(notes)})" if notes else ""))


def _usage() -> str:
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: plasticity [--import MODULE ...] <command> [options]",
            "",
            "See why a deep-RL network stops learning, and apply what helps.",
            "",
            *lines,
            "",
            "plasticity <command> --help says more. --import imports a module of yours first, which registers things;",
            "--debug shows where an error came from; --version; --install-completion {bash,zsh,fish}.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
