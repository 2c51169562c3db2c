"""The inputs of a network's first pass, on which methods measure how much they changed its function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from plasticity.isolation import map_tensors
from plasticity.observing.first_pass import FirstPass
from plasticity.structure.trace import trace
from plasticity.structure.wirings import Wiring


class FirstInputs:
    """A copy of the arguments of a network's first training pass: ``found``, None before it."""

    def __init__(self, network: nn.Module, calls: Sequence[str] = ()) -> None:
        self.method = "forward"
        """The method by which the network was called, of ``forward`` and ``calls``."""
        self.found: tuple[tuple, dict] | None = None
        self._device = next((p.device for p in network.parameters()), None)
        self._hook = FirstPass(network, self._keep, training=True, calls=calls)

    def _keep(self, args: tuple, kwargs: dict) -> None:
        self.method = self._hook.method
        # In order, as a checkpoint gives them back: a convolution's last bits depend on the layout of images.
        self.found = map_tensors((args, kwargs), lambda tensor: tensor.detach().contiguous().clone())

    def wiring(self, network: nn.Module) -> Wiring:
        """Return how the layers of the network are connected in a pass on these inputs."""
        args, kwargs = self.found or ((), {})
        return trace(network, args, kwargs, method=self.method)

    def take(self, found: tuple[tuple, dict] | None, method: str = "forward") -> None:
        """Keep these inputs of a resumed run, loaded to the CPU, in place of the next ones."""
        if found is not None:
            self.method = method
            self.found = map_tensors(found, lambda tensor: tensor.to(self._device))
            self.remove()

    def remove(self) -> None:
        """Take the hook off."""
        self._hook.remove()


def is_storable(value: Any) -> bool:
    """Return whether nested tuples, lists and dicts hold only tensors and plain values, which a checkpoint can keep."""
    if isinstance(value, (tuple, list)):
        return all(map(is_storable, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_storable(item) for key, item in value.items())
    return value is None or isinstance(value, (torch.Tensor, bool, int, float, str))
