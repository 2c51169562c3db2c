"""Arguments that are no network, no optimizer or no number: an error in the toolkit's own words, from every entry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import plasticity

MODEL = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
INPUTS, TARGETS = torch.zeros(2, 3), torch.zeros(2, 1)
WRONG = {
    "list": [MODEL],
    "tuple": (MODEL, MODEL),
    "mapping": {"actor": MODEL},
    "nothing": None,
    "state": MODEL.state_dict(),
    "class": nn.Sequential,
    "method": MODEL.forward,
}


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD(MODEL.parameters(), lr=0.1)


ENTRIES: dict[str, Callable[[Any], Any]] = {
    "measure": lambda wrong: plasticity.measure(wrong, (INPUTS, TARGETS), nn.functional.mse_loss),
    "monitor": plasticity.Monitor,
    "wiring": lambda wrong: plasticity.wiring(wrong, INPUTS),
    "diagnose": lambda wrong: plasticity.diagnose(wrong, optimizer(), [(INPUTS, TARGETS)], lambda m, b: m(b[0]).sum()),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_no_network_is_told_what_is(entry: str, wrong: str) -> None:
    with pytest.raises(TypeError, match=r"one torch\.nn\.Module; got \w+") as told:
        ENTRIES[entry](WRONG[wrong])
    assert ("mapping of networks by name" in str(told.value)) == (wrong in ("list", "tuple", "mapping", "state"))


@pytest.mark.parametrize("wrong", [[MODEL], None, "model", MODEL, MODEL.parameters()])
@pytest.mark.parametrize("field", ["networks", "optimizers", "targets"])
def test_a_context_takes_names(field: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match=rf"{field}= takes a mapping by name"):
        plasticity.Context(**{field: wrong})


@pytest.mark.parametrize("wrong", [None, "adam", [None], MODEL.parameters(), list(MODEL.parameters())])
def test_watch_says_what_an_optimizer_is_missing(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"watch\(\) needs an optimizer"):
        plasticity.watch(MODEL, wrong, log=None)


@pytest.mark.parametrize("wrong", [None, "0.5", torch.zeros(3), torch.zeros(0), [1.0], {}])
@pytest.mark.parametrize("log", [True, False])
def test_a_session_logs_numbers_alone(wrong: Any, log: bool, tmp_path: Path) -> None:
    trained = optimizer()
    with plasticity.watch(
        MODEL, trained, every=1, probes=["dormancy"], log=tmp_path / "run" if log else None
    ) as session:
        with pytest.raises(TypeError, match=r"log\(loss=...\) takes a number"):
            session.log(loss=wrong)
        for right in (1, 1.0, torch.ones(1), torch.tensor(1.0, requires_grad=True), np.float32(1), True):
            session.log(loss=right)
        MODEL(INPUTS).sum().backward()
        trained.step()
