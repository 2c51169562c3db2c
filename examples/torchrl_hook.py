"""TorchRL: SAC on Pendulum with probes and ReDo in a trainer; every stacked critic is read and recycled by itself.

pip install "plasticity-toolkit[torchrl]" && python examples/torchrl_hook.py [steps]
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
from torchrl.trainers import ReplayBufferTrainer, TargetNetUpdaterHook, Trainer

from plasticity.interventions import ReDo, SampleWeightDecay
from plasticity.torchrl import PlasticityHook, WeightedSampler

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 4_000
env = GymEnv("Pendulum-v1")
net = nn.Sequential(MLP(3, 2, num_cells=[64, 64]), NormalParamExtractor())
actor = ProbabilisticActor(
    TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
    in_keys=["loc", "scale"],
    spec=env.action_spec,
    distribution_class=TanhNormal,
    distribution_kwargs={"low": -2.0, "high": 2.0},
    return_log_prob=True,
)
critic = ValueOperator(MLP(4, 1, num_cells=[64, 64], activation_class=nn.ReLU), in_keys=["observation", "action"])
loss = SACLoss(actor, critic, num_qvalue_nets=2)
loss.make_value_estimator(gamma=0.99)
optimizer = torch.optim.Adam(loss.parameters(), lr=3e-4)
buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(10_000), sampler=WeightedSampler(), batch_size=64)

trainer = Trainer(
    collector=Collector(env, actor, frames_per_batch=50, total_frames=steps, init_random_frames=100),
    total_frames=steps,
    frame_skip=1,
    optim_steps_per_batch=10,
    loss_module=loss,
    optimizer=optimizer,
    progress_bar=False,
)
ReplayBufferTrainer(buffer, batch_size=64, flatten_tensordicts=True).register(trainer)
TargetNetUpdaterHook(SoftUpdate(loss, tau=0.01)).register(trainer, "target")
methods = [ReDo(every=40), SampleWeightDecay(horizon=5_000)]
hook = PlasticityHook(loss, optimizer, every=20, interventions=methods, replay_buffer=buffer)
hook.register(trainer)
trainer.train()
for network, reading in hook.last.items():
    print(f"{network}\n{reading}\n")
