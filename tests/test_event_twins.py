"""Methods that act at events, over several of them, against twins by hand: recycling, growth, resets, injections.

A twin takes over what a method has drawn, and nothing else: it finds by itself what is drawn anew, and what becomes of
all other weights and of the optimizer.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import models
import numpy as np
import pytest
import torch
from test_interventions import plain_loop
from torch import Tensor, nn, optim

from plasticity.interventions import INTERVENTIONS, NeuroplasticExpansion, PlasticityInjection, Reset
from plasticity.interventions.injection import Injected

pytestmark = [pytest.mark.usefixtures("everywhere"), pytest.mark.on_real_devices]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double()


def data(step: int) -> Tensor:
    return models.normal(16, 3, seed=step).double()


def same(net: nn.Module, twin: nn.Module, optimizer: optim.Optimizer, other: optim.Optimizer) -> None:
    """Compare weights and what both optimizers keep of them."""
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)
        assert optimizer.state[p].keys() == other.state[q].keys()
        for key, value in optimizer.state[p].items():
            torch.testing.assert_close(value, other.state[q][key])


# -- neurons -----------------------------------------------------------------------------------------------------------


def relative(rows: Tensor) -> list[float]:
    """Return the mean size of every column over that of all, by loops."""
    sizes = [sum(abs(row[i]) for row in rows.tolist()) for i in range(rows.shape[1])]
    return [size * len(sizes) / sum(sizes) for size in sizes]


SCORES: dict[str, Callable[[Tensor, Tensor], list[float]]] = {
    "redo": lambda h, gradient: relative(h),
    "regrama": lambda h, gradient: relative(gradient),
    "resin": lambda h, gradient: [max(a, g) for a, g in zip(relative(h), relative(gradient), strict=True)],
}
"""Method -> its score of every neuron of a layer, given activations and dL/dz, (samples, neurons)."""


def recycle_by_hand(net: nn.Sequential, optimizer: optim.Adam, drawn: nn.Sequential, low: dict[int, list[int]]) -> None:
    """Give neurons the rows that were drawn, nothing going out, and no moments of either."""
    touched: list[tuple[Tensor, Any]] = []
    for layer, neurons in low.items():
        for i in neurons:
            net[layer].weight[i], net[layer].bias[i] = drawn[layer].weight[i], drawn[layer].bias[i]
            touched += [(net[layer].weight, (i, slice(None))), (net[layer].bias, i)]
    for layer, neurons in low.items():
        net[layer + 2].weight[:, neurons] = 0
        touched += [(net[layer + 2].weight, (slice(None), i)) for i in neurons]
    for parameter, place in touched:
        for key in ("exp_avg", "exp_avg_sq"):
            optimizer.state[parameter][key][place] = 0


@pytest.mark.parametrize("name", SCORES)
def test_recycling_over_several_events(name: str) -> None:
    net, twin = network(), network()
    optimizer, other = (optim.Adam(one.parameters(), 0.05) for one in (net, twin))
    ctx, writer = plain_loop(net, optimizer)
    INTERVENTIONS[name](every=2, threshold=0.5).on_train_start(ctx)  # type: ignore[call-arg]
    expected = []
    for step in range(1, 13):
        optimizer.zero_grad()
        other.zero_grad()
        (net(data(step)) - 1).square().mean().backward()
        h, signals = data(step), {}
        for layer in (0, 2):
            z = twin[layer](h)
            z.retain_grad()
            h = z.relu()
            signals[layer] = (h.detach(), z)
        (twin[4](h) - 1).square().mean().backward()
        optimizer.step()
        other.step()
        if step % 2 == 0:
            scores = {layer: SCORES[name](h, z.grad) for layer, (h, z) in signals.items()}
            low = {layer: [i for i, score in enumerate(found) if score <= 0.5] for layer, found in scores.items()}
            with torch.no_grad():
                recycle_by_hand(twin, other, net, low)
            expected.append({str(layer): neurons for layer, neurons in low.items() if neurons})
        same(net, twin, optimizer, other)
    assert [event["neurons"] for event in writer.named(name)] == [found for found in expected if found]
    assert sum(map(bool, expected)) >= 3


# -- connections -------------------------------------------------------------------------------------------------------


def largest(scores: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """Return a mask of the ``count`` largest scores among some, by a loop."""
    order = sorted(np.flatnonzero(among), key=lambda i: -scores.flat[i])[:count]
    return np.isin(np.arange(scores.size), order).reshape(scores.shape)


@pytest.mark.parametrize("preset", ["official", "rigl"])
def test_growth_over_several_events(preset: str) -> None:
    """Momentum by hand on dense arrays with masks: what is cut, what grows, and what it begins at."""
    net = network()
    optimizer = optim.SGD(net.parameters(), 0.05, momentum=0.9)
    ctx, writer = plain_loop(net, optimizer)
    method = NeuroplasticExpansion(preset, every=3, end=30, initial_density=0.4, **_growth(preset))  # type: ignore[arg-type]
    method.on_train_start(ctx)
    layers, started = [net[i] for i in (0, 2, 4)], False
    for step in range(1, 13):
        optimizer.zero_grad()
        net(data(step)).sub(1).square().mean().backward()
        dense = [layer.weight.grad.cpu().numpy().copy() for layer in layers]
        before = [layer.weight.detach().cpu().numpy().copy() for layer in layers]
        optimizer.step()
        if not started:  # the masks that were drawn
            masks, started = [layer.weight.detach().cpu().numpy() != 0 for layer in layers], True
            moved = [np.zeros_like(w) for w in before]
        for i, (w, g) in enumerate(zip(before, dense, strict=True)):
            moved[i] = (0.9 * moved[i] + g) * masks[i]
            w = (w - 0.05 * moved[i]) * masks[i]
            if step % 3 == 0:
                new = _rewired(preset, masks[i], w, g, step)
                moved[i] *= new & masks[i]
                w, masks[i] = w * (new & masks[i]), new
            np.testing.assert_allclose(layers[i].weight.detach().cpu().numpy(), w, atol=1e-12, err_msg=f"{step} {i}")
    assert len(writer.named("ne")) == 4


def _growth(preset: str) -> dict[str, float]:
    return {"grow_rate": 0.2, "final_density": 0.9} if preset == "official" else {}


def _rewired(preset: str, mask: np.ndarray, w: np.ndarray, g: np.ndarray, step: int) -> np.ndarray:
    """Return the mask after an event, by the rules of both released codes."""
    live = int(mask.sum())
    if preset == "official":
        grow = int(max(0.0, 0.6 - live_at_first(mask.shape)) * mask.size * 0.2)
        cut = int(0.4 * grow)
    else:
        grow = cut = int(live * 0.5 / 2 * (1 + math.cos(math.pi * step / 30)))
    kept = mask & ~largest(-np.abs(w), mask, cut)
    return kept | largest(np.abs(g), ~kept, grow)


def live_at_first(shape: tuple[int, ...]) -> float:
    """Return a layer's first density of those of 3-8-6-2 at 0.4: eps (in + out) / (in out), eps over all layers."""
    shapes = [(8, 3), (6, 8), (2, 6)]
    eps = 0.4 * sum(a * b for a, b in shapes) / sum(a + b for a, b in shapes)
    return eps * sum(shape) / math.prod(shape)


# -- whole layers ------------------------------------------------------------------------------------------------------


def test_resets_of_the_last_layers_over_several_events() -> None:
    net, twin = network(), network()
    optimizer, other = (optim.Adam(one.parameters(), 0.05) for one in (net, twin))
    ctx, writer = plain_loop(net, optimizer)
    Reset(every=3, layers=2).on_train_start(ctx)
    for step in range(1, 11):
        for one, stepper in ((net, optimizer), (twin, other)):
            stepper.zero_grad()
            (one(data(step)) - 1).square().mean().backward()
            stepper.step()
        if step % 3 == 0:
            for layer in (2, 4):
                for p, q in zip(net[layer].parameters(), twin[layer].parameters(), strict=True):
                    assert not torch.equal(p, q)
                    q.data.copy_(p.data)
                    for value in other.state[q].values():
                        value.zero_()
        same(net, twin, optimizer, other)
    assert len(writer.named("reset")) == 3


def test_an_injected_head_learns_as_the_sum_of_three() -> None:
    """h(phi) + h_new(phi) - h_copy(phi) with h as it was, and h_copy as h_new was drawn: only h_new is trained."""
    net, twin = network(), network()
    optimizer, other = (optim.Adam(one.parameters(), 0.05) for one in (net, twin))
    ctx, _ = plain_loop(net, optimizer)
    PlasticityInjection(at=(3,), clock="gradient_steps").on_train_start(ctx)
    encoder, frozen, drawn = twin[:2], copy.deepcopy(twin[2:]), copy.deepcopy(twin[2:])
    for step in range(1, 9):
        value = twin(data(step)) if step <= 3 else twin(data(step)) + frozen(h := encoder(data(step))) - drawn(h)
        torch.testing.assert_close(net(data(step)), value)
        for output, stepper in ((net(data(step)), optimizer), (value, other)):
            stepper.zero_grad()
            (output - 1).square().mean().backward()
            stepper.step()
        if step == 3:
            (injected,) = (module for module in net.modules() if isinstance(module, Injected))
            frozen = copy.deepcopy(twin[2:]).requires_grad_(False)
            twin[2:].load_state_dict(injected.new.state_dict())
            drawn = copy.deepcopy(twin[2:]).requires_grad_(False)
            for parameter in twin[2:].parameters():
                other.state.pop(parameter)
        if step > 3:
            for p, q in zip(injected.new.parameters(), twin[2:].parameters(), strict=True):
                torch.testing.assert_close(p, q)
            torch.testing.assert_close(net[0].weight, twin[0].weight)
