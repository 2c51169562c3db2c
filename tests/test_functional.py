"""Layers that run without a module's call: slices of parameters, and weights that a function takes up."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from models import Net, linears
from test_interventions import plain_loop, recycled_once
from torch import Tensor, nn

from plasticity import Monitor, measure, watch, wiring
from plasticity.interventions import ReDo, ReGraMa
from plasticity.interventions.recycling import Recycling


class Stack(nn.Module):
    """Three networks in two parameters; ``product`` says how an input meets a weight."""

    def __init__(self, product: Callable[[Tensor, Tensor, Tensor], Tensor], neurons_last: bool = True) -> None:
        super().__init__()
        shapes = ((4, 6), (6, 2)) if neurons_last else ((6, 4), (2, 6))
        self.up, self.down = (nn.Parameter(torch.randn(3, *shape)) for shape in shapes)
        self.bias = nn.Parameter(torch.randn(3, 1, 6))
        self.product, self.neurons_last = product, neurons_last

    def forward(self, x: Tensor) -> Tensor:
        if self.product in EINSUMS.values():
            return self.product(self, x)
        h = self.product(x.expand(3, *x.shape), self.up, self.bias)
        return self.product(F.relu(h), self.down, torch.zeros(3, 1, 2)).sum(0)

    def by_hand(self, x: Tensor) -> list[Tensor]:
        """Return the linear outputs of the three networks."""
        up = self.up if self.neurons_last else self.up.mT
        return [x @ up[i] + self.bias[i] for i in range(3)]


class Experts(nn.Module):
    """Gated experts in two parameters, as transformers has them; ``dead`` experts get no sample."""

    def __init__(self, grouped: bool, dead: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(4, 16, 4)), nn.Parameter(torch.randn(4, 4, 8))
        self.act, self.grouped, self.dead = nn.SiLU(), grouped, dead

    def chosen(self, x: Tensor) -> Tensor:
        """Return the expert of every sample."""
        alive = torch.tensor([i for i in range(4) if i not in self.dead])
        return alive[(x.sum(-1) * 100).long() % len(alive)]

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.chosen(x)
        if self.grouped:
            order = chosen.argsort(stable=True)
            ends = torch.bincount(chosen, minlength=4).cumsum(0).int()
            gate, up = F.grouped_mm(x[order], self.up.mT, offs=ends).chunk(2, -1)
            return F.grouped_mm(self.act(gate) * up, self.down.mT, offs=ends)[order.argsort()]
        out = torch.zeros_like(x)
        for i in chosen.unique():
            gate, up = F.linear(x[chosen == i], self.up[i]).chunk(2, -1)
            out = out.index_add(0, (chosen == i).nonzero()[:, 0], F.linear(self.act(gate) * up, self.down[i]))
        return out


PRODUCTS: dict[str, Callable[[], Stack]] = {
    "bmm": lambda: Stack(lambda x, w, b: torch.bmm(x, w) + b),
    "matmul": lambda: Stack(lambda x, w, b: x @ w + b),
    "baddbmm": lambda: Stack(lambda x, w, b: torch.baddbmm(b, x, w)),
    "transposed": lambda: Stack(lambda x, w, b: x @ w.transpose(1, 2) + b, neurons_last=False),
    "one by one": lambda: Stack(lambda x, w, b: torch.stack([x[i] @ w[i] + b[i] for i in range(3)])),
    "linear": lambda: Stack(
        lambda x, w, b: torch.stack([F.linear(x[i], w[i], b[i, 0]) for i in range(3)]), neurons_last=False
    ),
}


EINSUMS: dict[str, Callable[[Stack, Tensor], Tensor]] = {
    "einsum": lambda s, x: torch.einsum(
        "ebi,eio->ebo", F.relu(torch.einsum("bi,eio->ebo", x, s.up) + s.bias), s.down
    ).sum(0),
    "einsum, neurons first": lambda s, x: torch.einsum(
        "ebi,eoi->ebo", F.relu(torch.einsum("...i,eoi->e...o", x, s.up) + s.bias), s.down
    ).sum(0),
    "einsum, members second": lambda s, x: torch.einsum(
        "bni,nio->bno", F.relu(torch.einsum("bi,nio->bno", x, s.up) + s.bias.mT[..., 0]), s.down
    ).sum(1),
    "einsum, weight first": lambda s, x: torch.einsum(
        "nio,bni->bno", s.down, F.relu(torch.einsum("nio,bi->bno", s.up, x) + s.bias[:, 0])
    ).sum(1),
    "matmul, members second": lambda s, x: (F.relu(x[:, None, None].expand(-1, 3, 1, 4) @ s.up + s.bias) @ s.down).sum(
        (1, 2)
    ),
}
PRODUCTS |= {
    name: partial(Stack, product, neurons_last="neurons first" not in name) for name, product in EINSUMS.items()
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_network_of_a_stack_is_a_layer(name: str) -> None:
    torch.manual_seed(0)
    model, x = PRODUCTS[name](), torch.randn(32, 4)
    with torch.no_grad():
        model.bias[1, 0, :3] = -100
    loss = lambda out, y: ((out - y) ** 2).mean()  # noqa: E731
    found = measure(model, (x, torch.zeros(32, 2)), loss, probes=["dormancy", "grama", "rank"])
    linear = model.by_hand(x)
    outs = [F.relu(z) @ (model.down[i] if model.neurons_last else model.down[i].T) for i, z in enumerate(linear)]
    gradients = torch.autograd.grad(loss(sum(outs), torch.zeros(32, 2)), linear)
    for i, (z, gradient) in enumerate(zip(linear, gradients, strict=True)):
        h = reference.rows(F.relu(z))
        np.testing.assert_allclose(found.scores["dormancy"][f"up.{i}"], reference.scores(h), rtol=1e-5)
        by_hand = reference.scores(reference.rows(gradient))
        np.testing.assert_allclose(found.scores["grama"][f"up.{i}"], by_hand, rtol=1e-5, atol=1e-6)
        assert found.values["effective_rank"][f"up.{i}"] == pytest.approx(
            reference.ranks(h)["effective_rank"], rel=1e-5
        )
    assert found.values["dormancy"]["up.1"] == 0.5


@pytest.mark.parametrize("dead", [(), (0,), (1, 3)])
@pytest.mark.parametrize("grouped", [False, True])
def test_every_expert_is_a_layer_and_those_without_samples_have_no_value(grouped: bool, dead: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = Net(lambda s, x: s.o(x + s.experts(x)), experts=Experts(grouped, dead), o=nn.Linear(4, 1))
    x = torch.randn(64, 4)
    found, chosen = measure(model, x, probes=["dormancy"]), model.experts.chosen(x)
    for i in range(4):
        gate, up = F.linear(x[chosen == i], model.experts.up[i]).chunk(2, -1)
        if i in dead:
            assert f"experts.up.{i}" not in found.scores["dormancy"]
        else:
            expected = np.tile(reference.scores(reference.rows(F.silu(gate) * up)), 2)
            np.testing.assert_allclose(found.scores["dormancy"][f"experts.up.{i}"], expected, rtol=1e-5)


@pytest.mark.parametrize("grouped", [False, True])
def test_experts_that_get_samples_later_are_measured_then(grouped: bool) -> None:
    torch.manual_seed(0)
    model = Net(lambda s, x: s.o(x + s.experts(x)), experts=Experts(grouped), o=nn.Linear(4, 1))
    x, optimizer = torch.randn(64, 4), torch.optim.SGD(model.parameters(), 0.0)
    with watch(model, optimizer, every=1, log=None, strict=True, probes=["dormancy", "grama"]) as session:
        for dead in ((0, 1), (2, 3), (0,)):
            model.experts.dead = dead
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            scores = session.last["model"].scores
            measured = {int(name[-1]) for name in scores["grama"] if name.startswith("experts.up")}
            assert measured == {0, 1, 2, 3} - {*dead}
            assert len({name for name in scores["dormancy"] if name.startswith("experts.down")}) == len(measured)


def test_the_bits_of_a_stack_and_of_experts_stay() -> None:
    for build in (*PRODUCTS.values(), lambda: Experts(True), lambda: Experts(False)):
        finals = []
        for watched in (False, True):
            torch.manual_seed(0)
            model = build()
            x, optimizer = torch.randn(64, 4), torch.optim.Adam(model.parameters())
            session = (
                watch(model, optimizer, every=1, log=None, strict=True, probes=["dormancy", "grama"])
                if watched
                else None
            )
            for _ in range(3):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
            if session:
                session.close()
            finals.append(model.state_dict())
        torch.testing.assert_close(*finals, rtol=0, atol=0)


class Vectorised(nn.Module):
    """A layer of several networks, as the critics of offline RL have it."""

    def __init__(self, inputs: int, outputs: int, members: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(members, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


CRITICS: dict[str, Callable[[], list[nn.Module]]] = {
    "modules": lambda: [Vectorised(4, 6, 3), nn.ReLU(), Vectorised(6, 1, 3)],
    "a norm between": lambda: [Vectorised(4, 6, 3), nn.LayerNorm(6), nn.ReLU(), Vectorised(6, 1, 3)],
    "two hidden layers": lambda: [
        *(Vectorised(4, 6, 3), nn.Tanh(), Vectorised(6, 6, 3), nn.ReLU(), Vectorised(6, 1, 3)),
    ],
    "two members": lambda: [Vectorised(4, 6, 2), nn.ELU(), Vectorised(6, 2, 2)],
    "as many members as neurons": lambda: [
        *(Vectorised(4, 6, 6), nn.ReLU(), Vectorised(6, 6, 6), nn.ReLU(), Vectorised(6, 1, 6)),
    ],
}


@pytest.mark.parametrize("name", CRITICS)
def test_every_member_of_a_vectorised_critic_is_measured_and_recycled(name: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(*CRITICS[name]()), torch.randn(32, 4)
    members = len(model[0].weight)
    with torch.no_grad():
        model[0].weight[1, :, :2], model[0].bias[1, 0, :2] = 0, 0 if "ReLU" not in str(model[1]) else -1
        if "norm" in name:
            model[1].weight[:2], model[1].bias[:2] = 0, -1
    x = x.expand(members, *x.shape)
    seen: dict[int, Tensor] = {}
    handles = [m.register_forward_hook(lambda m, a, z, n=n: seen.update({n: z})) for n, m in enumerate(model)]
    before_activation = [n for n, m in enumerate(model) if type(m).__name__ in ("ReLU", "Tanh", "ELU")]
    out = model(x)
    gradients = torch.autograd.grad(out.square().mean(), [seen[n - 1] for n in before_activation])
    units = {n: seen[n].detach().clone() for n in before_activation}
    for handle in handles:
        handle.remove()
    found = measure(model, (x, None), lambda out, _: out.square().mean(), probes=["dormancy", "grama"])
    for n, gradient in zip(before_activation, gradients, strict=True):
        layer = max(i for i in range(n) if isinstance(model[i], Vectorised))
        for member in range(members):
            by_hand = reference.scores(reference.rows(units[n][member]))
            score = found.scores["dormancy"][f"{layer}.weight.{member}"].numpy(force=True)
            np.testing.assert_allclose(score, by_hand, rtol=1e-5, atol=1e-7)
            by_hand = reference.scores(reference.rows(gradient[member]))
            score = found.scores["grama"][f"{layer}.weight.{member}"].numpy(force=True)
            np.testing.assert_allclose(score, by_hand, rtol=1e-4, atol=1e-6)
    assert {entry.reason for entry in found.unmeasured} == {"output layer"}
    writer = recycled_once(model, x)
    neurons = writer.named("redo")[0]["neurons"]
    assert {0, 1} <= {*neurons["0.weight.1"]}
    if "norm" not in name:  # its statistics tie neurons together
        torch.testing.assert_close(model(x), out)


BY_FUNCTION: dict[str, Callable[..., Tensor]] = {
    "linear": lambda s, x: s.c(F.relu(F.linear(F.relu(s.a(x)), s.b.weight, s.b.bias))),
    "named": lambda s, x: s.c(F.relu(F.linear(input=F.relu(s.a(x)), weight=s.b.weight, bias=s.b.bias))),
    "addmm": lambda s, x: s.c(F.relu(torch.addmm(s.b.bias, F.relu(s.a(x)), s.b.weight.T))),
    "matmul": lambda s, x: s.c(F.relu(F.relu(s.a(x)) @ s.b.weight.T + s.b.bias)),
    "parameters": lambda s, x: s.c(F.relu(F.linear(F.relu(s.a(x)), *s.b.parameters()))),
}


@pytest.mark.parametrize("name", BY_FUNCTION)
def test_a_layer_whose_weight_is_given_to_a_function_is_measured_and_recycled(name: str) -> None:
    torch.manual_seed(0)
    model, x = Net(BY_FUNCTION[name], **linears(4, 7, 6, 2)), torch.randn(32, 4)
    assert [consumer.layer for consumer in wiring(model, x).layers["a"].consumers] == ["b"]
    with torch.no_grad():
        model.a.bias[:2], model.b.bias[:] = -100, 1
        model.b.bias[3:5] = -100
    before, old = model(x).detach(), {key: value.clone() for key, value in model.state_dict().items()}
    writer = recycled_once(model, x)
    assert writer.named("redo")[0]["neurons"] == {"a": [0, 1], "b": [3, 4]}
    torch.testing.assert_close(model(x).detach(), before)
    assert not model.b.weight[[0, 1, 2, 5]][:, :2].any()
    assert not model.c.weight[:, 3:5].any()
    assert torch.equal(model.a.weight[2:], old["a.weight"][2:])


def test_a_weight_that_is_used_the_other_way_round_is_no_layer() -> None:
    model = Net(lambda s, x: F.linear(F.relu(s.a(x)), s.a.weight.T), a=nn.Linear(6, 6))
    layer = wiring(model, torch.randn(8, 6)).layers["a"]
    assert layer.num_calls == 1
    assert "weights of no Linear or Conv layer" in layer.unresolved[0]


@pytest.mark.parametrize("outgoing", ["zero", "keep"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_neuron_of_one_network_of_a_stack_is_recycled_and_nothing_else(name: str, outgoing: Any) -> None:
    torch.manual_seed(0)
    model, x, dead = PRODUCTS[name](), torch.randn(32, 4), [0, 1, 2]
    with torch.no_grad():
        model.bias[1, 0, dead] = -100
    out, before = model(x).detach(), {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), 0.0)
    ctx, writer = plain_loop(model, optimizer)
    redo = ReDo(every=1, threshold=0.0, outgoing=outgoing)
    redo.on_train_start(ctx)
    model(x).square().mean().backward()
    gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    optimizer.step()
    redo.on_train_end(ctx)
    assert writer.named("redo")[0]["neurons"] == {"up.1": dead}
    edited = {key: torch.zeros_like(value, dtype=torch.bool) for key, value in before.items()}
    rows, columns = (edited["up"].mT, edited["down"].mT) if model.neurons_last else (edited["up"], edited["down"])
    rows[1, dead], edited["bias"][1, 0, dead] = True, True
    if outgoing == "zero":
        columns[1][:, dead] = True
        assert not model.down[edited["down"]].any()
        assert torch.equal(model(x).detach(), out)
    for key, value in model.named_parameters():
        assert torch.equal(value[~edited[key]], before[key][~edited[key]]), key
        assert not value.grad[edited[key]].any()
        assert not optimizer.state[value]["exp_avg_sq"][edited[key]].any()
        assert torch.equal(value.grad[~edited[key]], gradients[key][~edited[key]])
        moved = value[edited[key]] != before[key][edited[key]]
        assert moved.all() or key == "bias"  # some of its first values are alike


@pytest.mark.parametrize("method", [ReDo, ReGraMa])
@pytest.mark.parametrize("dead", [(), (0,), (1, 3)])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_units_of_experts_are_recycled(grouped: bool, dead: tuple[int, ...], method: type[Recycling]) -> None:
    torch.manual_seed(0)
    model = Net(lambda s, x: s.o(x + s.experts(x)), experts=Experts(grouped, dead), o=nn.Linear(4, 1))
    x, shut = torch.randn(64, 4), [1, 5]
    with torch.no_grad():
        model.experts.up[:, shut] = 0
        model.experts.up[:, [8 + unit for unit in shut]] = 0
    out, before = model(x).detach(), {key: value.clone() for key, value in model.state_dict().items()}
    ctx, writer = plain_loop(model, torch.optim.SGD(model.parameters(), 0.0))
    redo = method(every=1, threshold=0.0)
    redo.on_train_start(ctx)
    model(x).square().mean().backward()
    ctx.optimizers["net"].step()
    redo.on_train_end(ctx)
    ran = [i for i in range(4) if i not in dead]
    both = [*shut, *(8 + unit for unit in shut)]
    assert writer.named(method.NAME)[0]["neurons"] == {f"experts.up.{i}": both for i in ran}
    rows = (model.experts.up != before["experts.up"]).all(2)
    columns = (model.experts.down != before["experts.down"]).all(1)
    for i in range(4):
        assert rows[i].nonzero().flatten().tolist() == (both if i in ran else [])
        assert columns[i].nonzero().flatten().tolist() == (shut if i in ran else [])
        assert not model.experts.down[i][:, shut].any() or i in dead
    assert torch.equal(rows, (model.experts.up != before["experts.up"]).any(2))
    assert torch.equal(columns, (model.experts.down != before["experts.down"]).any(1))
    torch.testing.assert_close(model(x).detach(), out)


@pytest.mark.parametrize("init", ["own", "he_uniform", "xavier_uniform", "lecun_normal"])
def test_a_fresh_row_of_a_slice_is_drawn_as_its_first_values_were(init: Any) -> None:
    torch.manual_seed(0)
    model = Stack(PRODUCTS["bmm"]().product)
    model.up, model.down = nn.Parameter(torch.empty(3, 50, 400)), nn.Parameter(torch.randn(3, 400, 2))
    model.bias = nn.Parameter(torch.zeros(3, 1, 400))
    nn.init.uniform_(model.up, -0.3, 0.3)
    ctx, writer = plain_loop(model, torch.optim.SGD(model.parameters(), 0.0))
    redo = ReDo(every=1, threshold=0.0, init=init)
    redo.on_train_start(ctx)
    with torch.no_grad():
        model.up.fill_(2.0)
        model.bias[1, 0, :200] = -1e4
    model(torch.rand(32, 50)).square().mean().backward()
    ctx.optimizers["net"].step()
    redo.on_train_end(ctx)
    assert len(writer.named("redo")[0]["neurons"]["up.1"]) == 200
    deviation = {"own": 0.3 / 3**0.5, "he_uniform": (2 / 50) ** 0.5, "xavier_uniform": (2 / 450) ** 0.5}
    expected = deviation.get(init, (1 / 50) ** 0.5)
    assert model.up[1, :, :200].std().item() == pytest.approx(expected, rel=0.03)
    assert bool((model.up[1, :, 200:] == 2).all())


def test_slices_whose_bias_is_not_known_are_left_alone_and_said_so() -> None:
    torch.manual_seed(0)
    model = PRODUCTS["bmm"]()
    model.other = nn.Parameter(torch.zeros(3, 1, 6))
    with torch.no_grad():
        model.bias[1, 0, :3] = -100
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ctx, writer = plain_loop(model, torch.optim.SGD(model.parameters(), 0.0))
    redo = ReDo(every=1, threshold=0.0)
    redo.on_train_start(ctx)
    model(torch.randn(32, 4)).square().mean().backward()
    ctx.optimizers["net"].step()
    redo.on_train_end(ctx)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert writer.named("redo_skipped")[0]["reason"] == "which of bias, other is the bias of up.1 is not known"


def test_an_optimizer_that_cannot_forget_a_slice_is_refused_at_the_start() -> None:
    model = PRODUCTS["bmm"]()
    ctx, _ = plain_loop(model, torch.optim.Adafactor(model.parameters(), 0.0))
    with pytest.raises(ValueError, match="up: Adafactor keeps row_var"):
        ReDo(every=1, threshold=0.0).on_train_start(ctx)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.some(4)
def test_no_graph_of_a_stack_is_held(name: str) -> None:
    model = PRODUCTS[name]()
    with Monitor(model, ["dormancy", "grama"], passes="training", strict=True) as monitor:
        output = model(torch.randn(32, 4))
        reference_to = weakref.ref(output)
        output.sum().backward()
        del output
        gc.collect()
        assert reference_to() is None
        assert monitor.read().num_passes == 1
