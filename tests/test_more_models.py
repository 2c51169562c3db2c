"""Models unlike those of the other tests, watched while they train: every reading is that of own hooks and numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from models import Net
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plasticity import watch, wiring

Built = tuple[nn.Module, Callable[[], Tensor], dict[str, str]]
"""A model, its loss, and layer -> the activation module behind it."""


def graph() -> Built:
    """Return a graph network whose layers mix the nodes before they activate."""

    def forward(s: Any, x: Tensor, adjacency: Tensor) -> Tensor:
        return s.o(s.y(adjacency @ s.b(s.x(adjacency @ s.a(x)))).mean(0))

    model = Net(forward, a=nn.Linear(8, 16), x=nn.ReLU(), b=nn.Linear(16, 16), y=nn.ReLU(), o=nn.Linear(16, 1))
    x, adjacency = torch.randn(48, 8), (torch.rand(48, 48) < 0.2) / 9.6
    return model, lambda: model(x, adjacency).square().mean(), {"a": "x", "b": "y"}


def scattered() -> Built:
    """Return a graph network that adds up messages."""

    def forward(s: Any, x: Tensor, source: Tensor, sink: Tensor) -> Tensor:
        return s.o(s.y(s.b(torch.zeros(len(x), 16).index_add(0, sink, s.x(s.a(x[source]))))))

    model = Net(forward, a=nn.Linear(8, 16), x=nn.ReLU(), b=nn.Linear(16, 16), y=nn.ReLU(), o=nn.Linear(16, 1))
    x, edges = torch.randn(48, 8), torch.randint(0, 48, (2, 100))
    return model, lambda: model(x, *edges).square().mean(), {"a": "x", "b": "y"}


def messages(how: str) -> Built:
    """Return a graph network that adds up the linear outputs of neighbours, and activates the sums."""
    source, sink = edges = torch.randint(0, 48, (2, 100))
    adjacency = torch.zeros(48, 48).index_put(tuple(edges), torch.rand(100))

    def pass_on(h: Tensor) -> Tensor:
        zeros, places = torch.zeros(48, 16), sink[:, None].expand(-1, 16)
        return {
            "index_add": lambda: zeros.index_add(0, sink, h[source]),
            "scatter_add": lambda: zeros.scatter_add(0, places, h[source]),
            "scatter_reduce": lambda: zeros.scatter_reduce(0, places, h[source], "amax"),
            "sparse": lambda: torch.sparse.mm(adjacency.to_sparse(), h),
            "channels_first": lambda: (h.t() @ adjacency).t(),
        }[how]()

    parts = {"a": nn.Linear(8, 16), "b": nn.Linear(16, 16), "o": nn.Linear(16, 1)}
    model = Net(lambda s, x: s.o(s.y(pass_on(s.b(s.x(pass_on(s.a(x))))))), x=nn.ReLU(), y=nn.ReLU(), **parts)
    x = torch.randn(48, 8)
    return model, lambda: model(x).square().mean(), {"a": "x", "b": "y"}


def recurrent() -> Built:
    """Return layers around a GRU."""
    parts = {"a": nn.Linear(8, 16), "x": nn.ReLU(), "r": nn.GRU(16, 16, batch_first=True)}
    model = Net(
        lambda s, x: s.o(s.y(s.b(s.r(s.x(s.a(x)))[0]))), **parts, b=nn.Linear(16, 16), y=nn.ReLU(), o=nn.Linear(16, 2)
    )
    x = torch.randn(6, 5, 8)
    return model, lambda: model(x).square().mean(), {"a": "x", "b": "y"}


def autoencoder() -> Built:
    """Return a variational autoencoder."""

    def forward(s: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = s.x(s.a(x))
        mean, log_var = s.mean(h), s.log_var(h)
        return s.o(s.y(s.b(mean + torch.randn_like(mean) * (0.5 * log_var).exp()))), mean, log_var

    sizes = {"a": (8, 32), "mean": (32, 4), "log_var": (32, 4), "b": (4, 32), "o": (32, 8)}
    model = Net(forward, x=nn.ReLU(), y=nn.ReLU(), **{name: nn.Linear(*size) for name, size in sizes.items()})
    x = torch.randn(48, 8)

    def loss() -> Tensor:
        out, mean, log_var = model(x)
        return F.mse_loss(out, x) + (mean.square() + log_var.exp() - log_var).mean()

    return model, loss, {"a": "x", "b": "y"}


def siamese() -> Built:
    """Return a network that is called twice for one loss."""
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    x, y = torch.randn(2, 48, 8)
    return model, lambda: (model(x) - model(y)).square().mean(), {"0": "1", "2": "3"}


def tied() -> Built:
    """Return an autoencoder that decodes with the transposed weight of its encoder."""
    model = Net(lambda s, x: F.linear(s.x(s.a(x)), s.a.weight.t()), a=nn.Linear(8, 16), x=nn.ReLU())
    x = torch.randn(48, 8)
    return model, lambda: (model(x) - x).square().mean(), {"a": "x"}


def mixture() -> Built:
    """Return a soft mixture of experts."""
    experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)) for _ in range(3))

    def forward(s: Any, x: Tensor) -> Tensor:
        shares = s.gate(x).softmax(-1)
        return sum(shares[:, i : i + 1] * expert(x) for i, expert in enumerate(s.experts))  # type: ignore[return-value]

    model, x = Net(forward, gate=nn.Linear(8, 3), experts=experts), torch.randn(48, 8)
    return model, lambda: model(x).square().mean(), {f"experts.{i}.0": f"experts.{i}.1" for i in range(3)}


def hypernetwork() -> Built:
    """Return a network whose last weights another part writes."""

    def forward(s: Any, x: Tensor) -> Tensor:
        return torch.bmm(s.w(s.x(s.a(x))).view(-1, 4, 8), s.y(s.b(x)).unsqueeze(-1))

    model = Net(forward, a=nn.Linear(8, 16), x=nn.ReLU(), w=nn.Linear(16, 32), b=nn.Linear(8, 8), y=nn.ReLU())
    x = torch.randn(48, 8)
    return model, lambda: model(x).square().mean(), {"a": "x", "b": "y"}


def checkpointed() -> Built:
    """Return a network with a part that is computed again in the backward pass."""
    part = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.o(checkpoint(s.part, s.x(s.a(x)), use_reentrant=False))

    model, x = Net(forward, a=nn.Linear(8, 16), x=nn.ReLU(), part=part, o=nn.Linear(16, 1)), torch.randn(48, 8)
    return model, lambda: model(x).square().mean(), {"a": "x", "part.0": "part.1", "part.2": "part.3"}


def called_by_function() -> Built:
    """Return a network that is called with its parameters as an argument."""
    model, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(48, 8)
    call = torch.func.functional_call
    return model, lambda: call(model, dict(model.named_parameters()), (x,)).square().mean(), {"0": "1"}


BUILDS: list[Callable[[], Built]] = [
    *(graph, scattered, recurrent, autoencoder, siamese, tied, mixture, hypernetwork, checkpointed, called_by_function)
]
MESSAGES = [
    partial(messages, how) for how in ("index_add", "scatter_add", "scatter_reduce", "sparse", "channels_first")
]


@pytest.mark.parametrize("build", BUILDS + MESSAGES, ids=lambda b: b.__name__ if hasattr(b, "__name__") else b.args[0])
def test_readings_are_those_of_own_hooks(build: Callable[[], Built]) -> None:
    torch.manual_seed(0)
    model, loss, layers = build()
    seen: dict[str, list[dict[str, Tensor]]] = {}

    def hook(name: str) -> Any:
        def see(module: nn.Module, args: tuple, h: Tensor) -> None:
            if torch.is_grad_enabled() and args[0].requires_grad:
                seen.setdefault(name, []).append(entry := {"h": h.detach().clone()})
                args[0].register_hook(lambda g: entry.update(g=g.detach().clone()))

        return see

    for name in layers.values():
        model.get_submodule(name).register_forward_hook(hook(name))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with watch(model, optimizer, every=1, log=None, strict=True, probes=["dormancy", "grama"]) as session:
        for _ in range(2):
            optimizer.zero_grad()
            seen.clear()
            loss().backward()
            optimizer.step()
            scores = session.last["model"].scores
            for layer, name in layers.items():
                for probe, key in (("dormancy", "h"), ("grama", "g")):
                    rows = np.concatenate([reference.rows(entry[key]) for entry in seen[name] if "g" in entry])
                    found = scores[probe][layer].numpy(force=True)
                    np.testing.assert_allclose(found, reference.scores(rows), rtol=1e-5, atol=1e-6, err_msg=layer)


def test_sums_over_a_graph_with_other_neurons_are_mixed() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.o(s.a(x).index_add(0, torch.tensor([0, 1]), s.b(x[:2])))

    model = Net(forward, a=nn.Linear(8, 16), b=nn.Linear(8, 16), o=nn.Linear(16, 1))
    wired = wiring(model, torch.randn(4, 8))
    assert "mixed by index_add before o" in wired.layers["a"].unresolved
