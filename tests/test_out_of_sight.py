"""Activations that no module sees before something is made of them: every reading is that of own hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from models import Net
from test_interventions import plain_loop
from torch import Tensor, nn

from plasticity import measure, watch, wiring
from plasticity.interventions import ReDo

Then = Callable[[Tensor], Tensor]

SEQUENCES: dict[str, Then] = {
    "mean": lambda h: h.mean(1),
    "largest": lambda h: h.amax(1),
    "smooth maximum": lambda h: h.logsumexp(1),
    "spread": lambda h: h.std(1),
    "first": lambda h: h[:, 0],
    "half": lambda h: h[:, ::2],
    "graph": lambda h: (torch.ones(5, 5) / 3) @ h,
    "turned": lambda h: h.transpose(1, 2).mean(-1),
    "dropout": lambda h: F.dropout(h, 0.5),
    "alpha dropout": lambda h: F.alpha_dropout(h, 0.5, training=True),
    "squares": lambda h: h.square().mean(1),
}
CHANGES: dict[str, Then] = {
    "plus one": lambda h: h + 1,
    "in place": lambda h: h.clone().add_(1),
    "scaled": lambda h: h * torch.linspace(0.5, 2, 8) + 0.3,
    "power": lambda h: h**2,
    "cosine": torch.cos,
    "second activation": lambda h: F.relu(1 - h),
    "clamped": lambda h: h.clamp(0.5, 2),
    "filled": lambda h: h.masked_fill(h == 0, 1.0),
    "chosen": lambda h: torch.where(h > 0, h, torch.ones_like(h)),
    "with itself": lambda h: h * torch.sigmoid(h),
    "and dropped": lambda h: F.dropout(h + 1, 0.5),
}
IMAGES: dict[str, tuple[Callable[[], nn.Module], Then]] = {
    "max": (nn.Identity, lambda h: F.max_pool2d(h, 2)),
    "average": (nn.Identity, lambda h: F.avg_pool2d(h, 2)),
    "adaptive": (nn.Identity, lambda h: F.adaptive_avg_pool2d(h, 2)),
    "crop": (nn.Identity, lambda h: h[..., 1:3, 1:3]),
    "dropped channels": (nn.Identity, lambda h: F.dropout2d(h, 0.5)[..., ::2, ::2]),
    "batch norm": (lambda: nn.BatchNorm2d(8), lambda h: F.avg_pool2d(h, 2)),
    "group norm": (lambda: nn.GroupNorm(2, 8), lambda h: F.max_pool2d(h, 2)),
}


def sequence(name: str) -> tuple[nn.Module, Tensor, str, int]:
    """Return a model, its inputs, the module in front of the activation, and the axis of its neurons."""

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.o(SEQUENCES[name](F.relu(s.a(x))))

    return Net(forward, a=nn.Linear(6, 8), o=nn.Linear(8, 2)), torch.randn(12, 5, 6), "a", -1


def changed(name: str) -> tuple[nn.Module, Tensor, str, int]:
    """Return the same of values that are changed one by one."""

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.o(CHANGES[name](F.relu(s.a(x))))

    return Net(forward, a=nn.Linear(6, 8), o=nn.Linear(8, 2)), torch.randn(64, 6), "a", -1


def images(name: str) -> tuple[nn.Module, Tensor, str, int]:
    """Return the same of images."""
    norm, then = IMAGES[name]

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.o(then(F.relu(s.n(s.a(x)))).flatten(1))

    model = Net(forward, a=nn.Conv2d(3, 8, 3), n=norm(), o=nn.Linear(32, 2))
    return model, torch.randn(6, 3, 6, 6), "a" if norm is nn.Identity else "n", 1


CASES = [
    (build, name) for build, names in ((sequence, SEQUENCES), (changed, CHANGES), (images, IMAGES)) for name in names
]


@pytest.mark.parametrize(("build", "name"), CASES, ids=[name for _, name in CASES])
def test_what_follows_an_activation_does_not_change_its_readings(build: Callable[..., Any], name: str) -> None:
    torch.manual_seed(0)
    model, x, before, axis = build(name)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen: list[Tensor] = []
    getattr(model, before).register_forward_hook(lambda m, args, out: seen.append(out.detach().clone()))
    session = watch(model, optimizer, every=1, log=None)
    for _ in range(3):
        seen.clear()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        h = seen[-1].relu().movedim(axis, -1).reshape(-1, 8).double().numpy()
        reading = session.last["model"]
        np.testing.assert_allclose(reading.scores["dormancy"]["a"], np.abs(h).mean(0) / np.abs(h).mean(), rtol=1e-5)
        np.testing.assert_allclose(
            reading.values["effective_rank"]["a"], reference.ranks(h)["effective_rank"], rtol=1e-5
        )
        assert "a" in reading.scores["grama"]
    session.close()
    assert "seen behind" not in str(wiring(model, x))


def test_neurons_that_are_silent_before_a_smooth_maximum_are_recycled() -> None:
    torch.manual_seed(0)
    model, x, _, _ = sequence("smooth maximum")
    with torch.no_grad():
        model.a.weight[3], model.a.bias[3] = 0, -1
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    redo = ReDo(every=1, threshold=0)
    redo.on_train_start(plain_loop(model, optimizer)[0])
    model(x).square().mean().backward()
    optimizer.step()
    assert redo.counts["recycled"] == 1
    assert model.a.weight[3].any()
    assert not model.o.weight[:, 3].any()


def test_what_is_seen_only_behind_a_pool_says_so() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.o(F.relu(s.a(x) + s.b(x)).mean(1))  # an operation of two layers is not repeated

    model = Net(forward, a=nn.Linear(6, 8), b=nn.Linear(6, 8), o=nn.Linear(8, 2))
    assert wiring(model, torch.randn(4, 5, 6)).layers["a"].remarks == [
        "seen behind a pool, a sum, a selection of samples or a change of values"
    ]


FUNCTIONS: dict[str, tuple[Then, Then]] = {
    "leaky relu": (F.leaky_relu, nn.LeakyReLU()),
    "elu": (F.elu, nn.ELU()),
    "selu": (F.selu, nn.SELU()),
    "gelu": (F.gelu, nn.GELU()),
    "silu": (F.silu, nn.SiLU()),
    "mish": (F.mish, nn.Mish()),
    "hardswish": (F.hardswish, nn.Hardswish()),
    "softplus": (F.softplus, nn.Softplus()),
    "log sigmoid": (F.logsigmoid, nn.LogSigmoid()),
    "tanh": (torch.tanh, nn.Tanh()),
    "relu 6": (F.relu6, nn.ReLU6()),
    "clamp": (lambda z: z.clamp(min=0), nn.ReLU()),
}
BY_HAND: dict[str, Then] = {
    "swish": lambda z: z * torch.sigmoid(z),
    "gelu": lambda z: (1 + torch.tanh(z)) * 0.5 * z,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_whose_values_are_changed_reads_as_its_module(name: str) -> None:
    scores = []
    for act in FUNCTIONS[name]:
        torch.manual_seed(0)
        model = Net(lambda s, x, act=act: s.o(act(s.a(x)) + 1), a=nn.Linear(6, 8), o=nn.Linear(8, 2))
        if isinstance(act, nn.Module):
            model.act = act
        scores.append(measure(model, torch.randn(64, 6), probes=["dormancy"]).scores["dormancy"]["a"])
    torch.testing.assert_close(*scores)


@pytest.mark.parametrize("name", BY_HAND)
def test_an_activation_by_hand_is_read_whole_and_its_changes_are_told(name: str) -> None:
    torch.manual_seed(0)
    act = BY_HAND[name]
    whole = Net(lambda s, x: s.o(act(s.a(x))), a=nn.Linear(6, 8), o=nn.Linear(8, 2))
    x = torch.randn(64, 6)
    h = act(whole.a(x)).detach().abs().mean(0)
    torch.testing.assert_close(measure(whole, x, probes=["dormancy"]).scores["dormancy"]["a"].float(), h / h.mean())
    assert wiring(whole, x).layers["a"].remarks == []
    after = Net(lambda s, x: s.o(act(s.a(x)) + 1), a=nn.Linear(6, 8), o=nn.Linear(8, 2))
    assert "change of values" in str(wiring(after, x))
