"""Monitor: it must not disturb what it measures, and must say what it did not measure."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from test_wiring import assert_same, state_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plasticity.measuring import measure
from plasticity.monitor import Monitor
from plasticity.probes import Dormancy, Probe
from plasticity.structure.trace import wiring

pytestmark = pytest.mark.usefixtures("everywhere")

ALL_PROBES = list(reference.PROBED)


def hooks_of(model: nn.Module) -> int:
    """Return how many hooks there are on the modules and parameters of a model."""
    modules = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())
    return modules + sum(len(p._backward_hooks or ()) for p in model.parameters())


def noisy() -> nn.Module:
    """Return a net with dropout and BatchNorm and in-place activations."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 8),
        nn.Dropout(0.2), nn.ReLU(inplace=True), nn.Linear(8, 1),
    )  # fmt: skip


def step(model: nn.Module, inputs: tuple) -> Tensor:
    """Run a forward and a backward pass on some loss and return the output."""
    output = model(*inputs)
    output.square().mean().backward()
    return output.detach()


# -- non-invasive ------------------------------------------------------------------------------------------------------


def train(make: Callable, optimizer: str, passes: str | None) -> tuple[nn.Module, list[Tensor], Any]:
    """Train for 20 steps, with a monitor around each unless ``passes`` is None."""
    torch.manual_seed(0)
    model = make()
    opt = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-2)
    x, outputs = models.image(), []
    for _ in range(20):
        opt.zero_grad()
        if passes is None:
            outputs.append(step(model, (x,)))
        else:
            with Monitor(model, ALL_PROBES, passes=passes, strict=True) as monitor:
                outputs.append(step(model, (x,)))
            monitor.read()
        opt.step()
    return model, outputs, torch.get_rng_state()


@pytest.mark.parametrize("passes", ["all", "training"])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("make", [noisy, models.conv_nchw])
def test_training_is_bit_for_bit_the_same(make: Callable, optimizer: str, passes: str) -> None:
    plain, plain_outputs, plain_rng = train(make, optimizer, None)
    watched, outputs, rng = train(make, optimizer, passes)
    assert torch.equal(plain_rng, rng)
    assert all(torch.equal(a, b) for a, b in zip(plain_outputs, outputs, strict=True))
    for (name, a), b in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert hooks_of(watched) == 0


@pytest.mark.parametrize("name", models.ALL)
def test_every_network_is_left_as_it_was(name: str) -> None:
    model, inputs = models.build(name)
    model.train()
    hidden = wiring(model, *inputs).hidden
    outcomes, start = [], copy.deepcopy(model.state_dict())
    for watched in (False, True):
        torch.manual_seed(1)
        model.load_state_dict(start)
        model.zero_grad()
        monitor = Monitor(model, ALL_PROBES if inputs[0].shape[0] > 6 else ["dormancy", "grama"], strict=True)
        if watched:
            monitor.attach()
        output = model(*inputs)
        parts = [output.value, output.policy.loc] if isinstance(output, models.Out) else output
        parts = list(parts.values()) if isinstance(parts, dict) else parts if isinstance(parts, list) else [parts]
        sum(part.square().mean() for part in parts).backward()
        monitor.detach()
        outcomes.append((torch.cat([p.flatten() for p in parts]).detach(), state_of(model)))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert_same({**outcomes[0][1], "versions": 0}, {**outcomes[1][1], "versions": 0})
    assert hooks_of(model) == 0
    reading = monitor.read()
    assert list(reading.num_neurons) == [layer.name for layer in hidden]
    measured = {entry.layer for entry in reading.coverage if entry.measured and entry.probe == "dormancy"}
    assert measured == set(reading.num_neurons)
    assert not any(math.isnan(v) for v in reading.values["grama"].values())


@pytest.mark.parametrize("where", ["forward", "backward", "block", "probe"])
def test_no_hook_is_left_when_something_raises(where: str) -> None:
    model = models.mlp()

    class Broken(Dormancy):
        def on_forward(self, activations: Tensor) -> None:
            raise RuntimeError("probe")

    class Fail(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            raise RuntimeError("backward")

    def run() -> None:
        with Monitor(model, {"p": Broken() if where == "probe" else Dormancy()}, strict=True):
            model(models.vectors())
            if where == "forward":
                model(torch.zeros(2, 99))
            if where == "backward":
                Fail.apply(model(models.vectors())).sum().backward()
            raise RuntimeError("block")

    with pytest.raises(RuntimeError, match="shapes" if where == "forward" else where):
        run()
    assert hooks_of(model) == 0


def test_a_failing_pass_does_not_spoil_the_next() -> None:
    model = models.mlp()
    x = models.vectors()
    with Monitor(model, ["dormancy"]) as monitor:
        model(x)
        with pytest.raises(RuntimeError, match="shapes"):
            model(torch.zeros(2, 99))
        monitor.reset()
        model[1](5 * torch.randn(64, 6))  # outside any pass of the model
        model(x)
    for layer in ("0", "2"):
        assert torch.equal(monitor.read().scores["dormancy"][layer], measure(model, x).scores["dormancy"][layer])


def test_a_copy_made_inside_the_block_is_not_counted() -> None:
    model = models.mlp()
    x = models.vectors()
    with Monitor(model, ["dormancy", "grama", "grama_weight"]) as monitor:
        model(x)
        target = copy.deepcopy(model)
        target(5 * x).sum().backward()
        pickle.loads(pickle.dumps(target))(5 * x)
        model(x)
        pickle.loads(pickle.dumps(model))(5 * x)
    reading = monitor.read()
    assert reading.num_passes == 2
    torch.testing.assert_close(reading.scores["dormancy"]["0"], measure(model, x).scores["dormancy"]["0"])
    assert math.isnan(reading.values["grama"]["all"])


def test_the_model_is_picklable_after_detach_and_a_monitor_too() -> None:
    model = models.mlp()
    with Monitor(model) as monitor:
        step(model, (torch.randn(32, 4),))
    assert torch.equal(pickle.loads(pickle.dumps(model))[0].weight, model[0].weight)
    again = pickle.loads(pickle.dumps(monitor))
    assert again.read().values == monitor.read().values
    assert not copy.deepcopy(monitor).attached


class Token:
    """Something to see the end of."""


class Held(torch.autograd.Function):
    """An identity whose graph node keeps a token alive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Token) -> Tensor:
        """Keep the token."""
        ctx.token = token
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient on."""
        return gradient, None


@pytest.mark.slow_off_the_cpu
def test_no_graph_is_held() -> None:
    model = models.functional()
    with Monitor(model, ALL_PROBES, passes="training") as monitor:
        token = Token()
        output = model(Held.apply(torch.randn(32, 4, requires_grad=True), token))
        references = [weakref.ref(output), weakref.ref(token)]
        output.sum().backward()
        del output, token
        gc.collect()
        assert [r() for r in references] == [None, None]
        assert monitor.read().num_passes == 1


# -- modes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_activations_are_measured_without_gradients(mode: Callable) -> None:
    model, x = models.mlp().eval(), models.vectors()
    with mode(), Monitor(model, ["dormancy", "grama"]) as monitor:
        model(x)
    reading = monitor.read()
    np.testing.assert_allclose(
        reading.scores["dormancy"]["0"], reference.scores(reference.rows(F.relu(model[0](x)))), rtol=1e-5
    )
    assert {e.reason for e in reading.unmeasured if e.layer == "0"} == {"no gradient reached it"}


def test_frozen_layers() -> None:
    model, x = models.mlp(), models.vectors()
    model[0].requires_grad_(False)
    with Monitor(model, ["dormancy", "grama", "grama_weight"]) as monitor:
        step(model, (x,))
    reading = monitor.read()
    assert {e.probe: e.reason for e in reading.unmeasured if e.layer == "0"} == {
        "grama": "no gradient reached it",
        "grama_weight": "its weight is frozen",
    }
    assert not math.isnan(reading.values["grama"]["2"])
    with Monitor(model, ["grama", "grama_weight"]) as monitor:
        step(model, (x.requires_grad_(),))  # now a gradient flows through it
    reading = monitor.read()
    assert not math.isnan(reading.values["grama"]["0"])
    assert math.isnan(reading.values["grama_weight"]["0"])


def test_autocast() -> None:
    model, x = models.mlp(), torch.randn(512, 4)
    exact = measure(model, (x, None), lambda out, _: out.square().mean())
    with Monitor(model) as monitor, torch.autocast(models.place(), torch.bfloat16):
        step(model, (x,))
    for probe in ("dormancy", "grama"):
        torch.testing.assert_close(monitor.read().scores[probe]["0"], exact.scores[probe]["0"], rtol=0.1, atol=0.05)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("passes", ["all", "training"])
@pytest.mark.parametrize("whole", [False, True])
def test_checkpointing_counts_once(use_reentrant: bool, passes: str, whole: bool) -> None:
    torch.manual_seed(0)
    model = models.functional() if whole else models.checkpointed(use_reentrant)
    plain = models.functional()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(32, 4, requires_grad=True)
    with Monitor(plain, ALL_PROBES) as expected:
        step(plain, (x,))
    with Monitor(model, ALL_PROBES, passes=passes) as monitor:
        output = checkpoint(model, x, use_reentrant=use_reentrant) if whole else model(x)
        output.square().mean().backward()
    reading = monitor.read()
    assert reading.num_passes == 1
    for probe, by_layer in expected.read().scores.items():
        for layer, scores in by_layer.items():
            torch.testing.assert_close(reading.scores[probe][layer], scores)
    copies = monitor._observer.gathering.fed()
    assert copies["dormancy", "a"].num_samples("on_forward") == copies["grama", "a"].num_samples("on_backward") == 32


def test_gradient_accumulation() -> None:
    model = models.mlp().double()
    parts = [torch.randn(8, 4, dtype=torch.float64), torch.randn(24, 4, dtype=torch.float64)]
    with Monitor(model, ["dormancy", "grama", "grama_weight"], passes="training") as monitor:
        for part in parts:
            model(part).sum().backward()
    whole = Monitor(model, ["dormancy", "grama"])
    with whole:
        model(torch.cat(parts)).sum().backward()
    reading = monitor.read()
    assert reading.num_passes == 2
    for probe in ("dormancy", "grama"):
        torch.testing.assert_close(reading.scores[probe], whole.read().scores[probe])
    expected = reference.weight_scores(model[0].weight.grad)
    np.testing.assert_allclose(reading.scores["grama_weight"]["0"].numpy(), expected)


def test_the_scale_of_the_loss_cancels() -> None:
    model, x = models.mlp(), torch.randn(64, 4)
    scores = []
    for scale in (1.0, 65536.0):
        with Monitor(model, ["grama", "grama_weight", "grama_post"]) as monitor:
            (scale * model(x).square().mean()).backward()
        scores.append(monitor.read().scores)
    torch.testing.assert_close(scores[0], scores[1])


def test_a_model_that_writes_to_its_input_sees_it_once() -> None:
    model = models.Net(lambda s, x: s.b(F.relu(s.a(x.mul_(0.5)))), a=nn.Linear(4, 6), b=nn.Linear(6, 1))
    x = torch.randn(32, 4)
    expected, written = model(x.clone()), x.clone()
    with Monitor(model, ["dormancy"]):
        assert torch.equal(model(written), expected)
    assert torch.equal(written, 0.5 * x)


def test_fused_attention_does_not_hide_the_layers() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    padding = torch.tensor([[False, False, True]]).expand(8, 3)  # with it the encoder would go over to nested tensors
    net = models.Net(
        lambda s, x: s.head(s.encoder(x, src_key_padding_mask=padding)),
        encoder=nn.TransformerEncoder(layer, 2),
        head=nn.Linear(8, 2),
    )
    net.eval()
    x = torch.randn(8, 3, 8)
    with torch.no_grad():
        reading = measure(net, x, mask=~padding)
    assert list(reading.num_neurons) == [f"encoder.layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]
    first = net.encoder.layers[0]
    h = first.norm1(x + first.self_attn(x, x, x, key_padding_mask=padding)[0])
    expected = reference.scores(reference.rows(F.relu(first.linear1(h))[~padding]))
    np.testing.assert_allclose(reading.scores["dormancy"]["encoder.layers.0.linear1"], expected, rtol=1e-5)


# -- which passes count ------------------------------------------------------------------------------------------------


def test_passes_of_other_kinds_are_not_counted() -> None:
    model, x = models.mlp(), torch.randn(64, 4)
    with Monitor(model, ["dormancy"], passes="training") as monitor:
        prediction = model(x)
        model(10 * x - 5)  # acting, gradients on
        with torch.no_grad():
            model(10 * x + 5)
        with torch.inference_mode():
            model(7 * x)
        target = model(3 * x).detach()  # the next state's value by the same network
        F.mse_loss(prediction, target).backward()
    assert monitor.num_passes == 1
    assert torch.equal(monitor.read().scores["dormancy"]["0"], measure(model, x).scores["dormancy"]["0"])


@pytest.mark.parametrize("probe", ["dormancy", "grama_weight"])
def test_a_pass_is_recognised_by_its_own_gradient(probe: str) -> None:
    """Also by a probe that hooks nothing but weights, and where all that is measured is frozen."""
    model, x = models.mlp(), torch.randn(64, 4)
    if probe == "dormancy":
        model[0].requires_grad_(False)
        model[2].requires_grad_(False)
    with Monitor(model, ["dormancy", probe], passes="training") as monitor:
        prediction = model(x)
        model(10 * x - 5)
        prediction.sum().backward()
    assert monitor.num_passes == 1
    assert torch.equal(monitor.read().scores["dormancy"]["0"], measure(model, x).scores["dormancy"]["0"])


def test_inputs_of_the_last_pass_that_counted() -> None:
    model, x = models.mlp(), models.vectors()
    with Monitor(model, ["grama"], passes="training") as monitor:
        assert monitor.inputs is None
        output = model(x)
        model(-x)
        output.sum().backward()
    assert torch.equal(monitor.inputs[0][0], x)
    assert monitor.inputs[1] == {}


def test_no_data_is_an_error() -> None:
    model, x = models.mlp(), models.vectors()
    with Monitor(model) as monitor:
        model[0](x)
    with pytest.raises(RuntimeError, match=r"no data: training called parts of Sequential \(0\) and never"):
        monitor.read()
    with Monitor(model, passes="training") as monitor:
        model(x)
    with pytest.raises(RuntimeError, match="no forward pass with gradients enabled was followed by a backward"):
        monitor.coverage()


def test_two_monitors_at_once_and_nested() -> None:
    model, x = models.mlp(), torch.randn(64, 4)
    expected = measure(model, (x, None), lambda out, _: out.square().mean())
    first, second = Monitor(model, ["dormancy", "grama"]), Monitor(model, ["grama"], layers=["2"])
    with first, second:
        step(model, (x,))
        inner = measure(model, (x + 1, None), lambda out, _: out.square().mean())  # not the others' business
    assert first.num_passes == second.num_passes == 1
    torch.testing.assert_close(first.read().scores["dormancy"], expected.scores["dormancy"])
    torch.testing.assert_close(first.read().scores["grama"], expected.scores["grama"])
    torch.testing.assert_close(second.read().scores["grama"]["2"], expected.scores["grama"]["2"])
    assert not torch.equal(inner.scores["grama"]["0"], expected.scores["grama"]["0"])


def test_a_private_pass_in_the_middle_of_a_training_step() -> None:
    model, x = models.mlp(), torch.randn(64, 4)
    alone = Monitor(model, ALL_PROBES, passes="training")
    with alone:
        step(model, (x,))
    with Monitor(model, ALL_PROBES, passes="training") as monitor:
        output = model(x)
        measure(model, (x + 1, None), lambda out, _: out.square().mean(), probes=["grama", "grama_weight"])
        output.square().mean().backward()
    torch.testing.assert_close(monitor.read().scores, alone.read().scores)


def test_attach_and_detach_twice() -> None:
    model, x = models.mlp(), models.vectors()
    monitor = Monitor(model, ["dormancy"])
    for _ in range(2):
        monitor.attach()
    model(x)
    assert monitor.num_passes == 1
    for _ in range(2):
        monitor.detach()
    model(x)
    assert hooks_of(model) == 0
    monitor.attach()
    model(x)
    assert monitor.num_passes == 2
    monitor.reset()
    assert monitor.num_passes == 0


def test_gradients_that_arrive_after_the_block_are_not_counted() -> None:
    model = models.mlp()
    with Monitor(model, ["dormancy", "grama"]) as monitor:
        output = model(models.vectors())
    output.sum().backward()
    assert math.isnan(monitor.read().values["grama"]["all"])


# -- failures and refusals ---------------------------------------------------------------------------------------------


class Failing(Probe):
    """A probe that raises in a method of choice."""

    def __init__(self, where: str) -> None:
        self.where = where

    def on_forward(self, activations: Tensor) -> None:
        """Maybe raise."""
        if self.where == "on_forward":
            raise ZeroDivisionError("oh")

    def compute(self) -> Tensor:
        """Raise."""
        raise ZeroDivisionError("oh")


@pytest.mark.parametrize("where", ["on_forward", "compute"])
def test_a_failing_probe_is_switched_off(where: str) -> None:
    model, x = models.mlp(), models.vectors()
    monitor = Monitor(model, {"bad": Failing(where), "dormancy": Dormancy()})
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with monitor:
            step(model, (x,))
            step(model, (x,))
        reading = monitor.read()
        monitor.read()
    assert [str(w.message)[:31] for w in warned] == ["probe 'bad' failed and is off f"]
    assert math.isnan(reading.values["bad"]["all"])
    assert not math.isnan(reading.values["dormancy"]["all"])
    assert {e.reason for e in reading.unmeasured if e.layer == "0"} == {"the probe failed: ZeroDivisionError: oh"}


def test_a_model_that_cannot_be_traced_trains_on() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            raise NotImplementedError("no evaluation")
        return s.a(x)

    model = models.Net(forward, a=nn.Linear(4, 2))
    with warnings.catch_warnings(record=True) as warned, Monitor(model) as monitor:
        warnings.simplefilter("always")
        step(model, (models.vectors(),))
        step(model, (models.vectors(),))
    assert len(warned) == 1
    assert "could not be traced: NotImplementedError: no evaluation" in str(warned[0].message)
    assert model.a.weight.grad is not None
    with pytest.raises(RuntimeError, match="no data: the model could not be traced"):
        monitor.read()


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"unknown probe dormant; did you mean dormancy\? there are dormancy"):
        Monitor(models.mlp(), ["dormant"])
    with pytest.raises(ValueError, match=r"no layer matches q\.\*; there are 0, 2, 4"):
        Monitor(models.mlp(), layers=["q.*"])
    with pytest.raises(ValueError, match="'all' or 'training'"):
        Monitor(models.mlp(), passes="acting")


def test_layers_are_chosen_by_globs() -> None:
    model, x = models.residual(), torch.randn(64, 4)
    assert list(measure(model, x, layers=["*.up"]).num_neurons) == ["1.up", "2.up"]
    reading = measure(model, x, layers=["4"], probes=["dormancy"])  # an output layer, by name
    assert list(reading.num_neurons) == ["4"]
    assert not math.isnan(reading.values["dormancy"]["4"])
    assert {e.reason for e in reading.unmeasured if e.layer == "1.up"} == {"not selected"}


def test_an_activation_that_only_the_caller_sees() -> None:
    model = models.Net(lambda s, x: F.relu(s.a(x)), a=nn.Linear(4, 6))
    x = models.vectors()
    reading = measure(model, (x, None), lambda out, _: out.square().mean(), layers=["a"], probes=["dormancy", "grama"])
    np.testing.assert_allclose(reading.scores["dormancy"]["a"], reference.scores(reference.rows(model(x))), rtol=1e-5)
    assert not math.isnan(reading.values["grama"]["a"])


def test_a_model_that_is_one_layer() -> None:
    layer, x = nn.Linear(4, 6), models.vectors()
    scores = measure(layer, (x, None), lambda out, _: out.square().mean(), layers=["*"]).scores
    np.testing.assert_allclose(scores["dormancy"][""], reference.scores(reference.rows(layer(x))), rtol=1e-5)
    assert scores["grama"][""].mean() == pytest.approx(1)


# -- wrappers ----------------------------------------------------------------------------------------------------------


def compiled_part() -> nn.Module:
    """Return a model of which only a part is compiled."""
    model = models.mlp()
    return nn.Sequential(torch.compile(model[:2], backend="eager"), *model[2:])


def compiled_in_place() -> nn.Module:
    """Return a model compiled by its method."""
    model = models.mlp()
    model.compile(backend="eager")
    return model


@pytest.mark.on_real_devices
@pytest.mark.parametrize(
    "make", [lambda: torch.compile(models.mlp(), backend="eager"), compiled_in_place, compiled_part]
)
def test_compiled_models(make: Callable[[], nn.Module]) -> None:
    model, x = make(), torch.randn(32, 4)
    before = model(x)
    with pytest.raises(ValueError, match="cannot see inside a compiled model"):
        Monitor(model, passes="training")
    reading = measure(model, (x, None), lambda out, _: out.square().mean())
    assert len(reading.num_neurons) == 2
    assert not any(math.isnan(v) for by_layer in reading.values.values() for v in by_layer.values())
    assert not any("_orig_mod" in name for name in reading.num_neurons)
    assert torch.equal(model(x), before)


@pytest.mark.on_real_devices
def test_the_eager_module_of_a_compiled_model() -> None:
    model = torch.compile(models.mlp(), backend="eager")
    x = models.vectors()
    model(x)
    with Monitor(model, ["dormancy"]) as monitor:
        model(x)
    with pytest.raises(RuntimeError, match="no data: a compiled model runs without hooks"):
        monitor.read()
    with Monitor(model, ["dormancy"]) as monitor:
        model._orig_mod(x)
    assert monitor.read().num_passes == 1


@pytest.mark.parametrize("kind", ["DataParallel", "DistributedDataParallel"])
def test_names_inside_data_parallel_wrappers(kind: str, tmp_path: Path) -> None:
    if kind == "DataParallel":
        model: nn.Module = nn.DataParallel(models.mlp())
    else:
        store = f"file://{tmp_path}/store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        model = nn.parallel.DistributedDataParallel(models.mlp())
    try:
        with Monitor(model, ["dormancy", "grama", "grama_weight"], passes="training") as monitor:
            step(model, (models.vectors(),))
        reading = monitor.read()
        assert list(reading.num_neurons) == ["0", "2"]
        assert not any(math.isnan(v) for by_layer in reading.values.values() for v in by_layer.values())
        assert list(measure(model, torch.randn(32, 4)).num_neurons) == ["0", "2"]
    finally:
        if kind != "DataParallel":
            torch.distributed.destroy_process_group()


def test_weights_that_are_computed() -> None:
    model = models.mlp()
    nn.utils.parametrizations.weight_norm(model[0])
    with Monitor(model, ["grama", "grama_weight"]) as monitor:
        step(model, (models.vectors(),))
    reading = monitor.read()
    reasons = {e.probe: e.reason for e in reading.unmeasured if e.layer == "0"}
    assert reasons == {"grama_weight": "its weight is computed, not a parameter"}


# -- masks and probes of one's own -------------------------------------------------------------------------------------


def test_padded_tokens_do_not_count() -> None:
    model = models.functional().double()
    x = torch.randn(5, 7, 4, dtype=torch.float64)
    mask = torch.rand(5, 7) > 0.4

    def loss_of(out: Tensor, _: Any) -> Tensor:
        return out.square().sum()

    masked = measure(model, (x, None), loss_of, mask=mask)
    alone = measure(model, (x[mask], None), loss_of)
    for probe in ("dormancy", "grama"):
        torch.testing.assert_close(masked.scores[probe], alone.scores[probe])
    assert masked.values["effective_rank"] == pytest.approx(alone.values["effective_rank"])
    inplace = models.inplace().double()
    torch.testing.assert_close(
        measure(inplace, (x, None), loss_of, mask=mask).scores, measure(inplace, (x[mask], None), loss_of).scores
    )


def test_a_mask_may_change_between_passes_and_must_fit() -> None:
    model, x = models.functional(), models.sequences()
    masks = [torch.rand(4, 3) > 0.5 for _ in range(2)]
    with Monitor(model, ["dormancy"]) as monitor:
        for mask in masks:
            monitor.mask = mask
            model(x)
    expected = measure(model, torch.cat([x[mask] for mask in masks])).scores["dormancy"]
    torch.testing.assert_close(monitor.read().scores["dormancy"], expected)
    with pytest.raises(ValueError, match=r"mask of shape \(3, 4\) does not have the leading shape"):
        measure(model, x, mask=torch.ones(3, 4, dtype=torch.bool))


def test_a_pass_of_nothing_but_padding_adds_nothing() -> None:
    model, x = models.functional(), models.sequences()
    with Monitor(model, ["dormancy", "grama"], strict=True) as monitor:
        for keep in (False, True):
            monitor.mask = torch.full((4, 3), keep)
            step(model, (x,))
    with Monitor(model, ["dormancy", "grama"]) as alone:
        step(model, (x,))
    torch.testing.assert_close(monitor.read().scores, alone.read().scores)


class Mean(Probe):
    """A probe as a user might write it: the mean of everything, from two signals."""

    def reset(self) -> None:
        """Forget."""
        self.seen: list[tuple[str, Tensor]] = []

    def on_forward(self, activations: Tensor) -> None:
        """Take activations."""
        assert activations.dtype in (torch.float32, torch.float64)
        self.seen.append(("forward", activations.mean()))

    def on_backward(self, gradients: Tensor) -> None:
        """Take gradients."""
        self.seen.append(("backward", gradients.mean()))

    def compute(self) -> dict[str, Tensor]:
        """Return two numbers."""
        return {f"mean_{kind}": value for kind, value in self.seen}


def test_a_probe_of_ones_own() -> None:
    model, x = models.mlp(), torch.randn(64, 4)
    with Monitor(model, {"mine": Mean()}, strict=True), torch.autocast(models.place(), torch.bfloat16):
        step(model, (x,))
    with Monitor(model, {"mine": Mean()}, strict=True) as monitor:
        step(model, (x,))
    values = monitor.read().values
    assert set(values) == {"mean_forward", "mean_backward"}
    assert values["mean_forward"]["0"] == pytest.approx(F.relu(model[0](x)).mean().item())


def test_only_the_signals_wanted_are_hooked() -> None:
    model, x = models.mlp(), models.vectors()
    with Monitor(model, {"d": Dormancy()}):
        model(x)
        assert not any(p._backward_hooks for p in model.parameters())
        assert [hooks_of(part) for part in model] == [1] * 5  # layers tell the ways through a model apart
    with Monitor(model, ["grama_weight"]):
        model(x)
        assert [bool(m.weight._backward_hooks) for m in (model[0], model[2], model[4])] == [True, True, False]


@pytest.mark.parametrize("passes", ["all", "training"])
def test_activations_are_those_before_an_in_place_dropout(passes: str) -> None:
    model, x = (
        nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Dropout(0.9, inplace=True), nn.Linear(6, 1)),
        torch.randn(64, 4),
    )
    with Monitor(model, ["dormancy", "effective_rank"], passes=passes) as monitor:
        step(model, (x,))
    h = reference.rows(F.gelu(model[0](x)))
    np.testing.assert_allclose(monitor.read().scores["dormancy"]["0"], reference.scores(h), rtol=1e-5)
    assert monitor.read().values["effective_rank"]["0"] == pytest.approx(reference.ranks(h)["effective_rank"], rel=1e-4)


def test_weights_outside_linear_and_convolution_layers_are_named() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.cell, self.last = nn.Linear(3, 4), nn.GRU(4, 5, batch_first=True), nn.Linear(5, 2)
            self.mix = nn.Parameter(torch.eye(5))
            self.scale = nn.Parameter(torch.ones(5))  # a vector has no neurons of its own

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.cell(self.first(x).relu())[0] @ self.mix * self.scale)

    with Monitor(Mixed(), ["dormancy"]) as monitor:
        monitor.model(torch.randn(8, 6, 3))
    reasons = {entry.layer: entry.reason for entry in monitor.read().unmeasured}
    assert reasons["cell"].startswith("GRU: weight_ih_l0, weight_hh_l0 belong to no Linear or convolution")
    assert reasons["(model)"].startswith("Mixed: mix belong")
    assert monitor.read().values["dormancy"]["first"] >= 0
