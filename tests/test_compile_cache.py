"""Compiled updates are kept on disk: another run finds them there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gymnasium import spaces

from plasticity.agents import DQN, DQNConfig
from plasticity.agents.replay import Batch


def one_update() -> None:
    """Take a compiled update of a new agent."""
    space = spaces.Box(-1, 1, (3,))
    agent = DQN(space, spaces.Discrete(2), DQNConfig(hidden=(8,), learning_starts=1, buffer_size=9), compile="on")
    obs, index = torch.ones(4, 3), torch.arange(4)
    agent.learn(Batch(obs, index % 2, torch.ones(4), obs, torch.zeros(4, dtype=torch.bool), index + 1, index))


@pytest.mark.slow
@pytest.mark.inductor
def test_a_second_agent_hits_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found = []
    for _ in range(2):
        counters.clear()
        torch.compiler.reset()
        one_update()
        found.append((counters["inductor"]["fxgraph_cache_miss"], counters["inductor"]["fxgraph_cache_hit"]))
    assert found == [(1, 0), (0, 1)]
    assert any(tmp_path.rglob("*.so"))
