"""Presets: the sources' own words, translated here a second time, against what the command line makes of them."""

import re
from pathlib import Path

import pytest

from plasticity.cli import main
from plasticity.commands.parsing import parse
from plasticity.commands.preset_pages import presets_page
from plasticity.commands.presets import PRESETS, Preset, find_preset, with_presets

ROOT = Path(__file__).parents[1]
OTHERS = [(name, one) for name, entries in PRESETS.items() for one in entries if "Zoo" not in one.source]

# RL Baselines3 Zoo, hyperparams/*.yml at 22e3ff2, as written there; `default`: those of stable-baselines3 2.9.
ZOO = {
    "ppo": {
        "default": "learning_rate=3e-4 n_envs=1 n_steps=2048 batch_size=64 n_epochs=10 gamma=0.99 gae_lambda=0.95 "
        "clip_range=0.2 ent_coef=0 vf_coef=0.5 max_grad_norm=0.5 net=64,64",
        "CartPole-v1": "n_envs=8 n_timesteps=1e5 n_steps=32 batch_size=256 gae_lambda=0.8 gamma=0.98 n_epochs=20 "
        "ent_coef=0 learning_rate=lin_0.001 clip_range=lin_0.2",
        "Acrobot-v1": "normalize=1 n_envs=16 n_timesteps=1e6 n_steps=256 gae_lambda=0.94 gamma=0.99 n_epochs=4",
        "MountainCar-v0": "normalize=1 n_envs=16 n_timesteps=1e6 n_steps=16 gae_lambda=0.98 gamma=0.99 n_epochs=4",
        "LunarLander-v3": "n_envs=16 n_timesteps=1e6 n_steps=1024 batch_size=64 gae_lambda=0.98 gamma=0.999 n_epochs=4 "
        "ent_coef=0.01",
        "LunarLanderContinuous-v3": "n_envs=16 n_timesteps=1e6 n_steps=1024 batch_size=64 gae_lambda=0.98 gamma=0.999 "
        "n_epochs=4 ent_coef=0.01",
        "Pendulum-v1": "n_envs=4 n_timesteps=1e5 n_steps=1024 gae_lambda=0.95 gamma=0.9 n_epochs=10 ent_coef=0 "
        "learning_rate=1e-3 clip_range=0.2 use_sde=True",
        "BipedalWalker-v3": "normalize=1 n_envs=32 n_timesteps=5e6 n_steps=2048 batch_size=64 gae_lambda=0.95 "
        "gamma=0.999 n_epochs=10 learning_rate=3e-4 clip_range=0.18",
        "HalfCheetah-v5": "normalize=1 n_timesteps=1e6 batch_size=64 n_steps=512 gamma=0.98 learning_rate=2.0633e-05 "
        "ent_coef=0.000401762 clip_range=0.1 n_epochs=20 gae_lambda=0.92 max_grad_norm=0.8 vf_coef=0.58096 net=256,256",
        "Hopper-v5": "normalize=1 n_timesteps=1e6 batch_size=32 n_steps=512 gamma=0.999 learning_rate=9.80828e-05 "
        "ent_coef=0.00229519 clip_range=0.2 n_epochs=5 gae_lambda=0.99 max_grad_norm=0.7 vf_coef=0.835671 net=256,256",
        "Walker2d-v5": "normalize=1 n_timesteps=1e6 batch_size=32 n_steps=512 gamma=0.99 learning_rate=5.05041e-05 "
        "ent_coef=0.000585045 clip_range=0.1 n_epochs=20 gae_lambda=0.95 max_grad_norm=1 vf_coef=0.871923",
        "Ant-v5": "normalize=1 n_timesteps=1e6",
        "Swimmer-v5": "normalize=1 n_timesteps=1e6 gamma=0.9999 n_envs=4 n_steps=1024 batch_size=256 "
        "learning_rate=6e-4 gae_lambda=0.98",
        "Humanoid-v5": "normalize=1 n_timesteps=1e7 batch_size=256 n_steps=512 gamma=0.95 learning_rate=3.56987e-05 "
        "ent_coef=0.00238306 clip_range=0.3 n_epochs=5 gae_lambda=0.9 max_grad_norm=2 vf_coef=0.431892 net=256,256",
        "atari/breakout": "n_envs=8 n_steps=128 n_epochs=4 batch_size=256 n_timesteps=1e7 learning_rate=lin_2.5e-4 "
        "clip_range=lin_0.1 vf_coef=0.5 ent_coef=0.01 net=None",
    },
    "sac": {
        "default": "learning_rate=3e-4 buffer_size=1e6 learning_starts=100 batch_size=256 tau=0.005 gamma=0.99 "
        "train_freq=1 gradient_steps=1 net=256,256",
        "Pendulum-v1": "n_timesteps=20000 learning_rate=1e-3",
        "MountainCarContinuous-v0": "n_timesteps=50000 learning_rate=3e-4 buffer_size=50000 batch_size=512 "
        "ent_coef=0.1 train_freq=32 gradient_steps=32 gamma=0.9999 tau=0.01 learning_starts=0 use_sde=True net=64,64",
        "LunarLanderContinuous-v3": "n_timesteps=5e5 batch_size=256 learning_rate=lin_7.3e-4 buffer_size=1000000 "
        "gamma=0.99 tau=0.01 learning_starts=10000 net=400,300",
        "BipedalWalker-v3": "n_timesteps=5e5 learning_rate=7.3e-4 buffer_size=300000 batch_size=256 gamma=0.98 "
        "tau=0.02 train_freq=64 gradient_steps=64 learning_starts=10000 use_sde=True net=400,300",
        **dict.fromkeys(
            ("HalfCheetah-v5", "Ant-v5", "Hopper-v5", "Walker2d-v5"), "n_timesteps=1e6 learning_starts=10000"
        ),
        "Humanoid-v5": "n_timesteps=2e6 learning_starts=10000",
        "Swimmer-v5": "n_timesteps=1e6 learning_starts=10000 gamma=0.999",
    },
    "td3": {
        "default": "learning_rate=1e-3 buffer_size=1e6 learning_starts=100 batch_size=256 tau=0.005 gamma=0.99 "
        "train_freq=1 gradient_steps=1 noise_std=0.1 net=400,300",
        "Pendulum-v1": "n_timesteps=20000 gamma=0.98 buffer_size=200000 learning_starts=10000",
        "MountainCarContinuous-v0": "n_timesteps=300000 noise_type=ornstein-uhlenbeck noise_std=0.5",
        "LunarLanderContinuous-v3": "n_timesteps=3e5 gamma=0.98 buffer_size=200000 learning_starts=10000",
        "BipedalWalker-v3": "n_timesteps=1e6 gamma=0.98 buffer_size=200000 learning_starts=10000",
        **dict.fromkeys(
            ("HalfCheetah-v5", "Ant-v5", "Hopper-v5", "Walker2d-v5"), "n_timesteps=1e6 learning_starts=10000"
        ),
        "Humanoid-v5": "n_timesteps=2e6 learning_starts=10000",
        "Swimmer-v5": "n_timesteps=1e6 learning_starts=10000 gamma=0.9999",
    },
    "dqn": {
        "default": "learning_rate=1e-4 buffer_size=1e6 learning_starts=100 batch_size=32 gamma=0.99 train_freq=4 "
        "gradient_steps=1 net=256,256",
        "CartPole-v1": "n_timesteps=5e4 learning_rate=2.3e-3 batch_size=64 buffer_size=100000 learning_starts=1000 "
        "gamma=0.99 target_update_interval=256 train_freq=256 gradient_steps=128 exploration_fraction=0.16 "
        "exploration_final_eps=0.04 moves=10",
        "MountainCar-v0": "n_timesteps=1.2e5 learning_rate=4e-3 batch_size=128 buffer_size=10000 learning_starts=1000 "
        "gamma=0.98 target_update_interval=600 train_freq=16 gradient_steps=8 exploration_fraction=0.2 "
        "exploration_final_eps=0.07",
        **dict.fromkeys(
            ("LunarLander-v3", "Acrobot-v1"),
            "n_timesteps=1e5 learning_rate=6.3e-4 batch_size=128 buffer_size=50000 learning_starts=0 gamma=0.99 "
            "target_update_interval=250 train_freq=4 gradient_steps=4 exploration_fraction=0.12 "
            "exploration_final_eps=0.1",
        ),
        "ALE/Pong-v5": "n_timesteps=1e7 buffer_size=100000 learning_rate=1e-4 batch_size=32 learning_starts=99999 "
        "target_update_interval=1000 train_freq=4 gradient_steps=1 exploration_fraction=0.1 "
        "exploration_final_eps=0.01 net=512",
    },
}


def words(text):
    """The numbers and texts of `key=value` pairs."""
    return dict(pair.split("=") for pair in text.split())


def translated(agent, there):
    """The Zoo's words in the settings here: {setting of the run or of the agent: value}."""
    n = {key: float(value) for key, value in there.items() if re.fullmatch(r"[\d.e+-]+", value)}
    rate = there["learning_rate"]
    value = float(rate.removeprefix("lin_"))
    hidden = None if there["net"] == "None" else tuple(map(int, there["net"].split(",")))
    both = {"steps": n["n_timesteps"], "gamma": n["gamma"], "hidden": hidden}
    if agent == "ppo":
        return both | {
            "lr": value,
            "anneal_steps": n["n_timesteps"] if rate.startswith("lin_") else 0,
            "num_envs": n["n_envs"],
            "num_steps": n["n_steps"],
            "num_minibatches": n["n_envs"] * n["n_steps"] / n["batch_size"],
            "num_epochs": n["n_epochs"],
            "gae_lambda": n["gae_lambda"],
            "clip_range": float(there["clip_range"].removeprefix("lin_")),
            "entropy_coef": n["ent_coef"],
            "value_coef": n["vf_coef"],
            "max_grad_norm": n["max_grad_norm"],
            "normalize_observations": "normalize" in there,
            "normalize_rewards": "normalize" in there,
            "clip_values": False,
            "eps": 1e-5,
            "activation": "relu" if there["net"] == "256,256" else None if hidden is None else "tanh",
            "init_log_std": -2.0 if there["net"] == "256,256" else 0.0,
            "initialisation": "default" if there["net"] == "256,256" else "orthogonal",
        }
    both |= {"batch_size": n["batch_size"], "buffer_size": n["buffer_size"], "learning_starts": n["learning_starts"]}
    if agent == "dqn":
        return both | {
            "lr": value,
            "train_every": n["train_freq"],
            "updates_per_train": n["gradient_steps"],
            "target_every": n["target_update_interval"] * n["gradient_steps"] / n["train_freq"],
            "exploration_steps": n["exploration_fraction"] * n["n_timesteps"],
            "epsilon_end": n["exploration_final_eps"],
        }
    both |= {"actor_lr": value, "critic_lr": value, "target_tau": n["tau"]}
    both |= {"updates_per_step": n["gradient_steps"] / n["train_freq"]}
    if agent == "td3":
        return both | {"exploration_noise": n["noise_std"]}
    return both | {"alpha_lr": value, "init_alpha": n.get("ent_coef", 1.0), "learn_alpha": "ent_coef" not in there}


@pytest.mark.parametrize(("agent", "env"), [(a, e) for a, known in ZOO.items() for e in known if e != "default"])
def test_zoo_sets_what_the_zoo_says(agent, env):
    there = words(ZOO[agent]["default"]) | words(ZOO[agent][env])
    config = parse(agent, ["--env", env, "--preset", "zoo"])
    for key, value in translated(agent, there).items():
        here = getattr(config.agent if hasattr(config.agent, key) else config, key)
        assert here == (pytest.approx(value) if isinstance(value, float) else value), key
    assert all(config.agent.rules().values())
    preset = find_preset("zoo", agent, env)
    assert ("use_sde" in preset.left_out) == ("use_sde" in there)
    assert ("clip range that falls" in preset.left_out) == there.get("clip_range", "").startswith("lin_")
    falls = agent != "ppo" and there["learning_rate"].startswith("lin_")
    assert ("learning rate that falls" in preset.left_out) == falls


def test_every_entry_of_the_zoo_is_tested():
    from_the_zoo = [preset for preset in PRESETS["zoo"] if "Zoo" in preset.source]
    seen = [find_preset("zoo", agent, env) for agent, known in ZOO.items() for env in known if env != "default"]
    assert [preset for preset in from_the_zoo if preset not in seen] == []


def an_environment(preset):
    """A name that fits the first pattern of a preset."""
    return {
        "*": "Pendulum-v1",
        "atari/*": "atari/pong",
        "minatar/*": "minatar/asterix",
        "dmc/*": "dmc/cheetah-run",
    }.get(first := preset.environments.split()[0], first.replace("*", "1"))


@pytest.mark.parametrize(("name", "preset"), OTHERS, ids=lambda x: x if isinstance(x, str) else x.environments)
def test_presets_are_understood_whole_and_make_an_agent(name, preset):
    """Every flag is one of the agent or of the run; the rules of its config hold."""
    config = parse(preset.agent, ["--env", an_environment(preset), "--preset", name])
    assert all(config.agent.rules().values())
    assert preset.source


@pytest.mark.parametrize(
    ("agent", "env", "setting", "value"),
    [
        ("ppo", "Acrobot-v1", "num_steps", 128),
        ("ppo", "dmc/cheetah-run", "num_steps", 2048),
        ("ppo", "atari/pong", "clip_range", 0.1),
        ("dqn", "CartPole-v1", "hidden", (120, 84)),
        ("dqn", "ALE/Pong-v5", "buffer_size", 1_000_000),
        ("sac", "Hopper-v5", "critic_lr", 1e-3),
        ("td3", "Hopper-v5", "learning_starts", 25_000),
    ],
)
def test_cleanrl_has_a_script_for_each_kind_of_environment(agent, env, setting, value):
    assert getattr(parse(agent, ["--env", env, "--preset", "cleanrl"]).agent, setting) == value


def test_options_that_are_given_go_before_the_preset():
    config = parse("sac", ["--env", "Pendulum-v1", "--preset", "zoo", "--steps", "7", "--critic-lr", "0.5"])
    assert (config.steps, config.agent.critic_lr, config.agent.actor_lr) == (7, 0.5, 1e-3)


@pytest.mark.parametrize(
    ("agent", "arguments", "message"),
    [
        (
            "ppo",
            ["--env", "dmc/cheetah-run", "--preset", "zoo"],
            r"preset zoo has nothing for ppo on dmc/.* CartPole-v\*",
        ),
        ("td3", ["--env", "CartPole-v1", "--preset=zoo"], r"preset zoo has nothing for td3 on CartPole-v1"),
        ("sac", ["--env", "Pendulum-v1", "--preset", "zo"], r'no preset .zo. for sac; did you mean "?zoo'),
        (
            "sac",
            ["--env", "Pendulum-v1", "--preset", "c-chain"],
            "no preset 'c-chain' for sac; .*there are: zoo, cleanrl",
        ),
    ],
)
def test_a_preset_that_does_not_fit_is_refused(agent, arguments, message):
    with pytest.raises(ValueError, match=message):
        with_presets(agent, arguments)


def test_a_preset_of_ones_own(monkeypatch):
    monkeypatch.setitem(PRESETS, "mine", (Preset("sac", "--hidden 8", "me", "Pendulum-*"), Preset("sac", "", "me")))
    assert parse("sac", ["--env", "Pendulum-v1", "--preset", "mine"]).agent.hidden == (8,)
    assert parse("sac", ["--env", "Hopper-v5", "--preset", "mine"]).agent.hidden is None


@pytest.mark.slow
def test_training_begins_with_the_source_and_what_is_not_as_there(capsys):
    assert main(["train", "ppo", "--env", "Pendulum-v1", "--preset", "zoo", "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "preset zoo: RL Baselines3 Zoo, hyperparams/ppo.yml; not as there: state-dependent exploration" in told.err
    assert "not as there" not in told.out


def test_the_page_is_what_the_source_says():
    page = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    assert page == presets_page(), "python -m plasticity.commands.pages docs"
