"""The battery for probes: everything that a monitor, a training loop and a compiled update ask of one."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.agents.gradient import GradientStep
from plasticity.measuring import measure
from plasticity.monitor import Monitor
from plasticity.observing.reading import ALL, Reading
from plasticity.probes import Probe, make_probes
from plasticity.storage.folder import Checkpoints
from plasticity.watching import Watcher

from .networks import MODELS, mlp
from .runs import require_same

NAME = "probe"
Make = Callable[[], dict[str, Probe]]
STEPS, WINDOW = 5, 3


def check_probe(make: Callable[[], Probe] | Mapping[str, Callable[[], Probe]]) -> None:
    """Check the probes that ``make`` returns against their contract, on small networks of many kinds.

    ``make``: a class or function that returns a new probe; or several of them by name, which are checked together.

    Checked: no bit of outputs, gradients, buffers or random states changes; the value is the same twice, and the same
    by ``measure``, ``Monitor`` and ``Watcher``, eager and compiled; a window that is stopped and resumed from a
    checkpoint reads as one that is not; a dead layer, one sample and bfloat16 are measured; a layer of non-finite
    numbers has the value NaN; scores are one per neuron, and their fraction is in [0, 1]. Raises AssertionError with
    the first thing that is broken.
    """
    makes = make if isinstance(make, Mapping) else {NAME: make}

    def made() -> dict[str, Probe]:
        return {name: one() for name, one in makes.items()}

    try:
        make_probes(made())
    except ValueError as error:
        raise AssertionError(str(error)) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that a batch is small, for one
        for kind, build in MODELS.items():
            _check_network(made, kind, *build())
        _check_non_finite(made)
        _check_windows(made)
        _check_compiled(made)


def _loss(output: Tensor, target: Any = None) -> Tensor:
    return (output - 0.3).square().mean()


def _reading(make: Make, model: nn.Module, x: Tensor) -> Reading:
    try:
        return measure(model, (x, None), _loss, probes=make())
    except Exception as error:
        raise AssertionError(f"measuring raised {type(error).__name__}: {error}") from error


def _check_network(make: Make, kind: str, model: nn.Module, x: Tensor) -> None:
    """Check the values on one network, and that it stays as it was."""
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    reading = _reading(make, model, x)
    require_same(dict(model.state_dict()), dict(before), f"{kind}: parameters and buffers after measuring")
    require_same(torch.get_rng_state(), random, f"{kind}: the global random state after measuring")
    assert reading.values, f"{kind}: no value at all"
    _require_equal(_reading(make, model, x), reading, f"{kind}: measured twice", exact=True)
    for name, probe in make().items():
        _check_results(name, probe, kind, reading)
    _check_passes(make, kind, model, x, reading)


def _check_results(name: str, probe: Probe, kind: str, reading: Reading) -> None:
    """Check that layers have values or say why not, and what scores promise."""
    for entry in reading.unmeasured:
        assert "the probe failed" not in entry.reason, f"{kind}, layer {entry.layer}: {entry.reason}"
    if not probe.per_neuron:
        return
    for layer, scores in reading.scores[name].items():
        shape = (reading.num_neurons[layer],)
        assert tuple(scores.shape) == shape, (
            f"{kind}: scores() has shape {tuple(scores.shape)} for layer {layer}, not {shape}"
        )
        value = reading.values[name][layer]
        assert math.isnan(value) or 0 <= value <= 1, (
            f"{kind}: per_neuron, but compute() gives {value} for layer {layer}"
        )


def _check_passes(make: Make, kind: str, model: nn.Module, x: Tensor, expected: Reading) -> None:
    """Check that the passes of a training step show the same, and run to the same bits as without a monitor."""
    watched = copy.deepcopy(model)
    found = []
    with_probes = Monitor(watched, make(), passes="training", strict=True, objective=lambda: _loss(watched(x)))
    for net, monitor in ((model, None), (watched, with_probes)):
        net.eval()
        if monitor is not None:
            monitor.attach()
        state = torch.get_rng_state()
        output = net(x)
        _loss(output).backward()
        if monitor is not None:
            monitor.detach()
            _require_equal(monitor.read(), expected, f"{kind}: Monitor beside measure")
        same = torch.equal(torch.get_rng_state(), state)
        found.append([output.detach(), *(p.grad for p in net.parameters() if p.grad is not None), torch.tensor(same)])
    require_same(
        found[1], found[0], f"{kind}: outputs, gradients and random state with the probe, beside those without"
    )


def _check_non_finite(make: Make) -> None:
    """Check that a layer of non-finite numbers has no value."""
    model, x = mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan  # type: ignore[index, operator, union-attr]
        model[0].weight[1, 1] = math.inf  # type: ignore[index, operator, union-attr]
    for metric, by_layer in _reading(make, model, x).values.items():
        value = by_layer.get("0", by_layer[ALL])
        assert math.isnan(value), f"{metric} is {value} for a layer with NaN in its weights: return NaN"


def _batches() -> list[Tensor]:
    generators = [torch.Generator().manual_seed(seed) for seed in range(STEPS)]
    return [torch.randn(16, 4, generator=generator, device="cpu") for generator in generators]


def _watched(
    make: Make, model: nn.Module, optimizer: Any, window: int, objective: Callable[[], Tensor]
) -> tuple[Watcher, list[Reading]]:
    readings: list[Reading] = []
    watcher = Watcher(
        {"net": model},
        [optimizer],
        lambda network, reading, step: readings.append(reading),
        probes=make(),
        every=window,
        window=window,
        strict=True,
        objectives={"net": objective},
    )
    return watcher, readings


def _check_windows(make: Make) -> None:
    """Check that a window reads the same when training is stopped and resumed within it."""
    found = []
    for stop in (None, 2, 3):
        model, _ = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        shown: list[Tensor] = []

        def objective(model: nn.Module = model, shown: list[Tensor] = shown) -> Tensor:
            return _loss(model(shown[-1]))

        watcher, readings = _watched(make, model, optimizer, WINDOW, objective)
        for step, x in enumerate(_batches()):
            if step == stop:
                state = _saved(watcher.state_dict())
                watcher.close()
                earlier = readings
                watcher, readings = _watched(make, model, optimizer, WINDOW, objective)
                watcher.load_state_dict(state)
                readings[:0] = earlier
            optimizer.zero_grad()
            shown.append(x.to(next(model.parameters()).device))
            _loss(model(shown[-1])).backward()
            optimizer.step()
        watcher.close()
        found.append(readings)
    assert len(found[0]) == 2, f"{len(found[0])} readings, not 2, of {STEPS} steps with a window of {WINDOW}"
    for stop, readings in zip((2, 3), found[1:], strict=True):
        for number, (reading, expected) in enumerate(zip(readings, found[0], strict=True)):
            _require_equal(
                reading, expected, f"reading {number}, resumed after step {stop}, beside one without a stop", exact=True
            )


def _saved(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state as a checkpoint gives it back."""
    with TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        checkpoints.save(0, {"watcher": state})
        return checkpoints.load_latest()[1]["watcher"]


def _check_compiled(make: Make) -> None:
    """Check that a compiled update shows what an eager one does."""
    found = []
    for compile in ("off", "on"):
        model, _ = mlp()
        networks, optimizers = {"net": model}, {"net": torch.optim.SGD(model.parameters(), lr=0.1)}

        def loss(x: Tensor, model: nn.Module = model) -> tuple[Tensor, dict[str, Tensor]]:
            value = _loss(model(x))
            return value, {"loss": value}

        step = GradientStep(loss, [networks], optimizers, "net", compile=compile)  # type: ignore[arg-type]
        watcher, readings = _watched(make, model, optimizers["net"], 1, step.again)
        for x in _batches()[:2]:
            step(x.to(next(model.parameters()).device), updates=0)
        watcher.close()
        found.append(readings)
    for eager, compiled in zip(*found, strict=True):
        _require_equal(compiled, eager, "a compiled update beside an eager one")


def _require_equal(found: Reading, expected: Reading, where: str, exact: bool = False) -> None:
    """Raise AssertionError unless two readings agree; to the bit if ``exact``, else to three digits."""
    assert found.values.keys() == expected.values.keys(), f"{where}: {[*found.values]} are not {[*expected.values]}"
    for metric, by_layer in expected.values.items():
        for layer, value in by_layer.items():
            other = found.values[metric][layer]
            same = other == value if exact else math.isclose(other, value, rel_tol=1e-3, abs_tol=1e-6)
            both = math.isnan(value) and math.isnan(other)
            assert same or both, f"{where}: {metric} of layer {layer} is {other}, not {value}"
