"""One callback of ``Trainer`` and of TRL's trainers: probes and interventions on the model that they train."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from plasticity.callback import Callback, Context, Writer
from plasticity.guest import Guest, Live, Log, as_text, from_text, require_arguments
from plasticity.isolation import is_compiled
from plasticity.monitor import UNITS, Layers
from plasticity.probes import DEFAULT_PROBES, Probe
from plasticity.structure.optimizers import innermost

from .logs import STATE, HistoryWriter
from .masks import TokenMask, mask_of
from .measuring import TokenMeasure

MLP = "mlp"
"""The layers of hidden units, those of the MLPs in a transformer."""
NETWORK = "model"
"""The name of the model in tags and events."""
ZERO_VARIANCE = "frac_reward_zero_std"
"""The share of groups whose rewards are all alike, in the logs of TRL's GRPO trainer."""
_IN_USE: WeakKeyDictionary[nn.Module, PlasticityCallback] = WeakKeyDictionary()
"""Model that is being trained -> the callback at work on it."""


class PlasticityCallback(TrainerCallback):
    """Measure a model while a ``Trainer`` trains it, and apply interventions: ``Trainer(callbacks=[...])``.

    For ``Trainer`` and TRL's ``SFTTrainer``, ``DPOTrainer``, ``GRPOTrainer``. Only passes whose gradient arrives count:
    not generation, evaluation, old log-probabilities or the reference model. ``probes``: names or probes, none for
    interventions alone. ``every``: optimizer steps between two readings. ``layers``: ``"mlp"``, the layers of hidden
    units; globs of names; None for all, attention too. ``mask``: the tokens that are samples, by the name of an
    argument of the model, ``"attention_mask"``; ``"completion_mask"`` for those that bear the loss; a function of the
    arguments; or None for all. ``interventions``: methods of ``plasticity.interventions``; one update is one optimizer
    step. ``log``: more destinations, as in :func:`plasticity.watch`, beside ``state.log_history``. ``last``: network ->
    its latest reading.

    Its state is saved in ``trainer_state.json`` and goes on with ``train(resume_from_checkpoint=...)``.

    Raises TypeError or ValueError for wrong arguments, and when training begins for two of these callbacks, a compiled
    or sharded model, methods that replace modules, and a mask with which the model is not called.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe] | Sequence[str] = DEFAULT_PROBES,
        every: int = 100,
        layers: Layers | str = MLP,
        mask: str | Callable[..., Tensor | None] | None = "attention_mask",
        interventions: Sequence[Callback] = (),
        log: Log = None,
    ) -> None:
        require_arguments(probes, every, interventions)
        if isinstance(layers, str) and layers != MLP:
            raise ValueError(f"layers is {MLP!r}, a list of globs of names, or None for all; got {layers!r}")
        self.mask = mask_of(mask)
        chosen: Any = UNITS if layers == MLP else layers
        measure = TokenMeasure(probes, every=every, layers=chosen) if probes else None
        self._guest = Guest(measure, interventions, log)
        self._state: TrainerState | None = None
        self._history: HistoryWriter | None = None
        self._check: RemovableHandle | None = None

    @property
    def last(self) -> dict[str, Any]:
        """The latest reading by network: ``last["model"]``."""
        return self._guest.last

    def on_init_end(self, args: TrainingArguments, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Refuse what cannot be watched, before anything is trained."""
        require_visible(args, model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Attach to the model and its optimizer, and go on from the state of a checkpoint."""
        require_visible(args, model)
        self._take_over(model, state)
        optimizer = innermost(kwargs["optimizer"])
        masks = {} if self.mask is None else {NETWORK: self.mask}
        ctx = Context({NETWORK: model}, {NETWORK: optimizer}, masks=masks, step=state.global_step, name="Trainer")
        saved = state.stateful_callbacks.get(STATE) if state.global_step else None
        self._history = HistoryWriter(state)
        self._guest.begin(ctx, self._history, None if saved is None else from_text(saved))
        if isinstance(self.mask, TokenMask):
            self._check = self.mask.require_in(model)
        if not state.is_world_process_zero:
            ctx.writer = Writer()
        state.stateful_callbacks[STATE] = Live(lambda: as_text(self._guest.state_dict()))
        self._state, _IN_USE[model] = state, self

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Begin an update: with gradient accumulation, of several passes."""
        self._guest.begin_update(state.global_step + 1)

    def on_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End an update, before the trainer drops the gradients: some methods look at them."""
        self._guest.end_update()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Say in which epoch the step was."""
        if self._history is not None:
            self._history.settle()

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Give the values of whole networks to callbacks that print, and log the share of groups that teach nothing."""
        if logs is None or self._history is None or self._guest.ctx is None:
            return
        if (share := logs.get(ZERO_VARIANCE)) is not None:
            self._guest.ctx.log({f"plasticity/{NETWORK}/{ZERO_VARIANCE}/all": float(share)})
        logs |= self._history.fresh
        self._history.fresh = {}

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say once that passes without gradients are not measured, where nothing was trained."""
        if self._state is None:
            self._state = state
            warnings.warn(
                "nothing was measured: PlasticityCallback sees the passes of train(), and this trainer has evaluated "
                "only. For a reading without training, call plasticity.measure(model, batch)",
                RuntimeWarning,
                stacklevel=2,
            )

    on_predict = on_evaluate

    def on_train_end(self, args: Any, state: TrainerState, control: Any, model: Any = None, **_: Any) -> None:
        """Take everything off the model."""
        self._finish(model, "the trainer made no optimizer step")

    def _take_over(self, model: nn.Module, state: TrainerState) -> None:
        """Raise ValueError where another of these callbacks is at work; one that an exception left behind is ended."""
        other = _IN_USE.get(model)
        if other is not None and other._state is state:
            raise ValueError("the trainer got two PlasticityCallbacks; give one, with all probes and interventions")
        if other is not None:
            other._finish(model)

    def _finish(self, model: nn.Module, no_step: str | None = None) -> None:
        _IN_USE.pop(model, None)
        if self._check is not None:
            self._check.remove()
        self._guest.end(no_step)
        self._guest.close()


def require_visible(args: TrainingArguments, model: Any) -> None:
    """Raise ValueError for a model that is compiled, or whose weights are spread over processes."""
    if args.torch_compile or (model is not None and is_compiled(model)):
        raise ValueError(
            "the trainer compiles the model, and hooks never run inside a compiled one: set torch_compile=False while "
            "PlasticityCallback looks on"
        )
    if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
        raise ValueError(
            "DeepSpeed and FSDP spread the weights over processes, and PlasticityCallback needs a whole model in each: "
            "train without, or with data parallelism (torchrun) alone"
        )
