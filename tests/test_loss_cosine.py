"""Several losses of one network: the cosine of their gradients, wherever a loss has parts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

import plasticity
from plasticity.agents import AGENTS
from plasticity.agents.replay import Batch
from plasticity.agents.rollout import Experience
from plasticity.measuring import measure
from plasticity.probes import Again, NotMeasurable
from plasticity.probes.conflict import LossCosine
from plasticity.testing.runs import QUICK_RUNS, SHORT, command, rows


class Plane(nn.Module):
    """Two parameters, returned as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.theta + 0 * x


def again(**losses: tuple[float, ...]) -> Again:
    model = Plane()
    parts = {
        name: lambda direction=direction: model(torch.zeros(2)) @ torch.tensor(direction)
        for name, direction in losses.items()
    }
    return Again(model, objective=lambda: {name: part() for name, part in parts.items()})


def test_golden_cosine_of_losses() -> None:
    found = LossCosine().measure(again(a=(1.0, 1.0), b=(1.0, 0.0)))
    assert float(found["loss_cosine"]["a:b"]) == pytest.approx(0.707107, abs=1e-6)  # type: ignore[index]
    assert float(found["loss_cosine_low"]) == pytest.approx(0.707107, abs=1e-6)  # type: ignore[arg-type]
    three = LossCosine().measure(again(a=(1.0, 0.0), b=(-2.0, 0.0), still=(0.0, 0.0), c=(0.0, 3.0)))
    assert {pair: value.item() for pair, value in three["loss_cosine"].items()} == {"a:b": -1, "a:c": 0, "b:c": 0}  # type: ignore[union-attr]
    assert float(three["loss_cosine_low"]) == -1  # type: ignore[arg-type]


def test_one_loss_is_compared_with_nothing() -> None:
    with pytest.raises(NotMeasurable, match="of a, still, a moves it"):
        LossCosine().measure(again(a=(1.0, 0.0), still=(0.0, 0.0)))
    with pytest.raises(NotMeasurable, match="of loss, loss moves it"):
        LossCosine().measure(Again(model := Plane(), objective=lambda: model(torch.zeros(2)).sum()))


def naive(model: nn.Module, first: Tensor, second: Tensor) -> float:
    """Return the cosine by two backward passes that write to ``.grad``, parameter by parameter."""
    flat = []
    for loss in (first, second):
        model.zero_grad()
        loss.backward(retain_graph=True)
        flat.append(
            [
                entry
                for p in model.parameters()
                for entry in (p.grad if p.grad is not None else 0 * p).flatten().tolist()
            ]
        )
    model.zero_grad()
    dot, lengths = sum(a * b for a, b in zip(*flat, strict=True)), [math.sqrt(sum(a * a for a in one)) for one in flat]
    return dot / (lengths[0] * lengths[1])


def losses_of(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {"fit": F.mse_loss(output, target), "size": 0.1 * output.square().mean()}


def test_a_loss_function_may_return_losses_by_name() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 4), torch.randn(16, 2)
    reading = measure(model, (x, y), losses_of, probes=["loss_cosine", "grama"])
    assert reading.values["loss_cosine"]["fit:size"] == pytest.approx(
        naive(model, *losses_of(model(x), y).values()), abs=1e-5
    )
    whole = measure(model, (x, y), lambda output, target: sum(losses_of(output, target).values()), probes=["grama"])
    assert reading.values["grama"] == whole.values["grama"], "gradients are those of the sum"
    with pytest.raises(ValueError, match="several by name; got a tensor of shape"):
        measure(model, (x, y), lambda output, target: {"fit": output}, probes=["grama"])
    with pytest.raises(ValueError, match="several by name; got dict"):
        measure(model, (x, y), lambda output, target: {}, probes=["grama"])


def test_a_watched_loop_lends_its_losses() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 4), torch.randn(16, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    lent = {"loss": lambda: losses_of(model(x), y), "probes": ["loss_cosine"], "log": None, "every": 1, "strict": True}
    with plasticity.watch(model, optimizer, **lent) as session:
        sum(losses_of(model(x), y).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    (reading,) = session.last.values()
    assert reading.values["loss_cosine"]["all"] == pytest.approx(
        naive(model, *losses_of(model(x), y).values()), abs=1e-5
    )


ENVS = {"sac": "Pendulum-v1", "td3": "Pendulum-v1", "dqn": "CartPole-v1", "ppo": "CartPole-v1"}
PAIRS = {"sac": "plasticity/actor/loss_cosine/value:entropy", "ppo": "plasticity/actor/loss_cosine/policy:entropy"}


@pytest.mark.parametrize("agent", ENVS)
def test_the_parts_of_an_agents_loss_add_up_to_it(agent: str) -> None:
    learner, batch = small(agent)
    for step in learner.steps.values():
        step.add(
            "size", lambda networks, batch: sum(p.square().sum() for n in networks.values() for p in n.parameters())
        )
    for learner.updates in range(2):  # TD3's actor waits for the second
        learner.learn(batch)
    for name, step in learner.steps.items():
        parts = step.parts()
        assert "size" in parts
        assert sum(p.item() for p in parts.values()) == pytest.approx(step.again().item(), rel=1e-5), name


def small(agent: str) -> tuple[Any, Any]:
    """Return an agent, and something to learn from."""
    torch.manual_seed(0)
    obs, actions = (3, Box(-1, 1, (2,))) if agent in ("sac", "td3") else (3, Discrete(2))
    kind, config = AGENTS[agent]
    learner = kind(Box(-1, 1, (obs,)), actions, config(hidden=(8, 8)), compile="off")
    action = torch.rand(16, 2) if agent in ("sac", "td3") else torch.randint(2, (16,))
    if agent == "ppo":
        return learner, Experience(torch.randn(16, 3), action, *(torch.randn(16) for _ in range(4)))
    age = torch.ones(16, dtype=torch.int64)
    return learner, Batch(
        torch.randn(16, 3), action, torch.randn(16), torch.randn(16, 3), torch.rand(16) < 0.1, age, age
    )


@pytest.mark.parametrize("compile", ["off", pytest.param("on", marks=pytest.mark.slow)])
@pytest.mark.parametrize("agent", [a if a in PAIRS else pytest.param(a, marks=pytest.mark.slow) for a in ENVS])
def test_runs_log_the_cosines_of_their_losses(agent: str, compile: str, tmp_path: Path) -> None:
    options = [*QUICK_RUNS[agent], *SHORT, "--env", ENVS[agent], "--compile", compile, "--probes", "loss_cosine"]
    command("train", agent, *options, "--feature-norm", "--out", tmp_path, "--name", "run")
    found = {tag: value for row in rows(tmp_path / "run") for tag, value in row.items() if "/loss_cosine" in tag}
    lows = [value for tag, value in found.items() if tag.endswith("loss_cosine_low/all")]
    assert lows
    assert all(-1 <= value <= 1 for value in found.values() if not math.isnan(value))
    assert any(":feature_norm" in tag for tag in found), "a term that a method adds is a loss"
    if agent in PAIRS:
        assert -1 <= found[PAIRS[agent]] <= 1
