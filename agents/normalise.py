"""Running mean and variance of what comes in, as a module: its state is saved, moved and copied with the network."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import native


class RunningNorm(nn.Module):
    """(x - mean) / sqrt(var + eps), element by element, with the statistics of all that :meth:`update` has seen.

    ``shape``: that of one observation. ``clip``: bound of the result in either direction, None for no bound. Before the
    first update mean is 0 and var 1. Only `update` moves the statistics: forward passes leave them alone, in training
    mode too, so that one batch gives one result wherever it is used. Resetting a network keeps them: they belong to
    the observations, not to what was learned from them.
    """

    def __init__(self, shape: Sequence[int], *, eps: float = 1e-8, clip: float | None = None) -> None:
        super().__init__()
        self.eps, self.clip, self._shape = eps, clip, tuple(shape)
        self.bound = math.inf if clip is None else clip
        # float64: after millions of steps float32 would no longer take up new ones.
        self.register_buffer("mean", torch.zeros(tuple(shape), dtype=torch.float64))
        self.register_buffer("var", torch.ones(tuple(shape), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self._viewed: tuple[int, ...] = ()
        self._views: tuple[np.ndarray, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() > 1 and is_one_row(x) and x.dtype == torch.float32:
            return torch.from_numpy(self.of_rows(x.numpy()))
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        out = (x - self.mean.to(dtype)) * (self.var + self.eps).rsqrt().to(dtype)
        return out if self.clip is None else out.clamp(-self.clip, self.clip)

    def of_rows(self, x: np.ndarray) -> np.ndarray:
        """Return what `forward` does, for an array (batch, *shape) float32 and statistics on the CPU."""
        mean, var, _, eps, low, high = self._arrays()
        if native.loaded is not None:
            rows = np.empty_like(x)
            if native.loaded.standardise(mean, var, x, rows, self.eps, self.bound):
                return rows
        rows = x - mean
        rows /= np.sqrt(var + eps)
        if self.clip is not None:  # what rows.clip does, in half the time
            np.minimum(rows, high, out=rows)
            np.maximum(rows, low, out=rows)
        return rows.astype(np.float32)

    def update(self, x: Any) -> None:
        """Take in a batch (batch, *shape), a tensor or an array; in place, so that graphs and other holders see it.

        Chan, Golub & LeVeque 1983: two samples of sizes n and m, whose means are delta apart, have together the sum of
        squares of both plus delta^2 n m / (n + m). Raises ValueError for another shape.
        """
        if x.shape[1:] != self._shape or len(x.shape) != len(self._shape) + 1:
            needed, found = ", ".join(["batch", *map(str, self.mean.shape)]), tuple(x.shape)
            raise ValueError(f"RunningNorm needs observations of shape ({needed}), got {found}")
        if not len(x):
            return
        if isinstance(x, np.ndarray):
            self.update_by_rows(x)
        elif is_one_row(x) and self._buffers["mean"].is_cpu:  # type: ignore[union-attr]
            self.update_by_rows(x.numpy())
        else:
            self._update_by_tensor(x.detach().to(self.mean.device, torch.float64))

    @torch.no_grad()
    def _update_by_tensor(self, x: Tensor) -> None:
        var, mean = torch.var_mean(x, 0, correction=0)
        total = self.count + len(x)
        share = len(x) / total
        delta = mean - self.mean
        self.var.lerp_(var, share).add_(delta.square() * share * (1 - share))
        self.mean.add_(delta * share)
        self.count.copy_(total)

    def update_by_rows(self, x: np.ndarray) -> None:
        """The same for an array, and statistics on the CPU, in a fraction of the time."""
        mean, var, count, *_ = self._arrays()
        if native.loaded is not None and native.loaded.take_in(mean, var, count, x):
            return
        count[()] = total = count.item() + len(x)
        share = len(x) / total
        if len(x) == 1:  # its mean is itself, and its variance 0
            delta = x[0] - mean
            moved = delta * share
            mean += moved
            moved *= delta
            var += moved
            var *= 1 - share
            return
        with np.errstate(all="ignore"):  # as torch: what is not finite is found in the losses
            centre = np.add.reduce(x, 0, np.float64) / len(x)
            spread = np.add.reduce(np.square(x - centre), 0) / len(x)
            delta = centre - mean
            mean += delta * share
            var += share * (spread - var + np.square(delta) * (1 - share))

    def update_by_number(self, x: float) -> float:
        """The same for a norm of single numbers, and return the variance: numbers of Python are the fastest."""
        mean, var, count, *_ = self._arrays()
        before, total = mean.item(), count.item() + 1
        difference, share = x - before, 1 / total
        spread = (var.item() + difference * difference * share) * (1 - share)
        count[()], mean[()], var[()] = total, before + difference * share, spread
        return spread

    def variance(self) -> float:
        """Return the variance of a norm of single numbers."""
        return float(self._arrays()[1])

    def _arrays(self) -> tuple[np.ndarray, ...]:
        """Mean, variance and count as numpy views of the buffers; then eps and both bounds, as arrays faster too."""
        buffers: dict[str, Any] = self._buffers  # attributes of a module take ten times as long
        mean, var, count = buffers["mean"], buffers["var"], buffers["count"]
        viewed = mean.data_ptr(), var.data_ptr(), count.data_ptr()  # not the objects: their memory may be exchanged
        if viewed != self._viewed:
            self._viewed = viewed
            bound = np.array(np.inf if self.clip is None else self.clip)
            self._views = mean.numpy(), var.numpy(), count.numpy(), np.array(self.eps), -bound, bound
        return self._views

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_viewed": (), "_views": ()}  # a copy has buffers of its own

    def extra_repr(self) -> str:
        return f"{tuple(self.mean.shape)}, eps={self.eps}, clip={self.clip}"


def is_one_row(x: Tensor) -> bool:
    """Return whether numpy may take over: one row on the CPU that nobody differentiates or traces."""
    return x.shape[0] == 1 and type(x) is Tensor and x.is_cpu and not x.requires_grad


def running_norms(modules: Iterable[nn.Module]) -> list[RunningNorm]:
    """Every RunningNorm in ``modules``, once: for :func:`update_norms`, which otherwise looks for them every time."""
    found = (part for module in modules for part in module.modules() if isinstance(part, RunningNorm))
    return list(dict.fromkeys(found))


def update_norms(modules: Iterable[nn.Module], obs: Tensor) -> None:
    """Let every RunningNorm in ``modules`` (networks, or the norms themselves) take in ``obs`` (batch, *shape) once."""
    for norm in running_norms(modules):
        norm.update(obs)
