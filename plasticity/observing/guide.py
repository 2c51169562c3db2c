"""Learn the ways that a model's passes take: each is traced once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from plasticity.isolation import named_modules
from plasticity.storage.randomness import restore_random_state
from plasticity.structure.layers import Layer
from plasticity.structure.recall import as_data, recalled
from plasticity.structure.trace import trace
from plasticity.structure.wirings import EventPair, Wiring, steps

from .passes import Pass
from .sights import Hooked

MOST_WAYS = 64
"""A model is traced so many times at most: a trace costs as much as some ten passes."""

Found = tuple[Wiring, list[Layer]]


class Guide:
    """Keep the wiring of ``model`` as far as it is known; ``selected`` returns the layers of a wiring to look at."""

    def __init__(
        self, model: nn.Module, wiring: Wiring | None, selected: Callable[[Wiring], list[Layer]], strict: bool
    ) -> None:
        self.model, self.wiring, self.selected, self.strict = model, wiring, selected, strict
        self.error: str | None = None
        """Why the model cannot be traced."""
        self.random = False
        """True if ways seem to be drawn at random, so that a trace needs the random state before the pass."""
        self._failed = ""
        self._saved: Mapping[str, Any] | None = None
        """The ways of the run that is resumed, until the first pass."""
        self._resumed: dict[str, nn.Module] = {}
        """The modules with which it is resumed."""
        self._strayed = False
        """True if that run took ways that could not be traced."""
        self._strays: list[tuple[Hooked, set[EventPair]]] = []
        """The steps of passes whose way could not be traced."""

    def state_dict(self) -> dict[str, Any]:
        """Return the ways that passes took, as far as their modules are still in place; empty before the first."""
        modules = named_modules(self.model)
        if self.wiring is not None:
            return as_data(self.wiring if self.wiring.fits(self.model) else self.wiring.survived(modules))
        if modules == self._resumed:
            return dict(self._saved or {})
        before = self._before(modules)
        return {} if before is None else as_data(before)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Know the ways of a run that is resumed, from its next pass on: the first of each is traced again."""
        if state:
            self.wiring, self._saved, self._strays = None, state, []
            self._resumed = named_modules(self.model)

    def _before(self, modules: dict[str, nn.Module]) -> Wiring | None:
        """Return the ways of the run that is resumed; once modules were replaced, as far as they are still in place."""
        if not self._saved:
            return None
        if modules == self._resumed:
            return recalled(self._saved, modules)
        before = recalled(self._saved, self._resumed)
        return None if before is None else before.survived(modules)

    def known(self) -> Found | None:
        """Return the wiring, with the layers to look at, if there is one of the model as it is now."""
        if self.wiring is None or not self.wiring.modules or not self.wiring.fits(self.model):
            return None
        return self.wiring, self.selected(self.wiring)

    def prepare(self, method: str, args: tuple, kwargs: dict) -> Found | None:
        """Return the wiring before a pass, with the layers to look at; None if the model cannot be traced."""
        if self.error:
            return None
        try:
            if self.wiring is None or not self.wiring.fits(self.model):
                found = trace(self.model, args, kwargs, evaluate=False, method=method)
                before = self._before(found.modules)
                if self.wiring is not None:
                    before = self.wiring.survived(found.modules)
                self.wiring = found if before is None or not before.ways else before.joined(found)
                self._strayed, self._saved, self._strays = self.wiring.unfollowed, None, []
            return self.wiring, self.selected(self.wiring)
        except Exception as error:
            if self.strict:
                raise
            self._failed = f"the model could not be traced: {type(error).__name__}: {error}"
            return None

    def give_up(self) -> None:
        """Note that a pass ran which could not be traced: no other will be tried."""
        if not self.error:
            self.error = self._failed
            warnings.warn(f"nothing is measured: {self.error}", RuntimeWarning, stacklevel=4)

    def learn(self, done: Pass, hooked: Hooked) -> Found:
        """Trace a pass that went another way than those before, and return the wiring, with the layers to look at."""
        assert self.wiring is not None
        taken = steps(done.events)
        before = None if done.random is None else partial(restore_random_state, done.random)
        if len(self.wiring.traced) < MOST_WAYS:
            try:
                found = trace(self.model, *done.inputs, evaluate=False, before=before, method=done.method)
                if all(way.events != found.ways[0].events for way in self.wiring.traced):
                    self.wiring = self.wiring.joined(found)
            except Exception as error:
                warnings.warn(
                    f"a pass could not be traced, and counts only in part: {error!r}", RuntimeWarning, stacklevel=4
                )
        if not taken <= hooked.steps(self.wiring):
            self.random = True
            self._strays.append((hooked, taken))
        self._strays = [(h, stray) for h, stray in self._strays if not stray <= h.steps(self.wiring)]
        self.wiring.unfollowed = self._strayed or bool(self._strays)
        return self.wiring, self.selected(self.wiring)
