"""Atari games, against ale-py's vector environment stepped by hand."""

import os
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from plasticity.envs import ENVS, make_env
from plasticity.envs.atari import find_game

vector_env = pytest.importorskip("ale_py.vector_env", reason="needs the extra atari")


def test_games_equal_ale_up_to_the_end_and_never_reset_themselves():
    env = make_env("atari/breakout", num_envs=2, seed=2)
    assert env.observation_space == spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert env.action_space == spaces.Discrete(4)
    # SAME_STEP keeps the true last observation aside, under the key final_obs.
    settings = {"repeat_action_probability": 0.25, "reward_clipping": False}
    by_hand = vector_env.AtariVectorEnv("breakout", 2, autoreset_mode=AutoresetMode.SAME_STEP, **settings)
    obs, rng = env.reset(), np.random.default_rng(0)
    assert np.array_equal(obs, by_hand.reset(seed=np.array([seed % 2**31 for seed in env.seeds]))[0])
    for _ in range(1000):
        action = rng.integers(4, size=2)
        transition = env.step(torch.as_tensor(action))
        expected, reward, terminated, _, info = by_hand.step(action)
        for row, ended in enumerate(terminated):
            assert np.array_equal(transition.next_obs[row], (info["final_obs"] if ended else expected)[row])
        assert transition.reward.tolist() == reward.tolist()
        assert transition.terminated.tolist() == terminated.tolist()
        # What is not a new frame is what was seen before: no reset has come between.
        assert torch.equal(transition.next_obs[:, :3], transition.obs[:, 1:])
        if terminated.any():
            break
        assert torch.equal(transition.obs, obs)
        obs = transition.next_obs
    assert transition.terminated.sum() == 1
    assert not transition.truncated.any()


def test_a_reset_by_mask_starts_the_ended_game_only_and_the_next_step_is_a_real_one():
    env = make_env("atari/breakout", num_envs=2, seed=0)
    env.reset()
    rng, ends = np.random.default_rng(1), 0
    while ends < 3:
        transition = env.step(torch.as_tensor(rng.integers(4, size=2)))
        assert torch.equal(transition.next_obs[:, :3], transition.obs[:, 1:])
        done = transition.terminated
        if done.any():
            ends += 1
            with pytest.raises(RuntimeError, match="no episode is running"):
                env.step(torch.zeros(2, dtype=torch.int64))
            kept = transition.next_obs.clone()
            obs = env.reset(done)
            assert torch.equal(transition.next_obs, kept)
            assert torch.equal(obs[~done], kept[~done])
            assert not obs[done][:, :3].any()  # a new episode has one frame, and black ones before it
            assert obs[done][:, 3].any()


def test_a_running_game_may_be_reset():
    env = make_env("atari/pong", num_envs=2, seed=0)
    env.reset()
    for _ in range(5):
        transition = env.step(torch.tensor([2, 2]))
    obs = env.reset(torch.tensor([False, True]))
    assert torch.equal(obs[0], transition.next_obs[0])
    assert not obs[1, :3].any()
    transition = env.step(torch.tensor([0, 0]))
    assert torch.equal(transition.next_obs[:, :3], obs[:, 1:])


def test_limits_and_action_repeat_count_frames():
    env = make_env("atari/pong", max_episode_steps=60, action_repeat=10)
    env.reset()
    flags = []
    while not flags or not flags[-1]:
        transition = env.step(torch.tensor([0]))
        flags.append(transition.truncated.item())
        assert not transition.terminated.item()
    # An episode begins with 1 to 30 frames without an action; those count.
    assert 3 <= len(flags) <= 6


def test_rewards_are_points():
    env = make_env("atari/space_invaders", num_envs=2, seed=0)
    env.reset()
    rng, rewards = np.random.default_rng(0), set()
    for _ in range(150):
        transition = env.step(torch.as_tensor(rng.integers(6, size=2)))
        env.reset(transition.terminated)
        rewards |= set(transition.reward.tolist())
    assert {0.0, 5.0} <= rewards
    assert all(reward % 5 == 0 for reward in rewards)


@pytest.mark.parametrize("name", ["atari/space_invaders", "ALE/SpaceInvaders-v5", "ale_py:ALE/SpaceInvaders-v5"])
def test_names(name):
    assert find_game(name) == "space_invaders"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("atari/brekout", r'did you mean "atari/breakout"\?'),
        ("Breakout-v4", r'did you mean "minatar/breakout"\?'),  # single frames: Gymnasium's, when ale_py is imported
        ("ale_py:BreakoutNoFrameskip-v4", 'Names are .* "atari/<name>"'),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(ValueError, match=f'no environment is called "{name}".*{message}'):
        make_env(name)


def test_listed_games_have_roms():
    assert len(ENVS["atari"].ids()) > 100
    assert all(find_game(name) for name in ENVS["atari"].ids())


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_close_stops_the_threads():
    before = len(os.listdir("/proc/self/task"))
    env = make_env("atari/pong", num_envs=2)
    env.reset()
    assert len(os.listdir("/proc/self/task")) > before
    env.close()
    env.close()
    assert len(os.listdir("/proc/self/task")) == before
