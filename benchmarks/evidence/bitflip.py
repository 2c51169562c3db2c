"""Loss of plasticity on ``bitflip`` in plain numpy, forty seeds at once: ``python benchmarks/evidence/bitflip.py``.

The slowly changing regression of Dohare et al. 2024 with the settings of ``--preset streams``: one hidden layer of 5
ReLU units, Adam at 0.05 (their 0.01 for one example at a time, times the root of the batch), batches of 20, 40 tasks of
10,000 examples. ``lived`` is one network for all tasks, ``fresh`` another one in every task, ``l2_init`` is lived, and
pulled to its first weights. Prints the mean squared error while learning by fourths of the stream, with bootstrap
intervals over seeds, and keeps them in ``results/bitflip.json``. The toolkit has no part in it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from harness import RESULTS, interval
from numpy.typing import NDArray

SEEDS, TASKS, EXAMPLES, BATCH, UNITS, RATE, PULL = 40, 40, 10_000, 20, 5, 0.05, 1e-2
SLOW, QUICK, THRESHOLDS = 15, 5, 100
NUM_INPUTS = SLOW + QUICK + 1
Weights = list[NDArray[Any]]


def first_weights(rng: np.random.Generator) -> Weights:
    """Return PyTorch's default weights of the networks of all seeds."""
    a, b = NUM_INPUTS**-0.5, UNITS**-0.5
    shapes = (((SEEDS, NUM_INPUTS, UNITS), a), ((SEEDS, 1, UNITS), a), ((SEEDS, UNITS, 1), b), ((SEEDS, 1, 1), b))
    return [rng.uniform(-bound, bound, shape) for shape, bound in shapes]


class Networks:
    """The networks of all seeds, and Adam."""

    def __init__(self, rng: np.random.Generator, pull: float = 0.0) -> None:
        self.rng, self.pull = rng, pull
        self.renew()

    def renew(self) -> None:
        """Begin anew, with a fresh optimizer."""
        self.weights, self.updates = first_weights(self.rng), 0
        self.origin = [w.copy() for w in self.weights]
        self.mean, self.square = ([np.zeros_like(w) for w in self.weights] for _ in range(2))

    def learn(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
        """Take a step on a batch, x (seeds, batch, inputs), y (seeds, batch, 1); return the errors before it."""
        w1, b1, w2, b2 = self.weights
        hidden = np.maximum(x @ w1 + b1, 0)
        error = hidden @ w2 + b2 - y
        out = 2 * error / x.shape[1]
        back = (out @ w2.transpose(0, 2, 1)) * (hidden > 0)
        gradients = [x.transpose(0, 2, 1) @ back, back.sum(1, keepdims=True), hidden.transpose(0, 2, 1) @ out,
                     out.sum(1, keepdims=True)]  # fmt: skip
        self.updates += 1
        one, two = 1 - 0.9**self.updates, 1 - 0.999**self.updates
        for w, g, first, m, v in zip(self.weights, gradients, self.origin, self.mean, self.square, strict=True):
            g = g + self.pull * (w - first) if self.pull else g
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            w -= RATE * (m / one) / (np.sqrt(v / two) + 1e-8)
        return (error**2).mean((1, 2))


def errors() -> dict[str, NDArray[Any]]:
    """Return the mean error of every task and seed, (tasks, seeds), by kind of network."""
    rng = np.random.default_rng(0)
    first = rng.choice([-1.0, 1.0], (SEEDS, NUM_INPUTS, THRESHOLDS))
    second = rng.choice([-1.0, 1.0], (SEEDS, THRESHOLDS + 1, 1))
    threshold = 0.7 * NUM_INPUTS - (first == -1).sum(1, keepdims=True)
    slow, everyone = rng.integers(0, 2, (SEEDS, SLOW)), np.arange(SEEDS)
    networks = {"lived": Networks(rng), "fresh": Networks(rng), "l2_init": Networks(rng, PULL)}
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in networks}
    for task in range(TASKS):
        if task:
            slow[everyone, rng.integers(SLOW, size=SEEDS)] ^= 1
            networks["fresh"].renew()
        sums = dict.fromkeys(networks, 0.0)
        for _ in range(EXAMPLES // BATCH):
            still = np.repeat(slow[:, None], BATCH, 1)
            x = np.concatenate([still, rng.integers(0, 2, (SEEDS, BATCH, QUICK)), np.ones((SEEDS, BATCH, 1))], 2)
            units = np.concatenate([x @ first > threshold, np.ones((SEEDS, BATCH, 1))], 2)
            for name, network in networks.items():
                sums[name] = sums[name] + network.learn(x, units @ second)
        for name, total in sums.items():
            found[name].append(total * BATCH / EXAMPLES)
    return {name: np.stack(rows) for name, rows in found.items()}


def main() -> None:
    """Run, print the table, keep the numbers."""
    found = errors()
    fourth = TASKS // 4
    print("| network | " + " | ".join(f"tasks {k * fourth} to {(k + 1) * fourth - 1}" for k in range(4)) + " |")
    print("|---|" + "---|" * 4)
    for name, by_task in found.items():
        parts = [interval(by_task[k * fourth : (k + 1) * fourth].mean(0).tolist()) for k in range(4)]
        print(f"| {name} | " + " | ".join(f"{p['mean']:.2f} [{p['low']:.2f}, {p['high']:.2f}]" for p in parts) + " |")
    RESULTS.mkdir(exist_ok=True)
    kept = {name: np.round(by_task, 4).tolist() for name, by_task in found.items()}
    (RESULTS / "bitflip.json").write_text(json.dumps(kept) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
