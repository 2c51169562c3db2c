"""LEAST on a corridor with a dead end: SAC with and without it, five seeds.

A point on a line starts near the middle and is pushed about. Beyond -0.5 it is caught: nothing it does matters until
the clock ends the episode. Beyond +1 is the goal (+10, terminated); every step costs 0.02. A learner with a budget of
environment steps loses most of them in the dead end unless it stops such episodes.

Acceptance: the share of steps after warm-up that are spent in the dead end drops, the stop rate is in (0, 0.6), the
evaluation return is not worse, and evaluation itself is never stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from harness import arguments, interval, run, save, show
from torch import Tensor

LIMIT = 100


@dataclass
class Step:
    """One transition."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor
    truncated: Tensor


class Corridor:
    """One environment of the loop's protocol; ``caught_steps`` counts steps that began in the dead end."""

    name, num_envs = "corridor", 1

    def __init__(self, seed: int) -> None:
        from gymnasium import spaces

        self.observation_space = spaces.Box(-2, 2, (2,))
        self.action_space = spaces.Box(-1, 1, (1,))
        self.generator = torch.Generator().manual_seed(seed)
        self.steps = self.caught_steps = 0
        self.x, self.clock = 0.0, 0

    def _random(self) -> float:
        return float(torch.rand((), generator=self.generator) * 2 - 1)

    def _obs(self) -> Tensor:
        return torch.tensor([[self.x, float(self.x < -0.5)]])

    def reset(self, done: Tensor | None = None) -> Tensor:
        self.x, self.clock = 0.4 * self._random(), 0
        return self._obs()

    def step(self, action: Tensor) -> Step:
        obs, caught = self._obs(), self.x < -0.5
        self.steps, self.caught_steps = self.steps + 1, self.caught_steps + caught
        self.clock += 1
        push = 0.05 * float(action.clamp(-1, 1)[0, 0]) + 0.15 * self._random()
        self.x = min(-0.55, self.x + 0.2 * push) if caught else self.x + push
        goal = self.x > 1
        reward = torch.tensor([10.0 * goal - 0.02])
        ended = torch.tensor([goal]), torch.tensor([self.clock >= LIMIT and not goal])
        return Step(obs, action, reward, self._obs(), *ended)

    def close(self) -> None: ...


def case(seed: int, least: bool, steps: int) -> dict[str, float]:
    """Return what one run did after its warm-up."""
    from plasticity import Callback, Context
    from plasticity.agents import SAC, SACConfig
    from plasticity.agents.evaluate import evaluate
    from plasticity.agents.train import train
    from plasticity.interventions import LearnToStop

    warmup = steps // 5
    env = Corridor(seed)
    config = SACConfig(hidden=(64, 64), batch_size=128, learning_starts=1000, buffer_size=steps + 1)
    agent = SAC(env.observation_space, env.action_space, config, seed=seed)
    method = LearnToStop(warmup=warmup, window=50, window_min=20, window_max=200, window_every=2000, seed=seed)
    before: dict[str, int] = {}
    stopped, episodes, goals = [0], [0], [0]

    class Count(Callback):
        def on_step(self, ctx: Context, transition: Step) -> None:
            if ctx.step == warmup:
                before.update(steps=env.steps, caught=env.caught_steps)
            if ctx.step > warmup and bool(transition.truncated | transition.terminated):
                episodes[0] += 1
                goals[0] += bool(transition.terminated)
                stopped[0] += bool(transition.truncated) and env.clock < LIMIT

    train(env, agent, steps, [*([method] if least else []), Count()])
    share = (env.caught_steps - before["caught"]) / (env.steps - before["steps"])
    test = Corridor(seed + 10_000)
    returns = evaluate(agent, test, 50)
    return {
        "share_in_dead_end": share,
        "stop_rate": stopped[0] / max(1, episodes[0]),
        "episodes": float(episodes[0]),
        "goals_per_1000_steps": 1000 * goals[0] / (steps - warmup),
        "eval_return": float(returns.mean()),
        # An evaluation episode ends at the goal or at the clock: none may be shorter without the goal.
        "eval_steps": test.steps / 50,
    }


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    started, steps = time.perf_counter(), 3_000 if options.quick else 12_000
    cases = [{"seed": s, "least": on, "steps": steps} for s in options.seeds for on in (False, True)]
    results = dict(zip([(c["least"], c["seed"]) for c in cases], run(case, cases, options.jobs), strict=True))
    summary: dict[str, dict] = {}
    for on in (False, True):
        rows = [results[on, s] for s in options.seeds]
        name = "least" if on else "none"
        summary[name] = {key: interval([r[key] for r in rows]) for key in rows[0]}
        for key, value in summary[name].items():
            print(show(f"{name} {key}", value))
    paired = {}
    for key in ("share_in_dead_end", "goals_per_1000_steps", "eval_return"):
        paired[key] = interval([results[True, s][key] - results[False, s][key] for s in options.seeds])
        print(show(f"least - none: {key}", paired[key]))
    payload = {"command": "python benchmarks/evidence/least.py", "steps": steps}
    save("least", {**payload, "summary": summary, "paired": paired}, started, options.quick)


if __name__ == "__main__":
    main()
