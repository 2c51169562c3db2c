"""On a device: the CPU's numbers, and updates in which the host waits for nothing.

On the CPU every comparison is one of two equal runs, which must agree to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import elsewhere
import models
import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_gradient import OBS, make_batch, make_experience
from test_interventions import FREQUENT, ON_SAC, Recorder, Walk, some
from test_resume import same
from torch import Tensor, nn

from plasticity import Measure, measure
from plasticity.agents import AGENTS
from plasticity.agents import updates as agent_updates
from plasticity.agents.evaluate import evaluate
from plasticity.agents.normalise import RunningNorm
from plasticity.agents.priorities import Priorities
from plasticity.agents.replay import ReplayBuffer
from plasticity.agents.rewards import ReturnScaler
from plasticity.agents.rollout import gae
from plasticity.agents.supervised import Examples
from plasticity.agents.train import context, train
from plasticity.cli import main
from plasticity.envs.examples import ExampleSpace
from plasticity.interventions import INTERVENTIONS
from plasticity.probes import PROBES
from plasticity.storage.folder import Checkpoints
from plasticity.storage.rows import read_metrics
from plasticity.tags import is_timed

EVENTLESS = ("swd", "plasticity_injection", "random_shift", "ere", "ccbp", "spectral_normalization")
"""Methods without events and rows of their own, or which acted before."""
SOME = some([(method,) for method in ON_SAC], share=8)
NOT_HERE = "compiled updates of the CPU are tested in test_gradient and test_interventions"
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
    "supervised": {"hidden": (16, 16), "batch_size": 16},
}
ANSWERED = {"supervised": ExampleSpace(OBS - 1)}
REPLAY = ["--batch-size", "8", "--learning-starts", "10", "--buffer-size", "100"]
RAINBOW = {"double": True, "head": "dueling", "returns": "c51", "prioritised": True, "n_step": 3}
VARIANTS = [*((name, {}) for name in SETTINGS), ("dqn", RAINBOW), ("sac", {"network": "simba"})]


def make(name: str, device: str, compile: str = "off", **changes: Any) -> Any:
    kind, config = AGENTS[name]
    actions = DISCRETE if name == "dqn" else CONTINUOUS
    return kind(
        ANSWERED.get(name, BOX),
        actions,
        config(**{**SETTINGS[name], **changes}),
        num_envs=4,
        device=device,
        seed=3,
        compile=compile,
    )


def collect(agent: Any, steps: int) -> None:
    """Let it act in noise until it can learn; on every device it sees the same."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        obs, next_obs = (torch.randn(4, OBS, generator=generator).to(agent.device) for _ in range(2))
        action, reward = agent.act(obs, explore=True), torch.randn(4, generator=generator).to(agent.device)
        over = torch.zeros(4, dtype=torch.bool, device=agent.device)
        parts = {"obs": obs, "action": action, "reward": reward, "next_obs": next_obs}
        agent.observe(SimpleNamespace(**parts, terminated=over, truncated=over))


@pytest.mark.each("name", "changes", "compile")
@pytest.mark.parametrize("compile", ["off", "on"])
@pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=str)
@pytest.mark.some(8)
def test_updates_wait_for_nothing(
    name: str, changes: dict[str, Any], compile: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host only looks at losses every CHECK_EVERY updates; on a CPU, where nothing waits, it just has to run."""
    if compile == "on" and device == "cpu":
        pytest.skip(NOT_HERE)
    if compile == "on" and device == elsewhere.NAME and changes.get("returns"):
        pytest.skip("the support is a constant of the trace")
    agent = make(name, device, compile, **changes)
    collect(agent, 16)
    for _ in range(3):  # compiles, and makes the optimizers' states
        agent.update()
    monkeypatch.setattr(agent_updates, "CHECK_EVERY", 10**9)
    with without_waiting(device):
        for _ in range(3):
            agent.update()
    agent.state_dict()


@contextmanager
def without_waiting(device: str) -> Iterator[None]:
    """Fail where the host waits for the device."""
    if device == elsewhere.NAME:
        with elsewhere.without_waiting():
            yield
        return
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.each("name")
@pytest.mark.parametrize("name", AGENTS)
def test_weights_and_values_are_those_of_the_cpu(name: str, device: str) -> None:
    agent, twin = make(name, device), make(name, "cpu")
    for key, network in agent.networks.items():
        for a, b in zip(network.parameters(), twin.networks[key].parameters(), strict=True):
            assert torch.equal(a.cpu(), b)
    obs = torch.randn(6, OBS, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(agent.act(obs, explore=False).cpu(), twin.act(obs, explore=False))


def assert_equal(found: Any, expected: Any, device: str, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Within rounding on a device, to the bit on the CPU; ints and bools everywhere."""
    tolerance = {"rtol": 0, "atol": 0} if device == "cpu" else {"rtol": rtol, "atol": atol}
    torch.testing.assert_close(found, expected, check_device=False, **tolerance)


@pytest.mark.each("name", "compile")
@pytest.mark.parametrize("compile", ["off", "on"])
@pytest.mark.parametrize("name", AGENTS)
def test_updates_are_those_of_the_cpu(name: str, compile: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On equal batches, with equal noise: that of an agent's own generators differs between devices."""
    if compile == "on" and device == "cpu":
        pytest.skip(NOT_HERE)
    runs = []
    for where in (device, "cpu"):
        agent = make(name, where, compile)
        with monkeypatch.context() as patched:
            patched.setattr(torch, "randn", drawn_on_the_cpu(where))
            for i in range(4):
                batch: Any = make_experience(i, False) if name == "ppo" else make_batch(i, name == "dqn")
                batch = Examples(batch.obs[:, :-1], batch.reward) if name == "supervised" else batch
                metrics = agent.learn(models.on(where, batch))
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


@pytest.mark.each("n_step", "image")
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


@pytest.mark.each("num_envs")
@pytest.mark.parametrize("num_envs", [1, 3])
def test_advantages_and_statistics_are_those_of_the_cpu(num_envs: int, device: str) -> None:
    g = torch.Generator().manual_seed(1)
    reward, value, following = torch.randn(3, 12, num_envs, generator=g)
    terminated, cut = torch.rand(2, 12, num_envs, generator=g) < 0.2
    runs = []
    for where in (device, "cpu"):
        advantage = gae(*(models.on(where, x) for x in (reward, value, following, terminated, cut)), 0.9, 0.8)
        norm, scaler = RunningNorm((num_envs,), clip=2.0).to(where), ReturnScaler(num_envs, 0.9).to(where)
        scaled = [scaler.update(r, d) for r, d in zip(reward.to(where), cut.to(where), strict=True)]
        for row in value.to(where):
            norm.update(row[None])
        runs.append((advantage, torch.stack(scaled), norm(value.to(where)), norm.state_dict(), scaler.state_dict()))
    assert_equal(runs[0], runs[1], device)


def test_probes_say_what_they_say_on_the_cpu(device: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 1))
    x, y = torch.randn(2, 64, 6).unbind()
    y = y[:, :1]
    found, expected = (
        measure(model.to(where), (x.to(where), y.to(where)), nn.functional.mse_loss, probes=list(PROBES)).flat()
        for where in (device, "cpu")
    )
    assert found == pytest.approx(expected, rel=0 if device == "cpu" else 1e-3, abs=1e-6, nan_ok=True)
    assert len(found) > 10


@pytest.mark.each("method")
@pytest.mark.parametrize("compile", ["off", "on"])
@pytest.mark.parametrize("method", SOME)
@pytest.mark.some(3)
def test_methods_act_and_stay_on_the_device(method: str, compile: str, device: str) -> None:
    if compile == "on" and device == "cpu":
        pytest.skip(NOT_HERE)
    if compile == "on" and device == "elsewhere" and INTERVENTIONS[method].KIND == "penalty":
        pytest.skip("terms keep tensors of their own, which the fake device cannot trace")
    kind, config = AGENTS["sac"]
    settings = {"hidden": (12, 10), "batch_size": 16, "learning_starts": 16, "buffer_size": 200}
    agent = kind(spaces.Box(-9, 9, (3,)), CONTINUOUS, config(**settings), num_envs=2, device=device, compile=compile)
    writer, callbacks = Recorder(), [INTERVENTIONS[method](**FREQUENT[method]), Measure(every=10, strict=True)]
    train(Walk(device), agent, 60, callbacks, context(agent, writer=writer))
    assert writer.events or writer.scalars
    assert any(tag.startswith("plasticity/") for tag in writer.scalars)
    states = [x for o in agent.optimizers.values() for state in o.state.values() for x in state.values() if x.dim()]
    parameters = [p for network in [*agent.networks.values(), *agent.targets.values()] for p in network.parameters()]
    assert states
    assert all(tensor.device.type == device and tensor.isfinite().all() for tensor in [*states, *parameters])


@pytest.mark.each("method")
@pytest.mark.parametrize("method", SOME)
@pytest.mark.some(2)
def test_a_default_device_moves_nothing(method: str, device: str) -> None:
    """An agent of the CPU is trained as ever where `torch.set_default_device` names another device."""
    if device == "cpu":
        pytest.skip("the agent's own")
    kind, config = AGENTS["sac"]
    settings = {"hidden": (12, 10), "batch_size": 16, "learning_starts": 16, "buffer_size": 200}
    ends = []
    for default in (device, "cpu"):
        with torch.device(default):
            agent = kind(spaces.Box(-9, 9, (3,)), CONTINUOUS, config(**settings), num_envs=2)
            writer, callbacks = Recorder(), [INTERVENTIONS[method](**FREQUENT[method]), Measure(every=10, strict=True)]
            train(Walk("cpu"), agent, 60, callbacks, context(agent, writer=writer))
            evaluate(agent, Walk("cpu"), 2)
            ends.append((agent.state_dict(), agent.buffer.state_dict(), callbacks[0].state_dict(), writer))
    writers = [end[-1] for end in ends]
    for writer in writers:
        for tag in filter(is_timed, [*writer.scalars]):
            del writer.scalars[tag]
    same(ends[0][:-1], ends[1][:-1])
    assert writers[0].events == writers[1].events
    same(writers[0].scalars, writers[1].scalars)


@pytest.mark.each("agent")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what is said about so small a run is not the subject
@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.some(2)
def test_commands_train_resume_evaluate_and_probe(
    agent: str, device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, where = str(tmp_path / "run"), ["--device", device]
    small = ["--hidden", "8", "8", "--num-envs", "2", "--probe-every", "5", "--eval-episodes", "2", "--quiet"]
    memory = {"ppo": ["--num-steps", "8", "--num-minibatches", "2"], "supervised": ["--batch-size", "4"]}.get(
        agent, REPLAY
    )
    env = ["--env", {"dqn": "sanity/both", "supervised": "bitflip"}.get(agent, "sanity/both-continuous")]
    start = ["train", agent, *env, *small, *memory, "--steps", "40", "--out", str(tmp_path), "--name", "run", *where]
    assert main(start) == 0
    assert main(["train", "--resume", run, "--steps", "60"]) == 0
    assert main(["eval", run, "--episodes", "2", *where]) == 0
    assert main(["probe", run, "--samples", "16", "--probes", "dormancy", "grama", *where]) == 0
    assert "trained for 60 steps" in capsys.readouterr().out
    _, state = Checkpoints(tmp_path / "run" / "checkpoints").load_latest()
    assert state["agent"]["counters"]["updates"] > 10


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("method", SOME)
@pytest.mark.some(2)
def test_methods_go_on_after_resuming(method: str, device: str, tmp_path: Path) -> None:
    """Their saved state is loaded to the CPU, and they go on to change weights that are elsewhere."""
    flags = [f"--{method.replace('_', '-')}"]
    for setting, value in (FREQUENT[method] | ({"end": 500} if method == "ne" else {})).items():
        values = value if isinstance(value, tuple) else (value,)
        flags += [f"{flags[0]}.{setting.replace('_', '-')}", *([] if value is True else map(str, values))]
    small = ["--hidden", "8", "8", "--num-envs", "2", "--eval-every", "0", "--eval-episodes", "2", "--quiet", *REPLAY]
    where = ["--out", str(tmp_path), "--name", "run", "--device", device]
    assert main(["train", "sac", "--env", "sanity/both-continuous", *small, *flags, *where, "--steps", "40"]) == 0
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "80"]) == 0
    done = [row["event"] for row in read_metrics(tmp_path / "run") if "event" in row and row["step"] > 40]
    if method in done:
        return
    tags = {tag for row in read_metrics(tmp_path / "run") if row["step"] > 40 for tag in row}
    logs = any(tag.startswith((f"{method}/", f"losses/{method}", f"interventions/{method}")) for tag in tags)
    assert logs or method in EVENTLESS


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
