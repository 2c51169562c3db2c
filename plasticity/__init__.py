"""See why a network stops learning, and apply what helps: probes and interventions for any torch model.

>>> print(plasticity.measure(model, (inputs, targets), loss_fn))      # one table, the model untouched
>>> session = plasticity.watch(model, optimizer, every=500)           # live, in any training loop
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "PROBES": "probes",
    "Callback": "callback",
    "Context": "callback",
    "Measure": "measure",
    "Monitor": "monitor",
    "Probe": "probes",
    "Reading": "reading",
    "Wiring": "wiring",
    "fire": "callback",
    "measure": "measure",
    "watch": "watch",
    "wiring": "wiring",
}


class _Lazy(ModuleType):
    """Import torch when a public name is first used, so that the command line answers without it."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_HOMES[name]}", self.__name__), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing plasticity.measure would put that module in the place of the function of the same name.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOMES})


sys.modules[__name__].__class__ = _Lazy
