"""Which kernels compute the products of matrices in a compiled graph: by the processor's name, or in bfloat16."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

Precision = Literal["float32", "bf16"]

# Multiplications (rows * columns * inner) from which another kernel pays, measured on layers 64 to 512 wide: between
# the products of a DQN of 120-84 at batch 128 (1.3 million) and the first layer of SAC at batch 256 (1.5 million).
LARGE = 1_400_000
# Columns of a product up to which it is faster turned.
NARROW = 32


def choose_products(graph: GraphModule, precision: Precision, device: torch.device) -> None:
    """Give the products of a traced graph the kernels that are fastest here, in place."""
    if precision == "bf16":
        use_bf16(graph)
    elif device.type == "cpu" and onednn_is_faster():
        use_onednn(graph)
    elif device.type == "cpu" and "AuthenticAMD" in processor():
        turn_narrow(graph)


@cache
def processor() -> str:
    """Return what Linux says of the processor; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    return info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""


def onednn_is_faster() -> bool:
    """Return whether oneDNN multiplies float32 matrices faster than MKL, which PyTorch takes: on AMD's Zen 5, by twice.

    MKL keeps its AVX-512 kernels for Intel's processors. Zen 4 takes two cycles for what they do in one: there both are
    as fast, and oneDNN's call costs more. Decided by the processor's name and not by a stopwatch, so that two runs on
    one machine always take the same kernels, and give the same numbers.
    """
    family = re.search(r"AuthenticAMD\ncpu family\s*: (\d+)", processor())
    is_zen_5 = family is not None and int(family[1]) >= 26
    return is_zen_5 and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def bf16_is_emulated() -> bool:
    """Return whether this is an x86 processor without units for bfloat16: products take three times as long there."""
    is_x86 = "flags\t" in processor()
    return is_x86 and not any(unit in processor() for unit in ("avx512_bf16", "amx_bf16"))


def use_onednn(graph: GraphModule) -> None:
    """Replace the large float32 products of a traced graph by oneDNN's, in place."""
    for node in large_products(graph):
        node.target = torch.ops.plasticity.addmm.default
        node.args = (None, *node.args) if len(node.args) == 2 else node.args


def turn_narrow(graph: GraphModule) -> None:
    """Compute products of few columns as (B^T A^T)^T, in place: MKL works along what it takes for columns, our rows.

    On Zen 4 a gradient of 256 x 23 takes 44 us in place of 93, one of 120 x 4 five in place of 19.
    """
    aten = torch.ops.aten
    for node in products(graph):
        *bias, left, right = node.args
        rows, columns = left.meta["val"].shape[0], right.meta["val"].shape[1]  # type: ignore[union-attr]
        if not 1 < columns <= NARROW or columns >= rows:
            continue
        with graph.graph.inserting_before(node):
            turned = [graph.graph.call_function(aten.t.default, (x,)) for x in (right, left)]
            added = [graph.graph.call_function(aten.unsqueeze.default, (x, 1)) for x in bias]
            product = graph.graph.call_function(node.target, (*added, *turned))  # type: ignore[arg-type]
            back = graph.graph.call_function(aten.t.default, (product,))
            rows_first = {"memory_format": torch.contiguous_format}  # which what follows was traced for
            result = graph.graph.call_function(aten.clone.default, (back,), rows_first)
        result.meta = dict(node.meta)  # it may go straight into the next product
        node.replace_all_uses_with(result)
        graph.graph.erase_node(node)


def use_bf16(graph: GraphModule) -> None:
    """Take the large float32 products of a traced graph in bfloat16, in place; their sums and results are rounded too.

    What is small stays float32: output layers, and with them values, targets and log-densities; so do the weights.
    """
    aten = torch.ops.aten
    for node in large_products(graph):
        *bias, left, right = node.args
        with graph.graph.inserting_before(node):
            halves = [
                graph.graph.call_function(aten._to_copy.default, (x,), {"dtype": torch.bfloat16}) for x in (left, right)
            ]
            product = graph.graph.call_function(aten.mm.default, tuple(halves))
            result = graph.graph.call_function(aten._to_copy.default, (product,), {"dtype": torch.float32})
            if bias:
                result = graph.graph.call_function(aten.add.Tensor, (result, bias[0]))
        node.replace_all_uses_with(result)
        graph.graph.erase_node(node)


def large_products(graph: GraphModule) -> list[Node]:
    """Return the products of float32 matrices that are large enough for another kernel."""
    return [node for node in products(graph) if multiplications(node) >= LARGE]


def multiplications(product: Node) -> int:
    """Return the multiplications of a product."""
    left, right = (argument.meta["val"] for argument in product.args[-2:])  # type: ignore[union-attr]
    return left.shape[0] * left.shape[1] * right.shape[1]


def products(graph: GraphModule) -> list[Node]:
    """Return the products of float32 matrices, those with a bias (rows added, (columns,)) among them."""
    aten, found = torch.ops.aten, []
    for node in graph.graph.nodes:
        if node.target in (aten.mm.default, aten.addmm.default) and not node.kwargs:
            *bias, left, _ = (argument.meta["val"] for argument in node.args)
            if left.dtype == torch.float32 and all(one.dim() == 1 for one in bias):
                found.append(node)
    return found


def _addmm(bias: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")


def _addmm_shape(bias: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[1])


LIBRARY = torch.library.Library("plasticity", "DEF")
LIBRARY.define("addmm(Tensor? bias, Tensor left, Tensor right) -> Tensor", tags=(torch.Tag.needs_exact_strides,))
LIBRARY.impl("addmm", _addmm, "CPU")
LIBRARY.impl("addmm", _addmm_shape, "Meta")
