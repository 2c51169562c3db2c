"""Models that cannot be read fail at the first step, by name; methods beside ``forward`` are passes from the start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_interventions import plain_loop
from torch import Tensor, nn

from plasticity.interventions import NeuroplasticExpansion, ReDo, ReGraMa, Reset, ShrinkPerturb
from plasticity.interventions.intervention import Intervention


class Policy(nn.Module):
    """A policy that training calls by ``evaluate``."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))

    def evaluate(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Return what is trained."""
        return scale * self.body(x)


METHODS: dict[str, Callable[[], Intervention]] = {
    "redo": lambda: ReDo(every=150),
    "regrama": lambda: ReGraMa(every=150),
    "ne": lambda: NeuroplasticExpansion(every=150),
}


def train(
    method: Intervention, steps: int, calls: dict[str, tuple[str, ...]] | None = None, mask: object = None
) -> Policy:
    torch.manual_seed(0)
    model = Policy()
    ctx, _ = plain_loop(model, torch.optim.Adam(model.parameters()))
    ctx.calls, ctx.masks = calls or {}, {} if mask is None else {"net": mask}
    method.on_train_start(ctx)
    try:
        for _ in range(steps):
            ctx.optimizers["net"].zero_grad()
            model.evaluate(torch.randn(8, 4), scale=2.0).square().mean().backward()
            ctx.optimizers["net"].step()
    finally:
        method.on_train_end(ctx)
    return model


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_reads_nothing_fails_at_the_first_step_with_its_name(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"pass calls=\('evaluate',\)") as caught:
        train(METHODS[name](), 1)
    assert any(name in note for note in caught.value.__notes__)


@pytest.mark.parametrize("name", METHODS)
def test_a_mask_that_cannot_be_found_fails_there_too(name: str) -> None:
    def mask(*args: object, **kwargs: object) -> None:
        raise KeyError("attention_mask")

    with pytest.raises(KeyError, match="attention_mask"):
        train(METHODS[name](), 1, {"net": ("evaluate",)}, mask)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_can_read_goes_on(name: str) -> None:
    train(METHODS[name](), 3, {"net": ("evaluate",)})


def test_expansion_is_sparse_from_the_first_pass_by_another_method() -> None:
    model = train(NeuroplasticExpansion(every=1000), 2, {"net": ("evaluate",)})
    assert float((model.body[2].weight == 0).float().mean()) > 0.3


def test_reset_of_the_last_layers_knows_their_order_by_another_method() -> None:
    torch.manual_seed(0)
    before = Policy().body[0].weight.clone()
    model = train(Reset(every=2, layers=1), 1, {"net": ("evaluate",)})
    after = train(Reset(every=2, layers=1), 2, {"net": ("evaluate",)})
    assert not torch.equal(model.body[4].weight, after.body[4].weight)
    assert float((after.body[0].weight - before).detach().abs().max()) < 0.01


def test_changes_of_the_function_are_measured_by_another_method() -> None:
    method = ShrinkPerturb(every=2, shrink=0.5, perturb=0.0)
    torch.manual_seed(0)
    model = Policy()
    ctx, writer = plain_loop(model, torch.optim.SGD(model.parameters(), 0.0))
    ctx.calls = {"net": ("evaluate",)}
    method.on_train_start(ctx)
    for _ in range(2):
        model.evaluate(torch.randn(8, 4)).square().mean().backward()
        ctx.optimizers["net"].step()
    method.on_train_end(ctx)
    (event,) = writer.named("shrink_perturb")
    assert event["networks"]["net"]["function_change"] > 0
