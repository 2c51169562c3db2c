"""CHAIN and C-CHAIN: keep what the network says of other states from changing with every update.

Tang & Berseth 2024, *Improving Deep Reinforcement Learning by Reducing the Chain Effect of Value and Policy Churn*,
arXiv 2409.04792; Tang, Obando-Ceron, Castro, Courville & Berseth 2025, *Mitigating Plasticity Loss in Continual
Reinforcement Learning by Reducing Churn*, arXiv 2506.00592. Code: bluecontra/CHAIN, bluecontra/C-CHAIN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.callback import Context

from .every_step import copy_into_
from .feature_penalty import FeaturePenalty, captured
from .intervention import numbers_in


def output_change(now: Any, before: Any) -> Tensor:
    """Return how far outputs moved, 0-D: of action probabilities the cross-entropy, of all others the mean square.

    ``now``, ``before``: outputs of a network on the same batch, a tensor or a tuple of them. A tuple with ``logits`` is
    a distribution over a list of actions; of any other tuple the first member counts, the mean of a Gaussian.
    """
    if hasattr(now, "logits"):
        return -(before.logits.softmax(-1) * now.logits.log_softmax(-1)).sum(-1).mean()
    one, other = (x if isinstance(x, Tensor) else x[0] for x in (now, before))
    return (one - other).square().mean()


@dataclass
class Chain(FeaturePenalty):
    """Keep outputs on other states near those of the step before.

    Adds coef * churn to the loss: on a second batch, the cross-entropy of the past policy with the present one, or
    mean (Q_past - Q)^2, for weights that are ``lag`` steps old. An adaptive coefficient follows the scale of the loss,
    coef <- max(relative * mean |loss| / mean churn, floor), means over the last ``window`` updates, from ``warmup``
    updates on. Logged per network: ``churn`` and ``coef``.

    ``control``, ``dmc``, ``dqn``: C-CHAIN's settings for PPO on classic control, PPO on dm_control, and double DQN on
    MinAtar; the code counts iterations, here they are updates (125 and 320 per iteration). The first two begin anew in
    every task, so they know the boundaries. ``chain``: a fixed coefficient of 1, to be tuned. Differences: the code
    takes entry -2 of a list whose last entry is the present network, hence lag 1; it copies whole agents in every
    update, here weights are copied; dmc's means are over the last update of each iteration there, over all here.
    Compared with the code of ``dqn``, 40 updates on the same batches, adaptive from the eleventh on: weights agree to
    5e-8, losses, churn and coefficient to 1e-5 of their size; its mean churn leaves out the first update, where it is
    0. Source: Tang et al. 2025, arXiv 2506.00592, equations 6 and 7.
    """

    NAME: ClassVar[str] = "chain"
    NEEDS: ClassVar[tuple[str, ...]] = (*FeaturePenalty.NEEDS, "peek")
    PRESETS: ClassVar = {
        "control": {
            "networks": ("actor",), "coef": 1.0, "batch_size": 32, "relative": 1e4, "floor": 1.0, "window": 6250,
            "warmup": 1375, "iteration": 125, "entropy": 0.01, "restart": True,
        },
        "dmc": {
            "networks": ("actor",), "coef": 100.0, "batch_size": 64, "relative": 0.05, "floor": 0.0, "window": 32_000,
            "warmup": 16_000, "iteration": 1, "entropy": 0.0, "restart": True,
        },
        "dqn": {
            "networks": ("q",), "coef": 50.0, "batch_size": 32, "relative": 0.01, "floor": 0.0, "window": 50_000,
            "warmup": 10_000, "iteration": 1, "entropy": 0.0, "restart": False,
        },
        "chain": {
            "networks": (), "coef": 1.0, "batch_size": 64, "relative": 0.0, "floor": 0.0, "window": 1,
            "warmup": 0, "iteration": 1, "entropy": 0.0, "restart": False,
        },
    }  # fmt: skip

    preset: Literal["control", "dmc", "dqn", "chain"] = "chain"
    """Defaults of the options that are None."""
    networks: tuple[str, ...] | None = None  # type: ignore[assignment]
    """Names or globs of the networks to act on; empty for all. None: as the preset says."""
    coef: float | None = None  # type: ignore[assignment]
    """Weight of the penalty, at the start where it adapts; 0 switches it off. None: as the preset says."""
    lag: int = 1
    """Steps of the optimizer by which the past weights are older."""
    batch_size: int | None = None
    """Size of the second batch. None: as the preset says."""
    relative: float | None = None
    """Share of the loss that the term is steered to; 0 keeps coef. None: as the preset says."""
    floor: float | None = None
    """Smallest coefficient that adapting leads to. None: as the preset says."""
    window: int | None = None
    """Updates over which loss and churn are averaged. None: as the preset says."""
    warmup: int | None = None
    """Updates before the coefficient adapts. None: as the preset says."""
    iteration: int | None = None
    """Updates whose losses count as one, by their mean with its sign. None: as the preset says."""
    entropy: float | None = None
    """Weight of the metric entropy in the loss that is followed. None: as the preset says."""
    restart: bool | None = None
    """Begin with coef and empty means in every task, which the method then knows. None: as the preset says."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ring: dict[str, list[list[Tensor]]] = {}
        """Network -> its weights of the last ``lag`` steps, the oldest first."""
        self.past: dict[str, nn.Module] = {}
        self.coefs: dict[str, Tensor] = {}
        self.history: dict[str, Tensor] = {}
        """Network -> (2, iterations): mean loss and mean churn of each, a ring."""
        self.sums: dict[str, Tensor] = {}
        """Network -> (2,): loss and churn of the updates of the running iteration."""
        self.followed = 0
        """Updates since the coefficient began."""
        self._followed: set[str] = set()

    def rules(self) -> dict[str, bool]:
        """Return the rules of the settings."""
        at_least = {"lag": 1, "batch_size": 1, "iteration": 1, "warmup": 0, "relative": 0, "floor": 0, "coef": 0}
        rules = {f"{name} >= {least}": getattr(self, name) >= least for name, least in at_least.items()}
        return {**rules, "window >= iteration": (self.window or 0) >= (self.iteration or 1)}

    def begin(self, ctx: Context, name: str, network: nn.Module) -> None:
        """Keep the weights, and follow them step by step."""
        device = next(network.parameters()).device
        self.past[name] = self.keep_copy(name, network)
        self.ring[name] = [[tensor.detach().clone() for tensor in state_tensors(network)] for _ in range(self.lag)]
        if name not in self._followed:
            self._followed.add(name)
            self.coefs[name] = torch.tensor(self.coef or 0.0, device=device)
            self.history[name] = torch.zeros(2, self._iterations() if self.relative else 0, device=device)
            self.sums[name] = torch.zeros(2, device=device)
            if self.coef:
                self.hook(ctx.optimizer_of(name).register_step_post_hook(self.named(partial(self._push, name))))

    def on_train_end(self, ctx: Context) -> None:
        """Take every hook off."""
        super().on_train_end(ctx)
        self._followed.clear()

    def reads(self, ctx: Context, name: str) -> dict[str, nn.Module]:
        """Return the past network."""
        return {f"{self.NAME}_past_{name}": self.past[name]}

    def draw(self, ctx: Context, name: str) -> Callable[[], Any]:
        """Return what draws the second batch."""
        peek = ctx.require("peek", type(self).__name__)
        return lambda: peek(self.batch_size or 1, self.generator)

    def weight(self, name: str) -> Tensor:
        """Return the coefficient, which may adapt."""
        return self.coefs[name]

    def penalty(self, name: str, networks: Mapping[str, nn.Module], batch: Any, *drawn: Any) -> Tensor:
        """Return the churn on the second batch."""
        outputs = []
        for network in (networks[name], networks[f"{self.NAME}_past_{name}"]):
            with captured(network, outputs=[""]) as found:
                self.run[name](network, drawn[0])
            outputs.append(found[""])
        return output_change(*outputs)

    @torch.no_grad()
    def _push(self, name: str, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """Put the oldest weights into the past network, and the present ones in their place."""
        oldest, present = self.ring[name].pop(0), state_tensors(self.chosen[name])
        if len(present) == len(oldest):  # else modules were replaced, and the next update begins anew
            torch._foreach_copy_(state_tensors(self.past[name]), oldest)
            torch._foreach_copy_(oldest, present)
        self.ring[name].append(oldest)

    def _iterations(self) -> int:
        return (self.window or 1) // (self.iteration or 1)

    @torch.no_grad()
    def on_task_start(self, ctx: Context, task: Tensor) -> None:
        """Begin anew with the coefficients."""
        if self.restart:
            self.followed = 0
            for name, coef in self.coefs.items():
                coef.fill_(self.coef or 0.0)
                self.sums[name].zero_()

    @torch.no_grad()
    def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
        """Adapt the coefficients to the losses of this update."""
        super().on_update_end(ctx, metrics)
        self.followed += 1
        for name in self.chosen if self.relative else ():
            if (term := metrics.get(self.label(name))) is not None:
                loss = metrics[loss_of(name, metrics)]
                if self.entropy and "entropy" in metrics:  # elsewhere the loss has it in it already
                    loss = loss - self.entropy * metrics["entropy"]
                self._adapt(name, loss, term / self.coefs[name])

    def _adapt(self, name: str, loss: Tensor, penalty: Tensor) -> None:
        """Add an update to the running iteration; at the end of one, take the coefficient from the last ones."""
        self.sums[name] += torch.stack([loss, penalty])
        done, rest = divmod(self.followed, self.iteration or 1)
        if rest:
            return
        history, size = self.history[name], self._iterations()
        history[:, (done - 1) % size] = self.sums[name] / (self.iteration or 1)
        self.sums[name].zero_()
        if self.followed >= (self.warmup or 0):
            known = history[:, : min(done, size)]
            found = coefficient(known[0].abs().mean(), known[1].mean(), self.relative or 0.0, self.floor or 0.0)
            self.coefs[name].copy_(found)

    def measured(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        """Return the churn of the last update and the coefficient of every network."""
        churns = {key.replace("/penalty", "/churn"): value for key, value in super().measured(metrics).items()}
        return {**churns, **{f"{name}/coef": float(coef) for name, coef in self.coefs.items()}}

    def parameters_added(self) -> int:
        """Return the number of past weights that are kept."""
        return numbers_in(self.past) * (1 + self.lag)

    def state_dict(self) -> dict[str, Any]:
        """Return past weights, coefficients and the losses that they follow, too."""
        follows = {"coefs": self.coefs, "history": self.history, "sums": self.sums, "followed": self.followed}
        return {**super().state_dict(), "ring": self.ring, **follows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        state = self.without_replaced(state)
        super().load_state_dict(state)
        for name in self.ring.keys() & state["kept"].keys():
            for kept, saved in zip(self.ring[name], state["ring"][name], strict=True):
                torch._foreach_copy_(kept, [tensor.to(kept[0].device) for tensor in saved])
        self.followed = state["followed"]
        copy_into_(self.coefs, state["coefs"])
        copy_into_(self.history, state["history"])
        copy_into_(self.sums, state["sums"])


def coefficient(loss: Tensor, penalty: Tensor, relative: float, floor: float = 0.0) -> Tensor:
    """Return the coefficient with which the penalty is ``relative`` times the loss, at least ``floor``; 0-D tensors."""
    return (relative * loss / (penalty + 1e-8)).clamp_min(floor)


def state_tensors(network: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of a network."""
    return [tensor.detach() for tensor in (*network.parameters(), *network.buffers())]


def loss_of(network: str, metrics: Mapping[str, Tensor]) -> str:
    """Return the metric that is the loss of a network; ValueError where none of the usual names is there."""
    kind = network.rstrip("_0123456789")
    usual = [f"{network}_loss", f"{kind}_loss", {"actor": "policy_loss", "critic": "value_loss"}.get(kind, "loss")]
    for name in usual:
        if name in metrics:
            return name
    raise ValueError(
        f"Chain must know the loss of {network}, one of {', '.join(usual)}; there are {', '.join(metrics)}"
    )
