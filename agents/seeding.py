"""Random numbers of an agent from one seed: its generators, and first weights that are equal on every device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def split_seed(seed: int, count: int) -> list[int]:
    """Return `count` seeds of independent generators, drawn from one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**62, (count,), generator=generator, device="cpu").tolist()


@contextmanager
def drawn_on_the_cpu(seed: int) -> Iterator[None]:
    """Context in which modules draw their weights from `seed` and on the CPU, whatever the default device is.

    `torch.nn` draws from the global generator. That goes on as if nothing had been drawn, and those of other devices,
    which `torch.manual_seed` would move too, are left alone.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield
