"""Every probe by its name: on every agent, eager and compiled, in ``measure``, ``watch`` and ``Measure``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from test_gradient import AGENTS
from torch import nn

import plasticity
from plasticity.agents.train import context
from plasticity.callback import fire, start
from plasticity.measuring import Measure, measure
from plasticity.observing.reading import Reading
from plasticity.probes import PROBES
from plasticity.probes.network import tensors_within

pytestmark = [
    pytest.mark.usefixtures("as_traced"),
    pytest.mark.filterwarnings("ignore:.*samples:RuntimeWarning"),  # few ones
]

NAMES = ("sac", "td3", "dqn", "ppo")
UPDATES = 3
WITHOUT_VALUE = {
    *("dormant_again", "saturated", "loss_cosine", "attention", "residual_stream", "router", "token_entropy"),
    *("dead", "linearised", "still_dormant"),
}
"""Probes that have nothing to measure in some of these runs: of tanh or ReLU, without recycling or a second loss."""


def learned(name: str, compile: str, probes: Any) -> tuple[Any, dict[str, Reading]]:
    """Return an agent after some measured updates, and what ``Measure`` read last of each network."""
    make, inputs = AGENTS[name]
    agent = make(compile)
    measuring, ctx = Measure(probes, every=1, strict=True), context(agent)
    start([measuring], ctx)
    for number in range(UPDATES):
        fire([measuring], "on_update_start", ctx)
        fire([measuring], "on_update_end", ctx, agent.learn(inputs(number)))
        agent.updates += 1
    measuring.on_train_end(ctx)
    return agent, measuring.last


def require_whole(probe: str, readings: Iterable[Reading]) -> None:
    """Assert that every network has a value of each metric, or a reason, and some network has a value."""
    found = []
    for reading in readings:
        assert reading.values, probe
        reasons = {entry.reason for entry in reading.unmeasured if entry.probe == probe}
        assert not any("fail" in reason for reason in reasons), reasons
        for metric, by_layer in reading.values.items():
            assert not math.isnan(by_layer["all"]) or reasons, metric
            found.append(not math.isnan(by_layer["all"]))
    assert any(found) or probe in WITHOUT_VALUE, f"{probe} has no value in any network"


@pytest.mark.slow
@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("agent", NAMES)
def test_every_probe_reads_every_agent_eager_and_compiled_alike(agent: str, probe: str) -> None:
    (_, eager), (_, compiled) = (learned(agent, compile, [probe]) for compile in ("off", "on"))
    require_whole(probe, eager.values())
    assert eager.keys() == compiled.keys()
    for network, reading in eager.items():
        assert compiled[network].flat() == pytest.approx(reading.flat(), rel=1e-2, abs=1e-4, nan_ok=True), network
        assert {(e.layer, e.reason) for e in compiled[network].unmeasured} == {
            (e.layer, e.reason) for e in reading.unmeasured
        }


@pytest.mark.slow
@pytest.mark.parametrize("agent", NAMES)
def test_every_probe_measures_every_agents_networks(agent: str) -> None:
    make, _ = AGENTS[agent]
    for network in make("off").networks.values():
        width = next(m for m in network.modules() if isinstance(m, nn.Linear)).in_features
        x = torch.randn(64, width)
        inputs = x if _takes_one(network, x) else (x[:, : width - 2], x[:, width - 2 :])
        for probe in PROBES:
            eager = measure(network, (inputs, None), _loss, probes=[probe])
            compiled = measure(torch.compile(network, backend="eager"), (inputs, None), _loss, probes=[probe])
            assert compiled.flat() == pytest.approx(eager.flat(), nan_ok=True), probe
            assert not any("failed" in entry.reason for entry in eager.unmeasured), probe


@pytest.mark.slow
@pytest.mark.parametrize("probe", PROBES)
def test_every_probe_watches_a_loop(probe: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
    x = torch.randn(32, 4)
    optimizer = torch.optim.Adam(model.parameters())
    lent: dict[str, Any] = {"log": None, "every": 1, "strict": True, "loss": lambda: _loss(model(x))}
    with plasticity.watch(model, optimizer, probes=[probe], **lent) as session:
        for _ in range(UPDATES):
            optimizer.zero_grad()
            _loss(model(x)).backward()
            optimizer.step()
    require_whole(probe, session.last.values())


def _loss(output: Any, target: Any = None) -> torch.Tensor:
    return torch.stack([(t - 0.3).square().mean() for t in tensors_within(output)]).sum()


def _takes_one(network: nn.Module, x: torch.Tensor) -> bool:
    """Return whether a network is called with one tensor: actors and Q networks are, critics take actions too."""
    try:
        network(x)
    except (TypeError, RuntimeError):
        return False
    return True
