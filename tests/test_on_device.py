"""Simulators on a device: in a step of training the host waits for nothing, and what is counted there is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import elsewhere
import models
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from plasticity.agents import AGENTS
from plasticity.agents import records as agent_records
from plasticity.agents import updates as agent_updates
from plasticity.agents.records import Episodes, Losses
from plasticity.agents.train import context, train
from plasticity.callback import Callback
from plasticity.envs import on_device
from plasticity.envs.on_device import OnDevice

pytestmark = pytest.mark.usefixtures("everywhere", "as_traced")

NUM, LENGTH = 3, 5
BOX, FORCE = spaces.Box(-9, 9, (2,), np.float32), spaces.Box(-1, 1, (1,), np.float32)
OFF_POLICY: dict[str, Any] = {"hidden": (8, 8), "batch_size": 8, "learning_starts": 12, "buffer_size": 300}
SETTINGS: dict[str, dict[str, Any]] = {
    "sac": OFF_POLICY, "td3": OFF_POLICY, "dqn": {**OFF_POLICY, "exploration_steps": 0, "epsilon_end": 0.5},
    "ppo": {"hidden": (8, 8), "num_steps": 8, "num_minibatches": 2, "num_epochs": 1, "normalize_rewards": True},
}  # fmt: skip


class Points:
    """Points that forces push along a line: rewards of 1, episodes of `LENGTH` steps and more for later ones."""

    num_envs, observation_space = NUM, BOX

    def __init__(self, actions: spaces.Space = FORCE, breaks_at: int = -1) -> None:
        self.action_space: Any = actions
        self.state, self.time, self.breaks_at = torch.zeros(NUM, 2), torch.zeros(NUM), breaks_at
        self.limit, self.steps = LENGTH + torch.arange(NUM), 0

    def reset(self, done: Tensor | None) -> Tensor:
        which = torch.ones(NUM, dtype=torch.bool) if done is None else done
        self.state, self.time = torch.where(which[:, None], 0.5, self.state), self.time * ~which
        return self.state

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self.steps += 1
        self.state = self.state + 0.1 * action.float().reshape(NUM, 1)
        if self.steps == self.breaks_at:
            self.state = torch.where(torch.arange(NUM)[:, None] == 1, torch.nan, self.state)
        self.time = self.time + 1
        return self.state, torch.ones(NUM), torch.zeros(NUM, dtype=torch.bool), self.time >= self.limit


def begun(name: str, callbacks: list[Callback] | None = None, **options: Any) -> tuple[Callable[[int], Any], Any, Any]:
    """Return what trains for so many steps of every environment, the agent, and the rows that are logged."""
    kind, config = AGENTS[name]
    env = OnDevice("points", Points(spaces.Discrete(2) if name == "dqn" else FORCE, **options), models.place())
    agent = kind(BOX, env.action_space, config(**SETTINGS[name]), num_envs=NUM, device=models.place())
    rows: list[dict[str, float]] = []
    ctx = context(agent)
    ctx.log = lambda row: rows.append(dict(row))  # type: ignore[assignment]
    chosen = callbacks or [Episodes(), Losses()]
    return (lambda steps: train(env, agent, ctx.step + steps * NUM, chosen, ctx) and env), agent, rows


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.each("name")
def test_the_host_waits_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_updates, "CHECK_EVERY", 10**6)  # which looks at losses now and then
    waits = Waits()
    learn, agent, _ = begun(name, [Episodes(), Losses(10**6), waits])
    learn(40)
    assert agent.updates >= 10
    assert waits.seen[-1] - waits.seen[20] == Counter()


class Waits(Callback):
    """Note for what the host has waited so far."""

    def __init__(self) -> None:
        self.seen: list[Counter[str]] = []

    def on_step_end(self, ctx: Any) -> None:
        self.seen.append(elsewhere.waits.copy())


def test_episodes_are_counted_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment i ends every 5 + i steps with that return: counted by hand; also where they were saved half-way."""
    monkeypatch.setattr(agent_records, "LOOK_EVERY", 30)
    episodes = Episodes()
    learn, _, rows = begun("ppo", [episodes])
    learn(30)
    ended = [LENGTH + i for i in range(NUM) for _ in range(30 // (LENGTH + i))]
    if models.place() != "cpu":
        assert rows == [{"charts/episodic_return": np.mean(ended), "charts/episodic_length": np.mean(ended)}]
    assert episodes.finished == len(ended)
    state = episodes.state_dict()
    assert state["lengths"].tolist() == [30 % (LENGTH + i) for i in range(NUM)] == state["returns"].tolist()


def test_what_is_not_finite_stops_the_run_and_names_step_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "VERIFY_EVERY", 8)
    with pytest.raises(FloatingPointError, match="environment 1 was not finite at step 3 of"):
        begun("ppo", breaks_at=3)[0](8)


def test_a_simulator_without_a_state_begins_anew_and_other_shapes_are_refused() -> None:
    env = begun("ppo")[0](4)
    other = OnDevice("points", Points(), models.place())
    assert other.load_state_dict(env.state_dict()).all()
    wide = Points()
    wide.observation_space = spaces.Box(-9, 9, (3,), np.float32)
    with pytest.raises(ValueError, match=r"expected observations of shape \(3, 3\) on .*, got \(3, 2\)"):
        OnDevice("wide", wide, models.place()).reset()
