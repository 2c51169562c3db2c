"""Evaluation of an agent: whole episodes with deterministic actions, in environments of their own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plasticity.callback import Callback, Context

from .aside import evaluating
from .protocol import Agent, Env
from .rows import any_true


def evaluate(agent: Agent, env: Env, episodes: int = 10) -> Tensor:
    """Return the returns of ``episodes`` episodes of the deterministic policy, (episodes,) float64.

    Every environment plays its share from its first episode on, so that short episodes do not crowd out long ones.
    Networks are in evaluation mode meanwhile, and nothing of them changes.

    Raises ValueError unless ``episodes`` is a multiple of the number of environments.
    """
    if episodes < 1 or episodes % env.num_envs:
        raise ValueError(f"episodes must be a multiple of the {env.num_envs} evaluation environments, got {episodes}")
    with evaluating(agent.networks.values()):
        finished = _play(agent, env, episodes // env.num_envs)
    return torch.tensor([r for returns in finished for r in returns], dtype=torch.float64, device="cpu")


def _play(agent: Agent, env: Env, share: int) -> list[list[float]]:
    """Return the returns of the first ``share`` episodes of every environment."""
    finished: list[list[float]] = [[] for _ in range(env.num_envs)]
    running = torch.zeros(env.num_envs, dtype=torch.float64, device="cpu")
    obs = env.reset()
    while any(len(returns) < share for returns in finished):
        transition = env.step(agent.act(obs, explore=False))
        running += transition.reward.double().cpu()
        done = transition.terminated | transition.truncated
        obs = transition.next_obs
        if any_true(done):
            for index in done.nonzero().flatten().tolist():
                finished[index].append(float(running[index]))
                running[index] = 0
            obs = env.reset(done)
    return [returns[:share] for returns in finished]


class Evaluate(Callback):
    """Evaluate every ``every`` environment steps; log the mean and the standard deviation of the returns.

    Call :meth:`run` after training for a last evaluation, which is left out where the last step had one anyway.
    ``make_env``: makes the evaluation environment anew each time, so that every evaluation plays the same starts and
    training is never disturbed. Where it has tasks, it plays those of training (``ctx.task``), if it has ``set_task``.
    """

    def __init__(self, agent: Agent, make_env: Callable[[], Env], every: int = 10_000, episodes: int = 10) -> None:
        self.agent, self.make_env, self.every, self.episodes = agent, make_env, every, episodes
        self.last: Tensor | None = None
        self._next = every
        self._step = -1
        self._warned = False

    def on_step(self, ctx: Context, transition: object) -> None:
        """Evaluate when it is due."""
        if ctx.step >= self._next:
            self._next += self.every
            self.run(ctx)

    def run(self, ctx: Context) -> None:
        """Evaluate now, unless this step was evaluated already."""
        if ctx.step == self._step:
            return
        env = self.make_env()
        self._choose_task(env, ctx.task)
        try:
            self.last = evaluate(self.agent, env, self.episodes)
        finally:
            env.close()
        self._step = ctx.step
        spread = float(self.last.std()) if len(self.last) > 1 else 0.0
        ctx.log({"charts/eval_return": float(self.last.mean()), "charts/eval_return_std": spread})

    def _choose_task(self, env: Env, task: Tensor | None) -> None:
        """Let the evaluation play the tasks of training; warn once where its environments cannot be set."""
        if task is None:
            return
        tasks = task.repeat(-(-env.num_envs // len(task)))[: env.num_envs]  # each of several in turn
        set_task = getattr(env, "set_task", None)
        if not (set_task is not None and set_task(tasks)) and not self._warned:
            self._warned = True
            warnings.warn(
                f"{env.name} has tasks but no set_task(task): every evaluation plays its first tasks, whichever is "
                "being trained",
                RuntimeWarning,
                stacklevel=2,
            )

    def score_at(self, step: int) -> float | None:
        """Return the mean return of the evaluation at ``step``; None if there was none."""
        return float(self.last.mean()) if self.last is not None and self._step == step else None

    def state_dict(self) -> dict[str, Any]:
        """Return when the next evaluation is due, and the last one."""
        return {"every": self.every, "next": self._next, "step": self._step, "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; with another ``every``, at the next multiple of it."""
        before = state["next"] - state["every"]
        self._next = state["next"] if state["every"] == self.every else (before // self.every + 1) * self.every
        self._step, self.last = state["step"], state["last"]
