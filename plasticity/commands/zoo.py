"""Tuned settings by environment, of RL Baselines3 Zoo, and those of CleanRL's scripts: `--preset zoo`, `cleanrl`.

The Zoo's numbers are those of `hyperparams/<agent>.yml` (Raffin 2020, DLR-RM/rl-baselines3-zoo, commit 22e3ff2) over
the defaults of stable-baselines3 2.9, in the units of the agents here. Its entries for MuJoCo are named after version 4
of the tasks and stand for all versions. CleanRL's are the defaults of its scripts (Huang et al. 2022, vwxyzjn/cleanrl,
commit fe8d8a0). Each preset sets every number that the source sets, whatever the defaults of the agents here are.

    num_minibatches   n_envs * n_steps / batch_size
    updates_per_step  gradient_steps / train_freq; the rhythm itself (64 updates after 64 steps) is given up
    target_every      target_update_interval, in environment steps, times gradient_steps / train_freq
    exploration_steps exploration_fraction * n_timesteps
    anneal_steps      0 where the learning rate is a constant; left to the run's length where it falls to 0
"""

from __future__ import annotations

from .preset import Preset

YML = "RL Baselines3 Zoo, hyperparams/{}.yml"
NO_SDE = "state-dependent exploration (use_sde), here plain Gaussian noise"
CLIP_FALLS = "a clip range that falls to 0, here constant"
RATE_FALLS = "a learning rate that falls to 0, here constant"
NOOPS = "rewards clipped to their sign and episodes of one life, here points of whole games with sticky actions"
ATARI = "atari/* ALE/*-v5"

# -- PPO ---------------------------------------------------------------------------------------------------------------

SB3_PPO = (
    "--initialisation orthogonal --eps 1e-5 --no-clip-values --max-grad-norm 0.5 --value-coef 0.5 --gae-lambda 0.95 "
    "--gamma 0.99 --clip-range 0.2 --num-epochs 10 --standardise minibatch --value-target lambda --entropy-coef 0.0 "
)
CONSTANT = "--lr 3e-4 --anneal-steps 0 "
NOT_NORMALISED = "--hidden 64 64 --activation tanh --normalize-observations False --normalize-rewards False "
NORMALISED = "--hidden 64 64 --activation tanh --normalize-observations True --normalize-rewards True "
MUJOCO_PPO = (
    "--steps 1_000_000 --num-envs 1 --num-steps 512 --hidden 256 256 --activation relu --init-log-std -2 "
    "--initialisation default --normalize-observations True --normalize-rewards True --anneal-steps 0 "
)


def ppo(environments: str, arguments: str, left_out: str = "") -> Preset:
    """Return a preset of the Zoo for PPO."""
    return Preset("ppo", SB3_PPO + arguments, YML.format("ppo"), environments, left_out)


ZOO_PPO = (
    ppo(
        "CartPole-v*",
        NOT_NORMALISED
        + "--steps 100_000 --num-envs 8 --num-steps 32 --num-minibatches 1 --num-epochs 20 --gae-lambda 0.8 "
        "--gamma 0.98 --lr 1e-3",
        CLIP_FALLS,
    ),
    ppo(
        "Acrobot-v*",
        NORMALISED + CONSTANT + "--steps 1_000_000 --num-envs 16 --num-steps 256 --num-minibatches 64 --num-epochs 4 "
        "--gae-lambda 0.94",
    ),
    ppo(
        "MountainCar-v*",
        NORMALISED + CONSTANT + "--steps 1_000_000 --num-envs 16 --num-steps 16 --num-minibatches 4 --num-epochs 4 "
        "--gae-lambda 0.98",
    ),
    ppo(
        "LunarLander-v* LunarLanderContinuous-v*",
        NOT_NORMALISED
        + CONSTANT
        + "--steps 1_000_000 --num-envs 16 --num-steps 1024 --num-minibatches 256 --num-epochs 4 "
        "--gae-lambda 0.98 --gamma 0.999 --entropy-coef 0.01",
    ),
    ppo(
        "Pendulum-v*",
        NOT_NORMALISED + "--steps 100_000 --num-envs 4 --num-steps 1024 --num-minibatches 64 --gamma 0.9 --lr 1e-3 "
        "--anneal-steps 0",
        NO_SDE,
    ),
    ppo(
        "BipedalWalker-v*",
        NORMALISED + CONSTANT + "--steps 5_000_000 --num-envs 32 --num-steps 2048 --num-minibatches 1024 "
        "--gamma 0.999 --clip-range 0.18",
    ),
    ppo(
        "HalfCheetah-v*",
        MUJOCO_PPO + "--num-minibatches 8 --num-epochs 20 --gamma 0.98 --gae-lambda 0.92 --lr 2.0633e-05 "
        "--clip-range 0.1 --entropy-coef 0.000401762 --max-grad-norm 0.8 --value-coef 0.58096",
    ),
    ppo(
        "Hopper-v*",
        MUJOCO_PPO + "--num-minibatches 16 --num-epochs 5 --gamma 0.999 --gae-lambda 0.99 --lr 9.80828e-05 "
        "--entropy-coef 0.00229519 --max-grad-norm 0.7 --value-coef 0.835671",
    ),
    ppo(
        "Walker2d-v*",
        NORMALISED + "--anneal-steps 0 --steps 1_000_000 --num-envs 1 --num-steps 512 --num-minibatches 16 "
        "--num-epochs 20 --lr 5.05041e-05 --clip-range 0.1 --entropy-coef 0.000585045 --max-grad-norm 1.0 "
        "--value-coef 0.871923",
    ),
    ppo(
        "Ant-v*",
        NORMALISED + CONSTANT + "--steps 1_000_000 --num-envs 1 --num-steps 2048 --num-minibatches 32",
        "nothing was tuned: the defaults of stable-baselines3 with normalisation",
    ),
    ppo(
        "Swimmer-v*",
        NORMALISED + "--anneal-steps 0 --steps 1_000_000 --num-envs 4 --num-steps 1024 --num-minibatches 16 "
        "--gamma 0.9999 --lr 6e-4 --gae-lambda 0.98",
    ),
    ppo(
        "Humanoid-v*",
        MUJOCO_PPO + "--steps 10_000_000 --num-minibatches 2 --num-epochs 5 --gamma 0.95 --gae-lambda 0.9 "
        "--lr 3.56987e-05 --clip-range 0.3 --entropy-coef 0.00238306 --max-grad-norm 2.0 --value-coef 0.431892",
    ),
    ppo(
        ATARI,
        "--network nature_cnn --steps 10_000_000 --num-envs 8 --num-steps 128 --num-minibatches 4 --num-epochs 4 "
        "--lr 2.5e-4 --clip-range 0.1 --entropy-coef 0.01 --normalize-observations False --normalize-rewards False",
        f"{CLIP_FALLS}; {NOOPS}",
    ),
)

# -- SAC and TD3 -------------------------------------------------------------------------------------------------------

SB3_SAC = (
    "--hidden 256 256 --activation relu --actor-lr 3e-4 --critic-lr 3e-4 --alpha-lr 3e-4 --batch-size 256 "
    "--buffer-size 1_000_000 --learning-starts 100 --gamma 0.99 --target-tau 0.005 --updates-per-step 1 "
)
SB3_TD3 = (
    "--hidden 400 300 --activation relu --actor-lr 1e-3 --critic-lr 1e-3 --batch-size 256 --buffer-size 1_000_000 "
    "--learning-starts 10_000 --gamma 0.99 --target-tau 0.005 --updates-per-step 1 --policy-every 2 --target-noise 0.2 "
    "--noise-clip 0.5 --exploration-noise 0.1 "
)
MUJOCO = "HalfCheetah-v* Ant-v* Hopper-v* Walker2d-v*"


def sac(environments: str, arguments: str, left_out: str = "") -> Preset:
    """Return a preset of the Zoo for SAC."""
    return Preset("sac", SB3_SAC + arguments, YML.format("sac"), environments, left_out)


def td3(environments: str, arguments: str, left_out: str = "") -> Preset:
    """Return a preset of the Zoo for TD3."""
    return Preset("td3", SB3_TD3 + arguments, YML.format("td3"), environments, left_out)


def rate(value: str, alpha: bool = True) -> str:
    """Return the arguments that give actor, critics and temperature one learning rate."""
    return f"--actor-lr {value} --critic-lr {value} " + (f"--alpha-lr {value} " if alpha else "")


ZOO_SAC = (
    sac("Pendulum-v*", rate("1e-3") + "--steps 20_000"),
    sac(
        "MountainCarContinuous-v*",
        "--steps 50_000 --hidden 64 64 --buffer-size 50_000 --batch-size 512 --init-alpha 0.1 --no-learn-alpha "
        "--gamma 0.9999 --target-tau 0.01 --learning-starts 0",
        f"{NO_SDE}; 32 updates after every 32 steps, here one after each",
    ),
    sac(
        "LunarLanderContinuous-v*",
        rate("7.3e-4") + "--steps 500_000 --hidden 400 300 --target-tau 0.01 --learning-starts 10_000",
        RATE_FALLS,
    ),
    sac(
        "BipedalWalker-v*",
        rate("7.3e-4") + "--steps 500_000 --hidden 400 300 --buffer-size 300_000 --gamma 0.98 --target-tau 0.02 "
        "--learning-starts 10_000",
        f"{NO_SDE}; 64 updates after every 64 steps, here one after each",
    ),
    sac(MUJOCO, "--steps 1_000_000 --learning-starts 10_000"),
    sac("Humanoid-v*", "--steps 2_000_000 --learning-starts 10_000"),
    sac("Swimmer-v*", "--steps 1_000_000 --learning-starts 10_000 --gamma 0.999"),
)

ZOO_TD3 = (
    td3("Pendulum-v*", "--steps 20_000 --gamma 0.98 --buffer-size 200_000"),
    td3(
        "MountainCarContinuous-v*",
        "--steps 300_000 --learning-starts 100 --exploration-noise 0.5",
        "noise of an Ornstein-Uhlenbeck process, here Gaussian of the same size",
    ),
    td3("LunarLanderContinuous-v*", "--steps 300_000 --gamma 0.98 --buffer-size 200_000"),
    td3("BipedalWalker-v*", "--steps 1_000_000 --gamma 0.98 --buffer-size 200_000"),
    td3(MUJOCO, "--steps 1_000_000"),
    td3("Humanoid-v*", "--steps 2_000_000"),
    td3("Swimmer-v*", "--steps 1_000_000 --gamma 0.9999"),
)

# -- DQN ---------------------------------------------------------------------------------------------------------------

SB3_DQN = (
    "--hidden 256 256 --activation relu --gamma 0.99 --target-tau 1 --max-grad-norm 10 --loss huber --epsilon-start 1 "
)


def dqn(environments: str, arguments: str, left_out: str = "") -> Preset:
    """Return a preset of the Zoo for DQN."""
    return Preset("dqn", SB3_DQN + arguments, YML.format("dqn"), environments, left_out)


ZOO_DQN = (
    dqn(
        "CartPole-v*",
        "--steps 50_000 --lr 2.3e-3 --batch-size 64 --buffer-size 100_000 --learning-starts 1_000 --target-every 128 "
        "--train-every 256 --updates-per-train 128 --exploration-steps 8_000 --epsilon-end 0.04",
        "the target moves every 10 steps, of which the last before a round of 128 updates counts: here once a round",
    ),
    dqn(
        "MountainCar-v*",
        "--steps 120_000 --lr 4e-3 --batch-size 128 --buffer-size 10_000 --learning-starts 1_000 --gamma 0.98 "
        "--target-every 300 --train-every 16 --updates-per-train 8 --exploration-steps 24_000 --epsilon-end 0.07",
    ),
    dqn(
        "LunarLander-v* Acrobot-v*",
        "--steps 100_000 --lr 6.3e-4 --batch-size 128 --buffer-size 50_000 --learning-starts 0 --target-every 250 "
        "--train-every 4 --updates-per-train 4 --exploration-steps 12_000 --epsilon-end 0.1",
    ),
    dqn(
        ATARI,
        "--network nature_cnn --hidden 512 --steps 10_000_000 --lr 1e-4 --batch-size 32 --buffer-size 100_000 "
        "--learning-starts 99_999 --target-every 250 --train-every 4 --updates-per-train 1 "
        "--exploration-steps 1_000_000 --epsilon-end 0.01",
        f"{NOOPS}; learning starts one step before the replay is full, which is when it starts there",
    ),
    Preset(
        "dqn",
        "--network minatar_cnn --activation relu --steps 5_000_000 --optimizer rmsprop --lr 2.5e-4 --eps 0.01 "
        "--batch-size 32 --buffer-size 100_000 --learning-starts 5_000 --gamma 0.99 --target-every 1_000 "
        "--target-tau 1 --train-every 1 --updates-per-train 1 --epsilon-start 1 --epsilon-end 0.1 "
        "--exploration-steps 100_000 --loss huber --max-grad-norm inf",
        "Young & Tian 2019, arXiv 1903.03176, released code kenjyoung/MinAtar, examples/dqn.py",
        "minatar/*",
        "centred RMSProp with decay and momentum 0.95, here uncentred, with decay 0.99 and without momentum",
    ),
)

ZOO = (*ZOO_PPO, *ZOO_SAC, *ZOO_TD3, *ZOO_DQN)

# -- CleanRL -----------------------------------------------------------------------------------------------------------

SCRIPT = "CleanRL, cleanrl/{}.py"
CLEANRL_DISCRETE = "CartPole-v* Acrobot-v* MountainCar-v* LunarLander-v*"
CLEANRL_CONTINUOUS = f"{MUJOCO} Humanoid-v* Swimmer-v* Pendulum-v* LunarLanderContinuous-v* BipedalWalker-v* dmc/*"
CLEANRL_PPO = (
    "--initialisation orthogonal --eps 1e-5 --clip-values --max-grad-norm 0.5 --value-coef 0.5 --gae-lambda 0.95 "
    "--gamma 0.99 --standardise minibatch --value-target lambda "
)
CLEANRL = (
    Preset(
        "ppo",
        CLEANRL_PPO
        + NOT_NORMALISED
        + "--steps 500_000 --num-envs 4 --num-steps 128 --num-minibatches 4 --num-epochs 4 "
        "--lr 2.5e-4 --clip-range 0.2 --entropy-coef 0.01",
        SCRIPT.format("ppo"),
        CLEANRL_DISCRETE,
    ),
    Preset(
        "ppo",
        CLEANRL_PPO + NORMALISED + "--steps 1_000_000 --num-envs 1 --num-steps 2048 --num-minibatches 32 "
        "--num-epochs 10 --lr 3e-4 --clip-range 0.2 --entropy-coef 0.0",
        SCRIPT.format("ppo_continuous_action"),
        CLEANRL_CONTINUOUS,
    ),
    Preset(
        "ppo",
        CLEANRL_PPO + "--network nature_cnn --steps 10_000_000 --num-envs 8 --num-steps 128 --num-minibatches 4 "
        "--num-epochs 4 --lr 2.5e-4 --clip-range 0.1 --entropy-coef 0.01 --normalize-observations False "
        "--normalize-rewards False",
        SCRIPT.format("ppo_atari"),
        ATARI,
        NOOPS,
    ),
    Preset(
        "dqn",
        "--hidden 120 84 --activation relu --steps 500_000 --lr 2.5e-4 --batch-size 128 --buffer-size 10_000 "
        "--learning-starts 9_999 --gamma 0.99 --target-every 50 --target-tau 1 --train-every 10 --updates-per-train 1 "
        "--epsilon-start 1 --epsilon-end 0.05 --exploration-steps 250_000 --loss mse --max-grad-norm inf",
        SCRIPT.format("dqn"),
        CLEANRL_DISCRETE,
        "learning starts one step before the replay is full, which is when it starts there",
    ),
    Preset(
        "dqn",
        "--network nature_cnn --hidden 512 --activation relu --steps 10_000_000 --lr 1e-4 --batch-size 32 "
        "--buffer-size 1_000_000 --learning-starts 80_000 --gamma 0.99 --target-every 250 --target-tau 1 "
        "--train-every 4 --updates-per-train 1 --epsilon-start 1 --epsilon-end 0.01 --exploration-steps 1_000_000 "
        "--loss mse --max-grad-norm inf",
        SCRIPT.format("dqn_atari"),
        ATARI,
        NOOPS,
    ),
    Preset(
        "sac",
        "--hidden 256 256 --activation relu --steps 1_000_000 --actor-lr 3e-4 --critic-lr 1e-3 --alpha-lr 1e-3 "
        "--batch-size 256 --buffer-size 1_000_000 --learning-starts 5_000 --gamma 0.99 --target-tau 0.005 "
        "--updates-per-step 1",
        SCRIPT.format("sac_continuous_action"),
        CLEANRL_CONTINUOUS,
        "two updates of the actor after every second of the critics, here one after each; critic loss without 1/2",
    ),
    Preset(
        "td3",
        "--hidden 256 256 --activation relu --steps 1_000_000 --actor-lr 3e-4 --critic-lr 3e-4 --batch-size 256 "
        "--buffer-size 1_000_000 --learning-starts 25_000 --gamma 0.99 --target-tau 0.005 --updates-per-step 1 "
        "--policy-every 2 --target-noise 0.2 --noise-clip 0.5 --exploration-noise 0.1",
        SCRIPT.format("td3_continuous_action"),
        CLEANRL_CONTINUOUS,
    ),
)
