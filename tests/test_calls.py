"""Training calls models by other methods than forward, with inputs in containers of their own, and with padding."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import models
import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from test_interventions import plain_loop
from torch import Tensor, nn

import plasticity
from plasticity import Context, Measure, Monitor, measure, watch
from plasticity.interventions import Intervention, ReDo, ReGraMa
from plasticity.interventions.resin import SilentReset
from plasticity.isolation import map_tensors

pytestmark = pytest.mark.usefixtures("everywhere")


class Policy(nn.Module):
    """A policy as reinforcement learning libraries write it: training and acting call different methods."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mean, self.value = (nn.Linear(i, o) for i, o in ((4, 6), (6, 5), (5, 2), (5, 1)))

    def features(self, x: Tensor) -> Tensor:
        """Return what both heads take."""
        return F.relu(self.b(F.relu(self.a(x))))

    def forward(self, x: Tensor) -> Tensor:
        """Act."""
        return self.mean(self.features(x))

    def evaluate_actions(self, x: Tensor, actions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what a loss takes."""
        h = self.features(x)
        return self.mean(h), self.value(h)

    def compute(self, inputs: dict[str, Tensor], role: str = "") -> tuple[Tensor, dict]:
        """Take inputs by name."""
        return self.value(self.features(inputs["states"])), {}

    def act_and_value(self, x: Tensor) -> Tensor:
        """Call the other methods."""
        return self(x).sum(-1, keepdim=True) + self.compute({"states": x})[0]

    def fails(self, x: Tensor) -> Tensor:
        """Raise in the middle."""
        self.features(x)
        raise RuntimeError("oh")


CALLS: dict[str, Callable[[Policy, Tensor], Tensor]] = {
    "evaluate_actions": lambda policy, x: sum(part.square().mean() for part in policy.evaluate_actions(x)),
    "compute": lambda policy, x: policy.compute({"states": x}, role="policy")[0].square().mean(),
    "act_and_value": lambda policy, x: policy.act_and_value(x).square().mean(),
    "forward": lambda policy, x: policy(x).square().mean(),
    "features": lambda policy, x: policy.mean(policy.features(x)).square().mean(),
}


def expected(policy: Policy, x: Tensor) -> np.ndarray:
    return reference.scores(reference.rows(F.relu(policy.a(x))))


@pytest.mark.parametrize("method", CALLS)
def test_methods_that_training_calls_are_passes(method: str) -> None:
    policy, x = Policy(), torch.randn(32, 4)
    optimizer = torch.optim.SGD(policy.parameters(), 0.1)
    calls = () if method == "forward" else (method,)
    with watch(policy, optimizer, every=1, log=None, strict=True, probes=["dormancy", "grama"], calls=calls) as session:
        for _ in range(3):
            with torch.no_grad():
                policy(10 * x)  # acting
            by_hand = expected(policy, x)
            optimizer.zero_grad()
            CALLS[method](policy, x).backward()
            optimizer.step()
            reading = session.last["model"]
            np.testing.assert_allclose(reading.scores["dormancy"]["a"].numpy(force=True), by_hand, rtol=1e-5)
            assert reading.num_passes == 1
            assert set(reading.scores["grama"]) == ({"a"} if method == "features" else {"a", "b"})
    assert not set(vars(policy)) & {*CALLS}


@pytest.mark.parametrize("method", ["evaluate_actions", "compute", "features"])
def test_the_message_names_the_method_that_was_called(method: str) -> None:
    policy, x = Policy(), torch.randn(32, 4)
    optimizer = torch.optim.SGD(policy.parameters(), 0.1)
    session = watch(policy, optimizer, every=1, log=None, probes=["dormancy"])
    with torch.no_grad():
        policy(x)
    CALLS[method](policy, x).backward()
    with pytest.warns(RuntimeWarning, match=rf"by {method} and not by forward; pass calls=\('{method}',\)"):
        optimizer.step()
    session.close()


@pytest.mark.parametrize("calls", [(), ("forward",)])
def test_forward_that_is_called_by_its_name_is_a_method_like_others(calls: tuple[str, ...]) -> None:
    policy, x = Policy(), torch.randn(32, 4)
    optimizer = torch.optim.SGD(policy.parameters(), 0.1)
    with watch(policy, optimizer, every=1, log=None, probes=["dormancy"], calls=calls) as session:
        by_hand = expected(policy, x)
        policy.forward(x).square().mean().backward()
        if not calls:
            with pytest.warns(RuntimeWarning, match=r"by forward and not by its call; pass calls=\('forward',\)"):
                optimizer.step()
            return
        optimizer.step()
        np.testing.assert_allclose(session.last["model"].scores["dormancy"]["a"].numpy(force=True), by_hand, rtol=1e-5)


def test_parts_that_are_called_instead_of_the_model_are_named() -> None:
    model, x = (
        nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 8), nn.ReLU()), "head": nn.Linear(8, 2)}),
        torch.randn(9, 4),
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer, every=1, log=None, probes=["dormancy"]):
        model["head"](model["body"](x)).square().mean().backward()
        with pytest.warns(RuntimeWarning, match=r"parts of ModuleDict \(body, head\) and never the whole"):
            optimizer.step()


def test_a_method_that_raises_is_no_pass_and_copies_have_the_method_itself() -> None:
    policy, x = Policy(), torch.randn(32, 4)
    with Monitor(policy, ["dormancy"], calls=("evaluate_actions", "fails")) as monitor:
        with pytest.raises(RuntimeError, match="oh"):
            policy.fails(x)
        assert monitor.num_passes == 0
        policy.evaluate_actions(x)
        for other in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
            a, b = other.evaluate_actions(5 * x)[0], policy.mean(policy.features(5 * x))
            assert torch.equal(a, b)
            assert other.evaluate_actions.__self__ is other
        assert monitor.num_passes == 1
    np.testing.assert_allclose(monitor.read().scores["dormancy"]["a"].numpy(force=True), expected(policy, x), rtol=1e-5)


def test_a_method_that_somebody_put_on_the_object_is_put_back() -> None:
    policy, x = Policy(), torch.randn(32, 4)
    mine = lambda x: policy.mean(policy.features(x))  # noqa: E731
    policy.act = mine
    with Monitor(policy, ["dormancy"], calls=("act",)) as monitor:
        policy.act(x)
    assert policy.act is mine
    assert monitor.num_passes == 1


def test_calls_are_named_by_network_and_checked() -> None:
    networks = {"actor": Policy(), "critic": models.mlp()}
    optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in networks.values()]
    with pytest.raises(ValueError, match="Policy has no evaluate"):
        watch(networks, optimizers, log=None, calls={"actor": ("evaluate",)})
    with pytest.raises(ValueError, match="calls names policy; the networks are actor, critic"):
        watch(networks, optimizers, log=None, calls={"policy": ("compute",)})
    x = torch.randn(32, 4)
    reading = measure(networks["actor"], x, probes=["dormancy"], method="evaluate_actions")
    np.testing.assert_allclose(
        reading.scores["dormancy"]["a"].numpy(force=True), expected(networks["actor"], x), rtol=1e-5
    )


def test_interventions_and_measure_take_them_from_the_context() -> None:
    policy, x = Policy(), torch.randn(32, 4)
    with torch.no_grad():
        policy.a.weight[:2], policy.a.bias[:2] = 0, -1
    optimizer = torch.optim.SGD(policy.parameters(), 0.0)
    ctx, writer = plain_loop(policy, optimizer)
    ctx = Context(ctx.networks, ctx.optimizers, writer=ctx.writer, calls={"net": ("evaluate_actions",)})
    redo, probe = ReDo(every=1, threshold=0.0), Measure(["dormancy"], every=1)
    before = [part.detach() for part in policy.evaluate_actions(x)]
    for callback in (redo, probe):
        callback.on_train_start(ctx)
    CALLS["evaluate_actions"](policy, x).backward()
    optimizer.step()
    assert {0, 1} <= set(writer.named("redo")[0]["neurons"]["a"])
    assert set(probe.last["net"].scores["dormancy"]) == {"a", "b"}
    assert all(torch.equal(a, b) for a, b in zip(policy.evaluate_actions(x), before, strict=True))
    assert writer.named("redo")[0]["function_change"] == 0


# -- containers --------------------------------------------------------------------------------------------------------


Pair = namedtuple("Pair", "obs extra")


@dataclass(frozen=True)
class Inputs:
    """A batch as an object."""

    obs: Tensor
    extra: Any = None


class TensorDictLike(UserDict):
    """As tensordict.TensorDict: a mapping with a batch size, whose tensors a plain copy would share."""

    batch_size = torch.Size([32])

    def apply(self, change: Callable[[Tensor], Tensor]) -> TensorDictLike:
        """Return another one of changed tensors."""
        return TensorDictLike({key: change(value) for key, value in self.data.items()})


class Encoding(UserDict):
    """As the batch of a tokenizer: a mapping whose entries are attributes, too."""

    def __getattr__(self, name: str) -> Any:
        if name == "data" or name not in self.data:
            raise AttributeError(name)
        return self.data[name]


CONTAINERS: dict[str, Callable[[Tensor], Any]] = {
    "named tuple": lambda x: Pair(x, None),
    "dataclass": lambda x: Inputs(x),
    "tensor dict": lambda x: TensorDictLike({"obs": x}),
    "encoding": lambda x: Encoding({"obs": x}),
    "ordered dict": lambda x: OrderedDict(obs=x),
    "nested": lambda x: {"inputs": [Inputs(x)]},
    "read-only": lambda x: MappingProxyType({"obs": x}),
}


def obs_of(value: Any) -> Tensor:
    """Read a container the way its users do."""
    if isinstance(value, (Pair, Inputs, Encoding)):
        return value.obs
    if isinstance(value, dict) and "inputs" in value:
        return obs_of(value["inputs"][0])
    assert isinstance(value, (TensorDictLike, OrderedDict, Mapping))
    return value["obs"]


@pytest.mark.parametrize("name", CONTAINERS)
def test_inputs_keep_their_container(name: str) -> None:
    x = torch.randn(32, 4)
    kind = type(CONTAINERS[name](x))

    def forward(s: Any, batch: Any) -> Tensor:
        assert type(batch) is kind or name == "read-only"
        return s.b(F.relu(s.a(obs_of(batch))))

    model, given = models.Net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 1)), CONTAINERS[name](x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    by_hand = reference.scores(reference.rows(F.relu(model.a(x))))
    with watch(model, optimizer, every=1, log=None, strict=True, probes=["dormancy"]) as session:
        model(given).mean().backward()
        optimizer.step()
    assert obs_of(given) is x
    np.testing.assert_allclose(session.last["model"].scores["dormancy"]["a"].numpy(force=True), by_hand, rtol=1e-5)
    changed = map_tensors(given, lambda tensor: tensor + 1)
    assert torch.equal(obs_of(changed), x + 1)
    assert obs_of(given) is x


# -- models whose class has a call of its own --------------------------------------------------------------------------


class Base(nn.Module):
    """A hidden layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.o = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Run both."""
        return self.o(F.relu(self.a(x))) * scale


class NoHooks(Base):
    """A model whose call runs no hooks, as AgileRL has it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


class Converts(Base):
    """A call that changes its arguments first."""

    def __call__(self, x: Any, **kwargs: Any) -> Any:
        return self.forward(torch.as_tensor(x) * 2, **kwargs)


class WithHooks(Base):
    """A call that hands over to that of torch."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


class Twice(Base):
    """A call that runs the model twice."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x) + self.forward(-x)


class Inner(Base):
    """A model whose hidden layer is in a module that runs no hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = NoHooks()

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Run the inner one."""
        return self.o(F.relu(self.a(x))) + self.inner(x)


OWN_CALLS: dict[str, tuple[Callable[[], Base], Callable[[Tensor], Tensor]]] = {
    "without hooks": (NoHooks, lambda x: x),
    "arguments are changed": (Converts, lambda x: 2 * x),
    "with hooks": (WithHooks, lambda x: x),
    "two runs": (Twice, lambda x: torch.cat([x, -x])),
    "inside another": (Inner, lambda x: x),
}


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("name", OWN_CALLS)
def test_a_model_with_a_call_of_its_own_is_measured(name: str, copied: bool) -> None:
    make, rows = OWN_CALLS[name]
    model, x = make(), torch.randn(32, 4)
    model = copy.deepcopy(model) if copied else model
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    expected = reference.scores(reference.rows(F.relu(model.a(rows(x)))))
    with watch(model, optimizer, every=1, log=None, strict=True, probes=["dormancy", "grama"]) as session:
        for _ in range(2):
            model(x).sum().backward()
            optimizer.step()
            found = session.last["model"]
            np.testing.assert_allclose(found.scores["dormancy"]["a"].numpy(force=True), expected, rtol=1e-5)
            assert found.num_passes == (2 if name == "two runs" else 1)
            assert ("inner.a" in found.num_neurons) == (name == "inside another")
    assert "forward" not in vars(model)


# -- masks -------------------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """A model of sequences with an attention mask."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return one number per token."""
        return self.b(F.relu(self.a(x))).squeeze(-1)


def fixed(mask: Tensor) -> Any:
    return mask


def from_arguments(mask: Tensor) -> Any:
    return lambda x, attention_mask: attention_mask


def as_numbers(mask: Tensor) -> Any:
    return lambda x, attention_mask: attention_mask.long()


def from_padding(mask: Tensor) -> Any:
    return lambda x, attention_mask: x.abs().sum(-1) > 0


def by_name(mask: Tensor) -> Any:
    return {"model": fixed(mask)}


@pytest.mark.parametrize("given", [fixed, from_arguments, as_numbers, from_padding, by_name])
def test_padding_is_no_sample(given: Callable[[Tensor], Any]) -> None:
    model, mask = Reader(), torch.rand(5, 7) > 0.5
    x = torch.randn(5, 7, 4) * mask[..., None]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    alone = measure(model, (x[mask], mask[mask]), probes=["dormancy", "rank"])
    options: dict[str, Any] = {"probes": ["dormancy", "grama", "rank"], "strict": True}
    with watch(model, optimizer, every=1, log=None, mask=given(mask), **options) as session:
        (model(x, mask) * mask).sum().backward()
        optimizer.step()
    reading = session.last["model"]
    torch.testing.assert_close(reading.scores["dormancy"], alone.scores["dormancy"])
    assert reading.values["stable_rank"] == pytest.approx(alone.values["stable_rank"], rel=1e-5)


METHODS: dict[str, tuple[Callable[[], Intervention], str]] = {
    "redo": (lambda: ReDo(every=1, threshold=0.0), "redo"),
    "regrama": (lambda: ReGraMa(every=1, threshold=0.0), "regrama"),
    "resin": (lambda: SilentReset(every=1, threshold=0.0), "resin"),
    "redo by gradient": (lambda: ReDo(every=1, threshold=0.0, score="gradient"), "redo"),
    "redo, centred": (lambda: ReDo(every=1, threshold=0.0, centred=True), "redo"),
}


@pytest.mark.parametrize("given", [fixed, from_arguments])
@pytest.mark.parametrize("name", METHODS)
def test_methods_take_masks_from_the_context(name: str, given: Callable[[Tensor], Any]) -> None:
    model, mask = Reader(), torch.arange(7) < torch.tensor([[2], [5], [7]])
    with torch.no_grad():
        model.a.weight[0], model.a.bias[0] = torch.tensor([5.0, 0, 0, 0]), -1.0
    x = torch.where(mask[..., None], -1.0, 1.0) * torch.ones(3, 7, 4)  # the first neuron fires on padding only
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    ctx, writer = plain_loop(model, optimizer)
    ctx = Context(ctx.networks, ctx.optimizers, writer=ctx.writer, masks={"net": given(mask)})
    make, event = METHODS[name]
    method, probe = make(), Measure(["dormancy"], every=1)
    method.on_train_start(ctx)
    probe.on_train_start(ctx)
    model(x, mask).sum().backward()
    optimizer.step()
    assert 0 in writer.named(event)[0]["neurons"]["a"]
    assert probe.last["net"].scores["dormancy"]["a"][0] == 0


def test_a_mask_that_cannot_be_found_does_not_stop_training() -> None:
    model, x = Reader(), torch.randn(5, 7, 4)
    with Monitor(model, ["dormancy"], mask=lambda x, attention_mask=None: {}["mask"]) as monitor:
        with pytest.warns(RuntimeWarning, match="mask cannot be found are not measured: KeyError"):
            model(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(x)
    with pytest.raises(RuntimeError, match="the mask of no pass could be found: KeyError"):
        monitor.read()
    with pytest.raises(TypeError, match="a mask is a tensor"):
        measure(model, x, mask=lambda x: 3)
    assert plasticity.measure(model, x, mask=lambda x: None, probes=["dormancy"]).num_passes == 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_observers_of_one_method_are_taken_off_in_any_order(order: tuple[int, ...]) -> None:
    policy, x = Policy(), models.vectors(8)[:, :4]
    monitors = [Monitor(policy, ["dormancy"], passes="training", calls=("evaluate_actions",)) for _ in range(3)]
    for monitor in monitors:
        monitor.attach()
    left = {0, 1, 2}
    for index in order:
        monitors[index].detach()
        left -= {index}
        before = [monitor.num_passes for monitor in monitors]
        sum(part.sum() for part in policy.evaluate_actions(x)).backward()
        assert [m.num_passes - b for m, b in zip(monitors, before, strict=True)] == [int(i in left) for i in range(3)]
    assert "evaluate_actions" not in vars(policy)


# -- what a watch can say at its end -----------------------------------------------------------------------------------


def test_a_watch_that_saw_no_step_says_so_once() -> None:
    model, x = models.mlp(), models.vectors()
    ours, theirs = (torch.optim.SGD(model.parameters(), 0.1) for _ in range(2))
    session = watch(model, ours, log=None)
    model(x).sum().backward()
    theirs.step()
    with pytest.warns(RuntimeWarning, match="no step of the optimizer"):
        session.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.close()
        with pytest.raises(ZeroDivisionError), watch(model, ours, log=None):
            raise ZeroDivisionError


@pytest.mark.parametrize("kind", ["wrapper", "list of wrappers"])
def test_the_optimizer_inside_a_wrapper_is_used(kind: str) -> None:
    model = models.mlp()
    inner = torch.optim.SGD(model.parameters(), 0.1)
    wrapper = type("Wrapper", (), {"optimizer": inner})()
    with watch(model, [wrapper] if kind != "wrapper" else wrapper, every=1, log=None) as session:
        model(models.vectors(32)).sum().backward()
        inner.step()
    assert session.last
    with pytest.raises(TypeError, match=r"needs an optimizer.*got int"):
        watch(model, 3, log=None)  # type: ignore[arg-type]
