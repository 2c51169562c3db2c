"""Probes: measurements of single layers, one file per family. ``PROBES`` is the contents page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial

from plasticity.metrics import DEFAULT_PROBES, SETS, expanded

from .activity import Activity, inactive_fraction, normalised_scores
from .check import require_probe
from .conflict import LossCosine
from .curvature import Hessian, Sharpness
from .dormancy import Dormancy
from .firing import ActiveEntries, ActiveUnits, Dead, Linearised, NeverFired, RarelyFires, Saturated
from .gradient import GradientKurtosis, GradientNorm, StepCosine, UnitUpdates, ZeroGradients
from .grama import GradientActivity
from .inactivity import DormantAgain, DormantRatio, Quadrants, Silent, StillDormant
from .kernel import SampleGradients, TangentKernel
from .network import Again, NetworkProbe, NotMeasurable
from .probe import Probe
from .rank import RANKS, Rank, effective_rank, feature_rank, singular_values, srank, stable_rank
from .spectrum import FeatureNorm, Spectrum
from .transformer import Attention, ResidualStream, Router, TokenEntropy
from .weights import Distance, EffectiveRate, Unchanged, UpdateRatio, WeightMagnitude, WeightSpectrum

PROBES: dict[str, Callable[[], Probe]] = {
    "dormancy": Dormancy,
    "grama": GradientActivity,
    "grama_weight": partial(GradientActivity, "weight"),
    "grama_linear": partial(GradientActivity, "linear"),
    "grama_post": partial(GradientActivity, "post"),
    "rank": Rank,
    "effective_rank": partial(Rank, ["effective_rank"]),
    "srank": partial(Rank, ["srank"]),
    "stable_rank": partial(Rank, ["stable_rank"]),
    "feature_rank": partial(Rank, ["feature_rank"]),
    "rdu": DormantRatio,
    "fau": ActiveEntries,
    "fau_units": ActiveUnits,
    "dead": Dead,
    "never_fired": NeverFired,
    "rarely_fires": RarelyFires,
    "linearised": Linearised,
    "saturated": Saturated,
    "silent": Silent,
    "quadrants": Quadrants,
    "dormant_again": DormantAgain,
    "still_dormant": StillDormant,
    "gradient_norm": GradientNorm,
    "zero_gradient": ZeroGradients,
    "gradient_kurtosis": GradientKurtosis,
    "rua": UnitUpdates,
    "rua_volatile": partial(UnitUpdates, "volatile"),
    "step_cosine": StepCosine,
    "spectrum": Spectrum,
    "feature_norm": FeatureNorm,
    "weight_magnitude": WeightMagnitude,
    "weight_spectrum": WeightSpectrum,
    "weight_distance": Distance,
    "weight_change": partial(Distance, "reading"),
    "update_ratio": UpdateRatio,
    "effective_lr": EffectiveRate,
    "unchanged": Unchanged,
    "sample_gradients": SampleGradients,
    "ntk": TangentKernel,
    "loss_cosine": LossCosine,
    "hessian": Hessian,
    "sharpness": Sharpness,
    "attention": Attention,
    "residual_stream": ResidualStream,
    "router": Router,
    "token_entropy": TokenEntropy,
}
"""Name -> a probe with its default settings; ``rank`` gives all four ranks from one decomposition."""


def make_probes(probes: Mapping[str, Probe] | Iterable[str]) -> dict[str, Probe]:
    """Return probes by name, those that are given as names, of probes or of sets of them, with default settings.

    Raises ValueError for an unknown name, for an entry that fails, and for an object that is no usable probe: see
    :func:`require_probe`.
    """
    if isinstance(probes, Mapping):
        return {name: require_probe(name, probe) for name, probe in probes.items()}
    names = [probes] if isinstance(probes, (str, Probe)) else list(probes)
    if nameless := [probe for probe in names if not isinstance(probe, str)]:
        found = nameless[0].__name__ if isinstance(nameless[0], type) else type(nameless[0]).__name__
        raise ValueError(f"probes are names or a mapping from names to probes, {{'mine': {found}()}}; got {probes!r}")
    names = expanded(names, PROBES)
    if unknown := [name for name in names if name not in PROBES]:
        near = get_close_matches(unknown[0], [*PROBES, *SETS], 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"unknown probe {', '.join(unknown)}; {hint}there are {', '.join(PROBES)}; sets: {', '.join(SETS)}"
        )
    return {name: require_probe(name, _made(name)) for name in names}


def _made(name: str) -> Probe:
    """Return a new probe of a registered name; ValueError, with that name, where its entry fails."""
    try:
        return PROBES[name]()
    except Exception as error:
        raise ValueError(f"PROBES[{name!r}] must make a probe: {type(error).__name__}: {error}") from error


__all__ = [
    "DEFAULT_PROBES",
    "PROBES",
    "RANKS",
    "SETS",
    "Activity",
    "Again",
    "Dormancy",
    "GradientActivity",
    "NetworkProbe",
    "NotMeasurable",
    "Probe",
    "Rank",
    "effective_rank",
    "feature_rank",
    "inactive_fraction",
    "make_probes",
    "normalised_scores",
    "require_probe",
    "singular_values",
    "srank",
    "stable_rank",
]
