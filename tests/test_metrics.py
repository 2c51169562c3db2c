"""Probes of activity, gradients, ranks, weights: golden numbers, second implementations, what they cannot measure."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kurtosis
from torch import Tensor, nn

import plasticity
from plasticity.cli import main
from plasticity.meanings import MEANINGS
from plasticity.measuring import measure
from plasticity.metrics import DEFAULT_PROBES, SETS
from plasticity.probes import PROBES, Probe, make_probes
from plasticity.probes.firing import firing_counts
from plasticity.probes.gradient import cosine
from plasticity.probes.rank import numerical_rank, pca_rank
from plasticity.probes.spectrum import DEFINITIONS
from plasticity.watching import Watcher

FIRED = torch.tensor([[1, 0, 0, 0.2], [0, 0, 2, 0.3], [3, 0, 0, 0.1]])
"""Activations of three samples and four ReLU neurons: the second is dead, the last one linear."""
SIGMA = torch.tensor([10, 5, 1, 0.1], dtype=torch.float64)


def fed(name: str, activation: str | None = "relu", **signals: Tensor) -> Probe:
    """Return a probe that was given one pass."""
    probe = PROBES[name]()
    probe.activation = activation
    for signal, rows in signals.items():
        getattr(probe, signal)(rows)
    return probe


def value(name: str, activation: str | None = "relu", **signals: Tensor) -> float:
    """Return what a probe of one value says of one pass."""
    found = fed(name, activation, **signals).compute()
    assert isinstance(found, Tensor)
    return float(found)


# -- golden numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fau", 0.5), ("fau_units", 0.75), ("dead", 0.25), ("linearised", 0.25), ("never_fired", 0.25)],
)
def test_golden_activity(name: str, expected: float) -> None:
    assert value(name, on_forward=FIRED) == pytest.approx(expected)


def test_golden_saturation() -> None:
    rows = torch.tensor([[0.99, 0.1], [-0.999, 0.2]])
    assert value("saturated", "tanh", on_forward=rows) == 0.5
    assert value("saturated", "sigmoid", on_forward=(rows + 1) / 2) == 0.5, "the same input saturates both alike"


def test_golden_mean_of_layers() -> None:
    rdu, dormancy = PROBES["rdu"](), PROBES["dormancy"]()
    values, neurons = [2 / 4, 0.328], [4, 1000]
    assert rdu.of_network(values, neurons) == pytest.approx(0.414)
    assert dormancy.of_network([2 / 4, 0], neurons) == pytest.approx(2 / 1004)


def test_golden_relative_updates() -> None:
    probe = fed(
        "rua",
        on_weight_gradient=torch.tensor([[3.0, 4], [0, 0], [0.3, 0.4]]),
        on_weight=torch.tensor([[3.0, 4], [1, 0], [6, 8]]),
    )
    assert probe.scores().tolist() == pytest.approx([2.857143, 0, 0.142857], abs=1e-6)
    assert float(probe.compute()) == pytest.approx(2 / 3)  # type: ignore[arg-type]


def test_golden_zero_gradients() -> None:
    assert value("zero_gradient", on_weight_gradient=torch.tensor([[0, 1e-9], [1e-3, 0.1]])) == 0.5


def test_golden_kurtosis() -> None:
    assert value("gradient_kurtosis", on_weight_gradient=torch.tensor([[0.0, 0], [0, 1]])) == pytest.approx(7 / 3)
    assert value("gradient_kurtosis", on_weight_gradient=torch.tensor([[-2.0, 2], [-2, 2]])) == pytest.approx(1)
    assert math.isnan(value("gradient_kurtosis", on_weight_gradient=torch.ones(2, 2)))
    assert math.isnan(value("gradient_kurtosis", on_weight_gradient=torch.full((7, 7), 1 / 3).double()))


def test_golden_ranks() -> None:
    assert float(pca_rank(SIGMA)) == 2
    assert float(numerical_rank(SIGMA, (100, 4))) == 4
    assert float(DEFINITIONS["effective_rank_squares"][1](SIGMA)) == pytest.approx(1.722031, abs=1e-6)
    assert float(DEFINITIONS["effective_rank_centred"][1](SIGMA)) == pytest.approx(2.370542, abs=1e-6)


def test_golden_features() -> None:
    found = fed("feature_norm", on_forward=torch.tensor([[3.0, 4], [0, 1]])).compute()
    assert isinstance(found, dict)
    assert float(found["feature_norm"]) == 3


def test_golden_weights() -> None:
    found = fed("weight_magnitude", on_weight=torch.tensor([[3.0, 4]])).compute()
    assert isinstance(found, dict)
    assert float(found["weight_mean"]) == 3.5
    assert float(found["weight_rms"]) == pytest.approx(3.535534, abs=1e-6)
    spectrum = fed("weight_spectrum", on_weight=torch.diag(torch.tensor([2, 0.5]))).compute()
    assert isinstance(spectrum, dict)
    assert float(spectrum["weight_stable_rank"]) == pytest.approx(1.0625)
    assert float(spectrum["weight_isometry"]) == pytest.approx(1.557093, abs=1e-6)


def test_golden_steps() -> None:
    before = torch.tensor([[3.0, 4]])
    after = before + torch.tensor([[0.03, 0.04]])
    assert value("update_ratio", on_weight=after, on_weight_before=before) == pytest.approx(0.01, rel=1e-5)
    ones, zeros = torch.ones(1, 2), torch.zeros(1, 2)
    assert value("weight_distance", on_weight=ones, on_weight_before=zeros) == 1
    assert float(cosine(torch.tensor([1.0, 1]), torch.tensor([1.0, 0]))) == pytest.approx(0.707107, abs=1e-6)
    both = fed("unchanged", on_weight=torch.tensor([[1.0, 1 + 1e-5, 2, 0]]), on_weight_before=torch.ones(1, 4))
    assert {k: float(v) for k, v in both.compute().items()} == {"unchanged": 0.25, "unchanged_bf16": 0.5}  # type: ignore[union-attr]


def test_the_effective_rate_of_gradient_descent_is_its_own() -> None:
    model, readings = net(nn.ReLU()), list[Any]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    settings: dict[str, Any] = {"probes": ["effective_lr"], "every": 3, "window": 3, "strict": True}
    watcher = Watcher({"m": model}, [optimizer], lambda network, reading, step: readings.append(reading), **settings)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(16, 5)).square().mean().backward()
        optimizer.step()
    watcher.close()
    assert [reading.num_passes for reading in readings] == [1, 3]
    assert [reading.values["effective_lr"]["all"] for reading in readings] == pytest.approx([0.03, 0.03], rel=1e-5)


def test_a_step_of_a_weight_that_was_0_has_no_ratio() -> None:
    assert math.isnan(value("update_ratio", on_weight=torch.ones(1, 2), on_weight_before=torch.zeros(1, 2)))


def test_golden_quadrants() -> None:
    activity, gradient = torch.tensor([[4.0, 3, 2, 1]]), torch.tensor([[4.0, 1, 3, 2]])
    found = fed("quadrants", on_forward=activity, on_backward=gradient).compute()
    assert isinstance(found, dict)
    assert [float(v) for v in found.values()] == [0.25, 0, 0, 0.75]
    found = fed("quadrants", on_forward=activity, on_backward=gradient.flip(1)).compute()
    assert isinstance(found, dict)
    assert [float(v) for v in found.values()] == [0, 0.25, 0.25, 0.5]
    found = fed("quadrants", on_forward=torch.zeros(1, 4), on_backward=torch.zeros(1, 4)).compute()
    assert isinstance(found, dict)
    assert [float(v) for v in found.values()] == [0, 0, 0, 1], "no neuron of a dead layer is busy"


def test_golden_silence() -> None:
    activity, gradient = torch.tensor([[1.0, 0, 0, 2]]), torch.tensor([[0.0, 0, 1, 2]])
    probe = fed("silent", on_forward=activity, on_backward=gradient)
    assert float(probe.compute()) == 0.25  # type: ignore[arg-type]


# -- against second implementations ------------------------------------------------------------------------------------


def net(*activations: nn.Module) -> nn.Sequential:
    """Return a network with a hidden layer of 12 for each activation."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for number, activation in enumerate(activations):
        layers += [nn.Linear(12 if number else 5, 12), activation]
    return nn.Sequential(*layers, nn.Linear(12, 2))


def naive(model: nn.Sequential, x: Tensor, y: Tensor, layer: int) -> dict[str, float]:
    """Return metrics of one hidden layer with loops and numpy, from their definitions."""
    h = model[: layer + 2](x).detach().double().numpy()
    loss = F.mse_loss(model(x), y)
    weight = model[layer].weight
    (gradient,) = torch.autograd.grad(loss, [weight])
    w, g = weight.detach().double().numpy(), gradient.double().numpy()
    found = {
        "fau": float(np.mean([[value > 0 for value in row] for row in h])),
        "fau_units": float(np.mean([np.mean(h[:, i] > 0) >= 0.01 for i in range(h.shape[1])])),
        "dead": float(np.mean([max(h[:, i]) <= 0 for i in range(h.shape[1])])),
        "linearised": float(np.mean([min(h[:, i]) > 0 for i in range(h.shape[1])])),
        "gradient_norm": math.sqrt(sum(value**2 for value in g.flatten())),
        "zero_gradient": float(np.mean(np.abs(g) < 1e-8)),
        "gradient_kurtosis": float(kurtosis(g.flatten(), fisher=False)),
        "feature_norm": float(np.mean([math.sqrt(sum(v**2 for v in row)) for row in h])),
        "feature_variance": float(np.mean(np.var(h, axis=0))),
        "weight_mean": float(np.mean(np.abs(w))),
        "weight_rms": float(np.sqrt(np.mean(w**2))),
    }
    ratios = np.array([np.linalg.norm(a) / (np.linalg.norm(b) + 1e-8) for a, b in zip(g, w, strict=True)])
    ratios /= ratios.mean()
    found |= {"rua": float(np.mean(ratios < 0.25)), "rua_volatile": float(np.mean(ratios > 3))}
    wtw = w.T @ w if w.shape[1] < w.shape[0] else w @ w.T
    scaled = wtw * len(wtw) / np.trace(wtw)
    found["weight_isometry"] = float(np.sum((scaled - np.eye(len(wtw))) ** 2))
    found["weight_stable_rank"] = float(np.sum(w**2) / np.linalg.norm(w, 2) ** 2)
    return found | naive_ranks(h)


def naive_ranks(h: np.ndarray) -> dict[str, float]:
    """Return the ranks of features by numpy's decomposition."""
    centred = h - h.mean(0)

    def erank(p: np.ndarray) -> float:
        p = p[p > 0] / p.sum()
        return float(np.exp(-(p * np.log(p)).sum()))

    def least(values: np.ndarray, share: float) -> int:
        return next(k for k in range(1, len(values) + 1) if values[:k].sum() >= share * values.sum() * (1 - 1e-12))

    s, c = (np.linalg.svd(m, compute_uv=False) for m in (h, centred))
    return {
        "pca_rank": least(c**2, 0.99),
        "pca_rank_uncentred": least(s**2, 0.99),
        "numerical_rank": int(np.linalg.matrix_rank(h.astype(np.float32))),
        "numerical_rank_centred": int(np.linalg.matrix_rank(centred.astype(np.float32))),
        "effective_rank_centred": erank(c),
        "effective_rank_covariance": erank(np.linalg.eigvalsh(np.cov(h.T)).clip(0)),
        "effective_rank_squares": erank(s**2),
        "srank_centred": least(c, 0.99),
        "stable_rank_centred": float((c**2).sum() / c[0] ** 2),
    }


@pytest.mark.parametrize("dead", [0, 4])
def test_every_metric_agrees_with_a_second_implementation(dead: int) -> None:
    model = net(nn.ReLU(), nn.ReLU())
    with torch.no_grad():
        model[0].bias[:dead] = -100
        model[2].bias[:dead] = 100
    x, y = torch.randn(64, 5), torch.randn(64, 2)
    reading = measure(model, (x, y), F.mse_loss, probes=["all"])
    for layer in (0, 2):
        for metric, expected in naive(model, x, y, layer).items():
            assert reading.values[metric][str(layer)] == pytest.approx(expected, rel=1e-5, abs=1e-7), (metric, layer)
    norms = [reading.values["gradient_norm"][layer] for layer in ("0", "2")]
    assert reading.values["gradient_norm"]["all"] == pytest.approx(math.hypot(*norms))


def test_steps_are_those_of_the_optimizer() -> None:
    model = net(nn.ReLU(), nn.Tanh())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    kept, gradients = [copy.deepcopy(model.state_dict())], []
    names = ["weight_distance", "weight_change", "update_ratio", "effective_lr", "unchanged", "step_cosine"]
    readings: list[Any] = []
    watcher = Watcher({"m": model}, [optimizer], lambda n, r, s: readings.append(r), every=2, probes=names, strict=True)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(16, 5)).square().mean().backward()
        gradients.append(model[2].weight.grad.clone())
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        kept.append(copy.deepcopy(model.state_dict()))
    watcher.close()
    weights = [state["2.weight"].double() for state in kept]
    for number, step in enumerate((1, 3, 5)):
        found = {metric: by_layer["2"] for metric, by_layer in readings[number].values.items()}
        now, before = weights[step], weights[step - 1]
        assert found["update_ratio"] == pytest.approx(float((now - before).norm() / before.norm()), rel=1e-9)
        lengths = (now - before).norm() / gradients[step - 1].double().norm()
        assert found["effective_lr"] == pytest.approx(float(lengths), rel=1e-6)
        assert found["weight_distance"] == pytest.approx(float((now - weights[0]).square().mean().sqrt()), rel=1e-9)
        assert found["unchanged"] == float((now == before).double().mean())
        if number == 0:
            assert math.isnan(found["weight_change"])
            assert math.isnan(found["step_cosine"])
            continue
        then = weights[step - 2]
        assert found["weight_change"] == pytest.approx(float((now - then).square().mean().sqrt()), rel=1e-9)
        expected = F.cosine_similarity(gradients[step - 1].flatten(), gradients[step - 3].flatten(), dim=0)
        assert found["step_cosine"] == pytest.approx(float(expected), rel=1e-5)


def test_running_versions_remember() -> None:
    probe, shares = PROBES["rarely_fires"](), (0.5, 0.0, 0.25)
    ema, memory = 0.0, None
    for number, share in enumerate(shares):
        probe.reset()
        probe.memory, probe.activation = memory, "relu"
        probe.on_forward(torch.tensor([[float(i < 4 * share)] for i in range(4)]))
        ema = 0.9 * ema + 0.1 * share
        assert float(probe.scores()) == pytest.approx(ema / (1 - 0.9 ** (number + 1)))
        memory = probe.remember()
    never = PROBES["never_fired"]()
    for number, rows in enumerate(([[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]])):
        never.reset()
        never.memory, never.activation = memory if number else None, "relu"
        never.on_forward(torch.tensor(rows))
        memory = never.remember()
    assert float(never.compute()) == pytest.approx(1 / 3)  # type: ignore[arg-type]
    assert never.details() == {"samples": 1, "readings": 2}


def test_still_dormant() -> None:
    probe = PROBES["still_dormant"]()
    probe.memory = torch.tensor([True, True, False, False])
    probe.on_forward(torch.tensor([[0.0, 1, 0, 1]]))
    assert float(probe.compute()) == 0.5  # type: ignore[arg-type]
    assert probe.of_network([0.5, math.nan, 1.0], [4, 4, 4]) == 0.75


def test_dormant_again() -> None:
    probe = PROBES["dormant_again"]()
    assert "recycled" in probe.why_not()
    probe.recycled = [0, 1, 3]
    probe.on_forward(torch.tensor([[0.0, 1, 0, 1]]))
    assert float(probe.compute()) == pytest.approx(1 / 3)  # type: ignore[arg-type]
    assert probe.details() == {"recycled": 3}


# -- what cannot be measured -------------------------------------------------------------------------------------------

WORDS = {
    "relu": {"fau", "dead", "linearised"},
    "gelu": {"fau"},
    "leaky_relu": {"fau", "linearised"},
    "tanh": {"fau", "saturated"},
    "sigmoid": {"fau", "saturated"},
    "softplus": set(),
    "elu": {"fau", "linearised"},
    "hardswish": {"fau"},
    "hardtanh": set(),
}
MODULES = {
    "relu": nn.ReLU(),
    "gelu": nn.GELU(),
    "leaky_relu": nn.LeakyReLU(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "softplus": nn.Softplus(),
    "elu": nn.SELU(),
    "hardswish": nn.Hardswish(),
    "hardtanh": nn.ReLU6(),
}


@pytest.mark.parametrize("activation", WORDS)
def test_a_word_without_a_meaning_gives_no_value_and_says_why(activation: str) -> None:
    names = ("fau", "dead", "linearised", "saturated")
    model = net(MODULES[activation], nn.ReLU())
    reading = measure(model, torch.randn(32, 5), probes=names)
    assert {name for name in names if not math.isnan(reading.values[name]["0"])} == WORDS[activation]
    reasons = {entry.probe: entry.reason for entry in reading.unmeasured if entry.layer == "0"}
    assert all(reason.startswith(activation) for reason in reasons.values())
    if activation in ("softplus", "hardswish", "hardtanh"):  # the last two are flat, linear and bounded somewhere
        assert {reason.partition(": ")[2] for reason in reasons.values()} == {"this word is not defined for it"}
    assert reading.values["dead"]["all"] == pytest.approx(np.nanmean([reading.values["dead"][la] for la in ("0", "2")]))


def test_leaky_neurons_are_linear_on_either_side() -> None:
    assert value("linearised", "leaky_relu", on_forward=torch.tensor([[-1.0, 1, 1], [-2, 2, -1]])) == pytest.approx(
        2 / 3
    )


def test_without_steps_or_earlier_readings_there_is_a_reason() -> None:
    reading = measure(net(nn.ReLU()), (torch.randn(32, 5), torch.randn(32, 2)), F.mse_loss, probes=["all"])
    reasons = {entry.probe: entry.reason for entry in reading.unmeasured if entry.layer == "0"}
    assert reasons.pop("saturated").startswith("relu")
    steps = {"weight_distance", "weight_change", "update_ratio", "effective_lr", "unchanged"}
    assert {name for name, reason in reasons.items() if reason.startswith("no optimizer step")} == steps
    earlier = {name for name, reason in reasons.items() if reason.startswith("there is no earlier reading")}
    assert reasons.pop("dormant_again") == "none of its neurons was recycled in the last event"
    assert earlier == reasons.keys() - steps == {"still_dormant", "step_cosine"}


def test_counts_of_non_finite_rows_are_nan() -> None:
    counts = firing_counts(torch.tensor([[1.0, math.nan, math.inf], [1.0, 0.0, 0.0]]))
    assert counts[:, 0].tolist() == [2, 0, 0]
    assert counts[:, 1:].isnan().all()


def test_ranks_stand_beside_their_samples() -> None:
    reading = measure(net(nn.ReLU()), torch.randn(64, 5), probes=["spectrum"])
    details = reading.details["spectrum"]["0"]
    assert (details["samples"], details["features"], details["dtype"]) == (64, 12, "float32")
    assert "pca_rank" in details["centred"]
    assert "numerical_rank" not in details["centred"]
    plain = measure(net(nn.ReLU()), torch.randn(64, 5), probes=["rank"]).details["rank"]["0"]
    assert plain == {"samples": 64, "features": 12, "dtype": "float32", "centred": False}
    assert "spectrum: 64 samples, 12 features, float32, centred: pca_rank, " in str(reading)


def test_few_metrics_say_the_samples_of_ranks_in_one_line_too() -> None:
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2))
    reading = measure(model, torch.randn(64, 5))
    assert str(reading).count("rank: ") == 1
    assert str(reading).endswith("\nrank: 64 samples, 12 features, float32, not centred")
    model[2], model[4] = nn.Linear(12, 9), nn.Linear(9, 2)
    lines = str(measure(model, torch.randn(64, 5))).splitlines()[-2:]
    assert lines == [f"rank: 64 samples, {n} features, float32, not centred ({la})" for n, la in ((12, "0"), (9, "2"))]


def test_features_in_bfloat16_say_so_and_have_its_epsilon() -> None:
    model, x = net(nn.ReLU()).bfloat16(), torch.randn(64, 5).bfloat16()
    reading = measure(model, x, probes=["rank", "spectrum"])
    assert {reading.details[probe]["0"]["dtype"] for probe in ("rank", "spectrum")} == {"bfloat16"}
    sigma = np.linalg.svd(model[1](model[0](x)).double().detach().numpy(), compute_uv=False)
    expected = (sigma > sigma[0] * 64 * 2.0**-7).sum()
    assert reading.values["numerical_rank"]["0"] == expected < (sigma > sigma[0] * 64 * 2.0**-23).sum()
    many = measure(model, torch.randn(128, 5).bfloat16(), probes=["spectrum"])
    assert math.isnan(many.values["numerical_rank"]["0"])  # rounding alone could make every direction
    assert "numerical rank in this dtype" in next(e.reason for e in many.unmeasured if e.layer == "0")
    with torch.autocast("cpu", torch.bfloat16):
        assert measure(net(nn.ReLU()), x.float(), probes=["rank"]).details["rank"]["0"]["dtype"] == "bfloat16"


# -- sets --------------------------------------------------------------------------------------------------------------


def test_sets_stand_for_their_probes() -> None:
    assert tuple(make_probes(["basic"])) == DEFAULT_PROBES
    assert list(make_probes(["rank"])) == ["rank"], "a probe goes before a set"
    assert list(make_probes(["dead", "activity"]))[:2] == ["dead", "dormancy"]
    everything = {name for names in SETS.values() for name in names}
    assert set(make_probes(["all", "curvature", "transformer"])) == everything <= PROBES.keys()
    with pytest.raises(ValueError, match=r"did you mean activity\?.*sets: basic, activity"):
        make_probes(["activty"])


def test_every_probe_says_what_lists_need() -> None:
    for name, entry in PROBES.items():
        probe = entry()
        assert all((probe.KIND, probe.WORSE, probe.COST, probe.SOURCE)), name


def test_lists_tell_all_of_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    assert main(["list", "probes"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for name, entry in PROBES.items():
        probe, inside = entry(), [s for s, names in SETS.items() if name in names]
        facts = f"worse: {probe.WORSE}; cost: {probe.COST}; source: {probe.SOURCE}"
        assert f" {name} " in told
        assert facts + (f"; sets: {', '.join(inside)}" if inside else "") in told, name


def test_scores_have_low_quantiles() -> None:
    model = net(nn.ReLU(), nn.ReLU())
    names = [name for name in SETS["all"] if PROBES[name]().per_neuron]
    reading = measure(model, (torch.randn(64, 5), torch.randn(64, 2)), F.mse_loss, probes=names)
    for name in set(names) - {"saturated"}:
        low, middle = (reading.quantile(name, q)["0"] for q in (0.05, 0.5))
        assert low <= middle, name


def test_a_watched_loop_is_the_same_without() -> None:
    def run(watched: bool) -> list[Tensor]:
        model = net(nn.ReLU(), nn.Tanh())
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        session = (
            plasticity.watch(model, optimizer, every=1, log=None, probes=["all"], strict=True) if watched else None
        )
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(32, 5)).square().mean().backward()
            optimizer.step()
        if session is not None:
            session.close()
        return [p.detach() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False), strict=True))


# -- pages -------------------------------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[1] / "docs"


def test_every_metric_is_on_a_page_and_every_page_says_all_of_it() -> None:
    pages = {path: path.read_text() for path in [*DOCS.glob("probes/*.md"), DOCS / "meters.md"]}
    whole = "\n".join(pages.values())
    names = {
        n for n in (*PROBES, *MEANINGS, *DEFINITIONS) if not n.startswith("quadrant_")
    }  # written as _loud and so on
    assert {n for n in names if f"`{n}`" not in whole} == set()
    for path, text in pages.items():
        found = text.lower()
        for word in ("range", "elsewhere", "bad", "batch", "when not to trust it", "cost"):
            assert word in found or (word == "elsewhere" and path.stem in ("dormancy", "grama", "rank")), (path, word)
