"""A few rows by numpy: the module's numbers, or None where the module itself has to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from plasticity.agents.acting import MAX_ROWS, FewRows
from plasticity.agents.dqn import DQN, DQNConfig
from plasticity.agents.ppo import PPO, PPOConfig


class Net(nn.Module):
    """A network around the layers, as the agents' are."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.encoder, self.body = nn.Identity(), nn.Sequential(*layers)


def make(*layers: nn.Module) -> tuple[Net, FewRows]:
    torch.manual_seed(0)
    net = Net(*(layers or (nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 3))))
    return net, FewRows(net, net.body)


@torch.no_grad()
def assert_same(net: Net, few: FewRows, rows: int = 1) -> None:
    x = torch.randn(rows, 5)
    found = few(x)
    assert found is not None
    torch.testing.assert_close(found, net.body(x))


@torch.no_grad()
def test_the_numbers_are_the_modules() -> None:
    net, few = make()
    for rows in range(1, MAX_ROWS + 1):
        assert_same(net, few, rows)
    x = torch.randn(1, 5)
    before = x.clone()
    few(x)
    assert torch.equal(x, before)


def test_an_activation_in_front_leaves_the_input_alone() -> None:
    _, few = make(nn.ReLU(), nn.Linear(5, 3))
    x = torch.tensor([[-1.0, 2.0, -3.0, 4.0, -5.0]])
    before = x.clone()
    assert few(x) is None
    assert torch.equal(x, before)


def test_a_parameter_of_another_type_is_the_modules() -> None:
    net, few = make()
    assert_same(net, few)
    net.body[2].weight.data = net.body[2].weight.data.double()
    assert few(torch.ones(1, 5)) is None


EDITS: dict[str, Callable[[Any], Any]] = {
    "in place": lambda body: body[0].weight.data.add_(1.0),
    "data": lambda body: setattr(body[2].weight, "data", torch.randn(8, 8)),
    "parameter": lambda body: setattr(body[4], "bias", nn.Parameter(torch.randn(3))),
    "module": lambda body: body.__setitem__(4, nn.Linear(8, 2)),
    "appended": lambda body: body.append(nn.Linear(3, 6)),
    "step": lambda body: torch.optim.SGD(body.parameters(), 0.5).step(lambda: body(torch.ones(1, 5)).sum().backward()),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_are_seen(name: str) -> None:
    net, few = make()
    assert_same(net, few)
    before = few(torch.ones(1, 5))
    EDITS[name](net.body)
    assert_same(net, few)
    after = few(torch.ones(1, 5))
    assert before is not None
    assert after is not None
    assert before.shape != after.shape or not torch.equal(before, after)


@pytest.mark.parametrize(
    "layer", [nn.GELU(), nn.LayerNorm(5), nn.Linear(5, 5).double(), nn.Sequential(nn.ReLU())], ids=lambda x: str(x)[:6]
)
def test_layers_that_it_does_not_know_are_the_modules(layer: nn.Module) -> None:
    _, few = make(layer, nn.Linear(5, 3))
    assert few(torch.ones(1, 5)) is None


def test_inputs_that_it_does_not_take_are_the_modules() -> None:
    _, few = make()
    assert few(torch.ones(MAX_ROWS + 1, 5)) is None
    assert few(torch.ones(1, 5, dtype=torch.float64)) is None
    assert few(torch.ones(5)) is None
    assert few(torch.ones(1, 5, device="meta")) is None


def test_hooks_are_not_passed_by_unless_they_ride() -> None:
    net, few = make()
    for module in (net, net.encoder, net.body, net.body[0]):
        for register in (module.register_forward_hook, module.register_forward_pre_hook):
            handle = register(lambda *arguments: None)
            assert few(torch.ones(1, 5)) is None
            handle.remove()
            assert few(torch.ones(1, 5)) is not None

    class Rider:
        ride = object()

        def __call__(self, *arguments: Any) -> None:
            raise AssertionError("was called")

    net.body[0].register_forward_hook(Rider())
    assert few(torch.ones(1, 5)) is not None


def seen_by(network: nn.Module, act: Callable[[], Tensor]) -> int:
    calls: list[int] = []
    handle = network.register_forward_hook(lambda *arguments: calls.append(1))
    act()
    handle.remove()
    return len(calls)


def test_agents_act_by_it_and_by_the_module_alike() -> None:
    box = spaces.Box(-np.inf, np.inf, (5,), np.float32)
    dqn = DQN(box, spaces.Discrete(3), DQNConfig(hidden=(8,), buffer_size=50, learning_starts=10), seed=2)
    ppo = PPO(box, spaces.Box(-1, 1, (2,), np.float32), PPOConfig(hidden=(8,)), seed=2)
    for i in range(20):
        obs = torch.randn(1, 5, generator=torch.Generator().manual_seed(i))
        with torch.no_grad():
            torch.testing.assert_close(dqn.q(obs), dqn.networks["q"](obs))
            torch.testing.assert_close(
                ppo.act(obs, explore=False), ppo.networks["actor"](ppo._normalise(obs)).mean.clamp(-1, 1)
            )
        assert seen_by(dqn.networks["q"], lambda obs=obs: dqn.q(obs)) == 1
        assert seen_by(ppo.networks["actor"], lambda obs=obs: ppo.act(obs, explore=False)) == 1
    dqn.networks["q"] = nn.Linear(5, 3)
    assert torch.equal(dqn.q(obs), dqn.networks["q"](obs))
