"""``plasticity --install-completion``: completion of commands, names and flags in bash, zsh and fish.

The script holds the words themselves, so that the shell answers at once: starting Python would take a second. After an
update of the package, the same command writes it anew.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from .contents import REGISTRIES, SWITCHED, contents, nearest, registry
from .imports import COMPLETION
from .options import Option, options

PLACES = {
    "bash": ("XDG_DATA_HOME", ".local/share", "bash-completion/completions/plasticity"),
    "zsh": ("XDG_DATA_HOME", ".local/share", "zsh/site-functions/_plasticity"),
    "fish": ("XDG_CONFIG_HOME", ".config", "fish/completions/plasticity.fish"),
}
"""Shell -> the variable of the folder for such files, that folder in the home by default, and the file in it."""
THEN = {
    "bash": "start a new shell; without the package bash-completion, add to ~/.bashrc: source {path}",
    "zsh": "add to ~/.zshrc, before compinit is called: fpath=({folder} $fpath)",
    "fish": "start a new shell",
}


@dataclass
class Words:
    """The words that can follow: commands, names behind a command, flags behind ``COMMAND`` or ``train AGENT``."""

    commands: dict[str, str]
    names: dict[str, list[str]] = field(default_factory=dict)
    flags: dict[str, list[Option]] = field(default_factory=dict)
    values: dict[str, list[str]] = field(default_factory=dict)
    """Flag -> what may follow it."""


def main(arguments: Sequence[str]) -> int:
    """Write the script of a shell to where it looks for it, and say what is left to do."""
    shell = arguments[0] if arguments else Path(os.environ.get("SHELL", "")).name
    if shell not in SCRIPTS:
        hint = nearest(shell, SCRIPTS)
        raise ValueError(f"no completion for the shell {shell!r}; {hint}pass one: {COMPLETION} {{{','.join(SCRIPTS)}}}")
    variable, default, name = PLACES[shell]
    path = Path(os.environ.get(variable) or Path.home() / default) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SCRIPTS[shell](words()), encoding="utf-8")
    print(f"wrote {path}; {THEN[shell].format(path=path, folder=path.parent)}")
    return 0


def words() -> Words:
    """Return all words, from the parsers of the commands and the registries."""
    from plasticity.agents import AGENTS
    from plasticity.cli import COMMANDS
    from plasticity.envs.examples import SOURCES
    from plasticity.metrics import SETS

    from .inherited import SOURCE_FLAGS
    from .settings import TrainConfig
    from .suites import SUITES

    found = Words({name: text for name, (_, text) in COMMANDS.items()})
    topics = [*COMMANDS, *(name for kind in REGISTRIES for name in contents(kind))]
    found.names = {"train": list(AGENTS), "list": list(REGISTRIES), "help": topics, "bench": list(SUITES)}
    found.values = {"--probes": [*SETS, *contents("probes")], "--log": list(contents("writers"))}
    for command, (module, _) in COMMANDS.items():
        configs = [thing for name, thing in vars(import_module(module)).items() if name.endswith("Config")]
        found.flags[command] = options(configs[0]) if configs and command != "train" else []
    methods = [_method(name, method) for kind in SWITCHED for name, method in registry(kind).items()]
    sources = [Option(flag, "PATH", "", "") for flag in ("--resume", *SOURCE_FLAGS)]
    shared = [*options(TrainConfig), *sources, *(one for rows in methods for one in rows)]
    for agent, (_, config) in AGENTS.items():
        found.flags[f"train {agent}"] = [*shared, *options(config)]
    found.names["stream"], found.flags["stream"] = list(SOURCES), found.flags["train supervised"]
    for rows in found.flags.values():
        found.values |= {row.flag: row.choices for row in rows if row.choices}
    return found


def _method(name: str, method: type) -> list[Option]:
    flag = f"--{name.replace('_', '-')}"
    return [Option(flag, "", "", ""), *options(method, f"{flag}.")]


def _cases(found: Words) -> str:
    """Return a function of bash and zsh that prints what may follow: its arguments are the words before, from 1 on."""
    flags = {key: " ".join(flag for row in rows for flag in row.flags) for key, rows in found.flags.items()}
    trained = [key.partition(" ")[2] for key in flags if " " in key]
    lines = ["_plasticity_words() {", '  case "${@: -1}" in']
    lines += [f'    {flag}) echo "{" ".join(choices)}"; return ;;' for flag, choices in sorted(found.values.items())]
    lines += ["  esac", "  if [ $# -eq 0 ]; then", f'    echo "{" ".join(found.commands)} --import --version --help"']
    lines += ["    return", "  fi", '  case "$1" in', "    train)", '      case "$2" in']
    lines += [f'        {agent}) echo "{flags[f"train {agent}"]} --help"; return ;;' for agent in trained]
    lines += ["      esac", f'      echo "{" ".join(trained)} --resume --config --like --help" ;;']
    for command in found.commands:
        if command != "train":
            lines.append(f'    {command}) echo "{" ".join(found.names.get(command, []))} {flags[command]} --help" ;;')
    return "\n".join([*lines, "  esac", "}", ""])


def bash(found: Words) -> str:
    """Return the script for bash; where no word fits, files are offered."""
    return f"""# plasticity {COMPLETION} bash
{_cases(found)}
_plasticity() {{
  local before=("${{COMP_WORDS[@]:1:COMP_CWORD-1}}")
  COMPREPLY=($(compgen -W "$(_plasticity_words "${{before[@]}}")" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _plasticity plasticity
"""


def zsh(found: Words) -> str:
    """Return the script for zsh, an autoloaded function; where no word fits, files are offered."""
    return f"""#compdef plasticity
# plasticity {COMPLETION} zsh
{_cases(found)}
_plasticity() {{
  local -a fitting
  fitting=(${{=$(_plasticity_words "${{(@)words[2,CURRENT-1]}}")}})
  compadd -- $fitting
  _files
}}
_plasticity "$@"
"""


def fish(found: Words) -> str:
    """Return the script for fish, with descriptions."""
    first = "__fish_use_subcommand"
    lines = [f"# plasticity {COMPLETION} fish"]
    lines += [f"complete -c plasticity -f -n {first} -a {name} -d {_quoted(t)}" for name, t in found.commands.items()]
    for command, names in found.names.items():
        seen = _quoted(f"__fish_seen_subcommand_from {command}")
        lines.append(f"complete -c plasticity -n {seen} -a {_quoted(' '.join(names))}")
    for key, rows in found.flags.items():
        seen = _quoted("; and ".join(f"__fish_seen_subcommand_from {word}" for word in key.split()))
        lines += [_fish_flag(seen, flag, row, found.values) for row in rows for flag in row.flags]
    return "\n".join([*lines, ""])


def _fish_flag(seen: str, flag: str, row: Option, values: Mapping[str, list[str]]) -> str:
    needs = " -r" if row.type else ""
    choices = f" -xa {_quoted(' '.join(values[row.flag]))}" if row.flag in values else needs
    described = f" -d {_quoted(row.description)}" if row.description else ""
    return f"complete -c plasticity -n {seen} -l {flag[2:]}{choices}{described}"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}
"""Shell -> a function that writes its script."""
