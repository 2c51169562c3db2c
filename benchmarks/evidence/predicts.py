"""Does the ranking of methods that ``diagnose`` gives in the middle of a run predict which one then helps?

python benchmarks/evidence/predicts.py [--jobs 2] [--quick]

At each point (a network after some tasks of a stream, an agent after some steps) methods are ranked by what they return
on copies (``predicts_rankings.py``). Then training goes on with each method and with none, for every seed. Reported:
the rank correlation of the two orders with an interval over points; and the regret, the share of the distance between
the worst and the best method of each point that is lost, of following the advice, of a method drawn by chance, and of
each method where it is always taken.

Every case is a line of results/predicts.jsonl: a script that was stopped goes on where it was; without that file it
does all of it anew, in about an hour and a half of one core.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import predicts_agents as agents
import predicts_streams as streams
from harness import arguments, interval, resumed, save, show
from predicts_rankings import ONCE, rankings_of

from plasticity.diagnosis.fresh import from_builder
from plasticity.diagnosis.trainee import Patient
from plasticity.interventions import INTERVENTIONS
from plasticity.reports.statistics import ranks

METHODS = ("reset", "shrink_perturb", "redo", "regrama", "optimizer_reset", "l2_init", "fire", "plasticity_injection")
NONE = "none"
Point = Sequence[Any]
"""A stream, a rate and a number of tasks; or an agent and a step."""
STREAM_POINTS = [[name, lr, tasks] for name, (rates, at) in streams.POINTS.items() for lr in rates for tasks in at]
AGENT_POINTS = [[agent, step] for agent in agents.AGENTS for step in agents.STEPS]
NAMES = (NONE, *METHODS)


def method_of(name: str, period: int, tasks: int) -> Any:
    """Return a method that is applied after the first update of every task, once if it can be applied once.

    What recycles neurons does so five times a task, and what has no schedule is at work all the time.
    """
    if name == NONE:
        return None
    kind = INTERVENTIONS[name]
    if name in ("redo", "regrama"):
        return kind(every=max(1, period // 5))
    starts = tuple(1 + period * task for task in range(1 if name in ONCE else tasks))
    return kind(at=starts, clock="gradient_steps") if "at" in kind.__dataclass_fields__ else kind()


def scores(point: Point, seed: int) -> dict[str, float]:
    """Return method -> score with it after the point."""
    if point[0] in agents.AGENTS:
        chosen = {name: None if name == NONE else name for name in NAMES}
        return {name: agents.go_on(*point, seed, method) for name, method in chosen.items()}
    period, after = streams.STREAMS[point[0]].period, streams.AFTER[point[0]]
    return {name: streams.go_on(*point, seed, method_of(name, period, after)) for name in NAMES}


def rankings(point: Point) -> dict[str, dict[str, float]]:
    """Return ranking -> method -> value."""
    if point[0] in agents.AGENTS:
        return rankings_of(agents.patient(*point), METHODS)
    stream, found, tasks = streams.STREAMS[point[0]], streams.aged(*point), point[2]
    last, ahead = (stream.batches(streams.Branch(own=9, since=tasks), task) for task in (tasks - 1, tasks))
    maker = from_builder(stream.build, found.model)
    forward = lambda model, batch: model(batch[0])  # noqa: E731
    patients = [
        Patient("net", found.model, found.optimizer, data, forward, maker, loss=stream.loss)
        for data in (last[-8:], ahead)
    ]
    return rankings_of(patients[0], METHODS, patients[1])


def case(point: Point, seed: int | None) -> dict[str, Any]:
    """Return the scores of a seed, or the rankings (``seed`` None)."""
    return rankings(point) if seed is None else scores(point, seed)


def summary(points: Sequence[Point], results: Mapping[Any, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Return rank correlations and regrets over the points."""
    found = [outcome(point, results, seeds) for point in points]
    return {"points": len(points)} | {
        what: {name: interval([one[what][name] for one in found if name in one[what]]) for name in _names(found, what)}
        for what in ("rank correlation", "regret")
    }


def _names(found: Sequence[dict[str, Any]], what: str) -> list[str]:
    return list(dict.fromkeys(name for one in found for name in one[what]))


def outcome(point: Point, results: Mapping[Any, Any], seeds: Sequence[int]) -> dict[str, dict[str, float]]:
    """Return the rank correlation of each ranking at a point, and the regret of each choice.

    Scores are scaled, worst 0, best 1. Where nothing is lost, ``diagnose`` ranks nothing: there is no correlation, and
    its advice is none.
    """
    score = np.array([np.mean([results[key(point, seed)][name] for seed in seeds]) for name in NAMES])
    lost = (score.max() - score) / max(score.max() - score.min(), 1e-12)
    correlations = {}
    regrets = {
        "chance": float(lost.mean()),
        **{f"always {name}": float(x) for name, x in zip(NAMES, lost, strict=True)},
    }
    for ranking, values in results[key(point, None)].items():
        guess = np.array([values.get(name, values.get(NONE, 0.0)) for name in NAMES])
        regrets[f"first of {ranking}"] = float(lost[guess.argmax()])
        if len(set(guess)) > 1:
            correlations[ranking] = correlation(guess, score)
    return {"rank correlation": correlations, "regret": regrets}


def chosen_elsewhere(points: Sequence[Point], results: Mapping[Any, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the regret of the choice that is best on the other families of points, by family, with its name."""
    rows = {}
    for family in dict.fromkeys(map(family_of, points)):
        rest, own = ([p for p in points if (family_of(p) == family) == here] for here in (False, True))
        means = {n: x["mean"] for n, x in summary(rest, results, seeds)["regret"].items() if n != "first of next"}
        best = min(means, key=means.__getitem__)
        rows[family] = {"choice": best, "regret": summary(own, results, seeds)["regret"][best]}
    return rows


def family_of(point: Point) -> str:
    """Return the stream, or ``agents``."""
    return point[0] if point[0] in streams.STREAMS else "agents"


def key(point: Point, seed: int | None) -> tuple[Any, ...]:
    """Return what tells a case apart from others."""
    return (*point, seed)


def correlation(guess: np.ndarray, score: np.ndarray) -> float:
    """Return Spearman's rank correlation."""
    return float(np.corrcoef(ranks(guess), ranks(score))[0, 1])


def main() -> None:
    """Run the cases that are missing and print the summary."""
    options, started = arguments(__doc__ or ""), time.perf_counter()
    points = [["permuted-digits", 1e-2, 1], ["bitflip", 3e-2, 1]] if options.quick else [*STREAM_POINTS, *AGENT_POINTS]
    seeds = options.seeds[:1] if options.quick else options.seeds
    cases = [{"point": point, "seed": seed} for seed in (None, *seeds) for point in points]
    found = resumed("predicts", case, cases, options.jobs, options.quick)
    results = {key(one["point"], one["seed"]): result for one, result in zip(cases, found, strict=True)}
    families = dict.fromkeys(map(family_of, points))
    parts = {"all": points} | {family: [p for p in points if family_of(p) == family] for family in families}
    summaries = {name: summary(part, results, seeds) for name, part in parts.items()}
    for name, numbers in summaries.items():
        print(f"\n{name}: {numbers['points']} points")
        for what in ("rank correlation", "regret"):
            print("\n".join(show(f"  {what}, {one}", value) for one, value in numbers[what].items()))
    elsewhere = chosen_elsewhere(points, results, seeds)
    for family, one in elsewhere.items():
        print(show(f"{family}: {one['choice']}, best on the other families, regret here", one["regret"]))
    save("predicts", {"summary": summaries, "chosen on other families": elsewhere}, started, options.quick)


if __name__ == "__main__":
    main()
