"""Churn: the change of a network's outputs, by one update, on states outside of the batch."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from plasticity.callback import Context

from .meter import NO_FORWARD, Measured, Meter


def output_churn(before: Tensor, after: Tensor) -> Tensor:
    """Return the mean |change| of outputs, 0-D, at least 0; both of shape (states, ...). Masked ones, -inf, stay so.

    For a value network this is the value churn. Source: Tang & Berseth 2024 (arXiv 2409.04792), section 3; for
    reinforcement learning in general, Schaul et al. 2022 (arXiv 2206.00730).
    """
    masked = before.isneginf() & after.isneginf()
    return (after - before).masked_fill(masked, 0).abs().double().mean()


def policy_churn(before: Tensor, after: Tensor) -> Tensor:
    """Return the share of states whose greedy action changed, 0-D, in [0, 1], NaN of NaN; both (states, actions).

    Source: Schaul et al. 2022, *The Phenomenon of Policy Churn* (arXiv 2206.00730), section 2.
    """
    changed = (before.argmax(-1) != after.argmax(-1)).double().mean()
    return torch.where(before.isnan().any() | after.isnan().any(), torch.nan, changed)


def categorical_divergence(before: Tensor, after: Tensor) -> Tensor:
    """Return the mean KL(before || after) of softmax policies, 0-D, at least 0; logits, (states, actions)."""
    p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    return torch.where(p.isneginf(), 0, p.exp() * (p - q)).sum(-1).mean()  # of a masked action, 0


def gaussian_divergence(before: Tensor, after: Tensor) -> Tensor:
    """Return the mean KL(before || after) of Gaussians, 0-D; mean and log deviation, (states, 2 dimensions)."""
    (mean, log_std), (other, other_log) = (t.double().chunk(2, -1) for t in (before, after))
    ratio = (2 * (log_std - other_log)).exp() + (mean - other).square() * (-2 * other_log).exp()
    return (other_log - log_std + (ratio - 1) / 2).sum(-1).mean()


@dataclass
class Churn(Meter):
    """Change of outputs by one update, or a few, on states outside the batch.

    Logs ``churn``, the mean |change| of a network's output, and for networks with an output per discrete action
    ``policy_churn``, the share of states with another greedy action. The states are past ones, drawn one update before
    the measured one: from the replay buffer, where the batch may hold some of them by chance, or from the rollout
    before. The network ``actor`` also has ``policy_kl``, the mean KL divergence of the policy before from the one
    after: of discrete actions, or of Gaussians before squashing. An update is a call of the agent's ``update()``, which
    takes many gradient steps in PPO.

    Sources: ``churn``, Tang & Berseth 2024 (arXiv 2409.04792), section 3; ``policy_churn``, Schaul et al. 2022 (arXiv
    2206.00730), section 2.
    """

    NAME: ClassVar[str] = "churn"
    NEEDS: ClassVar[tuple[str, ...]] = ("forward", "peek")

    num_states: int = 256
    """States to look at."""
    apart: int = 1
    """Updates between the two looks, at most as many as ``every``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_states < 1:
            raise ValueError(f"Churn needs num_states >= 1, got {self.num_states}")
        if self.apart < 1 or (self.every is not None and self.apart > self.every):
            raise ValueError(f"Churn needs apart from 1 to every, {self.every}, got {self.apart}")
        self.span = self.apart  # type: ignore[misc]
        self._held: Any = None
        self._batch: Any = None
        self._outputs: dict[str, Tensor] = {}

    def on_train_start(self, ctx: Context) -> None:
        """Check that the run lends a batch to look at and says how to run its networks."""
        super().on_train_start(ctx)
        if not any(name in ctx.forward for name in self.chosen(ctx)):
            raise ValueError(f"Churn needs Context.forward of {', '.join(self.chosen(ctx))}; {ctx.name} has none of it")

    def hold(self, ctx: Context) -> None:
        """Draw the states for the next update."""
        assert ctx.peek is not None
        self._held = ctx.peek(self.num_states, self.generator)

    def before(self, ctx: Context) -> None:
        """Run the networks on the states that were held."""
        self._batch, self._held = self._held, None
        self._outputs = {} if self._batch is None else self._run(ctx)

    def measure(self, ctx: Context) -> Measured:
        """Return the churn of every network that could be run."""
        if not self._outputs:
            raise RuntimeError("it has not seen the networks before the update; fire on_update_start in every update")
        values: dict[str, dict[str, Tensor | str]] = {
            name: {"churn": NO_FORWARD} for name in self.chosen(ctx) if name not in ctx.forward
        }
        for name, after in self._run(ctx).items():
            before = self._outputs[name]
            values[name] = {"churn": output_churn(before, after)}
            if has_discrete_actions(self._batch) and after.dim() == 2 and after.shape[1] > 1:
                values[name]["policy_churn"] = policy_churn(before, after)
            if name == "actor" and (divergence := self._divergence(before, after)) is not None:
                values[name]["policy_kl"] = divergence
        self._batch, self._outputs = None, {}
        return values

    def _divergence(self, before: Tensor, after: Tensor) -> Tensor | None:
        """Return the divergence of two policies, None where the outputs are no distribution."""
        if has_discrete_actions(self._batch):
            return categorical_divergence(before, after)
        is_gaussian = after.shape[-1] == 2 * self._batch.action.shape[-1]
        return gaussian_divergence(before, after) if is_gaussian else None

    def _run(self, ctx: Context) -> dict[str, Tensor]:
        """Return network -> its outputs on the batch."""
        chosen = self.chosen(ctx)
        return {n: ctx.forward[n](network, self._batch).clone() for n, network in chosen.items() if n in ctx.forward}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of a meter, the states that are held for the next update, and the outputs before it."""
        looked = {"batch": batch_tensors(self._batch), "outputs": self._outputs} if self._outputs else {}
        return {**super().state_dict(), "held": batch_tensors(self._held), **looked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self._held = SimpleNamespace(**state["held"]) if state["held"] else None
        self._batch = SimpleNamespace(**state["batch"]) if state.get("batch") else None
        self._outputs = dict(state.get("outputs", {}))


def has_discrete_actions(batch: Any) -> bool:
    """Return whether the actions of a batch are numbers of discrete actions."""
    action = getattr(batch, "action", None)
    return isinstance(action, Tensor) and not action.is_floating_point() and action.dtype != torch.bool


def batch_tensors(batch: Any) -> dict[str, Tensor]:
    """Return the tensors of a batch by name; empty for None."""
    names = [field.name for field in fields(batch)] if is_dataclass(batch) else list(vars(batch)) if batch else []
    return {name: value for name in names if isinstance(value := getattr(batch, name), Tensor)}
