"""``plasticity dashboard``: TensorBoard on a folder of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .arguments import read_arguments


@dataclass(frozen=True)
class DashboardConfig:
    """Open TensorBoard on a folder of runs and print the link to its Plasticity tab, which refreshes itself."""

    runs: Annotated[Path, tyro.conf.Positional] = Path("runs")
    """Folder that holds the runs."""
    port: int = 6006
    """First port to try; 0 lets the system choose."""
    host: str = "127.0.0.1"
    """Address to listen on; only this machine can see the default."""
    open: bool = False
    """Open the link in a browser."""


def main(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C."""
    from plasticity.dashboard.serve import serve

    config = read_arguments(DashboardConfig, "dashboard", arguments)
    return serve(config.runs, config.port, config.host, config.open)
