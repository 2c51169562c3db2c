"""Parameters, gradients and Adam's state as views of vectors: what users see is PyTorch's, and stays so after edits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import elsewhere
import models
import pytest
import torch
from inductor import some_compiled
from test_adam import step_flat
from test_gradient import AGENTS, CONTINUOUS, DISCRETE, OFF_POLICY, SMALL, make_batch, make_experience, maker
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import Adam, AdamW

from plasticity.agents.dqn import DQN, DQNConfig
from plasticity.agents.flat import Flat
from plasticity.agents.inputs import Chosen
from plasticity.agents.ppo import PPO, PPOConfig
from plasticity.agents.replay import Batch
from plasticity.agents.sac import SAC, SACConfig
from plasticity.agents.td3 import TD3, TD3Config
from plasticity.surgery.masks import Masks
from plasticity.surgery.optimizer_state import clear_state_, forget_

pytestmark = pytest.mark.usefixtures("everywhere", "as_traced")


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def trained(kind: type[Adam] = Adam, **settings: Any) -> tuple[nn.Module, Adam, Flat]:
    """A network after three flat steps."""
    torch.manual_seed(0)
    one = net()
    optimizer = kind(one.parameters(), **{"lr": 0.1, "fused": models.place() != elsewhere.NAME, **settings})
    flat = Flat([*one.parameters()])
    for seed in range(3):
        take(one, optimizer, flat, seed)
    return one, optimizer, flat


def take(one: nn.Module, optimizer: Adam, flat: Flat | None, seed: int) -> None:
    optimizer.zero_grad()
    one(models.normal(5, 3, seed=seed)).square().mean().backward()
    if flat is None:
        optimizer.step()
        return
    flat.gradients.copy_(torch.cat([p.grad.flatten() for p in flat.parameters if p.grad is not None]))
    flat.give_gradients([True] * len(flat.parameters))
    step_flat(optimizer, flat)


def assert_close(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


# -- the vectors -------------------------------------------------------------------------------------------------------


@pytest.mark.on_real_devices
def test_all_are_views_of_the_vectors() -> None:
    one, optimizer, flat = trained()
    for p in one.parameters():
        state = optimizer.state[p]
        assert storage(p) == storage(flat.weights)
        assert p.grad is not None
        assert storage(p.grad) == storage(flat.gradients)
        assert [storage(state[name]) for name in ("exp_avg", "exp_avg_sq")] == [*map(storage, flat.moments)]
        assert state["step"].shape == ()
        assert state["step"].item() == 3


def test_a_saved_state_is_the_optimizers_own() -> None:
    """torch's Adam goes on from the state of a flat one, and a flat one from torch's."""
    one, optimizer, flat = trained()
    twin = copy.deepcopy(one)
    other = Adam(twin.parameters(), lr=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take(twin, other, None, 9)
    take(one, optimizer, flat, 9)
    assert_close(one, twin)
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    take(twin, other, None, 10)
    take(one, optimizer, flat, 10)
    assert_close(one, twin)
    assert [*map(len, optimizer.state_dict()["state"].values())] == [3] * 4


EDITS: dict[str, Callable[[nn.Module, Adam], Any]] = {
    "a weight in place": lambda one, o: nn.init.ones_(one[0].weight),
    "moments of one": lambda one, o: clear_state_([o], one[0].weight, torch.ones_like(one[0].weight).bool()),
    "one begins anew": lambda one, o: forget_([o], one[0].weight),
    "all begin anew": lambda one, o: [forget_([o], p) for p in one.parameters()],
    "a state replaced": lambda one, o: o.state[one[2].bias].update(exp_avg=torch.ones_like(one[2].bias)),
    "a rate": lambda one, o: o.param_groups[0].update(lr=0.01),
    "another loaded": lambda one, o: o.load_state_dict(copy.deepcopy(trained()[1].state_dict())),
    "no state": lambda one, o: o.state.clear(),
}


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("edit", EDITS)
def test_edits_are_seen(edit: str, kind: type[Adam]) -> None:
    one, optimizer, flat = trained(kind, weight_decay=0.1)
    twin = copy.deepcopy(one)
    other = kind(twin.parameters(), lr=0.1, weight_decay=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for network, its in ((one, optimizer), (twin, other)):
        EDITS[edit](network, its)
    for seed in range(4, 9):
        take(one, optimizer, flat, seed)
        take(twin, other, None, seed)
        assert_close(one, twin)


@pytest.mark.on_real_devices
def test_what_cannot_be_one_vector_is_refused() -> None:
    whole = torch.zeros(8)
    one, other = nn.Parameter(whole[:5]), nn.Parameter(whole[4:])
    with pytest.raises(ValueError, match="share their memory"):
        Flat([one, other])
    with pytest.raises(ValueError, match="of 2 types or devices"):
        Flat([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=torch.float64))])


# -- the agents against their eager selves, everything at once ---------------------------------------------------------

ADAMW: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.01}
MAKERS: dict[str, tuple[Callable[[str], Any], Callable[[int], Any]]] = {
    "sac": (maker(SAC, CONTINUOUS, SACConfig(**OFF_POLICY, **ADAMW)), make_batch),
    "td3": (maker(TD3, CONTINUOUS, TD3Config(**OFF_POLICY, weight_decay=0.01)), make_batch),
    "dqn": (maker(DQN, DISCRETE, DQNConfig(**OFF_POLICY, **ADAMW)), AGENTS["dqn"][1]),
    "ppo": (maker(PPO, CONTINUOUS, PPOConfig(**SMALL, weight_decay=0.01)), lambda i: make_experience(i, False)),
}


def norms(networks: Any, batch: Any) -> Tensor:
    return 1e-3 * sum(p.square().sum() for network in networks.values() for p in network.parameters())


def prepare(agent: Any) -> None:
    """A limit on every step, and a term on one."""
    for step in agent.steps.values():
        step.max_norm = 1.0
    next(iter(agent.steps.values())).add("norms", norms)


def disturb(agent: Any, i: int) -> None:
    """Surgery, a reset, a mask, which is a hook before every step, and a load, once each."""
    first = next(iter(agent.networks.values()))
    weight = next(p for p in first.parameters() if p.dim() == 2)
    optimizers = list(agent.optimizers.values())
    if i == 50:
        with torch.no_grad():
            weight[1:3] = 0.1
        where = torch.zeros_like(weight).bool()
        where[1:3] = True
        clear_state_(optimizers, weight, where)
    if i == 80:
        forget_(optimizers, weight)
    if i == 110:
        its = next(o for o in optimizers if any(p is weight for p in o.param_groups[0]["params"]))
        agent.masks = Masks(
            {weight: (torch.arange(weight.numel(), device=weight.device) % 3 > 0).view_as(weight)}, [its]
        )
    if i == 140:
        agent.masks.remove()
    if i == 150:
        agent.load_state_dict(agent.state_dict())


@pytest.mark.parametrize("name", some_compiled([*MAKERS, "dqn-image", "ppo-discrete"], quick=[]))
@pytest.mark.some(3)
def test_an_agent_learns_what_it_would_learn_eagerly(name: str) -> None:
    make, inputs = MAKERS.get(name) or AGENTS[name]
    eager, fast = make("off"), make("on")
    for agent in (eager, fast):
        prepare(agent)
    for i in range(20 if models.place() == elsewhere.NAME else 200):
        for agent in (eager, fast):
            disturb(agent, i)
            agent.learn(inputs(i))
            agent.updates += 1
            for optimizer in agent.optimizers.values():
                optimizer.param_groups[0]["lr"] *= 0.995
    for key, network in eager.networks.items():
        a, b = (torch.cat([p.detach().flatten() for p in one.parameters()]) for one in (network, fast.networks[key]))
        assert ((a - b).norm() / a.norm()).item() < 1e-3, key


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.some(2)
@pytest.mark.slow_off_the_cpu
def test_a_resumed_run_is_the_same_to_the_bit(name: str) -> None:
    make, inputs = MAKERS[name]
    whole, first, second = make("on"), make("on"), make("on")
    for i in range(20):
        second = make("on") if i == 0 else second
        if i == 10:
            second.load_state_dict(first.state_dict())
        for agent in (whole, first if i < 10 else second):
            agent.learn(inputs(i))
            agent.updates += 1
    for key, network in whole.networks.items():
        for a, b in zip(network.parameters(), second.networks[key].parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.on_cpu
@pytest.mark.parametrize("name", MAKERS)
def test_weights_that_were_loaded_lie_where_they_lay(name: str) -> None:
    """Kernels round by how a weight is aligned: targets that waited for their first move were products of others."""
    make, inputs = MAKERS[name]
    whole, second = make("auto"), make("auto")
    for agent in (whole, second):
        for network in (*agent.networks.values(), *agent.targets.values()):
            spectral_norm(next(m for m in network.modules() if isinstance(m, nn.Linear)))  # as a method may
    for i in range(4):
        whole.learn(inputs(i))
        whole.updates += 1
        if name == "dqn":
            whole.followers.move(0.1)
    second.load_state_dict(whole.state_dict())

    def places(agent: Any) -> list[int]:
        networks = (*agent.networks.values(), *agent.targets.values())
        return [p.data_ptr() % 64 for network in networks for p in network.parameters()]

    assert places(second) == places(whole)
    assert name == "dqn" or any(places(whole))  # whose layers here are as wide as the alignment


@pytest.mark.parametrize("compile", ["off", "on"])
def test_a_chosen_batch_is_the_one_that_sample_returns(compile: str) -> None:
    agents = []
    for seam in ("choose", "sample"):
        agent = MAKERS["dqn"][0](compile)
        for i in range(20):
            agent.buffer.add(one_of(make_batch(i, discrete=True)))
        if seam == "sample":
            original = agent.buffer.sample
            agent.buffer.sample = lambda size, original=original: original(size)  # one's own is asked
        agents.append([agent.update() for _ in range(4)] and agent)
    assert isinstance(agents[1].sample(), Batch)
    assert isinstance(agents[0].sample(), Chosen if models.place() == "cpu" else Batch)
    one, other = (torch.cat([p.detach().flatten() for p in agent.networks["q"].parameters()]) for agent in agents)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    again = agents[0].steps["q"].again()
    assert again.requires_grad
    assert math.isfinite(again.item())


def one_of(batch: Batch) -> Batch:
    return replace(batch, **{name: x[:1] for name, x in vars(batch).items() if x is not None})
