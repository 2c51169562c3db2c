"""Write a saved agent anew, with networks that were edited towards those of an earlier one."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def rewrite(run: Path, base: Path, out: Path, edit: Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]]) -> int:
    """Edit the networks and targets of a saved agent, and write it as the model of a new run."""
    from plasticity.storage.folder import Checkpoints
    from plasticity.storage.record import MODEL, RECORD

    from .run import find_run, load_agent, load_state, make_run_env

    if out.exists():
        raise ValueError(f"{out} exists already: --out is a new folder")
    if not base.exists():
        raise ValueError(f"there is no folder {base}, the base")
    folder, record = find_run(run)
    state, earlier = load_state(run), load_state(base)["agent"]["networks"]
    env = make_run_env(record, name=None, seed=0, device="cpu")
    try:
        agent = load_agent(run, record, env, "cpu")
    finally:
        env.close()
    if missing := agent.networks.keys() - earlier.keys():
        raise ValueError(f"{base} has no network {', '.join(sorted(missing))}: it is of another agent")
    told = edit(agent.networks, earlier)
    behind = {name: agent.targets.get(name, copy.deepcopy(network)) for name, network in agent.networks.items()}
    edit(behind, earlier)  # targets move as their networks do
    saved = dict(state["agent"])
    for kind in ("networks", "targets"):
        saved[kind] = {name: dict(module.state_dict()) for name, module in getattr(agent, kind).items()}
    out.mkdir(parents=True)
    shutil.copyfile(folder / RECORD, out / RECORD)
    step = int(saved.get("counters", {}).get("steps", 0))
    Checkpoints(out / MODEL, keep=1).save(step, {"agent": saved, "callbacks": state.get("callbacks", {})})
    print("\n".join([f"{out}: {record['agent']} of {run}, back to {base}", *told]))
    return 0
