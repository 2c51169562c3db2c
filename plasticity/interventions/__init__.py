"""Interventions: what can be done about it, one file per method. ``INTERVENTIONS`` is the contents page."""

from __future__ import annotations

from .cbp import ContinualBackprop
from .ccbp import ContinuousBackprop
from .chain import Chain
from .dash import DASH
from .dr3 import DR3
from .drm import DormantMinimization
from .ere import RecentExperience
from .feature_norm import FeatureNormPenalty
from .fire import FIRE
from .hare_tortoise import HareTortoise
from .horizon import Horizon
from .hyperspherical import Hyperspherical
from .infer import InFeR
from .injection import PlasticityInjection
from .intervention import Intervention
from .knife import KNIFE
from .l2_init import L2Init
from .least import LearnToStop
from .nap import NormalizeAndProject
from .ne import NeuroplasticExpansion
from .optimizer_reset import OptimizerReset
from .parseval import Parseval
from .pfo import ProximalFeatures
from .random_shift import RandomShift
from .reborn import ReBorn
from .redo import ReDo
from .regrama import ReGraMa
from .replay_ratio import AdaptiveReplayRatio
from .reset import Reset
from .resin import SilentReset
from .rewarm import Rewarm
from .sam import SAM
from .shrink_perturb import ShrinkPerturb
from .snr import SelfNormalizedResets
from .spectral import SpectralRegularization
from .spectral_normalization import SpectralNormalization
from .swd import SampleWeightDecay
from .swr import SelectiveReinitialization
from .wasserstein_init import WassersteinInit
from .weight_clipping import WeightClipping

INTERVENTIONS: dict[str, type[Intervention]] = {
    "redo": ReDo,
    "regrama": ReGraMa,
    "ne": NeuroplasticExpansion,
    "swd": SampleWeightDecay,
    "least": LearnToStop,
    "reset": Reset,
    "shrink_perturb": ShrinkPerturb,
    "knife": KNIFE,
    "plasticity_injection": PlasticityInjection,
    "l2_init": L2Init,
    "wasserstein_init": WassersteinInit,
    "parseval": Parseval,
    "spectral": SpectralRegularization,
    "weight_clipping": WeightClipping,
    "nap": NormalizeAndProject,
    "hyperspherical": Hyperspherical,
    "optimizer_reset": OptimizerReset,
    "fire": FIRE,
    "hare_tortoise": HareTortoise,
    "feature_norm": FeatureNormPenalty,
    "pfo": ProximalFeatures,
    "chain": Chain,
    "dr3": DR3,
    "infer": InFeR,
    "sam": SAM,
    "spectral_normalization": SpectralNormalization,
    "rewarm": Rewarm,
    "random_shift": RandomShift,
    "cbp": ContinualBackprop,
    "ccbp": ContinuousBackprop,
    "snr": SelfNormalizedResets,
    "swr": SelectiveReinitialization,
    "dash": DASH,
    "drm": DormantMinimization,
    "ere": RecentExperience,
    "resin": SilentReset,
    "reborn": ReBorn,
    "replay_ratio": AdaptiveReplayRatio,
    "horizon": Horizon,
}
"""Name (the flag) -> the callback, a dataclass whose fields are its hyperparameters."""

__all__ = [
    "DASH",
    "DR3",
    "FIRE",
    "INTERVENTIONS",
    "KNIFE",
    "SAM",
    "AdaptiveReplayRatio",
    "Chain",
    "ContinualBackprop",
    "ContinuousBackprop",
    "DormantMinimization",
    "FeatureNormPenalty",
    "HareTortoise",
    "Horizon",
    "Hyperspherical",
    "InFeR",
    "Intervention",
    "L2Init",
    "LearnToStop",
    "NeuroplasticExpansion",
    "NormalizeAndProject",
    "OptimizerReset",
    "Parseval",
    "PlasticityInjection",
    "ProximalFeatures",
    "RandomShift",
    "ReBorn",
    "ReDo",
    "ReGraMa",
    "RecentExperience",
    "Reset",
    "Rewarm",
    "SampleWeightDecay",
    "SelectiveReinitialization",
    "SelfNormalizedResets",
    "ShrinkPerturb",
    "SilentReset",
    "SpectralNormalization",
    "SpectralRegularization",
    "WassersteinInit",
    "WeightClipping",
]
