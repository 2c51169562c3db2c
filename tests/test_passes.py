"""Models whose passes differ: what ran is measured as it ran, and surgery respects every consumer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import models
import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from models import Net
from test_interventions import plain_loop
from torch import Tensor, nn

from plasticity.interventions import ReDo
from plasticity.measuring import measure
from plasticity.monitor import Monitor
from plasticity.observing import guide
from plasticity.watching import watch

pytestmark = pytest.mark.usefixtures("everywhere")

Forward = Callable[..., Any]


def blocks(number: int = 3) -> nn.ModuleList:
    """Return pairs of layers for residual blocks."""
    parts = [nn.ModuleDict({"up": nn.Linear(6, 9), "down": nn.Linear(9, 6)}) for _ in range(number)]
    return nn.ModuleList(parts)


def adapters(s: Any, x: Tensor, task: int) -> Tensor:
    return s.o(F.relu(s.ad[task](F.relu(s.a(x)))))


def heads(s: Any, x: Tensor, task: int) -> Tensor:
    return s.heads[task](F.relu(s.a(x)))


def skipped(s: Any, x: Tensor, drop: tuple[int, ...]) -> Tensor:
    h = s.a(x)
    for number, block in enumerate(s.blocks):
        if number not in drop:
            h = h + block["down"](F.relu(block["up"](h)))
    return s.o(h)


def early_exit(s: Any, x: Tensor, depth: int) -> Tensor:
    h = F.relu(s.a(x))
    if depth > 0:
        h = F.relu(s.b(h))
    return s.o(h)


def auxiliary(s: Any, x: Tensor, with_head: bool) -> Any:
    h = F.relu(s.a(x))
    return (s.o(h), s.aux(h)) if with_head else s.o(h)


def experts(s: Any, x: Tensor, chosen: tuple[int, ...]) -> Tensor:
    """Send rows to experts in turn; one that is not chosen is called with no rows."""
    out, turn = torch.zeros(len(x), 6), torch.arange(len(x)) % len(chosen)
    for number, expert in enumerate(s.experts):
        place = chosen.index(number) if number in chosen else -1
        rows = (turn == place).nonzero().flatten()
        out = out.index_add(0, rows, expert(x[rows]))
    return s.o(out)


def acts(s: Any, x: Tensor, task: int) -> Tensor:
    """Take another module for the activation in each task."""
    return s.o(s.acts[task](s.a(x)))


def shared(s: Any, x: Tensor, times: int) -> Tensor:
    """Run one layer several times."""
    h = F.relu(s.a(x))
    for _ in range(times):
        h = F.relu(s.b(h))
    return s.o(h)


@dataclass
class Case:
    """A model with passes that differ."""

    forward: Forward
    parts: Callable[[], dict[str, nn.Module]]
    passes: tuple[Any, ...]
    linear: tuple[str, ...] = ()
    """Layers without an activation."""

    def build(self) -> nn.Module:
        """Return the model."""
        torch.manual_seed(0)
        return Net(self.forward, **self.parts())


def expert() -> nn.Module:
    """Return a small perceptron."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))


CASES = {
    "adapters": Case(
        adapters,
        lambda: {
            "a": nn.Linear(4, 6),
            "ad": nn.ModuleList([nn.Linear(6, 5) for _ in range(3)]),
            "o": nn.Linear(5, 1),
        },
        (0, 1, 0, 2, 1, 0),
    ),
    "heads": Case(
        heads,
        lambda: {"a": nn.Linear(4, 6), "heads": nn.ModuleList([nn.Linear(6, 1) for _ in range(3)])},
        (0, 1, 0, 2, 2),
    ),
    "skipped blocks": Case(
        skipped,
        lambda: {"a": nn.Linear(4, 6), "blocks": blocks(), "o": nn.Linear(6, 1)},
        ((), (1,), (0, 2), (), (0,), (0, 1, 2), (2,)),
        ("a", "blocks.0.down", "blocks.1.down", "blocks.2.down"),
    ),
    "early exit": Case(early_exit, lambda: {**models.linears(4, 6, 6), "o": nn.Linear(6, 1)}, (0, 1, 0, 1)),
    "auxiliary head": Case(
        auxiliary,
        lambda: {"a": nn.Linear(4, 6), "o": nn.Linear(6, 1), "aux": nn.Linear(6, 1)},
        (False, True, False),
    ),
    "experts": Case(
        experts,
        lambda: {"experts": nn.ModuleList([expert() for _ in range(3)]), "o": nn.Linear(6, 1)},
        ((0, 1), (0, 1, 2), (2,), (1, 0)),
        ("experts.0.2", "experts.1.2", "experts.2.2"),
    ),
    "activation modules": Case(
        acts,
        lambda: {"a": nn.Linear(4, 6), "acts": nn.ModuleList([nn.ReLU(), nn.ReLU(inplace=True)]), "o": nn.Linear(6, 1)},
        (0, 1, 1, 0),
    ),
    "times": Case(shared, lambda: {**models.linears(4, 6, 6), "o": nn.Linear(6, 1)}, (1, 2, 0, 3, 1)),
}


class ByHand:
    """The activations and gradients of every Linear in one pass, by hooks of our own."""

    def __init__(self, model: nn.Module, linear: tuple[str, ...]) -> None:
        self.rows: dict[str, list[Tensor]] = {}
        self.gradients: dict[str, list[Tensor]] = {}
        self.handles = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                self.handles.append(module.register_forward_hook(self.hook(name, name in linear)))

    def hook(self, name: str, linear: bool) -> Callable[..., None]:
        """Return the hook of one layer."""

        def see(module: nn.Module, args: tuple, z: Tensor) -> None:
            if len(z) and z.requires_grad:  # not in the extra passes that trace the model
                self.rows.setdefault(name, []).append((z if linear else z.relu()).detach().clone())
                z.register_hook(lambda g: self.gradients.setdefault(name, []).append(g.clone()))

        return see

    def __enter__(self) -> ByHand:
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self.handles:
            handle.remove()


def assert_as_by_hand(scores: dict[str, dict[str, Tensor]], hand: ByHand, outputs: set[str]) -> None:
    """Compare scores with what our own hooks saw of the same pass."""
    for probe, seen in (("dormancy", hand.rows), ("grama", hand.gradients)):
        assert scores[probe].keys() == seen.keys() - outputs, probe
        for layer, found in scores[probe].items():
            expected = reference.scores(np.concatenate([reference.rows(part) for part in seen[layer]]))
            np.testing.assert_allclose(
                found.numpy(force=True), expected, rtol=1e-5, atol=1e-7, err_msg=f"{probe} {layer}"
            )


def outputs_of(model: nn.Module) -> set[str]:
    """Return the names of the layers whose neurons are the model's output."""
    return {name for name, _ in model.named_modules() if name.split(".")[0] in ("o", "aux", "heads")}


@pytest.mark.parametrize("passes", ["all", "training"])
@pytest.mark.parametrize("name", CASES)
def test_what_ran_is_measured_as_it_ran(name: str, passes: Any) -> None:
    case = CASES[name]
    model = case.build()
    with Monitor(model, ["dormancy", "grama"], passes=passes, strict=True) as monitor:
        for number, choice in enumerate(case.passes):
            x = models.normal(12, 4, seed=number)
            with ByHand(model, case.linear) as hand:
                output = model(x, choice)
                sum(part.square().mean() for part in (output if isinstance(output, tuple) else [output])).backward()
            reading = monitor.read()
            assert_as_by_hand(reading.scores, hand, outputs_of(model))
            for layer in reading.num_neurons.keys() - hand.rows.keys():
                assert math.isnan(reading.values["dormancy"][layer])
                reasons = {e.reason for e in reading.unmeasured if e.layer == layer and e.probe == "dormancy"}
                assert reasons == {"it was not called in the measured passes"}
            monitor.reset()


@pytest.mark.parametrize("name", CASES)
def test_a_way_is_traced_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, traces = CASES[name], []
    monkeypatch.setattr(guide, "trace", lambda *a, trace=guide.trace, **k: traces.append(1) or trace(*a, **k))
    model = case.build()
    with Monitor(model, ["dormancy"]) as monitor:
        for choice in case.passes:
            model(models.vectors(), choice)
        num = len(traces)
        for choice in case.passes:
            model(models.vectors(), choice)
    assert monitor.wiring is not None
    assert 1 < len(traces) == num <= len(set(case.passes))
    assert not monitor.wiring.unfollowed


@pytest.mark.parametrize("name", CASES)
def test_passes_that_differ_are_left_as_they_were(name: str) -> None:
    case = CASES[name]
    outcomes = []
    for watched in (False, True):
        model = case.build()
        monitor = Monitor(model, ["dormancy", "grama", "grama_weight", "rank"])
        if watched:
            monitor.attach()
        for number, choice in enumerate(case.passes):
            output = model(models.normal(12, 4, seed=number), choice)
            output = torch.cat(output, 1) if isinstance(output, tuple) else output
            output.square().mean().backward()
            outcomes.append(
                (
                    number,
                    output.detach(),
                    [None if p.grad is None else p.grad.clone() for p in model.parameters()],
                    torch.get_rng_state(),
                )
            )
        monitor.detach()
    for (_, a, grads_a, rng_a), (_, b, grads_b, rng_b) in zip(
        outcomes[: len(case.passes)], outcomes[len(case.passes) :], strict=True
    ):
        assert torch.equal(a, b)
        assert torch.equal(rng_a, rng_b)
        assert all(
            (g is None) == (h is None) and (g is None or torch.equal(g, h))
            for g, h in zip(grads_a, grads_b, strict=True)
        )


@pytest.mark.parametrize("known", [1, 2, None])
@pytest.mark.parametrize("name", CASES)
def test_recycling_dead_neurons_changes_no_output_of_any_pass(name: str, known: int | None) -> None:
    """All passes were seen, or only the first ones: consumers that were not seen count, too."""
    case = CASES[name]
    model, x = case.build(), models.vectors()
    with torch.no_grad():
        for layer, module in model.named_modules():
            if isinstance(module, nn.Linear) and layer not in case.linear and layer not in outputs_of(model):
                module.bias.fill_(3)  # the others always fire
                module.weight[:2], module.bias[:2] = 0, -1
    dead = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not m.weight[:2].any()}

    def outputs(choice: Any) -> Tensor:
        found = model(x, choice)
        return torch.cat(found, 1).detach() if isinstance(found, tuple) else found.detach()

    before = {choice: outputs(choice) for choice in case.passes}
    ctx, _ = plain_loop(model, torch.optim.SGD(model.parameters(), 0.0))
    redo = ReDo(every=1, threshold=0.0)
    redo.on_train_start(ctx)
    for choice in case.passes[:known]:
        ctx.optimizers["net"].zero_grad()
        found = model(x, choice)
        sum(p.sum() for p in (found if isinstance(found, tuple) else [found])).backward()
        ctx.optimizers["net"].step()
    redo.on_train_end(ctx)
    redrawn = {layer for layer in dead if model.get_submodule(layer).weight[:2].any()}
    for choice, output in before.items():
        own = f"ad.{choice}" in redrawn  # the columns behind it belong to other adapters, too
        assert own or torch.equal(outputs(choice), output)
    if known is None:
        expected = {"adapters": {"a", "ad.0", "ad.1", "ad.2"}, "skipped blocks": {f"blocks.{i}.up" for i in range(3)}}
        expected |= {"early exit": {"a", "b"}, "experts": {f"experts.{i}.0" for i in range(3)}, "times": {"a", "b"}}
        assert redrawn == expected.get(name, {"a"}), "neurons are recycled where all consumers are known"


def test_layers_that_did_not_run_say_why() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.none, self.never = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, h: Tensor) -> Tensor:
            return F.linear(h, 2 * self.used.weight) + self.none(h[:0]).sum()

    model = Net(lambda s, x: s.o(s.part(F.relu(s.a(x)))), a=nn.Linear(4, 6), part=Attention(), o=nn.Linear(6, 1))
    reading = measure(model, models.vectors(), probes=["dormancy"])
    assert {entry.layer: entry.reason for entry in reading.unmeasured} == {
        "part.used": "its weight was used, but its forward was never called",
        "part.none": "it was called without samples",
        "part.never": "its forward was never called",
        "o": "output layer",
    }


@pytest.mark.slow_off_the_cpu
def test_layers_dropped_at_random_are_never_mistaken_for_others() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        dropped = tuple(i for i in range(3) if float(torch.rand((), device="cpu")) < 0.5)
        return skipped(s, x, dropped)

    torch.manual_seed(0)
    model = Net(forward, a=nn.Linear(4, 6), blocks=blocks(), o=nn.Linear(6, 1))
    linear = CASES["skipped blocks"].linear
    missed = []
    with Monitor(model, ["dormancy", "grama"], strict=True) as monitor:
        for number in range(40):
            with ByHand(model, linear) as hand:
                model(models.normal(12, 4, seed=number)).square().mean().backward()
            scores = monitor.read().scores
            seen = {layer for layer in hand.rows if layer in scores["dormancy"]}
            missed.append(len(hand.rows.keys() - seen - {"o"}))
            for layer in seen:
                expected = reference.scores(reference.rows(hand.rows[layer][0]))
                np.testing.assert_allclose(scores["dormancy"][layer].numpy(force=True), expected, rtol=1e-5)
            monitor.reset()
    assert sum(missed[20:]) == 0
    assert monitor.wiring is not None
    assert not monitor.wiring.unfollowed
    assert len(monitor.wiring.ways) <= 8


def test_a_layer_that_is_pruned_or_grown_in_place_is_measured_anew() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with watch(model, optimizer, every=1, log=None, probes=["dormancy", "grama"], strict=True) as session:
        for size in (8, 5, 7, 7):
            with torch.no_grad():
                rows, columns = torch.randn(size, 4), torch.randn(6, size)
                model[0].weight, model[2].weight = nn.Parameter(rows), nn.Parameter(columns)
                model[0].bias = nn.Parameter(torch.zeros(size))
                model[0].out_features = model[2].in_features = size
            optimizer.param_groups[0]["params"] = list(model.parameters())
            optimizer.zero_grad()
            x = models.normal(12, 4)
            hidden = model[:2](x).detach().abs().mean(0)
            model(x).square().mean().backward()
            optimizer.step()
            scores = session.last["model"].scores
            torch.testing.assert_close(scores["dormancy"]["0"], (hidden / hidden.mean()).to(scores["dormancy"]["0"]))
            assert scores["grama"]["0"].shape == (size,)
