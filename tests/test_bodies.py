"""Bodies against second implementations written with functions, stable-baselines3, and numbers counted by hand."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from plasticity.agents.activations import (
    CReLU,
    Fourier,
    Hadamard,
    IntervalDropout,
    RandomSmoothLeaky,
    Rational,
    SmoothLeaky,
)
from plasticity.agents.bodies import Architecture, Body, make_body, widths
from plasticity.agents.networks import Actor, Critic
from plasticity.agents.normalise import RunningNorm, running_norms, update_norms
from plasticity.agents.parts import OverChannels, Scale
from plasticity.interventions.reset import reset_
from plasticity.surgery.initialisers import record_initialisers
from plasticity.surgery.origin import Origin

pytestmark = pytest.mark.usefixtures("everywhere")

SHAPES = {
    "mlp": (5,), "simba": (5,), "bronet": (5,),
    "nature_cnn": (2, 36, 38), "impala_cnn": (2, 9, 7), "minatar_cnn": (3, 5, 6),
}  # fmt: skip
NETWORKS = tuple(SHAPES)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def body(network: Any, hidden: tuple[int, ...] = (8, 8), extra_dim: int = 0, **options: Any) -> Body:
    return make_body(Architecture(network=network, **options), SHAPES[network], hidden, extra_dim)


def observations(network: str, num: int = 4) -> Tensor:
    shape = (num, *SHAPES.get(network, (5,)))
    return torch.randn(shape) if len(shape) == 2 else torch.randint(256, shape, dtype=torch.uint8)


def shuffle_(module: nn.Module) -> None:
    """Give norms gains and biases, and layers biases, that leave a trace."""
    with torch.no_grad():
        for part in module.modules():
            if not isinstance(part, (nn.Linear, nn.Conv2d)):
                for parameter in part._parameters.values():
                    parameter.add_(0.5 * torch.randn_like(parameter))
            elif part.bias is not None:
                part.bias.add_(0.1 * torch.randn_like(part.bias))


def weights(module: nn.Module) -> list[tuple[Tensor, Tensor | None]]:
    """Return weight and bias of every part that has them, in the order of registration."""
    return [(m.weight, getattr(m, "bias", None)) for m in module.modules() if "weight" in m._parameters]


# --- second implementations, from nothing but the weights in order ---


def naive_simba(net: nn.Module, obs: Tensor, extra: Tensor, num_blocks: int) -> Tensor:
    norm = net.encoder
    given = iter(weights(net))
    x = torch.cat([((obs.double() - norm.mean) / (norm.var + 1e-8) ** 0.5).float(), extra], 1)
    w, b = next(given)
    x = x @ w.T + b
    for _ in range(num_blocks):
        (g, c), (w1, b1), (w2, b2) = next(given), next(given), next(given)
        x = x + (layer_norm(x, g, c) @ w1.T + b1).clamp(min=0) @ w2.T + b2
    return layer_norm(x, *next(given))


def naive_bronet(net: nn.Module, obs: Tensor, extra: Tensor, num_blocks: int) -> Tensor:
    given = iter(weights(net))
    (w, b), norm = next(given), next(given)
    x = layer_norm(torch.cat([obs, extra], 1) @ w.T + b, *norm).clamp(min=0)
    for _ in range(num_blocks):
        (w1, b1), n1, (w2, b2), n2 = next(given), next(given), next(given), next(given)
        x = x + layer_norm(layer_norm(x @ w1.T + b1, *n1).clamp(min=0) @ w2.T + b2, *n2)
    return x


def naive_impala(net: nn.Module, obs: Tensor, extra: Tensor) -> Tensor:
    given = iter(weights(net))
    x = obs.float() / 255

    def conv(x: Tensor) -> Tensor:
        return F.conv2d(x, *next(given), padding=1)

    for _ in range(3):
        x = F.max_pool2d(conv(x), 3, 2, 1)
        for _ in range(2):
            x = x + conv(F.relu(conv(F.relu(x))))
    x = torch.cat([F.relu(x).flatten(1), extra], 1)
    return F.relu(F.linear(x, *next(given)))


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain + bias


def test_simba_equals_a_second_implementation() -> None:
    net, obs, action = body("simba", (6, 6, 6), extra_dim=2), observations("simba"), torch.randn(4, 2)
    update_norms([net], 3 * torch.randn(50, 5) + 1)
    shuffle_(net)
    torch.testing.assert_close(net(obs, action), naive_simba(net, obs, action, 3))
    assert [m.weight.shape[0] for m in net.modules() if isinstance(m, nn.Linear)] == [6, 24, 6, 24, 6, 24, 6]


def test_bronet_equals_a_second_implementation() -> None:
    net, obs, action = body("bronet", (6, 6), extra_dim=2), observations("bronet"), torch.randn(4, 2)
    shuffle_(net)
    torch.testing.assert_close(net(obs, action), naive_bronet(net, obs, action, 2))


def test_impala_equals_a_second_implementation() -> None:
    net, obs, action = body("impala_cnn", (7,), extra_dim=2), observations("impala_cnn"), torch.randn(4, 2)
    shuffle_(net)
    torch.testing.assert_close(net(obs, action), naive_impala(net, obs, action))
    # 9 x 7 -> 5 x 4 -> 3 x 2 -> 2 x 1, and 32 channels
    assert net.trunk[0].in_features == 2 * 1 * 32 + 2


def test_nature_cnn_equals_stable_baselines3() -> None:
    torch_layers = pytest.importorskip("stable_baselines3.common.torch_layers")
    twin = torch_layers.NatureCNN(spaces.Box(0, 255, (4, 84, 84), np.uint8), features_dim=512)
    net = make_body(Architecture(network="nature_cnn"), (4, 84, 84), (512,))
    for mine, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        mine.data.copy_(theirs)
    images = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    torch.testing.assert_close(net(images), twin(images.float() / 255))


def test_minatar_cnn_has_the_size_of_the_paper() -> None:
    net = make_body(Architecture(network="minatar_cnn"), (4, 10, 10), (128,))
    assert sum(p.numel() for p in net.parameters()) == (4 * 9 + 1) * 16 + (8 * 8 * 16 + 1) * 128


# --- options ---


@pytest.mark.parametrize("network", NETWORKS)
def test_usual_widths_give_features_of_the_stated_number(network: Any) -> None:
    for role in ("policy", "value"):
        architecture = Architecture(network=network)
        net = make_body(architecture, SHAPES[network], widths(architecture, role), 3)
        features = net(observations(network), torch.randn(4, 3))
        assert features.shape == (4, net.num_features)
        assert net.num_features == widths(architecture, role)[-1]


def test_widths() -> None:
    assert widths(Architecture(), "policy") == (256, 256)
    assert widths(Architecture(), "value", default=(64,)) == (64,)
    assert widths(Architecture(network="simba"), "policy", default=(64,)) == (128,)
    assert widths(Architecture(network="simba"), "value") == (512, 512)
    assert widths(Architecture(network="bronet"), "policy") == (256,)
    assert widths(Architecture(network="nature_cnn"), "value") == (512,)
    assert widths(Architecture(network="simba", hidden=()), "value") == ()


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
def test_an_mlp_is_linear_norm_activation(norm: Any) -> None:
    kinds = {"none": [], "layer": [nn.LayerNorm], "rms": [nn.RMSNorm]}[norm]
    net = body("mlp", (7, 6), norm=norm, activation="tanh")
    assert [type(m) for m in net.trunk] == [nn.Linear, *kinds, nn.Tanh] * 2
    assert [tuple(m.weight.shape) for m in net.trunk if isinstance(m, nn.Linear)] == [(7, 5), (6, 7)]


def test_an_mlp_without_hidden_layers_passes_the_observation_on() -> None:
    net, obs, action = body("mlp", (), extra_dim=2), observations("mlp"), torch.randn(4, 2)
    assert net.num_features == 7
    assert torch.equal(net(obs, action), torch.cat([obs, action], 1))


def test_crelu_by_hand() -> None:
    x = torch.tensor([[1.0, -2.0, 0.0]])
    assert CReLU()(x).tolist() == [[1, 0, 0, 0, 2, 0]]
    assert CReLU()(x[:, :, None, None]).flatten().tolist() == [1, 0, 0, 0, 2, 0]


def test_fourier_features_by_hand() -> None:
    x = torch.tensor([[0.0, math.pi / 2]])
    torch.testing.assert_close(Fourier()(x), torch.tensor([[0.0, 1.0, 1.0, 0.0]]), rtol=0, atol=1e-6)


def test_hadamard_by_hand() -> None:
    assert Hadamard()(torch.tensor([[0.5, 1.0]])).item() == pytest.approx(math.tanh(0.5) * math.tanh(1.0), abs=1e-6)
    assert body("mlp", (8, 6), activation="hadamard").num_features == 3
    with pytest.raises(ValueError, match="hadamard makes one feature of two neurons; an odd number of them, 7"):
        body("mlp", (7, 6), activation="hadamard")


def test_smooth_leaky_is_the_papers_and_its_slope_is_positive_everywhere() -> None:
    x = torch.linspace(-12, 12, 601, requires_grad=True)
    out = SmoothLeaky()(x)
    torch.testing.assert_close(out, 0.1 * x + 0.9 * x / (1 + torch.exp(-5 * x / 3)), rtol=1e-5, atol=1e-6)
    assert SmoothLeaky()(torch.tensor(-3.0)).item() == pytest.approx(-0.318071, abs=1e-6)
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert slope.min().item() == pytest.approx(0.0101, abs=1e-3)
    torch.testing.assert_close(slope[[0, 300, -1]], torch.tensor([0.1, 0.55, 1.0]), rtol=0, atol=1e-4)


def test_random_smooth_leaky_draws_a_slope_for_every_entry_between_its_bounds() -> None:
    torch.manual_seed(0)
    activation, x = RandomSmoothLeaky(), torch.full((4000,), -3.0, requires_grad=True)
    out = activation(x)
    bend = activation.bend(x)  # slopes are read off the values
    slopes = ((out - bend) / (x - bend)).detach()
    assert float(slopes.min()) >= 1 / 8 - 1e-6
    assert float(slopes.max()) <= 1 / 3 + 1e-6
    assert float(slopes.mean()) == pytest.approx((1 / 8 + 1 / 3) / 2, abs=3e-3)
    assert float(slopes.var()) == pytest.approx((1 / 3 - 1 / 8) ** 2 / 12, rel=0.05)
    with torch.no_grad():
        torch.testing.assert_close(activation(x), SmoothLeaky((1 / 8 + 1 / 3) / 2)(x))


def test_interval_dropout_is_a_relu_or_its_mirror_image_and_their_mean_without_gradients() -> None:
    x = torch.linspace(-1, 1, 20_000)
    out = IntervalDropout(keep=0.75)(x)
    kept = out != 0
    assert torch.equal(out[kept], x[kept])
    shares = [kept[x > 0].float().mean().item(), kept[x < 0].float().mean().item()]
    assert shares == pytest.approx([0.75, 0.25], abs=0.02)
    with torch.no_grad():
        torch.testing.assert_close(IntervalDropout(keep=0.75)(x), torch.where(x > 0, 0.75 * x, 0.25 * x))


def test_a_rational_begins_as_a_leaky_relu_and_is_the_quotient_of_its_polynomials() -> None:
    unit, x = Rational(), torch.linspace(-3, 3, 61)
    torch.testing.assert_close(unit(x), nn.functional.leaky_relu(x), rtol=0, atol=0.05)
    a, b = unit.numerator.tolist(), unit.denominator.tolist()
    for value in (-2.0, 0.5, 3.0):
        expected = sum(c * value**i for i, c in enumerate(a)) / (1 + sum(abs(c * value**j) for j, c in enumerate(b, 1)))
        assert unit(torch.tensor([value])).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("network", sorted(set(NETWORKS) - {"bronet"}))
def test_crelu_doubles_what_the_next_layer_receives_not_the_neurons(network: Any) -> None:
    plain, doubled = body(network), body(network, activation="crelu")
    neurons, more = ([w.shape[0] for w, _ in weights(net) if w.dim() > 1] for net in (plain, doubled))
    assert neurons == more
    assert doubled.num_features == (8 if network == "simba" else 16)  # behind simba's last norm stands no activation
    assert doubled(observations(network)).shape == (4, doubled.num_features)


@pytest.mark.parametrize("activation", ["tanh", "gelu", "silu", "leaky_relu"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_activation_takes_the_place_of_every_relu(network: Any, activation: Any) -> None:
    kind = {"tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "leaky_relu": nn.LeakyReLU}[activation]
    plain, other = body(network), body(network, activation=activation)
    assert [kind if isinstance(m, nn.ReLU) else type(m) for m in plain.modules()] == [type(m) for m in other.modules()]
    assert any(isinstance(m, kind) for m in other.modules())


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("network", sorted(set(NETWORKS) - {"bronet"}))
def test_a_norm_stands_before_every_activation(network: Any, norm: Any) -> None:
    kind = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[norm]
    leaves = [m for m in body(network, norm=norm).modules() if not list(m.children())]
    before = [leaves[i - 1] for i, m in enumerate(leaves) if isinstance(m, nn.ReLU)]
    assert len(before) >= 2
    assert all(isinstance(m, kind) for m in before)


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_norms_of_images_run_over_the_channels_of_each_position(kind: Any) -> None:
    norm, x = kind(3), torch.randn(2, 3, 4, 5)
    shuffle_(norm)
    expected = torch.stack([norm(x[:, :, i, j]) for i in range(4) for j in range(5)], -1).view(2, 3, 4, 5)
    torch.testing.assert_close(OverChannels(norm)(x), expected)


def test_images_of_bytes_are_scaled_and_images_of_floats_are_not() -> None:
    assert Scale()(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    assert Scale()(torch.tensor([0.0, 51.0])).tolist() == [0, 51]
    net, images = body("minatar_cnn"), observations("minatar_cnn")
    assert torch.equal(net(images), net(images / 255))
    assert not torch.allclose(net(images), net(images.float()))


def test_the_action_is_joined_behind_the_convolutions_and_behind_the_running_norm() -> None:
    for network in NETWORKS:
        net, obs = body(network, extra_dim=2), observations(network)
        update_norms([net], 100 + obs)
        zero, one = torch.zeros(4, 2), torch.ones(4, 2)
        with torch.no_grad():
            moved = net.trunk(torch.cat([net.encoder(obs), one], 1))
        assert torch.equal(net(obs, one), moved)
        assert not torch.equal(net(obs, zero), moved)


# --- initialisation ---


def test_initial_weights_are_those_of_the_authors() -> None:
    simba, bronet = body("simba", (64,) * 2), body("bronet", (64,) * 2)
    for net in (simba, bronet):
        assert all(not m.bias.any() for m in net.modules() if isinstance(m, nn.Linear))
    torch.testing.assert_close(simba.trunk[0].weight.T @ simba.trunk[0].weight, torch.eye(5))
    block = bronet.trunk[3][0].weight
    torch.testing.assert_close(block @ block.T, 2 * torch.eye(64))
    for wide in (simba.trunk[1][1], simba.trunk[1][3]):
        fan_in = wide.in_features
        assert wide.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.02)
        assert wide.weight.abs().max().item() <= 2 * math.sqrt(2 / fan_in) / 0.8796


def test_surgery_reads_off_how_each_layer_was_initialised() -> None:
    laws = {n: i.weight_law for n, i in record_initialisers(body("simba", (64,))).items()}
    assert {n: law.kind for n, law in laws.items()} == {
        "trunk.0": "orthogonal", "trunk.1.1": "truncated", "trunk.1.3": "truncated"
    }  # fmt: skip
    assert laws["trunk.0"].parameters == (1.0,)
    laws = {n: i.weight_law for n, i in record_initialisers(body("bronet", (64,))).items()}
    assert {law.kind for law in laws.values()} == {"orthogonal"}
    assert laws["trunk.3.0"].parameters == pytest.approx((math.sqrt(2),), abs=1e-4)


# --- errors ---


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        ("nature_cnn", (5,), r"'nature_cnn' does not take .* shape \(5,\): .*vectors are mlp, .*simba, bronet"),
        ("mlp", (3, 64, 64), r"'mlp' does not take .*images .* are nature_cnn, impala_cnn, softmoe_cnn, minatar_cnn"),
        ("simba", (3, 64, 64), "'simba' does not take"),
        ("mlp", (4, 4), r"shape \(4, 4\): reshape or flatten"),
        ("nature_cnn", (3, 35, 64), "nature_cnn needs images of at least 36 x 36, got .* minatar_cnn takes small"),
        ("minatar_cnn", (3, 2, 9), "at least 3 x 3"),
    ],
)
def test_observations_that_do_not_fit(network: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_body(Architecture(network=network), shape, (8,))


@pytest.mark.parametrize(
    ("options", "hidden", "message"),
    [
        ({"network": "simba"}, (8, 6), r"simba has one residual block per entry of hidden.*got \(8, 6\)"),
        ({"network": "bronet"}, (), "bronet has one residual block per entry"),
        ({"network": "bronet", "norm": "rms"}, (8,), "bronet has a LayerNorm before every activation"),
        ({"network": "bronet", "activation": "crelu"}, (8,), "bronet takes no crelu"),
        ({"network": "mlp"}, (8, 0), r"at least 1, got \(8, 0\)"),
    ],
)
def test_options_that_do_not_fit(options: Any, hidden: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_body(Architecture(**options), (5,), hidden)


# --- running norm ---


def test_running_norm_equals_numpy_on_all_that_it_has_seen() -> None:
    norm, generator = RunningNorm((3,), eps=0.0), np.random.default_rng(0)
    offset = np.array([0.0, 1e6, -50.0])
    batches = [offset + generator.normal(size=(size, 3)) * [1, 0.01, 30] for size in (1, 7, 1, 64, 3)]
    for batch in batches:
        norm.update(torch.tensor(batch))
    seen = np.concatenate(batches)
    assert norm.count.item() == len(seen)
    np.testing.assert_allclose(norm.mean.numpy(force=True), seen.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(norm.var.numpy(force=True), seen.var(0), rtol=1e-7)
    normal = norm(torch.tensor(seen))
    np.testing.assert_allclose(normal.numpy(force=True), (seen - seen.mean(0)) / seen.std(0), rtol=1e-5, atol=1e-6)


def test_running_norm_by_hand() -> None:
    norm = RunningNorm((1,))
    assert norm(torch.tensor([[3.0]])).item() == pytest.approx(3)  # mean 0, var 1
    norm.update(torch.tensor([[1.0], [3.0]]))
    norm.update(torch.tensor([[8.0]]))
    # mean of 1, 3, 8 is 4, var (9 + 1 + 16) / 3
    assert (norm.mean.item(), norm.var.item()) == pytest.approx((4, 26 / 3))
    assert norm(torch.tensor([[10.0]])).item() == pytest.approx(6 / math.sqrt(26 / 3))
    assert norm(torch.tensor([[10.0]])).dtype == torch.float32


def test_running_norm_clips_and_a_constant_stays_zero() -> None:
    norm = RunningNorm((2,), clip=1.5)
    norm.update(torch.tensor([[0.0, 7.0], [2.0, 7.0]]))
    assert norm(torch.tensor([[9.0, 7.0], [-9.0, 7.0]])).tolist() == [[1.5, 0], [-1.5, 0]]


def test_running_norm_only_moves_when_told_and_in_place() -> None:
    norm = RunningNorm((2,)).train()
    held = norm.mean
    norm(torch.randn(9, 2))
    assert norm.count == 0
    norm.update(torch.ones(1, 2))
    assert norm.mean is held
    assert held.tolist() == [1, 1]
    other = RunningNorm((2,))
    other.load_state_dict(norm.state_dict())
    assert torch.equal(other.mean, norm.mean)


def test_a_reset_of_the_network_keeps_what_is_known_of_observations() -> None:
    net = body("simba")
    update_norms([net], torch.randn(9, 5))
    before, mean = net.trunk[0].weight.clone(), net.encoder.mean.clone()
    reset_(net, Origin.of(net), [], torch.Generator("cpu").manual_seed(1))
    assert not torch.equal(net.trunk[0].weight, before)
    assert torch.equal(net.encoder.mean, mean)
    assert net.encoder.count == 9


def test_update_norms_takes_every_norm_once() -> None:
    net = body("simba")
    twin = copy.deepcopy(net)
    update_norms([net, twin, net, nn.Sequential(net), body("mlp")], torch.randn(6, 5))
    assert [norm.count.item() for norm in (net.encoder, twin.encoder)] == [6, 6]
    assert running_norms([net, net, twin]) == [net.encoder, twin.encoder]
    update_norms(running_norms([net]), torch.randn(1, 5))
    assert net.encoder.count == 7


@pytest.mark.parametrize("shape", [(5,), (2, 4), (2, 5, 1)])
def test_running_norm_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs observations of shape \(batch, 5\), got"):
        RunningNorm((5,)).update(torch.zeros(shape))


@pytest.mark.parametrize(("network", "gain", "spread"), [("simba", 1.0, 1.0), ("bronet", math.sqrt(2), 1.0)])
@pytest.mark.parametrize("head", ["linear", "unit"])
def test_output_layers_begin_as_in_the_released_code(network: str, gain: float, spread: float, head: str) -> None:
    actor, critic = Actor(body(network, (32,)), 3), Critic(body(network, (32,), extra_dim=2), head)
    for layer, scale in ((actor.mean, gain), (actor.log_std, spread), (critic.q[-1], gain)):
        torch.testing.assert_close(layer.weight @ layer.weight.T, scale**2 * torch.eye(len(layer.weight)))
        assert not layer.bias.any()
    plain = Actor(make_body(Architecture(network=network, outputs="default"), (5,), (32,)), 3)
    assert plain.mean.bias.any()
    assert float(plain.mean.weight.detach().abs().max()) <= 32**-0.5


@pytest.mark.parametrize("hidden", [(6,), (6, 6), (8, 8, 8)])
@pytest.mark.parametrize("network", ["simba", "bronet"])
def test_layer_norms_have_the_epsilon_of_flax(network: str, hidden: tuple[int, ...]) -> None:
    """A row of variance 1e-6 comes out with variance 1e-6 / (1e-6 + epsilon)."""
    norms = [module for module in body(network, hidden).modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 1 + len(hidden) * (1 if network == "simba" else 2)
    for norm in norms:
        signs = torch.tensor([1.0, -1.0] * (hidden[0] // 2))
        torch.testing.assert_close(norm(1e-3 * signs), signs / 2**0.5)
