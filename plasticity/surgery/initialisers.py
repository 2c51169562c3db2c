"""How weight layers were initialised, read off their values before training: so that a neuron is redrawn alike."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.isolation import named_modules, unwrap
from plasticity.structure.layers import is_conv1d, neuron_axis, num_inputs, num_neurons
from plasticity.structure.slices import Slice

from .laws import Law, constant_law, default_law, orthogonal_law, random_law


@dataclass(frozen=True, eq=False, repr=False)
class Initialiser:
    """How one Linear, ConvNd or ConvTransposeNd was initialised.

    Rows of an orthogonal layer are drawn from a fresh orthogonal matrix: of the right norm and in a random direction,
    but not orthogonal to rows that stay, which training has turned anyway.
    """

    module: nn.Module
    weight_law: Law
    bias_law: Law | None

    @classmethod
    def infer(cls, module: nn.Module) -> Initialiser:
        """Infer the distributions from the present values of weight and bias; call it before training starts.

        Orthogonal and constant weights are recognised exactly. Otherwise torch's default, uniform within
        ±1/sqrt(fan_in), is taken wherever the values are compatible with it (bound, Kolmogorov-Smirnov test); else
        the most likely of He, Xavier and LeCun uniform, normal and truncated normal, common fixed scales, and fits with
        free scale; else the values themselves are drawn from. With hundreds of weights the family is certain and a free
        scale good to a few percent; with a dozen only the order of magnitude is, and a law of about the default's width
        passes for the default. A single row counts as orthogonal only at a common gain.
        """
        return cls.of_values(module, weight_of(module), bias_of(module))

    @classmethod
    def of_values(cls, module: nn.Module, weight: Tensor, bias: Tensor | None) -> Initialiser:
        """Infer the distributions from other values of the layer's weight and bias than the present ones."""
        fan_in, fan_out = layer_fans(module)
        law = constant_law(weight) or orthogonal_law(weight) or random_law(weight, fan_in, fan_out)
        return cls(module, law, None if bias is None else constant_law(bias) or random_law(bias, fan_in, fan_out))

    def weight(self, generator: torch.Generator) -> Tensor:
        """Return a fresh draw of the whole weight: shape, dtype and device of the module's."""
        return self.weight_law.draw(weight_of(self.module), generator)

    def bias(self, generator: torch.Generator) -> Tensor | None:
        """Return a fresh draw of the whole bias, None without one."""
        bias = bias_of(self.module)
        return None if bias is None or self.bias_law is None else self.bias_law.draw(bias, generator)

    def state_dict(self) -> dict[str, Any]:
        """Return what was inferred as plain values and tensors: a resumed run must not infer from trained weights."""
        laws = {"weight": self.weight_law, "bias": self.bias_law}
        return {key: law and (law.kind, law.parameters, law.values) for key, law in laws.items()}

    @classmethod
    def from_state(cls, module: nn.Module, state: Mapping[str, Any]) -> Initialiser:
        """Return the initialiser of ``module`` that :meth:`state_dict` described."""
        laws = {key: law and Law(law[0], tuple(law[1]), law[2]) for key, law in state.items()}
        return cls(module, laws["weight"], laws["bias"])

    def __repr__(self) -> str:
        return f"{self.weight_law}" if self.bias_law is None else f"{self.weight_law}, bias {self.bias_law}"


def record_initialisers(model: nn.Module) -> dict[str, Initialiser]:
    """Return the initialiser of every weight layer by its name in the wiring; call it before training starts.

    Layers whose weight is computed from other parameters are left out: looking at a spectrally normalised weight would
    already change it, and single neurons of such layers cannot be redrawn.
    """
    return {name: Initialiser.infer(m) for name, m in weight_layers(model) if "weight" in m._parameters}


def bias_law(module: nn.Module, bias: Tensor) -> Law:
    """Return the distribution that the bias of a layer was drawn from, without a look at its weight."""
    kernel = math.prod(getattr(module, "kernel_size", ()))
    groups = int(getattr(module, "groups", 1))
    fan_in, fan_out = num_inputs(module) * kernel // groups, num_neurons(module) * kernel // groups
    return constant_law(bias) or random_law(bias, max(1, fan_in), max(1, fan_out))


def weight_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every Linear and convolution with its name as in the wiring."""
    for name, module in named_modules(unwrap(model)).items():
        if neuron_axis(module) is not None:
            yield name, module


def default_initialiser(module: nn.Module) -> Initialiser:
    """Return the module's own ``reset_parameters`` as an initialiser, for models met after training began.

    One that torch did not write is run once on a copy, without touching the global generators, and inferred from.
    """
    weight = weight_of(module)
    if not hasattr(module, "reset_parameters"):
        return Initialiser.infer(module)
    if not getattr(module.reset_parameters, "__module__", "").startswith("torch.nn"):
        twin = copy.copy(module)
        twin.__dict__["_parameters"] = fresh_parameters(module, torch.Generator().manual_seed(0))
        inferred = Initialiser.infer(twin)
        return Initialiser(module, inferred.weight_law, inferred.bias_law)
    law = default_law(fans(weight)[0])
    return Initialiser(module, law, None if module.bias is None else law)


def fresh_parameters(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor | None]:
    """Return what ``module.reset_parameters()`` would make of the module's own parameters, which stay as they are.

    Drawn on the CPU from a fork of the global generator, seeded by ``generator``. Raises ValueError for a module with
    parameters of its own and no such method.
    """
    twin = _twin(module)
    reset = getattr(twin, "reset_parameters", None) or getattr(twin, "_reset_parameters", None)
    if reset is None:
        raise ValueError(f"{type(module).__name__} has parameters of its own and no reset_parameters() to redraw them")
    seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        reset()
    return dict(twin._parameters)


def fans(weight: Tensor) -> tuple[int, int]:
    """Return (fan in, fan out) as ``torch.nn.init`` counts them, from the layout (out, in, *kernel)."""
    field = math.prod(weight.shape[2:])
    return max(1, weight.shape[1] * field), max(1, weight.shape[0] * field)


def layer_fans(module: nn.Module) -> tuple[int, int]:
    """Return (fan in, fan out) of a layer, as ``torch.nn.init`` counts them; of GPT-2's Conv1D those of a Linear."""
    weight = weight_of(module)
    return fans(weight.T if is_conv1d(module) or (isinstance(module, Slice) and module.neurons_last) else weight)


def _twin(module: nn.Module) -> nn.Module:
    """Return a copy with parameters, buffers and children of its own, on the CPU, and everything else shared."""
    twin = copy.copy(module)
    for kind in ("_parameters", "_buffers"):
        own = {n: None if t is None else t.detach().cpu().clone() for n, t in module.__dict__[kind].items()}
        twin.__dict__[kind] = own
    twin.__dict__["_modules"] = {n: None if m is None else _twin(m) for n, m in module._modules.items()}
    return twin


def weight_of(module: nn.Module) -> Tensor:
    """Return the weight of a layer; raise ValueError for a lazy one that has not run yet."""
    weight = module.weight
    if not isinstance(weight, Tensor) or isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(f"{type(module).__name__} has no weight yet: run the model once before recording initialisers")
    return weight


def bias_of(module: nn.Module) -> Tensor | None:
    """Return the bias of a layer, None without one."""
    bias = module.bias
    return bias if isinstance(bias, Tensor) else None
