"""Proximal feature optimisation (PFO): keep pre-activations near those of the policy that gathered the data.

Moalla, Miele, Pyatko, Pascanu & Gulcehre 2024, *No Representation, No Trust: Connecting Representation, Collapse, and
Trust Issues in PPO*, arXiv 2405.00662. Code: CLAIRE-Labo/no-representation-no-trust.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from plasticity.callback import Context

from .feature_penalty import FeaturePenalty, captured


def feature_shift(now: Tensor, before: Tensor) -> Tensor:
    """Return the mean over samples and features of (now - before)^2, 0-D."""
    return (now - before).square().mean()


@dataclass
class ProximalFeatures(FeaturePenalty):
    """Keep pre-activations near those of the policy that gathered the data.

    Adds coef * mean over samples and neurons of (z - z_old)^2 to the loss, z the pre-activations of the last hidden
    layer (or of all hidden layers, side by side), z_old those of the weights with which the rollout was
    gathered: PPO's ratio bounds the outputs only, and features move on while it is clipped. For on-policy agents.

    Defaults: coef 1, the last layer, the actor; the paper tunes 1 to 10, the released code has it off. Differences: the
    code keeps z_old of every sample, here the old weights are kept and run again, which is the same number. Compared
    with the code's loss, twelve steps of Adam on three rollouts, the last layer and all: the weights agree to 2e-16.
    Source: Moalla et al. 2024, arXiv 2405.00662, section 4.
    """

    NAME: ClassVar[str] = "pfo"

    networks: tuple[str, ...] = ("actor",)
    """Names or globs of the networks to act on; empty for all."""
    coef: float = 1.0
    """Weight of the penalty; 0 switches it off."""
    layers: Literal["last", "all"] = "last"
    """Hidden layers that count."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.old: dict[str, nn.Module] = {}
        self._acted = True

    def on_train_start(self, ctx: Context) -> None:
        """Keep the policy; ValueError for an agent with a replay buffer, whose data have no one old policy."""
        if ctx.buffer is not None:
            raise ValueError(
                f"ProximalFeatures needs an agent that learns from its last rollout; {ctx.name} has a replay buffer"
            )
        super().on_train_start(ctx)

    def begin(self, ctx: Context, name: str, network: nn.Module) -> None:
        """Keep the network as it is."""
        self.old[name] = self.keep_copy(name, network)

    def reads(self, ctx: Context, name: str) -> dict[str, nn.Module]:
        """Return the old network."""
        return {f"{self.NAME}_old_{name}": self.old[name]}

    def on_step(self, ctx: Context, transition: Any) -> None:
        """Note that there are new data."""
        self._acted = True

    def on_update_start(self, ctx: Context) -> None:
        """Keep the weights with which the rollout was gathered, before the first update on it."""
        super().on_update_start(ctx)
        if self._acted:
            self._acted = False
            for name, old in self.old.items():
                old.load_state_dict(self.chosen[name].state_dict())

    def penalty(self, name: str, networks: Mapping[str, nn.Module], batch: Any, *drawn: Any) -> Tensor:
        """Return the penalty on the update's own batch."""
        layers = self.depths[name].last_hidden if self.layers == "last" else self.depths[name].hidden
        if not layers:
            raise ValueError(f"ProximalFeatures finds no hidden layer in {name}: choose networks that have one")
        found = []
        for network in (networks[name], networks[f"{self.NAME}_old_{name}"]):
            with captured(network, outputs=layers) as outputs:
                self.run[name](network, batch)
            found.append(outputs)
        now, before = found
        together, then = (torch.cat([one[layer].flatten(1) for layer in layers], 1) for one in (now, before))
        return feature_shift(together, then.detach())

    def state_dict(self) -> dict[str, Any]:
        """Return whether there are new data, too."""
        return {**super().state_dict(), "acted": self._acted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(self.without_replaced(state))
        self._acted = state["acted"]
