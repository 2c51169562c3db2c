"""The remaining time of a run, from its pace since it learns: steps of a warm-up are much faster."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

PACE_SECONDS = 120.0
"""Seconds over which the pace is taken: compiled updates begin in mid-run, and evaluations come now and then."""
SPACING = 0.5
"""Seconds between two moments that are remembered."""
FEW_STEPS = 10
"""Steps that say nothing of the pace by themselves: in the first of them graphs are traced or compiled."""


class Pace:
    """Steps and times of a run: :meth:`at` takes them in, :meth:`left` says how long it still takes."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self.learns = False
        self._moments: deque[tuple[float, int]] = deque()

    def begin_learning(self, step: int, now: float) -> None:
        """Forget the warm-up, at the first update; later calls do nothing."""
        if not self.learns:
            self.learns = True
            self._moments.clear()
            self._moments.append((now, step))

    def pause(self) -> None:
        """Forget the pace: the run was stopped, and goes on now."""
        self._moments.clear()

    def at(self, step: int, now: float) -> None:
        """Take in that ``step`` was reached at ``now``, in seconds of any clock."""
        if self._moments and now < self._moments[-1][0]:
            self.pause()  # the clock was set
        if not self._moments or now - self._moments[-1][0] >= SPACING:
            self._moments.append((now, step))
        while len(self._moments) > 2 and now - self._moments[1][0] > PACE_SECONDS:
            self._moments.popleft()

    def left(self, step: int, now: float) -> float | None:
        """Return the seconds from ``now`` on until the last step; None while that cannot be told."""
        if step >= self.total_steps:
            return 0.0
        if not self.learns or len(self._moments) < 2:
            return None
        gaps = sorted((end - begin, last - first) for (begin, first), (end, last) in pairwise(self._moments))
        if len(gaps) > 1 and gaps[-1][0] > sum(seconds for seconds, _ in gaps[:-1]):
            gaps.pop()  # longer than all others together: graphs were compiled
        seconds, steps = (sum(parts) for parts in zip(*gaps, strict=True))
        if steps < (FEW_STEPS if len(gaps) == 1 else 1):
            return None
        end, last = self._moments[-1]
        return max(0.0, (self.total_steps - last) * seconds / steps - (now - end))

    def text(self, step: int, now: float) -> str:
        """Return the remaining time in words: ``warm-up`` before the first update, empty before anything is known."""
        left = self.left(step, now)
        if left is None:
            return "" if self.learns else "warm-up"
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"
