"""Modules beside weights that surgery changes: spectral norm's vectors, biases under weight norm, optimizer states."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from test_interventions import plain_loop
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim import Optimizer

from plasticity.interventions import ReDo, ReGraMa, Reset, ShrinkPerturb
from plasticity.surgery.optimizer_state import state_refusal
from plasticity.surgery.origin import Origin

pytestmark = pytest.mark.usefixtures("everywhere")


def new_style(layer: nn.Module) -> nn.Module:
    return parametrizations.spectral_norm(layer)


def old_style(layer: nn.Module) -> nn.Module:
    return nn.utils.spectral_norm(layer)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(new_style(nn.Linear(6, 24)), nn.ReLU(), nn.Linear(24, 1)), (6,)),
    "linear, older": (lambda: nn.Sequential(old_style(nn.Linear(6, 24)), nn.ReLU(), nn.Linear(24, 1)), (6,)),
    "output": (lambda: nn.Sequential(nn.Linear(6, 24), nn.ReLU(), new_style(nn.Linear(24, 3))), (6,)),
    "convolution": (
        lambda: nn.Sequential(new_style(nn.Conv2d(2, 8, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 1)),
        (2, 4, 4),
    ),
    "transposed": (
        lambda: nn.Sequential(new_style(nn.ConvTranspose2d(2, 8, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 1)),
        (2, 2, 2),
    ),
    "all": (lambda: nn.Sequential(new_style(nn.Linear(6, 9)), nn.ReLU(), old_style(nn.Linear(9, 3))), (6,)),
}


def spectral_norms(network: nn.Module) -> list[float]:
    """Return the largest singular value of the weights that have to have 1."""
    found = []
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and "weight" not in module._parameters and isinstance(module, (nn.Linear, nn.Conv2d)):
            found.append(float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2)))
        if isinstance(module, nn.ConvTranspose2d) and "weight" not in module._parameters:
            found.append(float(torch.linalg.matrix_norm(module.weight.detach().transpose(0, 1).flatten(1), 2)))
    return found


@pytest.mark.parametrize("make", [Reset, lambda **o: ShrinkPerturb(shrink=0.3, **o)])
@pytest.mark.parametrize("name", NETWORKS)
def test_spectral_norm_holds_after_a_redraw(name: str, make: Callable[..., Any]) -> None:
    build, shape = NETWORKS[name]
    network, x = build(), torch.randn(16, *shape)
    ctx, _ = plain_loop(network, torch.optim.Adam(network.parameters(), 1e-2))
    method = make(every=60, clock="gradient_steps")
    method.on_train_start(ctx)
    for _ in range(60):
        ctx.optimizers["net"].zero_grad()
        (network(x) - 3).square().mean().backward()
        ctx.optimizers["net"].step()
    method.on_train_end(ctx)
    network.eval()
    norms = spectral_norms(network)
    assert norms
    for norm in norms:
        assert norm == pytest.approx(1, abs=0.1)


def test_biases_under_weight_norm_are_redrawn() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(30, 400)), nn.ReLU(), new_style(nn.Conv1d(1, 300, 5)), nn.Linear(396, 1)
    )
    origin, generator = Origin.of(network), torch.Generator(device="cpu").manual_seed(1)
    for name, bound in (("0.bias", 30**-0.5), ("2.bias", 5**-0.5)):
        parameter = network.get_parameter(name)
        drawn = [origin.draw(name, parameter, generator) for _ in range(2)]
        assert not torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], parameter)
        assert float(drawn[0].abs().max()) == pytest.approx(bound, rel=0.05)


# -- optimizers --------------------------------------------------------------------------------------------------------


class Kept(Optimizer):
    """An optimizer that keeps something for every parameter."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def keep(self, p: Tensor) -> dict[str, Any]:
        """Return the state."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step along the gradient."""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                if not self.state[p]:
                    self.state[p].update(self.keep(p))
                p -= group["lr"] * p.grad


class Shampoo(Kept):
    """A square preconditioner per side."""

    def keep(self, p: Tensor) -> dict[str, Any]:
        return {f"preconditioner_{d}": torch.eye(size) for d, size in enumerate(p.shape)} if p.dim() > 1 else {}


class Factored(Kept):
    """A number per row and column."""

    def keep(self, p: Tensor) -> dict[str, Any]:
        return {"row": p.sum(-1), "col": p.sum(0)} if p.dim() > 1 else {"square": p.clone()}


class Mini(Kept):
    """A number per row."""

    def keep(self, p: Tensor) -> dict[str, Any]:
        return {"mean": p.flatten(1).mean(1, keepdim=True)} if p.dim() > 1 else {"mean": p.clone()}


class Adam8bit(Kept):
    """Quantised, but not so for small tensors."""

    def keep(self, p: Tensor) -> dict[str, Any]:
        return {"exp_avg": torch.zeros_like(p)}


class Nested(Kept):
    """State within state."""

    def keep(self, p: Tensor) -> dict[str, Any]:
        return {"blocks": [p.clone(), {"left": p.new_ones(3)}]}


class Fine(Kept):
    """One entry per weight, and numbers."""

    def keep(self, p: Tensor) -> dict[str, Any]:
        return {"momentum": torch.zeros_like(p), "step": torch.tensor(0.0), "seen": 3}


def square() -> nn.Module:
    """Return a network whose weights are square: a preconditioner has their shape."""
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))


@pytest.mark.parametrize("method", [ReDo, ReGraMa])
@pytest.mark.parametrize("kind", [Shampoo, Factored, Mini, Adam8bit, Nested])
def test_state_that_cannot_be_edited_is_refused_before_the_first_step(kind: Any, method: Any) -> None:
    network = square()
    optimizer = kind(network.parameters())
    before, generator = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"{method.__name__}: net\.0: {kind.__name__} keeps"):
        method(every=150).on_train_start(plain_loop(network, optimizer)[0])
    assert not optimizer.state
    assert torch.equal(torch.get_rng_state(), generator)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    network(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    assert state_refusal([optimizer], network[0].weight)


@pytest.mark.parametrize("kind", [Fine, torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam])
def test_the_look_at_an_optimizer_leaves_no_trace(kind: Any) -> None:
    network = square()
    optimizer = kind(network.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    seen: list[int] = []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    ReDo(every=150).on_train_start(plain_loop(network, optimizer)[0])
    assert not seen
    assert not optimizer.state
    assert all(p.grad is None for p in network.parameters())
    network(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    scheduler.step()
    assert seen == [1]
    assert state_refusal([optimizer], network[0].weight) is None


# -- errors that bear a name -------------------------------------------------------------------------------------------


def test_a_network_without_layers_is_refused_at_the_start_by_name() -> None:
    network = nn.Sequential(nn.LSTM(4, 5))
    with pytest.raises(ValueError, match=r"ReDo: net \(Sequential\) has no Linear or convolution to recycle"):
        ReDo().on_train_start(plain_loop(network, torch.optim.SGD(network.parameters(), 0.1))[0])


def test_a_reading_that_fails_bears_the_name_of_the_method() -> None:
    network = models.mlp()
    ctx, _ = plain_loop(network, torch.optim.SGD(network.parameters(), 0.1))
    ReDo(every=1).on_train_start(ctx)
    network[4](network[:4](models.vectors())).sum().backward()  # not by the network itself
    with pytest.raises(RuntimeError, match="no data") as caught:
        ctx.optimizers["net"].step()
    assert any("redo" in text for text in caught.value.__notes__)
