"""The device made for tests: it refuses what a GPU refuses, and counts what makes a host wait."""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import elsewhere
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setattr(torch, "Generator", elsewhere.Generator)
    return torch.arange(6.0, device=elsewhere.NAME)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.ones(6),
        lambda x: torch.ones(6).mul_(x),
        lambda x: torch.where(x > 1, x, torch.ones(6)),
        lambda x: torch.ones(6)[x.long()],
        lambda x: torch.stack([x, torch.ones(6)]),
        lambda x: nn.Linear(6, 2)(x),
        lambda x: torch.randn(3, generator=torch.Generator(), device=x.device),
        lambda x: torch.randn(3, generator=torch.Generator(elsewhere.NAME)),
        lambda x: torch.empty_like(x).uniform_(generator=torch.Generator()),
        lambda x: x.numpy(),
    ],
)
def test_two_devices_do_not_mix(mistake: Callable[[Tensor], object], there: Tensor) -> None:
    with pytest.raises((RuntimeError, TypeError)), elsewhere.Drawing():
        mistake(there)


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 2],
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.ones(3).to(x.device),
        lambda x: x[:3].copy_(torch.ones(3)),
        lambda x: x[torch.tensor([1])],
    ],
)
def test_what_the_host_waits_for_is_counted(waiting: Callable[[Tensor], object], there: Tensor) -> None:
    with pytest.raises(RuntimeError, match="the host waits"), elsewhere.without_waiting():
        waiting(there)


def test_a_network_learns_there_as_on_the_cpu(there: Tensor) -> None:
    ends = []
    for device in ("cpu", elsewhere.NAME):
        torch.manual_seed(0)
        x, y = torch.randn(2, 8, 4).to(device)
        net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4)).to(device)
        optimizer = torch.optim.Adam(net.parameters(), fused=True)
        with elsewhere.without_waiting():
            for _ in range(5):
                optimizer.zero_grad()
                (net(x * torch.tensor(2.0)) - y).square().mean().backward()  # a number of the host is taken
                optimizer.step()
        assert all(p.device.type == device and p.grad.device.type == device for p in net.parameters())
        ends.append([p.detach().cpu() for p in net.parameters()])
    assert all(map(torch.equal, *ends))


def test_generators_and_views(there: Tensor) -> None:
    one, other = (torch.Generator(elsewhere.NAME).manual_seed(3) for _ in range(2))
    drawn = torch.rand(4, generator=one, device=elsewhere.NAME)
    assert drawn.device == torch.device(elsewhere.NAME, 0)
    assert torch.equal(drawn, torch.rand(4, generator=other, device=elsewhere.NAME))
    there[1:3].mul_(10)
    there.view(2, 3)[1] = 0
    assert there.tolist() == [0, 10, 20, 0, 0, 0]


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bias", [True, False])
def test_recurrent_cells_compute_and_learn_there_as_on_the_cpu(kind: type[nn.RNNBase], bias: bool) -> None:
    here = kind(3, 4, num_layers=2, batch_first=True, bias=bias)
    there = copy.deepcopy(here).to(elsewhere.NAME)
    x = torch.randn(5, 6, 3)
    found = []
    for net, inputs in ((here, x), (there, x.to(elsewhere.NAME))):
        output = net(inputs.requires_grad_())[0]
        output.square().sum().backward()
        found.append([t.cpu() for t in (output, inputs.grad, *(p.grad for p in net.parameters()))])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("lower", [True, False])
def test_checkpointing_and_autocast_work_there(use_reentrant: bool, lower: bool) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).to(elsewhere.NAME)
    x = torch.randn(5, 1, 4, 4).to(elsewhere.NAME).requires_grad_()
    found = []
    for run in (net, lambda x: checkpoint(net, x, use_reentrant=use_reentrant)):
        net.zero_grad()
        with torch.autocast(elsewhere.NAME, torch.bfloat16) if lower else nullcontext():
            output = run(x)
        output.float().square().sum().backward()
        assert output.dtype == (torch.bfloat16 if lower else torch.float32)
        found.append([output.cpu(), *(p.grad.cpu() for p in net.parameters())])
    torch.testing.assert_close(*found)
