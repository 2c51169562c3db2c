"""AsyPPO's critics on Acrobot, ten epochs a rollout: what the split, the mask and the filter do, one by one.

PPO with 8 environments, 30,000 steps. Controls: one critic as wide as the policy, one a quarter as wide, two small ones
without a split. All learn Monte-Carlo returns of scaled rewards. Area is the mean training return of all episodes,
final that of the last quarter of the steps; explained variance and sigma are of the last quarter. The claim at stake:
mask and filter raise the return at several updates a sample. It holds where a paired difference's interval is above 0.
"""

from __future__ import annotations

from harness import compare

SMALL = {"critic_hidden": (16, 16)}
PAIR = {**SMALL, "num_critics": 2}
SPLIT = {**PAIR, "critic_split": True}
VARIANTS = {
    "one": {},
    "one small": SMALL,
    "two small": PAIR,
    "split": SPLIT,
    "split, mask": {**SPLIT, "advantage_mask": 0.2},
    "split, filter": {**SPLIT, "entropy_filter": 0.2},
    "split, mask, filter": {**SPLIT, "advantage_mask": 0.2, "entropy_filter": 0.2},
}
PAIRS = [
    ("two small", "one small"),
    ("split", "two small"),
    ("split, mask", "split"),
    ("split, filter", "split"),
    ("split, mask, filter", "split"),
    ("split, mask, filter", "one"),
    ("split, mask, filter", "one small"),
]


def ppo(seed: int, variant: str, steps: int) -> dict[str, float]:
    """Return area, final return, and the last quarter's explained variance and sigma of one run."""
    from plasticity import Callback, Context
    from plasticity.agents import PPO, PPOConfig
    from plasticity.agents.records import Episodes
    from plasticity.agents.train import context, train
    from plasticity.callback import Writer
    from plasticity.envs import make_env

    env = make_env("Acrobot-v1", seed=seed, num_envs=8)
    config = PPOConfig(
        num_steps=64, num_minibatches=4, num_epochs=10, value_target="returns", normalize_rewards=True,
        clip_values=False, anneal_steps=steps, **VARIANTS[variant],
    )  # fmt: skip
    agent = PPO(env.observation_space, env.action_space, config, num_envs=8, seed=seed, compile="off")
    returns: list[tuple[int, float]] = []
    critics: list[tuple[int, float, float]] = []

    class Returns(Writer):
        def log(self, step: int, values: dict) -> None:
            if "charts/episodic_return" in values:
                returns.append((step, values["charts/episodic_return"]))

    class Critics(Callback):
        def on_update_end(self, ctx: Context, metrics: dict) -> None:
            if agent.minibatch == 1:
                sigma = float(metrics.get("critic_sigma", 0.0))
                critics.append((ctx.step, float(metrics["explained_variance"]), sigma))

    train(env, agent, steps, [Critics(), Episodes()], context(agent, writer=Returns()))
    env.close()
    late = [row for row in critics if row[0] > steps * 3 / 4]
    final = [value for step, value in returns if step > steps * 3 / 4]
    return {
        "area": sum(value for _, value in returns) / len(returns),
        "final": sum(final) / len(final),
        "explained_variance": sum(row[1] for row in late) / len(late),
        "sigma": sum(row[2] for row in late) / len(late),
    }


if __name__ == "__main__":
    settings = {"steps": (30_000, 8_000)}
    compare(ppo, (__doc__ or "").splitlines()[0], [*VARIANTS], PAIRS, ("area", "final"), settings)
