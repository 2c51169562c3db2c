"""Callbacks on a training loop: their events, the context that a loop lends to them, and the order of the start."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .structure.optimizers import num_hooks, trainer
from .tags import TASK


class Transition(Protocol):
    """One call of ``env.step``, batched over environments; any object with these tensors will do.

    Where environments have tasks, it also has ``task``, (environments,) int64: the one in which the action was taken.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor
    truncated: Tensor


class Writer:
    """The destination of a run's numbers: TensorBoard, a file, a tracking service.

    Every method does nothing until overridden. A writer in ``plasticity.writers.WRITERS`` is chosen with
    ``plasticity train --log NAME``.
    """

    def resume(self, step: int) -> None:
        """Drop the records of ``step`` and later: the run goes on from a checkpoint before it. Called first."""

    def settings(self, settings: Mapping[str, Any]) -> None:
        """Write the nested settings of the run. Called once, before anything is logged."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars by tag."""

    def histogram(self, step: int, tag: str, values: Any) -> None:
        """Write the distribution of ``values``, a sequence or array of numbers."""

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Write a text."""

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """Mark something that was done on the time axis."""

    def close(self, succeeded: bool = True) -> None:
        """End the run; nothing is written after it."""


NEEDED = {
    "targets": "target networks, in Context.targets",
    "buffer": "a replay buffer",
    "value": "a value function of (observation, action)",
    "discount": "the discount of values, in Context.discount or as a setting of its own",
    "forward": "a way to run networks on a batch, in Context.forward",
    "steps": "gradient steps of agents, in Context.steps",
    "set_replay_ratio": "updates per environment step that can be set, Context.set_replay_ratio",
    "set_horizon": "n-step returns and a discount that can be set, Context.set_horizon (DQN with --n-step 2 or more)",
    "peek": "past transitions to look at, Context.peek",
}
"""Attribute of a context -> what it is, for the error where it is missing."""


@dataclass
class Context:
    """The parts of a training run that its loop lends to callbacks; any loop can make one.

    Networks and optimizers are keyed by name (``actor``, ``critic_1``, ...); which optimizer trains which network is
    found by parameter identity, so the names need not agree.
    """

    networks: dict[str, nn.Module] = field(default_factory=dict)
    optimizers: dict[str, Optimizer] = field(default_factory=dict)
    targets: dict[str, nn.Module] = field(default_factory=dict)
    """Network -> its slowly following copy, where it has one."""
    buffer: Any | None = None
    """The replay buffer; None for on-policy agents."""
    value: Callable[[Tensor, Tensor], Tensor] | None = None
    """Q(observation, action), (batch,), without gradients."""
    state_value: Callable[[Tensor], Tensor] | None = None
    """V(observation), (batch,), without gradients; of agents that learn one."""
    discount: float | None = None
    """Discount of the values, per environment step, at present: methods that anneal it set it anew."""
    reward_factor: Callable[[], float] | None = None
    """Factor by which the agent scales rewards before it learns their values, now; None where it does not."""
    td_error: Callable[[Transition], Tensor] | None = None
    """Distance of the value of each step just taken, (environments,), from its target; without gradients."""
    steps: Mapping[str, Any] = field(default_factory=dict)
    """Optimizer name -> the gradient step that trains with it, for agents that have such steps."""
    forward: Mapping[str, Callable[[nn.Module, Any], Tensor]] = field(default_factory=dict)
    """Network name -> ``(module, batch) -> output``: how to run the network, a copy or a target of it on a batch."""
    calls: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Network name -> methods by which training calls it, beside ``forward``: such a call is a pass, too."""
    masks: Mapping[str, Any] = field(default_factory=dict)
    """Network name -> the positions of its inputs that are samples: see ``mask`` of :class:`~plasticity.Monitor`."""
    peek: Callable[..., Any] | None = None
    """``peek(num, generator)``: a batch of past transitions, drawn without changing what is learned."""
    extras: dict[str, nn.Module] = field(default_factory=dict)
    """Modules that methods train beside the networks, with their optimizers."""
    set_noise: Callable[[float], None] | None = None
    """Sets the scale of the agent's exploration noise, for agents that add some."""
    set_replay_ratio: Callable[[float | None], None] | None = None
    """Sets the updates per environment step, for agents that have a replay memory; None: the agent's own."""
    set_horizon: Callable[[int | None, float | None], None] | None = None
    """Sets the rewards summed before bootstrapping and the discount, for agents that replay such sums; None: their
    own."""
    set_exploitation: Callable[[float], None] | None = None
    """Sets the share of an expectile of the value in targets, for agents that learn one."""
    writer: Writer | None = None
    """The destination of logged values, several as :class:`plasticity.writers.Writers`; None drops them."""
    step: int = 0
    """Environment steps so far."""
    task: Tensor | None = None
    """The task of each environment, (environments,) int64; None where there are none. :func:`start_task` sets it."""
    num_tasks: int = 0
    """Tasks begun so far, the first one included."""
    interrupted: bool = False
    """True if training ends before its last step and may go on from a checkpoint: final summaries are left out then."""
    name: str = "this run"
    latest: dict[str, float] = field(default_factory=dict)
    """The last value logged under each tag, which triggers look at."""
    logged: dict[str, int] = field(default_factory=dict, repr=False)
    """How often something was logged under each tag: a trigger knows by it that a reading is new."""
    on_edit: list[Callable[[], None]] = field(default_factory=list)
    """Functions that :meth:`edited` calls, such as one that restores the zeros of masked weights."""
    on_connections: list[Callable[[Tensor], Tensor | None]] = field(default_factory=list)
    """Functions that :meth:`connections` asks: parameter -> the mask that it is under, None where they have none."""
    on_redraw: list[Callable[[Mapping[Tensor, Tensor]], None]] = field(default_factory=list)
    """Functions that :meth:`redrawn` calls, such as one that forgets what a method knew of neurons."""
    started: list[Callback] = field(default_factory=list, repr=False)
    """Callbacks that :func:`start` has started in this context."""
    claims: dict[str, str] = field(default_factory=dict, repr=False)
    """Part of the run that one method sets -> its name: see :meth:`~plasticity.Intervention.claim`."""
    held: dict[str, tuple[Optimizer, list[str]]] = field(default_factory=dict, repr=False)
    """Optimizer name -> the optimizer when training started, and the callbacks that put hooks on it then."""

    def __post_init__(self) -> None:
        self._require_writer()
        for name in ("networks", "optimizers", "targets"):
            if not isinstance(given := getattr(self, name), Mapping):
                raise TypeError(
                    f"{name}= takes a mapping by name, such as {{'actor': ...}}; got {type(given).__name__}"
                )

    def _require_writer(self) -> None:
        """Raise TypeError for what is no writer, before the first value, at which one that fails only warns."""
        if isinstance(self.writer, type) or not (self.writer is None or callable(getattr(self.writer, "log", None))):
            raise TypeError(
                f"writer= takes one writer, for several plasticity.writers.Writers([...]), for a folder "
                f"plasticity.writers.open_writers(folder); got {self.writer!r:.80}"
            )

    def log(self, values: Mapping[str, float]) -> None:
        """Log scalars by tag at the present step."""
        self.latest.update(values)
        for tag in values:
            self.logged[tag] = self.logged.get(tag, 0) + 1
        self._write("log", values)

    def histogram(self, tag: str, values: Any) -> None:
        """Log the distribution of ``values``."""
        self._write("histogram", tag, values)

    def event(self, name: str, details: Mapping[str, Any]) -> None:
        """Mark something that was done, with its details."""
        self._write("event", name, details)

    def _write(self, method: str, *args: Any) -> None:
        """Call a method of the writer at the present step; one that raises is left behind, with a warning."""
        if self.writer is None:
            return
        try:
            getattr(self.writer, method)(self.step, *args)
        except Exception as error:
            name, self.writer = type(self.writer).__name__, Writer()
            message = f"the writer {name} failed and gets nothing from now on; training goes on"
            warnings.warn(f"{message} ({type(error).__name__}: {error})", RuntimeWarning, stacklevel=4)

    def edited(self) -> None:
        """Announce that weights were edited, or modules replaced, outside an optimizer's own step."""
        for restore in list(self.on_edit):
            restore()

    def connections(self, parameter: Tensor) -> Tensor | None:
        """Return which entries of a parameter exist, bool of its shape; None where none is masked.

        What ranks entries, or sets the norm of some, asks first: an entry that does not exist is 0 again at once.
        """
        found = [mask for ask in self.on_connections if (mask := ask(parameter)) is not None]
        return None if not found else torch.stack(found).all(0)

    def redrawn(self, entries: Mapping[Tensor, Tensor]) -> None:
        """Announce weights that were replaced, not learned: averages and ages of the old ones are void.

        ``entries``: parameter -> the entries that are others now, bool of its shape, on its device.
        """
        for forget in list(self.on_redraw):
            forget(entries)

    def optimizer_of(self, network: str) -> Optimizer:
        """Return the optimizer that holds the network's parameters; raise ValueError if none does."""
        if network not in self.networks:
            raise ValueError(f"{self.name} has no network {network!r}; there are {', '.join(self.networks)}")
        found = trainer(self.networks[network], self.optimizers.values())
        if found is None:
            raise ValueError(
                f"no optimizer of {self.name} holds parameters of {network}; pass it in Context(optimizers=...)"
            )
        return found

    def step_of(self, network: str) -> Any:
        """Return the gradient step that trains the network, of :attr:`steps`; raise ValueError where there is none."""
        optimizer = self.optimizer_of(network)
        for name, step in self.steps.items():
            if self.optimizers[name] is optimizer:
                return step
        raise ValueError(f"{self.name} lends no gradient step that trains {network}; pass Context(steps=...)")

    def require_optimizers(self) -> None:
        """Raise RuntimeError if an optimizer with hooks was replaced since the start: its hooks would fall silent."""
        for name, (optimizer, callbacks) in self.held.items():
            if self.optimizers.get(name) is not optimizer and num_hooks(optimizer):
                raise RuntimeError(
                    f"the optimizer {name} of {self.name} was replaced after training started, and "
                    f"{', '.join(callbacks) or 'a callback'} has its hooks on the one before: replace it in "
                    f"Callback.restructure, or before the callbacks start"
                )

    def require(self, name: str, by: str) -> Any:
        """Return the attribute ``name``; raise ValueError naming ``by`` where this run has none."""
        found = getattr(self, name, None)
        if found is None or found == {}:
            what = NEEDED.get(name, name)
            raise ValueError(f"{by} needs {what}; {self.name} has none")
        return found


class Callback:
    """Observe or change training at its events; every method does nothing until overridden.

    ``docs/events.md`` shows the loop with a mark where each event fires.
    """

    def restructure(self, ctx: Context, state: Mapping[str, Any] | None) -> None:
        """Replace modules and optimizers, in ``ctx.networks``, ``ctx.targets`` and ``ctx.optimizers``; only here.

        Runs before any callback starts and before saved weights are loaded, also when a checkpoint is evaluated or
        probed. ``state``: the callback's own :meth:`state_dict` in the checkpoint; None in a new run. A callback that
        also changes structure in the middle of training has ``restructured_at`` in its state, the ``ctx.step`` of its
        last change: checkpoints are rebuilt in the order of these steps.
        """

    def on_train_start(self, ctx: Context) -> None:
        """Begin a run, before the first step; check here that all is there that the callback needs.

        Raise ValueError with what was needed, what was found and what to pass.
        """

    def on_task_start(self, ctx: Context, task: Tensor) -> None:
        """Run before the first action of a task, the first task included; ``task``: (environments,) int64, all present.

        A task starts when an environment enters it and none was in it before, so that environments which switch one
        after another make one start. ``ctx.num_tasks`` counts it already.
        """

    def on_step(self, ctx: Context, transition: Any) -> None:
        """Run after ``env.step`` and before the transition is stored; may set ``transition.truncated``."""

    def on_update_start(self, ctx: Context) -> None:
        """Run before ``agent.update()``."""

    def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
        """Run after ``agent.update()`` with the losses it returned; they are tensors, still on the device."""

    def on_step_end(self, ctx: Context) -> None:
        """Run last in every step, after its updates: nothing is half done, so a checkpoint can be written here."""

    def on_evaluation_step(self, ctx: Context, transition: Any) -> None:
        """Run after each step of an evaluation, whose environments are not those of training; ``ctx.step`` stands."""

    def on_evaluation_end(self, ctx: Context) -> None:
        """Run after an evaluation that was played to its end, with its returns logged."""

    def on_train_end(self, ctx: Context) -> None:
        """Run once after the last step, also when training was stopped by an exception."""

    def forget(self, lost: Tensor) -> None:
        """Drop all records of the running episodes marked in ``lost``, (environments,) bool: they will not go on."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to go on later, as plain values and tensors; valid from the start on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; called after :meth:`on_train_start`."""


def start(
    callbacks: Iterable[Callback],
    ctx: Context,
    saved: Sequence[Mapping[str, Any] | None] | None = None,
    load: Callable[[], Tensor | None] | None = None,
) -> None:
    """Start callbacks, in the one order in which a run begins, new or resumed, in any loop.

    Every :meth:`Callback.restructure`; ``load()``; every :meth:`Callback.on_train_start`; every
    :meth:`Callback.load_state_dict`. ``saved``: the state of each callback, None for one that has none; left out, each
    callback that was started in this context before goes on from its present state; it is not restructured again.
    ``load``: loads the states of agent and environment, and returns which running episodes were lost, (environments,)
    bool or None.

    Where one fails, those that were started get their ``on_train_end``. Raises RuntimeError for a callback that
    replaces an optimizer, or adds or removes weights of a network, in ``on_train_start``.
    """
    callbacks = list(callbacks)
    ctx._require_writer()
    before = [any(callback is one for one in ctx.started) for callback in callbacks]
    states: list[Mapping[str, Any] | None]
    if saved is None:
        states = [callback.state_dict() if known else None for callback, known in zip(callbacks, before, strict=True)]
    else:
        states = list(saved)
    pairs = list(zip(callbacks, states, strict=True))
    lost = rebuild([pair for pair, known in zip(pairs, before, strict=True) if not known], ctx, load)
    ctx.held = {name: (optimizer, []) for name, optimizer in ctx.optimizers.items()}
    with ExitStack() as undo:
        for callback in callbacks:
            _begin(callback, ctx)
            undo.callback(callback.on_train_end, ctx)
        for callback, state in pairs:
            if state is not None:
                _call(callback, "load_state_dict", state)
        if lost is not None and lost.any():
            for callback in callbacks:
                callback.forget(lost)
        undo.pop_all()
    ctx.started += [callback for callback, known in zip(callbacks, before, strict=True) if not known]


def rebuild(
    callbacks: Iterable[tuple[Callback, Mapping[str, Any] | None]],
    ctx: Context,
    load: Callable[[], Tensor | None] | None = None,
) -> Tensor | None:
    """Restructure the networks and optimizers of ``ctx`` by callbacks, each with its state; return ``load()``.

    The part of :func:`start` that loading a checkpoint needs, also where nothing is trained. Callbacks that changed
    structure in the middle of training (``restructured_at`` in their state) follow the others, in that order.

    Raises ValueError for a callback that leaves a network and its target unlike each other.
    """
    alike = [name for name in ctx.targets if name in ctx.networks and _is_alike(ctx, name)]
    for callback, state in sorted(callbacks, key=lambda pair: (pair[1] or {}).get("restructured_at", -1)):
        _call(callback, "restructure", ctx, state)
        for name in alike:
            if not _is_alike(ctx, name):
                raise ValueError(
                    f"{name_of(callback)} restructured the network {name} or its target, not both alike: do the same "
                    f"to ctx.networks[{name!r}] and ctx.targets[{name!r}]"
                )
    return None if load is None else load()


def _is_alike(ctx: Context, name: str) -> bool:
    """Return whether a network and its target have parameters of the same shapes."""
    network, target = ctx.networks.get(name), ctx.targets.get(name)
    if network is None or target is None:
        return network is target
    return [p.shape for p in network.parameters()] == [p.shape for p in target.parameters()]


def end(callbacks: Iterable[Callback], ctx: Context) -> None:
    """Fire ``on_train_end`` on every callback, the last one first, on the others also where one raises."""
    with ExitStack() as ends:
        for callback in callbacks:
            ends.callback(_call, callback, "on_train_end", ctx)


def _begin(callback: Callback, ctx: Context) -> None:
    """Start one callback, and note the optimizers on which it puts hooks; RuntimeError if it restructures."""
    hooks = {name: num_hooks(optimizer) for name, (optimizer, _) in ctx.held.items()}
    weights = {name: set(network.state_dict()) for name, network in ctx.networks.items()}
    _call(callback, "on_train_start", ctx)
    for name, network in ctx.networks.items():
        if set(network.state_dict()) != weights.get(name):
            raise RuntimeError(
                f"{name_of(callback)} changed which weights the network {name} has in on_train_start, where its saved "
                f"state can no longer be loaded: do it in restructure"
            )
    for name, (optimizer, callbacks) in ctx.held.items():
        if ctx.optimizers.get(name) is not optimizer:
            raise RuntimeError(
                f"{name_of(callback)} replaced the optimizer {name} in on_train_start, where its saved state can no "
                f"longer be loaded and other callbacks may have put hooks on it: replace it in restructure"
            )
        if num_hooks(optimizer) > hooks[name]:
            callbacks.append(name_of(callback))


def _call(callback: Callback, event: str, *args: Any) -> None:
    """Call a method of a callback; an error bears the callback's name."""
    with noting(f"raised by {name_of(callback)}"):
        getattr(callback, event)(*args)


def fire(callbacks: Iterable[Callback], event: str, ctx: Context, *args: Any) -> None:
    """Call ``callback.<event>(ctx, *args)`` on each callback in order; an error bears the name of its callback.

    Before an update, raise the RuntimeError of :meth:`Context.require_optimizers`.
    """
    if event == "on_update_start":
        ctx.require_optimizers()
    callback: Callback | None = None
    try:
        for callback in callbacks:
            getattr(callback, event)(ctx, *args)
    except Exception as error:
        if callback is not None:
            note(error, f"raised by {name_of(callback)}")
        raise


def start_task(callbacks: Iterable[Callback], ctx: Context, task: Tensor | int | None) -> None:
    """Note the present tasks, (environments,) ids or one; fire :meth:`Callback.on_task_start` where one starts.

    For every loop, before each action or batch; cheap where ``task`` is None or the object of the last call. A start is
    an event ``task`` of the run.
    """
    if task is None or task is ctx.task:
        return
    present = task if isinstance(task, Tensor) and task.dim() == 1 else torch.as_tensor(task).reshape(-1)
    before, ctx.task = ctx.task, present
    if before is not None and bool(torch.isin(present, before.to(present.device)).all()):
        return
    ctx.num_tasks += 1
    ids = present.unique().tolist()
    ctx.event(TASK, {"task": ids[0] if len(ids) == 1 else ids, "number": ctx.num_tasks})
    fire(callbacks, "on_task_start", ctx, present)


def listeners(callbacks: Iterable[Callback], event: str) -> list[Callback]:
    """Return the callbacks that override an event, in order: a loop need not call the others in every step."""
    idle = getattr(Callback, event)
    return [callback for callback in callbacks if getattr(getattr(callback, event), "__func__", None) is not idle]


def note(error: Exception, text: str) -> None:
    """Add ``text`` to an error, once; its type stays, so that handlers of that type still catch it.

    Tracebacks show it from Python 3.11 on, the command line always.
    """
    notes = error.__dict__.setdefault("__notes__", [])  # what add_note does, which Python 3.10 does not have
    if text not in notes:
        notes.append(text)


@contextmanager
def noting(text: str) -> Iterator[None]:
    """Within, add ``text`` to an error that passes: see :func:`note`."""
    try:
        yield
    except Exception as error:
        note(error, text)
        raise


def name_of(callback: Callback) -> str:
    """Return the name of an intervention, or the class of another callback."""
    return getattr(callback, "NAME", "") or type(callback).__name__
