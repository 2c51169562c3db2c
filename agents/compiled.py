"""Turn a gradient step into one compiled graph: a plain function of tensors, without modules or autograd.

The loss is traced once with `make_fx` through forward and backward pass, with the vector of the trained parameters, all
others and buffers as inputs; clipping and a plain Adam follow in the same graph. Inductor compiles it. What remains of
a call is the kernels: no module calls, no autograd, no guards. The caller must see to it that the inputs keep their
shapes (`gradient.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from .adam import Move, once
from .flat import Flat

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
"""Takes tensors, returns a loss of one number and metrics to log; reads parameters, changes nothing."""

Precision = Literal["float32", "bf16"]

# Multiplications (rows * columns * inner) from which another kernel pays, measured on layers 64 to 512 wide: between
# the products of a DQN of 120-84 at batch 128 (1.3 million) and the first layer of SAC at batch 256 (1.5 million).
LARGE = 1_400_000
# Columns of a product up to which it is faster turned.
NARROW = 32


class Reads(nn.Module):
    """The networks that a loss reads as one module, so that `functional_call` can swap all their tensors."""

    def __init__(self, loss: Loss, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.loss = loss

    def forward(self, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(*inputs)


class OwnGenerators(TorchFunctionMode):
    """Within, what draws from a `torch.Generator` that is given to it raises RuntimeError, and draws nothing."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (kwargs or {}).get("generator") is not None:
            raise RuntimeError(
                f"{function.__name__} draws from a torch.Generator of its own, which no graph does: let torch's own "
                "draw, or draw before the step, as with add(name, term, draw=...)"
            )
        return function(*args, **(kwargs or {}))


GraphCall = Callable[[list[Tensor]], Sequence[Tensor]]
"""A compiled graph; it may empty the list of its inputs."""


class Traced(NamedTuple):
    """A compiled graph, the tensors that it takes before and after the inputs of the loss, and what it returns."""

    call: GraphCall
    read: list[Tensor]
    """The totals, parameters that are not trained, and buffers. They come behind the vectors, before the inputs."""
    captured: list[Tensor]
    """After the inputs: tensors that the loss closes over."""
    names: list[str]
    """The metrics of one number: a vector."""
    others: list[str]
    """The metrics that are larger; behind them is what `seen()` returned at the end of the trace."""
    reached: list[bool]
    """Of each trained parameter, whether it has a gradient: an optimizer may hold more than a loss reads."""


def compile_step(
    reads: Reads,
    vectors: Sequence[Tensor],
    flat: Flat,
    inputs: Sequence[Tensor],
    max_norm: float | None,
    move: Move | None,
    precision: Precision,
    seen: Callable[[], list],
    plans: Sequence[Any],
) -> Traced:
    """Return a compiled graph that writes the gradients of the loss, clipped to `max_norm` together, into their vector.

    `vectors`: weights and gradients, which alone are written to; with `move`, further ones that it steps together with
    the weights, if the loss reaches all of these. `plans`: of observers (`layout.Ride`), whose sums are added to
    their totals. Raises what torch raises where tracing or compiling is not possible.
    """
    named: dict[str, Tensor] = {**dict(reads.named_parameters()), **dict(reads.named_buffers())}
    trained = {id(parameter): i for i, parameter in enumerate(flat.parameters)}
    read = [tensor for tensor in named.values() if id(tensor) not in trained]
    names, others, reached = list[str](), list[str](), list[bool]()

    def step(*tensors: Tensor) -> list[Tensor]:
        (weights, gradient, *state), tensors = tensors[: len(vectors)], tensors[len(vectors) :]
        leaves = [view.detach().requires_grad_() for view in flat.views(weights)]
        rest = (tensor.detach() for tensor in tensors[: len(read)])
        named_now = {name: leaves[trained[id(t)]] if id(t) in trained else next(rest) for name, t in named.items()}
        with torch.enable_grad():
            loss, metrics = torch.func.functional_call(reads, named_now, tensors[len(read) :])
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        reached[:] = [one is not None for one in gradients]
        pairs = zip(gradients, leaves, strict=True)
        found = torch.cat([(torch.zeros_like(leaf) if one is None else one).reshape(-1) for one, leaf in pairs])
        if max_norm is not None:
            found, metrics["grad_norm"] = clipped(found, max_norm)
        names[:] = [name for name, value in metrics.items() if value.dim() == 0 and value.dtype == loss.dtype]
        others[:] = [name for name in metrics if name not in names]
        vector = torch.stack([metrics[name].detach() for name in names]) if names else found.new_empty(0)
        shown = [t.detach() for t in (*(metrics[name] for name in others), *seen())]
        gradient.copy_(found)
        if move is not None and all(reached):
            move(weights, found, *state)
        return [vector, *shown, *(t.detach() for plan in plans for t in plan.sums())]

    tensors = [*vectors, *(tensor.detach() for tensor in read), *inputs]
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # brings all of sympy, which takes half a second

    # Constants, such as C51's support, are real tensors. Inductor keeps graphs on disk only where there is a ShapeEnv.
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True) as mode, OwnGenerators():
        graph = make_fx(step)(*map(mode.from_tensor, tensors))
    graph.graph.eliminate_dead_code()
    captured, totals = lift(graph, tensors[0].device), [total for plan in plans for total in plan.totals()]
    add_up(graph, totals, behind=len(vectors))
    if precision == "bf16":
        use_bf16(graph)
    elif tensors[0].device.type == "cpu" and onednn_is_faster():
        use_onednn(graph)
    elif tensors[0].device.type == "cpu" and "AuthenticAMD" in processor():
        turn_narrow(graph)
    graph.recompile()
    with torch.no_grad():
        call = compile_graph(graph, len(vectors) + len(totals))
    return Traced(call, [*totals, *read], captured, names, others, reached)


def compile_graph(graph: GraphModule, num_static: int) -> GraphCall:
    """Return inductor's code for a traced graph, of whose inputs the first `num_static` always are the same tensors.

    Without AOTAutograd, whose wrapper takes longer at every call than some of the kernels.
    """
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.fx_passes.joint_graph import joint_graph_passes

    keep_once()
    inputs = [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")]
    on_cpu = inputs[0].device.type == "cpu"
    with inputs[0].fake_mode as mode:
        pure = torch.func.functionalize(graph, remove="mutations")
        graph = make_fx(pure, decomposition_table=select_decomp_table())(*inputs)
    # What strings the kernels together is C++ too, and on CUDA one launch for all. Random numbers are torch's own.
    how = {"fallback_random": True, **({"cpp_wrapper": True} if on_cpu else {"triton.cudagraphs": True})}
    with tracing(TracingContext(mode)), config.patch(how):
        joint_graph_passes(graph)
        static = range(num_static)
        code = compile_fx_inner(graph, inputs, cpp_wrapper=on_cpu, is_inference=True, static_input_idxs=static)
    return getattr(code, "current_callable", None) or code


def lift(graph: GraphModule, device: torch.device) -> list[Tensor]:
    """Make inputs, behind the others, of the tensors on `device` that a trace closes over, and return them in order.

    So their contents are read anew in every call. Raises ValueError for a parameter that would be frozen: its network
    was not among those read, or it was closed over in place of being taken from them.
    """
    places = graph.graph.find_nodes(op="placeholder")
    found: dict[int, tuple[Tensor, Node]] = {}
    for node in graph.graph.find_nodes(op="get_attr"):
        tensor = getattr(graph, str(node.target))
        if not isinstance(tensor, Tensor):
            continue
        if tensor.requires_grad:
            raise ValueError(
                f"the loss or a term reads a parameter of shape {tuple(tensor.shape)} of a network it was not given: "
                "take it from the networks that it gets, or give its network to the step (add(..., reads=...))"
            )
        if tensor.device != device:  # a number of the code, such as torch.tensor(2.0)
            continue
        if id(tensor) not in found:
            with graph.graph.inserting_after(places[-1]):
                place = graph.graph.placeholder(f"captured_{len(found)}")
            place.meta = dict(node.meta)
            places.append(place)
            found[id(tensor)] = tensor, place
        node.replace_all_uses_with(found[id(tensor)][1])
        graph.graph.erase_node(node)
    return [tensor for tensor, _ in found.values()]


def add_up(graph: GraphModule, totals: Sequence[Tensor], behind: int) -> None:
    """Add the last outputs of a traced graph to `totals`, new inputs behind some, and return the others alone."""
    output, places = graph.graph.output_node(), graph.graph.find_nodes(op="placeholder")
    results, last = output.args[0], places[behind - 1]
    kept = len(results) - len(totals)
    for i, one in enumerate(results[kept:]):
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"total_{i}")
        last.meta["val"] = one.meta["val"].double()
        with graph.graph.inserting_before(output):
            graph.graph.call_function(torch.ops.aten.add_.Tensor, (last, one))
    output.args = (results[:kept],)


def clipped(gradients: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """Return the vector of gradients, shortened to `max_norm`, and its norm before, as `clip_grad_norm_` does."""
    norm = torch.linalg.vector_norm(gradients)
    if max_norm == math.inf:
        return gradients, norm
    return gradients * once((max_norm / (norm + 1e-6)).clamp(max=1.0)), norm


# --- matrix multiplication ---


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


@cache
def keep_once() -> None:
    """Let inductor compute what `once` marks into memory; by itself it would do so for every entry that reads it."""
    from torch._inductor.ir import TensorBox
    from torch._inductor.lowering import register_lowering

    def kept(number: TensorBox) -> TensorBox:
        number.realize()
        return number

    register_lowering(torch.ops.plasticity.once, type_promotion_kind=None)(kept)


def _addmm(bias: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")


def _addmm_shape(bias: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[1])


_LIBRARY = torch.library.Library("plasticity", "DEF")
_LIBRARY.define("addmm(Tensor? bias, Tensor left, Tensor right) -> Tensor", tags=(torch.Tag.needs_exact_strides,))
_LIBRARY.impl("addmm", _addmm, "CPU")
_LIBRARY.impl("addmm", _addmm_shape, "Meta")
_LIBRARY.define("once(Tensor number) -> Tensor")
_LIBRARY.impl("once", torch.clone, "CompositeExplicitAutograd")
