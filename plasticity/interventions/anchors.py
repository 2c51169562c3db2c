"""Weights to go back to: those at the start, a running average, or those of a checkpoint; kept beside the networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.isolation import named_parameters
from plasticity.storage.checkpoint import load


class Anchors(dict[str, dict[str, Tensor]]):
    """Network -> parameter -> its anchor, a tensor of the parameter's shape on its device."""

    @classmethod
    def at(cls, networks: Mapping[str, nn.Module]) -> Anchors:
        """Return anchors at the present weights."""
        return cls(
            {net: {n: p.detach().clone() for n, p in named_parameters(m).items()} for net, m in networks.items()}
        )

    @classmethod
    def saved(cls, folder: Path, networks: Mapping[str, nn.Module]) -> Anchors:
        """Return anchors at the weights in a checkpoint of the same agent; ValueError where it does not hold them."""
        state = load(folder)
        found = state.get("agent", {}).get("networks", {}) if isinstance(state, Mapping) else {}
        if missing := [net for net in networks if net not in found]:
            raise ValueError(f"{folder} holds no network {', '.join(missing)}; it has {', '.join(found) or 'none'}")
        anchors = cls()
        anchors.load_state_dict({net: found[net] for net in networks}, networks)
        strange = [
            f"{net}.{name}"
            for net, module in networks.items()
            for name, parameter in named_parameters(module).items()
            if not anchors.fits(net, name, parameter)
        ]
        if strange:
            raise ValueError(f"{folder} is of another agent: it does not hold {', '.join(strange[:4])} in its shape")
        return anchors

    @torch.no_grad()
    def follow_(self, network: str, parameters: Mapping[str, Tensor], weight: float) -> None:
        """anchor += weight * (parameter - anchor), for parameters that have an anchor of their shape."""
        pairs = [(self[network][n], p) for n, p in parameters.items() if self.fits(network, n, p)]
        if pairs:
            anchors, present = (list(tensors) for tensors in zip(*pairs, strict=True))
            torch._foreach_lerp_(anchors, present, weight)

    @torch.no_grad()
    def zero_(self, entries: Mapping[Tensor, Tensor], networks: Mapping[str, nn.Module]) -> None:
        """Set to 0 the anchors of the entries of parameters, parameter -> bool of its shape: of averages of them."""
        for net in self:
            for name, parameter in named_parameters(networks[net]).items():
                if parameter in entries and self.fits(net, name, parameter):
                    self[net][name].masked_fill_(entries[parameter], 0)

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
