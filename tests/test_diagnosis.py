"""Diagnosis: golden numbers, equality with loops written by hand, no trace in what is examined, and planted causes."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from models import build
from planted_causes import (
    CAUSES,
    broken_loss,
    killed_neurons,
    mlp,
    plant,
    rate_of_zero,
    saturated_bounded_policy,
    saturated_policy,
    squared_error,
    stale_moments,
    trained,
    young,
)
from torch import nn

import plasticity
from plasticity.callback import Context, start
from plasticity.diagnosis import FitCurve, fit
from plasticity.diagnosis.adaptation import rehearse
from plasticity.diagnosis.bounds import before_the_bound
from plasticity.diagnosis.comparison import Comparison, Size, compare
from plasticity.diagnosis.examine import Examination, Tried, examine
from plasticity.diagnosis.fresh import from_defaults
from plasticity.diagnosis.intervals import Estimate, of_mean, of_next, of_next_amount, of_ratio, t_quantile
from plasticity.diagnosis.remedies import remedies_of
from plasticity.diagnosis.surroundings import in_fresh_surroundings
from plasticity.diagnosis.symptoms import Symptoms
from plasticity.diagnosis.tables import STUDY, STUDY_AHEAD
from plasticity.diagnosis.targets import POLICIES, bandit_lesson, residual_lesson, teach
from plasticity.diagnosis.trainee import Patient, Surroundings, Trainee, first_output
from plasticity.diagnosis.trials import Budget, Trials, settle_
from plasticity.diagnosis.verdict import _cause, explaining, judge
from plasticity.meters import FitProbe
from plasticity.testing import check_meter
from plasticity.testing.runs import require_same

# -- numbers by hand ---------------------------------------------------------------------------------------------------


def test_golden_curve() -> None:
    curve = FitCurve((1.0, 0.5, 0.25), (0, 10, 20))
    assert curve.area == 0.5625
    assert (curve.first, curve.final) == (1.0, pytest.approx(1.75 / 3))
    assert (curve.steps_to(0.5), curve.steps_to(0.3), curve.steps_to(0.1)) == (10, 20, math.inf)
    assert curve.learned == pytest.approx(1 - 0.5625)
    assert FitCurve((1.0, 3.0, 0.0)).learned == pytest.approx(0.25)  # 3 counts as 1: areas 1 and 1/2, of 2
    assert FitCurve((1.0, math.inf, math.inf)).learned == 0


@pytest.mark.parametrize("num_batches", range(1, 9))
def test_a_fall_counts_every_batch_as_often_at_its_beginning_as_at_its_end(num_batches: int) -> None:
    losses = [2.0**i for i in range(num_batches)]
    still = FitCurve(tuple(losses[step % num_batches] for step in range(41)))
    assert still.fall(num_batches) == pytest.approx(0)
    assert FitCurve((3.0, 2.0, 1.0)).fall(4) == 2.0  # too short for two rounds


def test_steps_are_those_to_the_higher_of_the_final_losses() -> None:
    aged, fresh = FitCurve((1.0, 0.9, 0.8, 0.7, 0.6, 0.5)), FitCurve((1.0, 0.6, 0.3, 0.2, 0.1, 0.0))
    found = Comparison("residual", None, (aged,), ((fresh,), (fresh,)))
    assert max(aged.final, fresh.final) == pytest.approx(0.7)
    assert found.steps == [(3.0, 1.0)]
    assert found.slowdown.value == pytest.approx(3.0)


def test_intervals_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [0.31, 0.27, 0.36, 0.22, 0.3]
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (of_mean(values).low, of_mean(values).high) == pytest.approx(expected, rel=1e-3)
    assert [t_quantile(n) for n in (1, 4, 30)] == pytest.approx(stats.t.ppf(0.975, [1, 4, 30]), rel=1e-3)


def test_golden_intervals() -> None:
    assert of_mean([1.0, 3.0]) == pytest.approx((2.0, 2 - 12.706, 2 + 12.706))
    assert of_next([1.0, 3.0]).high == pytest.approx(2 + 12.706 * 3**0.5)  # s = sqrt(2), times sqrt(1 + 1/2)
    assert of_ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == pytest.approx((0.5, 0.5, 0.5))
    assert math.isnan(of_ratio([1.0], [0.0]).value)


def test_prediction_intervals_cover_the_next_draw() -> None:
    generator = np.random.default_rng(0)
    inside = [low <= x[6] <= high for x in generator.normal(size=(4000, 7)) for _, low, high in [of_next(list(x[:6]))]]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.01)


# -- the fit probe -----------------------------------------------------------------------------------------------------


def patient(network: str = "mlp", optimizer: type[torch.optim.Optimizer] = torch.optim.Adam, num: int = 3) -> Patient:
    """Return an untrained patient from the zoo of models, with ``num`` batches."""
    model, inputs = build(network)
    batches = [tuple(x + 0.01 * i if x.is_floating_point() else x for x in inputs) for i in range(num)]
    forward = lambda m, b: first_output(m, b) if len(b) == 1 else m(*b)  # noqa: E731
    return Patient(
        "net", model, optimizer(model.parameters(), lr=1e-2), batches, forward, lambda _: build(network, 1)[0]
    )


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("network", ["mlp", "batchnorm conv", "transformer"])
def test_a_fit_is_a_plain_loop(network: str, optimizer: type[torch.optim.Optimizer]) -> None:
    one = patient(network, optimizer)
    signals = teach(one, 5)
    trainee = one.aged()
    trainee.model.eval()
    lesson = residual_lesson(trainee.model, one.forward, one.batches, signals)
    curve = fit(trainee.model, trainee.optimizer, lesson.items, lesson.loss, 7)

    by_hand = copy.deepcopy(one.model).eval()
    with torch.no_grad():
        targets = [one.forward(by_hand, batch) + s for batch, s in zip(one.batches, signals, strict=True)]
    own, losses = optimizer(by_hand.parameters(), lr=1e-2), []
    for step in range(8):
        batch, target, signal = one.batches[step % 3], targets[step % 3], signals[step % 3]
        loss = torch.mean((one.forward(by_hand, batch) - target) ** 2) / torch.mean(signal**2)
        losses.append(loss.item())
        own.zero_grad()
        loss.backward()
        own.step()
    assert curve.losses == pytest.approx(losses, abs=1e-6, rel=1e-5)


def test_lbfgs_learns_and_its_attributes_are_copied() -> None:
    one = patient(optimizer=torch.optim.LBFGS)
    trainee = one.aged()
    lesson = residual_lesson(trainee.model, one.forward, one.batches[:1], teach(one, 5)[:1])
    before = copy.deepcopy(one.model.state_dict())
    for group in trainee.optimizer.param_groups:
        group["lr"] = 1e-3
    curve = fit(trainee.model, trainee.optimizer, lesson.items, lesson.loss, 5)
    assert curve.losses[0] == 1
    assert curve.losses[-1] != 1
    require_same(dict(one.model.state_dict()), dict(before), "the network whose copy learned")


def test_signals_are_standardised_outputs_of_a_fresh_network() -> None:
    one = patient()
    signals = torch.cat(teach(one, 5))
    assert signals.mean(0).abs().max() < 1e-5
    assert signals.std(0, correction=0) == pytest.approx(1.0, abs=1e-4)
    with torch.no_grad():
        outputs = torch.cat([build("mlp", 1)[0](batch[0]) for batch in one.batches])
    expected = (outputs - outputs.mean(0)) / outputs.std(0, correction=0)
    assert torch.allclose(signals, expected, atol=1e-4)


def test_a_constant_teacher_gives_random_labels() -> None:
    one = patient()
    zero = build("mlp")[0]
    nn.init.zeros_(zero[-1].weight)
    one.fresh = lambda _: zero
    signals = torch.cat(teach(one, 0))
    assert 0.5 < signals.std() < 1.5
    assert len(signals.unique(dim=0)) == len(signals)


def test_golden_regrets() -> None:
    reward = torch.tensor([[1.0, -1.0]])
    assert float(POLICIES["softmax"](torch.zeros(1, 2), reward)) == 1
    assert float(POLICIES["softmax"](torch.tensor([[100.0, 0.0]]), reward)) == pytest.approx(0)
    assert float(POLICIES["softmax"](torch.tensor([[0.0, 100.0]]), reward)) == pytest.approx(2)
    assert float(POLICIES["bounded"](torch.tensor([[1.0, -1.0]]), reward)) == 0
    assert float(POLICIES["tanh"](torch.zeros(1, 2), reward)) == 1
    gaussian = torch.tensor([[100.0, -100.0, 7.0, 7.0]])  # the standard deviations count for nothing
    assert float(POLICIES["tanh_gaussian"](gaussian, torch.tensor([[1.0, -1.0, 5.0, 5.0]]))) == pytest.approx(0)


def test_a_saturated_policy_learns_no_rewards_but_a_teacher() -> None:
    one = patient()
    with torch.no_grad():
        one.model[-1].bias[0] = 50.0
    for name, most in (("bandit", 0.05), ("residual", 1.0)):
        trainee = one.aged()
        signals = teach(one, 0)
        made = (bandit_lesson("softmax", one.forward, one.batches, signals) if name == "bandit"
                else residual_lesson(trainee.model, one.forward, one.batches, signals))  # fmt: skip
        learned = fit(trainee.model, trainee.optimizer, made.items, made.loss, 60).learned
        assert learned <= most
        assert name == "bandit" or learned > 0.2


# -- no trace ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow_off_the_cpu
def test_nothing_changes(everywhere: torch.device) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters())
    batches = [(torch.randn(16, 4), torch.randn(16, 2)) for _ in range(2)]
    session = plasticity.watch(model, optimizer, every=1, log=None)
    squared_error(model, batches[0]).backward()
    optimizer.step()
    model[0].weight.register_hook(lambda gradient: gradient)

    def state() -> dict:
        return {
            "model": copy.deepcopy(dict(model.state_dict())),
            "optimizer": copy.deepcopy(optimizer.state_dict()),
            "gradients": [p.grad.clone() for p in model.parameters()],
            "modes": [m.training for m in model.modules()],
            "random": [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()],
        }

    before = state()
    plasticity.diagnose(model, optimizer, batches, squared_error, steps=3, teachers=2)
    require_same(state(), before, "the state after a diagnosis")
    session.close()


@pytest.mark.slow_off_the_cpu
def test_a_bounded_policy_and_the_meter_on_every_device(everywhere: torch.device) -> None:
    torch.manual_seed(0)
    build = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.Tanh())  # noqa: E731
    net, states = build(), torch.randn(32, 4)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    batches = [(states[:16], torch.randn(16, 2)), (states[16:], torch.randn(16, 2))]
    squared_error(net, batches[0]).backward()
    optimizer.step()
    how = {"fresh": build, "policy": "bounded", "steps": 3, "teachers": 2, "budget": 600}
    found = plasticity.diagnose(net, optimizer, batches, squared_error, **how)
    assert found.examination.complete
    peek = lambda num, generator: states[torch.randint(32, (num,), generator=generator, device="cpu")]  # noqa: E731
    meter = FitProbe(strict=True, steps=2)
    ctx = Context({"q": net}, {"q": optimizer}, forward={"q": lambda m, b: m(b)}, peek=peek)
    start([meter], ctx)
    assert meter.measure(ctx)["q"]["fit_fresh"].isfinite()


def test_copies_share_nothing_with_the_network() -> None:
    one = patient()
    trainee = one.aged()
    assert not {id(p) for p in trainee.model.parameters()} & {id(p) for p in one.model.parameters()}
    held = {id(p) for group in trainee.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trainee.model.parameters()}


# -- bounded outputs ---------------------------------------------------------------------------------------------------


class Skip(nn.Module):
    """A perceptron whose inputs are added to its outputs, at a bound."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, 3)."""
        return torch.tanh(self.net(x) + x)


def ending_in(*last: nn.Module) -> Patient:
    """Return a patient with these modules behind its last layer."""
    torch.manual_seed(0)
    model = Skip() if not last else nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3), *last)
    batches = [torch.randn(5, 3) for _ in range(2)]
    return Patient("net", model, torch.optim.Adam(model.parameters()), batches, first_output, from_defaults(model))


@pytest.mark.parametrize(
    ("last", "bounded"),
    [
        (nn.Tanh(), True),
        (nn.Sigmoid(), True),
        (nn.Hardtanh(-2, 2), True),
        (nn.Softsign(), True),
        (nn.Identity(), False),
        (nn.ReLU(), False),
        (nn.Softmax(-1), False),
        (nn.LayerNorm(3), False),
        (None, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_lessons_are_put_before_a_last_function_that_bounds_the_outputs(last: nn.Module | None, bounded: bool) -> None:
    one = ending_in(*([] if last is None else [last]))
    forward = before_the_bound(one)
    assert (forward is not one.forward) == bounded
    if bounded:
        with torch.no_grad():
            assert torch.equal(forward(one.model, one.batches[0]), one.model[:3](one.batches[0]))
        assert not one.model[2]._forward_hooks


def test_settling_moves_the_optimizer_and_not_the_weights() -> None:
    one = patient()
    trainee = one.aged()
    trainee.settling = 3
    signals = teach(one, 0)
    made = residual_lesson(trainee.model, one.forward, one.batches[:1], signals[:1])
    settle_(trainee, made, 2.0)
    require_same(dict(trainee.model.state_dict()), dict(one.model.state_dict()), "the weights of a settled copy")
    assert trainee.optimizer.param_groups[0]["lr"] == 1e-2
    weight = next(iter(one.model.parameters()))
    (gradient,) = torch.autograd.grad(2 * made.loss(one.model, made.items[0]), weight)
    kept = trainee.optimizer.state[next(iter(trainee.model.parameters()))]
    assert torch.allclose(kept["exp_avg"], gradient * (1 - 0.9**3), atol=1e-7)


def test_the_same_seed_gives_the_same_curves() -> None:
    curves = []
    for _ in range(2):
        torch.manual_seed(torch.seed() % 2**31)  # the global generator does not matter
        trials = Trials(patient(), 5, Budget())
        curves.append([trials.curve("residual", who, t) for who in ("aged", "fresh 0") for t in (0, 1)])
    assert curves[0] == curves[1]


def test_thawing_and_rates() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    net[0].requires_grad_(False)
    trainee = Trainee.of(net, torch.optim.SGD(net[1].parameters(), lr=0.1))
    assert trainee.frozen() == ["0.weight", "0.bias"]
    trainee.thaw_()
    assert trainee.frozen() == []
    trainee.set_rate_(0.01)
    assert [group["lr"] for group in trainee.optimizer.param_groups] == pytest.approx([0.01, 0.01])


# -- surroundings ------------------------------------------------------------------------------------------------------


def mute_on_old_data() -> Patient:
    """Return a network with positive weights: it is silent on the negative inputs of its memory, not on new ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.zero_()
    inputs = [torch.rand(32, 4) for _ in range(3)]
    draw = lambda sign: [(sign * x,) for x in inputs]  # noqa: E731

    def fresh(generator: torch.Generator) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(generator.initial_seed())
            return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))

    old = Patient("net", model, torch.optim.Adam(model.parameters(), 1e-2), draw(-1), lambda m, b: m(b[0]), fresh)
    old.surroundings = {
        "replay": Surroundings(lambda: replace(old, batches=draw(1)), ("residual",)),
        "target network": Surroundings(lambda: old, ("own",)),
    }
    return old


def test_what_is_due_to_the_data_closes_with_fresh_data(tmp_path: Path) -> None:
    patient = mute_on_old_data()
    store = tmp_path / "net.json"
    found = judge(examine(Trials(patient, 10, Budget(), store), Size(teachers=2, fresh=4), remedies=False))
    replay = found.examination.parts[0]
    assert (replay.name, replay.suffices) == ("replay", True)
    assert replay.closes.value > 0.9
    assert found.cause == "replay"
    assert "the replayed data, not the network" in found.findings[0].sentence
    assert any("target network: plays no part in the lesson residual" in note for note in found.examination.remarks)
    again = Trials(patient, 10, Budget(seconds=0), store)  # nothing is left to try
    share, suffices = in_fresh_surroundings(again, found.examination.main, "replay")
    assert (share, suffices) == (replay.closes, True)


def test_the_share_is_that_of_gaps_relative_to_what_fresh_networks_learn() -> None:
    trials = Trials(mute_on_old_data(), 5, Budget())
    before = compare(trials, "residual", Size(teachers=3, fresh=4))
    there = Trials(trials.patient.surroundings["replay"].made(), 5, Budget())
    found, share = [], in_fresh_surroundings(trials, before, "replay")[0]
    for one in (before, compare(there, "residual", Size(teachers=3, fresh=4))):
        outcomes = np.array([[curve.learned for curve in curves] for curves in one.fresh])
        aged = np.array([curve.learned for curve in one.aged])
        found.append((outcomes.mean(0) - aged) / outcomes.mean())
    assert share.value == pytest.approx((found[0] - found[1]).sum() / found[0].sum())


# -- the meter ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "agent", ["sac", pytest.param("ppo", marks=pytest.mark.slow), pytest.param("dqn", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_fit_probe_is_a_meter(agent: str) -> None:
    check_meter(FitProbe, {"steps": 3, "states": 8, "batches": 2}, agent)


def test_fit_probe_sees_dead_neurons() -> None:
    torch.manual_seed(0)
    net, states = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2)), torch.randn(64, 3)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    peek = lambda num, generator: states[torch.randint(64, (num,), generator=generator)]  # noqa: E731
    ctx = Context({"q": net}, {"q": optimizer}, forward={"q": lambda m, b: m(b)}, peek=peek)
    meter = FitProbe(strict=True)
    start([meter], ctx)
    before = meter.measure(ctx)["q"]["fit_gap"]
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(-1)
    after = meter.measure(ctx)["q"]
    assert abs(before) < 0.2
    assert after["fit_gap"] > 0.2
    assert after["fit_fresh"] - after["fit_aged"] == pytest.approx(float(after["fit_gap"]))


# -- verdicts ----------------------------------------------------------------------------------------------------------


def named(cause: object, network: str, seed: int, **more: int) -> str:
    """Return the cause that is named first."""
    p = plant(cause, network, seed)  # type: ignore[arg-type]
    how = {**p.options, **more, "remedies": False, "budget": 600}
    return plasticity.diagnose(p.model, p.optimizer, p.batches, p.loss, **how).cause


FEW = [
    (broken_loss, "residual", 10, 2),
    (saturated_policy, "mlp", 40, 4),
    (saturated_bounded_policy, "mlp", 20, 2),
    (young, "mlp", 20, 2),
    (rate_of_zero, "conv", 5, 2),
    (stale_moments, "mlp", 20, 2),
]


@pytest.mark.parametrize(("cause", "network", "steps", "teachers"), FEW, ids=[cause.__name__ for cause, *_ in FEW])
@pytest.mark.some(2)
def test_some_planted_causes_are_named_first(cause: object, network: str, steps: int, teachers: int) -> None:
    assert named(cause, network, 0, teachers=teachers, steps=steps) == CAUSES[cause]  # type: ignore[index]


def test_an_untrained_model_is_healthy_whatever_it_is_wrapped_in() -> None:
    torch.manual_seed(0)
    spectral = lambda: nn.Sequential(  # noqa: E731
        *(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2))
    )
    older = lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2))  # noqa: E731
    plain = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))  # noqa: E731
    how = {"steps": 10, "teachers": 2, "remedies": False, "budget": 600}
    for fresh, is_mixed in ((spectral, False), (older, False), (plain, True)):
        model, batches = fresh(), [torch.randn(16, 4) for _ in range(2)]
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(10):
            model(batches[0])  # the older one iterates from random vectors
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            found = plasticity.diagnose(model, optimizer, batches, fresh=fresh, **how)
            assert torch.is_autocast_cache_enabled()
        assert found.cause == "nothing is wrong", found
        assert found.examination.residual.learned.value > 0.1


def test_a_loss_among_the_outputs_is_no_output() -> None:
    model = lambda x: {"loss": x.sum(), "logits": x}  # noqa: E731
    x = torch.randn(3, 2)
    assert first_output(model, x) is x
    with pytest.raises(ValueError, match="no floating-point tensor with a batch"):
        first_output(lambda x: x.sum(), x)  # type: ignore[arg-type]
    with pytest.raises(TypeError) as raised:
        first_output(nn.Linear(4, 2), {"x": x})
    assert "pass forward=" in "".join(raised.value.__notes__)
    one = patient()
    with pytest.raises(ValueError, match="got a single number, such as a loss"):
        teach(replace(one, forward=lambda m, b: first_output(m, b).sum()), 0)


def test_data_that_are_no_numbers_are_said() -> None:
    net = mlp()
    batches = [torch.full((4, 6), math.nan)] * 2
    found = plasticity.diagnose(net, torch.optim.Adam(net.parameters()), batches, fresh=mlp, steps=3, teachers=2)
    assert "outputs of fresh networks on these data are no finite numbers" in str(found)


def test_numbers_of_the_network_and_its_optimizer_that_are_not_finite_are_named() -> None:
    net, batches = mlp(), [torch.randn(8, 6)] * 2
    optimizer = torch.optim.Adam(net.parameters())
    net(batches[0]).square().mean().backward()
    optimizer.step()
    whole = plasticity.diagnose(net, optimizer, batches, fresh=mlp, steps=3, teachers=2, remedies=False)
    assert "not finite" not in str(whole)
    (first, weight), *_, (last, bias) = net.named_parameters()
    weight.data[0, 0], optimizer.state[bias]["exp_avg_sq"][0] = math.nan, math.inf
    found = plasticity.diagnose(net, optimizer, batches, fresh=mlp, steps=3, teachers=2, remedies=False)
    assert f"not finite: {first}, the optimizer's exp_avg_sq of {last}" in str(found)


def test_a_rank_that_is_a_little_lower_is_no_collapse() -> None:
    usual = Estimate(37.1, 36.5, 37.7)
    found = Examination(patient(), 3)
    part = Tried("everything", "weights", Estimate(1.0, 1.0, 1.0), True)
    for rank, cause in ((36.4, "weights"), (18.6, "weights"), (18.5, "collapsed features")):
        found.symptoms = Symptoms({"effective_rank": {"0": rank}}, {"effective_rank": {"0": usual}})
        assert _cause(found, part)[0] == cause


@pytest.mark.slow
def test_a_young_residual_network_is_compared_with_fresh_ones_whose_optimizers_settled() -> None:
    p = plant(young, "residual", 0)
    found = plasticity.diagnose(p.model, p.optimizer, p.batches, p.loss, remedies=False, budget=600, **p.options)
    assert found.cause == CAUSES[young]
    assert found.examination.settled == ["residual"]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "conv", "residual"])
@pytest.mark.parametrize("seed", range(3))
def test_planted_causes_are_named_first(network: str, seed: int) -> None:
    found = {cause.__name__: named(cause, network, seed) for cause in CAUSES}
    wrong = {name: cause for name, cause in found.items() if cause != {c.__name__: w for c, w in CAUSES.items()}[name]}
    assert len(wrong) <= 1, wrong


def test_dead_neurons_are_found_and_recycling_is_advised() -> None:
    p = plant(killed_neurons, "mlp", 0)
    found = plasticity.diagnose(p.model, p.optimizer, p.batches, p.loss, fresh=mlp, steps=20, teachers=2, budget=600)
    assert found.cause == "dead neurons"
    assert found.advice in ("--redo", "--regrama", "--reset")
    text = str(found)
    assert "dead neurons" in text
    assert found.advice in text


def test_methods_are_ordered_by_the_loss_on_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = partial(remedies_of, names=("optimizer_reset", "reset", "redo", "l2_init"))
    monkeypatch.setattr(plasticity.diagnosis.examine, "remedies_of", some)
    p, told = trained("mlp", 0), []
    build = lambda x: (x, -x.sum(1, keepdim=True).expand(-1, 3))  # noqa: E731
    ahead = [build(torch.randn(32, 6)) for _ in range(6)]
    how = {"fresh": mlp, "steps": 3, "teachers": 2, "budget": 600, "store": tmp_path / "d.json", "tell": told.append}
    found = plasticity.diagnose(p.model, p.optimizer, p.batches, p.loss, ahead=ahead, **how)
    shares = {one.name: one.closes for one in found.examination.remedies}
    assert list(shares) == sorted(shares, key=lambda name: -shares[name].value)
    assert "lower loss on what comes next" in str(found)
    assert STUDY_AHEAD in str(found)

    def area(change: bool) -> float:
        trainee = Trainee.of(p.model, p.optimizer)
        if change:
            trainee.forget_()
        losses = []
        for batch in [*ahead, ahead[0]]:
            loss = p.loss(trainee.model, batch)
            losses.append(loss.item())
            trainee.optimizer.zero_grad()
            loss.backward()
            trainee.optimizer.step()
        return (sum(losses) - (losses[0] + losses[-1]) / 2) / 6

    # the second draw begins with the second batch; the first alone is close to the mean of the two
    assert shares["optimizer_reset"].value == pytest.approx(1 - area(True) / area(False), abs=0.02)
    made = len(told)
    again = plasticity.diagnose(p.model, p.optimizer, p.batches, p.loss, ahead=ahead, **how)
    assert (len(told), str(again)) == (made, str(found))
    with pytest.raises(ValueError, match="ahead needs at least 2 batches and the loss of training; got 6 and no loss"):
        plasticity.diagnose(p.model, p.optimizer, p.batches, ahead=ahead, fresh=mlp)


def test_a_budget_that_is_too_small_is_said(tmp_path) -> None:
    p = trained("mlp", 0)
    cut = plasticity.diagnose(p.model, p.optimizer, p.batches, p.loss, fresh=mlp, budget=0.0, store=tmp_path / "d.json")
    assert cut.cause == "cannot tell"
    assert "the budget ended before the 28 fits of the first lesson were made; give more" in str(cut)


def test_a_budget_that_would_do_for_a_first_answer_is_told() -> None:
    budget, told = Budget(600.0), []

    def tell(what: str) -> None:
        told.append(what)
        budget.seconds = 600.0 if len(told) < 3 else 0.0

    budget.tell = tell
    trials = Trials(patient(), 3, budget)
    cut = str(judge(examine(trials, Size(teachers=2))))
    each = sum(trials.took[1:]) / 2  # without the first, which is slow
    assert len(told) == len(trials.took) == 3
    assert "the budget ended before the 14 fits of the first lesson were made" in cut
    assert f"one takes {each:.2g} s, so that a first answer needs some {math.ceil(14 * each)} s" in cut


def test_a_diagnosis_goes_on_from_its_file(tmp_path) -> None:
    p, told = trained("mlp", 0), []
    how = {"fresh": mlp, "steps": 5, "teachers": 2, "store": tmp_path / "d.json", "tell": told.append}
    first = plasticity.diagnose(p.model, p.optimizer, p.batches, p.loss, **how)
    made = len(told)
    again = plasticity.diagnose(p.model, p.optimizer, p.batches, p.loss, **how)
    assert made > 0
    assert len(told) == made  # no trial is made twice
    assert str(again) == str(first)  # with what the methods changed and cost
    for group in p.optimizer.param_groups:
        group["lr"] *= 2
    plasticity.diagnose(p.model, p.optimizer, p.batches, p.loss, **how)
    assert len(told) > made  # what was learned at another rate is no answer


@pytest.mark.parametrize("content", ["{broken", "[]", '{"what": 1}'])
def test_a_broken_file_is_begun_anew(tmp_path: Path, content: str) -> None:
    store = tmp_path / "net.json"
    store.write_text(content)
    trials = Trials(patient(), 2, Budget(), store)
    trials.curve("residual", "aged", 0)
    assert "curves" in json.loads(store.read_text())


def test_what_cannot_be_made_fresh_is_said() -> None:
    p = plant(killed_neurons, "mlp", 0)
    lbfgs = torch.optim.LBFGS(p.model.parameters(), lr=0.1, max_iter=2)
    lbfgs.step(lambda: backward(squared_error(p.model, p.batches[0])))
    how = {"steps": 3, "teachers": 2, "remedies": False, "budget": 600}
    found = plasticity.diagnose(p.model, lbfgs, p.batches, fresh=mlp, **how)
    assert found.examination.main is None or "dead neurons: not made fresh, cannot recycle: LBFGS" in str(found)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Scaled(8), nn.Linear(8, 3))
    found = plasticity.diagnose(model, torch.optim.Adam(model.parameters()), p.batches, **how)
    assert "not drawn anew, for want of reset_parameters or an inverse: 2" in str(found)
    assert found.cause != "nothing is wrong" or "as a fresh network that shares its 2 would" in str(found)


@pytest.mark.parametrize("undrawn", [[], ["2"]])
def test_a_healthy_network_is_told_beside_which_fresh_ones(undrawn: list[str]) -> None:
    curves = (FitCurve((1.0, 0.2)), FitCurve((1.0, 0.4)))
    found = Examination(patient(), 2, Comparison("residual", None, curves, (curves, curves)), undrawn=undrawn)
    told = "as a fresh network that shares its 2 would" if undrawn else "as a fresh network would"
    assert judge(found).findings[0].sentence.endswith(told)


def test_a_gap_that_differs_between_teachers_is_told_as_one_that_may_be_chance() -> None:
    fresh = (FitCurve((1.0, 0.2)), FitCurve((1.0, 0.2)))
    slow = (FitCurve((1.0, 0.2)), FitCurve((1.0, 0.9)))
    slower = (FitCurve((1.0, 0.8)), FitCurve((1.0, 0.9)))
    for aged, is_unsure in ((slow, True), (slower, False)):
        found = Comparison("bandit", None, aged, (fresh, fresh))
        assert found.is_slower
        assert found.may_be_chance == is_unsure


class Scaled(nn.Module):
    """A gain that knows no start."""

    def __init__(self, num: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(num))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features, scaled."""
        return x * self.gain


def backward(loss: torch.Tensor) -> torch.Tensor:
    """Return a loss whose gradients are there."""
    loss.backward()
    return loss


def test_a_model_without_layers_that_probes_know_is_examined() -> None:
    torch.manual_seed(0)
    model = nn.GRU(3, 8, batch_first=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    found = plasticity.diagnose(model, optimizer, [torch.randn(8, 4, 3)] * 2, steps=3, teachers=2, remedies=False)
    assert "no probe of dormancy and ranks" in str(found)


def test_a_fresh_last_layer_that_suffices_clears_the_neurons_before_it() -> None:
    p = plant(killed_neurons, "mlp", 0)
    found = plasticity.diagnose(p.model, p.optimizer, p.batches, fresh=mlp, steps=3, teachers=2, remedies=False)
    symptoms = found.examination.symptoms
    assert symptoms is not None
    del symptoms.aged["effective_rank"]  # dead neurons have less of that, too
    for part, suffices, cause in [
        ("layer", True, "dead neurons"),
        ("last layer", True, "last layer"),
        ("last layer", False, "dead neurons"),
    ]:
        found.examination.parts = [tried("a part", 0.9, 0.8, 1, suffices, part)]
        assert judge(found.examination).cause == cause


def test_at_a_rate_of_zero_another_rate_says_how_the_network_learns() -> None:
    p = plant(rate_of_zero, "mlp", 0)
    found = plasticity.diagnose(p.model, p.optimizer, p.batches, p.loss, fresh=mlp, steps=5, teachers=2)
    assert [finding.cause for finding in found.findings] == ["rate", "at another rate"]
    assert found.findings[1].sentence.startswith("At 0.001 model learns")


@pytest.mark.parametrize(
    ("kind", "begun", "own", "told"),
    [
        (torch.optim.Adam, 3e-3, 1e-6, 0.003),  # annealed: the rate of the beginning
        (torch.optim.Adam, 1e-6, 1e-6, 0.001),  # the default one
        (torch.optim.SGD, 1e-5, 1e-5, 0.01),  # ten times the default one, which teaches next to nothing
        (torch.optim.SGD, 10.0, 10.0, 0.01),  # far too high: ten times the default one
    ],
)
def test_where_the_rate_teaches_next_to_nothing_one_is_named_that_teaches(
    kind: Callable[..., torch.optim.Optimizer], begun: float, own: float, told: float
) -> None:
    p = plant(rate_of_zero, "mlp", 0)
    optimizer = kind(p.model.parameters(), lr=begun)
    optimizer.param_groups[0]["lr"] = own
    how = {"fresh": mlp, "teachers": 2, "remedies": False, "budget": 600}
    found = plasticity.diagnose(p.model, optimizer, p.batches, p.loss, **how)
    assert found.cause == "rate"
    assert f"The learning rate is {own:g}: with it" in found.findings[0].sentence
    assert found.findings[0].sentence.endswith(f"with {told:g} they learn")
    assert found.findings[1].sentence.startswith(f"At {told:g} model learns")
    assert ": 0.00 [" not in str(found.findings[0])  # two digits that tell something, as in the table


@pytest.mark.parametrize("num_batches", [4, 7])
@pytest.mark.parametrize("rate", [1e-2, 1e-3, 1e-4])
def test_a_loss_that_falls_slowly_teaches_something(num_batches: int, rate: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    batches = [(torch.randn(64, 8), torch.randn(64, 2)) for _ in range(num_batches)]
    optimizer = torch.optim.SGD(model.parameters(), rate)
    own = plasticity.diagnose(model, optimizer, batches, squared_error, remedies=False, budget=600).examination.own
    assert own is not None
    assert own.fresh_learns


@pytest.mark.parametrize("num_batches", [4, 7])
def test_a_loss_without_a_gradient_teaches_nothing(num_batches: int) -> None:
    p = trained("mlp", 0)
    batches = [(torch.randn(16, 6), torch.randn(16, 3)) for _ in range(num_batches)]
    how = {"fresh": mlp, "remedies": False, "budget": 600}
    found = plasticity.diagnose(p.model, p.optimizer, batches, lambda m, b: squared_error(m, b).detach(), **how)
    assert found.cause == "loss"


def test_every_method_that_recycles_is_tried() -> None:
    p = trained("mlp", 0)
    maker = from_defaults(p.model)
    tried_, refused = remedies_of(Patient("net", p.model, p.optimizer, p.batches, first_output, maker, loss=p.loss))
    assert {"redo", "knife", "regrama"} <= {remedy.name for remedy in tried_}, refused


def test_bad_input() -> None:
    p = trained("mlp", 0)
    with pytest.raises(ValueError, match="at least one batch"):
        plasticity.diagnose(p.model, p.optimizer, [], p.loss)
    with pytest.raises(ValueError, match="no policy 'beta'; there are softmax"):
        plasticity.diagnose(p.model, p.optimizer, p.batches, policy="beta")
    with pytest.raises(ValueError, match="2 teachers"):
        plasticity.diagnose(p.model, p.optimizer, p.batches, teachers=1)
    with pytest.raises(ValueError, match="differ in"):
        plasticity.diagnose(p.model, p.optimizer, p.batches, fresh=lambda: nn.Linear(6, 3))
    with pytest.raises(ValueError, match="came out the same"):
        plasticity.diagnose(p.model, p.optimizer, p.batches, fresh=lambda: copy.deepcopy(p.model))
    with pytest.raises(ValueError, match="NoneType holds none of the parameters of Sequential"):
        plasticity.diagnose(p.model, None, p.batches)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Adam holds none of the parameters of Sequential"):
        plasticity.diagnose(p.model, torch.optim.Adam(mlp().parameters()), p.batches)
    with pytest.raises(ValueError, match="must be one number"):
        plasticity.diagnose(p.model, p.optimizer, p.batches, lambda m, b: m(b[0]), fresh=mlp)


# -- the RL-adaptation probe -------------------------------------------------------------------------------------------


class Follower:
    """A copy of a policy whose own updates follow fixed rewards."""

    def __init__(self, one: Patient) -> None:
        self.trainee, self.rewards, self.forward, self.batches = one.aged(), teach(one, 9), one.forward, one.batches

    def update(self, number: int) -> None:
        """Take a step up the expected reward."""
        place = number % len(self.batches)
        chosen = self.forward(self.trainee.model, self.batches[place]).softmax(-1) * self.rewards[place]
        self.trainee.optimizer.zero_grad()
        (-chosen.sum(-1).mean()).backward()
        self.trainee.optimizer.step()


def test_a_policy_without_entropy_is_moved_again_with_a_fresh_head() -> None:
    one = patient()
    one.policy = "softmax"
    with torch.no_grad():
        one.model[-1].bias[0] = 50.0
    found = rehearse(one, lambda: Follower(one), updates=30, draws=3)
    moved = {name: sum(values) / 3 for name, values in found.moved.items()}
    assert found.is_stuck
    assert moved["as it is"] < 1e-3
    assert min(moved["fresh head"], moved["raised entropy"], moved["fresh policy"]) > 0.02
    assert one.model[-1].bias[0] == 50


def test_at_a_rate_of_0_the_probe_says_that_no_policy_moves() -> None:
    one = patient()
    one.policy, one.optimizer.param_groups[0]["lr"] = "softmax", 0.0
    (line,) = rehearse(one, lambda: Follower(one), updates=2, draws=2).lines()
    assert "move no policy, not even a fresh one: is the rate 0?" in line


def tried(name: str, value: float, low: float, high: float, suffices: bool, cause: str = "layer") -> Tried:
    """Return a part with these numbers."""
    return Tried(name, cause, Estimate(value, low, high), suffices)


def test_the_least_invasive_part_explains_a_gap() -> None:
    everything = tried("everything", 1.0, 0.9, 1.1, True, "weights")
    half, most, all_of_it = (
        tried("a", 0.6, 0.4, 0.8, False),
        tried("b", 0.9, 0.8, 1, False),
        tried("c", 1, 0.9, 1.1, True),
    )
    assert explaining([half, most, all_of_it, everything]) is all_of_it
    assert explaining([half, most, everything]) is most
    assert explaining([half, everything]) is everything
    assert explaining([half]) is None


def test_the_study_that_is_quoted_is_the_one_that_ran() -> None:
    file = Path(__file__).parents[1] / "benchmarks" / "evidence" / "results" / "predicts.json"
    summary = json.loads(file.read_text())["summary"]["all"]
    found = {name: "rank correlation {mean:.2f} [{low:.2f}, {high:.2f}]".format(**value)
             for name, value in summary["rank correlation"].items()}  # fmt: skip
    assert f"over {summary['points']} points" in STUDY
    assert found["diagnose"] in STUDY
    assert f"over {summary['rank correlation']['next']['n']} points" in STUDY_AHEAD
    assert found["next"] in STUDY_AHEAD


def all_dead(width: int, depth: int) -> nn.Sequential:
    """Return a network of which no hidden neuron ever fires."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(width if i else 8, width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, 2))
    with torch.no_grad():
        for layer in model[:-1]:
            if isinstance(layer, nn.Linear):
                layer.bias.fill_(-1e3)
    return model


@pytest.mark.parametrize(
    ("rate", "width", "seed"), [(0.03, 4, 6), (0.03, 4, 7), (0.0, 32, 3), (1e-9, 32, 4), (100.0, 32, 5)]
)
def test_a_dead_network_is_not_called_healthy_where_fresh_ones_learn_little(rate: float, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = all_dead(width, 2)
    batches = list(torch.randn(256, 8).split(64))
    optimizer = torch.optim.SGD(model.parameters(), rate)
    found = plasticity.diagnose(model, optimizer, batches, remedies=False, budget=600)
    said = found.findings[0] if found.cause != "rate" else found.findings[1]
    assert found.cause in ("dead neurons", "rate")
    assert "as much of a random teacher" in said.sentence or "learns nothing of a random teacher" in said.sentence
    assert all(value.low > 0 for key, value in said.evidence.items() if key == "fresh networks")


@pytest.mark.parametrize("rate", [0.1, 0.01])
def test_a_rate_at_which_losses_blow_up_is_none_that_teaches(rate: float) -> None:
    torch.manual_seed(1)
    model = all_dead(8, 4)
    batches = [torch.randn(64, 8) for _ in range(4)]
    optimizer = torch.optim.SGD(model.parameters(), rate)
    found = plasticity.diagnose(model, optimizer, batches, remedies=False, budget=600)
    for finding in found.findings:
        assert "with 1 they learn" not in finding.sentence
        assert "as a fresh network would" not in finding.sentence


def test_where_no_rate_teaches_enough_nothing_is_told() -> None:
    torch.manual_seed(0)
    model, batches = (
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)),
        [torch.randn(64, 8) for _ in range(4)],
    )
    found = plasticity.diagnose(model, torch.optim.SGD(model.parameters(), 1e-4), batches, remedies=False, budget=600)
    found.examination.rates.clear()  # as where the budget has ended before
    said = judge(found.examination)
    assert said.cause == "cannot tell"
    assert "next to nothing" in said.findings[0].sentence


def test_the_interval_of_small_amounts_is_that_of_their_logarithms() -> None:
    values = [0.002, 0.01, 0.03, 0.05]
    found, logs = of_next_amount(values), np.log(values)
    half = t_quantile(3) * logs.std(ddof=1) * math.sqrt(1.25)
    assert found == pytest.approx((np.mean(values), np.exp(logs.mean() - half), np.exp(logs.mean() + half)), rel=1e-3)
    assert of_next_amount([0.0, *values]) == of_next([0.0, *values])
    assert of_next_amount([0.5, 0.52, 0.51]) == of_next([0.5, 0.52, 0.51])
