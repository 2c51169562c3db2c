"""Meters of policies, critics, features and replay: golden values, and their batteries."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from plasticity.agents import AGENTS
from plasticity.agents.evaluate import Evaluate
from plasticity.agents.train import context
from plasticity.callback import Context, start
from plasticity.envs import make_env
from plasticity.meters import Churn, CriticDisagreement, FeatureDot, Overestimation, Policy, Replayed
from plasticity.meters.churn import categorical_divergence, gaussian_divergence, output_churn, policy_churn
from plasticity.meters.critics import disagreement
from plasticity.meters.features import feature_dots, last_features
from plasticity.meters.overestimation import discounted_returns
from plasticity.meters.policy import categorical_entropy, gaussian_entropy, greedy_diversity
from plasticity.meters.replayed import effective_share
from plasticity.testing import check_meter


def test_golden_divergences() -> None:
    before, after = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert float(categorical_divergence(before, after)) == pytest.approx(0.143841, abs=1e-6)
    a, b = torch.tensor([[0.5, -1, 0.1, -0.2]]), torch.tensor([[0.0, 0.3, -0.3, 0.4]])
    pair = [torch.distributions.Normal(t[:, :2].double(), t[:, 2:].double().exp()) for t in (a, b)]
    expected = torch.distributions.kl_divergence(*pair).sum()
    assert float(gaussian_divergence(a, b)) == pytest.approx(float(expected), rel=1e-6)


def test_golden_policies() -> None:
    assert float(categorical_entropy(torch.zeros(3, 4))) == pytest.approx(1)
    normal = torch.distributions.Normal(torch.zeros(2, 3), torch.full((2, 3), 0.5))
    assert float(gaussian_entropy(torch.full((2, 3), math.log(0.5)))) == pytest.approx(float(normal.entropy().mean()))
    assert float(greedy_diversity(torch.eye(4))) == pytest.approx(1)
    assert float(greedy_diversity(torch.tensor([[1.0, 0], [2, 1]]))) == 0


def test_masked_actions_are_no_loss_of_numbers_and_lost_numbers_are_no_action() -> None:
    logits, other = torch.tensor([[0.0, 1, -math.inf]]), torch.tensor([[1.0, 1, -math.inf]])
    p = torch.distributions.Categorical(logits=logits[:, :2])
    assert float(categorical_entropy(logits)) == pytest.approx(float(p.entropy()) / math.log(3))
    q = torch.distributions.Categorical(logits=other[:, :2])
    expected = torch.distributions.kl_divergence(p, q)
    assert float(categorical_divergence(logits, other)) == pytest.approx(float(expected))
    assert float(output_churn(logits, other)) == pytest.approx(1 / 3)
    lost = torch.full((2, 3), math.nan)
    assert greedy_diversity(lost).isnan()
    assert policy_churn(torch.zeros(2, 3), lost).isnan()


@pytest.mark.parametrize("squashed", [True, False])
def test_actions_go_through_tanh_only_where_the_policy_squashes(squashed: bool) -> None:
    actor = nn.Linear(1, 2)
    actor.squashed = squashed  # type: ignore[assignment]
    with torch.no_grad():
        actor.weight.copy_(torch.tensor([[2.0], [0]]))
        actor.bias.zero_()
    states = torch.tensor([[1.0], [-1]])
    batch = SimpleNamespace(obs=states, action=torch.zeros(2, 1))
    ctx = Context({"actor": actor}, forward={"actor": lambda net, b: net(b.obs)}, peek=lambda n, generator: batch)
    found = Policy().measure(ctx)["actor"]["action_diversity"].detach()
    assert float(found) == pytest.approx(math.tanh(2) if squashed else 2, rel=1e-6)


def test_golden_features() -> None:
    phi, following = torch.tensor([[1.0, 0], [1, 1]]), torch.tensor([[1.0, 1], [-1, 0]])
    dot, cosine = feature_dots(phi, following)
    assert float(dot) == 0
    assert float(cosine) == pytest.approx(0, abs=1e-7)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    x = torch.randn(5, 2)
    with torch.no_grad():
        assert torch.equal(last_features(model, lambda: model(x)), model[:2](x))


def test_golden_critics() -> None:
    assert float(disagreement(torch.tensor([[1.0, 2], [3, 2]]))) == pytest.approx(0.5 / 2)
    assert discounted_returns(torch.tensor([1.0, 0, 4]), 0.5).tolist() == [2, 2, 4]


def test_golden_effective_share() -> None:
    assert float(effective_share(torch.ones(7))) == pytest.approx(1)
    assert float(effective_share(torch.tensor([1.0, 0, 0, 0]))) == pytest.approx(0.25)


def step(value: float, reward: float, terminated: bool = False, truncated: bool = False) -> SimpleNamespace:
    ends = {"terminated": torch.tensor([terminated]), "truncated": torch.tensor([truncated])}
    return SimpleNamespace(obs=torch.tensor([[value]]), action=torch.zeros(1, 1), reward=torch.tensor([reward]), **ends)


def test_overestimation_is_of_whole_returns_alone() -> None:
    meter = Overestimation(gamma=0.5)
    net = nn.Linear(1, 1)
    ctx = Context({"critic": net}, value=lambda obs, action: obs[:, 0])
    start([meter], ctx)
    assert meter.measure(ctx)["critic"]["overestimation"] == "no episode has ended yet"
    for value, reward, end in ((3.0, 1.0, False), (2.0, 0.0, False), (5.0, 4.0, True)):
        meter.on_step(ctx, step(value, reward, terminated=end))
    found = meter.measure(ctx)["critic"]
    assert float(found["overestimation"]) == pytest.approx((1 + 0 + 1) / 3)
    assert float(found["overestimation_share"]) == pytest.approx((2 / 3) / (8 / 3))
    again = Overestimation(gamma=0.5)
    again.load_state_dict(meter.state_dict())
    assert float(again.measure(ctx)["critic"]["overestimation"]) == pytest.approx(2 / 3)
    cut = Overestimation(gamma=0.5)
    for number in range(10):
        cut.on_step(ctx, step(2.0, 1.0, truncated=number == 9))
    values, returns = cut._of(ctx, cut._done[0])
    assert len(values) == 4, "of the other 6 steps more than 1 % of the discount lies beyond the end"
    assert returns[-1] == pytest.approx(2 - 2**-6)


def played(value: list[float], reward: list[float], ends: str) -> SimpleNamespace:
    """Return a step of several environments; t terminated, c cut."""
    marks = {
        name: torch.tensor([end == mark for end in ends]) for name, mark in (("terminated", "t"), ("truncated", "c"))
    }
    obs, action = torch.tensor(value)[:, None], torch.zeros(len(value), 1)
    return SimpleNamespace(obs=obs, action=action, reward=torch.tensor(reward), **marks)


def test_golden_overestimation_of_an_evaluation() -> None:
    """Two environments; the second plays an episode more, which does not count."""
    ctx = Context(
        {"q": nn.Linear(1, 1)}, state_value=lambda obs: 4 * obs[:, 0], discount=0.5, reward_factor=lambda: 4.0
    )
    meter = Overestimation()
    start([meter], ctx)
    for step in (
        played([3.0, 1.0], [1.0, 2.0], "-t"),
        played([2.0, 9.0], [0.0, 9.0], "-t"),
        played([5.0, 9.0], [4.0, 9.0], "t-"),
    ):
        meter.on_evaluation_step(ctx, step)
    meter.on_evaluation_end(ctx)
    assert ctx.latest["plasticity/q/overestimation_eval/all"] == pytest.approx((1 + 0 + 1 - 1) / 4)
    assert ctx.latest["plasticity/q/overestimation_eval_share/all"] == pytest.approx((1 / 4) / (10 / 4))
    ctx.latest.clear()
    meter.on_evaluation_end(ctx)
    assert math.isnan(ctx.latest["plasticity/q/overestimation_eval/all"]), "nothing was played since"


@pytest.mark.parametrize("agent", ["ppo", *(pytest.param(a, marks=pytest.mark.slow) for a in ("sac", "td3", "dqn"))])
def test_the_overestimation_of_an_evaluation_is_that_of_its_episodes_played_by_hand(agent: str) -> None:
    name, gamma = ("Pendulum-v1", 0.9) if agent in ("sac", "td3") else ("CartPole-v1", 0.99)
    kind, config = AGENTS[agent]
    env = make_env(name, num_envs=1, seed=3)
    learner = kind(env.observation_space, env.action_space, config(hidden=(8, 8), gamma=gamma))
    ctx = context(learner)
    start([meter := Overestimation()], ctx)
    Evaluate(learner, lambda: make_env(name, num_envs=1, seed=3), episodes=2).run(ctx)
    assert not meter.failure
    differences = []
    obs = env.reset()
    for _ in range(2):
        rewards, values, ended = [], [], False
        while not ended:
            step = env.step(learner.act(obs, explore=False))
            values.append(
                (learner.value(step.obs, step.action) if agent != "ppo" else learner.state_value(step.obs)).item()
            )
            rewards.append(step.reward.item())
            ended, obs = bool(step.terminated | step.truncated), step.next_obs
        total = (
            len(rewards)
            if step.terminated.item()
            else sum(gamma ** (len(rewards) - k) < 0.01 for k in range(len(rewards)))
        )
        for k in range(total):
            differences.append(values[k] - sum(gamma**n * reward for n, reward in enumerate(rewards[k:])))
        obs = env.reset(torch.tensor([True]))
    found = next(value for tag, value in ctx.latest.items() if tag.endswith("overestimation_eval/all"))
    assert found == pytest.approx(sum(differences) / len(differences), rel=1e-4)


def test_what_a_meter_needs_is_said() -> None:
    with pytest.raises(ValueError, match="apart from 1 to every"):
        Churn(every=3, apart=4)
    ctx = Context({"critic": nn.Linear(1, 1)}, forward={"critic": print}, peek=print)
    with pytest.raises(ValueError, match="needs two critics"):
        start([CriticDisagreement()], ctx)
    with pytest.raises(ValueError, match="Overestimation needs a value function"):
        start([Overestimation()], ctx)


CASES = [(Overestimation, "dqn", {"gamma": 0.5}), (Churn, "sac", {"apart": 4})]
REST = [
    *((Policy, agent, {"num_states": 16}) for agent in ("sac", "td3", "dqn", "ppo")),
    *((FeatureDot, agent, {}) for agent in ("sac", "td3", "dqn")),
    *((Replayed, agent, {}) for agent in ("sac", "td3", "dqn", "ppo")),
    *((Overestimation, agent, {"gamma": 0.5}) for agent in ("sac", "ppo")),
    (Churn, "dqn", {"apart": 3}),
    *((CriticDisagreement, agent, {}) for agent in ("sac", "td3")),
]
"""Meters without a state of their own: what is new in them is tested above."""


@pytest.mark.parametrize(
    ("kind", "agent", "settings"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)]
)
@pytest.mark.some(1)
def test_every_meter_passes_its_battery(kind: type, agent: str, settings: dict) -> None:
    check_meter(kind, settings, agent=agent)
