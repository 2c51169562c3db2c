"""`plasticity.hf`: a Trainer and the trainers of TRL train tiny models with one callback."""

from __future__ import annotations

import copy
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from test_third_party import WIDE  # noqa: E402

from plasticity.hf import PlasticityCallback  # noqa: E402
from plasticity.interventions import (  # noqa: E402
    PlasticityInjection,
    ReDo,
    ShrinkPerturb,
)
from plasticity.tags import is_timed  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "default::DeprecationWarning", "ignore:.*:UserWarning", "ignore::FutureWarning", "ignore:Rank. fewer samples"
)
PROBES = ["dormancy", "grama", "rank"]
PRODUCERS = ("gate_proj", "up_proj")


def make_model(**more: Any) -> Any:
    """Return a tiny llama."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("llama", **{**WIDE, **more})
    return transformers.AutoModelForCausalLM.from_config(config)


def make_rows(num: int = 32) -> list[dict[str, Tensor]]:
    """Return sequences of different lengths, padded on the right."""
    generator, rows = torch.Generator().manual_seed(0), []
    for index in range(num):
        ids, length = torch.randint(3, 32, (12,), generator=generator), 6 + index % 7
        mask = (torch.arange(12) < length).long()
        ids[mask == 0] = 2
        labels = ids.masked_fill(mask == 0, -100)
        labels[:2] = -100
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return rows


def arguments(folder: Path, kind: Any = None, **more: Any) -> Any:
    """Return quiet arguments of a short training on the CPU."""
    settings = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 2}
    quiet = {"use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
    kind = kind or transformers.TrainingArguments
    return kind(output_dir=str(folder), **{**settings, **quiet, "lr_scheduler_type": "constant", "seed": 1, **more})


def make_trainer(folder: Path, callbacks: list[Any], model: Any = None, **more: Any) -> Any:
    """Return a Trainer."""
    model = make_model() if model is None else model
    return transformers.Trainer(model, arguments(folder, **more), train_dataset=make_rows(), callbacks=callbacks)


class ByHand(transformers.TrainerCallback):
    """The units of every MLP and the gradients before them, in the passes of a step that trains, by own hooks."""

    def __init__(self, model: nn.Module, callback: PlasticityCallback, mask: str = "attention_mask") -> None:
        self.callback, self.mask_name, self.compared = callback, mask, 0
        self.mask: Tensor | None = None
        self.forget()
        model.register_forward_pre_hook(self.begin, with_kwargs=True)
        for name, module in model.named_modules():
            if name.endswith("mlp.down_proj"):
                module.register_forward_pre_hook(self.unit(name.removesuffix(".down_proj").replace("base_model.", "")))
            if name.endswith(PRODUCERS):
                module.register_forward_hook(self.output(name))

    def forget(self) -> None:
        """Begin a step."""
        self.units: dict[str, list[Tensor]] = {}
        self.gradients: dict[str, list[Tensor]] = {}
        self.passes = 0

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Keep the mask of a pass."""
        if torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
            found = kwargs["labels"] != -100 if self.mask_name == "labels" else kwargs["attention_mask"].bool()
            self.mask = found
            self.passes += 1

    def unit(self, block: str) -> Any:
        """Return a hook that keeps the units of a pass that trains, not those computed again."""

        def see(module: nn.Module, args: tuple) -> None:
            if torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
                self.units.setdefault(block, []).append(args[0].detach()[self.mask])

        return see

    def output(self, name: str) -> Any:
        """Return a hook that keeps the gradients of an output."""

        def see(module: nn.Module, args: tuple, z: Tensor) -> None:
            if z.requires_grad and torch._C._current_graph_task_id() == -1:
                mask = self.mask
                z.register_hook(lambda g: self.gradients.setdefault(name, []).append(g.detach()[mask].clone()))

        return see

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin."""
        self.forget()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Compare the reading of the step."""
        reading = self.callback.last["model"]
        assert reading.num_passes == self.passes
        assert {*reading.scores["dormancy"]} == {name for name in reading.num_neurons if name.endswith(PRODUCERS)}
        for name, scores in reading.scores["dormancy"].items():
            block = name.rpartition(".")[0].replace("base_model.", "")
            h = reference.rows(torch.cat(self.units[block]))
            np.testing.assert_allclose(scores.numpy(force=True), reference.scores(h), rtol=1e-5)
            gradient = reference.scores(reference.rows(torch.cat(self.gradients[name])))
            np.testing.assert_allclose(reading.scores["grama"][name].numpy(force=True), gradient, rtol=1e-5, atol=1e-7)
            last = reference.rows(self.units[block][-1]) if len(self.units[block]) > 1 else h
            rank = reference.ranks(h)["effective_rank"], reference.ranks(last)["effective_rank"]
            assert reading.values["effective_rank"][name] == pytest.approx(rank[0], rel=1e-5)
            self.compared += 1
        self.forget()


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 4},
    "checkpointed": {"gradient_checkpointing": True},
    "bf16": {"bf16": True},
}


@pytest.mark.parametrize("case", [*CASES, "lora"])
def test_the_numbers_are_those_of_own_hooks(case: str, tmp_path: Path) -> None:
    model = make_model()
    if case == "lora":
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["gate_proj", "up_proj", "q_proj"]))
    callback = PlasticityCallback(PROBES, every=1)
    hand = ByHand(model, callback)
    trainer = make_trainer(tmp_path, [callback, hand], model, **CASES.get(case, {}))
    trainer.train()
    assert hand.compared == 4 * 4
    rows = [row for row in trainer.state.log_history if "plasticity/model/grama/all" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["plasticity/model/effective_rank/all"] == callback.last["model"].values["effective_rank"]["all"]
    layer = next(iter(callback.last["model"].scores["dormancy"]))
    assert rows[-1][f"plasticity/model/dormancy/{layer}"] == callback.last["model"].values["dormancy"][layer]
    assert not any(module._forward_hooks and "plasticity" in str(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("case", CASES)
def test_no_bit_of_training_changes(case: str, tmp_path: Path) -> None:
    finals = []
    for callbacks in ([], [PlasticityCallback(PROBES, every=1)]):
        trainer = make_trainer(tmp_path, callbacks, **CASES[case])
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        finals.append((dict(trainer.model.state_dict()), losses, torch.get_rng_state()))
    torch.testing.assert_close(*finals, rtol=0, atol=0)


def test_layers_and_masks_are_chosen(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}
    for name, settings in {
        "mlp": {},
        "all": {"layers": None},
        "globs": {"layers": ["*.0.mlp.up_proj"]},
        "unmasked": {"mask": None},
        "function": {"mask": lambda attention_mask, **_: attention_mask},
        "completion": {"mask": "completion_mask"},
    }.items():
        callback = PlasticityCallback(["dormancy"], **settings)
        make_trainer(tmp_path, [callback], max_steps=1).train()
        seen[name] = callback.last["model"].values["dormancy"], callback.last["model"].scores["dormancy"]
    assert {name.rpartition(".")[2] for name in seen["mlp"][1]} == {*PRODUCERS}
    assert "model.layers.1.self_attn.q_proj" in seen["all"][1]
    assert [*seen["globs"][1]] == ["model.layers.0.mlp.up_proj"]
    layer = "model.layers.0.mlp.up_proj"
    scores = {name: found[1][layer] for name, found in seen.items()}
    assert torch.equal(scores["mlp"], scores["function"])
    assert not torch.allclose(scores["mlp"], scores["unmasked"])
    assert not torch.allclose(scores["mlp"], scores["completion"])


# -- interventions -----------------------------------------------------------------------------------------------------


def test_redo_recycles_the_units_that_are_off_and_nothing_else(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        for layer in model.model.layers:
            for producer in PRODUCERS:
                getattr(layer.mlp, producer).weight[[0, 3]] = 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    redo = ReDo(every=1, threshold=0.0, stop=1)
    trainer = make_trainer(tmp_path, [PlasticityCallback([], interventions=[redo])], model, learning_rate=0.0)
    trainer.train()
    for name, value in model.state_dict().items():
        rows = (value != before[name]).nonzero()
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            assert rows[:, 0].unique().tolist() == [0, 3]
        elif name.endswith("down_proj.weight"):
            assert rows[:, 1].unique().tolist() == [0, 3]
            assert not value[:, [0, 3]].any()
        else:
            assert not len(rows), name
    trainer.save_model(str(tmp_path / "saved"))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "saved"))
    torch.testing.assert_close(dict(loaded.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    make_trainer(tmp_path, [PlasticityCallback(every=2)], loaded).train()


def test_a_run_that_goes_on_is_the_run_without_a_break(tmp_path: Path) -> None:
    def callback() -> PlasticityCallback:
        return PlasticityCallback(PROBES, every=3, interventions=[ReDo(every=2, threshold=0.6), ShrinkPerturb(every=3)])

    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(tmp_path / "whole", [callback()], **settings)
    whole.train()
    state = json.loads((tmp_path / "whole" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["plasticity"]["plain"]
    parts = make_trainer(tmp_path / "parts", [callback()], **settings)
    parts.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    torch.testing.assert_close(dict(parts.model.state_dict()), dict(whole.model.state_dict()), rtol=0, atol=0)
    logs = [
        [
            {k: v for k, v in row.items() if k.startswith(("plasticity/model", "interv")) and not is_timed(k)}
            for row in t.state.log_history
        ]
        for t in (whole, parts)
    ]
    torch.testing.assert_close(*[[row for row in rows if row] for rows in logs], rtol=1e-12, atol=0)


def test_a_checkpoint_without_the_callback_goes_on_with_it(tmp_path: Path) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, [], **settings).train()
    callback = PlasticityCallback(every=1)
    make_trainer(tmp_path, [callback], **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert callback._guest.measure.watcher.steps() == [2]


# -- TRL ---------------------------------------------------------------------------------------------------------------

WORDS = [str(digit) for digit in range(10)]


def make_tokenizer() -> Any:
    """Return a tokenizer of digits."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: index + 3 for index, word in enumerate(WORDS)} | {"<b>": 0, "<e>": 1, "<p>": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<p>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"bos_token": "<b>", "eos_token": "<e>", "pad_token": "<p>", "padding_side": "left"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def rewards(completions: list[str], **_: Any) -> list[float]:
    """Return rewards that differ within every group."""
    return [float(sum(map(ord, text)) % 7) for text in completions]


def trl_trainer(kind: str, folder: Path, callbacks: list[Any], model: Any = None, **more: Any) -> Any:
    """Return a trainer of TRL on strings of digits."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    model, tokenizer = make_model() if model is None else model, make_tokenizer()
    texts = [("12345"[: 2 + i % 4], "678"[: 1 + i % 3], "90") for i in range(32)]
    shared: dict[str, Any] = {"processing_class": tokenizer, "callbacks": callbacks}
    own = {key: more.pop(key) for key in ("reward_funcs", "peft_config") if key in more}
    if kind == "sft":
        rows = [{"prompt": a, "completion": b} for a, b, _ in texts]
        config, trainer = trl.SFTConfig, trl.SFTTrainer
    elif kind == "dpo":
        rows = [{"prompt": a, "chosen": b, "rejected": c} for a, b, c in texts]
        config, trainer = trl.DPOConfig, trl.DPOTrainer
        if not hasattr(model, "peft_config"):  # it would load the reference from where the model was saved
            shared["ref_model"] = copy.deepcopy(model)
    else:
        rows = [{"prompt": a} for a, _, _ in texts]
        config, trainer = trl.GRPOConfig, trl.GRPOTrainer
        more = {"num_generations": 4, "max_completion_length": 3, "beta": 0.0, "num_iterations": 2, **more}
        shared |= {"reward_funcs": own.pop("reward_funcs", rewards)}
    args = arguments(folder, config, **more)
    return trainer(model=model, args=args, train_dataset=datasets.Dataset.from_list(rows), **shared, **own)


@pytest.mark.parametrize(("kind", "mask"), [("sft", "labels"), ("dpo", "attention_mask"), ("grpo", "labels")])
def test_trl_is_measured_by_the_passes_that_train(kind: str, mask: str, tmp_path: Path) -> None:
    model = make_model()
    if kind == "dpo":
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["gate_proj", "up_proj"]))
    callback = PlasticityCallback(PROBES, every=1, mask="completion_mask" if mask == "labels" else mask)
    hand = ByHand(model, callback, mask)
    trainer = trl_trainer(kind, tmp_path, [callback, hand], model)
    trainer.train()
    assert hand.compared == 16
    assert callback.last["model"].num_passes == 1
    assert len([row for row in trainer.state.log_history if "plasticity/model/dormancy/all" in row]) == 4


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
def test_trl_trains_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    finals = []
    for callbacks in ([], [PlasticityCallback(PROBES, every=1, mask="completion_mask")]):
        transformers.set_seed(0)
        trainer = trl_trainer(kind, tmp_path, callbacks)
        trainer.train()
        finals.append((dict(trainer.model.state_dict()), torch.get_rng_state()))
    torch.testing.assert_close(*finals, rtol=0, atol=0)


def test_groups_without_reward_variance_have_no_gradient_scores(tmp_path: Path) -> None:
    callback = PlasticityCallback(PROBES, every=1, mask="completion_mask")
    trainer = trl_trainer("grpo", tmp_path, [callback], reward_funcs=lambda completions, **_: [1.0] * len(completions))
    trainer.train()
    reading = callback.last["model"]
    assert all(math.isnan(value) for value in reading.values["grama"].values())
    assert not math.isnan(reading.values["dormancy"]["all"])
    assert "grama" not in reading.scores
    assert any("no group of completions had rewards that differ" in entry.reason for entry in reading.unmeasured)
    shares = [v for row in trainer.state.log_history for k, v in row.items() if k.endswith("frac_reward_zero_std/all")]
    assert shares == [1.0, 1.0]


@pytest.mark.parametrize("kind", [pytest.param("sft", marks=pytest.mark.slow), "grpo"])
def test_methods_act_in_trl_and_the_run_goes_on(kind: str, tmp_path: Path) -> None:
    redo = ReDo(every=2, threshold=0.7)
    settings = {"save_strategy": "steps", "save_steps": 2}
    trl_trainer(kind, tmp_path, [PlasticityCallback([], interventions=[redo])], **settings).train()
    assert redo.counts["recycled"] > 0
    again = ReDo(every=2, threshold=0.7)
    callback = PlasticityCallback([], interventions=[again])
    trl_trainer(kind, tmp_path, [callback], **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.counts["recycled"] > 0


# -- wrong use ---------------------------------------------------------------------------------------------------------


def test_wrong_use_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="torch_compile=False"):
        make_trainer(tmp_path, [PlasticityCallback()], torch_compile=True)
    with pytest.raises(TypeError, match=r"probes is a list of names"):
        PlasticityCallback("dormancy")
    with pytest.raises(TypeError, match=r"\[ReDo\(every=1000\)\], made by calling their classes"):
        PlasticityCallback(interventions=[ReDo])
    with pytest.raises(TypeError, match="mask is the name of an argument"):
        PlasticityCallback(mask=3)
    with pytest.raises(ValueError, match="at least 1"):
        PlasticityCallback(every=0)
    with pytest.raises(ValueError, match=r"replaces modules of the network.*use a method that edits weights in place"):
        make_trainer(tmp_path, [PlasticityCallback(interventions=[PlasticityInjection(at=(2,))])]).train()
    with pytest.raises(ValueError, match="layers is 'mlp', a list of globs"):
        PlasticityCallback(layers="attention")
    model = make_model()
    with pytest.raises(ValueError, match="not called with 'attention_masks'; it is with input_ids, attention_mask"):
        make_trainer(tmp_path, [PlasticityCallback(mask="attention_masks")], model, max_steps=1).train()
    make_trainer(tmp_path, [PlasticityCallback()], model, max_steps=1).train()
    with pytest.raises(TypeError, match=r"log= takes a folder"):
        PlasticityCallback(log=3)
    callback = PlasticityCallback()
    for twice in ([callback, callback], [PlasticityCallback(), PlasticityCallback(["dormancy"])]):
        with pytest.raises(ValueError, match="two PlasticityCallbacks; give one"):
            make_trainer(tmp_path, twice).train()


def test_a_training_that_raised_leaves_nothing_behind(tmp_path: Path) -> None:
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, [PlasticityCallback(), Stop()], model).train()
    callback = PlasticityCallback(every=1)
    make_trainer(tmp_path, [callback], model).train()
    assert callback.last["model"].num_passes == 1


def test_what_never_came_about_is_said_at_the_end(tmp_path: Path) -> None:
    words = (
        r"every=100 is not within the 4 optimizer steps.*pass every=1, say; redo never acted: .* 1000 gradient steps"
    )
    with pytest.warns(RuntimeWarning, match=words):
        make_trainer(tmp_path, [PlasticityCallback(interventions=[ReDo()])]).train()


def test_a_method_that_finds_no_layer_to_edit_says_why(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(make_model(), peft.LoraConfig(r=4, target_modules=["gate_proj", "up_proj"]))
    redo = ReDo(every=2, threshold=0.6)
    with pytest.warns(
        RuntimeWarning, match=r"redo never acted: .*gate_proj has an adapter, whose weights add to its own"
    ):
        make_trainer(tmp_path, [PlasticityCallback([], interventions=[redo])], model).train()


def test_a_trainer_that_evaluates_only_says_that_nothing_is_measured(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    trainer = transformers.Trainer(make_model(), args, eval_dataset=make_rows(8), callbacks=[PlasticityCallback()])
    with pytest.warns(RuntimeWarning, match=r"plasticity.measure\(model, batch\)"):
        trainer.evaluate()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        trainer.evaluate()


def test_training_twice_and_a_log_of_ones_own(tmp_path: Path) -> None:
    callback = PlasticityCallback(["dormancy"], every=2, log=tmp_path / "log")
    trainer = make_trainer(tmp_path, [callback])
    trainer.train()
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "log" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "plasticity/model/dormancy/all" in row] == [1, 3]
    assert (tmp_path / "log_2" / "metrics.jsonl").exists()
