"""Images for observations, against dm_control rendered by hand."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from plasticity.envs import make_env
from plasticity.envs.dmc import DMControl, find_task
from plasticity.envs.wrappers import stack_frames


@pytest.fixture(scope="module", autouse=True)
def rendering():
    try:
        make_env("dmc-pixels/cartpole-swingup").close()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("name", "camera"), [("cartpole-swingup", 0), ("quadruped-walk", 2)])
def test_pixels_equal_dm_control(name, camera):
    env = make_env(f"dmc-pixels/{name}", num_envs=1, seed=3)
    assert env.observation_space == spaces.Box(0, 255, (9, 84, 84), np.uint8)
    from dm_control import suite

    by_hand = suite.load(*find_task(f"dmc/{name}"), {"random": env.seeds[0]})
    by_hand.physics.model.vis.quality.offsamples = 0
    flags = {"shadow": False, "reflection": False}

    def picture():
        return by_hand.physics.render(84, 84, camera_id=camera, render_flag_overrides=flags).transpose(2, 0, 1)

    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        obs = env.reset()
        by_hand.reset()
        frames = [picture()] * 3
        assert np.array_equal(obs[0], np.concatenate(frames))
        for _ in range(4):
            action = torch.rand(1, env.action_space.shape[0], generator=generator) * 2 - 1
            transition = env.step(action)
            spec = by_hand.action_spec()
            control = spec.minimum + (action[0].double().numpy() + 1) / 2 * (spec.maximum - spec.minimum)
            rewards = [by_hand.step(control).reward for _ in range(2)]
            frames = [*frames[1:], picture()]
            assert np.array_equal(transition.obs, obs)
            assert np.array_equal(transition.next_obs[0], np.concatenate(frames))
            assert transition.reward.item() == pytest.approx(sum(rewards))
            obs = transition.next_obs
    assert (frames[-1] != frames[0]).any()


def test_only_what_is_seen_is_rendered(monkeypatch):
    env = make_env("dmc-pixels/cartpole-swingup", action_repeat=4)
    calls = []
    monkeypatch.setattr(DMControl, "render", lambda self: calls.append(1) or np.zeros((84, 84, 3), np.uint8))
    env.reset()
    for _ in range(3):
        env.step(torch.zeros(1, 1))
    assert len(calls) == 4


def test_the_time_limit_truncates():
    env = make_env("dmc-pixels/cartpole-balance", max_episode_steps=6)
    env.reset()
    assert [env.step(torch.zeros(1, 1)).truncated.item() for _ in range(3)] == [False, False, True]


class Film(gymnasium.Env):
    """Show images (5, 6, 3) filled with 10, 11, 12, ...; each episode goes on where the last one stopped."""

    observation_space = spaces.Box(0, 255, (5, 6, 3), np.uint8)
    action_space = spaces.Discrete(2)
    now = 9

    def reset(self, *, seed=None, options=None):
        return self.show(), {}

    def step(self, action):
        return self.show(), 0.0, False, False, {}

    def show(self):
        self.now += 1
        return np.full((5, 6, 3), self.now, np.uint8) + np.arange(3, dtype=np.uint8) * 100


def test_stacked_frames_are_channels_oldest_first():
    env = stack_frames(Film(), 2, "film")
    assert env.observation_space == spaces.Box(0, 255, (6, 5, 6), np.uint8)
    seen = [env.reset()[0], env.step(0)[0], env.step(0)[0], env.reset()[0]]
    assert [image[:, 4, 5].tolist() for image in seen] == [
        [10, 110, 210, 10, 110, 210],
        [10, 110, 210, 11, 111, 211],
        [11, 111, 211, 12, 112, 212],
        [13, 113, 213, 13, 113, 213],
    ]


def test_without_a_renderer_one_line_says_what_to_install(monkeypatch):
    def fail(self):
        raise RuntimeError("no backend")

    monkeypatch.setattr(DMControl, "render", fail)
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(RuntimeError) as error:
        make_env("dmc-pixels/cartpole-swingup")
    expected = "dmc-pixels/cartpole-swingup cannot be rendered here (MUJOCO_GL: disabled; no backend)"
    assert str(error.value).startswith(expected)
    assert "apt-get install libegl1" in str(error.value)
    assert "\n" not in str(error.value)
