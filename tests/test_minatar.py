"""MinAtar games, against MinAtar stepped by hand."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from plasticity.envs import make_env
from plasticity.envs.minatar_games import GAMES, MinAtar

minatar = pytest.importorskip("minatar", reason="needs the extra minatar")


@pytest.mark.parametrize("game", GAMES)
def test_games_equal_minatar(game):
    env = make_env(f"minatar/{game}", num_envs=2, seed=4)
    by_hand = [minatar.Environment(game) for _ in env.seeds]
    for one, seed in zip(by_hand, env.seeds, strict=True):
        one.seed(seed)
        one.reset()
    actions = by_hand[0].minimal_action_set()
    channels = by_hand[0].state_shape()[2]
    assert env.observation_space == spaces.Box(0, 255, (channels, 10, 10), np.uint8)
    assert env.action_space == spaces.Discrete(len(actions))
    obs, rng, ends = env.reset(), np.random.default_rng(0), 0
    for _ in range(400):
        assert torch.equal(obs, images(by_hand))
        action = rng.integers(len(actions), size=2)
        transition = env.step(torch.as_tensor(action))
        steps = [one.act(actions[a]) for one, a in zip(by_hand, action, strict=True)]
        assert torch.equal(transition.next_obs, images(by_hand))
        assert transition.reward.tolist() == [reward for reward, _ in steps]
        assert transition.terminated.tolist() == [over for _, over in steps]
        assert not transition.truncated.any()
        for one, (_, over) in zip(by_hand, steps, strict=True):
            if over:
                one.reset()
                ends += 1
        obs = env.reset(transition.terminated)
    assert ends > 0 or game == "freeway"  # which lasts 2500 decisions


def images(games):
    """Cells (y, x, channel), false or true, as (channel, y, x), 0 or 255."""
    cells = torch.as_tensor(np.stack([game.state() for game in games]))
    return cells.permute(0, 3, 1, 2) * torch.tensor(255, dtype=torch.uint8)


def test_all_channels_of_the_first_image():
    obs = make_env("minatar/breakout", seed=1).reset()[0]
    paddle, ball, trail, bricks = (channel.nonzero().tolist() for channel in obs)
    assert paddle == [[9, 4]]
    assert ball in ([[3, 0]], [[3, 9]])
    assert trail == ball
    assert bricks == [[y, x] for y in (1, 2, 3) for x in range(10)]
    assert sorted(set(obs.ravel().tolist())) == [0, 255]


def test_the_limit_of_5000_decisions_truncates(monkeypatch):
    from minatar.environments import breakout

    monkeypatch.setattr(breakout.Env, "act", lambda self, action: (0, False))  # as if it never missed
    env = make_env("minatar/breakout")
    env.reset()
    action = torch.tensor([0])
    for _ in range(4999):
        transition = env.step(action)
    assert not transition.truncated.item()
    transition = env.step(action)
    assert transition.truncated.item()
    assert not transition.terminated.item()


def test_max_episode_steps_and_action_repeat_count_frames():
    env = make_env("minatar/freeway", action_repeat=3, max_episode_steps=9)
    env.reset()
    assert [env.step(torch.tensor([0])).truncated.item() for _ in range(3)] == [False, False, True]


def test_a_seed_starts_the_stream_again_whatever_was_played_before():
    for seed in range(40):  # the first action sticks, with probability 0.1, to the one before it: to none
        fresh, used = MinAtar("breakout"), MinAtar("breakout")
        used.reset(seed=0)
        used.step(2)
        fresh.reset(seed=seed)
        used.reset(seed=seed)
        assert np.array_equal(fresh.step(0)[0], used.step(0)[0])
