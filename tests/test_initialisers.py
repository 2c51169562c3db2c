"""Initialisers: what is inferred from a layer's first values, and that draws have the same distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from plasticity.structure.trace import wiring
from plasticity.surgery.initialisers import Initialiser, default_initialiser, fresh_parameters, record_initialisers
from plasticity.surgery.laws import Law

pytestmark = pytest.mark.usefixtures("everywhere")


def linear(fill: Callable[[Tensor], object], num_in: int = 256, num_out: int = 64) -> nn.Linear:
    """Return a layer whose weights were filled by a function."""
    layer = nn.Linear(num_in, num_out)
    fill(layer.weight.data)
    return layer


KNOWN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "torch's default": (lambda: nn.Linear(256, 64), "uniform(±0.0625)"),
    "conv": (lambda: nn.Conv2d(4, 32, 3), "uniform(±0.1667)"),
    "depthwise": (lambda: nn.Conv2d(32, 32, 3, groups=32), "uniform(±0.3333)"),
    "transposed": (lambda: nn.ConvTranspose2d(8, 16, 3), "uniform(±0.08333)"),
    "one neuron": (lambda: nn.Linear(256, 1), "uniform(±0.0625)"),
    "bfloat16": (lambda: nn.Linear(64, 64).bfloat16(), "uniform(±0.125)"),
    "he": (lambda: linear(nn.init.kaiming_uniform_), "uniform(±0.1531)"),
    "he normal": (lambda: linear(nn.init.kaiming_normal_), "normal(std 0.0884)"),
    "xavier": (lambda: linear(nn.init.xavier_uniform_), "uniform(±0.1369)"),
    "narrower than the default": (lambda: linear(nn.init.xavier_uniform_, 17, 256), "uniform(±0.1482)"),
    "xavier normal": (lambda: linear(nn.init.xavier_normal_), "normal(std 0.0791)"),
    "fixed normal": (lambda: linear(lambda w: w.normal_(0, 0.02)), "normal(std 0.02)"),
    "truncated": (
        lambda: linear(lambda w: nn.init.trunc_normal_(w, 0, 0.02, -0.04, 0.04)),
        "truncated normal(std 0.02, cut at 2 std)",
    ),
    "lecun of jax": (
        lambda: linear(lambda w: nn.init.trunc_normal_(w, 0, 1 / 14.0741, -2 / 14.0741, 2 / 14.0741)),
        "truncated normal(std 0.0711, cut at 2 std)",
    ),
    "cut far away": (lambda: linear(lambda w: nn.init.trunc_normal_(w, 0, 0.02)), "normal(std 0.02)"),
    "orthogonal": (lambda: linear(lambda w: nn.init.orthogonal_(w, 2**0.5)), "orthogonal(gain 1.41)"),
    "orthogonal, tall": (lambda: linear(lambda w: nn.init.orthogonal_(w, 0.01), 6, 64), "orthogonal(gain 0.01)"),
    "orthogonal row": (lambda: linear(nn.init.orthogonal_, 256, 1), "orthogonal(gain 1)"),
    "orthogonal half": (lambda: linear(nn.init.orthogonal_).half(), "orthogonal(gain 1)"),
    "zero": (lambda: linear(nn.init.zeros_), "constant(0)"),
    "ddpg head": (lambda: linear(lambda w: w.uniform_(-3e-3, 3e-3), 256, 1), "uniform(±0.003)"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_usual_initialisers_are_recognised(name: str) -> None:
    torch.manual_seed(0)
    make, text = KNOWN[name]
    assert str(Initialiser.infer(make()).weight_law) == text


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4, 6), (3, 64), (17, 64), (64, 1), (256, 6)])
def test_torch_defaults_are_never_misjudged_however_small_the_layer(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    bound = 1 / math.sqrt(shape[0])
    for _ in range(60):
        found = Initialiser.infer(nn.Linear(*shape))
        assert found.weight_law.parameters == found.bias_law.parameters == (-bound, bound)


@pytest.mark.parametrize("shape", [(3, 64), (17, 64), (256, 256)])
@pytest.mark.parametrize("init", [nn.init.kaiming_uniform_, nn.init.kaiming_normal_, nn.init.xavier_normal_])
def test_scales_of_small_layers_are_right_to_a_fifth(shape: tuple[int, int], init: Callable) -> None:
    torch.manual_seed(1)
    for _ in range(20):
        layer, want = nn.Linear(*shape), 0.0
        init(layer.weight)
        fan = sum(shape) / 2 if init is nn.init.xavier_normal_ else shape[0] / 2
        want = math.sqrt(1 / fan)
        law = Initialiser.infer(layer).weight_law
        drawn = law.draw(torch.empty(20_000), torch.Generator().manual_seed(0))
        assert float(drawn.std()) == pytest.approx(want, rel=0.2)


def test_free_scales_and_other_shapes() -> None:
    torch.manual_seed(0)
    assert str(Initialiser.infer(linear(lambda w: w.mul_(0.013))).weight_law) == "uniform(±0.0008125)"
    low, high = Initialiser.infer(linear(lambda w: w.uniform_(0, 1))).weight_law.parameters
    assert low == pytest.approx(0, abs=1e-3)
    assert high == pytest.approx(1, abs=1e-3)
    mean, std = Initialiser.infer(linear(lambda w: w.normal_(0.5, 0.1))).weight_law.parameters
    assert (mean, std) == pytest.approx((0.5, 0.1), rel=0.02)
    sparse = Initialiser.infer(linear(lambda w: nn.init.sparse_(w, 0.75)))
    assert sparse.weight_law.kind == "empirical"
    drawn = sparse.weight(torch.Generator().manual_seed(0))
    assert float((drawn == 0).double().mean()) == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    ("fill", "text"),
    [
        (nn.init.zeros_, "constant(0)"),
        (lambda b: b.fill_(0.1), "constant(0.1)"),
        (lambda b: None, "uniform(±0.0625)"),
        (lambda b: b.uniform_(-0.003, 0.003), "uniform(±0.003)"),
    ],
)
def test_biases(fill: Callable[[Tensor], object], text: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(256, 64)
    fill(layer.bias.data)
    assert str(Initialiser.infer(layer).bias_law) == text
    assert repr(Initialiser.infer(layer)) == f"uniform(±0.0625), bias {text}"
    single = nn.Linear(256, 1)
    nn.init.constant_(single.bias, 0.05)
    assert str(Initialiser.infer(single).bias_law) == "constant(0.05)"


@pytest.mark.parametrize("name", KNOWN)
def test_draws_follow_the_layers_own_distribution(name: str) -> None:
    torch.manual_seed(0)
    layer, generator, state = KNOWN[name][0](), torch.Generator().manual_seed(0), torch.get_rng_state()
    initialiser = Initialiser.infer(layer)
    draws = torch.stack([initialiser.weight(generator) for _ in range(10)])
    bias = initialiser.bias(generator)
    assert torch.equal(torch.get_rng_state(), state)
    assert draws.shape[1:] == layer.weight.shape
    assert draws.dtype == layer.weight.dtype == bias.dtype
    weight = layer.weight.detach().double()
    scale = float(weight.square().mean().sqrt())
    assert float(draws.double().square().mean().sqrt()) == pytest.approx(scale, rel=0.15)
    assert float(draws.double().mean()) == pytest.approx(0, abs=5 * scale / math.sqrt(draws.numel()) + 1e-12)
    if initialiser.weight_law.kind == "uniform":
        bound = initialiser.weight_law.parameters[1]
        assert 0.98 * bound < float(draws.double().abs().max()) <= bound * 1.01
    if initialiser.weight_law.kind == "orthogonal":
        tolerance = {"rtol": 1e-2, "atol": 1e-2} if layer.weight.dtype == torch.half else {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(torch.linalg.svdvals(draws[0].double()), torch.linalg.svdvals(weight), **tolerance)


def test_draws_are_reproducible_and_differ() -> None:
    initialiser = Initialiser.infer(nn.Linear(8, 8))
    a, b = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    first = initialiser.weight(a)
    assert torch.equal(first, initialiser.weight(b))
    assert not torch.equal(first, initialiser.weight(b))


def test_record_names_layers_as_the_wiring_does_and_leaves_computed_weights_alone() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4, bias=False), nn.Linear(4, 2))
    recorded = record_initialisers(torch.compile(model, backend="eager"))
    assert set(recorded) == set(wiring(model, torch.randn(2, 2, 6, 6)).layers) == {"0", "3", "4"}
    assert recorded["3"].bias(torch.Generator()) is None
    assert repr(recorded["3"]) == "uniform(±0.1443)"
    nn.utils.parametrizations.spectral_norm(model[4])
    buffers = [b.clone() for b in model.buffers()]
    assert set(record_initialisers(model)) == {"0", "3"}
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))


def test_a_saved_initialiser_is_the_same_after_training(tmp_path: object) -> None:
    torch.manual_seed(0)
    for fill in (nn.init.orthogonal_, lambda w: nn.init.sparse_(w, 0.5), lambda w: None):
        layer = linear(fill)
        first = Initialiser.infer(layer)
        torch.save(first.state_dict(), f"{tmp_path}/state")
        layer.weight.data.mul_(3).add_(0.1)
        again = Initialiser.from_state(layer, torch.load(f"{tmp_path}/state", weights_only=True))
        draws = [i.weight(torch.Generator().manual_seed(0)) for i in (first, again)]
        assert torch.equal(*draws)
        assert repr(first) == repr(again)


def test_default_initialiser_is_the_modules_own_reset() -> None:
    class Mine(nn.Linear):
        """A layer with an initialisation of its own."""

        def reset_parameters(self) -> None:
            nn.init.normal_(self.weight, 0.0, 0.02)
            nn.init.constant_(self.bias, 0.5)

    layer = nn.Linear(256, 64)
    layer.weight.data.normal_()
    assert repr(default_initialiser(layer)) == "uniform(±0.0625), bias uniform(±0.0625)"
    assert repr(default_initialiser(nn.Conv2d(4, 8, 3, bias=False))) == "uniform(±0.1667)"
    layer, state = Mine(256, 64), torch.get_rng_state()
    layer.weight.data.fill_(7.0)
    found = default_initialiser(layer)
    assert repr(found) == "normal(std 0.02), bias constant(0.5)"
    assert found.module is layer
    assert torch.equal(torch.get_rng_state(), state)
    assert float(layer.weight.detach().min()) == 7.0


def test_fresh_parameters_leaves_the_module_alone() -> None:
    module = nn.LSTM(3, 4, device="cpu")
    old, state = [p.detach().clone() for p in module.parameters()], torch.get_rng_state()
    fresh = fresh_parameters(module, torch.Generator().manual_seed(0))
    assert list(fresh) == [n for n, _ in module.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), old, strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(fresh.values(), old, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.isfinite(module(torch.randn(2, 1, 3, device="cpu"))[0]).all()


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="LazyLinear has no weight yet"):
        Initialiser.infer(nn.LazyLinear(3, device="cpu"))
    with pytest.raises(ValueError, match="not finite"):
        Initialiser.infer(linear(lambda w: w[0].fill_(float("nan"))))


def test_laws_print() -> None:
    assert str(Law("uniform", (0.0, 1.0))) == "uniform(0 to 1)"
    assert str(Law("normal", (0.5, 0.1))) == "normal(mean 0.5, std 0.1)"
    assert str(Law("empirical", (), torch.ones(3))) == "empirical(3 values)"
