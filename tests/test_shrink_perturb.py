"""Shrink and perturb: typed-out numbers, fresh noise every time, and what becomes of optimizers and targets."""

import copy
from typing import Any

import models
import pytest
import torch
from test_reset import OPTIMIZERS, assert_all_move, assert_all_trained, bits, plain_loop, same, take_step, train_sac
from torch import nn

from plasticity.callback import Callback, Context, start
from plasticity.interventions.shrink_perturb import ShrinkPerturb, norm_parameters, shrink_perturb_

pytestmark = pytest.mark.usefixtures("everywhere")


def test_known_values() -> None:
    parameters = {"w": torch.tensor([2.0, -4.0]), "g": torch.tensor([3.0]), "kept": torch.tensor([5.0])}
    shrink_perturb_(parameters, {"w": torch.tensor([1.0, 1.0]), "g": torch.tensor([1.0])}, 0.75, 0.5, norms=["g"])
    assert parameters["w"].tolist() == [2.0, -2.5]  # 0.75 * 2 + 0.5 * 1, 0.75 * -4 + 0.5 * 1
    assert parameters["g"].tolist() == [2.5]  # 0.75 * 3 + 0.25 * 1
    assert parameters["kept"].tolist() == [5.0]


def test_norms_are_found_by_kind() -> None:
    assert norm_parameters(models.build("norm after")[0]) == {"2.weight", "2.bias", "5.weight", "5.bias"}


def test_a_hard_one_is_a_shrunk_copy_plus_noise_of_the_initial_scale() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(100, 200), nn.LayerNorm(200), nn.ReLU(), nn.Linear(200, 4))
    ctx = plain_loop(net, OPTIMIZERS["sgd"])
    method = ShrinkPerturb(every=1, clock="updates", shrink=0.6, perturb=0.3)
    method.on_train_start(ctx)
    with torch.no_grad():
        net[1].weight.fill_(4.0)
    noises = []
    for _ in range(2):
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        method.on_update_end(ctx, {})
        noises.append((net[0].weight - 0.6 * before["0.weight"]) / 0.3)
        assert noises[-1].abs().max() <= 0.1 * (1 + 1e-4)  # torch's bound 1 / sqrt(100)
        assert noises[-1].std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
        torch.testing.assert_close(net[1].weight, 0.6 * before["1.weight"] + 0.4)
    assert torch.corrcoef(torch.stack([n.flatten() for n in noises]).detach())[0, 1].abs() < 0.03
    events = ctx.writer.named("shrink_perturb")  # type: ignore[union-attr]
    assert [event["applications"] for event in events] == [1, 1]


def test_it_perturbs_instead_of_contracting_to_one_copy() -> None:
    net = nn.Linear(64, 64)
    first = net.weight.detach().clone()
    ctx = plain_loop(net)
    method = ShrinkPerturb(every=1, clock="updates", shrink=0.99, clear=False)
    method.on_train_start(ctx)
    for _ in range(1000):
        method.on_update_end(ctx, {})
    # Plasticine drifts by 3e-7 here. The stationary variance is (1 - shrink)^2 / (1 - shrink^2) of the initial one.
    assert torch.corrcoef(torch.stack([first.flatten(), net.weight.detach().flatten()]))[0, 1].abs() < 0.1
    expected = (0.01**2 / (1 - 0.99**2)) ** 0.5 * first.std()
    assert net.weight.std().item() == pytest.approx(expected.item(), rel=0.1)


def test_norms_can_be_left_alone() -> None:
    net, _ = models.build("norm before")
    ctx = plain_loop(net)
    method = ShrinkPerturb(every=1, clock="updates", norms=False)
    method.on_train_start(ctx)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    method.on_update_end(ctx, {})
    moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"0.weight", "0.bias", "3.weight", "3.bias"}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("clear", [True, False])
def test_optimizer_state_is_cleared_or_the_same_bits(kind: str, clear: bool) -> None:
    net, _ = models.build("norm before")
    ctx = plain_loop(net, OPTIMIZERS[kind])
    method = ShrinkPerturb(every=1, clock="updates", clear=clear)
    method.on_train_start(ctx)
    for _ in range(3):
        take_step(ctx)
    before = copy.deepcopy(ctx.optimizers["net"].state_dict()["state"])
    method.on_update_end(ctx, {})
    after = ctx.optimizers["net"].state_dict()["state"]
    assert (str(before) == str(after)) != clear
    assert_all_trained(ctx)
    assert_all_move(ctx, lambda: take_step(ctx))


@pytest.mark.slow_off_the_cpu
def test_soft_follows_every_step_of_every_optimizer_with_its_own_parameters() -> None:
    method = ShrinkPerturb(preset="soft", shrink=0.9, perturb=0.0)
    agent, _, writer = train_sac([method])
    assert len(writer.named("shrink_perturb")) == 1
    assert method.counts == {"applications": 1}
    assert method._steps == dict.fromkeys(("actor", "critic", "alpha"), agent.updates)

    class ByHand(Callback):
        def on_train_start(self, ctx: Context) -> None:
            for optimizer in (ctx.optimizers["actor"], ctx.optimizers["critic"]):
                optimizer.register_step_post_hook(self.shrink)

        def shrink(self, optimizer: Any, args: Any, kwargs: Any) -> None:
            with torch.no_grad():
                for p in optimizer.param_groups[0]["params"]:
                    p.mul_(0.9)

    twin, _, _ = train_sac([ByHand()])
    assert str(twin.state_dict()) == str(agent.state_dict())


def test_soft_is_the_product_of_its_steps() -> None:
    net = nn.Linear(4, 3)
    ctx = plain_loop(net, lambda p: torch.optim.SGD(p, 0.0))
    first = net.weight.detach().clone()
    method = ShrinkPerturb(preset="soft", shrink=0.5, perturb=0.0, start=2, stop=4)
    method.on_train_start(ctx)
    for _ in range(6):
        take_step(ctx)
    torch.testing.assert_close(net.weight, first / 8)  # after steps 2, 3 and 4
    method.on_train_end(ctx)
    take_step(ctx)
    torch.testing.assert_close(net.weight, first / 8)


def test_soft_perturbs_by_fresh_noise_of_variance_one_over_many_steps() -> None:
    net = nn.Linear(100, 100)
    ctx = plain_loop(net, lambda p: torch.optim.SGD(p, 0.0))
    with torch.no_grad():
        net.weight.copy_(0.1 * models.normal(100, 100))
    method = ShrinkPerturb(preset="soft", shrink=1.0, perturb=0.1)
    method.on_train_start(ctx)
    first = net.weight.detach().clone()
    for _ in range(25):
        take_step(ctx, torch.ones(2, 100))
    assert (net.weight - first).std().item() == pytest.approx(0.1 * 5 * 0.1, rel=0.03)  # perturb * sqrt(25) * std


@pytest.mark.parametrize("sync", [True, False])
def test_targets_are_synced_or_the_same_bits(sync: bool) -> None:
    agent, ctx, _ = train_sac([])
    before = bits(ctx)
    method = ShrinkPerturb(every=1, clock="updates", sync_targets=sync)
    method.on_train_start(ctx)
    method.on_update_end(ctx, {})
    after = bits(ctx)
    for name in (n for n in after if n.startswith("targets")):
        assert torch.equal(after[name], after[name.replace("targets", "networks")]) == sync
        assert torch.equal(after[name], before[name]) != sync
    assert torch.equal(agent.log_alpha, agent.log_alpha)
    assert_all_trained(ctx)
    assert_all_move(ctx, agent.update)


@pytest.mark.on_real_devices
def test_sac_with_one_that_never_fires_is_bit_identical() -> None:
    plain, ctx, _ = train_sac([])
    for method in (ShrinkPerturb(), ShrinkPerturb(preset="soft", start=10**6)):
        other, other_ctx, _ = train_sac([method])
        assert same(bits(ctx), bits(other_ctx))
        assert str(plain.state_dict()) == str(other.state_dict())


@pytest.mark.parametrize("settings", [{"every": 3}, {"preset": "soft"}, {"preset": "soft", "shrink": 0.9}])
def test_resumed_runs_go_on_bit_by_bit(settings: dict[str, Any]) -> None:
    net, _ = models.build("norm before")
    ctx = plain_loop(net)
    method = ShrinkPerturb(**settings)
    method.on_train_start(ctx)
    for _ in range(5):
        take_step(ctx)
    saved = copy.deepcopy((net.state_dict(), ctx.optimizers["net"].state_dict(), method.state_dict()))
    for _ in range(5):
        take_step(ctx)
    twin, _ = models.build("norm before", seed=4)
    other = plain_loop(twin)
    twin.load_state_dict(saved[0])
    other.optimizers["net"].load_state_dict(saved[1])
    again = ShrinkPerturb(**settings)
    start([again], other, [saved[2]])
    for _ in range(5):
        take_step(other)
    assert same(net.state_dict(), twin.state_dict())
    assert again.counts == method.counts


def test_presets_and_refusals() -> None:
    hard, soft = ShrinkPerturb(), ShrinkPerturb(preset="soft")
    assert (hard.shrink, hard.perturb, hard.clear) == (0.8, pytest.approx(0.2), True)
    assert (soft.shrink, soft.perturb, soft.clear, soft.soft) == (0.999999, pytest.approx(1e-6), False, True)
    for settings in ({"shrink": 1.5}, {"perturb": -1.0}, {"preset": "soft", "clear": True}):
        with pytest.raises(ValueError, match="ShrinkPerturb needs"):
            ShrinkPerturb(**settings)
    net, other = models.build("mlp")[0], models.build("two heads")[0]
    with pytest.raises(ValueError, match="no copy of it"):
        ShrinkPerturb().on_train_start(plain_loop(net, targets={"net": other}))
