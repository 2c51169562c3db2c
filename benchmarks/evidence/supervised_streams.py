"""Every method on three supervised streams, against none: tuned on two seeds, shown on five others, with intervals.

``python benchmarks/evidence/supervised_streams.py --jobs 2`` goes on where it was stopped: every finished run is a line
of ``results/supervised_streams.jsonl``. ``--table`` prints what is there. A method *keeps* plasticity on a stream where
its outcome at the end is better than that of the plain network by an interval over paired seeds that leaves out 0.
Methods that need replay, rollouts, episodes or images (swd, ere, least, replay_ratio, horizon, dr3, pfo, drm,
random_shift) and the networks of agents have no place here.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import numpy as np
from harness import RESULTS, SEEDS, interval
from supervised_tasks import LOWER_IS_BETTER, STREAMS, Learner, network

TUNED_ON = (100, 101)
FILE = RESULTS / "supervised_streams.jsonl"
TASKS = {"clock": "tasks", "every": 1}
RATES = {"bitflip": 0.05, "permuted-digits": 3e-3, "warm-start": 1e-3}
"""Adam's rate where an entry has none. On bitflip: 0.01 of Dohare et al. for one example at a time, times the root of
the 20 that are a batch here. There and on the digits the plain network loses; with a tenth of these rates it does not.
"""


def grid(name: str, key: str, values: tuple[Any, ...], **more: Any) -> list[dict[str, Any]]:
    """Return a setting of the method for every value of one of its fields."""
    return [{"method": name, "settings": {key: value, **more}} for value in values]


ENTRIES: dict[str, list[dict[str, Any]]] = {
    "none": [{}],
    **{n: [{"optimizer": n, "lr": lr} for lr in (1e-3, 3e-3, 1e-2)] for n in ("adam", "adaptive_upgd", "muon")},
    "sgd": [{"optimizer": "sgd", "lr": lr} for lr in (3e-3, 1e-2, 3e-2)],
    "upgd": [{"optimizer": "upgd", "lr": lr} for lr in (1e-2, 3e-2, 1e-1)],
    "trac": [{"optimizer": "trac", "lr": lr} for lr in (1e-3, 1e-2)],
    "kron": [{"optimizer": "kron", "lr": lr} for lr in (3e-4, 1e-3)],
    "schedule_free": [{"optimizer": "schedule_free", "lr": lr} for lr in (3e-3, 3e-2)],
    "adamw": [{"optimizer": "adamw", "weight_decay": decay} for decay in (1e-2, 1e-1, 1.0)],
    "equal betas": [{"betas": (beta, beta)} for beta in (0.9, 0.99)],
    "larger eps": [{"eps": eps} for eps in (1e-5, 1e-3)],
    "layer norm": [{"norm": "layer"}],
    **{n: [{"activation": n}] for n in ("leaky_relu", "prelu", "smooth_leaky", "aid", "rational", "tanh")},
    **{n: [{"activation": n}] for n in ("random_smooth_leaky", "crelu", "fourier", "hadamard")},
    "l2_init": grid("l2_init", "coef", (1e-4, 1e-3, 1e-2)),
    "wasserstein_init": grid("wasserstein_init", "coef", (1e-4, 1e-3, 1e-2)),
    "parseval": grid("parseval", "coef", (1e-5, 1e-4, 1e-3)),
    "spectral": grid("spectral", "coef", (1e-5, 1e-4, 1e-3)),
    "feature_norm": grid("feature_norm", "coef", (1e-4, 1e-3, 1e-2)),
    "chain": grid("chain", "coef", (0.1, 1.0, 10.0), networks=("net",)),
    "infer": grid("infer", "coef", (1e-3, 1e-2, 1e-1), networks=("net",)),
    "sam": grid("sam", "rho", (0.01, 0.05, 0.1)),
    "weight_clipping": grid("weight_clipping", "kappa", (1.0, 2.0, 5.0)),
    "nap + layer norm": [{"norm": "layer", **one} for one in grid("nap", "affine", ("free", "decay"))],
    "hyperspherical + layer norm": [{"norm": "layer", "method": "hyperspherical", "settings": {}}],
    "spectral_normalization": grid("spectral_normalization", "networks", (("net",),)),
    "redo": grid("redo", "threshold", (0.01, 0.1), every=500),
    "regrama": grid("regrama", "threshold", (0.01, 0.1), every=500),
    "resin": grid("resin", "threshold", (0.01, 0.1), every=500),
    "reborn": grid("reborn", "threshold", (0.01, 0.1), every=500),
    "knife": grid("knife", "every", (500, 5_000)),
    "ne": grid("ne", "every", (200,), end=5_000, dense_ends=False),
    "magnitude pruning": grid("ne", "preset", ("gmp",), begin=1_000, end=5_000, dense_ends=False),
    "static sparse": grid("ne", "preset", ("static",), dense_ends=False),
    "cbp": grid("cbp", "rate", (1e-4, 1e-3, 1e-2), maturity=100),
    "ccbp": grid("ccbp", "rate", (1e-3, 1.5e-2)),
    "snr": [{"method": "snr", "settings": {}}],
    "swr": grid("swr", "share", (1e-3, 1e-2, 1e-1), every=100),
    **{
        f"{name} (knows the tasks)": [{"method": name, "settings": {**TASKS, **more}}]
        for name, more in {
            "reset": {"layers": 1, "preset": "spr"}, "fire": {}, "optimizer_reset": {}, "rewarm": {"steps": 200},
        }.items()
    },
    "adamrel (knows the tasks)": grid("optimizer_reset", "preset", ("adamrel",), **TASKS),
    "dash (knows the tasks)": grid("dash", "alpha", (0.1, 0.3), **TASKS),
    "plasticity_injection (knows the tasks)": grid("plasticity_injection", "at", ((1,), (20,)), clock="tasks"),
    "shrink_perturb (knows the tasks)": grid("shrink_perturb", "shrink", (0.5, 0.8), **TASKS),
    "hare_tortoise (knows the tasks)": grid("hare_tortoise", "momentum", (0.99, 0.999), **TASKS),
    "shrink_perturb (soft)": grid("shrink_perturb", "shrink", (0.9999, 0.99999), preset="soft"),
}  # fmt: skip
"""Entry -> the settings that are tried; the one that is best on the seeds ``TUNED_ON`` is shown."""


def outcome(stream: str, entry: str, variant: int, seed: int, scale: float = 1.0) -> dict[str, Any]:
    """Return the outcome of one run; of one that diverges, why."""
    import torch

    from plasticity.agents.optimizers import AgentConfig
    from plasticity.interventions import INTERVENTIONS

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    what, started = dict(ENTRIES[entry][variant]), time.perf_counter()
    lr, activation, norm = what.pop("lr", RATES[stream]), what.pop("activation", "relu"), what.pop("norm", "none")
    name, settings = what.pop("method", None), what.pop("settings", {})

    def make(num_inputs: int, hidden: list[int], outputs: int, loss: Any) -> Learner:
        methods = [INTERVENTIONS[name](**settings, seed=seed)] if name else []
        return Learner(network(num_inputs, hidden, outputs, activation, norm), loss, AgentConfig(**what), lr, methods)

    row = {"stream": stream, "entry": entry, "variant": variant, "seed": seed}
    try:
        found: dict[str, Any] = STREAMS[stream](make, seed, scale)
    except (FloatingPointError, ValueError) as error:
        found = {"last": None, "first": None, "error": str(error).splitlines()[0][:200]}
    return {**row, **found, "seconds": round(time.perf_counter() - started, 1)}


def rows() -> list[dict[str, Any]]:
    """Return the runs that are finished."""
    return [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells a run apart from others."""
    return row["stream"], row["entry"], row["variant"], row["seed"]


def finish(cases: list[tuple[Any, ...]], jobs: int) -> None:
    """Run what is missing of the cases, several at once, and write every one down as it ends."""
    os.environ["OMP_NUM_THREADS"] = "1"
    done = {key(row) for row in rows()}
    missing = [case for case in cases if case not in done]
    RESULTS.mkdir(exist_ok=True)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool, FILE.open("a") as file:
        for future in as_completed([pool.submit(outcome, *case) for case in missing]):
            row = future.result()
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(row, flush=True)


def value(row: dict[str, Any]) -> float:
    """Return the outcome at the end, larger is better; minus infinity for a run that failed."""
    if row["last"] is None:
        return -np.inf
    return -row["last"] if row["stream"] in LOWER_IS_BETTER else row["last"]


def chosen(stream: str, entry: str, found: list[dict[str, Any]]) -> int | None:
    """Return the variant that is best on the seeds for tuning; None while one is missing."""
    if len(ENTRIES[entry]) == 1:
        return 0
    means = []
    for variant in range(len(ENTRIES[entry])):
        mine = [value(r) for r in found if key(r)[:3] == (stream, entry, variant) and r["seed"] in TUNED_ON]
        if len(mine) < len(TUNED_ON):
            return None
        means.append(float(np.mean(mine)))
    return int(np.argmax(means))


def table(streams: list[str], seeds: list[int]) -> Iterator[str]:
    """Yield the table of a stream in Markdown: outcome, difference to the plain network over seeds, verdict."""
    found = rows()
    for stream in streams:
        plain = {r["seed"]: value(r) for r in found if key(r)[:3] == (stream, "none", 0)}
        yield f"\n### {stream}\n\n| | setting | first | last | better than none by | keeps |\n|---|---|---|---|---|---|"
        for entry in ENTRIES:
            variant = chosen(stream, entry, found)
            mine = [r for r in found if key(r)[:3] == (stream, entry, variant) and r["seed"] in seeds]
            if variant is None or len(mine) < 2:
                continue
            if any(row["last"] is None for row in mine):
                yield f"| {entry} | {ENTRIES[entry][variant]} | - | failed: {mine[0].get('error')} | - | no |"
                continue
            first, last = (interval([row[part] for row in mine]) for part in ("first", "last"))
            better = interval([value(row) - plain[row["seed"]] for row in mine if row["seed"] in plain])
            keeps = "yes" if better["low"] > 0 else "worse" if better["high"] < 0 else "no"
            numbers = [f"{x['mean']:.3f} [{x['low']:.3f}, {x['high']:.3f}]" for x in (first, last, better)]
            yield f"| {entry} | {ENTRIES[entry][variant] or '-'} | {' | '.join(numbers)} | {keeps} |"


def summary(streams: list[str], seeds: list[int]) -> Iterator[str]:
    """Yield one table of all streams in Markdown: outcome, in brackets how much better than none, and the verdict."""
    found = rows()
    plain = {(r["stream"], r["seed"]): value(r) for r in found if r["entry"] == "none"}
    yield f"| | {' | '.join(f'{stream} | keeps' for stream in streams)} |\n|---{'|---|---' * len(streams)}|"
    for entry in ENTRIES:
        cells: list[str] = []
        for stream in streams:
            variant = chosen(stream, entry, found)
            mine = [r for r in found if key(r)[:3] == (stream, entry, variant) and r["seed"] in seeds]
            if not mine or any(row["last"] is None for row in mine):
                cells += ["-", "failed" if mine else "-"]
                continue
            last = float(np.mean([row["last"] for row in mine]))
            better = interval([value(row) - plain[stream, row["seed"]] for row in mine])
            keeps = "yes" if better["low"] > 0 else "worse" if better["high"] < 0 else "no"
            cells += [f"{last:.3f} ({better['low']:+.3f}, {better['high']:+.3f})", keeps if entry != "none" else ""]
        yield f"| {entry} | {' | '.join(cells)} |"


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--entries", nargs="+", default=list(ENTRIES), choices=list(ENTRIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    parser.add_argument("--summary", action="store_true", help="print one table of all streams")
    parser.add_argument("--quick", action="store_true", help="a hundredth of every stream, one seed; saves nothing")
    given = parser.parse_args()
    if given.table or given.summary:
        print("\n".join((summary if given.summary else table)(given.streams, given.seeds)))
        return
    if given.quick:
        for stream in given.streams:
            for entry in given.entries:
                print(outcome(stream, entry, 0, 0, scale=0.01), flush=True)
        return
    tuning = [(s, e, v, seed) for s in given.streams for e in given.entries for v in range(len(ENTRIES[e]))
              for seed in TUNED_ON if len(ENTRIES[e]) > 1]  # fmt: skip
    finish(tuning, given.jobs)
    found = rows()
    shown = [(s, e, chosen(s, e, found), seed) for s in given.streams for e in given.entries for seed in given.seeds]
    finish(shown, given.jobs)
    print("\n".join(table(given.streams, given.seeds)))


if __name__ == "__main__":
    main()
