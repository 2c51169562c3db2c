"""Optimizers of stacked critics as callbacks see them: with the rows of each critic as parameters of their own.

A sliced optimizer is of the class of the real one and never steps: it holds, for each tensor of stacked critics, one
parameter and one share of the state per critic, views of the real ones, and other parameters as they are. Right before
and after the real step its hooks run, and what they changed is brought back.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .twins import Stack


class Sliced:
    """The real optimizer, and the one that is lent to callbacks: ``lent``."""

    def __init__(
        self, real: Optimizer, stacks: Sequence[Stack], before: Callable[[], None], after: Callable[[], None]
    ) -> None:
        """``before``: called before each step, when gradients have arrived; ``after``: after it, while they last."""
        self.real, self._before, self._after = real, before, after
        self._slices = _slices(stacks, real)
        self.lent = _of_slices(real, self._slices)
        self._handles = [
            real.register_step_pre_hook(lambda *_: self._lead_in()),
            real.register_step_post_hook(lambda *_: self._lead_out()),
        ]

    def remove(self) -> None:
        """Take the hooks off the real optimizer."""
        for handle in self._handles:
            handle.remove()

    def _lead_in(self) -> None:
        self._before()
        if self.lent._optimizer_step_pre_hooks:
            self._settings(self.real, self.lent)
            self._call(self.lent._optimizer_step_pre_hooks)
            self._settings(self.lent, self.real)

    def _lead_out(self) -> None:
        self.read_state()
        self._settings(self.real, self.lent)
        self._call({**self.lent._optimizer_step_post_hooks, -1: lambda *_: self._after()})
        self._settings(self.lent, self.real)
        self._write_state()

    def _call(self, hooks: Mapping[int, Callable[..., Any]]) -> None:
        """Call hooks, while the parts have their shares of the gradients."""
        pairs = [(whole, part, i) for whole, parts in self._slices.values() for i, part in enumerate(parts)]
        for whole, part, i in pairs:
            part.grad = None if whole.grad is None else whole.grad[i]
        for hook in list(hooks.values()):
            hook(self.lent, (), {})
        for whole, part, i in pairs:
            if part.grad is not None and whole.grad is not None:
                whole.grad[i] = part.grad
            part.grad = None

    def read_state(self) -> None:
        """Give the lent optimizer the state of the real one, in views."""
        self.lent.state.clear()
        for parameter, state in self.real.state.items():
            if id(parameter) not in self._slices:
                self.lent.state[parameter] = state
                continue
            whole, parts = self._slices[id(parameter)]
            for index, part in enumerate(parts):
                self.lent.state[part] = {
                    key: value[index] if isinstance(value, Tensor) and value.shape == whole.shape else value
                    for key, value in state.items()
                }

    def _write_state(self) -> None:
        """Drop from the real optimizer the state that callbacks have dropped of a parameter, or of all its parts."""
        for parameter in list(self.real.state):
            parts = self._slices[id(parameter)][1] if id(parameter) in self._slices else [parameter]
            if not any(part in self.lent.state for part in parts):
                del self.real.state[parameter]

    @staticmethod
    def _settings(source: Optimizer, sink: Optimizer) -> None:
        """Copy the settings of all groups, such as learning rates."""
        for ours, theirs in zip(source.param_groups, sink.param_groups, strict=True):
            theirs.update({key: value for key, value in ours.items() if key != "params"})


Slices = Mapping[int, tuple[Tensor, list[Tensor]]]
"""Id of a stacked tensor -> it, and the parameters that are its rows."""


def _slices(stacks: Sequence[Stack], real: Optimizer) -> Slices:
    held = {id(p) for group in real.param_groups for p in group["params"]}
    return {
        id(whole): (whole, [twin.get_parameter(path) for twin in stack.twins.values()])
        for stack in stacks
        for path, whole in stack.held.items()
        if stack.is_stacked and id(whole) in held
    }


def _of_slices(real: Optimizer, slices: Slices) -> Optimizer:
    """Return an optimizer of the same class over the slices; the real one where there are none would do, too."""
    lent = object.__new__(type(real))
    lent.__dict__ |= {name: value for name, value in vars(real).items() if not name.endswith("_hooks")}
    lent.__dict__ |= {name: OrderedDict() for name in vars(real) if name.endswith("_hooks")}
    lent.state = defaultdict(dict)
    lent.param_groups = [
        {**group, "params": [part for p in group["params"] for part in (slices[id(p)][1] if id(p) in slices else [p])]}
        for group in real.param_groups
    ]
    return lent
