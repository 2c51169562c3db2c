"""Soft mixtures of experts: against loops over samples, tokens, experts and slots, and in an agent."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from test_interventions import assert_moves, run_sac

from plasticity.agents.bodies import Architecture, make_body
from plasticity.agents.experts import SoftMoE, Tokens
from plasticity.agents.parts import activated
from plasticity.interventions import ReDo
from plasticity.testing.runs import QUICK_RUNS, check_run

pytestmark = pytest.mark.usefixtures("everywhere")


def test_a_mixture_is_that_of_loops() -> None:
    torch.manual_seed(0)
    moe, x = SoftMoE(5, 3, (4, 4), partial(activated, "none", "relu")).double(), torch.randn(2, 5, 3).double()
    assert moe.phi.shape == (3, 2, 3)  # 3 slots of 2 experts for 5 tokens
    with torch.no_grad():
        found, phi = moe(x), moe.phi
        for b in range(2):
            logits = [[[float(x[b, m] @ phi[:, n, p]) for p in range(3)] for n in range(2)] for m in range(5)]
            answers = {}
            for n in range(2):
                for p in range(3):
                    weights = [math.exp(logits[m][n][p]) for m in range(5)]
                    slot = sum(w / sum(weights) * x[b, m] for m, w in enumerate(weights))
                    answers[n, p] = moe.experts[n](slot)
            for m in range(5):
                weights = {(n, p): math.exp(logits[m][n][p]) for n, p in answers}
                expected = sum(weights[key] / sum(weights.values()) * answer for key, answer in answers.items())
                torch.testing.assert_close(found[b, m], expected)


def test_every_position_of_an_image_is_a_token() -> None:
    x = torch.randn(2, 3, 4, 5)
    tokens = Tokens()(x)
    assert tokens.shape == (2, 20, 3)
    assert torch.equal(tokens[1, 7], x[1, :, 1, 2])
    assert Tokens()(torch.randn(2, 3)).shape == (2, 1, 3)
    body = make_body(Architecture(network="softmoe_cnn"), (4, 84, 84), (16, 16, 16))
    assert body.num_features == 7 * 7 * 64
    assert body.encoder[-2].phi.shape == (64, 3, 17)
    assert len(body.trunk) == 0
    with pytest.raises(ValueError, match="softmoe needs an expert"):
        make_body(Architecture(network="softmoe"), (4,), ())


@pytest.mark.slow_off_the_cpu
def test_its_experts_are_trained_and_recycled() -> None:
    method = ReDo(every=3, threshold=0.4, cap=0.2)
    agent, ctx, writer = run_sac([method], steps=40, network="softmoe", hidden=(6, 6))
    events = [event for event in writer.named("redo") if event["network"] == "critic_1"]
    assert any("experts" in layer for event in events for layer in event["neurons"])
    assert_moves(ctx, lambda: agent.learn(agent.buffer.sample(64)))


@pytest.mark.slow
@pytest.mark.on_cpu
@pytest.mark.parametrize("agent", ["dqn", "sac"])
def test_a_run_goes_on_to_the_same_bits(agent: str, tmp_path: Path) -> None:
    check_run(agent, [*QUICK_RUNS[agent], "--network", "softmoe"], tmp_path)
