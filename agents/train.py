"""The training loop: it joins an agent, an environment and callbacks, and knows nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from plasticity.callback import Callback, Context, end, fire, listeners, note, start, start_task

from .protocol import Agent, Env
from .rows import as_array, ended, successors

LENT = (
    "buffer", "value", "state_value", "discount", "reward_factor", "td_error", "set_noise", "set_replay_ratio",
    "set_horizon", "set_exploitation", "forward", "peek",
)  # fmt: skip
"""Attributes of an agent that a context passes on where the agent has them."""


def context(agent: Agent, **lent: Any) -> Context:
    """Return the context that the loop lends to callbacks: the agent's networks, optimizers and optional parts."""
    optional = {name: value for name in LENT if (value := getattr(agent, name, None)) is not None}
    if isinstance(steps := getattr(agent, "steps", None), Mapping):
        optional["steps"] = steps
    targets = getattr(agent, "targets", {})
    return Context(agent.networks, agent.optimizers, targets, name=agent.name, **optional, **lent)


def train(
    env: Env,
    agent: Agent,
    steps: int,
    callbacks: Sequence[Callback] = (),
    ctx: Context | None = None,
    stop: Callable[[], bool] = lambda: False,
    saved: Sequence[Mapping[str, Any] | None] | None = None,
    load: Callable[[], Tensor | None] | None = None,
) -> Context:
    """Train ``agent`` in ``env`` for ``steps`` environment steps (of all environments together); return the context.

    Callbacks start in the order of :func:`plasticity.callback.start`, which ``saved`` and ``load`` go to, and their
    events fire as in ``docs/events.md``. Every callback that was started gets its ``on_train_end``, the last one first,
    also when ``stop()`` or an exception ends training early; the exception passes through with a note of the step and
    the environment. Training that goes on with the same ``ctx`` goes on with the states of its callbacks. TypeError
    where they are given the other way round.
    """
    if not hasattr(agent, "act"):
        raise TypeError(f"train takes an environment, then an agent; got {type(env).__name__}, {type(agent).__name__}")
    ctx = ctx or context(agent)
    ctx.interrupted = True  # until proven otherwise
    start(callbacks, ctx, saved, load)
    try:
        _loop(env, agent, steps, callbacks, ctx, stop)
    except Exception as error:
        note(error, f"at step {ctx.step:,} of {env.name}")
        raise
    finally:
        end(callbacks, ctx)
    return ctx


def _loop(
    env: Env, agent: Agent, steps: int, callbacks: Sequence[Callback], ctx: Context, stop: Callable[[], bool]
) -> None:
    events = ("on_task_start", "on_step", "on_update_start", "on_update_end", "on_step_end")
    task_start, step, update_start, update_end, step_end = (listeners(callbacks, event) for event in events)
    arrays = getattr(agent, "takes_arrays", False) and getattr(env, "takes_arrays", False)
    by_mask = getattr(env, "resets_by_mask", False)  # on a device, where looking into the mask means to wait for it
    obs = env.obs if ctx.step else env.reset()  # a resumed run goes on in the middle of its episodes
    obs = as_array(obs) if arrays else obs
    has_tasks = getattr(env, "task", None) is not None
    while ctx.step < steps and not stop():
        if has_tasks:
            start_task(task_start, ctx, env.task)
        transition = env.step(agent.act(obs, explore=True))
        ctx.step += env.num_envs
        fire(step, "on_step", ctx, transition)
        agent.observe(transition)
        done = transition.terminated | transition.truncated if by_mask else ended(transition)
        obs = successors(transition, arrays) if done is None else env.reset(done)
        while agent.ready():
            fire(update_start, "on_update_start", ctx)
            metrics = agent.update()
            fire(update_end, "on_update_end", ctx, metrics)
        if step_end:
            fire(step_end, "on_step_end", ctx)
    ctx.interrupted = ctx.step < steps
