"""Settings of published experiments by name: `--preset NAME` stands for arguments; those of the user go before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .contents import nearest

FLAG = "--preset"


@dataclass(frozen=True)
class Preset:
    """The arguments of one agent, and their source."""

    arguments: str
    source: str


PRESETS: dict[str, dict[str, Preset]] = {
    "c-chain": {
        "ppo": Preset(
            "--hidden 256 256 256 --activation leaky_relu_0.1 --initialisation default --num-steps 800 "
            "--num-minibatches 25 --num-epochs 5 --lr 1e-3 --anneal-steps 0 --eps 1e-8 --no-clip-values "
            "--value-coef 1.0 --entropy-coef 0.01 --max-grad-norm inf --normalize-observations False "
            "--normalize-rewards False --reward-scale 0.05 --value-target returns --standardise rollout",
            "Tang et al. 2025, arXiv 2506.00592, released code crl_gym_classic_control",
        ),
    },
}
"""Name -> agent -> preset; add your own."""


def with_presets(agent: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with those of the presets among them in front; ValueError for one that does not exist."""
    pairs = pairwise([*arguments, ""])
    names = [b if a == FLAG else a.partition("=")[2] for a, b in pairs if a == FLAG or a.startswith(f"{FLAG}=")]
    return [word for name in names for word in find_preset(name, agent).arguments.split()] + list(arguments)


def find_preset(name: str, agent: str) -> Preset:
    """Return the preset of an agent; ValueError, with those that there are, for a name that it does not have."""
    there = [one for one, agents in PRESETS.items() if agent in agents]
    if name not in there:
        raise ValueError(
            f"no preset {name!r} for {agent}; {nearest(name, there)}there are: {', '.join(there) or 'none'}"
        )
    return PRESETS[name][agent]
