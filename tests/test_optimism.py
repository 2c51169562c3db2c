"""SAC's optimistic policy: the weights by hand, one whole step in numpy, acting, resume, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import models
import numpy as np
import pytest
import torch
from test_amortized import assert_compiled_as_eager, assert_goes_on_to_the_bit, filled, layers
from test_sac import ACTION, ACTION_SPACE, IMAGE_SPACE, OBS_SPACE, SMALL, make_batch

from plasticity.agents.optimism import divergence_of, optimistic_loss, raw_gradient, raw_weights, weights_of
from plasticity.agents.sac import SAC, SACConfig
from plasticity.interventions import Reset
from plasticity.testing.runs import QUICK_RUNS, check_run

pytestmark = pytest.mark.usefixtures("everywhere")


def agent_of(seed: int = 0, space: Any = OBS_SPACE, compile: str = "auto", **changes: Any) -> SAC:
    settings = {**vars(SMALL), "optimism": 1.0, **changes}
    return models.here(SAC, space, ACTION_SPACE, SACConfig(**settings), seed=seed, compile=compile)


def test_golden_numbers() -> None:
    """At 1 and 0.25 the weights begin; their slopes by differences; KL and upper value by hand."""
    raw = raw_weights(1.0)
    assert weights_of(raw).tolist() == pytest.approx([1.0, 0.25], rel=1e-5)
    assert raw.tolist() == pytest.approx(
        [math.atanh(2 * 10 / 17.5 - 1), math.atanh(2 * (math.log(0.25) + 10) / 17.5 - 1)]
    )
    step, found = 1e-3, raw_gradient(raw, torch.tensor(0.3), 0.05)
    for i, sign in enumerate((1, -1)):
        move = torch.zeros(2)
        move[i] = step
        slope = float(weights_of(raw + move)[i] - weights_of(raw - move)[i]) / (2 * step)
        assert float(found[i]) == pytest.approx(sign * slope * 0.25, rel=1e-2)
    shift, log_std = torch.tensor([[1.0, 0.0], [2.0, 3.0]]), torch.log(torch.tensor([[2.0, 5.0], [1.0, 3.0]]))
    assert float(divergence_of(shift, log_std)) == pytest.approx(0.5 * (0.25 + 5.0) / 2)
    q = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
    assert float(optimistic_loss(q, torch.tensor(2.0), torch.tensor([0.5, 0.25]))) == pytest.approx(
        0.5 - (2.5 + 4.25) / 2
    )


def plain(network: Any, head: str, x: np.ndarray) -> np.ndarray:
    """Return the output of a two-layer ReLU network behind `head`, without modules."""
    for weight, bias in layers(network.trunk if head else network)[:2]:
        x = np.maximum(x @ weight.T + bias, 0)
    last = getattr(network, head) if head else network.q[-1]
    bias = 0 if last.bias is None else last.bias.numpy(force=True).astype(float)
    return x @ last.weight.numpy(force=True).astype(float).T + bias


@pytest.mark.parametrize("returns", [{}, {"critic_returns": "quantiles", "num_atoms": 3}])
def test_one_step_is_that_of_a_plain_implementation(returns: dict[str, Any]) -> None:
    agent, batch = agent_of(**returns), make_batch(6, models.generator(1))
    with torch.no_grad():
        agent.networks["optimist"].shift.weight.mul_(30)  # so that it moves actions
    weights, noise = torch.tensor([0.7, 0.2]), torch.randn(6, ACTION, generator=models.generator(2))
    loss, metrics = agent.optimist_loss(batch, weights, noise)
    obs, drawn = batch.obs.numpy(force=True).astype(float), noise.numpy(force=True).astype(float)
    total, divergences = 0.0, []
    for x, z in zip(obs, drawn, strict=True):
        mean = plain(agent.networks["actor"], "mean", x)
        std = np.exp(np.clip(plain(agent.networks["actor"], "log_std", x), -20, 2))
        shift = plain(agent.networks["optimist"], "shift", np.concatenate([x, mean]))
        action = np.tanh(mean + shift + 0.75 * std * z)
        one, other = (plain(agent.networks[n], "", np.concatenate([x, action])) for n in ("critic_1", "critic_2"))
        # the divergence of two Gaussians, as textbooks have it
        kl = sum(math.log(s / s) + (s**2 + (f) ** 2) / (2 * s**2) - 0.5 for s, f in zip(std, shift, strict=True))
        divergences.append(kl)
        total += 0.2 * kl - np.mean((one + other) / 2 + 0.7 * abs(one - other) / 2)
    assert metrics["optimist_kl"].item() == pytest.approx(np.mean(divergences), rel=1e-4)
    assert loss.item() == pytest.approx(total / 6, rel=1e-4)
    loss.backward(inputs=list(agent.networks["optimist"].parameters()))
    assert all(p.grad is not None and p.grad.any() for p in agent.networks["optimist"].parameters())


def test_the_weights_are_steered_towards_the_divergence_that_is_asked_for() -> None:
    for target, more in ((1e-9, -1), (1e6, 1)):
        agent = filled(agent_of(kl_target=target))
        with torch.no_grad():
            agent.networks["optimist"].shift.weight.mul_(30)
        before, metrics = agent.raw_weights.detach().clone(), agent.update()
        moved = agent.raw_weights.detach() - before
        assert moved.tolist() == pytest.approx([more * 3e-5, -more * 3e-5], rel=1e-2)  # Adam's first step
        assert {"optimist_loss", "optimist_kl", "optimism", "kl_weight"} <= metrics.keys()


def test_only_exploring_is_optimistic() -> None:
    agent, plain_agent = agent_of(), agent_of(optimism=0.0)
    plain_agent.networks["actor"].load_state_dict(agent.networks["actor"].state_dict())
    filled(agent), filled(plain_agent)
    obs = torch.randn(4, OBS_SPACE.shape[0])
    assert torch.equal(agent.act(obs, explore=False), plain_agent.act(obs, explore=False))
    with torch.no_grad():
        mean, log_std = agent.networks["actor"](obs)
        noise, shift = torch.randn(4, ACTION), agent.networks["optimist"](obs, mean)
    expected = torch.tanh(mean + shift + 0.75 * log_std.exp() * noise)
    seen = agent.respond(agent.seen(obs), noise.numpy() if noise.is_cpu else noise)
    torch.testing.assert_close(torch.as_tensor(seen), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"critic_returns": "quantiles", "num_atoms": 5, "network": "bronet"}])
def test_a_run_goes_on_to_the_bit(changes: dict[str, Any]) -> None:
    assert_goes_on_to_the_bit(filled(agent_of(**changes)), agent_of(seed=4, **changes))


@pytest.mark.on_cpu
def test_compiled_updates_are_the_eager_ones(as_traced: None) -> None:
    assert_compiled_as_eager(filled(agent_of(compile="on")), filled(agent_of(compile="off")), "optimist")


def test_images_have_a_policy_of_their_own_convolutions() -> None:
    agent = agent_of(space=IMAGE_SPACE, network="minatar_cnn")
    obs = torch.zeros(3, *IMAGE_SPACE.shape, dtype=torch.uint8)
    assert agent.networks["optimist"](obs, torch.zeros(3, ACTION)).shape == (3, ACTION)


@pytest.mark.slow
def test_the_contract_of_a_run_with_all_of_bro(tmp_path: Any) -> None:
    options = ["--network", "bronet", "--critic-returns", "quantiles", "--num-atoms", "5", "--pessimism", "0",
               "--optimism", "1", "--optimizer", "adamw", "--reset", "--reset.every", "70", "--redo"]  # fmt: skip
    check_run("sac", [*QUICK_RUNS["sac"], *options], tmp_path)


def test_a_reset_of_everything_puts_its_weights_back() -> None:
    from test_interventions import run_sac

    method = Reset(at=(8,), clock="updates", temperature=True)
    agent, _, _ = run_sac([method], steps=17, optimism=1.0)
    assert method.counts["applications"] == 1
    assert agent.updates >= 8
    later = agent.updates - 8
    assert float((agent.raw_weights.detach() - raw_weights(1.0)).abs().max()) <= 3.1e-5 * later


@pytest.mark.parametrize(
    "wrong",
    [{"optimism": -1.0}, {"kl_target": 0.0}, {"explore_std": 0.0}, {"actor": "amortized"}, {"network": "crossq"}],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).replace("network", "crossq")):
        SACConfig(**{"optimism": 1.0, **wrong})


def test_a_saved_agent_without_the_policy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"saved with optimism > 0=False, this agent has optimism > 0=True"):
        agent_of().load_state_dict(agent_of(optimism=0.0).state_dict())
