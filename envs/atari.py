"""Atari 2600 games through ale-py: four grey frames of 84 x 84, sticky actions.

Bellemare et al. 2013, "The Arcade Learning Environment", arXiv 1207.4708; sticky actions after Machado et al. 2018,
"Revisiting the Arcade Learning Environment", arXiv 1709.06009. ale-py is under the GPL, so it is an optional dependency
and is imported when a game is made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from . import extras
from .family import Family

PREFIX = "atari/"
# Gymnasium's names, as in "ALE/Breakout-v5"; they have other settings there, see `make_atari`.
ALE_PREFIX, ALE_SUFFIX = "ALE/", "-v5"
STICKY = 0.25
MAX_FRAMES = 108_000  # 30 minutes of play, the limit that the field uses
SEED_MASK = 0x7FFFFFFF  # ale-py takes 31 bits
# ROMs with a mode for two players only.
TWO_PLAYERS = {"combat", "joust", "maze_craze", "warlords"}


class Atari(VectorWrapper):
    """Give ale-py's vector environment the reset that `GymEnv` asks for.

    Its mode NEXT_STEP resets a game in the step after its last, and it has no mode that never does. GymEnv refuses that
    step until a reset by mask, after which the next step is a real one: `next_obs` is always the true successor.
    """

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes of all, or of those in `options["reset_mask"]`; of a seed the 31 low bits count."""
        return self.env.reset(seed=None if seed is None else np.array(seed) & SEED_MASK, options=options)

    def close(self, **kwargs: Any) -> None:
        """Stop the threads that play, which ale-py does when nothing refers to its interface."""
        super().close(**kwargs)
        games: Any = self.env
        games.ale = None


def make_atari(name: str, num_envs: int, action_repeat: int, max_frames: int | None = None) -> VectorEnv:
    """Make `num_envs` copies of the game `name`; see docs/environments.md.

    Observations are (4, 84, 84) uint8: the last four decisions in grey, oldest first, each the maximum of the last two
    frames. An action, of the game's minimal set, lasts `action_repeat` frames, each of which repeats the
    action before with probability 0.25. An episode begins with up to 30 frames without an action and, where the game
    has the button, with fire; it ends when all lives are lost. Rewards are the points of the game, not clipped.
    """
    from ale_py.vector_env import AtariVectorEnv

    game = find_game(name)
    if game is None:
        raise ValueError(f"{name} is no game of ale-py")
    games = AtariVectorEnv(
        game,
        num_envs,
        autoreset_mode=AutoresetMode.NEXT_STEP,
        frameskip=action_repeat,
        max_num_frames_per_episode=max_frames or MAX_FRAMES,
        repeat_action_probability=STICKY,
        reward_clipping=False,
    )
    return Atari(games)


def find_game(name: str) -> str | None:
    """Return the ROM of "atari/<rom>" or "ALE/<Game>-v5"; None if there is none.

    Raises ModuleNotFoundError without the extra "atari" for a name that has one of these forms.
    """
    name = name.removeprefix("ale_py:")
    if name.startswith(PREFIX):
        game = name.removeprefix(PREFIX)
    elif name.startswith(ALE_PREFIX) and name.endswith(ALE_SUFFIX):
        game = name.removeprefix(ALE_PREFIX).removesuffix(ALE_SUFFIX)
    else:
        return None
    extras.require_extra("atari", name)
    return next((rom for rom in _roms() if game in (rom, rom.title().replace("_", ""))), None)


def atari_ids() -> list[str]:
    """List the games as "atari/<rom>"; none without the extra "atari"."""
    return [f"{PREFIX}{rom}" for rom in _roms()] if extras.installed("atari") else []


def _roms() -> list[str]:
    from ale_py import roms

    return sorted(set(roms.get_all_rom_ids()) - TWO_PLAYERS)


FAMILY = Family(
    PREFIX, atari_ids, action_repeat=4, make_vector=make_atari, accepts=lambda name: find_game(name) is not None
)
