"""See why a network stops learning, and apply what helps: probes and interventions for any torch model.

>>> print(plasticity.measure(model, (inputs, targets), loss_fn))      # one table, the model untouched
>>> session = plasticity.watch(model, optimizer, every=500)           # live, in any training loop
"""

from .callback import Callback, Context, fire
from .measure import Measure, measure
from .monitor import Monitor
from .probes import PROBES, Probe
from .reading import Reading
from .watch import watch
from .wiring import Wiring, wiring

__version__ = "0.1.0"

__all__ = [
    "PROBES",
    "Callback",
    "Context",
    "Measure",
    "Monitor",
    "Probe",
    "Reading",
    "Wiring",
    "fire",
    "measure",
    "watch",
    "wiring",
]
