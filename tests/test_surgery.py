"""Neuron surgery against brute force: forced activations, autograd for the entries, and bit-by-bit comparison."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F
from models import Net
from torch import Tensor, nn, optim

from plasticity.structure.labels import tensors_in
from plasticity.structure.trace import wiring
from plasticity.structure.wirings import Wiring
from plasticity.surgery.entries import incoming_entries, outgoing_entries
from plasticity.surgery.function_change import function_change
from plasticity.surgery.initialisers import default_initialiser, record_initialisers
from plasticity.surgery.optimizer_state import SurgeryError, clear_state_
from plasticity.surgery.permission import refusals
from plasticity.surgery.recycle import recycle_

pytestmark = pytest.mark.usefixtures("everywhere")

UNCOUPLED = [
    "mlp", "functional", "functional 3d", "shared relu", "inplace", "odd order", "two heads", "conv nchw", "conv nhwc",
    "max pool", "avg pool", "adaptive avg pool 1", "upsample", "global mean", "residual", "residual without norm",
    "batch norm before", "batchnorm conv", "critic", "crelu", "swiglu", "transformer", "embedding", "transposed",
    "grouped", "checkpointed", "to distribution",
]  # fmt: skip
COUPLED = ["norm before", "rms norm before", "norm after"]
"""Here a norm ties neurons together by its statistics."""


def build(name: str) -> tuple[nn.Module, tuple]:
    """Return a model in float64 with biases and norms away from their first values."""
    model, inputs = models.build(name)
    model = model.double().eval()
    for module in model.modules():
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and tensor.dim() == 1 and tensor.is_floating_point():
                tensor.data += 0.3 * torch.rand_like(tensor) if key == "running_var" else 0.3 * torch.randn_like(tensor)
    return model, tuple(x.double() if x.is_floating_point() else x for x in inputs)


def output(model: nn.Module, inputs: tuple) -> Tensor:
    """Return all numbers a model returns."""
    with torch.no_grad():
        return torch.cat([t.flatten() for t in tensors_in(model(*inputs))])


def choose(wired: Wiring, outgoing: str = "zero") -> dict[str, Tensor]:
    """Flag about a third of the neurons of every layer that can be recycled, in turn."""
    layers = [la for la in wired.hidden if refusals(wired, la.name, outgoing) is None]
    return {la.name: torch.arange(la.num_neurons) % 3 == i % 2 for i, la in enumerate(layers)}


def recycle(model: nn.Module, wired: Wiring, masks: dict[str, Tensor], *optimizers: Any, **options: Any) -> Any:
    """Recycle with defaults for what a test does not care about."""
    options = {"generator": torch.Generator().manual_seed(1), "initialisers": record_initialisers(model)} | options
    return recycle_(wired, masks, optimizers, **options)


def silence(wired: Wiring, masks: dict[str, Tensor]) -> list[Any]:
    """Force the neurons to 0 by hooks on their layer, or on the last norm they pass."""
    handles = []
    for name, mask in masks.items():
        layer = wired.layers[name]
        module = wired.modules[layer.norms[-1].module] if layer.norms else layer.module
        shape = [-1] + [1] * (-1 - layer.axis)
        handles.append(module.register_forward_hook(partial(lambda keep, m, a, out: out * keep, ~mask.view(shape))))
    return handles


def kill(wired: Wiring, masks: dict[str, Tensor], bias: float) -> None:
    """Make neurons constant before their activation, at a value where that is 0."""
    for name, mask in masks.items():
        module = wired.layers[name].module
        weight = module.weight.data.transpose(0, 1) if getattr(module, "transposed", False) else module.weight.data
        weight[mask] = 0
        module.bias.data[mask] = bias
        for norm in wired.layers[name].norms:
            part = wired.modules[norm.module]
            part.running_mean[mask], part.bias.data[mask] = 0.0, 0.0


@pytest.mark.parametrize("name", UNCOUPLED)
def test_recycling_dead_neurons_leaves_the_function_alone(name: str) -> None:
    model, inputs = build(name)
    wired = wiring(model, *inputs)
    masks = choose(wired)
    initialisers = record_initialisers(model)
    kill(wired, masks, 0.0 if name in ("crelu", "swiglu") else -1.0)
    before = output(model, inputs)
    recycled, change = function_change(
        model, inputs, {}, lambda: recycle(model, wired, masks, initialisers=initialisers)
    )
    assert recycled
    assert change <= 1e-6
    torch.testing.assert_close(output(model, inputs), before, rtol=1e-12, atol=1e-12)
    for layer, mask in masks.items():
        module = wired.layers[layer].module
        assert module.weight[incoming_entries(module, mask)].any()


@pytest.mark.parametrize("name", UNCOUPLED + COUPLED)
@pytest.mark.parametrize("which", [0, 1])
def test_zero_outgoing_is_as_if_the_activations_were_zero(name: str, which: int) -> None:
    """The columns of a neuron are found by running the model, with no help from the wiring's columns."""
    model, inputs = build(name)
    wired = wiring(model, *inputs)
    masks = {layer: mask if which else ~mask for layer, mask in choose(wired).items()}
    handles = silence(wired, masks)
    expected = output(model, inputs)
    for handle in handles:
        handle.remove()
    assert (output(model, inputs) - expected).abs().max() > 1e-6, "these neurons do not matter: nothing is tested"
    recycle(model, wired, masks, incoming=name not in COUPLED)
    torch.testing.assert_close(output(model, inputs), expected, rtol=1e-12, atol=1e-12)


def test_zero_outgoing_cuts_both_factors_of_a_gate() -> None:
    model, inputs = build("glu")
    wired = wiring(model, *inputs)
    masks = {"0": torch.tensor([1, 0, 0, 0, 0, 1, 0, 0]).bool()}
    hook = wired.layers["0"].module.register_forward_hook(lambda m, a, out: out * ~(masks["0"] | masks["0"].roll(4)))
    expected = output(model, inputs)
    hook.remove()
    recycle(model, wired, masks)
    torch.testing.assert_close(output(model, inputs), expected, rtol=1e-12, atol=1e-12)


def test_a_layernorm_ties_neurons_together_and_the_change_is_reported() -> None:
    model, inputs = build("norm before")
    wired = wiring(model, *inputs)
    masks = {"0": torch.arange(6) < 2}
    before = output(model, inputs)
    _, change = function_change(model, inputs, {}, lambda: recycle(model, wired, masks))
    after = output(model, inputs)
    assert change > 1e-3
    assert change == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-12)


LAYERS = [
    (lambda: nn.Linear(6, 4), (5, 6)),
    (lambda: nn.Conv1d(6, 4, 3), (2, 6, 5)),
    (lambda: nn.Conv2d(6, 4, 3, groups=2), (2, 6, 5, 5)),
    (lambda: nn.Conv2d(6, 12, 3, groups=6, bias=False), (2, 6, 5, 5)),
    (lambda: nn.ConvTranspose2d(6, 4, 3), (2, 6, 3, 3)),
    (lambda: nn.ConvTranspose2d(6, 4, 3, groups=2), (2, 6, 3, 3)),
    (lambda: nn.Conv3d(6, 4, 2), (2, 6, 3, 3, 3)),
]


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_the_entries_of_a_neuron_are_those_with_a_gradient(make: Callable[[], nn.Module], shape: tuple) -> None:
    module, x = make(), torch.rand(shape) + 0.1
    axis = -1 if isinstance(module, nn.Linear) else 1
    num = module(x).shape[axis]
    for chosen in ([0], [1, num - 1]):
        neurons, inputs = torch.zeros(num).bool(), torch.zeros(6).bool()
        neurons[chosen] = True
        inputs[[c % 6 for c in chosen]] = True
        (grad,) = torch.autograd.grad(module(x).index_select(axis, torch.tensor(chosen)).sum(), module.weight)
        assert torch.equal(incoming_entries(module, neurons), grad != 0)
        only = x * inputs.view([-1] + [1] * (0 if axis == -1 else x.dim() - 2))
        (grad,) = torch.autograd.grad(module(only).sum(), module.weight)
        assert torch.equal(outgoing_entries(module, inputs), grad != 0)


OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], list[optim.Optimizer]]] = {
    "sgd": lambda ps: [optim.SGD(ps, 0.1)],
    "sgd momentum": lambda ps: [optim.SGD(ps, 0.1, momentum=0.9)],
    "adam": lambda ps: [optim.Adam(ps, 0.01)],
    "adam fused": lambda ps: [optim.Adam(ps, 0.01, fused=True)],
    "adamw amsgrad": lambda ps: [optim.AdamW(ps, 0.01, amsgrad=True)],
    "rmsprop": lambda ps: [optim.RMSprop(ps, 0.01, momentum=0.9, centered=True)],
    "adagrad": lambda ps: [optim.Adagrad(ps, 0.01)],
    "nadam": lambda ps: [optim.NAdam(ps, 0.01)],
    "radam": lambda ps: [optim.RAdam(ps, 0.01)],
    "adamax": lambda ps: [optim.Adamax(ps, 0.01)],
    "adadelta": lambda ps: [optim.Adadelta(ps)],
    "muon": lambda ps: [
        optim.Muon([p for p in ps if p.dim() == 2], 0.01),
        optim.Adam([p for p in ps if p.dim() < 2], 0.01),
    ],
}


def trained(make: Callable[[Iterable[Tensor]], list[optim.Optimizer]], steps: int = 3) -> tuple[Any, ...]:
    """Return a trunk with two heads, its wiring, and its optimizers after a few steps."""
    torch.manual_seed(0)
    model, inputs = models.two_heads(), (torch.randn(16, 4),)
    optimizers = make(list(model.parameters()))
    wired = wiring(model, *inputs)
    for _ in range(steps):
        learn(model, inputs, optimizers)
    return model, inputs, wired, optimizers


def learn(model: nn.Module, inputs: tuple, optimizers: list[optim.Optimizer]) -> None:
    """Take one gradient step."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    sum((t - 1).square().mean() for t in tensors_in(model(*inputs))).backward()
    for optimizer in optimizers:
        optimizer.step()


def snapshot(model: nn.Module, optimizers: Iterable[optim.Optimizer], *generators: torch.Generator) -> list[Any]:
    """Return all that surgery could change."""
    tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters() if p.grad is not None)]
    for optimizer in optimizers:
        for state in optimizer.state.values():
            tensors += [torch.as_tensor(v) for v in state.values() if not isinstance(v, (list, type(None)))]
    return [t.detach().clone() for t in tensors] + [g.get_state() for g in (torch.default_generator, *generators)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Return whether two snapshots are equal bit by bit."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("step", ["keep", "zero"])
def test_exactly_the_affected_entries_change(kind: str, step: str) -> None:
    model, inputs, wired, optimizers = trained(OPTIMIZERS[kind])
    mask = torch.tensor([0, 1, 0, 0, 1, 0]).bool()
    affected = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    affected["a.weight"][mask], affected["a.bias"][mask] = True, True
    affected["mean.weight"][:, mask], affected["log_std.weight"][:, mask] = True, True
    before = copy.deepcopy([model, *optimizers])
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert recycle(model, wired, {"a": mask}, *optimizers, step=step) == {"a": [1, 4]}
    olds = dict(before[0].named_parameters())
    groups = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    for name, parameter in model.named_parameters():
        where, old = affected[name], olds[name]
        assert sum(p is parameter for p in groups) == 1
        assert torch.equal(parameter[~where], old[~where])
        assert not (parameter[where] == old[where]).any()
        assert torch.equal(parameter.grad[~where], gradients[name][~where])
        assert not parameter.grad[where].any()
        for new, was in zip(optimizers, before[1:], strict=True):
            for key, value in new.state.get(parameter, {}).items():
                past = was.state[old][key]
                if key in ("step", "mu_product"):
                    assert float(value) == (float(past) if step == "keep" or not where.any() else key == "mu_product")
                elif value is not None:
                    assert past[where].any() or not where.any(), key
                    assert not value[where].any(), key
                    assert torch.equal(value[~where], past[~where]), key
    old_values = [p.detach().clone() for p in model.parameters()]
    learn(model, inputs, optimizers)
    for parameter, value in zip(model.parameters(), old_values, strict=True):
        assert not torch.equal(parameter, value)


@pytest.mark.parametrize("kind", ["adam", "adagrad", "muon", "sgd momentum"])
def test_state_that_is_not_there_yet_is_fine(kind: str) -> None:
    model, inputs, wired, optimizers = trained(OPTIMIZERS[kind], steps=0)
    recycle(model, wired, {"a": torch.arange(6) < 3}, *optimizers)
    learn(model, inputs, optimizers)


@pytest.mark.parametrize("masks", [{}, {"a": torch.zeros(6).bool(), "mean": torch.zeros(2).bool()}])
def test_nothing_flagged_changes_nothing(masks: dict[str, Tensor]) -> None:
    model, _, wired, optimizers = trained(OPTIMIZERS["adam fused"])
    generator = torch.Generator().manual_seed(5)
    before = snapshot(model, optimizers, generator)
    assert recycle(model, wired, masks, *optimizers, generator=generator) == {}
    assert same(snapshot(model, optimizers, generator), before)


def test_draws_come_from_the_given_generator_alone() -> None:
    results = []
    for order in (["0", "2"], ["2", "0"]):
        model, inputs = models.build("mlp")
        wired = wiring(model, *inputs)
        torch.manual_seed(len(results))
        before = torch.get_rng_state()
        recycle(model, wired, {k: torch.arange(wired.layers[k].num_neurons) < 3 for k in order}, outgoing="small")
        assert torch.equal(torch.get_rng_state(), before)
        results.append(snapshot(model, ())[:-1])
    assert same(*results)


@pytest.mark.parametrize("init", [nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.orthogonal_, None])
@pytest.mark.slow_off_the_cpu
def test_redrawn_rows_have_the_distribution_of_their_layer(init: Any) -> None:
    """Never 2.45 times too wide: torch's default is 1 / sqrt(fan_in) = 0.0625 at 256 inputs, He's bound 0.153."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 2))
    if init is not None:
        init(model[0].weight)
    first = model[0].weight.detach().clone()
    wired, initialisers = wiring(model, torch.randn(3, 256)), record_initialisers(model)
    generator, mask, rows, biases = torch.Generator().manual_seed(0), torch.arange(64) < 8, [], []
    for _ in range(60):
        recycle(model, wired, {"0": mask}, generator=generator, initialisers=initialisers)
        rows.append(model[0].weight[mask].detach().clone())
        biases.append(model[0].bias[mask].detach().clone())
    drawn, bias = torch.cat(rows), torch.cat(biases)
    assert torch.equal(model[0].weight[~mask], first[~mask])
    assert float(drawn.mean()) == pytest.approx(0, abs=4 * float(first.std()) / len(drawn.flatten()) ** 0.5)
    assert float(drawn.std()) == pytest.approx(float(first.std()), rel=0.02)
    assert len(drawn.unique()) > 0.9 * drawn.numel()
    assert 0.95 * 0.0625 < float(bias.abs().max()) <= 0.0625
    if init is None:
        assert 0.999 * 0.0625 < float(drawn.abs().max()) <= 0.0625
    if init is nn.init.orthogonal_:
        torch.testing.assert_close(drawn.norm(dim=1), torch.ones(len(drawn)))


def test_small_columns_have_the_asked_norm_and_let_gradients_through() -> None:
    flags, kept = torch.tensor([1, 0, 0, 0]).bool(), {}
    for outgoing in ("zero", "small"):
        model, inputs = models.build("conv nchw")
        wired = wiring(model, *inputs)
        old = model[5].weight.detach().clone()
        recycle(model, wired, {"2": flags}, outgoing=outgoing)
        model(*inputs).square().sum().backward()
        kept[outgoing] = float(model[2].weight.grad[0].abs().max())
        assert torch.equal(model[5].weight[:, 4:], old[:, 4:])
        norms = model[5].weight[:, :4].norm(dim=0)
        torch.testing.assert_close(norms, (outgoing == "small") * 0.02 * old[:, 4:].norm(dim=0).mean() * torch.ones(4))
    assert kept["zero"] == 0
    assert kept["small"] > 0


def test_small_columns_where_no_column_is_live() -> None:
    model, inputs = models.build("mlp")
    recycle(model, wiring(model, *inputs), {"0": torch.ones(6).bool()}, outgoing="small")
    expected = 0.02 * (5 / 3 / 6) ** 0.5  # five weights, uniform within 1 / sqrt(6)
    assert float(model[2].weight.detach().norm(dim=0).mean()) == pytest.approx(expected, rel=0.4)


@pytest.mark.parametrize("outgoing", ["zero", "small", "keep"])
def test_biases_of_consumers_stay_and_keep_leaves_columns(outgoing: str) -> None:
    model, inputs = models.build("two heads")
    old = copy.deepcopy(model.state_dict())
    recycle(model, wiring(model, *inputs), {"a": torch.arange(6) < 3}, outgoing=outgoing)
    for head in ("mean", "log_std"):
        assert torch.equal(model.state_dict()[f"{head}.bias"], old[f"{head}.bias"])
        assert torch.equal(model.state_dict()[f"{head}.weight"], old[f"{head}.weight"]) == (outgoing == "keep")


def test_norm_entries_go_back_with_their_neuron() -> None:
    for name, layer, norm in (("batchnorm conv", "0", "1"), ("norm before", "0", "1"), ("norm after", "3", "5")):
        for reset in (True, False):
            model, inputs = build(name)
            wired, optimizer = wiring(model, *inputs), optim.Adam(model.parameters())
            learn(model, inputs, [optimizer])
            old, part = copy.deepcopy(model.state_dict()), model.get_submodule(norm)
            flags = torch.arange(wired.layers[layer].num_neurons) == 1
            recycle(model, wired, {layer: flags}, optimizer, norms=reset)
            for key, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}.items():
                if hasattr(part, key):
                    now, was = getattr(part, key), old[f"{norm}.{key}"]
                    assert torch.equal(now[~flags], was[~flags])
                    assert torch.equal(now[flags], torch.full_like(now[flags], value) if reset else was[flags])
            assert optimizer.state[part.weight]["exp_avg"][flags].any() != reset
            assert optimizer.state[part.weight]["exp_avg"][~flags].all()


def test_norm_entries_that_others_pass_through_or_that_are_frozen_stay() -> None:
    model = Net(
        lambda s, x: s.c(F.relu(s.n(s.b(F.relu(s.n(s.a(x))))))), **models.linears(4, 6, 6, 2), n=nn.LayerNorm(6)
    )
    wired, inputs = wiring(model, torch.randn(8, 4)), torch.randn(8, 4)
    nn.init.constant_(model.n.weight, 3.0)
    recycle(model, wired, {"a": torch.arange(6) < 3, "b": torch.arange(6) < 2})
    assert model.n.weight.tolist() == [1, 1, 3, 3, 3, 3]
    nn.init.constant_(model.n.weight, 3.0).requires_grad_(False)
    recycle(model, wired, {"a": torch.arange(6) < 3, "b": torch.arange(6) < 2})
    assert model.n.weight.tolist() == [3] * 6
    assert torch.isfinite(model(inputs)).all()


def refused() -> dict[str, Callable[[], tuple[nn.Module, tuple, dict[str, Any], str]]]:
    """Return name -> (model, inputs, options, what the error says); the flagged layer is options["layer"]."""

    def named(name: str, layer: str, text: str, **options: Any) -> Callable[[], tuple]:
        return lambda: (*models.build(name), {"layer": layer, **options}, text)

    def edited(edit: Callable[[Any], Any], layer: str, text: str, **options: Any) -> Callable[[], tuple]:
        def make() -> tuple:
            model, inputs = models.build("mlp")
            model = edit(model) or model
            return model, inputs, {"layer": layer, **options}, text

        return make

    def tied(model: Any) -> Any:
        model = nn.Sequential(
            nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)
        )
        model[4].weight = model[2].weight
        return model

    def tied_to_embedding() -> tuple:
        net = Net(lambda s, x: s.out(F.relu(s.a(s.e(x)))), e=nn.Embedding(7, 6), a=nn.Linear(6, 6), out=nn.Linear(6, 7))
        net.out.weight = net.e.weight
        return net, (torch.randint(7, (9,)),), {"layer": "a"}, "out.weight is tied: the same tensor as e.weight"

    def twice() -> tuple:
        forward = lambda s, x: (s.c(F.relu(s.a(x))), s.c(F.relu(s.b(x))))  # noqa: E731
        model = Net(forward, a=nn.Linear(4, 6), b=nn.Linear(4, 6), c=nn.Linear(6, 2))
        return model, (torch.randn(8, 4),), {"layer": "a"}, "c is called more often than a"

    spectral = nn.utils.parametrizations.spectral_norm
    return {
        "output": named("mlp", "4", "an output of the model"),
        "never called": named("unused", "never", "never was never called"),
        "residual writer": named("residual", "1.down", "writes to a residual stream"),
        "residual stem, small": named("residual", "0", "writes to a residual stream", outgoing="small"),
        "recurrent consumer": named("lstm", "a", "not all that a feeds is known"),
        "attention": named("transformer", "0", "writes to a residual stream"),
        "consumer called twice": named("unused", "a", "b is called more often than a"),
        "feeds itself": named("unused", "b", "columns of b that carry b carry a in another call"),
        "shared consumer": twice,
        "tied": edited(tied, "2", "2.weight is tied: the same tensor as 4.weight"),
        "consumer tied": edited(tied, "0", "2.weight is tied"),
        "consumer tied to embedding": tied_to_embedding,
        "parametrized": edited(lambda m: spectral(m[0]) and None, "0", "0.weight is computed from other parameters"),
        "consumer parametrized": edited(lambda m: spectral(m[2]) and None, "0", "2.weight is computed"),
        "frozen": edited(lambda m: m[0].requires_grad_(False) and None, "0", "0.weight is frozen"),
        "frozen consumer": edited(lambda m: m[2].requires_grad_(False) and None, "0", "2.weight is frozen"),
        "unknown": named("mlp", "q", "no layer is called q"),
        "mask shape": named("mlp", "0", "needs a bool mask of shape", mask=torch.ones(5).bool()),
        "mask type": named("mlp", "0", "needs a bool mask of shape", mask=torch.ones(6)),
        "no initialiser": named("mlp", "0", "0 has no initialiser", initialisers={}),
        "mode": named("mlp", "0", "outgoing is zero, keep or small", outgoing="halve"),
        "adafactor": named("mlp", "0", "Adafactor keeps row_var and col_var", optimizer=optim.Adafactor),
        "lbfgs": named("mlp", "0", "LBFGS keeps one history", optimizer=optim.LBFGS),
    }


REFUSED = refused()


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_right_is_refused_and_nothing_changed(case: str) -> None:
    model, inputs, options, text = REFUSED[case]()
    wired = wiring(model, *inputs)
    layer, make = options.pop("layer"), options.pop("optimizer", optim.Adam)
    optimizer = make(p for p in model.parameters() if p.requires_grad)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum(t.square().mean() for t in tensors_in(model(*inputs)))
        loss.backward()
        return loss

    optimizer.step(closure)
    num = wired.layers[layer].num_neurons if layer in wired.layers else 3
    fine = {la.name: torch.ones(la.num_neurons).bool() for la in wired.hidden if refusals(wired, la.name) is None}
    masks = fine | {layer: options.pop("mask", torch.arange(num) == 0)}
    generator = torch.Generator().manual_seed(0)
    initialisers = {name: default_initialiser(la.module) for name, la in wired.layers.items()}
    options = {"initialisers": initialisers, "generator": generator} | options
    before = snapshot(model, [optimizer], generator)
    with pytest.raises(SurgeryError, match=text):
        recycle(model, wired, masks, optimizer, **options)
    assert same(snapshot(model, [optimizer], generator), before)


def test_residual_writers_and_unresolved_layers_can_keep_their_columns() -> None:
    for name, layer in (("residual", "1.down"), ("lstm", "a")):
        model, inputs = models.build(name)
        old, wired = copy.deepcopy(model.state_dict()), wiring(model, *inputs)
        recycle(model, wired, {layer: torch.arange(wired.layers[layer].num_neurons) == 0}, outgoing="keep", norms=False)
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, old[key])}
        assert changed == {f"{layer}.weight", f"{layer}.bias"}


def test_moments_can_stay() -> None:
    model, _, wired, optimizers = trained(OPTIMIZERS["adam"])
    states = [{k: v.clone() for k, v in s.items()} for s in optimizers[0].state.values()]
    recycle(model, wired, {"a": torch.arange(6) < 3}, *optimizers, moments=False)
    for old, new in zip(states, optimizers[0].state.values(), strict=True):
        assert all(torch.equal(old[k], new[k]) for k in old)


# What other implementations of ReDo get wrong.


def test_fire_edited_a_copy_of_the_masked_columns_and_moments() -> None:
    model, _, wired, optimizers = trained(OPTIMIZERS["adam"])
    mask = torch.arange(6) < 3
    recycle(model, wired, {"a": mask}, *optimizers)
    assert not model.mean.weight[:, mask].any()
    assert not optimizers[0].state[model.a.weight]["exp_avg_sq"][mask].any()
    assert not optimizers[0].state[model.mean.weight]["exp_avg"][:, mask].any()
    assert "a" in {layer.name for layer in wired.hidden}, "FIRE never recycled the last hidden layer"


def test_dopamine_repeated_the_mask_where_the_flatten_is_channels_last() -> None:
    model, inputs = models.build("conv nhwc")
    old = model.fc.weight.detach().clone()
    recycle(model, wiring(model, *inputs), {"conv": torch.tensor([False, True, False])})
    mine = torch.arange(48) % 3 == 1
    assert not model.fc.weight[:, mine].any()
    assert torch.equal(model.fc.weight[:, ~mine], old[:, ~mine])


def test_timoklein_found_optimizer_state_by_position() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    inputs = (torch.randn(16, 4),)
    groups = [{"params": [model[4].bias, model[2].weight]}, {"params": [model[0].weight, model[4].weight], "lr": 0.1}]
    optimizers = [optim.Adam(groups), optim.Adam([model[2].bias])]
    learn(model, inputs, optimizers)
    flags = torch.tensor([1, 0, 0, 0, 1]).bool()
    recycle(model, wiring(model, *inputs), {"2": flags}, *optimizers)
    for optimizer, parameter, where in (
        (optimizers[0], model[2].weight, flags[:, None].expand(5, 6)),
        (optimizers[1], model[2].bias, flags),
        (optimizers[0], model[4].weight, flags.expand(2, 5)),
        (optimizers[0], model[0].weight, torch.zeros(6, 4).bool()),
    ):
        assert not optimizer.state[parameter]["exp_avg"][where].any()
        assert (optimizer.state[parameter]["exp_avg"][~where] != 0).any()


def test_timoklein_step_reset_disturbs_all_other_entries() -> None:
    """Why the counter stays by default: torch has one for the whole tensor."""
    moves = {}
    for step in ("none", "keep", "zero"):
        model, inputs, _, optimizers = trained(OPTIMIZERS["adam"], steps=30)
        if step != "none":
            where = torch.zeros(6, 4).bool()
            where[0] = True
            clear_state_(optimizers, model.a.weight, where, step)
        old = model.a.weight.detach().clone()
        learn(model, inputs, optimizers)
        moves[step] = (model.a.weight - old).detach()
    assert torch.equal(moves["keep"][1:], moves["none"][1:])
    assert not torch.allclose(moves["zero"][1:], moves["none"][1:], rtol=0.1)
    torch.testing.assert_close(moves["zero"][0].abs().max(), torch.tensor(0.01), rtol=1e-3, atol=0)


# The parts.


def test_clear_state_gives_first_values_where_these_are_not_zero() -> None:
    weight = nn.Parameter(torch.ones(3))
    where = torch.tensor([True, False, False])
    adagrad = optim.Adagrad([weight], initial_accumulator_value=0.5)
    rprop, asgd = optim.Rprop([weight], lr=0.25), optim.ASGD([weight], lr=0.25)
    for optimizer in (adagrad, rprop, asgd):
        for sign in (1, 1, -1):
            weight.grad = sign * torch.ones(3)
            optimizer.step()
    clear_state_([adagrad, rprop, asgd], weight, where, step="zero")
    assert adagrad.state[weight]["sum"].tolist() == [0.5, 3.5, 3.5]
    assert rprop.state[weight]["step_size"][0] == 0.25
    assert rprop.state[weight]["step_size"][1] != 0.25
    assert asgd.state[weight]["ax"][0] == weight[0]
    assert {float(o.state[weight]["step"]) for o in (adagrad, rprop, asgd)} == {0.0}
    assert float(asgd.state[weight]["eta"]) == 0.25


def test_clear_state_refuses_other_layouts_and_wrong_masks() -> None:
    class Sketch(optim.SGD):
        """An optimizer that keeps something else."""

    weight = nn.Parameter(torch.ones(3, 2))
    optimizer = Sketch([weight], 0.1)
    optimizer.state[weight] = {"factors": [torch.zeros(3)]}
    with pytest.raises(SurgeryError, match=r"Sketch keeps factors for a weight of shape \(3, 2\)"):
        clear_state_([optimizer], weight, torch.ones(3, 2).bool())
    optimizer.state[weight] = {"rows": torch.zeros(3, 1)}
    with pytest.raises(SurgeryError, match="Sketch keeps rows"):
        clear_state_([optimizer], weight, torch.ones(3, 2).bool())
    with pytest.raises(SurgeryError, match=r"where must be bool \(3, 2\)"):
        clear_state_([], weight, torch.ones(3).bool())


def test_clear_state_of_a_number_restarts_nothing_else() -> None:
    alpha = torch.tensor(0.5, requires_grad=True)
    optimizer = optim.Adam([alpha])
    alpha.grad = torch.tensor(1.0)
    optimizer.step()
    clear_state_([optimizer], alpha, torch.tensor(True))
    assert float(optimizer.state[alpha]["exp_avg"]) == 0
    assert float(optimizer.state[alpha]["step"]) == 1


def test_function_change_by_hand() -> None:
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))

    def change() -> str:
        model.weight.data[1, 1] = 2.0
        return "done"

    x = torch.tensor([[3.0, 4.0]])
    assert function_change(model, (x,), {}, change) == ("done", 0.8)  # (3, 4) -> (3, 8): 4 / 5
    assert function_change(model, (), {"input": x}, lambda: None) == (None, 0.0)
    model.weight.data.zero_()
    assert function_change(model, (x,), {}, lambda: None)[1] == 0.0
    assert function_change(model, (x,), {}, lambda: model.weight.data.fill_(1))[1] == float("inf")


def test_function_change_leaves_no_trace_but_the_change_itself() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(8, 4)
    model(x)
    wired, state = wiring(model, x), torch.get_rng_state()
    old = model[1].running_mean.clone()
    _, change = function_change(model, (x,), {}, lambda: recycle(model, wired, {"0": torch.arange(6) == 2}))
    assert change > 0
    assert model[1].running_mean[2] == 0
    assert torch.equal(model[1].running_mean[torch.arange(6) != 2], old[torch.arange(6) != 2])
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
