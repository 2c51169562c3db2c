"""Self-normalised resets: golden numbers of the released code, and a naive twin that keeps every silence."""

from __future__ import annotations

from typing import Any

import models
import numpy as np
import pytest
import torch
from test_interventions import plain_loop
from torch import Tensor, nn, optim

from plasticity.interventions import SelfNormalizedResets
from plasticity.interventions.snr import updated_limits

pytestmark = pytest.mark.usefixtures("everywhere")


def test_golden_numbers() -> None:
    histogram = torch.zeros(12, 3, dtype=torch.float64)
    histogram[[1, 2, 9], 0] = histogram[[1, 2, 9], 1] = torch.tensor([6.0, 3.0, 1.0], dtype=torch.float64)
    histogram[0] = 50  # no silence, which does not count
    limits = updated_limits(histogram, 100, 0.9, 2.0, torch.tensor([400.0, 150.0, 70.0], dtype=torch.float64))
    assert limits.tolist() == [200.0, 300.0, 0.0]  # the third was never silent


class Naive:
    """The limit of one neuron from a list of its silences."""

    def __init__(self, limit: float) -> None:
        self.age, self.limit, self.silences = 0, limit, list[int]()

    def step(self, fires: bool, samples: int) -> bool:
        if fires:
            self.silences.append(self.age)
        self.age = 0 if fires else self.age + samples
        return self.age >= self.limit

    def renew(self, samples: int, largest: int) -> None:
        found = sorted(s for s in self.silences if s)
        quantile = found[int(np.ceil(0.8 * len(found) - 1e-9)) - 1] if found else 0
        self.limit = quantile if quantile < self.limit else 2 * self.limit
        self.limit, self.silences = min(max(self.limit, samples), largest), []


@pytest.mark.slow_off_the_cpu
def test_every_limit_is_that_of_a_naive_twin() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1))
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([0.0, -1.0, -2.0, -3.0, -2.5, -1.5]))
    optimizer = optim.SGD(net.parameters(), 0.0)
    ctx, writer = plain_loop(net, optimizer)
    twins, reset = [Naive(40.0) for _ in range(6)], list[tuple[int, int]]()
    seen: dict[str, Tensor] = {}
    net[1].register_forward_hook(lambda m, a, out: seen.update(h=out.detach().clone()))
    steps: list[int] = []

    def follow(*_: Any) -> None:
        steps.append(1)
        for i, twin in enumerate(twins):
            if twin.step(bool((seen["h"][:, i] > 0).any()), 4):
                reset.append((len(steps), i))
                twin.silences.append(twin.age)
                twin.age = 0
            if len(steps) % 25 == 0:
                twin.renew(4, 80)

    optimizer.register_step_post_hook(follow)
    method = SelfNormalizedResets(every=25, quantile=0.8, limit_max=80)
    method.on_train_start(ctx)
    for seed in range(200):
        optimizer.zero_grad()
        net(models.normal(4, 2, seed=seed)).sum().backward()
        optimizer.step()
        known = method.units["net"]["0"]
        assert known["limit"].tolist() == [twin.limit for twin in twins], seed
        assert known["age"].tolist() == [twin.age for twin in twins], seed
    found = [(event["gradient_step"], i) for event in writer.named("snr") for i in event["neurons"]["0"]]
    assert found == reset
    assert len(reset) >= 5


def test_a_bounded_activation_is_refused_by_name() -> None:
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = optim.SGD(net.parameters(), 0.1)
    ctx, writer = plain_loop(net, optimizer)
    method = SelfNormalizedResets()
    method.on_train_start(ctx)
    for _ in range(3):
        optimizer.zero_grad()
        net(models.normal(4, 2)).sum().backward()
        optimizer.step()
    assert [(e["layer"], "tanh" in e["reason"]) for e in writer.named("snr_skipped")] == [("0", True)]
    assert list(method.units["net"]) == ["2"]


@pytest.mark.parametrize("settings", [{"every": 0}, {"quantile": 0.0}, {"factor": 1.0}, {"limit_max": 0}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="SelfNormalizedResets needs"):
        SelfNormalizedResets(**settings)
