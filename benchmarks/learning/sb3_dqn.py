"""The row dqn-cartpole with stable-baselines3 in place of our agent: does it swing as much?

python benchmarks/learning/sb3_dqn.py
"""

from __future__ import annotations

import gymnasium
import numpy as np
import stable_baselines3 as sb3
import torch
from rows import EPISODES, ROWS
from stable_baselines3.common.evaluation import evaluate_policy


def main() -> None:
    """Train the row's seeds with its settings, and print the mean return of each."""
    torch.set_num_threads(1)
    row = ROWS["dqn-cartpole"]
    for seed in row.seeds:
        model = sb3.DQN(
            "MlpPolicy", gymnasium.make(row.env), learning_rate=1e-3, n_steps=3, batch_size=128, buffer_size=100_000,
            learning_starts=1000, train_freq=4, gradient_steps=1, target_update_interval=200,
            exploration_fraction=10_000 / row.steps, exploration_final_eps=0.05, policy_kwargs={"net_arch": [120, 84]},
            seed=seed, device="cpu",
        )  # fmt: skip
        model.learn(row.steps)
        returns, _ = evaluate_policy(model, gymnasium.make(row.env), EPISODES, return_episode_rewards=True)
        print(f"seed {seed}: {np.mean(returns):.1f}", flush=True)


if __name__ == "__main__":
    main()
