"""A hook on the first forward pass of a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from plasticity.isolation import foreign_pass

from .hooks import get_inert, inert


class FirstPass:
    """A hook that takes itself off and calls ``see(args, kwargs)`` right before a module's first pass.

    ``training``: before the first pass with gradients. Private passes, which leave no trace (see ``isolation``), do not
    count; in a copy of the module the hook does nothing.
    """

    def __init__(self, module: nn.Module, see: Callable[[tuple, dict], None], training: bool = False) -> None:
        self._see, self._training = see, training
        self._handle = module.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not foreign_pass(self) and (torch.is_grad_enabled() or not self._training):
            self.remove()
            self._see(args, kwargs)

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()

    def __deepcopy__(self, memo: dict) -> Callable[..., None]:
        return inert

    def __reduce__(self) -> tuple[Any, ...]:
        return get_inert, ()
