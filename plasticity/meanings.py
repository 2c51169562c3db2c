"""Plasticity metrics in a sentence each: what a value is, what is bad, and the class that computes it.

A metric that is not listed here is described by the class that computes it: the first line of its docstring, and its
``WORSE``. A line in ``MEANINGS`` gives it words of its own, which one of several numbers of a probe needs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

from plasticity.source import class_constant, doc_of, page_at, target


class Meaning(NamedTuple):
    """One metric in words."""

    about: str
    """A noun phrase: what the number is."""
    bad: str
    """The values to worry about."""
    source: str
    """``folder.module.Class`` within the package, whose docstring says all of it."""


_LOW, _HIGH = "near 0", "near 1"
MEANINGS: dict[str, Meaning] = {
    "dormancy": Meaning(
        "Share of neurons that hardly fire beside the others of their layer", _HIGH, "probes.dormancy.Dormancy"
    ),
    "grama": Meaning(
        "Share of neurons that hardly get a gradient beside the others of their layer",
        _HIGH,
        "probes.grama.GradientActivity",
    ),
    "grama_weight": Meaning(
        "GraMa by the gradients of a neuron's weights, whose samples cancel", _HIGH, "probes.grama.GradientActivity"
    ),
    "grama_linear": Meaning(
        "GraMa at the layer's linear output, in front of a norm", _HIGH, "probes.grama.GradientActivity"
    ),
    "grama_post": Meaning(
        "GraMa behind the activation, where dead neurons have a score", _HIGH, "probes.grama.GradientActivity"
    ),
    "effective_rank": Meaning(
        "Number of directions that a layer's features span, by entropy",
        "falling while learning stalls",
        "probes.rank.Rank",
    ),
    "srank": Meaning(
        "Number of singular values that hold 99 % of the features", "falling while learning stalls", "probes.rank.Rank"
    ),
    "feature_rank": Meaning(
        "Number of singular values above 0.01", "falling while learning stalls", "probes.rank.Rank"
    ),
    "stable_rank": Meaning(
        "Squares of all singular values over that of the largest",
        "falling; 1 to 3 is usual behind a ReLU",
        "probes.rank.Rank",
    ),
    "rdu": Meaning("Dormancy as the mean over layers, not over neurons", _HIGH, "probes.inactivity.DormantRatio"),
    "fau": Meaning("Share of all neurons and samples at which a neuron fires", _LOW, "probes.firing.ActiveEntries"),
    "fau_units": Meaning("Share of neurons that fire on 1 % of the samples", _LOW, "probes.firing.ActiveUnits"),
    "dead": Meaning("Share of neurons that fire on no sample and get no gradient", _HIGH, "probes.firing.Dead"),
    "never_fired": Meaning("Share of neurons that fired in no reading so far", _HIGH, "probes.firing.NeverFired"),
    "rarely_fires": Meaning(
        "Share of neurons that fire on less than 1 % of the samples, over many readings",
        _HIGH,
        "probes.firing.RarelyFires",
    ),
    "linearised": Meaning("Share of neurons that are linear on the whole batch", _HIGH, "probes.firing.Linearised"),
    "saturated": Meaning(
        "Share of tanh or logistic neurons that sit at an end of their range", _HIGH, "probes.firing.Saturated"
    ),
    "silent": Meaning("Share of neurons with neither activity nor gradient", _HIGH, "probes.inactivity.Silent"),
    "quadrant_busy": Meaning(
        "Share of neurons in the top quarter by activity and by gradient", _LOW, "probes.inactivity.Quadrants"
    ),
    "quadrant_loud": Meaning(
        "Share of neurons in the top quarter by activity alone",
        "high: activity then says nothing of learning",
        "probes.inactivity.Quadrants",
    ),
    "quadrant_learning": Meaning(
        "Share of neurons in the top quarter by gradient alone",
        "no side is bad by itself",
        "probes.inactivity.Quadrants",
    ),
    "quadrant_idle": Meaning("Share of neurons in the top quarter by neither", _HIGH, "probes.inactivity.Quadrants"),
    "dormant_again": Meaning(
        "Share of the neurons recycled last that are dormant now",
        "near 1: recycling does not last",
        "probes.inactivity.DormantAgain",
    ),
    "still_dormant": Meaning(
        "Share of the neurons dormant at the last reading that are dormant now",
        "near 1: dormancy lasts",
        "probes.inactivity.StillDormant",
    ),
    "gradient_kurtosis": Meaning(
        "Kurtosis of the entries of a weight's gradient; 3 if normal",
        "growing: few weights get nearly all of it",
        "probes.gradient.GradientKurtosis",
    ),
    "norm_kurtosis": Meaning(
        "Kurtosis of the lengths of the samples' gradients; 3 if normal",
        "growing: few samples make the step",
        "probes.kernel.SampleGradients",
    ),
    "loss_cosine": Meaning(
        "Cosine of the gradients of the losses that are added up", "below 0: they fight", "probes.conflict.LossCosine"
    ),
    "loss_cosine_low": Meaning(
        "Cosine of the two losses that fight most", "below 0: they fight", "probes.conflict.LossCosine"
    ),
    "gradient_norm": Meaning(
        "Length of the gradient of a layer's weight, before clipping", "0, or growing", "probes.gradient.GradientNorm"
    ),
    "zero_gradient": Meaning(
        "Share of a weight's entries whose gradient is about 0", _HIGH, "probes.gradient.ZeroGradients"
    ),
    "rua": Meaning(
        "Share of neurons whose gradient is small beside their weight", _HIGH, "probes.gradient.UnitUpdates"
    ),
    "rua_volatile": Meaning(
        "Share of neurons whose gradient is large beside their weight", _HIGH, "probes.gradient.UnitUpdates"
    ),
    "step_cosine": Meaning(
        "Cosine of the gradient with that of the last reading", "below 0", "probes.gradient.StepCosine"
    ),
    "half_cosine": Meaning(
        "Cosine of the gradients on two halves of the samples",
        "near 0: steps are noise",
        "probes.kernel.SampleGradients",
    ),
    "gradient_top_share": Meaning(
        "Share of the first direction in the covariance of gradients", _HIGH, "probes.kernel.SampleGradients"
    ),
    "gradient_rank": Meaning("Effective rank of the samples' gradients", "falling", "probes.kernel.SampleGradients"),
    "ntk_rank": Meaning("Rank of the neural tangent kernel", "falling", "probes.kernel.TangentKernel"),
    "ntk_effective_rank": Meaning(
        "Effective rank of the neural tangent kernel: samples that can be told apart",
        "falling",
        "probes.kernel.TangentKernel",
    ),
    "ntk_null_ratio": Meaning(
        "Share of directions in which no parameter moves the outputs", _HIGH, "probes.kernel.TangentKernel"
    ),
    "pca_rank": Meaning(
        "Number of principal components that hold 99 % of the variance", "falling", "probes.spectrum.Spectrum"
    ),
    "pca_rank_uncentred": Meaning("As the PCA rank, with the mean left in", "falling", "probes.spectrum.Spectrum"),
    "numerical_rank": Meaning(
        "Number of singular values above rounding error", "falling: features are copies", "probes.spectrum.Spectrum"
    ),
    "effective_rank_covariance": Meaning(
        "Effective rank of the features' covariance", "falling", "probes.spectrum.Spectrum"
    ),
    "feature_norm": Meaning(
        "Mean length of a sample's features", "growing, or vanishing", "probes.spectrum.FeatureNorm"
    ),
    "feature_variance": Meaning(
        "Mean variance of a feature over samples", "near 0: all samples look alike", "probes.spectrum.FeatureNorm"
    ),
    "weight_mean": Meaning("Mean magnitude of the weights", "growing", "probes.weights.WeightMagnitude"),
    "weight_rms": Meaning("Root mean square of the weights", "growing", "probes.weights.WeightMagnitude"),
    "weight_stable_rank": Meaning(
        "Squares of a weight's singular values over that of the largest", "falling", "probes.weights.WeightSpectrum"
    ),
    "weight_isometry": Meaning(
        "Distance of a weight from one that keeps lengths", "growing", "probes.weights.WeightSpectrum"
    ),
    "weight_distance": Meaning("Distance of the weights from their start", "growing", "probes.weights.Distance"),
    "weight_change": Meaning(
        "Distance of the weights from the last reading", "near 0: they stand still", "probes.weights.Distance"
    ),
    "update_ratio": Meaning(
        "Length of one step over that of the weight", "far below 1e-3, or above 1e-2", "probes.weights.UpdateRatio"
    ),
    "unchanged": Meaning("Share of weights that a step left as they were", _HIGH, "probes.weights.Unchanged"),
    "unchanged_bf16": Meaning(
        "Share of weights that a step leaves as they are in bfloat16", _HIGH, "probes.weights.Unchanged"
    ),
    "hessian_top": Meaning("Largest curvature of the loss", "growing", "probes.curvature.Hessian"),
    "hessian_bottom": Meaning(
        "Smallest curvature of the loss; below 0 at a saddle", "no side is bad by itself", "probes.curvature.Hessian"
    ),
    "hessian_trace": Meaning(
        "Sum of the curvatures of the loss", "near 0, with the largest: hardly trains", "probes.curvature.Hessian"
    ),
    "sharpness": Meaning("Rise of the loss by a step uphill of length 0.1", "growing", "probes.curvature.Sharpness"),
    "attention_entropy": Meaning(
        "Entropy of attention over its maximum", "0 collapsed, 1 lazy", "probes.transformer.Attention"
    ),
    "attention_low": Meaning("Entropy of the head with the least", _LOW, "probes.transformer.Attention"),
    "residual_stream": Meaning("Size of the residual stream", "growing", "probes.transformer.ResidualStream"),
    "router_entropy": Meaning("Evenness of the load of experts", _LOW, "probes.transformer.Router"),
    "router_peak": Meaning("Load of the busiest expert over its fair share", "growing", "probes.transformer.Router"),
    "token_entropy": Meaning("Entropy of the predicted tokens", _LOW, "probes.transformer.TokenEntropy"),
    "churn": Meaning(
        "Change of the outputs, by one update, on states that are not in its batch", "growing", "meters.churn.Churn"
    ),
    "policy_churn": Meaning("Share of states whose greedy action one update changed", "growing", "meters.churn.Churn"),
    "policy_kl": Meaning("Divergence of the policy before and after one update", "growing", "meters.churn.Churn"),
    "policy_entropy": Meaning("Entropy of the policy on past states", "falling early", "meters.policy.Policy"),
    "action_diversity": Meaning("Variety of the actions chosen over states", _LOW, "meters.policy.Policy"),
    "feature_dot": Meaning("Product of the features of consecutive states", "growing", "meters.features.FeatureDot"),
    "feature_cosine": Meaning("Cosine of the features of consecutive states", _HIGH, "meters.features.FeatureDot"),
    "critic_disagreement": Meaning(
        "Deviation among the critics over their mean value", "0: they are one", "meters.critics.CriticDisagreement"
    ),
    "overestimation": Meaning(
        "Value promised, less the return that followed", "above 0, growing", "meters.overestimation.Overestimation"
    ),
    "overestimation_share": Meaning(
        "Share of steps that promised too much", "far above one half", "meters.overestimation.Overestimation"
    ),
    "replay_age": Meaning(
        "Mean age of the replayed transitions", "no side is bad by itself", "meters.replayed.Replayed"
    ),
    "td_error": Meaning("Mean TD error", "growing", "meters.replayed.Replayed"),
    "fit_aged": Meaning("Share of a random lesson that a copy learns", "falling", "meters.fit_probe.FitProbe"),
    "fit_fresh": Meaning(
        "Share of a random lesson that a fresh network learns", "no side is bad by itself", "meters.fit_probe.FitProbe"
    ),
    "fit_gap": Meaning(
        "What a fresh network learns of a random lesson more than a copy", "above 0", "meters.fit_probe.FitProbe"
    ),
    "target_distance": Meaning(
        "Distance of the parameters from those of the target", "growing", "meters.target_distance.TargetDistance"
    ),
}
"""Metric -> its meaning, in words that its class does not have."""


def meaning(metric: str) -> Meaning | None:
    """Return the meaning of a metric: as listed, as its class says, or that of its family; None for somebody's own."""
    if metric in MEANINGS:
        return MEANINGS[metric]
    family = next((known for name, known in MEANINGS.items() if metric.startswith(f"{name}_")), None)
    own = self_described().get(metric)
    return own if own is not None and (family is None or own.source != family.source) else family


@cache
def self_described() -> dict[str, Meaning]:
    """Return metric -> its meaning as the package's probes and meters describe themselves, read without importing."""
    root, found = Path(__file__).parent, dict[str, Meaning]()
    for folder, registry in (("probes", "PROBES"), ("meters", "METERS")):
        page = page_at(root / folder)
        for name, entry in page.entries(registry).items() if page else ():
            if (meant := target(entry)) is None:
                continue
            module = ".".join(meant.page.path.relative_to(root).with_suffix("").parts)
            about, _, _ = doc_of(meant).partition("\n")
            words = Meaning(
                about.rstrip("."), class_constant(meant, "WORSE"), f"{module}.{getattr(meant.node, 'name', '')}"
            )
            found |= dict.fromkeys((class_constant(meant, "metrics") or name).split(", "), words)
    return found


def in_words(metric: str) -> str:
    """Return what a metric is and what is bad of it, as one line; empty for one of somebody's own."""
    found = meaning(metric)
    if found is None:
        return ""
    return f"{found.about}. Bad: {found.bad}." if found.bad else f"{found.about}."
