"""Methods that change the structure of an agent, as somebody outside the package would write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn, optim
from torch.nn.utils.parametrizations import spectral_norm

from plasticity.callback import Context
from plasticity.interventions import Intervention


@dataclass
class LearnedSlopes(Intervention):
    """Put a PReLU in the place of every ReLU, trained by the optimizer of its network."""

    NAME: ClassVar[str] = "learned_slopes"
    KIND: ClassVar[str] = "structure"

    slope: float = 0.25
    """First value of every slope."""

    def restructure(self, ctx: Context, state: Mapping[str, Any] | None) -> None:
        for name, network in ctx.networks.items():
            slopes = self.replace(network)
            ctx.optimizer_of(name).add_param_group({"params": slopes})
        for target in ctx.targets.values():
            for slope in self.replace(target):
                slope.requires_grad_(False)

    def replace(self, network: nn.Module) -> list[nn.Parameter]:
        places = [
            (m, key) for m in network.modules() for key, child in m._modules.items() if isinstance(child, nn.ReLU)
        ]
        for module, key in places:
            module._modules[key] = nn.PReLU(init=self.slope)
        return [p for module, key in places for p in module._modules[key].parameters()]  # type: ignore[union-attr]


@dataclass
class SpectralNorms(Intervention):
    """Divide every weight by its largest singular value; the vectors that find it are buffers, which passes move."""

    NAME: ClassVar[str] = "spectral_norms"
    KIND: ClassVar[str] = "structure"

    def restructure(self, ctx: Context, state: Mapping[str, Any] | None) -> None:
        for network in (*ctx.networks.values(), *ctx.targets.values()):
            for layer in [m for m in network.modules() if isinstance(m, nn.Linear)]:
                spectral_norm(layer)


@dataclass
class Swapped(Intervention):
    """Let SGD with momentum train every network, in place of the agent's own optimizers."""

    NAME: ClassVar[str] = "swapped"
    KIND: ClassVar[str] = "optimizer"

    lr: float = 1e-3
    """Learning rate."""

    def restructure(self, ctx: Context, state: Mapping[str, Any] | None) -> None:
        for name in {n for n, o in ctx.optimizers.items() for net in ctx.networks if o is ctx.optimizer_of(net)}:
            parameters = [p for group in ctx.optimizers[name].param_groups for p in group["params"]]
            ctx.optimizers[name] = optim.SGD(parameters, self.lr, momentum=0.9)


@dataclass
class Predictor(Intervention):
    """Train a network of its own, which predicts 0, by a term in the first step."""

    NAME: ClassVar[str] = "predictor"
    KIND: ClassVar[str] = "penalty"

    def restructure(self, ctx: Context, state: Mapping[str, Any] | None) -> None:
        first, network = next(iter(ctx.networks.items()))
        size = next(m for m in network.modules() if isinstance(m, nn.Linear)).in_features
        ctx.networks["predictor"] = nn.Sequential(nn.Linear(size, 8), nn.ReLU(), nn.Linear(8, 1))
        ctx.optimizer_of(first).add_param_group({"params": ctx.networks["predictor"].parameters()})

    def on_train_start(self, ctx: Context) -> None:
        ctx.step_of("predictor").add("prediction", self.error)

    def error(self, networks: Mapping[str, nn.Module], batch: Any) -> Tensor:
        return networks["predictor"](batch.obs).square().mean()


@dataclass
class Dropouts(Intervention):
    """Put dropout behind every activation: training passes then draw from torch's global generator."""

    NAME: ClassVar[str] = "dropouts"
    KIND: ClassVar[str] = "structure"

    def restructure(self, ctx: Context, state: Mapping[str, Any] | None) -> None:
        for network in (*ctx.networks.values(), *ctx.targets.values()):
            for module in list(network.modules()):
                for key, child in list(module.named_children()):
                    if isinstance(child, (nn.ReLU, nn.Tanh)):
                        setattr(module, key, nn.Sequential(child, nn.Dropout(0.1)))


STRUCTURAL: dict[str, type[Intervention]] = {
    "learned_slopes": LearnedSlopes,
    "predictor": Predictor,
    "spectral_norms": SpectralNorms,
    "swapped": Swapped,
}
