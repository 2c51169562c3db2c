"""A probe of your own: the fraction of saturated tanh neurons, those whose output stays near -1 or 1.

python examples/write_a_probe.py
"""

import torch
from torch import Tensor, nn

import plasticity


class Saturation(plasticity.Probe):
    """Fraction of neurons with a mean |activation| above ``limit``. Range [0, 1]; higher is worse."""

    per_neuron = True
    limit = 0.95

    def sums(self):  # signal -> function of (samples, neurons), added up over all passes
        return {"on_forward": lambda activations: activations.abs().sum(0)}

    def scores(self) -> Tensor:  # a number per neuron
        return self.total("on_forward") / self.num_samples("on_forward")

    def compute(self) -> Tensor:  # a number per layer, still on the device
        return (self.scores() > self.limit).float().mean()


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
with torch.no_grad():
    model[0].weight[:16] *= 100  # a quarter of the first layer is driven into saturation
probes = {"saturation": Saturation(), "dormancy": plasticity.PROBES["dormancy"]()}
print(plasticity.measure(model, torch.randn(256, 8), probes=probes))
