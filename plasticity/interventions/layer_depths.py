"""The distance of every layer from the output, by its wiring: the order of modules says nothing of parallel heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from plasticity.callback import Context
from plasticity.isolation import named_modules

from .every_step import EveryStep
from .first_inputs import FirstInputs, is_storable
from .reset import depths


class LayerDepths:
    """How many weight layers lie between each layer of a network and its output; known from the first training pass.

    ``calls``: methods by which training calls the network, beside ``forward``. Found anew by :meth:`look` where modules
    were replaced, such as by a plasticity injection.
    """

    def __init__(self, network: nn.Module, method: str, calls: Sequence[str] = ()) -> None:
        self._network, self._method = network, method
        self._inputs = FirstInputs(network, calls)
        self._depths: dict[str, int] | None = None
        self._modules: list[int] = []

    @property
    def known(self) -> bool:
        """True if a training pass was seen."""
        return self._depths is not None or self._inputs.found is not None

    def look(self) -> dict[str, int]:
        """Return layer -> its depth, 1 of output layers, of the present modules; ValueError before a training pass."""
        modules = [id(module) for module in self._network.modules()]
        if self._depths is None or modules != self._modules:
            if self._inputs.found is None:
                raise ValueError(
                    f"{self._method} must know the order of the layers, and no training pass of the network was seen: "
                    "call the network itself, not a compiled wrapper, before the optimizer steps"
                )
            self._depths, self._modules = depths(self._inputs.wiring(self._network)), modules
        return self._depths

    @property
    def outputs(self) -> list[str]:
        """The output layers; of those beside frozen ones, those that are trained."""
        found, modules = self._of_depth(1), named_modules(self._network)
        # A slice of a parameter is a layer, too, and no module.
        return [n for n in found if n not in modules or any(p.requires_grad for p in modules[n].parameters())] or found

    @property
    def last_hidden(self) -> list[str]:
        """The layers right in front of the output layers."""
        return self._of_depth(2)

    @property
    def hidden(self) -> list[str]:
        """The layers that are no output layers."""
        return [layer for layer, depth in self.look().items() if depth > 1]

    def _of_depth(self, depth: int) -> list[str]:
        return [layer for layer, found in self.look().items() if found == depth]

    def state_dict(self) -> dict[str, Any]:
        """Return the inputs of the first pass, which show the layers again where a checkpoint can keep them."""
        inputs = self._inputs.found if is_storable(self._inputs.found) else None
        return {"inputs": inputs, "call": self._inputs.method}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`: look at the network now, when no graph is being traced."""
        self._inputs.take(state["inputs"], state.get("call", "forward"))
        if self.known:
            self.look()

    def remove(self) -> None:
        """Take the hook off."""
        self._inputs.remove()


class KnowsDepths(EveryStep):
    """A method that asks for the depths of layers: it keeps them by network, and saves what shows them again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.depths: dict[str, LayerDepths] = {}
        """Network -> the depths of its layers."""

    def find_depths(self, name: str, network: nn.Module, method: str = "") -> None:
        """Find the depths of a network's layers from its next pass on; ``method``: who asks, for errors."""
        self.depths[name] = LayerDepths(network, method or type(self).__name__, self.calls.get(name, ()))
        self.hook(self.depths[name])

    def on_update_start(self, ctx: Context) -> None:
        """Look again where modules were replaced, such as by a plasticity injection, before a graph is traced."""
        super().on_update_start(ctx)
        for found in self.depths.values():
            if found.known:
                found.look()

    def state_dict(self) -> dict[str, Any]:
        """Return the order of the layers, too."""
        return {**super().state_dict(), "depths": {name: found.state_dict() for name, found in self.depths.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        for name, found in state["depths"].items():
            self.depths[name].load_state_dict(found)
