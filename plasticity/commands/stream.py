"""``plasticity stream``: supervised learning on a stream of tasks, as a run like any other."""

from __future__ import annotations

from collections.abc import Sequence

from .contents import nearest
from .presets import values_of
from .waiting import say_importing

USAGE = "usage: plasticity stream NAME [--method METHOD] [options of plasticity train supervised]"
ABOUT = """
Train a network on a stream of supervised tasks: {names}.

METHOD is written as in plasticity bench: redo; cbp:preset=supervised; norm=layer; several joined by plus signs.
The settings of the network are those of the stream (--preset streams), the length is that of all its tasks. The run
folder, the dashboard and the reports are those of any other run; the return is the accuracy while learning, or minus
the mean squared error. The same as: plasticity train supervised --env NAME --preset streams --steps N [--METHOD]
"""


def main(arguments: Sequence[str]) -> int:
    """Translate the arguments to those of ``plasticity train``, and train."""
    from .train import main as train

    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, flush=True)
        from plasticity.envs.examples import SOURCES

        print(ABOUT.format(names=", ".join(SOURCES)), end="")
        return 0
    if "--quiet" not in arguments:
        say_importing(f"stream {arguments[0]}")
    return train(translated(arguments))


def translated(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of ``plasticity train``; ValueError for a stream that does not exist."""
    from plasticity.envs import ENVS
    from plasticity.envs.examples import SOURCES

    name, *rest = arguments
    if name not in SOURCES:
        raise ValueError(f"no stream {name!r}; {nearest(name, SOURCES)}there are {', '.join(SOURCES)}")
    if values_of("--env", rest):
        raise ValueError(f"--env: the name of the stream, {name}, says this")
    plan = ENVS[name].tasks
    steps = (_number(rest, "--task-steps") or plan.steps or 0) * (_number(rest, "--num-tasks") or plan.num or 0)
    own = ["--env", name, "--preset", "streams", "--steps", str(steps), "--eval-every", "0"]
    return ["supervised", *own, *_methods(rest)]


def _number(arguments: Sequence[str], flag: str) -> int | None:
    """Return the number that a flag has; None where it does not stand there, or has none, which the training says."""
    given = values_of(flag, arguments) or values_of(flag.replace("-", "_").replace("__", "--", 1), arguments)
    try:
        return int(given[-1]) if given else None
    except ValueError:
        return None


def _methods(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the options of each ``--method`` in its place."""
    found, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--method" and (not rest or rest[0].startswith("--")):
            raise ValueError("--method needs the name of a method, such as cbp")
        flag, _, value = word.partition("=")
        if word == "--method":
            found += _method(rest.pop(0))
        elif flag == "--method":
            found += _method(value)
        else:
            found.append(word)
    return found


def _method(text: str) -> list[str]:
    """Return the options of one method; ValueError for several, and for the oracle, which is a run for every task."""
    from .method_names import ORACLE, method_arguments, split_methods

    methods = split_methods(text)
    if len(methods) > 1 or ORACLE in methods:
        raise ValueError(f"--method takes one method, got {text!r}; plasticity bench supervised trains several, and an "
                         "oracle")  # fmt: skip
    return method_arguments(methods[0])
