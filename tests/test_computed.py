"""Weights that are computed from others: looked at and set as if they were plain."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from plasticity.diagnosis.fresh import from_defaults, undrawn
from plasticity.diagnosis.parts import parts_of
from plasticity.diagnosis.trainee import Patient
from plasticity.surgery.computed import plain_copy, setters_of
from plasticity.surgery.derived import renew_derived_


class Sum(nn.Module):
    """A parametrization with an inverse and weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(8, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the weights."""
        return x + self.part.weight

    def right_inverse(self, x: torch.Tensor) -> torch.Tensor:
        """Take them away."""
        return x - self.part.weight


class Doubled(nn.Module):
    """A parametrization without an inverse."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return twice the tensor."""
        return 2 * x


def doubled(layer: nn.Module, name: str = "weight") -> nn.Module:
    """Return a layer that computes with twice a tensor."""
    return parametrize.register_parametrization(layer, name, Doubled())


def summed(layer: nn.Module) -> nn.Module:
    """Return a layer whose weight is the sum of two."""
    return parametrize.register_parametrization(layer, "weight", Sum())


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral of weight norm": lambda layer: parametrizations.spectral_norm(parametrizations.weight_norm(layer)),
    "orthogonal without an inverse": lambda layer: parametrizations.orthogonal(
        layer, orthogonal_map="cayley", use_trivialization=False
    ),
    "no inverse": doubled,
    "no inverse of weight norm": lambda layer: doubled(parametrizations.weight_norm(layer)),
    "two with an inverse": lambda layer: summed(summed(layer)),
    "weights of its own": summed,
    "of the bias": lambda layer: doubled(layer, "bias"),
    "older weight norm": nn.utils.weight_norm,
    "older spectral norm": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "pruned twice": lambda layer: prune.l1_unstructured(prune.l1_unstructured(layer, "weight", 0.3), "weight", 0.2),
}


def wrapped(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a trained layer, its weights far from the first ones, and its input."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older ones
        layer = WRAPS[name](nn.Linear(8, 32))
    x = torch.randn(16, 8)
    layer(x)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(5)
    return layer, x


@pytest.mark.parametrize("name", WRAPS)
def test_a_plain_copy_computes_the_same_from_parameters_alone(name: str) -> None:
    layer, x = wrapped(name)
    layer.eval()  # where spectral norm does not iterate
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    y = layer(x)
    plain = plain_copy(layer)
    assert type(plain) is nn.Linear
    assert sorted(plain._parameters) == ["bias", "weight"]
    assert not setters_of(plain)
    torch.testing.assert_close(plain(x), y)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("name", WRAPS)
def test_fresh_twins_of_computed_weights_are_as_a_new_layer_is(name: str) -> None:
    layer, x = wrapped(name)
    model = nn.Sequential(layer)
    assert undrawn(model) == []
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new = WRAPS[name](nn.Linear(8, 32))
    first, second = (from_defaults(model)(torch.Generator().manual_seed(seed)) for seed in (0, 1))
    new(x)  # the older kinds compute their weight then
    for twin in (first, second):
        assert not any(torch.equal(twin.get_parameter(n), p) for n, p in model.named_parameters())
        twin(x)
        spread, own = (float(one.weight.detach().std()) for one in (new, twin[0]))
        assert own == pytest.approx(spread, rel=0.3)  # what is pruned stays: not the least of the twin
        assert float(twin[0].bias.detach().std()) == pytest.approx(float(new.bias.detach().std()), rel=0.5)
    assert not torch.equal(first[0].weight, second[0].weight)


def test_what_cannot_be_drawn_is_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(3, 3))

    class Stuck(Doubled):
        def right_inverse(self, x: torch.Tensor) -> torch.Tensor:
            """Have one of positive numbers alone."""
            assert (x > 0).all()
            return x.log()

    stuck = nn.Linear(3, 3)
    stuck.weight.detach().abs_()
    parametrize.register_parametrization(stuck, "weight", Stuck())
    model = nn.Sequential(nn.Linear(3, 3), Own(), stuck)
    assert undrawn(model) == ["1", "2"]
    twin = from_defaults(model)(torch.Generator().manual_seed(0))
    kept = [name for name, p in twin.named_parameters() if torch.equal(p, model.get_parameter(name))]
    assert kept == ["1.matrix", "2.bias", "2.parametrizations.weight.original"]


def test_a_seed_has_one_twin_and_global_generators_stay() -> None:
    layer, _ = wrapped("orthogonal")  # whose inverse draws what completes a matrix
    before, twins = torch.get_rng_state(), []
    for _ in range(2):
        twins.append(from_defaults(layer)(torch.Generator().manual_seed(3)).state_dict())
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(11)
        before = torch.get_rng_state()
    for name, value in twins[0].items():
        assert torch.equal(value, twins[1][name])


def test_spectral_norm_behind_another_parametrization_follows_its_weight() -> None:
    layer, _ = wrapped("spectral of weight norm")
    with torch.no_grad():
        layer.parametrizations.weight.original1.copy_(torch.randn(32, 8))
    renew_derived_(layer)
    layer.eval()
    assert float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("name", ["weight norm", "spectral norm", "weights of its own", "older weight norm"])
def test_a_part_with_a_computed_weight_is_made_fresh_whole(name: str) -> None:
    layer, x = wrapped(name)
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    patient = Patient("net", model, optimizer, [x], lambda net, batch: net(batch), from_defaults(model))
    part = next(part for part in parts_of(patient) if part.name == "layer 0")
    aged, twin = patient.aged(), patient.twin(0)
    part.renew(aged, twin)
    own, fresh = aged.model.state_dict(), twin.state_dict()
    taken = {name for name, parameter in aged.model.named_parameters() if torch.equal(own[name], fresh[name])}
    assert taken == {name for name in own if name.startswith("0.") and name in dict(model.named_parameters())}
