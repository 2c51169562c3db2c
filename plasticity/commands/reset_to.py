"""``plasticity reset-to``: overwrite neurons of a saved agent with those of an earlier one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import tyro

from .arguments import read_arguments
from .contents import matching
from .rewriting import rewrite


@dataclass(frozen=True)
class ResetToConfig:
    """Overwrite some neurons of a saved agent with those of an earlier one."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run, or of one of its checkpoints."""
    base: Path
    """Folder of the base: another checkpoint of the same agent, or a run."""
    out: Path
    """New folder to write the result to, as a run."""
    units: tuple[str, ...]
    """Neurons, one layer each: network/layer:index,index, such as critic_1/q.0:3,7; the network may be a glob."""
    outgoing: tuple[str, ...] = ()
    """Layers, as network/layer, whose units are inputs: their columns are overwritten."""
    factor: float = 1.0
    """Share of the base in what is overwritten, in [0, 1]."""


def main(arguments: Sequence[str]) -> int:
    """Write the agent with the neurons of the base, and say which."""
    config = read_arguments(ResetToConfig, "reset-to", arguments, imports="torch")
    from plasticity.surgery.base import reset_to

    units: dict[str, dict[str, list[int]]] = {}
    for text in config.units:
        place, _, indices = text.rpartition(":")
        network, _, layer = place.partition("/")
        if not (network and layer and all(i.strip().isdecimal() for i in indices.split(","))):
            raise ValueError(f"--units are network/layer:index,index, such as critic_1/q.0:3,7; got {text!r}")
        units.setdefault(network, {}).setdefault(layer, []).extend(int(i) for i in indices.split(","))
    places = [f"{network}/{layer}" for network, layers in units.items() for layer in layers]
    if unknown := [place for place in config.outgoing if place not in places]:
        raise ValueError(f"--outgoing are places of --units, here {', '.join(places)}; got {', '.join(unknown)}")

    outgoing = [place.partition("/") for place in config.outgoing]

    def edit(networks: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
        lines = []
        for name in matching(units, networks, "network of the agent"):
            neurons: dict[str, list[int]] = {}
            for layers in (layers for glob, layers in units.items() if fnmatchcase(name, glob)):
                for layer, indices in layers.items():
                    neurons.setdefault(layer, []).extend(indices)
            columns = [layer for glob, _, layer in outgoing if fnmatchcase(name, glob)]
            done = reset_to(networks[name], base[name], neurons, outgoing=columns, factor=config.factor)
            lines += [f"{name}/{layer}: {', '.join(map(str, indices))}" for layer, indices in done.items()]
        return lines

    return rewrite(config.run, config.base, config.out, edit)
