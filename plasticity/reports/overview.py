"""The tables of a report: results and settings per configuration, interventions, origins of the runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from plasticity.reports.statistics import Interval, bootstrap, iqm
from plasticity.tags import ALL, EPISODIC_RETURN, RETURN_TITLES, parse_tag, plasticity_tag, plasticity_tags

from .groups import Configuration, text
from .runs import RecordedRun, having
from .series import INTERVAL, RESAMPLES, RETURN_WINDOW, aligned
from .tables import Table

ABREAST = 4
"""Configurations side by side in one table; more go into the next one."""


def results(configurations: Sequence[Configuration], tags: Sequence[str], metrics: Sequence[str]) -> list[Table]:
    """Return, per environment, the last common value of the returns and the network-wide metrics of configurations."""
    found = []
    for env in dict.fromkeys(env for c in configurations for env in c.runs):
        here = [c for c in configurations if env in c.runs]
        blocks = [here[i : i + ABREAST] for i in range(0, len(here), ABREAST)]
        for i, block in enumerate(blocks, 1):
            part = f", part {i} of {len(blocks)}" if len(blocks) > 1 else ""
            found.append(_results(block, env, tags, metrics, f"Results{f' in {env}' if env else ''}{part}"))
    return found


def _results(
    configurations: Sequence[Configuration], env: str, tags: Sequence[str], metrics: Sequence[str], title: str
) -> Table:
    members = [c.runs[env] for c in configurations]
    present = dict.fromkeys(tag for runs in members for run in runs for tag in run.series)
    networks = [(n, m) for n, m, layer in plasticity_tags(present) if layer == ALL]
    shown = [tag for tag in tags if tag in present]
    shown += [plasticity_tag(n, m) for metric in metrics for n, m in networks if m == metric]
    rows: list[list[Any]] = [
        ["n (seeds)", *(f"{len(runs)} ({_seeds(runs)})" for runs in members)],
        ["step", *(f"{min(run.last_step for run in runs):,}" for runs in members)],
        *([_short(tag), *(_last(runs, tag) for runs in members)] for tag in shown),
    ]
    note = (
        "Interquartile mean over runs at the last measurement that all runs of a configuration have reached; in "
        f"brackets the {INTERVAL}, none for one run. Step: the last one of the shortest run."
    )
    for c, runs in zip(configurations, members, strict=True):
        fewer = {tag: len(having(runs, tag)) for tag in shown}
        lacking = [f"{_short(tag)} n = {n}" for tag, n in fewer.items() if 0 < n < len(runs)]
        note += f" Not measured in all runs of {c.name}: {', '.join(lacking)}." if lacking else ""
    return Table(title, ["", *(c.name for c in configurations)], rows, note)


def _seeds(runs: Sequence[RecordedRun]) -> str:
    return " ".join("?" if run.seed is None else str(run.seed) for run in runs)


def _short(tag: str) -> str:
    """Return ``network: metric`` of a plasticity tag, the name of a chart."""
    parts = parse_tag(tag)
    if tag == EPISODIC_RETURN:
        return f"{RETURN_TITLES[tag]}, mean over {RETURN_WINDOW:.0%} of the steps"
    return RETURN_TITLES.get(tag, tag) if parts is None else f"{parts.network}: {parts.metric.replace('_', ' ')}"


def settings_tables(configurations: Sequence[Configuration]) -> list[Table]:
    """Return the settings that are not the same for all configurations, and those that are."""
    keys = list(dict.fromkeys(key for c in configurations for key in c.settings))
    values = {key: [text(c.settings[key]) if key in c.settings else "" for c in configurations] for key in keys}
    differing = [[key, *row] for key, row in values.items() if len(set(row)) > 1]
    shared = [[key, row[0]] for key, row in values.items() if len(set(row)) == 1]
    note = "Of the first run of each configuration; an empty cell: not a setting of it."
    names = [c.name for c in configurations]
    found = [Table("Settings that differ", ["setting", *names], differing, note)] if differing else []
    return [*found, Table("Settings of all", ["setting", "value"], shared)] if shared else found


def interventions(configurations: Sequence[Configuration]) -> Table | None:
    """Return number, steps and totals of each kind of event by network; None without events."""
    rows: list[list[Any]] = []
    for c in configurations:
        for env, runs in c.runs.items():
            marks = [row for run in runs for row in run.events]
            for event, network in dict.fromkeys((row["event"], row.get("network")) for row in marks):
                own = [row for row in marks if row["event"] == event and row.get("network") == network]
                rows.append([c.name, env or "-", event, network or "-", *_deeds(own, _counts(runs, event), len(runs))])
    heads = ["configuration", "environment", "event", "network", "times", "first step", "last step", "in all"]
    note = (
        "Times and totals are means per run; the function change is the median over events, as the intervention itself "
        "reports it."
    )
    return Table("What interventions did", [*heads, "function change"], rows, note) if rows else None


def origins(runs: Sequence[RecordedRun]) -> Table:
    """Return where each run came from: folder, state, command."""
    rows = []
    for run in runs:
        command = shlex.join(run.command) or "not recorded"
        rows.append([str(run.folder), run.status, run.last_step, _commit(run), command])
    note = "* The working directory had changes that are in no commit."
    return Table("Runs and the commands that made them", ["folder", "status", "last step", "commit", "command"], rows,
                 note if any(str(row[3]).endswith("*") for row in rows) else "")  # fmt: skip


def versions(runs: Sequence[RecordedRun]) -> Table:
    """Return the versions and the hardware that the runs were made with."""
    stamps: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        packages = ", ".join(f"{name} {number}" for name, number in run.record.get("versions", {}).items())
        machine = ", ".join(f"{key} {value}" for key, value in run.record.get("hardware", {}).items() if value)
        stamps.setdefault((packages or "not recorded", machine or "not recorded"), []).append(str(run.folder))
    several = len(stamps) > 1
    rows = [[", ".join(folders) if several else "all", *stamp] for stamp, folders in stamps.items()]
    return Table("Versions", ["runs", "packages", "hardware"], rows)


def _last(runs: Sequence[RecordedRun], tag: str) -> Interval | None:
    """Return the value at the last common step, None if there is none."""
    steps, values, _ = aligned(having(runs, tag))
    if not len(steps):
        return None
    if values.shape[-1] == 1:
        return Interval(float(values[-1, 0]), float("nan"), float("nan"))
    return bootstrap(iqm, [values[-1]], resamples=RESAMPLES)


def _counts(runs: Sequence[RecordedRun], event: str) -> list[str]:
    """Return the names of an intervention's counters, without the number of applications."""
    prefix = f"interventions/{event}/"
    tags = dict.fromkeys(tag.removeprefix(prefix) for r in runs for tag in r.series if tag.startswith(prefix))
    return [name for name in tags if "/" not in name and name != "applications"]


def _deeds(marks: Sequence[dict[str, Any]], counts: Sequence[str], num_runs: int) -> list[Any]:
    """Return times per run, first and last step, totals per run, median function change of some events."""
    steps = [row["step"] for row in marks]
    sums = {name: sum(row[name] for row in marks if isinstance(row.get(name), int)) / num_runs for name in counts}
    totals = ", ".join(f"{value:.4g} {name}" for name, value in sums.items() if any(name in row for row in marks))
    changes = [row["function_change"] for row in marks if isinstance(row.get("function_change"), float)]
    return [len(marks) / num_runs, min(steps), max(steps), totals, float(np.median(changes)) if changes else None]


def _commit(run: RecordedRun) -> str:
    git = run.record.get("git") or {}
    return f"{str(git.get('commit', '-'))[:10]}{'*' if git.get('modified') else ''}"
