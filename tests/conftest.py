"""What all tests share."""

import random
import signal
from collections.abc import Iterator

import elsewhere
import numpy as np
import pytest
import torch

DEVICES = ["cpu", elsewhere.NAME, *(["cuda"] if torch.cuda.is_available() else [])]

torch.set_num_threads(1)
elsewhere.register()  # before the first backward pass of the process, which starts a thread for every device

# A shell's background job ignores it, and so would the processes that tests start in order to interrupt them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Say where tests of devices run."""
    return f"devices: {', '.join(DEVICES)}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave tests out on devices for which they are marked not to be."""
    left_out = {"on_cpu": {*DEVICES} - {"cpu"}, "on_real_devices": {elsewhere.NAME}}

    def is_left_out(item: pytest.Item) -> bool:
        marks = {mark.name for mark in item.iter_markers()} & left_out.keys()
        return any(item.callspec.params["device"] in left_out[mark] for mark in marks)  # type: ignore[attr-defined]

    items[:] = [item for item in items if not is_left_out(item)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Let every test draw the same numbers, whichever ran before it in this process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where a test runs: on the CPU, on a device that is none (`elsewhere`), and on a GPU if there is one."""
    if request.param != elsewhere.NAME:
        yield request.param
        return
    monkeypatch.setattr(torch, "Generator", elsewhere.Generator)
    monkeypatch.setattr(torch._inductor, "compile", elsewhere.leave_as_traced)
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
