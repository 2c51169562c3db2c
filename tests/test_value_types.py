"""Values of a wrong type, and numbers that are not finite, are refused by whatever is configured."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from plasticity.agents import AGENTS
from plasticity.interventions import INTERVENTIONS, ReDo, Reset, Rewarm
from plasticity.interventions.conditions import OnPlateau, OnSmallChange
from plasticity.interventions.trigger import Trigger
from plasticity.meters import METERS
from plasticity.probes import PROBES
from plasticity.value_types import OrInfinite, misfit, require, require_types

CONFIGURED: list[type] = [
    *INTERVENTIONS.values(),
    *METERS.values(),
    *(config for _, config in AGENTS.values()),
    Trigger,
    partial(OnPlateau, "tag"),  # type: ignore[list-item]
    partial(OnSmallChange, "tag"),  # type: ignore[list-item]
]


def bad_values(kind: Any, marks: tuple[Any, ...] = ()) -> Iterator[Any]:
    """Yield what a type does not allow; nothing for a union with another that would, or a type that is not checked."""
    args = get_args(kind)
    if get_origin(kind) is Annotated:
        yield from bad_values(args[0], args[1:])
    elif type(None) in args:
        others = [arg for arg in args if arg is not type(None)]
        yield from bad_values(others[0])
    elif get_origin(kind) is Literal:
        yield from ("nothing", 17)
    elif get_origin(kind) is tuple:
        yield from (3, "text", *((bad,) for bad in bad_values(args[0])))
    elif kind in (bool, int, float, str):
        infinite = any(isinstance(mark, OrInfinite) for mark in marks)
        never = {bool: (1, "yes"), int: (1.5, True, "3", math.nan, 8.0), float: ("3", True, math.nan), str: (4,)}
        yield from never[kind]
        yield from (math.inf, -math.inf) if kind is float and not infinite else ()


@pytest.mark.parametrize("kind", CONFIGURED, ids=lambda kind: getattr(kind, "__name__", None) or kind.func.__name__)
def test_every_field_refuses_what_its_type_does_not_allow(kind: Any) -> None:
    cls = kind.func if isinstance(kind, partial) else kind
    hints, tried = get_type_hints(cls, include_extras=True), 0
    for field in dataclasses.fields(cls):
        for bad in bad_values(hints[field.name]):
            if (field.name, bad) in {("when", 4), ("signal", 4)}:
                continue  # conditions are taken, as text
            with pytest.raises((TypeError, ValueError), match=rf"(?s)\b{field.name}s?\b.*[;,] got"):
                kind(**{field.name: bad})
            tried += 1
    assert tried >= 3


@pytest.mark.parametrize("name", PROBES)
def test_every_probe_refuses_what_its_parameters_do_not_allow(name: str) -> None:
    make = PROBES[name]
    cls: Any = make.func if isinstance(make, partial) else make
    parameters = [p for p in inspect.signature(cls).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    hints = get_type_hints(cls.__init__)
    for parameter in parameters:
        for bad in bad_values(hints[parameter.name]):
            with pytest.raises((TypeError, ValueError), match=rf"{parameter.name}.*got"):
                cls(**{parameter.name: bad})


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ReDo(every=1000.0), TypeError, r"every as a whole number or None; got 1000\.0; pass every=1000$"),
        (lambda: ReDo(ema=math.nan), ValueError, r"ReDo takes ema as a finite number; got nan$"),
        (lambda: ReDo(outgoing="zeros"), ValueError, r"one of zero, keep, small .*; did you mean 'zero'\?"),
        (lambda: Reset(clock="env_step"), ValueError, r"one of env_steps, .*; did you mean 'env_steps'\?"),
        (lambda: Reset(at=8), TypeError, r"at as a tuple or None; got 8; pass at=\(8,\)$"),
        (lambda: Reset(networks="critic*"), TypeError, r"got 'critic\*'; pass networks=\('critic\*',\)$"),
        (lambda: Reset(at=(8, 2.5)), TypeError, r"at as a tuple, each a whole number or None; got \(8, 2\.5\)$"),
        (lambda: Rewarm(preset="defualt"), ValueError, r"the presets default; got 'defualt'; did you mean 'default'\?"),
        (lambda: AGENTS["sac"][1](betas=(0.9,)), TypeError, r"betas as a tuple of 2 or None; got \(0\.9,\)$"),
        (lambda: AGENTS["dqn"][1](max_grad_norm=math.nan), TypeError, r"max_grad_norm as a number; got nan$"),
    ],
)  # fmt: skip
def test_the_error_says_what_is_needed_and_what_to_pass(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_numbers_that_mean_the_same_are_taken() -> None:
    assert ReDo(every=np.int64(5), cap=np.float32(0.5), ema=0).every == 5
    assert Reset(at=[3, 4]).at == (3, 4)
    assert AGENTS["dqn"][1](max_grad_norm=math.inf).max_grad_norm == math.inf


@pytest.mark.parametrize(
    ("settings", "name", "stored"),
    [
        (ReDo(every=np.int64(5)), "every", 5),
        (ReDo(cap=np.float32(0.5)), "cap", 0.5),
        (Reset(targets=np.bool_(False)), "targets", False),
        (Reset(to=Path("runs") / "base"), "to", os.path.join("runs", "base")),
        (Reset(clock=np.str_("updates")), "clock", "updates"),
        (Reset(at=range(100, 400, 100)), "at", (100, 200, 300)),
        (Reset(at=np.arange(1, 3)), "at", (1, 2)),
        (Reset(at=[np.int32(3), 4]), "at", (3, 4)),
        (Reset(networks=["critic*"]), "networks", ("critic*",)),
        (Trigger(every=np.int64(5), at=[3]), "at", (3,)),
        (OnPlateau("tag", np.int64(4), np.float32(0.5)), "window", 4),
        (METERS["churn"](networks=["actor"]), "networks", ("actor",)),
        (AGENTS["sac"][1](hidden=[8, np.int64(4)]), "hidden", (8, 4)),
        (AGENTS["sac"][1](hidden=np.array([8, 4])), "hidden", (8, 4)),
    ],
)
def test_what_means_the_same_is_stored_as_values_of_python(settings: Any, name: str, stored: Any) -> None:
    value = getattr(settings, name)
    assert value == stored
    assert type(value) is type(stored)
    json.dumps(dataclasses.asdict(settings))
    if name == "hidden":
        assert hash(settings) == hash(dataclasses.replace(settings, hidden=stored))


@pytest.mark.parametrize("bad", [{3, 4}, {3: 4}, (x for x in (3, 4)), np.ones((2, 2)), b"34", np.array([1.5])])
def test_what_has_no_order_no_end_or_another_shape_is_no_tuple(bad: Any) -> None:
    with pytest.raises(TypeError, match="Reset takes at as a tuple"):
        Reset(at=bad)


@dataclasses.dataclass
class Mine:
    size: int = 1
    of_a_checker: "Unknown" = None  # type: ignore[name-defined]  # noqa: F821, UP037


@dataclasses.dataclass
class Other(ReDo):
    mine: "Unknown" = None  # type: ignore[name-defined]  # noqa: F821, UP037


def test_a_type_that_cannot_be_resolved_is_not_checked_and_those_of_bases_are() -> None:
    require_types(Mine())
    Other(mine=object())
    with pytest.raises(TypeError, match="Other takes every"):
        Other(every=2.5)


@pytest.mark.parametrize("kind", [dict[str, int], Any, list[int], dataclasses.Field])
def test_types_of_other_kinds_are_left_alone(kind: Any) -> None:
    assert misfit("anything", kind) == ""


def test_a_broken_rule_names_its_settings_and_no_others():
    @dataclasses.dataclass
    class Mine:
        low: int = 3
        high: int = 2
        other: int = 0

    with pytest.raises(ValueError, match=r"^Mine needs low < high, other > 0; got low=3, high=2, other=0$"):
        require("Mine", {"low < high": False, "other > 0": False, "high > 0": True}, Mine())
    with pytest.raises(ValueError, match=r"^Mine needs low > 5; got low=3$"):
        require("Mine", {"low > 5": False}, Mine())
    with pytest.raises(ValueError, match=r"^Mine needs more; got .*Mine\(low=3, high=2, other=0\)$"):
        require("Mine", {"more": False}, Mine())
    require("Mine", {"low > 0": True}, Mine())
