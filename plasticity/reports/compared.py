"""The comparison of what is in some folders: of all environments together, or of each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plasticity.storage.files import file_name

from .bench_tables import without_oracles
from .findings import Findings
from .question import Question, complete, repeated
from .runs import RecordedRun, load_runs


@dataclass(frozen=True)
class Compared:
    """Comparisons by environment; a single one, of all environments together, under the name of none."""

    found: dict[str, Findings]

    def markdown(self) -> str:
        """Return everything as Markdown."""
        return "\n".join(one.markdown(f"Comparison in {env}" if env else "Comparison") for env, one in self._titled())

    def latex(self) -> str:
        """Return the tables as LaTeX, with summaries and notes as comments."""
        return "\n".join(one.latex() for one in self.found.values())

    def write(self, out: Path) -> list[Path]:
        """Write compare.md, compare.tex and figures as SVG and PNG, of several environments each; return the files."""
        files = {
            "compare.md": self.markdown().encode(errors="backslashreplace"),
            "compare.tex": self.latex().encode(errors="backslashreplace"),
        }
        for env, one in self._titled():
            for name, data in one.figures().items():
                stem, _, kind = name.partition(".")
                files[f"{stem}_{file_name(env)}.{kind}" if env else name] = data
        out.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (out / name).write_bytes(data)
        return [out / name for name in files]

    def _titled(self) -> list[tuple[str, Findings]]:
        """Return environments and comparisons; the name of an environment only where there are several."""
        several = len(self.found) > 1
        return [(env or "unknown" if several else "", one) for env, one in self.found.items()]


def compare_runs(
    paths: Sequence[Path],
    question: Question,
    envs: Sequence[str] = (),
    normalise: Sequence[str] = (),
    association: str = "last",
    command: str = "",
) -> Compared:
    """Return the runs in ``paths``, compared on a common scale, ``normalise``, or in each environment by itself.

    An environment in which nothing can be compared is left out and named; ValueError where nothing is left.
    """
    runs, notes = load_runs(paths)
    runs, fresh = without_oracles(runs)
    kept, left_out = complete(_in(runs, envs), question)
    # What was left out for being unfinished is said below, with the consequence.
    notes = [*(note for note in notes if ": not finished (" not in note), *fresh, *left_out]
    if normalise:
        return Compared({"": Findings(kept, notes, question, normalise, association, command)})
    kept, lone = repeated(kept)
    groups = {env: [run for run in kept if run.env == env] for env in sorted({run.env for run in kept})}
    if len(groups) < 2:
        return Compared({"": Findings(kept, [*notes, *lone], question, (), association, command)})
    found, refused = dict[str, Findings](), list[str]()
    for env, own in groups.items():
        try:
            found[env] = Findings(own, [], question, (), association, command)
        except ValueError as error:
            refused.append(f"left out {env or 'runs of an unknown environment'}: {error}")
    if not found:
        raise ValueError("; ".join(refused))
    first = next(iter(found.values()))
    first.notes[:0] = [*notes, *lone, *refused]
    return Compared(found)


def _in(runs: Sequence[RecordedRun], envs: Sequence[str]) -> list[RecordedRun]:
    present = dict.fromkeys(run.env for run in runs)
    unknown = [env for env in envs if env not in present]
    if unknown:
        raise ValueError(f"no runs in {', '.join(unknown)}; there are {', '.join(map(str, present))}")
    return [run for run in runs if not envs or run.env in envs]
