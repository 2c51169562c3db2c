"""Callbacks that log what CleanRL users know: returns, lengths, speed, losses."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from operator import add
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plasticity.callback import Callback, Context


class Episodes(Callback):
    """Log the return and length of every finished episode. Goes last: a callback before it may end an episode.

    Of steps on a device they are counted there, and logged every `LOOK_EVERY` steps: the mean of those that ended.
    """

    def __init__(self) -> None:
        self.finished = 0
        self._device: EpisodesOnDevice | None = None
        self._returns: list[float] = []  # numbers of Python: a few in every step, which torch takes longer for
        self._lengths: list[int] = []

    def on_step(self, ctx: Context, transition: Any) -> None:
        """Add the rewards; log the episodes that ended, their mean if several did at once."""
        names, arrays = ("reward", "terminated", "truncated"), getattr(transition, "arrays", None)
        if arrays is None and transition.reward.device.type != "cpu":
            self._count_there(ctx, transition)
            return
        reward, terminated, truncated = (
            (getattr(transition, name) if arrays is None else arrays[name]).tolist() for name in names
        )
        if not self._returns:
            self._returns, self._lengths = [0.0] * len(reward), [0] * len(reward)
        self._returns = [*map(add, self._returns, reward)]
        self._lengths = [length + 1 for length in self._lengths]
        if True in terminated or True in truncated:
            done = np.logical_or(terminated, truncated)
            self.finished += int(done.sum())
            ctx.log(
                {
                    "charts/episodic_return": float(np.array(self._returns)[done].mean()),
                    "charts/episodic_length": float(np.array(self._lengths)[done].mean()),
                }
            )
            self._restart(done.tolist())

    def _count_there(self, ctx: Context, transition: Any) -> None:
        counts = self._device = self._device or EpisodesOnDevice(self._returns, self._lengths, transition.reward)
        if number := counts.add(transition):
            self.finished += number
            ctx.log({"charts/episodic_return": counts.mean_return, "charts/episodic_length": counts.mean_length})

    def _restart(self, which: list[bool]) -> None:
        self._returns = [0.0 if over else value for value, over in zip(self._returns, which, strict=True)]
        self._lengths = [0 if over else length for length, over in zip(self._lengths, which, strict=True)]

    def forget(self, lost: Tensor) -> None:
        """Begin anew with the episodes that will not go on."""
        self._settle()
        if self._returns:
            self._restart(lost.tolist())

    def state_dict(self) -> dict[str, Any]:
        """Return the number of finished episodes, and what the running ones have so far."""
        self._settle()
        if not self._returns:
            return {"finished": self.finished}
        running = torch.tensor([self._returns, self._lengths], dtype=torch.float64, device="cpu")
        return {"finished": self.finished, "returns": running[0].clone(), "lengths": running[1].clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.finished, self._device = state["finished"], None
        if "returns" in state:
            self._returns, self._lengths = state["returns"].tolist(), state["lengths"].long().tolist()

    def _settle(self) -> None:
        """Take over what was counted on a device; episodes that ended since the last row are counted, not logged."""
        if self._device is not None:
            self._returns, self._lengths, number = self._device.settled()
            self.finished += number
            self._device = None


LOOK_EVERY = 100  # steps on a device between two looks at the episodes that have ended, each of which waits for it


class EpisodesOnDevice:
    """Returns and lengths of the running episodes, (N,), and the sums of those that have ended, on one device."""

    def __init__(self, returns: list[float], lengths: list[int], like: Tensor) -> None:
        running = [returns or [0.0] * len(like), lengths or [0] * len(like)]
        self._running = torch.tensor(running, dtype=torch.float64, device="cpu").to(like.device)
        self._ended = torch.zeros(3, dtype=torch.float64, device=like.device)
        self._steps = 0

    def add(self, transition: Any) -> int:
        """Add a step; now and then return the number of episodes that have ended since, with their means set."""
        done = transition.terminated | transition.truncated
        self._running = self._running + torch.stack([transition.reward, torch.ones_like(transition.reward)])
        self._ended = self._ended + torch.cat([(self._running * done).sum(1), done.sum().double()[None]])
        self._running = self._running * ~done
        self._steps += 1
        return self._look() if self._steps % LOOK_EVERY == 0 else 0

    def _look(self) -> int:
        returns, lengths, number = self._ended.tolist()
        self._ended = torch.zeros_like(self._ended)
        if number:
            self.mean_return, self.mean_length = returns / number, lengths / number
        return int(number)

    def settled(self) -> tuple[list[float], list[int], int]:
        """Return what the running episodes have so far, and how many have ended since the last look."""
        returns, lengths = self._running.tolist()
        return returns, [*map(int, lengths)], self._look()


class Losses(Callback):
    """Log the agent's metrics, averaged over ``every`` updates, and the speed in environment steps per second.

    A metric that only some updates have, such as the loss of a delayed actor, is averaged over these.
    """

    def __init__(self, every: int = 500) -> None:
        if every < 1:
            raise ValueError(f"every is a number of updates, at least 1; got {every}")
        self.every, self._count = every, 0
        self._sums: dict[str, Tensor] = {}
        self._terms: Counter[str] = Counter()

    def on_train_start(self, ctx: Context) -> None:
        """Start the clock."""
        self._time, self._step = time.perf_counter(), ctx.step

    def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
        """Add the metrics on their device; bring them to the host only when they are logged.

        Raises TypeError unless they are 0-D tensors by name.
        """
        if metrics and metrics.keys() <= self._sums.keys():
            torch._foreach_add_([self._sums[name] for name in metrics], list(metrics.values()))
        else:
            require_metrics(metrics)
            for name, value in metrics.items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value.detach().clone()
        self._terms.update(metrics.keys())
        self._count += 1
        if self._count % self.every:
            return
        averages = [value.double() / self._terms[name] for name, value in self._sums.items()]
        means = torch.stack(averages).tolist() if averages else []
        now = time.perf_counter()
        speed = (ctx.step - self._step) / (now - self._time)
        self._time, self._step = now, ctx.step
        ctx.log({**{f"losses/{n}": v for n, v in zip(self._sums, means, strict=True)}, "charts/SPS": speed})
        self._sums.clear()
        self._terms.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return what has come in since the last row."""
        return {"count": self._count, "terms": dict(self._terms), "sums": {n: v.clone() for n, v in self._sums.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._count, self._terms = state["count"], Counter(state["terms"])
        self._sums = {name: value.clone() for name, value in state["sums"].items()}


def require_metrics(metrics: Any) -> None:
    """Raise TypeError unless this is what ``Agent.update`` has to return."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"update() of the agent must return a dict of 0-D tensors, got {type(metrics).__name__}")
    for name, value in metrics.items():
        if not isinstance(value, Tensor) or value.dim():
            raise TypeError(f"update() of the agent must return 0-D tensors, {name} is {value!r}")
