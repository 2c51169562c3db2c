"""ReDo's variants: golden numbers, scores against numpy, windows, running averages, schedules, and the overlap."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import models
import numpy as np
import pytest
import torch
from test_interventions import Recorder, plain_loop
from torch import nn, optim

from plasticity.interventions import ReDo
from plasticity.interventions.redo import lowest, scheduled_share

pytestmark = pytest.mark.usefixtures("everywhere")


def test_golden_numbers_of_the_schedule() -> None:
    found = [scheduled_share(0.3, step, 1000) for step in (0, 500, 1000, 2000)]
    assert found == pytest.approx([0.3, 0.212132, 0.0, 0.0], abs=1e-6)


def test_the_lowest_are_found_and_nan_leaves_a_layer_alone() -> None:
    assert lowest(torch.tensor([3.0, 1.0, 2.0]), 2).tolist() == [False, True, True]
    assert not lowest(torch.tensor([3.0, torch.nan, 2.0]), 2).any()


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()


class Seen(ReDo):
    """Keeps the scores of every application."""

    kept: list[dict[str, np.ndarray]]

    def scores(self, network: str, reading: Any) -> Any:
        found = super().scores(network, reading)
        self.kept.append({layer: score.numpy().copy() for layer, score in found.items()})
        return found


def run(steps: int, **settings: Any) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]], Recorder, Seen]:
    """Return the scores of applications, and of every step h, dL/dh and the weights before the application."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    optimizer = optim.SGD(net.parameters(), 0.05)
    ctx, writer = plain_loop(net, optimizer)
    rows: list[dict[str, np.ndarray]] = []
    hidden: list[torch.Tensor] = []

    def keep(module: Any, args: Any, out: torch.Tensor) -> None:
        if out.requires_grad:
            out.retain_grad()
            hidden.append(out)

    net[1].register_forward_hook(keep)

    def look(*_: Any) -> None:
        h = hidden[-1]
        weights = {"in": net[0].weight, "out": net[2].weight}
        rows.append({"h": array(h), "g": array(h.grad), **{k: array(w) for k, w in weights.items()}})

    optimizer.register_step_post_hook(look)
    method = Seen(threshold=0.0, **settings)
    method.kept = []
    method.on_train_start(ctx)
    for seed in range(steps):
        optimizer.zero_grad()
        net(models.normal(4 + seed, 3, seed=seed).double()).square().mean().backward()
        optimizer.step()
    return method.kept, rows, writer, method


def normalised(values: np.ndarray) -> np.ndarray:
    return values / values.mean()


@pytest.mark.parametrize("variant", ["gradient", "weight", "centred", "gxd"])
def test_scores_are_those_of_numpy(variant: str) -> None:
    settings = {
        "gradient": {"score": "gradient"},
        "weight": {"score": "weight"},
        "centred": {"centred": True},
        "gxd": {"score": "gradient", "centred": True},
    }[variant]
    kept, rows, _, _ = run(4, every=2, **settings)
    assert len(kept) == 2
    for found, row in zip(kept, rows[1::2], strict=True):
        deviation = row["h"] - row["h"].mean(0)
        expected = {
            "gradient": lambda row=row: np.abs(row["h"] * row["g"]).mean(0),
            "weight": lambda row=row: np.abs(row["in"]).mean(1) * np.abs(row["out"]).mean(0),
            "centred": lambda d=deviation: np.abs(d).mean(0),
            "gxd": lambda d=deviation, row=row: np.abs(d * row["g"]).mean(0),
        }[variant]()
        np.testing.assert_allclose(found["0"], normalised(expected), rtol=1e-6)


def test_the_golden_number_of_activation_times_gradient() -> None:
    reading = SimpleNamespace(
        scores={"activations": {"0": torch.tensor([[1.0, 2.0]])}, "gradients": {"0": torch.tensor([[0.5, -0.1]])}}
    )
    found = ReDo(score="gradient").magnitudes("net", reading)  # type: ignore[arg-type]
    assert found["0"].tolist() == pytest.approx([0.5, 0.2])


@pytest.mark.parametrize(
    "settings", [{}, {"centred": True}, {"score": "gradient"}], ids=["plain", "centred", "gradient"]
)
def test_a_window_weighs_samples_and_a_running_average_steps(settings: dict[str, Any]) -> None:
    def magnitude(row: dict[str, np.ndarray]) -> np.ndarray:
        h = row["h"] - row["h"].mean(0) if "centred" in settings else row["h"]
        return np.abs(h * row["g"] if "score" in settings else h).mean(0)

    kept, rows, _, _ = run(12, every=5, window=3, **settings)
    assert len(kept) == 2
    for found, last in zip(kept, (5, 10), strict=True):
        of = rows[last - 3 : last]
        expected = sum(magnitude(row) * len(row["h"]) for row in of) / sum(len(row["h"]) for row in of)
        np.testing.assert_allclose(found["0"], normalised(expected), rtol=1e-6)
    kept, rows, _, _ = run(10, every=5, ema=0.8, **settings)
    for found, last in zip(kept, (5, 10), strict=True):
        average, weight = 0.0, 0.0
        for row in rows[:last]:
            average, weight = 0.8 * average + 0.2 * magnitude(row), 0.8 * weight + 0.2
        np.testing.assert_allclose(found["0"], normalised(average / weight), rtol=1e-6)


def test_a_share_falls_and_the_overlap_with_the_last_application_is_logged() -> None:
    _, _, writer, _ = run(9, every=2, share=0.5, share_end=8, score="random")
    counts = [len(event["neurons"]["0"]) for event in writer.named("redo")]
    assert counts == [int(scheduled_share(0.5, step, 8) * 6) for step in (2, 4, 6)]
    assert len(writer.scalars["interventions/redo/net/flagged_again"]) == 3
    assert writer.scalars["interventions/redo/net/flagged_again"][-1] == 0.0  # at step 8 nothing is flagged


@pytest.mark.parametrize("kind", ["linear", "conv", "groups"])
def test_redrawn_rows_have_the_mean_norm_of_the_others(kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 6) if kind == "linear" else nn.Conv2d(2, 6, 2, groups=1 + (kind == "groups"))
    head = nn.Linear(6, 2) if kind == "linear" else nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    net = nn.Sequential(layer, nn.ReLU(), head).double()
    with torch.no_grad():
        layer.bias[[1, 4]] = -100.0  # dead
        layer.weight *= 5
    optimizer = optim.SGD(net.parameters(), 0.0)
    ctx, writer = plain_loop(net, optimizer)
    ReDo(every=1, threshold=0.0, incoming_scale=0.5).on_train_start(ctx)
    before = array(layer.weight)
    net(models.normal(*((8, 3) if kind == "linear" else (8, 2, 2, 2))).double()).square().sum().backward()
    optimizer.step()
    (event,) = writer.named("redo")
    assert set(next(iter(event["neurons"].values()))) >= {1, 4}
    chosen = next(iter(event["neurons"].values()))
    stays = [i for i in range(6) if i not in chosen]
    np.testing.assert_array_equal(array(layer.weight)[stays], before[stays])
    norms = np.sqrt((array(layer.weight).reshape(6, -1) ** 2).sum(1))
    np.testing.assert_allclose(norms[chosen], 0.5 * norms[stays].mean())


def test_random_scores_draw_from_the_methods_own_generator() -> None:
    first = run(2, every=2, share=0.5, score="random", seed=1)[2].named("redo")[0]["neurons"]
    assert run(2, every=2, share=0.5, score="random", seed=1)[2].named("redo")[0]["neurons"] == first
    others = [run(2, every=2, share=0.5, score="random", seed=s)[2].named("redo")[0]["neurons"] for s in range(2, 6)]
    assert any(other != first for other in others)


@pytest.mark.parametrize(
    "settings",
    [
        {"window": 0},
        {"window": 2, "when": "plasticity/a/b/all > 1"},
        {"window": 2000},
        {"ema": 1.0},
        {"ema": 0.5, "window": 3},
        {"score": "weight", "centred": True},
        {"score": "random", "ema": 0.5},
        {"share": 0.0},
        {"share_end": 0},
        {"incoming_scale": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ReDo needs"):
        ReDo(**settings)
