"""Callbacks on a training loop: six events, and the context a loop lends to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer


class Transition(Protocol):
    """What one call of ``env.step`` produced, batched over environments; anything with these tensors will do."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor
    truncated: Tensor


class Writer(Protocol):
    """Where a run's numbers go, such as a :class:`~plasticity.dashboard.logger.RunLogger`."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars by tag."""

    def histogram(self, step: int, tag: str, values: Any) -> None:
        """Write the distribution of ``values``."""

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """Mark something that was done on the time axis."""


@dataclass
class Context:
    """What a training loop lends to its callbacks; any loop can make one.

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
    td_error: Callable[[Transition], Tensor] | None = None
    """How far the value of each step just taken, (environments,), is from its target; without gradients."""
    set_noise: Callable[[float], None] | None = None
    """Sets the scale of the agent's exploration noise, for agents that add some."""
    writer: Writer | None = None
    """Takes what is logged; None drops it."""
    step: int = 0
    """Environment steps so far."""
    interrupted: bool = False
    """Whether training ends before its last step, and may go on later from a checkpoint: then nothing is summed up."""
    name: str = "this run"
    latest: dict[str, float] = field(default_factory=dict)
    """The last value logged under each tag, which triggers look at."""
    on_edit: list[Callable[[], None]] = field(default_factory=list)
    """What :meth:`edited` calls: whoever keeps weights in a certain state, as masks do, restores it there."""

    def log(self, values: Mapping[str, float]) -> None:
        """Log scalars by tag at the present step."""
        self.latest.update(values)
        if self.writer is not None:
            self.writer.log(self.step, values)

    def histogram(self, tag: str, values: Any) -> None:
        """Log the distribution of ``values``."""
        if self.writer is not None:
            self.writer.histogram(self.step, tag, values)

    def event(self, name: str, details: Mapping[str, Any]) -> None:
        """Mark something that was done, with its details."""
        if self.writer is not None:
            self.writer.event(self.step, name, details)

    def edited(self) -> None:
        """Announce that weights were edited, or modules replaced, outside an optimizer's own step."""
        for restore in list(self.on_edit):
            restore()

    def optimizer_of(self, network: str) -> Optimizer:
        """Return the optimizer that holds the network's parameters; raise ValueError if none does."""
        parameters = {id(p) for p in self.networks[network].parameters()}
        for optimizer in self.optimizers.values():
            if any(id(p) in parameters for group in optimizer.param_groups for p in group["params"]):
                return optimizer
        raise ValueError(
            f"no optimizer of {self.name} holds parameters of {network}; pass it in Context(optimizers=...)"
        )

    def require(self, name: str, by: str) -> Any:
        """Return the attribute ``name``; raise ValueError naming ``by`` where this run has none."""
        found = getattr(self, name, None)
        if found is None or found == {}:
            what = {"buffer": "a replay buffer", "value": "a value function of (observation, action)"}.get(name, name)
            raise ValueError(f"{by} needs {what}; {self.name} has none")
        return found


class Callback:
    """Observe or change training at six events; every method does nothing until overridden.

    ``docs/events.md`` shows the loop with a mark where each event fires.
    """

    def on_train_start(self, ctx: Context) -> None:
        """Run once before the first step: fail here, with what was needed, what was found and what to pass."""

    def on_step(self, ctx: Context, transition: Any) -> None:
        """Run after ``env.step`` and before the transition is stored; may set ``transition.truncated``."""

    def on_update_start(self, ctx: Context) -> None:
        """Run before ``agent.update()``."""

    def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
        """Run after ``agent.update()`` with the losses it returned; they are tensors, still on the device."""

    def on_step_end(self, ctx: Context) -> None:
        """Run last in every step, after its updates: nothing is half done, so a checkpoint can be written here."""

    def on_train_end(self, ctx: Context) -> None:
        """Run once after the last step, also when training was stopped by an exception."""

    def forget(self, lost: Tensor) -> None:
        """Drop what is known of the running episodes marked in ``lost``, (environments,) bool: they will not go on."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that the callback needs to go on later: plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; before ``on_train_start``."""


def fire(callbacks: Iterable[Callback], event: str, ctx: Context, *args: Any) -> None:
    """Call ``callback.<event>(ctx, *args)`` on each callback in order; an error bears the name of its callback."""
    for callback in callbacks:
        try:
            getattr(callback, event)(ctx, *args)
        except Exception as error:
            note(error, f"raised by {name_of(callback)}")
            raise


def listeners(callbacks: Iterable[Callback], event: str) -> list[Callback]:
    """Return, in order, those that do something at an event: a loop need not call the others in every step."""
    idle = getattr(Callback, event)
    return [callback for callback in callbacks if getattr(getattr(callback, event), "__func__", None) is not idle]


def note(error: Exception, text: str) -> None:
    """Add ``text`` to an error, once: its type stays what it is, so that whoever waits for it still catches it.

    Tracebacks show it from Python 3.11 on, the command line always.
    """
    notes = error.__dict__.setdefault("__notes__", [])  # what add_note does, which Python 3.10 does not have
    if text not in notes:
        notes.append(text)


def name_of(callback: Callback) -> str:
    """Return the name of an intervention, or the class of another callback."""
    return getattr(callback, "NAME", "") or type(callback).__name__
