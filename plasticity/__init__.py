"""See why a network stops learning, and apply what helps: probes and interventions for any torch model.

>>> print(plasticity.measure(model, (inputs, targets), loss_fn))      # one table, the model untouched
>>> session = plasticity.watch(model, optimizer, every=500)           # live, in any training loop
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .clone import find_beside

if TYPE_CHECKING:
    from .callback import Callback, Context, Writer, fire, start
    from .diagnosis import Diagnosis, diagnose
    from .interventions import INTERVENTIONS, Intervention
    from .measuring import Measure, measure
    from .meters import METERS, Meter
    from .monitor import Monitor
    from .observing.reading import Reading
    from .probes import PROBES, Probe
    from .structure.trace import wiring
    from .structure.wirings import Wiring
    from .watching import watch
    from .writers import WRITERS

__version__ = "0.2.0"

find_beside()

__all__ = [
    "INTERVENTIONS",
    "METERS",
    "PROBES",
    "WRITERS",
    "Callback",
    "Context",
    "Diagnosis",
    "Intervention",
    "Measure",
    "Meter",
    "Monitor",
    "Probe",
    "Reading",
    "Wiring",
    "Writer",
    "diagnose",
    "fire",
    "measure",
    "start",
    "watch",
    "wiring",
]

_HOMES = {
    "INTERVENTIONS": "interventions",
    "METERS": "meters",
    "PROBES": "probes",
    "WRITERS": "writers",
    "Callback": "callback",
    "Context": "callback",
    "Diagnosis": "diagnosis",
    "Intervention": "interventions",
    "Measure": "measuring",
    "Meter": "meters",
    "Monitor": "monitor",
    "Probe": "probes",
    "Reading": "observing.reading",
    "Wiring": "structure.wirings",
    "Writer": "callback",
    "diagnose": "diagnosis",
    "fire": "callback",
    "measure": "measuring",
    "start": "callback",
    "watch": "watching",
    "wiring": "structure.trace",
}
"""Public name -> the module that defines it, imported when the name is first used (PEP 562)."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
