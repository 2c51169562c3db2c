"""Sparse training's arithmetic: typed-out numbers, and brute force for what is grown and pruned."""

from __future__ import annotations

import math

import models
import pytest
import torch
from torch import nn

from plasticity.agents.ages import probabilities
from plasticity.agents.replay import ReplayBuffer
from plasticity.interventions.injection import find_heads, inject_
from plasticity.interventions.topology import (
    ActiveFraction,
    Oldest,
    cosine_fraction,
    erdos_renyi,
    grown_share,
    random_mask,
    regrow,
    review_gate,
    some,
    sparse_layers,
    top,
)
from plasticity.isolation import undisturbed
from plasticity.observing.first_pass import FirstPass
from plasticity.structure.trace import wiring

pytestmark = pytest.mark.usefixtures("everywhere")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_erdos_renyi_of_known_layers() -> None:
    assert erdos_renyi([(256, 64), (64, 256), (4, 256)], 0.25) == [0.2265625, 0.2265625, 1.0]
    assert erdos_renyi([(256, 256)], 0.2) == [pytest.approx(0.2)]
    assert erdos_renyi([(4, 4), (8, 8)], 1.0) == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"density is in \(0, 1\], got 0"):
        erdos_renyi([(4, 4)], 0)


@pytest.mark.parametrize(
    ("shapes", "sparsity"),
    [  # layer sparsities of the released networks at a global sparsity of 0.8; the last norm and head are dense
        ([(256, 23), (256, 256), (256, 256), (256,), (1, 256)], [0.019, 0.838, 0.838, 0, 0]),  # with its norm
        ([(256, 119), (256, 256), (256, 256), (256,), (1, 256)], [0.719, 0.822, 0.822, 0, 0]),
        ([(256, 17), (256, 256), (6, 256)], [0, 0.872, 0]),
        ([(256, 376), (256, 256), (17, 256)], [0.834, 0.803, 0]),
    ],
)
def test_erdos_renyi_of_the_released_networks(shapes: list[tuple[int, int]], sparsity: list[float]) -> None:
    assert [1 - density for density in erdos_renyi(shapes, 0.2)] == pytest.approx(sparsity, abs=6e-4)


@pytest.mark.parametrize("density", [0.03, 0.2, 0.5, 0.9])
@pytest.mark.parametrize(
    "shapes", [[(1, 256), (256, 1), (256, 256)], [(32, 3, 3, 3), (64, 32, 3, 3), (10, 64)], [(2, 2)]]
)
def test_erdos_renyi_keeps_the_total(shapes: list[tuple[int, ...]], density: float) -> None:
    found, sizes = erdos_renyi(shapes, density), [math.prod(shape) for shape in shapes]
    assert sum(d * n for d, n in zip(found, sizes, strict=True)) == pytest.approx(density * sum(sizes))
    assert all(0 <= d <= 1 for d in found)
    ratios = [d / (sum(s) / n) for d, s, n in zip(found, shapes, sizes, strict=True) if d < 1]
    assert ratios == pytest.approx([ratios[0]] * len(ratios)) if ratios else True


def test_schedules() -> None:
    assert [grown_share(step, 100) for step in (0, 50, 100, 200)] == pytest.approx([0, 0.5 + 1 / math.pi, 1, 1])
    rates = [(1 + math.cos(math.pi * (t + 0.5) / 1000)) / 2 for t in range(1000)]
    for step in (100, 400, 900):  # the sum of the rate that the paper anneals
        assert grown_share(step, 1000) == pytest.approx(sum(rates[:step]) / sum(rates), abs=1e-6)
    assert [cosine_fraction(0.5, step, 100) for step in (0, 50, 100, 150)] == pytest.approx([0.5, 0.25, 0, 0])


def test_masks_have_their_count() -> None:
    mask = random_mask((4, 3, 2), 7, generator())
    assert (mask.shape, int(mask.sum())) == ((4, 3, 2), 7)
    scores = torch.tensor([[3.0, 1.0], [2.0, 0.0]])
    allowed = torch.tensor([[False, True], [True, True]])
    assert top(scores, allowed, 2).tolist() == [[False, True], [True, False]]
    assert torch.equal(top(scores, allowed, 9), allowed)
    assert not top(scores, allowed, 0).any()
    chosen = some(allowed, 2, generator())
    assert int(chosen.sum()) == 2
    assert not (chosen & ~allowed).any()


@pytest.mark.parametrize("again", [True, False])
def test_growth_takes_the_largest_gradients_of_absent_connections(again: bool) -> None:
    torch.manual_seed(0)
    gradient, mask = torch.randn(6, 7), torch.rand(6, 7) < 0.4
    cut = mask & (torch.rand(6, 7) < 0.3)
    new = regrow(mask, cut, 5, gradient, generator(), again)
    kept = {(i, j) for i in range(6) for j in range(7) if mask[i, j] and not cut[i, j]}
    absent = [(i, j) for i in range(6) for j in range(7) if (i, j) not in kept and (again or not mask[i, j])]
    best = sorted(absent, key=lambda at: -abs(float(gradient[at])))[:5]
    assert {(i, j) for i in range(6) for j in range(7) if new[i, j]} == kept | set(best)
    at_random = regrow(mask, cut, 5, None, generator(), again)
    assert int(at_random.sum()) == len(kept) + 5
    assert not torch.equal(at_random, new)


def test_sparse_layers() -> None:
    net, inputs = models.build("mlp")
    names = [layer.name for layer in sparse_layers(wiring(net, *inputs), net.parameters(), dense_ends=True)]
    assert names == ["2"]
    names = [layer.name for layer in sparse_layers(wiring(net, *inputs), net.parameters(), dense_ends=False)]
    assert names == ["0", "2", "4"]
    names = [layer.name for layer in sparse_layers(wiring(net, *inputs), [net[4].weight], dense_ends=False)]
    assert names == ["4"]
    tied = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    tied[4].weight = tied[2].weight
    layers = sparse_layers(wiring(tied, *inputs), tied.parameters(), dense_ends=False)
    assert [layer.name for layer in layers] == ["0", "2"]  # each weight once
    net = models.build("mlp")[0]
    inject_(net, find_heads(net)[0])  # a new head that lost connections would not cancel with its copy
    layers = sparse_layers(wiring(net, *inputs), net.parameters(), dense_ends=False)
    assert [layer.name for layer in layers] == ["0"]


def test_the_gate_of_the_review() -> None:
    found = [review_gate(active) for active in (0.1, 0.2, 0.3, 0.39)]
    assert found == pytest.approx([0.451, 0.476, 0.5013, 0.524], abs=6e-4)
    assert review_gate(0.9) == 0.4  # where the gate would exceed 0.6
    assert review_gate(0.0, awaken=10.0) < 1e-4


def test_active_fraction() -> None:
    probe = ActiveFraction()
    probe.reset()
    probe.on_forward(torch.tensor([[1.0, 0.0, -1.0], [2.0, 3.0, 0.0]]))
    probe.on_forward(torch.tensor([[0.0, 0.0, 5.0]]))
    assert float(probe.compute()) == pytest.approx(4 / 9)


@pytest.mark.parametrize(
    ("rows", "share", "old"), [(10, 0.3, 3), (100, 0.3, 30), (1, 0.3, 1), (2, 0.3, 1), (7, 1.0, 7)]
)
def test_a_review_is_uniform_over_the_oldest(rows: int, share: float, old: int) -> None:
    weight = Oldest(share, lambda: rows)
    p = probabilities({"review": weight}, rows)
    assert p[: rows - old].sum() == 0
    torch.testing.assert_close(p[rows - old :], torch.full((old,), 1 / old, dtype=torch.float64, device="cpu"))
    ages = weight.sample(rows, 2000, generator())
    assert ages.unique().tolist() == list(range(rows - old + 1, rows + 1))


def test_a_review_on_a_buffer() -> None:
    buffer = ReplayBuffer(50, (1,), (1,))
    buffer.clock = 80
    buffer.weigh("review", Oldest(0.3, lambda: buffer.num_rows))
    assert buffer.draw_ages(500).unique().tolist() == list(range(36, 51))


def test_a_first_pass_is_seen_once_and_private_passes_are_not() -> None:
    net, seen = nn.Linear(2, 2), []
    hook = FirstPass(net, lambda args, kwargs: seen.append(args))
    x = torch.randn(3, 2)
    with undisturbed(net, owner=object()):
        net(x)
    assert not seen
    net(x)
    net(x)
    assert len(seen) == 1
    assert not net._forward_pre_hooks
    hook.remove()  # once more does no harm
