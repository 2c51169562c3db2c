"""Agents for ``predicts.py``: a run up to a step, and its return some steps later with a method that begins there.

The runs of the scores begin with a seed of their own each; the ranking is that of another run, of seed 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from harness import RESULTS

from plasticity.diagnosis.trainee import Patient
from plasticity.interventions import INTERVENTIONS

AGENTS = {
    "sac": ("Pendulum-v1", ("--hidden", "64", "64", "--batch-size", "64", "--learning-starts", "500")),
    "dqn": ("CartPole-v1", ("--preset", "zoo", "--hidden", "64", "64")),
    "ppo": ("CartPole-v1", ()),
}
"""Agent -> environment, options. Small networks: every score is a run from nothing."""
STEPS = (3_000, 6_000, 12_000)
MORE = 4_000
"""Environment steps after a point."""


def train(agent: str, steps: int, name: str, options: list[str]) -> Path:
    """Train an agent and return the folder of the run."""
    from plasticity.cli import main

    folder = RESULTS / "predicts"
    env, own = AGENTS[agent]
    starts = ["--learning-starts", "100"] if steps < 1000 and agent != "ppo" else []
    common = ["--env", env, "--quiet", "--out", str(folder), "--probes", *own, *starts]
    main(["train", agent, *common, "--steps", str(steps), "--name", name, *options])
    return folder / name


def go_on(agent: str, step: int, seed: int, method: str | None, more: int = MORE) -> float:
    """Return the mean return of the last evaluation of a run with the method from a step on."""
    from plasticity.storage.record import read_record

    options = ["--seed", str(seed), *flags(method, step)]
    run = train(agent, step + more, f"{agent}-{step}-{method or 'none'}-{seed}", options)
    return float(np.mean(read_record(run)["eval_returns"]))


def flags(method: str | None, step: int) -> list[str]:
    """Return the options that switch a method on at a step: applied then, or all the time where it has no schedule."""
    if method is None:
        return []
    flag, fields = f"--{method.replace('_', '-')}", INTERVENTIONS[method].__dataclass_fields__
    once = [f"{flag}.at", str(step), f"{flag}.clock", "env_steps"] if "at" in fields else []
    return [flag, *once, *([f"{flag}.start", str(step)] if "start" in fields and not once else [])]


def patient(agent: str, step: int) -> Patient:
    """Return the network that ``diagnose`` looks at: the first one in which something is lost, or the first."""
    from plasticity.commands.diagnose import DiagnoseConfig, examined

    run = train(agent, step, f"{agent}-{step}", ["--checkpoint.every", str(step)])
    found = [one.examination for one in examined(DiagnoseConfig(run, budget="1h", remedies=False))[2]]
    return next((one for one in found if one.main is not None), found[0]).patient
