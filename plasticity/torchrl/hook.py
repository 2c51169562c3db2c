"""One hook of a trainer: probes, interventions and fit probes on the networks of a loss module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, finalize

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.optim import Optimizer
from torchrl.data import ReplayBuffer
from torchrl.objectives import LossModule, REDQLoss

from plasticity.callback import Callback, Context, Writer, name_of
from plasticity.guest import Guest, Log, require_arguments, require_eager, restructures
from plasticity.measuring import Measure
from plasticity.probes import DEFAULT_PROBES, Probe

from .optimizers import Sliced
from .passes import Passes
from .sampler import WeightedSampler
from .twins import RERUN, Stack, stacks_of

if TYPE_CHECKING:
    from torchrl.trainers import Trainer

_IN_USE: WeakKeyDictionary[LossModule, PlasticityHook] = WeakKeyDictionary()
"""Loss module -> the hook at work on it."""


class PlasticityHook:
    """Measure the networks of a loss module while it trains, and apply interventions.

    ``PlasticityHook(loss_module, optimizer, every=500).register(trainer)``; in a loop without a trainer, as a ``with``
    block around it, with ``hook.frames(n)`` after each batch of ``n`` environment steps, for clocks and logs.

    ``optimizers``: all that train the loss. ``probes``: names or probes, none for interventions alone. ``every``:
    optimizer steps between two readings. ``interventions``: methods of ``plasticity.interventions``; one of their
    updates is one optimization step. ``diagnose_every``: updates between two fit probes on copies. ``log``: more
    destinations, as in :func:`plasticity.watch`, beside the trainer's logger. ``replay_buffer``: one with a
    :class:`WeightedSampler`, for methods of replay. ``last``: network -> its latest reading.

    Raises TypeError for something else than a loss module and optimizers, and ValueError for compiled networks, for
    a loss module that has a hook already, and where a method lacks something.
    """

    def __init__(
        self,
        loss_module: LossModule,
        optimizers: Optimizer | Sequence[Optimizer] | Mapping[str, Optimizer],
        probes: Mapping[str, Probe] | Sequence[str] = DEFAULT_PROBES,
        every: int = 500,
        interventions: Sequence[Callback] = (),
        diagnose_every: int | None = None,
        log: Log = None,
        replay_buffer: ReplayBuffer | None = None,
    ) -> None:
        require_arguments(probes, every, interventions, diagnose_every)
        self._optimizers = _require_loss(loss_module, optimizers, interventions)
        self._loss, self._buffer = loss_module, replay_buffer
        measure = Measure(probes, every=every) if probes else None
        self._guest = Guest(measure, interventions, log, diagnose_every)
        finalize(self, self._guest.close)  # not with the hook, which may be started again
        self._trainer: Trainer | None = None
        self._batch: TensorDictBase | None = None
        self._undo: list[Any] = []
        self._waiting: set[str] = set()
        """Optimizers that have not stepped in the present update."""

    @property
    def last(self) -> dict[str, Any]:
        """The latest reading of every network."""
        return self._guest.last

    # -- life ----------------------------------------------------------------------------------------------------------

    def register(self, trainer: Trainer, name: str = "plasticity") -> None:
        """Begin, and take part in a trainer: its updates, its logger, its checkpoints."""
        if trainer.loss_module is not self._loss:
            raise ValueError("this PlasticityHook was made for another loss module than the trainer's: pass that one")
        self._trainer = trainer
        trainer.register_module(name, self)
        trainer.register_op("process_optim_batch", self.begin_update)
        trainer.register_op("post_optim", self.end_update)
        trainer.register_op("pre_steps_log", self._count)
        trainer.register_op("shutdown", self.close)
        self.start()

    def start(self) -> PlasticityHook:
        """Put everything on the networks."""
        if self._loss in _IN_USE:
            raise ValueError(
                f"this {type(self._loss).__name__} has a PlasticityHook already; give one, with all probes and "
                f"interventions, or close() the other"
            )
        stacks = stacks_of(self._loss)
        require_eager(
            {stack.name: stack.source for stack in stacks} | {"loss module": self._loss}, type(self._loss).__name__
        )
        passes = Passes(stacks)
        sliced = {
            name: Sliced(
                real, stacks, partial(passes.run_again, _trained_by(stacks, real)), partial(self._stepped, name)
            )
            for name, real in self._optimizers.items()
        }
        self._undo = [passes, *sliced.values()]
        _IN_USE[self._loss] = self
        try:
            self._guest.begin(self._context(stacks, sliced), TrainerLogger(self._trainer) if self._trainer else None)
        except BaseException:
            self._take_off()
            raise
        return self

    def _context(self, stacks: list[Stack], sliced: dict[str, Sliced]) -> Context:
        networks = {name: twin for stack in stacks for name, twin in stack.twins.items()}
        ctx = Context(
            networks,
            {name: one.lent for name, one in sliced.items()},
            targets={name: target for stack in stacks for name, target in stack.targets.items()},
            forward=dict.fromkeys(networks, run_on),
            calls=dict.fromkeys(networks, (RERUN,)),
            peek=self._peek,
            name=type(self._loss).__name__,
        )
        for one in sliced.values():
            one.read_state()
        if self._buffer is not None:
            sampler = self._buffer.sampler
            if not isinstance(sampler, WeightedSampler):
                raise ValueError(
                    f"replay_buffer has a {type(sampler).__name__}; methods of replay need "
                    f"ReplayBuffer(..., sampler=WeightedSampler()), of plasticity.torchrl"
                )
            ctx.buffer = sampler
        return ctx

    def close(self) -> None:
        """Take everything off, and say what was never measured; does nothing the second time."""
        self._guest.end_update()
        self._end("none of these optimizers has stepped: give the hook those whose step() the loop calls")

    def _end(self, no_step: str | None = None) -> None:
        try:
            self._guest.end(no_step)
        finally:
            self._take_off()

    def _take_off(self) -> None:
        if _IN_USE.get(self._loss) is self:
            del _IN_USE[self._loss]
        for one in self._undo:
            one.remove()
        self._undo = []

    def __enter__(self) -> PlasticityHook:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close() if kind is None else self._end()

    # -- events --------------------------------------------------------------------------------------------------------

    def begin_update(self, batch: TensorDictBase) -> TensorDictBase:
        """Begin an optimization step on a batch, which is returned as it is."""
        if batch is not None:
            self._batch, self._waiting = batch, set(self._optimizers)
            self._guest.begin_update()
        return batch

    def _stepped(self, optimizer: str) -> None:
        """End the update when all optimizers have stepped: their gradients are gone by the end of the loop's own."""
        self._waiting.discard(optimizer)
        if not self._waiting:
            self._guest.end_update()

    def end_update(self) -> None:
        """End the optimization step."""
        self._guest.end_update()

    def frames(self, num: int) -> None:
        """Count environment steps."""
        if self._guest.ctx is not None:
            self._guest.ctx.step += num

    def _count(self, batch: Any) -> None:
        assert self._guest.ctx is not None
        assert self._trainer is not None
        self._guest.ctx.step = int(self._trainer.collected_frames)

    def _peek(self, num: int, generator: torch.Generator) -> TensorDictBase:
        """Return elements of the batch of the present update; ValueError before the first."""
        if self._batch is None:
            raise ValueError("there was no optimization step yet: register the hook, or call begin_update(batch)")
        batch = self._batch.reshape(-1)
        draw = torch.randint(len(batch), (num,), generator=generator)
        return batch[draw.to(batch.device) if batch.device is not None else draw].detach().clone()

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all callbacks."""
        return self._guest.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, with the same probes and methods in the same order; ValueError for others."""
        own = self._guest.named()
        if [*own] != [*state_dict]:
            raise ValueError(f"the state is of {', '.join(state_dict)}; this PlasticityHook has {', '.join(own)}")
        if self._trainer is not None:
            self._count(None)
        for name, callback in own.items():
            callback.load_state_dict(state_dict[name])


class TrainerLogger(Writer):
    """Write scalars to the logger of a trainer, at the frames collected so far."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars under their tags."""
        if self._trainer.logger is not None:
            for tag, value in values.items():
                self._trainer.logger.log_scalar(tag, float(value), step=step)


def run_on(module: Any, batch: TensorDictBase) -> Tensor:
    """Return the floating-point outputs of a network on a batch, side by side, (batch, outputs); of a policy, those
    that its distribution is made of."""
    inputs = batch.select(*module.in_keys).clone()
    found = module.get_dist_params(inputs) if hasattr(module, "get_dist_params") else module(inputs)
    before = set(inputs.keys(True, True)) if found is not inputs else set()
    outputs = [
        value
        for key, value in found.items(True, True)
        if key not in module.in_keys and key not in before and value.is_floating_point()
    ]
    return torch.cat([output.flatten(1) for output in outputs], -1)


def _require_loss(loss: Any, optimizers: Any, interventions: Any) -> dict[str, Optimizer]:
    """Return the optimizers by name; TypeError for arguments of another type, with what to pass."""
    if not isinstance(loss, LossModule):
        raise TypeError(
            f"PlasticityHook takes the loss module, SACLoss(actor, qvalue), which knows all networks; got "
            f"{type(loss).__name__}"
        )
    if isinstance(loss, REDQLoss):
        raise ValueError(
            "REDQLoss runs its networks with copies of their parameters, beside those of targets, so that no pass can "
            "be told from another: use SACLoss(actor, qvalue, num_qvalue_nets=...) while plasticity looks on"
        )
    named = optimizers if isinstance(optimizers, Mapping) else None
    if named is None:
        listed = [optimizers] if isinstance(optimizers, Optimizer) else optimizers
        if not isinstance(listed, Sequence):
            raise TypeError(f"optimizers is an optimizer, or a list of all that train the loss; got {optimizers!r}")
        named = {f"optimizer_{number}" if number else "optimizer": one for number, one in enumerate(listed)}
    for one in named.values():
        if not isinstance(one, Optimizer):
            raise TypeError(f"optimizers holds torch optimizers; got {type(one).__name__}")
    for one in interventions:
        if restructures(one):
            raise ValueError(
                f"{name_of(one)} replaces modules, and a TorchRL loss keeps parameters apart from modules, so that it "
                f"would not see them: build the networks so before the loss module is made"
            )
    return dict(named)


def _trained_by(stacks: Sequence[Stack], optimizer: Optimizer) -> list[Stack]:
    """Return the networks that an optimizer trains."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    return [stack for stack in stacks if stack.is_held_by(held)]
