"""Suggest the nearest name for one that is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(name: str, known: Iterable[str], prefixes: Iterable[str]) -> str:
    """Return the error message for an id: the nearest of the `known` ones, if any is near, and the prefixes there are.

    `name` itself is never suggested.
    """
    known = list(known)
    full = {_key(one): one for one in known if one != name}
    # Without its family too: "cheetah-run" should find "dmc/cheetah-run". Full names win where both exist, and of two
    # families the one that comes first.
    keys = {key.rpartition("/")[2]: one for key, one in reversed(full.items()) if "/" in key} | full
    versions = [key for key in full if key.startswith(f"{_key(name)}-v")]  # "CartPole" is Gymnasium's, without version
    close = versions[-1:] or difflib.get_close_matches(_key(name), keys, n=1, cutoff=0.6)
    hint = f'; did you mean "{keys[close[0]]}"?' if close else "."
    forms = ", ".join(f'"{prefix}"' if prefix in known else f'"{prefix}<name>"' for prefix in prefixes if prefix)
    return (
        f'no environment is called "{name}"{hint} Names are {forms} and Gymnasium ids, with the module to import in '
        'front if another package registers them ("minigrid:MiniGrid-Empty-5x5-v0").'
    )


def _key(name: str) -> str:
    return name.lower().replace("_", "-")
