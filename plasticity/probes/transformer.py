"""Transformers: how sharply heads attend, how large the residual stream is, how experts share the load.

The network runs once more, and every torch function that it calls is looked at: attention is found in
``nn.MultiheadAttention``, ``scaled_dot_product_attention`` and a softmax over the last of four dimensions, whoever
wrote the model.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from plasticity.isolation import named_modules

from .network import Again, NetworkProbe, NotMeasurable, tensors_within

SOFTMAX_FUNCTIONS = (torch.softmax, F.softmax, Tensor.softmax)
MASKED = -5e3
"""Scores below are masked ones: models that do not use -inf add -1e4, -1e9 or the smallest number."""
Look = Callable[[str, Any, tuple, Mapping[str, Any], Any], None]
"""Takes the module that calls, the function, its arguments, named ones, and the result."""


class FunctionWatch(TorchFunctionMode):
    """Shows every torch function that is called within, with the module that calls it, to ``look``."""

    def __init__(self, look: Look) -> None:
        super().__init__()
        self.look, self.inside = look, [""]

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        """Call the function, and show it."""
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:  # its heads' weights come when they are asked for
            asked = {**kwargs, "need_weights": True, "average_attn_weights": False}
            output, weights = func(*args, **asked)
            self.look(self.inside[-1], func, args, kwargs, weights)
            assert weights is not None
            averaged = weights.mean(-3) if kwargs.get("average_attn_weights", True) else weights
            return output, averaged if kwargs.get("need_weights", True) else None
        result = func(*args, **kwargs)
        self.look(self.inside[-1], func, args, kwargs, result)
        return result


@contextmanager
def looking(model: nn.Module, look: Look) -> Iterator[None]:
    """Within, show the functions that a pass of ``model`` calls to ``look``."""
    watch = FunctionWatch(look)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        watch.inside.pop()

    handles = []
    for name, module in named_modules(model).items():
        enter = partial(_enter, watch.inside, name)
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    try:
        with watch:
            yield
    finally:
        for handle in handles:
            handle.remove()


def _enter(inside: list[str], name: str, module: nn.Module, args: Any) -> None:
    inside.append(name)


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """Return softmax(q k^T scale), (..., heads, queries, keys), as ``scaled_dot_product_attention`` applies it."""
    scores = query.float() @ key.float().transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)


def relative_entropy(weights: Tensor, allowed: Tensor) -> Tensor:
    """Return the entropy of distributions along the last axis over its maximum, in [0, 1].

    The maximum is the log of the number of ``allowed`` entries, also of those whose weight is too small for a float;
    NaN where there is no more than one, which is no choice.
    """
    entropy, count = -torch.special.xlogy(weights, weights).sum(-1), (allowed | (weights > 0)).sum(-1)
    return entropy / count.double().log().where(count > 1, torch.nan)


class OfTransformers(NetworkProbe):
    """A probe of the functions that one more pass calls."""

    KIND = "transformer"

    def watched(self, again: Again, look: Look) -> Any:
        """Run the network, show its function calls, and return its output."""
        with torch.no_grad(), looking(again.model, look):
            return again.output()


class Attention(OfTransformers):
    """Entropy of attention per head over its maximum: lazy and collapsed heads.

    Range [0, 1]: 1 attends to everything alike (lazy), 0 to one position (collapsed); the score is that of each head,
    ``attention_low`` the smallest head of a layer. Masked positions do not count, nor do queries with one key. Source:
    Zhai et al. 2023, *Stabilizing transformer training by preventing attention entropy collapse* (arXiv 2303.06296).
    """

    WORSE = "0 collapsed, 1 lazy"
    SOURCE = "Zhai et al. 2023"
    metrics = ("attention_entropy", "attention_low")
    nan_reason = "no query has two keys to choose from, or values are not finite"

    def measure(self, again: Again) -> dict[str, Mapping[str, Tensor]]:
        """Return the entropies per head, by module, and the smallest of each."""
        found: dict[str, Tensor] = {}

        def look(module: str, func: Any, args: tuple, kwargs: Mapping[str, Any], result: Any) -> None:
            seen = _attention(func, args, kwargs, result)
            if seen is not None:
                weights, allowed = seen
                entropy, bad = relative_entropy(weights.detach().double(), allowed), weights.isnan().any(-1)
                mean, bad = (t.movedim(-2, 0).flatten(1) for t in (entropy, bad))
                found[module or "(model)"] = torch.where(bad.any(1), torch.nan, mean.nanmean(1))

        self.watched(again, look)
        if not found:
            raise NotMeasurable("no attention was seen in it")
        return {"attention_entropy": found, "attention_low": {name: heads.min() for name, heads in found.items()}}


def _attention(func: Any, args: tuple, kwargs: Mapping[str, Any], result: Any) -> tuple[Tensor, Tensor] | None:
    """Return weights, and whether a query may see a key, (batch, heads, queries, keys); None for another function.

    The weights of a query that may see no key are 0. Queries of zeros see all that a mask leaves alike.
    """
    if func is F.multi_head_attention_forward:
        alike = _of_zeros(args, kwargs)
        weights, alike = (t if t.dim() == 4 else t[None] for t in (result, alike))
        return _without_masked(weights, *args[:2]), alike > 0
    if func is F.scaled_dot_product_attention:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        query, key = given["query"], given["key"]
        if key.shape[-3] != query.shape[-3]:  # grouped queries
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        mask, causal, scale = given.get("attn_mask"), given.get("is_causal", False), given.get("scale")
        alike = attention_weights(torch.zeros_like(query), torch.zeros_like(key), mask, causal, scale)
        return _without_masked(attention_weights(query, key, mask, causal, scale), query, key), alike > 0
    if func in SOFTMAX_FUNCTIONS and result.dim() == 4:
        scores, dim = (kwargs.get(name, args[i] if len(args) > i else None) for i, name in enumerate(("input", "dim")))
        return (_without_masked(result, scores), scores > MASKED) if dim in (-1, 3) else None
    return None


def _of_zeros(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """Return the weights of a multi-head attention for queries of zeros."""
    given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs).arguments
    zeros = {name: torch.zeros_like(given[name]) for name in ("query", "key")}
    asked = {**given, **zeros, "in_proj_bias": None, "need_weights": True, "average_attn_weights": False}
    weights = F.multi_head_attention_forward(**asked)[1]
    assert weights is not None
    return weights


def _without_masked(weights: Tensor, *sources: Tensor) -> Tensor:
    """Return the weights with 0 for NaN where ``sources`` are sound: it then comes of a mask that leaves nothing."""
    unsound = torch.stack([(t.isnan() | t.isposinf()).any() for t in sources]).any()
    return torch.where(weights.isnan() & ~unsound, 0, weights)


class ResidualStream(OfTransformers):
    """Root mean square of the residual stream after each addition, by module.

    An addition of two tensors of one shape, (batch, positions, width). Range [0, inf); growing with depth makes late
    layers matter less. Source: Xiong et al. 2020 (arXiv 2002.04745), section 3, for norms by depth.
    """

    WORSE = "growing"
    SOURCE = "Xiong et al. 2020"
    ADDITIONS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__)

    def measure(self, again: Again) -> dict[str, Mapping[str, Tensor]]:
        """Return the root mean square of the last addition in each module."""
        found: dict[str, Tensor] = {}

        def look(module: str, func: Any, args: tuple, kwargs: Mapping[str, Any], result: Any) -> None:
            shapes = [a.shape for a in args[:2] if isinstance(a, Tensor)]
            if func in self.ADDITIONS and len(shapes) == 2 and shapes[0] == shapes[1] and len(shapes[0]) == 3:
                found[module or "(model)"] = result.detach().double().square().mean().sqrt()

        self.watched(again, look)
        if not found:
            raise NotMeasurable("no addition to a residual stream was seen in it")
        return {"residual_stream": found}


class Router(OfTransformers):
    """Load of the experts of a mixture: its entropy, and its peak.

    Entropy over its maximum, and the share of the busiest times their number. An expert is chosen by ``topk`` over the
    last axis of a router's output. ``router_entropy`` in [0, 1], 1 is even; ``router_peak`` in [1, experts], 1 is even;
    the score is the load of each expert. Source: Fedus et al. 2022 (Switch, arXiv 2101.03961), section 2.2.
    """

    WORSE = "entropy lower, peak higher"
    SOURCE = "Fedus et al. 2022"
    metrics = ("router_entropy", "router_peak")

    def measure(self, again: Again) -> dict[str, Mapping[str, Tensor]]:
        """Return both, by module."""
        loads: dict[str, Tensor] = {}

        def look(module: str, func: Any, args: tuple, kwargs: Mapping[str, Any], result: Any) -> None:
            if func not in (torch.topk, Tensor.topk):
                return
            scores, dim = args[0] if args else kwargs["input"], kwargs.get("dim", args[2] if len(args) > 2 else -1)
            if dim in (-1, scores.dim() - 1):
                counts = torch.bincount(result[1].flatten(), minlength=scores.shape[-1]).double()
                loads[module or "(model)"] = torch.where(scores.isnan().any(), torch.nan, counts / counts.sum())

        self.watched(again, look)
        if not loads:
            raise NotMeasurable("no router that chooses experts was seen in it")
        entropy = {n: -torch.special.xlogy(load, load).sum() / math.log(max(2, len(load))) for n, load in loads.items()}
        return {"router_entropy": entropy, "router_peak": {n: load.max() * len(load) for n, load in loads.items()}}


class TokenEntropy(OfTransformers):
    """Entropy of the predicted tokens over its maximum, the mean over positions.

    Of outputs (batch, positions, vocabulary), the ``logits`` of a model that names them. Range [0, 1]; near 0 the model
    is sure of everything: a language policy that no longer explores. Source: Cui et al. 2025 (arXiv 2505.22617).
    """

    WORSE = "near 0"
    SOURCE = "Cui et al. 2025"

    def measure(self, again: Again) -> dict[str, Tensor]:
        """Return the mean entropy."""
        with torch.no_grad():
            output = again.output()
        named = getattr(output, "logits", None)
        logits = next((t for t in tensors_within(output if named is None else named) if t.is_floating_point()), None)
        if logits is None or logits.dim() != 3 or logits.shape[-1] < 2:
            shape = "without a floating-point tensor" if logits is None else f"of shape {tuple(logits.shape)}"
            raise NotMeasurable(f"its output {shape} is not (batch, positions, vocabulary)")
        entropy = torch.special.entr(logits.double().softmax(-1)).sum(-1).mean()
        return {"token_entropy": entropy / math.log(logits.shape[-1])}
