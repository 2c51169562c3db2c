"""Run folders made of given numbers, as ``plasticity train`` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

VERSIONS = {"python": "3.11.7", "plasticity-toolkit": "0.1.0", "torch": "2.13.0"}


def make_run(
    folder: Path,
    returns: Sequence[float | None],
    *,
    seed: int = 1,
    env: str = "Walk-v0",
    steps: Sequence[int] | None = None,
    values: Mapping[str, Sequence[float | None]] | None = None,
    events: Sequence[dict[str, Any]] = (),
    interventions: Mapping[str, dict] | None = None,
    status: str = "finished",
    tail: str = "",
    **settings: Any,
) -> Path:
    """Write ``returns``, and ``values`` by tag, at ``steps`` (default 10, 20, ...); ``tail`` is appended as it is."""
    folder.mkdir(parents=True)
    steps = steps or [10 * (i + 1) for i in range(len(returns))]
    lines: list[dict[str, Any]] = []
    for i, (step, value) in enumerate(zip(steps, returns, strict=True)):
        lines.append({"step": step, "time": 0.0, "charts/eval_return": value})
        if values:
            lines.append({"step": step, "time": 0.0, **{tag: series[i] for tag, series in values.items()}})
    lines += [{"time": 0.0, **event} for event in events]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    agent = {"batch_size": 32, "hidden": [64, 64]}
    config = {"env": env, "steps": steps[-1], "seed": seed, "out": str(folder.parent), "name": folder.name}
    config |= {k: v for k, v in settings.items() if k not in agent and k != "kind"}
    config |= {"agent": {**agent, **{k: v for k, v in settings.items() if k in agent}}}
    config["interventions"] = dict(interventions or {})
    command = ["plasticity", "train", "sac", "--env", env, "--seed", str(seed)]
    record = {
        "agent": settings.get("kind", "sac"),
        "status": status,
        "config": config,
        "command": command,
        "versions": VERSIONS,
        "hardware": {"cpus": 2},
        "git": {"commit": "0123456789abcdef", "modified": False},
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder
