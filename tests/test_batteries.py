"""The batteries for agents and methods: what keeps to the contract passes, and what breaks it is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from online_q import OnlineQ, OnlineQConfig
from structural import LearnedSlopes
from test_interventions import FREQUENT, NEVER, some
from torch import Tensor

from plasticity.agents import AGENTS
from plasticity.callback import Context
from plasticity.commands import run, training
from plasticity.interventions import INTERVENTIONS, Intervention
from plasticity.testing import check_agent, check_method
from plasticity.testing.runs import QUICK_RUNS as OPTIONS
from plasticity.testing.runs import SHORT, attempt, command, registered

NOT_FOR = {
    ("swd", "ppo"): "it has no replay buffer",
    ("ne", "ppo"): "FREQUENT reviews old experience, and it has no replay buffer",
    ("ere", "ppo"): "it has no replay buffer",
    ("dr3", "ppo"): "it has no replay buffer",
    **{("pfo", agent): "it has no rollouts" for agent in ("td3", "dqn")},
    **{("random_shift", agent): "its observations are no images" for agent in ("td3", "dqn", "ppo")},
    ("replay_ratio", "ppo"): "it has no replay buffer",
    **{("horizon", agent): "it has no n-step returns" for agent in ("td3", "ppo")},
    ("horizon", "dqn"): "its quick run has no n-step returns; test_horizon.py has the contract with them",
    ("snr", "ppo"): "its activation is tanh, of which h > 0 says nothing",
    ("reborn", "ppo"): "its activation is tanh, for which no split is exact",
    ("least", "ppo"): "it has no value of (observation, action)",
}
"""(method, agent) -> why the one cannot do without something that the other lacks."""
NEVER_IDLE = {("replay_ratio", "dqn"), ("least", "dqn")}
"""(method, agent) where no settings change nothing: DQN updates once in some steps, a ratio a little in each; epsilon
ends at 0.05, with LEAST and no stops at 0.1."""
CARTPOLE = ("--env", "CartPole-v1")


@pytest.mark.parametrize(
    "name", some([(name,) for name in INTERVENTIONS if name not in ("pfo", "random_shift", "horizon")], share=8)
)
@pytest.mark.some(3)
def test_every_method_passes(name: str) -> None:
    check_method(INTERVENTIONS[name], FREQUENT[name], NEVER.get(name))


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["td3", "dqn", "ppo"])
@pytest.mark.parametrize("name", INTERVENTIONS)
def test_every_method_passes_on_every_agent(name: str, agent: str) -> None:
    if (name, agent) in NOT_FOR:
        pytest.skip(NOT_FOR[name, agent])
    idle = None if (name, agent) in NEVER_IDLE else NEVER.get(name)
    check_method(INTERVENTIONS[name], FREQUENT[name], idle, agent)


def test_an_agent_from_the_protocol_alone_passes() -> None:
    check_agent(OnlineQ, OnlineQConfig, CARTPOLE)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.some(2)
def test_every_agent_passes(name: str) -> None:
    check_agent(*AGENTS[name], OPTIONS[name])


class ForgetsItsGenerator(OnlineQ):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "generator": torch.Generator().manual_seed(0).get_state()}


class ForgetsItsUpdates(OnlineQ):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({**state, "updates": 0})


class NeverLearns(OnlineQ):
    def ready(self) -> bool:
        return False


class HasNoUpdates(OnlineQ):
    def __setattr__(self, name: str, value: Any) -> None:
        if name != "updates":
            super().__setattr__(name, value)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ForgetsItsGenerator, "resumed run"),
        (ForgetsItsUpdates, "resumed run"),
        (NeverLearns, "made no update"),
        (HasNoUpdates, "updates"),
    ],
)
def test_an_agent_that_breaks_the_contract_is_named(kind: type, message: str) -> None:
    with pytest.raises((AssertionError, AttributeError), match=message):
        check_agent(kind, OnlineQConfig, CARTPOLE)


@dataclass
class Noise(Intervention):
    """Add noise to every weight after every update, and break one clause of the contract by choice."""

    NAME: ClassVar[str] = "noise"
    PRESETS: ClassVar = {"small": {"scale": 1e-3}}

    preset: str = "small"
    """Defaults of the options that are None."""
    scale: float | None = None
    """Standard deviation of the noise."""
    fault: str = ""
    """Clause to break."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.updates = 0

    def on_update_end(self, ctx: Context, metrics: Mapping[str, Tensor]) -> None:
        self.updates += 1
        generator = None if self.fault == "global" else self.generator
        for network in self.choose(ctx).values():
            for parameter in network.parameters():
                scale = (self.scale or 0.0) * (self.updates if self.fault == "clock" else 1)
                parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
        ctx.edited()
        if self.fault != "silent":
            self.report(ctx, {}, applications=1)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.fault == "generator":
            self.counts = dict(state["counts"])
        else:
            super().load_state_dict(state)


def test_a_method_from_outside_passes() -> None:
    check_method(Noise, {}, {"scale": 0.0})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("clock", "resumed run"),
        ("generator", "resumed run"),
        ("silent", "has logged nothing"),
        ("global", "random streams of a run in which the method does nothing"),
    ],
)
@pytest.mark.some(1)
def test_a_method_that_breaks_the_contract_is_named(fault: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_method(Noise, {"fault": fault}, {"fault": fault, "scale": 0.0})


class Forgetful(LearnedSlopes):
    """Put the new modules in place when training starts, where a checkpoint is not rebuilt."""

    def on_train_start(self, ctx: Context) -> None:
        super().restructure(ctx, None)

    def restructure(self, ctx: Context, state: Mapping[str, Any] | None) -> None:
        pass


def test_a_structure_that_is_not_restored_is_named() -> None:
    with pytest.raises(AssertionError, match=r"changed which weights .* do it in restructure"):
        check_method(Forgetful, {})


def test_an_agent_that_never_learns_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (run, training):
        monkeypatch.setattr(module, "UPDATE_WITHIN", 200)
    with registered(AGENTS, "idle", (NeverLearns, OnlineQConfig)):
        command("train", "idle", *CARTPOLE, *SHORT, "--out", tmp_path, "--name", "run")
        dry_run, probe = (
            ["train", "idle", *CARTPOLE, *SHORT, "--dry-run"],
            ["probe", "--samples", "64", tmp_path / "run"],
        )
        for words in (dry_run, probe):
            code, _, errors = attempt(*words)
            assert code == 1
            assert "idle made no update in 200 environment steps" in errors


def test_presets_must_be_refused() -> None:
    class Lenient(Noise):
        def __post_init__(self) -> None:
            self.preset = "small"
            super().__post_init__()

    with pytest.raises(AssertionError, match="takes an unknown preset"):
        check_method(Lenient, {})
