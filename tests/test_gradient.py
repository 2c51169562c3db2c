"""Compiled updates: the eager ones' numbers, and eager or traced anew where a graph could not know."""

from __future__ import annotations

import copy
import math
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from types import SimpleNamespace
from typing import Any

import elsewhere
import models
import numpy as np
import pytest
import torch
from gymnasium import spaces
from inductor import some_compiled
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from plasticity import Monitor
from plasticity.agents import gradient, graph, products
from plasticity.agents.activations import SmoothLeaky
from plasticity.agents.dqn import DQN, DQNConfig
from plasticity.agents.gradient import GradientStep
from plasticity.agents.ppo import PPO, PPOConfig
from plasticity.agents.replay import Batch
from plasticity.agents.rollout import Experience
from plasticity.agents.sac import SAC, SACConfig
from plasticity.agents.td3 import TD3, TD3Config
from plasticity.structure.optimizers import all_parameters

pytestmark = pytest.mark.usefixtures("everywhere", "as_traced")

OBS, ACTION, SIZE = 5, 2, 16
BOX = spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
IMAGE = spaces.Box(0, 255, (2, 10, 10), np.uint8)
CONTINUOUS, DISCRETE = spaces.Box(-1, 1, (ACTION,), np.float32), spaces.Discrete(3)
SMALL: dict[str, Any] = {"hidden": (16, 16)}
OFF_POLICY: dict[str, Any] = {**SMALL, "buffer_size": 500, "learning_starts": 10, "batch_size": SIZE}


class Quadratic:
    """One network pulled to targets: the smallest thing that takes gradient steps."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.networks: dict[str, nn.Module] = {"net": nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))}
        self.optimizers = {"net": SGD(self.networks["net"].parameters(), lr=0.1)}
        self.step = GradientStep(self.loss, [self.networks], self.optimizers, "net", **{"compile": "on", **options})
        self._calls: list[int] = []

    @property
    def eager_calls(self) -> int:
        """How often the loss itself ran."""
        return len(self._calls)

    def loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self._calls.append(1)  # a graph runs without this line
        loss = (self.networks["net"](x).squeeze(-1) - y).square().mean()
        return loss, {"loss": loss}

    def learn(self, seed: int = 0, updates: int = 0) -> Tensor:
        x, y = models.normal(4, 3, seed=seed), models.normal(4, seed=seed + 1000)
        return self.step(x, y, updates=updates)["loss"]

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.networks["net"].parameters()]


def is_eager(learner: Quadratic) -> bool:
    """Return whether the next step runs the loss itself."""
    learner.learn()  # compiles where something has changed
    before = learner.eager_calls
    learner.learn()
    return learner.eager_calls > before


class Mean(nn.Module):
    """Subtract a running mean, which every pass in training mode moves."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)  # type: ignore[operator,union-attr]
        return x - self.mean


def twins(**options: Any) -> tuple[Quadratic, Quadratic]:
    return Quadratic(compile="off", **options), Quadratic(**options)


def assert_close(one: Quadratic, other: Quadratic) -> None:
    for a, b in zip(one.weights(), other.weights(), strict=True):
        torch.testing.assert_close(a, b)


# -- the agents' updates -----------------------------------------------------------------------------------------------


def make_batch(i: int, discrete: bool = False, image: bool = False) -> Batch:
    obs, next_obs = models.normal(2, SIZE, OBS, seed=i)
    action, (reward, ending) = models.normal(SIZE, ACTION, seed=i + 2000), models.normal(2, SIZE, seed=i + 3000)
    if image:
        obs, next_obs = (models.normal(SIZE, *IMAGE.shape, seed=seed).mul(60).abs().byte() for seed in (i, i + 1000))
    action = action.mul(9).long().sum(1) % 3 if discrete else action.tanh()
    age = torch.ones(SIZE, dtype=torch.int64)
    return Batch(obs, action, reward, next_obs, ending > 1.3, age, age)


def make_experience(i: int, discrete: bool) -> Experience:
    batch = make_batch(i, discrete)
    return Experience(batch.obs, batch.action, *models.normal(4, SIZE, seed=i))


def maker(kind: type, actions: spaces.Space, config: Any) -> Callable[[str], Any]:
    space = IMAGE if config.network == "minatar_cnn" else BOX
    return lambda compile: models.here(kind, space, actions, config, compile=compile)


def dqn(**options: Any) -> Callable[[str], DQN]:
    return maker(DQN, DISCRETE, DQNConfig(**(OFF_POLICY | options)))


SIMBA: dict[str, Any] = {"network": "simba", "norm": "layer"}
C51: dict[str, Any] = {"returns": "c51", "head": "dueling", "double": True, "num_atoms": 5}
AGENTS: dict[str, tuple[Callable[[str], Any], Callable[[int], Any]]] = {
    "sac": (maker(SAC, CONTINUOUS, SACConfig(**OFF_POLICY)), make_batch),
    "sac-simba": (maker(SAC, CONTINUOUS, SACConfig(**OFF_POLICY, **SIMBA)), make_batch),
    "td3": (maker(TD3, CONTINUOUS, TD3Config(**OFF_POLICY)), make_batch),
    "dqn": (dqn(), lambda i: make_batch(i, discrete=True)),
    "dqn-simba": (dqn(**SIMBA, hidden=(16,)), lambda i: make_batch(i, discrete=True)),
    "dqn-c51": (dqn(**C51), lambda i: make_batch(i, discrete=True)),
    "dqn-image": (dqn(network="minatar_cnn"), lambda i: make_batch(i, discrete=True, image=True)),
    "ppo": (maker(PPO, CONTINUOUS, PPOConfig(**SMALL)), lambda i: make_experience(i, discrete=False)),
    "ppo-discrete": (maker(PPO, DISCRETE, PPOConfig(**SMALL)), lambda i: make_experience(i, discrete=True)),
}


C51_MARKS = (pytest.mark.on_real_devices,)  # its support is a constant
LOSSES = [
    *some_compiled([name for name in AGENTS if name != "dqn-c51"], quick=["dqn"]),
    pytest.param("dqn-c51", marks=C51_MARKS),
    pytest.param("dqn-c51", marks=(*C51_MARKS, pytest.mark.inductor, pytest.mark.slow), id="dqn-c51-inductor"),
]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.some(3)
def test_losses_equal_the_eager_ones(name: str) -> None:
    make, inputs = AGENTS[name]
    eager, fast = make("off"), make("on")
    num = 10 if models.place() == elsewhere.NAME else 50 if "simba" in name else 100  # norms amplify last bits sooner
    for i in range(num):
        expected, found = eager.learn(inputs(i)), fast.learn(inputs(i))
        assert found.keys() == expected.keys()
        eager.updates += 1
        fast.updates += 1
        for key in (key for key in expected if key.endswith("_loss") and "actor" not in key and "policy" not in key):
            bound = 1e-4 if i < 3 else 1e-3
            assert found[key].item() == pytest.approx(expected[key].item(), rel=bound, abs=1e-5), (key, i)
    for key, network in eager.networks.items():
        for a, b in zip(network.parameters(), fast.networks[key].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
            assert b.grad is not None
            assert b.grad.shape == b.shape


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_the_critics_gradient_is_of_their_own_loss_alone(name: str) -> None:
    make, inputs = AGENTS[name]
    eager, fast = make("off"), make("on")
    for agent in (eager, fast):
        agent.updates = 1  # an update of TD3's actor
        agent.learn(inputs(0))
    for a, b in zip(eager.networks["critic_1"].parameters(), fast.networks["critic_1"].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_prioritised_replay_gets_its_errors() -> None:
    agent = dqn(prioritised=True)("on")
    batch = make_batch(0, discrete=True)
    batch.weight = torch.ones(SIZE)
    agent.buffer.priorities.update(batch.index, torch.zeros(SIZE))
    before = agent.buffer.priorities.leaves.clone()
    assert "errors" not in agent.learn(batch)
    assert not torch.equal(before, agent.buffer.priorities.leaves)


@pytest.mark.inductor
@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits() -> None:
    make, inputs = AGENTS["sac"]
    one, other = make("on"), make("on")
    for i in range(10):
        one.learn(inputs(i))
        other.learn(inputs(i))
    for a, b in zip(one.networks["actor"].parameters(), other.networks["actor"].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_hook_on_all_modules_sees_every_update() -> None:
    learner, seen = Quadratic(), []
    assert not is_eager(learner)
    handle = register_module_forward_hook(lambda module, inputs, output: seen.append(module))
    assert is_eager(learner)
    assert len(seen) == 2 * len([*learner.networks["net"].modules()])
    handle.remove()
    assert not is_eager(learner)


@pytest.mark.parametrize("name", ["sac", "td3", "ppo", "dqn"])
def test_a_loss_that_is_not_finite_stops_the_compiled_run_too(name: str) -> None:
    make, inputs = AGENTS[name]
    agent, batch = make("on"), inputs(0)
    batch.obs[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="not finite at update 1"):
        models.learn_and_save(agent, batch)


@pytest.mark.inductor
@pytest.mark.on_real_devices
@pytest.mark.slow
def test_graphs_of_equal_shapes_keep_their_own_constants() -> None:
    """Inductor finds the second one's graph on its disk, in which the first one's support is not."""
    for limit in (10.0, 25.0):
        eager, fast = (dqn(**C51, v_min=-limit, v_max=limit)(compile) for compile in ("off", "on"))
        for agent in (eager, fast):
            agent.learn(make_batch(0, discrete=True))
        for a, b in zip(eager.networks["q"].parameters(), fast.networks["q"].parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)


# -- when it compiles --------------------------------------------------------------------------------------------------


def test_auto_compiles_after_so_many_updates() -> None:
    learner = Quadratic(compile="auto")
    learner.learn(updates=gradient.COMPILE_AFTER - 1)
    assert learner.step._graphs == {}
    learner.learn(updates=gradient.COMPILE_AFTER)
    assert len(learner.step._graphs) == 1


@pytest.mark.on_cpu
def test_steps_compile_in_threads() -> None:
    """Their traces would meet in what torch patches; without a lock the second one fails."""
    learners, barrier = [Quadratic() for _ in range(3)], threading.Barrier(3)

    def learn(learner: Quadratic) -> Tensor:
        barrier.wait()
        return learner.learn()

    with ThreadPoolExecutor(3) as pool:
        losses = list(pool.map(learn, learners))
    torch.testing.assert_close(losses, [Quadratic().learn()] * 3)


def test_off_never_compiles() -> None:
    learner = Quadratic(compile="off")
    learner.learn(updates=10**9)
    assert learner.step._graphs == {}


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compile is 'auto', 'on' or 'off', got 'yes'"):
        Quadratic(compile="yes")


def test_without_a_compiler_auto_goes_on_with_one_line_and_on_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "compile_step", fail)
    eager, auto = Quadratic(compile="off"), Quadratic(compile="auto")
    with pytest.warns(RuntimeWarning, match="going on without compiled updates: no C\\+\\+ compiler$"):
        auto.learn(updates=10**6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        auto.learn(1, updates=10**6)
    eager.learn()
    eager.learn(1)
    assert_close(eager, auto)
    with pytest.raises(RuntimeError, match="no C"):
        Quadratic(compile="on").learn()


def fail(*arguments: Any) -> Any:
    raise RuntimeError("no C++ compiler\nand many lines more")


# -- what a graph cannot know ------------------------------------------------------------------------------------------


def test_hooks_make_the_step_eager_and_see_it() -> None:
    learner = Quadratic()
    assert not is_eager(learner)
    net = learner.networks["net"]
    seen: list[Any] = []
    for register in (
        net[0].register_forward_hook, net[1].register_forward_pre_hook, net[1].register_full_backward_hook,
        net[0].weight.register_hook, net[0].weight.register_post_accumulate_grad_hook,
    ):  # fmt: skip
        seen.clear()
        handle = register(lambda *arguments: seen.append(1) and None)
        assert is_eager(learner)
        assert seen
        handle.remove()
        assert not is_eager(learner)


def test_hooks_of_the_optimizer_see_gradients_and_steps() -> None:
    one, other = twins()
    for learner in (one, other):
        net, optimizer = learner.networks["net"], learner.optimizers["net"]
        optimizer.register_step_pre_hook(lambda o, a, k, net=net: halve(net[0].weight))
        optimizer.register_step_post_hook(lambda o, a, k, net=net: nn.init.zeros_(net[0].bias))
        learner.learn(0)
        learner.learn(1)
        assert not net[0].bias.any()
    assert not is_eager(other)
    other = twins()[1]
    assert_moves_like(one, other)


def halve(weight: Tensor) -> None:
    assert weight.grad is not None
    weight.grad *= 0.5


def assert_moves_like(one: Quadratic, other: Quadratic) -> None:
    """Both make the same step from the same weights."""
    other.networks["net"].load_state_dict(copy.deepcopy(one.networks["net"].state_dict()))
    for learner in (one, other):
        learner.optimizers["net"] = SGD(learner.networks["net"].parameters(), lr=0.1)
        learner.learn(7)
    assert_close(one, other)


@pytest.mark.usefixtures("compiled_if_slow")
def test_edits_in_place_are_seen() -> None:
    one, other = twins()
    for learner in (one, other):
        learner.learn(0)
        with torch.no_grad():
            learner.networks["net"][0].weight[2:4] = 0.5
        learner.learn(1)
    assert not is_eager(other)
    assert_moves_like(one, other)


def test_a_replaced_module_is_traced_anew() -> None:
    one, other = twins()
    for learner in (one, other):
        learner.learn(0)
        torch.manual_seed(5)
        learner.networks["net"][2] = nn.Linear(8, 1)
        learner.optimizers["net"].param_groups[0]["params"] = list(learner.networks["net"].parameters())
        learner.learn(1)
        learner.learn(2)
    assert_close(one, other)
    assert not is_eager(other)


def test_a_forward_put_on_a_module_is_traced_anew() -> None:
    one, other = twins()
    for learner in (one, other):
        layer: Any = learner.networks["net"][1]
        learner.learn(0)
        layer.forward = torch.tanh
        learner.learn(1)
        del layer.forward
        learner.learn(2)
    assert_close(one, other)
    assert not is_eager(other)


class Tempered(nn.Module):
    """x / temperature within bounds, numbers that a method reads; a third number is read by others alone."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature, self.bounds, self.calls_of_others = 1.0, (-9.0, 9.0), 0

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x)

    def scaled(self, x: Tensor) -> Tensor:
        return (x / self.temperature).clamp(*self.bounds)


def scaled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Multiply what a method returns by the attribute `factor`."""

    @wraps(forward)
    def multiplied(self: Any, x: Tensor) -> Tensor:
        return forward(self, x) * self.factor

    return multiplied


class Decorated(nn.Module):
    factor = 1.0

    @scaled
    @torch.enable_grad()
    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift

    @property
    def shift(self) -> float:
        return 1 - getattr(self, "below", 1.0)


class Parent(nn.Module):
    """Times numbers of a child, of an object, of a list and of numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.child, self.config, self.shifts = Tempered(), SimpleNamespace(factor=1.0, steps=0), [0.0]
        self.power = np.float32(1)

    def forward(self, x: Tensor) -> Tensor:
        x = (x * self.child.calls_of_others + x) * self.config.factor
        return x.abs() ** float(self.power) + self.shifts[0]


NUMBERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Any]]] = {
    "slope": (nn.LeakyReLU, lambda layer: setattr(layer, "negative_slope", 0.9)),
    "probability": (lambda: nn.Dropout(1.0), lambda layer: setattr(layer, "p", 0.0)),
    "of a layer of ours": (SmoothLeaky, lambda layer: setattr(layer, "slope", 0.9)),
    "that a method reads": (Tempered, lambda layer: setattr(layer, "temperature", 3.0)),
    "a tuple": (Tempered, lambda layer: setattr(layer, "bounds", (-0.1, 0.1))),
    "eps": (lambda: nn.LayerNorm(8), lambda layer: setattr(layer, "eps", 2.0)),
    "of a class": (Decorated, lambda layer: setattr(layer, "factor", 3.0)),
    "that was not there": (Decorated, lambda layer: setattr(layer, "below", 3.0)),
    "of a child": (Parent, lambda layer: setattr(layer.child, "calls_of_others", 3)),
    "of a config": (Parent, lambda layer: setattr(layer.config, "factor", 3.0)),
    "of another config": (Parent, lambda layer: setattr(layer, "config", SimpleNamespace(factor=3.0))),
    "a list": (Parent, lambda layer: setattr(layer, "shifts", [3.0])),
    "of numpy": (Parent, lambda layer: setattr(layer, "power", np.float32(2))),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_another_number_of_a_module_is_traced_anew(name: str) -> None:
    one, other = twins()
    make, change = NUMBERS[name]
    for learner in (one, other):
        learner.networks["net"][1] = make()
        learner.learn(0)
        change(learner.networks["net"][1])
        before = learner.weights()
        learner.learn(1)
        assert not all(map(torch.equal, before, learner.weights()))
        learner.learn(2)
    assert_close(one, other)
    assert not is_eager(other)


@pytest.mark.on_cpu
def test_another_tensor_of_a_module_and_a_number_in_its_place_are_traced_anew() -> None:
    one, other = twins()
    for learner in (one, other):
        learner.networks["net"][1] = Tempered()
        for temperature in (torch.tensor(1.0), torch.tensor(3.0), 9.0, torch.tensor(2.0)):
            learner.networks["net"][1].temperature = temperature
            learner.learn()
    assert_close(one, other)
    assert not is_eager(other)


class Counting(Tempered):
    """Divides by the number of its calls."""

    def forward(self, x: Tensor) -> Tensor:
        self.temperature += 1
        return super().forward(x)


def test_a_forward_that_counts_its_calls_is_not_compiled() -> None:
    one, other = twins()
    for learner in (one, other):
        learner.networks["net"][1] = Counting()
    with pytest.raises(RuntimeError, match="changes what it reads from its attribute 'temperature'"):
        other.learn()
    other.step.compile = "auto"
    one.learn()
    with pytest.warns(RuntimeWarning, match="going on without compiled updates: the forward"):
        other.learn(updates=gradient.COMPILE_AFTER)
    assert other.networks["net"][1].temperature == one.networks["net"][1].temperature == 2.0  # type: ignore[index]
    assert_close(one, other)


class Cached(nn.Module):
    """Adds numbers of places, made in the first pass."""

    places: Tensor | None = None
    last: tuple[Tensor, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        if self.places is None:
            self.places = torch.arange(8.0)
        self.last = (x, self.places)  # which it does not read
        return x + self.places


@pytest.mark.on_cpu
def test_a_forward_that_fills_a_cache_is_compiled() -> None:
    one, other = twins()
    for learner in (one, other):
        learner.networks["net"][1] = Cached()
        learner.learn(0)
        learner.networks["net"](torch.ones(1, 3))
        learner.learn(1)
    assert_close(one, other)
    assert not is_eager(other)


def test_a_number_of_a_module_that_changes_without_end_makes_updates_eager_and_says_so() -> None:
    one, other = twins()
    for learner in (one, other):
        learner.networks["net"][1] = Tempered()
    for i in range(gradient.MAX_GRAPHS):
        for learner in (one, other):
            learner.networks["net"][1].temperature = 1.0 + i
            learner.networks["net"][1].calls_of_others += 1
            learner.learn(i)
    one.networks["net"][1].temperature = other.networks["net"][1].temperature = 0.5
    one.learn(1)
    with pytest.warns(RuntimeWarning, match="modules read, were different"):
        other.learn(1)
    assert_close(one, other)


def test_a_number_that_no_forward_reads_leaves_a_graph_as_it_is() -> None:
    _, learner = twins()
    learner.networks["net"][1] = Tempered()
    for i in range(2 * gradient.MAX_GRAPHS):
        learner.learn(i)
        learner.networks["net"][1].calls_of_others += 1
    assert not is_eager(learner)


def test_another_mode_is_traced_anew() -> None:
    one, other = twins()
    for learner in (one, other):
        learner.networks["net"][1] = nn.Dropout(1.0)  # nothing passes, and in the other mode everything
        learner.learn(0)
        learner.networks["net"].eval()
        learner.learn(1)
    assert_close(one, other)


def test_a_replaced_network_and_optimizer_are_traced_anew() -> None:
    one, other = twins()
    for learner in (one, other):
        learner.learn(0)
        torch.manual_seed(5)
        learner.networks["net"] = nn.Linear(3, 1)
        learner.optimizers["net"] = SGD(learner.networks["net"].parameters(), lr=0.3)
        learner.learn(1)
    assert_close(one, other)


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_frozen_weight_stays_where_it_is(kind: type[Optimizer]) -> None:
    learner = Quadratic()
    learner.optimizers["net"] = kind(learner.networks["net"].parameters(), lr=0.1)
    learner.learn(0)
    weight = learner.networks["net"][0].weight
    weight.requires_grad_(False)  # its gradient of the step before is still there
    before = weight.clone()
    bias = learner.networks["net"][0].bias.clone()
    learner.learn(1)
    assert torch.equal(weight, before)
    assert not torch.equal(learner.networks["net"][0].bias, bias)
    weight.requires_grad_(True)
    learner.learn(2)
    assert not torch.equal(weight, before)


def test_another_shape_is_traced_anew_and_views_are_taken() -> None:
    one, other = twins()
    for learner in (one, other):
        learner.learn(0)
        x, y = torch.arange(18.0).view(3, 6).T / 9, torch.ones(6)  # not contiguous
        learner.step(x, y, updates=0)
    assert_close(one, other)


def test_gradients_are_shortened_together() -> None:
    one, other = twins(max_norm=0.01)
    for learner in (one, other):
        learner.learn(0)
    norm = torch.stack([p.grad.norm() for p in other.networks["net"].parameters()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)
    assert_close(one, other)


def of(learner: Quadratic) -> Optimizer:
    return learner.optimizers["net"]


@torch.no_grad()
def shrink(optimizer: Optimizer, *_: Any) -> None:
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.mul_(0.5)


CHANGES: dict[str, Callable[[Quadratic], Any]] = {
    "hook before": lambda one: of(one).register_step_pre_hook(shrink),
    "hook after": lambda one: of(one).register_step_post_hook(shrink),
    "schedule": lambda one: LambdaLR(of(one), lambda epoch: 0.5),
    "rate": lambda one: of(one).param_groups[0].update(lr=0.3),
    "betas": lambda one: of(one).param_groups[0].update(betas=(0.5, 0.6)),
    "frozen": lambda one: one.networks["net"][0].bias.requires_grad_(False),
    "limit": lambda one: setattr(one.step, "max_norm", 0.1),
    "all state lost": lambda one: of(one).state.clear(),
    "one state lost": lambda one: of(one).state.pop(one.networks["net"][2].weight),
    "state loaded": lambda one: of(one).load_state_dict(copy.deepcopy(of(one).state_dict())),
    "counters": lambda one: [state["step"].fill_(100) for state in of(one).state.values()],
    "term": lambda one: one.step.add("norm", lambda nets, batch: nets["net"][0].weight.square().sum()),
    "hook on a weight": lambda one: one.networks["net"][0].weight.register_hook(lambda gradient: 2 * gradient),
    "layer left out": lambda one: setattr(
        one.networks["net"], "forward", lambda x: x.sum(1, keepdim=True) * one.networks["net"][2].weight.mean()
    ),
    "layer replaced": lambda one: one.networks["net"].__setitem__(2, copy.deepcopy(one.networks["net"][2])),
    "parameter of no network": lambda one: of(one).param_groups[0]["params"].append(nn.Parameter(torch.ones(2))),
    "weights elsewhere": lambda one: setattr(
        one.networks["net"][0].weight, "data", one.networks["net"][0].weight.data.clone()
    ),
}


@pytest.mark.on_real_devices
@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_between_two_steps_of_adam_is_noticed(name: str) -> None:
    one, other = twins()
    for learner in (one, other):
        fused = models.place() != elsewhere.NAME
        learner.optimizers["net"] = Adam(learner.networks["net"].parameters(), lr=0.05, fused=fused)
        for seed in range(3):
            learner.learn(seed)
        CHANGES[name](learner)
        for seed in range(3, 6):
            learner.learn(seed)
    assert_close(one, other)
    torch.testing.assert_close(*[[p.detach() for p in all_parameters(of(learner))] for learner in (one, other)])


@torch.no_grad()
def resize(net: Any, hidden: int) -> None:
    """Give parameters other numbers of neurons, the objects as they are."""
    draw = models.generator(9)
    for parameter, shape in zip(net.parameters(), ((hidden, 3), (hidden,), (1, hidden), (1,)), strict=True):
        parameter.data, parameter.grad = torch.randn(shape, generator=draw), None


FORMS: dict[str, Callable[[Any], Any]] = {
    "transposed": lambda net: setattr(net[0].weight, "data", net[0].weight.data.t()),
    "in another order": lambda net: setattr(net[0].weight, "data", net[0].weight.data.t().contiguous().t()),
    "more neurons": lambda net: resize(net, 5),
    "fewer neurons": lambda net: resize(net, 2),
}


@pytest.mark.on_real_devices
@pytest.mark.parametrize("kind", [SGD, Adam])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_parameters_that_were_given_another_form_in_place_are_noticed(
    form: str, trained: bool, kind: type[Optimizer]
) -> None:
    """Also of a network that the loss only reads; a graph takes weights for what they were when it was made."""
    ends = []
    for compile in ("off", "on"):
        one = Quadratic(compile=compile)
        one.networks["net"] = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
        one.networks["other"] = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
        one.optimizers["net"] = kind(one.networks["net"].parameters(), lr=0.05, fused=models.place() != elsewhere.NAME)
        one.step.add("near", lambda nets, batch: (nets["net"](batch) - nets["other"](batch)).square().mean())
        for step in range(2):  # without a term the step is looked at less closely
            one.learn(step)
            FORMS[form](one.networks["net" if trained else "other"])
            if "neurons" in form:
                of(one).state.clear()
            for seed in range(3, 6):
                one.learn(seed)
            one.step.terms.clear()
            if not trained:
                break
        ends.append(one.weights())
    torch.testing.assert_close(*ends)


@pytest.mark.on_real_devices
def test_a_rate_that_became_a_tensor_may_change_in_place() -> None:
    one, other = twins()
    for learner in (one, other):
        learner.optimizers["net"] = Adam(learner.networks["net"].parameters(), lr=0.05, fused=True)
        for seed, rate in enumerate([0.05, 0.05, torch.tensor(0.03), 0.02, 0.01]):
            group = of(learner).param_groups[0]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
            learner.learn(seed)
    assert_close(one, other)


class Decayed(Quadratic):
    """A loss that reads a number; `Scaled` gets to it by `super()` alone."""

    decay = 0.0

    def loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().loss(x, y)
        return loss + self.decay * self.networks["net"][0].weight.square().sum(), metrics  # type: ignore[index,operator,union-attr]


class Scaled(Decayed):
    def loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().loss(x, y)
        return 2 * loss, metrics


def test_a_number_that_only_the_loss_of_a_base_class_reads_is_noticed() -> None:
    one, other = (Scaled(compile=compile) for compile in ("off", "on"))
    for learner in (one, other):
        for seed, decay in enumerate([0.1, 0.1, 0.5, 0.5]):
            learner.decay = decay
            learner.learn(seed)
    assert_close(one, other)


@pytest.mark.on_cpu  # a trace that meets a real tensor: the stand-in for a device does not mix with fake ones
def test_a_network_that_was_not_given_is_named() -> None:
    other = nn.Linear(3, 1)
    networks = {"net": nn.Linear(3, 1)}

    def loss(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return (networks["net"](x) - other(x)).square().mean(), {}

    step = GradientStep(loss, [networks], {"net": SGD(networks["net"].parameters(), lr=0.1)}, "net", compile="on")
    with pytest.raises(ValueError, match=r"reads a parameter of shape \(1, 3\) of a network it was not given"):
        step(torch.ones(2, 3), updates=0)


@pytest.mark.usefixtures("compiled_if_slow")
def test_a_copy_of_a_compiled_agent_learns_on_its_own() -> None:
    make, inputs = AGENTS["dqn"]
    agent = make("on")
    agent.learn(inputs(0))
    twin = copy.deepcopy(agent)
    before = copy.deepcopy(agent.networks["q"].state_dict())
    twin.learn(inputs(1))
    for key, value in agent.networks["q"].state_dict().items():
        assert torch.equal(value, before[key])
    agent.learn(inputs(1))
    for a, b in zip(agent.networks["q"].parameters(), twin.networks["q"].parameters(), strict=True):
        assert torch.equal(a, b)


# -- matrix products ---------------------------------------------------------------------------------------------------


@pytest.mark.inductor
@pytest.mark.slow
@pytest.mark.on_cpu
def test_onednn_products_equal_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    bias, left, right = torch.randn(7, generator=g), torch.randn(5, 11, generator=g), torch.randn(7, 11, generator=g)
    torch.testing.assert_close(torch.ops.plasticity.addmm(bias, left, right.T), bias + left @ right.T)
    torch.testing.assert_close(torch.ops.plasticity.addmm(None, left.T, left), left.T @ left)

    monkeypatch.setattr(products, "LARGE", 1)
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    calls = []
    replace = products.use_onednn

    def record(graph: Any) -> None:
        replace(graph)
        graph.recompile()
        calls.append(graph.code)

    monkeypatch.setattr(products, "use_onednn", record)
    make, inputs = AGENTS["dqn"]
    eager, fast = make("off"), make("on")
    for agent in (eager, fast):
        agent.learn(inputs(0))
    assert len(calls) == 1
    assert all("plasticity.addmm" in code and "aten.mm." not in code and "aten.addmm." not in code for code in calls)
    for a, b in zip(eager.networks["q"].parameters(), fast.networks["q"].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.on_cpu
def test_narrow_products_in_a_row_are_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "processor", lambda: "AuthenticAMD\ncpu family\t: 25")
    one, other = twins()
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(2, 1))
    for learner in (one, other):
        learner.networks["net"] = copy.deepcopy(net)
        learner.optimizers["net"] = SGD(learner.networks["net"].parameters(), lr=0.1)
        learner.learn()
    assert_close(one, other)


@pytest.mark.inductor
@pytest.mark.filterwarnings("ignore:precision 'bf16' is slower")
def test_bf16_rounds_large_products_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, small = Quadratic(), Quadratic(precision="bf16")
    for learner in (exact, small):
        learner.learn(0)
    assert_same_bits(exact, small)  # none of its products is large

    monkeypatch.setattr(products, "LARGE", 1)
    exact, rounded = Quadratic(), Quadratic(precision="bf16")
    losses = [learner.learn(0) for learner in (exact, rounded)]
    assert losses[0] != losses[1]
    torch.testing.assert_close(*losses, rtol=0.02, atol=0)
    for a, b in zip(exact.weights(), rounded.weights(), strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.01)


def assert_same_bits(one: Quadratic, other: Quadratic) -> None:
    for a, b in zip(one.weights(), other.weights(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.on_cpu
def test_bf16_on_a_processor_without_units_for_it_is_remarked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "processor", lambda: "flags\t\t: avx2 avx512f")
    with pytest.warns(RuntimeWarning, match="slower than 'float32' on this processor"):
        Quadratic(precision="bf16").learn()
    for text in ("", "flags\t\t: avx2 avx512_bf16", "flags\t\t: amx_tile amx_bf16", "Features\t: asimd"):
        monkeypatch.setattr(products, "processor", lambda text=text: text)
        assert not products.bf16_is_emulated()


def test_bf16_without_compiling_is_refused() -> None:
    with pytest.raises(ValueError, match="'bf16' is of compiled updates"):
        Quadratic(compile="off", precision="bf16")


def test_a_graph_moves_buffers_and_random_states_once_a_step_also_when_it_is_made_or_watched() -> None:
    eager, compiled = twins()
    for learner in (eager, compiled):
        learner.networks["net"] = nn.Sequential(Mean(), *learner.networks["net"], nn.Dropout(0.5))
    with Monitor(compiled.networks["net"], ["dormancy"], passes="training"):
        for learner in (eager, compiled):
            torch.manual_seed(0)
            for seed in range(3):
                learner.learn(seed)
    torch.testing.assert_close(compiled.networks["net"][0].mean, eager.networks["net"][0].mean)  # type: ignore[index]
    assert_close(eager, compiled)


@pytest.mark.inductor
@pytest.mark.on_cpu
@pytest.mark.parametrize("draw", [
    lambda x, g: torch.randn(x.shape, generator=g), lambda x, g: torch.empty_like(x).normal_(generator=g),
    lambda x, g: torch.bernoulli(torch.full_like(x, 0.5), generator=g),
], ids=["randn", "normal_", "bernoulli"])  # fmt: skip
def test_a_term_with_a_generator_of_its_own_is_left_to_eager_updates_without_a_draw(draw: Any) -> None:
    weights, states = [], []
    for compile in ("off", "auto"):
        learner, generator = Quadratic(compile=compile), torch.Generator().manual_seed(0)
        learner.step.add("noise", lambda nets, x, g=generator: nets["net"](x + draw(x, g)).square().mean())
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for seed in range(3):
                learner.learn(seed, updates=seed + gradient.COMPILE_AFTER)
        assert ["a torch.Generator of its own" in str(one.message) for one in said] == [True] * (compile == "auto")
        weights.append(learner.weights())
        states.append(generator.get_state())
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    assert torch.equal(*states)


def test_a_loss_draws_the_same_random_numbers_in_a_graph() -> None:
    drawn = []
    for learner in twins():
        learner.step.add("noise", lambda nets, x: nets["net"](x + torch.randn_like(x)).square().mean())
        torch.manual_seed(0)
        drawn.append([learner.learn(seed) for seed in range(3)] + learner.weights())
    torch.testing.assert_close(*drawn)
