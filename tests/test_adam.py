"""The cheap step of Adam against PyTorch's own, bit for bit, and left to it wherever something else is in play."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import elsewhere
import models
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from plasticity.agents import adam
from plasticity.agents.flat import Flat
from plasticity.agents.optimizers import OPTIMIZERS

pytestmark = pytest.mark.usefixtures("everywhere")


def learner(kind: type[Optimizer] = Adam, **settings: Any) -> tuple[list[Tensor], Optimizer]:
    """Three parameters and their optimizer, two steps old."""
    torch.manual_seed(0)
    parameters: list[Tensor] = [nn.Parameter(torch.randn(shape)) for shape in ((5, 3), (5,), ())]
    optimizer = kind(parameters, **{"lr": 0.01, "fused": True, **settings})
    for seed in range(2):
        give_gradients(parameters, seed)
        optimizer.step()
    return parameters, optimizer


def give_gradients(parameters: list[Tensor], seed: int) -> None:
    generator = models.generator(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def count_calls(optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the calls of PyTorch's step, unseen by whoever looks at the optimizer."""
    calls: list[int] = []
    original = type(optimizer).step

    def counted(self: Optimizer, *arguments: Any) -> Any:
        calls.append(1)
        return original(self, *arguments)

    counted.hooked = True  # type: ignore[attr-defined]  # or PyTorch would wrap it once more
    monkeypatch.setattr(type(optimizer), "step", counted)
    return calls


def both(kind: type[Optimizer] = Adam, prepare: Callable[[Optimizer], Any] = lambda _: None, **settings: Any) -> None:
    """Assert that five steps of all kinds leave the same weights, gradients and state: the same bits, if not flat."""
    ends = []
    for take in (lambda optimizer, _: optimizer.step(), adam.step, StepFlat()):
        parameters, optimizer = learner(kind, **settings)
        prepare(optimizer)
        for seed in range(5):
            give_gradients(parameters, 10 + seed)
            take(optimizer, parameters)
        ends.append((parameters, [p.grad for p in parameters], optimizer.state_dict()["state"]))
    torch.testing.assert_close(*ends[:2], rtol=0, atol=0)
    torch.testing.assert_close(*ends[::2], rtol=1e-6, atol=1e-7)  # the processor's vectors end elsewhere


class StepFlat:
    """Step parameters that are one vector."""

    def __init__(self) -> None:
        self.flat: Flat | None = None

    def __call__(self, optimizer: Optimizer, parameters: list[Tensor]) -> None:
        self.flat = self.flat or Flat(parameters)
        self.flat.gradients.copy_(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        self.flat.give_gradients([True] * len(parameters))
        step_flat(optimizer, self.flat)
        assert self.flat.holds()


def step_flat(optimizer: Optimizer, flat: Flat) -> None:
    """Step vectors as a graph does, where it may; else as what follows a graph."""
    if adam.is_plain(optimizer):
        adam.begin(optimizer, flat.parameters)
        if flat.take_state(optimizer.state):
            flat.set_rate(optimizer.param_groups[0]["lr"])
            with torch.no_grad():
                adam.Move.of(optimizer)(*flat.vectors(adam=True))
            flat.noticed()
            adam.after(optimizer)
            return
    adam.step(optimizer, flat.parameters)


SETTINGS: list[dict[str, Any]] = [
    {}, {"weight_decay": 0.1}, {"eps": 1e-3, "betas": (0.5, 0.7)}, {"maximize": True},
    {"kind": AdamW, "weight_decay": 0.1}, {"decoupled_weight_decay": True, "weight_decay": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_same_bits_without_the_call(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    both(**settings)
    parameters, optimizer = learner(**settings)
    calls = count_calls(optimizer, monkeypatch)
    adam.step(optimizer, parameters)
    assert not calls


@pytest.mark.on_cpu
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_move_in_a_graph_is_pytorchs_step(settings: dict[str, Any]) -> None:
    kind = settings.get("kind", Adam)
    weights, gradient, average, square = (torch.zeros(6) for _ in range(4))
    counters, rate = torch.zeros(2), torch.tensor(0.01, dtype=torch.float64)
    parameter = nn.Parameter(weights + 1)
    weights += 1
    optimizer = kind([parameter], lr=0.01, fused=True, **{k: v for k, v in settings.items() if k != "kind"})
    move = adam.Move.of(optimizer)
    for seed in range(4):
        gradient = models.normal(6, seed=seed)
        parameter.grad = gradient.clone()
        optimizer.step()
        move(weights, gradient, average, square, counters, rate)
        torch.testing.assert_close(weights, parameter.detach(), rtol=1e-6, atol=1e-7)
    assert counters.tolist() == [4, 4]


OTHERS: list[tuple[type[Optimizer], dict[str, Any]]] = [
    (Adam, {"amsgrad": True}), (Adam, {"fused": None}), (Adam, {"fused": False, "foreach": True}),
    (Adam, {"lr": torch.tensor(0.01)}), (AdamW, {"amsgrad": True}), (SGD, {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "settings"), OTHERS, ids=str)
def test_other_optimizers_take_their_own_step(
    kind: type[Optimizer], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    both(kind, **settings)
    parameters, optimizer = learner(kind, **settings)
    calls = count_calls(optimizer, monkeypatch)
    adam.step(optimizer, parameters)
    assert calls


@torch.no_grad()
def halve(optimizer: Optimizer, *_: Any) -> None:
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.mul_(0.5)
        parameter.grad.mul_(0.5)


PREPARE: dict[str, Callable[[Optimizer], Any]] = {
    "pre-hook": lambda o: o.register_step_pre_hook(halve),
    "post-hook": lambda o: o.register_step_post_hook(halve),
    "schedule": lambda o: LambdaLR(o, lambda epoch: 0.5),
    "two groups": lambda o: o.param_groups.append({**o.param_groups[0], "params": [o.param_groups[0]["params"].pop()]}),
    "no state": lambda o: o.state.clear(),
    "one state lost": lambda o: o.state[o.param_groups[0]["params"][1]].clear(),
    "scaled": lambda o: setattr(o, "grad_scale", torch.tensor(4.0)),
}


@pytest.mark.parametrize("name", PREPARE)
def test_what_else_is_in_play_is_honoured(name: str) -> None:
    both(prepare=PREPARE[name])


REGISTER: dict[str, Callable[[Optimizer, Any], RemovableHandle]] = {
    "pre": lambda optimizer, hook: optimizer.register_step_pre_hook(hook),
    "post": lambda optimizer, hook: optimizer.register_step_post_hook(hook),
    "global pre": lambda _, hook: register_optimizer_step_pre_hook(hook),
    "global post": lambda _, hook: register_optimizer_step_post_hook(hook),
}


@pytest.mark.parametrize("name", REGISTER)
def test_hooks_are_called_as_by_pytorch(name: str) -> None:
    calls = []
    for take in (lambda optimizer, _: optimizer.step(), adam.step):
        parameters, optimizer = learner()
        seen: list[Any] = []

        def hook(one: Optimizer, arguments: Any, named: Any, o: Optimizer = optimizer, s: list[Any] = seen) -> None:
            same = [x is o for x in (one, *arguments)]
            s.append((same, named, torch.is_grad_enabled(), o.param_groups[0]["params"][0].detach().clone().tolist()))

        handle = REGISTER[name](optimizer, hook)
        try:
            take(optimizer, parameters)
        finally:
            handle.remove()
        calls.append(seen)
    assert len(calls[0]) == 1
    assert calls[0] == calls[1]


def test_hooks_after_a_step_do_not_make_it_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters, optimizer = learner()
    optimizer.register_step_post_hook(lambda *_: None)
    calls = count_calls(optimizer, monkeypatch)
    adam.step(optimizer, parameters)
    assert not calls


LAYOUTS: dict[str, Callable[[Any, Tensor], Any]] = {
    "gradient": lambda p, _: setattr(p, "grad", p.grad.t().contiguous().t()),
    "gradient of one number": lambda p, _: setattr(p, "grad", torch.ones(1, 1).expand(4, 4)),
    "weight": lambda p, _: setattr(p, "data", p.data.t()),
    "part of a larger one": lambda p, whole: setattr(p, "data", whole[:, ::2]),
}


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "trac"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_other_than_the_usual_one_are_read_as_they_are(layout: str, name: str) -> None:
    ends = []
    for fused in (False, True):
        torch.manual_seed(0)
        parameter, whole = nn.Parameter(torch.randn(4, 4)), torch.randn(4, 8)
        around = whole[:, 1::2].clone()
        optimizer = OPTIMIZERS[name]([parameter], lr=0.1)
        for group in optimizer.param_groups:
            group["fused"] = fused and models.place() != elsewhere.NAME
        for seed in range(8):
            parameter.grad = torch.randn(4, 4, generator=models.generator(seed))
            if seed == 4:
                LAYOUTS[layout](parameter, whole)
            adam.step(optimizer, [parameter])
        assert torch.equal(whole[:, 1::2], around)
        ends.append(parameter.detach().clone())
    torch.testing.assert_close(*ends)


def test_a_parameter_without_a_gradient_stays() -> None:
    parameters, optimizer = learner()
    before, state = parameters[1].detach().clone(), copy.deepcopy(optimizer.state[parameters[1]])
    parameters[1].grad = None
    adam.step(optimizer, parameters)
    assert torch.equal(parameters[1], before)
    torch.testing.assert_close(optimizer.state[parameters[1]], state, rtol=0, atol=0)
