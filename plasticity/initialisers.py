"""How weight layers were initialised, read off their values before training: so that a neuron is redrawn alike."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .isolation import named_modules, unwrap
from .layers import neuron_axis

ALPHA = 1e-4
"""Chance with which a layer's own distribution is taken for another one."""

SAMPLE = 1 << 16
"""At most this many weights of a layer are looked at."""

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal cut off at two standard deviations, as JAX and Keras draw it."""

GAINS = (1.0, math.sqrt(2), 5 / 3, 2.0, 0.5, 0.1, 0.01, 0.001)
"""Gains that a single orthogonal row may have: any row is orthogonal to no other, so only its norm can tell."""


@dataclass(frozen=True, eq=False)
class Law:
    """A distribution of weights.

    ``parameters``: constant (value), uniform (low, high), normal (mean, std), truncated (std; cut at two of them),
    orthogonal (gain), empirical (); ``values`` are what an empirical law draws from.
    """

    kind: Literal["constant", "uniform", "normal", "truncated", "orthogonal", "empirical"]
    parameters: tuple[float, ...] = ()
    values: Tensor | None = None

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Return a draw with the shape, dtype and device of ``like``: made on the CPU, so the same on every device."""
        wide = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        out = torch.empty(like.shape, dtype=wide, device="cpu")
        with torch.no_grad():
            match self.kind:
                case "constant":
                    out.fill_(self.parameters[0])
                case "uniform":
                    out.uniform_(*self.parameters, generator=generator)
                case "normal":
                    out.normal_(*self.parameters, generator=generator)
                case "truncated":
                    std = self.parameters[0]
                    nn.init.trunc_normal_(out, 0.0, std, -2 * std, 2 * std, generator=generator)
                case "orthogonal":
                    nn.init.orthogonal_(out, self.parameters[0], generator=generator)
                case "empirical":
                    assert self.values is not None
                    out = self.values[torch.randint(len(self.values), like.shape, generator=generator, device="cpu")]
        return out.to(like.device, like.dtype)

    def cdf(self, x: Tensor) -> Tensor:
        """Return the distribution function at ``x``, float64; of uniform, normal and truncated laws."""
        if self.kind == "uniform":
            low, high = self.parameters
            return ((x - low) / (high - low)).clamp(0, 1)
        if self.kind == "normal":
            mean, std = self.parameters
            return torch.special.ndtr((x - mean) / std)
        tail = 0.022750131948179195  # of a standard normal beyond -2
        return ((torch.special.ndtr(x / self.parameters[0]) - tail) / (1 - 2 * tail)).clamp(0, 1)

    def log_likelihood(self, x: Tensor, slack: float) -> float:
        """Return the log density of all of ``x``, -inf outside the support widened by the relative ``slack``."""
        if self.kind == "uniform":
            low, high = self.parameters
            room = slack * max(abs(low), abs(high))
            inside = bool(x[0] >= low - room) and bool(x[-1] <= high + room)
            return -len(x) * math.log(high - low) if inside else -math.inf
        mean, std = self.parameters if self.kind == "normal" else (0.0, self.parameters[0])
        if self.kind == "truncated" and float(x.abs().max()) > 2 * std * (1 + slack):
            return -math.inf
        mass = 0.95449973610364158 if self.kind == "truncated" else 1.0
        constant = math.log(std * mass) + 0.5 * math.log(2 * math.pi)
        return -len(x) * constant - 0.5 * float((x - mean).square().sum()) / std**2

    def __str__(self) -> str:
        match self.kind:
            case "uniform":
                low, high = self.parameters
                return f"uniform(±{high:.4g})" if low == -high else f"uniform({low:.4g} to {high:.4g})"
            case "normal":
                mean, std = self.parameters
                return f"normal(std {std:.3g})" if mean == 0 else f"normal(mean {mean:.3g}, std {std:.3g})"
            case "truncated":
                return f"truncated normal(std {self.parameters[0]:.3g}, cut at 2 std)"
            case "empirical":
                return f"empirical({0 if self.values is None else len(self.values)} values)"
        return f"{self.kind}({'gain ' if self.kind == 'orthogonal' else ''}{self.parameters[0]:.3g})"


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
        ±1/sqrt(fan_in), is taken wherever the values are compatible with it (bound, and a Kolmogorov-Smirnov test at
        level :data:`ALPHA`); else the most likely of He, Xavier and LeCun uniform, normal and truncated normal, common
        fixed scales, and fits with free scale; else the values themselves are drawn from. With hundreds of weights the
        family is certain and a free scale good to a few percent; with a dozen only the order of magnitude is, and a
        law of about the default's width passes for the default. A single row counts as orthogonal only at one of the
        common :data:`GAINS`.
        """
        weight, bias = weight_of(module), bias_of(module)
        fan_in, fan_out = fans(weight)
        law = _constant(weight) or _orthogonal(weight) or _random(weight, fan_in, fan_out)
        return cls(module, law, None if bias is None else _constant(bias) or _random(bias, fan_in, fan_out))

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
    if not getattr(module.reset_parameters, "__module__", "").startswith("torch.nn"):
        twin = copy.copy(module)
        twin.__dict__["_parameters"] = fresh_parameters(module, torch.Generator().manual_seed(0))
        inferred = Initialiser.infer(twin)
        return Initialiser(module, inferred.weight_law, inferred.bias_law)
    law = _default(fans(weight)[0])
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


def _default(fan_in: int) -> Law:
    # kaiming_uniform_(a=sqrt(5)) of torch's own layers: sqrt(6 / (1 + 5) / fan_in), not He's sqrt(6 / fan_in).
    return Law("uniform", (-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in)))


def _constant(values: Tensor) -> Law | None:
    """Return a constant law for values that are all equal; of a single one only if it is a round number."""
    if values.numel() == 0:
        return Law("constant", (0.0,))
    first = values.detach().flatten()[0]
    round_number = torch.tensor(float(f"{float(first):.3g}"), dtype=values.dtype, device=values.device)
    alike = bool((values == first).all()) and (values.numel() > 1 or bool(round_number == first))
    return Law("constant", (float(f"{float(first):.8g}"),)) if alike else None


def _orthogonal(weight: Tensor) -> Law | None:
    """Return an orthogonal law if the rows, or the columns where they are fewer, are orthogonal and of one norm."""
    matrix = weight.detach().flatten(1).double()
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = matrix @ matrix.T
    square = float(gram.diagonal().mean())
    if not math.isfinite(square) or square == 0:
        return None
    gain = math.sqrt(square)
    tolerance = max(1e-4, 8 * torch.finfo(weight.dtype).eps)
    if len(matrix) == 1:
        gain = min(GAINS, key=lambda g: abs(g - gain))
        return Law("orthogonal", (gain,)) if abs(square / gain**2 - 1) < tolerance / 10 else None
    off = gram / square - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return Law("orthogonal", (float(f"{gain:.5g}"),)) if float(off.abs().max()) < tolerance else None


def _random(values: Tensor, fan_in: int, fan_out: int) -> Law:
    """Return torch's default if the values are compatible with it, else the most likely law that they are."""
    flat = values.detach().flatten().double().cpu()
    if not bool(flat.isfinite().all()):
        raise ValueError("cannot infer an initialiser from values that are not finite")
    sample = flat[:: -(-len(flat) // SAMPLE)]
    if len(sample) < len(flat):
        sample = torch.cat([sample, flat.min()[None], flat.max()[None]])
    sample = sample.sort().values
    slack = 4 * torch.finfo(values.dtype).eps
    default = _default(fan_in)
    if default.log_likelihood(sample, slack) > -math.inf and _compatible(sample, default):
        return default
    scored = [(law.log_likelihood(sample, slack), law) for law in _named(fan_in, fan_out)]
    # A free parameter has to earn log(n), as in the Bayesian information criterion of a uniform's bound.
    scored += [(law.log_likelihood(sample, slack) - k * math.log(len(sample)), law) for k, law in _fitted(sample)]
    for score, law in sorted(scored, key=lambda pair: -pair[0]):
        if score > -math.inf and _compatible(sample, law):
            return law
    return Law("empirical", (), flat.to(torch.promote_types(values.dtype, torch.float32)))


def _compatible(x: Tensor, law: Law) -> bool:
    """Whether a Kolmogorov-Smirnov test of the sorted values lets the law pass (Stephens' form of the statistic)."""
    n, cdf = len(x), law.cdf(x)
    rank = torch.arange(n, dtype=x.dtype, device=x.device)
    distance = float(torch.maximum(cdf - rank / n, (rank + 1) / n - cdf).max())
    return distance * (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) < math.sqrt(-math.log(ALPHA / 2) / 2)


def _named(fan_in: int, fan_out: int) -> Iterable[Law]:
    """Yield the laws with names: LeCun, He and Xavier scales with usual gains, and usual fixed scales."""
    stds = {math.sqrt(v / f) for v in (1 / 3, 1, 2, 25 / 9) for f in (fan_in, fan_out, (fan_in + fan_out) / 2)}
    for std in stds:
        yield Law("truncated", (std / TRUNCATED_STD,))
        yield Law("uniform", (-std * math.sqrt(3), std * math.sqrt(3)))
    for std in stds | {1.0, 0.1, 0.05, 0.02, 0.01, 0.001}:
        yield Law("normal", (0.0, std))
        yield Law("truncated", (std,))
    for bound in (1.0, 0.1, 0.05, 0.01, 0.003, 0.001):
        yield Law("uniform", (-bound, bound))


def _fitted(x: Tensor) -> Iterable[tuple[int, Law]]:
    """Yield (number of free parameters, law) for fits to the sorted values, where these are not all equal."""
    n, low, high = len(x), float(x[0]), float(x[-1])
    if low == high:
        return
    bound = max(-low, high) * (n + 1) / n
    yield 1, Law("uniform", (-bound, bound))
    room = (high - low) / max(1, n - 1)
    yield 2, Law("uniform", (low - room, high + room))
    std, mean = float(x.square().mean().sqrt()), float(x.mean())
    yield 1, Law("normal", (0.0, std))
    yield 2, Law("normal", (mean, float(x.std())))
    yield 1, Law("truncated", (max(std / TRUNCATED_STD, bound / 2),))
