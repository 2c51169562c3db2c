"""The loop that joins an agent, an environment and callbacks. It knows nothing else: watchers observe it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from plasticity.callback import Callback, Context, fire, listeners, note

from .protocol import Agent, Env
from .rows import any_true


def context(agent: Agent, **lent: Any) -> Context:
    """Return what the loop lends to callbacks: the agent's networks, optimizers, and whatever else it has to lend."""
    optional = {name: getattr(agent, name, None) for name in ("buffer", "value", "td_error", "set_noise")}
    targets = getattr(agent, "targets", {})
    return Context(agent.networks, agent.optimizers, targets, name=agent.name, **optional, **lent)


def train(
    env: Env,
    agent: Agent,
    steps: int,
    callbacks: Sequence[Callback] = (),
    ctx: Context | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Context:
    """Train ``agent`` in ``env`` for ``steps`` environment steps (of all environments together); return the context.

    Callbacks fire in order at the six events of ``docs/events.md``. Every callback that was started gets its
    ``on_train_end``, the last one first, also when an exception, which passes through with a note of the step and the
    environment, or ``stop()`` ends it early.
    """
    ctx = ctx or context(agent)
    ctx.interrupted = True  # until proven otherwise
    with ExitStack() as ends:
        for callback in callbacks:
            callback.on_train_start(ctx)
            ends.callback(callback.on_train_end, ctx)
        try:
            _loop(env, agent, steps, callbacks, ctx, stop)
        except Exception as error:
            note(error, f"at step {ctx.step:,} of {env.name}")
            raise
    return ctx


def _loop(
    env: Env, agent: Agent, steps: int, callbacks: Sequence[Callback], ctx: Context, stop: Callable[[], bool]
) -> None:
    step, update_start, update_end, step_end = (
        listeners(callbacks, event) for event in ("on_step", "on_update_start", "on_update_end", "on_step_end")
    )
    obs = env.obs if ctx.step else env.reset()  # a resumed run goes on in the middle of its episodes
    while ctx.step < steps and not stop():
        transition = env.step(agent.act(obs, explore=True))
        ctx.step += env.num_envs
        fire(step, "on_step", ctx, transition)
        agent.observe(transition)
        if any_true(transition.terminated) or any_true(transition.truncated):
            obs = env.reset(transition.terminated | transition.truncated)
        else:
            obs = transition.next_obs
        while agent.ready():
            fire(update_start, "on_update_start", ctx)
            metrics = agent.update()
            fire(update_end, "on_update_end", ctx, metrics)
        fire(step_end, "on_step_end", ctx)
    ctx.interrupted = ctx.step < steps
