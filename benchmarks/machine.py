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


def describe() -> dict[str, Any]:
    """Return processor, versions and threads."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": names[0] if names else platform.processor(),
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
