"""A compiled gradient step, as one call."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import adam
from .aside import untouched
from .compiled import Loss, Reads, compile_step
from .flat import Flat
from .inputs import Inputs
from .layout import Layout, Rides
from .products import Precision


class Graph:
    """A compiled loss with its gradients and, with `move`, the step of Adam, unless the loss does not reach all.

    It is for one layout, one set of shapes and of observers aboard.
    """

    def __init__(
        self,
        loss: Loss,
        layout: Layout,
        inputs: Inputs,
        max_norm: float | None,
        move: adam.Move | None,
        precision: Precision,
        rides: Rides,
    ) -> None:
        given: list[Tensor] = []

        def traced(*tensors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            given[:] = tensors
            return loss(*inputs.filled(tensors))

        self.has_state, self.riders = move is not None, rides.key
        self.on_cpu = inputs.tensors[0].device.type == "cpu"
        reads, vectors = Reads(traced, layout.networks), layout.flat.vectors(self.has_state)
        with ExitStack() as stack:
            for ride in rides.others:
                stack.enter_context(ride.paused())
            plans = [stack.enter_context(ride.recording()) for ride in rides.aboard]

            def seen() -> list[Tensor]:
                known = set(map(id, given))  # an input need not be an output
                return [t for plan in plans for t in plan.tensors() if id(t) not in known]

            self.traced = compile_step(
                reads, vectors, layout.flat, inputs.tensors, max_norm, move, precision, seen, plans
            )
        self.moves = self.has_state and all(self.traced.reached)
        first = 1 + len(self.traced.others)
        outputs = {id(tensor): first + i for i, tensor in enumerate(seen())}
        places = outputs | {id(tensor): first + len(outputs) + i for i, tensor in enumerate(given)}
        self.aboard = [(plan, [places[id(t)] for t in plan.tensors()]) for plan in plans]
        written = [*vectors, *(total for plan in plans for total in plan.totals())]
        before = [vector.clone() for vector in written]
        with untouched(layout.networks), torch.no_grad():  # what fails, fails here, where going on eagerly is possible
            self.run(layout.flat, inputs.tensors)
            for vector, old in zip(written, before, strict=True):
                vector.copy_(old)
        if self.moves:
            layout.flat.noticed()

    def run(self, flat: Flat, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Compute the gradients, and step if it moves; return metrics and the observers' tensors."""
        call, read, captured, *_ = self.traced
        outputs = call([*flat.vectors(self.has_state), *read, *inputs, *captured])
        # CUDA graphs write into the same memory every time: what is handed out has to be a copy.
        return outputs if self.on_cpu else [output.clone() for output in outputs]

    def step(self, optimizer: Optimizer, flat: Flat, inputs: Inputs) -> dict[str, Tensor]:
        """Take the step, and return the metrics."""
        if self.moves:
            flat.set_rate(optimizer.param_groups[0]["lr"])
        with torch.no_grad():
            outputs = self.run(flat, inputs.tensors)
        moved = flat.give_gradients(self.traced.reached)
        metrics = dict(zip(self.traced.names, outputs[0].unbind(), strict=True))
        if self.traced.others:
            metrics |= zip(self.traced.others, outputs[1:], strict=False)
        if self.aboard:
            outputs = [*outputs, *inputs.tensors]
            for plan, places in self.aboard:
                plan.deliver([outputs[i] for i in places])
        if self.moves:
            flat.noticed()
            adam.after(optimizer)
        else:
            adam.step(optimizer, moved)
        return metrics
