"""On a GPU: the CPU's numbers, and updates in which the host waits for nothing. Skipped where there is none.

On the CPU every comparison is one of two equal runs, which must agree to the bit.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_gradient import OBS, make_batch, make_experience
from test_interventions import FREQUENT, Recorder, Walk
from torch import Tensor, nn

from plasticity import Measure, measure
from plasticity.agents import AGENTS
from plasticity.agents import updates as agent_updates
from plasticity.agents.normalise import RunningNorm
from plasticity.agents.priorities import Priorities
from plasticity.agents.replay import ReplayBuffer
from plasticity.agents.rewards import ReturnScaler
from plasticity.agents.rollout import gae
from plasticity.agents.train import context, train
from plasticity.interventions import INTERVENTIONS
from plasticity.probes import PROBES

ONLY_ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = ["cpu", pytest.param("cuda", marks=ONLY_ON_GPU)]
# Compiling takes long, and what it does on the CPU is tested elsewhere (test_gradient, test_interventions).
WAYS = [("cpu", "off"), *(pytest.param("cuda", compile, marks=ONLY_ON_GPU) for compile in ("off", "on"))]
BOX, CONTINUOUS, DISCRETE = (
    spaces.Box(-9, 9, (OBS,), np.float32),
    spaces.Box(-1, 1, (2,), np.float32),
    spaces.Discrete(3),
)
SETTINGS: dict[str, dict[str, Any]] = {
    "sac": {"hidden": (16, 16), "batch_size": 16, "learning_starts": 32, "buffer_size": 400},
    "td3": {"hidden": (16, 16), "batch_size": 16, "learning_starts": 32, "buffer_size": 400},
    "dqn": {"hidden": (16, 16), "batch_size": 16, "learning_starts": 32, "buffer_size": 400, "train_every": 1},
    "ppo": {"hidden": (16, 16), "num_steps": 16, "num_minibatches": 4, "num_epochs": 2},
}


def make(name: str, device: str, compile: str = "off") -> Any:
    kind, config = AGENTS[name]
    actions = DISCRETE if name == "dqn" else CONTINUOUS
    return kind(BOX, actions, config(**SETTINGS[name]), num_envs=4, device=device, seed=3, compile=compile)


def collect(agent: Any, steps: int) -> None:
    """Let it act in noise until it can learn; on every device it sees the same."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        obs, next_obs = (torch.randn(4, OBS, generator=generator).to(agent.device) for _ in range(2))
        action, reward = agent.act(obs, explore=True), torch.randn(4, generator=generator).to(agent.device)
        over = torch.zeros(4, dtype=torch.bool, device=agent.device)
        parts = {"obs": obs, "action": action, "reward": reward, "next_obs": next_obs}
        agent.observe(SimpleNamespace(**parts, terminated=over, truncated=over))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("compile", ["off", "on"])
@pytest.mark.parametrize("name", AGENTS)
def test_updates_wait_for_nothing(name: str, compile: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host only looks at losses every CHECK_EVERY updates; on a CPU, where nothing waits, it just has to run."""
    agent = make(name, device, compile)
    collect(agent, 16)
    for _ in range(3):  # compiles, and makes the optimizers' states
        agent.update()
    monkeypatch.setattr(agent_updates, "CHECK_EVERY", 10**9)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            agent.update()
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    agent.state_dict()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", AGENTS)
def test_weights_and_values_are_those_of_the_cpu(name: str, device: str) -> None:
    agent, twin = make(name, device), make(name, "cpu")
    for key, network in agent.networks.items():
        for a, b in zip(network.parameters(), twin.networks[key].parameters(), strict=True):
            assert torch.equal(a.cpu(), b)
    obs = torch.randn(6, OBS, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(agent.act(obs, explore=False).cpu(), twin.act(obs, explore=False))


def on(device: str, value: Any) -> Any:
    """A tensor, or a dataclass of tensors, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    return type(value)(**{name: None if x is None else x.to(device) for name, x in vars(value).items()})


def assert_equal(found: Any, expected: Any, device: str, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Within rounding on a device, to the bit on the CPU; ints and bools everywhere."""
    tolerance = {"rtol": 0, "atol": 0} if device == "cpu" else {"rtol": rtol, "atol": atol}
    torch.testing.assert_close(found, expected, check_device=False, **tolerance)


@pytest.mark.parametrize(("device", "compile"), WAYS)
@pytest.mark.parametrize("name", AGENTS)
def test_updates_are_those_of_the_cpu(name: str, compile: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On equal batches, with equal noise: that of an agent's own generators differs between devices."""
    runs = []
    for where in (device, "cpu"):
        agent = make(name, where, compile)
        with monkeypatch.context() as patched:
            patched.setattr(torch, "randn", drawn_on_the_cpu(where))
            for i in range(4):
                batch = make_experience(i, False) if name == "ppo" else make_batch(i, name == "dqn")
                metrics = agent.learn(on(where, batch))
                agent.updates += 1
        weights = {key: dict(network.named_parameters()) for key, network in {**agent.networks}.items()}
        runs.append((metrics, weights))
    assert_equal(runs[0], runs[1], device)
    assert any(not torch.equal(a.cpu(), b) for a, b in moved(runs[0][1], make(name, "cpu")))


def drawn_on_the_cpu(device: str) -> Any:
    """Return a `torch.randn` that gives the same numbers on every device, whatever generator it is asked for."""
    generator, draw = torch.Generator().manual_seed(5), torch.randn
    return lambda *shape, **_: draw(*shape, generator=generator).to(device)


def moved(weights: dict[str, dict[str, Tensor]], fresh: Any) -> list[tuple[Tensor, Tensor]]:
    """Pairs of weights and what they were before learning."""
    return [(w, dict(fresh.networks[key].named_parameters())[n]) for key, ws in weights.items() for n, w in ws.items()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n_step", "image"), [(1, False), (3, False), (1, True)])
def test_replay_is_that_of_the_cpu(n_step: int, image: bool, device: str) -> None:
    shape, dtype = ((1, 3, 3), torch.uint8) if image else ((2,), torch.float32)
    buffers = [
        ReplayBuffer(
            20, shape, (), num_envs=2, device=where, obs_dtype=dtype, n_step=n_step, gamma=0.9,
            priorities=Priorities(20, 0.6, device=where),
        )
        for where in (device, "cpu")
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    obs = (255 * torch.rand(2, *shape, generator=generator)).to(dtype)
    for i in range(17):  # the ring wraps
        following = (255 * torch.rand(2, *shape, generator=generator)).to(dtype)
        parts = {"obs": obs, "action": torch.randn(2, generator=generator), "next_obs": following}
        parts |= {"reward": torch.randn(2, generator=generator), "terminated": torch.tensor([i % 5 == 0, False])}
        parts |= {"truncated": torch.tensor([False, i % 7 == 0])}
        for buffer in buffers:
            buffer.add(SimpleNamespace(**{name: value.to(buffer.device) for name, value in parts.items()}))
        obs = following
    index, error = torch.arange(20), torch.randn(20, generator=generator)
    for buffer in buffers:
        assert buffer.priorities is not None
        buffer.priorities.update(index.to(buffer.device), error.to(buffer.device))
    found, expected = (vars(buffer.read(index.to(buffer.device))) for buffer in buffers)
    assert_equal(found, expected, device)
    assert_equal(buffers[0].age_probabilities(), buffers[1].age_probabilities(), device, 1e-9, 0)
    drawn = buffers[0].sample(64)
    assert drawn.obs.device.type == device
    assert drawn.index.max() < 20


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_envs", [1, 3])
def test_advantages_and_statistics_are_those_of_the_cpu(num_envs: int, device: str) -> None:
    g = torch.Generator().manual_seed(1)
    reward, value, following = torch.randn(3, 12, num_envs, generator=g)
    terminated, cut = torch.rand(2, 12, num_envs, generator=g) < 0.2
    runs = []
    for where in (device, "cpu"):
        advantage = gae(*(on(where, x) for x in (reward, value, following, terminated, cut)), 0.9, 0.8)
        norm, scaler = RunningNorm((num_envs,), clip=2.0).to(where), ReturnScaler(num_envs, 0.9).to(where)
        scaled = [scaler.update(r, d) for r, d in zip(reward.to(where), cut.to(where), strict=True)]
        for row in value.to(where):
            norm.update(row[None])
        runs.append((advantage, torch.stack(scaled), norm(value.to(where)), norm.state_dict(), scaler.state_dict()))
    assert_equal(runs[0], runs[1], device)


@pytest.mark.parametrize("device", DEVICES)
def test_probes_say_what_they_say_on_the_cpu(device: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 1))
    x, y = torch.randn(2, 64, 6).unbind()
    y = y[:, :1]
    found, expected = (
        measure(model.to(where), (x.to(where), y.to(where)), nn.functional.mse_loss, probes=list(PROBES)).flat()
        for where in (device, "cpu")
    )
    assert found == (expected if device == "cpu" else pytest.approx(expected, rel=1e-3, nan_ok=True))
    assert len(found) > 10


class WalkOn(Walk):
    """The same walk, with its tensors on a device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def reset(self, done: Tensor | None = None) -> Tensor:
        return super().reset(None if done is None else done.cpu()).to(self.device)

    def step(self, action: Tensor) -> SimpleNamespace:
        transition = super().step(action.cpu())
        return SimpleNamespace(**{name: value.to(self.device) for name, value in vars(transition).items()})


@pytest.mark.parametrize(("device", "compile"), WAYS)
@pytest.mark.parametrize("method", INTERVENTIONS)
def test_methods_act_and_stay_on_the_device(method: str, compile: str, device: str) -> None:
    kind, config = AGENTS["sac"]
    settings = {"hidden": (12, 10), "batch_size": 16, "learning_starts": 16, "buffer_size": 200}
    agent = kind(spaces.Box(-9, 9, (3,)), CONTINUOUS, config(**settings), num_envs=2, device=device, compile=compile)
    writer, callbacks = Recorder(), [INTERVENTIONS[method](**FREQUENT[method]), Measure(every=10, strict=True)]
    train(WalkOn(device), agent, 60, callbacks, context(agent, writer=writer))
    assert writer.events or writer.scalars
    assert any(tag.startswith("plasticity/") for tag in writer.scalars)
    states = [x for o in agent.optimizers.values() for state in o.state.values() for x in state.values()]
    parameters = [p for network in [*agent.networks.values(), *agent.targets.values()] for p in network.parameters()]
    assert states
    assert all(tensor.device.type == device and tensor.isfinite().all() for tensor in [*states, *parameters])


@pytest.mark.parametrize("device", DEVICES)
def test_a_loss_that_is_not_finite_is_found_before_a_state_is_saved(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_updates, "CHECK_EVERY", 10**9)
    agent = make("sac", device)
    collect(agent, 16)
    agent.buffer.storage["reward"][:] = float("nan")

    def update_and_save() -> None:
        agent.update()
        agent.state_dict()

    with pytest.raises(FloatingPointError, match="critic_loss is not finite"):
        update_and_save()


def test_sums_of_losses_on_a_device_are_looked_at_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a device, without one: tensors that say they are elsewhere."""

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")  # type: ignore[assignment]

    def loss(value: float) -> dict[str, torch.Tensor]:
        return {
            "a_loss": torch.tensor(1.0).as_subclass(Elsewhere),
            "b_loss": torch.tensor(value).as_subclass(Elsewhere),
        }

    monkeypatch.setattr(agent_updates, "CHECK_EVERY", 4)
    finite = agent_updates.Finite("agent")
    finite.check(loss(1.0), 1)
    finite.check(loss(float("nan")), 2)
    finite.check(loss(1.0), 3)
    with pytest.raises(FloatingPointError, match=r"agent: b_loss is not finite at update 4 or shortly before"):
        finite.check(loss(1.0), 4)
