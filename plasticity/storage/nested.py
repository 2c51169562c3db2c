"""Nested states as JSON and a flat table of tensors, and back to the same types and bits.

JSON has no tuple, no bytes, no inf, and no keys but strings. What it lacks is written as an object with one key that
begins with ``$``: ``{"$tuple": [1, 2]}``. Reading builds these types and no others; a name only ever picks a tensor.
"""

from __future__ import annotations

import base64
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .tensorfile import METADATA, NAMES

MAX_DEPTH = 60
"""Levels of nesting: a state has about ten, and Python gives up at a few hundred."""
MAX_BITS = 4096
"""Of an int: numpy's generators have 128."""
KEYS = (str, int, float, bool, type(None), bytes, tuple)
"""Types of keys that a dict may have."""


def flatten(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return ``state`` as plain JSON values, and its tensors by name; nothing is copied.

    Takes dicts, lists, tuples, None, bool, int, float, str, bytes, tensors, and numpy arrays and scalars of a dtype
    that torch has. What appears twice, such as a tied weight, is stored once. An OrderedDict becomes a dict and a
    parameter a tensor; all other types come back as they were.

    Raises TypeError for anything else, which it names by its place; ValueError for what is too deep or too large.
    """
    writer = _Writer()
    return writer.plain(state, "state", 0), writer.tensors


class _Writer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._known: dict[tuple, str] = {}

    def plain(self, value: Any, place: str, depth: int) -> Any:
        """Return one value as plain JSON values."""
        if depth > MAX_DEPTH:
            raise ValueError(f"{place} is nested more than {MAX_DEPTH} levels deep")
        kind = type(value)
        if value is None or kind in (bool, str):
            return value
        if kind is int:
            if value.bit_length() > MAX_BITS:
                raise ValueError(f"{place} is an int of {value.bit_length()} bits; a checkpoint holds {MAX_BITS}")
            return value
        if kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if kind is bytes:
            return {"$bytes": base64.b64encode(value).decode()}
        if isinstance(value, Tensor):
            return {"$tensor": self._tensor(value, place)}
        if isinstance(value, (np.ndarray, np.generic)):
            tag = "$scalar" if isinstance(value, np.generic) else "$array"
            return {tag: self._tensor(_from_numpy(np.asarray(value), place), place)}
        if kind in (list, tuple):
            items = [self.plain(item, f"{place}.{i}", depth + 1) for i, item in enumerate(value)]
            return items if kind is list else {"$tuple": items}
        if kind in (dict, OrderedDict):
            return self._dict(value, place, depth)
        raise TypeError(
            f"{place} is a {kind.__module__}.{kind.__qualname__}; a checkpoint holds dict, list, tuple, None, bool, "
            "int, float, str, bytes, tensors and numpy numbers: convert it in state_dict()"
        )

    def _dict(self, value: Mapping, place: str, depth: int) -> dict[str, Any]:
        pairs = [(key, self.plain(item, f"{place}.{key}", depth + 1)) for key, item in value.items()]
        if all(type(key) is str and not key.startswith("$") for key in value):
            return dict(pairs)
        if wrong := [key for key in value if type(key) not in KEYS]:
            raise TypeError(f"{place} has the key {wrong[0]!r}; a key is a str, number, bool, None, bytes or tuple")
        return {"$dict": [[self.plain(key, f"{place}: key", depth + 1), item] for key, item in pairs]}

    def _tensor(self, tensor: Tensor, place: str) -> str:
        """Return the name under which a tensor is stored."""
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.dtype not in NAMES:
            raise TypeError(
                f"{place} is a tensor that cannot be saved: {tensor.dtype}, {tensor.layout}, {tensor.device}"
            )
        # The address tells tensors apart, for the table keeps every one of them alive.
        where = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
        if tensor.numel() and where in self._known:
            return self._known[where]
        base = name = place.removeprefix("state.")
        count = 1
        while name in self.tensors or name == METADATA:
            name, count = f"{base}#{count}", count + 1
        self.tensors[name], self._known[where] = tensor, name
        return name


def _from_numpy(array: np.ndarray, place: str) -> Tensor:
    try:
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{place} is an array of dtype {array.dtype}, which torch does not have") from error


def unflatten(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the state that :func:`flatten` was given; ValueError for anything that it cannot have written."""
    return _read(plain, tensors, 0)


def _read(value: Any, tensors: Mapping[str, Tensor], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    if isinstance(value, list):
        return [_read(item, tensors, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if not any(key.startswith("$") for key in value):
        return {key: _read(item, tensors, depth + 1) for key, item in value.items()}
    tag, content = next(iter(value.items()))
    if len(value) != 1 or tag not in _TYPES or not isinstance(content, _TYPES[tag]):
        raise ValueError(f"it holds {str(value)[:60]!r}, which is no value")
    if tag == "$tuple":
        return tuple(_read(item, tensors, depth + 1) for item in content)
    if tag == "$dict":
        return dict(_pairs(content, tensors, depth))
    if tag == "$float":
        return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[_among(content, ("inf", "-inf", "nan"))]
    if tag == "$bytes":
        return base64.b64decode(content, validate=True)
    tensor = tensors[_among(content, tensors)]
    if tag == "$tensor":
        return tensor
    if tensor.dtype == torch.bfloat16 or (tag == "$scalar" and tensor.dim()):
        raise ValueError(f"{content} is no numpy {tag[1:]}")
    array = tensor.numpy()
    return array if tag == "$array" else array[()]


_TYPES = {
    "$tuple": list,
    "$dict": list,
    "$float": str,
    "$bytes": str,
    "$tensor": str,
    "$array": str,
    "$scalar": str,
}
"""Tag -> the type that must follow it."""


def _pairs(content: list, tensors: Mapping[str, Tensor], depth: int) -> Iterator[tuple[Any, Any]]:
    seen = set()
    for pair in content:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("it holds a dict that is no list of pairs")
        key = _read(pair[0], tensors, depth + 1)
        try:
            fits = type(key) in KEYS and key not in seen
        except TypeError:  # a tuple of lists
            fits = False
        if not fits:
            raise ValueError(f"it holds a dict with the key {str(key)[:60]!r}, which is none, or is there twice")
        seen.add(key)
        yield key, _read(pair[1], tensors, depth + 1)


def _among(name: str, known: Any) -> str:
    if name not in known:
        raise ValueError(f"it speaks of {name[:60]!r}, which is not there")
    return name
