"""On a GPU: the CPU's numbers, and updates in which the host waits for nothing. Skipped where there is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from plasticity.agents import AGENTS
from plasticity.agents import updates as agent_updates

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]
BOX, CONTINUOUS, DISCRETE = spaces.Box(-9, 9, (4,), np.float32), spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3)
SETTINGS: dict[str, dict[str, Any]] = {
    "sac": {"hidden": (16, 16), "batch_size": 16, "learning_starts": 32, "buffer_size": 400},
    "td3": {"hidden": (16, 16), "batch_size": 16, "learning_starts": 32, "buffer_size": 400},
    "dqn": {"hidden": (16, 16), "batch_size": 16, "learning_starts": 32, "buffer_size": 400, "train_every": 1},
    "ppo": {"hidden": (16, 16), "num_steps": 16, "num_minibatches": 4, "num_epochs": 2},
}


def make(name: str, device: str, compile: str = "off") -> Any:
    kind, config = AGENTS[name]
    actions = DISCRETE if name == "dqn" else CONTINUOUS
    return kind(BOX, actions, config(**SETTINGS[name]), num_envs=4, device=device, seed=3, compile=compile)


def collect(agent: Any, steps: int) -> None:
    """Let it act in noise until it can learn; on every device it sees the same."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        obs, next_obs = (torch.randn(4, 4, generator=generator).to(agent.device) for _ in range(2))
        action, reward = agent.act(obs, explore=True), torch.randn(4, generator=generator).to(agent.device)
        over = torch.zeros(4, dtype=torch.bool, device=agent.device)
        parts = {"obs": obs, "action": action, "reward": reward, "next_obs": next_obs}
        agent.observe(SimpleNamespace(**parts, terminated=over, truncated=over))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("compile", ["off", "on"])
@pytest.mark.parametrize("name", AGENTS)
def test_updates_wait_for_nothing(name: str, compile: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host only looks at losses every CHECK_EVERY updates; on a CPU, where nothing waits, it just has to run."""
    agent = make(name, device, compile)
    collect(agent, 16)
    for _ in range(3):  # compiles, and makes the optimizers' states
        agent.update()
    monkeypatch.setattr(agent_updates, "CHECK_EVERY", 10**9)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            agent.update()
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    agent.state_dict()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", AGENTS)
def test_weights_and_values_are_those_of_the_cpu(name: str, device: str) -> None:
    agent, twin = make(name, device), make(name, "cpu")
    for key, network in agent.networks.items():
        for a, b in zip(network.parameters(), twin.networks[key].parameters(), strict=True):
            assert torch.equal(a.cpu(), b)
    obs = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(agent.act(obs, explore=False).cpu(), twin.act(obs, explore=False))


@pytest.mark.parametrize("device", DEVICES)
def test_a_loss_that_is_not_finite_is_found_before_a_state_is_saved(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_updates, "CHECK_EVERY", 10**9)
    agent = make("sac", device)
    collect(agent, 16)
    agent.buffer.storage["reward"][:] = float("nan")

    def update_and_save() -> None:
        agent.update()
        agent.state_dict()

    with pytest.raises(FloatingPointError, match="critic_loss is not finite"):
        update_and_save()


def test_sums_of_losses_on_a_device_are_looked_at_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a device, without one: tensors that say they are elsewhere."""

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")  # type: ignore[assignment]

    def loss(value: float) -> dict[str, torch.Tensor]:
        return {
            "a_loss": torch.tensor(1.0).as_subclass(Elsewhere),
            "b_loss": torch.tensor(value).as_subclass(Elsewhere),
        }

    monkeypatch.setattr(agent_updates, "CHECK_EVERY", 4)
    finite = agent_updates.Finite("agent")
    finite.check(loss(1.0), 1)
    finite.check(loss(float("nan")), 2)
    finite.check(loss(1.0), 3)
    with pytest.raises(FloatingPointError, match=r"agent: b_loss is not finite at update 4 or shortly before"):
        finite.check(loss(1.0), 4)
