"""Neuroplastic Expansion: start sparse, grow where gradients ask for it, cut dormant neurons loose.

Liu et al. 2025, *Neuroplastic Expansion in Deep Reinforcement Learning*, arXiv 2410.07994. Growth and pruning are those
of sparse training, so RigL (Evci et al. 2020, arXiv 1911.11134), SET (Mocanu et al. 2018, arXiv 1707.04780), gradual
magnitude pruning (Zhu & Gupta 2017, arXiv 1710.01878; Obando-Ceron et al. 2024, arXiv 2402.12479) and static sparse
training (Graesser et al. 2022, arXiv 2206.10369) are presets.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from plasticity.callback import Context
from plasticity.isolation import named_modules, unwrap
from plasticity.observing.first_pass import FirstPass
from plasticity.observing.reading import Reading
from plasticity.probes import Dormancy
from plasticity.structure.optimizers import all_parameters
from plasticity.structure.trace import trace
from plasticity.structure.wirings import Wiring
from plasticity.surgery.entries import incoming_entries
from plasticity.surgery.initialisers import weight_of
from plasticity.surgery.masks import Masks
from plasticity.surgery.optimizer_state import clear_state_, state_refusal
from plasticity.value_types import require

from .every_step import layers_of
from .intervention import Listener
from .topology import (
    ActiveFraction,
    Oldest,
    SparseLayer,
    cosine_fraction,
    erdos_renyi,
    grown_share,
    may_be_sparse,
    pruned_share,
    random_mask,
    regrow,
    review_gate,
    some,
    sparse_layers,
    top,
)
from .watches import Watches

_REVIEW = "ne_review"


_REWIRED = {"initial_density": 0.2, "prune": "none", "prune_ratio": 0.0, "dense_ends": False, "keep": "random"}


@dataclass
class NeuroplasticExpansion(Watches):
    """Grow a sparse network by its gradients; prune dormant neurons.

    ``paper``: growth follows a cosine-annealed schedule up to ``end``; each event also cuts incoming connections of
    fully dormant neurons, at most ``prune_ratio`` of the growth, and grows as many more, so that density keeps to its
    schedule; input and output layers stay dense. ``official`` (github.com/torressliu/neuroplastic-expansion): each
    event grows 0.008 of the initial free space and prunes 0.4 of that by magnitude, in every layer, and once the final
    density is reached rewires a cosine-decaying fraction. ``rigl``, ``set``: constant density, rewired by magnitude,
    grown by gradient or at random. ``gmp``: dense at first, the smallest weights are pruned down to a density of 0.05,
    by 1 - (1 - t)^3 between a fifth and four fifths of training: ``begin`` and ``end`` are gradient steps. ``static``:
    one random mask that never changes, as thin as ``initial_density`` says.

    Where we differ from the official code, on purpose: the optimizer's step is taken also at an event; connections
    that are absent or new have an empty optimizer state and the step counter is left alone; layers that start denser
    than they may end do not shrink; density is that of the masks, not of non-zero weights; norm layers are never
    sparse; the batch is not halved when activity is low.
    """

    NAME: ClassVar[str] = "ne"
    KIND: ClassVar[str] = "topology"
    PRESETS: ClassVar = {
        "paper": {
            "initial_density": 0.2,
            "final_density": 0.75,
            "prune": "dormant",
            "prune_ratio": 0.5,
            "rewire": 0.0,
            "grow": "gradient",
            "dense_ends": True,
            "keep": "random",
        },
        "official": {
            "initial_density": 0.2,
            "final_density": 0.75,
            "grow_rate": 0.008,
            "prune": "magnitude",
            "prune_ratio": 0.4,
            "rewire": 0.2,
            "grow": "gradient",
            "dense_ends": False,
            "keep": "magnitude",
        },
        "rigl": {**_REWIRED, "rewire": 0.5, "grow": "gradient"},
        "set": {**_REWIRED, "rewire": 0.3, "grow": "random"},
        "gmp": {
            **_REWIRED,
            "initial_density": 1.0,
            "final_density": 0.05,
            "begin": 125_000,
            "rewire": 0.0,
            "grow": "random",
            "keep": "magnitude",
        },
        "static": {**_REWIRED, "rewire": 0.0, "grow": "random"},
    }

    preset: Literal["paper", "official", "rigl", "set", "gmp", "static"] = "paper"
    """Defaults of the options that are None."""
    initial_density: float | None = None
    """Fraction of the connections that exist at the start, by Erdos-Renyi: thin layers get more."""
    final_density: float | None = None
    """Fraction at which growth, or pruning, ends; None for rigl, set and static: the initial one."""
    every: int = 1000
    """Gradient steps between two events (the released code: 100 by default, 10,000 in its examples)."""
    end: int = 500_000
    """Gradient step at which scheduled growth ends, and the length of the decay of rewiring: about three quarters of
    training."""
    begin: int | None = None
    """Gradient step at which pruning to a lower density begins; None: 0, or as the preset says."""
    grow: Literal["gradient", "random"] | None = None
    """Connections to grow: the absent ones with the largest gradient, or random ones."""
    grow_rate: float | None = None
    """Constant growth per event as a fraction of the initial free space; None: the cosine schedule."""
    prune: Literal["dormant", "magnitude", "none"] | None = None
    """Connections that an event prunes while the network grows."""
    prune_ratio: float | None = None
    """Pruned connections per grown one: the paper's omega, its upper bound."""
    rewire: float | None = None
    """Fraction of the live connections rewired per event at full density, decaying with a cosine over ``end``."""
    dense_ends: bool | None = None
    """Keep input and output layers dense."""
    keep: Literal["random", "magnitude"] | None = None
    """The connections that exist at the start."""
    review: bool = False
    """Replay the oldest experience more when few units are active (needs a replay buffer)."""
    awaken: float = 0.4
    """Active fraction below which old experience is reviewed."""
    review_share: float = 0.3
    """Share of the memory that counts as old."""
    networks: tuple[str, ...] = ()
    """Names or globs of the networks to act on; empty for all."""
    seed: int = 0
    """Seed of random connections."""

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.initial_density is not None
        if self.final_density is None:
            self.final_density = self.initial_density
        rising = self.initial_density <= self.final_density or self.preset == "gmp"
        rules = {
            "0 < initial_density <= final_density <= 1": 0 < self.initial_density <= 1
            and 0 < self.final_density <= 1
            and rising,
            "begin below end": 0 <= (self.begin or 0) < self.end,
            "every >= 1": self.every >= 1,
            "end >= every": self.end >= self.every,
            "0 <= grow_rate <= 1": 0 <= (self.grow_rate or 0) <= 1,
            "0 <= prune_ratio < 1": 0 <= (self.prune_ratio or 0) < 1,
            "0 <= rewire <= 1": 0 <= (self.rewire or 0) <= 1,
            "0 < review_share <= 1": 0 < self.review_share <= 1,
        }
        require("NeuroplasticExpansion", rules, self)
        self._masks: dict[str, Masks] = {}
        self._layers: dict[str, list[SparseLayer]] = {}
        self._active: dict[str, float] = {}
        self._full: dict[str, int] = {}
        """Network -> the gradient step at which growth ended."""
        self._first: dict[str, list[FirstPass]] = {}
        """Network -> the hooks that wait for its first pass, or its target's."""

    # -- life ----------------------------------------------------------------------------------------------------------

    def on_train_start(self, ctx: Context) -> None:
        """Watch for the first pass of each network, which shows its layers; mask them then."""
        networks = self.choose(ctx, self.networks)
        ctx.require("optimizers", type(self).__name__)
        if self.review:
            buffer = ctx.require("buffer", "NeuroplasticExpansion(review=True)")
            if not hasattr(buffer, "weigh"):
                raise ValueError("NeuroplasticExpansion(review=True) needs a replay buffer with weigh(name, weight)")
        self._ctx, self._networks = ctx, networks
        self._optimizers = list(ctx.optimizers.values())
        self._masks, self._layers, self._active, self._full, self._first = {}, {}, {}, {}, {}
        self._dense: dict[str, dict[Tensor, Tensor]] = {name: {} for name in networks}
        for name, network in networks.items():
            ctx.optimizer_of(name)
            if not may_be_sparse(network, bool(self.dense_ends)):
                raise _no_layer(name)
            for layer, module in layers_of(network).items():
                if reason := state_refusal(self._optimizers, weight_of(module)):
                    raise ValueError(f"NeuroplasticExpansion: {name}.{layer}: {reason}")
            for module in filter(None, (network, ctx.targets.get(name))):  # whichever runs first
                self._see_first(name, unwrap(module), ctx.calls.get(name, ()))
        self.watch(ctx, {"dormancy": Dormancy(0.0), "active": ActiveFraction()}, self._event, self._due)
        self.hook(Listener(ctx.on_edit, self._restore_masks))
        self.hook(Listener(ctx.on_connections, self._connections))

    def on_train_end(self, ctx: Context) -> None:
        """Take every hook off; the weights stay as sparse as they are."""
        super().on_train_end(ctx)
        for masks in self._masks.values():
            masks.remove()
        if self.review and ctx.buffer is not None:
            ctx.buffer.unweigh(_REVIEW)

    def on_update_start(self, ctx: Context) -> None:
        """Decide whether this update replays old experience."""
        if not self.review or ctx.buffer is None:
            return
        ctx.buffer.unweigh(_REVIEW)
        values = [active for name, active in self._active.items() if name in ctx.targets] or list(self._active.values())
        active = sum(values) / len(values) if values else 1.0
        if not active < self.awaken:
            return
        if float(torch.rand((), generator=self.generator, device="cpu")) >= review_gate(active, self.awaken):
            ctx.buffer.weigh(_REVIEW, Oldest(self.review_share, lambda: ctx.require("buffer", _REVIEW).num_rows))
            self.counts["reviews"] = self.counts.get("reviews", 0) + 1

    def _due(self, network: str, step: int) -> bool:
        static = self.final_density == self.initial_density and not self.rewire
        return step % self.every == 0 and not static

    # -- the start -----------------------------------------------------------------------------------------------------

    def _see_first(self, name: str, module: nn.Module, calls: Sequence[str]) -> None:
        """Put the masks on before the first pass of a network or its target."""

        def see(args: tuple, kwargs: dict) -> None:
            self._stop_waiting(name)
            self.sparsify(name, trace(unwrap(self._networks[name]), args, kwargs, method=first.method))

        self.hook(first := FirstPass(module, see, calls=calls))
        self._first.setdefault(name, []).append(first)

    def _stop_waiting(self, name: str) -> None:
        for hook in self._first[name]:
            hook.remove()

    def sparsify(self, name: str, wired: Wiring) -> None:
        """Give a network its initial masks; raise ValueError where it has no layer that may be sparse."""
        self._layers[name] = self._chosen(wired)
        if not self._layers[name]:
            raise _no_layer(name)
        self._mask(name, {layer.weight: self._initial_mask(layer) for layer in self._layers[name]})
        if self.grow_rate and not any(self._steady_growth(la) for la in self._layers[name]):
            warnings.warn(
                f"NeuroplasticExpansion: the layers of {name} are so small that {self.grow_rate:g} of their free space "
                "is no connection: it will never grow; a larger grow_rate, or the preset paper, lets it",
                RuntimeWarning,
                stacklevel=2,
            )
        self.log(self._ctx, {f"{name}/density": self._masks[name].density()})

    def _sparsify_again(self, name: str, saved: Mapping[str, Any]) -> None:
        """Give a network the masks of a saved run, which say what its layers are: no pass has to be waited for.

        Else the first update after a resume would be an eager one, which differs in the last bits from a compiled one.
        """
        self._stop_waiting(name)
        layers = layers_of(unwrap(self._networks[name]))
        if missing := [layer for layer in saved if layer not in layers]:
            lacks = f"the saved run masked {', '.join(missing)}, which {name} lacks"
            raise ValueError(f"NeuroplasticExpansion: {lacks}: resume with the network that was trained")
        self._layers[name] = [SparseLayer(n, layers[n], one["initial"], one["final"]) for n, one in saved.items()]
        self._mask(name, {layer.weight: saved[layer.name]["mask"] for layer in self._layers[name]})

    def _chosen(self, wired: Wiring) -> list[SparseLayer]:
        """Return the layers that may be sparse: trained by an optimizer, and not masked under another name yet."""
        masked = {id(parameter) for masks in self._masks.values() for parameter in masks}
        free = [p for p in self._held() if p.requires_grad and id(p) not in masked]
        chosen = sparse_layers(wired, free, dense_ends=bool(self.dense_ends))
        shapes = [tuple(weight_of(layer.module).shape) for layer in chosen]
        first, last = (erdos_renyi(shapes, density or 1.0) for density in (self.initial_density, self.final_density))
        if self.grow_rate is not None:  # the released code takes its initial sparsity for a layer's target density
            last = [1 - (self.initial_density or 1.0)] * len(first)
        parts = zip(chosen, first, last, strict=True)
        return [SparseLayer(layer.name, layer.module, a, b) for layer, a, b in parts]

    def _held(self) -> Iterator[Tensor]:
        for optimizer in self._optimizers:
            yield from all_parameters(optimizer)

    def _initial_mask(self, layer: SparseLayer) -> Tensor:
        count = round(layer.initial * layer.weight.numel())
        if self.keep == "magnitude":
            return top(layer.weight.detach().abs(), torch.ones_like(layer.weight, dtype=torch.bool), count)
        return random_mask(layer.weight.shape, count, self.generator)

    def _mask(self, name: str, masks: dict[Tensor, Tensor]) -> None:
        """Put masks on a network and its target."""

        def keep(parameter: Tensor, gradient: Tensor) -> None:
            if self._watcher is not None and self._watcher.monitors[name].attached:  # an event follows this step
                self._dense[name][parameter] = gradient.detach().clone()

        target, followers = self._ctx.targets.get(name), {}
        theirs = {} if target is None else named_modules(unwrap(target))
        for layer in self._layers[name] if theirs else ():
            twin = theirs.get(layer.name)
            if twin is None or weight_of(twin).shape != layer.weight.shape:
                raise ValueError(f"NeuroplasticExpansion: the target of {name} is no copy of it: {layer.name} differs")
            followers[layer.weight] = [weight_of(twin)]
        self._masks[name] = Masks(masks, self._optimizers, on_dense_gradient=keep, followers=followers)

    def _connections(self, parameter: Tensor) -> Tensor | None:
        """Return the mask of a parameter on its device; None where it has none."""
        found = [masks[parameter] for masks in self._masks.values() if parameter in masks]
        return found[0].to(parameter.device) if found else None

    def _restore_masks(self) -> None:
        """After somebody else's edit: mask again what is still trained, and let go of what is not."""
        held = {id(parameter) for parameter in self._held()}
        for name, masks in list(self._masks.items()):
            gone = [layer for layer in self._layers[name] if id(layer.weight) not in held]
            if gone:
                self._layers[name] = [layer for layer in self._layers[name] if layer not in gone]
                masks.release(layer.weight for layer in gone)
                masks.apply_()
                reason = "no optimizer trains them any more"
                self._ctx.event("ne_released", {"network": name, "layers": [g.name for g in gone], "reason": reason})
            else:
                masks.apply_()

    # -- events --------------------------------------------------------------------------------------------------------

    def _event(self, network: str, reading: Reading, step: int) -> None:
        """Prune and grow every layer of one network."""
        self._active[network] = reading.values["active"]["all"]
        dense = self._gradients(network)
        if not self._layers.get(network):
            return
        full_at = self._full_at(network)
        rows, moved = self.alter(self._ctx, network, partial(self._rewire, network, dense, reading, step, full_at))
        grown, pruned = (sum(row[what] for row in rows.values()) for what in ("grown", "pruned"))
        density = self._masks[network].density()
        constant = self.grow_rate is not None
        over = density >= (self.final_density or 1.0) if constant else step >= self.end and not grown
        if full_at is None and over:
            self._full[network] = step
        values = {f"{network}/density": density, f"{network}/active": self._active[network]}
        if self.review:
            values["reviews"] = float(self.counts.get("reviews", 0))
        self.log(self._ctx, values)
        if grown or pruned:
            details = {"network": network, "gradient_step": step, "density": density, "layers": rows}
            self.report(self._ctx, {**details, "function_change": moved}, grown=grown, pruned=pruned, applications=1)

    def _gradients(self, network: str) -> dict[Tensor, Tensor]:
        """Return the dense gradients of this step, which an optimizer that steps later still has before it."""
        seen, self._dense[network] = self._dense[network], {}
        own = set(map(id, all_parameters(self._ctx.optimizer_of(network))))
        for weight in (layer.weight for layer in self._layers.get(network, ()) if id(layer.weight) not in own):
            now, before = weight.grad, seen.get(weight)
            absent = ~self._masks[network][weight].to(weight.device)
            if now is not None and (before is None or not torch.equal(before.masked_fill(absent, 0), now)):
                seen[weight] = now.detach().clone()
        return seen

    def _rewire(
        self, network: str, dense: dict[Tensor, Tensor], reading: Reading, step: int, full_at: int | None
    ) -> dict[str, dict[str, Any]]:
        """Change the connections of every layer of a network; return layer -> density and what was grown and pruned."""
        masks, rows = self._masks[network], {}
        for layer in self._layers[network]:
            mask = masks[layer.weight]
            new = self._changed(layer, mask, dense.get(layer.weight), reading, step, full_at)
            appeared, gone = new & ~mask, mask & ~new
            masks.set(layer.weight, new)
            if appeared.any():
                clear_state_(self._optimizers, layer.weight, appeared)
            counts = {"grown": int(appeared.sum()), "pruned": int(gone.sum())}
            rows[layer.name] = {"density": masks.density(layer.weight), **counts}
        return rows

    def _thins(self) -> bool:
        """Return whether networks become sparser; where they grow, a layer that is denser than it may end stays so."""
        return (self.final_density or 0.0) < (self.initial_density or 0.0)

    def _full_at(self, network: str) -> int | None:
        """Return the step at which the network stopped growing; None while it grows."""
        return 0 if self.final_density == self.initial_density else self._full.get(network)

    def _changed(
        self,
        layer: SparseLayer,
        mask: Tensor,
        gradient: Tensor | None,
        reading: Reading,
        step: int,
        full_at: int | None,
    ) -> Tensor:
        """Return the new mask of a layer."""
        if self.grow == "gradient" and (gradient is None or not bool(gradient.isfinite().all())):
            return mask  # what to grow is not known; a schedule is caught up with at the next event
        live, smallest = int(mask.sum()), -layer.weight.detach().abs()
        if layer.final < layer.initial and self._thins():
            share = pruned_share(step, self.begin or 0, self.end)
            wanted = round((layer.initial + (layer.final - layer.initial) * share) * mask.numel())
            return mask & ~top(smallest, mask, max(0, live - wanted))
        if full_at is not None:
            num_grow = int(live * cosine_fraction(self.rewire or 0.0, step - full_at, self.end))
            cut, again = top(smallest, mask, num_grow), True
        else:
            num_grow, most = self._budget(layer, mask, live, step)
            again = self.prune != "dormant"
            cut = top(smallest, mask, most) if self.prune == "magnitude" else self._dormant(layer, mask, reading, most)
            if self.grow_rate is None:
                num_grow += int(cut.sum())
        return regrow(mask, cut, num_grow, gradient if self.grow == "gradient" else None, self.generator, again)

    def _budget(self, layer: SparseLayer, mask: Tensor, live: int, step: int) -> tuple[int, int]:
        """Return how many connections to grow in a layer, and at most how many to prune."""
        size, ratio = mask.numel(), self.prune_ratio or 0.0
        if self.grow_rate is not None:
            num_grow = self._steady_growth(layer)
            return num_grow, int(num_grow * ratio)
        share = grown_share(step, self.end)
        net = max(0, round((layer.initial + (layer.final - layer.initial) * share) * size) - live)
        # Pruned connections have to find room elsewhere.
        return net, min(int(net * ratio), size - live - net)

    def _steady_growth(self, layer: SparseLayer) -> int:
        """Return how many connections every event grows in a layer, at a constant rate."""
        return int(max(0.0, layer.final - layer.initial) * layer.weight.numel() * (self.grow_rate or 0.0))

    def _dormant(self, layer: SparseLayer, mask: Tensor, reading: Reading, most: int) -> Tensor:
        """Return at most ``most`` live connections, at random, that lead into fully dormant neurons."""
        scores = reading.scores["dormancy"].get(layer.name)
        if self.prune != "dormant" or scores is None:
            return torch.zeros_like(mask)
        return some(incoming_entries(layer.module, scores == 0) & mask, most, self.generator)

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return masks, clocks, activity and the generator."""
        if self._watcher is None:  # never started
            return super().state_dict()
        masks = {}
        for name, layers in self._layers.items():
            masks[name] = {
                layer.name: {
                    "mask": self._masks[name][layer.weight].clone(),
                    "initial": layer.initial,
                    "final": layer.final,
                }
                for layer in layers
            }
        state = {"masks": masks, "active": dict(self._active), "full": dict(self._full)}
        return {**super().state_dict(), "watcher": self._watcher.state_dict(), **state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, with its masks on; networks that had not run yet get theirs when they do."""
        super().load_state_dict(state)
        if self._watcher is None or "watcher" not in state:
            return  # of a method that was never started
        self._active, self._full = dict(state["active"]), dict(state["full"])
        self._watcher.load_state_dict(state["watcher"])
        for name, saved in state["masks"].items():
            if name in self._networks:
                self._sparsify_again(name, saved)


def _no_layer(name: str) -> ValueError:
    return ValueError(
        f"NeuroplasticExpansion finds no layer of {name} between its input and output layers; with dense_ends=False "
        "these become sparse too"
    )
