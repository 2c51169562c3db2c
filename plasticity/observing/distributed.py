"""Probes under data-parallel training: processes that all ask for it read the statistics of the whole batch.

A collective operation that one process enters alone never returns. So processes first agree through the key-value store
of their group, which is no collective and waits for a limited time.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

from plasticity.isolation import wrapped
from plasticity.probes.probe import Probe

K = TypeVar("K", bound=tuple[str, ...])

PATIENCE = 60.0
"""Seconds to wait for the other processes: they differ by part of one training step."""
GO, GIVEN_UP = "go", "given up"


def process_group(model: nn.Module) -> Any | None:
    """Return the processes that train ``model`` together; None unless it is in DistributedDataParallel."""
    parallel = nn.parallel.DistributedDataParallel
    return next((module.process_group for module in wrapped(model) if isinstance(module, parallel)), None)


class ProcessesError(RuntimeError):
    """The processes of a group do not read together; each measures alone from then on."""


class Processes:
    """The processes of a group, in each of which a monitor wants the statistics of all."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def combined(self, probes: Mapping[K, Probe]) -> dict[K, Probe]:
        """Return copies of the probes that hold the sums of every process.

        Raises ProcessesError, in every process that asks, where one does not ask for the same probes and layers within
        :data:`PATIENCE` seconds.
        """

        def add(tensor: Tensor) -> Tensor:
            total = tensor.clone()
            dist.all_reduce(total, group=self.group)
            return total

        agree(self.group, sorted(probes))
        copies = {key: copy.deepcopy(probes[key]) for key in sorted(probes)}
        for probe in copies.values():
            probe.combine(add)
        return copies


def agree(group: Any, subject: Any) -> None:
    """Return once every process of ``group`` has called this with the same ``subject``, plain values.

    Raises ProcessesError where one does not within :data:`PATIENCE` seconds. All callers return, or all raise: the
    first to see that all are there, or to give up, writes the result of the round, which nobody can overwrite.
    """
    name = sha256(json.dumps(subject).encode()).hexdigest()
    store = dist.PrefixStore(f"plasticity/{group.group_name}/{name}", dist.distributed_c10d._get_default_store())
    number = _next_round(store, f"{dist.get_rank()}")
    ranks = {rank: f"{number}/{rank}" for rank in dist.get_process_group_ranks(group)}
    end = time.monotonic() + PATIENCE
    while not store.check([*ranks.values()]) and time.monotonic() < end:
        time.sleep(0.005)
    missing = [str(rank) for rank, key in ranks.items() if not store.check([key])]
    result = store.compare_set(f"{number}", "", GIVEN_UP if missing else GO).decode()
    if result == GIVEN_UP:
        raise ProcessesError(
            f"process {', '.join(missing) or 'of another number'} did not ask for a reading of all processes, of the "
            f"same probes and layers, within {PATIENCE:g} s; measure in every process, or leave processes at 'own', as "
            "this one does from now on"
        )


def _next_round(store: Any, rank: str) -> int:
    """Enter the first round of an agreement that this process was not in and nobody gave up; return its number."""
    number = store.add(f"round/{rank}", 0)
    while store.check([f"{number}"]) and store.get(f"{number}").decode() == GIVEN_UP:
        number += 1
    store.set(f"{number}/{rank}", "there")
    store.add(f"round/{rank}", number + 1 - store.add(f"round/{rank}", 0))
    return number
