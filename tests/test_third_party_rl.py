"""Agents of other packages, trained for a few steps: what a watch says is what own hooks and numpy say.

Needs the extra ``third-party``; each test is skipped where its package is missing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import reference
import torch
from test_interventions import plain_loop
from torch import Tensor, nn

from plasticity import watch
from plasticity.interventions import ReDo

PROBES = ["dormancy", "grama", "rank"]
Loop = Callable[[], None]


class ByHand:
    """The input, output and gradient of every activation of a network, by hooks of its own."""

    def __init__(self, network: nn.Module) -> None:
        self.seen: dict[str, dict[str, Tensor]] = {}
        before = ""
        for name, module in network.named_modules():
            if isinstance(module, (nn.ReLU, nn.Tanh, nn.ELU)):
                module.register_forward_hook(self._hook(before))
            elif isinstance(module, nn.Linear):
                before = name

    def _hook(self, layer: str) -> Any:
        def see(module: nn.Module, args: tuple, h: Tensor) -> None:
            if args[0].requires_grad and torch.is_grad_enabled():
                rows = h.detach().clone()
                args[0].register_hook(lambda g: self.seen.update({layer: {"h": rows, "gradient": g.detach().clone()}}))

        return see

    def check(self, reading: Any) -> None:
        """Compare a reading with what was seen, but of output layers."""
        outputs = {entry.layer for entry in reading.unmeasured if entry.reason == "output layer"}
        self.seen = {layer: seen for layer, seen in self.seen.items() if layer not in outputs}
        assert self.seen
        for layer, seen in self.seen.items():
            h, gradient = (reference.rows(seen[key]) for key in ("h", "gradient"))
            found = reading.scores["dormancy"][layer].numpy(force=True)
            np.testing.assert_allclose(found, reference.scores(h), rtol=1e-5, err_msg=layer)
            found = reading.scores["grama"][layer].numpy(force=True)
            np.testing.assert_allclose(found, reference.scores(gradient), rtol=1e-5, atol=1e-7, err_msg=layer)
            rank = reference.ranks(h)["effective_rank"]
            assert reading.values["effective_rank"][layer] == pytest.approx(rank, rel=1e-5)
        assert {*self.seen} == {layer for layer in reading.scores["grama"] if layer not in reading.projections}


class Case:
    """Something that trains: its networks with their optimizers, and how training calls them."""

    def __init__(
        self,
        networks: dict[str, tuple[nn.Module, torch.optim.Optimizer]],
        learn: Loop,
        calls: dict[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.networks, self.learn, self.calls = networks, learn, calls or {}


def sb3(kind: str, rate: float = 1e-3) -> Case:
    """Return an agent of stable-baselines3."""
    package = pytest.importorskip("stable_baselines3")
    size = {"policy_kwargs": {"net_arch": [32, 32]}, "learning_rate": rate}
    more: dict[str, Any] = {"device": "cpu", "seed": 0, **size}
    if kind in ("PPO", "A2C"):
        rollout = {"PPO": {"n_steps": 256, "batch_size": 128, "n_epochs": 2}, "A2C": {"n_steps": 64}}[kind]
        agent = getattr(package, kind)("MlpPolicy", "Pendulum-v1", **rollout, **more)
        policy = agent.policy
        return Case({"policy": (policy, policy.optimizer)}, lambda: agent.learn(256), {"policy": ("evaluate_actions",)})
    if kind == "DQN":
        agent = package.DQN("MlpPolicy", "CartPole-v1", learning_starts=40, train_freq=1, batch_size=64, **more)
        return Case({"q": (agent.q_net, agent.policy.optimizer)}, lambda: agent.learn(48))
    agent = getattr(package, kind)("MlpPolicy", "Pendulum-v1", learning_starts=40, batch_size=64, **more)
    networks = {n: (m := getattr(agent, n), m.optimizer) for n in ("actor", "critic")}
    return Case(networks, lambda: agent.learn(48), {"actor": ("action_log_prob",)} if kind == "SAC" else None)


def torchrl() -> Case:
    """Return a TorchRL actor that takes a TensorDict, trained by a loop of its users."""
    pytest.importorskip("torchrl")
    from tensordict import TensorDict
    from tensordict.nn import NormalParamExtractor, TensorDictModule
    from torchrl.modules import MLP, NormalParamWrapper, ProbabilisticActor, TanhNormal  # noqa: F401

    torch.manual_seed(0)
    net = nn.Sequential(MLP(3, 4, num_cells=[32, 32], activation_class=nn.Tanh), NormalParamExtractor())
    module = TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"])
    actor = ProbabilisticActor(module, in_keys=["loc", "scale"], distribution_class=TanhNormal, return_log_prob=True)
    optimizer, generator = torch.optim.Adam(actor.parameters(), 1e-3), torch.Generator().manual_seed(0)

    def learn() -> None:
        torch.manual_seed(0)
        for _ in range(4):
            observation = torch.randn(64, 3, generator=generator)
            optimizer.zero_grad()
            out = actor(TensorDict({"observation": observation}, [64]))
            (out["action_log_prob"].mean() + (out["action"] - 0.3).square().mean()).backward()
            optimizer.step()

    return Case({"actor": (actor, optimizer)}, learn)


def skrl() -> Case:
    """Return a skrl policy, which training calls by ``compute``."""
    pytest.importorskip("skrl")
    import gymnasium
    from skrl.models.torch import GaussianMixin, Model

    class Policy(GaussianMixin, Model):
        def __init__(self) -> None:
            spaces = {name: gymnasium.spaces.Box(-1, 1, (size,)) for name, size in (("obs", 3), ("act", 2))}
            Model.__init__(self, observation_space=spaces["obs"], action_space=spaces["act"], device="cpu")
            GaussianMixin.__init__(self)
            self.net = nn.Sequential(nn.Linear(3, 32), nn.ELU(), nn.Linear(32, 32), nn.ELU(), nn.Linear(32, 2))
            self.log_std = nn.Parameter(torch.zeros(2))

        def compute(self, inputs: dict, role: str = "") -> Any:
            return self.net(inputs["observations"]), {"log_std": self.log_std}

    torch.manual_seed(0)
    policy = Policy()
    optimizer, generator = torch.optim.Adam(policy.parameters(), 1e-3), torch.Generator().manual_seed(0)

    def learn() -> None:
        for _ in range(4):
            observations, taken = (torch.randn(64, size, generator=generator) for size in (3, 2))
            optimizer.zero_grad()
            _, outputs = policy.act({"observations": observations, "taken_actions": taken}, role="policy")
            (-outputs["log_prob"].mean() if "log_prob" in outputs else outputs["mean_actions"].sum()).backward()
            optimizer.step()

    return Case({"policy": (policy, optimizer)}, learn, {"policy": ("compute",)})


def agilerl() -> Case:
    """Return an AgileRL DQN, whose networks have a ``__call__`` of their own that runs no hooks.

    It pins tensordict 0.13, which TorchRL 0.14 refuses, and works with 0.14: ``.ci/third_party`` leaves the pin out.
    """
    DQN = pytest.importorskip("agilerl.algorithms.dqn").DQN
    from gymnasium.spaces import Box, Discrete
    from tensordict import TensorDict

    torch.manual_seed(0)
    sizes = {"encoder_config": {"hidden_size": [32]}, "head_config": {"hidden_size": [32]}}
    agent, generator = (
        DQN(Box(-1, 1, (4,), np.float32), Discrete(2), net_config=sizes),
        torch.Generator().manual_seed(0),
    )

    def learn() -> None:
        for _ in range(4):
            shapes = {"obs": 4, "next_obs": 4, "reward": 1}
            batch = {key: torch.randn(64, size, generator=generator) for key, size in shapes.items()}
            batch |= {"action": torch.randint(0, 2, (64, 1), generator=generator), "done": torch.zeros(64, 1)}
            agent.learn(TensorDict(batch, [64]))

    return Case({"actor": (agent.actor, agent.optimizer.optimizer)}, learn)


CASES: dict[str, Callable[..., Case]] = {
    **{kind: partial(sb3, kind) for kind in ("PPO", "A2C", "SAC", "TD3", "DQN")},
    "TorchRL": torchrl,
    "skrl": skrl,
}
READ = {**CASES, "AgileRL": agilerl}

pytestmark = pytest.mark.filterwarnings(
    "default::DeprecationWarning", "default::FutureWarning", "ignore:.*:UserWarning"
)


def watched(case: Case, check: bool = True) -> int:
    """Train while watching, compare every reading with own hooks, and return how many there were."""
    hands = {name: ByHand(network) for name, (network, _) in case.networks.items()} if check else {}
    networks = {name: network for name, (network, _) in case.networks.items()}
    optimizers = [optimizer for _, optimizer in case.networks.values()]
    number = 0
    with watch(networks, optimizers, every=1, log=None, strict=True, calls=case.calls, probes=PROBES) as session:
        for name, (_, optimizer) in case.networks.items() if check else ():

            def compare(optimizer: Any, args: Any, kwargs: Any, name: str = name) -> None:
                nonlocal number
                hands[name].check(session.last[name])
                number += 1

            optimizer.register_step_post_hook(compare)
        case.learn()
        assert {*session.last} == {*networks}
    return number


@pytest.mark.parametrize("name", READ)
def test_readings_are_those_of_own_hooks(name: str) -> None:
    assert watched(READ[name]()) >= 4


@pytest.mark.parametrize("name", READ)
def test_watching_changes_no_bit(name: str) -> None:
    finals = []
    for observed in (False, True):
        case = READ[name]()
        torch.manual_seed(1)
        if observed:
            watched(case, check=False)
        else:
            case.learn()
        finals.append({n: dict(network.state_dict()) for n, (network, _) in case.networks.items()})
    torch.testing.assert_close(*finals, rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_redo_recycles_exactly_the_neurons_that_are_off(name: str) -> None:
    case = CASES[name]() if name in ("TorchRL", "skrl") else CASES[name](rate=0.0)
    for network, optimizer in case.networks.values():
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        activations = [m for m in network.modules() if isinstance(m, (nn.Linear, nn.ReLU, nn.Tanh, nn.ELU))]
        hidden = [a for a, b in itertools.pairwise(activations) if not isinstance(b, nn.Linear)]
        for layer in hidden:
            if isinstance(layer, nn.Linear) and layer.out_features == 32:
                with torch.no_grad():
                    layer.weight[[1, 4]], layer.bias[[1, 4]] = 0, -100 if nn.ReLU in map(type, activations) else 0
    before = {n: {k: v.clone() for k, v in net.state_dict().items()} for n, (net, _) in case.networks.items()}
    ctx, writer = plain_loop(nn.Identity(), next(iter(case.networks.values()))[1])
    ctx.networks = {n: network for n, (network, _) in case.networks.items()}
    ctx.optimizers = {n: optimizer for n, (_, optimizer) in case.networks.items()}
    ctx.calls = case.calls
    redo = ReDo(every=1, threshold=0.0, stop=1)
    redo.on_train_start(ctx)
    case.learn()
    redo.on_train_end(ctx)
    events = {event["network"]: event["neurons"] for event in writer.named("redo")}
    assert {*events} == {*ctx.networks}, writer.named("redo_skipped")
    for n, network in ctx.networks.items():
        changed = changed_entries(before[n], dict(network.state_dict()))
        assert changed == expected_entries(network, events[n], before[n], dict(network.state_dict()))
        assert all({1, 4} <= {*neurons} for neurons in events[n].values())


def changed_entries(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, set[tuple[int, ...]]]:
    """Return the entries that differ, by parameter."""
    found = {key: {tuple(i) for i in (before[key] != after[key]).nonzero().tolist()} for key in before}
    return {key: entries for key, entries in found.items() if entries}


def expected_entries(
    network: nn.Module, neurons: dict[str, list[int]], before: dict[str, Tensor], after: dict[str, Tensor]
) -> dict[str, set[tuple[int, ...]]]:
    """Return the entries that recycling neurons has to change: rows, biases, and columns of what comes next."""
    found: dict[str, set[tuple[int, ...]]] = {}
    for layer, indices in neurons.items():
        for key in (f"{layer}.weight", f"{layer}.bias"):
            rows = {tuple(i) for i in (before[key] != after[key]).nonzero().tolist() if i[0] in indices}
            assert key.endswith("bias") or {i[0] for i in rows} == {*indices}  # a bias of 0 is redrawn as 0
            found.setdefault(key, set()).update(rows)
        for name in consumers_of(network, layer):
            columns = {(o, i) for o in range(len(before[f"{name}.weight"])) for i in indices}
            assert not any(
                bool(after[f"{name}.weight"][entry]) for entry in columns if entry[0] not in neurons.get(name, ())
            )
            now = {e for e in columns if before[f"{name}.weight"][e] != after[f"{name}.weight"][e]}
            found.setdefault(f"{name}.weight", set()).update(now)
    return {key: entries for key, entries in found.items() if entries}


def consumers_of(network: nn.Module, layer: str) -> list[str]:
    """Return the layers that take up another's neurons: where the output of the activation after it is an input."""
    linears = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    parent = layer.rpartition(".")[0]
    names = [name for name in linears if name.rpartition(".")[0] == parent]
    following = names[names.index(layer) + 1 :]
    if following:
        return following[:1]
    heads = {"latent_pi": ["mu", "log_std"], "mlp_extractor.policy_net": ["action_net"]}
    heads["mlp_extractor.value_net"] = ["value_net"]
    return [name for name in heads.get(parent, []) if name in linears]
