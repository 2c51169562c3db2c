"""The page of all presets, `docs/presets.md`: `python -m plasticity.commands.pages docs` writes it."""

from __future__ import annotations

import textwrap

from .preset import Preset
from .presets import PRESETS

WIDTH_OF_ARGUMENTS = 120
INTRODUCTION = """# Presets

```sh
plasticity train sac --env Pendulum-v1 --preset zoo
plasticity train ppo --env HalfCheetah-v5 --preset zoo --seeds 3
plasticity train dqn --env CartPole-v1 --preset cleanrl --lr 1e-3
```

`--preset NAME` stands for arguments, chosen by agent and environment: every number that the source sets, in the units
of the agents here. Options that are given go before them. A run begins with a line that names the source and what is
not as there. `*` stands for any text; an environment without an entry is refused, with those that there are. The
numbers are the sources' own: no runs of ours stand behind them.

| preset | |
|---|---|
| `zoo` | tuned by environment: RL Baselines3 Zoo; MinAtar by its authors |
| `cleanrl` | the defaults of CleanRL's scripts |
| `c-chain` | PPO on continual Gym control ([streams](streams.md)) |
| `streams` | [supervised](agents/supervised.md) on streams of examples |
| `bro` | SAC with the networks, critics and settings of BRO |
| `simba2` | SAC with the networks, critics, projection and scaled rewards of SimbaV2 |
| `crossq` | SAC with the networks and settings of CrossQ |
"""


def presets_page() -> str:
    """Return the page, in Markdown."""
    sections = (f"## {name}\n\n" + "\n\n".join(map(entry, entries)) for name, entries in PRESETS.items())
    return "\n".join([INTRODUCTION, *(f"{section}\n" for section in sections)])


def entry(preset: Preset) -> str:
    """Return the paragraphs of one preset: where it holds, its arguments, its source."""
    names = ", ".join(f"`{pattern}`" for pattern in preset.environments.split())
    return f"**{preset.agent.upper()}** on {names}. {preset.notes}.\n\n```text\n{in_lines(preset.arguments)}\n```"


def in_lines(arguments: str) -> str:
    """Return arguments as lines; of an option that is given twice the last."""
    options: dict[str, str] = {}
    for words in arguments.split("--")[1:]:
        flag = words.split()[0]
        options.pop(flag, None)
        options[flag] = " ".join(f"--{words}".split())
    return textwrap.fill(" ".join(options.values()), WIDTH_OF_ARGUMENTS, break_on_hyphens=False, break_long_words=False)
