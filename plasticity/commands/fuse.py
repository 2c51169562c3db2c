"""``plasticity fuse``: mix the networks of a saved agent with those of an earlier one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from .arguments import read_arguments
from .contents import matching
from .rewriting import rewrite


@dataclass(frozen=True)
class FuseConfig:
    """Mix the networks of a saved agent with those of an earlier one: (1 - alpha) theta + alpha base."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run, or of one of its checkpoints."""
    base: Path
    """Folder of the base: another checkpoint of the same agent, or a run."""
    out: Path
    """New folder to write the result to, as a run."""
    alpha: float = 0.5
    """Share of the base, in [0, 1]."""
    networks: tuple[str, ...] = ()
    """Names or globs of the networks to change; none for all."""


def main(arguments: Sequence[str]) -> int:
    """Write the fused agent, and say what moved."""
    config = read_arguments(FuseConfig, "fuse", arguments, imports="torch")
    from plasticity.surgery.base import fuse

    def edit(networks: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
        chosen = matching(config.networks or ["*"], networks, "network of the agent")
        return [f"{name}: {len(fuse(networks[name], base[name], config.alpha))} tensors" for name in chosen]

    return rewrite(config.run, config.base, config.out, edit)
