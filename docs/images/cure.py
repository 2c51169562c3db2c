"""Draw the README's picture: a collapse on a stream of tasks, and its cure. It reads the runs of

plasticity bench cgym-short --envs cgym-short/cartpole --methods none,l2-init --seeds 3 --jobs 2 --num-tasks 5
python docs/images/cure.py runs/bench/cgym-short/cgym-short-cartpole
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

from plasticity.storage.rows import read_metrics

mpl.use("agg")
import matplotlib.pyplot as plt

TASK_STEPS, NUM_TASKS, PART = 32_000, 5, 2_000
METHODS = {"none": ("without a method", "#b2182b"), "l2-init": ("with --l2-init", "#2166ac")}
PANELS = {
    "charts/episodic_return": "return of training episodes",
    "plasticity/actor/effective_rank/all": "effective rank of the actor",
    "plasticity/actor/dormancy/all": "dormant neurons of the actor",
}


def curve(folder: Path, tag: str, part: int) -> np.ndarray:
    """Return the mean of a tag in every `part` steps, NaN where it was not logged."""
    rows = [(row["step"], row[tag]) for row in read_metrics(folder) if tag in row]
    steps, values = np.array(rows).T
    places = ((steps - 1) // part).astype(int)
    return np.array(
        [values[places == i].mean() if (places == i).any() else np.nan for i in range(TASK_STEPS * NUM_TASKS // part)]
    )


def main(folder: Path) -> None:
    """Write cure.png beside this file: lines are means over seeds, bands from the least to the greatest."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 2.9), layout="constrained")
    for axis, (tag, title) in zip(axes, PANELS.items(), strict=True):
        part = PART if tag.startswith("charts") else 4 * PART  # one measurement in 6,400 steps
        for method, (label, colour) in METHODS.items():
            runs = np.stack([curve(run, tag, part) for run in sorted((folder / method).glob("seed_*")) if run.is_dir()])
            steps = (np.arange(runs.shape[1]) + 0.5) * part / 1000
            axis.plot(steps, runs.mean(0), color=colour, label=label)
            axis.fill_between(steps, runs.min(0), runs.max(0), color=colour, alpha=0.2, linewidth=0)
        for task in range(1, NUM_TASKS):
            axis.axvline(task * TASK_STEPS / 1000, color="0.7", linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel="thousand steps; dotted: a new task", ylim=(0, 0.5 if "dormancy" in tag else None))
    axes[2].legend(loc="upper right")
    figure.savefig(Path(__file__).parent / "cure.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
