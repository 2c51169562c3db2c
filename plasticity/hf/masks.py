"""Which tokens of a batch are samples: those of a mask among the arguments by which a trainer calls its model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

PADDING = "attention_mask"
"""The tokens that are no padding."""
COMPLETION = "completion_mask"
"""The tokens that bear the loss: an argument of this name, or where ``labels`` are not -100."""
IGNORED = -100
"""The label of a token without a loss, by convention of PyTorch and transformers."""


class TokenMask:
    """Find the mask of a pass by the name of an argument; called with the arguments of the pass.

    A pass without ``attention_mask`` has no padding and counts whole (packed sequences). Raises ValueError for a pass
    without the argument where it has another name.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Return the mask, (batch, tokens), or None where every token counts."""
        if self.name == COMPLETION and self.name not in kwargs:
            return self._labelled(kwargs.get("labels"))
        if self.name != PADDING and self.name not in kwargs:
            raise ValueError(
                f"the model is not called with {self.name!r}; it is with {', '.join(kwargs) or 'no names'}"
            )
        found = kwargs.get(self.name)
        return found if isinstance(found, Tensor) and found.dim() == 2 else None

    def require_in(self, model: nn.Module) -> RemovableHandle:
        """Let the first pass in training, and no later one, raise the ValueError of a mask that is not there."""

        def check(module: nn.Module, args: Any, kwargs: Any) -> None:
            if torch.is_grad_enabled() and module.training:
                handle.remove()
                self(*args, **kwargs)

        handle = model.register_forward_pre_hook(check, with_kwargs=True, prepend=True)
        return handle

    def _labelled(self, labels: Any) -> Tensor:
        if not isinstance(labels, Tensor):
            raise ValueError(
                "the trainer passes neither completion_mask nor labels to the model, so the tokens of completions are "
                "not known; use mask='attention_mask', or a function of the model's arguments"
            )
        return labels != IGNORED


def mask_of(mask: str | Callable[..., Tensor | None] | None) -> Callable[..., Tensor | None] | None:
    """Return the function that finds the mask of a pass; raise TypeError for what is neither name nor function."""
    if mask is None or callable(mask):
        return mask
    if isinstance(mask, str):
        return TokenMask(mask)
    raise TypeError(
        f"mask is the name of an argument of the model, 'attention_mask', or {COMPLETION!r}, a function of the "
        f"arguments, or None; got {type(mask).__name__}"
    )
