"""A whole training run as one state, the way back from it, and the callback that writes it to a checkpoint."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from plasticity.callback import Callback, Context, noting
from plasticity.storage.files import LOCK
from plasticity.storage.folder import Checkpoints
from plasticity.storage.randomness import random_state, restore_random_state
from plasticity.storage.rows import METRICS_FILE
from plasticity.tags import is_timed


def snapshot(ctx: Context, agent: Any, env: Any, callbacks: Mapping[str, Callback]) -> dict[str, Any]:
    """Return the state of everything that has one; valid between two steps, and the same for equal runs."""
    buffer = getattr(agent, "buffer", None)
    return {
        "step": ctx.step,
        "task": ctx.task,
        "num_tasks": ctx.num_tasks,
        "latest": {tag: value for tag, value in ctx.latest.items() if not is_timed(tag)},
        "logged": dict(ctx.logged),
        "agent": agent.state_dict(),
        "buffer": None if buffer is None else buffer.state_dict(),
        "env": env.state_dict(),
        "callbacks": {name: callback.state_dict() for name, callback in callbacks.items()},
    }


def restore(state: Mapping[str, Any], agent: Any, env: Any) -> Tensor:
    """Load the agent, its buffer and the environment from :func:`snapshot`; warn of episodes that were given up.

    Returns which ones, (environments,) bool. The callbacks' states are for :func:`plasticity.callback.start`.
    """
    with noting("raised while loading the state of the agent"):
        agent.load_state_dict(state["agent"])
    if state["buffer"] is not None:
        agent.buffer.load_state_dict(state["buffer"])
    lost: Tensor = env.load_state_dict(state["env"])
    if lost.any():
        number = int(lost.sum())
        warnings.warn(
            f"{env.name} does not play the same again: {number} of {len(lost)} running episodes were given up, and "
            "training goes on with new ones; an environment that keeps state beyond its episodes needs state_dict() "
            "and load_state_dict() to go on from it",
            RuntimeWarning,
            stacklevel=2,
        )
    return lost


class Randomness(Callback):
    """Save and restore the global random generators; the last of all callbacks, so that none draws after it."""

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the global generators."""
        return random_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        restore_random_state(state)


class Present(Callback):
    """Stop a run whose folder, record of rows or lock vanished, moved or was replaced.

    Its rows would be lost, or a second process could write among them. Looks once a second; :class:`Save` looks before
    every checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places, self._looked = (
            {folder / name: _place(folder / name) for name in (METRICS_FILE, LOCK)},
            time.monotonic(),
        )

    def on_step_end(self, ctx: Context) -> None:
        """Look whether it is time."""
        if time.monotonic() - self._looked > 1.0:
            self.check()

    def check(self) -> None:
        """Raise RuntimeError with the name of the folder if it is not what it was."""
        self._looked = time.monotonic()
        for path, place in self._places.items():
            if _place(path) != place:
                raise RuntimeError(
                    f"{path} vanished, moved or was replaced while {self.folder} was training; the run stops, as what "
                    "it writes would be lost, or mixed with what another process writes: put the folder back, and go "
                    "on from its last checkpoint with --resume"
                )


def _place(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another of its name; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


class Save(Callback):
    """Write a checkpoint every ``every`` environment steps (0: never), at the last one, and whenever ``stop()``.

    One that cannot be written, on a full disk for example, is given up with a warning and training goes on; only
    where the run is to stop, the OSError passes through. Networks that are not finite are never written: they raise
    FloatingPointError, and the older checkpoints stay.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        every: int,
        last_step: int,
        state: Callable[[Context], tuple[dict[str, Any], float | None]],
        stop: Callable[[], bool] = lambda: False,
        present: Present | None = None,
    ) -> None:
        self.checkpoints, self.every, self.last_step, self.state, self.stop = checkpoints, every, last_step, state, stop
        self.present = present
        self.stopped = False
        """True once the state was saved because of ``stop()``: a loop that asks this never ends without."""
        self._next = 0

    def on_train_start(self, ctx: Context) -> None:
        """Find the next multiple of ``every``."""
        self._next = (ctx.step // self.every + 1) * self.every if self.every else 0

    def on_step_end(self, ctx: Context) -> None:
        """Save when it is due."""
        stop = self.stop()
        if not (stop or (self.every and (ctx.step >= self._next or ctx.step >= self.last_step))):
            return
        if self.present is not None:
            self.present.check()
        if stop:
            require_finite(ctx)
            self.checkpoints.save(ctx.step, *self.state(ctx))
            self.stopped = True
        else:
            self.on_train_start(ctx)
            require_finite(ctx)
            try:
                self.checkpoints.save(ctx.step, *self.state(ctx))
            except OSError as error:
                warnings.warn(f"{error}; training goes on without it", RuntimeWarning, stacklevel=2)


def require_finite(ctx: Context) -> None:
    """Raise FloatingPointError naming network and parameter unless all parameters are finite."""
    for name, network in ctx.networks.items():
        for key, parameter in network.named_parameters():
            if not parameter.isfinite().all():
                raise FloatingPointError(
                    f"{name}.{key} is not finite, so no checkpoint is written: go back to the last one, and look at "
                    "rewards, observations and learning rates"
                )
