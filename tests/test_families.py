"""Families of one's own, and environments that break Gymnasium's API."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from plasticity.cli import main
from plasticity.envs import ENVS, Family, find_family, make_env


class Maze(gymnasium.Env):
    """Go left or right from 0 until 3 or -3; observe the place, are paid the direction."""

    def __init__(self, limit=None):
        self.observation_space = spaces.Box(-3.0, 3.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.limit = limit

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = int(self.np_random.integers(-1, 2)), 0
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.place, self.steps = self.place + 2 * int(action) - 1, self.steps + 1
        over = abs(self.place) >= 3
        return np.array([self.place], np.float32), float(action), over, self.steps == self.limit, {}


@pytest.fixture
def families():
    """The registry, which is as it was again after the test."""
    before = dict(ENVS)
    yield ENVS
    ENVS.clear()
    ENVS.update(before)


@pytest.fixture
def maze(families):
    families["my"] = Family("my/", lambda: ["my/maze", "my/labyrinth"], lambda name, seed, limit: Maze(limit))


@pytest.mark.usefixtures("maze")
def test_a_registered_family_is_made_and_listed(capsys):
    env = make_env("my/maze", num_envs=3, seed=1, max_episode_steps=2)
    obs = env.reset()
    assert obs.shape == (3, 1)
    env.step(torch.tensor([0, 1, 0]))
    assert env.step(torch.tensor([1, 0, 1])).truncated.all()
    assert make_env("my/labyrinth").name == "my/labyrinth"
    assert main(["list", "envs"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines.index("my/labyrinth") == lines.index("my/maze") + 1
    assert {"sanity/clock", "dmc/cartpole-swingup"} <= set(lines)


@pytest.mark.usefixtures("maze")
@pytest.mark.parametrize(
    ("name", "nearest"), [("my/maz", "my/maze"), ("labirynth", "my/labyrinth"), ("dmc/cheetah-rnu", "dmc/cheetah-run")]
)
def test_typos_of_a_registered_family_get_its_names(name, nearest):
    with pytest.raises(ValueError, match=f'called "{name}"; did you mean "{nearest}".*"my/<name>"'):
        make_env(name)


def test_a_name_is_never_suggested_for_itself(families):
    families["my"] = Family("my/", lambda: ["my/maze"], lambda *_: Maze(), accepts=lambda name: False)
    with pytest.raises(ValueError, match=r'called "my/maze"') as error:
        make_env("my/maze")
    assert 'mean "my/maze"' not in str(error.value)


@pytest.mark.usefixtures("maze")
def test_a_registered_family_is_trained_stopped_resumed_and_evaluated(tmp_path, capsys):
    common = ["train", "dqn", "--env", "my/maze", "--max-episode-steps", "20", "--learning-starts", "40", "--quiet"]
    common += ["--out", str(tmp_path), "--eval-episodes", "2", "--compile", "off", "--checkpoint.every", "100"]
    assert main([*common, "--name", "whole", "--steps", "200"]) == 0
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["config"]["env"] == "my/maze"
    assert main([*common, "--name", "half", "--steps", "100"]) == 0
    assert main(["train", "--resume", str(tmp_path / "half"), "--steps", "200", "--quiet"]) == 0
    assert main(["eval", str(tmp_path / "half"), "--episodes", "2"]) == 0
    assert "dqn on my/maze" in capsys.readouterr().out


def test_the_longest_prefix_has_a_name(families):
    families["inner"] = Family("sanity/deep/", lambda: ["sanity/deep/maze"], lambda *_: Maze())
    assert find_family("sanity/deep/maze") is families["inner"]
    assert find_family("sanity/clock") is families["sanity"]
    assert find_family("CartPole-v1") is families["gymnasium"]


def test_the_action_repeat_of_a_family_is_the_default(families):
    families["my"] = Family("my/", lambda: ["my/maze"], lambda *_: Maze(), action_repeat=2)
    for repeat, reward in ((None, 2.0), (1, 1.0)):
        env = make_env("my/maze", seed=3, action_repeat=repeat)
        env.reset()
        assert env.step(torch.tensor([1])).reward.item() == reward


def test_a_family_may_step_its_environments_together(families):
    def together(name, num_envs, action_repeat, limit):
        assert (name, num_envs, action_repeat, limit) == ("my/maze", 3, 1, None)
        return SyncVectorEnv([Maze] * num_envs, autoreset_mode=AutoresetMode.DISABLED)

    families["my"] = Family("my/", lambda: ["my/maze"], make_vector=together)
    env = make_env("my/maze", num_envs=3)
    obs = env.reset()
    assert torch.equal(env.step(torch.tensor([1, 0, 1])).next_obs, obs + torch.tensor([[1.0], [-1.0], [1.0]]))


def test_a_family_that_cannot_list_its_names_is_named_and_hides_no_other(families, capsys):
    def fails():
        raise OSError("no such disk")

    families["my"] = Family("my/", fails, lambda *_: gymnasium.make("CartPole-v1"))
    make_env("CartPole-v1").close()
    with pytest.raises(RuntimeError, match=r"the family 'my/' cannot list its names: OSError: no such disk"):
        make_env("my/maze")
    families["no"] = list
    assert main(["list", "envs"]) == 0
    listed = capsys.readouterr().out
    assert "ENVS['no'] is no Family" in listed
    assert "the family 'my/' cannot list its names" in listed
    assert "CartPole-v1" in listed


def test_what_is_no_family_is_refused(families):
    with pytest.raises(ValueError, match=r"Family 'my/' takes either make or make_vector"):
        Family("my/", list)
    families["my"] = Family("my/", lambda: ["my/maze"], lambda *_: None)
    with pytest.raises(TypeError, match=r"my/maze: make must return a gymnasium.Env, got builtins.NoneType"):
        make_env("my/maze")
    families["my"] = list  # the list of 0.1.0
    with pytest.raises(TypeError, match=r"ENVS\['my'\] must be a Family\(prefix, ids, make\), got type"):
        make_env("CartPole-v1")


# Environments that break the API --------------------------------------------------------------------------------------

OBS = np.zeros(2, np.float32)


class Odd(gymnasium.Env):
    """Return what it is told to."""

    def __init__(self, first=(OBS, {}), result=(OBS, 0.0, False, False, {})):
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.first, self.result = first, result

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.first

    def step(self, action):
        return self.result


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"first": OBS}, r"reset must return \(observation, info\), got ndarray of shape \(2,\); the old Gym API"),
        ({"first": (OBS, None)}, r"reset must return .*got a tuple of 2: \(ndarray of shape \(2,\), NoneType\)"),
        ({"result": (OBS, 0.0, False, {})}, r"step must return .*got a tuple of 4: \(ndarray .*, float, bool, dict\)"),
        ({"result": None}, r"step must return .* got NoneType"),
        ({"result": (OBS, np.zeros(1), False, False, {})}, r"reward must be one number, got ndarray of shape \(1,\)"),
        ({"result": (OBS, [1.0], False, False, {})}, r"reward must be one number, got list"),
        ({"result": (OBS, None, False, False, {})}, r"reward must be one number, got NoneType"),
        ({"result": (OBS, "1", False, False, {})}, r"reward must be one number, got str"),
        ({"result": (OBS, 0.0, np.array([True]), False, {})}, r"terminated must be one number, got ndarray of shape"),
        ({"result": (OBS, 0.0, False, None, {})}, r"truncated must be one number, got NoneType"),
    ],
)
@pytest.mark.parametrize("registered", [False, True])  # with Gymnasium's own wrappers around it
@pytest.mark.filterwarnings("ignore")  # Gymnasium's checker, about the same
def test_broken_apis_are_named(families, fault, message, registered):
    families["odd"] = Family("odd/", lambda: ["odd/one"], lambda *_: Odd(**fault))
    gymnasium.register("plasticity-test/Odd-v0", Odd, kwargs=fault, max_episode_steps=9)
    name = "plasticity-test/Odd-v0" if registered else "odd/one"
    try:
        env = make_env(name, action_repeat=2)
    finally:
        del gymnasium.registry["plasticity-test/Odd-v0"]
    if "result" in fault:
        env.reset()
    with pytest.raises(TypeError, match=f"{name}: {message}"):
        env.step(torch.tensor([0])) if "result" in fault else env.reset()


@pytest.mark.parametrize("reward", [1, True, np.float32(1), np.array(1.0), torch.tensor(1.0)])
def test_single_numbers_of_any_library_are_rewards(families, reward):
    families["odd"] = Family("odd/", lambda: ["odd/one"], lambda *_: Odd(result=(OBS, reward, False, False, {})))
    env = make_env("odd/one")
    env.reset()
    assert env.step(torch.tensor([0])).reward.tolist() == [1.0]
