"""transformers: probes and ReDo as one callback of Trainer; the numbers are in its log.

pip install ".[hf]" && python examples/hf_callback.py [steps]
"""

import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

from plasticity.hf import PlasticityCallback
from plasticity.interventions import ReDo

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
sizes = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **sizes, head_dim=16, num_key_value_heads=2))
counting = (torch.arange(16) + torch.arange(256)[:, None]) % 64  # sequences that count upwards
rows = [{"input_ids": t, "attention_mask": torch.ones(16, dtype=torch.long), "labels": t} for t in counting]
arguments = TrainingArguments(
    "runs/hf", max_steps=steps, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", learning_rate=1e-3
)
callback = PlasticityCallback(every=10, interventions=[ReDo(every=50)])
Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
print(callback.last["model"])
