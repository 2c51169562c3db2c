"""`plasticity.torchrl`: loss modules are read and edited critic by critic, alone and in a trainer."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import reference
import torch

pytest.importorskip("torchrl")

from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import Tensor, nn
from torchrl.data import Bounded, LazyTensorStorage, OneHot, ReplayBuffer
from torchrl.modules import MLP, ProbabilisticActor, QValueActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss, DQNLoss, REDQLoss, SACLoss, SoftUpdate, TD3Loss

from plasticity.interventions import (
    INTERVENTIONS,
    NeuroplasticExpansion,
    PlasticityInjection,
    RecentExperience,
    ReDo,
    Reset,
    SampleWeightDecay,
)
from plasticity.torchrl import PlasticityHook, WeightedSampler

pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning", "ignore:.*:UserWarning")
]


def policy(distribution: Any = TanhNormal) -> Any:
    """Return a stochastic actor of three observations and two actions."""
    net = nn.Sequential(MLP(3, 4, num_cells=[32, 32], activation_class=nn.Tanh), NormalParamExtractor())
    module = TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"])
    spec = Bounded(-1, 1, (2,))
    keys = ["loc", "scale"]
    return ProbabilisticActor(module, spec=spec, in_keys=keys, distribution_class=distribution, return_log_prob=True)


def critic(outputs: int = 5) -> Any:
    """Return a critic of states and actions, or of states."""
    keys = ["observation", "action"] if outputs == 5 else ["observation"]
    return ValueOperator(MLP(outputs, 1, num_cells=[32, 32], activation_class=nn.ReLU), in_keys=keys)


def loss_of(name: str) -> Any:
    """Return a small loss module."""
    torch.manual_seed(0)
    if name == "SAC":
        loss: Any = SACLoss(policy(), critic(), num_qvalue_nets=2, action_spec=Bounded(-1, 1, (2,)))
    elif name == "SAC loop":
        loss = SACLoss(policy(), critic(), num_qvalue_nets=2, action_spec=Bounded(-1, 1, (2,)), deactivate_vmap=True)
    elif name == "TD3":
        net = MLP(3, 2, num_cells=[32, 32], activation_class=nn.Tanh)
        actor = TensorDictModule(net, in_keys=["observation"], out_keys=["action"])
        loss = TD3Loss(actor, critic(), num_qvalue_nets=3, action_spec=Bounded(-1, 1, (2,)))
    elif name == "DQN":
        net = MLP(3, 4, num_cells=[32, 32], activation_class=nn.ReLU)
        return DQNLoss(
            QValueActor(net, in_keys=["observation"], spec=OneHot(4)), action_space="one-hot", delay_value=True
        )
    else:
        loss = ClipPPOLoss(policy(), critic(3))
    loss.make_value_estimator(gamma=0.99)
    return loss


LOSSES = ["SAC", "SAC loop", "TD3", "DQN", "PPO"]


def batch_of(loss: Any, generator: torch.Generator, size: int = 64) -> TensorDict:
    """Return a batch of random transitions."""
    off = torch.zeros(size, 1, dtype=torch.bool)
    following = {"observation": torch.randn(size, 3, generator=generator), "done": off, "terminated": off}
    following["reward"] = torch.randn(size, 1, generator=generator)
    batch = TensorDict({"observation": torch.randn(size, 3, generator=generator), "next": following}, [size])
    if isinstance(loss, DQNLoss):
        batch["action"] = nn.functional.one_hot(torch.randint(4, (size,), generator=generator), 4)
    else:
        batch["action"] = torch.rand(size, 2, generator=generator) * 1.8 - 0.9
    if isinstance(loss, ClipPPOLoss):
        with torch.no_grad():
            batch["action_log_prob"] = loss.actor_network.get_dist(batch.clone()).log_prob(batch["action"])
        batch["advantage"] = torch.randn(size, 1, generator=generator)
        batch["value_target"] = torch.randn(size, 1, generator=generator)
    return batch


def train(loss: Any, optimizer: Any, steps: int = 6, hook: Any = None, each: Any = None) -> None:
    """Train for some steps, as a loop of users does, with a target that follows."""
    generator = torch.Generator().manual_seed(0)
    follow = SoftUpdate(loss, tau=0.1) if any(not own for own in loss._has_update_associated.values()) else None
    torch.manual_seed(1)
    for _ in range(steps):
        batch = batch_of(loss, generator)
        if hook is not None:
            hook.begin_update(batch)
        values = loss(batch.clone())
        sum(value for key, value in values.items() if key.startswith("loss")).backward()
        optimizer.step()
        if each is not None:
            each()
        optimizer.zero_grad()
        if hook is not None:
            hook.end_update()
            hook.frames(len(batch))
        if follow is not None:
            follow.step()


def parameters_of(loss: Any, name: str) -> dict[str, Tensor]:
    """Return the tensors of a loss that hold a network, all critics that are stacked."""
    return dict(getattr(loss, f"{name}_params").flatten_keys(".").items())


class InsideTheLoss:
    """Rows and gradients of every activation of a network in its last training pass, out of ``vmap`` by own hooks."""

    def __init__(self, loss: Any, name: str) -> None:
        from torch._C._functorch import get_unwrapped, is_batchedtensor

        self.rows: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        held = parameters_of(loss, name)
        before, linear = "", nn.Identity()

        def bare(tensor: Tensor) -> Tensor:
            return get_unwrapped(tensor) if is_batchedtensor(tensor) else tensor

        def hook(layer: str, linear: nn.Module) -> Any:
            def see(module: nn.Module, args: tuple, output: Tensor) -> None:
                weight = bare(linear.weight)
                if weight.data_ptr() == held[f"{layer}.weight"].data_ptr() and weight.requires_grad:
                    self.rows[layer] = bare(output).detach().clone()
                    if bare(args[0]).requires_grad:
                        bare(args[0]).register_hook(lambda g: self.gradients.update({layer: g.detach().clone()}))

            return see

        for path, module in getattr(loss, name).named_modules():
            if isinstance(module, (nn.ReLU, nn.Tanh)):
                module.register_forward_hook(hook(before, linear))
            elif isinstance(module, nn.Linear):
                before, linear = path, module

    def check(self, reading: Any, index: int | None) -> int:
        """Compare a reading of one network, and return how many layers were compared."""
        for layer, rows in self.rows.items():
            rows, gradient = (t if index is None else t[index] for t in (rows, self.gradients[layer]))
            found = reading.scores["dormancy"][layer].numpy(force=True)
            np.testing.assert_allclose(found, reference.scores(reference.rows(rows)), rtol=1e-5)
            found = reading.scores["grama"][layer].numpy(force=True)
            np.testing.assert_allclose(found, reference.scores(reference.rows(gradient)), rtol=1e-5, atol=1e-7)
            rank = reference.ranks(reference.rows(rows))["effective_rank"]
            assert reading.values["effective_rank"][layer] == pytest.approx(rank, rel=1e-5)
        return len(self.rows)


def networks_in(hook: PlasticityHook) -> list[tuple[str, str, int | None]]:
    """Return (network, its name in the loss, its place among those that are stacked)."""
    found = []
    for name in hook._guest.ctx.networks:
        base, _, number = name.rpartition("_")
        found.append((name, base, int(number)) if number.isdigit() else (name, name, None))
    return found


@pytest.mark.parametrize("name", ["SAC", "TD3", "DQN", "PPO"])
def test_the_numbers_are_those_of_own_hooks_critic_by_critic(name: str) -> None:
    loss, compared = loss_of(name), 0
    optimizer = torch.optim.Adam(loss.parameters(), 1e-3)
    with PlasticityHook(loss, optimizer, ["dormancy", "grama", "rank"], every=1) as hook:
        hands = {base: InsideTheLoss(loss, base) for _, base, _ in networks_in(hook)}

        def each() -> None:
            nonlocal compared
            for network, base, index in networks_in(hook):
                compared += hands[base].check(hook.last[network], index)

        train(loss, optimizer, 4, each=each)
    networks = {"SAC": 3, "TD3": 4, "DQN": 1, "PPO": 2}[name]
    assert len(hook.last) == networks
    assert compared == 4 * 2 * networks


def test_critics_in_a_loop_read_what_critics_in_vmap_read() -> None:
    found = []
    for name in ("SAC", "SAC loop"):
        loss = loss_of(name)
        optimizer = torch.optim.Adam(loss.parameters(), 1e-3)
        with PlasticityHook(loss, optimizer, ["grama", "rank"], every=1) as hook:
            train(loss, optimizer, 1)
        found.append({network: reading.values for network, reading in hook.last.items() if "qvalue" in network})
    assert len(found[0]) == 2
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_no_bit_of_learning_changes(name: str) -> None:
    finals = []
    for observed in (False, True):
        loss = loss_of(name)
        optimizer = torch.optim.Adam(loss.parameters(), 1e-3)
        if observed:
            with PlasticityHook(loss, optimizer, every=1, diagnose_every=3) as hook:
                train(loss, optimizer, hook=hook)
            assert any(tag.endswith("fit_gap/all") for tag in hook._guest.ctx.latest)
        else:
            train(loss, optimizer)
        finals.append({key: value.clone() for key, value in loss.state_dict().items()})
    torch.testing.assert_close(*finals, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["SAC", "TD3", "DQN"])
def test_redo_recycles_in_each_critic_what_is_off_in_it(name: str) -> None:
    loss = loss_of(name)
    base = "value_network" if name == "DQN" else "qvalue_network"
    held = parameters_of(loss, base)
    off = {0: [1, 4]} if name == "DQN" else {0: [1, 4], 1: [7]}
    first = next(key for key in held if key.endswith("0.weight")).removesuffix(".weight")
    second = f"{first[:-1]}2"
    with torch.no_grad():
        for index, neurons in off.items():
            weight, bias = (held[f"{first}.{kind}"] for kind in ("weight", "bias"))
            weight, bias = (weight, bias) if name == "DQN" else (weight[index], bias[index])
            weight[neurons], bias[neurons] = 0, -100
    optimizer = torch.optim.Adam(loss.parameters(), 0.0)
    before = {key: value.detach().clone() for key, value in held.items()}
    redo = ReDo(every=1, threshold=0.0, stop=1, networks=(f"{base}*",))
    seen = InsideTheLoss(loss, base)
    with PlasticityHook(loss, optimizer, [], interventions=[redo]):
        train(loss, optimizer, 1)
    networks = 1 if name == "DQN" else len(held[f"{first}.weight"])

    def part(tensor: Tensor, index: int) -> Tensor:
        return tensor if name == "DQN" else tensor[index]

    for index in range(networks):
        silent = {
            layer: {i for i, column in enumerate(part(rows, index).flatten(0, -2).T) if not column.any()}
            for layer, rows in seen.rows.items()
        }
        assert silent[first] >= set(off.get(index, []))
        taken: set[int] = set()
        for layer in (first, second, f"{first[:-1]}4"):
            own = silent.get(layer, set())
            old, new = (part(tensors[f"{layer}.weight"], index) for tensors in (before, held))
            changed = {tuple(entry) for entry in (old != new).nonzero().tolist()}
            assert {row for row, column in changed if column not in taken} == own
            assert {column for row, column in changed if row not in own} <= taken
            assert not any(new[row, column] for column in taken for row in range(len(new)) if row not in own)
            moment = part(optimizer.state[held[f"{layer}.weight"]]["exp_avg"], index)
            assert not moment[:, sorted(taken)].any()
            assert not moment[sorted(own)].any()
            assert moment.any()
            taken = own
    assert sum(len(neurons) for neurons in off.values()) <= redo.counts["recycled"]


def test_reset_redraws_one_critic_and_its_target_alone() -> None:
    loss = loss_of("SAC")
    optimizer = torch.optim.Adam(loss.parameters(), 0.0)
    held, target = parameters_of(loss, "qvalue_network"), parameters_of(loss, "target_qvalue_network")
    before = {key: value.detach().clone() for key, value in held.items()}
    reset = Reset(at=(3,), networks=("qvalue_network_1",))
    with PlasticityHook(loss, optimizer, [], interventions=[reset]) as hook:
        train(loss, optimizer, 3, hook=hook)
    assert reset.counts["applications"] == 1
    for key, value in held.items():
        assert torch.equal(value[0], before[key][0])
        if key.endswith("weight"):
            assert (value[1] != before[key][1]).float().mean() > 0.9
        torch.testing.assert_close(target[key][1], value[1].detach(), rtol=1e-6, atol=1e-7)
        assert not optimizer.state[held[key]]["exp_avg"][1].any()
        assert optimizer.state[held[key]]["exp_avg"][0].any()


REFUSED = {
    **dict.fromkeys(("feature_norm", "chain", "dr3", "sam"), "gradient steps of agents|finds no network"),
    **dict.fromkeys(("swd", "ere", "random_shift"), "a replay buffer"),
    "replay_ratio": "set_replay_ratio",
    "horizon": "set_horizon",
    **dict.fromkeys(("plasticity_injection", "spectral_normalization", "infer", "knife"), "replaces modules"),
    "least": "a value function",
    "pfo": "finds no network actor|gradient steps",
}
"""Method -> why it does not apply to a loss module."""


@pytest.mark.parametrize("method", INTERVENTIONS)
@pytest.mark.filterwarnings("ignore:cbp never acted")  # its neurons mature later
def test_every_method_acts_or_says_why_not(method: str) -> None:
    kind = INTERVENTIONS[method]
    fields = {field.name for field in dataclasses.fields(kind)}
    made = kind(**({"every": 2} if "every" in fields and method not in ("plasticity_injection", "knife") else {}))
    loss = loss_of("SAC")
    optimizer = torch.optim.Adam(loss.parameters(), 1e-3)
    if method in REFUSED:
        with (
            pytest.raises(ValueError, match=REFUSED[method]),
            PlasticityHook(loss, optimizer, [], interventions=[made]),
        ):
            pass
        return
    plain = loss_of("SAC")
    train(plain, torch.optim.Adam(plain.parameters(), 1e-3), 6)
    with PlasticityHook(loss, optimizer, [], interventions=[made]) as hook:
        train(loss, optimizer, 6, hook=hook)
    assert all(bool(p.isfinite().all()) for p in loss.parameters())
    if method not in ("ne", "cbp", "ccbp", "resin", "reborn"):  # nothing is silent for so long
        key = "qvalue_network_params.module.0.weight"
        moved = ((loss.state_dict()[key] - plain.state_dict()[key]) != 0).flatten(1).any(1)
        assert moved.all() or method == "rewarm" or made.counts


def test_neurons_of_a_sparse_critic_are_masked_in_its_rows_its_moments_and_its_target() -> None:
    loss = loss_of("SAC")
    optimizer = torch.optim.Adam(loss.parameters(), 1e-3)
    ne = NeuroplasticExpansion(every=2, end=4)
    with PlasticityHook(loss, optimizer, [], interventions=[ne]) as hook:
        train(loss, optimizer, 5, hook=hook)
    assert ne.counts["grown"] > 0
    held, target = parameters_of(loss, "qvalue_network"), parameters_of(loss, "target_qvalue_network")
    weight, moment = held["module.2.weight"], optimizer.state[held["module.2.weight"]]["exp_avg"]
    for index in range(2):
        absent = weight[index] == 0
        assert 0.2 < absent.float().mean() < 0.5
        assert not moment[index][absent].any()
        assert not target["module.2.weight"][index][absent].any()


def test_wrong_use_is_refused() -> None:
    loss = loss_of("SAC")
    optimizer = torch.optim.Adam(loss.parameters(), 1e-3)
    with (
        pytest.warns(RuntimeWarning, match=r"none of these optimizers has stepped: give the hook those whose step\(\)"),
        PlasticityHook(loss, optimizer),
        pytest.raises(ValueError, match="PlasticityHook already"),
    ):
        PlasticityHook(loss, optimizer).start()
    with pytest.raises(TypeError, match="takes the loss module"):
        PlasticityHook(loss.actor_network, optimizer)
    redq = REDQLoss(policy(), critic(), num_qvalue_nets=4, sub_sample_len=2, action_spec=Bounded(-1, 1, (2,)))
    with pytest.raises(ValueError, match=r"copies of their parameters.*use SACLoss"):
        PlasticityHook(redq, torch.optim.Adam(redq.parameters()))
    with pytest.raises(TypeError, match="all that train the loss"):
        PlasticityHook(loss, 1e-3)
    with pytest.raises(TypeError, match="list of methods"):
        PlasticityHook(loss, optimizer, interventions=[ReDo])
    with pytest.raises(ValueError, match="before the loss module is made"):
        PlasticityHook(loss, optimizer, interventions=[PlasticityInjection(at=(3,))])
    with pytest.raises(ValueError, match="none of the 1 optimizers trains"):
        PlasticityHook(loss, torch.optim.Adam(loss.actor_network.parameters())).start()
    buffer = ReplayBuffer(storage=LazyTensorStorage(10))
    with pytest.raises(ValueError, match="WeightedSampler"):
        PlasticityHook(loss, optimizer, replay_buffer=buffer, interventions=[SampleWeightDecay()]).start()
    loss.qvalue_network.compile(backend="eager")
    with pytest.raises(ValueError, match="qvalue_network of SACLoss is compiled"):
        PlasticityHook(loss, optimizer).start()
    whole = loss_of("SAC")
    whole.compile(backend="eager")
    with pytest.raises(ValueError, match="loss module of SACLoss is compiled"):
        PlasticityHook(whole, torch.optim.Adam(whole.parameters())).start()


@pytest.mark.parametrize("rows", [30, 50, 77])
def test_ages_are_drawn_as_the_formula_says(rows: int, tmp_path: Any) -> None:
    sampler = WeightedSampler()
    buffer = ReplayBuffer(storage=LazyTensorStorage(50), sampler=sampler, batch_size=40_000)
    for start in range(1, rows + 1, 7):
        buffer.extend(torch.arange(start, min(start + 7, rows + 1)))
    sampler.weigh("swd", SampleWeightDecay(horizon=20, floor=0.1).weight())
    sampler.dumps(tmp_path)
    ages = (rows + 1 - buffer.sample()).numpy()
    most = min(rows, 50)
    weights = np.maximum(0.1, 1 - np.arange(1, most + 1) / 20)
    share = np.bincount(ages, minlength=most + 1)[1:] / len(ages)
    np.testing.assert_allclose(share, weights / weights.sum(), atol=4 * np.sqrt(0.08 / len(ages)))
    first = sampler.sample(buffer._storage, 9)[0]
    state = sampler.state_dict()
    expected = sampler.sample(buffer._storage, 9)[0]
    other = WeightedSampler()
    other.weigh("swd", SampleWeightDecay(horizon=20, floor=0.1).weight())
    other.load_state_dict(state)
    assert torch.equal(other.sample(buffer._storage, 9)[0], expected)
    other.loads(tmp_path)
    assert len(first) == len(other.sample(buffer._storage, 9)[0])


def test_ere_weighs_every_update() -> None:
    sampler = WeightedSampler()
    buffer = ReplayBuffer(storage=LazyTensorStorage(500), sampler=sampler, batch_size=64)
    loss = loss_of("SAC")
    optimizer = torch.optim.Adam(loss.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    buffer.extend(batch_of(loss, generator, 400))
    ere = RecentExperience(eta=0.999, smallest=3, round_length=4)
    oldest = []
    with PlasticityHook(loss, optimizer, [], interventions=[ere], replay_buffer=buffer) as hook:
        for _ in range(4):
            hook.begin_update(batch_of(loss, generator, 4))
            index, _ = sampler.sample(buffer._storage, 2000)
            oldest.append(int(400 - index.min()))
            hook.end_update()
    assert sampler.weights == {}
    for update, age in enumerate(oldest, 1):
        assert age <= max(400 * 0.999 ** (1000 * update / 4), 3)
    assert oldest == sorted(oldest, reverse=True)
