"""Optimizer state of single entries of a parameter: found, cleared, or refused where it is not kept by entry."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import LBFGS, Adafactor, Adagrad, Optimizer, Rprop

from plasticity.structure.labels import tensors_in

from .state_layout import SCALARS, foreign_state

StepCounter = Literal["keep", "zero"]

QUANTISED = re.compile("8bit|4bit|fp8", re.IGNORECASE)
"""Names of optimizers with quantised state: those of bitsandbytes and torchao, which keep small tensors as they are."""

WEIGHT_COPIES = ("ax", "z")
"""Optimizer state that holds weights instead of statistics: ASGD's average, the base point of schedule-free methods."""


class SurgeryError(ValueError):
    """Surgery that cannot be done correctly; nothing has been changed."""


def clear_state_(optimizers: Iterable[Optimizer], parameter: Tensor, where: Tensor, step: StepCounter = "keep") -> None:
    """Make the optimizers forget the entries of ``parameter`` that ``where`` (bool, its shape) marks.

    State is found by the identity of the parameter, whatever its group, order or optimizer; none yet is fine. Every
    state tensor of the parameter's shape gets its first value there: 0, or Adagrad's initial accumulator and Rprop's
    learning rate; a copy of the weights gets the weight. Raises SurgeryError, with nothing changed, for
    :func:`state_refusal`.

    torch counts the steps of a whole tensor. "keep" leaves the counter, so that Adam no longer corrects the bias of the
    cleared averages: their first move is up to (1 - beta_1) / sqrt(1 - beta_2) = 3.2 learning rates long. "zero", as in
    timoklein/redo, which calls it crucial, restarts it: cleared entries begin with 1.0 learning rates, but the averages
    that were not cleared are now corrected as if they were young, which shortens the moves of all other entries of the
    tensor (in one case from 0.64 to 0.47 learning rates).
    """
    optimizers = list(optimizers)
    if where.dtype != torch.bool or where.shape != parameter.shape:
        raise SurgeryError(f"where must be bool {tuple(parameter.shape)}; got {where.dtype} {tuple(where.shape)}")
    if reason := state_refusal(optimizers, parameter):
        raise SurgeryError(reason)
    with torch.no_grad():
        for optimizer in optimizers:
            group = _group_of(optimizer, parameter)
            if group is None:
                continue
            for key, value in entry_state(optimizer, parameter).items():
                fresh = _first_value(optimizer, group, parameter, key).to(value.device, value.dtype)
                value.copy_(torch.where(where.to(value.device), fresh, value))
            if step == "zero":
                restart_(optimizer, parameter)


def forget_(optimizers: Iterable[Optimizer], parameter: Tensor) -> None:
    """Drop the parameter's gradient, and let the optimizers start anew on it, step counter included."""
    parameter.grad = None
    for optimizer in optimizers:
        if isinstance(optimizer, LBFGS) and _group_of(optimizer, parameter):
            optimizer.state.clear()  # one history of all parameters together
        elif parameter in optimizer.state and state_refusal([optimizer], parameter):
            del optimizer.state[parameter]  # factored: made anew by the next step
        elif parameter in optimizer.state:  # not deleted: Adagrad makes its state once, in the constructor
            clear_state_([optimizer], parameter, torch.ones_like(parameter, dtype=torch.bool), step="zero")


def entry_state(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return the optimizer's state tensors with one number per entry of the parameter; none before its first step."""
    state = optimizer.state.get(parameter, {}).items()
    return {k: v for k, v in state if k not in SCALARS and isinstance(v, Tensor) and v.shape == parameter.shape}


def state_refusal(optimizers: Iterable[Optimizer], parameter: Tensor) -> str | None:
    """Return why single entries of the parameter's optimizer state cannot be cleared, None if they can."""
    for optimizer in optimizers:
        kind, shape = type(optimizer).__name__, tuple(parameter.shape)
        group = _group_of(optimizer, parameter)
        if group is None:
            continue
        if isinstance(optimizer, LBFGS):
            return f"{kind} keeps one history for all parameters, of which single entries cannot be cleared"
        if QUANTISED.search(kind):
            return f"{kind} keeps quantised state, of which single entries cannot be cleared"
        if isinstance(optimizer, Adafactor) and parameter.dim() > 1:
            return f"{kind} keeps row_var and col_var for a weight of shape {shape}, not one entry per weight"
        for key in sorted(foreign_state(optimizer, group, parameter)):
            return f"{kind} keeps {key} for a weight of shape {shape} in another layout, not one entry per weight"
        for key, value in optimizer.state.get(parameter, {}).items():
            fits = (
                value.shape == parameter.shape if isinstance(value, Tensor) else next(tensors_in(value), None) is None
            )
            if key not in SCALARS and not fits:
                return f"{kind} keeps {key} for a weight of shape {shape} in another layout, not one entry per weight"
    return None


def _group_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any] | None:
    return next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), None)


def _first_value(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor, key: str) -> Tensor:
    if key in WEIGHT_COPIES:
        return parameter
    if isinstance(optimizer, Adagrad) and key == "sum":
        return torch.as_tensor(group["initial_accumulator_value"])
    if isinstance(optimizer, Rprop) and key == "step_size":
        return torch.as_tensor(group["lr"])
    return torch.tensor(0.0)


def restart_(optimizer: Optimizer, parameter: Tensor) -> None:
    """Set the counters that an optimizer keeps for a parameter (its step, a schedule's factors) to their first values.

    Averages stay: Adam then corrects their bias as if they were young. Nothing happens where it holds no such state.
    """
    group, state = _group_of(optimizer, parameter), optimizer.state.get(parameter, {})
    for key, first in SCALARS.items() if group is not None else ():
        if key in state:
            value = group[first] if isinstance(first, str) else first  # type: ignore[index]
            if isinstance(state[key], Tensor):
                state[key].fill_(value)
            else:
                state[key] = type(state[key])(value)
