"""Optimizers by name: torch's own with the same numbers, fused where the device can, one's own, and clear errors."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from test_choices import restored  # noqa: F401
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from plasticity.agents.dqn import DQNConfig
from plasticity.agents.optimizers import OPTIMIZERS, AgentConfig
from plasticity.agents.ppo import PPOConfig

TORCH: dict[str, Any] = {"adam": Adam, "adamw": AdamW, "sgd": SGD, "rmsprop": RMSprop}


def stepped(optimizer: Optimizer, parameter: nn.Parameter) -> Tensor:
    for seed in range(3):
        parameter.grad = models.normal(*parameter.shape, seed=seed)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", TORCH)
def test_numbers_are_torchs(name: str, decay: float) -> None:
    ours, theirs = (nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    config = AgentConfig(optimizer=name, weight_decay=decay)
    torch.testing.assert_close(
        stepped(config.make_optimizer([ours], 0.01), ours),
        stepped(TORCH[name]([theirs], lr=0.01, weight_decay=decay), theirs),
    )


def test_every_optimizer_of_the_registry_is_tested() -> None:
    assert OPTIMIZERS.keys() == TORCH.keys()


def test_weight_decay_by_hand() -> None:
    """Without a gradient: adamw multiplies by 1 - lr decay, sgd too; adam turns it into a step of its own size."""
    for name, expected in (("adamw", 0.5 * (1 - 0.1 * 0.2)), ("sgd", 0.5 * (1 - 0.1 * 0.2)), ("adam", 0.5 - 0.1)):
        weight = nn.Parameter(torch.tensor(0.5))
        optimizer = AgentConfig(optimizer=name, weight_decay=0.2).make_optimizer([weight], 0.1)
        weight.grad = torch.zeros(())
        optimizer.step()
        assert weight.item() == pytest.approx(expected, abs=1e-6), name


def test_the_agents_own_epsilon_reaches_optimizers_that_have_one() -> None:
    weight = nn.Parameter(torch.zeros(2))
    assert PPOConfig().make_optimizer([weight], 0.1, eps=1e-5).defaults["eps"] == 1e-5
    assert "eps" not in PPOConfig(optimizer="sgd").make_optimizer([weight], 0.1, eps=1e-5).defaults


@pytest.mark.usefixtures("restored")
def test_an_optimizer_of_ones_own_is_a_class_or_a_function() -> None:
    weight = nn.Parameter(torch.zeros(2))
    OPTIMIZERS["radam"] = torch.optim.RAdam
    OPTIMIZERS["plain"] = lambda params, lr: SGD(params, lr=lr)
    OPTIMIZERS["any"] = lambda params, **settings: SGD(params, lr=settings["lr"] + settings["weight_decay"])
    assert isinstance(DQNConfig(optimizer="radam").make_optimizer([weight], 0.1), torch.optim.RAdam)
    assert DQNConfig(optimizer="plain").make_optimizer([weight], 0.1).defaults["lr"] == 0.1
    assert DQNConfig(optimizer="any", weight_decay=0.5).make_optimizer([weight], 0.1).defaults["lr"] == 0.6
    with pytest.raises(ValueError, match=r"the optimizer 'plain' takes no weight_decay; got 0\.1"):
        DQNConfig(optimizer="plain", weight_decay=0.1).make_optimizer([weight], 0.1)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizer is one of adam, adamw, sgd, rmsprop, got 'adm'; did you mean"):
        DQNConfig(optimizer="adm")
    for decay in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="weight_decay is at least 0"):
            DQNConfig(weight_decay=decay)
