"""Where the weights of a layer are kept: in a parameter of its own, or in a part of one."""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import Tensor, nn

from plasticity.structure.slices import Slice


class Store(NamedTuple):
    """A parameter of a layer, or the part of one that several layers are slices of."""

    parameter: Tensor
    part: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """Return the same part of a tensor of the parameter's shape, such as its gradient."""
        return tensor if self.part is None else tensor[self.part]


def store_of(module: nn.Module, key: str) -> Store | None:
    """Return where the "weight" or the "bias" of a layer is kept; None where it is no parameter."""
    if isinstance(module, Slice):
        own = [module.key] if key == "weight" else module.bias_keys
        return Store(cast(Tensor, module.host._parameters[own[0]]), module.index) if len(own) == 1 else None
    parameter = module._parameters.get(key)
    return None if parameter is None else Store(parameter)
