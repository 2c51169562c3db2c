"""A probe of your own: the fraction of saturated tanh neurons, those whose output stays near -1 or 1.

python examples/write_a_probe.py
"""

import torch
from torch import Tensor, nn

import plasticity


class Saturation(plasticity.Probe):
    """Fraction of neurons with a mean |activation| above ``limit``. Range [0, 1]; higher is worse."""

    per_neuron = True

    def __init__(self, limit: float = 0.95) -> None:
        self.limit = limit

    def reset(self) -> None:
        self.total, self.num_samples = torch.zeros(()), 0

    def on_forward(self, activations: Tensor) -> None:  # (samples, neurons), of one layer
        self.total = self.total.to(activations.device) + activations.abs().sum(0)
        self.num_samples += len(activations)

    def scores(self) -> Tensor:  # a number per neuron
        return self.total / self.num_samples

    def compute(self) -> Tensor:  # a number per layer, still on the device
        return (self.scores() > self.limit).float().mean()


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
with torch.no_grad():
    model[0].weight[:16] *= 100  # a quarter of the first layer is driven into saturation
probes = {"saturation": Saturation(), "dormancy": plasticity.PROBES["dormancy"]()}
print(plasticity.measure(model, torch.randn(256, 8), probes=probes))
