"""Goals reached by the amortized actor against SAC's Gaussian, on a point with four goals equally good.

SAC on goals/four with two layers of 64, batches of 64, one update for every step, 4,000 steps. Then 100 episodes of
sampled actions: goals that at least 5 of them reach, and the entropy of the goals over log 4. Controls: the amortized
actor without its bonus (temperature 1e-3), and a Gaussian whose target entropy is 0 instead of -2, so that it stays
wide. The claim at stake: the amortized actor reaches more goals than SAC. It holds where the interval of the paired
difference lies above 0.
"""

from __future__ import annotations

from harness import compare

VARIANTS = {
    "gaussian": {},
    "gaussian, wide": {"target_entropy": 0.0},
    "amortized": {"actor": "amortized", "diversity_target": 0.8, "alpha_lr": 5e-3},
    "amortized, no bonus": {"actor": "amortized", "learn_alpha": False, "init_alpha": 1e-3},
}
PAIRS = [
    ("amortized", "gaussian"),
    ("amortized", "gaussian, wide"),
    ("amortized", "amortized, no bonus"),
]


def sac(seed: int, variant: str, steps: int, episodes: int) -> dict[str, float]:
    """Return goals reached, their entropy, the share of episodes that reach one, and their mean length."""
    import numpy as np
    import torch

    from plasticity.agents import SAC, SACConfig
    from plasticity.agents.train import context, train
    from plasticity.envs import make_env
    from plasticity.envs.goals import goal_of

    env = make_env("goals/four", seed=seed)
    config = SACConfig(
        hidden=(64, 64), batch_size=64, learning_starts=500, buffer_size=steps, critic_lr=3e-4, **VARIANTS[variant]
    )
    agent = SAC(env.observation_space, env.action_space, config, seed=seed, compile="off")
    train(env, agent, steps, [], context(agent))
    env.close()
    test = make_env("goals/four", seed=1000 + seed, num_envs=episodes)
    obs, counts = test.reset(), np.zeros(4)
    ended, length = torch.zeros(episodes, dtype=torch.bool), torch.zeros(episodes)
    while not bool(ended.all()):
        step = test.step(torch.as_tensor(agent.act(obs, explore=True)))
        for i in ((step.terminated | step.truncated) & ~ended).nonzero().flatten().tolist():
            if bool(step.terminated[i]):
                counts[goal_of(step.next_obs[i])] += 1
        length += ~ended
        ended |= step.terminated | step.truncated
        obs = test.reset(step.terminated | step.truncated)
    test.close()
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return {
        "goals": float((counts >= 0.05 * episodes).sum()),
        "goal_entropy": float(-(shares * np.log(shares)).sum() / np.log(4)) if counts.sum() else 0.0,
        "reached": float(counts.sum() / episodes),
        "length": float(length.mean()),
    }


if __name__ == "__main__":
    settings = {"steps": (4_000, 700), "episodes": (100, 20)}
    compare(sac, (__doc__ or "").splitlines()[0], [*VARIANTS], PAIRS, ("goals", "goal_entropy"), settings)
