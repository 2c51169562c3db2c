"""The colours of all pictures: of configurations, and of values; ``palette.js`` of the tab holds the same.

One rule for values: the further from the background, the worse. Lightness rises or falls steadily along each scale, so
it reads in grey and with any colour vision.
"""

from __future__ import annotations

LINE_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07d00", "#56b4e9"),  # Okabe and Ito's, the yellow darkened
    *("#7a3db8", "#8c5a2b", "#d11d5b", "#4d7c0f", "#475569", "#0f8b8d"),
)
"""A colour for each configuration, on a light background."""
WORSE = ("#eef1f4", "#f7d79a", "#ec9a45", "#b4441f", "#4f1014")
"""Colours from 0 to 1, where 1 is bad."""
NEUTRAL = ("#eef1f4", "#b5cde0", "#6d9dc5", "#2f6a9e", "#0f2f52")
"""Colours of a range of which neither end is bad."""
CHANGE = (*reversed(NEUTRAL[1:]), *WORSE)
"""Colours from -1, gained, over 0, unchanged, to 1, lost."""


def shade(t: float, stops: tuple[str, ...] = WORSE) -> str:
    """Return the colour at ``t`` in [0, 1] along ``stops``, as #rrggbb; beyond the ends, that of the end."""
    place = min(max(t, 0.0), 1.0) * (len(stops) - 1)
    i = min(int(place), len(stops) - 2)
    ends = ([int(stop[k : k + 2], 16) for k in (1, 3, 5)] for stop in stops[i : i + 2])
    return "#" + "".join(f"{round(a + (b - a) * (place - i)):02x}" for a, b in zip(*ends, strict=True))
