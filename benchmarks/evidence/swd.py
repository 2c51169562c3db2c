"""Sample Weight Decay: its theory on a growing buffer, and SAC with it, its reverse and a plain window.

Part 1, fitted Q iteration with a buffer that grows by one batch per iteration while the data drift: the gradient at
the previous solution falls as 1/k under uniform replay (theorem 3 of arXiv 2604.01913); the order of its size should
be SWA < uniform < SWD. Part 2, SAC on dm_control cartpole-swingup, a short budget, at 1, 2 and 5 updates per step:
uniform, SWD, SWA, and uniform over a window of the horizon, the control that reviewers asked for.
"""

from __future__ import annotations

import math
import time

from harness import arguments, interval, run, save, show

SAMPLERS = ("uniform", "swd", "swa", "window")
RATIOS = (1, 2, 5)


def fitted_q(seed: int, iterations: int, fit_steps: int) -> dict[str, float]:
    """Return, per sampler, the gradient norm at the previous solution (mean of the last half) and its log-log slope."""
    import torch
    from torch import nn

    from plasticity.interventions.swd import Linear, Reversed

    rows: dict[str, float] = {}
    for sampler in ("uniform", "swd", "swa"):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
        generator = torch.Generator().manual_seed(seed)
        horizon = iterations / 4
        law = {"uniform": None, "swd": Linear(horizon, 0.1), "swa": Reversed(horizon, 0.1)}[sampler]
        states, targets, norms = [], [], []
        for k in range(1, iterations + 1):
            # The visited states drift slowly round a circle; the target is a fixed function of the state, so that
            # only the shift of the data is left (the first term of the theorem).
            angle = torch.tensor(2 * math.pi * k / iterations)
            centre = torch.stack([angle.cos(), angle.sin()])
            state = centre + 0.3 * torch.randn(16, 2, generator=generator)
            states.append(state)
            targets.append(torch.sin(3 * state[:, :1]) * torch.cos(2 * state[:, 1:]))
            x, y = torch.cat(states), torch.cat(targets)
            ages = torch.arange(k, 0, -1, dtype=torch.float64).repeat_interleave(16)
            weight = torch.ones_like(ages) if law is None else law(ages)
            weight = (weight / weight.sum()).float()[:, None]

            def loss(
                net: nn.Module = net, x: torch.Tensor = x, y: torch.Tensor = y, weight: torch.Tensor = weight
            ) -> torch.Tensor:
                return (weight * (net(x) - y).square()).sum()

            if k > 1:
                grads = torch.autograd.grad(loss(), list(net.parameters()))
                norms.append(float(torch.sqrt(sum(g.square().sum() for g in grads))))
            optimizer = torch.optim.Adam(net.parameters(), 1e-3)
            for _ in range(fit_steps):
                optimizer.zero_grad()
                loss().backward()
                optimizer.step()
        half = len(norms) // 2
        log_k = torch.arange(2, iterations + 1, dtype=torch.float64).log()
        log_g = torch.tensor(norms, dtype=torch.float64).log()
        slope = torch.linalg.lstsq(torch.stack([log_k, torch.ones_like(log_k)], 1), log_g[:, None]).solution[0, 0]
        rows[f"grad_{sampler}"] = sum(norms[half:]) / (len(norms) - half)
        rows[f"slope_{sampler}"] = float(slope)
    return rows


def sac(seed: int, sampler: str, ratio: int, steps: int) -> dict[str, float]:
    """Return the mean training return of the last quarter and the mean critic gradient norm of the last half."""
    import torch

    from plasticity import Callback, Context
    from plasticity.agents import SAC, SACConfig
    from plasticity.agents.records import Episodes
    from plasticity.agents.train import context, train
    from plasticity.envs import make_env
    from plasticity.interventions import SampleWeightDecay

    horizon = steps // 6
    methods = {
        "uniform": [],
        "swd": [SampleWeightDecay(horizon=horizon)],
        "swa": [SampleWeightDecay(horizon=horizon, reversed=True)],
        "window": [SampleWeightDecay(horizon=horizon, shape="window", floor=0.0)],
    }[sampler]
    env = make_env("dmc/cartpole-swingup", seed=seed, action_repeat=8)
    config = SACConfig(
        hidden=(64, 64), batch_size=128, learning_starts=min(500, steps // 4), buffer_size=steps + 1,
        updates_per_step=float(ratio),
    )  # fmt: skip
    agent = SAC(env.observation_space, env.action_space, config, seed=seed)
    returns: list[tuple[int, float]] = []
    norms: list[float] = []

    class Writer:
        def log(self, step: int, values: dict) -> None:
            if "charts/episodic_return" in values:
                returns.append((step, values["charts/episodic_return"]))

        def event(self, *rest: object) -> None: ...

        def histogram(self, *rest: object) -> None: ...

    class Norms(Callback):
        def on_update_end(self, ctx: Context, metrics: dict) -> None:
            if agent.updates % 20 == 0:
                grads = [p.grad for p in agent.networks["critic_1"].parameters() if p.grad is not None]
                norms.append(float(torch.sqrt(sum(g.square().sum() for g in grads))))

    train(env, agent, steps, [*methods, Norms(), Episodes()], context(agent, writer=Writer()))
    env.close()
    late = [value for step, value in returns if step > steps * 3 / 4]
    return {"return": sum(late) / max(1, len(late)), "grad": sum(norms[len(norms) // 2 :]) / max(1, len(norms) // 2)}


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    started = time.perf_counter()
    iterations, fit_steps, steps = (12, 20, 600) if options.quick else (80, 100, 2_000)
    theory = run(
        fitted_q, [{"seed": s, "iterations": iterations, "fit_steps": fit_steps} for s in options.seeds], options.jobs
    )
    summary: dict[str, dict] = {"fitted_q": {key: interval([r[key] for r in theory]) for key in theory[0]}}
    cases = [
        {"seed": s, "sampler": name, "ratio": ratio, "steps": steps}
        for s in options.seeds for ratio in RATIOS for name in SAMPLERS
    ]  # fmt: skip
    found = run(sac, cases, options.jobs)
    results = {(c["sampler"], c["ratio"], c["seed"]): r for c, r in zip(cases, found, strict=True)}
    paired = {}
    for ratio in RATIOS:
        for name in SAMPLERS:
            rows = [results[name, ratio, s] for s in options.seeds]
            summary[f"sac {name}, {ratio} updates per step"] = {k: interval([r[k] for r in rows]) for k in rows[0]}
        for other in ("uniform", "window", "swa"):
            gaps = [results["swd", ratio, s]["return"] - results[other, ratio, s]["return"] for s in options.seeds]
            paired[f"swd - {other}: return, {ratio} updates per step"] = interval(gaps)
    for group, values in summary.items():
        for key, value in values.items():
            print(show(f"{group}: {key}", value))
    for key, value in paired.items():
        print(show(key, value))
    payload = {"command": "python benchmarks/evidence/swd.py", "iterations": iterations, "steps": steps}
    save("swd", {**payload, "summary": summary, "paired": paired}, started, options.quick)


if __name__ == "__main__":
    main()
