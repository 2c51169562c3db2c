"""Kill training runs with SIGKILL many times, resume them every time, and compare the ends with runs left alone.

    python benchmarks/soak.py                  # 100 kills of every run, writes benchmarks/results/soak.json
    python benchmarks/soak.py dqn --kills 30   # of one, whose figures alone are replaced there
    python benchmarks/soak.py --quick          # 3 kills of every run, writes nothing

There are four: SAC with ReDo; PPO in vector environments; DQN with everything that it has, from images, with every
meter; and SAC with all interventions at once that it can have. Between them every intervention is on.

Each life of a run ends at a random moment: while it starts, in the middle of a step, in the middle of saving (a
checkpoint is written every few steps, so many are). Then ``plasticity train --resume`` goes on; a run that was killed
before its first checkpoint starts anew. In the end everything that a checkpoint holds (networks, optimizers, replay,
environments, interventions, random states) and the rows of ``metrics.jsonl`` must be those of the undisturbed run, to
the bit; only times and speeds may differ. The exit code is 1 if they are not. Children are forked from one process
that has imported everything, which would otherwise be most of the work.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from plasticity.cli import main as plasticity
from plasticity.commands.parsing import parse
from plasticity.commands.settings import chosen
from plasticity.envs import make_env
from plasticity.interventions import INTERVENTIONS
from plasticity.storage.folder import Checkpoints
from plasticity.storage.nested import flatten
from plasticity.storage.rows import read_metrics
from plasticity.tags import is_timed

EVERY = 4
"""Environment steps between two checkpoints, a multiple of the parallel environments of every run."""
FURTHEST = 2
"""Checkpoints that a life gets on at most."""
STEPS_PER_LIFE = 6
"""Mean number of environment steps that a life gets on."""
BEFORE_UPDATES = 40
"""Environment steps before the first update."""
EARLY = 0.15
"""Share of lives that are killed at a random moment of their start, wherever that is."""
RESULTS = Path(__file__).parent / "results" / "soak.json"

REPLAY = "--hidden 16 16 --batch-size 16 --buffer-size 400"
RUNS = {
    "sac": f"sac --env Pendulum-v1 {REPLAY} --max-episode-steps 60 --redo --redo.every 20 --redo.threshold 0.3 "
    "--plasticity-injection --plasticity-injection.at 70",
    "ppo": (
        "ppo --env Pendulum-v1 --num-envs 4 --hidden 16 16 --num-steps 8 --num-minibatches 2 --num-epochs 2 "
        "--max-episode-steps 60 --pfo --redo --redo.every 10 --redo.threshold 0.3"
    ),
    "dqn": (
        f"dqn --env minatar/breakout --num-envs 2 --network minatar_cnn {REPLAY} --hidden 16 --train-every 1 --double "
        "--n-step 3 --head dueling --returns c51 --num-atoms 11 --prioritised --norm layer --optimizer adam "
        "--max-episode-steps 60 --ne --ne.every 10 --random-shift"
    ),
    "interventions": f"sac --env Pendulum-v1 {REPLAY} --max-episode-steps 60",
}
"""Run -> its command; what every run shares is added."""
ALONE = {"ne", "pfo", "random_shift"}
"""Interventions that are no part of the run of all: its networks or its agent cannot have them; others do."""
METERS = "--churn --fit-probe --overestimation --replay --target-distance --feature-dot"


def arguments(name: str, kills: int) -> list[str]:
    """Return the command of a run, without its folder: everything that can go wrong is switched on."""
    steps = STEPS_PER_LIFE * kills + 100
    words = ["train", *RUNS[name].split(), "--steps", str(steps), "--seed", "4", "--quiet"]
    if "--buffer-size" in words:
        words += ["--learning-starts", str(BEFORE_UPDATES)]
    if name == "dqn":
        words += METERS.split()
    if name == "interventions":
        words += [flag for method in INTERVENTIONS if method not in ALONE for flag in often(method)]
    watched = "--probe-every 15 --log-every 7 --eval-every 152 --eval-episodes 2 --compile off"
    return [*words, *watched.split(), "--checkpoint.every", str(EVERY)]


def often(method: str) -> list[str]:
    """Return the flags that switch an intervention on, and let it act often where it has a clock."""
    flag, fields = f"--{method.replace('_', '-')}", {f.name for f in dataclasses.fields(INTERVENTIONS[method])}
    if "at" in fields:
        return [flag, f"{flag}.at", "70"]
    flags = [flag, f"{flag}.every", "20"] if "every" in fields else [flag]
    return [*flags, f"{flag}.window", "10"] if {"every", "window"} <= fields else flags


def fork(command: list[str], log: Path) -> int:
    """Run a command in a child process, its output in ``log``; return the number of the process."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        code = plasticity([*command, "--debug"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int | None:
    """Return the exit code of a child, None while it runs."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def step_of(folder: Path) -> int | None:
    """Return the step of the newest checkpoint of a run, None before the first."""
    latest = Checkpoints(folder / "checkpoints").latest()
    return None if latest is None else int(latest.name.rpartition("-")[2])


def wait_to_kill(pid: int, folder: Path, rng: random.Random, start: float) -> bool:
    """Wait for the random moment at which to kill; return whether the child still runs then.

    ``start``: seconds from the fork to the first new checkpoint, as measured so far.
    """
    begun, before = time.perf_counter(), step_of(folder)
    early = rng.random() < EARLY
    deadline = begun + (rng.uniform(0, start) if early else 1e9)
    target = (before or 0) + EVERY * rng.randint(1, FURTHEST)
    while time.perf_counter() < deadline:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        if (step_of(folder) or 0) >= target:
            # A step with its update takes milliseconds, and so does saving: this lands anywhere in both.
            deadline = min(deadline, time.perf_counter() + rng.uniform(0, 0.06))
        time.sleep(0.001)
    return True


def soak(kills: int, seed: int, folder: Path, command: list[str], log: Path) -> Counter[str]:
    """Run ``command`` into ``folder``, killed ``kills`` times; return what happened, counted."""
    rng, counts, start = random.Random(seed), Counter[str](), 1.0
    new = [*command, "--out", str(folder.parent), "--name", folder.name]
    while True:
        before = step_of(folder)
        if before is None and folder.exists():
            shutil.rmtree(folder)
            counts["started anew"] += 1
        pid, begun = fork(new if before is None else ["train", "--resume", str(folder)], log), time.perf_counter()
        if counts["kills"] < kills and wait_to_kill(pid, folder, rng, start):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            counts["kills"] += 1
            counts["kills while saving"] += bool(list((folder / "checkpoints").glob(".*.partial")))
            counts["kills before any progress"] += step_of(folder) == before
            if step_of(folder) != before:
                start = min(start, time.perf_counter() - begun)
            continue
        while (code := ended(pid)) is None:
            time.sleep(0.01)
        if code:
            raise SystemExit(f"life {counts['kills'] + 1} ended with exit code {code}:\n{log.read_text()}")
        counts["resumes"] = counts["kills"] - counts["started anew"]
        return counts


def outcome(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the plain values (settings, counters, metrics rows) and the bytes of all tensors that a run ended with."""
    step, state = Checkpoints(folder / "checkpoints").load_latest()
    plain, tensors = flatten(state)
    rows = [{k: v for k, v in row.items() if k != "time" and not is_timed(k)} for row in read_metrics(folder)]
    rows = [row for row in rows if row.keys() != {"step"}]
    return {"step": step, "state": plain, "rows": rows}, {n: t.numpy().tobytes() for n, t in tensors.items()}


def compare(one: Path, other: Path) -> list[str]:
    """Return what differs between two finished runs; and, for people, say how much was compared."""
    (plain, tensors), (plain_2, tensors_2) = outcome(one), outcome(other)
    different = [key for key in plain if json.dumps(plain[key]) != json.dumps(plain_2[key])]
    different += [name for name in tensors.keys() | tensors_2.keys() if tensors.get(name) != tensors_2.get(name)]
    print(f"compared {len(tensors)} tensors, {sum(map(len, tensors.values())):,} bytes, {len(plain['rows'])} rows")
    return different


def soaked(name: str, kills: int, seed: int) -> dict[str, Any]:
    """Return the figures of one run."""
    command, begun = arguments(name, kills), time.perf_counter()
    config = parse(command[1], command[2:])  # what is imported here need not be imported in every child
    make_env(config.env).reset()
    with tempfile.TemporaryDirectory() as root:
        log = Path(root) / "log"
        soak(0, seed, Path(root) / "undisturbed", command, log)
        alone = time.perf_counter() - begun
        counts = soak(kills, seed, Path(root) / "killed", command, log)
        different = compare(Path(root) / "undisturbed", Path(root) / "killed")
    if different:
        print(f"{name}: different from the undisturbed run: {', '.join(sorted(different)[:20])}", file=sys.stderr)
    if counts["kills"] < kills:
        print(f"{name}: the run ended after {counts['kills']} kills", file=sys.stderr)
    return {
        **counts,
        "steps": config.steps,
        "steps between checkpoints": EVERY,
        "interventions": len(chosen(config, "interventions")),
        "identical": not different,
        "seconds": round(time.perf_counter() - begun),
        "seconds undisturbed": round(alone),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
    }


def main() -> int:
    """Run the soak test and print its figures; those that were asked for in full are written as they come."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="*", help=f"of {', '.join(RUNS)}; default: all")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="3 kills, and no file is written")
    options = parser.parse_args()
    kills, good = 3 if options.quick else options.kills, True
    torch.set_num_threads(1)
    for name in options.runs or RUNS:
        figures = soaked(name, kills, options.seed)
        print(name, json.dumps(figures, indent=1), flush=True)
        good &= figures["identical"] and figures["kills"] >= kills
        if good and not options.quick:
            known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            RESULTS.write_text(json.dumps({**known, name: figures}, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
