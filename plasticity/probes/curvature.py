"""The curvature of the loss around the present weights: the ends of the Hessian's spectrum, its trace, sharpness.

Everything is of the loss on one batch, in evaluation mode, and of all parameters that train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from plasticity.value_types import checked

from .network import Again, NetworkProbe, NotMeasurable

Product = Callable[[Tensor], Tensor]
"""A vector -> its product with a symmetric matrix."""
ONCE = ("is not implemented", "once_differentiable", "double backward")
"""Words in torch's errors of operations that have no second derivative."""


def flat(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """Return tensors as one vector; of None, zeros. Gradients of embeddings may be sparse."""
    dense = [torch.zeros_like(p) if t is None else t.to_dense() for t, p in zip(tensors, like, strict=True)]
    return torch.cat([t.flatten() for t in dense])


def hessian_product(loss: Tensor, parameters: Sequence[Tensor]) -> Product:
    """Return the function that multiplies a vector, (parameters,), with the Hessian of ``loss``, float64."""
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    gradient = flat(gradients, parameters)
    if not gradient.requires_grad:
        raise NotMeasurable("its loss is linear in its parameters, or cannot be differentiated twice")

    def product(vector: Tensor) -> Tensor:
        dot = gradient @ vector.to(gradient.dtype)
        try:
            found = torch.autograd.grad(dot, parameters, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            if any(words in str(error) for words in ONCE):
                raise NotMeasurable(f"it cannot be differentiated twice: {error}") from error
            raise
        return flat(found, parameters).double()

    return product


def lanczos(product: Product, size: int, steps: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Return approximate eigenvalues of a symmetric matrix of ``size`` rows, ascending; those at the ends come first.

    ``steps`` products, with full reorthogonalisation; exact once ``steps`` reaches the number of distinct eigenvalues.
    Source: Golub & Van Loan, *Matrix computations*, section 10.1; for Hessians, Ghorbani et al. 2019 (arXiv
    1901.10159).
    """
    vector = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu").to(device)
    basis, alphas, betas = [vector / vector.norm()], [], []
    for _ in range(min(steps, size)):
        image = product(basis[-1])
        alphas.append(image @ basis[-1])
        for other in (*basis, *basis):  # twice is enough
            image = image - (image @ other) * other
        norm = image.norm()
        betas.append(norm)
        # Of an exhausted space the next vector is noise: its weight in the matrix is next to nothing.
        basis.append(image / torch.where(norm > 0, norm, 1))
    beside = torch.stack(betas)[:-1]
    matrix = torch.diag(torch.stack(alphas)) + torch.diag(beside, 1) + torch.diag(beside, -1)
    finite = matrix.isfinite().all()
    values = torch.linalg.eigvalsh(torch.where(finite, matrix, 0))
    return torch.where(finite, values, torch.nan)


class Hessian(NetworkProbe):
    """Largest and smallest eigenvalue of the loss' Hessian, and its trace.

    ``hessian_top`` growing means sharper minima and a smaller stable learning rate, 2 / top for plain descent; top and
    trace near 0: the loss is flat and the network hardly trains. ``steps`` products for the ends of the spectrum
    (Lanczos), ``samples`` for the trace (Hutchinson, with random signs). Source: Ghorbani et al. 2019 (arXiv
    1901.10159); Lewandowski et al. 2023 (arXiv 2312.00246) for loss of plasticity.
    """

    KIND = "curvature"
    WORSE = "top growing, or all near 0"
    COST = "passes"
    SOURCE = "Ghorbani et al. 2019"
    metrics = ("hessian_top", "hessian_bottom", "hessian_trace")

    @checked
    def __init__(self, steps: int = 20, samples: int = 20, seed: int = 0) -> None:
        if steps < 1 or samples < 1:
            raise ValueError(f"Hessian needs steps and samples of at least 1, got {steps} and {samples}")
        self.steps, self.samples, self.seed = steps, samples, seed

    def measure(self, again: Again) -> dict[str, Tensor]:
        """Return the three values."""
        parameters = again.parameters()
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            product = hessian_product(again.loss(), parameters)
        size, device = sum(p.numel() for p in parameters), parameters[0].device
        generator = torch.Generator("cpu").manual_seed(self.seed)
        ends = lanczos(product, size, self.steps, generator, device)
        traces = []
        for _ in range(self.samples):
            signs = torch.randint(2, (size,), generator=generator, device="cpu").double().to(device) * 2 - 1
            traces.append(signs @ product(signs))
        return {"hessian_top": ends[-1], "hessian_bottom": ends[0], "hessian_trace": torch.stack(traces).mean()}

    def details(self) -> dict[str, int]:
        """Return the numbers of products."""
        return {"lanczos_steps": self.steps, "trace_samples": self.samples}


class Sharpness(NetworkProbe):
    """Rise of the loss at the worst point within a distance, to first order.

    L(theta + rho g / ||g||) - L(theta), with g the gradient and ``rho`` the distance, 0.1. Higher is worse. Source:
    Foret et al. 2021 (SAM, arXiv 2010.01412), equation 2; for plasticity, Lee et al. 2023 (PLASTIC, arXiv 2306.10711).
    """

    KIND = "curvature"
    WORSE = "higher"
    SOURCE = "Foret et al. 2021"

    @checked
    def __init__(self, rho: float = 0.1) -> None:
        if not rho > 0:
            raise ValueError(f"Sharpness needs a rho above 0, got {rho}")
        self.rho = float(rho)

    def measure(self, again: Again) -> dict[str, Tensor]:
        """Return the rise of the loss."""
        parameters = again.parameters()
        loss = again.loss()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        norm = flat(gradients, parameters).norm()
        saved = [parameter.data for parameter in parameters]
        try:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:  # a new tensor in place of the weight: the old one is not written to
                    parameter.data = parameter.data + self.rho * gradient / torch.where(norm > 0, norm, 1)
            risen = again.loss().detach()
        finally:
            for parameter, data in zip(parameters, saved, strict=True):
                parameter.data = data
        return {"sharpness": risen - loss.detach()}
