"""Penalties on features and outputs: golden numbers, naive implementations on real agents, compiled, resumed."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_interventions import run_sac, small_sac, weights
from torch import Tensor, nn

from plasticity.agents.distributions import Categorical, Gaussian
from plasticity.agents.dqn import DQN, DQNConfig
from plasticity.agents.ppo import PPO, PPOConfig
from plasticity.agents.train import context, train
from plasticity.callback import Context, start
from plasticity.envs import TaskPlan, make_env
from plasticity.interventions import DR3, Chain, FeatureNormPenalty, InFeR, Intervention, ProximalFeatures
from plasticity.interventions.chain import coefficient, output_change
from plasticity.interventions.dr3 import co_adaptation
from plasticity.interventions.feature_norm import feature_norm
from plasticity.interventions.infer import head_error
from plasticity.interventions.pfo import feature_shift
from plasticity.testing import check_method

pytestmark = pytest.mark.usefixtures("everywhere")


# -- golden numbers ----------------------------------------------------------------------------------------------------


def test_feature_norm_by_hand() -> None:
    features = torch.tensor([[3.0, 4.0]])
    assert feature_norm(features).item() == 25
    assert feature_norm(features, "mean").item() == 12.5


def test_feature_shift_by_hand() -> None:
    assert feature_shift(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])).item() == 2.5


def test_co_adaptation_by_hand() -> None:
    phi, following = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 1.0], [-1.0, 0.0]])
    assert co_adaptation(phi, following).item() == 0


def test_head_error_by_hand() -> None:
    heads, frozen = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.01, 0.03]])
    assert head_error(heads, frozen, 100.0, "sum").item() == pytest.approx(10)
    assert head_error(heads, frozen, 100.0).item() == pytest.approx(5)


def test_churn_by_hand() -> None:
    before, now = (Categorical(torch.tensor([p]).log()) for p in ([0.5, 0.5], [0.25, 0.75]))
    assert output_change(now, before).item() == pytest.approx(0.836988, abs=1e-6)
    assert (output_change(now, before) - before.entropy()).item() == pytest.approx(0.143841, abs=1e-6)
    a, b = (
        Gaussian(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)),
        Gaussian(torch.tensor([[0.0, 4.0]]), torch.ones(1, 2)),
    )
    assert output_change(a, b).item() == 2.5  # of the means alone
    assert output_change(torch.tensor([1.0]), torch.tensor([3.0])).item() == 4


def test_the_coefficient_by_hand() -> None:
    assert coefficient(torch.tensor(0.2), torch.tensor(0.04), 0.05).item() == pytest.approx(0.25, rel=1e-5)
    assert coefficient(torch.tensor(0.2), torch.tensor(0.04), 0.05, floor=1.0).item() == 1


# -- on agents, against naive implementations --------------------------------------------------------------------------


def prepared(method: Intervention) -> tuple[Any, Context, Any]:
    """A SAC agent with a filled memory, the method on it, and a batch."""
    agent, _, _ = run_sac([], steps=30)
    ctx = context(agent)
    start([method], ctx)
    return agent, ctx, agent.buffer.sample(16)


def begin(method: Intervention, ctx: Context) -> None:
    """The start of an update, and a pass in training of all networks."""
    method.on_update_start(ctx)
    for name, network in ctx.networks.items():
        ctx.forward[name](network, ctx.peek(4, torch.Generator().manual_seed(0))).sum().backward()


def critic_features(critic: nn.Module, obs: Tensor, action: Tensor) -> Tensor:
    return critic.q[:-1](torch.cat([critic.encoder(obs), action], -1))  # type: ignore[index]


def test_features_are_the_inputs_of_the_output_layers() -> None:
    method = FeatureNormPenalty()
    agent, ctx, batch = prepared(method)
    begin(method, ctx)
    critic, actor = agent.networks["critic_1"], agent.networks["actor"]
    features = critic_features(critic, batch.obs, batch.action)
    torch.testing.assert_close(method.features("critic_1", critic, batch), features)
    torch.testing.assert_close(method.features("actor", actor, batch), actor.trunk(actor.encoder(batch.obs)))
    value = method.penalty("critic_1", ctx.networks, batch)
    torch.testing.assert_close(value, (features**2).sum(1).mean())


def test_dr3_on_sac() -> None:
    method = DR3()
    agent, ctx, batch = prepared(method)
    begin(method, ctx)
    critic = agent.networks["critic_2"]
    action = torch.tanh(agent.networks["actor"](batch.next_obs)[0])
    one, other = critic_features(critic, batch.obs, batch.action), critic_features(critic, batch.next_obs, action)
    expected = torch.stack([one[i] @ other[i] for i in range(len(one))]).mean()
    torch.testing.assert_close(method.penalty("critic_2", ctx.networks, batch), expected)
    assert set(agent.steps["critic"].terms) == {"dr3_critic_1", "dr3_critic_2"}
    assert not agent.steps["actor"].terms


def test_infer_on_sac() -> None:
    method = InFeR(heads=3, beta=2.0)
    agent, ctx, batch = prepared(method)
    assert not agent.steps["critic"].terms  # no heads yet
    begin(method, ctx)
    made, frozen, first = method.made["critic_1"], method.frozen["critic_1"], method.initial["critic_1"]
    assert made.weight.shape == (3, 10)
    assert torch.equal(made.weight, frozen.weight)
    assert made.weight.abs().max() <= 10**-0.5
    held = [p for group in agent.optimizers["critic"].param_groups for p in group["params"]]
    assert sum(p is made.weight for p in held) == 1
    nn.init.normal_(agent.networks["critic_1"].q[0].weight)  # the features move, those of the initial network do not
    term = agent.steps["critic"].terms["infer_critic_1"]
    features = critic_features(agent.networks["critic_1"], batch.obs, batch.action)
    told = frozen(critic_features(first, batch.obs, batch.action))
    expected = torch.stack([((made(f) - 2.0 * t) ** 2).mean() for f, t in zip(features, told, strict=True)]).mean()
    torch.testing.assert_close(term.value(agent.networks, batch, ()), 0.1 * expected)
    before = made.weight.detach().clone()
    agent.learn(agent.buffer.sample(16))
    assert not torch.equal(made.weight, before)
    assert torch.equal(frozen.weight, before)
    assert method.parameters_added() == 2 * (2 * 33 + sum(p.numel() for p in first.parameters()))


@pytest.mark.parametrize("lag", [1, 3])
def test_the_past_of_chain_is_so_many_steps_old(lag: int) -> None:
    method, agent = Chain(lag=lag, networks=("critic_1",), log_every=1), small_sac()
    seen: list[Tensor] = []

    class Look(Intervention):
        def on_update_start(self, ctx: Context) -> None:
            weight = ctx.networks["critic_1"].q[0].weight.detach().clone()
            seen.append(weight)
            past = seen[max(0, len(seen) - 1 - lag)]
            assert torch.equal(method.past["critic_1"].q[0].weight, past)  # type: ignore[union-attr,index]

    _, _, writer = run_sac([method, Look()], agent=agent, steps=30)
    assert len(seen) > 2 * lag
    churn = writer.scalars["interventions/chain/critic_1/churn"]
    assert churn[0] == 0  # nothing has changed yet
    assert all(value > 0 for value in churn[1:])


def test_the_coefficient_of_chain_follows_the_losses() -> None:
    method = Chain(networks=("actor",), coef=0.5, relative=0.05, floor=0.0, window=4, warmup=2, log_every=1)
    losses: list[tuple[float, float]] = []
    coefs = [0.5]

    class Look(Intervention):
        def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
            losses.append((abs(float(metrics["actor_loss"])), float(metrics["chain_actor"]) / coefs[-1]))
            window = losses[-4:]
            loss, churn = (sum(x[i] for x in window) / len(window) for i in (0, 1))
            if len(losses) >= 2:
                coefs.append(0.05 * loss / (churn + 1e-8))
            assert method.coefs["actor"].item() == pytest.approx(coefs[-1], rel=1e-3)

    run_sac([method, Look()], steps=30)
    assert len(coefs) > 5


def small_ppo(**changes: Any) -> PPO:
    config = PPOConfig(hidden=(12, 10), num_steps=16, num_minibatches=4, num_epochs=2, **changes)
    return PPO(spaces.Box(-9, 9, (3,)), spaces.Box(-1, 1, (2,)), config, num_envs=2, device=torch.get_default_device())


@pytest.mark.on_cpu
def test_chain_of_classic_control_follows_means_over_iterations_and_begins_anew_in_every_task() -> None:
    """The released code, computed again by numpy: losses with their entropy, averaged over an iteration, then |.|."""
    method = Chain(preset="control", relative=1e3, window=12, warmup=8, iteration=4, batch_size=5)
    losses: list[tuple[float, float]] = []
    coefs, adapted = [1.0], []

    class Look(Intervention):
        def on_task_start(self, ctx: Context, task: Tensor) -> None:
            losses.clear()
            coefs.append(1.0)
            assert method.coefs["actor"].item() == 1.0

        def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
            loss = float(metrics["policy_loss"]) - 0.01 * float(metrics["entropy"])
            losses.append((loss, float(metrics["chain_actor"]) / coefs[-1]))
            if len(losses) % 4 == 0 and len(losses) >= 8:
                loss, churn = np.abs(np.mean(np.reshape(losses, (-1, 4, 2)), 1)[-3:]).mean(0)
                coefs.append(max(1e3 * loss / (churn + 1e-8), 1.0))
                adapted.append(coefs[-1])
            assert method.coefs["actor"].item() == pytest.approx(coefs[-1], rel=1e-3)

    env = make_env("cgym/cartpole", seed=1, tasks=TaskPlan(steps=64, num=3))
    config = PPOConfig(hidden=(8,), num_steps=16, num_minibatches=4, num_epochs=2)
    train(env, PPO(env.observation_space, env.action_space, config), 192, [method, Look()])
    assert len(adapted) == 3 * 7
    assert max(adapted) > 1


@pytest.mark.parametrize("layers", ["last", "all"])
def test_pfo_compares_with_the_policy_of_the_rollout(layers: Any) -> None:
    agent = small_ppo()
    method = ProximalFeatures(layers=layers)
    ends = (3,) if layers == "last" else (1, 3)
    old, seen = copy.deepcopy(agent.networks["actor"]), []

    class Look(Intervention):
        def on_update_start(self, ctx: Context) -> None:
            if agent.minibatch == 0:
                old.load_state_dict(agent.networks["actor"].state_dict())
            self.actor = copy.deepcopy(agent.networks["actor"])
            agent.steps["ppo"].terms["keep"] = self.keep

        def keep(self, networks: Any, batch: Any) -> Tensor:
            self.batch = batch
            return torch.zeros(())

        def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
            x = self.batch.obs
            z = [torch.cat([net.pi[:end](net.encoder(x)) for end in ends], 1) for net in (self.actor, old)]
            torch.testing.assert_close(metrics["pfo_actor"], ((z[0] - z[1]) ** 2).mean())
            seen.append(metrics["pfo_actor"].item())

    run_sac([method, Look()], agent=agent, steps=80)
    assert len(seen) == 16
    assert [value == 0 for value in seen] == [i % 8 == 0 for i in range(16)]


def test_dr3_of_discrete_actions_needs_no_next_action() -> None:
    config = DQNConfig(hidden=(8, 6), head="dueling", learning_starts=8, buffer_size=100, batch_size=8, train_every=1)
    agent = DQN(spaces.Box(-9, 9, (3,)), spaces.Discrete(3), config, num_envs=2, device=torch.get_default_device())
    method, ctx = DR3(), context(agent)
    start([method], ctx)
    network = agent.networks["q"]
    batch = fake_batch()
    ctx.forward["q"](network, batch).sum().backward()
    both = [network.trunk(network.encoder(obs)) for obs in (batch.obs, batch.next_obs)]
    streams = [torch.cat([network.value[:-1](one), network.advantage[:-1](one)], -1) for one in both]
    torch.testing.assert_close(method.penalty("q", ctx.networks, batch), (streams[0] * streams[1]).sum(1).mean())


def fake_batch() -> Any:
    agent, _, _ = run_sac([], steps=20)
    return replace(agent.buffer.sample(8), action=torch.zeros(8, dtype=torch.int64))


# -- needs, compiled updates, resume -----------------------------------------------------------------------------------


def test_what_is_missing_is_said_before_the_first_step() -> None:
    net = nn.Linear(2, 2)
    ctx = Context({"net": net}, {"net": torch.optim.SGD(net.parameters(), 0.1)})
    with pytest.raises(ValueError, match="FeatureNormPenalty needs gradient steps of agents"):
        FeatureNormPenalty().on_train_start(ctx)
    with pytest.raises(ValueError, match="DR3 needs a replay buffer; ppo has none"):
        DR3().on_train_start(context(small_ppo()))
    with pytest.raises(ValueError, match="ProximalFeatures needs an agent that learns from its last rollout; sac has"):
        ProximalFeatures().on_train_start(context(small_sac()))


def all_methods() -> list[Intervention]:
    return [
        FeatureNormPenalty(log_every=3),
        Chain(log_every=3, batch_size=4),
        DR3(log_every=3),
        InFeR(log_every=3, heads=2),
    ]


@pytest.mark.on_real_devices
@pytest.mark.usefixtures("as_traced")
def test_all_of_them_together_eager_and_compiled() -> None:
    ends = {}
    for compile in ("off", "on"):
        agent = small_sac()
        for step in agent.steps.values():
            step.compile = compile
        agent, _, writer = run_sac(all_methods(), agent=agent, steps=40)
        ends[compile] = weights(agent)
        assert bool(agent.steps["critic"]._graphs) == (compile == "on")
        assert not any(step.terms for step in agent.steps.values())
        for name in ("feature_norm", "chain", "dr3", "infer"):
            assert any(tag.startswith(f"interventions/{name}/critic_1/") for tag in writer.scalars), name
    for key, value in ends["off"].items():
        torch.testing.assert_close(ends["on"][key], value, rtol=1e-2, atol=1e-3)


@pytest.mark.slow_off_the_cpu
def test_the_terms_are_no_passes_that_probes_count() -> None:
    from plasticity import Measure

    counts = []
    for methods in ([], [FeatureNormPenalty(coef=1e-12)]):
        measure = Measure(["dormancy"], every=1)
        run_sac([*methods, measure], steps=20)
        counts.append(measure.last["critic_1"].scores["dormancy"]["q.0"])
    torch.testing.assert_close(*counts)


@pytest.mark.on_cpu
@pytest.mark.slow
def test_the_contract_of_one_on_each_agent() -> None:
    check_method(Chain, {"log_every": 5, "relative": 0.1, "window": 7, "warmup": 3, "batch_size": 4})
    check_method(ProximalFeatures, {"log_every": 2}, agent="ppo")
    check_method(InFeR, {"log_every": 5, "heads": 2}, agent="dqn")
