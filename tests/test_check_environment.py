"""The battery for environments: every family passes it, and it finds faults that are planted."""

import itertools

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from plasticity.envs import ENVS, Family, extras, make_env
from plasticity.envs.gym import GymEnv
from plasticity.testing import check_environment


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("CartPole-v1", {}),
        ("Hopper-v5", {}),
        ("sanity/both", {}),
        ("sanity/drift", {}),
        ("dmc/cartpole-swingup", {"steps": 20}),
        ("minatar/asterix", {}),
        pytest.param("dmc-pixels/cartpole-swingup", {"steps": 5}, marks=pytest.mark.slow),
        pytest.param("atari/breakout", {"steps": 10, "resumable": False}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.some(4)
def test_families_pass(name, options):
    family = name.partition("/")[0]
    if family in extras.EXTRAS and not extras.installed(family):
        pytest.skip(f"needs the extra {family}")
    try:
        check_environment(name, **options)
    except AssertionError as error:
        if "cannot be rendered" not in str(error):
            raise
        pytest.skip(str(error))


class Walk(gymnasium.Env):
    """Add action and noise to a place; episodes of 9 steps."""

    def __init__(self):
        self.observation_space = spaces.Box(-99.0, 99.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.place = 0, float(self.noise())
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.t, self.place = self.t + 1, self.place + float(action + self.noise())
        return np.array([self.place], np.float32), self.reward(), False, self.t == 9, {}

    def noise(self):
        return self.np_random.normal()

    def reward(self):
        return self.place


UNSEEDED, SHARED, CLOCK = np.random.default_rng(0), np.random.default_rng(0), itertools.count()


class Unseeded(Walk):
    def noise(self):
        return UNSEEDED.normal()


class Infinite(Walk):
    def reward(self):
        return np.inf if self.t == 5 else 0.0


class Drifting(Walk):
    """Pay by the steps of its life, which no state tells."""

    life = 0

    def reward(self):
        self.life += 1
        return float(self.life // 12)


class Counting(Walk):
    """Keep a counter that nothing shows yet."""

    life = 0

    def reward(self):
        self.life += 1
        return 0.0


class Forgetful(Drifting):
    """Have a state that lacks what matters."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Unsettable(Walk):
    """Take a task and play another."""

    task = 0

    def set_task(self, task):
        pass


class Endless(Walk):
    def step(self, action):
        obs, reward, _, _, info = super().step(action)
        return obs, reward, False, False, info


class OldStep(Walk):
    def step(self, action):
        obs, reward, _, over, info = super().step(action)
        return obs, reward, over, info


def made(kind, batch=GymEnv):
    family = Family("planted/", lambda: ["planted/one"], lambda *_: kind())
    return lambda num_envs, seed: batch("planted/one", family.vector("planted/one", None, None), num_envs, seed)


def test_a_sound_environment_passes():
    check_environment(made(Walk))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Unseeded, "two batches of the same seed differ"),
        (Infinite, "FloatingPointError: planted/one: reward of environment 0 is not finite"),
        (Drifting, "resumed after 40 decisions: 2 of 2 running episodes were given up"),
        (Counting, "keeps state beyond its episodes that was not saved: Counting.life"),
        (Forgetful, "resumed after 40 decisions: 2 of 2 running episodes were given up"),
        (Unsettable, r"set_task\(1\) was not kept"),
        (OldStep, "step must return"),
    ],
)
def test_planted_faults_of_environments_are_found(kind, message):
    with pytest.raises(AssertionError, match=f"^planted/one.*{message}"):
        check_environment(made(kind))


def test_a_limit_that_is_ignored_is_found():
    ENVS["planted"] = Family("planted/", lambda: ["planted/one"], lambda *_: Endless())
    try:
        with pytest.raises(AssertionError, match="planted/one: goes on after max_episode_steps=4"):
            check_environment("planted/one")
    finally:
        del ENVS["planted"]


class Dependent(GymEnv):
    """Let rows depend on the size of the batch."""

    def step(self, action):
        transition = super().step(action)
        transition.reward += self.num_envs
        return transition


class Leaky(GymEnv):
    """Reset more than the mask says."""

    def reset(self, done=None):
        leaks = done is not None and done.any() and self._obs is not None
        return super().reset(None if leaks else done)


class Aliased(GymEnv):
    """Return the same memory at every step."""

    def step(self, action):
        transition = super().step(action)
        if not hasattr(self, "memory"):
            self.memory = transition.next_obs.clone()
        self.memory.copy_(transition.next_obs)
        transition.next_obs = self.memory
        return transition

    def reset(self, done=None):
        obs = super().reset(done)
        if hasattr(self, "memory"):
            self.memory.copy_(obs)
        return obs


class Both(GymEnv):
    def step(self, action):
        transition = super().step(action)
        transition.terminated |= transition.truncated
        return transition


class Lenient(GymEnv):
    """Accept any mask."""

    def _mask(self, done):
        return (
            torch.as_tensor(done).bool().expand(self.num_envs).numpy().copy() if len(done) == 3 else super()._mask(done)
        )


class Wide(GymEnv):
    def step(self, action):
        transition = super().step(action)
        transition.reward = transition.reward[:, None]
        return transition


class Late(GymEnv):
    """Say the task of the next action."""

    def step(self, action):
        transition = super().step(action)
        transition.task = self.task
        return transition


class ByEpisode(Walk):
    task = 0

    def step(self, action):
        result = super().step(action)
        self.task = self.t
        return result


@pytest.mark.parametrize(
    ("batch", "kind", "message"),
    [
        (Dependent, Walk, "environment 0 plays otherwise among three than alone, in reward of step 1"),
        (Leaky, Walk, "outside its mask"),
        (Aliased, Walk, "a reset changes an earlier transition"),
        (Both, Walk, "terminated and truncated at once"),
        (Lenient, Walk, r"a mask of torch.float32 \(3,\) must raise ValueError"),
        (Wide, Walk, r"reward has shape \(3, 1\)"),
        (Late, ByEpisode, "transition.task is not env.task before the step"),
    ],
)
def test_planted_faults_of_batches_are_found(batch, kind, message):
    with pytest.raises(AssertionError, match=message):
        check_environment(made(kind, batch))


def test_the_battery_takes_a_name_of_gymnasiums():
    assert make_env("CartPole-v1").name == "CartPole-v1"
    with pytest.raises(AssertionError, match="ValueError: no environment is called"):
        check_environment("CartPol-v1")
