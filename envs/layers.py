"""The layers of one environment, wrappers and base: their tasks, their saved states, and the attributes they keep."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from torch import Tensor

MAX_ENTRIES = 1000
"""Of a list or dict that is compared; a longer one is a record rather than a state."""
OWN = (__package__ + ".", "gymnasium.")
"""Modules of layers known to keep nothing from one episode to the next but random states."""


def layers(env: gymnasium.Env) -> list[Any]:
    """Return the environment, what it wraps, and so on, the outermost first."""
    found: list[Any] = [env]
    while isinstance(found[-1], gymnasium.Wrapper):
        found.append(found[-1].env)
    return found


def task_holder(env: gymnasium.Env) -> Any | None:
    """Return the outermost layer with an int attribute `task`; None if there is none."""
    for layer in layers(env):
        task = getattr(layer, "task", None)
        if isinstance(task, (int, np.integer)) and not isinstance(task, bool):
            return layer
    return None


def task_setter(env: gymnasium.Env) -> Any | None:
    """Return the method `set_task` of the outermost layer that has one; None if there is none."""
    return next((layer.set_task for layer in layers(env) if hasattr(layer, "set_task")), None)


def stateful(env: gymnasium.Env) -> list[Any]:
    """Return the layers that have `state_dict` and `load_state_dict`, the outermost first."""
    return [layer for layer in layers(env) if hasattr(layer, "state_dict") and hasattr(layer, "load_state_dict")]


def states(found: Sequence[Any]) -> list[Any]:
    """Return copies of the states of stateful layers."""
    return [copy.deepcopy(layer.state_dict()) for layer in found]


def load_states(found: Sequence[Any], saved: Sequence[Any]) -> None:
    """Load what `states` returned; raise ValueError where other layers have a state now."""
    if len(found) != len(saved):
        names = ", ".join(type(layer).__name__ for layer in found) or "no layer"
        raise ValueError(f"{len(saved)} layers of the environment were saved with a state, and now {names} has one")
    for layer, state in zip(found, saved, strict=True):
        layer.load_state_dict(copy.deepcopy(state))


def attributes(env: gymnasium.Env) -> dict[str, Any]:
    """Return all plain attributes of layers that have no state of their own, as "Class.name" -> value.

    Plain are numbers, texts, None, and lists, tuples and dicts of them; of arrays it is a digest. A counter that
    outlives an episode shows here.
    """
    found: dict[str, Any] = {}
    with_state = stateful(env)
    for layer in layers(env):
        if type(layer).__module__.startswith(OWN) or any(layer is one for one in with_state):
            continue
        for name, value in vars(layer).items():
            if name.startswith("_np_random") or (value_ := _plain(value)) is Ellipsis:
                continue
            found[f"{type(layer).__name__}.{name}"] = value_
    return found


def _plain(value: Any) -> Any:
    """Return `value` in the form in which it is compared; Ellipsis for what is not compared."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value if type(value) in (bool, int, float, str, type(None)) else Ellipsis
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        digest = None if value.dtype.hasobject else hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return Ellipsis if digest is None else f"array {value.dtype} {value.shape} {digest[:16]}"
    if isinstance(value, dict) and len(value) <= MAX_ENTRIES and all(isinstance(key, str) for key in value):
        parts = {key: _plain(part) for key, part in value.items()}
        return Ellipsis if Ellipsis in parts.values() else parts
    if isinstance(value, (list, tuple)) and len(value) <= MAX_ENTRIES:
        items = [_plain(part) for part in value]
        return Ellipsis if any(item is Ellipsis for item in items) else items
    return Ellipsis


def same(a: Any, b: Any) -> bool:
    """Return whether two states are equal, bit for bit; NaN equals NaN."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (np.ndarray, Tensor)) or isinstance(b, (np.ndarray, Tensor)):
        x, y = np.asarray(a), np.asarray(b)
        return x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes()
    return bool(a == b or (a != a and b != b))
