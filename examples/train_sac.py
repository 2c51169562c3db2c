"""Train SAC from Python, with probes and an evaluation: what `plasticity train sac` does, in the open.

python examples/train_sac.py [STEPS]
"""

import sys

import torch

from plasticity import Measure
from plasticity.agents import SAC, SACConfig
from plasticity.agents.evaluate import Evaluate
from plasticity.agents.records import Episodes, Losses
from plasticity.agents.train import context, train
from plasticity.envs import make_env
from plasticity.writers import open_writers

torch.set_num_threads(1)  # networks this small are slower with more
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 4_000
env = make_env("Pendulum-v1", seed=1)
config = SACConfig(hidden=(64, 64), actor_lr=1e-3, critic_lr=1e-3, learning_starts=min(500, steps // 2))
agent = SAC(env.observation_space, env.action_space, config, seed=1)

measure = Measure(["dormancy", "grama", "rank"], every=250)
evaluate = Evaluate(agent, lambda: make_env("Pendulum-v1", num_envs=5, seed=2), every=2_000, episodes=5)
writer = open_writers("runs/sac-from-python")
ctx = context(agent, writer=writer)
train(env, agent, steps, [measure, evaluate, Episodes(), Losses()], ctx)
evaluate.run(ctx)  # once more, at the end
writer.close()
env.close()

for network, reading in measure.last.items():
    print(f"{network}\n{reading}\n")
print(f"return {evaluate.last.mean():.1f}; curves: plasticity dashboard runs")
