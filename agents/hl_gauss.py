"""Returns learned by classification or by quantiles: readings of a critic's outputs beside those of `c51.py`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from .c51 import C51, project


class TwoHot(C51):
    """Outputs are logits over atoms; the target is one number, split between its two neighbours on the grid.

    So values are learned by cross-entropy without a distribution of returns (Farebrother et al. 2024, arXiv 2403.03950,
    section 3.1; Schrittwieser et al. 2020).
    """

    def target(self, reward: Tensor, discount: Tensor, logits: Tensor) -> Tensor:
        """Return probabilities (batch, num_atoms) of r + discount * Q(s', a')."""
        return self.encode(reward + discount * self.q(logits))

    def encode(self, value: Tensor) -> Tensor:
        """Return the probabilities (batch, num_atoms) that stand for values (batch,)."""
        return project(torch.ones_like(value)[:, None], value[:, None], self.support)


class HLGauss(TwoHot):
    """Outputs are logits over bins; the target is a normal distribution around one number, `smoothing` bins wide.

    The probability of a bin is that of the normal distribution cut off at v_min and v_max (Imani & White 2018, arXiv
    1806.04613; Farebrother et al. 2024, arXiv 2403.03950, equation 3.2). Default: sigma of 0.75 bin widths, theirs.
    Compared with lucidrains/hl-gauss-pytorch, which has the code of their appendix A: probabilities, values and losses
    are equal to 6e-8.
    """

    def __init__(
        self, v_min: float, v_max: float, num_atoms: int, device: torch.device | str = "cpu", smoothing: float = 0.75
    ) -> None:
        super().__init__(v_min, v_max, num_atoms, device)
        self.edges = torch.linspace(v_min, v_max, num_atoms + 1, device=device)
        self.support = (self.edges[1:] + self.edges[:-1]) / 2
        self.sigma = smoothing * (v_max - v_min) / num_atoms

    def encode(self, value: Tensor) -> Tensor:
        """Return the probabilities (batch, num_atoms) that stand for values (batch,); those beyond the grid are cut."""
        value = value.clamp(self.edges[0], self.edges[-1])[:, None]
        below = torch.erf((self.edges - value) / (self.sigma * math.sqrt(2)))
        return (below[:, 1:] - below[:, :-1]) / (below[:, -1:] - below[:, :1])


class Quantiles:
    """Outputs are quantiles (..., num_atoms) of the return at (i + 1/2) / num_atoms; their mean is the value.

    Dabney et al. 2018, arXiv 1710.10044: quantile regression with a Huber loss of scale 1; BRO's critics have 100.
    """

    def __init__(self, num_atoms: int, device: torch.device | str = "cpu") -> None:
        self.num_atoms = num_atoms
        self.levels = (torch.arange(num_atoms, device=device) + 0.5) / num_atoms

    def q(self, output: Tensor) -> Tensor:
        """Return the mean returns, of the shape of outputs without their last axis."""
        return output.mean(-1)

    def target(self, reward: Tensor, discount: Tensor, following: Tensor) -> Tensor:
        """Return r + discount * quantiles, (batch, num_atoms)."""
        return reward[:, None] + discount[:, None] * following

    def losses(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return quantile Huber losses (batch,), summed over quantiles, mean over the target's; replay takes them."""
        error = target[:, None, :] - output[:, :, None]
        huber = smooth_l1_loss(
            target[:, None, :].expand_as(error), output[:, :, None].expand_as(error), reduction="none"
        )
        losses = ((self.levels[:, None] - (error.detach() < 0).to(error)).abs() * huber).mean(2).sum(1)
        return losses, losses.detach()
