"""Masks on connections: weights that stay exactly 0 whatever the optimizer does, until they are let grow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from plasticity.structure.optimizers import all_parameters

from .optimizer_state import entry_state

DenseGradient = Callable[[Tensor, Tensor], None]


class Masks:
    """Keep weight, gradient and optimizer state exactly 0 wherever a mask is False.

    ``masks``: parameter -> bool tensor of its shape, True where the connection exists. Momentum, weight decay and
    optimizers that mix entries (Muon) would revive masked weights, so everything is masked again after every step.
    ``on_dense_gradient(parameter, gradient)`` is called before every step with the gradient of all connections, the
    absent ones included, which is what growth looks at (RigL); it is masked right afterwards, so keep a copy of what
    is needed, and :meth:`set` may be called from within. A gradient that was clipped by its norm was clipped with the
    absent connections counted in, and a step with a closure computes its gradient after the call.
    ``followers``: parameter -> tensors that are 0 where it is masked, such as the same weight of a target network.

    Raises ValueError for a parameter of none of the optimizers, a mask of another shape or type, and LBFGS.
    """

    def __init__(
        self,
        masks: Mapping[Tensor, Tensor],
        optimizers: Iterable[Optimizer],
        *,
        on_dense_gradient: DenseGradient | None = None,
        followers: Mapping[Tensor, Iterable[Tensor]] | None = None,
    ) -> None:
        self.on_dense_gradient = on_dense_gradient
        self._followers = {parameter: list(tensors) for parameter, tensors in (followers or {}).items()}
        self._masks = {parameter: _checked(parameter, mask) for parameter, mask in masks.items()}
        self._optimizers = {o: [p for p in all_parameters(o) if p in self._masks] for o in optimizers}
        held = {p for parameters in self._optimizers.values() for p in parameters}
        if missing := [tuple(p.shape) for p in self._masks if p not in held]:
            raise ValueError(f"no optimizer holds the masked parameters of shapes {missing}; pass theirs")
        if any(isinstance(o, LBFGS) for o, parameters in self._optimizers.items() if parameters):
            raise ValueError("LBFGS keeps one history for all parameters, which cannot be masked")
        self._handles = [h for o in self._optimizers for h in self._hook(o)]
        self.apply_()

    def __getitem__(self, parameter: Tensor) -> Tensor:
        """Return the mask of a parameter; change it with :meth:`set`."""
        return self._masks[parameter]

    def __contains__(self, parameter: object) -> bool:
        """Return whether a parameter has a mask here."""
        return parameter in self._masks

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    @torch.no_grad()
    def apply_(self) -> None:
        """Mask all weights, gradients, optimizer states and followers now: call it after any other edit of weights."""
        for parameter in self._masks:
            self._apply(parameter, self._optimizers)

    @torch.no_grad()
    def set(self, parameter: Tensor, mask: Tensor) -> None:
        """Replace the mask of a parameter and apply it; connections that appear begin at weight and state 0."""
        if parameter not in self._masks:
            raise ValueError(f"no mask was made for this parameter of shape {tuple(parameter.shape)}")
        self._masks[parameter] = _checked(parameter, mask)
        self._apply(parameter, self._optimizers)

    def density(self, parameter: Tensor | None = None) -> float:
        """Return the share of connections that exist, of one parameter or of all masked ones together."""
        masks = list(self._masks.values()) if parameter is None else [self._masks[parameter]]
        return sum(int(mask.sum()) for mask in masks) / max(1, sum(mask.numel() for mask in masks))

    def remove(self) -> None:
        """Take the hooks off the optimizers: from now on masked weights move again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def release(self, parameters: Iterable[Tensor]) -> None:
        """Let go of some parameters: nothing masks them any more. The hooks stay, so it may be called within one."""
        gone = {id(parameter) for parameter in parameters}
        self._masks = {p: mask for p, mask in self._masks.items() if id(p) not in gone}
        self._followers = {p: tensors for p, tensors in self._followers.items() if id(p) not in gone}
        self._optimizers = {o: [p for p in held if id(p) not in gone] for o, held in self._optimizers.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the masks in the order in which they were given."""
        return {"masks": [mask.clone() for mask in self._masks.values()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the masks and apply them; raise ValueError, with nothing changed, if number or shapes differ."""
        if len(state["masks"]) != len(self._masks):
            raise ValueError(f"the state holds {len(state['masks'])} masks and there are {len(self._masks)} parameters")
        pairs = zip(list(self._masks), state["masks"], strict=True)
        self._masks = {parameter: _checked(parameter, mask) for parameter, mask in pairs}
        self.apply_()

    def _hook(self, optimizer: Optimizer) -> Iterator[Any]:
        yield optimizer.register_step_pre_hook(self._before_step)
        yield optimizer.register_step_post_hook(self._after_step)

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for parameter in self._optimizers[optimizer]:
            if parameter.grad is not None:
                if self.on_dense_gradient is not None:
                    self.on_dense_gradient(parameter, parameter.grad)
                parameter.grad.masked_fill_(self._absent(parameter), 0)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for parameter in self._optimizers[optimizer]:
            self._apply(parameter, [optimizer])

    def _apply(self, parameter: Tensor, optimizers: Iterable[Optimizer]) -> None:
        absent = self._absent(parameter)
        for tensor in (parameter, parameter.grad, *self._followers.get(parameter, ())):
            if tensor is not None:
                tensor.masked_fill_(absent.to(tensor.device), 0)
        for optimizer in optimizers:
            for value in entry_state(optimizer, parameter).values():
                value.masked_fill_(absent.to(value.device), 0)

    def _absent(self, parameter: Tensor) -> Tensor:
        return ~self._masks[parameter].to(parameter.device)


def _checked(parameter: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool or mask.shape != parameter.shape:
        raise ValueError(f"a mask here is bool {tuple(parameter.shape)}; got {mask.dtype} {tuple(mask.shape)}")
    return mask.detach().to(parameter.device).clone()
