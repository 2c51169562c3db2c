"""Ways through a model in checkpoints: a resumed run treats neurons in every consumer that they ever had."""

from __future__ import annotations

import io
from typing import Any

import models
import pytest
import torch
from models import Net
from test_interventions import plain_loop
from test_passes import CASES, heads
from torch import Tensor, nn

from plasticity import Measure, Monitor, watch
from plasticity.interventions import ReDo
from plasticity.interventions.injection import Head, inject_

pytestmark = pytest.mark.usefixtures("everywhere")


def stored(state: Any) -> Any:
    """Return a state as a checkpoint brings it back: tensors and plain values."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def two_headed(widths: tuple[int, int, int] = (4, 6, 1)) -> nn.Module:
    """Return a trunk with two heads, of which a pass takes one."""
    torch.manual_seed(0)
    inputs, hidden, outputs = widths
    return Net(heads, a=nn.Linear(inputs, hidden), heads=nn.ModuleList([nn.Linear(hidden, outputs) for _ in range(2)]))


def kill(model: nn.Module) -> None:
    """Let every hidden layer's first two neurons never fire, and the others always."""
    with torch.no_grad():
        for layer, module in model.named_modules():
            if isinstance(module, nn.Linear) and layer.split(".")[0] not in ("o", "aux", "heads"):
                module.bias.fill_(3)
                module.weight[:2], module.bias[:2] = 0, -1


def steps(model: nn.Module, passes: Any, callback: Any, state: Any = None) -> Any:
    """Train with a callback for a pass each, and return its state and what it wrote."""
    ctx, writer = plain_loop(model, torch.optim.SGD(model.parameters(), 0.0))
    callback.on_train_start(ctx)
    if state is not None:
        callback.load_state_dict(stored(state))
    for choice in passes:
        ctx.optimizers["net"].zero_grad()
        found = model(models.vectors(), choice)
        sum(p.sum() for p in (found if isinstance(found, tuple) else [found])).backward()
        ctx.optimizers["net"].step()
    state = callback.state_dict()
    callback.on_train_end(ctx)
    return state, writer


def test_a_resumed_run_cuts_the_head_that_it_does_not_take() -> None:
    model = two_headed()
    state, _ = steps(model, (0, 1), ReDo(every=1, threshold=0.0))
    resumed = two_headed()
    kill(resumed)
    before = [head.weight.detach().clone() for head in resumed.heads]
    _, writer = steps(resumed, (0,), ReDo(every=1, threshold=0.0), state)
    assert writer.named("redo")[0]["neurons"] == {"a": [0, 1]}
    assert resumed.a.weight[:2].any()
    for head, old in zip(resumed.heads, before, strict=True):
        assert not head.weight[:, :2].any()
        assert torch.equal(head.weight[:, 2:], old[:, 2:])


def test_without_the_state_the_layer_is_left_alone() -> None:
    model = two_headed()
    kill(model)
    _, writer = steps(model, (0,), ReDo(every=1, threshold=0.0))
    assert not model.a.weight[:2].any()
    assert "heads.1 did not run yet" in writer.named("redo_skipped")[0]["reason"]


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_stops_goes_on_as_one_that_does_not(name: str) -> None:
    case, finals = CASES[name], []
    for stops in (False, True):
        model, redo = case.build(), ReDo(every=1, threshold=0.0, start=len(case.passes) + 1)
        passes = [*case.passes, case.passes[0], case.passes[-1]]
        kill(model)
        if stops:
            state, _ = steps(model, passes[:-2], redo)
            state, _ = steps(model, passes[-2:], ReDo(every=1, threshold=0.0, start=len(case.passes) + 1), state)
        else:
            state, _ = steps(model, passes, redo)
        ways = state["watcher"]["ways"]["net"]
        finals.append((model.state_dict(), [sorted(ways), [way["events"] for way in ways["ways"]]]))
    torch.testing.assert_close(finals[0][0], finals[1][0], rtol=0, atol=0)
    assert finals[0][1] == finals[1][1]


@pytest.mark.parametrize("name", CASES)
def test_readings_of_a_resumed_run_are_those_of_one_that_does_not_stop(name: str) -> None:
    case, found = CASES[name], []
    for stops in (False, True):
        model, measure = case.build(), Measure(["dormancy", "grama", "grama_weight"], every=1, strict=True)
        state = None
        if stops:
            state, _ = steps(model, case.passes, measure)
            measure = Measure(["dormancy", "grama", "grama_weight"], every=1, strict=True)
        steps(model, case.passes[:1] if stops else [*case.passes, case.passes[0]], measure, state)
        found.append(measure.last["net"])
    assert str(found[0].values) == str(found[1].values)
    assert [str(entry) for entry in found[0].coverage] == [str(entry) for entry in found[1].coverage]


def test_ways_of_another_network_are_forgotten() -> None:
    state, _ = steps(two_headed(), (0, 1), ReDo(every=1, threshold=0.0))
    wider = two_headed((4, 7, 1))
    kill(wider)
    _, writer = steps(wider, (0,), ReDo(every=1, threshold=0.0), {**state, "origins": _origins(wider)})
    assert "heads.1 did not run yet" in writer.named("redo_skipped")[0]["reason"]


def _origins(model: nn.Module) -> Any:
    return steps(model, (), ReDo(every=1, threshold=0.0))[0]["origins"]


def test_ways_survive_a_second_stop_without_a_pass() -> None:
    first, _ = steps(two_headed(), (0, 1), Measure(["dormancy"], every=1))
    second, _ = steps(two_headed(), (), Measure(["dormancy"], every=1), first)
    assert str(second["ways"]) == str(first["ways"])


def test_each_way_is_traced_once_more() -> None:
    model = two_headed()
    state, _ = steps(model, (0, 1), Measure(["dormancy"], every=1))
    monitor = Monitor(model, ["dormancy"])
    monitor.load_ways(stored(state["ways"]["net"]))
    x: Tensor = models.vectors()
    with monitor:
        for choice, recalled in ((0, [False, True]), (0, [False, True]), (1, [False, False])):
            model(x, choice)
            assert [way.recalled for way in monitor.wiring.ways] == recalled  # type: ignore[union-attr]


def test_a_session_has_no_state_to_load() -> None:
    model = two_headed()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with watch(model, optimizer, every=1, log=None, probes=["dormancy"]) as session:
        model(models.vectors(), 0).sum().backward()
        optimizer.step()
        assert set(session.last["model"].num_neurons) == {"a"}


def with_side(s: Any, x: Tensor, choice: int) -> Tensor:
    """Run the trunk, one of its heads and a side branch."""
    return s.heads[choice](s.a(x).relu()) + s.side(x)


def replace_head(model: nn.Module) -> None:
    """Give the head of the first task fresh weights in a new module."""
    model.heads[0] = nn.Linear(6, 1)


def inject_head(model: nn.Module) -> None:
    """Inject the head of the first task."""
    inject_(model, Head("heads", ("0",), False))


CHANGES: dict[str, Any] = {
    "the side branch is another layer": lambda m: setattr(m, "side", nn.Linear(4, 1)),
    "the side branch is a network": lambda m: setattr(m, "side", nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))),
    "the side branch has no weights": lambda m: setattr(m, "side", nn.Identity()),
    "a module is added": lambda m: m.add_module("more", nn.ReLU()),
    "the head that runs is fresh": replace_head,
    "the head that runs is injected": inject_head,
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_replaced_in_mid_run_costs_no_knowledge_of_the_rest(name: str) -> None:
    torch.manual_seed(0)
    model = Net(
        with_side, a=nn.Linear(4, 6), side=nn.Linear(4, 1), heads=nn.ModuleList([nn.Linear(6, 1) for _ in range(2)])
    )
    kill(model)
    ctx, writer = plain_loop(model, torch.optim.SGD(model.parameters(), 0.0))
    redo = ReDo(every=3, threshold=0.0)
    redo.on_train_start(ctx)
    for step, choice in enumerate((1, 0, 0)):
        if step == 1:
            CHANGES[name](model)
        model(models.vectors(), choice).sum().backward()
        ctx.optimizers["net"].step()
    redo.on_train_end(ctx)
    if "injected" in name:  # its frozen weights take up the neurons as well
        assert writer.named("redo_skipped")[0]["reason"] == "heads.0.frozen.weight is frozen (requires_grad is False)"
        return
    assert writer.named("redo")[0]["neurons"] == {"a": [0, 1]}
    consumers = [m for path, m in model.heads.named_modules() if isinstance(m, nn.Linear)]
    assert len(consumers) >= 2
    assert not any(consumer.weight[:, :2].any() for consumer in consumers)


def test_units_that_two_layers_write_are_recycled_after_a_resume_as_before() -> None:
    def summed(s: Any, x: Tensor, task: int) -> Tensor:
        return s.heads[task]((s.a(x) + s.b(x)).relu())

    def build() -> nn.Module:
        torch.manual_seed(0)
        heads = nn.ModuleList([nn.Linear(6, 1) for _ in range(2)])
        model = Net(summed, a=nn.Linear(4, 6), b=nn.Linear(4, 6), heads=heads)
        kill(model)
        return model

    state, _ = steps(build(), (0, 1), ReDo(every=1, threshold=0.0))
    model = build()
    _, writer = steps(model, (0,), ReDo(every=1, threshold=0.0), state)
    assert writer.named("redo")[0]["neurons"] == {"a": [0, 1], "b": [0, 1]}
    for head in model.heads:
        assert not head.weight[:, :2].any()
