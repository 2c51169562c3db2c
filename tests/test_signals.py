"""Signals and sums of probes: what arrives, which probes are refused, and sums that go wrong."""

from __future__ import annotations

import copy
import math
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from plasticity.measuring import measure
from plasticity.monitor import Monitor
from plasticity.probes import Dormancy, Probe, make_probes
from plasticity.watching import watch

pytestmark = pytest.mark.usefixtures("everywhere")

# -- refused before they are attached ----------------------------------------------------------------------------------


class Valued(Probe):
    """A probe with a result, and whatever a test adds."""

    def compute(self) -> Tensor:
        return torch.zeros(())


def take(self: Probe, rows: Tensor) -> None:
    """A signal's method."""


def made(*bases: type, **members: Any) -> Probe:
    """Return a probe of a class with these members."""
    return type("P", bases or (Valued,), members)()


UNUSABLE: dict[str, tuple[Any, str]] = {
    "misspelt": (made(on_foward=take), r"has on_foward, which is no signal; did you mean on_forward"),
    "misspelt beside a right one": (made(on_forward=take, on_weights=take), r"on_weights, which is no.* on_weight\?"),
    "unlike any": (made(on_fire=take, on_forward=take), r"on_fire, .*there are on_forward, on_p"),
    "misspelt sum": (made(sums=lambda self: {"on_backwards": torch.sum}), r"on_backward\?"),
    "no function": (made(sums=lambda self: {"on_forward": "mean"}), r"no function for on_forward"),
    "no signal": (Valued(), r"probe 'bad' \(Valued\) uses no signal: .* override one of on_forward"),
    "a class": (Dormancy, r"is the class Dormancy; pass an instance, Dormancy\(\)"),
    "no probe": (torch.mean, r"is of type builtin_function_or_method; pass an instance of plasticity.Probe"),
    "no result": (made(Probe, on_forward=take), r"has no compute\(\)"),
    "no scores": (made(on_forward=take, per_neuron=True), r"per_neuron and has no scores"),
    "of 0.1.0": (made(Dormancy, reduce=lambda self, signal, rows: rows), r"overrides reduce\(\), which sums"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_probe_that_could_not_measure_is_refused(name: str) -> None:
    probe, message = UNUSABLE[name]
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with pytest.raises(ValueError, match=message):
        Monitor(model, {"bad": probe})
    with pytest.raises(ValueError, match=message):
        watch(model, torch.optim.SGD(model.parameters()), probes={"bad": probe}, log=None)
    with pytest.raises(ValueError, match=message):
        measure(model, torch.zeros(4, 2), probes={"bad": probe})


def test_an_attribute_of_the_object_is_no_signal() -> None:
    probe = Dormancy()
    probe.on_forward = print
    with pytest.raises(ValueError, match="as an attribute of the object; write it as a method"):
        make_probes({"bad": probe})


def test_probes_in_a_list_need_names() -> None:
    for probes in ([Dormancy()], Dormancy(), [Dormancy]):
        with pytest.raises(ValueError, match=r"names or a mapping from names to probes, \{'mine': Dormancy\(\)\}"):
            make_probes(probes)
    assert list(make_probes("dormancy")) == ["dormancy"]


# -- the signals -------------------------------------------------------------------------------------------------------


class Signals(Probe):
    """Sums of two signals, rows of a third, and a weight: one number for each."""

    def sums(self) -> dict[str, Any]:
        return {
            "on_preactivation": lambda z: z.sum(0),
            "on_forward": lambda h: torch.stack([h.sum(0), h.square().sum(0)]),
        }

    def reset(self) -> None:
        super().reset()
        self.weights: list[Tensor] = []

    def on_weight(self, weight: Tensor) -> None:
        self.weights.append(weight.clone())

    def compute(self) -> dict[str, Tensor]:
        mean, square = self.total("on_forward") / self.num_samples("on_forward")
        z = self.total("on_preactivation") / self.num_samples("on_preactivation")
        (weight,) = self.weights
        return {"z": z.sum(), "mean": mean.sum(), "square": square.sum(), "norm": weight.double().norm()}


def expected_signals(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Return what ``Signals`` says of layer 0."""
    z = model[0](x).detach().double()
    h = z.relu()
    numbers = {"z": z.mean(0).sum(), "mean": h.mean(0).sum(), "square": h.square().mean(0).sum()}
    return {name: float(v) for name, v in (numbers | {"norm": model[0].weight.detach().double().norm()}).items()}


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 1)
    )


def test_preactivations_weights_and_several_sums_of_one_signal() -> None:
    model, x = small(), torch.randn(8, 3)
    found = measure(model, x, probes={"signals": Signals()}).values
    assert {name: by_layer["0"] for name, by_layer in found.items()} == pytest.approx(expected_signals(model, x))
    with Monitor(model, {"signals": Signals()}, passes="training") as monitor:
        for part in x.split(3):
            model(part).sum().backward()
    for _ in range(2):  # a weight is looked at once per reading
        values = monitor.read().values
        assert {name: by_layer["0"] for name, by_layer in values.items()} == pytest.approx(expected_signals(model, x))


@pytest.mark.parametrize(
    "module", [nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(2, 4, 3), nn.Conv2d(2, 4, 3, groups=2)], ids=str
)
def test_preactivations_and_weights_of_convolutions(module: nn.Module) -> None:
    module = copy.deepcopy(module)
    model = nn.Sequential(module, nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 1, 1)).to(torch.get_default_device())
    x = torch.randn(5, 2, 6, 6)
    values = measure(model, x, probes={"signals": Signals()}).values
    assert values["z"]["0"] == pytest.approx(model[0](x).mean((0, 2, 3)).sum().item(), rel=1e-5)
    assert values["norm"]["0"] == pytest.approx(model[0].weight.norm().item(), rel=1e-6)


def test_the_weight_of_a_watched_network_is_that_after_the_step() -> None:
    model, x, found, expected = small(), torch.randn(8, 3), [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with watch(model, optimizer, every=2, window=2, probes={"signals": Signals()}, log=None, strict=True) as session:
        for _ in range(5):
            model(x).square().mean().backward()
            optimizer.step()
            if session.last and session.last["model"] not in found:
                found.append(session.last["model"])
                expected.append(float(model[0].weight.detach().double().norm()))
    assert [reading.values["norm"]["0"] for reading in found] == pytest.approx(expected)
    assert len({*expected}) == 3


def test_the_weight_of_a_parametrised_layer_is_what_it_computes_with() -> None:
    model = small()
    parametrizations.spectral_norm(model[0])
    model.train()
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    with Monitor(model, {"signals": Signals()}) as monitor, torch.no_grad():
        model.eval()(torch.randn(8, 3))
    model.train()
    norm = monitor.read().values["norm"]["0"]
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert norm == pytest.approx(model.eval()[0].weight.norm().item())


def test_a_layer_has_a_value_once_every_signal_has_arrived() -> None:
    class Both(Valued):
        def sums(self) -> dict[str, Any]:
            return {"on_forward": lambda h: h.sum(), "on_backward": lambda g: g.sum()}

        def compute(self) -> Tensor:
            return self.total("on_forward") / self.num_samples("on_backward")

    model, x = small(), torch.randn(8, 3)
    reading = measure(model, x, probes={"both": Both(), "dormancy": Dormancy()})
    assert all(math.isnan(value) for value in reading.values["both"].values())
    assert {e.reason for e in reading.unmeasured if e.probe == "both" and e.layer != "4"} == {"no gradient reached it"}
    assert not math.isnan(reading.values["dormancy"]["0"])
    assert not math.isnan(
        measure(model, (x, None), lambda out, _: out.sum(), probes={"both": Both()}).values["both"]["0"]
    )


class Wrong(Valued):
    """A probe whose sums, or result, are not what they should be."""

    def __init__(self, summand: Any) -> None:
        self.summand = summand

    def sums(self) -> dict[str, Any]:
        return {"on_forward": self.summand}

    def compute(self) -> Tensor:
        return self.total("on_forward")


@pytest.mark.parametrize("summand", [lambda h: h[h > 0], lambda h: 1.0], ids=["shape", "type"])
def test_a_sum_that_cannot_be_added_switches_its_probe_off_alone(summand: Any) -> None:
    model = small()
    monitor = Monitor(model, {"wrong": Wrong(summand), "dormancy": Dormancy()})

    def run() -> None:
        with monitor:
            for seed in range(70):
                model(models.normal(8, 3, seed=seed))

    with pytest.warns(RuntimeWarning, match="'wrong' failed"):
        run()
    reading = monitor.read()
    assert math.isnan(reading.values["wrong"]["0"])
    assert monitor._observer.gathering.fed()["dormancy", "0"].num_samples("on_forward") == 70 * 8
    assert reading.num_passes == 70


def test_a_result_of_many_numbers_switches_its_probe_off_alone() -> None:
    with Monitor(small(), {"wrong": Wrong(lambda h: h.sum(0)), "dormancy": Dormancy()}) as monitor:
        monitor.model(torch.randn(8, 3))
    with pytest.warns(RuntimeWarning, match="0-D tensors, got shape"):
        reading = monitor.read()
    assert math.isnan(reading.values["wrong"]["0"])
    assert not math.isnan(reading.values["dormancy"]["0"])


def test_sums_do_not_share_memory_with_what_a_model_overwrites() -> None:
    class First(Valued):
        def sums(self) -> dict[str, Any]:
            return {"on_preactivation": lambda z: z[0]}

        def compute(self) -> Tensor:
            return self.total("on_preactivation").sum()

    model, x = small(), torch.randn(8, 3)
    with Monitor(model, {"first": First()}, passes="training") as monitor:
        model(x).sum().backward()  # the activation in place overwrites z
    assert monitor.read().values["first"]["0"] == pytest.approx(model[0](x)[0].sum().item(), rel=1e-5)
