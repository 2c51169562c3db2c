"""The battery for environments: everything that agents, the loop and checkpoints ask of a batch of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from plasticity.envs import Env, make_env
from plasticity.storage.checkpoint import load, save

MakeEnv = Callable[..., Env]


TRANSITION_FIELDS = ("obs", "action", "reward", "next_obs", "terminated", "truncated", "task")


def check_environment(make: str | MakeEnv, *, steps: int = 40, seed: int = 3, resumable: bool = True) -> None:
    """Check the environments of a name, or those of ``make(num_envs=..., seed=...)``, against the whole contract.

    Spaces and dtypes; determinism by seed, whatever the number of environments; resets by mask; ends of episodes and,
    by name, the limit; finite numbers; tasks; exact resume after 0, 1 and ``steps`` decisions; closing twice.
    ``resumable=False``: for environments that give their running episodes up on resuming, as Atari's do.
    Raises AssertionError with the first thing that is broken.
    """
    made = partial(make_env, make) if isinstance(make, str) else make
    name = make if isinstance(make, str) else made(num_envs=1, seed=seed).name
    try:
        _check_form(made(num_envs=2, seed=seed), name)
        _check_seeds(made, name, steps, seed)
        _check_masks(made(num_envs=3, seed=seed), name)
        if isinstance(make, str):
            _check_limit(make, seed)
        _check_tasks(made(num_envs=2, seed=seed), name, steps)
        for before in (0, 1, steps):
            _check_resume(made, name, before, steps, seed, resumable)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error


def _actions(env: Env, steps: int) -> list[Tensor]:
    """Return actions (num_envs, ...) drawn by step and environment, the same for an environment in any batch."""
    space, found = env.action_space, []
    for step in range(steps):
        draws = [np.random.default_rng([step, index]) for index in range(env.num_envs)]
        if isinstance(space, spaces.Discrete):
            found.append(torch.tensor([int(rng.integers(space.n)) for rng in draws]))
        else:
            found.append(torch.from_numpy(np.stack([rng.uniform(-1, 1, space.shape) for rng in draws])).float())
    return [action.to(env.obs.device) for action in found]


def _play(env: Env, actions: list[Tensor], name: str) -> list[dict[str, Tensor | None]]:
    """Step through ``actions``, resetting what has ended; return copies of all that came out."""
    seen = []
    for action in actions:
        obs, task = env.obs.clone(), env.task
        given = action.clone()
        transition = env.step(given)
        _check_step(env, transition, obs, action, task, name)
        kept = {key: value for key in TRANSITION_FIELDS if (value := getattr(transition, key, None)) is not None}
        row = {key: value.clone() for key, value in kept.items()}
        done = transition.terminated | transition.truncated
        row["following"] = env.reset(done).clone()
        given.zero_()  # the agent may write to what it sent
        assert all(torch.equal(kept[key], row[key]) for key in kept), f"{name}: a reset changes an earlier transition"
        assert torch.equal(row["following"][~done], row["next_obs"][~done]), (
            f"{name}: a reset changes the observation of an environment outside its mask"
        )
        seen.append(row)
    return seen


def _check_form(env: Env, name: str) -> None:
    """Check spaces, the first observation, what must be refused before it, and closing twice."""
    box, action = env.observation_space, env.action_space
    image = isinstance(box, spaces.Box) and box.dtype == np.uint8 and len(box.shape) == 3
    assert image or (isinstance(box, spaces.Box) and box.dtype == np.float32 and len(box.shape) == 1), (
        f"{name}: observations must be a float32 vector or a uint8 image, the space is {box}"
    )
    unit = isinstance(action, spaces.Box) and len(action.shape) == 1 and (action.low == -1).all()
    assert isinstance(action, spaces.Discrete) or (unit and (action.high == 1).all()), (
        f"{name}: actions must be Box(-1, 1) in one dimension or Discrete, the space is {action}"
    )
    assert not isinstance(action, spaces.Discrete) or action.start == 0, f"{name}: Discrete actions start at 0"
    _must_raise(RuntimeError, lambda: env.obs, f"{name}: obs before the first reset")
    obs = env.reset()
    assert obs.shape == (2, *box.shape), f"{name}: reset returns shape {tuple(obs.shape)}, the space is {box.shape}"
    assert obs.dtype == (torch.uint8 if image else torch.float32), f"{name}: observations are {obs.dtype}"
    assert torch.equal(env.obs, obs), f"{name}: obs is not what reset returned"
    env.close()
    env.close()


def _check_step(env: Env, transition: Any, obs: Tensor, action: Tensor, task: Tensor | None, name: str) -> None:
    """Check one transition by itself."""
    assert torch.equal(transition.obs, obs), f"{name}: transition.obs is not the observation that was acted on"
    assert torch.equal(transition.action, action), f"{name}: transition.action is not what was sent"
    assert transition.next_obs.shape == obs.shape, f"{name}: next_obs has shape {tuple(transition.next_obs.shape)}"
    assert transition.next_obs.dtype == obs.dtype, f"{name}: next_obs is {transition.next_obs.dtype}, obs {obs.dtype}"
    numbers = (("reward", torch.float32), ("terminated", torch.bool), ("truncated", torch.bool))
    for what, dtype in numbers:
        value = getattr(transition, what)
        assert value.shape == (env.num_envs,), f"{name}: {what} has shape {tuple(value.shape)}"
        assert value.dtype == dtype, f"{name}: {what} is {value.dtype}, not {dtype}"
    for what in ("obs", "next_obs", "reward"):
        assert getattr(transition, what).isfinite().all(), f"{name}: {what} is not finite"
    assert not (transition.terminated & transition.truncated).any(), f"{name}: terminated and truncated at once"
    same = transition.task is task if task is None else torch.equal(transition.task, task)
    assert same, f"{name}: transition.task is not env.task before the step"


def _check_seeds(make: MakeEnv, name: str, steps: int, seed: int) -> None:
    """Check that a seed determines everything, and that environment i is the same in batches of any size."""
    runs = []
    for num_envs in (3, 3, 1):
        env = make(num_envs=num_envs, seed=seed)
        first = env.reset().clone()
        runs.append([{"first": first}, *_play(env, _actions(env, steps), name)])
        env.close()
    _require_same(runs[0], runs[1], f"{name}: two batches of the same seed differ")
    _require_same(
        [{key: value[:1] for key, value in row.items()} for row in runs[0]],
        runs[2],
        f"{name}: environment 0 plays otherwise among three than alone",
    )


def _check_masks(env: Env, name: str) -> None:
    """Check resets in mid-episode, and that a step of an episode that has ended is refused."""
    mask = torch.tensor([True, False, True])
    _must_raise(RuntimeError, lambda: env.reset(mask), f"{name}: a reset by mask before the first full one")
    env.reset()
    device = env.obs.device
    _play(env, _actions(env, 3), name)
    before = env.obs.clone()
    obs = env.reset(mask.to(device))
    assert torch.equal(obs[1], before[1]), f"{name}: a reset changes the observation of an environment outside its mask"
    assert torch.equal(env.reset(torch.zeros(3, dtype=torch.bool, device=device)), obs), (
        f"{name}: a reset of none changes observations"
    )
    for wrong in (torch.ones(2, dtype=torch.bool), torch.ones(3)):
        _must_raise(ValueError, partial(env.reset, wrong), f"{name}: a mask of {wrong.dtype} {tuple(wrong.shape)}")
    env.close()


def _check_limit(name: str, seed: int) -> None:
    """Check that ``max_episode_steps`` ends episodes, and that a step after the end of one is refused."""
    limit = 4
    env = make_env(name, num_envs=1, seed=seed, action_repeat=1, max_episode_steps=limit)
    env.reset()
    actions = _actions(env, limit + 1)
    for action in actions[:limit]:
        transition = env.step(action)
        if transition.terminated.any() or transition.truncated.any():
            break
    assert transition.terminated.any() or transition.truncated.any(), f"{name}: goes on after max_episode_steps={limit}"
    _must_raise(RuntimeError, partial(env.step, actions[-1]), f"{name}: a step after the end of an episode")
    env.close()


def _check_tasks(env: Env, name: str, steps: int) -> None:
    """Check ``env.task``, and that a task that was set is played and kept."""
    env.reset()
    _play(env, _actions(env, steps), name)
    if env.task is None:
        assert not env.set_task(0), f"{name}: set_task says that it worked, and there are no tasks"
    else:
        assert env.task.shape == (2,), f"{name}: task has shape {tuple(env.task.shape)}"
        assert env.task.dtype == torch.int64, f"{name}: task is {env.task.dtype}, not int64"
        if env.set_task(1):
            env.reset()
            played = [row["task"] for row in _play(env, _actions(env, steps), name)]
            assert all(task is not None and task.eq(1).all() for task in played), f"{name}: set_task(1) was not kept"
    env.close()


def _check_resume(make: MakeEnv, name: str, before: int, after: int, seed: int, resumable: bool) -> None:
    """Check that a batch goes on from a checkpoint after ``before`` decisions as if it had not stopped."""
    env, again = make(num_envs=2, seed=seed), make(num_envs=2, seed=seed)
    env.reset()
    actions = _actions(env, before + after)
    _play(env, actions[:before], name)
    with TemporaryDirectory() as folder:
        save(Path(folder) / "state", {"env": env.state_dict()})
        state = load(Path(folder) / "state")["env"]
    expected, sample = _play(env, actions[before:], name), env.action_space.sample()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lost = again.load_state_dict(state)
    where = f"{name}, resumed after {before} decisions"
    assert lost.shape == (2,), f"{where}: load_state_dict must return a bool mask of lost episodes"
    assert lost.dtype == torch.bool, f"{where}: load_state_dict must return a bool mask of lost episodes"
    found = _play(again, actions[before:], name)
    if resumable:
        assert not lost.any(), f"{where}: {int(lost.sum())} of 2 running episodes were given up"
        _require_same(found, expected, f"{where}: it plays otherwise")
        assert np.array_equal(sample, again.action_space.sample()), f"{where}: other random actions"
    else:
        assert lost.all(), f"{where}: episodes go on, so pass resumable=True"
    env.close()
    again.close()


def _require_same(found: list[Any], expected: list[Any], message: str) -> None:
    for step, (a, b) in enumerate(zip(found, expected, strict=True)):
        differing = [key for key in a.keys() | b.keys() if not (key in a and key in b and torch.equal(a[key], b[key]))]
        assert not differing, f"{message}, in {', '.join(sorted(differing))} of step {step}"


def _must_raise(kind: type[Exception], call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"{what} must raise {kind.__name__}")
