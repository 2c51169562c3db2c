"""Does the ranking of methods that ``diagnose`` gives in the middle of a run predict which one then helps?

python benchmarks/evidence/predicts.py [--jobs 2] [--quick]

At each point (a network after some tasks of a stream, an agent after some steps) ``diagnose`` ranks the methods by the
share of the lost learning that they return on copies. Then training goes on with each method and with none, for every
seed. Reported: the rank correlation of the two orders with an interval over points; and the regret, the share of the
distance between the worst and the best method of each point that is lost, of following the advice, of a method drawn by
chance, and of each method where it is always taken.

The runs of agents begin with a seed of their own each, and get the method at the step of the point; their ranking is
that of another run, of seed 0. Every case is a file in results/predicts: a script that was stopped goes on where it
was. About an hour of one core.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, arguments, interval, run, save, show
from streams import ResidualNet, mlp, teacher
from torch import Tensor, nn

import plasticity
from plasticity.interventions import INTERVENTIONS
from plasticity.reports.statistics import ranks

METHODS = ("reset", "shrink_perturb", "redo", "regrama", "optimizer_reset", "l2_init", "fire", "plasticity_injection")
NONE = "none"
NETWORKS = {"mlp": mlp, "residual": ResidualNet}
INPUTS, AFTER, STEPS = 16, 5, 300
"""Inputs of the streams, tasks after a point, updates of a task."""
STREAMS = [("stream", net, lr, task) for net in NETWORKS for lr in (1e-3, 1e-2) for task in (2, 10, 30)]
AGENTS = {
    "sac": ("Pendulum-v1", ("--hidden", "64", "64", "--batch-size", "64", "--learning-starts", "500")),
    "dqn": ("CartPole-v1", ("--preset", "zoo", "--hidden", "64", "64")),
    "ppo": ("CartPole-v1", ()),
}
"""Agent -> environment, options. Small networks: every score is five runs from nothing."""
RUNS = [("run", agent, env, step) for agent, (env, _) in AGENTS.items() for step in (3_000, 6_000, 12_000)]
MORE = 4_000
"""Environment steps after a point of an agent."""


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean squared error."""
    return (model(batch[0]) - batch[1]).square().mean()


# -- streams -----------------------------------------------------------------------------------------------------------


def batches_of(task: int, num: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return minibatches of a task of a stream."""
    generator = torch.Generator().manual_seed(1000 * seed + task)
    labels = teacher(torch.Generator().manual_seed(task))
    inputs = [torch.randn(64, INPUTS, generator=generator) for _ in range(num)]
    return [(x, labels(x)) for x in inputs]


def learn(model: nn.Module, optimizer: Any, tasks: range, steps: int, seed: int, method: Any = None) -> list[float]:
    """Learn tasks one after the other, with a method; return the final loss of each."""
    ctx, finals = plasticity.Context({"model": model}, {"model": optimizer}), []
    plasticity.start([] if method is None else [method], ctx)
    for task in tasks:
        losses = []
        for batch in batches_of(task, steps, seed):
            value = loss(ctx.networks["model"], batch)
            ctx.optimizers["model"].zero_grad()
            value.backward()
            ctx.optimizers["model"].step()
            losses.append(value.item())
        finals.append(sum(losses[-20:]) / 20)
    if method is not None:
        method.on_train_end(ctx)
    return finals


def stream_point(network: str, lr: float, task: int, steps: int) -> tuple[nn.Module, Any]:
    """Return the network and its optimizer after so many tasks."""
    torch.manual_seed(0)
    model = NETWORKS[network]()
    optimizer = torch.optim.Adam(model.parameters(), lr)
    learn(model, optimizer, range(task), steps, 0)
    return model, optimizer


def stream_case(point: Sequence[Any], seed: int | None, quick: bool) -> dict[str, float]:
    """Return method -> share returned on copies (``seed`` None), or score with it after the point."""
    _, network, lr, task = point
    steps = 20 if quick else STEPS
    model, optimizer = stream_point(network, lr, task, steps)
    if seed is None:
        found = plasticity.diagnose(
            model, optimizer, batches_of(task, 8, 0), loss, fresh=NETWORKS[network],
            budget=3600, steps=5 if quick else 40, teachers=2 if quick else 4,
        )  # fmt: skip
        return shares(found)
    scores = {}
    for name in names_of(point):
        twin, own = copy.deepcopy((model, optimizer))
        finals = learn(twin, own, range(task, task + (1 if quick else AFTER)), steps, 1 + seed, method_of(name, steps))
        scores[name] = -float(np.log10(max(np.mean(finals), 1e-12)))
    return scores


def names_of(point: Sequence[Any]) -> list[str]:
    """Return none and the methods that apply at a point: the residual network has no head to inject into."""
    return [name for name in (NONE, *METHODS) if not (name == "plasticity_injection" and "residual" in point)]


def method_of(name: str, period: int) -> Any:
    """Return a method that is applied at the start of every task, once if it can be applied once, or all the time."""
    if name == NONE:
        return None
    kind = INTERVENTIONS[name]
    fields = kind.__dataclass_fields__
    if name == "plasticity_injection":
        return kind(at=(1,), clock="gradient_steps")
    clock = {"clock": "gradient_steps"} if "clock" in fields else {}
    return kind(every=period, **clock) if "every" in fields else kind()


def shares(found: plasticity.Diagnosis) -> dict[str, float]:
    """Return method -> share of the gap that it closed; 0 where nothing is lost, or where it does not apply."""
    known = {tried.name: tried.closes.value for tried in found.examination.remedies}
    return {NONE: 0.0, **{name: known.get(name, 0.0) for name in METHODS}}


# -- agents ------------------------------------------------------------------------------------------------------------


def run_case(point: Sequence[Any], seed: int | None, quick: bool) -> dict[str, float]:
    """Return the same for an agent: shares of its value network, or the return of its last episodes."""
    from plasticity.cli import main
    from plasticity.storage.record import read_record

    _, agent, env, step = point
    folder, size = RESULTS / "predicts" / "runs", ("400", "200") if quick else (str(step), str(MORE))
    start = ["--learning-starts", "100"] if quick and agent != "ppo" else []
    common = ["--env", env, "--quiet", "--out", str(folder), "--probes", *AGENTS[agent][1], *start]
    if seed is None:
        name = f"{agent}-{step}-{'quick' if quick else 'full'}"
        if not (folder / name / "model").exists():
            main(["train", agent, *common, "--steps", size[0], "--name", name, "--checkpoint.every", size[0]])
        return run_shares(folder / name, quick)
    scores = {}
    total = str(int(size[0]) + int(size[1]))
    for method in (NONE, *METHODS):
        name = f"{agent}-{step}-{method}-{seed}"
        flags = run_flags(method, size[0])
        main(["train", agent, *common, "--steps", total, "--name", name, "--seed", str(seed), *flags])
        scores[method] = float(np.mean(read_record(folder / name)["eval_returns"]))
    return scores


def run_flags(method: str, step: str) -> list[str]:
    """Return the options that switch a method on at a step: applied then, or all the time where it has no schedule."""
    if method == NONE:
        return []
    flag, fields = f"--{method.replace('_', '-')}", INTERVENTIONS[method].__dataclass_fields__
    once = [f"{flag}.at", step, f"{flag}.clock", "env_steps"] if "at" in fields else []
    return [flag, *once, *([f"{flag}.start", step] if "start" in fields and not once else [])]


def run_shares(folder: Path, quick: bool) -> dict[str, float]:
    """Return the shares that methods returned on the first network with a gap, 0 where nothing is lost."""
    from plasticity.commands.diagnose import DiagnoseConfig, examined

    config = DiagnoseConfig(folder, budget="1h", steps=5 if quick else 40, teachers=2 if quick else 4, remedies=True)
    found = [verdict for verdict in examined(config)[2] if verdict.examination.remedies]
    return shares(found[0]) if found else dict.fromkeys((NONE, *METHODS), 0.0)


# -- all cases ---------------------------------------------------------------------------------------------------------


def case(point: Sequence[Any], seed: int | None, quick: bool) -> dict[str, float]:
    """Return the numbers of a case, from its file where there is one."""
    name = "-".join(map(str, (*point, "ranking" if seed is None else seed))).replace("/", "_")
    file = RESULTS / "predicts" / f"{name}.json"
    if file.is_file() and not quick:
        return json.loads(file.read_text())
    found = (stream_case if point[0] == "stream" else run_case)(point, seed, quick)
    if not quick:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
    return found


def summary(points: Sequence[Any], results: Mapping[Any, dict[str, float]], seeds: Sequence[int]) -> dict[str, Any]:
    """Return rank correlations and regrets over the points; scores of a point are scaled, worst 0, best 1."""
    everywhere = [name for name in (NONE, *METHODS) if all(name in names_of(p) for p in points)]
    correlations, regrets = [], []
    for point in points:
        names = names_of(point)
        score = np.array([np.mean([results[point, seed][name] for seed in seeds]) for name in names])
        guess = np.array([results[point, None][name] for name in names])
        lost = (score.max() - score) / max(score.max() - score.min(), 1e-12)
        if guess.any():
            correlations.append(correlation(guess, score))
        always = {name: lost[names.index(name)] for name in everywhere}
        regrets.append({"the advice": lost[guess.argmax()], "chance": lost.mean(), **always})
    return {
        "points": len(points),
        "points with something lost": len(correlations),
        "rank correlation": interval(correlations) if correlations else None,
        **{f"regret of {name}": interval([one[name] for one in regrets]) for name in regrets[0]},
    }


def correlation(guess: np.ndarray, score: np.ndarray) -> float:
    """Return Spearman's rank correlation."""
    return float(np.corrcoef(ranks(guess), ranks(score))[0, 1])


def main() -> None:
    """Run the cases that are missing and print the summary."""
    options, started = arguments(__doc__ or ""), time.perf_counter()
    points = [STREAMS[0], STREAMS[3]] if options.quick else [*STREAMS, *RUNS]
    seeds = options.seeds[:1] if options.quick else options.seeds
    keys = [(point, seed) for point in points for seed in (None, *seeds)]
    cases = [{"point": point, "seed": seed, "quick": options.quick} for point, seed in keys]
    results = dict(zip(keys, run(case, cases, options.jobs), strict=True))
    found = summary(points, results, seeds)
    for name, value in found.items():
        print(show(name, value) if isinstance(value, dict) else f"{name}: {value}")
    rows = [{"point": point, "seed": seed, "result": results[point, seed]} for point, seed in keys]
    save("predicts", {"summary": found, "cases": rows}, started, options.quick)


if __name__ == "__main__":
    main()
