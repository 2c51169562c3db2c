"""The traces of a callback in an agent, so that ``save`` and ``load`` keep it: its state, and the structure it made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from plasticity.callback import Callback, rebuild
from plasticity.guest import Live

from .context import structure_of

STATE_ATTRIBUTE = "plasticity_state"
"""The attribute of an agent that holds the states of its callbacks; ``save`` pickles it with the others."""


def saved_states(model: BaseAlgorithm) -> Mapping[str, dict[str, Any]]:
    """Return the states of an agent that was loaded, by the names of its callbacks; nothing for any other agent."""
    state = getattr(model, STATE_ATTRIBUTE, None)
    return state if isinstance(state, dict) else {}


@dataclass
class Recipe:
    """How to make a structural method again, and its state, from which it restructures a fresh policy."""

    kind: type[Callback]
    settings: dict[str, Any]
    state: dict[str, Any]

    @classmethod
    def of(cls, callback: Callback) -> Recipe:
        """Return the recipe of a method: a dataclass, or one that is made without arguments."""
        fields: Any = dataclasses.fields(callback) if dataclasses.is_dataclass(callback) else ()
        settings = {field.name: getattr(callback, field.name) for field in fields if field.init}
        return cls(type(callback), settings, callback.state_dict())

    def make(self) -> Callback:
        """Return the method."""
        return self.kind(**self.settings)


def structure_in(model: BaseAlgorithm) -> dict[str, Recipe]:
    """Return the recipes of the methods that have restructured the policy of an agent, by name."""
    kept = getattr(model.policy_class, "plasticity_structure", {})
    return dict(kept.now() if isinstance(kept, Live) else kept)


def keep_structure(model: BaseAlgorithm, callbacks: Mapping[str, Callback]) -> None:
    """Let ``load`` restructure what it builds as these callbacks did, before it loads weights into it.

    The agent's ``policy_class`` becomes a subclass that does so when it is made; the present policy stays as it is.
    """
    earlier = {name: recipe for name, recipe in structure_in(model).items() if name not in callbacks}
    if not (callbacks or earlier):
        return
    base = getattr(model.policy_class, "plasticity_base", model.policy_class)
    live = Live(lambda: {**earlier, **{name: Recipe.of(callback) for name, callback in callbacks.items()}})
    model.policy_class = _rebuilding(base, live)


def _rebuilding(base: type, structure: Any) -> type:
    """Return a policy class that restructures what it builds; a local class, which is pickled by value."""

    class Restructured(base):  # type: ignore[misc, valid-type]
        plasticity_base = base
        plasticity_structure = structure

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            restructure_policy(self, type(self).plasticity_structure)

    Restructured.__name__ = Restructured.__qualname__ = base.__name__
    return Restructured


def restructure_policy(policy: Any, structure: Any) -> None:
    """Give a policy that was just built the structure that recipes make."""
    recipes = structure.now() if isinstance(structure, Live) else structure
    ctx = structure_of(policy)
    ctx.name = type(policy).__name__
    rebuild([(recipe.make(), recipe.state) for recipe in recipes.values()], ctx)
    for name, network in ctx.networks.items():
        if network is not policy:
            setattr(policy, name, network)
    for name, target in ctx.targets.items():
        setattr(policy, f"{name}_target", target)
