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


def language_model(kind: str, **more: Any) -> nn.Module:
    """Return a tiny model."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = MODELS[kind][0] if kind in MODELS else MIXTURES.get(kind, {**SMALL, "state_size": 4})
    config = transformers.AutoConfig.for_model(kind, **sizes)
    config._attn_implementation = "eager"
    return transformers.AutoModelForCausalLM.from_config(config, **more)


def layers_named(model: nn.Module, suffix: str) -> dict[str, nn.Module]:
    """Return the modules whose name ends so."""
    return {name: module for name, module in model.named_modules() if name.endswith(f".{suffix}")}


EXPERTS = {**WIDE, "intermediate_size": 24, "num_experts_per_tok": 2}
MIXTURES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {**EXPERTS, "moe_intermediate_size": 24, "num_experts": 4},
    "mixtral": {**EXPERTS, "num_local_experts": 4},
}


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


def watched_steps(model: nn.Module, check: Any, steps: int = 3) -> None:
    """Train with everything measured, and call ``check(reading)`` after every step."""
    optimizer, tokens = torch.optim.AdamW(model.parameters(), 1e-3), torch.randint(0, 32, (8, 32))
    with watch(model, optimizer, every=1, log=None, strict=True, probes=["dormancy", "grama", "rank"]) as session:
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(model, tokens).backward()
            optimizer.step()
            check(session.last["model"])


def assert_is(reading: Any, layer: str, h: np.ndarray, gradient: np.ndarray) -> None:
    """Compare the values of one layer with those of its rows and their gradients."""
    dormancy, grama = (reading.scores[probe][layer].numpy(force=True) for probe in ("dormancy", "grama"))
    np.testing.assert_allclose(dormancy, reference.scores(h), rtol=1e-5, err_msg=layer)
    np.testing.assert_allclose(grama, reference.scores(gradient), rtol=1e-5, atol=1e-7, err_msg=layer)
    rank = reference.ranks(h)["effective_rank"]
    assert reading.values["effective_rank"][layer] == pytest.approx(rank, rel=1e-5)


class ExpertsByHand:
    """The hidden units of every expert and their gradients, computed once more from what goes in and comes back."""

    def __init__(self, experts: nn.Module) -> None:
        self.experts, self.shown = experts, {}
        experts.register_forward_hook(self.see)

    def see(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        """Keep the arguments of a training pass, and its gradient once it is there."""
        if output.requires_grad:
            kept = [value.detach().clone() for value in (*args, *module.parameters())]
            output.register_hook(lambda gradient: self.shown.update(args=kept, gradient=gradient.clone()))

    def rows(self, expert: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return (units, gradients of the linear outputs) of one expert; None without tokens."""
        x, chosen, weights, up, down = (
            value.double() if value.is_floating_point() else value for value in self.shown["args"]
        )
        token, slot = torch.where(chosen == expert)
        if not len(token):
            return None
        z = (x[token] @ up[expert].T).requires_grad_()
        gate, value = z.chunk(2, -1)
        units = F.silu(gate) * value
        out = (units @ down[expert].T) * weights[token, slot, None]
        (gradient,) = torch.autograd.grad(out, z, self.shown["gradient"].double()[token])
        return reference.rows(units.tile(1, 2)), reference.rows(gradient)


@pytest.mark.parametrize("way", ["grouped_mm", "eager"])
@pytest.mark.parametrize("kind", MIXTURES)
def test_every_expert_is_a_layer(kind: str, way: str) -> None:
    model = language_model(kind, experts_implementation=way)
    hands = {name: ExpertsByHand(module) for name, module in layers_named(model, "mlp.experts").items()}

    def check(reading: Any) -> None:
        for name, hand in hands.items():
            for expert in range(4):
                layer = f"{name}.gate_up_proj.{expert}"
                if (found := hand.rows(expert)) is None:
                    assert layer not in reading.scores["dormancy"]
                else:
                    assert_is(reading, layer, *found)

    watched_steps(model, check)
    assert len(hands) == 2


@pytest.mark.parametrize("way", ["grouped_mm", "eager"])
@pytest.mark.parametrize("kind", MIXTURES)
def test_redo_recycles_exactly_the_units_of_experts_that_are_off(kind: str, way: str) -> None:
    model, tokens = language_model(kind, experts_implementation=way), torch.randint(0, 32, (8, 32))
    experts = layers_named(model, "mlp.experts")
    hands = {name: ExpertsByHand(module) for name, module in experts.items()}
    with torch.no_grad():
        for module in experts.values():
            module.gate_up_proj[:, :3] = 0  # gates of the first three units
            module.gate_up_proj[1, 24 + 7] = 0  # and what another one of the second expert lets through
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model(input_ids=tokens).logits.detach()
    ctx, writer = plain_loop(model, torch.optim.SGD(model.parameters(), 0.0))
    redo = ReDo(every=1, threshold=0.0)
    redo.on_train_start(ctx)
    loss_of(model, tokens).backward()
    ctx.optimizers["net"].step()
    redo.on_train_end(ctx)
    neurons = writer.named("redo")[0]["neurons"]
    expected = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in before.items()}
    for name, hand in hands.items():
        for expert in range(4):
            if (found := hand.rows(expert)) is None:
                continue
            off = np.flatnonzero((found[0] == 0).all(0))  # of gates and values, side by side
            assert {0, 1, 2, 24, 25, 26} | ({7, 31} if expert == 1 else set()) <= {*off.tolist()}
            assert neurons[f"{name}.gate_up_proj.{expert}"] == off.tolist()
            expected[f"{name}.gate_up_proj"][expert, off] = True
            expected[f"{name}.down_proj"][expert, :, off[off < 24]] = True
    for name, value in model.state_dict().items():
        assert torch.equal(value != before[name], expected[name] & (before[name] != value)), name
        if name.endswith("gate_up_proj"):
            assert torch.equal(value != before[name], expected[name]), name
        elif name.endswith("down_proj"):
            assert not value[expected[name]].any()
            assert torch.equal(value[~expected[name]], before[name][~expected[name]])
    torch.testing.assert_close(model(input_ids=tokens).logits.detach(), logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_by_gathered_weights_and_routers_are_named_and_left_alone(kind: str) -> None:
    """``batched_mm`` gathers a weight for every token: it is a computed one, and its experts are no layers."""
    model = language_model(kind, experts_implementation="batched_mm")
    with torch.no_grad():
        for module in layers_named(model, "mlp.experts").values():
            module.gate_up_proj[:, :3] = 0
    said: dict[str, str] = {}

    def check(reading: Any) -> None:
        said.update({entry.layer: entry.reason for entry in reading.unmeasured})

    watched_steps(model, check, steps=1)
    for name in layers_named(model, "mlp.experts"):
        assert any(layer.startswith(name) for layer in said), name
        assert "belong to no Linear or convolution" in said[name.replace("experts", "gate")]
    changed, _, _ = recycled(model, ReDo(every=1, threshold=0.0))
    assert not {name for name in changed if "experts" in name or ".mlp.gate" in name}


def test_mamba() -> None:
    model = language_model("mamba")
    shown: dict[str, Tensor] = {}
    for name, mixer in layers_named(model, "mixer").items():
        mixer.x_proj.register_forward_pre_hook(
            lambda m, args, name=name: shown.update({name: args[0].detach().clone()})
        )

    def check(reading: Any) -> None:
        for name in shown:
            h = reference.rows(shown[name])
            found = reading.scores["dormancy"][f"{name}.conv1d"].numpy(force=True)
            np.testing.assert_allclose(found, reference.scores(h), rtol=1e-5)
            rank = reference.ranks(h)["effective_rank"]
            assert reading.values["effective_rank"][f"{name}.conv1d"] == pytest.approx(rank, rel=1e-5)
            assert reading.values["grama"][f"{name}.conv1d"] >= 0
            reasons = {entry.layer: entry.reason for entry in reading.unmeasured}
            assert reasons[f"{name}.dt_proj"] == "its weight was used, but its forward was never called"

    watched_steps(model, check)


@pytest.mark.parametrize("kind", [*MODELS, *MIXTURES, "mamba"])
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
    half = 48 if kind == "phi3" else 0
    for producer in producers:
        for module in layers_named(model, producer).values():
            with torch.no_grad():
                rows = [0, 3, *((half, half + 3) if half else ())]
                weight = module.weight.T if type(module).__name__ == "Conv1D" else module.weight
                weight[rows] = 0
                if getattr(module, "bias", None) is not None:
                    module.bias[rows] = -100 if kind == "opt" else 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model(input_ids=tokens).logits.detach()
    hand = Units(model, consumer, producers)
    ctx, writer = plain_loop(model, torch.optim.SGD(model.parameters(), 0.0))
    redo = ReDo(every=1, threshold=0.0)
    redo.on_train_start(ctx)
    loss_of(model, tokens).backward()
    ctx.optimizers["net"].step()
    redo.on_train_end(ctx)
    off = {
        block: (units == 0).flatten(0, -2).all(0).nonzero().flatten().tolist() for block, units in hand.units.items()
    }
    torch.testing.assert_close(model(input_ids=tokens).logits.detach(), logits, rtol=0, atol=1e-6)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    allowed = {
        f"{name}.{key}" for p in (*producers, consumer) for name in layers_named(model, p) for key in ("weight", "bias")
    }
    assert changed <= allowed
    neurons = writer.named("redo")[0]["neurons"]
    for producer in producers:
        for name in layers_named(model, producer):
            units = off[name.removesuffix(producer)]
            flagged = [half * part + unit for part in range(1 + (kind == "phi3")) for unit in units]
            assert {0, 3} <= {*units}
            assert neurons[name] == flagged, "the units that are 0 on every token, and no others"
            now = dict(model.named_parameters())[f"{name}.weight"]
            rows = now != before[f"{name}.weight"]
            rows = rows.T if kind == "gpt2" else rows
            assert rows.any(1).nonzero().flatten().tolist() == rows.all(1).nonzero().flatten().tolist() == flagged
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


FUSED = {
    "phi3": ("self_attn.qkv_proj", [range(32), range(32, 48), range(48, 64)]),
    "gpt2": ("attn.c_attn", [range(32), range(32, 64), range(64, 96)]),
    "gpt_neox": (
        "attention.query_key_value",
        [[24 * h + 8 * p + i for h in range(4) for i in range(8)] for p in range(3)],
    ),
}
"""Kind -> its fused projection, and the neurons of queries, keys and values."""


@pytest.mark.parametrize("kind", FUSED)
def test_fused_projections_are_read_by_parts(kind: str) -> None:
    suffix, parts = FUSED[kind]
    model = language_model(kind)
    outputs: dict[str, Tensor] = {}
    hand = Units(model, suffix, (suffix,))
    for name, module in layers_named(model, suffix).items():
        module.register_forward_hook(lambda m, args, z, name=name: outputs.update({name: z.detach().clone()}))

    def check(reading: Any) -> None:
        for name, z in outputs.items():
            assert name not in reading.num_neurons
            for index, part in enumerate(parts):
                units, gradients = (reference.rows(t)[:, list(part)] for t in (z, hand.gradients[name]))
                assert_is(reading, f"{name}.{index}", units, gradients)

    watched_steps(model, check)
    assert len(outputs) == 2


def recycled(model: nn.Module, redo: ReDo) -> tuple[set[str], dict[str, Tensor], Any]:
    """Apply ReDo after one step that moves nothing; return which entries changed, what was there, and the log."""
    tokens = torch.randint(0, 32, (8, 32))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ctx, writer = plain_loop(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.0))
    redo.on_train_start(ctx)
    loss_of(model, tokens).backward()
    ctx.optimizers["net"].step()
    redo.on_train_end(ctx)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    return changed, before, writer


@pytest.mark.parametrize("outgoing", ["zero", "keep"])
def test_redo_on_mamba(outgoing: Any) -> None:
    """A channel of the convolution goes into a recurrence, without columns of its own: only rows can be redrawn."""
    model, dead = language_model("mamba"), [0, 3, 17]
    convolutions = layers_named(model, "mixer.conv1d")
    with torch.no_grad():
        for module in convolutions.values():
            module.weight[dead], module.bias[dead] = 0, 0
    changed, before, writer = recycled(model, ReDo(every=1, threshold=0.0, outgoing=outgoing, networks=("net",)))
    if outgoing == "zero":
        assert not changed
        told = {event["layer"]: event["reason"] for event in writer.named("redo_skipped")}
        assert told.keys() == convolutions.keys()
        assert all('outgoing="keep" can be done' in reason for reason in told.values())
        return
    assert changed - {f"{name}.bias" for name in convolutions} == {f"{name}.weight" for name in convolutions}
    assert writer.named("redo")[0]["neurons"] == dict.fromkeys(convolutions, dead)
    for name, module in convolutions.items():
        rows = (module.weight != before[f"{name}.weight"]).flatten(1)
        assert rows[dead].all()
        assert rows.any(1).nonzero().flatten().tolist() == dead
        assert set((module.bias != before[f"{name}.bias"]).nonzero().flatten().tolist()) <= set(dead)


LORA: dict[str, tuple[list[str], bool]] = {
    "on the layer": (["fc1"], False),
    "on its consumer": (["fc2"], True),
    "on both": (["fc1", "fc2"], True),
    "elsewhere, base frozen": (["q_proj", "v_proj"], False),
    "elsewhere, base trained": (["q_proj", "v_proj"], True),
}
"""Kind -> the layers with an adapter, and whether the weights of the MLPs are trained beside it."""


def adapted_model(targets: list[str], trained: bool, **settings: Any) -> nn.Module:
    """Return a model with adapters, in which units 0, 3 and 17 of every MLP never fire."""
    peft = pytest.importorskip("peft")
    model = language_model("opt")
    with torch.no_grad():
        for module in layers_named(model, "fc1").values():
            module.bias[[0, 3, 17]] = -100
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, **settings))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or (trained and ".fc" in name))
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", LORA)
def test_redo_on_lora(kind: str) -> None:
    model, dead = adapted_model(*LORA[kind]), [0, 3, 17]
    changed, before, writer = recycled(model, ReDo(every=1, threshold=0.0))
    layers = layers_named(model, "fc1")
    if kind != "elsewhere, base trained":
        assert not changed
        reasons = {event["layer"]: event["reason"] for event in writer.named("redo_skipped")}
        assert {*layers} <= reasons.keys()
        word = "is frozen" if "frozen" in kind else "has an adapter, whose weights add to its own"
        assert all(word in reasons[name] for name in layers)
        return
    neurons = writer.named("redo")[0]["neurons"]
    assert neurons.keys() == layers.keys()
    assert changed == {
        f"{name.removesuffix('fc1')}{key}" for name in layers for key in ("fc1.weight", "fc1.bias", "fc2.weight")
    }
    for name, module in layers.items():
        assert set(neurons[name]) >= {*dead}
        rows, columns = (torch.zeros(48, dtype=torch.bool) for _ in range(2))
        rows[neurons[name]] = columns[neurons[name]] = True
        outgoing = f"{name.removesuffix('fc1')}fc2.weight"
        assert torch.equal((module.weight != before[f"{name}.weight"]).all(1), rows)
        assert torch.equal((module.weight != before[f"{name}.weight"]).any(1), rows)
        now = model.state_dict()[outgoing]
        assert torch.equal((now != before[outgoing]).any(0), columns)
        assert not now[:, columns].any()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", LORA)
def test_watching_lora_changes_nothing(kind: str) -> None:
    finals = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = adapted_model(*LORA[kind], lora_dropout=0.2)
        tokens = torch.randint(0, 32, (8, 32), generator=torch.Generator().manual_seed(0))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
        session = watch(model, optimizer, every=1, log=None, strict=True) if watched else None
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = loss_of(model, tokens)
            loss.backward()
            losses.append(loss.detach())
            optimizer.step()
        if session:
            assert session.last["model"].num_neurons
            session.close()
        finals.append(({**model.state_dict()}, losses, torch.get_rng_state()))
    torch.testing.assert_close(*finals, rtol=0, atol=0)
