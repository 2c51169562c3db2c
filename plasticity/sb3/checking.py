"""Checks of what the callback is given, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plasticity.callback import Callback, Context
from plasticity.isolation import is_compiled


def require_arguments(probes: Any, every: Any, interventions: Any, diagnose_every: Any) -> None:
    """Raise TypeError or ValueError for arguments of ``PlasticityCallback`` that it cannot work with."""
    if isinstance(probes, str) or not (isinstance(probes, Mapping) or hasattr(probes, "__iter__")):
        raise TypeError(f'probes is a list of names, ["dormancy", "grama"], or a dict of probes; got {probes!r}')
    if not (hasattr(interventions, "__iter__") and all(isinstance(one, Callback) for one in interventions)):
        raise TypeError(
            f"interventions is a list of methods, [ReDo(every=1000)], made by calling their classes; got "
            f"{interventions!r}"
        )
    for name, value in (("every", every), ("diagnose_every", diagnose_every)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} is a number of steps, at least 1; got {value!r}")


def require_eager(ctx: Context) -> None:
    """Raise ValueError for a compiled network: neither its passes are seen nor its modules edited."""
    for name, network in (*ctx.networks.items(), *ctx.targets.items()):
        if is_compiled(network):
            raise ValueError(
                f"the network {name} of {ctx.name} is compiled, and hooks added after torch.compile never run: train "
                f"without torch.compile while plasticity looks on, or put the module that was compiled back "
                f"(compiled._orig_mod)"
            )
