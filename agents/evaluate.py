"""Evaluation of an agent: whole episodes with deterministic actions, in environments of their own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from plasticity.callback import Callback, Context, fire, listeners

from .aside import evaluating
from .protocol import Agent, Env

MAX_STEPS_PER_EPISODE = 27_000
"""Decisions after which an episode of an evaluation is cut, unless told otherwise: half an hour of an Atari game.

An environment that ends its own episodes later than that is left to do so.
"""


class EvaluationStopped(Exception):
    """An evaluation was given up because the run is to stop."""


def evaluate(
    agent: Agent,
    env: Env,
    episodes: int = 10,
    max_steps: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    look: Callable[[Any], None] | None = None,
) -> Tensor:
    """Return the returns of ``episodes`` episodes of the deterministic policy, (episodes,) float64.

    Every environment plays its share from its first episode on, so that short episodes do not crowd out long ones.
    Networks are in evaluation mode meanwhile, and nothing of them changes. An episode is cut after ``max_steps``
    decisions, and a warning says so; its return is of that part. None: 27,000, or the environment's own longer limit.
    ``look`` gets every transition, which it must not keep without a copy.

    Raises EvaluationStopped as soon as ``stop()``, and ValueError unless ``episodes`` is a multiple of the number of
    environments.
    """
    if episodes < 1 or episodes % env.num_envs:
        raise ValueError(f"episodes must be a multiple of the {env.num_envs} evaluation environments, got {episodes}")
    if max_steps is None:
        max_steps = max(MAX_STEPS_PER_EPISODE, getattr(env, "episode_limit", None) or 0)
    with evaluating(agent.networks.values()):
        finished, num_cut = _play(agent, env, episodes // env.num_envs, max_steps, stop, look)
    if num_cut:
        warnings.warn(
            f"{num_cut} of {episodes} evaluation episodes of {env.name} did not end within {max_steps:,} steps and "
            "were cut: their returns are of that part; --eval-max-steps sets the number",
            RuntimeWarning,
            stacklevel=2,
        )
    return torch.tensor([r for returns in finished for r in returns], dtype=torch.float64, device="cpu")


def _play(
    agent: Agent,
    env: Env,
    share: int,
    max_steps: int,
    stop: Callable[[], bool],
    look: Callable[[Any], None] | None,
) -> tuple[list[list[float]], int]:
    """Return the returns of the first ``share`` episodes of every environment, and how many of them were cut."""
    finished: list[list[float]] = [[] for _ in range(env.num_envs)]
    running = torch.zeros(env.num_envs, dtype=torch.float64, device="cpu")
    begun, step, num_cut = [0] * env.num_envs, 0, 0  # when the running episodes began
    obs = env.reset()
    while any(len(returns) < share for returns in finished):
        transition = env.step(agent.act(obs, explore=False))
        running += transition.reward.double().cpu()
        done = transition.terminated | transition.truncated
        obs, step = transition.next_obs, step + 1
        if stop():
            raise EvaluationStopped
        if step - min(begun) >= max_steps:
            late = torch.tensor([step - start >= max_steps for start in begun], device=done.device) & ~done
            num_cut += sum(len(finished[index]) < share for index in late.nonzero().flatten().tolist())
            transition.truncated, done = transition.truncated | late, done | late
        if look is not None:
            look(transition)
        if True in done.tolist():
            for index in done.nonzero().flatten().tolist():
                finished[index].append(float(running[index]))
                running[index], begun[index] = 0, step
            obs = env.reset(done)
    return [returns[:share] for returns in finished], num_cut


class Evaluate(Callback):
    """Evaluate every ``every`` environment steps; log the mean and the standard deviation of the returns.

    Call :meth:`run` after training for a last evaluation, which is left out where the last step had one anyway.
    ``make_env``: makes the evaluation environment anew each time, so that every evaluation plays the same starts and
    training is never disturbed. ``max_steps``: see :func:`evaluate`. Once ``stop()``, an evaluation is given up; a
    resumed run makes it up at its next step. Where it has tasks, it plays those of training (``ctx.task``), if it has
    ``set_task``.
    """

    def __init__(
        self,
        agent: Agent,
        make_env: Callable[[], Env],
        every: int = 10_000,
        episodes: int = 10,
        max_steps: int | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.agent, self.make_env, self.every, self.episodes = agent, make_env, every, episodes
        self.max_steps, self.stop = max_steps, stop
        self.last: Tensor | None = None
        self._next = every
        self._step = -1
        self._warned = False

    def on_step(self, ctx: Context, transition: object) -> None:
        """Evaluate when it is due."""
        if ctx.step >= self._next and self.run(ctx):
            self._next += self.every

    def run(self, ctx: Context) -> bool:
        """Evaluate now, unless this step was evaluated already; return False where the evaluation was given up."""
        if ctx.step == self._step:
            return True
        env = self.make_env()
        self._choose_task(env, ctx.task)
        try:
            self.last = evaluate(self.agent, env, self.episodes, self.max_steps, self.stop, self._look(ctx))
        except EvaluationStopped:
            return False
        finally:
            env.close()
        self._step = ctx.step
        spread = float(self.last.std()) if len(self.last) > 1 else 0.0
        ctx.log({"charts/eval_return": float(self.last.mean()), "charts/eval_return_std": spread})
        fire(listeners(ctx.started, "on_evaluation_end"), "on_evaluation_end", ctx)
        return True

    def _look(self, ctx: Context) -> Callable[[Any], None] | None:
        """Return what shows each transition to the callbacks that listen; None without any."""
        there = listeners(ctx.started, "on_evaluation_step")
        return partial(fire, there, "on_evaluation_step", ctx) if there else None

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
