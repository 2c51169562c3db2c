"""CrossQ: batch renormalisation against its formula and PyTorch's batch norm, the joint loss against a plain one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from test_interventions import run_sac, small_sac
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from plasticity.agents import AGENTS
from plasticity.agents import batch_norm as module
from plasticity.agents.batch_norm import BatchRenorm, batch_norms, batch_statistics
from plasticity.agents.replay import Batch
from plasticity.agents.sac import SAC
from plasticity.testing.runs import QUICK_RUNS, check_run, command

pytestmark = pytest.mark.usefixtures("everywhere")
CROSSQ = {"network": "crossq", "hidden": (8, 6), "policy_every": 3}


def shaken(norm: BatchRenorm) -> BatchRenorm:
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return norm


def test_a_pass_is_that_of_batch_norm_and_changes_nothing() -> None:
    torch.manual_seed(0)
    norm, x = shaken(BatchRenorm(5)), 3 * torch.randn(20, 5) + 1
    state = copy.deepcopy(norm.state_dict())
    known = norm.running_mean, norm.running_var, norm.weight, norm.bias
    torch.testing.assert_close(norm(x), batch_norm(x, *known, False, 0.0, norm.eps))
    with batch_statistics([norm]) as seen:
        found = norm(x)
    torch.testing.assert_close(found, batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps))
    mean, var = seen().chunk(2)
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(var, x.var(0, correction=0))
    assert all(torch.equal(value, state[name]) for name, value in norm.state_dict().items())
    module.follow([norm], seen())
    torch.testing.assert_close(norm.running_mean, 0.99 * state["running_mean"] + 0.01 * mean)
    torch.testing.assert_close(norm.running_var, 0.99 * state["running_var"] + 0.01 * var)


def test_renormalisation_entry_by_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PLAIN_UPDATES", 3)
    norm = shaken(BatchRenorm(3).double())
    norm.num_batches_tracked.fill_(3)
    x = torch.tensor([[1.0, 50.0, 0.2], [3.0, -50.0, 0.4]], dtype=torch.float64)
    with batch_statistics([norm]), torch.no_grad():
        found = norm(x)
    for j in range(3):
        mean, std = float(x[:, j].mean()), float((x[:, j].var(correction=0) + 1e-3).sqrt())
        running = float((norm.running_var[j] + 1e-3).sqrt())
        r = min(max(std / running, 1 / 3), 3.0)
        d = min(max((mean - float(norm.running_mean[j])) / running, -5.0), 5.0)
        for i in range(2):
            expected = ((float(x[i, j]) - mean) / std * r + d) * norm.weight[j].item() + norm.bias[j].item()
            assert float(found[i, j]) == pytest.approx(expected, abs=1e-12)


def plain(network: nn.Sequential, x: Tensor) -> Tensor:
    for layer in network:
        x = batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps) if isinstance(
            layer, BatchRenorm
        ) else layer(x)  # fmt: skip
    return x.squeeze(-1)


def test_the_joint_loss_is_that_of_a_plain_computation() -> None:
    torch.manual_seed(0)
    agent, _, _ = run_sac([], steps=10, **CROSSQ)
    assert isinstance(agent, SAC)
    batch: Batch = agent.buffer.sample(12)
    alpha, noise = torch.tensor(0.3), torch.randn(12, 2)
    loss, metrics = agent.critic_loss(batch, alpha, noise)
    with torch.no_grad():
        action, log_prob = agent._sample(batch.next_obs, noise)
        both = torch.cat([torch.cat([batch.obs, batch.action], 1), torch.cat([batch.next_obs, action], 1)])
        q, following = zip(*(plain(agent.networks[k].q, both).chunk(2) for k in ("critic_1", "critic_2")), strict=True)
        y = batch.reward + 0.99 * ~batch.terminated * (torch.minimum(*following) - alpha * log_prob)
        expected = 0.5 * ((q[0] - y).square().mean() + (q[1] - y).square().mean())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics["q_mean"], torch.stack(q).mean())
    critics = [agent.networks[name] for name in ("critic_1", "critic_2")]
    assert len(metrics["batch_statistics"]) == 2 * sum(norm.num_features for norm in batch_norms(critics))


def test_statistics_move_with_the_steps_and_there_are_no_targets() -> None:
    agent, _, _ = run_sac([], steps=20, **CROSSQ)
    assert agent.targets == {}
    assert agent.updates >= 6
    counts = {name: {int(n.num_batches_tracked) for n in batch_norms([net])} for name, net in agent.networks.items()}
    assert counts == {"critic_1": {agent.updates}, "critic_2": {agent.updates}, "actor": {agent.updates // 3}}


@pytest.mark.usefixtures("as_traced")
@pytest.mark.on_real_devices
@pytest.mark.slow
@pytest.mark.parametrize("returns", ["mean", "quantiles"])
def test_compiled_updates_are_those_of_eager_ones(returns: str) -> None:
    ends = []
    for compile in ("off", "on"):
        agent = small_sac(**CROSSQ, critic_returns=returns, num_atoms=7)
        agent.steps["critic"].compile = agent.steps["actor"].compile = compile
        run_sac([], steps=20, agent=agent)
        assert bool(agent.steps["critic"]._graphs) == (compile == "on")
        ends.append({f"{n}.{k}": v for n, net in agent.networks.items() for k, v in net.state_dict().items()})
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.on_cpu
@pytest.mark.parametrize("agent", ["sac", "td3"])
def test_a_run_goes_on_to_the_same_bits(agent: str, tmp_path: Path) -> None:
    check_run(agent, [*QUICK_RUNS[agent], "--network", "crossq"], tmp_path)


@pytest.mark.on_cpu
def test_agents_that_do_not_move_statistics_refuse_it() -> None:
    for name in ("ppo", "dqn"):
        with pytest.raises(AssertionError, match="crossq has batch norms, whose statistics sac and td3 move"):
            command("train", name, *QUICK_RUNS[name], "--network", "crossq", "--dry-run")
    assert {name for name, (kind, _) in AGENTS.items() if kind.MOVES_BATCH_NORMS} == {"sac", "td3"}
