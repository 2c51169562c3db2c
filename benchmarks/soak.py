"""Kill a training run with SIGKILL many times, resume it every time, and compare the end with a run left alone.

    python benchmarks/soak.py              # 200 kills, writes benchmarks/results/soak.json
    python benchmarks/soak.py --quick      # 5 kills, writes nothing

Each life of the run ends at a random moment: while it starts, in the middle of a step, in the middle of saving (a
checkpoint is written every few steps, so many are). Then ``plasticity train --resume`` goes on; a run that was killed
before its first checkpoint starts anew. In the end everything that a checkpoint holds (networks, optimizers, replay,
environments, interventions, random states) and the rows of ``metrics.jsonl`` must be those of the undisturbed run, to
the bit; only times and speeds may differ. The exit code is 1 if they are not. Children are forked from one process
that has imported everything, which would otherwise be most of the work.
"""

from __future__ import annotations

import argparse
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
from plasticity.envs import make_env
from plasticity.storage.folder import Checkpoints
from plasticity.storage.nested import flatten
from plasticity.storage.rows import read_metrics

EVERY = 5
"""Environment steps between two checkpoints."""
STEPS_PER_LIFE = 10
"""Mean number of environment steps that a life gets on."""
EARLY = 0.15
"""Share of lives that are killed at a random moment of their start, wherever that is."""
TIMED = ("charts/SPS", "plasticity/overhead", "time")
"""Tags whose values depend on the clock."""
RESULTS = Path(__file__).parent / "results" / "soak.json"


def arguments(steps: int) -> list[str]:
    """Return the command of the run, without its folder: everything that can go wrong is switched on."""
    run = f"train sac --env Pendulum-v1 --steps {steps} --seed 4 --num-envs 1 --max-episode-steps 60 --quiet"
    agent = "--hidden 16 16 --batch-size 16 --learning-starts 40 --buffer-size 400"
    watched = "--probe-every 15 --log-every 7 --eval-every 150 --eval-episodes 2 --redo --redo.every 20"
    return [*run.split(), *agent.split(), *watched.split(), "--redo.threshold", "0.3", "--checkpoint.every", str(EVERY)]


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
    target = (before or 0) + EVERY * rng.randint(1, 2 * STEPS_PER_LIFE // EVERY)
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
    state["latest"] = {tag: value for tag, value in state["latest"].items() if tag not in TIMED}
    plain, tensors = flatten(state)
    rows = [{k: v for k, v in row.items() if k not in TIMED} for row in read_metrics(folder)]
    rows = [row for row in rows if row.keys() != {"step"}]
    return {"step": step, "state": plain, "rows": rows}, {n: t.numpy().tobytes() for n, t in tensors.items()}


def compare(one: Path, other: Path) -> list[str]:
    """Return what differs between two finished runs; and, for people, say how much was compared."""
    (plain, tensors), (plain_2, tensors_2) = outcome(one), outcome(other)
    different = [key for key in plain if json.dumps(plain[key]) != json.dumps(plain_2[key])]
    different += [name for name in tensors.keys() | tensors_2.keys() if tensors.get(name) != tensors_2.get(name)]
    print(f"compared {len(tensors)} tensors, {sum(map(len, tensors.values())):,} bytes, {len(plain['rows'])} rows")
    return different


def main() -> int:
    """Run the soak test and print its figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="5 kills, and no file is written")
    options = parser.parse_args()
    kills = 5 if options.quick else options.kills
    torch.set_num_threads(1)
    steps, begun = STEPS_PER_LIFE * kills + 100, time.perf_counter()
    command = arguments(steps)
    parse(command[1], command[2:])  # what is imported here need not be imported in every child
    make_env("Pendulum-v1").reset()
    with tempfile.TemporaryDirectory() as root:
        log = Path(root) / "log"
        counts = soak(0, options.seed, Path(root) / "undisturbed", command, log)
        alone = time.perf_counter() - begun
        counts = soak(kills, options.seed, Path(root) / "killed", command, log)
        different = compare(Path(root) / "undisturbed", Path(root) / "killed")
    figures = {
        **counts,
        "steps": steps,
        "steps between checkpoints": EVERY,
        "identical": not different,
        "seconds": round(time.perf_counter() - begun),
        "seconds undisturbed": round(alone),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
    }
    print(json.dumps(figures, indent=1))
    if different:
        print(f"different from the undisturbed run: {', '.join(sorted(different)[:20])}", file=sys.stderr)
        return 1
    if counts["kills"] < kills:
        print(f"the run ended after {counts['kills']} kills", file=sys.stderr)
        return 1
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
