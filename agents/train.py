"""The loop that joins an agent, an environment and callbacks. It knows nothing else: watchers observe it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from plasticity.callback import Callback, Context, fire

from .protocol import Agent, Env


def context(agent: Agent, **lent: Any) -> Context:
    """Return what the loop lends to callbacks: the agent's networks, optimizers, buffer and value function."""
    return Context(
        networks=agent.networks,
        optimizers=agent.optimizers,
        buffer=getattr(agent, "buffer", None),
        value=getattr(agent, "value", None),
        name=agent.name,
        **lent,
    )


def train(
    env: Env,
    agent: Agent,
    steps: int,
    callbacks: Sequence[Callback] = (),
    ctx: Context | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Context:
    """Train ``agent`` in ``env`` for ``steps`` environment steps (each parallel environment counts); return the context.

    Callbacks fire in order at the five events of ``docs/events.md``; ``on_train_end`` also when an exception, which
    passes through, or ``stop()`` ends training early.
    """
    ctx = ctx or context(agent)
    try:
        fire(callbacks, "on_train_start", ctx)
        obs = env.reset()
        while ctx.step < steps and not stop():
            transition = env.step(agent.act(obs, explore=True))
            ctx.step += env.num_envs
            fire(callbacks, "on_step", ctx, transition)
            agent.observe(transition)
            done = transition.terminated | transition.truncated
            obs = env.reset(done) if done.any() else transition.next_obs
            while agent.ready():
                fire(callbacks, "on_update_start", ctx)
                metrics = agent.update()
                fire(callbacks, "on_update_end", ctx, metrics)
    finally:
        fire(callbacks, "on_train_end", ctx)
    return ctx
