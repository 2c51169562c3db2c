"""Recycle dormant neurons in your own training loop: no agent, no environment, and no change to the loop.

python examples/intervention_in_a_supervised_loop.py [STEPS]
"""

import sys

import torch
from torch import nn

import plasticity
from plasticity.interventions import ReDo

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
loss_fn = nn.MSELoss()
for recycle in (False, True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    redo = ReDo(every=max(1, steps // 20))
    ctx = plasticity.Context({"model": model}, {"model": optimizer})
    if recycle:
        redo.on_train_start(ctx)  # from here on it works in the optimizer's hooks

    for step in range(steps):
        if step % 200 == 0:  # a new task now and then is what costs plasticity
            task = torch.randn(8, 1)
        batch = torch.randn(256, 8)
        loss = loss_fn(model(batch), torch.sign(batch @ task))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    redo.on_train_end(ctx)

    reading = plasticity.measure(model, torch.randn(256, 8), probes=["dormancy"])
    print(f"with ReDo: {redo.counts}\n{reading}\n" if recycle else f"without\n{reading}\n")
