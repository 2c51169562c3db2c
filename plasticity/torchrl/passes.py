"""Passes of training through a loss module, taken down where they happen and run again by twins.

``vmap`` hides what its modules compute: the tensors inside are wrapped, and hold all critics at once. So the arguments
of a training pass are taken down, and the gradient that arrives at its outputs. Before the optimizer steps, the twin of
each network runs on these arguments and gets its own part of that gradient: its modules see what the pass computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_batchedtensor, maybe_get_bdim

from plasticity.isolation import map_tensors, other_generators
from plasticity.structure.labels import tensors_in

from .twins import RERUN, ModuleCall, Stack


class TrainingPass:
    """One pass of one network, or of all that are stacked: calls of its modules, and gradients that arrived."""

    def __init__(self, twins: list[nn.Module]) -> None:
        self.twins = twins
        """The networks that it ran."""
        self.calls: list[ModuleCall] = []
        self.gradients: dict[tuple[int, int], tuple[Tensor, int | None]] = {}
        """(call, output) -> its gradient, and the dimension along which networks are stacked."""
        self.stacked: dict[int, int] = {}
        """Id of an argument -> the dimension along which those of the networks are stacked."""
        self._made: dict[int, tuple[int, int]] = {}
        """Id of an output -> (call, output)."""
        self._outputs: list[Tensor] = []  # which keeps the ids theirs

    def add(self, path: str, args: tuple, kwargs: dict, output: Any) -> None:
        """Take down a call: arguments that a call before made are links to it."""
        args, kwargs = map_tensors((args, kwargs), self._argument)
        number = len(self.calls)
        self.calls.append((path, args, kwargs))
        for place, tensor in enumerate(tensors_in(output)):
            bare, dim = unwrapped(tensor)
            self._made[id(tensor)] = number, place
            self._outputs.append(tensor)
            if bare.requires_grad:
                bare.register_hook(lambda gradient, at=(number, place), dim=dim: self._arrive(at, gradient, dim))

    def _argument(self, tensor: Tensor) -> Any:
        if (place := self._made.get(id(tensor))) is not None:
            self.gradients.pop(place, None)
            return ("link", *place)
        bare, dim = unwrapped(tensor)
        kept = bare.detach().clone()
        if dim is not None:
            self.stacked[id(kept)] = dim
        return kept

    def calls_of(self, index: int) -> list[ModuleCall]:
        """Return the calls with the arguments of one network."""

        def own(tensor: Tensor) -> Tensor:
            dim = self.stacked.get(id(tensor))
            return tensor.clone() if dim is None else tensor.select(dim, index).clone()

        return map_tensors(self.calls, own)

    def _arrive(self, at: tuple[int, int], gradient: Tensor, dim: int | None) -> None:
        """Add a gradient that arrived at an output."""
        before = self.gradients.get(at)
        self.gradients[at] = (gradient.detach() if before is None else before[0] + gradient.detach(), dim)

    def ends(self) -> dict[tuple[int, int], tuple[Tensor, int | None]]:
        """Return the gradients of outputs that no call of the network took."""
        linked = set()

        def look(value: Any) -> None:
            if isinstance(value, tuple) and value[:1] == ("link",):
                linked.add(value[1:])
            elif isinstance(value, (tuple, list)):
                for item in value:
                    look(item)
            elif isinstance(value, dict):
                look(list(value.values()))

        look([call[1:] for call in self.calls])
        return {at: gradient for at, gradient in self.gradients.items() if at not in linked}


class Passes:
    """Take down the training passes of networks while somebody observes them."""

    def __init__(self, stacks: Sequence[Stack]) -> None:
        self._taken: dict[str, list[TrainingPass]] = {stack.name: [] for stack in stacks}
        self._handles = [
            module.register_forward_hook(self._hook(stack, path), with_kwargs=True)
            for stack in stacks
            for path, module in stack.units()
        ]

    def remove(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._taken.clear()

    def _hook(self, stack: Stack, path: str) -> Any:
        def see(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if torch.is_grad_enabled() and (twins := [t for t in _trained(stack, path, module) if is_observed(t)]):
                taken = self._taken[stack.name]
                begun = taken and taken[-1].twins == twins and all(path != call[0] for call in taken[-1].calls)
                if not begun:
                    taken.append(TrainingPass(twins))
                taken[-1].add(path, args, kwargs, output)

        return see

    def run_again(self, stacks: Sequence[Stack]) -> None:
        """Run the passes of these networks again whose gradients have arrived, and forget all of them."""
        for stack in stacks:
            taken, self._taken[stack.name] = self._taken[stack.name], []
            for one in taken:
                for index, twin in enumerate(stack.twins.values()):
                    if any(twin is other for other in one.twins) and one.gradients:
                        _replay(twin, stack, index, one)


def is_observed(network: nn.Module) -> bool:
    """Return whether somebody has hooks on a network or its parts."""
    return RERUN in vars(network) or any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def unwrapped(tensor: Tensor) -> tuple[Tensor, int | None]:
    """Return the tensor inside the wrapper of ``vmap``, and the dimension that is mapped over, None without."""
    return (get_unwrapped(tensor), maybe_get_bdim(tensor)) if is_batchedtensor(tensor) else (tensor, None)


def _trained(stack: Stack, path: str, module: nn.Module) -> list[nn.Module]:
    """Return the networks whose trained parameters a module now runs with, such that gradients reach them."""
    for name, tensor in stack.held.items():
        if not (tensor.requires_grad and name.startswith(f"{path}.")):
            continue
        parent, _, last = name[len(path) + 1 :].rpartition(".")
        present, dim = unwrapped(getattr(module.get_submodule(parent), last))
        if not present.requires_grad:
            return []
        if dim is not None:
            return list(stack.twins.values()) if present.data_ptr() == tensor.data_ptr() else []
        return [t for t in stack.twins.values() if t.get_parameter(name).data_ptr() == present.data_ptr()]
    return []


def _replay(twin: nn.Module, stack: Stack, index: int, taken: TrainingPass) -> None:
    """Run a pass again by one network, and send its part of the gradients back through it."""
    for own, source in zip(twin.modules(), stack.source.modules(), strict=True):
        own.training = source.training
    with ExitStack() as stacked:
        stacked.enter_context(torch.random.fork_rng())
        stacked.enter_context(other_generators())
        stacked.enter_context(torch.enable_grad())
        kept = [(buffer, buffer.clone()) for buffer in twin.buffers()]
        outputs = [list(tensors_in(output)) for output in getattr(twin, RERUN)(taken.calls_of(index))]
        pairs = [
            (outputs[call][place], gradient if dim is None else gradient.select(dim, index))
            for (call, place), (gradient, dim) in taken.ends().items()
        ]
        trained = [p for p in twin.parameters() if p.requires_grad]
        torch.autograd.grad([o for o, _ in pairs], trained, [g for _, g in pairs], allow_unused=True)
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
