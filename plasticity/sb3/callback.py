"""One callback of ``learn``: probes, interventions and fit probes on the networks of an agent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, finalize

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EventCallback

from plasticity.callback import Callback, Context, fire, listeners
from plasticity.guest import Guest, Live, Log, require_arguments, restructures
from plasticity.interventions import LearnToStop
from plasticity.measuring import Measure
from plasticity.probes import DEFAULT_PROBES, Probe

from .context import context_of, networks_of, write_back
from .logger import AgentLogger
from .replay import WeightedReplayBuffer
from .saving import STATE_ATTRIBUTE, keep_structure, saved_states, structure_in
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
        log: Log = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if isinstance(probes, Mapping) and isinstance(every, Mapping):  # locals and globals of learn(), which called it
            raise TypeError("learn() got the class PlasticityCallback: make one, callback=PlasticityCallback(...)")
        require_arguments(probes, every, interventions, diagnose_every)
        measure = Measure(probes, every=every) if probes else None
        self._guest = Guest(measure, interventions, log, diagnose_every, restructures=True)
        finalize(self, self._guest.close)  # not at the end of learn(), which may be called again
        self._listeners = listeners(self._guest.callbacks, "on_step")

    @property
    def last(self) -> dict[str, Any]:
        """The latest reading of every network."""
        return self._guest.last

    def _init_callback(self) -> None:
        self._require_outside()

    def _require_outside(self) -> None:
        """Raise ValueError inside a callback of events, which tells of some steps alone, and of no rollout or end."""
        if isinstance(outer := self.parent, EventCallback):
            self.parent = None
            kind = type(outer).__name__
            raise ValueError(
                f"PlasticityCallback is inside {kind}, which hides most steps and the end from it: give it beside, "
                f"learn(callback=[PlasticityCallback(...), {kind}(...)])"
            )

    def _on_training_start(self) -> None:
        self._require_outside()  # a list in between says so only now
        self._require_alone()
        if (leftover := _IN_USE.get(self.model)) is not None:  # learn() was left by an exception
            leftover._finish()
        self._require_stopper()
        found, before = context_of(self.model), self._guest.ctx
        ctx = before if before is not None and before.networks == found.networks else found
        ctx.optimizers, ctx.buffer, ctx.step = found.optimizers, found.buffer, self.model.num_timesteps
        self._guest.begin(ctx, AgentLogger(self.model), {} if ctx is before else self._saved(ctx))
        _IN_USE[self.model] = self
        write_back(ctx, self.model)
        setattr(self.model, STATE_ATTRIBUTE, Live(self._guest.state_dict))
        keep_structure(self.model, {n: c for n, c in self._guest.named().items() if restructures(c)})
        self._listen()

    def _require_alone(self) -> None:
        """Raise ValueError if ``learn`` got two of these callbacks, or one twice."""
        if len(list(_own_kind(self.locals.get("callback")))) > 1:
            raise ValueError("learn() got two PlasticityCallbacks; give one, with all probes and interventions")

    def _require_stopper(self) -> None:
        stops = hasattr(self.model, "replay_buffer") and any(isinstance(c, LearnToStop) for c in self._guest.callbacks)
        if stops and stopper_of(self.model) is None:
            raise ValueError(
                "LearnToStop ends episodes, which stable-baselines3 leaves to the environments: wrap them, "
                'SAC("MlpPolicy", StopEpisodes(make_vec_env(...))), with plasticity.sb3.StopEpisodes'
            )

    def _saved(self, ctx: Context) -> dict[str, Any]:
        """Return the states to go on from: of a loaded agent, and of methods that have made its structure."""
        structure = structure_in(self.model)
        ctx.started = [callback for name, callback in self._guest.named().items() if name in structure]
        return {**{name: recipe.state for name, recipe in structure.items()}, **saved_states(self.model)}

    def _listen(self) -> None:
        """Let environments and replay call when episodes may end, and when a gradient step begins."""
        if (stopper := stopper_of(self.model)) is not None and self._listeners:
            stopper.judge = self._judge
        if isinstance(buffer := getattr(self.model, "replay_buffer", None), WeightedReplayBuffer):
            buffer.before_sample = self._guest.begin_update

    def _judge(self, actions: np.ndarray, obs: Any, rewards: Any, dones: Any, infos: Any) -> np.ndarray:
        """Tell callbacks of a step before the agent sees it; return which episodes they end."""
        step = EnvStep(self.model, actions, obs, rewards, dones, infos)
        self._tell(step, self.model.num_timesteps + self.model.n_envs)
        return step.stopped()

    def _on_step(self) -> bool:
        if self._listeners and stopper_of(self.model) is None:
            step = EnvStep.from_locals(self.model, self.locals)
            self._tell(step, self.num_timesteps)
            step.require_unstopped()
        elif self._guest.ctx is not None:
            self._guest.ctx.step = self.num_timesteps
        return True

    def _tell(self, step: EnvStep, count: int) -> None:
        if (ctx := self._guest.ctx) is not None:
            ctx.step = count
            fire(self._listeners, "on_step", ctx, step)

    def _on_rollout_start(self) -> None:
        self._guest.end_update()

    def _on_rollout_end(self) -> None:
        self._guest.require_present(networks_of(self.model.policy))
        weighted = isinstance(getattr(self.model, "replay_buffer", None), WeightedReplayBuffer)
        if not weighted and self.model.num_timesteps > getattr(self.model, "learning_starts", 0):
            self._guest.begin_update()

    def _on_training_end(self) -> None:
        self._guest.end_update()
        self._finish(
            f"{type(self.model).__name__} made no gradient step in learn(); train for longer than learning_starts or "
            f"one rollout"
        )

    def _finish(self, no_step: str | None = None) -> None:
        """Take everything off the agent."""
        _IN_USE.pop(self.model, None)
        if (stopper := stopper_of(self.model)) is not None:
            stopper.judge = None
        if isinstance(buffer := getattr(self.model, "replay_buffer", None), WeightedReplayBuffer):
            buffer.before_sample = None
        self._guest.end(no_step)


def _own_kind(callback: Any) -> Iterator[PlasticityCallback]:
    """Yield every PlasticityCallback among those that ``learn`` was given, one that is there twice, twice."""
    if isinstance(callback, PlasticityCallback):
        yield callback
    for inner in getattr(callback, "callbacks", ()):
        yield from _own_kind(inner)
