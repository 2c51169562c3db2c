"""``scores.jsonl``: the score of every neuron at each measurement, a byte each; it grows ever more slowly."""

from __future__ import annotations

import base64
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plasticity.tags import parse_score_tag, score_tag

from .appendfile import AppendFile
from .files import open_plain
from .rows import decode_row, encode_row

SCORES_FILE = "scores.jsonl"
MAX_NEURONS = 512
"""Neurons kept of a layer; of a wider one, that many at equal distances."""
FULL_ROWS = 256
"""Measurements of a layer that are all kept; then every 2nd until twice as many, every 4th until four times, ..."""
LOW, HIGH = -12.0, 4.0
"""Exponents of 2 between which a score has a code of its own; a layer's mean score is 1."""
ZERO, BROKEN = 0, 255
"""Codes of a score of exactly 0 and of a non-finite one."""


def encode(scores: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a code per score, (neurons,): 0 for 0, 255 for non-finite, 1 to 254 in steps of 4.5 % from 2^-12 to 16.

    Scores beyond those bounds get the nearest code; a score below 0 counts as 0.
    """
    finite = np.isfinite(scores)
    positive = finite & (scores > 0)
    exponents = np.log2(scores, where=positive, out=np.full(scores.shape, LOW))
    codes = 1 + np.rint((np.clip(exponents, LOW, HIGH) - LOW) * (253 / (HIGH - LOW)))
    return np.where(positive, codes, np.where(finite, ZERO, BROKEN)).astype(np.uint8)


def decode(codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the score behind each code, NaN for a non-finite one; within 2.3 % of the score encoded."""
    values = np.exp2(LOW + (codes.astype(np.float64) - 1) * ((HIGH - LOW) / 253))
    return np.where(codes == ZERO, 0.0, np.where(codes == BROKEN, np.nan, values))


def thin(num: int) -> NDArray[np.intp]:
    """Return which of ``num`` neurons are kept: all up to ``MAX_NEURONS``, else that many at equal distances."""
    return np.arange(num) if num <= MAX_NEURONS else np.linspace(0, num - 1, MAX_NEURONS).round().astype(np.intp)


def kept(measurement: int) -> bool:
    """Return whether a layer's measurement number ``measurement``, from 0, is written.

    After n measurements the file holds about ``FULL_ROWS * (1 + log2(n / FULL_ROWS) / 2)`` of them.
    """
    return measurement % (1 << (measurement // FULL_ROWS).bit_length()) == 0


def decode_scores(line: str | bytes) -> dict[str, Any] | None:
    """Return the row on a line of the file, a mark of a resumed run included; None where there is none."""
    row = decode_row(line)
    if row is None or "purge_step" in row:
        return row
    names, numbers = (
        (row.get(key) for key in ("network", "probe", "layer")),
        (row.get(key) for key in ("nth", "neurons")),
    )
    whole = all(isinstance(name, str) for name in names) and all(type(n) is int and n >= 0 for n in numbers)
    return row if whole and _num_codes(row.get("codes")) == min(row["neurons"], MAX_NEURONS) else None


def _num_codes(codes: Any) -> int:
    """Return the number of codes in base64; -1 for anything else."""
    try:
        return len(base64.b64decode(codes, validate=True))
    except (ValueError, TypeError):
        return -1


class ScoresFile:
    """Append the scores of a run's neurons to ``scores.jsonl`` in ``folder``; the file appears with the first of them.

    A row is ``{"step", "network", "probe", "layer", "nth", "neurons", "codes"}``: the measurement's number, the
    layer's width, and the codes of the neurons :func:`thin` keeps, in base64. Methods raise OSError.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / SCORES_FILE
        self._seen: Counter[str] = Counter()
        self._file: AppendFile | None = None
        self._start = self._recall() if self.path.exists() else b""
        """Bytes that go before the next row: the end of a torn line, the mark of a resumed run."""

    def resume(self, step: int) -> None:
        """Mark, before the next row, that readers forget the rows of ``step`` and later ones."""
        if self.path.exists():
            mark = {"step": step, "purge_step": step}
            self._start = self._recall(step) + encode_row(mark)

    def append(self, step: int, tag: str, scores: NDArray[np.float64]) -> None:
        """Write the scores, (neurons,), of a tag ``scores/<network>/<probe>/<layer>``, unless this one is left out."""
        nth, names = self._seen[tag], parse_score_tag(tag)
        if kept(nth) and names is not None:
            network, probe, layer = names
            row = {"step": int(step), "network": network, "probe": probe, "layer": layer, "nth": nth}
            codes = base64.b64encode(encode(scores[thin(len(scores))]).tobytes()).decode()
            self._file = self._file or AppendFile(self.path)
            self._file.append(self._start + encode_row({**row, "neurons": len(scores), "codes": codes}))
            self._start = b""
        self._seen[tag] += 1

    def sync(self) -> None:
        """Wait until all rows are on the disk itself."""
        if self._file is not None:
            self._file.sync()

    def close(self) -> None:
        """Close the file; more than once is fine."""
        if self._file is not None:
            self._file.close()

    def _recall(self, purge_step: float = math.inf) -> bytes:
        """Count the measurements before ``purge_step`` that the file holds; return the bytes that end its torn line."""
        self._seen.clear()
        with open_plain(self.path) as file:
            content = file.read()
        for line in content.splitlines():
            row = decode_scores(line)
            if row is not None and "nth" in row and row["step"] < purge_step:
                self._seen[score_tag(row["network"], row["probe"], row["layer"])] = row["nth"] + 1
        return b"" if not content or content.endswith(b"\n") else b"\n"
