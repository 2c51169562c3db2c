"""Run a model without leaving a trace: random states, buffers, train flags and gradients stay as they were."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

T = TypeVar("T")
_WRITTEN: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
"""Module -> those of its parameters that a pass writes to, as one does that moves the target of a contrastive loss."""
_OWNER: ContextVar[object | None] = ContextVar("plasticity_isolated_pass_owner", default=None)


def foreign_pass(observer: object) -> bool:
    """Return whether the pass now running is a private one that belongs to somebody other than ``observer``."""
    return _OWNER.get() not in (None, observer)


@contextmanager
def undisturbed(model: nn.Module, owner: object, evaluate: bool = True) -> Iterator[None]:
    """Restore on exit all that running ``model`` could have moved, and keep other observers from counting the passes.

    Inside, every module is in evaluation mode (unless ``evaluate`` is False), compiled modules run eagerly and fused
    attention, which skips the modules it consists of, is off. Plain Python attributes that a ``forward`` changes cannot
    be restored.
    """
    flags = [(module, module.training) for module in model.modules()]
    compiled = [(module, call) for module, _ in flags if (call := module._compiled_call_impl) is not None]
    buffers = [(module, dict(module._buffers), list(map(_Saved, _buffers(module)))) for module, _ in flags]
    written = [(p, p.data, p.data.clone()) for module, _ in flags for p in _written(module)]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    fast_path = torch.backends.mha.get_fastpath_enabled()
    token = _OWNER.set(owner)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=devices))
            stack.enter_context(other_generators())
            # Inference mode hides composite operations and refuses gradients; leaving it switches gradients on.
            gradients = torch.is_grad_enabled()
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(gradients))
            if is_compiled(model):
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for module, _ in compiled:
                module._compiled_call_impl = None
            torch.backends.mha.set_fastpath_enabled(False)
            for module, flag in flags:
                module.training = flag and not evaluate
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        _OWNER.reset(token)
        for module, flag in flags:
            module.training = flag
        for module, call in compiled:
            module._compiled_call_impl = call
        for module, named, saved in buffers:
            _put_back(module, named)
            for buffer in saved:
                buffer.restore()
        for parameter, data, values in written:
            put_back(parameter, data, values)


def note_written(module: nn.Module, key: str) -> None:
    """Say that a pass writes to a parameter, so that it is restored after every pass of our own."""
    _WRITTEN.setdefault(module, set()).add(key)


def put_back(parameter: Tensor, data: Tensor, values: Tensor) -> None:
    """Let a parameter have the memory and the values that it had, unseen by the graphs that hold it."""
    parameter.data = data
    data.copy_(values)


def _written(module: nn.Module) -> list[Tensor]:
    found = (module._parameters.get(key) for key in sorted(_WRITTEN.get(module, ())))
    return [parameter for parameter in found if parameter is not None]


@contextmanager
def unseen() -> Iterator[None]:
    """Within, no observer counts a pass of any model; nothing else changes, so gradients flow as ever."""
    token = _OWNER.set(object())
    try:
        yield
    finally:
        _OWNER.reset(token)


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of ``model`` by name, without the ``_orig_mod`` that ``torch.compile`` inserts.

    The parts of a scripted module are left out: they run without hooks.
    """
    found = {_plain(name): module for name, module in model.named_modules()}
    if scripted := tuple(f"{name}." for name, module in found.items() if is_scripted(module)):
        return {name: module for name, module in found.items() if not name.startswith(scripted)}
    return found


def is_scripted(module: nn.Module) -> bool:
    """Return whether TorchScript runs a module, without hooks."""
    return isinstance(module, torch.jit.ScriptModule)


def named_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of ``model`` by name, without the ``_orig_mod`` of ``torch.compile``; a shared one once."""
    return {_plain(name): parameter for name, parameter in model.named_parameters()}


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod") if "_orig_mod" in name else name


def call_of(model: nn.Module, method: str) -> Callable[..., Any]:
    """Return what calls ``model`` by a method: with its hooks, where that is ``forward``."""
    return model if method == "forward" else getattr(model, method)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return ``value`` with ``change`` applied to the tensors in it, in containers of the same kind.

    Entered are sequences, mappings (also a TensorDict, or the batch of a tokenizer) and dataclasses.
    """
    if isinstance(value, Tensor):
        return change(value)
    if type(value) is dict:
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, Mapping):
        return _mapped(value, change)
    if is_dataclass(value) and not isinstance(value, type):
        twin = copy.copy(value)
        for item in fields(value):
            if hasattr(value, item.name):
                object.__setattr__(twin, item.name, map_tensors(getattr(value, item.name), change))
        return twin
    if isinstance(value, (list, tuple)):
        items = [map_tensors(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _mapped(value: Mapping, change: Callable[[Tensor], Tensor]) -> Any:
    if hasattr(value, "batch_size") and hasattr(value, "apply"):  # a TensorDict shares its memory with a plain copy
        return value.apply(change)
    try:
        twin: Any = copy.copy(value)
        for key, item in value.items():
            twin[key] = map_tensors(item, change)
    except TypeError:  # a mapping that cannot be written to
        return {key: map_tensors(item, change) for key, item in value.items()}
    return twin


def is_compiled(model: nn.Module) -> bool:
    """Return whether any part of ``model`` runs through ``torch.compile``."""
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())


class _WithoutGraph(TorchFunctionMode):
    """Within, deep copies of tensors that belong to a graph, which torch refuses, are detached."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def copied(value: T) -> T:
    """Return a deep copy of a model, or of anything that holds some, also after a pass that left its outputs there.

    Policies of others keep the distribution of their last pass, whose tensors belong to a graph.
    """
    with _WithoutGraph():
        return copy.deepcopy(value)


def wrapped(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the model, then the module inside each wrapper of ``torch.compile`` or data-parallel training."""
    yield model
    if hasattr(model, "_orig_mod"):
        yield from wrapped(model._orig_mod)  # type: ignore[arg-type]
    elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        yield from wrapped(model.module)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of ``torch.compile`` and data-parallel training; TypeError for others."""
    if not isinstance(model, nn.Module):
        several = ": one at a time here; watch() takes a mapping of networks by name"
        advice = several if isinstance(model, list | tuple | dict) else ""
        raise TypeError(f"a network is needed, one torch.nn.Module; got {type(model).__name__}{advice}")
    return list(wrapped(model))[-1]


def _buffers(module: nn.Module) -> list[Tensor]:
    return [buffer for buffer in module._buffers.values() if buffer is not None and not is_lazy(buffer)]


def _put_back(module: nn.Module, named: dict[str, Tensor | None]) -> None:
    """Let a module have the buffers that it had, and no others."""
    same = module._buffers.keys() == named.keys() and all(module._buffers[n] is b for n, b in named.items())
    if not same and not is_scripted(module):
        module._buffers.clear()
        module._buffers.update(named)


class _Saved:
    """A buffer, with the values that it had."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer, self.values, self._version = buffer, buffer.clone(), _version(buffer)

    def restore(self) -> None:
        """Write the values back, if they changed."""
        # Writing raises the version counter, which a graph that waits for its backward pass would complain about.
        if not self._is_unchanged():
            with torch.no_grad():
                if self.buffer.shape != self.values.shape:
                    self.buffer.resize_(self.values.shape)
                self.buffer.copy_(self.values)

    def _is_unchanged(self) -> bool:
        now, then = self.buffer, self.values
        if now.layout is not torch.strided or now.is_meta:  # what torch does not compare
            return _version(now) == self._version
        if now.shape != then.shape:
            return False
        return torch.equal(now, then) or bool((now.isnan() & then.isnan() | (now == then)).all())


def _version(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to, None where torch does not count it."""
    return None if tensor.is_inference() else tensor._version


@contextmanager
def other_generators() -> Iterator[None]:
    """Restore the global generators of Python and, where it is loaded, NumPy."""
    python_state = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    try:
        yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)
