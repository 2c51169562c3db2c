"""The contract of every intervention: contract tables over methods and optimizers; pairs are in test_pairs.py."""

from __future__ import annotations

import ast
import inspect
import itertools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import models
import pytest
import torch
from gymnasium import spaces
from inductor import some_compiled
from torch import Tensor, nn, optim

from plasticity import Measure
from plasticity.agents import gradient
from plasticity.agents.sac import SAC, SACConfig
from plasticity.agents.train import context, train
from plasticity.callback import Callback, Context
from plasticity.commands.train import main
from plasticity.interventions import INTERVENTIONS, Intervention, NeuroplasticExpansion, ReDo, Reset
from plasticity.interventions.scheduled import Scheduled
from plasticity.monitor import Monitor

pytestmark = pytest.mark.usefixtures("everywhere")

FREQUENT: dict[str, dict[str, Any]] = {
    "redo": {"every": 3, "threshold": 0.4, "cap": 0.2},
    "regrama": {"every": 4, "threshold": 0.4, "cap": 0.2},
    "ne": {"every": 2, "end": 30, "review": True, "awaken": 0.9},
    "swd": {"horizon": 20, "log_every": 5},
    "least": {"warmup": 10, "min_length": 1, "min_episodes": 2, "report_every": 2, "exempt": 0.0},
    "reset": {"every": 12, "clock": "updates", "layers": 2},
    "shrink_perturb": {"every": 5, "clock": "updates"},
    "plasticity_injection": {"at": (15,), "clock": "updates"},
    "knife": {"every": 6, "window": 3, "threshold": 0.5, "cap": 0.2},
    **{name: {"log_every": 3} for name in ("l2_init", "wasserstein_init", "parseval", "spectral", "nap")},
    "optimizer_reset": {"every": 4, "clock": "updates"},
    "fire": {"every": 12, "clock": "updates"},
    "hare_tortoise": {"every": 7, "clock": "updates", "momentum": 0.8},
    **{name: {"log_every": 3} for name in ("weight_clipping", "hyperspherical", "feature_norm", "dr3")},
    "chain": {"log_every": 3, "batch_size": 4},
    "infer": {"log_every": 3, "heads": 2},
    "pfo": {"log_every": 2},
    "random_shift": {},
    "sam": {"log_every": 3, "rho": 0.01},
    "spectral_normalization": {"log_every": 3},
    "rewarm": {"every": 9, "clock": "updates", "steps": 4},
    "cbp": {"rate": 0.03, "maturity": 4, "decay": 0.8},
    "ccbp": {"log_every": 3},
    "snr": {"every": 5, "limit_max": 64, "quantile": 0.5},
    "swr": {"every": 3, "clock": "updates", "share": 0.05, "ema": 0.5},
    "dash": {"every": 9, "clock": "updates", "floor": 0.8},
    "drm": {"every": 8, "clock": "updates", "measure_every": 3, "target": 0.9, "batch_size": 8},
    "ere": {"eta": 0.9, "smallest": 4, "round_length": 5},
    "resin": {"every": 4, "threshold": 0.6, "cap": 0.2},
    "reborn": {"every": 3, "threshold": 0.9, "active": 1.02},
    "replay_ratio": {"check_every": 3, "eta": 1.0, "low": 0.5, "high": 1.0, "batch_size": 8},
    "horizon": {"every": 9, "clock": "updates", "steps": 5, "n_first": 5, "n_last": 2},
}
"""Settings with which every method acts within a few dozen updates."""
NEVER: dict[str, dict[str, Any]] = {
    "redo": {"every": 10**6},
    "regrama": {"every": 10**6},
    "ne": {"initial_density": 1.0, "final_density": 1.0, "every": 2},
    "swd": {"horizon": 0},
    "least": {"warmup": 10**6},
    "reset": {"at": (10**6,), "clock": "updates"},
    "shrink_perturb": {"at": (10**6,), "clock": "updates"},
    "plasticity_injection": {"at": (10**6,), "clock": "updates"},
    **{name: {"coef": 0.0} for name in ("l2_init", "wasserstein_init", "parseval", "spectral")},
    "sam": {"rho": 0.0},
    "rewarm": {"at": (10**6,), "clock": "updates"},
    **{name: {"coef": 0.0} for name in ("feature_norm", "chain", "dr3", "infer", "pfo")},
    **{name: {"every": 10**6} for name in ("nap", "weight_clipping", "hyperspherical")},
    "optimizer_reset": {"at": (10**6,), "clock": "updates"},
    "fire": {"at": (10**6,), "clock": "updates"},
    "hare_tortoise": {"at": (10**6,), "clock": "updates"},
    "cbp": {"rate": 0.0},
    "ccbp": {"rate": 0.0},
    "snr": {"start": 10**6},
    "swr": {"at": (10**6,), "clock": "updates"},
    "dash": {"at": (10**6,), "clock": "updates"},
    "drm": {"at": (10**6,), "clock": "updates", "noise": False},
    "ere": {"eta": 1.0},
    "resin": {"every": 10**6},
    "reborn": {"every": 10**6},
    "replay_ratio": {"low": 1.0, "high": 1.0},
}
"""Settings with which every method is on, and changes nothing."""
OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "sgd": lambda ps: optim.SGD(ps, 1e-3),
    "sgd momentum": lambda ps: optim.SGD(ps, 1e-3, momentum=0.9, weight_decay=0.1),
    "adam": lambda ps: optim.Adam(ps, 1e-3),
    "adamw": lambda ps: optim.AdamW(ps, 1e-3, weight_decay=0.1),
    "rmsprop": lambda ps: optim.RMSprop(ps, 1e-3, momentum=0.5, centered=True),
    "adagrad": lambda ps: optim.Adagrad(ps, 1e-3, initial_accumulator_value=0.1),
}


FIRST = ("redo", "ne", "least", "plasticity_injection")
"""Methods whose whole tables are quick: one that recycles, a topology, a choice of data, a structure. Of the others a
part is, drawn by name: tables grow with their square."""

ON_SAC = tuple(name for name in INTERVENTIONS if name not in ("pfo", "random_shift", "horizon"))
LATER = tuple(name for name in ON_SAC if name not in FIRST)


def is_quick(*names: str, share: int) -> bool:
    """Return whether parameters are quick: those of the first methods, and one in ``share`` of the others by name."""
    return set(names) - set(OPTIMIZERS) <= set(FIRST) or zlib.crc32(" ".join(names).encode()) % share == 0


def some(rows: Iterable[tuple[str, ...]], share: int) -> list[Any]:
    """Return parameter sets: the quick ones, and the others marked slow."""
    return [pytest.param(*r, marks=[] if is_quick(*r, share=share) else pytest.mark.slow) for r in rows]


class Recorder:
    """A writer that keeps scalars and events."""

    def __init__(self) -> None:
        self.scalars: dict[str, list[float]] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self.scalars.setdefault(tag, []).append(value)

    def histogram(self, step: int, tag: str, values: Any) -> None:
        pass

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        self.events.append((name, dict(details)))

    def named(self, name: str) -> list[dict[str, Any]]:
        return [details for found, details in self.events if found == name]


class Walk:
    """Two environments: drift by the action, pay for staying near 0; episodes of at most ``limit`` steps."""

    name, num_envs, limit = "walk", 2, 10

    def __init__(self, device: str | torch.device | None = None) -> None:
        self.device = torch.device(device or torch.get_default_device())
        self.generator = torch.Generator("cpu").manual_seed(0)
        self.place, self.age = torch.zeros(2, 3, device=self.device), torch.zeros(2, device=self.device)

    def seen(self, place: Tensor) -> Tensor:
        """Return the observations of places, (2, 3)."""
        return place

    @property
    def obs(self) -> Tensor:
        return self.seen(self.place)

    def _normal(self) -> Tensor:
        return torch.randn(2, 3, generator=self.generator, device="cpu").to(self.device)

    def reset(self, done: Tensor | None = None) -> Tensor:
        done = torch.ones(2, dtype=torch.bool, device=self.device) if done is None else done
        self.place = torch.where(done[:, None], self._normal(), self.place)
        self.age = torch.where(done, 0, self.age)
        return self.obs

    def step(self, action: Tensor) -> SimpleNamespace:
        before, self.age = self.obs, self.age + 1
        self.place = self.place + 0.3 * action.repeat(1, 2)[:, :3] + 0.1 * self._normal()
        reward, never = -self.place.square().mean(1), torch.zeros_like(self.age, dtype=torch.bool)
        parts = {"obs": before, "action": action, "reward": reward, "next_obs": self.obs}
        return SimpleNamespace(**parts, terminated=never, truncated=self.age >= self.limit)

    def state_dict(self) -> dict[str, Tensor]:
        return {"place": self.place, "age": self.age, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Tensor:
        self.place, self.age = state["place"].to(self.device), state["age"].to(self.device)
        self.generator.set_state(state["generator"])
        return torch.zeros(2, dtype=torch.bool)  # no episode is given up

    def close(self) -> None:
        pass


def small_sac(optimizer: str | None = None, **changes: Any) -> SAC:
    settings = {"hidden": (12, 10), "batch_size": 8, "learning_starts": 8, "buffer_size": 200, **changes}
    box = spaces.Box(-1, 1, (2,))
    agent = SAC(spaces.Box(-9, 9, (3,)), box, SACConfig(**settings), num_envs=2, device=torch.get_default_device())
    if optimizer is not None:
        make = OPTIMIZERS[optimizer]
        critics = [p for name in ("critic_1", "critic_2") for p in agent.networks[name].parameters()]
        agent.optimizers |= {"actor": make(agent.networks["actor"].parameters()), "critic": make(critics)}
    return agent


def run_sac(
    callbacks: Sequence[Callback], steps: int = 60, agent: SAC | None = None, **changes: Any
) -> tuple[SAC, Context, Recorder]:
    agent, writer = agent or small_sac(**changes), Recorder()
    return agent, train(Walk(), agent, steps, callbacks, context(agent, writer=writer)), writer


def plain_loop(net: nn.Module, optimizer: optim.Optimizer) -> tuple[Context, Recorder]:
    writer = Recorder()
    return Context({"net": net}, {"net": optimizer}, writer=writer), writer


def recycled_once(model: nn.Module, x: Tensor) -> Recorder:
    """Let ReDo recycle the dead neurons of a model in a step that moves nothing else; return its events."""
    ctx, writer = plain_loop(model, optim.SGD(model.parameters(), 0.0))
    redo = ReDo(every=1, threshold=0.0)
    redo.on_train_start(ctx)
    model(x).square().mean().backward()
    ctx.optimizers["net"].step()
    redo.on_train_end(ctx)
    return writer


def weights(agent: SAC) -> dict[str, Tensor]:
    parts = {**{f"target {n}": t for n, t in agent.targets.items()}, **agent.networks}
    return {f"{name}.{key}": t.clone() for name, net in parts.items() for key, t in net.state_dict().items()}


def assert_sound(ctx: Context) -> None:
    """Parameters are finite, each trainable one is in exactly one optimizer group, and no other one has a state."""
    places: dict[int, int] = {}
    for optimizer in ctx.optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                places[id(parameter)] = places.get(id(parameter), 0) + 1
        assert all(id(parameter) in places for parameter in optimizer.state), "state of a parameter that is gone"
    for network in ctx.networks.values():
        for name, parameter in network.named_parameters():
            assert places.get(id(parameter), 0) == int(parameter.requires_grad), name
            assert parameter.isfinite().all(), name


def assert_moves(ctx: Context, update: Callable[[], Any]) -> None:
    trained = [(n, p, p.detach().clone()) for net in ctx.networks.values() for n, p in net.named_parameters()]
    update()
    for name, parameter, before in trained:
        assert torch.equal(parameter, before) != parameter.requires_grad, name


def assert_masked(method: NeuroplasticExpansion, ctx: Context) -> None:
    """Weights, targets and optimizer states are exactly 0 wherever a mask is False."""
    for name, masks in method._masks.items():
        for layer in method._layers[name]:
            weight, absent = layer.weight, ~masks[layer.weight]
            assert not weight[absent].any()
            for optimizer in ctx.optimizers.values():
                for value in optimizer.state.get(weight, {}).values():
                    assert not (isinstance(value, Tensor) and value.shape == weight.shape and value[absent].any())
            if name in ctx.targets:
                assert not dict(ctx.targets[name].named_modules())[layer.name].weight[absent].any()


def acted(name: str, method: Intervention, writer: Recorder) -> bool:
    tags = [tag for tag in writer.scalars if tag.startswith(f"interventions/{name}/")]
    logged = any(not tag.endswith(("/seconds", "/parameters_added")) for tag in tags)  # which are there in any case
    return any(method.counts.values()) if method.counts else logged


class Check(Callback):
    """Run something after every update."""

    def __init__(self, check: Callable[[Context], None]) -> None:
        self.check = check

    def on_update_end(self, ctx: Context, metrics: Any) -> None:
        self.check(ctx)


# -- every method ------------------------------------------------------------------------------------------------------


@pytest.mark.on_real_devices
@pytest.mark.parametrize(("name", "kind"), some(itertools.product(ON_SAC, OPTIMIZERS), share=6))
@pytest.mark.some(12)
def test_every_parameter_is_trained_after_a_method_has_acted(name: str, kind: str) -> None:
    method = INTERVENTIONS[name](**FREQUENT[name])
    agent, ctx, writer = run_sac([method], agent=small_sac(kind))
    assert acted(name, method, writer)
    assert_sound(ctx)
    assert_moves(ctx, lambda: agent.learn(agent.buffer.sample(64)))


@pytest.mark.on_real_devices
@pytest.mark.usefixtures("as_traced")
@pytest.mark.parametrize("name", [*some_compiled(FIRST, quick=[]), *some([(n,) for n in LATER], share=8)])
@pytest.mark.some(4)
def test_compiled_updates_end_where_eager_ones_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a method edits, masks, replaces or hooks, it does on compiled updates what it does on eager ones.

    What of them is eager is what its ``EAGER`` says: nothing but the first pass of each step, for most.
    """
    results, eagerly = [], list[str]()
    for owner, call in ((gradient, "gradient_step"), (gradient, "show"), (gradient.GradientStep, "evaluate")):
        real = getattr(owner, call)
        monkeypatch.setattr(owner, call, lambda *args, real=real: eagerly.append("") or real(*args))
    for compile in ("off", "on"):
        agent, method = small_sac(), INTERVENTIONS[name](**FREQUENT[name])
        agent.steps["critic"].compile = agent.steps["actor"].compile = compile
        eagerly.clear()
        torch.manual_seed(7)
        agent, ctx, writer = run_sac([method], agent=agent)
        assert acted(name, method, writer)
        assert_sound(ctx)
        results.append((weights(agent), method.counts, agent.steps["critic"]._graphs))
    (eager, counts, none), (compiled, other_counts, graphs) = results
    assert counts == other_counts
    assert not none
    assert graphs
    assert (len(eagerly) > 2) == bool(INTERVENTIONS[name].EAGER)
    for key, value in eager.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-2, atol=1e-3)


@pytest.mark.on_real_devices
@pytest.mark.parametrize("name", ON_SAC)
@pytest.mark.some(12)
def test_no_hook_is_left_and_training_may_go_on(name: str) -> None:
    method = INTERVENTIONS[name](**FREQUENT[name])
    agent, ctx, _ = run_sac([method], steps=40)
    modules = [m for net in [*agent.networks.values(), *agent.targets.values()] for m in net.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules)
    optimizers = agent.optimizers.values()
    assert not any(o._optimizer_step_post_hooks or o._optimizer_step_pre_hooks for o in optimizers)
    assert not agent.buffer.weights
    assert not ctx.on_edit
    train(Walk(), agent, 20, [method], context(agent))
    assert_sound(ctx)


NEEDS = {
    "swd": ({}, "SampleWeightDecay needs a replay buffer; ppo has none"),
    "least": ({}, "LearnToStop needs a value function of .observation, action.; ppo has none"),
    "ne": ({"review": True}, r"NeuroplasticExpansion\(review=True\) needs a replay buffer; ppo has none"),
}


@pytest.mark.parametrize("name", NEEDS)
def test_what_is_missing_is_said_before_the_first_step(name: str) -> None:
    settings, message = NEEDS[name]
    net = nn.Linear(2, 2)
    ctx = Context({"actor": net}, {"actor": optim.SGD(net.parameters(), 0.1)}, name="ppo")
    with pytest.raises(ValueError, match=message):
        INTERVENTIONS[name](**settings).on_train_start(ctx)


@pytest.mark.parametrize(
    "name", [n for n, kind in INTERVENTIONS.items() if {"networks", "optimizers"} <= {*kind.NEEDS}]
)
def test_networks_and_optimizers_are_needed(name: str) -> None:
    method = INTERVENTIONS[name](**FREQUENT[name])
    with pytest.raises(ValueError, match=r"needs networks; this run has none"):
        method.on_train_start(Context())
    with pytest.raises(ValueError, match="optimizers"):
        INTERVENTIONS[name](**{**FREQUENT[name], "networks": ()}).on_train_start(Context({"net": nn.Linear(2, 2)}))
    unknown = INTERVENTIONS[name](
        **{**FREQUENT[name], "networks": ("critic*",), "review": False}
        if name == "ne"
        else {**FREQUENT[name], "networks": ("critic*",)}
    )
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"finds no network critic\*; this run has net"):
        unknown.on_train_start(Context({"net": net}, {"net": optim.SGD(net.parameters(), 0.1)}))


# -- fields, presets, flags --------------------------------------------------------------------------------------------


def documented(kind: type) -> set[str]:
    """The names of a class and its bases that a docstring follows."""
    found = set()
    for base in kind.__mro__[:-1]:
        (tree,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(tree, ast.ClassDef)
        for one, two in itertools.pairwise(tree.body):
            if isinstance(one, ast.AnnAssign) and isinstance(two, ast.Expr) and isinstance(two.value, ast.Constant):
                found.add(one.target.id)  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("name", INTERVENTIONS)
@pytest.mark.some(8)
@pytest.mark.slow_off_the_cpu
def test_every_field_has_a_default_and_a_help_text(name: str) -> None:
    kind = INTERVENTIONS[name]
    kind()
    assert {f.name for f in fields(kind)} <= documented(kind)
    assert kind.__doc__
    assert name == kind.NAME


@pytest.mark.parametrize("name", [name for name, kind in INTERVENTIONS.items() if kind.PRESETS])
def test_presets_fill_what_is_none(name: str) -> None:
    kind = INTERVENTIONS[name]
    with pytest.raises(ValueError, match=f"{kind.__name__} has the presets .*; got 'x'"):
        kind(preset="x")
    for preset, values in kind.PRESETS.items():
        method = kind(preset=preset)
        assert {key: getattr(method, key) for key in values} == dict(values)
        known = {f.name: f.default for f in fields(kind)}
        assert all(known[key] is None for key in values), "a preset may only fill fields that are None"


TABLE: dict[tuple[str, str], tuple[Any, Any]] = {
    ("regrama", "score"): ("pre", "weight"),
    ("regrama", "outgoing"): ("zero", "keep"),
    ("regrama", "score_norms"): (True, True),
    ("regrama", "moments"): (True, False),
    ("regrama", "threshold"): (0.01, 0.0),
    ("regrama", "every"): (1000, 1000),
    ("regrama", "init"): ("own", "he_uniform"),
    ("redo", "threshold"): (0.025, 0.0),
    ("redo", "every"): (1000, 200_000),
    ("redo", "outgoing"): ("zero", "zero"),
    ("redo", "init"): ("own", "xavier_uniform"),
    ("redo", "adam_step"): ("keep", "keep"),
    ("ne", "prune"): ("dormant", "magnitude"),
    ("ne", "prune_ratio"): (0.5, 0.4),
    ("ne", "grow_rate"): (None, 0.008),
    ("ne", "dense_ends"): (True, False),
    ("ne", "initial_density"): (0.2, 0.2),
    ("ne", "final_density"): (0.75, 0.75),
    ("ne", "review_share"): (0.3, 0.3),
    ("ne", "awaken"): (0.4, 0.4),
    ("swd", "horizon"): (80_000, 80_000),
    ("swd", "floor"): (0.1, 0.1),
}
"""(method, field) -> what the paper says, what the authors' code does."""


@pytest.mark.parametrize(("name", "field"), TABLE)
def test_presets_are_those_of_paper_and_code(name: str, field: str) -> None:
    assert tuple(getattr(INTERVENTIONS[name](preset=p), field) for p in ("paper", "official")) == TABLE[name, field]


DRY = ("sac", "--env", "sanity/both-continuous", "--dry-run", "--hidden", "8", "8", "--batch-size", "8")


@pytest.mark.parametrize("name", INTERVENTIONS)
@pytest.mark.some(8)
@pytest.mark.slow_off_the_cpu
def test_a_bare_flag_switches_on_and_a_dotted_one_sets(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind, flag = INTERVENTIONS[name], f"--{name.replace('_', '-')}"
    option = [f"{flag}.preset", list(kind.PRESETS)[-1]] if kind.PRESETS else [f"{flag}.seed", "1"]
    assert main([*DRY, flag, *option]) == 0
    printed = capsys.readouterr().out
    assert f'"{name}": {{' in printed
    for key, value in kind.PRESETS[option[1]].items() if kind.PRESETS else ():
        assert f'"{key}": {str(value).lower() if isinstance(value, bool) else ""}' in printed
    with pytest.raises(ValueError, match=f"sets an option of {name}, which is off; switch it on with {flag}"):
        main([*DRY, *option])


@pytest.mark.slow_off_the_cpu
def test_without_a_flag_no_method_is_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DRY]) == 0
    assert '"interventions": {}' in capsys.readouterr().out


# -- pairs -------------------------------------------------------------------------------------------------------------


@pytest.mark.on_real_devices
@pytest.mark.parametrize("last", ["redo", "regrama", "reset", "shrink_perturb", "plasticity_injection", "soft"])
def test_masks_hold_whoever_is_called_first(last: str) -> None:
    soft = {"preset": "soft", "shrink": 0.9}
    other = INTERVENTIONS["shrink_perturb"](**soft) if last == "soft" else INTERVENTIONS[last](**FREQUENT[last])
    ne = NeuroplasticExpansion(**FREQUENT["ne"])
    run_sac([other, ne, Check(lambda ctx: assert_masked(ne, ctx))], steps=50)
    assert other.counts
    assert ne.counts


@pytest.mark.slow_off_the_cpu
def test_a_method_sees_the_network_as_an_injection_left_it() -> None:
    injection = INTERVENTIONS["plasticity_injection"](at=(10,), clock="updates")
    redo = ReDo(every=2, threshold=10.0, cap=0.5)
    measure = Measure(["dormancy"], every=1)
    agent = small_sac()
    nn.init.orthogonal_(agent.networks["critic_1"].q[2].weight)
    _, _, writer = run_sac([redo, measure, injection], steps=60, agent=agent)
    new = agent.networks["critic_1"].q[2].new
    assert {"q.0", "q.2.frozen.2", "q.2.new.2", "q.2.copy.2"} == set(measure.last["critic_1"].scores["dormancy"])
    late = [e for e in writer.named("redo") if e["network"] == "critic_1" and e["gradient_step"] > 12]
    assert late
    assert {layer for event in late for layer in event["neurons"]} == {"q.2.new.2"}
    reasons = {e["layer"]: e["reason"] for e in writer.named("redo_skipped") if e["network"] == "critic_1"}
    assert "frozen" in reasons["q.0"]  # its columns in the frozen head cannot be cut
    assert "frozen" in reasons["q.2.frozen.2"]
    assert "frozen" in reasons["q.2.copy.2"]
    # The new head's neurons are redrawn as those of the layer in whose place it is.
    laws = {name: redo.initialiser("critic_1", name, module) for name, module in (("q.2.new.2", new[0]), ("x", new[0]))}
    assert [law.weight_law.kind for law in laws.values()] == ["orthogonal", "uniform"]


@pytest.mark.slow_off_the_cpu
def test_an_injection_takes_its_head_out_of_the_expansion() -> None:
    ne = NeuroplasticExpansion(every=2, end=30, dense_ends=False)
    injection = INTERVENTIONS["plasticity_injection"](at=(10,), clock="updates")
    agent, ctx, writer = run_sac([ne, injection], steps=60)
    assert [layer.name for layer in ne._layers["critic_1"]] == ["q.0"]
    released = {e["network"]: e["layers"] for e in writer.named("ne_released")}
    assert released == {"critic_1": ["q.2", "q.4"], "critic_2": ["q.2", "q.4"]}
    change = writer.named("plasticity_injection")[0]["networks"]
    assert {name: entry["function_change"] for name, entry in change.items()} == {"critic_1": 0.0, "critic_2": 0.0}
    assert all(p.all() for p in agent.networks["critic_1"].q[2].new.parameters())  # dense
    assert_masked(ne, ctx)


@pytest.mark.slow_off_the_cpu
def test_a_reset_keeps_the_topology_and_redraws_the_weights() -> None:
    ne = NeuroplasticExpansion(every=10**6, end=10**6)
    reset = INTERVENTIONS["reset"](at=(20,), clock="updates")
    seen: list[Tensor] = []
    agent = small_sac()
    weight = agent.networks["critic_1"].q[2].weight
    run_sac([ne, reset, Check(lambda ctx: seen.append(weight.detach().clone()))], steps=60, agent=agent)
    before, after = seen[18], seen[19]  # the reset is listed before the check
    assert torch.equal(before != 0, after != 0)
    assert (before != after)[before != 0].all()


def learn(net: nn.Module, optimizer: optim.Optimizer, seed: int = 0) -> None:
    """One step of a plain loop."""
    x = models.normal(32, 4, seed=seed)
    optimizer.zero_grad()
    net(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["redo", "regrama", "soft"])
def test_masks_hold_against_a_method_that_joins_later(name: str) -> None:
    """Its hooks come after those of the masks, so it has to say that it edited."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = OPTIMIZERS["adam"](net.parameters())
    ctx, _ = plain_loop(net, optimizer)
    ne = NeuroplasticExpansion(every=2, end=100)
    ne.on_train_start(ctx)
    learn(net, optimizer)
    settings = {"preset": "soft", "shrink": 0.9} if name == "soft" else {"every": 1, "threshold": 10.0, "cap": 0.3}
    late = INTERVENTIONS["shrink_perturb" if name == "soft" else name](**settings)
    late.on_train_start(ctx)
    for _ in range(4):
        learn(net, optimizer)
        assert_masked(ne, ctx)
    assert late.counts["applications"]


class Overwrite(Scheduled):
    """A method of one's own: sets all weights to 1."""

    NAME, PRESETS = "overwrite", {}

    def apply(self, ctx: Context) -> None:
        with torch.no_grad():
            for parameter in ctx.networks["critic_1"].parameters():
                parameter.fill_(1.0)


def test_masks_hold_against_a_method_of_ones_own() -> None:
    ne = NeuroplasticExpansion(every=10**6, end=10**6)
    run_sac([ne, Overwrite(every=3, clock="updates"), Check(lambda ctx: assert_masked(ne, ctx))], steps=30)


def test_the_function_change_is_that_with_masks() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    ctx, writer = plain_loop(net, optimizer)
    x = models.normal(32, 4)
    seen: list[Tensor] = []
    NeuroplasticExpansion(every=10**6, end=10**6).on_train_start(ctx)
    optimizer.register_step_post_hook(lambda *_: seen.append(net(x).detach()))
    INTERVENTIONS["reset"](every=3).on_train_start(ctx)
    ReDo(every=2, threshold=10.0, cap=0.2).on_train_start(ctx)
    optimizer.register_step_post_hook(lambda *_: seen.append(net(x).detach()))
    for _ in range(3):
        learn(net, optimizer)
    for event, before, after in (
        (writer.named("redo")[0], *seen[2:4]),
        (writer.named("reset")[0]["networks"]["net"], *seen[4:6]),
    ):
        expected = float((after - before).double().norm() / before.double().norm())
        assert expected > 0.01
        assert event["function_change"] == pytest.approx(expected, rel=1e-5)


# -- how methods learn of each other's edits ---------------------------------------------------------------------------


def test_a_monitor_traces_again_when_modules_were_replaced() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    monitor, x = Monitor(net, ["dormancy"]), torch.randn(8, 4)
    with monitor:
        net(x)
        net[0] = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 6))  # while attached
        net(x)
    assert set(monitor.read().scores["dormancy"]) == {"0.0", "0.2"}
    assert monitor.num_passes == 1  # what was seen before belongs to another network
    net[0] = nn.Linear(4, 6)
    monitor.reset()
    with monitor:
        net(x)
    assert set(monitor.read().scores["dormancy"]) == {"0"}


def test_edits_are_announced() -> None:
    calls: list[str] = []
    ctx = Context(on_edit=[lambda: calls.append("a"), lambda: calls.append("b")])
    ctx.edited()
    assert calls == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        ({"at": 8}, r"at=\(8,\)"),
        ({"networks": "critic*"}, r"networks=\('critic\*',\)"),
        ({"every": "5"}, "every as a whole number"),
    ],
)
def test_one_value_where_several_belong_is_refused(given: dict[str, Any], needed: str) -> None:
    with pytest.raises(TypeError, match=needed):
        Reset(**{"every": 3, **given})
