"""DrM: golden numbers, the dormant ratio by numpy, what is perturbed, and the exploration of TD3."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_interventions import plain_loop, run_sac, small_sac
from torch import Tensor, nn, optim

from plasticity.callback import Context, end, start
from plasticity.interventions import AdaptiveReplayRatio, DormantMinimization, LearnToStop
from plasticity.interventions.drm import dormant_outputs, exploitation_share, exploration_scale, perturb_factor
from plasticity.testing.runs import QUICK_RUNS, check_run

pytestmark = pytest.mark.usefixtures("everywhere")


def test_golden_numbers() -> None:
    ratios = (0.0, 0.2, 0.5, 1.0)
    scales = [exploration_scale(b, 0.2, 10.0) for b in ratios]
    assert scales == pytest.approx([0.119203, 0.5, 0.952574, 0.999665], abs=1e-6)
    assert [perturb_factor(b, 2.0, 0.2, 0.9) for b in ratios] == pytest.approx([0.9, 0.6, 0.2, 0.2])
    shares = [exploitation_share(b, 0.2, 50.0, 0.6) for b in ratios]
    assert shares == pytest.approx([0.599973, 0.3, 1.835e-7, 2.5e-18], rel=1e-3)


def test_the_ratio_is_of_linear_outputs_the_output_layer_included() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5))
    with torch.no_grad():
        for layer, rows in ((net[0], 7), (net[2], 4), (net[4], 1)):
            layer.weight[:rows] = 1e-6
            layer.bias[:rows] = 0
    x, dormant, total = torch.randn(50, 4), 0, 0
    h = x
    for layer in (net[0], net[2], net[4]):
        z = layer(h).detach()
        mean = np.abs(z.cpu().numpy()).mean(0)
        dormant, total = dormant + int((mean < 0.025 * mean.mean()).sum()), total + len(mean)
        h = z.relu()
    assert dormant >= 12
    assert dormant_outputs(net, lambda: net(x), 0.025) == dormant / total
    assert not any(m._forward_hooks for m in net.modules())


def loop(net: nn.Module, **lent: Any) -> Any:
    ctx, writer = plain_loop(net, optim.Adam(net.parameters()))
    ctx.peek = lambda num, generator: SimpleNamespace(obs=torch.randn(num, 4))
    ctx.forward = {"net": lambda module, batch: module(batch.obs)}
    for name, value in lent.items():
        setattr(ctx, name, value)
    return ctx, writer


def test_linear_layers_are_mixed_with_fresh_ones_by_the_ratio() -> None:
    net = nn.Sequential(nn.Linear(4, 400), nn.LayerNorm(400), nn.ReLU(), nn.Linear(400, 400))
    with torch.no_grad():
        net[0].weight.fill_(2.0)
        net[1].weight.fill_(5.0)
    scales: list[float] = []
    ctx, writer = loop(net, set_noise=scales.append)
    method = DormantMinimization(every=1, clock="updates", high=0.7, measure_every=100)
    method.on_train_start(ctx)
    before: dict[str, Tensor] = {name: p.detach().clone() for name, p in net.named_parameters()}
    method.on_update_end(ctx, {})
    factor = writer.named("drm")[0]["networks"]["net"]["factor"]
    assert factor == perturb_factor(method.ratio or 0.0, 2.0, 0.2, 0.7)
    noise = (net[3].weight - factor * before["3.weight"]) / (1 - factor)
    assert noise.abs().max() <= 0.05 * 1.001  # 1 / sqrt(400)
    assert noise.std().item() == pytest.approx(0.05 / 3**0.5, rel=0.05)
    assert torch.equal(net[1].weight, before["1.weight"])
    assert scales == [exploration_scale(method.ratio or 0.0, 0.2, 10.0)]
    assert [event["dormant_outputs"] for event in writer.named("drm_awake")] == [method.ratio]


def test_a_run_without_past_transitions_is_refused() -> None:
    net = nn.Linear(4, 2)
    ctx, _ = plain_loop(net, optim.SGD(net.parameters(), 0.1))
    with pytest.raises(ValueError, match=r"DormantMinimization needs past transitions to look at, Context\.peek"):
        DormantMinimization(every=1).on_train_start(ctx)


@pytest.mark.slow_off_the_cpu
def test_sac_without_exploration_noise_is_perturbed_all_the_same() -> None:
    _, _, writer = run_sac([DormantMinimization(every=8, clock="updates", measure_every=4, batch_size=8)], steps=50)
    assert writer.named("drm")
    assert len(writer.scalars["interventions/drm/actor/dormant_outputs"]) > len(writer.named("drm"))


def test_targets_lean_on_an_expectile_of_the_value() -> None:
    """The state value's loss, and the targets of SAC, by a plain computation, sample by sample."""
    method = DormantMinimization(every=10**6, measure_every=2, batch_size=8, target=0.9)
    agent, _, _ = run_sac([method], steps=30, value_expectile=0.9)
    assert method.ratio is not None
    share = 0.6 / (1 + np.exp(50 * (method.ratio - 0.9)))
    assert float(agent.exploitation) == pytest.approx(share)
    assert 0 < share <= 0.6
    batch, alpha, noise = agent.buffer.sample(6), torch.tensor(0.2), torch.randn(6, 2)
    with torch.no_grad():
        q = [agent.networks[name](batch.obs, batch.action) for name in ("critic_1", "critic_2")]
        value, expected = agent.networks["value"](batch.obs), 0.0
        for i in range(6):
            error = float(value[i]) - min(float(q[0][i]), float(q[1][i]))
            expected += (0.1 if error > 0 else 0.9) * error**2 / 6
        assert float(agent.value_loss(batch)[0]) == pytest.approx(expected, rel=1e-5)
        action, log_prob = agent._sample(batch.next_obs, noise)
        later = torch.minimum(*(target(batch.next_obs, action) for target in agent.targets.values()))
        mixed = share * agent.networks["value"](batch.next_obs) + (1 - share) * (later - alpha * log_prob)
        y = batch.reward + 0.99 * ~batch.terminated * mixed
    torch.testing.assert_close(agent.target_value(batch, alpha, noise), y)


@pytest.mark.slow
@pytest.mark.on_cpu
@pytest.mark.parametrize("agent", ["sac", "td3"])
def test_a_run_that_leans_on_it_goes_on_to_the_same_bits(agent: str, tmp_path: Path) -> None:
    options = [
        "--drm",
        "--drm.every",
        "60",
        "--drm.measure-every",
        "7",
        "--drm.target",
        "0.9",
        "--value-expectile",
        "0.9",
    ]
    check_run(agent, [*QUICK_RUNS[agent], *options], tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("as_traced")
@pytest.mark.on_cpu
def test_compiled_targets_read_the_share_anew() -> None:
    ends = []
    for compile in ("off", "on"):
        agent = small_sac(value_expectile=0.9)
        for step in agent.steps.values():
            step.compile = compile  # type: ignore[assignment]
        method = DormantMinimization(every=10**6, measure_every=3, batch_size=8, target=0.9)
        run_sac([method], steps=40, agent=agent)
        assert bool(agent.steps["critic"]._graphs) == (compile == "on")
        ends.append({f"{n}.{k}": v for n, net in agent.networks.items() for k, v in net.state_dict().items()})
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-3, atol=1e-4)


def test_where_there_is_no_such_value_nothing_can_be_set() -> None:
    assert small_sac().set_exploitation is None
    with pytest.raises(ValueError, match="value_expectile=0 unless critic_returns is mean"):
        small_sac(value_expectile=0.9, critic_returns="quantiles")
    with pytest.raises(ValueError, match="share of the state value"):
        small_sac(value_expectile=0.9).set_exploitation(1.5)


def test_only_one_method_sets_the_exploration_noise() -> None:
    def run(**settings: Any) -> tuple[Context, Any]:
        net = nn.Linear(2, 2)
        lent: Any = {"peek": lambda *_: None, "forward": {"actor": lambda *_: 0}, "value": lambda *_: torch.ones(1)}
        ctx = Context({"actor": net}, {"actor": optim.SGD(net.parameters())}, set_noise=lambda scale: None, **lent)
        methods = [DormantMinimization(**settings), LearnToStop()]
        start(methods, ctx)
        return ctx, methods

    with pytest.raises(ValueError, match=r"least and drm would both set the exploration noise, .*--drm\.no-noise"):
        run()
    ctx, methods = run(noise=False)
    assert ctx.claims == {"set_noise": "least"}
    end(methods, ctx)
    assert ctx.claims == {}


def test_two_of_one_method_do_not_set_one_thing() -> None:
    ratios: list[float | None] = []
    lent: Any = {"peek": lambda *_: 0, "forward": {"net": lambda *_: 0}, "set_replay_ratio": ratios.append}
    ctx = Context({"net": nn.Linear(1, 1)}, buffer=object(), **lent)
    with pytest.raises(ValueError, match="replay_ratio and replay_ratio would both set the updates per environment"):
        start([AdaptiveReplayRatio(), AdaptiveReplayRatio()], ctx)
    assert ratios == [0.5, None]  # the first one was ended
