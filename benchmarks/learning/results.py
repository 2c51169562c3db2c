"""Results of the rows: one JSON file each, a record per seed, written whenever a seed is done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from rows import ROWS

from plasticity.reports.statistics import bootstrap, iqm, median

RESULTS = Path(__file__).parent / "results"


def load(name: str, folder: Path = RESULTS) -> dict[int, dict[str, Any]]:
    """Return the records of a row by seed; those of another command than the row's present one are left out."""
    path = folder / f"{name}.json"
    if not path.exists():
        return {}
    records = {int(seed): record for seed, record in json.loads(path.read_text())["seeds"].items()}
    return {seed: r for seed, r in records.items() if r["command"] == " ".join(ROWS[name].command(seed))}


def add(name: str, seed: int, record: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write the record of one seed beside those that are there, in one step."""
    records = {**load(name, folder), seed: record}
    ordered = {str(key): records[key] for key in sorted(records)}
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{name}.json.partial"
    partial.write_text(json.dumps({"seeds": ordered}, indent=1) + "\n")
    os.replace(partial, folder / f"{name}.json")


def scores(records: dict[int, dict[str, Any]]) -> np.ndarray:
    """Return (seeds,): the mean return of every seed's evaluation episodes."""
    return np.array([np.mean(records[seed]["returns"]) for seed in sorted(records)])


def summary(records: dict[int, dict[str, Any]]) -> dict[str, float]:
    """Return median and interquartile mean over seeds, and the latter's 95 % bootstrap interval (of two or more)."""
    found = [scores(records)]
    values = {"median": float(median(found)), "iqm": float(iqm(found))}
    if len(found[0]) > 1:
        interval = bootstrap(iqm, found)
        values |= {"low": float(interval.low), "high": float(interval.high)}
    return values
