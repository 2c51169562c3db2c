"""Models of other packages, trained for a few steps: what a watch says is what own hooks and numpy say.

Needs the extra ``third-party``; each test is skipped where its package is missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from test_interventions import plain_loop
from torch import Tensor, nn

from plasticity import watch
from plasticity.interventions import ReDo

SMALL = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
WIDE = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
MODELS: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "llama": (WIDE, "mlp.down_proj", ("mlp.gate_proj", "mlp.up_proj")),
    "qwen3": (WIDE, "mlp.down_proj", ("mlp.gate_proj", "mlp.up_proj")),
    "gemma3_text": ({**WIDE, "query_pre_attn_scalar": 8}, "mlp.down_proj", ("mlp.gate_proj", "mlp.up_proj")),
    "phi3": (WIDE, "mlp.down_proj", ("mlp.gate_up_proj",)),
    "gpt_neox": ({**SMALL, "intermediate_size": 48}, "mlp.dense_4h_to_h", ("mlp.dense_h_to_4h",)),
    "opt": ({**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}, "fc2", ("fc1",)),
    "gpt2": ({**SMALL, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}, "mlp.c_proj", ("mlp.c_fc",)),
}
"""Kind -> its configuration, the layer that takes up the units of an MLP, and the layers of these units."""


def language_model(kind: str) -> nn.Module:
    """Return a tiny model with some units of its MLPs shut."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **MODELS[kind][0])
    config._attn_implementation = "eager"
    return transformers.AutoModelForCausalLM.from_config(config)


def layers_named(model: nn.Module, suffix: str) -> dict[str, nn.Module]:
    """Return the modules whose name ends so."""
    return {name: module for name, module in model.named_modules() if name.endswith(f".{suffix}")}


class Units:
    """The hidden units of every MLP, at the layer that takes them up, and gradients of the layers before."""

    def __init__(self, model: nn.Module, consumer: str, producers: tuple[str, ...]) -> None:
        self.units: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        for name, module in layers_named(model, consumer).items():
            module.register_forward_pre_hook(self.unit(name.removesuffix(consumer)))
        for producer in producers:
            for name, module in layers_named(model, producer).items():
                module.register_forward_hook(self.gradient(name))

    def unit(self, block: str) -> Any:
        """Return a hook that keeps what goes into a layer."""
        return lambda m, args: self.units.update({block: args[0].detach()}) if args[0].requires_grad else None

    def gradient(self, name: str) -> Any:
        """Return a hook that keeps the gradient of what comes out of a layer."""

        def see(module: nn.Module, args: tuple, z: Tensor) -> None:
            if z.requires_grad:
                z.register_hook(lambda g: self.gradients.update({name: g.detach().clone()}))

        return see


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the loss of the next token."""
    logits = model(input_ids=tokens).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("kind", MODELS)
def test_language_models(kind: str) -> None:
    _, consumer, producers = MODELS[kind]
    model, tokens = language_model(kind), torch.randint(0, 32, (8, 32))
    hand, optimizer = Units(model, consumer, producers), torch.optim.AdamW(model.parameters(), 1e-3)
    probes = ["dormancy", "grama", "rank"]
    with watch(model, optimizer, every=1, log=None, strict=True, probes=probes) as session:
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model, tokens).backward()
            units, gradients = dict(hand.units), dict(hand.gradients)
            optimizer.step()
            found = session.last["model"]
            for producer in producers:
                for name in layers_named(model, producer):
                    h = reference.rows(units[name.removesuffix(producer)])
                    copies = len(found.scores["dormancy"][name]) // h.shape[1]
                    expected = np.tile(reference.scores(h), copies)
                    scores = found.scores["dormancy"][name].numpy(force=True)
                    np.testing.assert_allclose(scores, expected, rtol=1e-5, err_msg=name)
                    scores = found.scores["grama"][name].numpy(force=True)
                    by_hand = reference.scores(reference.rows(gradients[name]))
                    np.testing.assert_allclose(scores, by_hand, rtol=1e-5, atol=0, err_msg=name)
                    rank = reference.ranks(np.tile(h, (1, copies)))["effective_rank"]
                    assert found.values["effective_rank"][name] == pytest.approx(rank, rel=1e-5)
    blocks = len(layers_named(model, consumer))
    assert blocks == 2


@pytest.mark.parametrize("kind", MODELS)
def test_watching_a_language_model_changes_nothing(kind: str) -> None:
    finals = []
    for watched in (False, True):
        model, tokens = language_model(kind), torch.randint(0, 32, (8, 32), generator=torch.Generator().manual_seed(0))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        session = watch(model, optimizer, every=1, log=None, strict=True) if watched else None
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model, tokens).backward()
            optimizer.step()
        if session:
            session.close()
        finals.append(model.state_dict())
    torch.testing.assert_close(*finals, rtol=0, atol=0)


@pytest.mark.parametrize("kind", MODELS)
def test_redo_recycles_exactly_the_units_that_are_off(kind: str) -> None:
    _, consumer, producers = MODELS[kind]
    model, tokens = language_model(kind), torch.randint(0, 32, (8, 32))
    for producer in producers:
        for module in layers_named(model, producer).values():
            half = 48 if kind == "phi3" else 0
            with torch.no_grad():
                rows = [0, 3, *((half, half + 3) if half else ())]
                weight = module.weight.T if type(module).__name__ == "Conv1D" else module.weight
                weight[rows] = 0
                if getattr(module, "bias", None) is not None:
                    module.bias[rows] = -100 if kind == "opt" else 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model(input_ids=tokens).logits.detach()
    ctx, writer = plain_loop(model, torch.optim.SGD(model.parameters(), 0.0))
    redo = ReDo(every=1, threshold=0.0)
    redo.on_train_start(ctx)
    loss_of(model, tokens).backward()
    ctx.optimizers["net"].step()
    redo.on_train_end(ctx)
    torch.testing.assert_close(model(input_ids=tokens).logits.detach(), logits, rtol=0, atol=1e-6)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    allowed = {
        f"{name}.{key}" for p in (*producers, consumer) for name in layers_named(model, p) for key in ("weight", "bias")
    }
    assert changed <= allowed
    neurons = writer.named("redo")[0]["neurons"]
    for producer in producers:
        for name in layers_named(model, producer):
            assert set(neurons[name]) >= {0, 3}
    for name, module in layers_named(model, consumer).items():
        first = neurons[f"{name.removesuffix(consumer)}{producers[0]}"]
        units = sorted({n % 48 for n in first} if kind == "phi3" else set(first))
        weight = module.weight if type(module).__name__ == "Conv1D" else module.weight.T
        old = before[f"{name}.weight"] if type(module).__name__ == "Conv1D" else before[f"{name}.weight"].T
        kept = torch.ones(len(weight), dtype=torch.bool)
        kept[units] = False
        assert not weight[~kept].any()
        assert torch.equal(weight[kept], old[kept])


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lora_does_not_change_what_is_read() -> None:
    peft = pytest.importorskip("peft")
    model, tokens = language_model("opt"), torch.randint(0, 32, (8, 32))
    with torch.no_grad():
        for module in layers_named(model, "fc1").values():
            module.bias[:12] = -50
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["fc1", "fc2", "q_proj"]))
    hand = Units(model, "fc2", ())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    with watch(model, optimizer, every=1, log=None, strict=True, probes=["dormancy", "grama"]) as session:
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model, tokens).backward()
            units = dict(hand.units)
            optimizer.step()
            found = session.last["model"]
            for name in layers_named(model, "fc1"):
                by_hand = reference.scores(reference.rows(units[name.removesuffix("fc1")]))
                np.testing.assert_allclose(found.scores["dormancy"][name].numpy(force=True), by_hand, rtol=1e-5)
                assert found.values["dormancy"][name] == pytest.approx(0.25)
            assert not any("lora_" in layer or "base_layer" in layer for layer in found.num_neurons)


@pytest.mark.parametrize("kind", ["PPO", "SAC"])
def test_stable_baselines(kind: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    pytest.importorskip("gymnasium")
    if kind == "PPO":
        agent = sb3.PPO("MlpPolicy", "Pendulum-v1", n_steps=256, batch_size=128, n_epochs=2, device="cpu", seed=0)
        networks, optimizers = {"policy": agent.policy}, [agent.policy.optimizer]
        calls, expected = {"policy": ("evaluate_actions",)}, {"policy": 4}
    else:
        agent = sb3.SAC("MlpPolicy", "Pendulum-v1", learning_starts=40, device="cpu", seed=0)
        networks = {"actor": agent.actor, "critic": agent.critic}
        optimizers = [agent.actor.optimizer, agent.critic.optimizer]
        calls, expected = {"actor": ("action_log_prob",)}, {"actor": 2, "critic": 4}
    with watch(networks, optimizers, every=2, log=None, strict=True, calls=calls) as session:
        agent.learn(256 if kind == "PPO" else 64)
    for name, number in expected.items():
        reading = session.last[name]
        assert len(reading.num_neurons) == number
        assert not any(np.isnan(value) for value in reading.values["grama"].values())
