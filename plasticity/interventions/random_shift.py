"""Random shifts: images are moved by a few pixels before every update.

Kostrikov, Yarats & Fergus 2021 (DrQ), *Image Augmentation Is All You Need*, arXiv 2004.13649; Yarats et al. 2022
(DrQ-v2), arXiv 2107.09645, which draws one shift each; for plasticity: Ma et al. 2024, arXiv 2310.07418.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from plasticity.callback import Context
from plasticity.value_types import require

from .intervention import Intervention


def shifted(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return images (batch, channels, height, width) moved by whole pixels, (batch,) int64 each, edges repeated.

    A positive shift moves the content down, or right. So a crop at a random place of an image padded with its edges.
    """
    height, width = images.shape[2:]
    rows = (torch.arange(height, device=images.device) - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - right[:, None]).clamp(0, width - 1)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return images[which, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


@dataclass
class RandomShift(Intervention):
    """Shift replayed images by a few pixels at random.

    Every image of a batch, observations and successors apart, is moved by up to ``pixels`` in both directions, its
    edges repeated. In visual RL it keeps critics from losing their plasticity early.

    Defaults: 4 pixels of 84 (DrQ). Differences: DrQ averages targets and losses over two shifts each; DrQ-v2 has one,
    as here. Compared with the released code of DrQ-v2 (facebookresearch/drqv2), 32 images: its bilinear sampling meets
    whole pixels, and differs by rounding, 0.003 of 255. Source: Kostrikov et al. 2021, section 3.
    """

    NAME: ClassVar[str] = "random_shift"
    KIND: ClassVar[str] = "data"
    NEEDS: ClassVar[tuple[str, ...]] = ("buffer",)

    pixels: int = 4
    """Largest shift in each direction; 0 for none."""
    seed: int = 0
    """Seed of the shifts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("RandomShift", {"pixels >= 0": self.pixels >= 0}, self)
        self._buffer: Any = None

    def on_train_start(self, ctx: Context) -> None:
        """Put the shifts behind the buffer's sampling; ValueError where observations are no images."""
        buffer = ctx.require("buffer", type(self).__name__)
        stored = getattr(buffer, "storage", {}).get("obs")
        if stored is None or stored.dim() != 4:
            found = "none that can be seen" if stored is None else f"of shape {tuple(stored.shape[1:])}"
            raise ValueError(
                f"RandomShift needs a buffer of images (channels, height, width); {ctx.name} has observations {found}"
            )
        if self.pixels:
            sample, shift = buffer.sample, self.named(self.shift)
            buffer.sample = lambda *args: shift(sample(*args))
            self._buffer = buffer

    def on_update_end(self, ctx: Context, metrics: dict[str, Any]) -> None:
        """Report the first update with shifted images."""
        if self.pixels and not self.counts:
            self.report(ctx, {"because": "every update from now on", "pixels": self.pixels}, applications=1)

    def shift(self, batch: Any) -> Any:
        """Return a batch with its images moved."""
        moved = {}
        for part in ("obs", "next_obs"):
            images = getattr(batch, part)
            draw = torch.randint(
                -self.pixels, self.pixels + 1, (2, len(images)), generator=self.generator, device="cpu"
            )
            moved[part] = shifted(images, *draw.to(images.device))
        return replace(batch, **moved)

    def on_train_end(self, ctx: Context) -> None:
        """Take the shifts off the buffer."""
        super().on_train_end(ctx)
        if self._buffer is not None:
            del self._buffer.sample
            self._buffer = None
