"""Running mean and variance of what comes in, as a module: its state is saved, moved and copied with the network."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn


class RunningNorm(nn.Module):
    """(x - mean) / sqrt(var + eps), element by element, with the statistics of all that :meth:`update` has seen.

    ``shape``: that of one observation. ``clip``: bound of the result in either direction, None for no bound. Before the
    first update mean is 0 and var 1. Only `update` moves the statistics: forward passes leave them alone, in training
    mode too, so that one batch gives one result wherever it is used. Resetting a network keeps them: they belong to
    the observations, not to what was learned from them.
    """

    def __init__(self, shape: Sequence[int], *, eps: float = 1e-8, clip: float | None = None) -> None:
        super().__init__()
        self.eps, self.clip = eps, clip
        # float64: after millions of steps float32 would no longer take up new ones.
        self.register_buffer("mean", torch.zeros(tuple(shape), dtype=torch.float64))
        self.register_buffer("var", torch.ones(tuple(shape), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() > 1 and is_one_row(x) and x.dtype == torch.float32:
            mean, var = self.mean.numpy(), self.var.numpy()
            row = (x.numpy() - mean.astype(np.float32)) * (1 / np.sqrt(var + self.eps)).astype(np.float32)
            return torch.from_numpy(row if self.clip is None else row.clip(-self.clip, self.clip))
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        out = (x - self.mean.to(dtype)) * (self.var + self.eps).rsqrt().to(dtype)
        return out if self.clip is None else out.clamp(-self.clip, self.clip)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in a batch (batch, *shape); in place, so that compiled graphs and other holders see it.

        Chan, Golub & LeVeque 1983: two samples of sizes n and m, whose means are delta apart, have together the sum of
        squares of both plus delta^2 n m / (n + m). Raises ValueError for another shape.
        """
        if x.dim() != self.mean.dim() + 1 or x.shape[1:] != self.mean.shape:
            needed, found = ", ".join(["batch", *map(str, self.mean.shape)]), tuple(x.shape)
            raise ValueError(f"RunningNorm needs observations of shape ({needed}), got {found}")
        if is_one_row(x) and self.mean.device.type == "cpu":
            self._update_by_one(x.numpy()[0])
            return
        x = x.to(self.mean.device, torch.float64)
        var, mean = torch.var_mean(x, 0, correction=0)
        total = self.count + len(x)
        share = len(x) / total
        delta = mean - self.mean
        self.var.lerp_(var, share).add_(delta.square() * share * (1 - share))
        self.mean.add_(delta * share)
        self.count.copy_(total)

    def _update_by_one(self, x: np.ndarray) -> None:
        """The same for one observation, whose mean is itself and whose variance is 0, in a quarter of the time."""
        mean, var, count = self.mean.numpy(), self.var.numpy(), self.count.numpy()
        share = 1 / (count + 1.0)
        delta = x - mean
        var *= 1 - share
        var += delta * delta * share * (1 - share)
        mean += delta * share
        count += 1

    def extra_repr(self) -> str:
        return f"{tuple(self.mean.shape)}, eps={self.eps}, clip={self.clip}"


def is_one_row(x: Tensor) -> bool:
    """Return whether numpy may take over: one row on the CPU that nobody differentiates or traces."""
    return len(x) == 1 and type(x) is Tensor and x.device.type == "cpu" and not x.requires_grad


def running_norms(modules: Iterable[nn.Module]) -> list[RunningNorm]:
    """Every RunningNorm in ``modules``, once: for :func:`update_norms`, which otherwise looks for them every time."""
    found = (part for module in modules for part in module.modules() if isinstance(part, RunningNorm))
    return list(dict.fromkeys(found))


def update_norms(modules: Iterable[nn.Module], obs: Tensor) -> None:
    """Let every RunningNorm in ``modules`` (networks, or the norms themselves) take in ``obs`` (batch, *shape) once."""
    for norm in running_norms(modules):
        norm.update(obs)
