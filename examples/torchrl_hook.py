"""TorchRL: SAC on Pendulum with ReDo and Sample Weight Decay; every stacked critic is read and recycled by itself.

pip install ".[torchrl]" && python examples/torchrl_hook.py [steps]
"""

import sys

import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import GymEnv
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

from plasticity.interventions import ReDo, SampleWeightDecay
from plasticity.torchrl import PlasticityHook, WeightedSampler

steps, env, state = int(sys.argv[1]) if len(sys.argv) > 1 else 4_000, GymEnv("Pendulum-v1"), ["observation"]
net = nn.Sequential(MLP(3, 2, num_cells=[64, 64]), NormalParamExtractor())
module = TensorDictModule(net, in_keys=state, out_keys=["loc", "scale"])
actor = ProbabilisticActor(module, ["loc", "scale"], spec=env.action_spec, distribution_class=TanhNormal)
critic = ValueOperator(MLP(4, 1, num_cells=[64, 64], activation_class=nn.ReLU), in_keys=[*state, "action"])
loss = SACLoss(actor, critic, num_qvalue_nets=2)
follow, optimizer = SoftUpdate(loss, tau=0.01), torch.optim.Adam(loss.parameters(), lr=3e-4)
buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(10_000), sampler=WeightedSampler(), batch_size=64)
methods = [ReDo(every=40), SampleWeightDecay(horizon=5_000)]
with PlasticityHook(loss, optimizer, every=20, interventions=methods, replay_buffer=buffer) as hook:
    for batch in Collector(env, actor, frames_per_batch=10, total_frames=steps, init_random_frames=100):
        buffer.extend(batch)
        hook.frames(len(batch))
        for _ in range(5):
            losses = loss(hook.begin_update(buffer.sample()))
            optimizer.zero_grad()
            (losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]).backward()
            optimizer.step()
            follow.step()
print(*(f"{network}\n{reading}\n" for network, reading in hook.last.items()), sep="\n")
