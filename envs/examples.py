"""Supervised learning as an environment: an observation is an example, an action the answer to it.

    bitflip           20 bits, 15 of which change one at a time, every 10,000 examples; the answer is a number
    permuted-digits   scikit-learn's 8 x 8 digits in one pass, their pixels in another order in every task
    random-labels     200 digits in 30 passes, their labels drawn anew in every task
    warm-start        half of 1,400 digits in task 0, all of them in task 1; evaluations show the other 397

An observation ends with the right answer to the example before, from which an agent learns (`supervised`; any other
agent meets a bandit). The reward of an answer is 1 if it is right, or minus its squared error, divided by the examples
of the episode: the return of an episode is an accuracy, or minus a mean squared error.

Sources: Dohare et al. 2024 (slowly changing regression), Kumar et al. 2023 (permuted and relabelled images), Ash and
Adams 2020 (warm start), the latter two with images of 28 x 28 and more there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from .extras import require_extra
from .family import Family
from .stream import Stream, TaskPlan

Drawn = tuple[NDArray[Any], NDArray[Any]]
"""Inputs (examples, features) and their answers (examples,)."""


class ExampleSpace(spaces.Box):
    """Inputs of an example, followed by `num_answers` numbers: the right answer to the example before."""

    def __init__(self, num_inputs: int, num_answers: int = 1) -> None:
        super().__init__(-np.inf, np.inf, (num_inputs + num_answers,), np.float32)
        self.num_answers = num_answers


@dataclass(frozen=True)
class Source:
    """The examples of a stream."""

    num_inputs: int
    num_classes: int | None
    """None where the answer is a number."""
    tasks: TaskPlan
    episode: int
    """Examples of an episode, the last of a task apart."""
    draw: Callable[[TaskPlan, int, np.random.Generator, int, bool], Drawn]
    """(plan, task, generator of this environment, examples, evaluation?) -> the examples of a task."""

    def action_space(self) -> spaces.Space:
        """Return the space of answers."""
        if self.num_classes is None:
            return spaces.Box(-1.0, 1.0, (1,), np.float32)
        return spaces.Discrete(self.num_classes)


class ExampleStream(Stream):
    """Show the examples of one task after another, each environment its own draw of them."""

    def __init__(self, env: gymnasium.Env, plan: TaskPlan, source: Source, seed: int, episode: int) -> None:
        self.source, self.seed = source, seed
        self.drawn: tuple[int, bool] | None = None
        self.answer = 0.0
        super().__init__(env, plan, cut=episode)
        self.observation_space, self.action_space = ExampleSpace(source.num_inputs), source.action_space()

    def begin(self, task: int) -> None:
        """Draw the examples of the task, in the same way every time."""
        which = task, self.chosen is not None
        if which != self.drawn:
            generator = np.random.default_rng([self.seed, *which])
            x, y = self.source.draw(self.plan, task, generator, self.task_steps, which[1])
            self.inputs, self.answers, self.drawn = x.astype(np.float32), y.astype(np.float32), which

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Show the next example."""
        super().reset(seed=seed, options=options)
        self.length = self._remaining()
        return self._shown(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Judge the answer, and show the next example; a number that is answered is not clipped."""
        self.answer = float(self.answers[self._place()])
        score = -((float(action[0]) - self.answer) ** 2) if self.source.num_classes is None else action == self.answer
        self.steps += 1
        return self._shown(), float(score) / self.length, False, self._ends(), {}

    def _ends(self) -> bool:
        return self._remaining(self.steps - 1) == 1

    def _remaining(self, steps: int | None = None) -> int:
        """Return the examples up to the end of the episode, from the present one on."""
        assert self.cut is not None
        done = self._place(steps)
        return min(self.cut - done % self.cut, self.task_steps - done)

    def _place(self, steps: int | None = None) -> int:
        """Return the place of the present example among those of the task."""
        return (self.steps if steps is None else steps) % self.task_steps

    def _shown(self) -> NDArray[Any]:
        return np.append(self.inputs[self._place()], np.float32(self.answer))

    def state_dict(self) -> dict[str, Any]:
        """Return what a stream has, and the last right answer."""
        return {**super().state_dict(), "answer": self.answer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        super().load_state_dict(state)
        self.answer, self.length = state["answer"], self._remaining()


# --- the streams ---


FLIPPING, RANDOM, THRESHOLDS = 15, 5, 100


def _bits(plan: TaskPlan, task: int, generator: np.random.Generator, num: int, evaluation: bool) -> Drawn:
    """Return bits, a constant, and what a fixed random network of threshold units says of them."""
    del evaluation
    fixed = plan.generator("bitflip", 0)
    first = fixed.choice([-1.0, 1.0], (FLIPPING + RANDOM + 1, THRESHOLDS))
    second = fixed.choice([-1.0, 1.0], THRESHOLDS + 1)
    threshold = 0.7 * len(first) - (first == -1).sum(0)  # 70 % of its inputs agree with the weights of a unit
    slow = fixed.integers(0, 2, FLIPPING)
    for passed in range(1, task + 1):
        slow[plan.generator("bitflip", passed).integers(FLIPPING)] ^= 1
    quick = generator.integers(0, 2, (num, RANDOM))
    x = np.concatenate([np.tile(slow, (num, 1)), quick, np.ones((num, 1))], 1)
    units = np.concatenate([x @ first > threshold, np.ones((num, 1))], 1)
    return x, units @ second


@cache
def digits() -> Drawn:
    """Return scikit-learn's images (1797, 64), standardised, and their classes."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (x - x.mean()) / x.std(), y


def _passes(generator: np.random.Generator, count: int, num: int) -> NDArray[Any]:
    """Return `num` places below `count`: all of them in a new order, again and again."""
    return np.concatenate([generator.permutation(count) for _ in range(-(-num // count))])[:num]


def _permuted(plan: TaskPlan, task: int, generator: np.random.Generator, num: int, evaluation: bool) -> Drawn:
    """Return digits whose pixels are in the order of the task."""
    del evaluation
    (x, y), index = digits(), _passes(generator, 1797, num)
    return x[index][:, plan.generator("pixels", task).permutation(NUM_PIXELS)], y[index]


def _relabelled(plan: TaskPlan, task: int, generator: np.random.Generator, num: int, evaluation: bool) -> Drawn:
    """Return some digits with the labels of the task."""
    del evaluation
    labels, index = plan.generator("labels", task).integers(10, size=RELABELLED), _passes(generator, RELABELLED, num)
    return digits()[0][index], labels[index]


def _warm(plan: TaskPlan, task: int, generator: np.random.Generator, num: int, evaluation: bool) -> Drawn:
    """Return half of the digits for training, later all of them; for an evaluation the others."""
    (x, y), order = digits(), plan.generator("split", 0).permutation(1797)
    part = order[TRAINED:] if evaluation else order[: TRAINED // 2] if task == 0 else order[:TRAINED]
    index = part[_passes(generator, len(part), num)]
    return x[index], y[index]


NUM_PIXELS, RELABELLED, TRAINED = 64, 200, 1400
SOURCES = {
    "bitflip": Source(FLIPPING + RANDOM + 1, None, TaskPlan(steps=10_000, num=40), 500, _bits),
    "permuted-digits": Source(NUM_PIXELS, 10, TaskPlan(steps=1797, num=100), 599, _permuted),
    "random-labels": Source(NUM_PIXELS, 10, TaskPlan(steps=30 * RELABELLED, num=30), RELABELLED, _relabelled),
    "warm-start": Source(NUM_PIXELS, 10, TaskPlan(steps=40 * TRAINED, num=2), 397, _warm),
}
"""Name -> the examples."""


class Still(gymnasium.Env):
    """Hold the seed and the length of episodes; the stream around it shows the examples."""

    def __init__(self, source: Source, seed: int, limit: int | None) -> None:
        self.observation_space, self.action_space = ExampleSpace(source.num_inputs), source.action_space()
        self.seed, self.episode = seed, limit or source.episode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Seed Gymnasium's generator, which nothing draws from."""
        super().reset(seed=seed)
        return np.zeros(self.observation_space.shape or (), np.float32), {}


def _make(name: str, seed: int, limit: int | None) -> gymnasium.Env:
    if SOURCES[name].num_inputs == NUM_PIXELS:
        require_extra("digits", name)
    return Still(SOURCES[name], seed, limit)


def _stream(env: gymnasium.Env, name: str, plan: TaskPlan, num_envs: int) -> gymnasium.Env:
    del num_envs
    still: Any = env.unwrapped
    return ExampleStream(env, plan, SOURCES[name], still.seed, still.episode)


def _family(name: str) -> Family:
    return Family(name, lambda: [name], _make, stream=_stream, tasks=SOURCES[name].tasks)


BITFLIP = _family("bitflip")
"""Regression on bits that flip one at a time (Dohare et al. 2024)."""
PERMUTED_DIGITS = _family("permuted-digits")
"""Digits whose pixels change their order in every task."""
RANDOM_LABELS = _family("random-labels")
"""Digits whose labels are drawn anew in every task."""
WARM_START = _family("warm-start")
"""Half of the digits, then all of them (Ash and Adams 2020)."""
