"""Lightning: probes and interventions as one callback of a ``Trainer``. Needs the extra ``lightning``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from .callback import Callback, Context, Writer
from .guest import Guest, Log, require_arguments, require_eager
from .measuring import Measure
from .monitor import Layers
from .probes import DEFAULT_PROBES, Probe
from .tags import ALL

try:
    import lightning.pytorch as pl
except ImportError as error:
    raise ImportError('plasticity.lightning needs lightning: pip install "plasticity-toolkit[lightning]"') from error

STATE = "plasticity"
"""The key of the callback's state in older checkpoints; now it is among the states of all callbacks."""
SHARDED = ("FSDP", "DeepSpeed", "ModelParallel")
"""Parts of the names of strategies that spread the weights of a module over processes."""


class LoggersWriter(Writer):
    """Write scalars to all loggers of a trainer; ``fresh``: values of whole networks that callbacks have not seen."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        self.fresh: dict[str, float] = {}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars at once, whatever ``log_every_n_steps`` is."""
        numbers = {tag: float(value) for tag, value in values.items()}
        self.fresh |= {tag: number for tag, number in numbers.items() if tag.endswith(f"/{ALL}")}
        for logger in self._trainer.loggers:
            logger.log_metrics(numbers, step=step)


class PlasticityCallback(pl.Callback):
    """Measure the networks of a module while a ``Trainer`` fits it, and apply interventions.

    ``modules``: the networks, by their names in the module, ``"net"`` or ``["actor", "critic"]``: what its
    ``training_step`` calls; None for the module itself, where that is ``self(x)``. ``probes``: names or probes, none
    for interventions alone. ``every``: optimizer steps between two readings. ``layers``, ``mask``: as in
    :class:`~plasticity.Monitor`, a mask by network where there are several. ``interventions``: methods of
    ``plasticity.interventions``; one update is one optimizer step. ``log``: more destinations, as in
    :func:`plasticity.watch`, beside the trainer's loggers. ``last``: network -> its latest reading.

    Values of whole networks are in ``trainer.callback_metrics``, too. The state is part of the trainer's checkpoints.

    Raises TypeError or ValueError for wrong arguments, and when fitting begins for two of these callbacks, a name that
    is not there, a compiled or sharded module, and methods that replace modules.
    """

    def __init__(
        self,
        modules: str | Sequence[str] | None = None,
        probes: Mapping[str, Probe] | Sequence[str] = DEFAULT_PROBES,
        every: int = 100,
        layers: Layers = None,
        mask: Any = None,
        interventions: Sequence[Callback] = (),
        log: Log = None,
    ) -> None:
        super().__init__()
        require_arguments(probes, every, interventions)
        if not (modules is None or isinstance(modules, str) or all(isinstance(name, str) for name in modules)):
            raise TypeError(f"modules is a name of a network in the module, or a list of names; got {modules!r}")
        for name, one in mask.items() if isinstance(mask, Mapping) else [("", mask)]:
            if not (one is None or callable(one) or isinstance(one, Tensor)):
                raise TypeError(
                    f"mask{name and f' of {name}'} is a bool tensor, or a function of the arguments of the network's "
                    f"forward, such as lambda ids, attention_mask: attention_mask; got {one!r:.80}"
                )
        self.modules = [modules] if isinstance(modules, str) else None if modules is None else list(modules)
        self.mask = mask
        self._guest = Guest(Measure(probes, every=every, layers=layers) if probes else None, interventions, log)
        self._saved: dict[str, Any] | None = None
        self._writer: LoggersWriter | None = None
        self._known: dict[Optimizer, set[int]] = {}
        self._begun: int | None = None

    @property
    def last(self) -> dict[str, Any]:
        """The latest reading of every network."""
        return self._guest.last

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot be watched; say that nothing is measured without fitting."""
        if sum(isinstance(one, PlasticityCallback) for one in trainer.callbacks) > 1:
            raise ValueError("the trainer got two PlasticityCallbacks; give one, with all probes and interventions")
        if (doing := getattr(stage, "value", stage)) != "fit" and self._guest.ctx is None:
            warnings.warn(
                f"nothing is measured in trainer.{doing}(): PlasticityCallback sees the passes of fit(). For a reading "
                f"without training, call plasticity.measure(module.net, batch)",
                RuntimeWarning,
                stacklevel=2,
            )
        if getattr(pl_module, "_compiler_ctx", None):
            raise ValueError(
                "the module is compiled, and hooks never run inside a compiled one: give fit() the module without "
                "torch.compile while PlasticityCallback looks on"
            )
        if any(word in type(trainer.strategy).__name__ for word in SHARDED):
            raise ValueError(
                f"{type(trainer.strategy).__name__} spreads the weights over processes, and PlasticityCallback needs a "
                f"whole module in each: train with strategy='auto' or 'ddp'"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse networks that are not there or compiled, and methods that replace modules, before any batch."""
        owner = type(pl_module).__name__
        require_eager(callers(pl_module, chosen_networks(pl_module, self.modules)), owner)
        self._guest.require_structure(owner)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach to the networks and the optimizers, and go on from the state of a checkpoint."""
        networks = chosen_networks(pl_module, self.modules)
        optimizers = {f"optimizer {i}" if i else "optimizer": one for i, one in enumerate(trainer.optimizers)}
        masks = dict(self.mask) if isinstance(self.mask, Mapping) else dict.fromkeys(networks, self.mask)
        if unknown := masks.keys() - networks.keys():
            raise ValueError(f"mask names {', '.join(sorted(unknown))}; the networks are {', '.join(networks)}")
        masks = {name: mask for name, mask in masks.items() if mask is not None}
        ctx = Context(networks, optimizers, masks=masks, step=trainer.global_step, name=type(pl_module).__name__)
        self._writer, self._begun = LoggersWriter(trainer), None
        self._known = {one: set(one._optimizer_step_pre_hooks) for one in trainer.optimizers}
        self._guest.begin(ctx, self._writer, self._saved)
        self._saved = None
        if not trainer.is_global_zero:
            ctx.writer = Writer()
        for optimizer in trainer.optimizers:
            self._deferred(optimizer)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin an update: of several batches, where gradients accumulate."""
        if self._begun != trainer.global_step:
            self._begun = trainer.global_step
            self._guest.require_present(chosen_networks(pl_module, self.modules))
            self._guest.begin_update(trainer.global_step + 1)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Call what methods do before a step: Lightning runs the passes inside the step, behind its own hooks."""
        inner = getattr(optimizer, "optimizer", optimizer)
        for deferred in self._deferred(inner):
            deferred.hook(inner, (), {})

    def _deferred(self, optimizer: Optimizer) -> list[Deferred]:
        """Return the hooks that methods have put before the steps of an optimizer, which no longer runs them itself."""
        hooks = optimizer._optimizer_step_pre_hooks
        for key in hooks.keys() - self._known.get(optimizer, hooks.keys()):
            hooks[key] = hooks[key] if isinstance(hooks[key], Deferred) else Deferred(hooks[key])
        return [hook for hook in list(hooks.values()) if isinstance(hook, Deferred)]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the update, if the optimizers have stepped; give new values to callbacks."""
        if self._begun is not None and trainer.global_step > self._begun:
            self._guest.end_update()
        if self._writer is not None and self._writer.fresh:
            pl_module.log_dict(self._writer.fresh, logger=False)
            self._writer.fresh = {}

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Take everything off."""
        self._guest.end("no step of the trainer's optimizers was seen")
        self._guest.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Take everything off."""
        self._guest.end()
        self._guest.close()

    # Lightning refuses two callbacks of one state_key that override state_dict, in words that do not say what to do.
    # It leaves them to setup() where the method has the __wrapped__ of its base, and keeps their state all the same.
    @wraps(pl.Callback.state_dict, assigned=())
    def state_dict(self) -> dict[str, Any]:
        """Return the state of the measurement and of every intervention, by name."""
        return self._guest.state_dict() if self._saved is None else self._saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a state until fitting goes on with it."""
        self._saved = state_dict

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Begin anew, unless :meth:`load_state_dict` follows; older checkpoints have the state elsewhere."""
        self._saved = checkpoint.get(STATE)


def chosen_networks(module: pl.LightningModule, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return the networks of a module by name; raise ValueError with the names that are there."""
    there = dict(module.named_modules())
    children = ", ".join(name for name, _ in module.named_children())
    if names is None:
        if type(module).forward is pl.LightningModule.forward:
            raise ValueError(
                f"{type(module).__name__} has no forward: name what its training_step calls, "
                f"PlasticityCallback(modules=...); there are {children}"
            )
        return {"model": module}
    missing = [name for name in names if name not in there or not name]
    if missing or not names:
        raise ValueError(f"{type(module).__name__} has no {', '.join(missing) or 'module'}; there are {children}")
    return {name: there[name] for name in names}


def callers(module: pl.LightningModule, networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the networks, and other parts of the module that share weights with them, by name."""
    held = {id(p) for network in networks.values() for p in network.parameters()}
    sharing = {n: m for n, m in module.named_modules() if n and any(id(p) in held for p in m.parameters())}
    return {**sharing, **networks}


class Deferred:
    """A hook in its place on an optimizer, which is called elsewhere: the optimizer's own call does nothing."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook

    def __call__(self, *_: Any) -> None:
        """Do nothing."""
