"""Passes that raise count for nothing and stop nothing; a watch that saw nothing says why."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plasticity import Monitor, measure, watch


class Fails(Exception):
    """The errors that the models raise."""


class Fragile(nn.Module):
    """Two hidden layers and a head; ``at`` says where the next pass fails."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.o = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 1)
        self.at = ""

    def fail(self, place: str) -> None:
        """Fail if this is the place."""
        if self.at == place:
            self.at = ""
            raise KeyboardInterrupt if "interrupted" in place else Fails

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers."""
        self.fail("before any layer")
        h = F.relu(self.a(x))
        self.fail("between layers")
        self.fail("interrupted")
        self.fail("interrupted in another method")
        if self.at == "of a wrong shape":
            self.o(h)
        h = self.inner(h) if self.at != "while checkpointed" else checkpoint(self.inner, h, use_reentrant=False)
        out = self.o(h)
        self.fail("at the end")
        return out

    def inner(self, h: Tensor) -> Tensor:
        """Run the second layer."""
        self.fail("while checkpointed")
        return F.relu(self.b(h))

    def evaluate_actions(self, x: Tensor) -> Tensor:
        """Run the layers by another method."""
        out = self(x)
        self.fail("in another method")
        return out


PLACES = (
    *("before any layer", "between layers", "at the end", "in another method", "of a wrong shape"),
    *("while checkpointed", "interrupted", "interrupted in another method", "in a hook"),
)


@pytest.mark.parametrize("passes", ["all", "training"])
@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("place", PLACES)
def test_a_pass_that_raises_does_not_count_and_the_next_does(place: str, before: int, passes: Any) -> None:
    model, batches = Fragile(), torch.randn(3, 32, 4, generator=torch.Generator().manual_seed(0))
    readings = []
    for fails in (False, True):
        with Monitor(model, ["dormancy", "grama"], passes=passes, calls=("evaluate_actions",), strict=True) as monitor:
            for number, x in enumerate(batches):
                if fails and number == before:
                    _fail(model, place, torch.full_like(x, 100.0))
                (model.evaluate_actions(x) if "in another method" in place else model(x)).sum().backward()
        assert monitor.num_passes == len(batches)
        readings.append(monitor.read())
    assert readings[0].values == readings[1].values
    torch.testing.assert_close(readings[0].scores, readings[1].scores, rtol=0, atol=0)


def _fail(model: Fragile, place: str, x: Tensor) -> None:
    handle = None
    if place == "in a hook":
        handle = model.b.register_forward_hook(lambda *_: (_ for _ in ()).throw(Fails()))
    else:
        model.at = place
    with pytest.raises((Fails, KeyboardInterrupt, RuntimeError)):
        model.evaluate_actions(x) if "in another method" in place else model(x)
    model.at = ""
    if handle is not None:
        handle.remove()


def test_an_interrupt_leaves_no_function_mode_behind_once_the_model_runs_again() -> None:
    weight = nn.Parameter(torch.randn(3, 6, 4))

    def forward(s: Any, x: Tensor) -> Tensor:
        h = torch.bmm(x.expand(3, *x.shape), s.stack.weight.mT)
        if s.at:
            raise KeyboardInterrupt
        return s.o(h.relu().mean(0))

    stack = nn.Module()
    stack.weight = weight
    model, x = models.Net(forward, stack=stack, o=nn.Linear(6, 1)), models.vectors()
    model.at = False
    depth = torch._C._len_torch_function_stack()
    with Monitor(model, ["dormancy"], strict=True) as monitor:
        model(x)
        model.at = True
        with pytest.raises(KeyboardInterrupt):
            model(x)
        model.at = False
        model(x)
    assert torch._C._len_torch_function_stack() == depth
    assert monitor.num_passes == 2


def test_a_model_that_calls_itself_is_one_pass() -> None:
    model = models.Net(
        lambda s, x, again=True: s.o(s.a(x).relu()) + (s(x, again=False) if again else 0),
        **{"a": nn.Linear(4, 6), "o": nn.Linear(6, 1)},
    )
    with Monitor(model, ["dormancy"], strict=True) as monitor:
        for _ in range(3):
            model(models.vectors())
    assert monitor.num_passes == 3


def stepped(loop: Callable[[nn.Module, torch.optim.Optimizer, Tensor], Any]) -> Callable[[], None]:
    """Return a function that watches a loop."""

    def run() -> None:
        model, x = models.mlp(), models.vectors(32)
        ours = torch.optim.SGD(model.parameters(), 0.1)
        with watch(model, ours, every=1, log=None, probes=["dormancy", "grama"]):
            loop(model, ours, x)

    return run


def other_optimizer(model: nn.Module, ours: torch.optim.Optimizer, x: Tensor) -> None:
    model(x).sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()


def steps_by_hand(model: nn.Module, ours: torch.optim.Optimizer, x: Tensor) -> None:
    gradients = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.data -= 0.1 * gradient


def without_gradients(model: nn.Module, ours: torch.optim.Optimizer, x: Tensor) -> None:
    with torch.no_grad():
        model(x)
    ours.step()


def never_called(model: nn.Module, ours: torch.optim.Optimizer, x: Tensor) -> None:
    ours.step()


def no_backward(model: nn.Module, ours: torch.optim.Optimizer, x: Tensor) -> None:
    model(x).sum()
    ours.step()


def a_copy_trains(model: nn.Module, ours: torch.optim.Optimizer, x: Tensor) -> None:
    models.mlp()(x).sum().backward()
    ours.step()


def parts_are_called(model: nn.Module, ours: torch.optim.Optimizer, x: Tensor) -> None:
    for part in model:  # type: ignore[attr-defined]
        x = part(x)
    x.sum().backward()
    ours.step()


NOTHING = "no forward pass with gradients enabled was followed by a backward pass"
LOOPS: dict[str, tuple[Callable[..., None], str]] = {
    "another optimizer": (other_optimizer, "no step of the optimizer given to watch"),
    "steps by hand": (steps_by_hand, "no step of the optimizer given to watch"),
    "without gradients": (without_gradients, NOTHING),
    "never called": (never_called, NOTHING),
    "no backward pass": (no_backward, NOTHING),
    "a copy trains": (a_copy_trains, NOTHING),
    "parts are called": (parts_are_called, "no data"),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_watch_that_saw_nothing_says_why(name: str) -> None:
    loop, message = LOOPS[name]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        stepped(loop)()
    texts = [str(warning.message) for warning in told if issubclass(warning.category, RuntimeWarning)]
    assert any(message in text for text in texts), texts


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_checkpointed_models_are_measured_as_they_are_without(depth: int, reentrant: bool) -> None:
    torch.manual_seed(0)
    hidden = [nn.Linear(4, 6), *(nn.Linear(6, 6) for _ in range(depth))]
    parts: dict[str, nn.Module] = {f"h{i}": layer for i, layer in enumerate(hidden)}

    def activated(layer: nn.Module, z: Tensor) -> Tensor:
        return F.relu(layer(z))

    def forward(s: Any, x: Tensor, by: Callable[[Any, Tensor], Tensor]) -> Tensor:
        h = F.relu(s.h0(x))
        for number in range(1, depth + 1):
            h = by(partial(activated, getattr(s, f"h{number}")), h)
        return s.o(h)

    def plain(s: Any, x: Tensor) -> Tensor:
        return forward(s, x, lambda f, h: f(h))

    def saving(s: Any, x: Tensor) -> Tensor:
        return forward(s, x, lambda f, h: checkpoint(f, h, use_reentrant=reentrant))

    model = models.Net(plain, **parts, o=nn.Linear(6, 1))
    batch = torch.randn(32, 4), torch.randn(32, 1)
    expected = measure(model, batch, F.mse_loss, probes=["dormancy", "grama", "rank"])
    model._forward = saving
    found = measure(model, batch, F.mse_loss, probes=["dormancy", "grama", "rank"])
    assert found.values.keys() == expected.values.keys()
    assert all(
        found.values[metric][layer] == pytest.approx(value)
        for metric, layers in expected.values.items()
        for layer, value in layers.items()
        if not math.isnan(value)
    )


class Adapted(nn.Module):
    """A frozen layer and a low-rank adapter around it."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(8, 16).requires_grad_(False)
        self.down, self.up = nn.Linear(8, 4, bias=False), nn.Linear(4, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + 2 * self.up(self.down(x))


@pytest.mark.parametrize(
    "layer",
    [
        Adapted,
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 16)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 16)),
        lambda: nn.utils.parametrizations.orthogonal(nn.Linear(8, 16)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.utils.parametrizations.weight_norm(nn.Linear(8, 16))),
    ],
    ids=["adapter", "weight norm", "spectral norm", "orthogonal", "both norms"],
)
def test_the_parts_of_a_measured_layer_are_not_called_unmeasured(layer: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    reading = measure(nn.Sequential(layer(), nn.ReLU(), nn.Linear(16, 1)), torch.randn(32, 8))
    assert set(reading.values["dormancy"]) == {"0", "all"}
    assert {u.layer for u in reading.unmeasured} == {"2"}


def test_parts_of_what_is_no_layer_are_named_still() -> None:
    torch.manual_seed(0)
    cell = nn.utils.parametrizations.weight_norm(nn.GRUCell(8, 16), "weight_ih")
    reading = measure(nn.Sequential(cell, nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)), torch.randn(32, 8))
    assert {u.layer for u in reading.unmeasured} == {"0", "0.parametrizations.weight_ih", "3"}
