"""The output layers of a network, found by its wiring: the order of modules says nothing about parallel heads."""

from __future__ import annotations

from torch import nn

from plasticity.structure.trace import wiring

from .first_inputs import FirstInputs


class OutputLayers:
    """The names of a network's output layers, known from its first training pass on, and of the hidden ones."""

    def __init__(self, network: nn.Module, method: str) -> None:
        self._network, self._method = network, method
        self._inputs = FirstInputs(network)
        self._names: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The weight layers whose neurons the network returns; ValueError before the first training pass."""
        if self._names is None:
            if self._inputs.found is None:
                raise ValueError(
                    f"{self._method} must know the output layers, and no training pass of the network was seen: call "
                    "the network itself, not a compiled wrapper, before the optimizer steps"
                )
            args, kwargs = self._inputs.found
            layers = wiring(self._network, *args, **kwargs).layers.values()
            self._names = tuple(layer.name for layer in layers if layer.num_calls and layer.is_output)
        return self._names

    @property
    def known(self) -> tuple[str, ...] | None:
        """The names where they are known already, as a checkpoint keeps them."""
        return self._names if self._inputs.found is None else self.names

    def take(self, names: tuple[str, ...] | None) -> None:
        """Go on with the names of a checkpoint."""
        if names is not None:
            self._names = tuple(names)
            self.remove()

    def remove(self) -> None:
        """Take the hook off."""
        self._inputs.remove()
