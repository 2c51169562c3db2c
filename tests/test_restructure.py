"""Structure before state: one order in every start, and callbacks whose optimizer is replaced."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from structural import STRUCTURAL, Dropouts, LearnedSlopes, Swapped
from test_interventions import FREQUENT, ON_SAC, Walk, acted, run_sac, small_sac
from torch import Tensor, nn, optim

from plasticity import Callback, Context, Measure
from plasticity.agents.evaluate import evaluate
from plasticity.agents.train import context, train
from plasticity.callback import end, fire, rebuild, start
from plasticity.interventions import INTERVENTIONS
from plasticity.interventions.injection import Injected
from plasticity.structure.optimizers import all_parameters
from plasticity.testing import check_method
from plasticity.testing.runs import QUICK_RUNS, SHORT, attempt, check_run, command, registered, require_same

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of methods on runs this short


class Note(Callback):
    """Write down the start of a callback, and a state of its own."""

    def __init__(self, name: str, log: list[Any], fail: str = "") -> None:
        self.name, self.log, self.fail = name, log, fail

    def note(self, event: str, *details: Any) -> None:
        self.log.append((event, self.name, *details))
        if event == self.fail:
            raise ValueError("not here")

    def restructure(self, ctx: Context, state: Mapping[str, Any] | None) -> None:
        self.note("restructure", state)

    def on_train_start(self, ctx: Context) -> None:
        self.note("start")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.note("load", state)

    def state_dict(self) -> dict[str, Any]:
        return {"of": self.name}

    def forget(self, lost: Tensor) -> None:
        self.note("forget")

    def on_train_end(self, ctx: Context) -> None:
        self.note("end")


def test_a_resumed_run_starts_in_one_order() -> None:
    log: list[Any] = []

    def load() -> Tensor:
        log.append("load")
        return torch.tensor([False, True])

    start([Note("a", log), Note("b", log)], Context(), [{"x": 1}, None], load)
    assert log == [
        *[("restructure", "a", {"x": 1}), ("restructure", "b", None), "load"],
        *[("start", "a"), ("start", "b"), ("load", "a", {"x": 1}), ("forget", "a"), ("forget", "b")],
    ]


def test_training_that_goes_on_in_its_context_goes_on_from_the_states_of_its_callbacks() -> None:
    log: list[Any] = []
    ctx, callbacks = Context(), [Note("a", log)]
    start(callbacks, ctx)
    assert log == [("restructure", "a", None), ("start", "a")]
    log.clear()
    start([*callbacks, Note("b", log)], ctx)
    assert log == [("restructure", "b", None), ("start", "a"), ("start", "b"), ("load", "a", {"of": "a"})]


@pytest.mark.parametrize(("fail", "ended"), [("start", ["a"]), ("load", ["b", "a"]), ("restructure", [])])
def test_a_start_that_fails_ends_what_it_had_started(fail: str, ended: list[str]) -> None:
    log: list[Any] = []
    with pytest.raises(ValueError, match="not here") as error:
        start([Note("a", log), Note("b", log, fail=fail)], Context(), [{}, {}])
    assert [name for event, name, *_ in log if event == "end"] == ended
    assert "raised by Note" in str(error.value.__notes__)  # type: ignore[attr-defined]


def test_an_end_that_fails_ends_the_others() -> None:
    log: list[Any] = []
    callbacks = [Note("a", log), Note("b", log, fail="end")]
    with pytest.raises(ValueError, match="not here"):
        end(callbacks, Context())
    assert log == [("end", "b"), ("end", "a")]


# -- optimizers that are replaced --------------------------------------------------------------------------------------


class Swap(Callback):
    """Put another optimizer in the place of the critics', at an event."""

    def __init__(self, event: str) -> None:
        setattr(self, event, self.swap)

    def swap(self, ctx: Context, *args: Any) -> None:
        ctx.optimizers["critic"] = optim.SGD(all_parameters(ctx.optimizers["critic"]), 1e-3)


WATCHING = {"measure": lambda: Measure(every=2), **{n: lambda n=n: INTERVENTIONS[n](**FREQUENT[n]) for n in FREQUENT}}
NO_HOOK = {"swd", "least", "ere", "random_shift", "replay_ratio", "horizon"}  # which stand on the replay
NO_HOOK |= {"l2_init", "wasserstein_init", "parseval", "feature_norm", "pfo", "dr3", "infer"}  # terms of a step


@pytest.mark.parametrize("name", sorted(NO_HOOK & set(ON_SAC)))
def test_a_method_on_no_optimizer_acts_whatever_is_put_in_its_place(name: str) -> None:
    method = WATCHING[name]()
    _, _, writer = run_sac([method, Swap("on_update_end")])
    assert acted(name, method, writer)


@pytest.mark.parametrize("name", sorted(WATCHING.keys() - NO_HOOK))
@pytest.mark.parametrize("event", ["on_step_end", "on_update_end", "on_step"])
def test_a_callback_on_an_optimizer_that_was_replaced_does_not_fall_silent(name: str, event: str) -> None:
    watching = WATCHING[name]()
    if name not in ("measure", "redo", "regrama", "ne"):  # their clock is the first network's, the actor's
        watching.networks = ("critic*",)
    named = "Measure" if name == "measure" else name
    with pytest.raises(RuntimeError, match=rf"optimizer critic of sac was replaced.*{named}.*restructure"):
        run_sac([watching, Swap(event)])


def test_replacing_an_optimizer_where_callbacks_start_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"Swap replaced the optimizer critic in on_train_start.*restructure"):
        run_sac([Measure(), Swap("on_train_start")])


def test_adding_weights_where_callbacks_start_is_refused() -> None:
    """Such a run would train, and could never be loaded."""

    class LateSlopes(Callback):
        def on_train_start(self, ctx: Context) -> None:
            ctx.networks["actor"].add_module("slopes", nn.PReLU())

    with pytest.raises(RuntimeError, match=r"LateSlopes changed which weights the network actor has.*restructure"):
        run_sac([LateSlopes()])


def test_methods_act_on_an_optimizer_that_was_replaced_in_restructure() -> None:
    measure, redo = Measure(every=2), INTERVENTIONS["redo"](**FREQUENT["redo"])
    agent, ctx, _ = run_sac([measure, redo, Swapped()])
    assert isinstance(ctx.optimizers["critic"], optim.SGD)
    assert measure.last.keys() == agent.networks.keys()
    assert redo.counts["applications"] > 0


def test_a_loop_of_ones_own_is_told() -> None:
    net = nn.Linear(2, 2)
    ctx = Context({"net": net}, {"net": optim.SGD(net.parameters(), 0.1)})
    callbacks = [Measure(every=1)]
    start(callbacks, ctx)
    fire(callbacks, "on_update_start", ctx)
    ctx.optimizers["net"] = optim.Adam(net.parameters())
    with pytest.raises(RuntimeError, match=r"optimizer net of this run was replaced.*Measure"):
        fire(callbacks, "on_update_start", ctx)


def test_a_network_that_there_is_not_is_named() -> None:
    for find in (context(small_sac()).optimizer_of, context(small_sac()).step_of):
        with pytest.raises(ValueError, match=r"sac has no network 'q'; there are actor, critic_1, critic_2"):
            find("q")


def test_an_optimizer_nobody_hooks_may_be_replaced() -> None:
    run_sac([Swap("on_update_end")])


@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW, optim.RMSprop])
def test_the_state_of_another_kind_of_optimizer_is_refused_when_it_is_loaded(kind: Any) -> None:
    agent, other = small_sac(), small_sac()
    train(Walk(), agent, 30, [], context(agent))
    other.optimizers["critic"] = kind(
        [*other.networks["critic_1"].parameters(), *other.networks["critic_2"].parameters()]
    )
    before = other.networks["critic_1"].state_dict()
    with pytest.raises(
        ValueError, match=rf"optimizer critic was saved as Adam, and is {kind.__name__} now.*restructure"
    ):
        other.load_state_dict(agent.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in other.networks["critic_1"].state_dict().items())


class Narrow(Callback):
    """Replace the last layer of a network, or of its target, by one of another shape."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def restructure(self, ctx: Context, state: Mapping[str, Any] | None) -> None:
        getattr(ctx, self.kind)["critic_1"].q = nn.Linear(3, 1)


@pytest.mark.parametrize("kind", ["networks", "targets"])
def test_a_network_and_its_target_are_restructured_alike(kind: str) -> None:
    agent = small_sac()
    with pytest.raises(ValueError, match=r"Narrow restructured the network critic_1 or its target, not both alike"):
        train(Walk(), agent, 30, [Narrow(kind)], context(agent))


def test_evaluating_leaves_networks_as_they_are() -> None:
    agent = small_sac()
    agent.networks["actor"] = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), agent.networks["actor"])
    before = {name: value.clone() for name, value in agent.networks["actor"].state_dict().items()}
    random = torch.get_rng_state()
    first, again = (evaluate(agent, Walk(), 2) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), random)
    require_same(dict(agent.networks["actor"].state_dict()), before, "actor")
    assert all(module.training for module in agent.networks["actor"].modules())


# -- structural methods, by the command line ---------------------------------------------------------------------------


SLOW = [pytest.param(agent, marks=pytest.mark.slow) for agent in ("sac", "td3")]


@pytest.mark.parametrize("agent", ["dqn", "ppo", *SLOW])
@pytest.mark.parametrize("name", STRUCTURAL)
@pytest.mark.some(4)
def test_a_structural_method_from_outside_is_resumed_evaluated_and_probed(name: str, agent: str) -> None:
    check_method(STRUCTURAL[name], {}, agent=agent)


def test_a_network_with_dropout_is_resumed_evaluated_and_probed() -> None:
    check_method(Dropouts, {}, agent="ppo")


def test_structural_methods_compose(tmp_path: Path) -> None:
    """One changes modules, one optimizers, one both in the middle of training."""
    injection = ["--plasticity-injection", "--plasticity-injection.at", "70"]
    with registered(INTERVENTIONS, "learned_slopes", LearnedSlopes), registered(INTERVENTIONS, "swapped", Swapped):
        check_run("sac", [*QUICK_RUNS["sac"], "--learned-slopes", "--swapped", *injection], tmp_path)


def test_a_run_whose_method_is_not_known_names_it(tmp_path: Path) -> None:
    with registered(INTERVENTIONS, "learned_slopes", LearnedSlopes):
        options = [*QUICK_RUNS["sac"], "--learned-slopes", *SHORT, "--out", str(tmp_path), "--name", "run"]
        command("train", "sac", *options)
    for words in (["eval"], ["probe"]):
        code, _, errors = attempt(*words, tmp_path / "run")
        assert code == 1
        assert "the method 'learned_slopes', which is not known here; import the module" in errors


def test_an_injected_model_is_rebuilt_from_its_own_state() -> None:
    method = INTERVENTIONS["plasticity_injection"](at=(15,), clock="updates")
    agent, _, _ = run_sac([method])
    twin = small_sac()
    rebuild([(INTERVENTIONS["plasticity_injection"](), method.state_dict())], context(twin))
    twin.load_state_dict(agent.state_dict())
    assert any(isinstance(module, Injected) for module in twin.networks["critic_1"].modules())
    obs = torch.randn(5, 3)
    assert torch.equal(agent.act(obs, explore=False), twin.act(obs, explore=False))
