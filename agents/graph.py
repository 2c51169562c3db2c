"""A compiled loss with its gradients, as one call."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import adam
from .aside import untouched
from .compiled import Loss, Precision, Reads, compile_gradients
from .flat import Flat
from .inputs import Inputs
from .layout import Layout, Rides


class Graph:
    """A compiled loss with its gradients, for one layout, one set of shapes and of observers aboard."""

    def __init__(
        self,
        loss: Loss,
        layout: Layout,
        inputs: Inputs,
        max_norm: float | None,
        precision: Precision,
        rides: Rides,
    ) -> None:
        given: list[Tensor] = []

        def traced(*tensors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            given[:] = tensors
            return loss(*inputs.filled(tensors))

        reads = Reads(traced, layout.networks)
        with ExitStack() as stack:
            for ride in rides.others:
                stack.enter_context(ride.paused())
            recordings = [(ride, *stack.enter_context(ride.recording())) for ride in rides.aboard]

            def seen() -> list[Tensor]:
                known = set(map(id, given))  # an input need not be an output
                return [t for _, tensors, _ in recordings for t in tensors if id(t) not in known]

            self.traced = compile_gradients(reads, layout.flat, inputs.tensors, max_norm, precision, seen)
        first = 1 + len(self.traced.others)
        outputs = {id(tensor): first + i for i, tensor in enumerate(seen())}
        places = outputs | {id(tensor): first + len(outputs) + i for i, tensor in enumerate(given)}
        self.aboard = [(ride, plan, [places[id(t)] for t in tensors]) for ride, tensors, plan in recordings]
        self.on_cpu = inputs.tensors[0].device.type == "cpu"
        with untouched(layout.networks):  # what fails, fails here, where going on eagerly is still possible
            self.run(layout.flat, inputs.tensors)

    def run(self, flat: Flat, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Compute the gradients, and return metrics and the observers' tensors."""
        vectors, (call, read, captured, *_) = (flat.weights, flat.gradients), self.traced
        with torch.no_grad():
            outputs = call(*vectors, *read, *inputs, *captured)
            # CUDA graphs write into the same memory every time: what is handed out has to be a copy.
            return list(outputs) if self.on_cpu else [output.clone() for output in outputs]

    def step(self, optimizer: Optimizer, flat: Flat, inputs: Inputs) -> dict[str, Tensor]:
        """Compute the gradients, let the optimizer step, and return the metrics."""
        tensors = inputs.tensors
        outputs = self.run(flat, tensors)
        flat.give_gradients()
        metrics = dict(zip(self.traced.names, outputs[0].unbind(), strict=True))
        metrics |= zip(self.traced.others, outputs[1:], strict=False)
        if self.aboard:
            outputs += tensors
            for ride, plan, places in self.aboard:
                ride.deliver(plan, [outputs[i] for i in places])
        adam.step(optimizer, flat.parameters, flat)
        return metrics
