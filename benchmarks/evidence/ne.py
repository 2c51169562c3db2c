"""Neuroplastic Expansion against a dense network and RigL at constant density, on a changing teacher.

Acceptance: the density follows its schedule to 1e-3, and the loss on the last tasks is at most that of the dense net.
"""

from __future__ import annotations

import time

from harness import arguments, interval, run, save, show

METHODS = ("dense", "ne", "ne_official", "rigl")


def case(seed: int, method: str, tasks: int, steps: int) -> dict[str, float]:
    """Return early and late losses, the largest distance of the density from its schedule, and the final density."""
    import torch
    from streams import learn_stream, mlp

    from plasticity import Callback, Context
    from plasticity.interventions import NeuroplasticExpansion
    from plasticity.interventions.topology import grown_share

    torch.manual_seed(seed)
    net = mlp()
    end = tasks * steps * 3 // 4
    every = max(1, end // 100)
    common = {"every": every, "end": end, "dense_ends": True, "seed": seed}
    chosen = {
        "dense": None,
        "ne": NeuroplasticExpansion(**common),
        "ne_official": NeuroplasticExpansion(**{**common, "every": max(1, end // 191)}, preset="official"),
        "rigl": NeuroplasticExpansion(**common, preset="rigl", initial_density=0.5),
    }[method]
    error = [0.0]

    class Schedule(Callback):
        """Compare the density logged at every event with the schedule in closed form."""

        def log(self, step: int, values: dict) -> None:
            if method != "ne" or "interventions/ne/net/density" not in values or chosen is None:
                return
            done = grown_share(chosen._watcher.steps()[0] if chosen._watcher else 0, end)
            wanted = 0.2 + 0.55 * done
            error[0] = max(error[0], abs(values["interventions/ne/net/density"] - wanted))

        def event(self, *rest: object) -> None: ...

        def histogram(self, *rest: object) -> None: ...

    schedule = Schedule()

    class Lend(Callback):
        def on_train_start(self, ctx: Context) -> None:
            ctx.writer = schedule

    methods = [Lend(), *([chosen] if chosen else [])]
    rows = learn_stream(net, methods, seed=seed, tasks=tasks, steps=steps, lr=1e-3)
    tail = max(1, tasks // 5)
    density = chosen._masks["net"].density() if chosen else 1.0
    late = {f"late_{key}": sum(values[-tail:]) / tail for key, values in rows.items()}
    early = {f"early_{key}": sum(values[:tail]) / tail for key, values in rows.items()}
    return {**early, **late, "density_error": error[0], "final_density": density}


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    started = time.perf_counter()
    tasks, steps = (4, 60) if options.quick else (40, 300)
    cases = [{"seed": s, "method": m, "tasks": tasks, "steps": steps} for s in options.seeds for m in METHODS]
    results = dict(zip([(c["method"], c["seed"]) for c in cases], run(case, cases, options.jobs), strict=True))
    summary: dict[str, dict] = {}
    for method in METHODS:
        rows = [results[method, seed] for seed in options.seeds]
        summary[method] = {key: interval([r[key] for r in rows]) for key in rows[0]}
        for key, value in summary[method].items():
            print(show(f"{method} {key}", value))
    paired = {}
    for other in ("dense", "rigl"):
        gaps = [results["ne", s]["late_loss"] - results[other, s]["late_loss"] for s in options.seeds]
        paired[f"ne - {other}: late_loss"] = interval(gaps)
        print(show(f"ne - {other}: late_loss", paired[f"ne - {other}: late_loss"]))
    payload = {"command": "python benchmarks/evidence/ne.py", "tasks": tasks, "steps_per_task": steps}
    save("ne", {**payload, "summary": summary, "paired": paired}, started, options.quick)


if __name__ == "__main__":
    main()
