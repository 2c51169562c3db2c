"""A report on runs: figures and tables, as one HTML page, Markdown, images and CSV files."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Sequence
from pathlib import Path

from plasticity.metrics import is_asked_for, shown_first
from plasticity.storage.record import package_version
from plasticity.tags import RETURN_TITLES, plasticity_tags

from . import overview, tables
from .bench_tables import bench_tables
from .figures import encoded, svg
from .groups import Configuration, configurations, doubts
from .pictures import Picture, Pictures
from .runs import RecordedRun
from .tables import Table
from .verdicts import verdicts

FORMATS = ("html", "pdf", "md", "csv", "svg", "png")
IMAGES = ("svg", "png")

# No script, no font, no address: the page is one file that opens anywhere, for good.
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #111; background: #fff; max-width: 1000px; margin: 2em auto;
  padding: 0 1em; }}
h1 {{ font-size: 1.6em; margin-bottom: 0; }} h2 {{ font-size: 1.2em; margin: 2em 0 .5em; }}
figure {{ margin: 1.5em 0; break-inside: avoid; }} figure svg {{ width: 100%; height: auto; }}
figcaption, caption {{ font-size: .87em; color: #333; text-align: left; }} caption {{ padding-bottom: .4em; }}
.wide {{ overflow-x: auto; margin: 1.5em 0; }}
table {{ border-collapse: collapse; font-size: .8em; line-height: 1.35; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; vertical-align: top; padding: .25em .9em .25em 0; }}
th {{ border-bottom: 1px solid #111; vertical-align: bottom; }} td {{ border-bottom: 1px solid #ddd; }}
.n {{ text-align: right; }} td.n {{ white-space: nowrap; }} .long {{ overflow-wrap: anywhere; min-width: 12em; }}
code {{ font-size: .9em; overflow-wrap: anywhere; }} .notes {{ border-left: 4px solid #111; padding-left: 1em; }}
@media print {{ body {{ font-size: 10pt; margin: 0; max-width: none; }} .wide {{ overflow: visible; }}
  h2 {{ break-after: avoid; }} tr {{ break-inside: avoid; }} @page {{ margin: 15mm; }} }}
</style></head><body>
{body}
</body></html>
"""


class Report:
    """The report on ``runs``; ``command``: the command line that made it, ``notes``: faults found so far.

    ``tags``: series drawn as learning curves. ``metrics``: plasticity metrics; None: those of
    :func:`plasticity.metrics.shown_first`; a note names the others.
    """

    def __init__(
        self,
        runs: Sequence[RecordedRun],
        notes: Sequence[str] = (),
        tags: Sequence[str] = tuple(RETURN_TITLES),
        metrics: Sequence[str] | None = None,
        command: str = "",
    ) -> None:
        self.runs, self.command = list(runs), command
        self.configurations: list[Configuration] = configurations(runs)
        chosen = _metrics(runs, metrics)
        self.pictures: dict[str, list[Picture]] = {}
        rows: list[tuple] = []
        missing: list[str] = []
        for env in dict.fromkeys(run.env for run in runs):
            drawing = Pictures(self.configurations, env, chosen)
            self.pictures[env] = drawing.draw(tags)
            rows += drawing.curves
            missing += drawing.notes
        judged, unread = verdicts(runs)
        streams, unreadable = bench_tables(runs)
        self.notes = [*notes, *self._doubts(), *missing, *(_left_out(runs, chosen) if metrics is None else []), *unread,
                      *unreadable]  # fmt: skip
        self.curves = Table("Curves", _CURVE_COLUMNS, rows)
        self.results = [*streams, *overview.results(self.configurations, tags, chosen)]
        self.details = [
            *filter(None, [judged, overview.interventions(self.configurations)]),
            *overview.settings_tables(self.configurations),
            overview.origins(runs),
            overview.versions(runs),
        ]

    def write(self, out: Path, formats: Sequence[str]) -> list[Path]:
        """Write the report into ``out``, which is made if missing, and return the files; same runs, same bytes."""
        unknown = set(formats) - set(FORMATS)
        if unknown:
            raise ValueError(f"no format {', '.join(sorted(unknown))}; there are {', '.join(FORMATS)}")
        images = [kind for kind in IMAGES if kind in formats]
        if "md" in formats and not images:
            images = ["svg"]  # Markdown shows figures from files
        files: dict[str, bytes] = {}
        if "html" in formats:
            files["report.html"] = self.page().encode(errors="backslashreplace")
        if "pdf" in formats:
            files["report.pdf"] = self.pdf()
        if "md" in formats:
            files["report.md"] = self.markdown(images[-1]).encode(errors="backslashreplace")
        if "csv" in formats:
            files |= {
                f"{_slug(table)}.csv": tables.comma_separated(table).encode(errors="backslashreplace")
                for table in [self.curves, *self.results, *self.details]
            }
        for picture in self._all_pictures():
            files |= {f"{picture.name}.{kind}": encoded(picture.figure, kind) for kind in images}
        out.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (out / name).write_bytes(data)
        return [out / name for name in files]

    def page(self) -> str:
        """Return the report as one HTML page."""
        parts = [f"<h1>{html.escape(self._title())}</h1>", f"<p>{html.escape(self._summary())}</p>"]
        if self.notes:
            items = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
            parts.append(f'<div class="notes"><b>Read this first</b><ul>{items}</ul></div>')
        parts += map(_wide, self.results)
        count = 0
        for env, pictures in self.pictures.items():
            parts.append(f"<h2>{html.escape(env or 'Runs without an environment')}</h2>")
            for picture in pictures:
                count += 1
                parts.append(_figure(picture, count))
        parts.append("<h2>Details</h2>")
        parts += map(_wide, self.details)
        parts.append(f"<p>Made by <code>{html.escape(self.command)}</code>, {html.escape(self._maker())}.</p>")
        return _PAGE.format(title=html.escape(self._title()), body="\n".join(parts))

    def pdf(self) -> bytes:
        """Return the report as a PDF."""
        from .pdf import pdf

        notes = ["Read this first:", *(f"- {note}" for note in self.notes)] if self.notes else []
        maker = f"Made by {self.command}, {self._maker()}."
        paragraphs = [self._summary(), *notes, maker]
        return pdf(self._title(), paragraphs, self._all_pictures(), [*self.results, *self.details])

    def markdown(self, image: str) -> str:
        """Return the report as Markdown that shows figures from files of the kind ``image`` beside it."""
        parts = [f"# {self._title()}\n", f"{self._summary()}\n"]
        if self.notes:
            parts.append("Read this first:\n\n" + "".join(f"- {note}\n" for note in self.notes))
        parts += map(tables.markdown, self.results)
        for env, pictures in self.pictures.items():
            parts.append(f"## {env or 'Runs without an environment'}\n")
            parts += [f"![{picture.name}]({picture.name}.{image})\n\n{picture.caption}\n" for picture in pictures]
        parts += map(tables.markdown, self.details)
        parts.append(f"Made by `{self.command}`, {self._maker()}.\n")
        return "\n".join(parts)

    def _title(self) -> str:
        return "Plasticity report: " + (", ".join(env for env in self.pictures if env) or "runs")

    def _summary(self) -> str:
        count = len(self.configurations)
        return (
            f"{len(self.runs)} run{'s' * (len(self.runs) != 1)} in {count} configuration{'s' * (count != 1)}: "
            f"{'; '.join(c.name for c in self.configurations)}. Runs of one configuration differ in their seed only."
        )

    def _doubts(self) -> list[str]:
        notes = []
        for c in self.configurations:
            notes += doubts(c)
            single = [f" in {env}" if env else "" for env, runs in c.runs.items() if len(runs) == 1]
            notes += [
                f"{c.name} has one run{where}: no interval, and nothing can be concluded from it" for where in single
            ]
        return notes

    def _maker(self) -> str:
        return f"plasticity {package_version()}, {time.strftime('%Y-%m-%d')}"

    def _all_pictures(self) -> list[Picture]:
        return [picture for pictures in self.pictures.values() for picture in pictures]


_CURVE_COLUMNS = ("environment", "configuration", "tag", "step", "n", "iqm", "low", "high")


def _metrics(runs: Sequence[RecordedRun], chosen: Sequence[str] | None) -> list[str]:
    present = dict.fromkeys(metric for run in runs for _, metric, _ in plasticity_tags(run.series))
    if chosen is None:
        return shown_first(present)
    unknown = [metric for metric in chosen if metric not in present]
    if unknown:
        raise ValueError(f"no run measured {', '.join(unknown)}; measured were {', '.join(present) or 'none'}")
    return list(chosen)


def _left_out(runs: Sequence[RecordedRun], shown: Sequence[str]) -> list[str]:
    """Return a note on measured metrics of no default probe that are not shown."""
    present = dict.fromkeys(tag.metric for run in runs for tag in plasticity_tags(run.series))
    names = [metric for metric in present if metric not in shown and is_asked_for(metric)]
    return [f"measured, and not shown: {', '.join(names)}; choose with --metrics"] if names else []


def _figure(picture: Picture, count: int) -> str:
    label = html.escape(picture.caption, quote=True)
    image = svg(picture.figure).replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return f"<figure>{image}<figcaption><b>Figure {count}.</b> {html.escape(picture.caption)}</figcaption></figure>"


def _wide(table: Table) -> str:
    return f'<div class="wide">{tables.as_html(table)}</div>'


def _slug(table: Table) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", table.title.lower().split(" and ")[0])
