"""GraMa's theorem on real runs: a neuron whose activation score is 0 has a GraMa score of 0 (arXiv 2505.24061, 4.2).

SAC with ReLU networks on HalfCheetah-v5: without norms, with LayerNorm before every activation, BroNet and SimBa. Every
500 updates, on the batch of that very update, count the hidden neurons of actor and critics that are dormant at
threshold 0, and how many of them have a positive GraMa score, in each of the four readings. The theorem holds for
``pre`` and ``weight``; it fails for ``linear`` where a norm stands between a layer and its ReLU, and everywhere for
``post``, the equation read literally.
"""

from __future__ import annotations

import shlex
import sys
import time

from harness import interval, options_of, run, save, show

READINGS = ("pre", "weight", "linear", "post")
NETWORKS = {
    "mlp": {},
    "mlp, layer norm": {"norm": "layer"},
    "bronet": {"network": "bronet", "hidden": (128, 128)},
    "simba": {"network": "simba", "hidden": (128, 128)},
}


def count(seed: int, steps: int, network: str) -> dict[str, float]:
    """Return, for one seed and kind of network, dormant neurons seen, violations per reading, and the final ratios."""
    from plasticity import Callback, Context, Measure
    from plasticity.agents import SAC, SACConfig
    from plasticity.agents.train import train
    from plasticity.envs import make_env
    from plasticity.probes import Dormancy, GradientActivity

    probes = {"dormancy": Dormancy(0.0), **{reading: GradientActivity(reading, 0.0) for reading in READINGS}}
    measure = Measure(probes, every=500, strict=True)
    totals = {"measurements": 0.0, "dormant": 0.0, **{f"violations_{reading}": 0.0 for reading in READINGS}}
    seen: dict[str, int] = {}

    class Count(Callback):
        def on_update_end(self, ctx: Context, metrics: dict) -> None:
            for network, reading in measure.last.items():
                if seen.get(network) == id(reading):
                    continue
                seen[network] = id(reading)
                totals["measurements"] += 1
                for layer, activity in reading.scores["dormancy"].items():
                    if layer in reading.projections:
                        continue
                    dormant = activity == 0
                    totals["dormant"] += float(dormant.sum())
                    for name in READINGS:
                        totals[f"violations_{name}"] += float((reading.scores[name][layer][dormant] > 0).sum())

    env = make_env("HalfCheetah-v5", seed=seed)
    config = SACConfig(learning_starts=min(2000, steps // 4), buffer_size=steps + 1, **NETWORKS[network])
    agent = SAC(env.observation_space, env.action_space, config, seed=seed)
    train(env, agent, steps, [measure, Count()])
    env.close()
    final = {name: [r.values[name]["all"] for r in measure.last.values()] for name in ("dormancy", *READINGS)}
    return {**totals, **{f"final_{name}": sum(values) / len(values) for name, values in final.items()}}


def main() -> None:
    parser = options_of(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000, help="environment steps of a run (1,500 with --quick)")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--name", default="grama_theorem", help="of the file in results/")
    options = parser.parse_args()
    started, steps = time.perf_counter(), 1_500 if options.quick else options.steps
    networks = options.networks
    cases = [{"seed": seed, "steps": steps, "network": network} for network in networks for seed in options.seeds]
    results = run(count, cases, options.jobs)
    summary, verdicts = {}, {}
    for network in networks:
        found = [r for r, case in zip(results, cases, strict=True) if case["network"] == network]
        summary[network] = {key: interval([r[key] for r in found]) for key in found[0]}
        for key, value in summary[network].items():
            print(show(f"{network}: {key}", value))
        broken = sum(r["violations_pre"] + r["violations_weight"] for r in found)
        dormant = sum(r["dormant"] for r in found)
        verdicts[network] = f"{broken:.0f} violations in pre and weight among {dormant:.0f} dormant neurons seen"
        print(f"{network}: {verdicts[network]}")
    command = " ".join(["python benchmarks/evidence/grama_theorem.py", *map(shlex.quote, sys.argv[1:])])
    payload = {"command": command, "steps": steps, "verdict": verdicts}
    save(options.name, {**payload, "summary": summary, "runs": results}, started, options.quick)


if __name__ == "__main__":
    main()
