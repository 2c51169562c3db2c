"""Environments: batches of tensors that are reset only when told to.

    env = make_env("dmc/cartpole-swingup", num_envs=4, seed=1)
    obs = env.reset()
    transition = env.step(action)
    obs = env.reset(transition.terminated | transition.truncated)

Nothing here imports dm_control, MuJoCo, MinAtar or ale-py before an environment needs it.
"""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
from gymnasium.vector import VectorEnv

from . import atari, dmc, minatar_games, pixels, sanity
from .extras import missing_extras
from .graphics import set_default_gl
from .gym import GymEnv, find_spec, gymnasium_ids, make_gymnasium
from .journal import Journal
from .names import unknown_name
from .serial import serial
from .transition import Env, Transition
from .wrappers import adapt, repeat_actions

__all__ = ["ENVS", "Env", "Transition", "make_env", "missing_extras"]

ENVS: dict[str, Callable[[], list[str]]] = {
    "dmc": dmc.dmc_ids,
    "dmc-pixels": pixels.pixel_ids,
    "minatar": minatar_games.minatar_ids,
    "atari": atari.atari_ids,
    "sanity": sanity.sanity_ids,
    "gymnasium": gymnasium_ids,
}
"""Family -> a function that lists its ids; what `plasticity list envs` prints."""

DMC = (dmc.PREFIX, pixels.PREFIX)


def make_env(
    name: str,
    *,
    num_envs: int = 1,
    seed: int = 0,
    device: str = "cpu",
    action_repeat: int | None = None,
    max_episode_steps: int | None = None,
) -> Env:
    """Make `num_envs` environments of one kind; docs/environments.md has a table of the names.

    Args: `seed`, the root from which every environment and the action space get their own; `action_repeat`, the
    simulator steps per decision (default: 2 for dm_control, as in most published results, 4 for Atari, 1 elsewhere);
    `max_episode_steps`, in simulator steps, replaces the environment's own limit.
    Raises ValueError for an unknown id (with the nearest one) and for a space that cannot be used, ModuleNotFoundError
    for a package that is missing, RuntimeError where images cannot be rendered.
    """
    for what, count in (
        ("num_envs", num_envs),
        ("action_repeat", action_repeat),
        ("max_episode_steps", max_episode_steps),
    ):
        if count is not None and count < 1:
            raise ValueError(f"{what} must be at least 1, got {count}")
    make_vector = _vector(name, action_repeat, max_episode_steps)
    if make_vector is None:
        raise ValueError(unknown_name(name, [one for ids in ENVS.values() for one in ids()]))
    set_default_gl()
    return GymEnv(name, make_vector, num_envs, seed, device)


def _vector(name: str, action_repeat: int | None, limit: int | None) -> Callable[[list[int]], VectorEnv] | None:
    """Return what makes an environment `name` for each of some seeds; None if no family has it."""
    game = atari.find_game(name)
    if game is not None:
        return lambda seeds: atari.make_atari(game, len(seeds), action_repeat, limit)
    make = _family(name)
    if make is None:
        return None

    def make_one(seed: int) -> gymnasium.Env:
        env = repeat_actions(make(name, seed, limit), action_repeat or (2 if name.startswith(DMC) else 1))
        return Journal(adapt(pixels.see(env, name) if name.startswith(pixels.PREFIX) else env, name))

    return serial(make_one)


def _family(name: str) -> Callable[[str, int, int | None], gymnasium.Env] | None:
    """Return what makes one environment `name`; None if no family has it."""
    if name.startswith(DMC):
        return dmc.make_dmc if dmc.find_task(name) else None
    if name.startswith(minatar_games.PREFIX):
        return minatar_games.make_minatar if minatar_games.has_game(name) else None
    if name.startswith(sanity.PREFIX):
        return sanity.make_sanity if name in sanity.sanity_ids() else None
    return make_gymnasium if find_spec(name) else None
