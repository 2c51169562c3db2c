"""The table: every probe on every kind of network gives the numbers of a second implementation, run layer by layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import models
import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plasticity.measuring import measure
from plasticity.monitor import Monitor
from plasticity.probes import RANKS, Dormancy, GradientActivity, make_probes
from plasticity.structure.layers import weight_rows

pytestmark = pytest.mark.usefixtures("everywhere")

Hidden = dict[str, tuple[Tensor, Tensor]]
"""Layer -> its output and its activation, each with its gradient retained."""


class ByHand:
    """Run a model layer by layer, keeping what each one wrote and what became of it."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.hidden = model, {}
        self.inputs: dict[str, Tensor] = {}
        """The input of the activation of a layer, where that is not its output."""

    def __call__(self, name: str, x: Tensor, activation: Callable[[Tensor], Tensor] = lambda z: z.clone()) -> Tensor:
        """Apply one layer and its activation."""
        z = self.model.get_submodule(name)(x)
        h = activation(z)
        z.retain_grad()
        h.retain_grad()
        self.hidden[name] = self.inputs.get(name, z), h
        return h

    def normed(self, name: str, y: Tensor) -> Tensor:
        """Keep what a norm makes of a layer's output, and return it."""
        y.retain_grad()
        self.inputs[name] = y
        return y


def perceptron(*names: str, activation: Callable[[Tensor], Tensor] = F.relu) -> Callable[..., Tensor]:
    """Return the run by hand of a perceptron; ``names`` of its layers, the last one the output."""

    def run(hand: ByHand, x: Tensor) -> Tensor:
        for name in names[:-1]:
            x = hand(name, x, activation)
        return hand.model.get_submodule(names[-1])(x)

    return run


def run_conv(hand: ByHand, x: Tensor) -> Tensor:
    h = hand("2", hand("0", x, F.relu), F.relu)
    return hand.model[7](hand("5", h.reshape(len(h), -1), F.relu))


def run_residual(hand: ByHand, x: Tensor) -> Tensor:
    x = hand("0", x)
    for block in ("1", "2"):
        branch = hand(f"{block}.up", hand.model.get_submodule(f"{block}.norm")(x), F.relu)
        x = x + hand(f"{block}.down", branch)
    return hand.model[4](hand.model[3](x))


def run_norm_before(hand: ByHand, x: Tensor) -> Tensor:
    h = hand("0", x, lambda z: F.relu(hand.normed("0", hand.model[1](z))))
    return hand.model[3](h)


def run_norm_after(hand: ByHand, x: Tensor) -> Tensor:
    x = hand.model[2](hand("0", x, F.relu))
    return hand.model[6](hand.model[5](hand("3", x, F.relu)))


def run_transformer(hand: ByHand, x: Tensor) -> Tensor:
    x = hand("0", x)
    for i, layer in enumerate(hand.model[1].layers):
        x = layer.norm1(x + layer.self_attn(x, x, x)[0])
        x = layer.norm2(x + hand(f"1.layers.{i}.linear2", hand(f"1.layers.{i}.linear1", x, F.relu)))
    return hand.model[2](x)


def run_critic(hand: ByHand, obs: Tensor, action: Tensor) -> Tensor:
    h = hand("b", torch.cat([hand("a", obs, F.relu), action], -1), F.relu)
    return hand.model.get_submodule("c")(h).squeeze(-1)


def smooth(activation: nn.Module) -> Callable[[], nn.Module]:
    """Return a perceptron with one activation module, shared."""
    return lambda: nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 5), activation, nn.Linear(5, 2))


@dataclass
class Case:
    """A kind of network, its run by hand, and layers to plant dead neurons in."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple]
    run: Callable[..., Tensor]
    planted: dict[str, list[int]]
    relu: bool = True


def flat() -> tuple:
    return (torch.randn(64, 4),)


def sequence() -> tuple:
    return (torch.randn(16, 3, 4),)


PLANTED = {"0": [0, 4], "2": [3]}
NAMED = {"a": [0, 4], "b": [3]}
CASES = {
    "mlp": Case(models.mlp, flat, perceptron("0", "2", "4"), PLANTED),
    "functional relu": Case(models.functional, flat, perceptron("a", "b", "c"), NAMED),
    "functional relu, sequences": Case(models.functional, sequence, perceptron("a", "b", "c"), NAMED),
    "shared relu": Case(models.shared_relu, flat, perceptron("a", "b", "c"), NAMED),
    "in-place relu": Case(models.inplace, flat, perceptron("0", "2", "4"), PLANTED),
    "in-place relu, sequences": Case(models.inplace, sequence, perceptron("0", "2", "4"), PLANTED),
    "relu_ on the side": Case(models.inplace_functional, flat, perceptron("a", "b", "c"), NAMED),
    "conv": Case(models.conv_nchw, lambda: (models.image(),), run_conv, {"0": [1], "2": [0, 3], "5": [2]}),
    "residual": Case(models.residual, flat, run_residual, {"1.up": [0, 3, 11], "2.up": [5]}),
    "norm before": Case(models.norm_before, flat, run_norm_before, {}),
    "norm after": Case(models.norm_after, flat, run_norm_after, {"0": [0, 4], "3": [3]}),
    "leaky gelu": Case(smooth(nn.GELU()), flat, perceptron("0", "2", "4", activation=F.gelu), PLANTED, relu=False),
    "tanh": Case(smooth(nn.Tanh()), flat, perceptron("0", "2", "4", activation=torch.tanh), PLANTED, relu=False),
    "silu": Case(smooth(nn.SiLU()), flat, perceptron("0", "2", "4", activation=F.silu), PLANTED, relu=False),
    "transformer": Case(
        models.transformer, sequence, run_transformer, {"1.layers.0.linear1": [0, 7], "1.layers.1.linear1": [11]}
    ),
    "critic": Case(models.critic, lambda: (torch.randn(64, 4), torch.randn(64, 2)), run_critic, NAMED),
}


def loss_of(output: Tensor, target: Any = None) -> Tensor:
    """Return some loss that is a mean over samples."""
    return (output - 0.3).square().mean()


def prepare(case: Case) -> tuple[nn.Module, tuple, ByHand]:
    """Return a planted model in float64, its inputs, and its run by hand with gradients."""
    torch.manual_seed(4)
    model, inputs = case.make().double().eval(), tuple(x.double() for x in case.inputs())
    with torch.no_grad():
        for name, neurons in case.planted.items():
            layer = model.get_submodule(name)
            layer.bias += 1.5 * case.relu  # or else some die by chance
            layer.weight[neurons] = 0
            layer.bias[neurons] = -7.0 if case.relu else 0.0
    hand = ByHand(model)
    loss_of(case.run(hand, *inputs)).backward()
    return model, inputs, hand


def expected_scores(hand: ByHand, probe: str, layer: str) -> np.ndarray:
    """Return the scores of a layer's neurons by the definitions."""
    z, h = hand.hidden[layer]
    axis = -3 if isinstance(hand.model.get_submodule(layer), nn.Conv2d) else -1
    if probe == "grama_weight":
        return reference.weight_scores(hand.model.get_submodule(layer).weight.grad)
    signals = {"dormancy": h, "grama": z.grad, "grama_post": h.grad}
    return reference.scores(reference.rows(signals[probe], axis))


@pytest.mark.parametrize("name", CASES)
def test_every_probe_agrees_with_a_second_implementation(name: str) -> None:
    case = CASES[name]
    model, inputs, hand = prepare(case)
    before = [p.grad.clone() for p in model.parameters()]
    reading = measure(model, (inputs, None), loss_of, probes=list(reference.PROBED))
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))
    assert list(reading.num_neurons) == list(hand.hidden), "exactly the hidden layers are measured"
    for entry in reading.unmeasured:
        assert entry.layer not in hand.hidden, entry
    for layer in hand.hidden:
        for probe, tau in (("dormancy", 0.025), ("grama", 0.01), ("grama_weight", 0.01), ("grama_post", 0.01)):
            expected = expected_scores(hand, probe, layer)
            np.testing.assert_allclose(reading.scores[probe][layer].numpy(force=True), expected, rtol=1e-9, atol=1e-12)
            assert reading.values[probe][layer] == reference.fraction(expected, tau)
        axis = -3 if isinstance(model.get_submodule(layer), nn.Conv2d) else -1
        for metric, value in reference.ranks(reference.rows(hand.hidden[layer][1], axis)).items():
            assert reading.values[metric][layer] == pytest.approx(value, rel=1e-9), (metric, layer)


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].planted])
def test_planted_dead_neurons_are_found_exactly(name: str) -> None:
    case = CASES[name]
    model, inputs, _ = prepare(case)
    probes = {"dead": Dormancy(0), "pre": GradientActivity("pre", 0), "weight": GradientActivity("weight", 0)}
    reading = measure(model, (inputs, None), loss_of, probes=probes)
    units = {layer: number for layer, number in reading.num_neurons.items() if layer not in reading.projections}
    for probe in probes if case.relu else ["dead"]:
        for layer, scores in reading.scores[probe].items():
            planted = case.planted.get(layer, [])
            assert (scores == 0).nonzero().flatten().tolist() == planted, (probe, layer)
            assert reading.values[probe][layer] == len(planted) / len(scores)
        assert reading.values[probe]["all"] == pytest.approx(sum(map(len, case.planted.values())) / sum(units.values()))


@pytest.mark.parametrize("name", ["mlp", "in-place relu, sequences", "conv", "residual", "transformer", "tanh"])
def test_the_training_passes_of_a_loop_give_the_same_numbers(name: str) -> None:
    model, inputs, hand = prepare(CASES[name])
    probes = make_probes(list(reference.PROBED))
    with Monitor(model, probes, passes="training", strict=True) as monitor:
        with torch.no_grad():
            model(*(3 * x for x in inputs))
        model(*(5 * x for x in inputs))  # with gradients, but no backward pass follows
        loss_of(model(*inputs)).backward()
        model(*(7 * x for x in inputs))
    reading = monitor.read()
    assert reading.num_passes == 1
    for probe in ("dormancy", "grama", "grama_weight", "grama_post"):
        for layer, scores in reading.scores[probe].items():
            np.testing.assert_allclose(
                scores.numpy(force=True), expected_scores(hand, probe, layer), rtol=1e-9, atol=1e-12
            )
    for layer, (_, h) in hand.hidden.items():
        axis = -3 if isinstance(model.get_submodule(layer), nn.Conv2d) else -1
        expected = reference.ranks(reference.rows(h, axis))["effective_rank"]
        assert reading.values["effective_rank"][layer] == pytest.approx(expected)


# -- the network's number ----------------------------------------------------------------------------------------------


def test_the_fraction_of_the_network_counts_neurons_not_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 1000), nn.ReLU(), nn.Linear(1000, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].bias.fill_(10)
        model[2].weight.fill_(1)
        model[2].bias[:2] = -1e6
    reading = measure(model, torch.randn(64, 3), probes={"dead": Dormancy(0)})
    assert reading.values["dead"] == {"0": 0, "2": 0.5, "all": 2 / 1004}


def test_ranks_of_the_network_are_means_over_layers() -> None:
    values = measure(models.mlp(), torch.randn(64, 4), probes=["effective_rank"]).values["effective_rank"]
    assert values["all"] == pytest.approx((values["0"] + values["2"]) / 2)


def test_a_dead_layer_is_reported_as_dead() -> None:
    model = models.functional()
    with torch.no_grad():
        model.a.bias.fill_(-100)
    reading = measure(model, (torch.randn(64, 4), None), loss_of)
    assert reading.values["dormancy"]["a"] == 1
    assert reading.values["grama"]["a"] == 1
    assert reading.values["effective_rank"]["a"] == 0
    assert not math.isnan(reading.values["dormancy"]["all"])


def test_quantiles_and_flat_names() -> None:
    reading = measure(models.mlp(), torch.randn(64, 4), probes=["dormancy"])
    scores = reading.scores["dormancy"]["0"].numpy(force=True)
    assert reading.quantile("dormancy", 0.1)["0"] == pytest.approx(np.quantile(scores, 0.1))
    assert set(reading.flat("x")) == {"x/dormancy/0", "x/dormancy/2", "x/dormancy/all"}


# -- nothing measured, nothing reported --------------------------------------------------------------------------------


def reasons(reading: Any, layer: str) -> dict[str, str]:
    """Return probe -> why it has no value for a layer."""
    return {entry.probe: entry.reason for entry in reading.unmeasured if entry.layer == layer}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_activations_are_never_healthy(bad: float) -> None:
    model = models.mlp()
    x = torch.randn(64, 4)
    x[10, 2] = bad
    with torch.no_grad():
        model[0].weight.abs_()
    reading = measure(model, (x, None), loss_of)
    assert all(math.isnan(v) for by_layer in reading.values.values() for v in by_layer.values())
    assert reasons(reading, "0") == {
        "dormancy": "non-finite values",
        "grama": "non-finite values",
        "rank": "non-finite features",
    }
    assert "non-finite" in str(reading)


def test_non_finite_gradients_do_not_spoil_the_activations() -> None:
    reading = measure(models.mlp(), (torch.randn(64, 4), None), lambda out, _: (out * math.inf).sum())
    assert math.isnan(reading.values["grama"]["all"])
    assert not math.isnan(reading.values["dormancy"]["all"])


def test_without_a_loss_there_are_no_gradients() -> None:
    reading = measure(models.mlp(), torch.randn(64, 4), probes=list(reference.PROBED))
    for probe in ("grama", "grama_weight", "grama_post"):
        assert all(math.isnan(v) for v in reading.values[probe].values())
        assert reasons(reading, "0")[probe] == "no gradient reached it"
    assert not any(math.isnan(v) for metric in RANKS for v in reading.values[metric].values())


def test_layers_without_a_value_say_why() -> None:
    reading = measure(models.build("unused")[0], torch.randn(64, 4))
    assert set(reasons(reading, "never").values()) == {"its forward was never called"}
    assert set(reasons(reading, "c").values()) == {"output layer"}
    assert list(reading.num_neurons) == ["a", "b"]

    def hidden_from_view(s: Any, x: Tensor) -> Tensor:
        return s.b(x + F.relu(F.layer_norm(s.a(x), (4,))))

    net = models.Net(hidden_from_view, a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    reading = measure(net, (torch.randn(64, 4), None), loss_of, probes=list(reference.PROBED))
    assert reasons(reading, "a")["dormancy"] == "no module sees its neurons after relu"
    assert math.isnan(reading.values["dormancy"]["a"])
    assert reasons(reading, "a")["grama"] == "no module sees the input of its activation, behind a norm"


def test_an_activation_out_of_sight_is_computed_again() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.b(x + F.relu(s.a(x)))

    net = models.Net(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 2)).double()
    x = torch.randn(64, 4, dtype=torch.float64)
    reading = measure(net, (x, None), loss_of, probes=["dormancy", "grama_post"])
    expected = reference.scores(reference.rows(F.relu(net.a(x))))
    np.testing.assert_allclose(reading.scores["dormancy"]["a"].numpy(force=True), expected)
    assert reasons(reading, "a") == {"grama_post": "its activation is a tensor that no module sees"}


def test_an_in_place_activation_out_of_sight_is_applied_once() -> None:
    net = models.Net(lambda s, x: s.b(x + F.leaky_relu_(s.a(x), 0.5)), a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    x = torch.randn(64, 4)
    expected = net(x)
    with Monitor(net, ["dormancy"]) as monitor:
        assert torch.equal(net(x), expected)
    scores = reference.scores(reference.rows(F.leaky_relu(net.a(x), 0.5)))
    np.testing.assert_allclose(monitor.read().scores["dormancy"]["a"], scores, rtol=1e-5)


# -- shapes and precision ----------------------------------------------------------------------------------------------


def test_two_columns_of_a_concatenated_rectifier_are_one_neuron() -> None:
    model = models.crelu().double()
    x = torch.randn(64, 4, dtype=torch.float64)
    z = model.a(x)
    expected = reference.scores(reference.rows(torch.cat([F.relu(z), F.relu(-z)])))
    np.testing.assert_allclose(measure(model, x).scores["dormancy"]["a"].numpy(force=True), expected)


def test_a_layer_called_twice_counts_both_calls() -> None:
    model = models.unused().double()
    x = torch.randn(64, 4, dtype=torch.float64)
    first = F.relu(model.b(F.relu(model.a(x))))
    expected = reference.scores(reference.rows(torch.cat([first, F.relu(model.b(first))])))
    np.testing.assert_allclose(measure(model, x).scores["dormancy"]["b"].numpy(force=True), expected)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 6, 2),
        nn.Conv2d(4, 6, 2, groups=2),
        nn.Conv2d(4, 4, 2, groups=4),
        nn.ConvTranspose2d(4, 6, 2),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
        nn.Linear(5, 6),
    ],
    ids=str,
)
def test_the_incoming_weights_of_a_neuron_are_those_that_move_it(module: nn.Module) -> None:
    x = torch.rand(2, 5) + 1 if isinstance(module, nn.Linear) else torch.rand(2, 4, 3, 3) + 1
    module = copy.deepcopy(module).to(x.device)
    rows = weight_rows(module, torch.arange(module.weight.numel()).view(module.weight.shape))
    for neuron, row in enumerate(rows):
        module.zero_grad()
        module(x)[:, neuron].sum().backward()
        assert sorted(row.tolist()) == module.weight.grad.flatten().nonzero().flatten().tolist()


@pytest.mark.parametrize("layout", ["nhwc", "pooled", "global mean"])
def test_a_channel_is_a_neuron_wherever_it_is_seen(layout: str) -> None:
    name = {"nhwc": "conv nhwc", "pooled": "max pool", "global mean": "global mean"}[layout]
    model, (x,) = models.build(name)
    conv = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    h = F.relu(conv(x))
    h = h.mean((2, 3)) if layout == "global mean" else h.movedim(1, -1)
    scores = next(iter(measure(model, x).scores["dormancy"].values()))
    np.testing.assert_allclose(scores.numpy(force=True), reference.scores(reference.rows(h)), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["model", "autocast"])
def test_half_precision_is_measured_in_full(dtype: torch.dtype, how: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(4096, 4)
    exact = measure(model, (x, None), loss_of, probes=list(reference.PROBED))
    if how == "model":
        half = measure(model.to(dtype), (x.to(dtype), None), loss_of, probes=list(reference.PROBED))
    else:
        with torch.autocast(models.place(), dtype):
            half = measure(model, (x, None), loss_of, probes=list(reference.PROBED))
    for probe in ("dormancy", "grama"):
        for layer, scores in exact.scores[probe].items():
            torch.testing.assert_close(half.scores[probe][layer], scores, rtol=0.1, atol=0.05)
    assert half.values["effective_rank"]["0"] == pytest.approx(exact.values["effective_rank"]["0"], rel=0.05)


def test_activations_beyond_the_range_of_half_precision_sums() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).half()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [2.0]]))
        model[0].bias.zero_()
    reading = measure(model, torch.ones(70_000, 1).half(), probes=["dormancy"])
    assert reading.scores["dormancy"]["0"].tolist() == pytest.approx([2 / 3, 4 / 3])


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="empty batch"):
        measure(models.mlp(), torch.zeros(0, 4))
