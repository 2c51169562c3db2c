"""Multi-skip and SimbaV2 by hand; random shifts of images against padding and cropping; agents that have them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_interventions import run_sac, small_sac
from torch import Tensor, nn
from torch.nn import functional as F

from plasticity.agents.bodies import Architecture, make_body
from plasticity.agents.hypersphere import Interpolated, Scaler, simba2_layers
from plasticity.agents.inputs import gathered
from plasticity.agents.networks import with_output
from plasticity.agents.parts import MultiSkip
from plasticity.agents.replay import ReplayBuffer
from plasticity.callback import Context
from plasticity.interventions import Hyperspherical, RandomShift
from plasticity.interventions.random_shift import shifted

pytestmark = pytest.mark.usefixtures("everywhere")


def test_multi_skip_by_hand() -> None:
    first, second = nn.Linear(2, 3), nn.Linear(5, 1)
    x = torch.randn(4, 2)
    expected = second(torch.cat([first(x), x], 1))
    torch.testing.assert_close(MultiSkip([first, second])(x), expected)
    body = make_body(Architecture(network="multi_skip", activation="crelu"), (5,), (8, 6), extra_dim=2)
    widths = [layer.in_features for layer in body.modules() if isinstance(layer, nn.Linear)]
    assert widths == [7, 16 + 7]
    assert body(torch.randn(3, 5), torch.randn(3, 2)).shape == (3, body.num_features) == (3, 12)


def test_simba2_against_its_equations() -> None:
    trunk, x = simba2_layers(3, 6, 2), torch.randn(5, 3)
    unit = lambda v: v / v.norm(dim=-1, keepdim=True)  # noqa: E731
    weights = [m.weight for m in trunk.modules() if isinstance(m, nn.Linear)]
    h = unit(unit(torch.cat([x, torch.full((5, 1), 3.0)], 1)) @ weights[0].T * math.sqrt(2 / 6))
    for wide, narrow in (weights[1:3], weights[3:5]):
        inner = unit(torch.relu(h @ wide.T * math.sqrt(2 / 6)) @ narrow.T)
        h = unit((1 - 1 / 3) * h + 1 / 3 * inner)
    torch.testing.assert_close(trunk(x), h)
    for weight in weights:
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(len(weight)))
    scaler = Scaler(4, 0.25, 0.5)
    torch.testing.assert_close(scaler(torch.ones(4)), torch.full((4,), 0.25))
    assert Interpolated(6, 3).rate.scale[0].item() == pytest.approx(6**-0.5)
    assert Interpolated(6, 3).inner[1].scale[0].item() == pytest.approx(math.sqrt(2 / 24))  # of the wide layer
    body = make_body(Architecture(network="simba2"), (3,), (6,), 0)
    output, h = with_output(body, 2)[-3:], unit(torch.randn(5, 6))
    with torch.no_grad():
        output[1].scale.normal_()
        output[2].bias.normal_()
    assert not with_output(body, 2)[-1].bias.any()
    expected = (h @ output[0].weight.T * output[1].scale) @ output[2].weight.T + output[2].bias
    torch.testing.assert_close(output(h), expected)
    plain = make_body(Architecture(network="simba2", outputs="default"), (3,), (6,), 0)
    assert len(with_output(plain, 2)) == len(with_output(body, 2)) - 2
    with pytest.raises(ValueError, match="simba2 has unit features in the place of norms"):
        make_body(Architecture(network="simba2", norm="layer"), (3,), (6, 6))


@pytest.mark.on_real_devices
@pytest.mark.parametrize("network", ["multi_skip", "simba2"])
def test_agents_learn_with_it_and_rows_stay_of_length_1(network: str) -> None:
    agent = small_sac(network=network, hidden=(8, 8))
    run_sac([Hyperspherical()], agent=agent, steps=30)
    assert agent.updates > 5
    for net in agent.networks.values():
        for layer in (m for m in net.modules() if isinstance(m, nn.Linear)):
            assert layer.weight.isfinite().all()
            torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones(len(layer.weight)))


def padded_and_cropped(image: Tensor, down: int, right: int, pad: int) -> Tensor:
    """One shift as DrQ does it: pad with the edges, and cut out a window."""
    wide = F.pad(image[None].float(), (pad,) * 4, mode="replicate")[0]
    top, left = pad - down, pad - right
    return wide[:, top : top + image.shape[1], left : left + image.shape[2]].to(image.dtype)


def test_shifts_are_those_of_padding_and_cropping() -> None:
    images = torch.randint(256, (9, 3, 7, 6), dtype=torch.uint8)
    down, right = torch.randint(-2, 3, (2, 9))
    expected = [padded_and_cropped(images[i], int(down[i]), int(right[i]), 2) for i in range(9)]
    assert torch.equal(shifted(images, down, right), torch.stack(expected))
    one = torch.tensor([[[[1, 2], [3, 4]]]])
    assert shifted(one, torch.tensor([1]), torch.tensor([0])).tolist() == [[[[1, 2], [1, 2]]]]


def images(seed: int = 0) -> ReplayBuffer:
    more: dict[str, Any] = {"num_envs": 1, "seed": seed, "obs_dtype": torch.uint8}
    buffer = ReplayBuffer(20, (1, 8, 8), (), device=torch.get_default_device(), **more)
    generator = torch.Generator("cpu").manual_seed(0)
    for _ in range(12):
        obs, following = torch.randint(256, (2, 1, 1, 8, 8), generator=generator, device="cpu").to(torch.uint8)
        parts: dict[str, Any] = {"obs": obs, "next_obs": following, "action": torch.zeros(1), "reward": torch.zeros(1)}
        no = torch.zeros(1, dtype=torch.bool)
        buffer.add(SimpleNamespace(**parts, terminated=no, truncated=~no))
    return buffer


def test_replayed_images_are_shifted_while_the_method_is_on_and_resumed_alike() -> None:
    buffer, plain = images(), images()
    method, ctx = RandomShift(pixels=2), Context(buffer=buffer)
    method.on_train_start(ctx)
    state = method.state_dict()
    one, same = gathered(buffer.choose(6)), gathered(plain.choose(6))
    assert torch.equal(one.index, same.index)
    down, right = torch.randint(-2, 3, (2, 6), generator=RandomShift(pixels=2).generator, device="cpu")
    moved = [padded_and_cropped(same.obs[i], int(down[i]), int(right[i]), 2) for i in range(6)]
    assert torch.equal(one.obs, torch.stack(moved))
    assert not torch.equal(one.next_obs, same.next_obs)
    method.load_state_dict(state)
    again = images()
    other = RandomShift(pixels=2)
    other.on_train_start(Context(buffer=again))
    assert torch.equal(gathered(again.choose(6)).obs, one.obs)
    method.on_train_end(ctx)
    assert torch.equal(gathered(buffer.choose(6)).obs, gathered(plain.choose(6)).obs)


def test_vectors_are_refused() -> None:
    buffer = ReplayBuffer(20, (3,), (1,), device=torch.get_default_device())
    with pytest.raises(ValueError, match=r"RandomShift needs a buffer of images.*has observations of shape \(3,\)"):
        RandomShift().on_train_start(Context(buffer=buffer))
    with pytest.raises(ValueError, match="RandomShift needs a replay buffer"):
        RandomShift().on_train_start(Context())
