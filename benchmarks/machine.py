"""The machine of a benchmark: processor, versions, how fast it multiplies matrices, and where its figures go."""

from __future__ import annotations

import platform
import re
import time
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def results_file(benchmark: str) -> Path:
    """Return the file for a benchmark's figures, in the folder of this processor: those of two are not mixed."""
    folder = RESULTS / re.sub(r"[^a-z0-9]+", "-", describe()["processor"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{benchmark}.json"


def processor(info: str) -> str:
    """Return the name in the text of /proc/cpuinfo, with family and model where it has no number; empty without one."""
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in info.splitlines())}
    name = found.get("model name", "")
    has_number = re.search(r"\d", name.partition("@")[0])  # behind it stands the clock rate
    return name if has_number or not name else f"{name}, family {found['cpu family']}, model {found['model']}"


def describe() -> dict[str, Any]:
    """Return processor, versions and threads."""
    info = Path("/proc/cpuinfo")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": (info.exists() and processor(info.read_text())) or platform.processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def multiply_rate(size: int, library: str) -> float:
    """Return GFLOP/s of a float32 (or, for "bf16", bfloat16) product of square matrices, the best of many."""
    dtype = torch.bfloat16 if library == "bf16" else torch.float32
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    call = {"onednn": lambda: torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")}.get(
        library, lambda: a @ b
    )
    best = float("inf")
    for _ in range(200):
        before = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - before)
    return 2 * size**3 / best / 1e9
