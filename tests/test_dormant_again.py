"""Neurons of the last recycling event: what readings say of them is what their scores say, resumed or not."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plasticity.callback import Callback, Context, end, start
from plasticity.interventions import ReDo
from plasticity.measuring import Measure
from plasticity.structure.recycled import _LAST, last_recycled, note_recycled


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))


def test_the_last_event_of_every_method_counts() -> None:
    model = net()
    assert last_recycled(model) == {}
    note_recycled(model, "redo", {"0": [3, 1]})
    note_recycled(model, "cbp", {"0": [2], "2": [5]})
    note_recycled(model, "redo", {"0": [1]})
    assert last_recycled(model) == {"0": [1, 2], "2": [5]}
    assert last_recycled(net()) == {}, "another network"


@pytest.mark.parametrize("first", ["measure", "redo"])
@pytest.mark.parametrize("stop", [None, 3, 4])
def test_neurons_of_the_last_event_are_looked_up_in_the_scores(first: str, stop: int | None) -> None:
    """A reading compares with the event before its own step, whoever comes first; also in a run that is resumed."""
    torch.manual_seed(0)
    model, noted = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def begin(saved: Any = None) -> tuple[Measure, ReDo, Context, list[Callback]]:
        measure = Measure(["dormancy", "dormant_again"], every=1, strict=True)
        redo = ReDo(every=2, threshold=0.4)
        callbacks: list[Callback] = [measure, redo] if first == "measure" else [redo, measure]
        ctx = Context({"net": model}, {"net": optimizer})
        start(callbacks, ctx, saved)
        return measure, redo, ctx, callbacks

    measure, redo, ctx, callbacks = begin()
    for step in range(8):
        if step == stop:
            saved = copy.deepcopy([callback.state_dict() for callback in callbacks])
            end(callbacks, ctx)
            _LAST.clear()
            measure, redo, ctx, callbacks = begin(saved)
        event = {layer: list(neurons) for layer, neurons in redo._recycled.get("net", {}).items()}
        optimizer.zero_grad()
        F.mse_loss(model(torch.randn(16, 5)), torch.ones(16, 2)).backward()
        optimizer.step()
        reading = measure.last["net"]
        for layer in ("0", "2"):
            scores, found = reading.scores["dormancy"][layer], reading.values["dormant_again"][layer]
            if neurons := event.get(layer):
                noted.append(found)
                assert found == pytest.approx(np.mean([float(scores[i]) <= 0.025 for i in neurons]))
            else:
                assert math.isnan(found)
    end(callbacks, ctx)
    assert len(noted) >= 4
