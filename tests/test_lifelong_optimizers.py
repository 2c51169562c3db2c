"""UPGD, TRAC, Muon and borrowed optimizers: golden numbers, naive implementations, edits from outside, exact resume."""

from __future__ import annotations

import copy
import importlib.util
import io
import math
from typing import Any

import models
import numpy as np
import pytest
import scipy.special
import torch
from test_interventions import run_sac, small_sac
from torch import Tensor, nn, optim
from torch.optim.optimizer import register_optimizer_step_post_hook

from plasticity.agents import muon as muon_module
from plasticity.agents.dqn import DQNConfig
from plasticity.agents.optimizers import OPTIMIZERS, AgentConfig, load_optimizer_
from plasticity.agents.trac import BETAS, TRAC, erfi, tuned
from plasticity.agents.upgd import UPGD, AdaptiveUPGD

pytestmark = pytest.mark.usefixtures("everywhere")

LIFELONG = {"upgd", "adaptive_upgd", "trac", "muon", "kron", "schedule_free"}
PACKAGES = {"kron": "kron_torch", "schedule_free": "schedulefree"}
INSTALLED = [
    pytest.param(
        n, marks=pytest.mark.skipif(n in PACKAGES and not importlib.util.find_spec(PACKAGES[n]), reason="extra")
    )
    for n in sorted(LIFELONG)
]


def weight(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


# -- UPGD --------------------------------------------------------------------------------------------------------------


def test_upgd_by_hand() -> None:
    theta = weight(1.0, -2.0)
    theta.grad = torch.tensor([0.5, 0.25])
    optimizer = UPGD([theta], lr=0.1, beta_utility=0.0, sigma=0.0)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[theta]["utility"], torch.tensor([-0.5, 0.5]))
    torch.testing.assert_close(theta.detach(), torch.tensor([0.963447, -2.006724]), rtol=0, atol=1e-6)


def test_upgd_keeps_the_order_of_utilities_where_none_is_positive() -> None:
    theta = weight(1.0, 1.0)
    theta.grad = torch.tensor([0.5, 1.0])  # utilities -0.5 and -1
    UPGD([theta], lr=1.0, beta_utility=0.0, sigma=0.0).step()
    s = [1 / (1 + math.exp(0.5)), 1 / (1 + math.exp(1.0))]
    torch.testing.assert_close(theta.detach(), torch.tensor([1 - 0.5 * (1 - s[0]), 1 - 1.0 * (1 - s[1])]))


def naive_upgd(thetas: list[np.ndarray], grads: list[list[np.ndarray]], adam: bool) -> list[np.ndarray]:
    """Several steps with lr 0.1, decay 0.2, b 0.9 and no noise, entry by entry."""
    u, m, v = ([np.zeros_like(x) for x in thetas] for _ in range(3))
    for t, step in enumerate(grads, 1):
        for i, g in enumerate(step):
            u[i] = 0.9 * u[i] + 0.1 * (-g * thetas[i])
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g**2
        largest = max(x.max() for x in u)
        for i, g in enumerate(step):
            direction = m[i] / (1 - 0.9**t) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8) if adam else g
            protected = 1 / (1 + np.exp(-u[i] / largest))
            thetas[i] = thetas[i] * (1 - 0.1 * 0.2) - 0.1 * direction * (1 - protected)
    return thetas


@pytest.mark.parametrize("kind", [UPGD, AdaptiveUPGD])
def test_upgd_against_a_naive_implementation(kind: type[UPGD]) -> None:
    parameters = [nn.Parameter(models.normal(4, 3, seed=1)), nn.Parameter(models.normal(3, seed=2))]
    grads = [[models.normal(*p.shape, seed=10 * t + i) for i, p in enumerate(parameters)] for t in range(4)]
    numbers = [[g.double().cpu().numpy() for g in step] for step in grads]
    expected = naive_upgd([p.detach().double().cpu().numpy() for p in parameters], numbers, kind is AdaptiveUPGD)
    optimizer = kind(parameters, lr=0.1, weight_decay=0.2, beta_utility=0.9, sigma=0.0)
    for step in grads:
        for p, g in zip(parameters, step, strict=True):
            p.grad = g
        optimizer.step()
    for p, e in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.detach().double().cpu(), torch.from_numpy(e), rtol=1e-4, atol=1e-5)


def test_noise_is_normal_fresh_and_its_own() -> None:
    theta = nn.Parameter(torch.zeros(20_000))
    theta.grad = torch.zeros(20_000)
    optimizer, state = UPGD([theta], lr=1.0, sigma=2.0), torch.get_rng_state()
    optimizer.step()
    first = theta.detach().clone()
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), state)
    for noise in (first, theta.detach() - first):  # utilities are 0, so half of it is taken
        assert noise.std().item() == pytest.approx(1.0, rel=0.03)
        assert noise.mean().item() == pytest.approx(0.0, abs=0.03)
    assert abs(float((first * (theta.detach() - first)).mean())) < 0.05


def test_a_parameter_without_gradient_is_left_alone() -> None:
    for name in ("upgd", "adaptive_upgd", "trac", "muon"):
        used, unused = weight(1.0), weight(1.0)
        used.grad = torch.ones(1)
        OPTIMIZERS[name]([used, unused], lr=0.1).step()
        assert unused.item() == 1.0


# -- TRAC --------------------------------------------------------------------------------------------------------------


@pytest.mark.on_cpu
def test_erfi_is_scipys() -> None:
    x = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    expected = torch.from_numpy(scipy.special.erfi(x.numpy()))
    torch.testing.assert_close(erfi(x), expected, rtol=1e-6, atol=1e-12)
    x = torch.tensor([0.0, 1e-300, -1e-300, 26.6, 26.7, 1e300, -1e300, math.inf, -math.inf, math.nan]).double()
    expected = torch.from_numpy(scipy.special.erfi(x.numpy()))
    torch.testing.assert_close(erfi(x), expected, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.on_cpu
def test_a_tuner_by_hand() -> None:
    found = tuned(torch.tensor([0.2], dtype=torch.float64), torch.tensor([0.04], dtype=torch.float64))
    assert found.item() == pytest.approx(1e-8, rel=1e-5)  # erfi(1 / sqrt 2) over itself


@pytest.mark.on_cpu
def test_trac_against_a_naive_implementation() -> None:
    """SGD-like numbers would do: with betas of 0 and eps of 1e8, Adam's step is lr * g / 1e8."""
    theta, lr = nn.Parameter(models.normal(3).double()), 1e3
    reference = theta.detach().clone().numpy()
    delta, sigma, v = np.zeros(3), np.full(6, 1e-8), np.zeros(6)
    optimizer = TRAC([theta], lr=lr, betas=(0.0, 0.0), eps=1e8)
    for seed in range(30):
        g = np.abs(models.normal(3, seed=seed).double().numpy())
        theta.grad = torch.from_numpy(g)
        optimizer.step()
        h, b = (g * delta).sum(), np.array(BETAS)
        v, sigma = b**2 * v + h**2, b * sigma - h
        delta = delta - lr * g / (np.abs(g) + 1e8)
        scale = (1e-8 / scipy.special.erfi(2**-0.5) * scipy.special.erfi(sigma / (np.sqrt(2 * v) + 1e-8))).sum()
        np.testing.assert_allclose(theta.detach().numpy(), reference + scale * delta, rtol=1e-9)
    assert scale > 1e-7  # gradients agree: it has grown


def test_what_others_do_to_weights_moves_the_reference() -> None:
    theta = weight(1.0, 2.0)
    optimizer = TRAC([theta], lr=0.1)
    for _ in range(5):
        theta.grad = torch.ones(2)
        optimizer.step()
    with torch.no_grad():
        theta[0] = 50.0
    for name in ("exp_avg", "delta", "reference"):
        optimizer.state[theta][name][0] = 0.0  # what recycling does to the entries of a neuron
    optimizer.step()
    assert theta[0].item() == pytest.approx(50.0, abs=1.0)
    assert theta[1].item() == pytest.approx(2.0, abs=1.0)


def test_trac_of_several_types_and_rates_is_trac_of_each() -> None:
    """Where all gradients are of one sign, h is the sum of parts: with one part 0, each type can be stepped apart."""
    low, high = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(2, dtype=torch.float64))
    alone = nn.Parameter(high.detach().clone())
    both = OPTIMIZERS["trac"]([{"params": [low], "lr": 0.5}, {"params": iter([high])}], lr=1.0)
    one = OPTIMIZERS["trac"]([alone], lr=1.0)
    for seed in range(25):
        low.grad = torch.zeros(3)
        high.grad = models.normal(2, seed=seed).double().abs() + 1
        alone.grad = high.grad.clone()
        both.step()
        one.step()
    assert [group["lr"] for group in both.param_groups] == [0.5, 1.0]
    assert (alone - 1).abs().min() > 1e-6
    torch.testing.assert_close(high - 1, alone - 1, rtol=1e-12, atol=0)


def test_trac_without_a_gradient_or_a_parameter_waits() -> None:
    theta = weight(1.0)
    optimizer = TRAC([{"params": []}, {"params": [theta]}], lr=0.1)
    optimizer.step()
    assert theta.item() == 1.0
    theta.grad = torch.ones(1)
    optimizer.step()
    assert optimizer.state[theta]["delta"].item() == pytest.approx(-0.1)
    theta.grad, before = None, theta.item()
    optimizer.step()
    assert theta.item() == before


@pytest.mark.on_cpu
def test_a_scaler_of_gradients_skips_what_is_not_finite() -> None:
    one, other = weight(1.0, 2.0), weight(1.0, 2.0)
    scaled, plain = (OPTIMIZERS["trac"]([theta], lr=0.1) for theta in (one, other))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed in range(10):
        loss = (models.normal(2, seed=seed).abs() * one).sum()
        scaler.scale(loss * math.inf if seed == 5 else loss).backward()
        scaler.step(scaled)
        scaler.update()
        scaled.zero_grad()
        if seed != 5:
            other.grad = models.normal(2, seed=seed).abs()
            plain.step()
    torch.testing.assert_close(scaled.tuners, plain.tuners)
    assert torch.equal(one, other)


# -- Muon --------------------------------------------------------------------------------------------------------------


def test_muon_steps_matrices_and_adamw_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon_module, "bf16_is_emulated", lambda: False)
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    twin = copy.deepcopy(net)
    ours = OPTIMIZERS["muon"](net.parameters(), lr=0.01)
    muon = optim.Muon([twin[0].weight, twin[1].weight], lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adamw = optim.AdamW([twin[0].bias, twin[1].bias], lr=0.01, weight_decay=0.0)
    for seed in range(3):
        for one, steppers in ((net, [ours]), (twin, [muon, adamw])):
            one.zero_grad()
            one(models.normal(8, 4, seed=seed)).square().mean().backward()
            for stepper in steppers:
                stepper.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    assert len(ours.state) == 4
    ours.param_groups[0]["lr"] = 0.0  # as an annealing agent does
    before = [p.detach().clone() for p in net.parameters()]
    ours.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))


@pytest.mark.on_cpu
@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_muon_iterates_in_float32_where_bfloat16_is_emulated(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    """The iterations act on singular values alone: x <- a x + b x^3 + c x^5, five times."""
    monkeypatch.setattr(muon_module, "bf16_is_emulated", lambda: True)
    theta = nn.Parameter(models.normal(*shape))
    start, theta.grad = theta.detach().clone(), models.normal(*shape, seed=1)
    OPTIMIZERS["muon"]([theta], lr=0.01, momentum=0.0).step()
    u, x, v = np.linalg.svd(theta.grad.double().numpy(), full_matrices=False)
    x = x / np.sqrt((x**2).sum())
    for _ in range(5):
        x = 3.4445 * x - 4.775 * x**3 + 2.0315 * x**5
    moved = (start - theta.detach()).double().numpy() / (0.01 * 0.2 * np.sqrt(5))
    np.testing.assert_allclose(moved, u @ np.diag(x) @ v, atol=1e-4)
    assert theta.grad.bfloat16().dtype == torch.bfloat16  # outside of a step


# -- all of them -------------------------------------------------------------------------------------------------------


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.on_cpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", INSTALLED)
def test_an_optimizer_goes_on_to_the_bit(name: str) -> None:
    nets = [nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)) for _ in range(2)]
    one, other = (AgentConfig(optimizer=name, weight_decay=0.01).make_optimizer(n.parameters(), 1e-2) for n in nets)

    def step(net: nn.Module, optimizer: optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        optimizer.zero_grad()
        net(models.normal(8, 4, seed=seed)).square().mean().backward()
        optimizer.step()

    for seed in range(4):
        step(nets[0], one, seed)
    nets[1].load_state_dict(nets[0].state_dict())
    load_optimizer_(other, through_a_file(one.state_dict()))
    for seed in range(4, 9):
        step(nets[0], one, seed)
        step(nets[1], other, seed)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()


@pytest.mark.on_real_devices
@pytest.mark.parametrize("name", ["upgd", "adaptive_upgd", "trac", "muon"])
def test_agents_learn_with_it(name: str) -> None:
    before: list[Tensor] = []
    made = small_sac()
    config = AgentConfig(optimizer=name)
    for key in ("actor", "critic"):
        parameters = [p for group in made.optimizers[key].param_groups for p in group["params"]]
        made.optimizers[key] = config.make_optimizer(parameters, 1e-2)
        before += [p.detach().clone() for p in parameters]
    run_sac([], agent=made, steps=40)
    after = [p for key in ("actor", "critic") for group in made.optimizers[key].param_groups for p in group["params"]]
    assert sum(p.numel() for p in after) == sum(p.numel() for p in before)
    assert all(p.isfinite().all() for p in after)
    assert made.updates > 10


def test_betas_and_eps_reach_the_optimizer_or_are_refused() -> None:
    theta = weight(1.0)
    made = DQNConfig(betas=(0.99, 0.99), eps=1e-3).make_optimizer([theta], 0.1, eps=1e-5)
    assert (made.defaults["betas"], made.defaults["eps"]) == ((0.99, 0.99), 1e-3)
    with pytest.raises(ValueError, match=r"the optimizer 'sgd' takes no betas; got \(0\.9, 0\.9\)"):
        DQNConfig(optimizer="sgd", betas=(0.9, 0.9)).make_optimizer([theta], 0.1)
    with pytest.raises(ValueError, match=r"needs betas in \[0, 1\)"):
        DQNConfig(betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="needs eps > 0"):
        DQNConfig(eps=0.0)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kron_torch", None)
    with pytest.raises(
        ImportError, match=r"'kron' needs the package kron_torch: pip install 'plasticity-too.*\[kron\]'"
    ):
        AgentConfig(optimizer="kron").make_optimizer([weight(1.0)], 0.1)


def test_weight_decay_of_sgd_by_hand() -> None:
    theta = weight(1.0)
    theta.grad = torch.zeros(1)
    AgentConfig(optimizer="sgd", weight_decay=0.01).make_optimizer([theta], 0.1).step()
    assert theta.item() == pytest.approx(0.999)


@pytest.mark.parametrize("name", INSTALLED)
def test_what_joins_later_is_stepped_as_if_it_had_been_there(name: str) -> None:
    """A matrix and a vector that are put into a group, as the heads of InFeR are, before the first step."""
    parts = [torch.randn(3, 4), torch.randn(4), torch.randn(2, 4), torch.randn(3)]
    whole, late = ([nn.Parameter(p.clone()) for p in parts] for _ in range(2))
    one, other = OPTIMIZERS[name](whole, lr=0.1), OPTIMIZERS[name](late[:1], lr=0.1)
    other.param_groups[0]["params"] += late[1:]
    for seed in range(3):
        for parameters, optimizer in ((whole, one), (late, other)):
            torch.manual_seed(seed)
            for k, parameter in enumerate(parameters):
                parameter.grad = models.normal(*parameter.shape, seed=10 * seed + k)
            optimizer.step()
    for parameter, twin, first in zip(whole, late, parts, strict=True):
        assert torch.equal(parameter, twin)
        assert name == "trac" or not torch.equal(parameter, first)  # whose first steps are 1e-8 of its base's


@pytest.mark.on_cpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - PACKAGES))
def test_groups_have_rates_of_their_own(name: str) -> None:
    fast, slow = ([nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))] for _ in range(2))
    optimizer = OPTIMIZERS[name]([{"params": iter(fast)}, {"params": iter(slow), "lr": 0.0}], lr=0.1)
    for _ in range(2):
        for parameter in fast + slow:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert not any(p.any() for p in slow)
    assert all(p.all() for p in fast)


@pytest.mark.parametrize("name", INSTALLED)
def test_hooks_around_a_step_are_called_once(name: str) -> None:
    """An Adam before makes torch wrap its class, whose step is called within."""
    optim.Adam([weight(1.0)]), optim.AdamW([weight(1.0)])
    matrix, called = nn.Parameter(torch.ones(2, 2)), list[str]()
    optimizer = OPTIMIZERS[name]([matrix, weight(1.0, 2.0)], lr=0.1)
    hooks = [
        optimizer.register_step_pre_hook(lambda *_: called.append("before")),
        optimizer.register_step_post_hook(lambda *_: called.append("after")),
        register_optimizer_step_post_hook(lambda *_: called.append("after any")),
    ]
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for hook in hooks:
        hook.remove()
    assert sorted(called) == ["after", "after any", "before"]
