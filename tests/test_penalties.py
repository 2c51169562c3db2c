"""Penalties on weights, and projections: golden numbers, naive implementations, any loop, compiled, resumed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import models
import numpy as np
import pytest
import torch
from test_interventions import FREQUENT, run_sac, small_sac, weights
from torch import Tensor, nn, optim

from plasticity.callback import Context, start
from plasticity.interventions import INTERVENTIONS, Hyperspherical, L2Init, Parseval, WeightClipping
from plasticity.interventions.nap import NormalizeAndProject, rescale_
from plasticity.interventions.parseval import parseval
from plasticity.interventions.spectral import power_iteration_
from plasticity.interventions.weight_penalty import WeightPenalty, trained
from plasticity.interventions.weight_projection import WeightProjection

pytestmark = pytest.mark.usefixtures("everywhere")

PENALTIES = [name for name, kind in INTERVENTIONS.items() if issubclass(kind, WeightPenalty)]
OURS = [name for name, kind in INTERVENTIONS.items() if issubclass(kind, (WeightPenalty, WeightProjection))]


def vector(*values: float) -> nn.Linear:
    """A layer with one neuron and these weights."""
    layer = nn.Linear(len(values), 1, bias=False)
    set_(layer.weight, [list(values)])
    return layer


def set_(parameter: Tensor, values: Any) -> None:
    with torch.no_grad():
        parameter.copy_(torch.tensor(values))


def begun(name: str, net: nn.Module, **settings: Any) -> Any:
    """A method on a network in a loop without an agent."""
    method = INTERVENTIONS[name](**settings)
    method.on_train_start(Context({"net": net}, {"net": optim.SGD(net.parameters(), 0.1)}))
    return method


def value_and_gradient(method: WeightPenalty, net: nn.Module) -> tuple[float, list[Tensor]]:
    parameters = trained(net)
    value = method.coef * method.penalty("net", parameters)
    return value.item(), list(torch.autograd.grad(value, list(parameters.values()), allow_unused=True))


# -- golden numbers ----------------------------------------------------------------------------------------------------


def test_l2_init_by_hand() -> None:
    net = vector(1.0, -1.0)
    method = begun("l2_init", net, coef=0.01)
    set_(net.weight, [[2.0, 1.0]])
    value, (gradient,) = value_and_gradient(method, net)
    assert value == pytest.approx(0.025)
    torch.testing.assert_close(gradient, torch.tensor([[0.01, 0.02]]))
    method.power = "l1"
    assert value_and_gradient(method, net)[0] == pytest.approx(0.03)
    method.power = "huber"  # 0.5 * 1 + (2 - 0.5)
    assert value_and_gradient(method, net)[0] == pytest.approx(0.02)


def test_wasserstein_init_by_hand() -> None:
    net = vector(1.0, 2.0, 0.0)
    method = begun("wasserstein_init", net, coef=1.0)
    set_(net.weight, [[3.0, 1.0, 2.0]])
    assert value_and_gradient(method, net)[0] == pytest.approx(3.0)
    assert value_and_gradient(begun_at("l2_init", net, [[1.0, 2.0, 0.0]], coef=2.0), net)[0] == pytest.approx(9.0)
    set_(net.weight, [[0.0, 1.0, 2.0]])  # the same numbers in another order
    assert value_and_gradient(method, net)[0] == 0


def begun_at(name: str, net: nn.Linear, first: list[list[float]], **settings: Any) -> Any:
    now = net.weight.detach().tolist()
    set_(net.weight, first)
    method = begun(name, net, **settings)
    set_(net.weight, now)
    return method


def test_parseval_by_hand() -> None:
    weight = torch.tensor([[1.0, 1.0], [0.0, 2.0]], requires_grad=True)
    value = parseval(weight, 2.0)
    (gradient,) = torch.autograd.grad(value, weight)
    assert value.item() == pytest.approx(12)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 16.0], [8.0, 24.0]]))
    rows = weight.detach()
    closed = 4 * (rows @ rows.T - 2 * torch.eye(2)) @ rows
    torch.testing.assert_close(gradient, closed)
    assert parseval(weight, 1.0, normalise=True).item() == pytest.approx(2 * 0.5)  # cosine 1/sqrt(2), twice
    assert parseval(weight, 2.0, groups=2).item() == pytest.approx((2 - 2) ** 2 + (4 - 2) ** 2)
    with pytest.raises(ValueError, match="groups must divide the neurons of every hidden layer; 3 does not divide 2"):
        parseval(weight, 2.0, groups=3)


def test_parseval_begins_at_0_for_orthogonal_layers_and_leaves_the_ends_alone() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.orthogonal_(net[2].weight, 2**0.5)
    method = begun("parseval", net)
    net(models.normal(5, 4)).sum().backward()
    value, gradients = value_and_gradient(method, net)
    assert value == pytest.approx(0, abs=1e-9)
    assert [g is not None for g in gradients] == [False, False, True, False, False, False]
    with torch.no_grad():
        net[2].weight.mul_(2)  # W W^T = 8 I, 8 neurons, and (64 / 8)^2 of the code's scale
    assert value_and_gradient(method, net)[0] == pytest.approx(1e-3 * 8 * 36, rel=1e-5)
    official = Parseval(preset="official")
    official.chosen, official.depths = method.chosen, method.depths
    assert official.penalty("net", trained(net)).item() == pytest.approx(64 * 8 * 36, rel=1e-5)


@pytest.mark.parametrize(("power", "expected"), [(2, 9.0), (1, 1.0)])
def test_spectral_by_hand(power: int, expected: float) -> None:
    net = nn.Linear(2, 2, bias=False)
    set_(net.weight, [[2.0, 0.0], [0.0, 0.5]])
    method = begun("spectral", net, coef=1.0, power=power, iterations=50)
    assert value_and_gradient(method, net)[0] == pytest.approx(expected, rel=1e-5)


def test_spectral_counts_biases_and_gains_and_follows_the_largest_singular_value() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3))
    set_(net[1].weight, [1.0, 1.0, 2.0, 1.0, -1.0])
    method = begun("spectral", net, coef=1.0, iterations=200)
    sigmas = [np.linalg.svd(net[i].weight.detach().cpu().numpy(), compute_uv=False)[0] for i in (0, 3)]
    biases = [float(net[i].bias.detach().square().sum()) for i in (0, 1, 3)]
    expected = sum((s**2 - 1) ** 2 for s in sigmas) + sum(b**2 for b in biases) + 1 + 4
    assert value_and_gradient(method, net)[0] == pytest.approx(expected, rel=1e-4)
    u, v = torch.ones(2), torch.ones(3)
    power_iteration_(torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), u, v)
    torch.testing.assert_close(u, torch.tensor([3.0, 1.0]) / 10**0.5)
    torch.testing.assert_close(v, torch.tensor([9.0, 1.0, 0.0]) / 82**0.5)


def test_weight_clipping_by_hand() -> None:
    net = nn.Sequential(nn.Linear(4, 1), nn.LayerNorm(1))
    set_(net[0].weight, [[0.9, -0.2, 0.6, -0.7]])
    set_(net[0].bias, [0.8])
    set_(net[1].weight, [3.0])
    with torch.no_grad():
        WeightClipping().project("net", net)
    torch.testing.assert_close(net[0].weight, torch.tensor([[0.5, -0.2, 0.5, -0.5]]))
    assert net[0].bias.item() == 0.5
    assert net[1].weight.item() == 3.0  # a norm is never clipped


def test_weight_clipping_leaves_output_layers_out_if_it_is_told_to() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = optim.SGD(net.parameters(), 0.0)
    WeightClipping(outputs=False, kappa=0.1).on_train_start(Context({"net": net}, {"net": optimizer}))
    before = net[2].weight.detach().clone()
    net(models.normal(3, 4)).sum().backward()
    optimizer.step()
    assert net[0].weight.abs().max().item() == pytest.approx(0.05)
    assert torch.equal(net[2].weight, before)


def test_nap_by_hand() -> None:
    weight, zeros = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)
    rescale_(weight, torch.tensor(2.5))
    rescale_(zeros, torch.tensor(2.5))
    torch.testing.assert_close(weight, torch.tensor([[1.5, 2.0]]))
    assert not zeros.any()
    gain, bias = torch.full((4,), 3.0), torch.full((4,), 4.0)
    NormalizeAndProject(affine="joint")._treat(gain, bias)  # of norm 10 together, to sqrt(4)
    torch.testing.assert_close(torch.stack([gain[0], bias[3]]), torch.tensor([0.6, 0.8]))
    NormalizeAndProject(affine="decay", decay_rate=0.5)._treat(gain, bias)
    torch.testing.assert_close(torch.stack([gain[0], bias[3]]), torch.tensor([0.8, 0.4]))


def test_nap_keeps_what_a_normalised_network_computes_and_refuses_joint_scaling_where_it_would_not() -> None:
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = optim.SGD(net.parameters(), 0.0)
    method = NormalizeAndProject()
    method.on_train_start(Context({"net": net}, {"net": optimizer}))
    radius = net[0].weight.norm().item()
    x = models.normal(5, 4)
    with torch.no_grad():
        net[0].weight.mul_(7)
    before = net(x)
    before.sum().backward()
    optimizer.step()
    assert net[0].weight.norm().item() == pytest.approx(radius, rel=1e-6)
    torch.testing.assert_close(net(x), before, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"needs positively homogeneous activations.*net has Tanh"):
        NormalizeAndProject(affine="joint").on_train_start(
            Context(
                {"net": (tanh := nn.Sequential(nn.Linear(2, 2), nn.Tanh()))}, {"net": optim.SGD(tanh.parameters(), 1)}
            )
        )


def test_hyperspherical_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, (1, 2)), nn.Flatten(), nn.Linear(2, 2))
    set_(net[0].weight, [[[[3.0, 4.0]]], [[[0.0, 0.0]]]])
    set_(net[2].weight, [[3.0, 4.0], [0.0, -2.0]])
    with torch.no_grad():
        Hyperspherical().project("net", net)
    torch.testing.assert_close(net[0].weight, torch.tensor([[[[0.6, 0.8]]], [[[0.0, 0.0]]]]))
    torch.testing.assert_close(net[2].weight, torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


# -- in training -------------------------------------------------------------------------------------------------------


def naive_l2_init(net: nn.Module, first: nn.Module) -> Tensor:
    pairs = zip(net.parameters(), first.parameters(), strict=True)
    return torch.stack([0.5 * ((p - q) ** 2).sum() for p, q in pairs]).sum()


def naive_wasserstein(net: nn.Module, first: nn.Module) -> Tensor:
    pairs = zip(net.parameters(), first.parameters(), strict=True)
    return torch.stack([((torch.sort(p.flatten())[0] - torch.sort(q.flatten())[0]) ** 2).sum() for p, q in pairs]).sum()


def naive_parseval(net: nn.Sequential, first: nn.Module) -> Tensor:
    weight = net[2].weight
    dots = [[(weight[i] * weight[j]).sum() - 2.0 * (i == j) for j in range(len(weight))] for i in range(len(weight))]
    return torch.stack([dot**2 for row in dots for dot in row]).sum()


def naive_spectral(net: nn.Sequential, first: nn.Module) -> Tensor:
    weight = [torch.linalg.svdvals(net[i].weight)[0] for i in (0, 2, 4)]
    return torch.stack([(s**2 - 1) ** 2 for s in weight] + [(net[i].bias ** 2).sum() ** 2 for i in (0, 2, 4)]).sum()


NAIVE: dict[str, Callable[[nn.Sequential, nn.Module], Tensor]] = {
    "l2_init": naive_l2_init,
    "wasserstein_init": naive_wasserstein,
    "parseval": naive_parseval,
    "spectral": naive_spectral,
}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_in_a_plain_loop_is_one_that_is_added_to_the_loss_by_hand(name: str) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
    twin, first = copy.deepcopy(net), copy.deepcopy(net)
    optimizer, other = (optim.SGD(one.parameters(), 0.05) for one in (net, twin))
    settings = {"coef": 0.05, **({"iterations": 100} if name == "spectral" else {})}
    INTERVENTIONS[name](**settings).on_train_start(Context({"net": net}, {"net": optimizer}))
    for seed in range(3):
        x = models.normal(16, 4, seed=seed)
        for one, stepper, penalty in ((net, optimizer, 0.0), (twin, other, 0.05 * NAIVE[name](twin, first))):
            stepper.zero_grad()
            (one(x).square().mean() + penalty).backward()
            stepper.step()
    for a, b, c in zip(net.parameters(), twin.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
        assert not torch.equal(a, c)


@pytest.mark.on_real_devices
@pytest.mark.usefixtures("as_traced")
def test_all_of_them_together_eager_and_compiled_and_resumed_to_the_bit() -> None:
    def methods() -> list[Any]:
        return [INTERVENTIONS[name](**FREQUENT[name]) for name in OURS]

    ends = {}
    for compile in ("off", "on"):
        agent = small_sac(norm="layer")
        for step in agent.steps.values():
            step.compile = compile
        agent, _, writer = run_sac(methods(), agent=agent, steps=40)
        ends[compile] = weights(agent)
        assert not any(step.terms for step in agent.steps.values())  # taken off at the end
        assert bool(agent.steps["critic"]._graphs) == (compile == "on")
        for name in OURS:
            assert any(tag.startswith(f"interventions/{name}/critic_1/") for tag in writer.scalars), name
    for key, value in ends["off"].items():
        torch.testing.assert_close(ends["on"][key], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", OURS)
def test_what_a_method_remembers_survives_a_checkpoint(name: str) -> None:
    """Trained weights are not taken for first ones, and vectors and norms go on where they were."""

    def step(net: nn.Module, optimizer: optim.Optimizer, seed: int) -> None:
        optimizer.zero_grad()
        net(models.normal(16, 4, seed=seed)).square().mean().backward()
        optimizer.step()

    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    settings = {"coef": 0.05} if name in PENALTIES else {}
    method, optimizer = INTERVENTIONS[name](**settings), optim.SGD(net.parameters(), 0.1)
    start([method], Context({"net": net}, {"net": optimizer}))
    for seed in range(3):
        step(net, optimizer, seed)
    again, resumed = copy.deepcopy(net), INTERVENTIONS[name](**settings)
    for module in again.modules():
        module._forward_pre_hooks.clear()
    stepper = optim.SGD(again.parameters(), 0.1)
    start([resumed], Context({"net": again}, {"net": stepper}), [copy.deepcopy(method.state_dict())])
    for seed in range(3, 6):
        step(net, optimizer, seed)
        step(again, stepper, seed)
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["nap", "weight_clipping", "hyperspherical"])
def test_what_a_projection_makes_of_the_function_is_logged(name: str) -> None:
    """The number logged for a step is the change of the outputs on the transitions that were looked at."""
    expected: list[float] = []

    class Twice(INTERVENTIONS[name]):  # type: ignore[misc]
        def project(self, network: str, module: nn.Module) -> None:
            state = self._ctx.buffer.generator.get_state()
            twin = torch.Generator("cpu").set_state(self.before)
            batch = self._ctx.peek(64, twin)
            assert torch.equal(state, self._ctx.buffer.generator.get_state())
            outputs = [self._ctx.forward[network](module, batch).detach().double()]
            super().project(network, module)
            outputs.append(self._ctx.forward[network](module, batch).detach().double())
            self.before = self.generator.get_state()
            expected.append(float((outputs[1] - outputs[0]).norm() / outputs[0].norm()))

    method = Twice(log_every=1, networks=("actor",))
    method.before = method.generator.get_state()
    _, _, writer = run_sac([method], steps=20)
    found = writer.scalars[f"interventions/{name}/actor/function_change"]
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(found) > 3
    assert max(found) > 0


@pytest.mark.parametrize("order", [("critic", "actor"), ("actor", "critic")])
def test_a_layer_that_networks_share_counts_once_in_the_step_of_its_own_optimizer(order: tuple[str, str]) -> None:
    torch.manual_seed(0)
    shared = nn.Linear(3, 4)
    nets = {"actor": nn.Sequential(shared, nn.Linear(4, 2)), "critic": nn.Sequential(shared, nn.Linear(4, 1))}
    own = {"actor": nets["actor"][1].parameters(), "critic": nets["critic"].parameters()}
    optimizers = {name: optim.SGD(own[name], 1.0) for name in order}
    method = L2Init(coef=0.5)
    method.on_train_start(Context(nets, optimizers))
    parameters = {*nets["actor"].parameters(), *nets["critic"].parameters()}
    with torch.no_grad():
        for p in parameters:
            p.add_(1.0)
    before = {p: p.detach().clone() for p in parameters}
    for name in ("actor", "critic"):
        optimizers[name].zero_grad()
    for p in parameters:
        p.grad = torch.zeros_like(p)
    for name in ("actor", "critic"):
        optimizers[name].step()
    for p in parameters:
        torch.testing.assert_close(p.detach(), before[p] - 0.5)
