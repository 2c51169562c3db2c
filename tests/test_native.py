"""Single steps in C++: the bits of numpy's statistics, and the numbers of the modules."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import models
import numpy as np
import pytest
import torch
from test_acting import EDITS, HEADS, make
from torch import Tensor, nn

from plasticity.agents import native
from plasticity.agents.acting import NATIVE_ROWS, NumpyPlan
from plasticity.agents.normalise import RunningNorm
from plasticity.agents.ppo import PPO, PPOConfig
from plasticity.agents.rewards import ReturnScaler
from plasticity.agents.train import train
from plasticity.envs import make_env


@pytest.fixture(autouse=True)
def compiled() -> None:
    if not native.available():
        pytest.skip("no C++ compiler")


def by_numpy(monkeypatch: pytest.MonkeyPatch, function: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(native, "loaded", None)
        return function()


@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("clip", [None, 1.5])
def test_statistics_are_numpys_bits(rows: int, clip: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    norm, twin = RunningNorm((5,), clip=clip), RunningNorm((5,), clip=clip)
    for seed in range(40):
        x = (7 * models.normal(rows, 5, seed=seed) + 3).numpy()
        norm.update(x)
        by_numpy(monkeypatch, lambda x=x: twin.update(x))
        assert all(map(torch.equal, norm.buffers(), twin.buffers()))
        assert norm.of_rows(x).tobytes() == by_numpy(monkeypatch, lambda x=x: twin.of_rows(x)).tobytes()


def test_statistics_of_numbers_that_are_not_finite_are_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, twin = RunningNorm((2,), clip=10.0), RunningNorm((2,), clip=10.0)
    for value in (1.0, np.inf, np.nan, -np.inf):
        x = np.array([[value, 1.0]], np.float32)
        with np.errstate(all="ignore"):
            norm.update(x)
            by_numpy(monkeypatch, lambda x=x: twin.update(x))
            found, expected = norm.of_rows(x), by_numpy(monkeypatch, lambda x=x: twin.of_rows(x))
        np.testing.assert_array_equal(found, expected)
        for one, other in zip(norm.buffers(), twin.buffers(), strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())


NUMBERS: dict[str, Any] = {"whole": np.int32, "turned": ">f4", "double": np.float64, "half": np.float16}


@pytest.mark.parametrize("dtype", NUMBERS.values(), ids=NUMBERS)
def test_numbers_of_another_type_are_left_to_numpy(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    norm, twin, scaler, other = RunningNorm((2,)), RunningNorm((2,)), ReturnScaler(1, 0.9), ReturnScaler(1, 0.9)
    for seed in range(5):
        x = (7 * models.normal(3, 2, seed=seed)).numpy().astype(dtype)
        norm.update(x)
        by_numpy(monkeypatch, lambda x=x: twin.update(x))
        np.testing.assert_array_equal(norm.of_rows(x), by_numpy(monkeypatch, lambda x=x: twin.of_rows(x)))
        reward, done = x[0, :1], np.array([False])
        expected = by_numpy(monkeypatch, lambda r=reward, d=done: other.update(r, d))
        np.testing.assert_array_equal(scaler.update(reward, done), expected)
    assert all(map(torch.equal, norm.buffers(), twin.buffers()))
    assert all(map(torch.equal, scaler.buffers(), other.buffers()))


@pytest.mark.parametrize("shape", [(2,), (0,), ()])
def test_no_rows_and_rows_of_nothing_change_nothing(shape: tuple[int, ...]) -> None:
    norm = RunningNorm(shape)
    for x in (models.normal(3, *shape), models.normal(1, *shape)):
        norm.update(x.numpy())
        before = [buffer.clone() for buffer in norm.buffers()]
        for none in (x[:0], x[:0].numpy()):
            norm.update(none)
            assert norm(none if isinstance(none, Tensor) else torch.from_numpy(none)).shape == (0, *shape)
        assert all(map(torch.equal, norm.buffers(), before))


def test_rows_of_another_shape_are_refused_as_by_numpy() -> None:
    norm, one = RunningNorm((2,)), np.zeros((1, 3), np.float32)
    with pytest.raises(ValueError, match="broadcast"):
        norm.of_rows(one)
    mean, log_std, wide = (np.zeros(shape, np.float32) for shape in ((1, 3), (3,), (1, 4)))
    assert native.loaded.sample(mean, log_std, *(mean.copy() for _ in range(3)))
    assert not native.loaded.sample(mean, log_std[:2].copy(), *(mean.copy() for _ in range(3)))
    for place in range(3):
        others: list[Any] = [mean.copy() for _ in range(3)]
        for wrong in (wide, None):
            others[place] = wrong
            assert not native.loaded.sample(mean, log_std, *others)
    returns = ReturnScaler(3, 0.9)
    with pytest.raises(ValueError, match="size 1"):
        returns.update(np.ones(1, np.float32), np.array([False]))


@pytest.mark.parametrize("change", ["float32", "strided"])
def test_what_is_not_in_one_piece_or_of_another_type_is_left_to_numpy(change: str) -> None:
    norm, twin = RunningNorm((2,)), RunningNorm((2,))
    norm = norm.float() if change == "float32" else norm
    x = models.normal(3, 4).numpy()[:, ::2]
    norm.update(x)
    twin.update(np.ascontiguousarray(x))
    torch.testing.assert_close(norm.mean.double(), twin.mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(norm.of_rows(x), twin.of_rows(np.ascontiguousarray(x)), rtol=1e-5, atol=1e-6)


def test_rewards_are_the_bits_of_numbers_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    scaler, twin = ReturnScaler(1, 0.9, clip=1.2), ReturnScaler(1, 0.9, clip=1.2)
    for reward, ending in 3 * models.normal(60, 2, 1).numpy():
        done = ending < -2.5
        found = scaler.update(reward, done)
        assert found.tobytes() == by_numpy(monkeypatch, lambda r=reward, d=done: twin.update(r, d)).tobytes()
    assert all(map(torch.equal, scaler.buffers(), twin.buffers()))


@pytest.mark.parametrize("activation", ["relu", "tanh", "leaky_relu"])
@pytest.mark.parametrize("head", HEADS)
def test_the_numbers_are_the_modules(head: str, activation: str) -> None:
    network, act = make(head, activation=activation)
    act.compiles = lambda: True
    for edit in (None, *EDITS):
        if edit and head == "q":
            EDITS[edit](network)
        for rows in (1, 2, NATIVE_ROWS):
            x = 4 * models.normal(rows, 5, seed=rows)
            with torch.no_grad():
                expected = network(x)
            found = act(x.numpy())
            for one, other in zip(*(y if isinstance(y, tuple) else (y,) for y in (found, expected)), strict=True):
                torch.testing.assert_close(torch.as_tensor(one).expand_as(other), other, rtol=1e-5, atol=1e-6)
    assert NumpyPlan(network).run_compiled(x.numpy()) is not None


NORMS: dict[str, Callable[[], Any]] = {
    "layer": lambda: nn.LayerNorm(8),
    "layer, plain": lambda: nn.LayerNorm(8, 0.1, elementwise_affine=False),
    "layer, no bias": lambda: nn.LayerNorm(8, bias=False),
    "rms": lambda: nn.RMSNorm(8),
    "rms, plain": lambda: nn.RMSNorm(8, 0.1, elementwise_affine=False),
}
NORM_EDITS: dict[str, Callable[[Any], Any]] = {
    "none": lambda norm: None,
    "eps": lambda norm: setattr(norm, "eps", 2.0),
    "in place": lambda norm: [one.data.uniform_(-2, 2) for one in norm.parameters()],
    "parameters": lambda norm: [setattr(norm, name, nn.Parameter(torch.randn(8))) for name in norm._parameters],
    "no weight": lambda norm: norm.register_parameter("weight", None),
    "strided": lambda norm: [setattr(one, "data", torch.randn(16)[::2]) for one in norm.parameters()],
}


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("edit", NORM_EDITS)
@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_the_modules(norm: str, edit: str, compiled: bool) -> None:
    network, act = make(activation="leaky_relu")
    act.compiles = lambda: compiled
    network.q.insert(1, NORMS[norm]()), network.q.insert(4, nn.Tanh()), network.q.insert(5, NORMS[norm]())
    for x in (models.normal(2, 5), 1000 + models.normal(2, 5), torch.zeros(2, 5)):
        for change in (lambda _: None, NORM_EDITS[edit], lambda _: network.q[2].__setattr__("negative_slope", 0.5)):
            change(network.q[1]), change(network.q[5])
            expected = network(x).detach().numpy()
            np.testing.assert_allclose(act(x.numpy()), expected, rtol=1e-4, atol=1e-5)
    assert NumpyPlan(network).max_rows


def test_norms_of_another_width_are_refused_as_by_the_module() -> None:
    network, act = make()
    network.q.insert(1, nn.LayerNorm(4))
    for compiled in (True, False):
        act.compiles = lambda compiled=compiled: compiled
        with pytest.raises(RuntimeError, match="normalized_shape"):
            act(models.normal(2, 5).numpy())


def resized(network: Any) -> None:
    """Replace parameters by those of more neurons; what the layers say of their sizes is left as it was."""
    first, second = network.q[2], network.q[4]
    first.weight, first.bias = nn.Parameter(torch.randn(12, 8)), nn.Parameter(torch.randn(12))
    second.weight = nn.Parameter(torch.randn(3, 12))


ODD: dict[str, Callable[[Any], Any]] = {
    "every other number of a bias": lambda net: setattr(net.q[2].bias, "data", torch.randn(16)[::2]),
    "one number that is expanded": lambda net: setattr(net.q[2].bias, "data", torch.randn(1).expand(8)),
    "one number for all": lambda net: setattr(net.q[2].bias, "data", torch.randn(1)),
    "other sizes": resized,
    "a vector of weights": lambda net: net.q[2].register_parameter("weight", nn.Parameter(torch.randn(8))),
}


@pytest.mark.parametrize("edit", ODD)
def test_parameters_are_read_as_they_lie(edit: str) -> None:
    network, act = make()
    act.compiles = lambda: True
    x = models.normal(2, 5)
    act(x.numpy())
    ODD[edit](network)
    try:
        expected = network(x).detach().numpy()
    except RuntimeError as error:
        with pytest.raises(type(error)):
            act(x.numpy())
        return
    np.testing.assert_allclose(act(x.numpy()), expected, rtol=1e-5, atol=1e-6)


def test_layers_that_do_not_fit_one_another_are_refused() -> None:
    for head in ("q", "squashed"):
        network, act = make(head)
        act.compiles = lambda: True
        if head == "q":
            network.q[4] = nn.Linear(1000, 3)
        else:
            network.log_std = nn.Linear(1000, 3)
        with pytest.raises(ValueError, match="aligned"):
            act(models.normal(2, 5).numpy())


def test_observations_of_nothing_give_the_bias() -> None:
    layer = nn.Linear(1, 3)
    layer.weight = nn.Parameter(torch.empty(3, 0))
    program = np.array([(0, 0, layer.bias.data_ptr(), 0, 3, 0.0)], "i8,i8,i8,i8,i8,f8").tobytes()
    (found,) = native.loaded.forward(program, 1, np.empty((2, 0), np.float32))
    np.testing.assert_array_equal(found, layer.bias.detach().numpy()[None].repeat(2, 0))


def test_tanh_is_tanh() -> None:
    x = np.linspace(-12, 12, 100_001, dtype=np.float32)[:, None]
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(layer.weight), torch.nn.init.zeros_(layer.bias)
    rows = [(0, layer.weight.data_ptr(), layer.bias.data_ptr(), 1, 1, 0.0), (4, 0, 0, 1, 1, 0.0)]
    program = np.array(rows, "i8,i8,i8,i8,i8,f8").tobytes()
    (found,) = native.loaded.forward(program, 1, x)
    np.testing.assert_allclose(found, np.tanh(x.astype(np.float64)), rtol=1e-6, atol=1e-12)
    x[:3, 0] = np.nan, np.inf, -np.inf
    (found,) = native.loaded.forward(program, 1, x)
    np.testing.assert_array_equal(found[:3, 0], np.float32([np.nan, 1, -1]))
    for wrong in (x[:, 0], x[:12].reshape(4, 3), x[::2]):  # of another width, or not in one piece
        assert native.loaded.forward(program, 1, wrong) is None


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_a_run_goes_on_to_the_bit_in_the_middle_of_a_rollout(env: str) -> None:
    def agent_and_env() -> tuple[Any, PPO]:
        made = make_env(env, num_envs=1, seed=1)
        config = PPOConfig(hidden=(16,), num_steps=32, num_minibatches=2, num_epochs=2)
        return made, PPO(made.observation_space, made.action_space, config, seed=2, compile="on")

    where, agent = agent_and_env()
    train(where, agent, 75)
    states = copy.deepcopy((where.state_dict(), agent.state_dict()))
    train(where, agent, 75)
    again, twin = agent_and_env()
    again.reset()
    again.load_state_dict(states[0])
    twin.load_state_dict(states[1])
    context = train(again, twin, 0)
    context.step = 1  # the environment goes on
    train(again, twin, 76, ctx=context)
    for one, other in zip(agent.networks["actor"].parameters(), twin.networks["actor"].parameters(), strict=True):
        assert torch.equal(one, other)


SHAPES: list[tuple[int, ...]] = [(), (1,), (3,), (2, 5), (3, 1, 4), (0,)]
DTYPES = ["float32", "float64", "uint8", "int64", "bool"]


def rows_of(names: dict[str, tuple[tuple[int, ...], str]], length: int, seed: int) -> dict[str, np.ndarray]:
    """Return arrays (length, *shape) of whole numbers by name; without a length, those of one row."""
    generator, lead = np.random.default_rng(seed), () if length == 0 else (length,)
    return {n: generator.integers(0, 100, (*lead, *shape)).astype(dtype) for n, (shape, dtype) in names.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 7])
def test_rows_are_stored_as_numpy_assigns_them(length: int, dtype: str) -> None:
    names = {f"field_{i}": (shape, dtype) for i, shape in enumerate(SHAPES)}
    targets = rows_of(names, length, seed=0)
    expected = {name: target.copy() for name, target in targets.items()}
    for clock in range(3 * length + 1):  # more than once around
        row = rows_of(names, 0, seed=1 + clock)
        row = {name: np.asarray(values) for name, values in row.items()}
        assert native.loaded.store(targets, {**row, "more": np.ones(3)}, clock % length)
        for name, values in row.items():
            expected[name][clock % length] = values
        for name, target in targets.items():
            np.testing.assert_array_equal(target, expected[name], strict=True)


UNFIT: dict[str, Any] = {
    "another dtype": np.ones((2, 3)),
    "bytes turned": np.ones((2, 3), ">f4"),
    "fewer columns": np.ones((2, 2), np.float32),
    "what would be broadcast": np.ones((1, 3), np.float32),
    "one dimension less": np.ones(3, np.float32),
    "one dimension more": np.ones((1, 2, 3), np.float32),
    "as many entries in another shape": np.ones((3, 2), np.float32),
    "columns first": np.asfortranarray(np.ones((2, 3), np.float32)),
    "every other column": np.ones((2, 6), np.float32)[:, ::2],
    "tensor": torch.ones(2, 3),
    "list": [[1.0] * 3] * 2,
    "missing": None,
}


@pytest.mark.parametrize("kind", UNFIT)
def test_what_cannot_be_copied_as_it_is_leaves_all_rows_alone(kind: str) -> None:
    targets = {"first": np.zeros((4, 2), np.float32), "second": np.zeros((4, 2, 3), np.float32)}
    row = {"first": np.ones(2, np.float32), "second": UNFIT[kind]}
    if UNFIT[kind] is None:
        del row["second"]
    assert not native.loaded.store(targets, row, 1)
    assert not any(target.any() for target in targets.values())


def test_rows_beyond_the_memory_are_refused() -> None:
    targets, row = {"x": np.zeros((4, 2), np.float32)}, {"x": np.ones(2, np.float32)}
    assert native.loaded.store(targets, row, 3)
    for time in (4, 400, -1):
        assert not native.loaded.store(targets, row, time)
    assert targets["x"].sum() == 2
    turned = np.zeros((2, 4), np.float32).T  # memory that is not in order
    locked = np.zeros((4, 2), np.float32)
    locked.flags.writeable = False
    assert not any(native.loaded.store({"x": target}, row, 1) for target in (turned, locked))
    objects = {"x": np.array([None, None])}
    assert not native.loaded.store(objects, {"x": np.array(object())}, 1)


def test_places_tell_every_way_to_move_a_parameter() -> None:
    weight, bias = torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.randn(4))
    tensors, before = [weight, bias], native.places_of([weight, bias])
    weight.data.mul_(2)
    assert native.places_of(tensors) == before
    old = weight.data
    for moved in (old.clone(), old.t(), old[:2], old[:, :1], old[:1].expand(4, 4), old.view(2, 8), old[1:]):
        weight.data = moved
        assert native.places_of(tensors) != before
        weight.data = old
        assert native.places_of(tensors) == before


def test_places_of_what_does_not_tell_are_asked_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.nn.Parameter(torch.randn(3, 2).t()), torch.randn(4)[1:], torch.randn(())]
    assert native.places_of(tensors) == by_numpy(monkeypatch, lambda: native.places_of(tensors))
    meta = torch.nn.Parameter(torch.empty(3, device="meta"))
    assert native.places_of([meta]) == by_numpy(monkeypatch, lambda: native.places_of([meta]))


def moved() -> OrderedDict[str, int]:
    """Return hooks as torch keeps them, of which the last one was put in front."""
    hooks = OrderedDict(a=1, b=2)
    hooks.move_to_end("b", last=False)
    return hooks


@pytest.mark.parametrize("parts", [[], [{"a": 1, "b": None}, [3, 4], {}, [], {"c": ...}], [moved()]])
def test_values_are_told_from_every_other_list(parts: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    values = native.items_of(parts)
    other = object()
    wrong = [[*values[:i], other, *values[i + 1 :]] for i in range(len(values))] + [[*values, other]]
    wrong += [values[:-1]] if values else []

    def answers() -> list[bool]:
        return [native.values_are(parts, values), *(native.values_are(parts, one) for one in wrong)]

    assert answers() == by_numpy(monkeypatch, answers) == [True] + [False] * len(wrong)
