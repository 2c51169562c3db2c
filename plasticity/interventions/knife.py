"""KNIFE: plasticity injection for single neurons, those whose weights hardly move.

Liu et al. 2026, *Stagnant Neuron: Towards Understanding the Plasticity Loss in Multi-Agent Reinforcement Learning Value
Factorization Methods*, arXiv 2606.25335, of which abstract and introduction were read; UoA-CARES/cares_reinforcement_
learning has the measure, and no code of the method was found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from plasticity.callback import Context
from plasticity.isolation import named_modules, unwrap
from plasticity.observing.reading import Reading
from plasticity.probes import Probe
from plasticity.probes.gradient import UnitUpdates
from plasticity.value_types import require

from .composite import CompositeUnits, compose_
from .recycling import select
from .units import UnitRecycling

_SETTINGS = {
    "threshold": 0.25,
    "outgoing": "keep",
    "init": "own",
    "moments": True,
    "adam_step": "keep",
    "norms": False,
}


class RelativeUpdates(UnitUpdates):
    """Relative gradient of each neuron, not over the layer's mean: what is averaged over steps."""

    def scores(self) -> Tensor:
        """Return ||dL/dW_row|| / ||W_row||, (neurons,)."""
        return self.relative()


@dataclass
class KNIFE(UnitRecycling):
    """Give stagnant neurons a fresh row, and keep what they said.

    The score of a neuron is the mean over the last ``window`` steps of ||dL/dW_row|| / ||W_row||, over its layer's mean
    (the probe ``rua``). One below ``threshold`` becomes a composite of three, which share its outgoing weights:
    h = h_frozen + h_new - h_copy, with its row as it was, a fresh row that is trained, and a frozen copy of that. The
    function stays. A neuron becomes composite once; one that another method redraws is a plain one again, and what cuts
    its inputs cuts them in all three. Its twin in the target network keeps its own row.

    Composite are neurons of Linear layers and convolutions in an nn.Sequential whose elementwise activation follows
    them at once; not those behind a norm before the activation, for its statistics tie neurons together. All three are
    computed from the start, so that nothing is rebuilt in mid-run: such a layer costs three.

    ``paper``: threshold 0.25 (from UoA-CARES, which quotes it); interval, window, and that outgoing weights are shared
    are ours, as is that a neuron is injected once. ``official`` is ``paper``.
    """

    NAME: ClassVar[str] = "knife"
    KIND: ClassVar[str] = "architecture"
    PRESETS: ClassVar = {"paper": _SETTINGS, "official": _SETTINGS}

    threshold: float | None = None
    """A neuron is stagnant when its score is below this."""
    every: int = 1000
    """Gradient steps of the network's optimizer between two applications."""
    window: int = 100
    """Gradient steps over which updates are averaged, the last of them the one after which neurons are replaced."""
    cap: float | None = None
    """Largest fraction of a layer to replace at once; None for no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {
            "every >= 1": self.every >= 1,
            "window from 1 to every": 1 <= self.window <= self.every,
            "threshold >= 0": (self.threshold or 0) >= 0,
            "cap in (0, 1]": self.cap is None or 0 < self.cap <= 1,
            "outgoing=keep": self.outgoing == "keep",
        }
        require("KNIFE", rules, self)

    def restructure(self, ctx: Context, state: Mapping[str, Any] | None) -> None:
        """Make the units of networks and targets such that they can be composite; ValueError where none can."""
        made = {name: compose_(unwrap(network)) for name, network in self.choose(ctx, self.networks).items()}
        for name in made.keys() & ctx.targets.keys():
            compose_(unwrap(ctx.targets[name]))
        if not any(made.values()):
            raise ValueError(
                f"KNIFE finds no layer in {', '.join(made)} whose elementwise activation follows it in an "
                "nn.Sequential; behind a norm, neurons cannot be replaced one by one"
            )

    def probes(self) -> dict[str, Probe]:
        """Look at gradients relative to weights."""
        return {"updates": RelativeUpdates()}

    def earliest(self) -> int:
        """Return the end of the first window behind the start."""
        return -(-max(self.start, 1) // self.every) * self.every

    def due(self) -> Callable[[str, int], bool] | None:
        """Look at the steps of the window."""
        return lambda network, step: -step % self.every < self.window

    def take(self, network: str, reading: Reading, step: int) -> None:
        """Add a step to the means, and replace stagnant neurons at the end of a window."""
        for layer, found in reading.scores["updates"].items():
            new = {"sum": torch.zeros_like(found, dtype=torch.float64)}
            self.units[network].setdefault(layer, new)["sum"] += found.double()
        if step % self.every:
            return
        places, flagged = self._places(network), {}
        for layer, known in self.units[network].items():
            if layer in places:
                score = known["sum"] / known["sum"].mean().clamp_min(1e-300)
                composite = places[layer][0].retained.composite.cpu()
                flagged[layer] = select(score.masked_fill(composite, torch.inf), self.threshold or 0.0, self.cap)
        self.units[network].clear()
        masks = self.permitted(network, flagged)
        if masks:
            recycled, moved = self.recycle(network, masks, lambda: self._retain(network, masks))
            self.tell(network, step, recycled, moved, {})

    def _places(self, network: str) -> dict[str, list[CompositeUnits]]:
        """Return layer -> its units in the network, and in its target if there is one."""
        nets = [self._networks[network], *([self._ctx.targets[network]] if network in self._ctx.targets else [])]
        found: dict[str, list[CompositeUnits]] = {}
        for net in nets:
            for path, module in named_modules(unwrap(net)).items():
                if isinstance(module, CompositeUnits):
                    found.setdefault(f"{path}.layer".removeprefix("."), []).append(module)
        return found

    @torch.no_grad()
    def before_recycling(self, network: str, masks: Mapping[str, Tensor]) -> None:
        """Keep the rows as they are, in the target those of the target."""
        places = self._places(network)
        for layer, mask in masks.items():
            for units in places[layer]:
                units.retained.keep_("before", units.layer, mask)

    @torch.no_grad()
    def _retain(self, network: str, masks: Mapping[str, Tensor]) -> None:
        """Let the flagged units be composite, now that their rows are fresh."""
        self._ctx.edited()
        places = self._places(network)
        for layer, mask in masks.items():
            online, *targets = places[layer]
            for twin in targets:
                for own, theirs in zip(online.layer.parameters(), twin.layer.parameters(), strict=True):
                    theirs[mask] = own[mask]
            for units in places[layer]:
                units.retained.keep_("copy", units.layer, mask)
                units.retained.composite[mask] = True

    @torch.no_grad()
    def _forget(self, entries: Mapping[Tensor, Tensor]) -> None:
        """Let redrawn neurons be plain ones, and cut in composite ones what was cut in their rows."""
        super()._forget(entries)
        for network in self._networks:
            for online, *targets in self._places(network).values():
                weight = online.layer._parameters.get("weight")
                if weight is None or weight not in entries:
                    continue
                where = entries[weight]
                cut = where & (weight == 0)
                for units in (online, *targets):
                    units.retained.composite &= ~where.flatten(1).all(1)
                    units.retained.before[cut], units.retained.copy[cut] = 0, 0

    def parameters_added(self) -> int:
        """Return how many frozen numbers composite units hold."""
        retained = [units.retained for network in self._networks for units, *_ in self._places(network).values()]
        return sum(2 * int(r.composite.sum()) * r.before[0].numel() for r in retained)
