"""GraMa behind a norm: a neuron that never fires scores 0, whatever the norm mixes in from its neighbours."""

from __future__ import annotations

import copy
from collections.abc import Callable
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

from plasticity.interventions import ReGraMa
from plasticity.measuring import measure
from plasticity.structure.trace import wiring

pytestmark = pytest.mark.usefixtures("everywhere")

WIDTH, DEAD = 12, 4
READINGS = ["dormancy", "grama", "grama_weight", "grama_linear"]


class OwnRMSNorm(nn.Module):
    """A norm written by hand, as language models have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Divide by the root mean square."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)) + self.bias


class RMSNormWithBias(nn.Module):
    """torch's RMSNorm and a bias, so that its neurons can be silenced."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.bias = nn.RMSNorm(width), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and shift."""
        return self.norm(x) + self.bias


def functional(s: Any, x: Tensor) -> Tensor:
    return s.o(F.relu(s.norm(s.a(x))))


def in_place(s: Any, x: Tensor) -> Tensor:
    return s.o(s.norm(s.a(x)).relu_())


def deep(s: Any, x: Tensor) -> Tensor:
    """Put a residual block around the layer."""
    return s.o(x.repeat(1, 3) + s.c(F.relu(s.norm(s.a(x)))))


def convolution(s: Any, x: Tensor) -> Tensor:
    return s.o(F.relu(s.norm(s.a(x.view(-1, 1, 2, 2)))).flatten(1))


CASES: dict[str, tuple[Callable[..., Tensor], Callable[[], nn.Module]]] = {
    "layer norm": (functional, lambda: nn.LayerNorm(WIDTH)),
    "layer norm, in place": (in_place, lambda: nn.LayerNorm(WIDTH)),
    "layer norm, sequences": (functional, lambda: nn.LayerNorm(WIDTH)),
    "batch norm": (functional, lambda: nn.BatchNorm1d(WIDTH)),
    "group norm": (functional, lambda: nn.GroupNorm(2, WIDTH)),
    "rms norm": (functional, lambda: RMSNormWithBias(WIDTH)),
    "own rms norm": (functional, lambda: OwnRMSNorm(WIDTH)),
    "two norms": (functional, lambda: nn.Sequential(nn.LayerNorm(WIDTH), OwnRMSNorm(WIDTH))),
    "residual block": (deep, lambda: nn.LayerNorm(WIDTH)),
    "convolution, batch norm": (convolution, lambda: nn.BatchNorm2d(WIDTH)),
    "convolution, group norm": (convolution, lambda: nn.GroupNorm(2, WIDTH)),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network with a norm between its layer and the activation, in which the first neurons never fire."""
    torch.manual_seed(0)
    forward, norm = CASES[name]
    first = nn.Conv2d(1, WIDTH, 1) if forward is convolution else nn.Linear(4, WIDTH)
    last = 4 * WIDTH if forward is convolution else WIDTH
    more = {"c": nn.Linear(WIDTH, WIDTH)} if forward is deep else {}
    model = Net(forward, a=first, norm=norm(), **more, o=nn.Linear(last, 2))
    biases = [p for key, p in model.norm.named_parameters() if key.endswith("bias")]
    with torch.no_grad():
        biases[-1].copy_(torch.where(torch.arange(WIDTH) < DEAD, -100.0, 1.0))
    x = models.normal(16, 5, 4) if "sequences" in name else models.normal(64, 4)
    return model.double(), x.double()


def loss_of(output: Tensor, target: Any) -> Tensor:
    return (output - 1).square().mean()


@pytest.mark.parametrize("name", CASES)
def test_neurons_that_a_norm_keeps_silent_score_0(name: str) -> None:
    model, x = build(name)
    reading = measure(model, (x, None), loss_of, probes=READINGS)
    for probe in ("dormancy", "grama", "grama_weight"):
        scores = reading.scores[probe]["a"]
        assert (scores[:DEAD] == 0).all(), probe
        assert (scores[DEAD:] > 0.01).all(), probe
    if name != "batch norm" and "convolution, batch" not in name:  # in evaluation mode it mixes nothing
        assert (reading.scores["grama_linear"]["a"][:DEAD] > 0).all()


@pytest.mark.parametrize("name", CASES)
def test_the_readings_are_those_of_autograd(name: str) -> None:
    model, x = build(name)
    reading = measure(model, (x, None), loss_of, probes=READINGS)
    model = copy.deepcopy(model).eval()
    seen: dict[str, Tensor] = {}
    model.a.register_forward_hook(lambda m, i, out: seen.update(z=out))
    model.norm.register_forward_hook(lambda m, i, out: (seen.update(y=out), out.clone())[1])
    loss = loss_of(model(x), None)
    z, y, weight = torch.autograd.grad(loss, [seen["z"], seen["y"], model.a.weight])
    axis = 1 if z.dim() == 4 else -1
    expected = {
        "grama": reference.scores(reference.rows(y.movedim(axis, -1))),
        "grama_linear": reference.scores(reference.rows(z.movedim(axis, -1))),
    }
    magnitudes = weight.flatten(1).abs().mean(1)
    magnitudes[:DEAD] = 0
    expected["grama_weight"] = (magnitudes / magnitudes.mean()).numpy(force=True)
    for probe, by_hand in expected.items():
        np.testing.assert_allclose(reading.scores[probe]["a"].numpy(force=True), by_hand, rtol=1e-9, err_msg=probe)


@pytest.mark.parametrize("score", ["pre", "weight"])
@pytest.mark.parametrize("name", CASES)
def test_regrama_recycles_them_whole(name: str, score: Any) -> None:
    model, x = build(name)
    wired = wiring(model, x)
    ctx, writer = plain_loop(model, torch.optim.SGD(model.parameters(), 0.0))
    regrama = ReGraMa(every=1, threshold=0.0, score=score)
    regrama.on_train_start(ctx)
    loss_of(model(x), None).backward()
    ctx.optimizers["net"].step()
    regrama.on_train_end(ctx)
    (event,) = writer.named("regrama")
    dead = list(range(DEAD))
    assert event["neurons"]["a"] == dead
    weight = wired.layers["a"].consumers[0]
    into = model.get_submodule(weight.layer).weight.flatten(1)
    carried = torch.isin(weight.columns, torch.tensor(dead, device="cpu")).to(into.device)
    assert not into[:, carried].any()
    assert into[:, ~carried].all()
    for norm in wired.layers["a"].norms:
        module = model.get_submodule(norm.module)
        assert (module.weight[:DEAD] == 1).all()
        if getattr(module, "bias", None) is not None:
            assert (module.bias[:DEAD] == 0).all()


def test_readings_agree_where_no_norm_stands_between() -> None:
    model, x = models.mlp().double(), models.vectors().double()
    scores = measure(model, (x, None), loss_of, probes=["grama", "grama_linear"]).scores
    torch.testing.assert_close(scores["grama"], scores["grama_linear"], rtol=0, atol=0)


def test_a_norm_that_no_module_sees_is_no_reason_to_guess() -> None:
    model = Net(lambda s, x: s.o(F.relu(F.layer_norm(s.a(x), (6,)))), a=nn.Linear(4, 6), o=nn.Linear(6, 1))
    reading = measure(model, (models.vectors(), None), loss_of, probes=READINGS)
    reasons = {entry.probe: entry.reason for entry in reading.unmeasured if entry.layer == "a"}
    assert reasons.keys() == {"grama", "grama_weight"}
    assert set(reasons.values()) == {"no module sees the input of its activation, behind a norm"}
