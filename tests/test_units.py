"""A neuron is a hidden unit of the function: adapters, gates and transposed weights do not change what is one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import models
import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from models import Net
from test_interventions import plain_loop
from torch import Tensor, nn

from plasticity.interventions import ReDo
from plasticity.measuring import measure
from plasticity.structure.trace import wiring

pytestmark = pytest.mark.usefixtures("everywhere")


def loss_of(output: Tensor, target: Any) -> Tensor:
    return (output - 1).square().mean()


def scores(rows: Tensor) -> np.ndarray:
    return reference.scores(reference.rows(rows))


# -- gates -------------------------------------------------------------------------------------------------------------


def two(s: Any, x: Tensor) -> Tensor:
    return s.o(F.silu(s.g(x)) * s.u(x))


def modules(s: Any, x: Tensor) -> Tensor:
    return s.o(s.act(s.g(x)) * s.u(x))


def chunked(s: Any, x: Tensor) -> Tensor:
    gate, up = s.g(x).chunk(2, -1)
    return s.o(F.gelu(gate) * up)


def glu(s: Any, x: Tensor) -> Tensor:
    return s.o(F.glu(s.g(x)))


def bilinear_gate(s: Any, x: Tensor) -> Tensor:
    return s.o(s.drop(torch.sigmoid(s.g(x)) * torch.tanh(s.u(x))))


GATES: dict[str, tuple[Callable[..., Tensor], bool, Callable[[nn.Module, Tensor], Tensor]]] = {
    "swiglu": (two, False, lambda m, x: F.silu(m.g(x)) * m.u(x)),
    "activation module": (modules, False, lambda m, x: F.relu(m.g(x)) * m.u(x)),
    "geglu, fused": (chunked, True, lambda m, x: F.gelu(m.g(x)[..., :6]) * m.g(x)[..., 6:]),
    "glu": (glu, True, lambda m, x: m.g(x)[..., :6] * torch.sigmoid(m.g(x)[..., 6:])),
    "two activations": (bilinear_gate, False, lambda m, x: torch.sigmoid(m.g(x)) * torch.tanh(m.u(x))),
}


def gated(name: str) -> nn.Module:
    """Return a gated network in which the first two units are shut."""
    torch.manual_seed(0)
    forward, fused, _ = GATES[name]
    parts: dict[str, nn.Module] = {} if fused else {"u": nn.Linear(4, 6)}
    model = Net(
        forward, g=nn.Linear(4, 12 if fused else 6), **parts, o=nn.Linear(6, 2), act=nn.ReLU(), drop=nn.Dropout(0.0)
    )
    shut = 6 if name == "glu" else 0
    with torch.no_grad():
        model.g.weight[shut : shut + 2], model.g.bias[shut : shut + 2] = 0, -1e4
    return model


@pytest.mark.parametrize("name", GATES)
def test_the_product_of_a_gated_unit_is_the_neuron(name: str) -> None:
    model, x = gated(name), torch.randn(64, 4)
    _, fused, by_hand = GATES[name]
    expected = scores(by_hand(model, x).detach())
    found = measure(model, x, probes=["dormancy", "rank"])
    parts = {"g": np.concatenate([expected, expected])} if fused else {"g": expected, "u": expected}
    assert found.scores["dormancy"].keys() == parts.keys()
    for layer, by_layer in parts.items():
        np.testing.assert_allclose(found.scores["dormancy"][layer].numpy(force=True), by_layer, rtol=1e-5, atol=1e-7)
        assert found.values["dormancy"][layer] == pytest.approx(2 / 6)
    assert found.values["dormancy"]["all"] == pytest.approx(2 / 6)


@pytest.mark.parametrize("name", GATES)
def test_gated_units_are_recycled_whole(name: str) -> None:
    model, x = gated(name), torch.randn(64, 4)
    before = model(x).detach()
    ctx, writer = plain_loop(model, torch.optim.SGD(model.parameters(), 0.0))
    redo = ReDo(every=1, threshold=0.0)
    redo.on_train_start(ctx)
    loss_of(model(x), None).backward()
    ctx.optimizers["net"].step()
    redo.on_train_end(ctx)
    fused = GATES[name][1]
    neurons = writer.named("redo")[0]["neurons"]
    assert neurons == ({"g": [0, 1, 6, 7]} if fused else {"g": [0, 1], "u": [0, 1]})
    assert torch.equal(model(x).detach(), before)
    assert all(model.get_submodule(layer).weight[rows].any(1).all() for layer, rows in neurons.items())
    assert not model.o.weight[:, :2].any()


def test_the_weights_of_a_softmax_are_no_factors_of_units() -> None:
    """They depend on all neurons: to redraw one would move all others."""
    torch.manual_seed(0)
    parts = {"f": nn.Linear(4, 6), "g": nn.Linear(4, 6), "o": nn.Linear(6, 2)}
    model = Net(lambda s, x: s.o(F.relu(s.f(x)) * s.g(x).softmax(-1)), **parts)
    x = torch.randn(64, 4)
    with torch.no_grad():
        model.f.weight[:2], model.f.bias[:2] = 0, -1
    before, gate = model(x).detach(), model.g.weight.detach().clone()
    ctx, writer = plain_loop(model, torch.optim.SGD(model.parameters(), 0.0))
    redo = ReDo(every=1, threshold=0.0)
    redo.on_train_start(ctx)
    loss_of(model(x), None).backward()
    ctx.optimizers["net"].step()
    redo.on_train_end(ctx)
    assert writer.named("redo")[0]["neurons"] == {"f": [0, 1]}
    assert torch.equal(model.g.weight, gate)
    assert torch.equal(model(x).detach(), before)


# -- adapters ----------------------------------------------------------------------------------------------------------


class Adapted(nn.Module):
    """As peft's LoRA layer: a base layer and low-rank layers whose output is added."""

    def __init__(self, base: nn.Module, rank: int = 2, start: float = 0.0) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        self.lora_B["default"].weight.data.mul_(start)
        base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Add both."""
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class Twice(Adapted):
    """An adapter around an adapter."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base, start=1.0)
        self.base_layer = Adapted(base, start=1.0)


def adapt(model: nn.Module, make: Callable[[nn.Module], nn.Module], *names: str) -> nn.Module:
    for name in names:
        setattr(model, name, make(getattr(model, name)))
    return model


ADAPTERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "at its start": lambda m: adapt(m, Adapted, "a", "b"),
    "trained": lambda m: adapt(m, lambda base: Adapted(base, start=1.0), "a", "b"),
    "one layer": lambda m: adapt(m, lambda base: Adapted(base, start=1.0), "b"),
    "output, too": lambda m: adapt(m, Adapted, "a", "b", "c"),
    "twice": lambda m: adapt(m, Twice, "a"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapted_layer_is_one_layer(name: str) -> None:
    torch.manual_seed(0)
    model, x = models.functional(), torch.randn(64, 4)
    plain = measure(model, x, probes=["dormancy", "rank"])
    model = ADAPTERS[name](model)
    h = F.relu(model.a(x))
    expected = {"a": scores(h.detach()), "b": scores(F.relu(model.b(h)).detach())}
    found = measure(model, (x, None), loss_of, probes=["dormancy", "grama", "rank"])
    assert list(found.num_neurons) == ["a", "b"]
    for layer, by_layer in expected.items():
        np.testing.assert_allclose(found.scores["dormancy"][layer].numpy(force=True), by_layer, rtol=1e-5)
    if name == "at its start":
        assert found.values["effective_rank"] == pytest.approx(plain.values["effective_rank"])
        assert found.values["dormancy"] == plain.values["dormancy"]
    assert not np.isnan(found.values["grama"]["b"])


def test_neurons_of_adapted_layers_are_not_recycled_by_half() -> None:
    model = adapt(models.functional(), lambda base: Adapted(base, start=1.0), "b").requires_grad_()
    before = {key: value.clone() for key, value in model.b.state_dict().items()}
    ctx, writer = plain_loop(model, torch.optim.SGD(model.parameters(), 0.0))
    redo = ReDo(every=1, threshold=10.0, cap=0.4)
    redo.on_train_start(ctx)
    loss_of(model(torch.randn(64, 4)), None).backward()
    ctx.optimizers["net"].step()
    redo.on_train_end(ctx)
    reasons = {event["layer"]: event["reason"] for event in writer.named("redo_skipped")}
    assert reasons.keys() == {"a", "b"}
    assert all("b has an adapter" in reason for reason in reasons.values())
    torch.testing.assert_close(model.b.state_dict(), before, rtol=0, atol=0)


# -- transposed weights, activations with parameters, complex numbers --------------------------------------------------


def by_view(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Apply a transposed Linear as GPT-2 does."""
    return torch.addmm(b, x.view(-1, x.shape[-1]), w).view(*x.shape[:-1], w.shape[1])


TRANSPOSED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "addmm": by_view,
    "matmul": lambda x, w, b: x @ w + b,
    "linear": lambda x, w, b: F.linear(x, w.T, b),
    "einsum": lambda x, w, b: torch.einsum("...i,io->...o", x, w) + b,
    "two axes": lambda x, w, b: torch.matmul(x[:, None], w).squeeze(1) + b,
}


class Conv1D(nn.Module):
    """As GPT-2 has it: a Linear with its weight transposed."""

    def __init__(self, nf: int, nx: int, way: str) -> None:
        super().__init__()
        self.nf, self.nx, self.way = nf, nx, way
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) * 0.3), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return TRANSPOSED[self.way](x, self.weight, self.bias)


def conv1ds(way: str) -> dict[str, nn.Module]:
    """Return three of them."""
    return {name: Conv1D(*size, way) for name, size in {"a": (6, 4), "b": (5, 6), "c": (2, 5)}.items()}


@pytest.mark.parametrize("way", TRANSPOSED)
def test_a_transposed_linear_is_a_linear(way: str) -> None:
    torch.manual_seed(0)
    ours = Net(lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))), **conv1ds(way))
    theirs = models.functional()
    with torch.no_grad():
        for name in "abc":
            getattr(theirs, name).weight.copy_(getattr(ours, name).weight.T)
            getattr(theirs, name).bias.copy_(getattr(ours, name).bias)
            for model in (ours, theirs):
                getattr(model, name).bias[0] = 0 if name == "c" else -9
    x, probes = torch.randn(64, 4), ["dormancy", "grama", "grama_weight", "rank"]
    a, b = (measure(model, (x, None), loss_of, probes=probes) for model in (ours, theirs))
    torch.testing.assert_close(a.scores, b.scores)
    assert all(a.values[metric] == pytest.approx(b.values[metric]) for metric in a.values)
    before, weights = ours(x).detach(), {name: getattr(ours, name).weight.clone() for name in "abc"}
    ctx, writer = plain_loop(ours, torch.optim.SGD(ours.parameters(), 0.0))
    redo = ReDo(every=1, threshold=0.0)
    redo.on_train_start(ctx)
    loss_of(ours(x), None).backward()
    ctx.optimizers["net"].step()
    redo.on_train_end(ctx)
    neurons = writer.named("redo")[0]["neurons"]
    assert 0 in neurons["a"]
    assert 0 in neurons["b"]
    torch.testing.assert_close(ours(x).detach(), before)
    for layer, cut in (("a", []), ("b", neurons["a"]), ("c", neurons["b"])):
        weight, redrawn = getattr(ours, layer).weight, neurons.get(layer, [])
        changed = torch.zeros_like(weight, dtype=torch.bool)
        changed[cut], changed[:, redrawn] = True, True
        assert torch.equal(weight != weights[layer], changed)
        assert not weight[cut].any()


@pytest.mark.parametrize("kind", ["prelu", "prelu per neuron", "rrelu", "learned swish", "snake"])
def test_activations_with_parameters(kind: str) -> None:
    torch.manual_seed(0)
    scale = nn.Parameter(torch.full((6,), 0.7))
    act: Callable[[Tensor], Tensor] = {
        "prelu": nn.PReLU(),
        "prelu per neuron": nn.PReLU(6),
        "rrelu": nn.RReLU(),
        "learned swish": lambda z: z * torch.sigmoid(scale * z),
        "snake": lambda z: z + torch.sin(scale * z) ** 2 / scale,
    }[kind]
    model = Net(lambda s, x: s.o(act(s.a(x))), a=nn.Linear(4, 6), o=nn.Linear(6, 2))
    if isinstance(act, nn.Module):
        model.act = act
    model.scale = scale
    model.eval()
    x = torch.randn(64, 4)
    found = measure(model, x, probes=["dormancy", "rank"])
    h = act(model.a(x)).detach()
    np.testing.assert_allclose(found.scores["dormancy"]["a"].numpy(force=True), scores(h), rtol=1e-5)
    assert found.values["effective_rank"]["a"] == pytest.approx(
        reference.ranks(reference.rows(h))["effective_rank"], rel=1e-4
    )
    layer = wiring(model, x).layers["a"]
    assert layer.activation is not None
    assert not layer.unresolved


SELECTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "times a comparison": lambda z: z * (z > 0),
    "times it as numbers": lambda z: z * (z > 0).float(),
    "where": lambda z: torch.where(z > 0, z, 0.0),
    "leaky where": lambda z: torch.where(z > 0, z, 0.01 * z),
    "masked_fill": lambda z: z.masked_fill(z < 0, 0.0),
    "written in place": lambda z: (lambda y: (y.__setitem__(y < 0, 0.0), y)[1])(z.clone()),
    "multiplied in place": lambda z: z.mul_(z > 0),
    "the largest two": lambda z: z * (z >= z.topk(2, -1).values[..., -1:]),
    "a band": lambda z: z * ((z > -1) & ~(z > 1)),
    "not a number": lambda z: F.relu(torch.where(z.isnan(), 0.0, z)),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_neurons_that_a_comparison_lets_through_are_activated(name: str) -> None:
    torch.manual_seed(0)
    act = SELECTIONS[name]
    model, x = Net(lambda s, x: s.o(act(s.a(x))), a=nn.Linear(4, 6), o=nn.Linear(6, 2)), torch.randn(64, 4)
    with torch.no_grad():
        model.a.weight[:2], model.a.bias[:2] = 0, 0 if "leaky" in name else -2
    h = act(model.a(x)).detach()
    found = measure(model, x, probes=["dormancy"])
    np.testing.assert_allclose(found.scores["dormancy"]["a"].numpy(force=True), scores(h), rtol=1e-5)
    assert found.values["dormancy"]["all"] == pytest.approx(float((h == 0).all(0).float().mean()))
    layer = wiring(model, x).layers["a"]
    assert layer.activation
    assert not layer.unresolved
    assert [consumer.layer for consumer in layer.consumers] == ["o"]


def test_a_gate_that_is_a_comparison_is_known_to_take_up_neurons() -> None:
    torch.manual_seed(0)
    model = Net(
        lambda s, x: s.o(torch.where(s.g(x) > 0, s.a(x), 0.0)),
        a=nn.Linear(4, 6),
        g=nn.Linear(4, 6),
        o=nn.Linear(6, 2),
    )
    x = torch.randn(64, 4)
    with torch.no_grad():
        model.g.weight[:2], model.g.bias[:2] = 0, -2
    found = measure(model, x, probes=["dormancy"])
    h = torch.where(model.g(x) > 0, model.a(x), 0.0).detach()
    np.testing.assert_allclose(found.scores["dormancy"]["a"].numpy(force=True), scores(h), rtol=1e-5)
    assert wiring(model, x).layers["g"].unresolved == ["mixed by where before o"]


COMPLEX: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "modReLU": lambda z: F.relu(z.abs() - 0.3) * z / (z.abs() + 1e-9),
    "of both parts": lambda z: torch.complex(F.relu(z.real), F.relu(z.imag)),
    "zReLU": lambda z: z * ((z.real > 0) & (z.imag > 0)),
    "cardioid": lambda z: z * (1 + torch.cos(z.angle())) / 2,
    "magnitude": lambda z: z.abs().to(torch.complex64),
}


@pytest.mark.on_cpu
@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("name", COMPLEX)
def test_complex_neurons_are_measured_by_magnitude(name: str, kind: str) -> None:
    torch.manual_seed(0)
    act = COMPLEX[name]
    layers = {
        "linear": (nn.Linear(4, 6, dtype=torch.complex64), nn.Linear(6, 2, dtype=torch.complex64)),
        "convolution": (nn.Conv1d(4, 6, 1, dtype=torch.complex64), nn.Conv1d(6, 2, 1, dtype=torch.complex64)),
    }[kind]
    model = Net(lambda s, x: s.o(act(s.a(torch.complex(x, x.roll(1, 0))))).abs(), a=layers[0], o=layers[1])
    x = torch.randn(64, 4) if kind == "linear" else torch.randn(16, 4, 5)
    with torch.no_grad():
        model.a.weight[:2], model.a.bias[:2] = 0, 0
    h = act(model.a(torch.complex(x, x.roll(1, 0)))).detach().abs()
    found = measure(model, x, probes=["dormancy"])
    by_hand = scores(h if kind == "linear" else h.mT)
    np.testing.assert_allclose(found.scores["dormancy"]["a"].numpy(force=True), by_hand, rtol=1e-5)
    assert wiring(model, x).layers["a"].activation


def test_projections_have_rows_of_their_own_and_no_part_in_the_total() -> None:
    model, x = models.residual(), torch.randn(64, 4)
    with torch.no_grad():
        model[1].up.weight[:3], model[1].up.bias[:3] = 0, -9
    found = measure(model, x, probes=["dormancy", "rank"])
    assert found.projections == {"0", "1.down", "2.down"}
    sizes = {layer: size for layer, size in found.num_neurons.items() if layer not in found.projections}
    dormancy, rank = found.values["dormancy"], found.values["stable_rank"]
    assert dormancy["all"] == pytest.approx(
        sum(dormancy[la] * size for la, size in sizes.items()) / sum(sizes.values())
    )
    assert rank["all"] == pytest.approx(np.mean([rank[layer] for layer in sizes]))
    total = str(found).splitlines()[1 + len(found.num_neurons)]
    assert total.split()[:2] == ["all", str(sum(sizes.values()))]
    linear = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))  # of nothing but projections
    assert measure(linear, x, probes=["dormancy"]).values["dormancy"]["all"] == 0


LAZY: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "linear": (lambda: nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(1)), "0, 2"),
    "one of two": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.LazyLinear(1)), "2"),
    "inside": (lambda: nn.Sequential(nn.Sequential(nn.LazyLinear(6), nn.ReLU()), nn.Linear(6, 1)), "0.0"),
    "convolution": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, 4)), nn.LazyConv1d(3, 2), nn.ReLU(), nn.Conv1d(3, 1, 1)),
        "1",
    ),
    "norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Linear(6, 1)), "1"),
}


@pytest.mark.on_cpu
@pytest.mark.parametrize("name", LAZY)
def test_lazy_models_say_what_to_do(name: str) -> None:
    make, named = LAZY[name]
    model, x = make(), torch.randn(64, 4)
    with pytest.raises(ValueError, match=f"{named}: lazy, without weights before the first pass; call the model once"):
        measure(model, x)
    model(x)
    assert measure(model, x, probes=["dormancy"]).num_neurons


def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()))


SCRIPTED: dict[str, tuple[Callable[[], dict[str, nn.Module]], str]] = {
    "in the middle": (lambda: {"0": nn.Linear(4, 6), "1": nn.ReLU(), "2": scripted(), "3": nn.Linear(6, 1)}, "2"),
    "traced": (
        lambda: {
            "0": nn.Linear(4, 6),
            "1": nn.ReLU(),
            "2": torch.jit.trace(nn.Sequential(nn.Linear(6, 6), nn.ReLU()), torch.zeros(2, 6)),
            "3": nn.Linear(6, 1),
        },
        "2",
    ),
    "an activation": (lambda: {"0": nn.Linear(4, 6), "1": torch.jit.script(nn.ReLU()), "2": nn.Linear(6, 1)}, "1"),
    "inside another": (
        lambda: {"0": nn.Linear(4, 6), "1": nn.ReLU(), "2": nn.Sequential(scripted(), nn.Linear(6, 1))},
        "2.0",
    ),
    "the end": (lambda: {"0": nn.Linear(4, 6), "1": nn.ReLU(), "2": scripted()}, "2"),
}


@pytest.mark.on_cpu
@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", SCRIPTED)
def test_partly_scripted_models_name_the_part_and_measure_the_rest(name: str) -> None:
    make, named = SCRIPTED[name]
    torch.manual_seed(0)
    model, x = nn.Sequential(OrderedDict(make())), torch.randn(64, 4)
    found = measure(model, (x, None), loss_of, probes=["dormancy", "grama"])
    assert list(found.num_neurons) == ["0"]
    expected = scores(F.relu(model[0](x)).detach())
    np.testing.assert_allclose(found.scores["dormancy"]["0"].numpy(force=True), expected, rtol=1e-5)
    assert not np.isnan(found.values["grama"]["0"])
    reasons = {entry.layer: entry.reason for entry in found.unmeasured}
    assert reasons.pop(named).endswith("is scripted, and runs without hooks")
    assert {*reasons.values()} <= {"output layer"}
    unknown = wiring(model, x).layers["0"].unresolved
    assert bool(unknown) == (name != "an activation")


def test_a_factor_that_is_heard_outside_its_product_is_not_silenced_by_a_shut_gate() -> None:
    class Heard(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.g, self.b, self.o = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(32, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.a(x).relu()
            return self.o(torch.cat([h * self.g(x).sigmoid(), self.b(h).relu()], 1))

    torch.manual_seed(0)
    model = Heard()
    with torch.no_grad():
        model.g.weight[:3], model.g.bias[:3] = 0, -200
    scores = measure(model, torch.randn(64, 8)).scores["dormancy"]
    assert scores["a"].min() > 0
    assert (scores["g"] == 0).tolist() == [True] * 3 + [False] * 13
