"""Runs of methods on tiny agents that are stopped and resumed, in memory, through all that a checkpoint holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any
from unittest.mock import patch

from test_interventions import Recorder, acted, assert_masked, assert_moves, assert_sound
from together import HOSTS, STEPS, STOP, made

from plasticity.agents import gradient
from plasticity.agents.graph import Graph
from plasticity.agents.train import context, train
from plasticity.callback import Callback, Context
from plasticity.commands.saving import Randomness, restore, snapshot
from plasticity.interventions import NeuroplasticExpansion
from plasticity.storage.nested import flatten, unflatten
from plasticity.storage.randomness import seed_globally
from plasticity.tags import is_timed
from plasticity.testing.runs import require_same

LEAVES_ALONE = ("reborn", "snr")
"""Methods that leave all layers alone, and say so, with some networks: a split must be exact, a neuron must rest."""
BUSY = ("snr", "activation=crelu")
"""A method and an option with which it finds nothing to do: of a neuron's two features one always fires."""


def as_read(state: Mapping[str, Any]) -> Any:
    """Return a state as a checkpoint gives it back: through text, tensors copied to the CPU."""
    plain, tensors = flatten(state)
    copied = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return unflatten(json.loads(json.dumps(plain, allow_nan=False)), copied)


class Rows(Recorder):
    """A writer that also keeps scalars and events with their steps, in order, but for what depends on the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, str, dict[str, Any]]] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        super().log(step, values)
        self.rows.append((step, "", {tag: value for tag, value in values.items() if not is_timed(tag)}))

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        super().event(step, name, details)
        self.rows.append((step, name, dict(details)))


class Run(Callback):
    """A run of items on a host, new or from a saved state; it checks itself after every update."""

    def __init__(self, host: str, items: Iterable[str], compile: str = "off") -> None:
        self.host, self.items = host, (*items,)
        self.methods, chosen = made(self.items, host)
        self.agent, self.env = HOSTS[host].make(chosen, compile)
        self.writer = Rows()
        self.ctx = context(self.agent, writer=self.writer)
        self.callbacks: dict[str, Callback] = {**self.methods, "random": Randomness()}
        self.saved: dict[str, Any] = {}
        """State at the stop, as a checkpoint gives it back."""
        self.last: dict[str, Any] = {}
        """State at the end."""
        self.ways: list[tuple[int, str]] = []
        """Environment step and way, eager or compiled, of every gradient step: they differ in the last bits."""

    def train(self, saved: Mapping[str, Any] | None = None) -> Run:
        """Train to the end, from a saved state if there is one."""
        begin: dict[str, Any] = {}
        if saved is None:
            seed_globally(1)
        else:
            self.ctx.step, self.ctx.latest, self.ctx.logged = saved["step"], saved["latest"], saved["logged"]
            begin["saved"] = [*(saved["callbacks"][name] for name in self.callbacks), None]
            begin["load"] = partial(restore, saved, self.agent, self.env)
        eager, compiled = gradient.gradient_step, Graph.step
        with (
            patch.object(gradient, "gradient_step", lambda *args: self.went("eager") or eager(*args)),
            patch.object(Graph, "step", lambda *args: self.went("compiled") or compiled(*args)),
        ):
            train(self.env, self.agent, STEPS, [*self.callbacks.values(), self], self.ctx, **begin)
        return self

    def went(self, way: str) -> None:
        """Note a gradient step."""
        self.ways.append((self.ctx.step, way))

    def on_update_end(self, ctx: Context, metrics: Any) -> None:
        self.check(ctx)

    def on_step_end(self, ctx: Context) -> None:
        if ctx.step == STOP:
            self.saved = as_read(snapshot(ctx, self.agent, self.env, self.callbacks))
        elif ctx.step == STEPS:
            self.last = snapshot(ctx, self.agent, self.env, self.callbacks)

    def check(self, ctx: Context) -> None:
        """Check optimizer groups, weights and masks."""
        assert_sound(ctx)
        if isinstance(ne := self.methods.get("ne"), NeuroplasticExpansion):
            assert_masked(ne, ctx)

    def check_counters(self) -> None:
        """Check that every method has acted, and that what was logged last of its counters is what they are."""
        for name, method in self.methods.items():
            told = name in LEAVES_ALONE and self.writer.named(f"{name}_skipped")
            spared = told or (name in BUSY and {*BUSY} <= {*self.items})
            assert acted(name, method, self.writer) or spared, f"{name} did nothing on {self.host}, and did not say why"
        for name, method in self.methods.items():
            for key, count in method.counts.items():
                logged = self.writer.scalars.get(f"interventions/{name}/{key}", [count])
                assert logged[-1] == count, f"interventions/{name}/{key} was last {logged[-1]}, and is {count}"

    def more(self) -> None:
        """Learn a little more, without the methods."""
        if self.ctx.buffer is None:
            train(self.env, self.agent, STOP, [], context(self.agent))
        for _ in range(0 if self.ctx.buffer is None else 6):  # with --policy-every 3 the actor learns twice
            self.agent.update()


def check_resumed(host: str, items: Iterable[str], compile: str = "off") -> None:
    """Train with all of these, stop and resume to the bit, and check what is left.

    Optimizer groups, masks and finite weights after every update; counters; a trained parameter moves with the next
    updates, and no other one does.
    """
    items = list(items)
    whole = Run(host, items, compile).train()
    whole.check_counters()
    resumed = Run(host, items, compile).train(whole.saved)
    require_same(resumed.ways, [one for one in whole.ways if one[0] > STOP], "ways of the resumed run's gradient steps")
    require_same(resumed.last, whole.last, "state of the resumed run")
    require_same(resumed.writer.rows, [row for row in whole.writer.rows if row[0] > STOP], "rows of the resumed run")
    whole.check(whole.ctx)
    if not {"optimizer=trac", "optimizer=sgd", "optimizer=kron"} & {
        *items
    }:  # whose steps may be lost in the last bit of a bias
        assert_moves(whole.ctx, whole.more)
