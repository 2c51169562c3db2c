"""Callbacks that log what CleanRL users know: returns, lengths, speed, losses."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from itertools import compress
from operator import add, attrgetter
from typing import Any

import torch
from torch import Tensor

from plasticity.callback import Callback, Context

from .rows import ended


class Episodes(Callback):
    """Log the return and length of every finished episode. Goes last: a callback before it may end an episode.

    Of steps on a device they are counted there, and logged every `LOOK_EVERY` steps: the mean of those that ended.
    """

    def __init__(self) -> None:
        self.finished = 0
        self._device: EpisodesOnDevice | None = None
        self._returns: list[float] = []  # numbers of Python: a few in every step, which torch takes longer for
        self._lengths: list[int] = []
        self._ended: tuple[list[float], int] = ([0.0, 0.0, 0.0], 0)  # on a device, before a resume: sums, steps

    def on_step(self, ctx: Context, transition: Any) -> None:
        """Add the rewards; log the episodes that ended, their mean if several did at once."""
        arrays = getattr(transition, "arrays", None)
        if arrays is None and transition.reward.device.type != "cpu":
            self._count_there(ctx, transition)
            return
        reward = (transition.reward if arrays is None else arrays["reward"]).tolist()
        if not self._returns:
            self._returns, self._lengths = [0.0] * len(reward), [0] * len(reward)
        self._returns = [*map(add, self._returns, reward)]
        self._lengths = [length + 1 for length in self._lengths]
        done = ended(transition)
        if done is None:
            return
        over = done.tolist()
        number = sum(over)
        self.finished += number
        ctx.log(
            {
                "charts/episodic_return": sum(compress(self._returns, over)) / number,
                "charts/episodic_length": sum(compress(self._lengths, over)) / number,
            }
        )
        self._restart(over)

    def _count_there(self, ctx: Context, transition: Any) -> None:
        if self._device is None:
            self._device = EpisodesOnDevice(self._returns, self._lengths, transition.reward, *self._ended)
        self._device.add(transition)
        if self._device.steps % LOOK_EVERY == 0:
            self._look(ctx)

    def _look(self, ctx: Context) -> None:
        assert self._device is not None
        returns, lengths, number = self._device.taken()
        if number:
            self.finished += int(number)
            ctx.log({"charts/episodic_return": returns / number, "charts/episodic_length": lengths / number})

    def on_train_end(self, ctx: Context) -> None:
        """Log the episodes that ended on a device since the last look."""
        if self._device is not None:
            self._look(ctx)

    def _restart(self, which: list[bool]) -> None:
        self._returns = [0.0 if over else value for value, over in zip(self._returns, which, strict=True)]
        self._lengths = [0 if over else length for length, over in zip(self._lengths, which, strict=True)]

    def forget(self, lost: Tensor) -> None:
        """Begin anew with the episodes that will not go on."""
        if self._returns:
            self._restart(lost.tolist())

    def state_dict(self) -> dict[str, Any]:
        """Return the number of finished episodes, and what the running ones have so far."""
        if self._device is not None:
            return {"finished": self.finished, **self._device.state_dict()}
        if not self._returns:
            return {"finished": self.finished}
        running = torch.tensor([self._returns, self._lengths], dtype=torch.float64, device="cpu")
        return {"finished": self.finished, "returns": running[0].clone(), "lengths": running[1].clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.finished, self._device = state["finished"], None
        if "returns" in state:
            self._returns, self._lengths = state["returns"].tolist(), state["lengths"].long().tolist()
        if "ended" in state:
            self._ended = state["ended"].tolist(), state["steps"]


LOOK_EVERY = 100  # steps on a device between two looks at the episodes that have ended, each of which waits for it


class EpisodesOnDevice:
    """Returns and lengths of the running episodes, (N,), and the sums of those that have ended, on one device."""

    def __init__(self, returns: list[float], lengths: list[int], like: Tensor, ended: list[float], steps: int) -> None:
        running = [returns or [0.0] * len(like), lengths or [0] * len(like)]
        self._running = torch.tensor(running, dtype=torch.float64, device="cpu").to(like.device)
        self._ended = torch.tensor(ended, dtype=torch.float64, device="cpu").to(like.device)
        self.steps = steps

    def add(self, transition: Any) -> None:
        """Add a step."""
        done = transition.terminated | transition.truncated
        self._running = self._running + torch.stack([transition.reward, torch.ones_like(transition.reward)])
        self._ended = self._ended + torch.cat([(self._running * done).sum(1), done.sum().double()[None]])
        self._running = self._running * ~done
        self.steps += 1

    def taken(self) -> list[float]:
        """Return the sums of returns and lengths of the episodes that have ended since the last time, and how many."""
        found: list[float] = self._ended.tolist()
        self._ended = torch.zeros_like(self._ended)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what the running episodes have so far, and what has ended and was not taken, on the CPU."""
        returns, lengths = self._running.to("cpu", copy=True)
        ended = self._ended.to("cpu", copy=True)
        return {"returns": returns.clone(), "lengths": lengths.clone(), "ended": ended, "steps": self.steps}


IS_CPU = attrgetter("is_cpu")


class Losses(Callback):
    """Log the agent's metrics, averaged over ``every`` updates, and the speed in environment steps per second.

    A metric that only some updates have, such as the loss of a delayed actor, is averaged over these.
    """

    def __init__(self, every: int = 500) -> None:
        if every < 1:
            raise ValueError(f"every is a number of updates, at least 1; got {every}")
        self.every, self._count = every, 0
        self._sums: dict[str, Any] = {}  # numbers; of what is on a device, tensors there
        self._terms: Counter[str] = Counter()

    def on_train_start(self, ctx: Context) -> None:
        """Start the clock."""
        self._time, self._step = time.perf_counter(), ctx.step

    def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
        """Add the metrics on their device; bring them to the host only when they are logged.

        Raises TypeError unless they are 0-D tensors by name.
        """
        if not metrics or not metrics.keys() <= self._sums.keys():
            require_metrics(metrics)
            for name, value in metrics.items():
                self._sums.setdefault(name, 0.0 if value.is_cpu else torch.zeros_like(value))
        if all(map(IS_CPU, metrics.values())):
            for name, value in metrics.items():
                self._sums[name] += value.item()
        else:
            for name, value in metrics.items():
                if not isinstance(self._sums[name], Tensor):  # loaded, or of the host until now
                    self._sums[name] = torch.full_like(value, self._sums[name])
            torch._foreach_add_([self._sums[name] for name in metrics], [*metrics.values()])
        for name in metrics:
            self._terms[name] += 1
        self._count += 1
        if self._count % self.every:
            return
        averages = [total.double() / self._terms[name] for name, total in self._tensors().items()]
        means = torch.stack(averages).tolist() if averages else []
        now = time.perf_counter()
        speed = (ctx.step - self._step) / (now - self._time)
        self._time, self._step = now, ctx.step
        ctx.log({**{f"losses/{n}": v for n, v in zip(self._sums, means, strict=True)}, "charts/SPS": speed})
        self._sums.clear()
        self._terms.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return what has come in since the last row."""
        return {"count": self._count, "terms": dict(self._terms), "sums": self._tensors()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._count, self._terms = state["count"], Counter(state["terms"])
        self._sums = {name: value.item() if value.is_cpu else value.clone() for name, value in state["sums"].items()}

    def _tensors(self) -> dict[str, Tensor]:
        """Return copies of the sums as 0-D tensors; of numbers float64."""
        return {
            name: one.clone() if isinstance(one, Tensor) else torch.tensor(one, dtype=torch.float64, device="cpu")
            for name, one in self._sums.items()
        }


def require_metrics(metrics: Any) -> None:
    """Raise TypeError unless this is what ``Agent.update`` has to return."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"update() of the agent must return a dict of 0-D tensors, got {type(metrics).__name__}")
    for name, value in metrics.items():
        if not isinstance(value, Tensor) or value.dim():
            raise TypeError(f"update() of the agent must return 0-D tensors, {name} is {value!r}")
