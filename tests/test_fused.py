"""Fused projections: each part of one weight reads as a layer of its own with that part of the weight does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_interventions import recycled_once
from torch import Tensor, nn

from plasticity import measure, wiring

pytestmark = pytest.mark.usefixtures("everywhere")

WIDTH, HEADS = 8, 2
PROBES = ["dormancy", "grama", "grama_weight", "rank"]
Parts = tuple[Tensor, Tensor, Tensor]


def by_slices(z: Tensor) -> Parts:
    return z[..., :WIDTH], z[..., WIDTH : 2 * WIDTH], z[..., 2 * WIDTH :]


def by_view(z: Tensor) -> Parts:
    q, k, v = z.view(*z.shape[:2], 3, WIDTH).unbind(2)
    return q, k, v


def by_selection(z: Tensor) -> Parts:
    three = z.view(*z.shape[:2], 3, WIDTH).permute(2, 0, 1, 3)
    return three[0], three[1], three[2]


def by_head(z: Tensor) -> Parts:
    q, k, v = z.view(*z.shape[:2], HEADS, 3 * WIDTH // HEADS).chunk(3, -1)
    return q.flatten(2), k.flatten(2), v.flatten(2)


IN_ORDER = torch.arange(3 * WIDTH).view(3, WIDTH)
BY_HEAD = torch.arange(3 * WIDTH).view(HEADS, 3, WIDTH // HEADS).transpose(0, 1).reshape(3, WIDTH)
DIVISIONS: dict[str, tuple[Callable[[Tensor], Parts], Tensor]] = {
    "chunk": (lambda z: z.chunk(3, -1), IN_ORDER),  # type: ignore[dict-item, return-value]
    "split": (lambda z: torch.split(z, WIDTH, dim=2), IN_ORDER),  # type: ignore[dict-item, return-value]
    "slices": (by_slices, IN_ORDER),
    "view and unbind": (by_view, IN_ORDER),
    "view and select": (by_selection, IN_ORDER),
    "by head": (by_head, BY_HEAD),
    "transposed before": (lambda z: tuple(p.mT for p in z.mT.split(WIDTH, 1)), IN_ORDER),  # type: ignore[dict-item]
}


class Attention(nn.Module):
    """One head of attention: queries, keys and values from one weight, or from three."""

    def __init__(self, divide: Callable[[Tensor], Parts] | None) -> None:
        super().__init__()
        self.divide = divide
        if divide is None:
            self.q, self.k, self.v = (nn.Linear(5, WIDTH) for _ in range(3))
        else:
            self.qkv = nn.Linear(5, 3 * WIDTH)
        self.o, self.up, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 12), nn.Linear(12, 2)

    def parts(self, x: Tensor) -> Parts:
        return (self.q(x), self.k(x), self.v(x)) if self.divide is None else self.divide(self.qkv(x))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (turned(part) for part in self.parts(x))
        weights = (q @ k.mT / WIDTH**0.5).softmax(-1)
        return self.head(F.relu(self.up(self.o(weights @ v))))


def turned(x: Tensor) -> Tensor:
    """Rotate the halves, as rotary embeddings do: they are taken apart as well."""
    first, second = x[..., : WIDTH // 2], x[..., WIDTH // 2 :]
    return x * 0.8 + torch.cat([-second, first], -1) * 0.6


@pytest.mark.parametrize("way", DIVISIONS)
def test_parts_are_what_layers_of_their_own_would_be(way: str) -> None:
    torch.manual_seed(0)
    divide, rows = DIVISIONS[way]
    fused, apart = Attention(divide), Attention(None)
    state = {name: value for name, value in fused.state_dict().items() if not name.startswith("qkv")}
    for name, part in zip("qkv", rows, strict=True):
        state |= {f"{name}.weight": fused.qkv.weight.detach()[part], f"{name}.bias": fused.qkv.bias.detach()[part]}
    apart.load_state_dict(state)
    batch = torch.randn(16, 4, 5), torch.randn(16, 4, 2)
    found, expected = (measure(model, batch, F.mse_loss, probes=PROBES) for model in (fused, apart))
    for index, name in enumerate("qkv"):
        for metric, values in expected.values.items():
            assert found.values[metric][f"qkv.{index}"] == pytest.approx(values[name], rel=1e-4, abs=1e-6), metric
        for probe, scores in expected.scores.items():
            torch.testing.assert_close(found.scores[probe][f"qkv.{index}"], scores[name], rtol=1e-4, atol=1e-6)
    assert found.values["dormancy"]["all"] == expected.values["dormancy"]["all"]
    assert "qkv" not in found.num_neurons
    assert {entry.layer for entry in found.unmeasured} == {"head"}


class Encoder(nn.Module):
    """A layer without an activation, and what becomes of its neurons."""

    def __init__(self, use: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.use, self.z, self.head = use, nn.Linear(5, 8), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(self.z(x)))


WHOLE: dict[str, Callable[[Tensor], Tensor]] = {
    "used as a whole, too": lambda z: z[:, :4] + z[:, 4:] * z.sum(-1, keepdim=True),
    "a part is dropped": lambda z: z[:, :4],
    "parts overlap": lambda z: z[:, :4] + z[:, 3:7] + z[:, 4:],
    "a part is activated": lambda z: z[:, :4] * z[:, 4:].sigmoid(),
    "parts of samples": lambda z: torch.cat([z[:8], z[8:]])[:, :4],
}


@pytest.mark.parametrize("use", WHOLE)
def test_what_is_no_fused_projection_stays_whole(use: str) -> None:
    model, x = Encoder(WHOLE[use]), torch.randn(16, 5)
    assert not wiring(model, x).layers["z"].parts
    assert set(measure(model, x, probes=["dormancy"]).num_neurons) == {"z"}


def test_globs_name_the_whole_or_a_part() -> None:
    model, x = Attention(by_slices), torch.randn(16, 4, 5)
    assert set(measure(model, x, probes=["dormancy"], layers=["qkv"]).num_neurons) == {"qkv.0", "qkv.1", "qkv.2"}
    assert set(measure(model, x, probes=["dormancy"], layers=["qkv.1"]).num_neurons) == {"qkv.1"}
    with pytest.raises(ValueError, match="no layer matches"):
        measure(model, x, probes=["dormancy"], layers=["kqv.1"])


def test_redo_leaves_fused_projections_alone() -> None:
    torch.manual_seed(0)
    model, x = Attention(by_slices), torch.randn(16, 4, 5)
    with torch.no_grad():
        for tensor in (model.qkv.weight, model.qkv.bias):
            tensor[[0, WIDTH + 1, 2 * WIDTH + 2]] = 0
        model.up.bias[3] = -100
    before = {name: value.clone() for name, value in model.state_dict().items()}
    writer = recycled_once(model, x)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= {"up.weight", "up.bias", "head.weight"}
    neurons = writer.named("redo")[0]["neurons"]
    assert [*neurons] == ["up"]
    assert 3 in neurons["up"]
    reasons = {event["layer"]: event["reason"] for event in writer.named("redo_skipped")}
    assert reasons["qkv"].startswith("qkv writes to a residual stream and has no columns of its own")
