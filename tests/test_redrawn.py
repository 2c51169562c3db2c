"""A neuron that one method replaces is new to all: what others knew of it, and of its weights, begins anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import models
import pytest
import torch
from test_interventions import FREQUENT, plain_loop
from torch import Tensor, nn

from plasticity.callback import Context
from plasticity.interventions import INTERVENTIONS
from plasticity.interventions.units import UnitMethod

pytestmark = pytest.mark.usefixtures("everywhere")

EDITORS: dict[str, dict[str, Any]] = {
    **{name: FREQUENT[name] for name in ("redo", "regrama", "resin", "cbp", "snr")},
    "reborn": {"every": 5, "threshold": 0.7, "active": 1.1},
    "swr": {"every": 3, "share": 0.3},
    "reset": {"every": 12, "layers": 2},
    "shrink_perturb": {"every": 12, "preset": "bbf", "shrink": 1.0},
    "fire": {"every": 12, "preset": "official_dqn"},
}
"""Methods that replace neurons or weights."""
KNOWERS: dict[str, dict[str, Any]] = {
    "cbp": {"rate": 0.0, "maturity": 0},
    "ccbp": {"rate": 1e-9},
    "snr": {"start": 0, "limit_max": 10**6},
    "redo": {"every": 10**6, "ema": 0.9},
    "swr": {"every": 10**6, "ema": 0.9},
    "dash": {"every": 10**6},
}
"""Methods that remember something of neurons or weights, and here do nothing else."""


def remembered(method: Any, net: nn.Module, entries: Mapping[Tensor, Tensor]) -> list[Tensor]:
    """Return what a method knows of replaced neurons, as its distance from what it knows of a new one."""
    if not isinstance(method, UnitMethod):
        tensors = (method.average if method.NAME == "swr" else method.direction)["net"]
        named = net.named_parameters()
        return [tensors[name][entries[p]] for name, p in named if p in entries and name in tensors]
    found = []
    for layer, known in method.units["net"].items():
        whole = entries.get(net.get_submodule(layer).weight)
        rows = [] if whole is None else [i for i, row in enumerate(whole.tolist()) if all(row)]
        found += [v[..., rows] - method.FRESH.get(n, 0.0) for n, v in known.items() if n not in method.KEPT]
    return found


def steps(methods: list[Any], after: Any = lambda: None, listen: Any = lambda ctx, net: None) -> Any:
    """Run methods for 40 steps of an optimizer that learns nothing, so that they alone change weights."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    ctx, _ = plain_loop(net, torch.optim.SGD(net.parameters(), 0.0))
    for method in methods:
        method.on_train_start(ctx)
    listen(ctx, net)
    for step in range(40):
        if step == 10:  # neurons fall silent that were in use
            net[0].bias.data[:2], net[2].bias.data[:2] = -10, -10
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        ctx.optimizers["net"].zero_grad()
        (net(models.normal(16, 3)) - 1).square().mean().backward()
        ctx.optimizers["net"].step()
        after(net, before)
    for method in methods:
        method.on_train_end(ctx)
    return ctx


@pytest.mark.each("editor")
@pytest.mark.parametrize("knower", KNOWERS)
@pytest.mark.parametrize("editor", EDITORS)
@pytest.mark.some(12)
def test_what_others_knew_of_replaced_neurons_begins_anew(editor: str, knower: str) -> None:
    if editor == knower:
        pytest.skip("its own replacements are in its own tests")
    one, other = INTERVENTIONS[editor](**EDITORS[editor]), INTERVENTIONS[knower](**KNOWERS[knower])
    known: list[Tensor] = []
    left: list[Tensor] = []

    def listen(ctx: Context, net: nn.Module) -> None:
        ctx.on_redraw.insert(0, lambda entries: known.extend(t.clone() for t in remembered(other, net, entries)))
        ctx.on_redraw.append(lambda entries: left.extend(remembered(other, net, entries)))

    ctx = steps([one, other], lambda *_: None, listen)
    assert any(t.any() for t in known), f"{editor} replaced nothing of which {knower} knew something"
    assert not any(t.any() for t in left)
    assert len(ctx.on_redraw) == 2, "a method that has ended still listens"


@pytest.mark.parametrize("editor", EDITORS)
def test_all_that_is_replaced_is_announced(editor: str) -> None:
    """Weights that change in one step, row by row, against what was announced in it."""
    announced: dict[Tensor, Tensor] = {}

    def hear(entries: Mapping[Tensor, Tensor]) -> None:
        for parameter, where in entries.items():
            announced[parameter] = where | announced.get(parameter, where)

    found = 0

    def check(net: nn.Module, before: dict[str, Tensor]) -> None:
        nonlocal found
        for layer in ("0", "2"):
            weight = net.get_submodule(layer).weight
            rows = (weight != before[f"{layer}.weight"]).all(1)
            told = announced.get(weight, torch.zeros_like(weight, dtype=torch.bool)).all(1)
            assert not (rows & ~told).any(), f"{editor} replaced {layer} in silence"
            found += int(told.sum()) + (editor == "swr" and weight in announced)
        announced.clear()

    steps([INTERVENTIONS[editor](**EDITORS[editor])], check, lambda ctx, net: ctx.on_redraw.append(hear))
    assert found
