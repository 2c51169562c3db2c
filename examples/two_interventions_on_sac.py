"""SAC with two interventions at once: recycle neurons that hardly learn, and replay recent experience more often.

python examples/two_interventions_on_sac.py [STEPS]
"""

import sys

import torch

from plasticity import Measure
from plasticity.agents import SAC, SACConfig
from plasticity.agents.records import Episodes
from plasticity.agents.train import context, train
from plasticity.envs import make_env
from plasticity.interventions import ReGraMa, SampleWeightDecay
from plasticity.writers import open_writers

torch.set_num_threads(1)
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 3_000
env = make_env("Pendulum-v1", seed=1)
config = SACConfig(hidden=(64, 64), actor_lr=1e-3, critic_lr=1e-3, learning_starts=min(500, steps // 2))
agent = SAC(env.observation_space, env.action_space, config, seed=1)

# A method is an object with its settings; several are a list. Any two compose, or are refused with the reason.
regrama = ReGraMa(every=max(10, steps // 10), networks=("critic_*",), cap=0.05)
swd = SampleWeightDecay(horizon=steps // 2)
measure = Measure(["dormancy", "grama"], every=max(10, steps // 10))
writer = open_writers("runs/two-interventions")
train(env, agent, steps, [regrama, swd, measure, Episodes()], context(agent, writer=writer))
writer.close()
env.close()

print(f"regrama: {regrama.counts}")
for network, reading in measure.last.items():
    print(f"{network}\n{reading}\n")
print("events, with the neurons and the change of the function: runs/two-interventions/metrics.jsonl")
