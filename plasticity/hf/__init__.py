"""transformers' ``Trainer`` and TRL's trainers: probes and interventions as one callback. Needs the extra ``hf``."""

from __future__ import annotations

try:
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError('plasticity.hf needs transformers: pip install "plasticity-toolkit[hf]"') from error

from .callback import PlasticityCallback
from .masks import COMPLETION, TokenMask

__all__ = ["COMPLETION", "PlasticityCallback", "TokenMask"]
