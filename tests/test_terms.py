"""Terms of a loss: by hand, eager and compiled alike, with modules and draws of their own; changes take effect."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from functools import partial
from types import MethodType
from typing import Any

import models
import pytest
import torch
from test_gradient import Quadratic, assert_close, twins
from torch import Tensor, nn

from plasticity.agents import gradient
from plasticity.agents.constants import constants_of

pytestmark = pytest.mark.usefixtures("everywhere", "as_traced")

Networks = Mapping[str, nn.Module]


def norm(networks: Networks, batch: Any) -> Tensor:
    return sum(p.square().sum() for p in networks["net"].parameters())


def weights_after(learner: Quadratic, seeds: range = range(3)) -> None:
    for seed in seeds:
        learner.learn(seed)


# -- by hand -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("compiled_if_slow")
def test_a_term_is_added_to_the_loss_logged_and_clipped_with_it() -> None:
    """lr 0.1 on loss + 0.5 |w|^2 / 2 is a step on the loss, after which 0.05 of the old weight is taken off."""
    for compile in ("off", "on"):
        plain, decayed = Quadratic(compile="off"), Quadratic(compile=compile)
        before = decayed.weights()
        decayed.step.terms["decay"] = lambda networks, batch: 0.25 * norm(networks, batch)
        plain.learn()
        metrics = decayed.step(models.normal(4, 3), models.normal(4, seed=1000), updates=0)
        for old, a, b in zip(before, plain.weights(), decayed.weights(), strict=True):
            torch.testing.assert_close(b, a - 0.05 * old)
        assert metrics["decay"].item() == pytest.approx(0.25 * sum(w.square().sum().item() for w in before), rel=1e-5)
        clipped = Quadratic(compile=compile, max_norm=1e-3)
        clipped.step.terms["decay"] = lambda networks, batch: 100 * norm(networks, batch)
        start = clipped.weights()
        clipped.learn()
        moved = torch.stack([(a - b).norm() for a, b in zip(clipped.weights(), start, strict=True)]).norm()
        assert moved.item() == pytest.approx(0.1 * 1e-3, rel=1e-2)


class Towards:
    """Pulls the network to another one: L2 Init, with the initial weights as a module that the step reads."""

    def __call__(self, networks: Networks, batch: Any) -> Tensor:
        pairs = zip(networks["net"].parameters(), networks["initial"].parameters(), strict=True)
        return sum((a - b).square().sum() for a, b in pairs)


def far(net: nn.Module) -> nn.Module:
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    return other


@pytest.mark.usefixtures("compiled_if_slow")
def test_modules_that_a_term_reads_are_inputs() -> None:
    one, other = twins()
    for learner in (one, other):
        reference = far(learner.networks["net"])
        reads = {"initial": reference}
        learner.step.add("pull", Towards(), reads=reads)
        weights_after(learner)
        with torch.no_grad():
            reference[0].weight.zero_()  # in place
        learner.learn(5)
        reads["initial"] = far(reference)  # replaced
        learner.learn(6)
    assert_close(one, other)
    before = [p.clone() for p in reads["initial"].parameters()]
    other.learn(7)
    assert all(torch.equal(a, b) for a, b in zip(before, reads["initial"].parameters(), strict=True))
    assert all(p.grad is None for p in reads["initial"].parameters())


def test_a_draw_is_fresh_in_every_step() -> None:
    def spread(networks: Networks, batch: Any, drawn: Tensor) -> Tensor:
        return (networks["net"](drawn) - networks["net"](batch)).square().mean()

    one, other = twins()
    for learner in (one, other):
        generator = models.generator(3)
        learner.step.add("spread", spread, draw=lambda generator=generator: torch.randn(4, 3, generator=generator))
        weights_after(learner)
    assert_close(one, other)
    fixed = Quadratic()
    fixed.step.add("spread", spread, draw=lambda: torch.randn(4, 3, generator=models.generator(3)))
    weights_after(fixed)
    assert not torch.allclose(fixed.weights()[0], other.weights()[0])


@pytest.mark.usefixtures("compiled_if_slow")
@pytest.mark.on_real_devices  # constants of a trace are none of the other one's
def test_tensors_that_a_term_closes_over_are_read_anew() -> None:
    one, other = twins()
    for learner in (one, other):
        initial = [p.detach().clone() for p in learner.networks["net"].parameters()]
        coefficient = torch.tensor(0.1)

        def pull(networks: Networks, batch: Any, initial: Any = initial, coefficient: Tensor = coefficient) -> Tensor:
            pairs = zip(networks["net"].parameters(), initial, strict=True)
            return coefficient * sum((a - b).square().sum() for a, b in pairs)

        learner.step.terms["pull"] = pull
        learner.learn(0)
        coefficient.fill_(5.0)
        initial[0].add_(1)
        learner.learn(1)
        learner.learn(2)
    assert_close(one, other)
    assert len(other.step._graphs) == 1


@pytest.mark.on_real_devices
def test_a_parameter_that_a_term_closes_over_is_named_or_read_eagerly() -> None:
    eager, auto, on = Quadratic(compile="off"), Quadratic(compile="auto"), Quadratic()
    for learner in (eager, auto, on):
        weight = learner.networks["net"][0].weight
        learner.step.terms["mine"] = lambda networks, batch, weight=weight: weight.square().sum()
    with pytest.raises(ValueError, match=r"a term reads a parameter of shape \(8, 3\) .* take it from the networks"):
        on.learn()
    with pytest.warns(RuntimeWarning, match="going on without compiled updates: the loss or a term reads a parameter"):
        auto.learn(updates=gradient.COMPILE_AFTER)
    eager.learn()
    assert_close(eager, auto)


# -- changes after the first graph -------------------------------------------------------------------------------------


class Scaled:
    def __init__(self, scale: float) -> None:
        self.scale, self.calls = scale, 0

    def __call__(self, networks: Networks, batch: Any) -> Tensor:
        return self.factor() * norm(networks, batch)

    def factor(self) -> float:
        return self.scale


def cubed(self: Quadratic, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    loss = (self.networks["net"](x).squeeze(-1) - y).abs().pow(3).mean()
    return loss, {"loss": loss}


def on_the_step(learner: Quadratic) -> None:
    learner.step.loss = MethodType(cubed, learner)


def on_the_agent(learner: Quadratic) -> None:
    learner.loss = MethodType(cubed, learner)


def another_term(learner: Quadratic) -> None:
    learner.step.terms["norm"] = Scaled(3.0)


def no_term(learner: Quadratic) -> None:
    del learner.step.terms["norm"]


def attribute_of_a_term(learner: Quadratic) -> None:
    learner.step.terms["norm"].scale = 3.0


def limit(learner: Quadratic) -> None:
    learner.step.max_norm = 1e-3


@pytest.mark.parametrize(
    "change", [on_the_step, on_the_agent, another_term, no_term, attribute_of_a_term, limit], ids=lambda f: f.__name__
)
@pytest.mark.some(3)
def test_a_change_takes_effect_after_the_first_graph(change: Any) -> None:
    one, other = twins()
    unchanged = Quadratic(compile="off")
    for learner in (one, other, unchanged):
        learner.step.terms["norm"] = Scaled(0.1)
        learner.learn(0)
        if learner is not unchanged:
            change(learner)
        learner.learn(1)
    assert_close(one, other)
    assert not torch.allclose(one.weights()[0], unchanged.weights()[0])
    other.step.terms["counted"] = Scaled(0.0)
    other.learn(2)
    graphs = len(other.step._graphs)
    other.step.terms["counted"].calls += 1  # which it does not read
    other.learn(3)
    assert len(other.step._graphs) == graphs


def test_a_number_that_changes_all_the_time_ends_compiling_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient, "MAX_GRAPHS", 2)
    one, other = twins()
    for learner in (one, other):
        learner.step.terms["norm"] = Scaled(0.0)

    def learn(learner: Quadratic, seeds: range) -> None:
        for seed in seeds:
            learner.step.terms["norm"].scale = 0.01 * seed
            learner.learn(seed)

    learn(one, range(4))
    learn(other, range(2))
    with pytest.warns(RuntimeWarning, match=r"going on without compiled updates: .* a tensor of no dimensions"):
        learn(other, range(2, 4))
    assert_close(one, other)


def test_constants_are_values_and_objects() -> None:
    def make(number: Any) -> Any:
        return lambda networks, batch: number * norm(networks, batch)

    def outer(inner: Any) -> Any:
        return lambda networks, batch: inner(networks, batch)

    tensor = torch.ones(2)
    term = make(2.0)
    assert constants_of(term) == constants_of(term)
    for one, other in ((2.0, 3.0), (2, 2.0), ([1, 2], [1, 3]), ({"a": 1}, {"a": 2}), (tensor, tensor.clone())):
        first = make(one)
        before = constants_of(first)
        first.__closure__[0].cell_contents = other
        assert constants_of(first) != before, one
    nested = outer(first := make(1.0))
    before = constants_of(nested)
    first.__closure__[0].cell_contents = 2.0
    assert constants_of(nested) != before
    assert constants_of(partial(norm, batch=1)) != constants_of(partial(norm, batch=2))


# -- what fails --------------------------------------------------------------------------------------------------------


def raises(networks: Networks, batch: Any) -> Tensor:
    raise ZeroDivisionError("oh")


@pytest.mark.parametrize(
    ("term", "options", "message"),
    [
        (raises, {}, "failed: ZeroDivisionError: oh"),
        (lambda networks, batch: batch, {}, r"must return a 0-D tensor, and returned a tensor of shape \(4, 3\)"),
        (lambda networks, batch: 1.0, {}, "must return a 0-D tensor, and returned float"),
        (lambda networks, batch: networks["other"], {}, "KeyError: 'other'"),
        (norm, {"reads": {"net": nn.Linear(1, 1)}}, r"it reads \['net'\], which the agent has already"),
        (lambda n, b, d: norm(n, b), {"draw": lambda: (1, 2)}, "draw returned tuple, not a tensor or a batch"),
        (lambda n, b, d: norm(n, b), {"draw": lambda: 1 / 0}, "failed: ZeroDivisionError"),
    ],
)
def test_a_term_that_fails_names_itself(term: Any, options: Any, message: str) -> None:
    for compile in ("off", "on"):
        learner = Quadratic(compile=compile)
        learner.step.add("bad", term, **options)
        with pytest.raises(
            RuntimeError, match=rf"the term 'bad' of the step 'net' failed: .*{message.split(': ')[-1]}"
        ):
            learner.learn()


def test_names_are_taken_once() -> None:
    learner = Quadratic(compile="off")
    learner.step.add("norm", norm)
    with pytest.raises(ValueError, match="has a term 'norm' already"):
        learner.step.add("norm", norm)
    learner.step.terms["loss"] = norm
    with pytest.raises(RuntimeError, match=r"the term 'loss' .* the loss has a metric of that name"):
        learner.learn()


def test_projections_run_after_every_step_without_gradients() -> None:
    def clip(networks: Networks) -> None:
        assert not torch.is_grad_enabled()
        for p in networks["net"].parameters():
            p.clamp_(-0.01, 0.01)

    one, other = twins()
    for learner in (one, other):
        learner.step.projections["clip"] = clip
        weights_after(learner)
        assert max(w.abs().max().item() for w in learner.weights()) == pytest.approx(0.01)
    assert_close(one, other)
    one.step.projections["bad"] = lambda networks: networks["other"]
    with pytest.raises(RuntimeError, match="the projection 'bad' of the step 'net' failed: KeyError: 'other'"):
        one.learn()


def test_without_terms_nothing_changes() -> None:
    one, other = Quadratic(compile="off"), Quadratic(compile="off")
    other.step.add("norm", norm)
    del other.step.terms["norm"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights_after(one)
        weights_after(other)
    assert all(torch.equal(a, b) for a, b in zip(one.weights(), other.weights(), strict=True))
