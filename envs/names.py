"""Say which name was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FORMS = (
    'Names are "dmc/<domain>-<task>", "dmc-pixels/<domain>-<task>", "minatar/<game>", "atari/<game>", "sanity/<name>" '
    "and Gymnasium ids, with the module to import in front if another package registers them "
    '("minigrid:MiniGrid-Empty-5x5-v0").'
)


def unknown_name(name: str, known: Iterable[str]) -> str:
    """Return the error message for an id that is not among `known`, with the nearest one if any is near."""
    full = {_key(one): one for one in known}
    # Without its family too: "cheetah-run" should find "dmc/cheetah-run". Full names win where both exist, and of two
    # families the one that comes first.
    keys = {key.rpartition("/")[2]: one for key, one in reversed(full.items()) if "/" in key} | full
    close = difflib.get_close_matches(_key(name), keys, n=1, cutoff=0.6)
    hint = f'; did you mean "{keys[close[0]]}"?' if close else "."
    return f'no environment is called "{name}"{hint} {FORMS}'


def _key(name: str) -> str:
    return name.lower().replace("_", "-")
