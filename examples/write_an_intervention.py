"""An intervention of your own, weight clipping. Run it: python examples/write_an_intervention.py"""

from dataclasses import dataclass

import torch
from torch import nn

import plasticity
from plasticity.interventions import Intervention


@dataclass
class WeightClipping(Intervention):  # its fields are its settings
    NAME = "weight_clipping"
    factor: float = 1.2

    def on_train_start(self, ctx):
        weights = [p for network in self.choose(ctx).values() for p in network.parameters()]
        self.bounds = {p: self.factor * p.detach().abs().max() for p in weights}
        for optimizer in ctx.optimizers.values():
            self.hook(optimizer.register_step_post_hook(lambda *_: self.clip(ctx)))  # comes off when training ends

    @torch.no_grad()
    def clip(self, ctx):
        if num := sum(int((p.abs() > bound).sum()) for p, bound in self.bounds.items()):
            self.report(ctx, {}, clipped=num)  # an event, and a running total
        for p, bound in self.bounds.items():
            p.clamp_(-bound, bound)


model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer, clipping = torch.optim.Adam(model.parameters(), lr=1e-2), WeightClipping()
clipping.on_train_start(plasticity.Context({"model": model}, {"model": optimizer}))
for _ in range(50):
    optimizer.zero_grad()
    nn.functional.mse_loss(model(torch.randn(64, 8)), torch.randn(64, 1)).backward()
    optimizer.step()
print(clipping.counts, plasticity.measure(model, torch.randn(256, 8)), sep="\n")
