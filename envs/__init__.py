"""Environments: batches of tensors that are reset only when told to.

    env = make_env("dmc/cartpole-swingup", num_envs=4, seed=1)
    obs = env.reset()
    transition = env.step(action)
    obs = env.reset(transition.terminated | transition.truncated)

Nothing here imports dm_control, MuJoCo, MinAtar or ale-py before an environment needs it.
"""

from __future__ import annotations

from . import atari, dmc, examples, goals, gym, minatar_games, offsets, permuted, physics, pixels, sanity, sequences
from .extras import missing_extras
from .family import Family
from .graphics import set_default_gl
from .gym import GymEnv
from .names import unknown_name
from .stream import TaskPlan
from .transition import Env, Transition

__all__ = ["ENVS", "Env", "Family", "TaskPlan", "Transition", "find_family", "is_stream", "make_env",
           "missing_extras"]  # fmt: skip

ENVS: dict[str, Family] = {
    "dmc": dmc.FAMILY,
    "dmc-pixels": pixels.FAMILY,
    "minatar": minatar_games.FAMILY,
    "atari": atari.FAMILY,
    "sanity": sanity.FAMILY,
    "goals": goals.FAMILY,
    "cgym": offsets.FAMILY,
    "cgym-short": offsets.SHORT_FAMILY,
    "slippery": physics.SLIPPERY,
    "gravity": physics.GRAVITY,
    "mass": physics.MASS,
    "actuator": physics.ACTUATOR,
    "cdmc": sequences.CDMC,
    "cminatar": sequences.CMINATAR,
    "permute": permuted.FAMILY,
    "bitflip": examples.BITFLIP,
    "permuted-digits": examples.PERMUTED_DIGITS,
    "random-labels": examples.RANDOM_LABELS,
    "warm-start": examples.WARM_START,
    "gymnasium": gym.FAMILY,
}
"""Families by name, in the order in which `plasticity list envs` prints them; add your own.

A name belongs to the family with the longest prefix that has it.
"""


def make_env(
    name: str,
    *,
    num_envs: int = 1,
    seed: int = 0,
    device: str = "cpu",
    action_repeat: int | None = None,
    max_episode_steps: int | None = None,
    tasks: TaskPlan | None = None,
) -> Env:
    """Make `num_envs` environments of one kind; docs/environments.md has a table of the names.

    Args: `seed`, the root from which every environment and the action space get their own; `action_repeat`, the
    simulator steps per decision (default: the family's; 2 for dm_control, as in most published results, 4 for Atari, 1
    elsewhere); `max_episode_steps`, in simulator steps, replaces the environment's own limit; `tasks`, the seed, number
    and length of the tasks of a stream (default: the family's, drawn from seed 0).
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
    family = find_family(name)
    set_default_gl()
    return GymEnv(name, family.vector(name, action_repeat, max_episode_steps, tasks), num_envs, seed, device)


def find_family(name: str) -> Family:
    """Return the family of an environment; raise ValueError, with the nearest name, if none has it."""
    for key, family in ENVS.items():
        if not isinstance(family, Family):
            raise TypeError(f"ENVS[{key!r}] must be a Family(prefix, ids, make), got {type(family).__name__}")
    for family in sorted(ENVS.values(), key=lambda family: -len(family.prefix)):
        if family.has(name):
            return family
    known = [one for family in ENVS.values() for one in family.names()]
    raise ValueError(unknown_name(name, known, [family.prefix for family in ENVS.values()]))


def is_stream(name: str) -> bool:
    """Return whether environments of this name are streams of tasks; nothing is imported or made for it."""
    prefixed = [family for family in ENVS.values() if name.startswith(family.prefix)]
    return max(prefixed, key=lambda family: len(family.prefix)).stream is not None
