"""The environment adapters, against Gymnasium and dm_control stepped by hand."""

import os
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from plasticity.envs import ENVS, Env, graphics, make_env, missing_extras
from plasticity.envs.advice import without_advice
from plasticity.envs.dmc import DMControl, find_task
from plasticity.envs.floats import ordinary, to_float32
from plasticity.envs.serial import Serial

FIELDS = ("obs", "action", "reward", "next_obs", "terminated", "truncated")


class Counter(gymnasium.Env):
    """Observe (episode, step) and be paid the step; episodes of length 1 to 4 terminate, of length 5 truncate."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, np.inf, (2,), np.float64)
        self.action_space = spaces.Discrete(2)
        self.episode = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t, self.length = self.episode + 1, 0, int(self.np_random.integers(1, 6))
        return np.array([self.episode, 0.0]), {}

    def step(self, action):
        self.t += 1
        over = self.t == self.length
        obs = np.array([self.episode, self.t], np.float64)
        return obs, float(self.t), over and self.length < 5, over and self.length == 5, {}


class Fake(gymnasium.Env):
    """Have the given spaces, remember the last action, and return the given observation, reward and flags."""

    def __init__(self, observation=None, action=None, obs=None, reward=0.0, flags=(False, False), first=None) -> None:
        self.observation_space = observation or spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = action or spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.obs = np.zeros(2, np.float32) if obs is None else obs
        self.first = self.obs if first is None else first
        self.reward, self.flags, self.last = reward, flags, None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.first, {}

    def step(self, action):
        self.last = action
        return self.obs, self.reward, *self.flags, {}


@pytest.fixture(scope="module", autouse=True)
def registered():
    for name, entry in (("Counter", Counter), ("Fake", Fake)):
        # Gymnasium's own checker would warn about the deliberate faults before ours can report them.
        gymnasium.register(f"plasticity-test/{name}-v0", entry, disable_env_checker=True)
    yield
    for name in ("Counter", "Fake"):
        del gymnasium.registry[f"plasticity-test/{name}-v0"]


COUNTER, FAKE = "plasticity-test/Counter-v0", "plasticity-test/Fake-v0"


def make_fake(monkeypatch: pytest.MonkeyPatch, num_envs: int = 1, action_repeat: int = 1, **kwargs: Any):
    for key, value in kwargs.items():
        monkeypatch.setitem(gymnasium.registry[FAKE].kwargs, key, value)
    return make_env(FAKE, num_envs=num_envs, action_repeat=action_repeat)


def sampled(env: Env) -> torch.Tensor:
    return torch.as_tensor(np.stack([env.action_space.sample() for _ in range(env.num_envs)]))


def last_action(env: Any, index: int = 0) -> Any:
    return env._vector.envs[index].unwrapped.last


# dm_control ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dmc/cartpole-swingup", "dmc/ball-in-cup-catch", "dmc/walker-walk"])
def test_dmc_equals_dm_control(name):
    env = make_env(name, num_envs=2, seed=3, action_repeat=1)
    from dm_control import suite

    by_hand = [suite.load(*find_task(name), {"random": seed}) for seed in env.seeds]
    for _ in range(2):  # the second episode continues the stream
        obs, expected = env.reset(), [one.reset().observation for one in by_hand]
        for row, parts in zip(obs, expected, strict=True):
            assert torch.equal(row, flat(parts))
        for _ in range(20):
            transition = env.step(action := sampled(env))
            steps = [one.step(a.numpy()) for one, a in zip(by_hand, action, strict=True)]
            for i, step in enumerate(steps):
                assert torch.equal(transition.next_obs[i], flat(step.observation))
                assert transition.reward[i].item() == np.float32(step.reward)
            assert not transition.terminated.any()
            assert not transition.truncated.any()
    assert not torch.equal(transition.obs[0], transition.obs[1])


def flat(parts: dict) -> torch.Tensor:
    return torch.cat([torch.as_tensor(np.array(part)).reshape(-1) for part in parts.values()]).float()


def test_dmc_time_limit_truncates_after_1000_steps():
    env = make_env("dmc/cartpole-balance", action_repeat=250)
    env.reset()
    flags = []
    for _ in range(4):
        transition = env.step(torch.zeros(1, 1))
        flags.append((transition.terminated.item(), transition.truncated.item()))
    assert flags == [(False, False)] * 3 + [(False, True)]


def test_dmc_zero_discount_terminates(monkeypatch):
    env = DMControl("cartpole", "swingup", seed=0)
    env.reset(seed=0)
    monkeypatch.setattr(env._env.task, "get_termination", lambda physics: 0.0)
    assert env.step(np.zeros(1))[2:] == (True, False, {"discount": 0.0})


def test_dmc_max_episode_steps_replaces_the_limit():
    for limit in (3, 1003):
        env = make_env("dmc/cartpole-balance", max_episode_steps=limit, action_repeat=1)
        env.reset()
        for step in range(1, limit + 1):
            truncated = env.step(torch.zeros(1, 1)).truncated.item()
            assert truncated == (step == limit)


def test_dmc_rescales_asymmetric_bounds():
    # quadruped's controls end at -1, -1, -0.8 and 1, 1.1, 0.8.
    env = make_env("dmc/quadruped-walk")
    env.reset()
    env.step(torch.ones(1, 12))
    control = env._vector.envs[0].unwrapped._env.physics.control()
    assert control[:3] == pytest.approx([1.0, 1.1, 0.8])
    env.step(torch.zeros(1, 12))
    control = env._vector.envs[0].unwrapped._env.physics.control()
    assert control[:3] == pytest.approx([0.0, 0.05, 0.0])


def test_dmc_reset_with_a_seed_starts_the_stream_again():
    env = DMControl("cartpole", "swingup", seed=5)
    first = [env.reset(seed=5)[0], env.reset()[0]]
    again = [env.reset(seed=5)[0], env.reset()[0]]
    other = env.reset(seed=6)[0]
    assert np.array_equal(first, again)
    assert not np.array_equal(first[0], other)
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("dmc/cartpole-swingup", ("cartpole", "swingup")),
        ("dmc/cartpole_swingup_sparse", ("cartpole", "swingup_sparse")),
        ("dmc/ball_in_cup-catch", ("ball_in_cup", "catch")),
        ("dmc/ball-in-cup-catch", ("ball_in_cup", "catch")),
        ("dmc/cup-catch", ("ball_in_cup", "catch")),
        ("dmc/humanoid_CMU-run", ("humanoid_CMU", "run")),
        ("dmc/humanoid-run_pure_state", ("humanoid", "run_pure_state")),
        ("dmc/dog-run", ("dog", "run")),
        ("dmc/dog", None),
    ],
)
def test_dmc_names(name, task):
    assert find_task(name) == task


def test_dmc_unbounded_actions_are_refused():
    with pytest.raises(ValueError, match=r"dmc/lqr-lqr_2_1: the action space Box\(-inf, inf.* infinite bounds"):
        make_env("dmc/lqr-lqr_2_1")


# Gymnasium -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scale"), [("CartPole-v1", None), ("Pendulum-v1", 2.0), ("Hopper-v5", 1.0), ("Swimmer-v5", 1.0)]
)
def test_gymnasium_equals_gymnasium(name, scale):
    env = make_env(name, num_envs=2, seed=1)
    by_hand = [gymnasium.make(name) for _ in env.seeds]
    obs = env.reset()
    expected = [one.reset(seed=seed)[0] for one, seed in zip(by_hand, env.seeds, strict=True)]
    for _ in range(60):
        assert torch.equal(obs, torch.as_tensor(np.array(expected, np.float32)))
        transition = env.step(action := sampled(env))
        raw = action.numpy() if scale is None else scale * action.numpy()
        steps = [one.step(a) for one, a in zip(by_hand, raw, strict=True)]
        successors = np.array([step[0] for step in steps], np.float32)
        assert torch.equal(transition.obs, obs)
        assert torch.equal(transition.next_obs, torch.as_tensor(successors))
        assert torch.equal(transition.reward, torch.tensor([float(step[1]) for step in steps]))
        assert transition.terminated.tolist() == [step[2] for step in steps]
        done = transition.terminated | transition.truncated
        obs = env.reset(done)
        played = zip(by_hand, steps, done, strict=True)
        expected = [one.reset()[0] if over else step[0] for one, step, over in played]


@pytest.mark.parametrize("name", ["Taxi-v4", "CliffWalking-v1", "Ant-v5", "MountainCarContinuous-v0", "FrozenLake-v1"])
def test_gymnasium_ids_run_without_a_warning(name):
    runs(name, torch.float32)


def test_deprecations_in_gymnasiums_model_files_are_not_the_users(tmp_path, monkeypatch, capfd):
    mujoco = pytest.importorskip("mujoco")
    before = mujoco.get_mju_user_warning()  # dm_control's, where that was imported
    monkeypatch.chdir(tmp_path)  # MuJoCo writes MUJOCO_LOG.TXT where it is
    make_env("HalfCheetah-v5", num_envs=2)
    assert capfd.readouterr() == ("", "")
    assert [*tmp_path.iterdir()] == []
    with without_advice(), pytest.warns(RuntimeWarning, match="MuJoCo: the simulation is unstable"):
        mujoco.get_mju_user_warning()("the simulation is unstable")
    assert mujoco.get_mju_user_warning() is before


@pytest.mark.parametrize(("name", "dtype"), [("LunarLander-v3", torch.float32), ("CarRacing-v3", torch.uint8)])
def test_box2d_runs(name, dtype):
    pytest.importorskip("Box2D", reason="needs the extra box2d")
    runs(name, dtype)


def runs(name, dtype):
    env = make_env(name, num_envs=2)
    obs = env.reset()
    assert obs.dtype == dtype
    assert obs.shape == (2, *env.observation_space.shape)
    transition = env.step(sampled(env))
    assert transition.next_obs.shape == obs.shape
    assert transition.reward.dtype == torch.float32
    assert isinstance(env, Env)
    env.close()
    env.close()


def test_time_limit_truncates_and_failure_terminates():
    env = make_env("CartPole-v1", num_envs=2, max_episode_steps=5)
    env.reset()
    flags = [env.step(torch.tensor([0, 1])) for _ in range(5)][-1]
    assert flags.truncated.all()
    assert not flags.terminated.any()
    env = make_env("CartPole-v1")
    env.reset()
    for _ in range(20):  # pushing one way drops the pole within 11 steps
        transition = env.step(torch.tensor([0]))
        if transition.terminated:
            break
    assert transition.terminated.item()
    assert not transition.truncated.item()


def test_terminated_wins_over_truncated(monkeypatch):
    env = make_fake(monkeypatch, flags=(True, True))
    env.reset()
    transition = env.step(torch.zeros(1, 1))
    assert transition.terminated.item()
    assert not transition.truncated.item()


@pytest.mark.parametrize(
    ("low", "high", "action", "expected"),
    [
        ([-2.0], [2.0], [0.5], [1.0]),
        ([-2.0, 0.0], [4.0, 10.0], [0.0, -0.5], [1.0, 2.5]),
        ([0.1, 0.3], [0.7, 0.3], [1.0, 1.0], [0.7, 0.3]),  # exactly the bound, and a bound of no width
        ([-2.0], [2.0], [3.0], [2.0]),  # beyond 1 is clipped
    ],
)
def test_actions_are_rescaled_to_the_bounds(monkeypatch, low, high, action, expected):
    space = spaces.Box(np.array(low, np.float32), np.array(high, np.float32))
    env = make_fake(monkeypatch, action=space)
    assert env.action_space == spaces.Box(-1.0, 1.0, (len(low),), np.float32)
    env.reset()
    transition = env.step(torch.tensor([action]))
    assert last_action(env).dtype == np.float32
    assert last_action(env).tolist() == np.array(expected, np.float32).tolist()
    assert transition.action.tolist() == [action]


def test_action_boxes_of_any_shape_are_flat_outside(monkeypatch):
    env = make_fake(monkeypatch, action=spaces.Box(-2.0, 2.0, (2, 3), np.float64))
    assert env.action_space.shape == (6,)
    env.reset()
    env.step(torch.linspace(-1, 1, 6).unsqueeze(0))
    assert last_action(env).dtype == np.float64
    assert last_action(env).ravel() == pytest.approx(np.linspace(-2, 2, 6))


def test_discrete_start_is_added(monkeypatch):
    env = make_fake(monkeypatch, action=spaces.Discrete(3, start=5))
    assert env.action_space == spaces.Discrete(3)
    env.reset()
    assert env.step(torch.tensor([2])).action.tolist() == [2]
    assert last_action(env) == 7
    with pytest.raises(ValueError, match=r"action 3 of environment 0 is not in 0\.\.2"):
        env.step(torch.tensor([3]))


def test_observations_are_flattened(monkeypatch):
    parts = {
        "b": spaces.Box(-1.0, 1.0, (2, 2), np.float64),
        "a": spaces.Discrete(3, start=1),
        "c": spaces.Dict({"x": spaces.Box(0, 9, (1,), np.int64)}),
        "d": spaces.Tuple([spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3])]),
    }
    obs = {"b": np.array([[0.1, 0.2], [0.3, 0.4]]), "a": np.int64(2), "c": {"x": np.array([7])}}
    obs["d"] = np.array([0, 1], np.int8), np.array([1, 2])
    env = make_fake(monkeypatch, observation=spaces.Dict(parts), obs=obs)
    # gymnasium.spaces.Dict sorts its keys.
    assert env.observation_space.low.tolist() == [0, 0, 0, -1, -1, -1, -1, 0, *[0] * 7]
    assert env.observation_space.high.tolist() == [1, 1, 1, 1, 1, 1, 1, 9, *[1] * 7]
    assert torch.equal(env.reset(), torch.tensor([[0, 1, 0, 0.1, 0.2, 0.3, 0.4, 7, 0, 1, 0, 1, 0, 0, 1]]))


def test_three_numbers_of_blackjack_are_one_vector():
    env = make_env("Blackjack-v1", seed=1)
    obs = env.reset()
    assert obs.shape == (1, 32 + 11 + 2)
    assert obs.sum() == 3


@pytest.mark.parametrize(
    ("shape", "order", "expected"),
    [
        ((4, 5, 3), (2, 0, 1), (3, 4, 5)),
        ((6, 7, 1), (2, 0, 1), (1, 6, 7)),
        ((3, 8, 9), (0, 1, 2), (3, 8, 9)),
        ((16, 16, 12), (2, 0, 1), (12, 16, 16)),
        ((8, 8, 11), (2, 0, 1), (11, 8, 8)),
        ((12, 8, 8), (0, 1, 2), (12, 8, 8)),
        ((20, 16, 12), (2, 0, 1), (12, 20, 16)),
        ((5, 5, 5), (0, 1, 2), (5, 5, 5)),
    ],
)
def test_images_stay_uint8_with_channels_first(monkeypatch, shape, order, expected):
    image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    env = make_fake(monkeypatch, observation=spaces.Box(0, 255, shape, np.uint8), obs=image)
    assert env.observation_space == spaces.Box(0, 255, expected, np.uint8)
    assert env.reset().dtype == torch.uint8
    assert torch.equal(env.step(torch.zeros(1, 1)).next_obs[0], torch.as_tensor(image).permute(order))


def test_action_repeat_sums_and_stops_at_the_end():
    env, slow = (make_env(COUNTER, num_envs=8, seed=4, action_repeat=times) for times in (1, 3))
    obs, _ = env.reset(), slow.reset()
    rewards = torch.zeros(8)
    done = torch.zeros(8, dtype=torch.bool)
    lengths = torch.tensor([one.unwrapped.length for one in env._vector.envs])
    for t in range(1, 4):
        rewards += torch.where(lengths >= t, t, 0)
        done |= lengths == t
    transition = slow.step(torch.zeros(8, dtype=torch.int64))
    assert len(set(lengths.tolist())) > 2
    assert torch.equal(transition.reward, rewards)
    assert torch.equal(transition.terminated, done)
    assert torch.equal(transition.next_obs[:, 1], lengths.clamp(max=3).float())
    assert torch.equal(transition.obs, obs)


# Episodes ------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, database=None)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=30), st.integers(0, 2**32))
def test_no_transition_crosses_an_episode_boundary(extra, seed):
    env = make_env(COUNTER, num_envs=3, seed=seed)
    obs = env.reset()
    for early in extra:  # besides the episodes that are over, some are ended early
        lengths = torch.tensor([one.unwrapped.length for one in env._vector.envs])
        transition = env.step(torch.zeros(3, dtype=torch.int64))
        assert torch.equal(transition.obs, obs)
        assert torch.equal(transition.next_obs, obs + torch.tensor([0.0, 1.0]))
        assert torch.equal(transition.reward, obs[:, 1] + 1)
        done = transition.next_obs[:, 1] == lengths
        assert torch.equal(transition.terminated, done & (lengths < 5))
        assert torch.equal(transition.truncated, done & (lengths == 5))
        mask = done | torch.tensor(early)
        kept = transition.next_obs.clone()
        obs = env.reset(mask)
        assert torch.equal(transition.next_obs, kept)
        assert torch.equal(obs[~mask], kept[~mask])
        assert torch.equal(obs[mask], torch.stack([kept[mask][:, 0] + 1, torch.zeros(int(mask.sum()))], 1))


def test_stepping_a_finished_episode_is_an_error():
    env = make_env("sanity/constant", num_envs=2)
    with pytest.raises(RuntimeError, match=r"sanity/constant: call reset\(\) before step\(\)"):
        env.step(torch.tensor([0, 0]))
    with pytest.raises(RuntimeError, match="without a mask first"):
        env.reset(torch.tensor([True, False]))
    env.reset()
    env.step(torch.tensor([0, 0]))
    env.reset(torch.tensor([True, False]))
    with pytest.raises(RuntimeError, match=r"no episode is running in \[1\]"):
        env.step(torch.tensor([0, 0]))
    env.reset(torch.tensor([False, True]))
    env.step(torch.tensor([0, 0]))


# Stepping one after another ------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, database=None)
@given(st.integers(1, 4), st.integers(0, 2**32), st.lists(st.integers(0, 15), min_size=1, max_size=25))
def test_serial_is_gymnasiums_vector_environment(num_envs, seed, early):
    ours = Serial([Counter() for _ in range(num_envs)])
    theirs = gymnasium.vector.SyncVectorEnv([Counter] * num_envs, autoreset_mode="Disabled")
    seeds = [seed + i for i in range(num_envs)]
    assert np.array_equal(ours.reset(seed=[*seeds])[0], theirs.reset(seed=[*seeds])[0])
    for bits in early:
        actions = np.zeros(num_envs, np.int64)
        found, expected = ours.step(actions), theirs.step(actions)
        for mine, other in zip(found[:4], expected[:4], strict=True):
            assert mine.dtype == other.dtype
            assert np.array_equal(mine, other)
        mask = found[2] | found[3] | np.array([bool(bits >> i & 1) for i in range(num_envs)])
        if mask.any():
            found, expected = (both.reset(options={"reset_mask": mask.copy()})[0] for both in (ours, theirs))
            assert np.array_equal(found, expected)


class Reuser(Counter):
    """Return the same array every time, changed."""

    seen = np.zeros(2)

    def step(self, action):
        self.seen[:], *rest = super().step(action)
        return (self.seen, *rest)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_later_steps_and_resets_change_no_transition(monkeypatch, num_envs):
    monkeypatch.setattr(gymnasium.registry[COUNTER], "entry_point", Reuser)
    env = make_env(COUNTER, num_envs=num_envs, seed=2)
    env.reset()
    kept, copies = [], []
    action = torch.zeros(num_envs, dtype=torch.int64)
    for k in range(12):
        action[:] = k % 2  # the agent may write to what it sent
        transition = env.step(action)
        fields = [getattr(transition, name) for name in FIELDS]
        kept += fields
        copies += [field.clone() for field in fields]
        env.reset(transition.terminated | transition.truncated)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


class Float32Reuser(Counter):
    """Return the same float32 array every time, of all environments."""

    seen = np.zeros(2, np.float32)

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, np.inf, (2,), np.float32)

    def reset(self, **options):
        self.seen[:], info = super().reset(**options)
        return self.seen, info

    def step(self, action):
        self.seen[:], *rest = super().step(action)
        return (self.seen, *rest)


def test_an_array_that_environments_share_is_no_observation_of_ours(monkeypatch):
    monkeypatch.setattr(gymnasium.registry[COUNTER], "entry_point", Float32Reuser)
    env, again = (make_env(COUNTER, num_envs=2, seed=2) for _ in range(2))
    env.reset()
    for _ in range(4):
        transition = env.step(torch.tensor([0, 1]))
        env.reset(transition.terminated | transition.truncated)
    assert env.obs.unique(dim=0).shape[0] == 2, "both observe the same, which shows nothing"
    assert again.load_state_dict(env.state_dict()).tolist() == [False, False]
    assert torch.equal(again.obs, env.obs)


@pytest.mark.parametrize("reward", [2, 2.0, np.float32(2), np.float64(2), np.array(2.0), np.array(2, np.int64)])
@pytest.mark.parametrize("flag", [True, 1, np.True_, np.array(True)])
def test_rewards_and_flags_may_have_any_type_of_number(monkeypatch, reward, flag):
    env = make_fake(monkeypatch, num_envs=2, reward=reward, flags=(np.False_, flag))
    env.reset()
    transition = env.step(torch.zeros(2, 1))
    assert transition.reward.dtype == torch.float32
    assert transition.reward.tolist() == [2.0, 2.0]
    assert transition.terminated.dtype == transition.truncated.dtype == torch.bool
    assert (transition.terminated.tolist(), transition.truncated.tolist()) == ([False, False], [True, True])


@pytest.mark.parametrize("obs", [np.zeros(3, np.float32), np.zeros((1, 2)), np.float32(0)])
def test_observations_of_another_shape_than_the_space_stop_the_run(monkeypatch, obs):
    image = np.zeros((3, 8, 9), np.uint8)
    space = spaces.Box(0, 255, image.shape, np.uint8)
    for num_envs in (1, 2):
        env = make_fake(monkeypatch, num_envs=num_envs, observation=space, obs=obs, first=image)
        env.reset()
        with pytest.raises(ValueError, match=r"expected observations of shape \(3, 8, 9\)"):
            env.step(torch.zeros(num_envs, 1))


def test_images_of_another_dtype_are_not_cut_off(monkeypatch):
    space = spaces.Box(0, 255, (3, 8, 9), np.uint8)
    env = make_fake(monkeypatch, observation=space, obs=np.full((3, 8, 9), 0.5))
    with pytest.raises(TypeError, match=r"float64.*uint8"):
        env.reset()


def test_environments_with_different_spaces_are_not_stepped_together():
    with pytest.raises(RuntimeError, match=r"must have the same spaces, got also .*Discrete\(2\)"):
        Serial([Fake(), Counter()])


def test_close_closes_every_environment(monkeypatch):
    closed = []
    monkeypatch.setattr(Fake, "close", lambda self: closed.append(self))
    env = make_env(FAKE, num_envs=3)
    env.close()
    env.close()
    assert len(set(map(id, closed))) == len(closed) == 3


def test_everything_is_on_the_device(device):
    env = make_env("CartPole-v1", num_envs=2, device=device)
    assert env.reset().device.type == device
    transition = env.step(torch.tensor([0, 1], device=device))
    assert {getattr(transition, name).device.type for name in FIELDS} == {device}


# Seeds ---------------------------------------------------------------------------------------------------------------


def trajectory(name: str, seed: int, num_envs: int = 3) -> torch.Tensor:
    env = make_env(name, num_envs=num_envs, seed=seed)
    rows = [env.reset()]
    for _ in range(15):
        transition = env.step(sampled(env))
        rows.append(env.reset(transition.terminated | transition.truncated))
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["CartPole-v1", "dmc/cartpole-swingup"])
def test_same_seed_same_numbers(name):
    first = trajectory(name, 7)
    assert torch.equal(first, trajectory(name, 7))
    assert not torch.equal(first, trajectory(name, 8))
    starts = first[0]
    assert len({tuple(row.tolist()) for row in starts}) == 3
    # Environment i does not depend on how many others there are.
    assert torch.equal(make_env(name, num_envs=1, seed=7).reset()[0], starts[0])


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("CartPole", "CartPole-v1"),
        ("Hopper-v9", "Hopper-v5"),
        ("cheetah-run", "dmc/cheetah-run"),
        ("dmc/cheetah-rnu", "dmc/cheetah-run"),
        ("dmc/ball_in_cup-cach", "dmc/ball_in_cup-catch"),
        ("sanity/clok", "sanity/clock"),
        ("minatar/space-invader", "minatar/space_invaders"),
        ("dmc-pixels/cheetah-rnu", "dmc-pixels/cheetah-run"),
    ],
)
def test_unknown_names_say_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f'no environment is called "{name}"; did you mean "{nearest}"'):
        make_env(name)


def test_a_name_like_no_other_gets_no_guess():
    with pytest.raises(
        ValueError, match=r'called "qqqq"\. Names are "dmc/<name>", .* "cminatar", .* and Gymnasium ids'
    ):
        make_env("qqqq")


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        ("Box2D", "LunarLander-v3", "LunarLander-v3 needs Box2D: pip install 'plasticity-toolkit[box2d]'"),
        ("minatar", "minatar/freeway", "minatar/freeway needs MinAtar: pip install 'plasticity-toolkit[minatar]'"),
        ("ale_py", "atari/pong", "atari/pong needs ale-py: pip install 'plasticity-toolkit[atari]'"),
        ("ale_py", "ALE/Pong-v5", "ALE/Pong-v5 needs ale-py: pip install 'plasticity-toolkit[atari]'"),
    ],
)
def test_a_missing_extra_says_what_to_install(monkeypatch, module, name, message):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
    with pytest.raises(ModuleNotFoundError) as error:
        make_env(name)
    assert str(error.value) == message
    assert [line for line in missing_extras() if message.partition(": ")[2] in line]


@pytest.mark.parametrize(
    ("spaces_", "message"),
    [
        ({"observation": spaces.Text(3)}, r"Fake-v0: cannot use the observation space Text\(.*supported .*Dict"),
        ({"observation": spaces.Tuple([spaces.Text(3)])}, r"observation space Tuple\(Text\("),
        ({"action": spaces.MultiDiscrete([2, 3])}, r"Fake-v0: cannot use the action space MultiDiscrete.*supported"),
        ({"action": spaces.Box(0, 5, (1,), np.int64)}, r"cannot use the action space Box\(0, 5, \(1,\), int64\)"),
        ({"action": spaces.Box(-np.inf, 1, (1,))}, "infinite bounds.*give it finite ones"),
        ({"action": spaces.Box(-1, 1, (0,))}, r"Fake-v0: cannot use the action space Box\(\[\]"),
        ({"observation": spaces.Box(-1, 1, (0,))}, r"Fake-v0: cannot use the observation space Box\(\[\]"),
        ({"observation": spaces.Sequence(spaces.Discrete(2))}, r"Fake-v0: cannot use the observation space Sequence"),
        ({"observation": spaces.Box(0, 255, (4, 8, 8, 3), np.uint8)}, r"images of shape \(4, 8, 8, 3\) have too many"),
        ({"observation": spaces.Box(0, 255, (8, 3, 9), np.uint8)}, r"cannot tell the channels of images of shape \(8"),
    ],
)
def test_other_spaces_are_refused(monkeypatch, spaces_, message):
    with pytest.raises(ValueError, match=message):
        make_fake(monkeypatch, **spaces_)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"obs": np.array([0, np.nan], np.float32)}, r"observation of environment 0 is not finite \(entry 1 is nan\)"),
        ({"obs": np.array([1e39, 0])}, r"observation of environment 0 is not finite \(entry 0 is inf\)"),
        ({"reward": np.inf}, r"reward of environment 0 is not finite \(entry 0 is inf\) after 1 steps"),
        ({"reward": 1e39}, r"reward of environment 0 is not finite"),
    ],
)
def test_non_finite_numbers_stop_the_run(monkeypatch, fault, message):
    env = make_fake(monkeypatch, num_envs=2, first=np.zeros(2), **fault)
    env.reset()
    with pytest.raises(FloatingPointError, match=f"{FAKE}: {message}"):
        env.step(torch.zeros(2, 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("beside", [0.0, 3e38])
def test_no_place_hides_a_non_finite_number(monkeypatch, bad, beside):
    space = spaces.Box(-np.inf, np.inf, (5,), np.float32)
    for entry in range(5):
        obs = np.full(5, beside, np.float32)
        obs[entry] = bad
        env = make_fake(monkeypatch, num_envs=2, observation=space, obs=obs, first=np.zeros(5, np.float32))
        env.reset()
        with pytest.raises(FloatingPointError, match=rf"observation of environment 0 .*entry {entry} is {bad}"):
            env.step(torch.zeros(2, 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_numbers_pass_though_their_squares_overflow(monkeypatch, dtype):
    large = np.array([3e38, -3e38], dtype)
    space = spaces.Box(-np.inf, np.inf, (2,), dtype)
    env = make_fake(monkeypatch, num_envs=2, observation=space, obs=large, reward=-3e38)
    expected = torch.tensor([3e38, -3e38])
    assert torch.equal(env.reset()[1], expected)
    transition = env.step(torch.tensor([[3e38], [-3e38]]))
    assert torch.equal(transition.next_obs[1], expected)
    assert torch.equal(transition.reward, torch.tensor([-3e38, -3e38]))
    assert last_action(env).tolist() == [1.0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.uint8, np.bool_])
def test_ordinary_numbers_of_every_dtype(dtype):
    values = np.array([[0, 1], [1, 1]], dtype)
    assert ordinary(values)
    assert to_float32(values).dtype == np.float32
    assert to_float32(values).tolist() == [[0, 1], [1, 1]]
    assert not np.shares_memory(to_float32(values), values)
    if np.issubdtype(dtype, np.floating):
        for bad in (np.nan, np.inf, -np.inf):
            assert not ordinary(np.array([[0, 1], [1, bad]], dtype))


def test_what_overflows_float32_becomes_infinite_without_a_warning():
    assert to_float32(np.array([1e39, -1e39, 1e30, 1.1])).tolist() == [
        np.inf,
        -np.inf,
        np.float32(1e30),
        np.float32(1.1),
    ]


@pytest.mark.parametrize(
    "action",
    [
        torch.tensor([[0.5], [-1.0]], requires_grad=True),
        torch.tensor([[0.5, 9.0], [-1.0, 9.0]])[:, :1],
        torch.tensor([[0.5], [-1.0]], dtype=torch.float64),
        torch.tensor([[0.5], [-1.0]], dtype=torch.bfloat16),
        np.array([[0.5], [-1.0]]),
        [[0.5], [-1.0]],
    ],
)
def test_actions_may_be_floats_of_any_kind(monkeypatch, action):
    env = make_fake(monkeypatch, num_envs=2)
    env.reset()
    sent = env.step(action).action
    assert sent.dtype == torch.float32
    assert not sent.requires_grad
    assert sent.tolist() == [[0.5], [-1.0]]
    assert [last_action(env, i).tolist() for i in range(2)] == [[0.5], [-1.0]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_actions_may_be_integers_of_any_kind(dtype):
    env = make_env("CartPole-v1", num_envs=2)
    env.reset()
    sent = env.step(torch.tensor([1, 0], dtype=dtype)).action
    assert sent.dtype == torch.int64
    assert sent.tolist() == [1, 0]
    for wrong in (torch.tensor([True, False]), torch.tensor([1j, 0])):
        with pytest.raises(ValueError, match=r"expected integers of shape \(2,\)"):
            env.step(wrong)


def test_a_non_finite_first_observation_stops_the_run(monkeypatch):
    with pytest.raises(FloatingPointError, match="observation of environment 0"):
        make_fake(monkeypatch, first=np.array([np.nan, 0])).reset()


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (torch.tensor([[0.0], [float("nan")]]), FloatingPointError, "Fake-v0: action of environment 1 is not finite"),
        (torch.zeros(2), ValueError, r"expected floats of shape \(2, 1\) as action, got float32 of shape \(2,\)"),
        (torch.zeros(2, 1, dtype=torch.int64), ValueError, "got int64"),
    ],
)
def test_wrong_actions_are_refused(monkeypatch, action, error, message):
    env = make_fake(monkeypatch, num_envs=2)
    env.reset()
    with pytest.raises(error, match=message):
        env.step(action)


def test_wrong_discrete_actions_and_masks_are_refused():
    env = make_env("CartPole-v1", num_envs=2)
    env.reset()
    with pytest.raises(ValueError, match=r"expected integers of shape \(2,\)"):
        env.step(torch.zeros(2))
    with pytest.raises(ValueError, match="action -1 of environment 1"):
        env.step(torch.tensor([0, -1]))
    for mask in (torch.ones(2), torch.ones(3, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"bool mask of shape \(2,\)"):
            env.reset(mask)


@pytest.mark.parametrize("argument", ["num_envs", "action_repeat", "max_episode_steps"])
def test_counts_are_at_least_one(argument):
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        make_env("CartPole-v1", **{argument: 0})


def test_old_versions_still_warn():
    with pytest.warns(DeprecationWarning, match="out of date"):
        make_env("CartPole-v0")


# The rest ------------------------------------------------------------------------------------------------------------


def test_envs_lists_what_can_be_made():
    listed = {key: family.ids() for key, family in ENVS.items()}
    assert {"dmc/cartpole-swingup", "dmc/dog-run", "dmc/ball_in_cup-catch"} <= set(listed["dmc"])
    assert all(find_task(name) for name in listed["dmc"])
    assert "Hopper-v5" in listed["gymnasium"]
    assert "Hopper-v4" not in listed["gymnasium"]
    assert len(listed["sanity"]) == 14
    assert len(listed["minatar"]) == 5
    assert [name.replace("-pixels", "", 1) for name in listed["dmc-pixels"]] == listed["dmc"]
    assert not [name for name in listed["gymnasium"] if "ALE" in name or "NoFrameskip" in name]


def test_import_is_light():
    heavy = ("dm_control", "mujoco", "minatar", "ale_py", "Box2D")
    code = f"import sys, plasticity.envs; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("display", "egl", "osmesa", "expected"),
    [
        ("", True, None, "egl"),
        ("", False, "libOSMesa.so", "osmesa"),
        ("", False, None, "disabled"),
        (":0", True, None, None),
    ],
)
def test_graphics_backend(monkeypatch, display, egl, osmesa, expected):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("MUJOCO_GL", "")  # so that it is put back afterwards
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    monkeypatch.setattr(graphics, "_egl_has_device", lambda: egl)
    monkeypatch.setattr(graphics, "find_library", lambda _: osmesa)
    graphics.set_default_gl()
    assert os.environ.get("MUJOCO_GL") == expected
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    graphics.set_default_gl()
    assert os.environ["MUJOCO_GL"] == "glfw"


def test_action_repeat_of_dm_control_is_two_unless_said():
    env, named = make_env("dmc/cartpole-swingup", seed=5), make_env("dmc/cartpole-swingup", seed=5, action_repeat=2)
    single = make_env("dmc/cartpole-swingup", seed=5, action_repeat=1)
    for one in (env, named, single):
        one.reset()
    action = torch.full((1, 1), 0.7)
    twice = [single.step(action), single.step(action)]
    assert torch.equal(env.step(action).next_obs, twice[1].next_obs)
    assert torch.equal(named.step(action).next_obs, twice[1].next_obs)
