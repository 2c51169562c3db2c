"""Goals of a reset: the first weights, a running average, a checkpoint; what does not fit is said at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest
import torch
from test_interventions import plain_loop, run_sac
from torch import nn, optim

from plasticity.interventions import Reset
from plasticity.storage.checkpoint import save

pytestmark = pytest.mark.usefixtures("everywhere")


def train(method: Reset, steps: int) -> tuple[nn.Sequential, list[torch.Tensor], list[torch.Tensor], Any]:
    """Return the network after some steps, its first weights, their running average with 0.8, and the writer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    optimizer = optim.Adam(net.parameters(), 0.05)
    ctx, writer = plain_loop(net, optimizer)
    first = [p.detach().clone() for p in net.parameters()]
    average = [p.clone() for p in first]

    def follow(*_: Any) -> None:
        for a, p in zip(average, net.parameters(), strict=True):
            a.lerp_(p.detach(), 0.2)

    optimizer.register_step_post_hook(follow)
    method.on_train_start(ctx)
    for seed in range(steps):
        optimizer.zero_grad()
        net(models.normal(8, 3, seed=seed)).square().mean().backward()
        optimizer.step()
    return net, first, average, writer


def test_a_network_goes_back_to_its_first_weights() -> None:
    net, first, _, writer = train(Reset(every=4, to="initial"), 4)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), first, strict=True))
    assert writer.scalars["interventions/reset/parameters_added"] == [26.0]


def test_the_last_layer_goes_to_the_running_average() -> None:
    net, first, average, _ = train(Reset(every=4, to="average", momentum=0.8, layers=1), 4)
    torch.testing.assert_close(net[2].weight.detach(), average[2])
    assert not torch.equal(net[0].weight, average[0])
    assert not torch.equal(net[0].weight, first[0])


def test_a_network_goes_to_a_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(5)
    base = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    save(tmp_path / "base", {"agent": {"networks": {"net": dict(base.state_dict())}}})
    net, *_ = train(Reset(every=4, to=str(tmp_path / "base")), 4)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), base.parameters(), strict=True))
    save(tmp_path / "other", {"agent": {"networks": {"net": dict(nn.Linear(3, 5).state_dict())}}})
    with pytest.raises(ValueError, match=r"is of another agent: it does not hold net\.0\.weight"):
        train(Reset(every=4, to=str(tmp_path / "other")), 1)
    save(tmp_path / "none", {"agent": {"networks": {}}})
    with pytest.raises(ValueError, match="holds no network net; it has none"):
        train(Reset(every=4, to=str(tmp_path / "none")), 1)
    with pytest.raises(ValueError, match="nowhere"):
        train(Reset(every=4, to=str(tmp_path / "nowhere")), 1)


@pytest.mark.parametrize("to", ["initial", "average"])
@pytest.mark.slow_off_the_cpu
def test_an_agent_trains_on_after_it(to: str) -> None:
    agent, _, writer = run_sac([Reset(every=10, clock="updates", to=to, momentum=0.9)], steps=50)
    assert len(writer.named("reset")) >= 2
    assert all(p.isfinite().all() for p in agent.networks["actor"].parameters())


def test_a_momentum_beyond_its_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Reset: momentum is in \[0, 1\]; got 2"):
        Reset(to="average", momentum=2.0)
