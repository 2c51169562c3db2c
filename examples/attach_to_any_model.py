"""Watch a model in your own training loop, then measure it on a reference batch. No agent, no environment.

python examples/attach_to_any_model.py [STEPS]
"""

import sys

import torch
from torch import nn

import plasticity

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
loss_fn = nn.MSELoss()

inputs = torch.randn(256, 8)  # one reference batch, so that the two tables can be compared
targets = torch.randn(256, 1)
print(f"before\n{plasticity.measure(model, (inputs, targets), loss_fn)}\n")

with plasticity.watch(model, optimizer, every=max(1, steps // 10), log="runs/any-model") as session:
    for step in range(steps):
        if step % 200 == 0:  # a new task now and then is what costs plasticity
            task = torch.randn(8, 1)
        batch = torch.randn(256, 8)
        loss = loss_fn(model(batch), torch.sign(batch @ task))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

print(f"after\n{plasticity.measure(model, (inputs, targets), loss_fn)}\n")
print(f"lowest tenth of the GraMa scores, last training step measured: {session.last['model'].quantile('grama', 0.1)}")
print("curves: plasticity dashboard runs")
