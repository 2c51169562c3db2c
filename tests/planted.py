"""A run with a planted collapse: a layer whose neurons are killed at a known step, and recycled at another."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from plasticity.callback import Context, fire
from plasticity.interventions.redo import ReDo
from plasticity.measuring import Measure
from plasticity.writers import Writers, open_writers

STEPS, EVERY, KILLED, RECYCLED = 600, 20, 200, 400
"""Optimizer steps in all, between two measurements, before 24 of the 32 neurons of layer 2 die, before ReDo acts."""
DEAD = 24


def planted_run(folder: Path, seed: int = 1, recycle: bool = True, steps: int = STEPS, config: bool = True) -> Writers:
    """Train a small regression into ``folder`` for ``steps`` and return its writer, still open."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters())
    writer = open_writers(folder)
    if config:
        methods = {"redo": {"threshold": 0.0}} if recycle else {}
        settings = {"env": "planted", "seed": seed, "interventions": methods}
        (folder / "run.json").write_text(json.dumps({"agent": "mlp", "status": "running", "config": settings}))
    ctx = Context({"critic": model}, {"critic": optimizer}, writer=writer)
    redo = [ReDo(every=RECYCLED, threshold=0.0, stop=RECYCLED)] if recycle else []
    callbacks = [Measure(every=EVERY), *redo]
    fire(callbacks, "on_train_start", ctx)
    for ctx.step in range(1, steps + 1):
        if ctx.step == KILLED:
            with torch.no_grad():
                model[2].weight[:DEAD], model[2].bias[:DEAD] = 0.0, -1.0
        inputs = torch.randn(64, 8)
        loss = (model(inputs).squeeze(1) - inputs.prod(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if ctx.step % 10 == 0:
            ctx.log({"charts/episodic_return": ctx.step / 10 - 20 * (KILLED <= ctx.step < RECYCLED)})
    fire(callbacks, "on_train_end", ctx)
    return writer
