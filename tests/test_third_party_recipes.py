"""Recipes of the documentation for loops without a callback: each block runs, and its numbers are those of numpy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from test_readme import blocks, namespace
from torch import nn

import plasticity

os.environ.setdefault("KERAS_BACKEND", "torch")
PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "ignore:.*:UserWarning", "ignore::FutureWarning")


def recipe(package: str) -> dict[str, Any]:
    """Run the block of a package; return its names."""
    pytest.importorskip(package)
    (block,) = [text for text in blocks(PAGE, "python") if f"import {package}\n" in text or f"from {package} " in text]
    names = namespace()
    exec(compile(block, f"{PAGE.name}: {package}", "exec"), names)
    return names


def hidden_layers(net: nn.Sequential, inputs: torch.Tensor) -> dict[str, np.ndarray]:
    """Return the activations of the hidden layers of an MLP, computed in numpy from its weights."""
    h, found = inputs.double().numpy(), {}
    for index in (0, 2):
        w, b = net[index].weight.detach().double().numpy(), net[index].bias.detach().double().numpy()
        h = np.maximum(h @ w.T + b, 0)
        found[str(index)] = h
    return found


def test_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    names = recipe("accelerate")
    reading = names["session"].last["model"]
    assert reading.num_passes == 2, "both passes that were accumulated"
    assert names["session"].watcher.steps() == [2]
    model, optimizer = names["model"], names["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    with plasticity.watch(model, optimizer, every=1, log=None) as session:
        for _ in range(2):
            with names["accelerator"].accumulate(model):
                names["accelerator"].backward(names["loss_fn"](model(names["inputs"]), names["targets"]))
                optimizer.step()
    for layer, h in hidden_layers(model, names["inputs"]).items():
        found = session.last["model"].scores["dormancy"][layer].numpy()
        np.testing.assert_allclose(found, reference.scores(h), rtol=1e-5)


def test_accelerate_trains_to_the_same_bits() -> None:
    accelerate = pytest.importorskip("accelerate")
    finals = []
    for watched in (False, True):
        names = namespace()
        accelerate.state.AcceleratorState._reset_state(True)
        accelerator = accelerate.Accelerator(gradient_accumulation_steps=2, cpu=True, mixed_precision="bf16")
        model, optimizer = accelerator.prepare(names["model"], names["optimizer"])
        session = plasticity.watch(model, optimizer, every=1, log=None) if watched else None
        for _ in range(4):
            with accelerator.accumulate(model):
                accelerator.backward(names["loss_fn"](model(names["inputs"]), names["targets"]))
                optimizer.step()
                optimizer.zero_grad()
        if session is not None:
            session.close()
            assert session.last["model"].num_passes == 2
        finals.append(dict(names["model"].state_dict()))
    torch.testing.assert_close(*finals, rtol=0, atol=0)


def test_keras() -> None:
    names = recipe("keras")
    reading, network, inputs = names["watching"].reading, names["network"], names["inputs"]
    twin = names["torch_twin"](network)
    np.testing.assert_allclose(
        twin(inputs).detach().numpy(), network.predict(inputs.numpy(), verbose=0), rtol=1e-4, atol=1e-5
    )
    for layer, h in hidden_layers(twin, inputs).items():
        np.testing.assert_allclose(reading.scores["dormancy"][layer].numpy(), reference.scores(h), rtol=1e-5)
        rank = reference.ranks(h)["effective_rank"]
        assert reading.values["effective_rank"][layer] == pytest.approx(rank, rel=1e-4)
    with torch.no_grad():
        twin[0].weight[3] = 7.0
    assert (np.array(network.layers[0].kernel)[:, 3] == 7.0).all(), "the weights are shared"


def test_keras_with_a_body_of_torch() -> None:
    keras = pytest.importorskip("keras")
    names = namespace()
    body = names["model"]
    network = keras.Sequential([keras.Input((8,)), keras.layers.TorchModuleWrapper(body, output_shape=(None, 1))])
    with plasticity.watch(body, names["optimizer"], every=1, log=None) as session:
        for _ in range(2):
            names["optimizer"].zero_grad()
            names["loss_fn"](network(names["inputs"]), names["targets"]).backward()
            names["optimizer"].step()
    assert session.last["model"].num_passes == 1
