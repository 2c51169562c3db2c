"""Measure a model on a reference batch, without a trace in it, or the networks of a run on its own passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from .callback import Callback, Context
from .isolation import call_of, map_tensors, undisturbed, unwrap
from .monitor import Layers, Monitor
from .observing.passes import Mask
from .observing.reading import OUTPUT_LAYER, Reading
from .probes import DEFAULT_PROBES, Probe
from .probes.network import LossAgain, total_of
from .structure.labels import tensors_in
from .tags import MEASURED, OVERHEAD, UNMEASURED, UPDATES, network_prefix, score_tag
from .told import Told
from .watching import Watcher


def measure(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[[Any, Any], Tensor | Mapping[str, Tensor]] | None = None,
    *,
    probes: Mapping[str, Probe] | Sequence[str] | None = None,
    layers: Layers = None,
    mask: Mask = None,
    method: str = "forward",
) -> Reading:
    """Run ``model`` on ``batch`` in evaluation mode and return what the probes say; ``print`` it for a table.

    ``batch``: the model's inputs (a tensor; a tuple for several arguments; a mapping for named ones). With
    ``loss_fn``, called as ``loss_fn(output, targets)`` like torch's own, it is the pair ``(inputs, targets)``, and
    gradient probes measure too; it may also return several losses by name, whose sum is differentiated. Use the same
    batch every time and values compare over time. ``probes``, ``layers`` and ``mask`` are those of
    :class:`~plasticity.Monitor`; ``method`` is the one by which the model is called. Parameters, ``.grad``, buffers,
    train flags and random states stay as they were.

    Raises ValueError for a batch that is no pair where a loss is given, and for a loss that is not one number; errors
    of the model itself pass through.
    """
    model, targets = unwrap(model), None
    if loss_fn is not None:
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise ValueError(f"with a loss_fn, batch is the pair (inputs, targets); got {_describe(batch)}")
        batch, targets = batch
    if probes is None:
        probes = DEFAULT_PROBES if loss_fn is not None else [n for n in DEFAULT_PROBES if n != "grama"]
    owner = object()
    with undisturbed(model, owner), torch.set_grad_enabled(loss_fn is not None):
        calls = () if method == "forward" else (method,)
        monitor = Monitor(model, probes, layers=layers, mask=mask, calls=calls, strict=True, owner=owner)
        with monitor:
            args, kwargs = _arguments(map_tensors(batch, _differentiable if loss_fn is not None else torch.clone))
            output = call_of(model, method)(*args, **kwargs)
            if loss_fn is not None:
                _differentiate(model, _total(loss_fn(output, map_tensors(targets, torch.clone))), args, kwargs)

        def objective() -> Tensor | Mapping[str, Tensor]:
            args, kwargs = _arguments(map_tensors(batch, torch.clone))
            assert loss_fn is not None
            return loss_fn(call_of(model, method)(*args, **kwargs), map_tensors(targets, torch.clone))

        monitor.objective = objective if loss_fn is not None else None
        return monitor.read()


def _arguments(batch: Any) -> tuple[tuple, dict]:
    if isinstance(batch, Mapping) and not hasattr(batch, "batch_size"):  # a TensorDict is one argument
        return (), dict(batch)
    return (tuple(batch), {}) if isinstance(batch, (tuple, list)) else ((batch,), {})


def _differentiable(tensor: Tensor) -> Tensor:
    """Let gradients reach layers below which everything is frozen, without touching the caller's tensor."""
    copy = tensor.detach().clone()
    # The clone of a leaf, because the model may work in place on its input.
    return copy.requires_grad_().clone() if copy.is_floating_point() else copy


def _differentiate(model: nn.Module, loss: Tensor, args: tuple, kwargs: dict) -> None:
    """Run the backward pass without writing to any ``.grad``."""
    sources = [t for t in (*model.parameters(), *tensors_in((args, kwargs))) if t.requires_grad]
    if loss.requires_grad and sources and _is_checkpointed(loss):
        _run_backward(loss, sources)
    elif loss.requires_grad and sources:
        torch.autograd.grad(loss, sources, allow_unused=True)


def _is_checkpointed(loss: Tensor) -> bool:
    """Return whether reentrant checkpointing is in the graph of a loss: it knows ``backward()`` alone."""
    seen, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
    return False


def _run_backward(loss: Tensor, leaves: Sequence[Tensor]) -> None:
    """Run ``backward()``, with ``.grad`` and the hooks on it put back afterwards."""
    own = [leaf for leaf in leaves if leaf.is_leaf]
    gradients, hooks = [leaf.grad for leaf in own], [dict(leaf._post_accumulate_grad_hooks or {}) for leaf in own]
    try:
        for leaf in own:
            leaf.grad = None
            if leaf._post_accumulate_grad_hooks:
                leaf._post_accumulate_grad_hooks.clear()
        loss.backward()
    finally:
        for leaf, gradient, removed in zip(own, gradients, hooks, strict=True):
            leaf.grad = gradient
            if removed:
                leaf._post_accumulate_grad_hooks.update(removed)


def _describe(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _total(loss: Any) -> Tensor:
    """Return the loss, or the sum of its parts by name; ValueError unless each is one number."""
    for part in loss.values() if isinstance(loss, Mapping) and loss else (loss,):
        if not isinstance(part, Tensor) or part.numel() != 1:
            raise ValueError(f"loss_fn must return a loss of one number, or several by name; got {_describe(part)}")
    return total_of(loss)


def _objective(ctx: Context, network: str) -> LossAgain:
    """Return a function that computes the loss of a network's last step anew, without a trace in any network.

    By parts where the step tells them.
    """

    def objective() -> Tensor | Mapping[str, Tensor]:
        step = ctx.step_of(network)
        with ExitStack() as stack:
            for module in {id(m): m for m in (*ctx.networks.values(), *ctx.targets.values())}.values():
                stack.enter_context(undisturbed(module, step))
            stack.enter_context(torch.enable_grad())
            return step.parts() if hasattr(step, "parts") else step.again()

    return objective


class TimeShare:
    """Says which share of wall-clock time something took since it was last asked; ``seconds``: the time so far."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._last = perf_counter(), seconds()

    def share(self) -> float:
        """Return the share, in [0, 1]."""
        now = perf_counter(), self._seconds()
        (before, spent_before), self._last = self._last, now
        return (now[1] - spent_before) / (now[0] - before)


class Measure(Callback):
    """Run probes on every network of a run, on its own training passes, every ``every`` optimizer steps.

    Logs ``plasticity/<network>/<metric>/<layer>`` (the layer ``all`` is the whole network), the scores of the neurons
    as histograms, and hidden layers that could not be measured as the event ``unmeasured``, every reason once. The
    event ``measured`` says of ranks their samples, features, dtype and centring, once, and where they become others.
    ``networks``: which ones, by name; default all. ``window``: over how many steps a reading is taken, ending with the
    one at which it is due (see :class:`~plasticity.watching.Watcher`); with ``window=every``, every step is measured.
    ``masks``: network -> mask of its samples, in place of those of the context; ``layers``: as in
    :class:`~plasticity.Monitor`. Costs nothing between windows, and never changes what is learned.

    Logs ``charts/updates``, the optimizer steps so far, and ``plasticity/overhead``: the share of wall-clock time since
    the last reading that was spent in hooks, on taking in what they or compiled graphs saw, and on reading and logging.
    Not in it: what compiled graphs take longer for computing it, and the first compilation.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe] | Sequence[str] = DEFAULT_PROBES,
        every: int = 1000,
        networks: Sequence[str] | None = None,
        strict: bool = False,
        window: int = 1,
        masks: Mapping[str, Any] | None = None,
        layers: Layers = None,
    ) -> None:
        self.masks, self.layers = masks, layers
        self.probes, self.every, self.networks, self.strict, self.window = probes, every, networks, strict, window
        self.last: dict[str, Reading] = {}
        """Network -> its latest reading."""
        self._told = Told()
        self.watcher: Watcher | None = None

    def on_train_start(self, ctx: Context) -> None:
        """Attach to the networks; raise ValueError for a name the run does not have."""
        missing = set(self.networks or ()) - set(ctx.networks)
        if missing:
            raise ValueError(f"no network {', '.join(sorted(missing))}; {ctx.name} has {', '.join(ctx.networks)}")
        chosen = {n: net for n, net in ctx.networks.items() if self.networks is None or n in self.networks}

        def take(network: str, reading: Reading, step: int) -> None:
            reading = self.revised(network, reading)
            self.last[network] = reading
            overhead = {OVERHEAD: clock.share(), UPDATES: step} if network == next(iter(chosen)) else {}
            ctx.log({**reading.flat(network_prefix(network)), **overhead})
            for probe, by_layer in reading.scores.items():
                for layer, scores in by_layer.items():
                    ctx.histogram(score_tag(network, probe, layer), scores)
            gaps = {f"{e.layer} ({e.probe})": e.reason for e in reading.unmeasured if e.reason != OUTPUT_LAYER}
            if reasons := self._told.new(network, gaps):
                ctx.event(UNMEASURED, {"network": network, **reasons})
            if conditions := self._told.new(network, reading.conditions()):
                ctx.event(MEASURED, {"network": network, **conditions})

        self.watcher = watcher = Watcher(
            chosen,
            list(ctx.optimizers.values()),
            take,
            every=self.every,
            window=self.window,
            probes=self.probes,
            layers=self.layers,
            strict=self.strict,
            calls=ctx.calls,
            masks=self.masks or ctx.masks,
            objectives={name: _objective(ctx, name) for name in chosen if ctx.steps},
        )
        clock = TimeShare(lambda: watcher.total_seconds)

    def revised(self, network: str, reading: Reading) -> Reading:
        """Return a reading as it is logged; subclasses change it."""
        return reading

    def on_train_end(self, ctx: Context) -> None:
        """Take every hook off."""
        if self.watcher is not None:
            self.watcher.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the clocks of the measurements, and the reasons of missing values that have been told."""
        if self.watcher is None:
            return {}
        return {**self.watcher.state_dict(), "told": self._told.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        if self.watcher is not None and state:
            self.watcher.load_state_dict(state)
        self._told.load_state_dict(state.get("told", {}))
