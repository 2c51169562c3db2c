"""GraMa is of the gradient of the loss, however a loop computes it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import models
import numpy as np
import pytest
import reference
import torch
from torch import Tensor, nn
from torch.autograd import grad

from plasticity.monitor import Monitor
from plasticity.watching import watch

pytestmark = pytest.mark.usefixtures("everywhere")

READINGS = ["grama", "grama_weight", "grama_post"]

Loss = Callable[[nn.Module, Tensor], Tensor]


def trunk() -> nn.Module:
    """Return a trunk with two heads, smooth enough for second derivatives."""
    torch.manual_seed(0)
    return models.two_heads(nn.Tanh()).double()


def first(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)["mean"].square().mean()


def both(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    return out["mean"].square().mean() + 3 * (out["log_std"] - 1).square().mean()


def penalised(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    out = model(x)["mean"]
    (slope,) = grad(out.sum(), x, create_graph=True)
    return out.square().mean() + 10 * (slope.norm(dim=1) - 1).square().mean()


def physics(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    u = model(x)["mean"][:, :1]
    (du,) = grad(u.sum(), x, create_graph=True)
    (ddu,) = grad(du[:, 0].sum(), x, create_graph=True)
    return (ddu[:, 0] + u[:, 0]).square().mean()


def saliency(model: nn.Module, x: Tensor) -> Tensor:
    """Look at gradients of the features that the loss does not use."""
    x = x.clone().requires_grad_()
    out = model(x)
    grad(out["mean"].sum(), x, retain_graph=True)
    grad(out["log_std"].sum(), x, retain_graph=True)
    return out["mean"].square().mean()


def plain(model: nn.Module, x: Tensor, loss: Loss) -> None:
    loss(model, x).backward()


def kept(model: nn.Module, x: Tensor, loss: Loss) -> None:
    loss(model, x).backward(retain_graph=True)


def differentiable(model: nn.Module, x: Tensor, loss: Loss) -> None:
    loss(model, x).backward(create_graph=True)


def one_by_one(model: nn.Module, x: Tensor, loss: Loss) -> None:
    """Call backward per term of one pass."""
    out = model(x)
    out["mean"].square().mean().backward(retain_graph=True)
    (3 * (out["log_std"] - 1).square().mean()).backward()


def returned(model: nn.Module, x: Tensor, loss: Loss) -> None:
    for p, g in zip(model.parameters(), grad(loss(model, x), list(model.parameters()), allow_unused=True), strict=True):
        p.grad = g


def returned_one_by_one(model: nn.Module, x: Tensor, loss: Loss) -> None:
    """Take the gradients of each term apart, as methods for several tasks do."""
    out, parameters = model(x), list(model.parameters())
    terms = [out["mean"].square().mean(), 3 * (out["log_std"] - 1).square().mean()]
    for term in terms:
        grad(term, parameters, retain_graph=True, allow_unused=True)


def hessian(model: nn.Module, x: Tensor, loss: Loss) -> None:
    """Take a Hessian product after the backward pass, as AdaHessian does."""
    loss(model, x).backward(create_graph=True)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    parameters = [p for p in model.parameters() if p.grad is not None]
    grad(gradients, parameters, [torch.ones_like(g) for g in gradients], allow_unused=True)


def hessian_of_returned(model: nn.Module, x: Tensor, loss: Loss) -> None:
    parameters = list(model.parameters())
    gradients = [g for g in grad(loss(model, x), parameters, create_graph=True, allow_unused=True) if g is not None]
    grad(sum(g.square().sum() for g in gradients), parameters, allow_unused=True)


def expected_gradients(model: nn.Module, x: Tensor, loss: Loss) -> dict[str, Tensor]:
    """Return dL/dz, dL/dW and dL/dh of the first layer by one call of ``autograd.grad``, on a copy of the model."""
    model = copy.deepcopy(model)
    seen: list[Tensor] = []
    handles = [m.register_forward_hook(lambda m, i, out: seen.append(out)) for m in (model.a, model.act)]
    total = loss(model, x)
    for handle in handles:
        handle.remove()
    z, weight, h = grad(total, [seen[0], model.a.weight, seen[1]])
    return {"grama": z, "grama_weight": weight, "grama_post": h}


CASES: dict[str, tuple[Loss, Callable[[nn.Module, Tensor, Loss], None]]] = {
    "backward": (first, plain),
    "graph kept": (first, kept),
    "graph created": (both, differentiable),
    "gradient penalty": (penalised, plain),
    "physics-informed": (physics, plain),
    "gradient looked at": (saliency, plain),
    "penalty, graph created": (penalised, differentiable),
    "term by term": (both, one_by_one),
    "autograd.grad": (both, returned),
    "autograd.grad of a penalty": (penalised, returned),
    "autograd.grad term by term": (both, returned_one_by_one),
    "hessian product": (both, hessian),
    "hessian product of autograd.grad": (both, hessian_of_returned),
}


@pytest.mark.parametrize("passes", ["all", "training"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:Using backward")
def test_scores_are_of_the_gradient_of_the_loss(name: str, passes: Any) -> None:
    loss, differentiate = CASES[name]
    model, x = trunk(), models.normal(24, 4, dtype=torch.float64)
    expected = expected_gradients(model, x, loss)
    with Monitor(model, READINGS, passes=passes, strict=True) as monitor:
        differentiate(model, x, loss)
    reading = monitor.read()
    assert reading.num_passes == 1
    for probe in READINGS:
        gradient = expected[probe]
        by_hand = (
            reference.weight_scores(gradient) if probe == "grama_weight" else reference.scores(reference.rows(gradient))
        )
        np.testing.assert_allclose(reading.scores[probe]["a"].numpy(force=True), by_hand, rtol=1e-9, err_msg=probe)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_every_way_of_calling_backward_in_one_run() -> None:
    """The same, in a loop that is watched."""
    model, x = trunk(), models.normal(24, 4, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer, every=1, probes=READINGS, log=None, strict=True) as session:
        for loss, differentiate in CASES.values():
            expected = expected_gradients(model, x, loss)["grama"]
            optimizer.zero_grad()
            differentiate(model, x, loss)
            optimizer.step()
            found = session.last["model"].scores["grama"]["a"]
            np.testing.assert_allclose(found.numpy(force=True), reference.scores(reference.rows(expected)), rtol=1e-9)


def test_the_inner_gradients_of_meta_learning_are_not_those_of_the_loss() -> None:
    model, x = trunk(), models.normal(24, 4, dtype=torch.float64)

    def outer(model: nn.Module, x: Tensor) -> Tensor:
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = grad(first(model, x), parameters, create_graph=True, allow_unused=True)
        fast = {n: p if g is None else p - 0.5 * g for n, p, g in zip(names, parameters, gradients, strict=True)}
        h = torch.tanh(nn.functional.linear(x, fast["a.weight"], fast["a.bias"]))
        return nn.functional.linear(h, fast["mean.weight"]).mean()

    expected = expected_gradients(model, x, outer)["grama"]
    with Monitor(model, ["grama"], passes="training", strict=True) as monitor:
        outer(model, x).backward()
    found = monitor.read().scores["grama"]["a"]
    np.testing.assert_allclose(found.numpy(force=True), reference.scores(reference.rows(expected)), rtol=1e-9)


def test_accumulated_passes_are_samples_and_terms_of_one_pass_are_a_sum() -> None:
    model, x = trunk(), models.normal(24, 4, dtype=torch.float64)
    expected = torch.cat([expected_gradients(model, part, both)["grama"] for part in (x[:8], x[8:])])
    with Monitor(model, ["grama"], strict=True) as monitor:
        for part in (x[:8], x[8:]):
            one_by_one(model, part, both)
    found = monitor.read().scores["grama"]["a"]
    np.testing.assert_allclose(found.numpy(force=True), reference.scores(reference.rows(expected)), rtol=1e-9)
