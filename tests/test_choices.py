"""Options by name: entries of one's own are taken, unknown names are refused with those there are."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any, get_type_hints

import models
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from plasticity.agents import AGENTS
from plasticity.agents.bodies import NETWORKS, Architecture, Body, Network, make_body, widths
from plasticity.agents.choices import OneOf, pick
from plasticity.agents.dqn import DQN, DQNConfig
from plasticity.agents.networks import HEADS, QNetwork
from plasticity.agents.optimizers import OPTIMIZERS
from plasticity.agents.parts import ACTIVATIONS, NORMS
from plasticity.agents.returns import LOSSES, RETURNS, Mean

REGISTRIES: dict[str, MutableMapping[str, Any]] = {
    "network": NETWORKS,
    "norm": NORMS,
    "activation": ACTIVATIONS,
    "optimizer": OPTIMIZERS,
    "head": HEADS,
    "returns": RETURNS,
    "loss": LOSSES,
}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = {name: dict(registry) for name, registry in REGISTRIES.items()}
    yield
    for name, registry in REGISTRIES.items():
        registry.clear()
        registry.update(before[name])


def markers(hint: Any) -> list[OneOf]:
    """Return the markers of a type, also inside a union."""
    parts = [*getattr(hint, "__metadata__", ()), *(m for arg in getattr(hint, "__args__", ()) for m in markers(arg))]
    return [part for part in parts if isinstance(part, OneOf)]


@pytest.mark.parametrize("agent", AGENTS)
def test_every_option_by_name_is_marked_with_its_registry_and_checked(agent: str) -> None:
    kind = AGENTS[agent][1]
    hints = get_type_hints(kind, include_extras=True)
    named = [name for name in REGISTRIES if name in hints]
    assert {"network", "norm", "activation", "optimizer"} <= set(named)
    for name in named:
        (marker,) = markers(hints[name])
        assert marker.registry is REGISTRIES[name]
        with pytest.raises(ValueError, match=rf"^{name} is one of {', '.join(REGISTRIES[name])}, got 'nothing'"):
            kind(**{name: "nothing"})


def test_the_closest_name_is_suggested() -> None:
    with pytest.raises(ValueError, match=r"norm is one of none, layer, rms, got 'layr'; did you mean 'layer'\?"):
        pick(NORMS, "layr", "norm")


class Doubled(nn.Module):
    """Twice as many features, as CReLU."""

    expansion = 2

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.sin()], 1)


def test_an_activation_and_a_norm_of_ones_own() -> None:
    ACTIVATIONS["doubled"], NORMS["scale"] = Doubled, nn.RMSNorm
    body = make_body(Architecture(activation="doubled", norm="scale"), (3,), (8, 4))
    assert [type(part) for part in body.trunk] == [nn.Linear, nn.RMSNorm, Doubled] * 2
    assert body.num_features == 8
    assert body(torch.randn(5, 3)).shape == (5, 8)
    with pytest.raises(ValueError, match="bronet takes no doubled"):
        make_body(Architecture(activation="doubled", network="bronet"), (3,), (8,))


def test_a_network_of_ones_own_has_usual_widths_and_takes_its_kind_of_observations() -> None:
    def sine(architecture: Architecture, obs_shape: tuple[int, ...], hidden: tuple[int, ...], extra_dim: int) -> Body:
        return Body(nn.Identity(), nn.Sequential(nn.Linear(obs_shape[0] + extra_dim, hidden[0]), nn.Tanh()), hidden[0])

    NETWORKS["sine"] = Network(sine, policy=(7,), value=(9,))
    config = DQNConfig(network="sine")
    assert (widths(config, "policy"), widths(config, "value")) == ((7,), (9,))
    agent = models.here(DQN, spaces.Box(-1, 1, (3,)), spaces.Discrete(2), config)
    assert agent.networks["q"].q[0].weight.shape == (9, 3)
    with pytest.raises(ValueError, match=r"'sine' does not take observations of shape .*: networks for images"):
        make_body(config, (2, 8, 8), (7,))
    with pytest.raises(ValueError, match="networks for vectors are mlp, simba, bronet, sine"):
        make_body(DQNConfig(network="nature_cnn"), (3,), (7,))


def test_a_head_and_returns_of_ones_own() -> None:
    class Halved(Mean):
        def q(self, output: Tensor) -> Tensor:
            return output / 2

    class Deep(QNetwork):
        pass

    HEADS["deep"] = lambda body, num_actions, num_atoms, stream: Deep(body, num_actions, num_atoms)
    RETURNS["halved"] = lambda config, device: Halved(config.loss)
    config = DQNConfig(head="deep", returns="halved", hidden=(8,))
    agent = models.here(DQN, spaces.Box(-1, 1, (3,)), spaces.Discrete(2), config)
    assert type(agent.networks["q"]) is Deep
    obs = torch.randn(6, 3)
    torch.testing.assert_close(agent.q(obs), agent.networks["q"](obs).detach() / 2)
