"""A device that is not the CPU, on any machine: `"elsewhere"`, whose tensors compute in host memory.

It refuses what a GPU refuses: tensors of two devices in one operation, `.numpy()`, a generator of another device. And
it counts what makes a host wait for a GPU: reading a number, shapes that depend on values, copies between the devices.
It is one of PyTorch's backends in Python (pytorch/pytorch, pull request 157859), which are experimental.

What it cannot show: other rounding, speed, and whatever a compiler for GPUs does: losses are traced as for one, and
the trace runs as it is, unless there are constants in it (then it fails). An error in a hook of a backward pass
ends the process: autograd runs it in a thread of the device, from which Python's errors do not return.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

NAME = "elsewhere"
FIRST = f"{NAME}:0"
aten = torch.ops.aten
LIBRARY = torch.library.Library("_", "IMPL")
COPIES = {aten._to_copy, aten.copy_}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
# The host needs a number of the device, or does not know the size of the result before it is there.
WAITING = {
    aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten.bincount,
    aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave, aten._linalg_check_errors,
}  # fmt: skip
FACTORIES = (
    "empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "linspace",
    "randperm", "randperm.generator", "eye", "eye.m",
)  # fmt: skip

waits: Counter[str] = Counter()
"""How often the host waited for the device, by operation."""


@contextmanager
def without_waiting() -> Iterator[None]:
    """Raise RuntimeError if the host waits for the device within."""
    before = waits.copy()
    yield
    if found := waits - before:
        raise RuntimeError(f"the host waits for the device: {dict(found)}")


class Elsewhere(Tensor):
    """A tensor on the device: a shell around the tensor of the host that has its numbers."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, host: Tensor) -> Elsewhere:
        if torch.is_inference_mode_enabled():  # torch fails to count the versions of shells made in that mode
            with torch.inference_mode(False):
                return cls(host)
        layout: dict[str, Any] = {"strides": host.stride(), "storage_offset": host.storage_offset()}
        shell = Tensor._make_wrapper_subclass(cls, host.size(), dtype=host.dtype, device=FIRST, **layout)
        shell.host = host
        return shell

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        effect, special = nature_of(func)
        if kwargs or special or has_host(args):
            kwargs = kwargs or {}
            check(func, args, kwargs)
            note_waits(func, args, kwargs)
            found = func(*host_of(args), **without_device({key: host_of(x) for key, x in kwargs.items()}))
        else:  # the same, faster
            found = func(*host_of(args))
        if effect == "in place":
            return args[0]
        if not kwargs or torch.device(kwargs.get("device") or NAME).type == NAME:
            found = shell_of(found)
        return found if effect == "new" else return_and_correct_aliasing(func, args, kwargs or {}, found)

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.host.untyped_storage()

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: Elsewhere) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.host = value.host

    def numpy(self, *, force: bool = False) -> np.ndarray:
        if not force:
            raise TypeError(f"cannot convert a tensor {NAME} to numpy")
        return self.detach().cpu().numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return bring, (self.detach().cpu(), self.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            twin = memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
            attributes = {name: value for name, value in vars(self).items() if name != "host"}
            vars(twin).update(copy.deepcopy(attributes, memo))
            if not isinstance(self, nn.Parameter):  # as torch does
                twin.grad = copy.deepcopy(self.grad, memo)
        return memo[id(self)]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.host!r} {NAME}"


def host_of(value: Any) -> Any:
    """Return a value, or what is in a list or tuple, with tensors of the host in place of those of the device."""
    kind = type(value)
    if kind is Elsewhere:
        return value.host
    return kind([host_of(x) for x in value]) if kind is list or kind is tuple else value


def shell_of(value: Any) -> Any:
    """Return a value, or what is in a list or tuple, with tensors of the device in place of those of the host."""
    kind = type(value)
    if kind is list or kind is tuple:
        return kind([shell_of(x) for x in value])
    return Elsewhere(value) if isinstance(value, Tensor) else value


def has_host(values: Sequence[Any]) -> bool:
    """Return whether there are tensors that are not of the device among them, or in lists and tuples of them."""
    for x in values:
        kind = type(x)
        if kind is list or kind is tuple:
            if has_host(x):
                return True
        elif kind is not Elsewhere and isinstance(x, Tensor):
            return True
    return False


@cache
def nature_of(func: Any) -> tuple[str, bool]:
    """Return what an operation does, and whether it copies, takes indices or lets the host wait.

    It makes "new" tensors or views, changes its first argument "in place", or does anything "else".
    """
    schema, packet = func._schema, func.overloadpacket
    told = [x.alias_info for x in (*schema.arguments, *schema.returns) if x.alias_info is not None]
    special = packet in COPIES or packet in INDEXING or packet in WAITING
    if not any(alias.is_write for alias in told):
        return "new", special
    first = schema.arguments[0].alias_info
    alone = len(told) == 2 and len(schema.returns) == 1 and first is not None and first.is_write
    return "in place" if alone and torch.Tag.inplace_view not in func.tags else "else", special


class Generator(torch.Generator):
    """A generator that knows where it draws; it takes the place of `torch.Generator`."""

    place: torch.device
    known: ClassVar[WeakValueDictionary[int, Generator]] = WeakValueDictionary()

    def __new__(cls, device: torch.device | str = "cpu") -> Generator:
        made = super().__new__(cls)
        made.place = cls.known.setdefault(made._cdata, made).place = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    def __deepcopy__(self, memo: dict[int, Any]) -> Generator:
        twin = memo[id(self)] = type(self)(self.place)
        twin.set_state(self.get_state())
        return twin


def place(generator: torch.Generator) -> torch.device:
    """Where a generator draws; operations are given one of its own class, with the same `_cdata`."""
    known = Generator.known.get(generator._cdata)
    return generator.device if known is None else known.device


class Drawing(TorchFunctionMode):
    """Refuse to draw on the CPU from a generator of the device, as a GPU's would."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        generator = (kwargs or {}).get("generator")
        if isinstance(generator, Generator) and isinstance(found, Tensor) and found.device.type != generator.place.type:
            raise RuntimeError(f"{func}: a generator on {generator.place}, a tensor on {found.device}")
        return found


def bring(host: Tensor, requires_grad: bool) -> Tensor:
    """Load what was saved on the device."""
    return host.to(NAME).requires_grad_(requires_grad)


def without_device(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Let the host compute."""
    return kwargs if kwargs.get("device") is None else {**kwargs, "device": torch.device("cpu")}


def check(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Raise RuntimeError for what a device other than the CPU refuses."""
    packet, generator = func.overloadpacket, kwargs.get("generator")
    if generator is not None and place(generator).type != NAME:
        raise RuntimeError(f"{func}: a generator on {place(generator)}, tensors {NAME}")
    if packet in COPIES:
        return
    if packet in INDEXING:
        if not isinstance(args[0], Elsewhere) and any(isinstance(i, Elsewhere) for i in args[1]):
            raise RuntimeError(f"{func}: indices {NAME} of a tensor on the CPU")
        args = (args[0], *args[2:])  # indices may be the CPU's
    tensors = [x for x in tree_leaves((*args, *kwargs.values())) if isinstance(x, Tensor)]
    if any(not isinstance(x, Elsewhere) and x.dim() > 0 for x in tensors):
        raise RuntimeError(f"{func}: tensors on {[str(x.device) for x in tensors]}")


def note_waits(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Count an operation that makes the host wait."""
    packet = func.overloadpacket
    if packet is aten.copy_:
        waiting = isinstance(args[0], Elsewhere) is not isinstance(args[1], Elsewhere)
    elif packet is aten._to_copy:
        waiting = torch.device(kwargs.get("device") or NAME).type != NAME
    elif packet in INDEXING:
        waiting = any(i is not None and (i.dtype in (torch.bool, torch.uint8) or i.is_cpu) for i in args[1])
    else:
        waiting = packet in WAITING
    if waiting:
        waits[str(func)] += 1


class Absent(_DummyBackendModule):
    """The module `torch.elsewhere`: nothing that anybody would choose by himself."""

    def is_available(self) -> bool:
        return False

    def device_count(self) -> int:
        return 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class NoAccelerator(_DummyPrivateUse1Hook):
    """The same for `torch.accelerator`."""

    def is_available(self) -> bool:
        return False


def register() -> None:
    """Make the device known: once in a process, before its first backward pass."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Absent(), hook=NoAccelerator())
    torch.serialization.add_safe_globals([bring])
    torch.library.impl("aten::_copy_from", "PrivateUse1", copy_from)
    for name in FACTORIES:
        torch.library.impl(f"aten::{name}", "PrivateUse1", factory(name))
    torch.library.impl("aten::_thnn_fused_gru_cell", "AutogradPrivateUse1", gru_cell)
    torch.library.impl("aten::_thnn_fused_lstm_cell", "AutogradPrivateUse1", lstm_cell)
    LIBRARY.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in ("linear", "conv2d"):
        torch.library.impl(f"aten::{name}", "AutocastPrivateUse1", in_lower_precision(name))


def factory(name: str) -> Callable[..., Tensor]:
    """A kernel that makes a tensor of none; all that are not here fill what one of these has made."""
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(aten, packet), overload or "default")

    def make(*args: Any, **kwargs: Any) -> Tensor:
        check(operation, args, kwargs)
        return Elsewhere(operation(*args, **without_device(kwargs)))

    return make


def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """aten::_copy_from: torch.tensor copies past __torch_dispatch__"""
    waits["torch.tensor"] += 1
    host = target.host if isinstance(target, Elsewhere) else target
    host.copy_(source.host if isinstance(source, Elsewhere) else source)
    return target


def gru_cell(
    inputs: Tensor, hidden: Tensor, h: Tensor, input_bias: Tensor | None = None, hidden_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """aten::_thnn_fused_gru_cell: torch takes a kernel of GPUs for whatever is not the CPU"""
    inputs = inputs if input_bias is None else inputs + input_bias
    hidden = hidden if hidden_bias is None else hidden + hidden_bias
    (reset, update, new), (more_reset, more_update, old) = inputs.chunk(3, 1), hidden.chunk(3, 1)
    new = (new + (reset + more_reset).sigmoid() * old).tanh()
    return new + (update + more_update).sigmoid() * (h - new), torch.empty_like(h)


def lstm_cell(
    inputs: Tensor, hidden: Tensor, c: Tensor, input_bias: Tensor | None = None, hidden_bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """aten::_thnn_fused_lstm_cell: the same"""
    gates = sum((bias for bias in (input_bias, hidden_bias) if bias is not None), inputs + hidden)
    enter, forget, new, leave = gates.chunk(4, 1)
    c = forget.sigmoid() * c + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * c.tanh(), c, torch.empty_like(c)


def leave_as_traced(graph: GraphModule, num_static: int) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    """Take the place of a compiler: a traced graph stays as it is. It must not have constants of the device."""
    return lambda inputs: graph(*inputs)


def in_lower_precision(name: str) -> Callable[..., Tensor]:
    """An operation as autocast runs it."""

    def run(*args: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(NAME)
        with torch._C._DisableAutocast():
            return getattr(aten, name)(*tree_map_only(Tensor, lambda x: x.to(dtype), args))

    return run
