"""Weights to go back to: those at the start, a running average, or those of a checkpoint; kept beside the networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.isolation import named_parameters


class Anchors(dict[str, dict[str, Tensor]]):
    """Network -> parameter -> its anchor, a tensor of the parameter's shape on its device."""

    @classmethod
    def at(cls, networks: Mapping[str, nn.Module]) -> Anchors:
        """Return anchors at the present weights."""
        return cls(
            {net: {n: p.detach().clone() for n, p in named_parameters(m).items()} for net, m in networks.items()}
        )

    @torch.no_grad()
    def follow_(self, network: str, parameters: Mapping[str, Tensor], weight: float) -> None:
        """anchor += weight * (parameter - anchor), for parameters that have an anchor of their shape."""
        pairs = [(self[network][n], p) for n, p in parameters.items() if self.fits(network, n, p)]
        if pairs:
            anchors, present = (list(tensors) for tensors in zip(*pairs, strict=True))
            torch._foreach_lerp_(anchors, present, weight)

    def fits(self, network: str, name: str, parameter: Tensor) -> bool:
        """Return whether a parameter has an anchor: one that came later has none."""
        found = self.get(network, {}).get(name)
        return found is not None and found.shape == parameter.shape

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all anchors."""
        return {net: {n: t.clone() for n, t in tensors.items()} for net, tensors in self.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]], networks: Mapping[str, nn.Module]) -> None:
        """Take over :meth:`state_dict`, on the devices of the networks."""
        for net, tensors in state.items():
            device = next(networks[net].parameters()).device
            self[net] = {n: t.to(device).clone() for n, t in tensors.items()}
