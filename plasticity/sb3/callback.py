"""One callback of ``learn``: probes, interventions and fit probes on the networks of an agent."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, finalize

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from plasticity.callback import Callback, Context, Writer, end, fire, listeners, start
from plasticity.guest import Live, require_arguments, require_eager
from plasticity.interventions import LearnToStop
from plasticity.measuring import Measure
from plasticity.meters.fit_probe import FitProbe
from plasticity.probes import DEFAULT_PROBES, Probe
from plasticity.writers.destinations import OpenLog, require_destinations

from .context import context_of, write_back
from .logger import AgentLogger
from .replay import WeightedReplayBuffer
from .saving import STATE_ATTRIBUTE, keep_structure, named, restructures, saved_states, states_of, structure_in
from .steps import EnvStep, stopper_of

_IN_USE: WeakKeyDictionary[BaseAlgorithm, PlasticityCallback] = WeakKeyDictionary()
"""Agent -> the callback at work on it."""


class PlasticityCallback(BaseCallback):
    """Measure the networks of an agent while it learns, and apply interventions: ``learn(callback=...)``.

    ``probes``: names or probes, none for interventions alone. ``every``: optimizer steps of a network between two
    readings. ``interventions``: methods of ``plasticity.interventions``; one of their updates is one ``train()`` of the
    agent, with a :class:`WeightedReplayBuffer` one gradient step. ``diagnose_every``: updates between two fit probes
    on copies, which say whether the networks can still learn; None for none. ``log``: more destinations, as in
    :func:`plasticity.watch`, beside the agent's own logger. ``last``: network -> its latest reading.

    The state of everything is saved with the agent: one that was loaded goes on with a new callback of the same kind.

    Raises TypeError or ValueError for wrong arguments, when ``learn`` begins for two of these callbacks, for compiled
    networks, and where a method lacks something.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe] | Sequence[str] = DEFAULT_PROBES,
        every: int = 500,
        interventions: Sequence[Callback] = (),
        diagnose_every: int | None = None,
        log: str | Path | Writer | Sequence[str | Path | Writer] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        require_arguments(probes, every, interventions, diagnose_every)
        if log is not None:
            require_destinations(log)
        self._measure = Measure(probes, every=every) if probes else None
        fit = [] if diagnose_every is None else [FitProbe(every=diagnose_every)]
        self._callbacks: list[Callback] = [*([self._measure] if self._measure else []), *interventions, *fit]
        self._listeners = listeners(self._callbacks, "on_step")
        self._log_to: list[Any] = [] if log is None else [log] if isinstance(log, (str, Path, Writer)) else list(log)
        self._ctx: Context | None = None
        self._updating = False

    @property
    def last(self) -> dict[str, Any]:
        """The latest reading of every network."""
        return {} if self._measure is None else self._measure.last

    def _on_training_start(self) -> None:
        self._require_alone()
        if (leftover := _IN_USE.get(self.model)) is not None:  # learn() was left by an exception
            leftover._finish()
        found = context_of(self.model)
        require_eager(found)
        self._require_stopper()
        known = self._ctx is not None and self._ctx.networks == found.networks
        if self._ctx is None or not known:
            self._ctx, log = found, OpenLog([AgentLogger(self.model), *self._log_to])
            self._ctx.writer = log.writer
            finalize(self, log.close)  # not at the end of learn(), which may be called again
        self._ctx.buffer, self._ctx.step = found.buffer, self.model.num_timesteps
        _IN_USE[self.model] = self
        try:
            start(self._callbacks, self._ctx, None if known else self._saved(self._ctx))
        except BaseException:
            _IN_USE.pop(self.model, None)
            raise
        write_back(self._ctx, self.model)
        setattr(self.model, STATE_ATTRIBUTE, Live(lambda: states_of(self._callbacks)))
        keep_structure(self.model, {n: c for n, c in named(self._callbacks).items() if restructures(c)})
        self._listen()

    def _require_alone(self) -> None:
        """Raise ValueError if ``learn`` got two of these callbacks, or one twice."""
        if len(list(_own_kind(self.locals.get("callback")))) > 1:
            raise ValueError("learn() got two PlasticityCallbacks; give one, with all probes and interventions")

    def _require_stopper(self) -> None:
        stops = hasattr(self.model, "replay_buffer") and any(isinstance(c, LearnToStop) for c in self._callbacks)
        if stops and stopper_of(self.model) is None:
            raise ValueError(
                "LearnToStop ends episodes, which stable-baselines3 leaves to the environments: wrap them, "
                'SAC("MlpPolicy", StopEpisodes(make_vec_env(...))), with plasticity.sb3.StopEpisodes'
            )

    def _saved(self, ctx: Context) -> list[Any]:
        """Return the states to go on from: of a loaded agent, and of methods that have made its structure."""
        structure = structure_in(self.model)
        states = {**{name: recipe.state for name, recipe in structure.items()}, **saved_states(self.model)}
        callbacks = named(self._callbacks)
        ctx.started = [callback for name, callback in callbacks.items() if name in structure]
        return [states.get(name) for name in callbacks]

    def _listen(self) -> None:
        """Let environments and replay call when episodes may end, and when a gradient step begins."""
        if (stopper := stopper_of(self.model)) is not None and self._listeners:
            stopper.judge = self._judge
        if isinstance(buffer := getattr(self.model, "replay_buffer", None), WeightedReplayBuffer):
            buffer.before_sample = self._next_update

    def _judge(self, actions: np.ndarray, obs: Any, rewards: Any, dones: Any, infos: Any) -> np.ndarray:
        """Tell callbacks of a step before the agent sees it; return which episodes they end."""
        assert self._ctx is not None
        self._ctx.step = self.model.num_timesteps + self.model.n_envs
        step = EnvStep(self.model, actions, obs, rewards, dones, infos)
        fire(self._listeners, "on_step", self._ctx, step)
        return step.stopped()

    def _on_step(self) -> bool:
        if self._ctx is not None:
            self._ctx.step = self.num_timesteps
            if self._listeners and stopper_of(self.model) is None:
                step = EnvStep.from_locals(self.model, self.locals)
                fire(self._listeners, "on_step", self._ctx, step)
                step.require_unstopped()
        return True

    def _on_rollout_start(self) -> None:
        self._end_update()

    def _on_rollout_end(self) -> None:
        weighted = isinstance(getattr(self.model, "replay_buffer", None), WeightedReplayBuffer)
        if not weighted and self.model.num_timesteps > getattr(self.model, "learning_starts", 0):
            self._begin_update()

    def _next_update(self) -> None:
        self._end_update()
        self._begin_update()

    def _begin_update(self) -> None:
        if self._ctx is not None:
            self._updating = True
            fire(self._callbacks, "on_update_start", self._ctx)

    def _end_update(self) -> None:
        if self._ctx is not None and self._updating:
            self._updating = False
            fire(self._callbacks, "on_update_end", self._ctx, {})
            fire(self._callbacks, "on_step_end", self._ctx)

    def _on_training_end(self) -> None:
        self._end_update()
        self._finish()
        if self._measure is not None and self._measure.watcher and not any(self._measure.watcher.steps()):
            name = type(self.model).__name__
            warnings.warn(
                f"nothing was measured: {name} made no gradient step in learn(); train for longer than learning_starts "
                f"or one rollout",
                RuntimeWarning,
                stacklevel=2,
            )

    def _finish(self) -> None:
        """Take everything off the agent."""
        _IN_USE.pop(self.model, None)
        self._updating = False
        if (stopper := stopper_of(self.model)) is not None:
            stopper.judge = None
        if isinstance(buffer := getattr(self.model, "replay_buffer", None), WeightedReplayBuffer):
            buffer.before_sample = None
        if self._ctx is not None:
            end(self._callbacks, self._ctx)


def _own_kind(callback: Any) -> Iterator[PlasticityCallback]:
    """Yield every PlasticityCallback among those that ``learn`` was given, one that is there twice, twice."""
    if isinstance(callback, PlasticityCallback):
        yield callback
    for inner in getattr(callback, "callbacks", ()):
        yield from _own_kind(inner)
    for attribute in ("callback", "callback_on_new_best"):
        if isinstance(inner := getattr(callback, attribute, None), BaseCallback):
            yield from _own_kind(inner)
