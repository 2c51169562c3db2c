"""Reset: every tensor that should be new is new and drawn as at first, everything else is the same bits."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import models
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.agents.sac import SAC, SACConfig
from plasticity.agents.train import context, train
from plasticity.callback import Callback, Context, start
from plasticity.envs import make_env
from plasticity.interventions.reset import Reset, depths, last_layers, loose_parameters, reset_
from plasticity.structure.trace import wiring
from plasticity.surgery.origin import Origin

pytestmark = pytest.mark.usefixtures("everywhere")

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adamw fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01, initial_accumulator_value=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
}


class Recorder:
    """A writer that keeps events."""

    def __init__(self) -> None:
        self.events: list[tuple[int, str, dict[str, Any]]] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Drop scalars."""

    def histogram(self, step: int, tag: str, values: Any) -> None:
        """Drop histograms."""

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """Keep it."""
        self.events.append((step, name, dict(details)))

    def named(self, name: str) -> list[dict[str, Any]]:
        """Return the details of the events of one name."""
        return [details for _, found, details in self.events if found == name]


def small_sac(seed: int = 0, **changes: Any) -> tuple[Any, SAC]:
    env = make_env("sanity/both-continuous", num_envs=2, seed=seed, device=str(torch.get_default_device()))
    config = SACConfig(**{"hidden": (16, 12), "batch_size": 8, "learning_starts": 8, "buffer_size": 400, **changes})
    options: dict[str, Any] = {"num_envs": 2, "seed": seed, "device": torch.get_default_device()}
    return env, SAC(env.observation_space, env.action_space, config, **options)


def train_sac(callbacks: Sequence[Callback], steps: int = 40, **changes: Any) -> tuple[SAC, Context, Recorder]:
    env, agent = small_sac(**changes)
    writer = Recorder()
    ctx = train(env, agent, steps, callbacks, context(agent, writer=writer))
    return agent, ctx, writer


def plain_loop(net: nn.Module, make: Any = OPTIMIZERS["adam"], **lent: Any) -> Context:
    return Context({"net": net}, {"net": make(net.parameters())}, writer=Recorder(), **lent)


def take_step(ctx: Context, *inputs: Tensor) -> None:
    """One step of a plain supervised loop."""
    optimizer, net = ctx.optimizers["net"], ctx.networks["net"]
    optimizer.zero_grad()
    out = net(*(inputs or (models.normal(16, 4),)))
    sum(t.square().sum() for t in (out.values() if isinstance(out, dict) else [out])).backward()
    optimizer.step()


def bits(ctx: Context) -> dict[str, Tensor]:
    """A copy of every parameter and buffer of networks and targets."""
    found = {}
    for kind in ("networks", "targets"):
        for name, net in getattr(ctx, kind).items():
            found |= {f"{kind}.{name}.{key}": t.detach().clone() for key, t in net.state_dict().items()}
    return found


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def assert_all_trained(ctx: Context, optimizers: Sequence[Optimizer] | None = None) -> None:
    """Every trainable parameter is in exactly one optimizer group, and no frozen one in any."""
    places: dict[int, int] = {}
    for optimizer in optimizers or ctx.optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                places[id(parameter)] = places.get(id(parameter), 0) + 1
                assert parameter.requires_grad
    for net in ctx.networks.values():
        for name, parameter in net.named_parameters():
            assert places.get(id(parameter), 0) == int(parameter.requires_grad), name


def assert_all_move(ctx: Context, update: Any) -> None:
    """Every trainable parameter moves in the next update, and no frozen one."""
    before = {id(p): p.detach().clone() for net in ctx.networks.values() for p in net.parameters()}
    update()
    for net in ctx.networks.values():
        for name, parameter in net.named_parameters():
            assert torch.equal(before[id(parameter)], parameter) != parameter.requires_grad, name


# --- which layers are the last ---


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", {"0": 3, "2": 2, "4": 1}),
        ("two heads", {"a": 2, "mean": 1, "log_std": 1}),
        ("odd order", {"layers.2": 3, "layers.0": 2, "layers.1": 1}),
        ("conv nchw", {"0": 4, "2": 3, "5": 2, "7": 1}),
        ("unused", {"a": 3, "b": 2, "c": 1}),
        ("swiglu", {"a": 2, "b": 2, "c": 1}),
        ("residual", {"0": 6, "1.up": 5, "1.down": 4, "2.up": 3, "2.down": 2, "4": 1}),
    ],
)
def test_depths_count_from_the_output(name: str, expected: dict[str, int]) -> None:
    model, inputs = models.build(name)
    assert depths(wiring(model, *inputs)) == expected


def test_norms_go_with_their_layer() -> None:
    model, inputs = models.build("norm after")
    assert last_layers(wiring(model, *inputs), 2) == {"6", "3", "5"}


@pytest.mark.parametrize("name", models.ALL)
def test_one_layer_takes_in_every_output(name: str) -> None:
    model, inputs = models.build(name)
    wired = wiring(model, *inputs)
    outputs = {layer.name for layer in wired.layers.values() if layer.is_output}
    assert outputs <= last_layers(wired, 1)
    assert {la.name for la in wired.layers.values() if la.num_calls} <= last_layers(wired, 99)


# --- fresh draws ---


def test_fresh_draws_have_the_initial_distribution() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    nn.init.orthogonal_(net[2].weight, 2**0.5)
    nn.init.zeros_(net[2].bias)
    nn.init.normal_(net[4].weight, std=0.02)
    origin, generator = Origin.of(net), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(7).add_(3)  # training
    drawn: list[list[Tensor]] = [[], [], []]
    for _ in range(20):
        assert len(reset_(net, origin, (), generator)) == 6
        for i in range(3):
            drawn[i].append(net[2 * i].weight.detach().clone())
        assert not net[2].bias.any()
        torch.testing.assert_close(net[2].weight @ net[2].weight.T, 2 * torch.eye(32), atol=1e-4, rtol=0)
    first, _, last = (torch.stack(draws).flatten().double().numpy(force=True) for draws in drawn)
    assert stats.kstest(first, stats.uniform(-1 / 8, 1 / 4).cdf).pvalue > 1e-3
    assert stats.kstest(last, stats.norm(0, 0.02).cdf).statistic < 0.06  # its scale was inferred from 256 values
    assert not torch.equal(drawn[0][0], drawn[0][1])


def test_the_same_seed_does_not_give_the_first_weights_again() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    first = copy.deepcopy(net.state_dict())
    reset = Reset(seed=3)
    reset_(net, Origin.of(net), (), reset.generator)
    assert not any(torch.equal(first[name], value) for name, value in net.state_dict().items())


def test_what_no_initialiser_covers_goes_back_to_its_first_values() -> None:
    model, _ = models.build("transformer")
    model.register_parameter("log_std", nn.Parameter(torch.full((3,), -0.5)))
    origin, first = Origin.of(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(5)
    changed = reset_(model, origin, (), torch.Generator().manual_seed(0))
    assert set(changed) == set(first)
    now = dict(model.named_parameters())
    for name, value in first.items():
        if "norm" in name or name == "log_std":
            assert torch.equal(now[name], value)
        elif "in_proj_weight" in name:
            assert not torch.equal(now[name], value)
            assert torch.equal(now[name].flatten().sort().values, value.flatten().sort().values)


def test_running_statistics_start_anew_and_frozen_parameters_stay() -> None:
    model, inputs = models.build("batch norm before")
    model[3].weight.requires_grad_(False)
    origin = Origin.of(model)
    model(*inputs)
    kept = model[3].weight.clone()
    assert model[1].running_mean.any()
    assert "3.weight" not in reset_(model, origin, (), torch.Generator())
    assert not model[1].running_mean.any()
    assert torch.equal(model[3].weight, kept)


# --- in a plain loop ---


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_full_reset_leaves_a_new_network_and_a_new_optimizer(kind: str) -> None:
    net, _ = models.build("norm before")
    ctx = plain_loop(net, OPTIMIZERS[kind])
    reset = Reset(every=5)
    reset.on_train_start(ctx)
    for _ in range(5):
        take_step(ctx)
    (details,) = ctx.writer.named("reset")  # type: ignore[union-attr]
    assert details["because"] == "every 5"
    assert 0.1 < details["networks"]["net"]["function_change"] < 10
    assert all(p.grad is None for p in net.parameters())
    # From here on the run is that of a new optimizer on the same weights.
    twin = copy.deepcopy(net)
    other = plain_loop(twin, OPTIMIZERS[kind])
    assert_all_trained(ctx)
    assert_all_move(ctx, lambda: take_step(ctx))
    take_step(other)
    for _ in range(2):
        take_step(ctx)
        take_step(other)
    assert same(net.state_dict(), twin.state_dict())


@pytest.mark.on_real_devices
def test_lbfgs_forgets_its_history() -> None:
    net, _ = models.build("mlp")
    optimizer = torch.optim.LBFGS(net.parameters(), 0.1)
    reset = Reset(every=3)
    reset.on_train_start(Context({"net": net}, {"net": optimizer}))

    def closure() -> Any:
        optimizer.zero_grad()
        loss = net(torch.ones(8, 4)).square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert not optimizer.state
    optimizer.step(closure)


def test_a_partial_reset_touches_the_last_layers_only() -> None:
    net, _ = models.build("norm after")  # 0, norm 2, 3, norm 5, 6
    ctx = plain_loop(net)
    reset = Reset(every=6, layers=2)
    reset.on_train_start(ctx)
    for _ in range(5):
        take_step(ctx)
    twin, twin_state = copy.deepcopy(net), copy.deepcopy(ctx.optimizers["net"].state_dict())
    other = plain_loop(twin)
    other.optimizers["net"].load_state_dict(twin_state)
    take_step(ctx)
    take_step(other)
    for name, parameter in net.named_parameters():
        kept = name.split(".")[0] in "02"
        assert torch.equal(parameter, twin.get_parameter(name)) == kept, name
        state, twins = (o.optimizers["net"].state[p] for o, p in ((ctx, parameter), (other, twin.get_parameter(name))))
        if kept:
            assert all(torch.equal(state[key], twins[key]) for key in state)
        else:
            assert not any(value.any() for value in state.values())
    assert torch.equal(net[5].weight, torch.ones(5))


def test_twin_heads_are_reset_together() -> None:
    net, _ = models.build("two heads")
    ctx = plain_loop(net)
    reset = Reset(at=(3,), layers=1)
    reset.on_train_start(ctx)
    for _ in range(3):
        take_step(ctx)
    (details,) = ctx.writer.named("reset")  # type: ignore[union-attr]
    assert set(details["networks"]["net"]["layers"]) == {"mean", "log_std"}


def test_a_partial_reset_without_a_seen_pass_says_so() -> None:
    net, _ = models.build("mlp")
    ctx = plain_loop(net)
    Reset(at=(1,), layers=1).on_train_start(ctx)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(ValueError, match="no training pass"):
        ctx.optimizers["net"].step()


def test_a_loop_in_which_nothing_fires_is_bit_identical() -> None:
    runs = []
    for methods in ([], [Reset(at=(1000,))], [Reset(when="loss > 3", layers=1)]):
        net, _ = models.build("norm before")
        ctx = plain_loop(net)
        for method in methods:
            method.on_train_start(ctx)
        torch.manual_seed(3)
        for _ in range(5):
            take_step(ctx, torch.randn(8, 4))
        runs.append({**net.state_dict(), "rng": torch.get_rng_state()})
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])


# --- on SAC ---


def test_sac_is_rebuilt_and_the_replay_kept() -> None:
    reset = Reset(every=30, clock="env_steps")
    agent, ctx, writer = train_sac([reset], steps=30)
    # The reset happened on the last step, before its updates; after them everything is two updates old.
    (details,) = writer.named("reset")
    assert details["env_steps"] == 30
    assert details["loose"] == ["alpha.0"]
    assert set(details["networks"]) == {"actor", "critic_1", "critic_2"}
    for optimizer in agent.optimizers.values():
        assert all(state["step"] == 2 for state in optimizer.state.values())
    assert abs(agent.log_alpha.item()) < 3 * agent.config.alpha_lr
    assert len(agent.buffer) == 30
    assert_all_trained(ctx)
    assert_all_move(ctx, agent.update)
    assert reset.counts == {"applications": 1, "tensors": 8 + 6 + 6}


@pytest.mark.slow_off_the_cpu
def test_targets_receive_what_was_reset() -> None:
    agent, ctx, _ = train_sac([])
    for layers in (None, 1, 2):
        before = bits(ctx)
        reset = Reset(every=1, clock="updates", layers=layers)
        reset.on_train_start(ctx)
        reset.on_update_start(ctx)
        agent.update()
        trained = bits(ctx)
        reset.on_update_end(ctx, {})
        reset.on_train_end(ctx)
        after = bits(ctx)
        assert not same(before, trained)
        new = [f"critic_1.q.{i}.{kind}" for i in (0, 2, 4)[-(layers or 3) :] for kind in ("weight", "bias")]
        for name in (n for n in after if n.startswith("targets.critic_1")):
            network = name.replace("targets", "networks")
            assert torch.equal(after[name], after[network]) == (name.removeprefix("targets.") in new)
            assert torch.equal(after[name], trained[name]) != (name.removeprefix("targets.") in new)


def test_chosen_networks_leave_the_others_and_the_temperature() -> None:
    agent, ctx, _ = train_sac([])
    before, alpha = bits(ctx), agent.log_alpha.clone()
    states = {n: copy.deepcopy(o.state_dict()) for n, o in agent.optimizers.items()}
    reset = Reset(every=1, clock="updates", networks=("critic_2",))
    reset.on_train_start(ctx)
    reset.on_update_end(ctx, {})
    after = bits(ctx)
    assert {name.split(".")[1] for name in after if not torch.equal(before[name], after[name])} == {"critic_2"}
    assert torch.equal(alpha, agent.log_alpha)
    for name in ("actor", "alpha"):
        assert str(states[name]) == str(agent.optimizers[name].state_dict())
    kept = {k: v for k, v in agent.optimizers["critic"].state_dict()["state"].items() if k < 6}
    assert str(kept) == str({k: v for k, v in states["critic"]["state"].items() if k < 6})


@pytest.mark.on_real_devices
def test_sac_with_a_reset_that_never_fires_is_bit_identical() -> None:
    plain, ctx, _ = train_sac([])
    for reset in (Reset(), Reset(layers=1, at=(10**6,)), Reset(preset="bro")):
        other, other_ctx, _ = train_sac([reset])
        assert same(bits(ctx), bits(other_ctx))
        assert str(plain.state_dict()) == str(other.state_dict())


def test_resumed_runs_redraw_from_the_first_weights() -> None:
    net, _ = models.build("norm before")
    ctx, reset = plain_loop(net), Reset(every=4)
    start([reset], ctx)
    for _ in range(6):
        take_step(ctx)
    saved = copy.deepcopy((net.state_dict(), ctx.optimizers["net"].state_dict(), reset.state_dict()))
    for _ in range(6):
        take_step(ctx)
    twin, _ = models.build("norm before", seed=9)
    other, again = plain_loop(twin), Reset(every=4)
    twin.load_state_dict(saved[0])
    other.optimizers["net"].load_state_dict(copy.deepcopy(saved[1]))
    start([again], other, [saved[2]])
    for _ in range(6):
        take_step(other)
    assert same(net.state_dict(), twin.state_dict())
    assert again.counts == reset.counts
    assert again.ticks == reset.ticks == {"updates": 0, "gradient_steps": 12, "rollouts": 0}


def test_presets_are_the_papers() -> None:
    assert (Reset().every, Reset().clock, Reset().layers, Reset().temperature) == (200_000, "env_steps", None, True)
    spr = Reset(preset="spr")
    assert [step for step in range(0, 200_001, 1000) if spr.trigger.due(step)] == [20_000, 40_000, 60_000, 80_000]
    assert (spr.layers, spr.temperature) == (1, False)
    assert Reset(preset="drq").layers == 4
    bro = Reset(preset="bro")
    assert [step for step in (1, 15_000, 15_001, 50_001, 250_000, 250_001) if bro.trigger.due(step)] == [
        15_001,
        50_001,
        250_001,
    ]


def test_what_does_not_fit_is_refused_at_the_start() -> None:
    net, other = models.build("mlp")[0], models.build("two heads")[0]
    with pytest.raises(ValueError, match="finds no network critic"):
        Reset(networks=("critic*",)).on_train_start(plain_loop(net))
    with pytest.raises(ValueError, match="no copy of it"):
        Reset().on_train_start(plain_loop(net, targets={"net": other}))
    with pytest.raises(ValueError, match="no optimizer of this run"):
        Reset().on_train_start(Context({"net": net}, {"other": torch.optim.SGD(other.parameters(), 0.1)}))
    lent = Context({"net": net}, {"net": torch.optim.SGD([*net.parameters(), *other.parameters()], 0.1)})
    with pytest.raises(ValueError, match="temperature=False"):
        Reset().on_train_start(lent)
    Reset(temperature=False).on_train_start(lent)
    with pytest.raises(ValueError, match="layers is a number"):
        Reset(layers=0)
    assert loose_parameters(plain_loop(net)) == {}
