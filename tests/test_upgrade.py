"""Records of older versions: their settings have the present names, and those of this version are left alone."""

from typing import Any

import pytest

from plasticity.agents import AGENTS
from plasticity.storage.upgrade import upgraded


def record(agent: str, arguments: list[str], **settings: Any) -> dict[str, Any]:
    return {"agent": agent, "status": "finished", "arguments": arguments, "config": {"seed": 1, "agent": settings}}


@pytest.mark.parametrize(
    ("flags", "settings", "new_flags", "head", "returns"),
    [
        (["--dueling"], {"dueling": True, "distributional": False}, ["--head", "dueling"], "dueling", "mean"),
        (["--distributional"], {"dueling": False, "distributional": True}, ["--returns", "c51"], "linear", "c51"),
        (["--no-dueling"], {"dueling": False, "distributional": False}, ["--head", "linear"], "linear", "mean"),
    ],
)
def test_options_of_dqn_became_names(
    flags: list[str], settings: dict[str, bool], new_flags: list[str], head: str, returns: str
) -> None:
    old = record("dqn", ["--env", "CartPole-v1", *flags, "--lr", "0.1"], lr=0.1, **settings)
    found = upgraded(old)
    assert found["arguments"] == ["--env", "CartPole-v1", *new_flags, "--lr", "0.1"]
    added = {"optimizer": "adam", "weight_decay": 0.0, "betas": None, "eps": None, "outputs": "own"}
    assert found["config"]["agent"] == {"lr": 0.1, "head": head, "returns": returns, **added}
    config = AGENTS["dqn"][1](**found["config"]["agent"])
    assert (config.head, config.returns) == (head, returns)
    assert upgraded(found) == found
    assert old["config"]["agent"]["dueling"] is settings["dueling"]


@pytest.mark.parametrize("agent", ["sac", "td3", "ppo"])
def test_critics_of_old_runs_have_the_one_head_that_there_was(agent: str) -> None:
    config = AGENTS[agent][1](**upgraded(record(agent, []))["config"]["agent"])
    assert (config.critic_head, config.optimizer) == ("linear", "adam")


def test_other_agents_and_present_records_stay_as_they_are() -> None:
    other = record("mine", ["--dueling"], dueling=True)
    present = record("dqn", ["--head", "dueling"], head="dueling", optimizer="sgd", weight_decay=0.1)
    present["config"]["agent"] |= {"betas": None, "eps": None, "outputs": "own"}
    for one in (other, present):
        assert upgraded(one) == one
