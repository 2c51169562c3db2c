"""The gradients of single samples: the rank of the neural tangent kernel, and how far samples agree on a direction.

No Jacobian is made. One backward pass gives the gradient d at the output of every layer, hooks give its input a; the
product of two samples' gradients of a weight and a bias is (a . a' + 1) (d . d'). Of all Linear and convolution layers
and layer norms of the network, the output layer included; other parameters are left out, and ``details`` counts them.
So are those that the calls of their layer do not explain: shared between layers, computed from others, used elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plasticity.isolation import named_modules
from plasticity.value_types import checked

from .gradient import kurtosis
from .network import Again, NetworkProbe, NotMeasurable, tensors_within
from .rank import effective_rank

Calls = list[tuple[nn.Module, Tensor, Tensor]]
"""The calls of layers: module, input, output."""
ROUNDING = 1e-3
"""Relative error of a gradient, beside the product of its factors' norms, that is no other gradient."""
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.LayerNorm)


@contextmanager
def calls_of(model: nn.Module) -> Iterator[Calls]:
    """Within, note the calls of layers whose parameters train."""
    calls: Calls = []

    def note(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.requires_grad:
            return output
        calls.append((module, args[0].detach().clone(), output))
        return output.clone()  # which the model may change in place

    handles = [m.register_forward_hook(note) for m in named_modules(model).values() if _is_known(m)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _is_known(module: nn.Module) -> bool:
    """Return whether the gradients of a module's parameters can be had from its input and its output's gradient."""
    trains = any(p.requires_grad for p in module.parameters(recurse=False))
    plain = getattr(module, "groups", 1) == 1 and len(getattr(module, "normalized_shape", "x")) == 1
    return isinstance(module, KINDS) and trains and plain


def factors(module: nn.Module, a: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs (samples, positions, inputs) and gradients (samples, positions, neurons) of one call.

    Raises NotMeasurable for an input without a dimension of samples.
    """
    if a.dim() < (3 if isinstance(module, nn.Conv1d) else 4 if isinstance(module, nn.Conv2d) else 2):
        raise NotMeasurable(f"an input of its {type(module).__name__} has no dimension of samples: {tuple(a.shape)}")
    if isinstance(module, nn.Conv1d):
        a, d, module = a[:, :, None], d[:, :, None], _as_conv2d(module)
    if isinstance(module, nn.Conv2d):
        patches = F.unfold(_padded(module, a), module.kernel_size, module.dilation, 0, module.stride)
        return patches.transpose(1, 2), d.flatten(2).transpose(1, 2)
    a, d = (t.reshape(len(t), -1, t.shape[-1]) for t in (a, d))
    return a, d


def _as_conv2d(module: nn.Conv1d) -> nn.Conv2d:
    """Return the settings of a 1-D convolution as those of a 2-D one."""
    sizes: Any = [(1, *size) for size in (module.kernel_size, module.stride, module.dilation)]
    padding: Any = module.padding if isinstance(module.padding, str) else (0, *module.padding)
    return nn.Conv2d(1, 1, sizes[0], sizes[1], padding, sizes[2], padding_mode=module.padding_mode, device="meta")


def _padded(module: nn.Conv2d, a: Tensor) -> Tensor:
    """Return the input with the padding of a convolution."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(a, module._reversed_padding_repeated_twice, mode=mode)


def own_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return the weight and the bias of a layer by name, those that are parameters of its own and train."""
    there = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    return {name: there[name] for name in ("weight", "bias") if name in there and there[name].requires_grad}


def explained_layers(calls: Calls, of: Tensor) -> dict[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Return layer -> inputs and gradients of its calls, of layers whose gradients of ``of`` are those of these calls.

    Layers that share a parameter, or compute something else with it, are not among them: their gradient is another.
    """
    own = {module: own_parameters(module) for module, *_ in calls}
    outputs, parameters = [output for *_, output in calls], [p for named in own.values() for p in named.values()]
    if not parameters or not of.requires_grad:
        return {}
    gradients = torch.autograd.grad(of, [*outputs, *parameters], allow_unused=True)
    layers: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
    for (module, a, _), d in zip(calls, gradients, strict=False):
        if d is not None and own[module]:
            layers.setdefault(module, []).append((a, d))
    real = dict(zip(map(id, parameters), gradients[len(outputs) :], strict=True))
    errors = [_error(module, seen, [real[id(p)] for p in own[module].values()]) for module, seen in layers.items()]
    wrong = torch.stack(errors).gt(1).tolist() if errors else []  # of NaN not: the value will be NaN
    return {module: seen for (module, seen), is_wrong in zip(layers.items(), wrong, strict=True) if not is_wrong}


def _error(module: nn.Module, calls: list[tuple[Tensor, Tensor]], real: list[Tensor | None]) -> Tensor:
    """Return how far the real gradients are from those of a plain layer at these calls, over what rounding does."""
    kind: Any = next(kind for kind in KINDS if isinstance(module, kind))
    plain = kind.__new__(kind)
    values = {name: getattr(module, name).detach() for name in ("weight", "bias") if getattr(module, name) is not None}
    found: list[Any] = [0.0 for _ in real]
    scale: Any = 0.0
    for a, d in calls:
        leaves = {name: value.to(d.dtype).clone() for name, value in values.items()}
        own = [leaves[name].requires_grad_() for name in own_parameters(module)]
        vars(plain).update({**vars(module), "_parameters": {"weight": None, "bias": None, **leaves}})
        with torch.enable_grad():
            gradients = torch.autograd.grad(kind.forward(plain, a.to(d.dtype)), own, d)
        found = [total + g.double() for total, g in zip(found, gradients, strict=True)]
        scale = scale + d.double().norm() * (a.double().square().sum() + a.numel() / a.shape[-1]).sqrt()
    differences = [f if r is None else f - r.double() for f, r in zip(found, real, strict=True)]
    error = torch.stack([difference.norm() for difference in differences]).norm()
    return error / (scale * (ROUNDING + 4 * torch.finfo(calls[0][1].dtype).eps))


def gram_of_layer(module: nn.Module, calls: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the products of all pairs of samples' gradients of one layer's parameters, (samples, samples), float64."""
    parts = [factors(module, a, d) for a, d in calls]
    a, d = (torch.cat([part[i] for part in parts], 1).double() for i in (0, 1))
    own = own_parameters(module)
    trains = "weight" in own
    gram = torch.zeros(len(a), len(a), dtype=torch.float64, device=a.device)
    if isinstance(module, nn.LayerNorm):
        gains = (F.layer_norm(a, a.shape[-1:], eps=module.eps) * d).sum(1)
        gram = gram + trains * (gains @ gains.T)
    elif trains and a.shape[1] == 1:
        gram = gram + (a[:, 0] @ a[:, 0].T) * (d[:, 0] @ d[:, 0].T)
    elif trains:
        gradients = torch.einsum("spn,spm->snm", d, a).flatten(1)
        gram = gram + gradients @ gradients.T
    if "bias" in own:
        gram = gram + d.sum(1) @ d.sum(1).T
    return gram


class OfSamples(NetworkProbe):
    """A probe of the products of gradients of at most ``samples`` samples, the first ones."""

    KIND = "gradient"

    @checked
    def __init__(self, samples: int = 64) -> None:
        if samples < 2:
            raise ValueError(f"{type(self).__name__} needs at least 2 samples, got {samples}")
        self.samples = samples
        self._details: dict[str, Any] = {}

    def gram(self, again: Again, calls: Calls, of: Tensor) -> Tensor:
        """Return the sum over layers of :func:`gram_of_layer`, of the gradients of ``of``, 0-D, at their ``calls``."""
        parameters = again.parameters()
        layers = explained_layers(calls, of)
        if not layers:
            raise NotMeasurable("no gradient reaches a Linear, convolution or layer norm with parameters of its own")
        known = {id(p) for module in layers for p in own_parameters(module).values()}
        left_out = sum(p.numel() for p in parameters if id(p) not in known)
        first = {m: [(a[: self.samples], d[: self.samples]) for a, d in seen] for m, seen in layers.items()}
        grams = [gram_of_layer(module, seen) for module, seen in first.items()]
        if len({gram.shape for gram in grams}) > 1:
            raise NotMeasurable("its layers see different numbers of samples")
        self._details = {"samples": len(grams[0]), "parameters_left_out": left_out}
        return torch.stack(grams).sum(0)

    def details(self) -> dict[str, Any]:
        """Return the number of samples, and of parameters that are left out."""
        return self._details


def eigenvalues(gram: Tensor) -> Tensor:
    """Return the eigenvalues of a symmetric matrix, descending, at least 0; NaN where an entry is not finite."""
    finite = gram.isfinite().all()
    values = torch.linalg.eigvalsh(torch.where(finite, gram, 0)).flip(0).clamp_min(0)
    return torch.where(finite, values, torch.nan)


class TangentKernel(OfSamples):
    """Rank of the empirical neural tangent kernel, and its null ratio.

    K = J J^T, of the sum of the network's outputs, on at most ``samples`` samples. ``ntk_rank``: eigenvalues above
    ``tolerance`` of the largest; ``ntk_effective_rank``: exp of their entropy; both in [0, samples], lower is worse.
    ``ntk_null_ratio``: share of the singular values of J, its rows normalised, below 1e-5 of the largest: directions
    in which no sample can move the outputs; higher is worse. Sources: Lyle et al. 2023 (arXiv 2303.01486); for the null
    ratio, the code of Liu et al. 2025 (arXiv 2505.24061), which samples 100 parameters a tensor where this takes all.
    """

    WORSE = "ranks lower, null ratio higher"
    SOURCE = "Lyle et al. 2023; Liu et al. 2025"
    metrics = ("ntk_rank", "ntk_effective_rank", "ntk_null_ratio")

    @checked
    def __init__(self, samples: int = 64, tolerance: float = 1e-6) -> None:
        super().__init__(samples)
        self.tolerance = float(tolerance)

    def kernel(self, again: Again) -> Tensor:
        """Return K, (samples, samples), float64."""
        with calls_of(again.model) as calls:
            outputs = [t for t in tensors_within(again.output(self.samples)) if t.is_floating_point()]
        if not outputs:
            raise NotMeasurable("it returns no floating-point tensor")
        return self.gram(again, calls, torch.stack([t.sum() for t in outputs]).sum())

    def measure(self, again: Again) -> dict[str, Tensor]:
        """Return the three values."""
        kernel = self.kernel(again)
        values = eigenvalues(kernel)
        nan = 0 * values[0]
        lengths = kernel.diagonal().clamp_min(0).sqrt()
        lengths = torch.where(lengths == 0, 1, lengths)
        singular = eigenvalues(kernel / lengths[:, None] / lengths).sqrt()
        return {
            "ntk_rank": (values > self.tolerance * values[0]).double().sum() + nan,
            "ntk_effective_rank": effective_rank(values),
            "ntk_null_ratio": (singular <= 1e-5 * singular[0]).double().mean() + nan,
        }


class SampleGradients(OfSamples):
    """Agreement of the loss' gradients between halves, and over samples.

    ``half_cosine``: cosine of the gradients of the first and second half of at most ``samples`` samples; near 0, the
    step is noise. ``gradient_top_share``: the largest eigenvalue of the covariance of single samples' gradients over
    their sum, near 1 one direction is all there is; ``gradient_rank``: the effective rank of that covariance, in [0,
    samples); ``norm_kurtosis``: the kurtosis of the norms of single samples' gradients, 3 if they are normal, high
    where few samples make the step. The loss must be a mean or a sum over samples. Sources: Lyle et al. 2023 (arXiv
    2303.01486), section 3, for the covariance; Garg et al. 2021 (arXiv 2102.10264), section 3, for the kurtosis.
    """

    WORSE = "cosine near 0, share near 1, rank lower, kurtosis higher"
    SOURCE = "Lyle et al. 2023; Garg et al. 2021"
    metrics = ("half_cosine", "gradient_top_share", "gradient_rank", "norm_kurtosis")
    nan_reason = "the gradients of all samples are alike, 0 or not finite"

    def measure(self, again: Again) -> dict[str, Tensor]:
        """Return the four values."""
        with calls_of(again.model) as calls:
            loss = again.loss()
        gram = self.gram(again, calls, loss)
        half = len(gram) // 2
        if half < 1:
            raise NotMeasurable("it takes two samples at least")
        aa, bb, ab = (gram[i, j].sum() for i, j in _halves(half))
        centred = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
        values = eigenvalues(centred)
        precision, longest = torch.finfo(again.parameters()[0].dtype).eps, gram.diagonal().max()
        values = torch.where(values <= len(gram) * (2 * precision) ** 2 * longest, 0, values)
        return {
            "half_cosine": ab / (aa * bb).sqrt(),
            "gradient_top_share": values[0] / values.sum(),
            "gradient_rank": effective_rank(values),
            "norm_kurtosis": kurtosis(gram.diagonal().clamp_min(0).sqrt(), precision),
        }


def _halves(half: int) -> list[tuple[Any, Any]]:
    """Return the indices of the blocks of two halves: both with themselves, and with each other."""
    first, second = slice(0, half), slice(half, 2 * half)
    return [((first, first)), ((second, second)), ((first, second))]
