"""Faults of measuring and editing that no other file covers: several processes, threads, modules of every kind."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plasticity.callback import Context
from plasticity.interventions import INTERVENTIONS
from plasticity.measuring import measure
from plasticity.monitor import Monitor
from plasticity.probes import Dormancy, inactive_fraction
from plasticity.structure.trace import wiring
from plasticity.surgery.initialisers import default_initialiser
from plasticity.surgery.recycle import recycle_
from plasticity.watching import watch

pytestmark = pytest.mark.usefixtures("everywhere")

# -- several processes -------------------------------------------------------------------------------------------------

RANKS = """
import json, os, sys
import torch
import torch.distributed as dist
from torch import nn
from plasticity import Context, Monitor
from plasticity.interventions import INTERVENTIONS

folder, other = sys.argv[1], os.fork()
rank = 1 if other else 0
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 1))

x = torch.randn(7, 64, 4, generator=torch.Generator().manual_seed(1)).cumsum(1)  # shares that are not alike
share = x[:, 32 * rank : 32 * (rank + 1)]
found = {}
for name, processes in (("whole", "all"), ("own", "own")):
    ddp = nn.parallel.DistributedDataParallel(network())
    probes = ["dormancy", "grama", "grama_weight"]
    with Monitor(ddp, probes, passes="training", processes=processes) as monitor:
        for part in share[0].split(16):
            ddp(part).square().mean().backward()
    for read in range(2):  # reading changes nothing
        reading = monitor.read()
    found[name] = {p: {la: s.tolist() for la, s in by.items()} for p, by in reading.scores.items()}
    found[name]["fractions"] = reading.values["dormancy"]
for name, options in json.loads(sys.argv[2]).items():
    ddp, rows = nn.parallel.DistributedDataParallel(network()), []
    optimizer = torch.optim.Adam(ddp.parameters(), lr=1e-2)
    ctx = Context({"net": ddp}, {"net": optimizer})
    ctx.event = lambda event, details: rows.append([event, details.get("neurons")])
    method = INTERVENTIONS[name](**options)
    method.on_train_start(ctx)
    for batch in share:
        optimizer.zero_grad()
        ddp(batch).square().mean().backward()
        optimizer.step()
    method.on_train_end(ctx)
    moments = [t for s in optimizer.state.values() for t in s.values()]
    found[name] = {"events": rows, "parameters": [t.tolist() for t in [*ddp.parameters(), *moments]]}
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(found, file)
dist.destroy_process_group()
if other:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
"""
METHODS = {
    "redo": {"every": 3, "threshold": 0.5},
    "regrama": {"every": 3, "threshold": 0.3},
    "reset": {"every": 3},
    "shrink_perturb": {"every": 3},
}


def whole_batch() -> dict[str, Any]:
    """Return the scores of one process that has the whole batch, from the model and the data of ``RANKS``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 1))
    x = torch.randn(7, 64, 4, generator=torch.Generator().manual_seed(1)).cumsum(1)[0]
    with Monitor(model, ["dormancy", "grama", "grama_weight"], passes="training") as monitor:
        model(x).square().mean().backward()
    reading = monitor.read()
    return {**reading.scores, "fractions": reading.values["dormancy"]}


@pytest.mark.on_cpu
@pytest.mark.slow
def test_two_processes_score_the_whole_batch_and_stay_equal(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RANKS, str(tmp_path), json.dumps(METHODS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0]["whole"] == ranks[1]["whole"]
    assert ranks[0]["own"] != ranks[1]["own"]
    expected = whole_batch()
    assert ranks[0]["whole"]["fractions"] == expected.pop("fractions")
    for probe, by_layer in expected.items():
        for layer, scores in by_layer.items():
            torch.testing.assert_close(torch.tensor(ranks[0]["whole"][probe][layer]), scores.float())
    for name in METHODS:
        assert ranks[0][name]["parameters"] == ranks[1][name]["parameters"], name
        assert ranks[0][name]["events"] == ranks[1][name]["events"] != [], name
    assert any(neurons for _, by_layer in ranks[0]["redo"]["events"] for neurons in by_layer.values())


WATCHED = """
import json, os, sys, warnings
import torch
import torch.distributed as dist
from torch import nn
import plasticity
from plasticity.observing import distributed

folder, other = sys.argv[1], os.fork()
rank = 1 if other else 0
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
data = torch.randn(5, 64, 4, generator=torch.Generator().manual_seed(1)).cumsum(1)[:, 32 * rank : 32 * (rank + 1)]

def train(watched, patience=40.0, **options):
    distributed.PATIENCE = patience
    torch.manual_seed(0)
    ddp = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1)))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-2)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        session = plasticity.watch(ddp, optimizer, every=2, log=None, **options) if rank in watched else None
        for batch in data:
            optimizer.zero_grad()
            ddp(batch).square().mean().backward()
            optimizer.step()
    readings = {} if session is None else session.last
    return {
        "scores": {n: r.scores["dormancy"]["0"].tolist() for n, r in readings.items()},
        "warnings": [str(w.message) for w in seen],
        "parameters": [p.tolist() for p in ddp.parameters()],
    }

probes = ["dormancy"]
found = {
    "none": train([]),
    "one": train([0], probes=probes),
    "both": train([0, 1], probes=probes),
    "together": train([0, 1], probes=probes, processes="all"),
    "one of all": train([0], 1.0, probes=probes, processes="all"),
    "together again": train([0, 1], probes=probes, processes="all"),
    "others": train([0, 1], 1.0, probes=["dormancy", "grama"] if rank else probes, processes="all"),
}
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(found, file)
dist.destroy_process_group()
if other:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
"""


@pytest.mark.on_cpu
def test_a_model_is_watched_in_one_process_or_in_all_and_nothing_hangs(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WATCHED, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    zero, one = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for found in (zero, one):
        assert all(result["parameters"] == zero["none"]["parameters"] for result in found.values())
    assert zero["one"]["scores"] == zero["both"]["scores"] != {}
    assert one["one"]["scores"] == {}
    assert zero["both"]["scores"] != one["both"]["scores"] != {}
    assert zero["together"]["scores"] == one["together"]["scores"] == zero["together again"]["scores"]
    mean = (torch.tensor(zero["both"]["scores"]["model"]) + torch.tensor(one["both"]["scores"]["model"])) / 2
    assert not torch.equal(torch.tensor(zero["together"]["scores"]["model"]), mean), "magnitudes are added, not scores"
    for name in ("one", "both", "together", "together again"):
        assert zero[name]["warnings"] == one[name]["warnings"] == [], name
    (warning,) = zero["one of all"]["warnings"]
    assert (
        "process 1 did not ask for a reading of all processes, of the same probes and layers, within 1 s; measure"
        in warning
    )
    assert zero["one of all"]["scores"] == zero["one"]["scores"]  # later readings are of its own share
    for found, other in ((zero, 1), (one, 0)):
        (warning,) = found["others"]["warnings"]
        assert f"process {other} did not ask for a reading of all processes, of the same probes and layers" in warning


# -- threads -----------------------------------------------------------------------------------------------------------


def test_models_are_measured_in_threads_as_they_are_alone() -> None:
    networks = [models.build(name) for name in ("shared relu", "conv nchw", "functional", "inplace")]
    alone = [measure(model, inputs, probes=["dormancy", "rank"]).scores["dormancy"] for model, inputs in networks]
    found: list[Any] = [None] * len(networks)
    together = threading.Barrier(len(networks))

    def work(index: int) -> None:
        model, inputs = networks[index]
        together.wait()
        with Monitor(model, ["dormancy"]) as monitor:
            for _ in range(30):
                model(*inputs)
        found[index] = monitor.read()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(networks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for reading, scores in zip(found, alone, strict=True):
        assert reading.num_passes == 30
        for layer, expected in scores.items():
            torch.testing.assert_close(reading.scores["dormancy"][layer], expected)


# -- modules of every kind ---------------------------------------------------------------------------------------------


def attention() -> nn.Module:
    """Return a net with attention of its own, whose output projection torch never calls as a module."""
    parts = {"a": nn.Linear(4, 8), "mix": nn.MultiheadAttention(8, 2, batch_first=True), "b": nn.Linear(8, 2)}
    return models.Net(lambda s, x: s.b(F.relu(s.mix(h := s.a(x), h, h)[0])), **parts)


def recurrent(kind: type[nn.Module]) -> nn.Module:
    """Return a net with a recurrent middle, whose output is a tuple."""
    parts = {"a": nn.Linear(4, 6), "cell": kind(6, 5, batch_first=True), "b": nn.Linear(5, 3), "c": nn.Linear(3, 2)}
    return models.Net(lambda s, x: s.c(F.relu(s.b(s.cell(F.relu(s.a(x)))[0]))), **parts)


def tied() -> nn.Module:
    """Return a net whose middle layers share one weight."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
    model[4].weight = model[2].weight
    return model.append(nn.Linear(6, 2))


BATTERY = {
    "attention": (attention, {"a": "dormancy", "mix.out_proj": None, "mix": None}),
    "lstm": (lambda: recurrent(nn.LSTM), {"a": "dormancy", "b": "dormancy", "cell": None}),
    "gru": (lambda: recurrent(nn.GRU), {"a": "dormancy", "b": "dormancy", "cell": None}),
    "tied": (tied, {"0": "dormancy", "2": "dormancy", "4": "dormancy"}),
}


@pytest.mark.parametrize("name", BATTERY)
def test_training_is_the_same_bits_and_every_layer_is_measured_or_named(name: str) -> None:
    make, expected = BATTERY[name]
    x, outcomes = models.sequences(), []
    for watched in (False, True):
        torch.manual_seed(3)
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        session = watch(model, optimizer, every=2, log=None, strict=True) if watched else None
        for _ in range(5):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        outcomes.append((torch.get_rng_state(), [p.detach() for p in model.parameters()]))
    for plain, seen in zip(outcomes[0][1], outcomes[1][1], strict=True):
        assert torch.equal(plain, seen)
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert session is not None
    coverage = {e.layer: e for e in session.last["model"].coverage if e.probe == "dormancy"}
    for layer, probe in expected.items():
        assert coverage[layer].measured == (probe is not None) or coverage[layer].reason, layer
        assert (coverage[layer].reason == "") == (probe is not None), (layer, coverage[layer].reason)


# -- a probe or a decomposition that fails -----------------------------------------------------------------------------


def test_a_decomposition_that_does_not_converge_is_tried_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = models.mlp(), models.vectors(64)
    expected = measure(model, x, probes=["rank"]).values["effective_rank"]
    real, calls = torch.linalg.eigvalsh, []

    def sometimes(gram: Tensor) -> Tensor:
        calls.append(gram)
        if len(calls) % 2:
            raise torch.linalg.LinAlgError("did not converge")
        return real(gram)

    monkeypatch.setattr(torch.linalg, "eigvalsh", sometimes)
    found = measure(model, x, probes=["rank"]).values["effective_rank"]
    assert found == (expected if models.place() == "cpu" else pytest.approx(expected, rel=1e-6))
    assert len(calls) == 4  # two layers, each twice


def test_a_decomposition_that_never_converges_is_nan_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(gram: Tensor) -> Tensor:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigvalsh", never)
    model = models.mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = watch(model, optimizer, every=1, log=None)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(4):
            optimizer.zero_grad()
            model(models.vectors(64)).square().mean().backward()
            optimizer.step()
    assert [str(w.message) for w in warned] == [
        "probe 'rank' failed and is off from now on: _LinAlgError('did not converge')"
    ]
    reading = session.last["model"]
    assert math.isnan(reading.values["effective_rank"]["all"])
    assert not math.isnan(reading.values["dormancy"]["all"])


def test_a_strict_failure_bears_the_name_of_the_probe() -> None:
    class Broken(Dormancy):
        def compute(self) -> Tensor:
            raise ZeroDivisionError("oh")

    model = models.mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch(model, optimizer, probes={"mine": Broken()}, log=None, strict=True)
    model(models.vectors()).sum().backward()
    with pytest.raises(ZeroDivisionError) as error:
        optimizer.step()
    assert error.value.__notes__ == ["raised by the probe mine"]


def test_what_cannot_be_measured_now_warns_once_and_is_tried_again() -> None:
    """A network that a loop begins to use later, for example."""
    model, other = models.mlp(), nn.Linear(4, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    session = watch(model, optimizer, every=1, log=None)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for used in (other, other, other, model):
            optimizer.zero_grad()
            used(models.vectors(64)).square().mean().backward()
            optimizer.step()
    assert ["model was not measured at optimizer step 1" in str(w.message) for w in warned] == [True]
    assert not math.isnan(session.last["model"].values["dormancy"]["all"])


# -- arithmetic and order ----------------------------------------------------------------------------------------------


def test_an_edit_between_forward_and_backward_is_an_error_not_a_wrong_gradient() -> None:
    model, x = models.mlp(), models.vectors()
    wired = wiring(model, x)
    loss = model(x).sum()
    initialisers = {name: default_initialiser(layer.module) for name, layer in wired.layers.items()}
    recycle_(wired, {"0": torch.ones(6).bool()}, initialisers=initialisers, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_threshold_of_zero_counts_exact_zeros_only() -> None:
    assert float(inactive_fraction(torch.tensor([0.0, 1e-12, 1.0, 2.0]), 0.0)) == 0.25
    assert float(inactive_fraction(torch.tensor([0.1, 0.1 + 1e-12, 1.0, 2.0], dtype=torch.float64), 0.1)) == 0.25


def test_an_intervention_that_fails_in_a_hook_bears_its_name() -> None:
    """Also in a loop of one's own, where no callback fires: the optimizer calls the hook."""
    for name, method, entry in (("redo", {"every": 1}, "_recycle_"), ("reset", {"every": 1}, "apply")):
        model = models.mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        callback = INTERVENTIONS[name](**method, **({"threshold": 99.0} if name == "redo" else {}))
        setattr(callback, entry, lambda *args: 1 / 0)
        callback.on_train_start(Context({"net": model}, {"net": optimizer}))
        model(models.vectors()).sum().backward()
        with pytest.raises(ZeroDivisionError) as error:
            optimizer.step()
        assert error.value.__notes__ == [f"raised by {name}"]
        callback.on_train_end(Context())
