"""The batteries for probes and meters: every one of ours passes, and what breaks a contract is found."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from plasticity.metrics import SETS
from plasticity.probes import PROBES, Dormancy, Probe, Rank
from plasticity.testing import check_probe

pytestmark = pytest.mark.usefixtures("everywhere")


QUICK = ("dormancy", "grama", "grama_weight", "rank")
"""One probe of each class and signal; the others are variants by their arguments."""


@pytest.mark.usefixtures("as_traced")
@pytest.mark.slow_off_the_cpu
def test_all_probes_pass_their_battery_together() -> None:
    check_probe({name: PROBES[name] for name in (*SETS["all"], *SETS["curvature"], *SETS["transformer"])})


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PROBES])
@pytest.mark.some(1)
@pytest.mark.slow_off_the_cpu
def test_every_probe_passes_its_battery(name: str) -> None:
    check_probe(PROBES[name])


class Faulty(Probe):
    """A mean |activation|, with one fault."""

    def sums(self) -> dict[str, Any]:
        return {"on_forward": lambda h: h.abs().sum(0)}

    def compute(self) -> Tensor:
        return (self.total("on_forward") / self.num_samples("on_forward")).mean()


class Drawing(Faulty):
    def compute(self) -> Tensor:
        torch.rand(1)
        return super().compute()


class Random(Faulty):
    def compute(self) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(id(self) % 999)
        return super().compute() + float(torch.rand((), generator=generator, device="cpu"))


class Deaf(Faulty):
    def compute(self) -> Tensor:
        return super().compute().nan_to_num(0.0)


class Forgetful(Faulty):
    """Keeps what it saw where a checkpoint does not look."""

    seen: ClassVar[dict[int, float]] = {}

    def sums(self) -> dict[str, Any]:
        return {}

    def reset(self) -> None:
        self.seen[id(self)] = 0.0

    def on_forward(self, activations: Tensor) -> None:
        self.seen[id(self)] += float(activations.abs().mean())

    def compute(self) -> Tensor:
        return torch.tensor(self.seen[id(self)])


class Scores(Dormancy):
    def scores(self) -> Tensor:
        return super().scores()[:-1]


class Unbounded(Dormancy):
    def compute(self) -> Tensor:
        return super().scores().sum()


class Raising(Faulty):
    def compute(self) -> Tensor:
        if float(self.total("on_forward").sum()) == 0:
            raise ZeroDivisionError("a dead layer")
        return super().compute()


class Vector(Faulty):
    def compute(self) -> Tensor:
        return self.total("on_forward")


FAULTS = {
    Drawing: "random state",
    Random: "measured twice",
    Deaf: "NaN in its weights",
    Forgetful: "resumed|beside",
    Scores: r"scores\(\) has shape",
    Unbounded: "compute\\(\\) gives",
    Raising: "a dead layer",
    Vector: "0-D",
}


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
@pytest.mark.slow_off_the_cpu
def test_a_fault_is_found(kind: type[Probe]) -> None:
    with pytest.raises(AssertionError, match=FAULTS[kind]):
        check_probe(kind)


@pytest.mark.slow_off_the_cpu
def test_the_faulty_probe_without_its_fault_passes() -> None:
    check_probe(Faulty)
    check_probe(lambda: Rank(max_samples=4))


def test_what_is_no_probe_is_said() -> None:
    with pytest.raises(AssertionError, match="uses no signal"):
        check_probe(type("Empty", (Probe,), {"compute": lambda self: torch.tensor(math.nan)}))
