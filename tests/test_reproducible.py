"""Equal runs write equal checkpoints, byte for byte: nothing in them is time, chance, or memory that nobody filled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from plasticity.envs import ENVS, Family
from plasticity.testing.runs import QUICK_RUNS, command

SHORT = ("--steps", "120", "--num-envs", "2", "--checkpoint.every", "60", "--eval-every", "60", "--eval-episodes", "2")
OFTEN = ("--probe-every", "10", "--log-every", "5", "--quiet")
METHODS = (
    *("--redo", "--redo.every", "20", "--redo.threshold", "0.4"),
    *("--cbp", "--cbp.maturity", "5", "--shrink-perturb", "--shrink-perturb.every", "40"),
)
IMAGES = ("--env", "picture/box", "--hidden", "8", "--network", "minatar_cnn")
REPLAY = ("--batch-size", "8", "--learning-starts", "40", "--buffer-size", "100")
RUNS = {
    **{agent: (agent, *options) for agent, options in QUICK_RUNS.items()},
    "dqn of images": ("dqn", *IMAGES, *REPLAY, "--n-step", "2", "--prioritised"),
    "ppo of images": ("ppo", *IMAGES, "--num-steps", "32", "--num-minibatches", "4"),
}


class Picture(gymnasium.Env):
    """Small images that are drawn anew at every step; episodes of seven steps."""

    observation_space, action_space = spaces.Box(0, 255, (2, 10, 10), np.uint8), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.integers(0, 256, (2, 10, 10), np.uint8), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        obs = self.np_random.integers(0, 256, (2, 10, 10), np.uint8)
        return obs, float(action), self.steps == 7, False, {}


@pytest.fixture(autouse=True)
def picture() -> Iterator[None]:
    """Register the environment."""
    ENVS["picture"] = Family("picture/", lambda: ["picture/box"], lambda name, seed, limit: Picture())
    yield
    del ENVS["picture"]


def fill_memory(monkeypatch: pytest.MonkeyPatch, value: int) -> None:
    """Let memory that nobody filled hold ``value``, in place of whatever was there."""
    for module, names in ((torch, ("empty", "empty_like")), (np, ("empty", "empty_like"))):
        for name in names:
            plain = getattr(module, name)

            def filled(*args: Any, plain: Any = plain, **kwargs: Any) -> Any:
                made = plain(*args, **kwargs)
                if isinstance(made, torch.Tensor) and not made.is_meta:
                    made.detach().fill_(value)
                elif isinstance(made, np.ndarray) and made.dtype.kind in "biuf":
                    made.fill(value)
                return made

            monkeypatch.setattr(module, name, filled)


def written(out: Path, name: str, *words: str) -> dict[str, bytes]:
    """Train, and return the files of all checkpoints."""
    command("train", *words, *SHORT, *OFTEN, "--out", out, "--name", name)
    folder = out / name
    files = [file for kind in ("checkpoints", "model") for file in (folder / kind).rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


QUICK = ("sac", "dqn of images")


@pytest.mark.parametrize("run", [run if run in QUICK else pytest.param(run, marks=pytest.mark.slow) for run in RUNS])
@pytest.mark.some(1)
def test_equal_runs_write_equal_checkpoints(run: str, tmp_path: Path) -> None:
    files = []
    for name, value in (("one", 0), ("other", 113)):
        with pytest.MonkeyPatch.context() as patch:
            fill_memory(patch, value)
            files.append(written(tmp_path, name, *RUNS[run], *METHODS))
    one, other = files
    assert len(one) == 9  # two checkpoints and the model
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
