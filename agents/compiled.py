"""Turn a gradient step into one compiled graph: a plain function of tensors, without modules or autograd.

The loss is traced once with `make_fx` through forward and backward pass, with the vector of the trained parameters, all
others and buffers as inputs; clipping and a plain Adam follow in the same graph. Inductor compiles it. What remains of
a call is the kernels: no module calls, no autograd, no guards. The caller must see to it that the inputs keep their
shapes (`gradient.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from .adam import Move, once
from .flat import Flat
from .products import LIBRARY, Precision, choose_products

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
"""Takes tensors, returns a loss of one number and metrics to log; reads parameters, changes nothing."""


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
    choose_products(graph, precision, tensors[0].device)
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


@cache
def keep_once() -> None:
    """Let inductor compute what `once` marks into memory; by itself it would do so for every entry that reads it."""
    from torch._inductor.ir import TensorBox
    from torch._inductor.lowering import register_lowering

    def kept(number: TensorBox) -> TensorBox:
        number.realize()
        return number

    register_lowering(torch.ops.plasticity.once, type_promotion_kind=None)(kept)


LIBRARY.define("once(Tensor number) -> Tensor")
LIBRARY.impl("once", torch.clone, "CompositeExplicitAutograd")
