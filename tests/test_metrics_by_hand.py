"""Every metric of layers on every kind of network, beside numpy on a run layer by layer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from scipy.stats import kurtosis
from test_metrics import naive_ranks
from test_probe_table import CASES, loss_of, prepare
from torch import nn

from plasticity.measuring import measure
from plasticity.metrics import SETS
from plasticity.probes import PROBES, NetworkProbe

QUICK = ("conv", "transformer", "tanh")
FIRES = {
    "tanh": lambda h: abs(h) < 0.99,
    **dict.fromkeys(("relu", "gelu", "silu"), lambda h: h > 0),
}


def by_rows(h: np.ndarray, activation: str | None) -> dict[str, float]:
    """Return metrics of a layer's activations, (samples, neurons), from their definitions."""
    found = {
        "feature_norm": float(np.mean(np.sqrt((h**2).sum(1)))),
        "feature_variance": float(h.var(0).mean()),
        **naive_ranks(h),
    }
    del found["numerical_rank"], found["numerical_rank_centred"]  # of float32 features, where these are float64
    found["numerical_rank"] = int(np.linalg.matrix_rank(h))
    if activation is None:
        return found
    fires = FIRES[activation](h)
    found |= {
        "fau": fires.mean(),
        "fau_units": (fires.mean(0) >= 0.01).mean(),
        "rarely_fires": (fires.mean(0) < 0.01).mean(),
    }
    found |= {"never_fired": (~fires.any(0)).mean()}
    if activation == "relu":
        found |= {"dead": (h.max(0) <= 0).mean(), "linearised": (h.min(0) > 0).mean()}
    if activation == "tanh":
        found["saturated"] = (abs(h).mean(0) > 0.95).mean()
    return found


def by_scores(h: np.ndarray, dz: np.ndarray) -> dict[str, float]:
    """Return metrics of activations and of gradients at the activation's input, (samples, neurons) each."""
    activity, gradient = (abs(rows).mean(0) / abs(rows).mean() for rows in (h, dz))
    top = [np.argsort(-scores, kind="stable")[: max(1, round(len(scores) / 4))] for scores in (activity, gradient)]
    both = len(set(top[0].tolist()) & set(top[1].tolist()))
    return {
        "rdu": (activity <= 0.025).mean(),
        "silent": ((activity == 0) & (gradient == 0)).mean(),
        "quadrant_busy": both / len(activity),
        "quadrant_loud": (len(top[0]) - both) / len(activity),
    }


def by_weights(w: np.ndarray, g: np.ndarray) -> dict[str, float]:
    """Return metrics of a weight and its gradient, (neurons, inputs) each."""
    sigma = np.linalg.svd(w, compute_uv=False)
    scaled = sigma**2 / (sigma**2).mean()
    ratio = np.linalg.norm(g, axis=1) / (np.linalg.norm(w, axis=1) + 1e-8)
    ratio = ratio / ratio.mean()
    return {
        "weight_mean": abs(w).mean(),
        "weight_rms": math.sqrt((w**2).mean()),
        "weight_stable_rank": (w**2).sum() / sigma[0] ** 2,
        "weight_isometry": ((scaled - 1) ** 2).sum(),
        "gradient_norm": math.sqrt((g**2).sum()),
        "zero_gradient": (abs(g) < 1e-8).mean(),
        "gradient_kurtosis": kurtosis(g.flatten(), fisher=False),
        "rua": (ratio < 0.25).mean(),
        "rua_volatile": (ratio > 3).mean(),
    }


@pytest.mark.filterwarnings("ignore:.*samples:RuntimeWarning")  # few of them
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_every_metric_is_that_of_a_run_by_hand(name: str) -> None:
    model, inputs, hand = prepare(CASES[name])
    probes = [probe for probe in SETS["all"] if not isinstance(PROBES[probe](), NetworkProbe)]
    reading = measure(model, (inputs, None), loss_of, probes=probes)
    word = {"leaky gelu": "gelu", "tanh": "tanh", "silu": "silu"}.get(name, "relu")
    for layer, (z, h) in hand.hidden.items():
        module = model.get_submodule(layer)
        axis = -3 if isinstance(module, nn.Conv2d) else -1
        rows, dz = (reference.rows(t, axis) for t in (h, z.grad))
        w, g = (t.detach().flatten(1).numpy() for t in (module.weight, module.weight.grad))
        activation = None if layer in reading.projections else word
        for metric, value in (by_rows(rows, activation) | by_scores(rows, dz) | by_weights(w, g)).items():
            assert reading.values[metric][layer] == pytest.approx(float(value), rel=1e-6, abs=1e-9), (metric, layer)
