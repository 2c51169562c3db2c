"""Optimizers by name: torch's own with the same numbers, fused where the device can, one's own, and clear errors."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import models
import pytest
import torch
from test_choices import restored  # noqa: F401
from test_lifelong_optimizers import LIFELONG
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from plasticity.agents.dqn import DQNConfig
from plasticity.agents.optimizers import OPTIMIZERS, AgentConfig, load_optimizer_
from plasticity.agents.ppo import PPOConfig
from plasticity.testing.runs import require_same

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
    assert OPTIMIZERS.keys() == TORCH.keys() | LIFELONG


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
    OPTIMIZERS["fixed"] = lambda params: SGD(params, lr=1.0)
    with pytest.raises(ValueError, match=r"the optimizer 'fixed' takes no lr; got 0\.1"):
        DQNConfig(optimizer="fixed").make_optimizer([weight], 0.1)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizer is one of adam, adamw, .*, got 'adm'; did you mean"):
        DQNConfig(optimizer="adm")
    with pytest.raises(ValueError, match="weight_decay >= 0"):
        DQNConfig(weight_decay=-0.1)
    with pytest.raises(ValueError, match="weight_decay as a finite number; got nan"):
        DQNConfig(weight_decay=float("nan"))


@pytest.mark.usefixtures("restored")
def test_what_agents_cannot_step_with_is_refused() -> None:
    OPTIMIZERS["lbfgs"], OPTIMIZERS["none"] = torch.optim.LBFGS, lambda params, lr: None  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"the optimizer 'lbfgs' \(LBFGS\) needs a closure"):
        DQNConfig(optimizer="lbfgs").make_optimizer([nn.Parameter(torch.zeros(2))], 0.1)
    with pytest.raises(ValueError, match=r"OPTIMIZERS\['none'\] must return a torch.optim.Optimizer, got NoneType"):
        DQNConfig(optimizer="none").make_optimizer([nn.Parameter(torch.zeros(2))], 0.1)


def test_a_loaded_state_has_the_types_that_were_saved() -> None:
    """torch casts every tensor of a state to the type of its parameter: counts, masks and float64 lose their bits."""
    weight, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    kept = torch.tensor([1 / 3], dtype=torch.float64)
    optimizer, loaded = SGD([weight], 0.1), SGD([other], 0.1)
    state = {"mean": kept, "bits": torch.tensor([7], dtype=torch.uint8), "past": [kept, None], "half": torch.zeros(2)}
    optimizer.state[weight] = state
    saved = optimizer.state_dict()
    load_optimizer_(loaded, saved)
    found = loaded.state[other]
    require_same(found, state, "state")
    found["mean"].zero_()
    assert kept.item() == 1 / 3


def test_an_agent_begins_without_importing_a_compiler() -> None:
    code = """
import sys, torch
from gymnasium import spaces
from plasticity.agents import SAC, SACConfig
from plasticity.agents.replay import Batch
box = spaces.Box(-1, 1, (2,))
agent = SAC(box, box, SACConfig(hidden=(4,)))
one = torch.ones(8, dtype=torch.int64)
agent.learn(Batch(torch.ones(8, 2), torch.ones(8, 2), torch.ones(8), torch.ones(8, 2), one.bool(), one, one))
agent.load_state_dict(agent.state_dict())
assert "torch._dynamo" not in sys.modules
method = torch.optim.Optimizer.state_dict.__wrapped__
assert not hasattr(method, "__dynamo_disable")
agent.optimizers["actor"].state_dict()
assert "torch._dynamo" in sys.modules and method.__dynamo_disable is not method
"""
    subprocess.run([sys.executable, "-c", code], check=True)
