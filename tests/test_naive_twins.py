"""Projections, penalties on features and edits of whole networks: over several steps, against loops by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import models
import numpy as np
import pytest
import torch
from scipy.linalg import polar as scipy_polar
from test_interventions import plain_loop
from torch import Tensor, nn, optim

from plasticity.agents.gradient import GradientStep
from plasticity.callback import Context, fire, start
from plasticity.interventions import (
    DR3,
    FIRE,
    INTERVENTIONS,
    KNIFE,
    Chain,
    DormantMinimization,
    FeatureNormPenalty,
    InFeR,
    ShrinkPerturb,
)
from plasticity.interventions.feature_penalty import FeaturePenalty

pytestmark = pytest.mark.usefixtures("everywhere")


# -- projections -------------------------------------------------------------------------------------------------------


def clip(net: nn.Sequential, first: nn.Sequential) -> None:
    for layer in (net[0], net[3], net[5]):
        bound = 1.5 / np.sqrt(layer.weight.shape[1])
        for parameter in (layer.weight, layer.bias):
            for i, value in enumerate(parameter.flatten().tolist()):
                parameter.view(-1)[i] = min(max(value, -bound), bound)


def keep_norms(net: nn.Sequential, first: nn.Sequential) -> None:
    for i in (0, 3, 5):
        net[i].weight *= np.linalg.norm(first[i].weight.cpu().numpy()) / np.linalg.norm(net[i].weight.cpu().numpy())


def joint(net: nn.Sequential, first: nn.Sequential) -> None:
    keep_norms(net, first)
    both = np.concatenate([net[1].weight.cpu().numpy(), net[1].bias.cpu().numpy()])
    for parameter in (net[1].weight, net[1].bias):
        parameter *= np.sqrt(len(both) / 2) / np.linalg.norm(both)


def decay(net: nn.Sequential, first: nn.Sequential) -> None:
    keep_norms(net, first)
    net[1].weight += 0.1 * (1 - net[1].weight)
    net[1].bias -= 0.1 * net[1].bias


def to_sphere(net: nn.Sequential, first: nn.Sequential) -> None:
    for i in (0, 3, 5):
        for row in net[i].weight:
            row /= np.sqrt((row.cpu().numpy() ** 2).sum())


PROJECTIONS: dict[str, tuple[str, dict[str, Any], Callable[[nn.Sequential, nn.Sequential], None]]] = {
    "clipping": ("weight_clipping", {"kappa": 1.5}, clip),
    "nap": ("nap", {}, keep_norms),
    "nap joint": ("nap", {"affine": "joint"}, joint),
    "nap decay": ("nap", {"affine": "decay", "decay_rate": 0.1}, decay),
    "hyperspherical": ("hyperspherical", {}, to_sphere),
}


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("every", [1, 3])
def test_projections_over_several_steps(kind: str, every: int) -> None:
    name, settings, project = PROJECTIONS[kind]
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)
    ).double()
    twin, first = copy.deepcopy(net), copy.deepcopy(net).requires_grad_(False)
    optimizer, other = (optim.Adam(one.parameters(), 0.1) for one in (net, twin))
    ctx, _ = plain_loop(net, optimizer)
    INTERVENTIONS[name](every=every, **settings).on_train_start(ctx)
    for step in range(1, 7):
        x = models.normal(16, 4, seed=step).double()
        for one, stepper in ((net, optimizer), (twin, other)):
            stepper.zero_grad()
            (one(x) - 1).square().mean().backward()
            stepper.step()
        if step % every == 0:
            with torch.no_grad():
                project(twin, first)
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q)


# -- penalties on features ---------------------------------------------------------------------------------------------


@dataclass
class Batch:
    obs: Tensor
    next_obs: Tensor
    action: Tensor


def batches() -> Iterator[Batch]:
    for seed in range(100):
        one, other = models.normal(8, 3, seed=seed).double(), models.normal(8, 3, seed=1000 + seed).double()
        yield Batch(one, other, torch.zeros(8, dtype=torch.int64))


def naive_feature_norm(net: nn.Sequential, batch: Batch, kept: dict[str, Any]) -> Tensor:
    rows = net[:2](batch.obs)
    return torch.stack([sum((x * x for x in row), torch.zeros(()).double()) for row in rows]).mean()


def naive_dr3(net: nn.Sequential, batch: Batch, kept: dict[str, Any]) -> Tensor:
    pairs = zip(net[:2](batch.obs), net[:2](batch.next_obs), strict=True)
    return torch.stack([torch.dot(a, b) for a, b in pairs]).mean()


def naive_infer(net: nn.Sequential, batch: Batch, kept: dict[str, Any]) -> Tensor:
    told = kept["frozen"](kept["first"][:2](batch.obs)).detach()
    return torch.stack([((g - 2.0 * t) ** 2).mean() for g, t in zip(kept["heads"](net[:2](batch.obs)), told)]).mean()  # noqa: B905


def naive_chain(net: nn.Sequential, batch: Batch, kept: dict[str, Any]) -> Tensor:
    before = kept["past"][max(0, len(kept["past"]) - 3)]  # two steps before the present weights
    return ((before(kept["second"]).detach() - net(kept["second"])) ** 2).mean()


FEATURES: dict[str, tuple[FeaturePenalty, Any]] = {
    "feature_norm": (FeatureNormPenalty(coef=0.3), naive_feature_norm),
    "dr3": (DR3(coef=0.3, networks=()), naive_dr3),
    "infer": (InFeR(coef=0.3, heads=3, beta=2.0, networks=()), naive_infer),
    "chain": (Chain(coef=0.3, lag=2), naive_chain),
}


@pytest.mark.parametrize("name", FEATURES)
def test_penalties_on_features_over_several_steps(name: str) -> None:
    method, penalty = copy.deepcopy(FEATURES[name])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    twin, kept = copy.deepcopy(net), dict[str, Any](first=copy.deepcopy(net), past=[copy.deepcopy(net)])
    kept["second"] = models.normal(8, 3, seed=5000).double()
    networks, optimizers = {"net": net}, {"net": optim.Adam(net.parameters(), 0.01)}
    loss = lambda batch: ((net(batch.obs) - 1).square().mean(), {})  # noqa: E731
    step = GradientStep(loss, [networks], optimizers, "net", compile="off")
    second = Batch(kept["second"], kept["second"], torch.zeros(8))
    ctx = Context(networks, optimizers, steps={"net": step}, forward={"net": lambda m, b: m(b.obs)}, buffer=object())
    ctx.peek = lambda num, generator: second
    start([method], ctx)
    other = optim.Adam(twin.parameters(), 0.01)
    for updates, batch in zip(range(5), batches(), strict=False):
        fire([method], "on_update_start", ctx)
        if isinstance(method, InFeR) and "heads" not in kept:
            method.made["net"].double(), method.frozen["net"].double()
            kept["heads"], kept["frozen"] = copy.deepcopy(method.made["net"]), copy.deepcopy(method.frozen["net"])
            other.add_param_group({"params": kept["heads"].parameters()})
        ctx.steps["net"](batch, updates=updates)
        fire([method], "on_update_end", ctx, {})
        other.zero_grad()
        ((twin(batch.obs) - 1).square().mean() + 0.3 * penalty(twin, batch, kept)).backward()
        other.step()
        kept["past"].append(copy.deepcopy(twin))
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q)
    if isinstance(method, InFeR):
        torch.testing.assert_close(method.made["net"].weight, kept["heads"].weight)


# -- edits of whole networks -------------------------------------------------------------------------------------------


def test_fire_over_several_events_is_scipys_polar_factor_slice_by_slice() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))
    net = net.double()
    optimizer = optim.Adam(net.parameters(), 0.05)
    ctx, writer = plain_loop(net, optimizer)
    before: dict[str, np.ndarray] = {}
    optimizer.register_step_post_hook(
        lambda *_: before.update({n: p.detach().cpu().numpy().copy() for n, p in net.named_parameters()})
    )
    FIRE(every=3).on_train_start(ctx)
    for step in range(1, 10):
        optimizer.zero_grad()
        net(models.normal(4, 2, 3, 3, seed=step).double()).square().mean().backward()
        optimizer.step()
        for name, parameter in net.named_parameters():
            expected = before[name].copy()
            if step % 3 == 0 and name == "0.weight":
                for i, j in np.ndindex(2, 2):
                    expected[:, :, i, j] = scipy_polar(before[name][:, :, i, j])[0] * np.sqrt(3 / 2) / 4
            elif step % 3 == 0 and name.endswith("weight"):
                expected = scipy_polar(before[name])[0] * np.sqrt(expected.shape[0] / expected.shape[1])
            np.testing.assert_allclose(parameter.detach().cpu().numpy(), expected, atol=1e-10)
    assert len(writer.named("fire")) == 3


def test_shrink_perturb_of_bbf_over_several_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder becomes half of itself and half of a fresh draw, the last two layers a fresh draw."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    optimizer = optim.Adam(net.parameters(), 0.05)
    ctx, writer = plain_loop(net, optimizer)
    before: dict[str, Tensor] = {}
    optimizer.register_step_post_hook(
        lambda *_: before.update({n: p.detach().clone() for n, p in net.named_parameters()})
    )
    drawn: list[dict[str, Tensor]] = []

    def draw(module: nn.Module, origin: Any, generator: torch.Generator, chosen: Any) -> dict[str, Tensor]:
        drawn.append({n: torch.full_like(p, 7.0 + len(drawn)) for n, p in module.named_parameters()})
        return drawn[-1]

    monkeypatch.setattr("plasticity.interventions.shrink_perturb.fresh_values", draw)
    method = ShrinkPerturb(preset="bbf", every=2, stop=6)
    method.on_train_start(ctx)
    for step in range(1, 10):
        optimizer.zero_grad()
        net(models.normal(8, 3, seed=step).double()).square().mean().backward()
        optimizer.step()
        acts = step in (2, 4, 6)
        for name, p in net.named_parameters():
            fresh = 6.0 + len(drawn)
            changed = 0.5 * before[name] + 0.5 * fresh if name.startswith("0.") else torch.full_like(p, fresh)
            torch.testing.assert_close(p.detach(), changed if acts else before[name])
            forgotten = acts and not name.startswith("0.")  # the optimizer forgets the last layers alone
            assert bool(optimizer.state[p]["exp_avg"].any()) != forgotten
    assert len(writer.named("shrink_perturb")) == len(drawn) == 3


def test_drm_over_several_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time the ratio is counted anew, output by output, and Linear layers move by it towards a draw."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 20), nn.LayerNorm(20), nn.ReLU(), nn.Linear(20, 9)).double()
    with torch.no_grad():
        net[0].weight[:4], net[0].bias[:4] = 0, 0
    looked = Batch(models.normal(32, 3, seed=7).double(), torch.zeros(()), torch.zeros(()))
    optimizer = optim.Adam(net.parameters(), 0.01)
    ctx, writer = plain_loop(net, optimizer)
    ctx.peek, ctx.forward = (lambda num, generator: looked), {"net": lambda module, batch: module(batch.obs)}

    def draw(module: nn.Module, origin: Any, generator: torch.Generator, chosen: Any) -> dict[str, Tensor]:
        return {n: torch.full_like(p, 0.5) for n, p in module.named_parameters() if chosen(n, p)}

    monkeypatch.setattr("plasticity.interventions.drm.fresh_values", draw)
    method = DormantMinimization(every=2, clock="updates", measure_every=1000, threshold=0.3)
    start([method], ctx)
    ratios: list[float] = []
    for step in range(1, 7):
        optimizer.zero_grad()
        (net(models.normal(16, 3, seed=step).double()) - 1).square().mean().backward()
        optimizer.step()
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        x, dormant = looked.obs, 0
        for layer in net:
            x = layer(x).detach()
            if isinstance(layer, nn.Linear):
                sizes = np.abs(x.cpu().numpy()).mean(0)
                dormant += sum(size < 0.3 * sizes.mean() for size in sizes)
        fire([method], "on_update_end", ctx, {})
        a = min(max(1 - 2 * dormant / 29, 0.2), 0.9) if step % 2 == 0 else 1.0
        ratios += [dormant / 29] if step % 2 == 0 else []
        for name, p in net.named_parameters():
            expected = before[name] if name.startswith("1.") else a * before[name] + (1 - a) * 0.5
            torch.testing.assert_close(p.detach(), expected)
    assert writer.scalars["interventions/drm/net/dormant_outputs"] == pytest.approx(ratios)
    assert len(set(ratios)) > 1


def test_knife_over_several_events_is_a_network_that_keeps_every_old_row() -> None:
    """Beside it a network of plain functions: rows as they were, a fresh one that learns, a copy that does not."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    optimizer = optim.SGD(net.parameters(), 0.1)
    ctx, writer = plain_loop(net, optimizer)
    start([KNIFE(every=3, window=2, threshold=0.8, cap=0.3)], ctx)
    units = net[0]
    old, copied = dict[int, Tensor](), dict[int, Tensor]()
    scores: list[np.ndarray] = []
    expected: list[list[int]] = []
    for step in range(1, 10):
        x = models.normal(8, 3, seed=step).double()
        row = torch.cat([units.layer.weight, units.layer.bias[:, None]], 1).detach().clone()
        wide = torch.cat([x, torch.ones(8, 1, dtype=torch.float64)], 1)
        h = torch.tanh(wide @ row.T)
        for i in old:
            h[:, i] = torch.tanh(wide @ old[i]) + h[:, i] - torch.tanh(wide @ copied[i])
        optimizer.zero_grad()
        torch.testing.assert_close(units(x).detach(), h)
        (net(x) - 1).square().mean().backward()
        gradient = units.layer.weight.grad.clone()
        after = [(p - 0.1 * p.grad).detach() for p in (units.layer.weight, units.layer.bias)]
        optimizer.step()
        scores.append((gradient.norm(dim=1) / after[0].norm(dim=1)).cpu().numpy())
        if step % 3 == 0:
            mean = scores[-2] + scores[-1]
            order = [i for i in np.argsort(mean, kind="stable") if mean[i] <= 0.8 * mean.mean() and i not in old]
            expected += [sorted(int(i) for i in order[:1])] if order else []
            for i in order[:1]:  # a third of six, cut to one: int(0.3 * 6)
                old[i] = torch.cat([after[0][i], after[1][i : i + 1]])
                copied[i] = torch.cat([units.layer.weight[i], units.layer.bias[i : i + 1]]).detach().clone()
    assert [event["neurons"]["0.layer"] for event in writer.named("knife")] == expected
    assert len(expected) >= 2
