"""ReGraMa against ReDo and no method, on a residual LayerNorm network that must follow a changing teacher.

Thresholds are 0.1, the upper end of what the ReGraMa paper tries: at its 0.01 no neuron of this network is inactive.

Acceptance: the inactive ratio and the loss on the last tasks are below those of no method and of ReDo.
"""

from __future__ import annotations

import time

from harness import arguments, interval, run, save, show

METHODS = ("none", "redo", "regrama", "regrama_official")


def case(seed: int, method: str, tasks: int, steps: int) -> dict[str, float]:
    """Return early and late losses and ratios of one run."""
    import torch
    from streams import ResidualNet, learn_stream

    from plasticity.interventions import ReDo, ReGraMa

    torch.manual_seed(seed)
    net = ResidualNet()
    chosen = {
        "none": [],
        "redo": [ReDo(every=200, threshold=0.1, seed=seed)],
        "regrama": [ReGraMa(every=200, threshold=0.1, seed=seed)],
        "regrama_official": [ReGraMa(preset="official", threshold=0.1, every=200, seed=seed)],
    }[method]
    rows = learn_stream(net, chosen, seed=seed, tasks=tasks, steps=steps, lr=1e-2)
    tail = max(1, tasks // 5)
    late = {f"late_{key}": sum(values[-tail:]) / tail for key, values in rows.items()}
    early = {f"early_{key}": sum(values[:tail]) / tail for key, values in rows.items()}
    recycled = sum(m.counts.get("recycled", 0) for m in chosen)
    return {**early, **late, "recycled": float(recycled)}


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    started = time.perf_counter()
    tasks, steps = (4, 50) if options.quick else (50, 400)
    cases = [{"seed": s, "method": m, "tasks": tasks, "steps": steps} for s in options.seeds for m in METHODS]
    results = dict(zip([(c["method"], c["seed"]) for c in cases], run(case, cases, options.jobs), strict=True))
    summary: dict[str, dict] = {}
    for method in METHODS:
        rows = [results[method, seed] for seed in options.seeds]
        summary[method] = {key: interval([r[key] for r in rows]) for key in rows[0]}
        for key, value in summary[method].items():
            print(show(f"{method} {key}", value))
    paired = {}
    for other in ("none", "redo"):
        for key in ("late_loss", "late_inactive"):
            gaps = [results["regrama", s][key] - results[other, s][key] for s in options.seeds]
            paired[f"regrama - {other}: {key}"] = interval(gaps)
            print(show(f"regrama - {other}: {key}", paired[f"regrama - {other}: {key}"]))
    payload = {"command": "python benchmarks/evidence/regrama.py", "tasks": tasks, "steps_per_task": steps}
    save("regrama", {**payload, "summary": summary, "paired": paired}, started, options.quick)


if __name__ == "__main__":
    main()
