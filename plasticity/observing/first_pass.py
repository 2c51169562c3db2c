"""A hook on the first forward pass of a module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from plasticity.isolation import foreign_pass

from .entry_points import EntryPoint, require_methods
from .hooks import get_inert, inert, is_hidden


class FirstPass:
    """A hook that takes itself off and calls ``see(args, kwargs)`` right before a module's first pass.

    ``training``: before the first pass with gradients. ``calls``: methods that are passes, too. Private passes, which
    leave no trace (see ``isolation``), do not count; in a copy of the module the hook does nothing.
    """

    is_paused, seconds = False, 0.0
    """Attributes that hooks on methods look at."""

    def __init__(
        self,
        module: nn.Module,
        see: Callable[[tuple, dict], None],
        training: bool = False,
        calls: Sequence[str] = (),
    ) -> None:
        self._see, self._training, self.owner = see, training, self
        self.method = "forward"
        """The method by which the pass called the module."""
        self._handles: list[Any] = [module.register_forward_pre_hook(self, with_kwargs=True)]
        self._handles += [EntryPoint(self, module, method) for method in require_methods(module, calls)]

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not foreign_pass(self):
            self.begin("forward", module, args, kwargs)

    def begin(self, method: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """See the pass, if it is one that counts."""
        if (torch.is_grad_enabled() or not self._training) and not is_hidden():
            self.remove()
            self.method = method
            self._see(args, kwargs)

    def end(self, method: str, module: nn.Module, args: tuple, output: Any) -> None:
        """Do nothing: all is seen when the pass begins."""

    def remove(self) -> None:
        """Take the hook off."""
        for handle in self._handles:
            handle.remove()

    def __deepcopy__(self, memo: dict) -> Callable[..., None]:
        return inert

    def __reduce__(self) -> tuple[Any, ...]:
        return get_inert, ()
