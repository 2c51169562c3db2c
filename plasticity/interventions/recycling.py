"""The base of ReDo and ReGraMa: score the neurons on the training passes, recycle those that score too low."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from plasticity.callback import Context
from plasticity.isolation import named_modules, unwrap
from plasticity.monitor import Monitor
from plasticity.observing.reading import Reading
from plasticity.probes import Probe
from plasticity.structure.layers import is_conv1d
from plasticity.structure.wirings import Wiring
from plasticity.surgery.function_change import function_change
from plasticity.surgery.initialisers import Initialiser, default_initialiser, fans, weight_layers, weight_of
from plasticity.surgery.laws import TRUNCATED_STD, Law
from plasticity.surgery.optimizer_state import state_refusal
from plasticity.surgery.origin import Origins, Replacement
from plasticity.surgery.recycle import recycle_, refusals
from plasticity.watching import Watcher

from .intervention import Intervention
from .rules import require
from .trigger import Trigger


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


def published(module: nn.Module, init: str) -> Initialiser:
    """Return an initialiser that released code redraws a layer with, whatever the layer began with.

    ``he_uniform``: U(+-sqrt(6 / fan_in)), 2.45 times as wide as torch's default, and the default bias
    (torressliu/grad-based-plasticity-metrics, timoklein/redo). ``xavier_uniform``: U(+-sqrt(6 / (fan_in + fan_out))),
    bias 0 (google/dopamine, labs/redo). ``lecun_normal``: truncated normal of standard deviation 1 / sqrt(fan_in),
    bias 0 (the second choice of the two torch codes).
    """
    fan_in, fan_out = fans(weight_of(module).T if is_conv1d(module) else weight_of(module))
    default = 1 / math.sqrt(fan_in)
    he, xavier = math.sqrt(6 / fan_in), math.sqrt(6 / (fan_in + fan_out))
    zero = Law("constant", (0.0,))
    weight, bias = {
        "he_uniform": (Law("uniform", (-he, he)), Law("uniform", (-default, default))),
        "xavier_uniform": (Law("uniform", (-xavier, xavier)), zero),
        "lecun_normal": (Law("truncated", (default / TRUNCATED_STD,)), zero),
    }[init]
    return Initialiser(module, weight, bias)


@dataclass
class Recycling(Intervention):
    """Recycle low-scoring neurons: redraw what comes in, zero what goes out, clear the optimizer's memory of both."""

    preset: Literal["paper", "official"] = "paper"
    """Defaults of the options that are None: as the paper says, or as the authors' code does."""
    every: int | None = None
    """Gradient steps of the network's optimizer between two resets."""
    threshold: float | None = None
    """A neuron is recycled when its score is at most this."""
    cap: float | None = None
    """Largest fraction of a layer to recycle at once; None for no limit."""
    networks: tuple[str, ...] = ()
    """Names or globs of the networks to act on; empty for all."""
    outgoing: Literal["zero", "keep", "small"] | None = None
    """Treatment of a recycled neuron's outgoing weights; small: random, 0.02 of the live columns' norm, so that the
    neuron gets a gradient at once."""
    init: Literal["own", "he_uniform", "xavier_uniform", "lecun_normal"] | None = None
    """Distribution of redrawn incoming weights: the layer's own initialiser, or one of released code."""
    moments: bool | None = None
    """Clear the optimizer's state of the affected weights."""
    adam_step: Literal["keep", "zero"] | None = None
    """Reset the step counter of the affected tensors, which also scales the step of their other weights."""
    norms: bool | None = None
    """Let norm-layer entries go back to gain 1 and bias 0 with their neuron."""
    start: int = 0
    """First gradient step at which to act."""
    stop: int | None = None
    """Last gradient step at which to act; None for no end."""
    when: str | None = None
    """Act when a logged value crosses a bound instead, such as "plasticity/critic_1/grama/all > 0.3", and not again
    for ``every`` gradient steps."""
    seed: int = 0
    """Seed of the redraws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = {
            "every >= 1 gradient steps": (self.every or 0) >= 1,
            "cap in (0, 1]": self.cap is None or 0 < self.cap <= 1,
            "threshold >= 0": (self.threshold or 0) >= 0,
        }
        require(type(self).__name__, checks, self)
        self._trigger()  # a malformed ``when`` fails here
        self._watcher: Watcher | None = None
        self._networks: dict[str, nn.Module] = {}
        self._origins = Origins()
        self._recycled: dict[str, dict[str, list[int]]] = {}
        """Network -> layer -> neurons of the last application: their scores are logged at the next one."""
        self._skipped: set[tuple[str, ...]] = set()

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

    # -- life ----------------------------------------------------------------------------------------------------------

    def on_train_start(self, ctx: Context) -> None:
        """Remember how the layers were initialised and start to watch; ValueError for optimizers that cannot be cut."""
        chosen = self.choose(ctx, self.networks)
        ctx.require("optimizers", type(self).__name__)
        self._ctx, self._networks = ctx, chosen
        self._optimizers = list(ctx.optimizers.values())
        self._require_layers()
        self._require_clearable()
        self._origins = Origins.of({name: unwrap(network) for name, network in chosen.items()})
        self._triggers = {name: self._trigger() for name in chosen}
        self._watcher = Watcher(
            chosen,
            self._optimizers,
            self.named(self._apply),
            due=self._due,
            probes={self.NAME: self.probe()},
            strict=True,
            read=self.named(Monitor.read),
            calls=ctx.calls,
            masks=ctx.masks,
            processes="all",  # data-parallel replicas recycle the same neurons
        )

    def on_train_end(self, ctx: Context) -> None:
        """Take every hook off."""
        super().on_train_end(ctx)
        if self._watcher is not None:
            self._watcher.close()

    def _require_layers(self) -> None:
        for name, network in self._networks.items():
            if next(weight_layers(network), None) is None:
                kind = type(unwrap(network)).__name__
                raise ValueError(f"{type(self).__name__}: {name} ({kind}) has no Linear or convolution to recycle")

    def _require_clearable(self) -> None:
        for name, network in self._networks.items() if self.moments else ():
            for layer, module in weight_layers(network):
                weight = module._parameters.get("weight")
                if weight is not None and (reason := state_refusal(self._optimizers, weight)):
                    raise ValueError(f"{type(self).__name__}: {name}.{layer}: {reason}; moments=False leaves it alone")

    def _trigger(self) -> Trigger:
        every = None if self.when else self.every
        return Trigger(every=every, when=self.when, start=self.start, stop=self.stop, cooldown=self.every or 0)

    def _due(self, network: str, step: int) -> bool:
        return self._triggers[network].due(step, self._ctx.latest)

    # -- an application ------------------------------------------------------------------------------------------------

    def _apply(self, network: str, reading: Reading, step: int) -> None:
        """Recycle the neurons of one network that score too low."""
        assert self._watcher is not None
        monitor, module = self._watcher.monitors[network], unwrap(self._networks[network])
        if reason := self.uninformative(module):
            self._skip(network, "", reason)
            return
        assert monitor.wiring is not None
        masks = self._permitted(network, monitor.wiring, reading.scores[self.NAME])
        norms = self._with_their_neurons(monitor.wiring, masks, self.flagged_norms(module))
        recycled: dict[str, list[int]] = {}
        moved = 0.0

        def change() -> dict[str, list[int]]:
            done = self._recycle_(network, cast(Wiring, monitor.wiring), masks)
            self.reset_norms_(module, norms)
            self._ctx.edited()
            return done

        if masks or norms:
            args, kwargs = monitor.inputs or ((), {})
            recycled, moved = function_change(module, args, kwargs, change, monitor.method)
        self._tell(network, step, reading, recycled, norms, moved)

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

    def _permitted(self, network: str, wired: Wiring, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return layer -> neurons that score too low and can be recycled; the reason of a refusal is an event, once."""
        assert self.threshold is not None
        masks = {}
        for layer, values in scores.items():
            mask = select(values, self.threshold, self.cap)
            if not mask.any():
                continue
            reason = refusals(wired, layer, self.outgoing or "zero") or self._consumed_elsewhere(network, wired, layer)
            if reason is None:
                masks[layer] = mask
            else:
                self._skip(network, layer, reason)
        return masks

    def _consumed_elsewhere(self, network: str, wired: Wiring, layer: str) -> str | None:
        """Say which other network holds the layer too: its consumers there were not seen, and would not be cut."""
        if self.outgoing == "keep":
            return None
        weight, parts = wired.layers[layer].module._parameters.get("weight"), set(wired.modules.values())
        for name, other in self._ctx.networks.items():
            outside = name != network and unwrap(other) not in parts
            if outside and any(p is weight for p in other.parameters()):
                return f'{layer} is also part of {name}, where it may feed other layers; outgoing="keep" can be done'
        return None

    def _skip(self, network: str, layer: str, reason: str) -> None:
        if (network, layer, reason) not in self._skipped:
            self._skipped.add((network, layer, reason))
            details = {"network": network, "layer": layer or "all", "reason": reason}
            self._ctx.event(f"{self.NAME}_skipped", details)

    def _recycle_(self, network: str, wired: Wiring, masks: Mapping[str, Tensor]) -> dict[str, list[int]]:
        return recycle_(
            wired,
            masks,
            self._optimizers,
            initialisers={name: self.initialiser(network, name, wired.layers[name].module) for name in masks},
            generator=self.generator,
            outgoing=self.outgoing or "zero",
            moments=bool(self.moments),
            step=self.adam_step or "keep",
            norms=bool(self.norms),
        )

    def initialiser(self, network: str, layer: str, module: nn.Module) -> Initialiser:
        """Return what a layer's neurons are redrawn from.

        A layer that took the place of another, as the new head of a plasticity injection, begins as that one did; any
        other that was not there when training began, as its own ``reset_parameters`` would have it.
        """
        if self.init not in (None, "own"):
            return published(module, cast(str, self.init))
        laws, name = self._origins[network].laws, f"{layer}.weight".removeprefix(".")
        for path, part in named_modules(unwrap(self._networks[network])).items():
            if name not in laws and isinstance(part, Replacement) and name.startswith(f"{path}."):
                name = part.original_name(path, name)
        if name not in laws:
            return default_initialiser(module)
        return Initialiser(module, laws[name], laws.get(f"{name.removesuffix('weight')}bias"))

    def _tell(
        self,
        network: str,
        step: int,
        reading: Reading,
        recycled: Mapping[str, list[int]],
        norms: Mapping[str, Tensor],
        moved: float,
    ) -> None:
        """Log what was done: which neurons of which layer, their scores before, and how much the function moved."""
        scores, tag = reading.scores[self.NAME], f"interventions/{self.NAME}/{network}"
        last = self._recycled.get(network, {})
        then = [float(scores[layer][i]) for layer, neurons in last.items() if layer in scores for i in neurons]
        values = {f"{tag}/recycled": float(sum(map(len, recycled.values()))), f"{tag}/function_change": moved}
        if then:  # what became of those recycled the last time
            values[f"{tag}/score_since"] = sum(then) / len(then)
        self._ctx.log(values)
        if not recycled and not norms:
            return
        self._recycled[network] = dict(recycled)
        details = {
            "network": network,
            "gradient_step": step,
            "neurons": dict(recycled),
            "scores": {la: [round(float(scores[la][i]), 6) for i in n] for la, n in recycled.items()},
            "function_change": moved,
        }
        if norms:
            details["norm_entries"] = {name: m.flatten().nonzero().flatten().tolist() for name, m in norms.items()}
        self.report(self._ctx, details, recycled=sum(map(len, recycled.values())), applications=1)

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return counters, generator, triggers, clocks, and how the layers were initialised."""
        if self._watcher is None:  # never started
            return super().state_dict()
        return {
            **super().state_dict(),
            "triggers": {name: trigger.state_dict() for name, trigger in self._triggers.items()},
            "watcher": self._watcher.state_dict(),
            "origins": self._origins.state_dict(),
            "recycled": {name: dict(layers) for name, layers in self._recycled.items()},
            "skipped": sorted(self._skipped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        if self._watcher is None or "watcher" not in state:
            return  # of a method that was never started
        self._origins.load_state_dict(state["origins"])
        self._recycled = {name: dict(layers) for name, layers in state["recycled"].items()}
        self._skipped = {tuple(entry) for entry in state["skipped"]}
        for name, trigger in self._triggers.items():
            trigger.load_state_dict(state["triggers"][name])
        self._watcher.load_state_dict(state["watcher"])
