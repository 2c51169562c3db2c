"""A few rows through a small network without modules: one observation costs microseconds, a module call ten times that.

Layers are computed by numpy on the parameters' own memory (`numpy_layers.py`), so that every change of a weight in
place is seen. The results equal the module's up to the last bits of float32, not bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import repeat
from operator import contains
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import native
from .distributions import Categorical, Gaussian, numpy_or_torch
from .layout import hooks_of, modules_of
from .networks import (
    LOG_STD_MAX,
    LOG_STD_MIN,
    Actor,
    CategoricalPolicy,
    DeterministicActor,
    GaussianPolicy,
    Predictor,
    QNetwork,
)
from .numpy_layers import NumpyLayer, compiled_layer, is_linear, is_numpy_ready, numpy_function, numpy_layer
from .parts import expansion
from .rows import as_tensor

# Rows beyond which torch is the faster one: of networks with layers up to SMALL wide, and of others.
MAX_ROWS, MAX_ROWS_WIDE, SMALL = 64, 4, 128
NATIVE_ROWS = 8  # beyond which numpy is faster than C++
PASS_HOOKS = "_forward_pre_hooks", "_forward_hooks"

# Network -> its nn.Sequential, the heads on top of that, and a function of their outputs that ends its `forward`: of
# tensors and the network, or of arrays and those of its own parameters.
READABLE: dict[type[nn.Module], tuple[str, tuple[str, ...], Callable[..., Any]]] = {
    QNetwork: ("q", (), lambda net, q: q if net.num_atoms == 1 else q.reshape(len(q), -1, net.num_atoms)),
    Actor: ("trunk", ("mean", "log_std"), lambda net, mean, spread: (mean, spread.clip(LOG_STD_MIN, LOG_STD_MAX))),
    DeterministicActor: ("trunk", ("action",), lambda net, action: numpy_or_torch(action).tanh(action)),
    GaussianPolicy: ("pi", (), lambda net, mean: Gaussian(mean, like_means(net.log_std, mean))),
    CategoricalPolicy: ("pi", (), lambda net, logits: Categorical(logits)),
    Predictor: ("net", (), lambda net, output: output),
}


def never() -> bool:
    """Return False: single steps are left to numpy."""
    return False


class Acting:
    """Return `networks[name](obs)` without gradients: by numpy where that can be done, else by the module.

    Of an array it returns arrays, of a tensor tensors. It cannot use numpy where a network is none of READABLE, has an
    encoder, layers besides Linear that NUMPY_FUNCTIONS lacks, a `forward` put on an instance, or is not float32 on
    the CPU; nor where there are more than MAX_ROWS rows. What replaces a network, a module or a parameter is noticed.
    Where there are hooks the module runs, and where they change its result, that is what counts. Hooks that only look
    on must not change the last bits of an action: then it is numpy's as ever. One that rides on training passes
    (`gradient.Ride`) ignores passes without gradients and is not even called.
    """

    def __init__(self, networks: Mapping[str, nn.Module], name: str, compiles: Callable[[], bool] = never) -> None:
        self.networks, self.name, self.compiles = networks, name, compiles
        self._plan: NumpyPlan | None = None

    def __call__(self, obs: Any) -> Any:
        network, plan = self.networks[self.name], self._plan
        if not is_few(obs):
            return self._module(obs)
        if plan is None or not plan.holds(network):
            plan = self._plan = NumpyPlan(network)
        if len(obs) <= plan.max_rows:
            return self._watched(obs) if plan.hooked else self._run(plan, obs)
        return self._module(obs)

    def _run(self, plan: NumpyPlan, obs: Any) -> Any:
        found = plan.run_compiled(obs) if self.compiles() else None
        return plan.run(obs) if found is None else found

    @torch.no_grad()
    def _module(self, obs: Any) -> Any:
        network = self.networks[self.name]
        return mapped(network(torch.from_numpy(obs)), Tensor.numpy) if isinstance(obs, np.ndarray) else network(obs)

    @torch.no_grad()
    def _watched(self, obs: Any) -> Any:
        """Let hooks see the pass, and change its result."""
        network, rows = self.networks[self.name], as_tensor(obs)
        seen, plan = network(rows), NumpyPlan(network)  # a hook may have replaced something
        if plan.max_rows and same_bits(seen, plan.without_hooks(rows)):
            return self._run(plan, obs)
        return mapped(seen, Tensor.numpy) if isinstance(obs, np.ndarray) else seen

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None}  # a copy has parameters of its own


class NumpyPlan:
    """One network as it is now: its modules and hooks, and numpy views of its parameters."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.modules = [vars(m) for m in modules_of([network])]
        hooks = hooks_of(self.modules, PASS_HOOKS)
        slots = [module[name] for module in self.modules for name in ("_modules", "_parameters")]
        numbers = [module for module in self.modules if "eps" in module or "negative_slope" in module]
        self.held = [*hooks, *slots, *numbers]
        self.parts = native.items_of(self.held)
        self.tensors = [part for part in self.parts if isinstance(part, Tensor)]
        self.places = native.places_of(self.tensors)
        self.patched = self._is_patched()
        self.hooked = any(getattr(hook, "ride", None) is None for hook in native.items_of(hooks))
        """True if a hook has to see the pass."""
        self.max_rows = self._read(network) if type(network) in READABLE and not self.patched else 0

    def _read(self, network: Any) -> int:
        """Take in the layers; return up to how many rows numpy is to compute, 0 where not all are known."""
        trunk, heads, self.finish = READABLE[type(network)]
        layers, tops = list(getattr(network, trunk)), [getattr(network, head) for head in heads]
        self.layers, self.heads = layers, tops
        self.steps: list[NumpyLayer] = []
        if type(network.encoder) is not nn.Identity or not all(map(is_numpy_ready, network.parameters())):
            return 0
        for layer in layers:
            if is_linear(layer):
                self.steps.append(numpy_layer(layer))
                width = layer.bias.numel()
            elif self.steps and (function := numpy_function(layer, width)):  # in front it could write into the input
                self.steps[-1][2].append(function)
                width = int(width * expansion(layer))
            else:
                return 0
        self.tops = [numpy_layer(top) for top in tops if is_linear(top)]
        own = {name: p.detach().numpy() for name, p in network._parameters.items() if p is not None}
        self.own = SimpleNamespace(num_atoms=getattr(network, "num_atoms", 1), **own)
        if not self.steps or len(self.tops) < len(tops):
            return 0
        self.program = self._program()
        return MAX_ROWS if max(bias.size for _, bias, _ in self.steps) <= SMALL else MAX_ROWS_WIDE

    def _program(self) -> bytes:
        """Return the layers as `native.forward` reads them; none where it does not know one, or one does not fit."""
        found: list[tuple] = []
        width = None
        for place, layer in enumerate([*self.layers, *self.heads]):
            row = compiled_layer(layer, width)
            if row is None:
                return b""
            found.append(row)
            width = row[4] if place < len(self.layers) else width
        return np.array(found, "i8,i8,i8,i8,i8,f8").tobytes()

    def holds(self, network: nn.Module) -> bool:
        """Return whether nothing was replaced."""
        return (
            network is self.network
            and native.values_are(self.held, self.parts)
            and native.places_of(self.tensors) == self.places
            and self._is_patched() is self.patched
        )

    def _is_patched(self) -> bool:
        """Return whether a module has a `forward` of its own."""
        return True in map(contains, self.modules, repeat("forward"))

    def run(self, obs: Any) -> Any:
        """Return what the network's forward does."""
        x = obs if (array := isinstance(obs, np.ndarray)) else obs.numpy()
        with np.errstate(all="ignore"):  # as torch
            for weight, bias, functions in self.steps:
                x = x.dot(weight)
                x += bias
                for function in functions:
                    x = function(x)
            outputs = [x.dot(weight) + bias for weight, bias, _ in self.tops] if self.tops else [x]
        if array:
            return self.finish(self.own, *outputs)
        return self.finish(self.network, *map(torch.from_numpy, outputs))

    def run_compiled(self, obs: Any) -> Any:
        """Return the same by compiled code; None where it cannot compute it."""
        if not self.program or len(obs) > NATIVE_ROWS or not isinstance(obs, np.ndarray):
            return None
        found = native.loaded.forward(self.program, max(1, len(self.tops)), obs)
        return None if found is None else self.finish(self.own, *found)

    def without_hooks(self, obs: Tensor) -> Any:
        """Return the same numbers as the network, bit for bit, where no hook changes them."""
        for layer in self.layers:
            obs = layer.forward(obs)
        return self.finish(self.network, *([head.forward(obs) for head in self.heads] or [obs]))


def same_bits(one: Any, other: Any) -> bool:
    """Return whether two outputs, each a tensor or a tuple of tensors, are the same bits."""
    if isinstance(one, tuple) and type(one) is type(other) and len(one) == len(other):
        return all(map(same_bits, one, other))
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)


def is_few(obs: Any) -> bool:
    """Return whether numpy can take these observations, and may be the faster one."""
    if isinstance(obs, np.ndarray):
        return obs.dtype == np.float32 and obs.ndim == 2 and len(obs) <= MAX_ROWS
    plain = obs.is_cpu and obs.dtype is torch.float32 and not obs.requires_grad
    return plain and obs.dim() == 2 and obs.size(0) <= MAX_ROWS


def like_means(log_std: Any, mean: Any) -> Any:
    """Return (action_dim,) in the shape of the means; an array does without."""
    return log_std if isinstance(mean, np.ndarray) else log_std.detach().expand_as(mean)


def mapped(outputs: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return an output of a network, a tensor or a tuple of tensors, with a function of each in its place."""
    if isinstance(outputs, Tensor):
        return function(outputs)
    found = map(function, outputs)
    return type(outputs)(*found) if hasattr(outputs, "_fields") else tuple(found)
