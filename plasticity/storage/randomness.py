"""The state of every random generator, as values that a checkpoint holds, and back."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

LAST = {"MT19937": 624, "Philox": 4}
"""Bit generators that keep a place in a buffer -> the last one; numpy takes any number, and would read beyond it."""


def seed_globally(seed: int) -> None:
    """Seed the generators that everything in the process shares: python's ``random``, numpy's global one, torch's."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state(generators: Mapping[str, np.random.Generator] | None = None) -> dict[str, Any]:
    """Return the states of python's ``random``, numpy's global generator, torch's and ``generators``, by name.

    CUDA generators are included once CUDA has been used. A Gymnasium environment has two more: ``env.np_random``, and
    ``space.np_random`` of its action space; pass them in ``generators``, made by ``reset`` before they are restored.
    """
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
        "generators": {name: g.bit_generator.state for name, g in (generators or {}).items()},
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: Mapping[str, Any], generators: Mapping[str, np.random.Generator] | None = None) -> None:
    """Go on from :func:`random_state`, in place.

    Raises ValueError, with nothing changed, for other ``generators`` than were saved, for states that are none, and
    for another kind of generator. The state of CUDA devices that are not there is left out, with a warning.
    """
    generators = generators or {}
    if state["generators"].keys() != generators.keys():
        saved, here = sorted(state["generators"]), sorted(generators)
        raise ValueError(f"random states of {saved or 'no generators'} were saved, and there are {here or 'none'}")
    for name, generator in generators.items():
        _require(name, state["generators"][name], generator.bit_generator)
    _require("numpy", state["numpy"], np.random.MT19937())
    before = random.getstate(), torch.get_rng_state()
    try:
        random.setstate(state["python"])
        torch.set_rng_state(state["torch"])
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        random.setstate(before[0])
        torch.set_rng_state(before[1])
        raise ValueError(f"the saved random state of python or torch is none: {error}") from error
    np.random.set_state(state["numpy"])
    for name, generator in generators.items():
        generator.bit_generator.state = state["generators"][name]
    _restore_cuda(state.get("cuda", []))


def _restore_cuda(states: list[torch.Tensor]) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(states) > count:
        message = f"random states of {len(states)} CUDA devices were saved, {count} are here: the others are left out"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    for device, one in enumerate(states[:count]):
        torch.cuda.set_rng_state(one, device)


def _require(name: str, state: Any, generator: Any) -> None:
    """Raise ValueError unless ``state`` is one that ``generator``, a bit generator, can go on from."""
    kind, found = type(generator).__name__, state.get("bit_generator") if isinstance(state, Mapping) else state
    if found != kind:
        raise ValueError(f"the saved random state of {name} is one of {str(found)[:40]}; {kind} is needed")
    try:
        trial = type(generator)()
        trial.state = state
        position = trial.state["state"]["pos"] if kind == "MT19937" else trial.state.get("buffer_pos", 0)
        if not 0 <= position <= LAST.get(kind, position):
            raise ValueError(f"its position is {position}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the saved random state of {name} is none: {error}") from error
