"""The base of ReDo and ReGraMa: score the neurons on the training passes, recycle those that score too low."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.isolation import unwrap
from plasticity.observing.reading import Reading
from plasticity.probes import Probe
from plasticity.structure.wirings import Wiring
from plasticity.value_types import require

from .published import published as published
from .trigger import Trigger
from .units import UnitRecycling


def select(scores: Tensor, threshold: float, cap: float | None = None) -> Tensor:
    """Return which neurons to recycle, (neurons,) bool: scores of at most ``threshold``, the lowest first.

    ``cap``: the largest fraction of the layer at once, but at least one neuron; None for no limit. A layer with a NaN
    score (it met a non-finite value) is left alone.
    """
    mask = scores <= threshold
    if scores.isnan().any():
        return torch.zeros_like(mask)
    most = len(scores) if cap is None else max(1, int(cap * len(scores)))
    if int(mask.sum()) > most:
        mask = torch.zeros_like(mask)
        mask[scores.argsort(stable=True)[:most]] = True
    return mask


@dataclass
class Recycling(UnitRecycling):
    """Recycle low-scoring neurons: redraw what comes in, zero what goes out, clear the optimizer's memory of both."""

    every: int | None = None
    """Gradient steps of the network's optimizer between two resets."""
    threshold: float | None = None
    """A neuron is recycled when its score is at most this."""
    cap: float | None = None
    """Largest fraction of a layer to recycle at once; None for no limit."""
    when: str | None = None
    """Act when a logged value crosses a bound instead, such as "plasticity/critic_1/grama/all > 0.3", or has levelled
    off, as in "plateau(plasticity/critic_1/effective_rank/all, 10, 0.02)", and not again for ``every`` gradient
    steps."""

    def __post_init__(self) -> None:
        self.when = None if self.when is None else str(self.when)  # of a condition: settings are plain values
        super().__post_init__()
        checks = {
            "every >= 1 gradient steps": (self.every or 0) >= 1,
            "cap in (0, 1]": self.cap is None or 0 < self.cap <= 1,
            "threshold >= 0": (self.threshold or 0) >= 0,
        }
        require(type(self).__name__, checks, self)
        self._trigger()  # a malformed ``when`` fails here

    def probe(self) -> Probe:
        """Return the probe whose scores decide."""
        raise NotImplementedError

    def uninformative(self, module: nn.Module) -> str | None:
        """Return why the scores of this step say nothing about the network, None if they do."""
        return None

    def flagged_norms(self, module: nn.Module) -> dict[str, Tensor]:
        """Return norm layer -> mask of entries to reset besides those of recycled neurons."""
        return {}

    def reset_norms_(self, module: nn.Module, masks: Mapping[str, Tensor]) -> None:
        """Reset the entries that :meth:`flagged_norms` returned."""

    def probes(self) -> dict[str, Probe]:
        """Return the probe that scores."""
        return {self.NAME: self.probe()}

    def scores(self, network: str, reading: Reading) -> Mapping[str, Tensor]:
        """Return layer -> score of each neuron, (neurons,): low ones are recycled."""
        return reading.scores[self.NAME]

    def select(self, scores: Tensor, step: int) -> Tensor:
        """Return which neurons of a layer to recycle, (neurons,) bool."""
        return select(scores, self.threshold or 0.0, self.cap)

    def due(self) -> Callable[[str, int], bool] | None:
        """Ask the trigger of the network."""
        self._triggers = {name: self._trigger() for name in self._networks}
        return self._due

    def _trigger(self) -> Trigger:
        every = None if self.when else self.every
        return Trigger(every=every, when=self.when, start=self.start, stop=self.stop, cooldown=self.every or 0)

    def idle(self) -> str:
        """Return why no network was looked at, where the schedule says, or a tag that was never logged."""
        triggers, latest = self._triggers.values(), self._ctx.latest
        return min((one.missed("gradient steps", ahead=1, latest=latest) for one in triggers), default="")

    def _due(self, network: str, step: int) -> bool:
        return self._triggers[network].due(step, self._ctx.latest, self._ctx.logged)

    def take(self, network: str, reading: Reading, step: int) -> None:
        """Recycle the neurons of one network that score too low."""
        module = unwrap(self._networks[network])
        if reason := self.uninformative(module):
            self._skip(network, "", reason)
            return
        scores, last = self.scores(network, reading), self._recycled.get(network, {})
        flagged = {layer: self.select(values, step) for layer, values in scores.items()}
        masks = self.permitted(network, flagged)
        norms = self._with_their_neurons(self.wired(network), masks, self.flagged_norms(module))
        recycled: dict[str, list[int]] = {}
        moved = 0.0
        if masks or norms:
            recycled, moved = self.recycle(network, masks, lambda: self.reset_norms_(module, norms))
        self.log_numbers(network, recycled, _since(scores, last, flagged))
        if recycled or norms:
            rounded = {la: [round(float(scores[la][i]), 6) for i in n] for la, n in recycled.items()}
            details: dict[str, Any] = {"scores": rounded}
            if norms:
                details["norm_entries"] = {name: m.flatten().nonzero().flatten().tolist() for name, m in norms.items()}
            self.log_event(network, step, recycled, moved, details)

    def _with_their_neurons(
        self, wired: Wiring, masks: Mapping[str, Tensor], entries: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the entries of norms to reset, without those that would revive a neuron whose outgoing weights stay.

        These are entries of norms before an activation, of neurons that are not recycled.
        """
        kept = {name: mask.clone() for name, mask in entries.items()}
        for layer in wired.layers.values() if self.outgoing != "keep" else ():
            stays = ~masks.get(layer.name, torch.zeros(layer.num_neurons, dtype=torch.bool, device="cpu"))
            for norm in (norm for norm in layer.norms if norm.before and norm.module in kept):
                revived = (norm.entries >= 0) & stays[norm.entries.clamp(min=0)]
                kept[norm.module] &= ~revived.view_as(kept[norm.module]).to(kept[norm.module].device)
        return {name: mask for name, mask in kept.items() if mask.any()}

    def state_dict(self) -> dict[str, Any]:
        """Return what the base does, and the triggers."""
        if self._watcher is None:  # never started
            return super().state_dict()
        return {**super().state_dict(), "triggers": {name: t.state_dict() for name, t in self._triggers.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`: the triggers first, which the watcher asks when it is armed."""
        for name, trigger in self._triggers.items() if "triggers" in state else ():
            trigger.load_state_dict(state["triggers"][name])
        super().load_state_dict(state)


def _since(
    scores: Mapping[str, Tensor], last: Mapping[str, list[int]], flagged: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return what became of the neurons recycled the last time: their mean score, and the share flagged again."""
    then = [(layer, i) for layer, neurons in last.items() if layer in scores for i in neurons]
    if not then:
        return {}
    return {
        "score_since": sum(float(scores[layer][i]) for layer, i in then) / len(then),
        "flagged_again": sum(bool(flagged[layer][i]) for layer, i in then) / len(then),
    }
