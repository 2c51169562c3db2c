"""A few rows by numpy: the module's numbers, and the module itself wherever it has to run."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import models
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

from plasticity import Measure
from plasticity.agents import acting
from plasticity.agents.acting import MAX_ROWS, Acting
from plasticity.agents.bodies import Architecture, Body, make_body
from plasticity.agents.dqn import DQN, DQNConfig
from plasticity.agents.networks import Actor, CategoricalPolicy, DeterministicActor, GaussianPolicy, QNetwork
from plasticity.agents.ppo import PPO, PPOConfig
from plasticity.agents.sac import SAC, SACConfig
from plasticity.agents.td3 import TD3, TD3Config
from plasticity.agents.train import train
from plasticity.envs import make_env
from plasticity.interventions import INTERVENTIONS

pytestmark = pytest.mark.usefixtures("everywhere")

BOX, ACTIONS = spaces.Box(-np.inf, np.inf, (5,), np.float32), spaces.Box(-1, 1, (3,), np.float32)
HEADS: dict[str, Callable[[Body], nn.Module]] = {
    "q": lambda body: QNetwork(body, 3),
    "atoms": lambda body: QNetwork(body, 3, num_atoms=4),
    "squashed": lambda body: Actor(body, 3),
    "deterministic": lambda body: DeterministicActor(body, 3),
    "gaussian": lambda body: GaussianPolicy(body, 3),
    "categorical": lambda body: CategoricalPolicy(body, 3),
}


def make(head: str = "q", **architecture: Any) -> tuple[Any, Acting]:
    torch.manual_seed(0)
    network: Any = HEADS[head](make_body(Architecture(**architecture), (5,), (8, 8)))
    return network, Acting({"net": network}, "net")


def ran(network: nn.Module, act: Callable[[], Any]) -> bool:
    """Return whether the module's own forward runs; seen without a hook, which would make it run."""
    calls: list[int] = []
    kind, forward = type(network), type(network).forward
    kind.forward = lambda self, *inputs: calls.append(1) or forward(self, *inputs)  # type: ignore[assignment]
    try:
        act()
    finally:
        kind.forward = forward  # type: ignore[method-assign]
    return bool(calls)


@torch.no_grad()
def by_numpy(network: nn.Module, act: Acting, obs: Tensor | None = None) -> bool:
    """Return whether numpy computes it; either way the numbers are the module's."""
    obs = torch.randn(1, 5) if obs is None else obs
    torch.testing.assert_close(act(obs), network(obs), rtol=1e-5, atol=1e-6)
    return not ran(network, lambda: act(obs))


def numpy_here() -> bool:
    """Return whether numpy computes anything here: it does on the CPU alone."""
    return models.place() == "cpu"


@pytest.mark.parametrize(
    ("activation", "norm"),
    [("relu", "none"), ("tanh", "layer"), ("leaky_relu", "rms"), ("silu", "none"), ("crelu", "none"),
     ("fourier", "none"), ("hadamard", "none"), ("smooth_leaky", "none"), ("random_smooth_leaky", "rms"),
     ("aid", "layer")],
)  # fmt: skip
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.slow_off_the_cpu
def test_the_numbers_are_the_modules(head: str, activation: str, norm: str) -> None:
    network, act = make(head, activation=activation, norm=norm)
    for rows in range(1, MAX_ROWS + 1):
        x = torch.randn(rows, 5)
        before = x.clone()
        assert by_numpy(network, act, x) is numpy_here()
        assert torch.equal(x, before)
    with torch.no_grad():
        assert type(act(x)) is type(network(x))


@torch.no_grad()
def test_what_is_not_finite_is_the_modules_without_a_word() -> None:
    """Warnings are errors here."""
    for activation in ("fourier", "leaky_relu", "silu"):
        network, act = make(activation=activation, norm="layer")
        x = torch.randn(3, 5)
        x[0, 0], x[1, 1] = math.inf, math.nan
        torch.testing.assert_close(act(x), network(x), rtol=1e-5, atol=1e-6, equal_nan=True)


def test_what_was_returned_stays() -> None:
    _, act = make()
    with torch.no_grad():
        first = act(torch.ones(1, 5))
        before = first.clone()
        act(torch.zeros(1, 5))
    assert torch.equal(first, before)


EDITS: dict[str, Callable[[Any], Any]] = {
    "in place": lambda net: net.q[0].weight.data.add_(1.0),
    "data": lambda net: setattr(net.q[2].weight, "data", torch.randn(8, 8)),
    "transposed": lambda net: setattr(net.q[2].weight, "data", net.q[2].weight.data.T),
    "parameter": lambda net: setattr(net.q[4], "bias", nn.Parameter(torch.randn(3))),
    "layer": lambda net: net.q.__setitem__(4, nn.Linear(8, 3)),
    "layers": lambda net: setattr(net, "q", nn.Sequential(nn.Linear(5, 3))),
    "appended": lambda net: net.q.append(nn.Linear(3, 6)),
    "state": lambda net: net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()}),
    "step": lambda net: torch.optim.SGD(net.parameters(), 0.5).step(lambda: net(torch.ones(1, 5)).sum().backward()),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_are_seen(name: str) -> None:
    network, act = make()
    assert by_numpy(network, act) is numpy_here()
    with torch.no_grad():
        before = act(torch.ones(1, 5))
    EDITS[name](network)
    assert by_numpy(network, act) is numpy_here()
    with torch.no_grad():
        after = act(torch.ones(1, 5))
    assert before.shape != after.shape or not torch.equal(before, after)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def unregistered(layer: Any, tensor: Tensor, buffer: bool = False) -> None:
    """Put a tensor that is no parameter in place of the weight."""
    del layer.weight
    layer.register_buffer("weight", tensor) if buffer else setattr(layer, "weight", tensor)


REFUSED: dict[str, Callable[[Any], Any]] = {
    "an unknown layer": lambda net: net.q.__setitem__(1, nn.GELU()),
    "a layer of a subclass": lambda net: net.q.__setitem__(0, type("Other", (nn.Linear,), {})(5, 8)),
    "a norm of groups": lambda net: net.q.__setitem__(1, nn.GroupNorm(2, 8)),
    "a norm in front": lambda net: net.q.insert(0, nn.LayerNorm(5)),
    "nested": lambda net: net.q.__setitem__(1, nn.Sequential(nn.ReLU())),
    "an activation in front": lambda net: net.q.insert(0, nn.ReLU()),
    "no bias": lambda net: net.q[0].register_parameter("bias", None),
    "an encoder": lambda net: setattr(net, "encoder", nn.Tanh()),
    "a forward": lambda net: setattr(net.q[1], "forward", torch.tanh),
    "a weight that is a buffer": lambda net: unregistered(net.q[0], torch.randn(8, 5), buffer=True),
    "a weight that is no parameter": lambda net: unregistered(net.q[0], torch.randn(8, 5)),
    "a norm's weight that is a buffer": lambda net: (
        net.q.insert(1, nn.LayerNorm(8)),
        unregistered(net.q[1], torch.randn(8), buffer=True),
    ),
    "a norm's weight that is no parameter": lambda net: (
        net.q.insert(1, nn.RMSNorm(8)),
        unregistered(net.q[1], torch.randn(8)),
    ),
    "a number that is a tensor": lambda net: net.q.insert(1, nn.LayerNorm(8, eps=torch.tensor(0.5))),  # type: ignore[arg-type]
    "a parametrization": lambda net: parametrize.register_parametrization(net.q[0], "weight", Doubled()),
}


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_know_is_the_modules(name: str, warm: bool) -> None:
    network, act = make()
    assert not warm or by_numpy(network, act) is numpy_here()
    REFUSED[name](network)
    assert not by_numpy(network, act)


@torch.no_grad()
def test_a_forward_put_on_a_module_counts_until_it_is_taken_off() -> None:
    network, act = make()
    obs, before = torch.ones(1, 5), act(torch.ones(1, 5))
    for module, forward in ((network.q[1], torch.tanh), (network, lambda obs: network.q(obs) + 1)):
        module.forward = forward
        assert torch.equal(act(obs), network(obs))
        assert not torch.allclose(act(obs), before)
        del module.forward
        assert torch.equal(act(obs), before)


def test_bodies_that_it_does_not_know_are_the_modules() -> None:
    for architecture in ({"network": "simba"}, {"network": "bronet"}, {"activation": "gelu"}):
        torch.manual_seed(0)
        network = HEADS["q"](make_body(Architecture(**architecture), (5,), (8,)))  # type: ignore[arg-type]
        assert not by_numpy(network, Acting({"net": network}, "net"))


def test_another_precision_is_the_modules_and_float32_is_taken_up_again() -> None:
    network, act = make()
    assert by_numpy(network, act) is numpy_here()
    network.double()
    with torch.no_grad(), pytest.raises(RuntimeError, match="dtype"):
        act(torch.ones(1, 5))  # as the module
    assert not by_numpy(network, act, torch.ones(1, 5, dtype=torch.float64))
    network.float()
    assert by_numpy(network, act) is numpy_here()


def test_inputs_that_it_does_not_take_are_the_modules() -> None:
    network, act = make()
    assert by_numpy(network, act) is numpy_here()
    for obs in (torch.ones(MAX_ROWS + 1, 5), torch.ones(5), torch.ones(1, 5, requires_grad=True)):
        assert not by_numpy(network, act, obs)
    assert not act(torch.ones(1, 5)).requires_grad
    assert not act(torch.ones(MAX_ROWS + 1, 5)).requires_grad


def places(network: Any) -> list[Callable[[Any], Any]]:
    modules = (network, network.encoder, network.q, network.q[0])
    pre = [module.register_forward_pre_hook for module in modules]
    return [*pre, *(module.register_forward_hook for module in modules), register_module_forward_hook]


@torch.no_grad()
def test_hooks_that_look_on_see_the_pass_and_change_no_bit() -> None:
    network, act = make()
    x = torch.randn(1, 5)
    expected, calls = act(x), list[int]()
    for place in places(network):
        handle = place(lambda *arguments: calls.append(1))
        calls.clear()
        assert torch.equal(act(x), expected)
        assert calls
        assert ran(network, lambda: act(x))
        handle.remove()
        assert by_numpy(network, act) is numpy_here()


@torch.no_grad()
def test_hooks_that_change_the_result_are_obeyed() -> None:
    network, act = make()
    x = torch.randn(1, 5)
    for place in places(network):
        before = "pre" in place.__name__
        handle = place((lambda module, args: (args[0] + 1,)) if before else (lambda module, args, out: out + 1))
        assert torch.equal(act(x), network(x))
        handle.remove()
        assert by_numpy(network, act, x) is numpy_here()


@torch.no_grad()
def test_a_hook_that_edits_the_network_is_obeyed() -> None:
    network, act = make()
    x = torch.randn(1, 5)
    act(x)
    handle = network.register_forward_pre_hook(lambda module, args: module.q.__setitem__(4, nn.Linear(8, 3)))
    changed = act(x)
    handle.remove()
    assert torch.equal(changed, act(x))


def test_hooks_that_ride_are_passed_by() -> None:
    class Rider:
        ride: object | None = object()

        def __call__(self, *arguments: Any) -> None:
            pass

    network, act = make()
    network.q[0].register_forward_hook(Rider())
    assert by_numpy(network, act) is numpy_here()
    plan = act._plan
    assert by_numpy(network, act) is numpy_here()
    assert act._plan is plan, "the same hooks again are no reason to look anew"
    other = Rider()
    other.ride = None  # one that cannot ride has to see every pass
    handle = network.q[0].register_forward_hook(other, prepend=True)
    assert not by_numpy(network, act)
    handle.remove()
    assert by_numpy(network, act) is numpy_here()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["deep", "pickle"])
def test_a_copy_acts_on_its_own_parameters(copied: Callable[[Acting], Acting]) -> None:
    network, act = make()
    assert by_numpy(network, act) is numpy_here()
    other = copied(act)
    with torch.no_grad():
        before = act(torch.ones(1, 5))
        other.networks["net"].q[0].weight.add_(1)  # type: ignore[index, union-attr, operator]
        assert torch.equal(act(torch.ones(1, 5)), before)
    assert by_numpy(other.networks["net"], other) is numpy_here()


# --- agents ---

GREEDY: dict[str, Any] = {"hidden": (8,), "epsilon_start": 0, "epsilon_end": 0}
OFF_POLICY: dict[str, Any] = {"hidden": (8,), "learning_starts": 0, "buffer_size": 50}
SMALL: dict[str, tuple[type, spaces.Space, Any]] = {
    "dqn": (DQN, spaces.Discrete(3), DQNConfig(**GREEDY)),
    "c51": (DQN, spaces.Discrete(3), DQNConfig(**GREEDY, returns="c51")),
    "ppo": (PPO, ACTIONS, PPOConfig(hidden=(8,))),
    "ppo_discrete": (PPO, spaces.Discrete(3), PPOConfig(hidden=(8,))),
    "sac": (SAC, ACTIONS, SACConfig(**OFF_POLICY)),
    "td3": (TD3, ACTIONS, TD3Config(**OFF_POLICY)),
}


@pytest.mark.parametrize("name", SMALL)
def test_agents_act_by_it_and_by_the_module_alike(name: str) -> None:
    kind, actions, config = SMALL[name]
    numpy, module = (models.here(kind, BOX, actions, config, seed=2) for _ in range(2))
    for acts in [one for one in vars(module).values() if isinstance(one, Acting)]:
        vars(module).update({key: acts._module for key, one in vars(module).items() if one is acts})
    network = numpy.networks["actor" if "actor" in numpy.networks else "q"]
    for i in range(20):
        obs = models.normal(1, 5, seed=i)
        for explore in (True, False):
            torch.testing.assert_close(numpy.act(obs, explore), module.act(obs, explore), rtol=1e-5, atol=1e-6)
            same = torch.equal(numpy.generators["act"].get_state(), module.generators["act"].get_state())
            assert same, "another stream of random numbers"
        assert ran(network, lambda obs=obs: numpy.act(obs, explore=False)) is not numpy_here()
        assert ran(network, lambda obs=obs: module.act(obs, explore=False))


@pytest.mark.parametrize("name", ["ppo", "dqn"])
@pytest.mark.slow_off_the_cpu
def test_measuring_changes_no_bit_although_hooks_are_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    run = acting.NumpyPlan.run
    monkeypatch.setattr(acting.NumpyPlan, "run", lambda plan, obs: runs.append(1) or run(plan, obs))

    def trained(*callbacks: Any) -> tuple[int, list[Tensor]]:
        runs.clear()
        env = make_env("Pendulum-v1" if name == "ppo" else "CartPole-v1", num_envs=1, seed=1)
        agent: Any
        if name == "ppo":
            config: Any = PPOConfig(hidden=(16,), num_steps=32, num_minibatches=2, num_epochs=2)
            agent = models.here(PPO, env.observation_space, env.action_space, config, seed=2)
        else:
            config = DQNConfig(hidden=(16,), learning_starts=20, buffer_size=100, batch_size=8, epsilon_start=0.1)
            agent = models.here(DQN, env.observation_space, env.action_space, config, seed=2)
        train(env, agent, 120, callbacks)
        return len(runs), [p.detach().clone() for net in agent.networks.values() for p in net.parameters()]

    measure = Measure(["dormancy", "grama"], every=2)
    (acted, bare), (acted_too, measured) = trained(), trained(measure)
    assert measure.last
    assert acted == acted_too
    assert (acted >= 80) is numpy_here()
    assert all(map(torch.equal, bare, measured))

    _, watched = trained(INTERVENTIONS["reset"](at=(10**6,), clock="updates"))  # its hook waits for a training pass
    assert all(map(torch.equal, bare, watched))
