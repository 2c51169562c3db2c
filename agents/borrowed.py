"""Optimizers of other packages, imported when they are chosen."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def imported(package: str, extra: str) -> Any:
    """Return a package; ImportError with what to install where it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its authors' concern
            return import_module(package)
    except ImportError as error:
        raise ImportError(
            f"the optimizer {extra!r} needs the package {package}: pip install 'plasticity-toolkit[{extra}]'"
        ) from error


def kron(params: Iterable[Tensor], lr: float = 3e-4, weight_decay: float = 0.0) -> Optimizer:
    """Return PSGD Kron: gradients whitened by Kronecker factors.

    Li 2015, arXiv 1512.04202; in deep RL Creus Castanyer et al. 2025, arXiv 2506.15544. It is the package kron-torch
    (heavyball has a Kron, too, among thirty others, and needs more packages), whose state is completed so that it
    resumes, and which runs without compiling: it would take a minute for each size of a layer. Ten steps beside the
    package alone, without compiling, are equal to the bit.
    """
    base = imported("kron_torch", "kron").Kron

    class Kron(base):  # type: ignore[valid-type,misc]
        """The package's Kron with a state that goes on: with its counters and generator, without functions."""

        def step(self, closure: None = None) -> None:
            """Take a step; the package prints sizes when state begins, which is kept off the terminal."""
            with torch.compiler.set_stance("force_eager"), redirect_stdout(None):
                super().step()

        def state_dict(self) -> dict[str, Any]:
            version, numbers, normal = self.rng.getstate()
            own = {
                "rng": [version, list(numbers), normal],
                "prob_step": self._prob_step,
                "counter": self._update_counter,
            }
            state = super().state_dict()
            groups = [{k: v for k, v in group.items() if not callable(v)} for group in state["param_groups"]]
            return {"state": state["state"], "param_groups": groups, "own": own}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            functions = [{k: v for k, v in group.items() if callable(v)} for group in self.param_groups]
            super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
            for group, more in zip(self.param_groups, functions, strict=True):
                group.update(more)
            own = state_dict["own"]
            version, numbers, normal = own["rng"]
            self.rng.setstate((version, tuple(numbers), normal))
            self._prob_step, self._update_counter = own["prob_step"], own["counter"]

    return Kron(params, lr=lr, weight_decay=weight_decay)


def schedule_free(params: Iterable[Tensor], lr: float = 2.5e-3, weight_decay: float = 0.0) -> Optimizer:
    """Return schedule-free AdamW, in training mode.

    Defazio et al. 2024, arXiv 2405.15682; package schedulefree. Acting and evaluation use the weights at which
    gradients are taken, not their average. Ten steps beside the reference implementation in the package's repository,
    which keeps that average apart, are equal to 1e-7.
    """
    made = imported("schedulefree", "schedulefree").AdamWScheduleFree(params, lr=lr, weight_decay=weight_decay)
    made.train()
    return made
