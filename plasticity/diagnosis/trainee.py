"""The network under examination, and copies of it and its optimizer that are trained and thrown away."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.callback import noting
from plasticity.isolation import copied, is_compiled, named_parameters, other_generators, unwrap
from plasticity.structure.labels import tensors_in
from plasticity.structure.optimizers import all_parameters
from plasticity.surgery.derived import renew_derived_
from plasticity.surgery.optimizer_state import forget_

Forward = Callable[[nn.Module, Any], Tensor]


@dataclass
class Trainee:
    """A copy of a network with a copy of its optimizer, to be trained and thrown away."""

    model: nn.Module
    optimizer: Optimizer
    attached: Any = None
    """A method that stays on while the copy learns (``attached.py``)."""
    settling: int = 0
    """Updates by which the optimizer gets to know a lesson before the weights may move."""

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer) -> Trainee:
        """Copy both, with the optimizer's state; the copy of the optimizer holds the parameters of the copy."""
        # Not a copy of the optimizer itself: torch's keeps three of its attributes, and LBFGS, for one, has more.
        attributes = {n: v for n, v in vars(optimizer).items() if not (callable(v) or n.endswith("_hooks"))}
        attributes |= _share(unwrap(model), optimizer)
        twin, attributes = copied((unwrap(model), attributes))
        for module in twin.modules():
            module._compiled_call_impl = None
        bare = object.__new__(type(optimizer))
        bare.__dict__ |= attributes | {n: OrderedDict() for n in vars(optimizer) if n.endswith("_hooks")}
        return cls(twin, bare)

    def take_(self, values: Mapping[str, Tensor]) -> None:
        """Write parameters by name; the optimizer forgets them."""
        own = named_parameters(self.model)
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)
                forget_([self.optimizer], own[name])
        renew_derived_(self.model)

    def forget_(self) -> None:
        """Let the optimizer start anew on all parameters."""
        for parameter in all_parameters(self.optimizer):
            forget_([self.optimizer], parameter)

    def thaw_(self) -> None:
        """Make every parameter trainable, and give the optimizer those that it does not hold."""
        held = {id(p) for p in all_parameters(self.optimizer)}
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        if missing := [p for p in self.model.parameters() if id(p) not in held]:
            self.optimizer.add_param_group({"params": missing})

    def frozen(self) -> list[str]:
        """Return the names of parameters that are not trained: frozen, or not held by the optimizer."""
        held = {id(p) for p in all_parameters(self.optimizer)}
        return [n for n, p in named_parameters(self.model).items() if not p.requires_grad or id(p) not in held]

    def set_rate_(self, rate: float | None) -> None:
        """Set the rate of all groups in proportion to the present ones, the largest to ``rate``; None changes none."""
        if rate is None:
            return
        largest = rate_of(self.optimizer)
        for group in self.optimizer.param_groups:
            new = rate if not largest else float(group["lr"]) / largest * rate
            group["lr"] = torch.full_like(group["lr"], new) if isinstance(group["lr"], Tensor) else new


def _share(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Return groups and state of the optimizer without what belongs to other networks; nothing if that is all."""
    own = {id(p) for p in model.parameters()}
    if all(id(p) in own for p in all_parameters(optimizer)) or not own & {id(p) for p in all_parameters(optimizer)}:
        return {}
    groups = [{**group, "params": [p for p in group["params"] if id(p) in own]} for group in optimizer.param_groups]
    state = type(optimizer.state)(dict, {p: s for p, s in optimizer.state.items() if id(p) in own})
    return {"param_groups": [group for group in groups if group["params"]], "state": state}


def rate_of(optimizer: Optimizer) -> float:
    """Return the largest learning rate of the optimizer's groups."""
    return max(float(group["lr"]) for group in optimizer.param_groups)


@dataclass(frozen=True)
class Surroundings:
    """A part of the training beside the network, which can be made fresh."""

    made: Callable[[], Patient]
    """Returns the same network with that part fresh."""
    lessons: tuple[str, ...]
    """The lessons in which it plays a part."""


@dataclass
class Patient:
    """A network to be examined: with its optimizer, data, a way to run it, its loss, and fresh draws of it."""

    name: str
    model: nn.Module
    optimizer: Optimizer
    batches: Sequence[Any]
    forward: Forward
    """``(module, batch) -> output``, one tensor whose first dimension is the batch."""
    fresh: Callable[[torch.Generator], nn.Module]
    """Returns a new network of the same structure, as it could have been before training."""
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    """``(module, batch) -> loss`` of training; None where it is not known."""
    judged: bool = True
    """Compare aged and fresh networks by ``loss``, too. False where its value says nothing, as in a policy
    gradient, and it only gives the size of gradients."""
    peek: Callable[..., Any] | None = None
    """``peek(num, generator)``: a batch of further data, where there are some."""
    policy: str | None = None
    """Key of ``targets.POLICIES`` if outputs are a policy."""
    surroundings: Mapping[str, Surroundings] = field(default_factory=dict)
    """Name -> what the network learns with that is not itself, such as replayed data."""

    def aged(self) -> Trainee:
        """Return a copy of the network and its optimizer as they are."""
        return Trainee.of(self.model, self.optimizer)

    def twin(self, seed: int) -> nn.Module:
        """Return a fresh network; the same one for the same seed."""
        return self.fresh(torch.Generator().manual_seed(seed))


@contextmanager
def aside(model: nn.Module, seed: int) -> Iterator[None]:
    """Within, global random numbers are drawn from ``seed`` and put back, and compiled parts of copies run eagerly.

    Under autocast its cache of weights, which would hide every update until the context ends, is off.
    ``model``: on its devices. :func:`plasticity.isolation.undisturbed` would hide the passes from observers: what is
    attached to a copy has to see its passes.
    """
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(seeded(seed, devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(False)
        if is_compiled(model):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextmanager
def seeded(seed: int, devices: Sequence[Any] = ()) -> Iterator[None]:
    """Within, global random numbers are drawn from ``seed`` and put back, those of CUDA ``devices``, too."""
    with torch.random.fork_rng(devices=devices), other_generators():
        seed_everything(seed)
        yield


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch, Python and, where it is loaded, NumPy; only where they are put back."""
    torch.manual_seed(seed)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Within, all modules are in evaluation mode, and there are no gradients."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def first_output(model: nn.Module, batch: Any) -> Tensor:
    """Run a model on its inputs and return its first floating-point output that is no single number, such as a loss.

    ``batch``: a tensor; the pair (inputs, targets), of which the model gets the inputs; a mapping of named inputs.
    """
    if isinstance(batch, (tuple, list)):
        batch = batch[0]
    with noting("from calling the model on the inputs of a batch; where it takes them otherwise, pass forward="):
        result = model(**batch) if isinstance(batch, Mapping) and not hasattr(batch, "batch_size") else model(batch)
    found = next((tensor for tensor in tensors_in(result) if tensor.is_floating_point() and tensor.dim()), None)
    if found is None:
        raise ValueError(
            f"{type(model).__name__} returned no floating-point tensor with a batch; pass forward=(model, batch) -> one"
        )
    return found
