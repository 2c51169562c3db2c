"""Stable-Baselines3: probes and interventions as one callback of ``learn``.

Needs the extra ``sb3``. Networks are found by the names under which an agent holds them: ``actor`` and ``critic`` (SAC,
TD3, DDPG, TQC, CrossQ), ``q_net`` (DQN), ``quantile_net`` (QR-DQN), ``policy`` (PPO, A2C, RecurrentPPO).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from .callback import Callback, Context, Writer, end, fire, start
from .measuring import Measure
from .probes import DEFAULT_PROBES, Probe
from .writers.destinations import OpenLog, require_destinations

try:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.callbacks import BaseCallback
except ImportError as error:
    raise ImportError('plasticity.sb3 needs stable-baselines3: pip install "plasticity-toolkit[sb3]"') from error

HELD = ("actor", "critic", "q_net", "quantile_net")
"""Names under which agents hold the networks that they train; agents without any train their policy as a whole."""
TRAINED_BY = ("evaluate_actions", "action_log_prob")
"""Methods by which agents call a network in training, beside ``forward``."""
_IN_USE: WeakKeyDictionary[BaseAlgorithm, PlasticityCallback] = WeakKeyDictionary()
"""Agent that is being trained -> its callback."""


def context_of(model: BaseAlgorithm) -> Context:
    """Return the networks, targets and optimizers of an agent by name, and how training calls them."""
    networks: dict[str, nn.Module] = {name: net for name in HELD if (net := getattr(model, name, None)) is not None}
    networks = networks or {"policy": model.policy}
    holders = {name: net if hasattr(net, "optimizer") else model.policy for name, net in networks.items()}
    optimizers: dict[str, Any] = {name: holder.optimizer for name, holder in holders.items()}
    targets = {name: net for name in networks if (net := getattr(model, f"{name}_target", None)) is not None}
    calls = {n: tuple(m for m in TRAINED_BY if callable(getattr(net, m, None))) for n, net in networks.items()}
    return Context(networks, optimizers, targets=targets, calls=calls, name=type(model).__name__)


class AgentLogger(Writer):
    """Write scalars to an agent's logger; single layers are left out of what it prints."""

    def __init__(self, model: BaseAlgorithm) -> None:
        self._model = model

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars under their tags."""
        for tag, value in values.items():
            self._model.logger.record(tag, float(value), exclude=None if tag.endswith("/all") else "stdout")


class PlasticityCallback(BaseCallback):
    """Measure the networks of an agent while it learns, and apply interventions: ``learn(callback=...)``.

    ``probes``: names or probes, none for interventions alone. ``every``: optimizer steps of a network between two
    readings. ``interventions``: methods of ``plasticity.interventions``; one of their updates is one ``train()`` of the
    agent. ``log``: more destinations, as in :func:`plasticity.watch`, beside the agent's own logger. ``last``: network
    -> its latest reading.

    Raises ValueError if two of these callbacks are given to one agent, and where a method lacks something.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe] | Sequence[str] = DEFAULT_PROBES,
        every: int = 500,
        interventions: Sequence[Callback] = (),
        log: str | Path | Writer | Sequence[str | Path | Writer] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if log is not None:
            require_destinations(log)
        self._measure = Measure(probes, every=every) if probes else None
        self._callbacks: list[Callback] = [*([self._measure] if self._measure else []), *interventions]
        self._log_to: list[Any] = [] if log is None else [log] if isinstance(log, (str, Path, Writer)) else list(log)
        self._ctx: Context | None = None
        self._log: OpenLog | None = None
        self._updating = False

    @property
    def last(self) -> dict[str, Any]:
        """The latest reading of every network."""
        return {} if self._measure is None else self._measure.last

    def _on_training_start(self) -> None:
        other = _IN_USE.setdefault(self.model, self)
        if other is not self:
            raise ValueError("learn() got two PlasticityCallbacks; give one, with all probes and interventions")
        if self._ctx is None or self._ctx.networks != context_of(self.model).networks:
            self._ctx = context_of(self.model)
            self._log = OpenLog([AgentLogger(self.model), *self._log_to])
            self._ctx.writer = self._log.writer
        try:
            start(self._callbacks, self._ctx)
        except BaseException:
            _IN_USE.pop(self.model, None)
            raise

    def _on_step(self) -> bool:
        if self._ctx is not None:
            self._ctx.step = self.num_timesteps
        return True

    def _on_rollout_start(self) -> None:
        self._end_update()

    def _on_rollout_end(self) -> None:
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
        _IN_USE.pop(self.model, None)
        if self._ctx is not None:
            end(self._callbacks, self._ctx)
