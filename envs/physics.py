"""Bodies of MuJoCo whose physics changes from task to task.

    slippery-<body>   friction of the floor, drawn log-uniformly from [0.02, 2]
    gravity-<body>    gravity, mass-<body> masses and inertias, actuator-<body> strength of the actuators:
                      times a factor drawn log-uniformly from [0.5, 2]

Task 0 has the body as it comes, but for "slippery", which is drawn from the first task on. After Dohare et al. 2024
(*Loss of plasticity in deep continual learning*, slippery Ant, 2 million steps per friction); the other factors and the
default of 100,000 steps per task, ten tasks, are our own. A contact takes the larger friction of the two bodies that
touch, so a floor of little friction changes nothing by itself; here the floor's friction goes before the body's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from .family import Family
from .gym import make_gymnasium
from .stream import Stream, TaskPlan

BODIES = {"ant": "Ant-v5", "halfcheetah": "HalfCheetah-v5", "hopper": "Hopper-v5", "walker2d": "Walker2d-v5"}
FLOOR = "floor"
RANGES = {"slippery": (0.02, 2.0), "gravity": (0.5, 2.0), "mass": (0.5, 2.0), "actuator": (0.5, 2.0)}


def _slippery(model: Any, usual: dict[str, np.ndarray], factor: float) -> None:
    floor = model.geom(FLOOR)
    floor.friction[0] = factor
    floor.priority[0] = 1


def _gravity(model: Any, usual: dict[str, np.ndarray], factor: float) -> None:
    model.opt.gravity[:] = usual["gravity"] * factor


def _mass(model: Any, usual: dict[str, np.ndarray], factor: float) -> None:
    model.body_mass[:] = usual["mass"] * factor
    model.body_inertia[:] = usual["inertia"] * factor


def _actuator(model: Any, usual: dict[str, np.ndarray], factor: float) -> None:
    model.actuator_gear[:] = usual["gear"] * factor


CHANGES: dict[str, Callable[[Any, dict[str, np.ndarray], float], None]] = {
    "slippery": _slippery,
    "gravity": _gravity,
    "mass": _mass,
    "actuator": _actuator,
}


class Physics(Stream):
    """Set one quantity of the simulated model by the factor of the task."""

    def __init__(self, env: gymnasium.Env, plan: TaskPlan, kind: str) -> None:
        model: Any = env.unwrapped.model  # type: ignore[attr-defined]  # what MuJoCo's environments have
        self.kind, self.factor = kind, 1.0
        self._usual = {
            "gravity": model.opt.gravity.copy(),
            "mass": model.body_mass.copy(),
            "inertia": model.body_inertia.copy(),
            "gear": model.actuator_gear.copy(),
        }
        super().__init__(env, plan)

    def begin(self, task: int) -> None:
        """Draw the factor of the task and write it into the model."""
        low, high = map(math.log, RANGES[self.kind])
        drawn = math.exp(self.plan.generator(self.kind, task).uniform(low, high))
        self.factor = drawn if task or self.kind == "slippery" else 1.0
        from mujoco import mj_setConst  # there as soon as an environment of it is

        simulator: Any = self.env.unwrapped
        CHANGES[self.kind](simulator.model, self._usual, self.factor)
        mj_setConst(simulator.model, simulator.data)  # what MuJoCo derives from masses and gears


def _make(name: str, seed: int, max_episode_steps: int | None = None) -> gymnasium.Env:
    return make_gymnasium(BODIES[name.partition("-")[2]], seed, max_episode_steps)


def _stream(env: gymnasium.Env, name: str, plan: TaskPlan, num_envs: int, *, kind: str) -> gymnasium.Env:
    return Physics(env, plan, kind)


def _family(kind: str) -> Family:
    def ids() -> list[str]:
        return [f"{kind}-{body}" for body in BODIES]

    return Family(f"{kind}-", ids, _make, stream=partial(_stream, kind=kind), tasks=TaskPlan(steps=100_000, num=10))


SLIPPERY = _family("slippery")
"""Bodies of MuJoCo on a floor whose friction changes from task to task."""
GRAVITY = _family("gravity")
"""Bodies of MuJoCo under a gravity that changes from task to task."""
MASS = _family("mass")
"""Bodies of MuJoCo whose masses and inertias change from task to task."""
ACTUATOR = _family("actuator")
"""Bodies of MuJoCo whose actuators change in strength from task to task."""
