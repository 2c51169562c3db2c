"""TorchRL: probes and interventions on the networks of a loss module, also on critics that are stacked for ``vmap``.

Needs the extra ``torchrl``. Networks go by the names of the loss module (``actor_network``, ``value_network``); each
of several stacked critics has a number, ``qvalue_network_0``.
"""

try:
    import torchrl  # noqa: F401
except ImportError as error:
    raise ImportError('plasticity.torchrl needs torchrl: pip install "plasticity-toolkit[torchrl]"') from error

from .hook import PlasticityHook
from .sampler import WeightedSampler

__all__ = ["PlasticityHook", "WeightedSampler"]
