"""Environments: batches of tensors that are reset only when told to.

    env = make_env("dmc/cartpole-swingup", num_envs=4, seed=1)
    obs = env.reset()
    transition = env.step(action)
    obs = env.reset(transition.terminated | transition.truncated)

Nothing here imports dm_control or MuJoCo before an environment needs it.
"""

from __future__ import annotations

from collections.abc import Callable

import gymnasium

from . import dmc, sanity
from .graphics import set_default_gl
from .gym import GymEnv, find_spec, gymnasium_ids, make_gymnasium
from .names import unknown_name
from .transition import Env, Transition
from .wrappers import adapt

__all__ = ["ENVS", "Env", "Transition", "make_env"]

ENVS: dict[str, Callable[[], list[str]]] = {
    "dmc": dmc.dmc_ids,
    "sanity": sanity.sanity_ids,
    "gymnasium": gymnasium_ids,
}
"""Family -> a function that lists its ids; what `plasticity list envs` prints."""


def make_env(
    name: str,
    *,
    num_envs: int = 1,
    seed: int = 0,
    device: str = "cpu",
    action_repeat: int | None = None,
    max_episode_steps: int | None = None,
) -> Env:
    """Make `num_envs` environments of one kind: "dmc/<domain>-<task>", "sanity/<name>" or any Gymnasium id.

    Args: `seed`, the root from which every environment and the action space get their own; `action_repeat`, the
    simulator steps per decision (default: 2 for dm_control, as in most published results, 1 elsewhere);
    `max_episode_steps`, in simulator steps, replaces the environment's own limit.
    Raises ValueError for an unknown id (with the nearest one) and for a space that cannot be used.
    """
    if action_repeat is None:
        action_repeat = 2 if name.startswith(dmc.PREFIX) else 1
    limit = 1 if max_episode_steps is None else max_episode_steps
    for what, count in (("num_envs", num_envs), ("action_repeat", action_repeat), ("max_episode_steps", limit)):
        if count < 1:
            raise ValueError(f"{what} must be at least 1, got {count}")
    make = _family(name)
    if make is None:
        raise ValueError(unknown_name(name, [one for ids in ENVS.values() for one in ids()]))
    set_default_gl()

    def make_one(env_seed: int) -> gymnasium.Env:
        return adapt(make(name, env_seed, max_episode_steps), name, action_repeat)

    return GymEnv(name, make_one, num_envs, seed, device)


def _family(name: str) -> Callable[[str, int, int | None], gymnasium.Env] | None:
    """Return what makes one environment `name`; None if no family has it."""
    if name.startswith(dmc.PREFIX):
        return dmc.make_dmc if dmc.find_task(name) else None
    if name.startswith(sanity.PREFIX):
        return sanity.make_sanity if name in sanity.sanity_ids() else None
    return make_gymnasium if find_spec(name) else None
