"""Passes through networks that are no part of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def untouched(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Restore on exit what training passes move: buffers, such as moving averages, and torch's random states."""
    networks = list(networks)
    saved = [(buffer, buffer.clone()) for network in networks for buffer in network.buffers()]
    cuda = {p.device for network in networks for p in network.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in saved:
                buffer.copy_(before)


@contextmanager
def evaluating(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Within, the networks are in evaluation mode; their modes and buffers are restored on exit."""
    networks = list(networks)
    modes = [(module, module.training) for network in networks for module in network.modules()]
    with untouched(networks):
        try:
            for network in networks:
                network.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
