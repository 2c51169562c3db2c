"""Check what an environment returns, and say what is wrong with it in words that name the environment."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

RESET = "(observation, info)"
STEP = "(observation, reward, terminated, truncated, info)"
REWARD_TYPES = frozenset({float, int, bool, np.float64, np.float32, np.bool_})  # those that need no closer look
OLD = "; the old Gym API, without info at a reset and with one flag done, is not supported: wrap the environment"


class Contract(gymnasium.Wrapper):
    """Raise TypeError where an environment breaks Gymnasium's API, at a reset or in the first step of an episode.

    Refused: another number of values than Gymnasium's, rewards that are no single number (arrays of shape (1,), None),
    flags that are no single bool. Everything else passes through as it is.
    """

    def __init__(self, env: gymnasium.Env, name: str) -> None:
        super().__init__(env)
        self.name = name

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Return observation and info."""
        vars(self).pop("step", None)
        result: Any = self.env.reset(seed=seed, options=options)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            raise TypeError(f"{self.name}: reset must return {RESET}, got {_described(result)}{OLD}")
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Return the five values of the first step of an episode; later steps go to the environment directly."""
        result = self.env.step(action)
        self._inspect(result)
        # One more call in every step would take one part in fifty of a cheap simulator's.
        self.step = self.env.step  # type: ignore[method-assign]
        return result

    def _inspect(self, result: Any) -> None:
        if not (isinstance(result, tuple) and len(result) == 5):
            raise TypeError(f"{self.name}: step must return {STEP}, got {_described(result)}{OLD}")
        for what, value in zip(("reward", "terminated", "truncated"), result[1:4], strict=True):
            if type(value) not in REWARD_TYPES and not is_number(value):
                raise TypeError(f"{self.name}: {what} must be one number, got {_described(value)}")


def is_number(value: Any) -> bool:
    """Return whether `value` is a single number or bool of any library: no array with dimensions, no text."""
    if np.ndim(value) or isinstance(value, (str, bytes)):
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def watch_contract(env: gymnasium.Env, name: str) -> gymnasium.Env:
    """Return `env` with a `Contract` inside the wrappers that Gymnasium itself put around it.

    These would break on a wrong number of values first, without a word about the environment.
    """
    if not _is_gymnasiums(env):
        return Contract(env, name)
    innermost: Any = env
    while _is_gymnasiums(innermost.env):
        innermost = innermost.env
    innermost.env = Contract(innermost.env, name)
    return env


def _is_gymnasiums(env: Any) -> bool:
    return isinstance(env, gymnasium.Wrapper) and type(env).__module__.startswith("gymnasium.")


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}: ({', '.join(map(_described, value))})"
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} of shape {tuple(shape)}"
