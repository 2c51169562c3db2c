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
from plasticity.agents.networks import HEADS, VALUE_HEADS, QNetwork, UnitFeatures, with_output
from plasticity.agents.optimizers import OPTIMIZERS
from plasticity.agents.parts import ACTIVATIONS, NORMS
from plasticity.agents.returns import LOSSES, RETURNS, Mean

REGISTRIES: dict[str, MutableMapping[str, Any]] = {
    "network": NETWORKS,
    "norm": NORMS,
    "activation": ACTIVATIONS,
    "optimizer": OPTIMIZERS,
    "head": HEADS,
    "critic_head": VALUE_HEADS,
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
    with pytest.raises(ValueError, match=r"networks for vectors are mlp, .*, bronet, sine"):
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


@pytest.mark.parametrize("agent", ["sac", "td3", "ppo"])
def test_critics_have_the_head_that_is_named(agent: str) -> None:
    VALUE_HEADS["twice"] = lambda body: nn.Sequential(with_output(body, 3), nn.Linear(3, 1))
    kind, config = AGENTS[agent]
    spaces_ = spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,))
    for head, layers in (("linear", [nn.Linear, nn.Linear]), ("twice", [nn.Linear, nn.Linear, nn.Linear])):
        networks = models.here(kind, *spaces_, config(hidden=(8,), critic_head=head)).networks
        critics = [network for name, network in networks.items() if name.startswith("critic")]
        assert len(critics) == (1 if agent == "ppo" else 2)
        for critic in critics:
            assert [type(m) for m in critic.modules() if isinstance(m, nn.Linear)] == layers


@pytest.mark.parametrize("agent", ["sac", "ppo", "dqn"])
def test_values_on_unit_features_are_bounded_by_the_output_layer(agent: str) -> None:
    """|w f + b| <= |w| + |b| for |f| = 1, however long the features of the body are."""
    kind, config = AGENTS[agent]
    name, head = ("q", "head") if agent == "dqn" else ("critic" if agent == "ppo" else "critic_1", "critic_head")
    action = spaces.Discrete(2) if agent == "dqn" else spaces.Box(-1, 1, (2,))
    network = models.here(kind, spaces.Box(-1, 1, (3,)), action, config(hidden=(8,), **{head: "unit"})).networks[name]
    assert any(isinstance(module, UnitFeatures) for module in network.modules())
    given = (1e4 * torch.randn(50, 3),) if agent != "sac" else (1e4 * torch.randn(50, 3), torch.randn(50, 2))
    output = (network.v if agent == "ppo" else network.q)[-1]
    assert isinstance(output, nn.Linear)
    value = network(*given).reshape(50, -1)
    assert (value.abs() <= output.weight.norm(dim=1) + output.bias.abs() + 1e-5).all()


def test_unit_features_by_hand() -> None:
    assert UnitFeatures()(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist() == [
        [pytest.approx(0.6), pytest.approx(0.8)],
        [0, 0],
    ]
