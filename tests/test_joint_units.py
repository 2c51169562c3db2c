"""Linears that are added or multiplied before one activation are one hidden layer: read behind it, recycled whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from models import Net
from test_interventions import plain_loop
from torch import Tensor, nn

from plasticity import measure, wiring
from plasticity.interventions import ReDo, ReGraMa
from plasticity.interventions.recycling import Recycling

pytestmark = pytest.mark.usefixtures("everywhere")

DEAD = [0, 3]
Forward = Callable[[Any, Tensor], Tensor]


def unit(forward: Forward, *summands: str) -> tuple[Forward, tuple[str, ...]]:
    """Return how a model computes its hidden units, and the layers whose neurons they are sums of."""
    return forward, summands


def recurrent(s: Any, x: Tensor) -> Tensor:
    """Return the states of two steps, one after the other."""
    first = torch.relu(s.f(x) + s.u(torch.zeros(len(x), 6)))
    return torch.relu(s.f(x) + s.u(first))


SUMS: dict[str, tuple[Forward, tuple[str, ...]]] = {
    "two inputs": unit(lambda s, x: F.relu(s.f(x[:, :4]) + s.k(x[:, 4:])), "f", "k"),
    "activation module": unit(lambda s, x: s.act(s.f(x[:, :4]) + s.k(x[:, 4:])), "f", "k"),
    "in place": unit(lambda s, x: F.relu_(s.f(x[:, :4]).add_(s.k(x[:, 4:]))), "f", "k"),
    "norm after the sum": unit(lambda s, x: F.relu(s.norm(s.f(x[:, :4]) + s.k(x[:, 4:]))), "f", "k"),
    "three": unit(lambda s, x: F.relu(sum([s.f(x[:, :4]), s.k(x[:, 4:]), s.u(x)])), "f", "k", "u"),
    "stacked": unit(lambda s, x: F.relu(torch.stack([s.f(x[:, :4]), s.k(x[:, 4:])]).sum(0)), "f", "k"),
    "mean of a stack": unit(lambda s, x: F.relu(torch.stack([s.f(x[:, :4]), s.k(x[:, 4:])], 1).mean(1)), "f", "k"),
    "weighted": unit(lambda s, x: F.relu(s.f(x[:, :4]) - 0.5 * s.k(x[:, 4:])), "f", "k"),
    "low-rank adapter": unit(lambda s, x: F.relu(s.u(x) + 2 * s.k(s.a(x))), "u", "k"),
    "graph layer": unit(lambda s, x: F.relu(s.u(x.roll(1, 0) + x.roll(-1, 0)) + s.v(x)), "u", "v"),
    "maxout": unit(lambda s, x: F.relu(torch.maximum(s.f(x[:, :4]), s.k(x[:, 4:]))), "f", "k"),
    "silu by hand": unit(lambda s, x: (lambda z: z * z.sigmoid())(s.f(x[:, :4]) + s.k(x[:, 4:])), "f", "k"),
    "the input is added": unit(lambda s, x: F.relu(s.u(x) + s.v(x) + x), "u", "v"),
    "low-rank parameters": unit(lambda s, x: F.relu(s.u(x) + x @ s.right @ s.left), "u"),
    "scaled": unit(lambda s, x: F.relu(s.f(x[:, :4]) * s.k(x[:, 4:])), "f", "k"),
    "scaled and shifted": unit(lambda s, x: F.relu(s.u(x) * (1 + s.k(x[:, 4:])) + s.v(x)), "u", "k", "v"),
    "shifted and scaled": unit(lambda s, x: F.relu((s.u(x) + s.v(x)) * s.k(x[:, 4:])), "u", "v", "k"),
    "in one operation": unit(lambda s, x: F.relu(torch.addcmul(s.u(x), s.v(x), s.k(x[:, 4:]))), "u", "v", "k"),
    "norm, scaled": unit(lambda s, x: F.relu(s.norm(s.u(x)) * (1 + s.k(x[:, 4:]))), "u", "k"),
}
SCALED = [name for name in SUMS if any(word in name for word in ("scaled", "operation"))]
SIZES = {"f": (4, 6), "k": (2, 6), "u": (6, 6), "v": (6, 6), "a": (6, 2)}


def build(name: str, dead: bool = True) -> tuple[nn.Module, Tensor]:
    """Return a model in which two of six units never fire, and inputs."""
    torch.manual_seed(0)
    hidden, summands = SUMS[name]
    used = [*summands, *(["a"] if "adapter" in name else [])]
    parts: dict[str, nn.Module] = {layer: nn.Linear(*SIZES[layer]) for layer in used}
    parts |= {"norm": nn.LayerNorm(6)} if "norm" in name else {}
    model = Net(lambda s, x: s.o(hidden(s, x)), **parts, act=nn.ReLU(), o=nn.Linear(6, 3))
    if "parameters" in name:
        model.right, model.left = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 6))
    with torch.no_grad():
        for layer in summands if dead else ():
            weight, bias = parts[layer].weight, parts[layer].bias
            is_scale = layer == "k" and name in (*SCALED, "weighted")
            weight[DEAD], bias[DEAD] = 0, 0 if name == "silu by hand" or is_scale else -100
        if dead and "norm" in name:
            model.norm.bias[DEAD], model.norm.weight[DEAD] = -1, 0
    return model, torch.randn(64, 6)


@pytest.mark.parametrize("name", SUMS)
def test_every_summand_reads_as_the_units_do(name: str) -> None:
    model, x = build(name)
    hidden, summands = SUMS[name]
    units = hidden(model, x)
    found = measure(model, (x, torch.zeros(64, 3)), F.mse_loss, probes=["dormancy", "grama", "rank"])
    expected = reference.scores(reference.rows(units.detach()))
    for layer in summands:
        np.testing.assert_allclose(
            found.scores["dormancy"][layer].numpy(force=True), expected, rtol=1e-5, atol=1e-7, err_msg=layer
        )
        assert found.values["dormancy"][layer] == pytest.approx(float((units == 0).all(0).float().mean()))
        rank = reference.ranks(reference.rows(units.detach()))["effective_rank"]
        assert found.values["effective_rank"][layer] == pytest.approx(rank, rel=1e-5)
        assert found.values["grama"][layer] >= (0 if name in ("maxout", "silu by hand") else 2 / 6)
    assert found.values["dormancy"]["all"] == pytest.approx(float((units == 0).all(0).float().mean()))
    assert found.num_units == 6


@pytest.mark.parametrize("name", [name for name in SUMS if name not in ("maxout", "in place") and "norm" not in name])
def test_grama_is_that_of_the_sum(name: str) -> None:
    model, x = build(name, dead=False)
    _, summands = SUMS[name]
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(layer).register_forward_hook(lambda m, a, z, layer=layer: seen.update({layer: z}))
        for layer in summands
    ]
    out = model(x)
    gradients = torch.autograd.grad(F.mse_loss(out, torch.zeros(64, 3)), list(seen.values()))
    for handle in handles:
        handle.remove()
    found = measure(model, (x, torch.zeros(64, 3)), F.mse_loss, probes=["grama"]).scores["grama"]
    for layer, gradient in zip(seen, gradients, strict=True):
        by_hand = reference.scores(reference.rows(gradient))
        np.testing.assert_allclose(found[layer].numpy(force=True), by_hand, rtol=1e-4, atol=1e-7)
        if name not in SCALED:
            np.testing.assert_allclose(found[layer].numpy(force=True), found[summands[0]].numpy(force=True), rtol=1e-4)


def recycle(model: nn.Module, x: Tensor, method: Recycling) -> tuple[dict[str, Tensor], Any]:
    """Apply a method after one step that moves nothing; return what was there before, and the log."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ctx, writer = plain_loop(model, torch.optim.SGD(model.parameters(), 0.0))
    method.on_train_start(ctx)
    found = model(x)
    sum(part.square().mean() for part in (found if isinstance(found, tuple) else [found])).backward()
    ctx.optimizers["net"].step()
    method.on_train_end(ctx)
    return before, writer


def changed(model: nn.Module, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of every parameter that are others than before."""
    return {key: value != before[key] for key, value in model.state_dict().items() if not value.equal(before[key])}


@pytest.mark.parametrize("outgoing", ["zero", "keep"])
@pytest.mark.parametrize("method", [ReDo, ReGraMa])
@pytest.mark.parametrize("name", [name for name in SUMS if name != "silu by hand"])
def test_units_are_recycled_in_all_their_layers(name: str, method: type[Recycling], outgoing: Any) -> None:
    if (name, method) == ("maxout", ReGraMa):
        pytest.skip("of a maximum, one summand has all the gradient")
    model, x = build(name)
    hidden, summands = SUMS[name]
    out, dead = model(x).detach(), (hidden(model, x) == 0).all(0).nonzero().flatten().tolist()
    assert {*DEAD} <= {*dead}
    before, writer = recycle(model, x, method(every=1, threshold=0.0, outgoing=outgoing, norms=False))
    assert writer.named(method.NAME)[0]["neurons"] == dict.fromkeys(summands, dead)
    entries = changed(model, before)
    for layer in summands:
        rows = entries.pop(f"{layer}.weight")
        assert rows.all(1).nonzero().flatten().tolist() == rows.any(1).nonzero().flatten().tolist() == dead
        assert entries.pop(f"{layer}.bias", torch.zeros(6)).nonzero().flatten().tolist() in (dead, [])
    if outgoing == "zero":
        assert entries.pop("o.weight").any(0).nonzero().flatten().tolist() == dead
        assert not model.o.weight[:, dead].any()
        if "norm" not in name:  # its statistics tie neurons together
            torch.testing.assert_close(model(x).detach(), out)
    assert entries.keys() <= {"norm.weight", "norm.bias"}


def test_a_recurrent_cell_is_one_layer() -> None:
    torch.manual_seed(0)
    model, x = Net(lambda s, x: s.o(recurrent(s, x)), f=nn.Linear(4, 6), u=nn.Linear(6, 6), o=nn.Linear(6, 3)), None
    with torch.no_grad():
        model.f.bias[DEAD] = -100
    x = torch.randn(64, 4)
    found = measure(model, x, probes=["dormancy"])
    assert {layer: found.values["dormancy"][layer] for layer in ("f", "u", "all")} == dict.fromkeys(
        ("f", "u", "all"), pytest.approx(2 / 6)
    )
    before, writer = recycle(model, x, ReDo(every=1, threshold=0.0))
    assert writer.named("redo")[0]["neurons"] == {"f": DEAD, "u": DEAD}
    entries = changed(model, before)
    assert entries["o.weight"].any(0).nonzero().flatten().tolist() == DEAD
    rows = torch.zeros(6, 6, dtype=torch.bool)
    rows[DEAD] = rows[:, DEAD] = True
    assert torch.equal(entries["u.weight"] | (model.u.weight == 0), rows)
    assert not model.u.weight[:, DEAD].any()


HALVES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "slices": lambda z: (z[:, :6], z[:, 6:]),
    "chunks": lambda z: z.chunk(2, -1),  # type: ignore[dict-item, return-value]
    "every other one": lambda z: (z[:, ::2], z[:, 1::2]),
    "viewed": lambda z: z.view(-1, 2, 6).unbind(1),  # type: ignore[dict-item, return-value]
    "back to front": lambda z: (z[:, :6], z[:, 6:].flip(-1)),
}


@pytest.mark.parametrize("name", HALVES)
def test_parts_of_one_layer_that_are_added_are_units_too(name: str) -> None:
    torch.manual_seed(0)
    halves = HALVES[name]
    model = Net(lambda s, x: s.o(F.relu(sum(halves(s.w(x))))), w=nn.Linear(4, 12), o=nn.Linear(6, 3))
    x, numbers = torch.randn(64, 4), halves(torch.arange(12)[None])
    dead = sorted(torch.stack([part[0, DEAD] for part in numbers]).flatten().tolist())
    with torch.no_grad():
        model.w.weight[dead], model.w.bias[dead] = 0, -1
    units, out = F.relu(sum(halves(model.w(x)))).detach(), model(x).detach()
    found = measure(model, x, probes=["dormancy"])
    expected = np.empty(12)
    for part in numbers:
        expected[part[0].numpy(force=True)] = reference.scores(reference.rows(units))
    np.testing.assert_allclose(found.scores["dormancy"]["w"].numpy(force=True), expected, rtol=1e-5)
    assert found.num_units == 6
    before, writer = recycle(model, x, ReDo(every=1, threshold=0.0))
    assert writer.named("redo")[0]["neurons"] == {"w": dead}
    entries = changed(model, before)
    assert entries["w.weight"].any(1).nonzero().flatten().tolist() == dead
    assert entries["o.weight"].any(0).nonzero().flatten().tolist() == DEAD
    torch.testing.assert_close(model(x).detach(), out)


@pytest.mark.parametrize("kind", ["layer", "table"])
def test_channels_that_a_task_scales_and_shifts_are_read_behind_both(kind: str) -> None:
    torch.manual_seed(0)

    def channels(s: Any, x: Tensor) -> Tensor:
        tasks = torch.arange(len(x)) % 3
        scale, shift = s.task(F.one_hot(tasks, 3).float() if kind == "layer" else tasks).chunk(2, -1)
        return F.relu(s.conv(x) * (1 + scale[..., None, None]) + shift[..., None, None])

    task = nn.Linear(3, 12) if kind == "layer" else nn.Embedding(3, 12)
    parts = {"conv": nn.Conv2d(2, 6, 3), "task": task, "o": nn.Linear(6, 3)}
    model, x = Net(lambda s, x: s.o(channels(s, x).mean((2, 3))), **parts), torch.randn(12, 2, 5, 5)
    with torch.no_grad():
        task.weight.mul_(0.01)
        model.conv.weight[DEAD], model.conv.bias[DEAD] = 0, -100
    units, out = channels(model, x).detach(), model(x).detach()
    both = {"conv": DEAD} | ({"task": [*DEAD, *(6 + i for i in DEAD)]} if kind == "layer" else {})
    found = measure(model, x, probes=["dormancy"])
    expected = reference.scores(reference.rows(units, 1))
    np.testing.assert_allclose(found.scores["dormancy"]["conv"].numpy(force=True), expected, rtol=1e-5, atol=1e-7)
    assert found.num_units == 6
    _, writer = recycle(model, x, ReDo(every=1, threshold=0.0))
    assert writer.named("redo")[0]["neurons"] == both
    torch.testing.assert_close(model(x).detach(), out)


class Block(nn.Module):
    """A residual block whose shortcut is a convolution: two convolutions into one activation, with norms between."""

    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.shortcut, self.one, self.two = nn.Conv2d(3, 6, 1), norm(), norm()
        self.o = nn.Linear(6, 2)

    def units(self, x: Tensor) -> Tensor:
        """Return what the activation after the sum gives."""
        return F.relu(self.one(self.b(F.relu(self.a(x)))) + self.two(self.shortcut(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Take the mean over space, and classify."""
        return self.o(self.units(x).mean((2, 3)))


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "plain": nn.Identity,
    "batch norm": lambda: nn.BatchNorm2d(6),
    "group norm": lambda: nn.GroupNorm(2, 6),
    "instance norm": lambda: nn.InstanceNorm2d(6, affine=True),
    "dropout": lambda: nn.Dropout(0.0),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_shortcut_with_weights_and_its_block_are_one_layer(name: str) -> None:
    torch.manual_seed(0)
    model, x = Block(BLOCKS[name]).eval(), torch.randn(16, 3, 5, 5)
    with torch.no_grad():
        for layer in (model.b, model.shortcut):
            layer.weight[DEAD], layer.bias[DEAD] = 0, -1
        for norm in (model.one, model.two):
            if getattr(norm, "weight", None) is not None:
                norm.weight[DEAD], norm.bias[DEAD] = 0, -1
    units, out = model.units(x).detach(), model(x).detach()
    off = (units == 0).all(0).all(-1).all(-1).nonzero().flatten().tolist()
    found = measure(model, (x, torch.zeros(16, 2)), F.mse_loss, probes=["dormancy", "grama"])
    for layer in ("b", "shortcut"):
        scores = found.scores["dormancy"][layer].numpy(force=True)
        np.testing.assert_allclose(scores, reference.scores(reference.rows(units, 1)), rtol=1e-5, atol=1e-7)
        assert (found.scores["grama"][layer] == 0).nonzero().flatten().tolist() == off
    assert found.num_units == 12
    _, writer = recycle(model, x, ReDo(every=1, threshold=0.0))
    neurons = writer.named("redo")[0]["neurons"]
    assert neurons["b"] == neurons["shortcut"] == off
    assert not model.o.weight[:, off].any()
    if name != "group norm":  # its statistics tie neurons together
        torch.testing.assert_close(model(x).detach(), out)


APART: dict[str, tuple[Forward, str]] = {
    "taken up alone, too": (lambda s, x: (lambda z: s.o(F.relu(z + s.u(x))) + s.p(z))(s.v(x)), "stream"),
    "a residual stream": (lambda s, x: (lambda z: s.o(F.relu(z + s.u(F.relu(s.w(z))))))(s.v(x)), "stream"),
    "returned, too": (lambda s, x: (lambda z: (s.o(F.relu(z + s.u(x))), z))(s.v(x)), "stream"),
    "without activation": (lambda s, x: s.o(s.v(x) + s.u(x)), "stream"),
    "scaled and shifted, without": (lambda s, x: s.o(s.v(x) * s.w(x) + s.u(x)), "stream"),
    "activated before": (lambda s, x: s.o(F.relu(s.v(x)) + F.relu(s.u(x))), "stream"),
    "broadcast": (lambda s, x: s.o(F.relu(s.v(x) + s.one(x))), "are added to several of"),
    "alone in another call": (lambda s, x: s.o(F.relu(s.v(x) + s.u(x)) + F.relu(s.v(-x))), "stream"),
}


@pytest.mark.parametrize("outgoing", ["zero", "keep"])
@pytest.mark.parametrize("name", APART)
def test_what_is_no_unit_of_its_own_is_left_alone_with_a_reason(name: str, outgoing: Any) -> None:
    torch.manual_seed(0)
    forward, word = APART[name]
    used = [part for part in ("v", "u", "w", "p", "one") if f"s.{part}(" in source(name)]
    sizes = {"v": (6, 6), "u": (6, 6), "w": (6, 6), "p": (6, 3), "one": (6, 1)}
    model = Net(forward, **{part: nn.Linear(*sizes[part]) for part in used}, o=nn.Linear(6, 3))
    with torch.no_grad():
        for layer in ("v", "u") if "u" in used else ("v",):
            model.get_submodule(layer).weight[DEAD] = 0
            model.get_submodule(layer).bias[DEAD] = -100 if word != "stream" or "activated" in name else 0
    x = torch.randn(64, 6)
    layers = wiring(model, x).layers
    before, writer = recycle(model, x, ReDo(every=1, threshold=0.0, outgoing=outgoing))
    if outgoing == "zero" or name == "broadcast":
        assert changed(model, before).keys() <= {"w.weight", "w.bias", "u.weight"}
        reasons = " ".join(event["reason"] for event in writer.named("redo_skipped"))
        assert word in reasons
    if word == "stream":
        assert layers["v"].writes_to_stream
    units = [consumer for consumer in layers["v"].consumers if consumer.joined and not consumer.summed]
    assert bool(units) == (name == "broadcast")


def source(name: str) -> str:
    """Return the names of the layers that a model of :data:`APART` calls."""
    return " ".join(f"s.{part}(" for part in APART[name][0].__code__.co_names + tuple(_inner(APART[name][0])))


def _inner(function: Any) -> list[str]:
    """Return the names that the functions inside a function use."""
    return [n for c in function.__code__.co_consts if hasattr(c, "co_names") for n in c.co_names]
