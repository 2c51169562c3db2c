"""Probes alone: golden vectors, closed forms, a second implementation, and values that are no numbers."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from plasticity.measuring import measure
from plasticity.monitor import Monitor
from plasticity.probes import (
    PROBES,
    RANKS,
    Activity,
    Dormancy,
    GradientActivity,
    Rank,
    effective_rank,
    feature_rank,
    inactive_fraction,
    make_probes,
    normalised_scores,
    singular_values,
    srank,
    stable_rank,
)
from plasticity.probes.rank import _warn

pytestmark = pytest.mark.usefixtures("everywhere")


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- ranks -------------------------------------------------------------------------------------------------------------


def ranks_of(features: Tensor) -> dict[str, float]:
    sigma = singular_values(features)
    return {name: float(rank(sigma, len(features))) for name, rank in RANKS.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_ranks(dtype: torch.dtype) -> None:
    found = ranks_of(reference.matrix([10, 5, 1, 0.1], 100).to(dtype))
    assert found["effective_rank"] == pytest.approx(2.370542, abs=1e-5)
    assert found["srank"] == 3
    assert found["stable_rank"] == pytest.approx(1.2601, abs=1e-5)
    assert found["feature_rank"] == 3


def test_closed_forms_of_ranks() -> None:
    for k in (1, 7, 99):
        sigma = torch.ones(k, dtype=torch.float64)
        assert float(effective_rank(sigma)) == pytest.approx(k)
        assert float(srank(sigma)) == k
        assert float(stable_rank(sigma)) == pytest.approx(k)
    halves = 2.0 ** -torch.arange(12, dtype=torch.float64)
    assert float(effective_rank(halves)) == pytest.approx(3.99091, abs=1e-5)
    assert float(srank(halves)) == 7
    assert float(stable_rank(halves)) == pytest.approx(4 / 3 * (1 - 4.0**-12))
    assert float(effective_rank(f64(4, 3, 2, 1))) == pytest.approx(3.59612, abs=1e-5)
    assert float(srank(f64(4, 3, 2, 1))) == 4
    assert float(stable_rank(f64(4, 3, 2, 1))) == 1.875


@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (1, 5), (5, 1), (300, 64)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["gaussian", "relu", "collapsed"])
def test_ranks_agree_with_scipy(shape: tuple[int, int], dtype: torch.dtype, kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype)
    if kind == "relu":
        x = x.relu()
    if kind == "collapsed":
        x = x[:, :1] @ torch.randn(1, shape[1], dtype=dtype) + 1e-4 * x
    expected = reference.ranks(x.double().numpy(force=True))
    for name, value in ranks_of(x).items():
        assert value == pytest.approx(expected[name], rel=1e-5 if dtype == torch.float32 else 1e-9), name


def test_singular_values_of_many_sizes_of_number() -> None:
    x = torch.randn(40, 6)
    expected = np.linalg.svd(x.double().numpy(force=True), compute_uv=False)
    for scale in (1e-30, 1.0, 1e30):
        np.testing.assert_allclose(singular_values(x * scale).numpy(force=True), expected * scale, rtol=1e-5)


def test_a_zero_matrix_has_rank_zero() -> None:
    assert ranks_of(torch.zeros(9, 4)) == dict.fromkeys(RANKS, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranks_of_non_finite_features_are_nan(bad: float, dtype: torch.dtype) -> None:
    x = torch.randn(9, 4, dtype=dtype)
    x[3, 2] = bad
    assert all(math.isnan(value) for value in ranks_of(x).values())


def test_which_ranks_depend_on_the_scale() -> None:
    x = torch.randn(64, 8)
    for scale in (1e-9, 1e9):
        a, b = ranks_of(x), ranks_of(x * scale)
        for name in ("effective_rank", "srank", "stable_rank"):
            assert b[name] == pytest.approx(a[name], rel=1e-5)
    assert float(feature_rank(singular_values(x * 1e-9), 64)) == 0  # Lyle's depends on it by definition


def test_empty_features_are_refused() -> None:
    for shape in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="empty"):
            singular_values(torch.zeros(shape))


def test_rank_keeps_the_first_samples_and_copies_them() -> None:
    probe = Rank(["effective_rank"], max_samples=6)
    x = torch.randn(4, 2)
    expected = torch.cat([x, x[:2]])
    for _ in range(3):
        probe.on_forward(x)
    x.zero_()
    assert float(probe.compute()["effective_rank"]) == pytest.approx(ranks_of(expected)["effective_rank"])


@pytest.mark.parametrize("probes", ["rank", "spectrum"])
@pytest.mark.parametrize(
    ("samples", "said"),
    [(5, ["fewer samples than features"]), (9, ["fewer than 2 samples a feature"]), (18, [])],
)
def test_fewer_than_two_samples_a_feature_warn_once(probes: str, samples: int, said: list[str]) -> None:
    model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 1))
    _warn.cache_clear()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            measure(model, torch.randn(samples, 4), probes=[probes])
    assert len(seen) == len(said)
    assert all(part in str(one.message) for part, one in zip(said, seen, strict=True))


# -- scores ------------------------------------------------------------------------------------------------------------


def test_golden_grama_and_redo() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [-1, -1]]))
        model[2].weight.copy_(torch.tensor([[1.0, -2, 3]]))
        model[0].bias.zero_()
        model[2].bias.zero_()
    x, y = torch.tensor([[1.0, 2], [3, 0.5]]), torch.tensor([[0.0], [1]])
    probes = make_probes(["dormancy", "grama", "grama_weight", "grama_post"])
    with Monitor(model, probes) as monitor:
        loss = F.mse_loss(model(x), y)
        loss.backward()
    scores = monitor.read().scores
    assert loss.item() == 5
    assert scores["grama"]["0"].tolist() == [1, 2, 0]
    assert scores["grama_weight"]["0"].tolist() == [1, 2, 0]
    assert scores["grama_post"]["0"].tolist() == [0.5, 1, 1.5]
    assert scores["dormancy"]["0"].tolist() == pytest.approx([1.84615, 1.15385, 0], abs=1e-5)
    assert model[0].weight.grad.tolist() == [[0, -5.5], [0, 11], [0, 0]]


def test_a_threshold_is_met_by_equality() -> None:
    assert float(inactive_fraction(f64(0, 0.5, 2.5), 0.5)) == pytest.approx(2 / 3)
    assert float(inactive_fraction(f64(0, 1e-12, 2), 0)) == pytest.approx(1 / 3)


def test_a_dead_layer_is_wholly_dormant() -> None:
    scores = normalised_scores(torch.zeros(5))
    assert scores.tolist() == [0] * 5
    assert float(inactive_fraction(scores, 0.0)) == 1


@given(st.lists(st.floats(0, 1e3, width=32), min_size=1, max_size=20))
def test_scores_agree_with_the_definition(values: list[float]) -> None:
    magnitudes = f64(*values)
    scores = normalised_scores(magnitudes)
    assert scores.tolist() == pytest.approx(reference.scores(magnitudes.numpy(force=True)[None]).tolist())
    assert 0 <= float(scores.min()) <= float(scores.max()) <= len(values) * (1 + 1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_non_finite_magnitude_makes_all_scores_nan(bad: float) -> None:
    scores = normalised_scores(f64(1, bad, 2))
    assert scores.isnan().all()
    assert math.isnan(inactive_fraction(scores, 0.1))
    assert normalised_scores(torch.full((3,), 3e38)).isnan().all()  # their sum overflows: not dormant, unknown


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1.0, 1e9, 1e30])
@pytest.mark.parametrize("make", [lambda: Dormancy(0.3), lambda: GradientActivity("pre", 0.3)])
def test_scores_do_not_depend_on_the_scale(make: type[Activity], scale: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 6) * torch.tensor([1, 2, 3, 0.1, 0, 5])
    probe = make()
    getattr(probe, probe.signal)(x * scale)
    assert probe.scores().tolist() == pytest.approx(reference.scores(reference.rows(x)).tolist(), rel=1e-5)
    assert float(probe.compute()) == pytest.approx(2 / 6)


def test_samples_count_once_however_they_arrive() -> None:
    x = torch.randn(10, 4)
    whole, parts = Dormancy(), Dormancy()
    whole.on_forward(x)
    for part in (x[:1], x[1:3], x[3:]):
        parts.on_forward(part)
    torch.testing.assert_close(whole.scores(), parts.scores())


def test_many_samples_do_not_drown_the_small_ones() -> None:
    probe = Dormancy()
    for _ in range(3):
        probe.on_forward(torch.full((1 << 20, 1), 0.1))
    assert float(probe.magnitudes()) == pytest.approx(0.1, rel=1e-7)


@pytest.mark.parametrize("rows", [1, 7, 1000, 1 << 17])
def test_reduced_passes_add_up_to_what_rows_say(rows: int) -> None:
    torch.manual_seed(0)
    passes = [torch.randn(rows, 5) * torch.tensor([1, 1e-3, 0, 10, 2]) for _ in range(3)]
    for name in ("dormancy", "grama", "grama_post"):
        fed, summed = PROBES[name](), PROBES[name]()
        ((signal, summand),) = fed.sums().items()
        for x in passes:
            getattr(fed, signal)(x)
        summed.add(signal, sum(summand(x).double() for x in passes), 3 * rows)
        expected = torch.cat(passes).double().abs().mean(0)
        for probe in (fed, summed):
            torch.testing.assert_close(probe.magnitudes(), expected, rtol=1e-6, atol=0)


def test_a_method_that_a_subclass_overrides_alone_is_called() -> None:
    class Doubled(Dormancy):
        def on_forward(self, activations: Tensor) -> None:
            super().on_forward(2 * activations)

    assert [probe.takes_rows("on_forward") for probe in (Dormancy(), Doubled(), Rank())] == [False, True, True]
    model, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.randn(8, 2)
    with Monitor(model, {"doubled": Doubled()}) as monitor:
        model(x)
    expected = 2 * model[:2](x).mean(0).double()
    torch.testing.assert_close(monitor._observer.gathering.fed()["doubled", "0"].magnitudes(), expected)


def test_weight_gradients_add_with_their_signs() -> None:
    probe = GradientActivity("weight")
    probe.on_backward(torch.ones(3, 2))
    probe.on_weight_gradient(torch.tensor([[1.0, -1], [2, 2]]))
    probe.on_weight_gradient(torch.tensor([[-1.0, 1], [2, 2]]))
    assert probe.scores().tolist() == [0, 2]


def test_probes_forget_and_refuse() -> None:
    for probe in (PROBES[name]() for name in PROBES):
        with pytest.raises(RuntimeError, match="seen no data"):
            probe.compute()
    with pytest.raises(ValueError, match="at least one sample"):
        Dormancy().on_forward(torch.zeros(0, 3))
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match="threshold"):
            Dormancy(wrong)
    with pytest.raises(ValueError, match="pre, weight, linear, post"):
        GradientActivity("before")
    with pytest.raises(ValueError, match="effective_rank"):
        Rank(["numerical_rank"])
    with pytest.raises(ValueError, match=r"unknown probe gramma; did you mean grama\? there are dormancy, grama"):
        make_probes(["dormancy", "gramma"])


# -- the theorem -------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    shift=st.floats(-3, 1),
)
@pytest.mark.slow_off_the_cpu
def test_a_relu_neuron_that_never_fires_has_no_gradient(seed: int, widths: list[int], shift: float) -> None:
    """The paper's theorem, which holds in the readings ``pre`` and ``weight``."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i, o in zip([3, *widths], widths, strict=False):
        layers += [nn.Linear(i, o), nn.ReLU()]
        nn.init.constant_(layers[-2].bias, shift)
    model = nn.Sequential(*layers, nn.Linear(widths[-1], 2))
    batch = torch.randn(8, 3), torch.randn(8, 2)
    scores = measure(model, batch, F.mse_loss, probes=["dormancy", "grama", "grama_weight"]).scores
    for layer, values in scores["dormancy"].items():
        dead = values == 0
        assert (scores["grama"][layer][dead] == 0).all()
        assert (scores["grama_weight"][layer][dead] == 0).all()
