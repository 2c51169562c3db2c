"""Lightning: probes and ReDo as one callback of Trainer.

pip install ".[lightning]" && python examples/lightning_callback.py [steps]
"""

import sys

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from plasticity.interventions import ReDo
from plasticity.lightning import PlasticityCallback


class Fits(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def training_step(self, batch, index):
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


steps = int(sys.argv[1]) if len(sys.argv) > 1 else 500
inputs = torch.randn(256, 8)
data = DataLoader(TensorDataset(inputs, inputs[:, :1].sin()), 128)
callback = PlasticityCallback("net", every=20, interventions=[ReDo(every=100)])
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
pl.Trainer(max_steps=steps, accelerator="cpu", callbacks=[callback], **quiet).fit(Fits(), data)
print(callback.last["net"])
