"""``plasticity compare``: configurations over seeds and environments, with intervals."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from plasticity.tags import EVAL_RETURN

from .arguments import read_arguments


@dataclass(frozen=True)
class CompareConfig:
    """Compare configurations over seeds: aggregate scores, probability of improvement, performance profiles.

    Runs that differ in their seed only are one configuration. Without --normalise, every environment is compared by
    itself. Prints Markdown. Intervals come from a stratified
    bootstrap over runs (Agarwal et al. 2021).
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, or folders that hold some."""
    metric: str = EVAL_RETURN
    """Tag whose value is the score of a run; higher is better."""
    at: Literal["last", "best", "auc"] = "last"
    """Score of a run: its last value, its highest, or the mean over steps."""
    until: int | None = None
    """Count values up to this step, of all runs that came so far, finished or not."""
    env: tuple[str, ...] = ()
    """Environments to compare in; default: all."""
    normalise: tuple[str, ...] = ()
    """Common scale: LOW,HIGH for all environments, ENV=LOW,HIGH for each, or the name of a reference configuration."""
    nonfinite: float | None = None
    """Score of a run whose value is not finite (in the metric's own units); without it, such a run is an error."""
    association: Literal["last", "mean"] = "last"
    """Value of a plasticity metric that is set against the score."""
    resamples: int = 10_000
    """Resamples of the bootstrap."""
    level: float = 0.95
    """Level of the intervals."""
    seed: int = 0
    """Seed of the bootstrap."""
    latex: bool = False
    """Print LaTeX tables (booktabs) in place of Markdown."""
    out: Path | None = None
    """Folder for compare.md, compare.tex and figures (these need matplotlib)."""


def main(arguments: Sequence[str]) -> int:
    """Print the comparison; write it if asked to."""
    config = read_arguments(CompareConfig, "compare", arguments)
    from plasticity.reports.compared import compare_runs
    from plasticity.reports.question import Question

    question = Question(
        config.metric, config.at, config.until, config.nonfinite, config.resamples, config.level, config.seed
    )
    command = shlex.join(["plasticity", "compare", *arguments])
    compared = compare_runs(config.runs, question, config.env, config.normalise, config.association, command)
    print(compared.latex() if config.latex else compared.markdown(), end="")
    if config.out is not None:
        for file in compared.write(config.out):
            print(file, file=sys.stderr)
    return 0
