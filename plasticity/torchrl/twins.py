"""Networks of a loss module as modules of their own, one for each stacked critic, whose weights are the loss' own.

A loss module calls one module with parameters from elsewhere: those that are trained, detached ones, those of targets,
or those of all critics at once, stacked in front and mapped over by ``vmap``. A twin is a copy of that module which
holds trained parameters by itself: the very same objects, or views of one critic's rows. Edits of a twin edit the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torchrl.objectives import LossModule

from plasticity.isolation import copied

ModuleCall = tuple[str, tuple, dict]
"""Module inside the network, positional and named arguments; ``("link", call, output)`` is what a call before made."""
RERUN = "rerun"


@dataclass
class Stack:
    """One network of a loss module, or several that are stacked."""

    name: str
    source: nn.Module
    """The module that the loss calls."""
    held: dict[str, Tensor]
    """Parameter -> the tensor of the loss that holds it, of all networks that are stacked."""
    twins: dict[str, nn.Module]
    """Name -> network."""
    targets: dict[str, nn.Module]
    """Name -> target network; empty where there is none."""
    is_stacked: bool

    def units(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules that take plain tensors, as the loss calls them, with their names."""
        for path, module in self.source.named_modules():
            inner = getattr(module, "module", None)
            if hasattr(module, "in_keys") and isinstance(inner, nn.Module) and not isinstance(inner, nn.ModuleList):
                yield f"{path}.module" if path else "module", inner

    def is_held_by(self, parameters: Sequence[Tensor]) -> bool:
        """Return whether some of its tensors are among these."""
        ids = set(map(id, parameters))
        return any(id(tensor) in ids for tensor in self.held.values())


def stacks_of(loss: LossModule) -> list[Stack]:
    """Return the networks of a loss module that are trained.

    Raises ValueError for parameters that a lazy module has not made yet, and for a loss module without networks.
    """
    found: list[Stack] = []
    for key, params in list(loss.named_children()):
        if not key.endswith("_params") or key.startswith("target_"):
            continue
        name, held = key.removesuffix("_params"), _flat(params)
        if any(nn.parameter.is_lazy(tensor) for tensor in held.values()):
            raise ValueError(
                f"{name} of {type(loss).__name__} has parameters that a lazy module has not made yet: run the loss once"
            )
        if not any(tensor.requires_grad for tensor in held.values()):
            continue
        source = getattr(loss, name)
        indices: list[int | None] = [*range(params.batch_size[0])] if params.batch_size else [None]
        names = {index: name if index is None else f"{name}_{index}" for index in indices}
        twins = {names[index]: _twin(source, held, index) for index in indices}
        targets = {}
        if not loss._has_update_associated.get(name, True):
            follow = _flat(getattr(loss, f"target_{key}"))
            targets = {names[index]: _twin(source, follow, index).requires_grad_(False) for index in indices}
        found.append(Stack(name, source, held, twins, targets, bool(params.batch_size)))
    if not found:
        raise ValueError(f"{type(loss).__name__} has no networks with parameters that are trained")
    return found


def _flat(params: Any) -> dict[str, Tensor]:
    """Return tensors by the name that they have in their module."""
    return {name: tensor for name, tensor in params.flatten_keys(".").items() if isinstance(tensor, Tensor)}


def _twin(source: nn.Module, held: dict[str, Tensor], index: int | None) -> nn.Module:
    """Return a copy of a module that holds these tensors, or one critic's rows of them."""
    twin = copied(source)
    for module in twin.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            for key in [key for key, hook in hooks.items() if not type(hook).__module__.startswith("torch.")]:
                del hooks[key]  # which watch the source: torch's own compute weights
    twin.__class__ = type(type(source).__name__, (type(source),), {RERUN: rerun})
    for path, tensor in held.items():
        parent, _, name = path.rpartition(".")
        module = twin.get_submodule(parent)
        if name in module._buffers:
            module._buffers[name] = tensor if index is None else tensor[index]
        elif index is None and isinstance(tensor, nn.Parameter):
            module._parameters[name] = tensor
        else:
            part = tensor.detach() if index is None else tensor.detach()[index]
            module._parameters[name] = nn.Parameter(part, requires_grad=tensor.requires_grad)
    return twin


def rerun(network: nn.Module, calls: Sequence[ModuleCall]) -> list[Any]:
    """Run calls of a network's modules again, and return their outputs."""
    outputs: list[Any] = []

    def resolved(value: Any) -> Any:
        if isinstance(value, tuple) and value[:1] == ("link",):
            made = outputs[value[1]]
            return made if isinstance(made, Tensor) else made[value[2]]
        if isinstance(value, dict):
            return {key: resolved(item) for key, item in value.items()}
        return type(value)(map(resolved, value)) if type(value) in (tuple, list) else value

    for path, args, kwargs in calls:
        outputs.append(network.get_submodule(path)(*resolved(args), **resolved(kwargs)))
    return outputs
