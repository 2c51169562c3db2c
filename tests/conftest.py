"""Fixtures of all tests."""

import os
import random
import signal
import zlib
from collections.abc import Iterator
from datetime import date

import elsewhere
import numpy as np
import pytest
import torch

from plasticity.agents import compiled

DEVICES = ["cpu", elsewhere.NAME, *(["cuda"] if torch.cuda.is_available() else [])]

SAMPLE = os.environ.setdefault("PLASTICITY_SAMPLE", date.today().isoformat())  # set here, for all worker processes
"""The text that draws the samples that rotate: the day."""

torch.set_num_threads(1)
elsewhere.register()  # before the first backward pass of the process, which starts a thread for every device

# A shell's background job ignores it, and so would the processes that tests start in order to interrupt them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Say where tests of devices run, and what draws the samples that rotate."""
    return f"devices: {', '.join(DEVICES)}; PLASTICITY_SAMPLE={SAMPLE}"


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave tests out where their marks say so, and make their repetitions off the CPU slow."""
    left_out = {"on_cpu": {*DEVICES} - {"cpu"}, "on_real_devices": {elsewhere.NAME}}

    def is_left_out(item: pytest.Item) -> bool:
        marks = {mark.name for mark in item.iter_markers()} & left_out.keys()
        return any(item.callspec.params["device"] in left_out[mark] for mark in marks)  # type: ignore[attr-defined]

    items[:] = [item for item in items if not is_left_out(item)]
    for item in repeated_off_the_cpu(items):
        item.add_marker("slow")
    for item in beyond_the_sample(items):
        item.add_marker("sampled")
        item.add_marker("slow")


def repeated_off_the_cpu(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return all parameter sets of every test on a device other than the CPU but one.

    The one is drawn by the test's name, so that the tests of a file do not all take the same agent. A test marked
    `each(NAME, ...)` keeps one for every value of the parameters NAME, one marked `slow_off_the_cpu` none.
    """
    groups: dict[tuple, list[pytest.Item]] = {}
    for item in items:
        values = item.callspec.params if hasattr(item, "callspec") else {}
        if values.get("device", "cpu") == "cpu" or item.get_closest_marker("slow"):
            continue
        apart = [name for mark in item.iter_markers("each") for name in mark.args]
        test = item.nodeid.split("[")[0]
        groups.setdefault((test, values["device"], *(str(values[name]) for name in apart)), []).append(item)
    kept = {
        group[zlib.crc32(test.encode()) % len(group)]
        for (test, *_), group in groups.items()
        if not group[0].get_closest_marker("slow_off_the_cpu")
    }
    return [item for group in groups.values() for item in group if item not in kept]


def beyond_the_sample(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the parameter sets beyond the first `n` of a test marked `some(n)`, in an order drawn by their names.

    With `rotates` the day draws, too.
    """
    groups: dict[tuple, list[pytest.Item]] = {}
    for item in items:
        if (mark := item.get_closest_marker("some")) and not item.get_closest_marker("slow"):
            off_the_cpu = item.callspec.params.get("device", "cpu") != "cpu"  # type: ignore[attr-defined]
            day = SAMPLE if mark.kwargs.get("rotates") else ""
            groups.setdefault((item.nodeid.split("[")[0], off_the_cpu, day, *mark.args), []).append(item)
    return [
        item
        for (_, _, day, n), group in groups.items()
        for item in sorted(group, key=lambda i: zlib.crc32(f"{day}{i.name}".encode()))[n:]
    ]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Let every test draw the same numbers, whichever ran before it in this process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Device of a test: the CPU, `elsewhere` (made for tests, computes in host memory), and a GPU if there is one."""
    if request.param != elsewhere.NAME:
        yield request.param
        return
    monkeypatch.setattr(torch, "Generator", elsewhere.Generator)
    monkeypatch.setattr(compiled, "compile_graph", elsewhere.leave_as_traced)
    with elsewhere.Drawing():
        yield request.param


@pytest.fixture
def everywhere(device: str) -> Iterator[str]:
    """Make tensors on the device, unless they are told another: as `torch.set_default_device` does."""
    if device == "cpu":
        yield device
        return
    with torch.device(device):
        yield device


@pytest.fixture(params=["traced", pytest.param("inductor", marks=(pytest.mark.inductor, pytest.mark.slow))])
def compiled_if_slow(request: pytest.FixtureRequest, as_traced: None) -> str:
    """Run a test that is about graphs, not about inductor, as traced, and once more compiled if slow tests run."""
    return request.param


@pytest.fixture
def as_traced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run graphs as they were traced, which saves compiling them, unless the test is marked `inductor`."""
    if request.node.get_closest_marker("inductor") is None:
        monkeypatch.setattr(compiled, "compile_graph", elsewhere.leave_as_traced)
