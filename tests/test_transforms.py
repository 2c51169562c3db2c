"""Passes inside torch.func and forward differentiation, whose values are wrapped: they do not count, and say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from plasticity import Monitor, measure, watch

pytestmark = [
    *(pytest.mark.usefixtures("everywhere"), pytest.mark.on_cpu),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),  # by forward differentiation, which uses it
]


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def per_sample(model: nn.Module, x: Tensor) -> Tensor:
    """Return the norms of the gradients of every sample."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    of_one = torch.func.grad(lambda weights, one: functional_call(model, weights, (one[None],)).square().mean())
    return torch.stack([g.flatten(1).norm(dim=1) for g in torch.vmap(of_one, (None, 0))(weights, x).values()])


def dual(model: nn.Module, x: Tensor) -> Tensor:
    """Return a derivative along a direction."""
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(model(forward_ad.make_dual(x, torch.ones_like(x)))).tangent.clone()


def batched(model: nn.Module, x: Tensor) -> Tensor:
    """Return the gradients of every output by one call of ``autograd.grad``."""
    out, ways = model(x), torch.eye(len(x)).unsqueeze(-1)
    grads = torch.autograd.grad(out, list(model.parameters()), ways, is_grads_batched=True)
    return torch.cat([grad.flatten() for grad in grads])


TRANSFORMS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "vmap": lambda model, x: torch.vmap(model)(x),
    "per sample": per_sample,
    "jvp": lambda model, x: torch.func.jvp(model, (x,), (x,))[1],
    "jacrev": lambda model, x: torch.func.jacrev(model)(x),
    "hessian": lambda model, x: torch.func.hessian(lambda x: model(x).sum())(x),
    "dual": dual,
    "batched": batched,
}


def train(model: nn.Module, transform: Callable[[nn.Module, Tensor], Tensor] | None, **options: Any) -> Any:
    """Return the scores after every step and what the transform gave; it runs before each pass of the loss."""
    optimizer, found = torch.optim.Adam(model.parameters(), 1e-2), []
    names = ["dormancy", "grama", "grama_weight"]
    with watch(model, optimizer, every=1, log=None, strict=True, probes=names, **options) as session:
        for seed in range(3):
            x = models.normal(12, 4, seed=seed)
            other = None if transform is None else transform(model, x)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            found.append((session.last["model"].scores, other))
    return found


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_between_passes_change_no_reading_and_give_what_they_gave(name: str) -> None:
    plain, model = mlp(), mlp()
    expected, found = train(plain, None), train(model, TRANSFORMS[name])
    for (scores, _), (others, _) in zip(expected, found, strict=True):
        torch.testing.assert_close(others, scores, rtol=0, atol=0)
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)
    start = mlp()
    assert torch.equal(found[0][1], TRANSFORMS[name](start, models.normal(12, 4, seed=0)))


def test_a_model_that_runs_in_transforms_alone_says_so() -> None:
    model = mlp()
    with Monitor(model) as monitor:
        torch.vmap(model)(models.normal(6, 4))
    with pytest.raises(RuntimeError, match="every pass ran inside a transform"):
        monitor.read()


def test_layers_that_run_in_a_transform_say_so_and_their_neighbours_are_measured() -> None:
    parts = {"a": nn.Linear(4, 8), "body": nn.Sequential(nn.Linear(8, 8), nn.ReLU()), "o": nn.Linear(8, 1)}
    model = models.Net(lambda s, x: s.o(torch.vmap(s.body)(s.a(x).relu())), **parts)
    reading = measure(model, (models.normal(32, 4), None), lambda out, _: out.square().mean())
    assert reading.values["dormancy"]["a"] == reading.values["dormancy"]["a"]
    reasons = {entry.reason for entry in reading.unmeasured if entry.layer == "body.0"}
    assert len(reasons) == 1
    assert "it ran inside a transform" in reasons.pop()
