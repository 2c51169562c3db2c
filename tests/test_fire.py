"""FIRE: golden numbers of the released code, scipy's polar factor, and what must stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import polar as scipy_polar
from test_interventions import plain_loop, run_sac
from torch import nn, optim

from plasticity.callback import Context
from plasticity.interventions import FIRE
from plasticity.interventions.fire import isometry, polar

W = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
EXACT = [[-0.551003, 0.727825], [0.136159, 0.561065], [0.823320, 0.394306]]


def test_golden_numbers() -> None:
    exact = polar(torch.tensor(W))
    torch.testing.assert_close(exact, torch.tensor(EXACT, dtype=torch.float64), rtol=0, atol=1e-6)
    ten = polar(torch.tensor(W), 10)
    torch.testing.assert_close(ten[0], torch.tensor([-0.550884, 0.727730], dtype=torch.float64), rtol=0, atol=1e-6)
    singular = torch.linalg.svdvals(ten)
    torch.testing.assert_close(singular, torch.tensor([1.0, 0.999828], dtype=torch.float64), rtol=0, atol=1e-6)
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(W))
    torch.testing.assert_close(isometry(layer, layer.weight).double(), exact * 1.224745, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_the_polar_factor_is_that_of_scipy(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    np.testing.assert_allclose(polar(matrix).numpy(), scipy_polar(matrix.numpy())[0], atol=1e-12)


def test_ten_iterations_are_not_enough_for_a_collapsed_matrix() -> None:
    collapsed = torch.randn(64, 4) @ torch.randn(4, 64) + 1e-3 * torch.randn(64, 64)
    shares = [
        ((s := torch.linalg.svdvals(polar(collapsed, n))) > 0.9).double().mean().item() + 0 * s.sum().item()
        for n in (10, None)
    ]
    assert shares[0] < 0.2
    assert shares[1] == 1.0


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3), nn.Conv1d(4, 6, 2)],
    ids=["conv", "groups", "transposed", "1d"],
)
def test_every_slice_of_a_kernel_is_an_isometry_of_its_own(layer: nn.Module) -> None:
    new = isometry(layer, layer.weight.detach())
    swapped = new.transpose(0, 1) if getattr(layer, "transposed", False) else new
    flat = swapped.flatten(2)
    for group in flat.chunk(layer.groups):
        d_out, d_in = group.shape[:2]
        for k in range(flat.shape[2]):
            values = torch.linalg.svdvals(group[:, :, k])
            torch.testing.assert_close(values, torch.full_like(values, (d_out / d_in) ** 0.5 / flat.shape[2]))


def test_a_zero_matrix_biases_norms_and_frozen_weights_stay() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.zero_()
    net[3].requires_grad_(False)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    ctx, writer = plain_loop(net, optim.Adam([p for p in net.parameters() if p.requires_grad]))
    method = FIRE(every=1, clock="updates")
    method.on_train_start(ctx)
    method.on_update_end(ctx, {})
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"4.weight"}
    assert writer.named("fire")[0]["networks"]["net"]["tensors"] == 2


def test_official_dqn_puts_linear_layers_back() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 2))
    first = net[2].weight.detach().clone()
    ctx, _ = plain_loop(net, optim.SGD(net.parameters(), 0.1))
    method = FIRE(preset="official_dqn", every=1, clock="updates")
    method.on_train_start(ctx)
    with torch.no_grad():
        net[2].weight.add_(1.0)
    method.on_update_end(ctx, {})
    assert torch.equal(net[2].weight, first)
    values = torch.linalg.svdvals(net[0].weight.flatten(2).movedim(-1, 0))
    torch.testing.assert_close(values, torch.full_like(values, 2**0.5 / 4), rtol=1e-3, atol=1e-4)


def test_only_the_named_weights_are_treated() -> None:
    _, _, writer = run_sac([FIRE(every=5, clock="updates", only=("*q.2*",), networks=("critic*",))], steps=40)
    assert writer.named("fire")[0]["networks"]["critic_1"]["tensors"] == 1
    assert all(event["networks"]["critic_1"]["function_change"] > 0 for event in writer.named("fire"))


def test_a_layer_of_two_networks_is_edited_once() -> None:
    shared = nn.Linear(3, 3)
    one, other = nn.Sequential(shared, nn.Linear(3, 1)), nn.Sequential(shared, nn.Linear(3, 2))
    parameters = list({id(p): p for net in (one, other) for p in net.parameters()}.values())
    ctx = Context({"one": one, "other": other}, {"both": optim.SGD(parameters, 0.1)})
    method = FIRE(every=1, clock="updates")
    method.on_train_start(ctx)
    assert set(method.trained(ctx, "one")) == {"0.weight", "1.weight"}
    done = set(map(id, method.trained(ctx, "one").values()))
    assert set(method.trained(ctx, "other", done)) == {"1.weight"}
