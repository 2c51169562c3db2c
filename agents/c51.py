"""C51: learn the distribution of the return on a fixed grid of atoms (Bellemare et al. 2017, arXiv 1707.06887)."""

import torch
from torch import Tensor

from .rows import as_tensor, like


class C51:
    """Outputs are logits (..., num_atoms) of the return's distribution over atoms evenly spaced in [v_min, v_max]."""

    def __init__(self, v_min: float, v_max: float, num_atoms: int, device: torch.device | str = "cpu") -> None:
        self.num_atoms = num_atoms
        self.support = torch.linspace(v_min, v_max, num_atoms, device=device)

    def q(self, logits: Tensor) -> Tensor:
        """Return the mean returns, of the shape of logits without its last axis."""
        return like((as_tensor(logits).softmax(-1) * self.support).sum(-1), logits)

    def target(self, reward: Tensor, discount: Tensor, logits: Tensor) -> Tensor:
        """Return probabilities (batch, num_atoms) of r + discount * Z, Z as logits; the others (batch,)."""
        return project(logits.softmax(-1), reward[:, None] + discount[:, None] * self.support, self.support)

    def losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return cross-entropies (batch,) with the target's probabilities, nats; replay takes them for errors."""
        losses = -(target * logits.log_softmax(-1)).sum(-1)
        return losses, losses.detach()


def project(probability: Tensor, value: Tensor, support: Tensor) -> Tensor:
    """Split the probability of each value between its two neighbours on the grid, in proportion to nearness.

    probability, value: (batch, n); support: (atoms,), evenly spaced, increasing. Returns (batch, atoms). Values beyond
    the grid count as its ends. Bellemare et al. 2017, equation 7: m_i = sum_j [1 - |z_j - z_i| / dz]_0^1 p_j; a NaN
    value comes out as NaN.
    """
    spacing = support[1] - support[0]
    distance = (value.clamp(support[0], support[-1])[:, None, :] - support[:, None]).abs() / spacing
    return torch.einsum("bij,bj->bi", (1 - distance).clamp_min(0), probability)
