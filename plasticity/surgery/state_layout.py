"""The layout of an optimizer's state, seen at a step of a discarded parameter: which of it has one entry per weight."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from plasticity.structure.labels import tensors_in

SCALARS = {"step": 0.0, "mu_product": 1.0, "mu": 1.0, "eta": "lr"}
"""Optimizer state that is one number per tensor -> its first value, or the setting that gives it."""

UNEVEN = (5, 7, 2, 3, 4)
"""The shape of a discarded parameter: no two sizes are equal, so that a preconditioner of one side shows as such."""

_KNOWN: WeakKeyDictionary[Optimizer, dict[int, frozenset[str]]] = WeakKeyDictionary()


def foreign_state(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> frozenset[str]:
    """Return the keys of state that is not kept by entry for parameters with the dimensions of ``parameter``.

    Also before the first step, and for square weights, whose preconditioner has their shape (Shampoo, SOAP). Nothing is
    known of an optimizer that cannot step on a parameter of its own, as one that wants a closure.
    """
    known = _KNOWN.setdefault(optimizer, {})
    if parameter.dim() not in known:
        known[parameter.dim()] = _seen_at_a_step(optimizer, group, parameter)
    return known[parameter.dim()]


def _seen_at_a_step(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> frozenset[str]:
    shape = UNEVEN[: parameter.dim()]
    twin = object.__new__(type(optimizer))
    twin.__dict__.update({name: _of_its_own(value) for name, value in optimizer.__dict__.items()})
    twin._optimizer_step_pre_hooks, twin._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
    discarded = torch.nn.Parameter(torch.full(shape, 0.1, dtype=parameter.dtype, device=parameter.device))
    discarded.grad = torch.full_like(discarded, 0.1)
    twin.state, twin.param_groups = defaultdict(dict), [{**group, "params": [discarded]}]
    step = getattr(type(optimizer).step, "__wrapped__", type(optimizer).step)
    devices = [parameter.device.index or 0] if parameter.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            step(twin)
    except Exception:
        return frozenset()
    kept = twin.state.get(discarded, {})
    return frozenset(key for key, value in kept.items() if key not in SCALARS and not _by_entry(value, discarded.grad))


def _of_its_own(value: Any) -> Any:
    """Return a copy of a counter or a generator, which a step moves on; anything else as it is."""
    return copy.deepcopy(value) if isinstance(value, (Tensor, random.Random, np.random.Generator)) else value


def _by_entry(value: Any, gradient: Tensor) -> bool:
    """Return whether a piece of state has an entry per weight, in a tensor of the same kind, or is a plain value."""
    if isinstance(value, Tensor):
        return value.shape == gradient.shape and type(value) is type(gradient)
    return next(tensors_in(value), None) is None
