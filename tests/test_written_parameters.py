"""Models whose forward writes to parameters, as one that moves its own target: our passes leave these as they were."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plasticity import measure, watch, wiring


def assign(s: Any) -> None:
    """Give the target new memory, as MoCo does."""
    s.k.weight.data = s.k.weight.data * 0.9 + s.q.weight.data * 0.1


def scale(s: Any) -> None:
    """Give a trained weight rows of one norm, in new memory."""
    s.q.weight.data = F.normalize(s.q.weight.data, dim=1) * 1.3


MOVES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda s: s.k.weight.lerp_(s.q.weight, 0.1),
    "by data": lambda s: s.k.weight.data.mul_(0.9).add_(s.q.weight.data, alpha=0.1),
    "a part": lambda s: s.k.weight[1:].lerp_(s.q.weight[1:], 0.1),
    "new memory": assign,
    "all at once": lambda s: torch._foreach_lerp_([s.k.weight, s.k.bias], [s.q.weight, s.q.bias], 0.1),
    "loaded": lambda s: s.k.load_state_dict(s.q.state_dict()),
    "trained, in place": lambda s: s.q.weight.copy_(F.normalize(s.q.weight, dim=1) * 1.3),
    "trained, new memory": scale,
}


class Moving(nn.Module):
    """A network whose forward moves one of its layers."""

    def __init__(self, move: Callable[[Any], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.o = nn.Linear(5, 4), nn.Linear(5, 4).requires_grad_(False), nn.Linear(4, 2)
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        """Move, and compute with both."""
        with torch.no_grad():
            self.move(self)
        return self.o(F.relu(self.q(x)) * self.k(x))


@pytest.mark.parametrize("name", MOVES)
def test_a_pass_of_ours_leaves_written_parameters_as_they_were(name: str) -> None:
    model, x = Moving(MOVES[name]), torch.randn(8, 5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    held = {key: parameter.data_ptr() for key, parameter in model.named_parameters()}
    wiring(model, x)
    for probes in (["dormancy"], ["dormancy", "rank"]):
        measure(model, x, probes=probes)
    measure(model, (x, torch.zeros(8, 2)), F.mse_loss)
    assert {key: parameter.data_ptr() for key, parameter in model.named_parameters()} == held
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", MOVES)
def test_a_watched_run_of_such_a_model_is_that_of_an_unwatched_one(name: str) -> None:
    found = []
    for watched in (False, True):
        model = Moving(MOVES[name])
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with watch(model, optimizer, every=2, log=None) if watched else nullcontext():
            for step in range(6):
                torch.manual_seed(step)
                optimizer.zero_grad()
                model(torch.randn(8, 5)).square().mean().backward()
                optimizer.step()
        found.append(model.state_dict())
    plain, seen = found
    assert all(value.equal(seen[key]) for key, value in plain.items())
