"""Masks: exact zeros in weight, gradient and optimizer state after every step of every optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn, optim

from plasticity.surgery.masks import Masks
from plasticity.surgery.optimizer_state import entry_state

pytestmark = pytest.mark.usefixtures("everywhere")

OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], optim.Optimizer]] = {
    "sgd": lambda ps: optim.SGD(ps, 0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda ps: optim.Adam(ps, 0.01, weight_decay=0.1),
    "adam fused": lambda ps: optim.Adam(ps, 0.01, fused=True),
    "adamw": lambda ps: optim.AdamW(ps, 0.01, amsgrad=True),
    "rmsprop": lambda ps: optim.RMSprop(ps, 0.01, momentum=0.9, centered=True),
    "adagrad": lambda ps: optim.Adagrad(ps, 0.01, initial_accumulator_value=0.1),
    "rprop": lambda ps: optim.Rprop(ps, 0.01),
    "asgd": lambda ps: optim.ASGD(ps, 0.01),
    "muon": lambda ps: optim.Muon(ps, 0.01),
    "adafactor": lambda ps: optim.Adafactor(ps, 0.01),
}


def setting(kind: str = "adam") -> tuple[nn.Sequential, optim.Optimizer, dict[Tensor, Tensor]]:
    """Return a model that has taken a step, its optimizer and masks for two of its weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False))
    optimizer = OPTIMIZERS[kind](model.parameters())
    learn(model, optimizer)
    return model, optimizer, {w: torch.rand(w.shape) < 0.5 for w in model.parameters()}


def learn(model: nn.Module, optimizer: optim.Optimizer) -> None:
    """Take one gradient step."""
    optimizer.zero_grad()
    (model(torch.randn(8, 4)) - 1).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_exact_zeros_after_every_step(kind: str) -> None:
    model, optimizer, chosen = setting(kind)
    masks = Masks(chosen, [optimizer])
    for step in range(6):
        for weight, mask in chosen.items():
            assert not weight[~mask].any()
            assert not weight.grad[~mask].any()
            assert all(not state[~mask].any() for state in entry_state(optimizer, weight).values())
            assert weight[mask].any()
        if step == 2:
            chosen = {weight: torch.rand(weight.shape) < 0.5 for weight in chosen}
            for weight, mask in chosen.items():
                masks.set(weight, mask)
        learn(model, optimizer)


def test_without_masks_momentum_and_decay_would_revive() -> None:
    model, optimizer, chosen = setting("sgd")
    weight, mask = next(iter(chosen.items()))
    weight.data[~mask] = 0
    learn(model, optimizer)
    assert weight[~mask].all()


@pytest.mark.parametrize("kind", ["adamw", "muon", "adafactor"])
def test_live_connections_train_as_if_the_others_did_not_exist(kind: str) -> None:
    """Muon and Adafactor mix entries: there a gradient masked only after the step would move live weights."""
    results = []
    for by_hand in (False, True):
        model, optimizer, chosen = setting(kind)
        masks = Masks(chosen, [optimizer])
        if by_hand:
            masks.remove()
            for weight, mask in chosen.items():
                weight.register_hook(lambda g, m=mask: g * m)
        for _ in range(3):
            learn(model, optimizer)
            for weight, mask in chosen.items():
                weight.data[~mask] = 0
        results.append([w.detach().clone() for w in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_dense_gradient_is_offered_before_it_is_masked() -> None:
    model, optimizer, chosen = setting()
    seen: dict[Tensor, Tensor] = {}
    masks = Masks(chosen, [optimizer], on_dense_gradient=lambda p, g: seen.update({p: g.clone()}))
    x = torch.randn(8, 4)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    expected = {w: w.grad.clone() for w in chosen}
    optimizer.step()
    for weight, mask in chosen.items():
        assert torch.equal(seen[weight], expected[weight])
        assert seen[weight][~mask].any()
        assert not weight.grad[~mask].any()
    assert len(masks) == 2


def test_masks_may_be_set_from_within_the_callback() -> None:
    model, optimizer, chosen = setting()
    weight = model[0].weight

    def grow(parameter: Tensor, gradient: Tensor) -> None:
        if parameter is weight:
            absent = gradient.abs().masked_fill(masks[weight], -1)
            mask = masks[weight].clone()
            mask.view(-1)[absent.argmax()] = True
            masks.set(weight, mask)

    masks = Masks(chosen, [optimizer], on_dense_gradient=grow)
    before = int(masks[weight].sum())
    learn(model, optimizer)
    assert int(masks[weight].sum()) == before + 1
    grown = masks[weight] & ~chosen[weight]
    assert weight[grown].all(), "the connection that appeared takes part in the step"


def test_a_grown_connection_begins_at_zero_and_a_pruned_one_is_forgotten() -> None:
    model, optimizer, chosen = setting()
    weight, mask = next(iter(chosen.items()))
    masks = Masks(chosen, [optimizer])
    learn(model, optimizer)
    masks.set(weight, ~mask)
    assert not weight.any()
    assert not weight.grad.any()
    assert all(not state.any() for state in entry_state(optimizer, weight).values())
    assert torch.equal(masks[weight], ~mask)
    learn(model, optimizer)
    assert weight[~mask].all()


def test_followers_are_masked_with_their_parameter() -> None:
    model, optimizer, chosen = setting()
    weight, mask = next(iter(chosen.items()))
    target = nn.Parameter(torch.ones_like(weight), requires_grad=False)
    masks = Masks({weight: mask}, [optimizer], followers={weight: [target]})
    assert torch.equal(target, mask.float())
    target.data.fill_(1)
    learn(model, optimizer)
    assert torch.equal(target, mask.float())
    masks.set(weight, torch.zeros_like(mask))
    assert not target.any()


def test_several_optimizers_mask_their_own_parameters_only() -> None:
    model, _, chosen = setting()
    first, second = (optim.SGD([layer.weight], 0.1) for layer in (model[0], model[2]))
    masks = Masks(chosen, [first, second, optim.SGD([nn.Parameter(torch.ones(2))], 0.1)])
    model[2].weight.data.fill_(1.0)
    learn(model, first)
    assert not model[0].weight[~masks[model[0].weight]].any()
    assert model[2].weight.all()
    masks.apply_()
    assert not model[2].weight[~masks[model[2].weight]].any()


def test_closures_and_return_values_survive() -> None:
    model, optimizer, chosen = setting()
    masks = Masks(chosen, [optimizer])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) > 0
    for weight in masks:
        assert not weight[~masks[weight]].any()
        assert all(not state[~masks[weight]].any() for state in entry_state(optimizer, weight).values())


def test_density_counts_connections_not_zero_weights() -> None:
    model, optimizer, chosen = setting()
    masks = Masks(chosen, [optimizer])
    model[0].weight.data.zero_()
    num = sum(int(mask.sum()) for mask in chosen.values())
    assert masks.density() == num / 42
    assert masks.density(model[0].weight) == int(chosen[model[0].weight].sum()) / 24


def test_remove_and_state() -> None:
    model, optimizer, chosen = setting()
    masks = Masks(chosen, [optimizer])
    state = masks.state_dict()
    other_model, other_optimizer, _ = setting()
    full = {weight: torch.ones_like(weight, dtype=torch.bool) for weight in other_model.parameters()}
    other = Masks(full, [other_optimizer])
    other.load_state_dict(state)
    assert [other[w].tolist() for w in other] == [m.tolist() for m in chosen.values()]
    assert not other_model[0].weight[~chosen[model[0].weight]].any()
    with pytest.raises(ValueError, match="the state holds 1 masks"):
        other.load_state_dict({"masks": state["masks"][:1]})
    with pytest.raises(ValueError, match=r"a mask here is bool \(6, 4\)"):
        other.load_state_dict({"masks": state["masks"][::-1]})
    for _ in range(2):
        masks.remove()
    learn(model, optimizer)
    assert model[0].weight.all()
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks


def test_errors_say_what_is_wrong() -> None:
    model, optimizer, chosen = setting()
    weight = model[0].weight
    with pytest.raises(ValueError, match=r"a mask here is bool \(6, 4\); got torch.float32 \(6, 4\)"):
        Masks({weight: torch.ones(6, 4)}, [optimizer])
    with pytest.raises(ValueError, match=r"no optimizer holds the masked parameters of shapes \[\(6, 4\)\]"):
        Masks({nn.Parameter(weight.detach()): chosen[weight]}, [optimizer])
    with pytest.raises(ValueError, match="LBFGS"):
        Masks(chosen, [optim.LBFGS(model.parameters())])
    with pytest.raises(ValueError, match="no mask was made"):
        Masks(chosen, [optimizer]).set(nn.Parameter(torch.ones(2)), torch.ones(2).bool())


def test_nothing_else_moves() -> None:
    model, optimizer, chosen = setting()
    weight, other = model[0].weight, model[2].weight
    state, old = torch.get_rng_state(), other.detach().clone()
    Masks({weight: chosen[weight]}, [optimizer]).apply_()
    assert torch.equal(other, old)
    assert torch.equal(torch.get_rng_state(), state)
