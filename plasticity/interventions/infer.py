"""InFeR: keep the features able to say what random heads on the initial network said.

Lyle, Rowland & Dabney 2022, *Understanding and Preventing Capacity Loss in Reinforcement Learning*, arXiv 2204.09560.
Code of others: timoklein/infer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from plasticity.callback import Context
from plasticity.isolation import unwrap

from .feature_penalty import FeaturePenalty
from .intervention import numbers_in
from .layer_depths import LayerDepths


def head_error(heads: Tensor, frozen: Tensor, beta: float, reduce: str = "mean") -> Tensor:
    """Return the mean over samples of (head - beta * frozen head)^2, averaged or summed over heads.

    heads, frozen: (samples, heads).
    """
    squares = (heads - beta * frozen).square()
    return (squares.mean(1) if reduce == "mean" else squares.sum(1)).mean()


FIRST_NETWORK = "initial "
"""Beginning of the names of the initial networks among what is kept."""
AT_FIRST = -0.5
"""Place of the method among those that restructure: after structures of the start, before those of any step."""


@dataclass
class InFeR(FeaturePenalty):
    """Keep the features able to say what random heads said.

    Adds coef * mean over samples and heads of (g_i(phi(x)) - beta * g_i^0(phi_0(x)))^2 to the loss: ``heads`` linear
    heads g on the features (the input of the output layers) are trained with the network to tell what their own frozen
    copies say on the frozen initial network. Before the first update the heads are drawn as PyTorch draws a Linear
    layer, and join the optimizer of the network.

    Defaults: 10 heads, beta 100, coef 0.1 (paper). Differences: the paper sums over heads in its text and averages in
    its description of the loss, which differ by the number of heads: ``reduce`` chooses. Networks other than actors.
    Compared with timoklein/infer, ten updates of double DQN with the same heads: all weights agree to 2e-16.
    Source: Lyle et al. 2022, arXiv 2204.09560, section 5.
    """

    NAME: ClassVar[str] = "infer"
    NEEDS: ClassVar[tuple[str, ...]] = (*FeaturePenalty.NEEDS, "peek")

    networks: tuple[str, ...] = ("critic*", "q*")
    """Names or globs of the networks to act on; empty for all."""
    coef: float = 0.1
    """Weight of the penalty; 0 switches it off."""
    heads: int = 10
    """Linear heads on the features."""
    beta: float = 100.0
    """Factor of the frozen heads' outputs."""
    reduce: Literal["mean", "sum"] = "mean"
    """Reduction of the squares over heads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.made: dict[str, nn.Linear] = {}
        """Network -> its heads, as one layer."""
        self.frozen: dict[str, nn.Module] = {}
        self.initial: dict[str, nn.Module] = {}
        self.first: dict[str, LayerDepths] = {}

    def rules(self) -> dict[str, bool]:
        """Return the rules of the settings."""
        return {**super().rules(), "heads >= 1": self.heads >= 1}

    def restructure(self, ctx: Context, state: Mapping[str, Any] | None) -> None:
        """Make the heads of a checkpoint, so that the optimizer's saved state finds their parameters.

        The initial networks too, which have the structure that training began with.
        """
        self.made, self.frozen, self.initial = {}, {}, {}
        for key in (state or {}).get("kept", {}):
            if (name := key.removeprefix(FIRST_NETWORK)) != key:
                self.initial[name] = self.keep_copy(key, unwrap(ctx.networks[name]))
        for name, saved in (state or {}).get("made", {}).items():
            self._make(ctx, name, saved["weight"].shape[1])

    def begin(self, ctx: Context, name: str, network: nn.Module) -> None:
        """Keep the network as it is at the very start."""
        if name not in self.first:
            if name not in self.initial:
                self.initial[name] = self.keep_copy(f"{FIRST_NETWORK}{name}", network)
            self.first[name] = LayerDepths(self.initial[name], type(self).__name__)
            self.hook(self.first[name])

    def add(self, ctx: Context, name: str) -> None:
        """Add the term, once there are heads."""
        if name in self.made:
            super().add(ctx, name)

    def on_update_start(self, ctx: Context) -> None:
        """Make the heads before the first update, when a pass shows how many features there are."""
        super().on_update_start(ctx)
        for name in self.chosen if self.coef else ():
            if name not in self.made:
                batch = ctx.require("peek", type(self).__name__)(2, self.generator)
                with torch.enable_grad():
                    self.run[name](self.initial[name], batch)  # the hook of `first` sees the arguments
                self.first[name].look()
                with torch.no_grad():
                    width = self.features(name, self.initial[name], batch, self.first[name]).shape[1]
                self._make(ctx, name, width)
                self.add(ctx, name)

    def _make(self, ctx: Context, name: str, width: int) -> None:
        like = next(ctx.networks[name].parameters())
        made = nn.Linear(width, self.heads, device=like.device, dtype=like.dtype)
        with torch.no_grad():
            for parameter in made.parameters():
                drawn = torch.rand(parameter.shape, generator=self.generator, device="cpu")
                parameter.copy_((2 * drawn - 1) / sqrt(width))
        self.made[name], self.frozen[name] = made, self.keep_copy(f"frozen {name}", made)
        ctx.extras[f"{self.NAME}_{name}"] = made
        own = {id(parameter) for parameter in ctx.networks[name].parameters()}
        groups = [group for optimizer in ctx.optimizers.values() for group in optimizer.param_groups]
        for group in [group for group in groups if any(id(p) in own for p in group["params"])][:1]:
            group["params"] += made.parameters()

    def _parts(self) -> dict[str, Mapping[str, nn.Module]]:
        return {"made": self.made, "frozen": self.frozen, "initial": self.initial}

    def reads(self, ctx: Context, name: str) -> dict[str, nn.Module]:
        """Return heads, frozen heads, and the initial network."""
        return {f"{self.NAME}_{key}_{name}": kept[name] for key, kept in self._parts().items()}

    def penalty(self, name: str, networks: Mapping[str, nn.Module], batch: Any, *drawn: Any) -> Tensor:
        """Return the penalty on the update's own batch."""
        heads, frozen, initial = (networks[f"{self.NAME}_{key}_{name}"] for key in ("made", "frozen", "initial"))
        with torch.no_grad():
            told = frozen(self.features(name, initial, batch, self.first[name]))
        return head_error(heads(self.features(name, networks[name], batch)), told, self.beta, self.reduce)

    def parameters_added(self) -> int:
        """Return the number of weights of heads, frozen heads and initial networks."""
        return numbers_in(self._parts())

    def state_dict(self) -> dict[str, Any]:
        """Return the heads, too."""
        made = {name: dict(heads.state_dict()) for name, heads in self.made.items()}
        first = {name: depths.state_dict() for name, depths in self.first.items()}
        return {**super().state_dict(), "made": made, "first": first, "restructured_at": AT_FIRST}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        for name, saved in state["made"].items():
            self.made[name].load_state_dict(saved)
        for name, saved in state["first"].items():
            self.first[name].load_state_dict(saved)

    def on_train_end(self, ctx: Context) -> None:
        """Take hooks and terms off; the heads stay with their optimizer, which leaves them as they are."""
        super().on_train_end(ctx)
        self.first.clear()
