"""Write the tables of docs/performance.md and docs/costs.md from the figures in results/, between their marks.

Machines have a table each, or a column where there is one number of each kind.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

DOCS = [Path(__file__).parents[1] / "docs" / name for name in ("performance.md", "costs.md")]
RESULTS = Path(__file__).parent / "results"
PEERS = ("CleanRL", "stable-baselines3")
AIMS = {
    "ppo-halfcheetah": (6.0, 9.0),
    "ppo-halfcheetah, 16 environments": (2.5, 4.0),
    "dqn-cartpole": (3.0, 4.0),
    "dqn-breakout": (2.3, 3.0),
    "sac-halfcheetah": (2.2, 2.4),
    "sac-halfcheetah, 4 updates per step": (2.2, 2.6),
    "td3-halfcheetah": (2.0, 2.4),
}
"""Task -> how many times as fast as CleanRL's loop it was to be at least, and better."""


def speed(figures: dict[str, Any]) -> str:
    """Return times and ratios of all tasks: medians over rounds, and the range of the ratios."""
    lines = ["| task | | CPU us per step | times CleanRL | times stable-baselines3 |", "|---|---|---|---|---|"]
    for task, times in figures["tasks"].items():
        for name in times:
            cells = [task, name, f"{median(times[name]):.0f}"]
            cells += ["1" if name == peer else ranged(faster(times, name, peer)) for peer in PEERS]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def aims(figures: dict[str, Any]) -> str:
    """Return how far each task got, with products in float32 and in bfloat16, in times of CleanRL's loop."""
    lines = ["| times CleanRL's loop | at least | better | found | | with bf16 |", "|---|---|---|---|---|---|"]
    for task, (least, better) in AIMS.items():
        times = figures["tasks"][task]
        found = faster(times, "ours", "CleanRL")
        verdict = "met" if median(found) >= least else "**not met**"
        rounded = ranged(faster(times, "ours, bf16", "CleanRL")) if "ours, bf16" in times else ""
        lines.append(f"| {task} | {least:g} | {better:g} | {ranged(found)} | {verdict} | {rounded} |")
    return "\n".join(lines)


def beside(figures: dict[str, Any]) -> str:
    """Return times of ours and of peers in processes of their own, and how much faster ours is."""
    lines = ["| task | | CPU us per step | ours is faster, times |", "|---|---|---|---|"]
    for task, times in figures["tasks"].items():
        for name in times:
            ratio = "1" if name == "ours" else ranged(faster(times, "ours", name))
            lines.append(f"| {task} | {name} | {median(times[name]):.0f} | {ratio} |")
    return "\n".join(lines)


def faster(times: dict[str, list[float]], name: str, peer: str) -> list[float]:
    """Return how many times as fast as a peer an implementation was, in each round."""
    return [a / b for a, b in zip(times[peer], times[name], strict=True)]


def ranged(values: list[float]) -> str:
    """Return the median and, in brackets, the least and the greatest."""
    return f"{median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def listing(machines: list[dict[str, Any]]) -> str:
    """Return named numbers as they are, a column for each machine."""
    names = [name for name, value in machines[0].items() if isinstance(value, float | int)]
    rows = [f"| {name} | {' | '.join(f'{figures[name]:,.3g}' for figures in machines)} |" for name in names]
    heads = " | ".join(figures["machine"]["processor"] for figures in machines)
    return "\n".join([f"| | {heads} |", f"|---|{'---|' * len(machines)}", *rows])


def each(table: Callable[[dict[str, Any]], str]) -> Callable[[list[dict[str, Any]]], str]:
    """Return what writes a table for each machine, below its name."""
    return lambda machines: "\n\n".join(f"{one['machine']['processor']}:\n\n{table(one)}" for one in machines)


def precision(figures: dict[str, Any]) -> str:
    """Return mean, least and greatest over seeds of every figure, for both precisions."""
    runs: dict[str, list[dict[str, float]]] = figures["runs"]
    lines = [f"| {figures['env']}, {figures['steps']:,} steps | {' | '.join(runs)} |", f"|---|{'---|' * len(runs)}"]
    for name in next(iter(runs.values()))[0]:
        columns = [[run[name] for run in found] for found in runs.values()]
        cells = (f"{sum(c) / len(c):.3g} [{min(c):.3g}, {max(c):.3g}]" for c in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def probes(figures: dict[str, Any]) -> str:
    """Return what probes cost each agent, and how that grows."""
    blocks = []
    for agent in ("sac", "dqn", "ppo"):
        ways = figures[agent]
        times = (f"{median(way['us']):.0f}" for way in ways.values())
        lines = [f"| {agent.upper()} | {' | '.join(ways)} |", f"|---|{'---|' * len(ways)}"]
        lines.append(f"| update without probes, us | {' | '.join(times)} |")
        for name in next(iter(ways.values()))["percent"]:
            # What is read rarely was measured in updates that are all read, and is shared among the 1000.
            read = name.startswith("read: ")
            label = f"{name.removeprefix('read: ')}, {'once in 1000 updates' if read else ''}".rstrip(", ")
            cells = (quartiles(way["percent"][name], 1e-3 if read else 1.0) for way in ways.values())
            lines.append(f"| {label}, % | {' | '.join(cells)} |")
        blocks.append("\n".join(lines))
    if "growth" in figures:
        lines = ["| compiled SAC | update, us | dormancy and GraMa at every update, % |", "|---|---|---|"]
        for name, found in figures["growth"].items():
            lines.append(f"| {name} | {median(found['us']):.0f} | {quartiles(found['percent']['both'])} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def metric_costs(figures: dict[str, Any]) -> str:
    """Return what one reading of each probe and meter costs, and its share of updates, a table for each agent."""
    blocks, every = [], figures["every"]
    for agent, modes in figures["costs"].items():
        heads = [f"one reading, {mode}, ms" for mode in modes] + [f"once in {every:,}, {mode}, %" for mode in modes]
        gathered = any("every" in costs for costs in next(iter(modes.values())).values())
        heads += ["every update, eager, %"] * gathered
        lines = [f"| {agent.upper()} | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
        for name in next(iter(modes.values())):
            found = [costs.get(name, {}) for costs in modes.values()]  # empty: not measured in this mode
            times = [{key: median(values) for key, values in costs.items()} for costs in found]
            cells = [f"{time['reading']:.2f}" if time else "" for time in times]
            cells += [f"{100 * time['reading'] / (every * time['update']):.3f}" if time else "" for time in times]
            whole = times[0]
            if gathered:
                cells.append(f"{100 * whole['every'] / whole['update']:.1f}" if "every" in whole else "")
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def quartiles(values: list[float], scale: float = 1.0) -> str:
    """Return the median and, in brackets, the quartiles."""
    low, _, high = quantiles(values, n=4)
    return f"{median(values) * scale:.2f} [{low * scale:.2f}, {high * scale:.2f}]"


TABLES: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "aims": each(aims),
    "speed": each(speed),
    "beside": each(beside),
    "roofline": listing,
    "replay": listing,
    "precision": each(precision),
    "probes": each(probes),
    "metric_costs": each(metric_costs),
    "seeds": listing,
}

SOURCES = {"aims": "speed"}
"""Table -> the name of its file, where that is another one."""


def written(text: str) -> str:
    """Return a document with every table of its between the marks."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: benchmarks/tables.py -->", f"<!-- end of {name} -->"
        found = [json.loads(file.read_text()) for file in sorted(RESULTS.glob(f"**/{SOURCES.get(name, name)}.json"))]
        block = f"{begin}\n\n{table(found)}\n\n{end}"
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, b=block: b, text, flags=re.DOTALL)
    return text


def main() -> int:
    """Write the tables; ValueError where no page has the marks of one."""
    pages = {page: page.read_text(encoding="utf-8") for page in DOCS}
    if lost := [name for name in TABLES if not any(f"<!-- {name}: benchmarks" in text for text in pages.values())]:
        raise ValueError(f"no page has the marks <!-- NAME: benchmarks/tables.py --> of {', '.join(lost)}")
    for page, text in pages.items():
        page.write_text(written(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
