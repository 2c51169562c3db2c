"""Layers of an own class, or with hooks: those that do more than multiply are left alone, the others are taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_joint_units import changed, recycle
from torch import Tensor, nn

from plasticity import measure, wiring
from plasticity.interventions import ReDo
from plasticity.structure.conduct import strays

pytestmark = pytest.mark.usefixtures("everywhere")

DEAD = [0, 3, 5]


def layer(kind: type, forward: Callable[[Any, Tensor], Tensor], *sizes: int) -> nn.Module:
    """Return a layer of a class of its own, which computes as told."""
    return type("Own", (kind,), {"forward": forward})(*sizes)


def linear(forward: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    """Return a Linear of 8 inputs and 8 neurons that computes as told."""
    return layer(nn.Linear, forward, 8, 8)


def conv(forward: Callable[[Any, Tensor], Tensor], channels: int = 8) -> nn.Module:
    """Return a convolution of 8 neurons that computes as told."""
    return layer(nn.Conv2d, forward, channels, 8, 3, 1, 1)


def hooked(hook: Callable[[Any, Any, Tensor], Any]) -> nn.Module:
    """Return a Linear with a hook on what it returns."""
    found = nn.Linear(8, 8)
    found.register_forward_hook(hook)
    return found


def plain(s: Any, x: Tensor) -> Tensor:
    """Multiply, and nothing else."""
    return F.linear(x, s.weight, s.bias)


def with_ones(x: Tensor) -> Tensor:
    """Return inputs with a feature, or a channel, of ones."""
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


def halves(z: Tensor) -> Tensor:
    """Return four neurons and their opposites."""
    return torch.cat([z[:, :4], -z[:, :4]], -1).relu()


STRAYS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "its input is added": (lambda: linear(lambda s, x: x + plain(s, x)), "its input besides"),
    "its input is turned": (lambda: linear(lambda s, x: plain(s, x.flip(-1))), "its input besides"),
    "two inputs change places": (
        lambda: linear(lambda s, x: plain(s, x[:, [4, 1, 2, 3, 0, 5, 6, 7]])),
        "input besides",
    ),
    "its weight is turned": (lambda: linear(lambda s, x: F.linear(x, s.weight.flip(-1))), "its input besides"),
    "a softmax of its input": (lambda: linear(lambda s, x: plain(s, x.softmax(-1))), "its input besides"),
    "a shift of its input": (lambda: linear(lambda s, x: plain(s, x + 1)), "a change of its input"),
    "a sigmoid of its input": (lambda: linear(lambda s, x: plain(s, x.sigmoid())), "a change of its input"),
    "its neurons are turned": (lambda: linear(lambda s, x: plain(s, x).flip(-1)), "other neurons' weights"),
    "minus their mean": (lambda: linear(lambda s, x: (lambda z: z - z.mean(-1, True))(plain(s, x))), "other neurons'"),
    "neurons and opposites": (lambda: linear(lambda s, x: halves(plain(s, x))), "other neurons' weights"),
    "twice": (lambda: linear(lambda s, x: F.linear(plain(s, x), s.weight.T)), "a change of its input"),
    "a number of its weight": (
        lambda: linear(lambda s, x: plain(s, x) * s.weight.detach().abs().max().item()),
        "change",
    ),
    "more inputs": (lambda: layer(nn.Linear, lambda s, x: plain(s, with_ones(x)), 9, 8), "an input of another size"),
    "more neurons": (lambda: linear(lambda s, x: torch.cat([plain(s, x)] * 2, -1)), "another size than 8"),
    "a hook adds its input": (lambda: hooked(lambda m, a, z: z + a[0]), "a hook that changes its output"),
    "a hook, in place": (
        lambda: hooked(lambda m, a, z: z.add_(a[0])),
        "a hook",
    ),
    "conv: its input is added": (lambda: conv(lambda s, x: x + s._conv_forward(x, s.weight, s.bias)), "input besides"),
    "conv: coordinates": (
        lambda: conv(lambda s, x: s._conv_forward(with_ones(x), s.weight, s.bias), 9),
        "another size",
    ),
    "conv: padded with ones": (
        lambda: conv(lambda s, x: s._conv_forward(F.pad(x, [1] * 4, value=1.0), s.weight, s.bias)),
        "a change of its input",
    ),
}

FAIR: dict[str, Callable[[], nn.Module]] = {
    "the product alone": lambda: linear(plain),
    "by einsum": lambda: linear(lambda s, x: torch.einsum("bi,oi->bo", x, s.weight) + s.bias),
    "a mask": lambda: linear(lambda s, x: F.linear(x, s.weight * torch.eye(8, device=x.device).flip(0), s.bias)),
    "a factor": lambda: linear(lambda s, x: F.linear(x, s.weight * 0.5, s.bias)),
    "noise": lambda: linear(lambda s, x: plain(s, x) + torch.randn(8, device=x.device)),
    "its own activation": lambda: linear(lambda s, x: plain(s, x).tanh()),
    "a hook that looks": lambda: hooked(lambda m, a, z: None),
    "conv": lambda: conv(lambda s, x: s._conv_forward(x, s.weight, s.bias)),
    "conv, groups": lambda: layer(nn.Conv2d, lambda s, x: s._conv_forward(x, s.weight, s.bias), 8, 8, 3, 1, 1, 1, 4),
    "transposed": lambda: layer(
        nn.ConvTranspose2d, lambda s, x: F.conv_transpose2d(x, s.weight, s.bias, 1, 1, groups=2), 8, 8, 3, 1, 1, 0, 2
    ),
}


def between(own: nn.Module) -> tuple[nn.Module, Tensor]:
    """Return a network with a layer in its middle, behind neurons that never fire, and inputs."""
    torch.manual_seed(0)
    flat = isinstance(own, nn.Linear)
    first = nn.Linear(5, 8) if flat else nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        first.weight[DEAD], first.bias[DEAD] = 0, -10
    x = torch.randn(64, 5) if flat else torch.randn(8, 3, 7, 7)
    rest: list[nn.Module] = [] if flat else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    width = nn.Sequential(first, nn.ReLU(), own)(x).shape[1]
    return nn.Sequential(first, nn.ReLU(), own, nn.ReLU(), *rest, nn.Linear(width, 2)), x


@pytest.mark.parametrize("name", STRAYS)
def test_a_layer_that_does_more_than_multiply_is_left_alone(name: str) -> None:
    build, word = STRAYS[name]
    model, x = between(build())
    assert word in model_remarks(model, x)
    out = model(x).detach()
    before, writer = recycle(model, x, ReDo(every=1, threshold=0.0))
    assert not changed(model, before).keys() & {"0.weight", "2.weight"}
    assert {event["layer"] for event in writer.named("redo_skipped")} >= {"0"}
    torch.testing.assert_close(model(x).detach(), out)
    assert measure(model, x, probes=["dormancy"]).values["dormancy"]["0"] == pytest.approx(3 / 8)


@pytest.mark.parametrize("name", FAIR)
def test_a_layer_of_an_own_class_that_multiplies_is_taken(name: str) -> None:
    model, x = between(FAIR[name]())
    assert "computes with" not in model_remarks(model, x)
    out = model(x).detach()
    _, writer = recycle(model, x, ReDo(every=1, threshold=0.0))
    assert writer.named("redo")[0]["neurons"]["0"] == DEAD
    if name != "noise":  # by which other neurons of the next layer are dead
        torch.testing.assert_close(model(x).detach(), out)


def model_remarks(model: nn.Module, x: Tensor) -> str:
    """Return what is remarked on the layer in the middle."""
    return "; ".join(wiring(model, x).layers["2"].remarks)


def test_a_layer_is_as_it_was_after_it_was_tried() -> None:
    seen = []

    def forward(s: Any, x: Tensor) -> Tensor:
        seen.append(s.weight)
        s.steps += 1
        return plain(s, x) + torch.randn(8, device=x.device)

    own = linear(forward)
    own.register_buffer("steps", torch.zeros(()))
    weight, values, generator = own.weight, own.weight.detach().clone(), torch.get_rng_state()
    assert strays(own, (torch.ones(4, 8),), {}, torch.zeros(4, 8)) == ""
    assert own.weight is weight
    assert torch.equal(weight, values)
    assert own.steps == 0
    assert len(seen) > 10
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 13])
def test_any_two_inputs_that_change_places_are_seen(size: int) -> None:
    x = torch.randn(4, size)
    for i in range(size):
        for j in range(i):
            order = list(range(size))
            order[i], order[j] = j, i
            own = layer(nn.Linear, lambda s, x, order=order: plain(s, x[:, order]), size, 3)
            assert strays(own, (x,), {}, own(x)) == "its input besides its weight"


def test_a_layer_that_cannot_be_run_again_is_taken_for_what_it_is() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        assert bool((x >= 0).all())
        return plain(s, x)

    own = linear(forward)
    x = -torch.ones(4, 8)
    assert strays(own, (x,), {}, torch.zeros(4, 8)) == ""
