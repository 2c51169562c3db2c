"""Methods that rank weights, or set norms of rows and columns, count only connections that exist."""

from __future__ import annotations

import models
import numpy as np
import pytest
import torch
from test_interventions import plain_loop
from torch import nn, optim

from plasticity.agents.muon import MuonAdamW
from plasticity.callback import Context
from plasticity.interventions import (
    DASH,
    Hyperspherical,
    Intervention,
    NeuroplasticExpansion,
    NormalizeAndProject,
    ReDo,
    SelectiveReinitialization,
)
from plasticity.surgery.recycle import SMALL

pytestmark = pytest.mark.usefixtures("everywhere")


class Sparse:
    """A network under a mask that never changes, with one more method, before NE or after it."""

    def __init__(self, method: Intervention, first: bool, kind: type[optim.Optimizer] = optim.SGD, lr: float = 0.05):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()
        self.optimizer = kind(self.net.parameters(), lr=lr)
        self.ctx, self.writer = plain_loop(self.net, self.optimizer)
        sparse = NeuroplasticExpansion("static", initial_density=0.5, dense_ends=False)
        for one in (method, sparse) if first else (sparse, method):
            one.on_train_start(self.ctx)

    def step(self) -> None:
        """Take a step on random data."""
        self.optimizer.zero_grad()
        self.net(models.normal(16, 5).double()).square().sum().backward()
        self.optimizer.step()

    def weight(self, layer: int) -> np.ndarray:
        return self.net[layer].weight.detach().cpu().numpy().copy()

    def exist(self, layer: int) -> np.ndarray:
        found = self.ctx.connections(self.net[layer].weight)
        assert found is not None
        return found.cpu().numpy()


def test_connections_are_known_from_the_first_pass_on() -> None:
    run = Sparse(ReDo(every=9), first=False)
    assert run.ctx.connections(run.net[0].weight) is None
    run.step()
    assert 0.2 < run.exist(0).mean() < 0.9
    np.testing.assert_array_equal(run.weight(0)[~run.exist(0)], 0.0)
    assert run.ctx.connections(run.net[0].bias) is None
    assert Context().connections(run.net[0].weight) is None


@pytest.mark.parametrize("first", [True, False])
def test_redrawn_rows_have_their_norm_with_the_mask_on(first: bool) -> None:
    run = Sparse(ReDo(every=1, threshold=0.5, incoming_scale=1.5), first, lr=1e-6)
    run.step()
    neurons = run.writer.named("redo")[0]["neurons"]
    assert set(neurons) == {"0", "2"}
    for layer, drawn in neurons.items():
        norms = np.linalg.norm(run.weight(int(layer)), axis=1)
        stay = [i for i in range(8) if i not in drawn]
        live = [i for i in drawn if norms[i] > 0]  # a row whose connections were all cut or never were stays 0
        np.testing.assert_allclose(norms[live], 1.5 * norms[stay].mean(), rtol=1e-9)
        np.testing.assert_array_equal(run.weight(int(layer))[~run.exist(int(layer))], 0.0)


@pytest.mark.parametrize("first", [True, False])
def test_small_columns_have_their_norm_with_the_mask_on(first: bool) -> None:
    run = Sparse(ReDo(every=1, threshold=0.5, outgoing="small"), first, lr=1e-6)
    run.step()
    (drawn,) = (run.writer.named("redo")[0]["neurons"][layer] for layer in ("2",))
    norms = np.linalg.norm(run.weight(4), axis=0)
    stay = [i for i in range(8) if i not in drawn]
    there = [i for i in drawn if run.exist(4)[:, i].any()]
    assert there
    np.testing.assert_allclose(norms[there], SMALL * norms[stay].mean(), rtol=1e-6)


@pytest.mark.parametrize("rule", [{"share": 0.25}, {"threshold": 0.3}])
@pytest.mark.parametrize("first", [True, False])
def test_the_least_weights_are_those_of_connections_that_exist(first: bool, rule: dict[str, float]) -> None:
    method = SelectiveReinitialization(every=2, utility="magnitude", **rule)  # type: ignore[arg-type]
    run = Sparse(method, first, lr=0.0)
    run.step()
    before = {name: p.detach().cpu().numpy().copy() for name, p in run.net.named_parameters()}
    run.step()
    for name, p in run.net.named_parameters():
        found = run.ctx.connections(p)
        exist = np.ones(p.shape, bool) if found is None else found.cpu().numpy()
        replaced, size = p.detach().cpu().numpy() != before[name], np.abs(before[name])
        assert replaced.any() or p.dim() == 1
        if "share" in rule:
            count = int(replaced.sum())
            assert count in (int(0.25 * exist.sum()), int(0.25 * exist.sum()) + 1)
            least = exist & (size <= np.sort(size[exist])[count - 1]) & (count > 0)
        else:
            least = exist & (size <= 0.3 * size[exist].mean())
        np.testing.assert_array_equal(replaced, least, err_msg=name)


@pytest.mark.parametrize("kind", [optim.SGD, MuonAdamW])
@pytest.mark.parametrize("first", [True, False])
def test_rows_have_norm_one_with_the_mask_on(first: bool, kind: type[optim.Optimizer]) -> None:
    run = Sparse(Hyperspherical(), first, kind)
    for _ in range(3):
        run.step()
    for layer in (0, 2, 4):
        norms = np.linalg.norm(run.weight(layer), axis=1)
        np.testing.assert_allclose(norms[norms > 0], 1.0, rtol=1e-6)
        assert (norms > 0).sum() >= 3


@pytest.mark.parametrize("kind", [optim.SGD, MuonAdamW])
@pytest.mark.parametrize("first", [True, False])
def test_the_first_norm_is_kept_with_the_mask_on(first: bool, kind: type[optim.Optimizer]) -> None:
    method = NormalizeAndProject()
    run = Sparse(method, first, kind)
    for _ in range(3):
        run.step()
    for layer in (0, 2, 4):
        radius = float(method.radius["net"][str(layer)])
        np.testing.assert_allclose(np.linalg.norm(run.weight(layer)), radius, rtol=1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_directions_are_compared_on_connections_that_exist(first: bool) -> None:
    run = Sparse(DASH(every=2, alpha=1.0, floor=0.1), first, lr=0.0)
    run.step()
    before, gradients = {la: run.weight(la) for la in (0, 2, 4)}, {}
    run.optimizer.register_step_post_hook(
        lambda *_: gradients.update({la: run.net[la].weight.grad.cpu().numpy().copy() for la in (0, 2, 4)})
    )
    torch.manual_seed(3)
    run.step()
    for layer, old in before.items():
        down = -np.where(run.exist(layer), gradients[layer], 0.0)
        cosine = (down * old).sum(1) / (np.linalg.norm(down, axis=1) * np.linalg.norm(old, axis=1)).clip(1e-30)
        shrunk = old * np.clip(cosine, 0.1, 1.0)[:, None]
        np.testing.assert_allclose(run.weight(layer), shrunk, atol=1e-12)
