"""The loop, its callbacks, and what must hold of a whole run: probes change nothing, seeds decide everything."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn

from plasticity import Callback, Context, Measure
from plasticity.agents import DQN, SAC, DQNConfig, SACConfig
from plasticity.agents.evaluate import Evaluate, evaluate
from plasticity.agents.records import Episodes, Losses
from plasticity.agents.train import context, train
from plasticity.envs import make_env

pytestmark = pytest.mark.usefixtures("everywhere")

SMALL = SACConfig(hidden=(32, 32), batch_size=32, learning_starts=100, buffer_size=1000)
ALL_PROBES = ("dormancy", "grama", "grama_weight", "grama_post", "rank")


@dataclass
class Rows:
    """A writer that keeps what it gets."""

    scalars: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    events: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    histograms: list[tuple[int, str, Tensor]] = field(default_factory=list)

    def log(self, step: int, values: Any) -> None:
        self.scalars.append((step, dict(values)))

    def event(self, step: int, name: str, details: Any) -> None:
        self.events.append((step, name, dict(details)))

    def histogram(self, step: int, tag: str, values: Any) -> None:
        self.histograms.append((step, tag, values))

    def untimed(self) -> list[tuple[int, dict[str, float]]]:
        return [(step, {k: v for k, v in row.items() if k != "plasticity/overhead"}) for step, row in self.scalars]

    def of(self, tag: str) -> list[tuple[int, float]]:
        return [(step, values[tag]) for step, values in self.scalars if tag in values]


def run(callbacks: list[Callback], steps: int = 250, seed: int = 3) -> tuple[SAC, Rows]:
    env = models.here(make_env, "Pendulum-v1", seed=seed)
    agent, rows = models.here(SAC, env.observation_space, env.action_space, SMALL, seed=seed), Rows()
    train(env, agent, steps, callbacks, context(agent, writer=rows))
    env.close()
    return agent, rows


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    return [t for value in state.values() for t in tensors(value)] if isinstance(state, dict) else []


def test_an_agent_in_place_of_the_environment_is_told() -> None:
    env = models.here(make_env, "Pendulum-v1", seed=0)
    agent = models.here(SAC, env.observation_space, env.action_space, SMALL)
    with pytest.raises(TypeError, match="an environment, then an agent; got SAC, GymEnv"):
        train(agent, env, 10)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_an_agent_with_a_module_of_torchscript_is_told() -> None:
    env = models.here(make_env, "Pendulum-v1", seed=0)
    agent = models.here(SAC, env.observation_space, env.action_space, SMALL)
    agent.networks["actor"].trunk = torch.jit.script(agent.networks["actor"].trunk)
    with pytest.raises(TypeError, match="TorchScript's Sequential"):
        train(env, agent, 200)


@pytest.mark.on_cpu
def test_an_agent_whose_network_torch_compiles_learns_the_same() -> None:
    weights = []
    for wrap in (lambda network: network, partial(torch.compile, backend="eager")):
        env = make_env("CartPole-v1", seed=0)
        agent = DQN(env.observation_space, env.action_space, DQNConfig(hidden=(16,), learning_starts=50))
        agent.networks["q"] = wrap(agent.networks["q"])
        train(env, agent, 80)
        assert agent.updates
        weights.append([*agent.networks["q"].parameters()])
    assert all(map(torch.equal, *weights))


@pytest.mark.on_cpu
def test_a_compiled_network_in_a_compiled_update_is_told() -> None:
    def in_place(network: nn.Module) -> nn.Module:
        network.compile(backend="eager")
        return network

    for wrap in (in_place, partial(torch.compile, backend="eager")):
        env = make_env("CartPole-v1", seed=0)
        config = DQNConfig(hidden=(16,), learning_starts=50)
        agent = DQN(env.observation_space, env.action_space, config, compile="on")
        agent.networks["q"] = wrap(agent.networks["q"])
        with pytest.raises(RuntimeError, match="give what it wraps"):
            train(env, agent, 80)


@pytest.mark.on_real_devices
def test_probes_leave_sac_the_same_bits() -> None:
    plain, _ = run([])
    torch.manual_seed(7)
    probed, rows = run([Measure(ALL_PROBES, every=1, strict=True)])
    ours, theirs = tensors(plain.state_dict()), tensors(probed.state_dict())
    assert len(ours) == len(theirs) > 30
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    measured = {tag for _, values in rows.scalars for tag in values}
    assert {f"plasticity/{n}/dormancy/all" for n in ("actor", "critic_1", "critic_2")} <= measured


@pytest.mark.on_real_devices
def test_the_same_seed_gives_the_same_numbers_and_another_others() -> None:
    (_, first), (_, again), (_, other) = (run([Measure(every=50), Episodes()], seed=s) for s in (3, 3, 4))
    assert first.untimed() == again.untimed()
    assert first.untimed() != other.untimed()


@pytest.mark.slow_off_the_cpu
def test_measure_logs_every_network_layer_and_metric_on_schedule() -> None:
    measure = Measure(every=50, strict=True)
    _, rows = run([measure], steps=201)  # 101 updates: the 1st, 51st and 101st are measured
    for network, layers in {
        "actor": ("trunk.0", "trunk.2"),
        "critic_1": ("q.0", "q.2"),
        "critic_2": ("q.0", "q.2"),
    }.items():
        for metric in ("dormancy", "grama", "effective_rank", "srank", "stable_rank", "feature_rank"):
            for layer in (*layers, "all"):
                steps = [step for step, _ in rows.of(f"plasticity/{network}/{metric}/{layer}")]
                assert steps == [101, 151, 201], (network, metric, layer)
    assert {tag for _, tag, _ in rows.histograms} >= {"scores/critic_1/grama/q.0", "scores/actor/dormancy/trunk.2"}
    told = {(step, name, details["network"]) for step, name, details in rows.events}
    # Only output layers have no value, and that is as it should be.
    assert told == {(101, "measured", network) for network in ("actor", "critic_1", "critic_2")}
    assert rows.events[0][2]["q.0 (rank)"] == "32 samples, 32 features, float32, not centred"
    assert all(not monitor.attached for monitor in measure.watcher.monitors.values())  # type: ignore[union-attr]


@pytest.mark.slow_off_the_cpu
def test_measure_of_critics_is_that_of_their_own_loss() -> None:
    """The actor's loss runs through the critics too; their GraMa must be that of the critic loss."""
    env = models.here(make_env, "Pendulum-v1", seed=0)
    agent = models.here(SAC, env.observation_space, env.action_space, SMALL, seed=0)
    seen: dict[str, Tensor] = {}

    class ByHand(Callback):
        """Take dL/dW of the critic loss from .grad, which SAC leaves alone in the actor's step."""

        def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
            weight = ctx.networks["critic_1"].q[0].weight  # type: ignore[union-attr, index]
            magnitude = weight.grad.abs().mean(1)
            seen["score"] = magnitude / magnitude.mean()

    measure = Measure(["grama_weight"], every=1, strict=True)
    train(env, agent, 130, [measure, ByHand()], context(agent))
    torch.testing.assert_close(measure.last["critic_1"].scores["grama_weight"]["q.0"].float(), seen["score"].cpu())


def test_measure_names_a_network_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"no network policy; sac has actor, critic_1, critic_2"):
        run([Measure(networks=["policy"])])


class Log(Callback):
    def __init__(self, name: str, log: list[str], fail: bool = False) -> None:
        self.name, self.events, self.fail = name, log, fail

    def on_train_start(self, ctx: Context) -> None:
        if self.fail:
            raise ValueError("not here")
        self.events.append(f"start {self.name}")

    def on_train_end(self, ctx: Context) -> None:
        self.events.append(f"end {self.name}")


def test_what_was_started_is_ended_last_first_also_after_an_error() -> None:
    log: list[str] = []
    with pytest.raises(ValueError, match="not here"):
        run([Log("a", log), Log("b", log), Log("c", log, fail=True)])
    assert log == ["start a", "start b", "end b", "end a"]


def test_events_fire_in_order_and_steps_count_every_environment() -> None:
    fired: list[tuple[str, int]] = []

    class Note(Callback):
        def on_step(self, ctx: Context, transition: Any) -> None:
            fired.append(("step", ctx.step))

        def on_update_start(self, ctx: Context) -> None:
            fired.append(("start", ctx.step))

        def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
            assert "critic_loss" in metrics
            fired.append(("end", ctx.step))

    env = models.here(make_env, "Pendulum-v1", num_envs=2, seed=0)
    config = SACConfig(hidden=(8,), batch_size=4, learning_starts=4, buffer_size=100)
    agent = models.here(SAC, env.observation_space, env.action_space, config, num_envs=2)
    ctx = train(env, agent, 8, [Note()])
    assert ctx.step == 8
    assert fired == [
        ("step", 2),
        ("step", 4),
        *[("step", 6), *[("start", 6), ("end", 6)] * 2],
        ("step", 8),
        *[("start", 8), ("end", 8)] * 2,
    ]


def test_a_callback_can_end_an_episode_and_the_environment_starts_anew() -> None:
    class Cut(Callback):
        def on_step(self, ctx: Context, transition: Any) -> None:
            transition.truncated |= torch.tensor([ctx.step % 10 == 0])

    _, rows = run([Cut(), Episodes()], steps=35)
    ended = [(10, 10.0), (20, 10.0), (30, 10.0)]
    assert rows.of("charts/episodic_length") == (ended if models.place() == "cpu" else [(35, 10.0)])


class Counting:
    """Two environments whose episodes last 2 and 5 steps, with reward 1 per step."""

    name, num_envs = "counting", 2

    def __init__(self) -> None:
        self.clock, self.resets = torch.zeros(2), 0

    def reset(self, done: Tensor | None = None) -> Tensor:
        self.resets += 1
        self.clock = torch.zeros(2) if done is None else torch.where(done, 0.0, self.clock)
        return self.clock[:, None].clone()

    def step(self, action: Tensor) -> Any:
        from plasticity.envs import Transition

        obs = self.clock[:, None].clone()
        self.clock = self.clock + 1
        ended = self.clock >= torch.tensor([2.0, 5.0])
        none = torch.zeros(2, dtype=torch.bool)
        return Transition(obs, action, torch.ones(2), self.clock[:, None].clone(), ended, none)

    def close(self) -> None:
        pass


class Idle:
    name = "idle"
    networks: dict[str, nn.Module] = {}  # noqa: RUF012
    optimizers: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.explored: list[bool] = []

    def act(self, obs: Tensor, explore: bool) -> Tensor:
        self.explored.append(explore)
        return torch.zeros(len(obs), 1)


def test_evaluate_gives_every_environment_its_share_and_acts_deterministically() -> None:
    agent = Idle()
    returns = evaluate(agent, Counting(), 4)  # type: ignore[arg-type]
    assert returns.tolist() == [2.0, 2.0, 5.0, 5.0]  # not four short episodes
    assert not any(agent.explored)
    with pytest.raises(ValueError, match="multiple of the 2 evaluation environments, got 3"):
        evaluate(agent, Counting(), 3)  # type: ignore[arg-type]


def test_evaluate_callback_runs_on_schedule_once_per_step() -> None:
    env = models.here(make_env, "Pendulum-v1", seed=1)
    agent, rows = models.here(SAC, env.observation_space, env.action_space, SMALL, seed=1), Rows()
    callback = Evaluate(agent, Counting, every=30, episodes=2)  # type: ignore[arg-type]
    agent.act = lambda obs, explore: torch.zeros(len(obs), 1)  # type: ignore[method-assign]
    ctx = train(env, agent, 60, [callback], context(agent, writer=rows))
    callback.run(ctx)  # the last step had one
    assert rows.of("charts/eval_return") == [(30, 3.5), (60, 3.5)]


def test_losses_are_means_over_the_updates_between_two_rows() -> None:
    losses, rows = Losses(every=2), Rows()
    ctx = Context(writer=rows)
    losses.on_train_start(ctx)
    for step, value in enumerate([1.0, 3.0, 10.0, 20.0], 1):
        ctx.step = step
        losses.on_update_end(ctx, {"loss": torch.tensor(value)})
    assert rows.of("losses/loss") == [(2, 2.0), (4, 15.0)]
    assert all(speed > 0 for _, speed in rows.of("charts/SPS"))


def test_stop_ends_training_early() -> None:
    env = models.here(make_env, "Pendulum-v1", seed=0)
    agent = models.here(SAC, env.observation_space, env.action_space, SMALL)
    ctx = context(agent)
    train(env, agent, 1000, [], ctx, stop=lambda: ctx.step >= 7)
    assert ctx.step == 7


def test_a_context_says_what_is_missing() -> None:
    ctx = Context(name="ppo")
    with pytest.raises(ValueError, match="SampleWeightDecay needs a replay buffer; ppo has none"):
        ctx.require("buffer", "SampleWeightDecay")
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="no optimizer of ppo holds parameters of net"):
        Context({"net": net}, name="ppo").optimizer_of("net")
