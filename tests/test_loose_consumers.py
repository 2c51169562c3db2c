"""Consumers that are no module: known as such, and never a reason to cut only some of what a neuron feeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from models import Net
from test_interventions import plain_loop, recycled_once
from torch import Tensor, nn

from plasticity.agents.flat import Flat
from plasticity.interventions import ReDo
from plasticity.measuring import measure
from plasticity.structure.recall import as_data, recalled
from plasticity.structure.trace import wiring

pytestmark = pytest.mark.usefixtures("everywhere")


class Loose(nn.Module):
    """A weight that is no Linear, applied by some function of (weight, features)."""

    def __init__(self, apply: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.weight, self.apply_to = nn.Parameter(torch.randn(shape)), apply
        self.register_buffer("mask", (torch.arange(shape[-1]) % 3 > 0).float())

    def forward(self, h: Tensor) -> Tensor:
        """Apply the weight."""
        return self.apply_to(self.weight, h)


def hyper(s: Any, h: Tensor) -> Tensor:
    """Let another network write the weight."""
    weight = s.writer(F.relu(s.context(torch.ones(len(h), 4)))).view(len(h), 6, 2)
    return torch.bmm(h.unsqueeze(1), weight).squeeze(1)


HEADS: dict[str, Callable[[], nn.Module]] = {
    "cosine": lambda: Loose(lambda w, h: F.linear(F.normalize(h, dim=-1), F.normalize(w, dim=-1)), 2, 6),
    "masked": lambda: Loose(lambda w, h: F.linear(h, w * (torch.arange(6) % 3 > 0)), 2, 6),
    "noisy": lambda: Loose(lambda w, h: F.linear(h, w[0] + w[1] * torch.randn(2, 6)), 2, 2, 6),
    "einsum": lambda: Loose(lambda w, h: torch.einsum("bi,eio->boe", h, w), 3, 6, 2),
    "vectorised": lambda: Loose(
        lambda w, h: torch.baddbmm(torch.zeros(3, 1, 2), h.expand(3, *h.shape), w.tanh()), 3, 6, 2
    ),
    "quantised": lambda: Loose(lambda w, h: h @ (w + (w.round() - w).detach()).T, 2, 6),
    "spectral": lambda: Loose(lambda w, h: h @ (w / w.norm()).T, 2, 6),
    "weighted sum": lambda: Loose(lambda w, h: (h * w).sum(-1, keepdim=True), 6),
    "low rank": lambda: Loose(lambda w, h: h @ (w[:1].T @ w[1:]), 2, 6),
    "hyper-network": lambda: Net(hyper, context=nn.Linear(4, 5), writer=nn.Linear(5, 12)),
    "returned": lambda: Net(lambda s, h: h),
}


def build(name: str, with_layer: bool) -> nn.Module:
    """Return a trunk whose features go to a head that is no layer, and maybe to a Linear as well."""
    torch.manual_seed(0)

    def forward(s: Any, x: Tensor) -> Any:
        h = F.relu(s.b(F.relu(s.a(x))))
        return (s.head(h), s.o(h)) if with_layer else s.head(h)

    layer = {"o": nn.Linear(6, 1)} if with_layer else {}
    return Net(forward, **models.linears(4, 7, 6), head=HEADS[name](), **layer)


@pytest.mark.parametrize("with_layer", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_the_last_hidden_layer_is_measured_and_says_what_is_not_known(name: str, with_layer: bool) -> None:
    model, x = build(name, with_layer), torch.randn(32, 4)
    layer = wiring(model, x).layers["b"]
    if name == "returned" and not with_layer:  # then the features are the output
        assert layer.is_output
        return
    assert layer.is_hidden
    assert len(layer.unresolved) == 1
    assert (
        "returned to the caller" if name == "returned" else "weights of no Linear or Conv layer"
    ) in layer.unresolved[0]
    rows = F.relu(model.b(F.relu(model.a(x))))
    found = measure(model, x, probes=["dormancy"]).scores["dormancy"]["b"]
    np.testing.assert_allclose(found.numpy(force=True), reference.scores(reference.rows(rows)), rtol=1e-5)


@pytest.mark.parametrize("with_layer", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_its_neurons_are_left_alone_and_those_before_are_not(name: str, with_layer: bool) -> None:
    model = build(name, with_layer)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ctx, writer = plain_loop(model, torch.optim.SGD(model.parameters(), 0.0))
    redo = ReDo(every=1, threshold=10.0, cap=0.3)
    redo.on_train_start(ctx)
    found = model(torch.randn(32, 4))
    sum(part.square().mean() for part in (found if isinstance(found, tuple) else [found])).backward()
    ctx.optimizers["net"].step()
    redo.on_train_end(ctx)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    outputs = name == "returned" and not with_layer
    expected = {"a.weight", "a.bias", "b.weight"}
    if name == "hyper-network":
        expected |= {"head.context.weight", "head.context.bias", "head.writer.weight"}
    assert changed == expected
    reasons = {event["layer"]: event["reason"] for event in writer.named("redo_skipped")}
    assert outputs or reasons["b"].startswith("not all that b feeds is known")


@pytest.mark.parametrize(
    "kind", ["tanh action", "softmax atoms", "gaussian", "log probability", "dueling", "dot product"]
)
def test_what_the_model_returns_is_an_output(kind: str) -> None:
    """Constants, samples and other outputs are no weights: what they are mixed with is an output layer."""
    atoms = torch.linspace(-1, 1, 6)

    def forward(s: Any, x: Tensor) -> Any:
        z, deviation = s.b(F.relu(s.a(x))), s.log_std.exp()
        if kind == "tanh action":
            return torch.tanh(z)
        if kind == "softmax atoms":
            return z.softmax(-1) @ atoms
        if kind == "gaussian":
            return torch.distributions.Normal(z, deviation)
        if kind == "log probability":
            return (-0.5 * ((x[:, :1] - z) / deviation) ** 2 - s.log_std).sum(-1)
        if kind == "dueling":
            return z[:, :1] + z[:, 1:] - z[:, 1:].mean(-1, keepdim=True)
        return z @ s.c(F.relu(s.a(x))).T

    model = Net(forward, a=nn.Linear(4, 5), b=nn.Linear(5, 6), c=nn.Linear(5, 6))
    model.log_std = nn.Parameter(torch.zeros(6))
    layer = wiring(model, models.vectors()).layers["b"]
    assert layer.is_output
    assert "weights of no" not in " ".join(layer.unresolved)


class Decoded(nn.Module):
    """A deep autoencoder whose decoder is the encoder's weight, turned, scaled or looked up."""

    def __init__(self, decode: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.e, self.f, self.g, self.decode = nn.Linear(8, 12), nn.Linear(12, 6), nn.Linear(6, 12), decode

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction."""
        return self.decode(F.relu(self.g(F.relu(self.f(F.relu(self.e(x)))))), self.e.weight)


DECODERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda h, weight: F.linear(h, weight.T),
    "matmul": lambda h, weight: h @ weight,
    "einsum": lambda h, weight: torch.einsum("bi,io->bo", h, weight),
    "scaled first": lambda h, weight: h @ (weight * 0.5),
    "a part": lambda h, weight: h[:, :6] @ weight[6:],
    "by rows": lambda h, weight: h.mean(1, keepdim=True) * weight[0],
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_layer_whose_weight_is_used_elsewhere_is_measured_and_left_alone(name: str) -> None:
    torch.manual_seed(0)
    model, x = Decoded(DECODERS[name]), torch.randn(32, 8)
    with torch.no_grad():
        model.e.bias[:2], model.f.bias[:2] = -100, -100
    wired = wiring(model, x)
    assert "weights also taken by" in wired.layers["e"].remarks[0]
    assert not wired.layers["f"].borrowed_by
    recalled_layers = recalled(as_data(wired), dict(model.named_modules())).layers
    assert recalled_layers["e"].borrowed_by == wired.layers["e"].borrowed_by
    before, old = model(x).detach(), model.e.weight.detach().clone()
    writer = recycled_once(model, x)
    assert writer.named("redo")[0]["neurons"] == {"f": [0, 1]}
    assert "the weights of e are also taken by" in next(e["reason"] for e in writer.named("redo_skipped"))
    assert torch.equal(model.e.weight, old)
    torch.testing.assert_close(model(x), before)


class Own(nn.Linear):
    """A Linear that computes with what a function makes of itself, its input and further weights."""

    def __init__(self, apply: Callable[[Any, Tensor], Tensor], other: nn.Linear) -> None:
        super().__init__(8, 8)
        self.more, self.gain = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.rand(8))
        self.register_buffer("mask", (torch.arange(8) % 3 > 0).float())
        self.apply_to, self.others = apply, [other]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.apply_to(self, x)


def standardised(s: Any, x: Tensor) -> Tensor:
    """Apply a weight of rows of mean 0."""
    return F.linear(x, s.weight - s.weight.mean(1, keepdim=True), s.bias)


MIXED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "low rank": lambda s, x: F.linear(x, s.weight, s.bias) + x @ s.more[:2].T @ s.more[:, :2].T,
    "noisy": lambda s, x: F.linear(x, s.weight + 0.1 * s.more, s.bias),
    "standardised": standardised,
    "normalised": lambda s, x: F.linear(x, s.weight / s.weight.norm(), s.bias),
    "tied": lambda s, x: F.linear(x, s.others[0].weight.T, s.bias),
    "added": lambda s, x: F.linear(x, s.weight + s.others[0].weight, s.bias),
}
PLAIN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "masked": lambda s, x: F.linear(x, s.weight * s.mask, s.bias),
    "scaled": lambda s, x: F.linear(x, s.weight * 2, s.bias) * s.gain,
    "turned": lambda s, x: x @ s.weight.T + s.bias,
    "half": lambda s, x: F.linear(x.bfloat16(), s.weight.bfloat16(), s.bias.bfloat16()).float(),
}


def chain(name: str) -> tuple[nn.Module, Tensor]:
    """Return three layers, the second one of its own kind, of which the first has two dead neurons, and their input."""
    torch.manual_seed(0)
    first = nn.Linear(8, 8)
    parts = {"a": first, "b": Own((MIXED | PLAIN)[name], first), "c": nn.Linear(8, 3)}
    model = Net(lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))), **parts)
    model.a.bias.detach()[:2] = -100
    return model, torch.randn(32, 8)


@pytest.mark.parametrize("name", MIXED)
def test_what_feeds_a_layer_of_more_than_its_weight_is_left_alone(name: str) -> None:
    model, x = chain(name)
    before = model(x).detach()
    writer = recycled_once(model, x)
    assert not [event for event in writer.named("redo") if "a" in event["neurons"]]
    reasons = {event["layer"]: event["reason"] for event in writer.named("redo_skipped")}
    assert "b computes with" in reasons["a"] or "also taken by" in reasons["a"]
    torch.testing.assert_close(model(x), before)
    wired = wiring(model, x)
    assert any("computes with" in remark for remark in wired.layers["b"].remarks)
    assert recalled(as_data(wired), dict(model.named_modules())).layers["b"].besides == wired.layers["b"].besides


@pytest.mark.parametrize("name", PLAIN)
def test_a_layer_of_its_own_kind_with_a_plain_weight_is_none_of_these(name: str) -> None:
    model, x = chain(name)
    before = model(x).detach()
    assert recycled_once(model, x).named("redo")[0]["neurons"]["a"] == [0, 1]
    torch.testing.assert_close(model(x), before)


def looked_up(s: Any, x: Tensor) -> Tensor:
    """Begin with rows of the last layer's weight."""
    return s.c(F.relu(s.b(F.relu(s.a(F.embedding(x, s.c.weight))))))


def packed(s: Any, x: Tensor) -> Tensor:
    """Copy the last layer's weight into a part of another one."""
    both = torch.zeros(12, 8)
    both[:8] = s.c.weight
    return s.c(F.relu(s.b(F.relu(s.a(both[x])))))


ROWS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "looked up": looked_up,
    "by index": lambda s, x: s.c(F.relu(s.b(F.relu(s.a(F.layer_norm(s.c.weight[x], (8,))))))),
    "of a norm module": lambda s, x: s.c(F.relu(s.b(F.relu(s.a(s.norm(s.c.weight[x])))))),
    "product": lambda s, x: s.c(F.relu(s.b(F.relu(s.a(F.one_hot(x, 8).float() @ s.c.weight))))),
    "packed": packed,
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_a_weight_that_are_an_input_are_a_use_of_it(name: str) -> None:
    torch.manual_seed(0)
    norm = {"norm": nn.LayerNorm(8)} if "norm" in name else {}
    model, x = Net(ROWS[name], **models.linears(8, 8, 8, 8), **norm), torch.arange(32) % 8
    model.b.bias.detach()[:2] = -100
    before = model(x).detach()
    assert "the weights of c are also taken by" in recycled_once(model, x).named("redo_skipped")[0]["reason"]
    torch.testing.assert_close(model(x), before)


def test_a_use_in_a_pass_that_does_not_call_the_layer_is_one_too() -> None:
    parts = models.linears(8, 8, 8)
    model = Net(lambda s, x, turned: F.linear(s.b(x), s.a.weight.T) if turned else s.b(F.relu(s.a(x))), **parts)
    x = torch.randn(32, 8)
    for order in ((False, True), (True, False)):
        one, other = (wiring(model, x, turned) for turned in order)
        assert one.joined(other).layers["a"].borrowed_by


@pytest.mark.parametrize("place", ["forward", "hook", "loss"])
def test_numbers_that_a_model_logs_of_its_weights_are_no_use_of_them(place: str) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = F.relu(s.a(x))
        s.ratio = h.norm() / s.a.weight.norm()
        y = s.b(h)
        return y.square().mean() + 1e-3 * s.a.weight.square().sum() if place == "loss" else y

    model = Net(forward, **models.linears(8, 8, 8))
    if place == "hook":
        model.a.register_forward_hook(lambda s, args, y: setattr(s, "size", y.norm() / s.weight.norm()))
    layer = wiring(model, torch.randn(32, 8)).layers["a"]
    assert not layer.borrowed_by
    assert not layer.besides


def test_weights_that_share_their_memory_with_others_are_told_apart() -> None:
    model, x = Decoded(lambda h, weight: h), torch.randn(32, 8)
    model.gain = nn.Parameter(torch.ones(12, 12))
    model.decode = lambda h, weight: h @ model.gain
    Flat(list(model.parameters()))
    assert not any(layer.borrowed_by for layer in wiring(model, x).layers.values())
