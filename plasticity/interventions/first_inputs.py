"""The inputs of a network's first pass, on which methods measure how much they changed its function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from plasticity.isolation import foreign_pass, map_tensors


class FirstInputs:
    """A hook that keeps a copy of the arguments of a network's first training pass, and takes itself off."""

    def __init__(self, network: nn.Module) -> None:
        self.found: tuple[tuple, dict] | None = None
        self._device = next((p.device for p in network.parameters()), None)
        self._handle = network.register_forward_pre_hook(self, with_kwargs=True)

    def take(self, found: tuple[tuple, dict] | None) -> None:
        """Keep these inputs of a resumed run, loaded to the CPU, in place of the next ones."""
        if found is not None:
            self.found = map_tensors(found, lambda tensor: tensor.to(self._device))
            self.remove()

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if torch.is_grad_enabled() and not foreign_pass(self):
            self.found = map_tensors((args, kwargs), lambda tensor: tensor.detach().clone())
            self.remove()

    def __deepcopy__(self, memo: dict) -> Callable[..., None]:
        return _inert

    def __reduce__(self) -> tuple:
        return (_give_inert, ())

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()


def is_plain(value: Any) -> bool:
    """Return whether nested tuples, lists and dicts hold only tensors and plain values, which a checkpoint can keep."""
    if isinstance(value, (tuple, list)):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (torch.Tensor, bool, int, float, str))


def _inert(*args: Any) -> None:
    """Do nothing: what the hook becomes in a copy of the network."""


def _give_inert() -> Callable[..., None]:
    return _inert
