"""A comparison of runs, as Markdown, LaTeX and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from plasticity.storage.record import package_version

from . import comparison, tables
from .association import MIN_RUNS, associations, has_measurements
from .groups import configurations, doubts
from .question import Question, normalised, reference_anchors, repeated, require_comparable
from .runs import RecordedRun
from .series import Band
from .tables import Table, number

PROFILE_POINTS = 101


class Findings:
    """The configurations of ``runs`` that count, compared; ValueError where that cannot be done honestly."""

    def __init__(
        self,
        runs: Sequence[RecordedRun],
        notes: Sequence[str],
        question: Question,
        normalise: Sequence[str] = (),
        association: str = "last",
        command: str = "",
    ) -> None:
        kept, lone = repeated(runs)
        self.question, self.command = question, command
        self.configurations = configurations(kept)
        self.tasks = require_comparable(self.configurations)
        self.anchors = self._anchors(normalise)
        self.scores = normalised(self.configurations, self.tasks, question, self.anchors)
        self.notes = [*notes, *lone, *(note for c in self.configurations for note in doubts(c))]
        self.notes += comparison.cautions(self.scores)
        if question.at == "best":
            self.notes.append(
                "the highest of several evaluations is above what the agent is worth, more so for noisy ones"
            )
        self.tables = self._tables(association)

    def _tables(self, association: str) -> list[Table]:
        q, scores = self.question, self.scores
        found = [comparison.aggregates(scores, q, self.anchors is not None)]
        if len(scores) > 1:
            found.append(comparison.improvements(scores, q))
        if len(self.tasks) > 1:
            found.append(comparison.per_task(scores, self.tasks, q))
        found.append(comparison.profile_table(scores, q))
        associated = associations(self.configurations, q, association)
        if associated is None and has_measurements(self.configurations):
            self.notes.append(
                f"no association with the score is given: ranks need {MIN_RUNS} runs, of one configuration or in all"
            )
        return [*found, *([associated] if associated else []), self._members()]

    def markdown(self, title: str = "Comparison") -> str:
        """Return everything as Markdown."""
        parts = [f"# {title}\n", f"{self._summary()}\n"]
        if self.notes:
            parts.append("Read this first:\n\n" + "".join(f"- {note}\n" for note in self.notes))
        return "\n".join([*parts, *map(tables.markdown, self.tables), f"Made by `{self.command}`, {_maker()}.\n"])

    def latex(self) -> str:
        """Return the tables as LaTeX, with summary and notes as comments."""
        said = [f"% {line}" for line in (self._summary(), *self.notes, f"Made by {self.command}, {_maker()}.")]
        return "\n".join([*said, "% needs \\usepackage{booktabs}", "", *map(tables.latex, self.tables)])

    def figures(self) -> dict[str, bytes]:
        """Return the figures, as SVG and PNG, by the names of their files."""
        from .figures import Curve, draw_intervals, draw_profiles, encoded

        levels = comparison.profile_thresholds(self.scores, PROFILE_POINTS)
        found = comparison.profiles(self.scores, levels, self.question)
        bands = [
            Curve(name, i, Band(levels, *interval, sum(map(len, self.scores[name]))))
            for i, (name, interval) in enumerate(found.items())
        ]
        aggregate = self.tables[0]
        columns = {
            head: [(str(row[0]), row[i]) for row in aggregate.rows] for i, head in enumerate(aggregate.columns) if i > 1
        }
        label = "normalised score" if self.anchors else "score"
        drawn = {"profiles": draw_profiles(bands, label), "aggregates": draw_intervals(columns)}
        return {f"{n}.{kind}": encoded(figure, kind) for n, figure in drawn.items() for kind in ("svg", "png")}

    def _summary(self) -> str:
        if self.anchors is None:
            scale = "Scores are not normalised."
        else:
            ends = "; ".join(
                f"{env}: {number(low)} is 0, {number(high)} is 1" for env, (low, high) in self.anchors.items()
            )
            scale = f"Scores are normalised ({ends}{self._reference}); these ends count as exact."
        tasks = f" in {', '.join(self.tasks)}" if any(self.tasks) else ""
        return f"Score of a run: {self.question.describe()}{tasks}. {scale}"

    def _anchors(self, normalise: Sequence[str]) -> Mapping[str, tuple[float, float]] | None:
        self._reference = ""
        if not normalise:
            return None
        names = {c.name: c for c in self.configurations}
        if len(normalise) == 1 and normalise[0] in names:
            self._reference = f", the first and the compared value of {normalise[0]}, mean over runs"
            return reference_anchors(names[normalise[0]], self.question)
        anchors: dict[str, tuple[float, float]] = {}
        for item in normalise:
            env, separator, ends = item.rpartition("=")
            low, high = _ends(ends, item, list(names))
            if separator and env not in self.tasks:
                raise ValueError(f"--normalise {item}: no runs in {env}; there are {', '.join(self.tasks)}")
            anchors |= dict.fromkeys([env] if separator else self.tasks, (low, high))
        missing = [task for task in self.tasks if task not in anchors]
        if missing:
            raise ValueError(f"--normalise has no scale for {', '.join(missing)}")
        return {task: anchors[task] for task in self.tasks}

    def _members(self) -> Table:
        rows = []
        for c in self.configurations:
            for env, runs in c.runs.items():
                values = [self.question.value(run) for run in runs]
                text = ", ".join(f"{run.seed}: {number(v)}" for run, v in zip(runs, values, strict=True))
                rows.append([c.name, env or "-", len(runs), text])
        return Table("Runs compared", ["configuration", "environment", "n", "score by seed, as logged"], rows)


def _ends(text: str, item: str, names: Sequence[str]) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"--normalise {item} is neither LOW,HIGH nor ENV=LOW,HIGH nor a configuration; there are {'; '.join(names)}"
        ) from None
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"--normalise {item}: LOW must be below HIGH, and both finite")
    return low, high


def _maker() -> str:
    return f"plasticity {package_version()}"
