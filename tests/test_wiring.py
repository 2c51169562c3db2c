"""Wiring: what is said about a model must be what perturbing its neurons shows."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import models
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import plasticity
from plasticity.isolation import undisturbed
from plasticity.structure.trace import NORM_MODULES, neuron_axis, wiring

pytestmark = pytest.mark.usefixtures("everywhere")

MIXING = ("transformer", "lstm")
"""Models in which neurons are mixed on the way to a consumer, so that columns can only be a part of the truth."""


def first_input(args: tuple, kwargs: dict) -> Tensor:
    """Return the tensor a layer was called with."""
    return next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))


class Perturbed:
    """Run a model with the outputs of all weight layers pinned to a first run, except for one neuron of one layer."""

    def __init__(self, model: nn.Module, inputs: tuple) -> None:
        self.model, self.inputs = model, inputs
        self.layers = {n: m for n, m in model.named_modules() if neuron_axis(m) is not None}
        self.pinned: dict[tuple[str, int], Tensor] = {}
        self.clean = self.run(None, 0)

    def run(self, producer: str | None, neuron: int) -> dict[str, list[Tensor]]:
        """Return what every weight layer received, call by call."""
        received: dict[str, list[Tensor]] = defaultdict(list)
        calls: dict[str, int] = defaultdict(int)

        def enter(name: str) -> Any:
            return lambda m, args, kwargs: received[name].append(first_input(args, kwargs).detach().clone())

        def leave(name: str) -> Any:
            def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
                call = calls[name]
                calls[name] += 1
                out = self.pinned.setdefault((name, call), output.detach().clone()).clone()
                if name == producer:
                    part = out.select(neuron_axis(module), neuron)
                    part += 100 * models.normal(*part.shape, seed=call)
                return out

            return hook

        handles = []
        for name, module in self.model.named_modules():
            if name in self.layers:
                handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
                handles.append(module.register_forward_hook(leave(name)))
            elif isinstance(module, NORM_MODULES):  # a norm mixes by its statistics: look through it
                handles.append(module.register_forward_hook(lambda m, args, out: args[0].clone()))
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            self.model(*self.inputs)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for handle in handles:
                handle.remove()
        return received

    def changes(self, producer: str) -> dict[str, set[tuple[int, int]]]:
        """Return consumer -> {(neuron, input column)} that moved with the neuron."""
        found: dict[str, set[tuple[int, int]]] = defaultdict(set)
        for neuron in range(getattr(self.layers[producer], "out_features", 0) or self.layers[producer].out_channels):
            for name, tensors in self.run(producer, neuron).items():
                axis = neuron_axis(self.layers[name])
                for before, after in zip(self.clean[name], tensors, strict=True):
                    moved = (before != after).movedim(axis, -1).flatten(0, -2).any(0)
                    found[name] |= {(neuron, j) for j in moved.nonzero().flatten().tolist()}
        return found


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # pinning cuts the graph
@pytest.mark.parametrize("name", models.ALL)
def test_consumers_are_those_that_perturbing_a_neuron_moves(name: str) -> None:
    model, inputs = models.build(name)
    model.eval()
    wired = wiring(model, *inputs)
    brute = Perturbed(model, inputs)
    for layer in wired.layers.values():
        said: dict[str, set[tuple[int, int]]] = defaultdict(set)
        for consumer in layer.consumers:
            said[consumer.layer] |= {(n, j) for j, n in enumerate(consumer.columns.tolist()) if n >= 0}
        moved = brute.changes(layer.name)
        unresolved = " ".join(layer.unresolved)
        for consumer_name in set(said) | set(moved):
            if name in MIXING and f"before {consumer_name}" in unresolved:
                assert said[consumer_name] <= moved[consumer_name]
            else:
                assert said[consumer_name] == moved[consumer_name], f"{layer.name} -> {consumer_name}"


def wired(name: str) -> Any:
    """Return the wiring of a model of the collection."""
    model, inputs = models.build(name)
    return wiring(model, *inputs)


def outputs(name: str) -> list[str]:
    """Return the names of the output layers of a model of the collection."""
    return [layer.name for layer in wired(name).layers.values() if layer.is_output]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", ["4"]),
        ("odd order", ["layers.1"]),
        ("two heads", ["mean", "log_std"]),
        ("to distribution", ["value", "mean"]),
        ("conv unbatched", ["2"]),
        ("residual", ["4"]),
        ("transformer", ["2"]),
        ("lstm", ["b"]),
        ("unused", ["c"]),
        ("critic", ["c"]),
    ],
)
def test_output_layers(name: str, expected: list[str]) -> None:
    assert outputs(name) == expected


@pytest.mark.parametrize(
    ("name", "writers"),
    [
        ("residual", ["0", "1.down", "2.down"]),
        ("residual without norm", ["0", "1.down", "2.down"]),
        ("transformer", ["0", "1.layers.0.linear2", "1.layers.1.linear2"]),
        ("mlp", []),
        ("norm after", []),
        ("swiglu", []),
    ],
)
def test_writers_to_a_residual_stream_are_flagged(name: str, writers: list[str]) -> None:
    assert [layer.name for layer in wired(name).layers.values() if layer.writes_to_stream] == writers


@pytest.mark.parametrize(
    ("name", "layer", "norm"),
    [
        ("norm before", "0", "1"),
        ("rms norm before", "0", "1"),
        ("batch norm before", "0", "1"),
        ("norm after", "3", "5"),
        ("batchnorm conv", "0", "1"),
        ("residual", "0", "1.norm"),
    ],
)
def test_norm_entries_belong_to_single_neurons(name: str, layer: str, norm: str) -> None:
    found = wired(name).layers[layer]
    assert [n.module for n in found.norms] == [norm]
    assert found.norms[0].entries.tolist() == list(range(found.num_neurons))


def test_the_norm_behind_a_flatten_has_an_entry_per_position() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1))
    assert wiring(model, torch.randn(3, 1, 3, 3)).layers["0"].norms[0].entries.tolist() == [0] * 4 + [1] * 4


def test_gates_are_flagged() -> None:
    assert all(c.product for c in wired("glu").layers["0"].consumers)
    assert [c.product for n in "ab" for c in wired("swiglu").layers[n].consumers] == [True, True]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", ["relu", "relu", None]),
        ("inplace 3d", ["relu", "relu", None]),
        ("rms norm before", ["relu", None]),
        ("swiglu", ["silu", None, None]),
        ("residual", [None, "relu", None, "relu", None, None]),
    ],
)
def test_activations_are_named(name: str, expected: list[str | None]) -> None:
    assert [layer.activation for layer in wired(name).layers.values()] == expected


def test_the_square_in_a_functional_norm_is_no_activation() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        return s.b(x.mean(-1, keepdim=True) + h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6))

    layer = wiring(models.Net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2)), models.vectors()).layers["a"]
    assert layer.activation is None
    assert not layer.sites[0].replay


@pytest.mark.parametrize("after", [False, True])
def test_a_norm_written_by_hand_is_a_norm(after: bool) -> None:
    def norm(h: Tensor) -> Tensor:
        h = h - h.mean(-1, keepdim=True)
        return h / h.std(-1, keepdim=True)

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.b(norm(F.relu(s.a(x))) if after else F.relu(norm(s.a(x))))

    layer = wiring(models.Net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2)), models.vectors()).layers["a"]
    (consumer,) = layer.consumers
    assert (consumer.summed, consumer.product) == (False, False)
    assert consumer.columns.tolist() == list(range(6))
    assert layer.activation == "relu"
    assert [site.module for site in layer.sites] == (["a"] if after else ["b"])
    assert bool(layer.sites[0].replay) == after  # behind the norm a dead neuron no longer shows


def test_a_square_is_an_activation() -> None:
    net = models.Net(lambda s, x: s.b((h := s.a(x)) * h), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    layer = wiring(net, models.vectors()).layers["a"]
    assert layer.activation == "mul"
    assert [site.module for site in layer.sites] == ["b"]


@pytest.mark.parametrize("atoms", ["product", "matmul"])
def test_the_head_of_a_distributional_critic_is_an_output(atoms: str) -> None:
    support = torch.linspace(-1, 1, 5)

    def forward(s: Any, x: Tensor) -> Tensor:
        p = s.b(F.relu(s.a(x))).softmax(-1)
        return (p * support).sum(-1) if atoms == "product" else p @ support[:, None]

    found = wiring(models.Net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 5)), models.vectors())
    assert [layer.name for layer in found.layers.values() if layer.is_output] == ["b"]


def test_the_streams_of_a_dueling_network_are_outputs() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = F.relu(s.a(x))
        advantage = s.adv(h)
        return s.value(h) + advantage - advantage.mean(-1, keepdim=True)

    net = models.Net(forward, a=nn.Linear(4, 6), adv=nn.Linear(6, 3), value=nn.Linear(6, 1))
    assert [la.name for la in wiring(net, models.vectors()).hidden] == ["a"]


def test_a_layer_that_feeds_a_weight_of_no_known_layer_is_hidden_and_says_so() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 6))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight)

    layer = wiring(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Noisy()), models.vectors()).layers["0"]
    assert layer.is_hidden
    assert layer.unresolved == ["feeds mm with weights of no Linear or Conv layer"]


def test_what_attention_and_recurrence_mix_is_named() -> None:
    assert "mixed by" in " ".join(wired("transformer").layers["0"].unresolved)
    kernel = "mkldnn_rnn_layer" if models.place() == "cpu" else ""
    assert f"mixed by {kernel}" in " ".join(wired("lstm").layers["a"].unresolved)
    assert "never called" in wired("transformer").layers["1.layers.0.self_attn.out_proj"].remarks
    assert "never called" in str(wired("unused"))


def test_every_call_of_a_layer_has_a_site() -> None:
    assert [s.event for s in wired("unused").layers["b"].sites] == [("b", "input"), ("c", "input")]


@pytest.mark.parametrize("inside", ["no_grad", "inference", "autocast", "frozen", "float64"])
def test_the_mode_of_the_caller_does_not_matter(inside: str) -> None:
    model, inputs = models.build("conv nchw")
    expected = str(wiring(model, *inputs))
    contexts = {"no_grad": torch.no_grad(), "inference": torch.inference_mode()}
    contexts["autocast"] = torch.autocast(models.place(), torch.bfloat16)
    if inside == "frozen":
        model.requires_grad_(False)
    if inside == "float64":
        model.double()
        inputs = (inputs[0].double(),)
    with contexts.get(inside, torch.enable_grad()):
        assert str(wiring(model, *inputs)) == expected


def test_writing_part_of_a_tensor_is_named_not_guessed() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        h[:, :3] = s.b(x)
        return s.c(F.relu(h))

    net = models.Net(forward, a=nn.Linear(4, 6), b=nn.Linear(4, 3), c=nn.Linear(6, 2))
    found = wiring(net, models.vectors())
    assert all("on a part of it" in " ".join(found.layers[n].unresolved) for n in "ab")


def test_tracing_leaves_no_trace() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        random.random(), np.random.rand()
        return s.net(F.dropout(x, 0.5)) + torch.rand(())

    parts = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Linear(6, 2))
    model = models.Net(forward, net=parts)
    model.net[1].eval()
    x = models.vectors()
    model(x).sum().backward()
    before = state_of(model)
    wiring(model, x)
    assert_same(before, state_of(model))
    with pytest.raises(RuntimeError, match="shapes"):
        wiring(model, torch.zeros(16, 5))
    assert_same(before, state_of(model))


def test_buffers_that_a_forward_moves_are_put_back() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        s.count += 1
        s.mean = 0.9 * s.mean + 0.1 * x.mean(0)  # replaced, not written to
        return s.a(x - s.mean)

    model = models.Net(forward, a=nn.Linear(4, 2))
    model.register_buffer("count", torch.zeros(()))
    model.register_buffer("mean", torch.zeros(4))
    buffer = model.mean
    wiring(model, models.vectors())
    assert model.count == 0
    assert model.mean is buffer
    assert not model.mean.any()


def resize_(buffer: Tensor, x: Tensor) -> None:
    buffer.resize_(len(x)).copy_(x[:, 0].detach())


@pytest.mark.on_cpu
@pytest.mark.parametrize(
    ("buffer", "move"),
    [
        (torch.zeros(0), resize_),
        (torch.eye(16).to_sparse(), lambda buffer, x: buffer.mul_(2)),
        (torch.eye(16).to_sparse(), lambda buffer, x: None),
        (torch.zeros(3, device="meta"), lambda buffer, x: None),
        (torch.tensor([torch.nan, torch.inf]), lambda buffer, x: buffer.neg_()),
        (torch.zeros(3, dtype=torch.complex64), lambda buffer, x: buffer.add_(1j)),
    ],
    ids=["resized", "sparse", "sparse stays", "meta", "not finite", "complex"],
)
def test_buffers_of_every_kind_are_put_back(buffer: Tensor, move: Any) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        move(s.buffer, x)
        return s.b(F.relu(s.a(x)))

    model, then = models.Net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2)), buffer.clone()
    model.register_buffer("buffer", mine := buffer.clone())
    assert plasticity.measure(model, models.vectors(), probes=["dormancy"]).scores["dormancy"]["a"].shape == (6,)
    assert model.buffer is mine
    assert mine.shape == then.shape
    if not mine.is_meta:
        assert torch.equal(mine.to_dense().nan_to_num(), then.to_dense().nan_to_num())


def test_buffers_that_a_forward_makes_are_gone() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        s.cache = x.detach()
        s.register_buffer("other", x.detach())
        return s.a(x)

    model = models.Net(forward, a=nn.Linear(4, 2))
    model.register_buffer("cache", None)
    wiring(model, models.vectors())
    assert model._buffers == {"cache": None}


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return everything that running a model could move."""
    return {
        "tensors": {k: v.clone() for k, v in model.state_dict().items()},
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "versions": [t._version for t in (*model.parameters(), *model.buffers())],
        "flags": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "grad mode": torch.is_grad_enabled(),
    }


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Compare two states bit for bit."""
    torch.testing.assert_close(a["tensors"], b["tensors"], rtol=0, atol=0)
    assert torch.equal(a["torch"], b["torch"])
    for x, y in zip(a["grads"], b["grads"], strict=True):
        assert (x is None) == (y is None)
        assert x is None or torch.equal(x, y)
    for key in ("versions", "flags", "hooks", "python", "numpy", "fast path", "grad mode"):
        assert a[key] == b[key], key


@pytest.mark.on_cpu
def test_deep_residual_nets_are_traced() -> None:
    model = models.residual(depth=30, width=32)
    assert len(wiring(model, torch.randn(16, 4)).layers["0"].consumers) == 31


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_isolation_keeps_the_gradient_mode(mode: Any) -> None:
    model = models.mlp()
    with mode(), undisturbed(model, owner=None):
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
    with torch.inference_mode(), undisturbed(model, owner=None):
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="Identity has none"):
        wiring(nn.Identity(), torch.randn(2))
    with pytest.raises(ValueError, match="empty batch"):
        wiring(models.mlp(), torch.randn(0, 4))


def test_producers_are_the_mirror_of_consumers() -> None:
    found = wired("residual")
    assert [p.name for p, _ in found.producers("2.up")] == ["0", "1.down"]


def test_a_model_without_numbers_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="Sequential has no numbers: its device is meta"):
        wiring(model, torch.randn(4, 4))
