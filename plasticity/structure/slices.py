"""Layers that are slices of a three-dimensional parameter: experts, members of an ensemble."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn


class Slice(nn.Module):
    """One matrix of a three-dimensional parameter, such as an expert's: a layer, though no module of the model."""

    def __init__(self, host: nn.Module, key: str, index: int, neurons_last: bool) -> None:
        super().__init__()
        self.host: nn.Module
        self.__dict__["host"] = host  # no child: it is the model's
        self.key, self.index, self.neurons_last = key, index, neurons_last
        shape = self.matrix.shape
        self.out_features, self.in_features = shape if not neurons_last else shape[::-1]

    @property
    def parameter(self) -> Tensor:
        """The parameter that this is a slice of."""
        return cast(Tensor, self.host._parameters[self.key])

    @property
    def matrix(self) -> Tensor:
        """The slice of the parameter, as it is now."""
        return self.parameter[self.index]

    @property
    def weight(self) -> Tensor:
        """The same, to be edited in place."""
        return self.parameter.detach()[self.index]

    @property
    def bias(self) -> Tensor | None:
        """The slice of the biases, (neurons,), to be edited in place; None where the module has none of this shape."""
        if len(self.bias_keys) != 1:
            return None
        return cast(Tensor, self.host._parameters[self.bias_keys[0]]).detach()[self.index].flatten()

    @property
    def bias_keys(self) -> list[str]:
        """The parameters that may hold its bias, a number for each neuron of each slice; of several those named so."""
        size = len(self.parameter) * self.out_features
        own = {key: p for key, p in self.host._parameters.items() if p is not None and key != self.key}
        found = [key for key, p in own.items() if p.numel() == size and len(p) == len(self.parameter)]
        stem = self.key.replace("weight", "").strip("_w")
        return [key for key in found if key.replace("bias", "").strip("_b") == stem] or found
