"""Closed forms of the policy's density; and every neuron of every network within reach of probes and surgery."""

import itertools
import math
from typing import Any

import models
import pytest
import torch
from test_bodies import SHAPES, body, observations
from test_wiring import Perturbed
from torch import Tensor, nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from plasticity import Monitor, Reading, wiring
from plasticity.agents.activations import CReLU
from plasticity.agents.networks import Actor, Critic, squashed_gaussian
from plasticity.agents.parts import ACTIVATIONS, NORMS, OverChannels
from plasticity.interventions.injection import find_heads
from plasticity.surgery.initialisers import record_initialisers
from plasticity.surgery.permission import refusals
from plasticity.surgery.recycle import recycle_

pytestmark = pytest.mark.usefixtures("everywhere")

HIDDEN = (8, 8)


def test_log_prob_equals_torch_distributions() -> None:
    mean, log_std, noise = models.normal(3, 64, 3, dtype=torch.float64).mul(0.5)
    action, log_prob = squashed_gaussian(mean, log_std, noise)
    policy = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform(cache_size=1))
    expected = policy.log_prob(torch.tanh(mean + log_std.exp() * noise)).sum(-1)
    torch.testing.assert_close(log_prob, expected, rtol=0, atol=1e-3)  # 3 log(1 + 1e-6 / (1 - a^2)) at |u| <= 4
    inner = (action.abs() < 0.9).all(-1)
    assert inner.sum() > 20
    torch.testing.assert_close(log_prob[inner], expected[inner], rtol=0, atol=2e-5)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.4), (-1.0, 0.8)])
def test_density_integrates_to_one_and_gives_the_mean_action(mean: float, std: float) -> None:
    noise = torch.linspace(-8, 8, 40_001, dtype=torch.float64).unsqueeze(-1)
    parameters = torch.full_like(noise, mean), torch.full_like(noise, math.log(std))
    action, log_prob = squashed_gaussian(*parameters, noise)
    assert torch.trapezoid(log_prob.exp(), action[:, 0]).item() == pytest.approx(1, abs=1e-4)
    mean_action = torch.trapezoid(log_prob.exp() * action[:, 0], action[:, 0])
    normal = torch.exp(Normal(0.0, 1.0).log_prob(noise[:, 0]))
    assert mean_action.item() == pytest.approx(torch.trapezoid(normal * action[:, 0], noise[:, 0]).item(), abs=1e-4)


def test_log_prob_by_hand() -> None:
    # u = 0.5 + 2 * 0.25 = 1; log N = -0.25^2/2 - log 2 - log(2 pi)/2; 1 - tanh(1)^2 = 0.41997
    action, log_prob = squashed_gaussian(torch.tensor([[0.5]]), torch.tensor([[math.log(2)]]), torch.tensor([[0.25]]))
    assert action.item() == pytest.approx(0.761594)
    assert log_prob.item() == pytest.approx(-0.03125 - 0.693147 - 0.918939 - math.log(0.419974), abs=1e-5)


def test_saturated_policy_has_finite_log_prob_and_gradients() -> None:
    mean = torch.tensor([[40.0, -40.0]], requires_grad=True)
    _, log_prob = squashed_gaussian(mean, torch.full((1, 2), 2.0), torch.ones(1, 2))
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert mean.grad is not None
    assert mean.grad.isfinite().all()


# --- the shape of the heads ---


def named_layers(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def test_layers_have_short_names() -> None:
    assert named_layers(Critic(body("mlp", extra_dim=2))) == ["q.0", "q.2", "q.4"]
    assert named_layers(Actor(body("mlp"), 2)) == ["trunk.0", "trunk.2", "mean", "log_std"]
    assert named_layers(Critic(body("minatar_cnn", extra_dim=2))) == ["encoder.1", "q.0", "q.2", "q.4"]


def test_shapes_and_bounds_of_log_std() -> None:
    actor, critic = Actor(body("mlp"), 2), Critic(body("mlp", extra_dim=2))
    assert critic(torch.zeros(5, 5), torch.zeros(5, 2)).shape == (5,)
    with torch.no_grad():
        actor.log_std.bias.copy_(torch.tensor([-100.0, 100.0]))
    mean, log_std = actor(torch.zeros(5, 5))
    assert mean.shape == (5, 2)
    torch.testing.assert_close(log_std, torch.tensor([[-20.0, 2.0]]).expand(5, 2))


def test_actor_without_hidden_layers_is_linear() -> None:
    actor = Actor(body("mlp", ()), 2)
    obs = torch.randn(3, 5)
    torch.testing.assert_close(actor(obs)[0], actor.mean(obs))


@pytest.mark.parametrize("network", SHAPES)
def test_plasticity_injection_finds_the_last_hidden_layers_and_the_output(network: Any) -> None:
    critic = Critic(body(network, extra_dim=2))
    (head,) = find_heads(critic)
    assert str(head) == {"simba": "q.2:", "bronet": "q.4:"}.get(network, "q.2:")


# --- every neuron is seen, on every network ---


FIRST = ("relu", "tanh", "gelu", "silu", "leaky_relu", "crelu")
LATER = (("mlp", "none"), ("minatar_cnn", "layer"))


def combinations() -> list[tuple[str, str, str]]:
    """Every network with every norm and activation that it takes; of the later activations two networks each."""
    every = itertools.product(SHAPES, NORMS, FIRST)
    later = [(net, norm, act) for net, norm in LATER for act in ACTIVATIONS if act not in FIRST]
    return [
        *((net, norm, act) for net, norm, act in every if net != "bronet" or (norm != "rms" and act != "crelu")),
        *later,
    ]


def num_neurons(network: str, hidden: tuple[int, ...]) -> int:
    """Hidden neurons, counted on the drawings of the papers."""
    return {
        "mlp": sum(hidden),
        "simba": hidden[0] * (1 + 5 * len(hidden)),
        "bronet": hidden[0] * (1 + 2 * len(hidden)),
        "nature_cnn": 32 + 64 + 64 + sum(hidden),
        "impala_cnn": 5 * (16 + 32 + 32) + sum(hidden),
        "minatar_cnn": 16 + sum(hidden),
    }[network]


def build(network: Any, norm: Any, activation: Any, head: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a network with a head of SAC, or with one output per action, and a batch for it."""
    options = {"norm": norm, "activation": activation}
    obs, action = observations(network, 6), torch.randn(6, 2)
    if head == "critic":
        return Critic(body(network, extra_dim=2, **options)), (obs, action)
    trunk = body(network, **options)
    return (Actor(trunk, 2) if head == "actor" else nn.Sequential(trunk, nn.Linear(trunk.num_features, 3))), (obs,)


def read(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Monitor, Reading]:
    """Return what dormancy and GraMa say of one training pass."""
    with Monitor(model, ["dormancy", "grama"], strict=True) as monitor:
        out = model(*inputs)
        sum(part.square().sum() for part in (out if isinstance(out, tuple) else (out,))).backward()
    return monitor, monitor.read()


def assert_every_neuron_is_reported(model: nn.Module, inputs: tuple[Tensor, ...], expected: int) -> None:
    monitor, reading = read(model, inputs)
    assert [f"{la.name}: {la.unresolved}" for la in monitor.wiring.layers.values() if la.unresolved] == []
    assert sum(reading.num_neurons.values()) == expected
    for probe in ("dormancy", "grama"):
        assert {name: len(scores) for name, scores in reading.scores[probe].items()} == reading.num_neurons
        assert all(math.isfinite(value) for value in reading.values[probe].values()), (probe, reading.values[probe])
    assert [c for c in reading.coverage if not c.measured and c.reason != "output layer"] == []


@pytest.mark.parametrize(("network", "norm", "activation"), combinations())
@pytest.mark.some(40)
def test_probes_report_every_hidden_neuron_of_a_critic(network: str, norm: str, activation: str) -> None:
    model, inputs = build(network, norm, activation, "critic")
    assert_every_neuron_is_reported(model, inputs, num_neurons(network, HIDDEN))


@pytest.mark.parametrize("head", ["actor", "discrete"])
@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("network", SHAPES)
def test_probes_report_every_hidden_neuron_behind_other_heads(network: str, norm: str, head: str) -> None:
    activation = "tanh" if norm == "layer" else "relu"
    model, inputs = build(network, norm, activation, head)
    assert_every_neuron_is_reported(model, inputs, num_neurons(network, HIDDEN))


MIXED = [
    ("mlp", "rms", "crelu"), ("simba", "rms", "crelu"), ("bronet", "none", "gelu"), ("nature_cnn", "layer", "crelu"),
    ("minatar_cnn", "rms", "crelu"), ("impala_cnn", "none", "crelu"),
]  # fmt: skip


@pytest.mark.parametrize(("network", "norm", "activation"), MIXED)
def test_dormancy_scores_are_those_of_the_activations(network: str, norm: str, activation: str) -> None:
    """The score of a neuron by hand: of what its activation module gives out, over all that it gives out."""
    model, inputs = build(network, norm, activation, "critic")
    outputs: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, args, out, name=name: outputs.update({name: out.detach()}))
    model(*inputs)
    leaves = [n for n, m in model.named_modules() if not isinstance(m, (nn.LayerNorm, nn.RMSNorm, OverChannels))]
    checked = 0
    for name, scores in read(model, inputs)[1].scores["dormancy"].items():
        after = leaves[leaves.index(name) + 1]
        together = after.rpartition(".")[0] == name.rpartition(".")[0]  # else a stream was summed in between
        if together and isinstance(model.get_submodule(after), (nn.GELU, CReLU)):
            seen = outputs[after].abs().transpose(0, 1).flatten(1).mean(1)  # by feature or channel
            mean = seen.view(-1, len(scores)).mean(0)  # CReLU: the two halves are the same neurons
            torch.testing.assert_close(scores.float(), (mean / mean.mean()).cpu(), rtol=1e-4, atol=1e-5)
            checked += 1
    assert checked >= 2


@pytest.mark.parametrize(("network", "norm", "activation"), MIXED)
def test_columns_are_those_that_perturbing_a_neuron_moves(network: str, norm: str, activation: str) -> None:
    model, inputs = build(network, norm, activation, "critic")
    wired, brute = wiring(model, *inputs), Perturbed(model, inputs)
    for layer in list(wired.layers.values())[-6:]:  # the fully connected part and the convolutions that feed it
        said: dict[str, set[tuple[int, int]]] = {}
        for c in layer.consumers:
            said.setdefault(c.layer, set()).update((n, j) for j, n in enumerate(c.columns.tolist()) if n >= 0)
        moved = {consumer: pairs for consumer, pairs in brute.changes(layer.name).items() if pairs}
        assert said == moved, layer.name


@pytest.mark.parametrize(("network", "norm", "activation"), combinations())
@pytest.mark.some(40)
def test_neurons_are_recycled_or_refused_as_writers_of_a_stream(network: str, norm: str, activation: str) -> None:
    model, inputs = build(network, norm, activation, "critic")
    wired, initialisers = wiring(model, *inputs), record_initialisers(model)
    generator, writers = torch.Generator().manual_seed(0), []
    for layer in wired.hidden:
        reason = refusals(wired, layer.name)
        if reason is not None:
            assert f"{layer.name} writes to a residual stream" in reason
            writers.append(layer.name)
            continue
        flags = torch.zeros(layer.num_neurons, dtype=torch.bool)
        flags[[0, -1]] = True
        recycle_(wired, {layer.name: flags}, initialisers=initialisers, generator=generator)
    assert len(writers) == {"simba": 3, "bronet": 3, "impala_cnn": 9}.get(network, 0)
    if norm == "none" and network != "bronet":  # else the statistics of a norm carry every neuron on
        with torch.no_grad():
            before = model(*inputs)
            for layer in wired.hidden:
                if layer.name not in writers:
                    layer.module.bias[[0, -1]] += 100
            assert torch.equal(model(*inputs), before)
