"""Back to a base: fusion and overwritten neurons, entry by entry, in Python and as commands on checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim

from plasticity.cli import main
from plasticity.commands.run import load_state
from plasticity.storage.folder import Checkpoints
from plasticity.surgery.base import fuse, reset_to
from plasticity.surgery.optimizer_state import SurgeryError


def nets() -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2))
    model = copy.deepcopy(base)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    return model, base


def test_a_list_of_bools_is_a_mask_as_a_tensor_is() -> None:
    model, base = nets()
    assert reset_to(model, base, {"0": [True, False, True, False]}) == {"0": [0, 2]}
    with pytest.raises(SurgeryError, match=r"0 needs a mask of shape \(4,\); got \(2,\)"):
        reset_to(model, base, {"0": [True, False]})


@pytest.mark.parametrize(
    "chosen",
    [
        np.array([False, True, False, True]), [np.bool_(False), np.True_, np.False_, np.True_], np.array([1, 3]),
        (np.int64(1), 3), range(1, 4, 2), torch.tensor([1, 3]), (i for i in (1, 3)), {1: "one", 3: "three"}.keys(),
    ],
    ids=lambda chosen: type(chosen).__name__,
)  # fmt: skip
def test_neurons_are_taken_from_whatever_lists_them(chosen: Any) -> None:
    model, base = nets()
    assert reset_to(model, base, {"0": chosen}) == {"0": [1, 3]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model, base: reset_to(model, base, {"0": 3}),
            "0 needs units as whole numbers, or as a bool mask; got 3",
        ),
        (lambda model, base: reset_to(model, base, {"0": [1]}, factor="1"), r"factor is in \[0, 1\]; got '1'"),
        (lambda model, base: fuse(model, base, "0.5"), "alpha is the share of the base.*got '0.5'"),
    ],
)
def test_values_of_another_kind_are_refused(call: Any, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        call(*nets())


def test_fusion_is_over_all_tensors() -> None:
    model, base = nets()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert fuse(model, base, 0.25) == [name for name, _ in model.named_parameters()]
    for name, p in base.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).detach(), 0.75 * before[name] + 0.25 * p.detach())
    fuse(model, base.state_dict(), 1.0)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), base.parameters(), strict=True))


def test_neurons_are_those_of_the_base_and_nothing_else_moves() -> None:
    model, base = nets()
    optimizer = optim.Adam(model.parameters(), 0.0)
    model(models.normal(8, 3)).square().mean().backward()
    optimizer.step()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    done = reset_to(model, base, {"0": [1, 3], "3": torch.tensor([False, True, False, False])}, outgoing=["3"],
                    optimizers=[optimizer])  # fmt: skip
    assert done == {"0": [1, 3], "3": [1]}
    expected = {name: p.clone() for name, p in before.items()}
    expected["0.weight"][[1, 3]], expected["0.bias"][[1, 3]] = base[0].weight[[1, 3]], base[0].bias[[1, 3]]
    expected["3.weight"][:, 1] = base[3].weight[:, 1]
    for name, p in model.named_parameters():
        assert torch.equal(p.detach(), expected[name]), name
        changed = expected[name] != before[name]
        assert torch.equal(optimizer.state[p]["exp_avg"] == 0, changed | (optimizer.state[p]["exp_avg"] == 0))
        assert not p.grad[changed].any()
    reset_to(model, base, {"0": [0]}, factor=0.5)
    torch.testing.assert_close(model[0].weight[0].detach(), (before["0.weight"][0] + base[0].weight[0].detach()) / 2)


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3, groups=2), nn.ConvTranspose2d(2, 4, 3)])
def test_a_channel_of_a_convolution_is_a_neuron(layer: nn.Module) -> None:
    base = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight.zero_()
    reset_to(layer, base, {"": [2]})
    x = models.normal(1, 2, 5, 5)
    with torch.no_grad():
        layer.bias.copy_(base.bias)
    torch.testing.assert_close(layer(x)[:, 2], base(x)[:, 2])
    assert not (layer(x) - layer.bias[:, None, None])[:, [0, 1, 3]].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, b: fuse(m, b, 1.5), "alpha is the share"),
        (lambda m, b: fuse(m, nn.Linear(3, 4)), "the base does not fit the model: 0.weight missing"),
        (lambda m, b: reset_to(m, b, {"1": [0]}), "1 is no Linear or convolution; there are 0, 3"),
        (lambda m, b: reset_to(m, b, {"0": [4]}), r"0 has the units 0 to 3; got \[4\]"),
        (lambda m, b: reset_to(m, b, {"0": torch.ones(3, dtype=torch.bool)}), r"needs a mask of shape \(4,\)"),
        (lambda m, b: reset_to(m, b, {"0": [0]}, factor=-1.0), "factor is in"),
        (lambda m, b: reset_to(m, b, {"0": [1.5]}), r"0 needs units as whole numbers, .* got \[1.5\]"),
        (lambda m, b: reset_to(m, b, {"0": [0]}, outgoing=["3"]), "outgoing are layers of units, here 0; got 3"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_changes(call: Any, message: str) -> None:
    model, base = nets()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match=message):
        call(model, base)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def trained(folder: Path) -> tuple[Path, Path]:
    arguments = ["train", "sac", "--env", "Pendulum-v1", "--steps", "120", "--hidden", "6", "6", "--batch-size", "8"]
    quiet = [
        "--learning-starts",
        "20",
        "--checkpoint.every",
        "60",
        "--eval-every",
        "0",
        "--quiet",
        "--out",
        str(folder),
    ]
    assert main([*arguments, *quiet, "--name", "run"]) == 0
    return folder / "run", Checkpoints(folder / "run" / "checkpoints").all()[0]


def networks(path: Path, kind: str = "networks") -> dict[str, Tensor]:
    found = load_state(path)["agent"][kind]
    return {f"{net}.{name}": tensor for net, state in found.items() for name, tensor in state.items()}


def test_the_commands_write_runs_that_can_be_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, base = trained(tmp_path)
    fused, reset = tmp_path / "fused", tmp_path / "reset"
    assert main(["fuse", str(run), "--base", str(base), "--out", str(fused), "--alpha", "0.25"]) == 0
    for kind in ("networks", "targets"):
        now, then, mixed = networks(run, kind), networks(base), networks(fused, kind)
        for name, tensor in mixed.items():
            torch.testing.assert_close(tensor, 0.75 * now[name] + 0.25 * then[name])
    units = ["--units", "critic_1/q.0:0,2", "actor/trunk.0:1"]
    assert main(["reset-to", str(run), "--base", str(base), "--out", str(reset), *units]) == 0
    assert "critic_1/q.0: 0, 2" in capsys.readouterr().out
    now, then, new = networks(run), networks(base), networks(reset)
    changed = {name for name, tensor in new.items() if not torch.equal(tensor, now[name])}
    assert changed == {f"{p}.{k}" for p in ("critic_1.q.0", "actor.trunk.0") for k in ("weight", "bias")}
    assert torch.equal(new["critic_1.q.0.weight"][[0, 2]], then["critic_1.q.0.weight"][[0, 2]])
    assert torch.equal(new["critic_1.q.0.weight"][[1, 3, 4, 5]], now["critic_1.q.0.weight"][[1, 3, 4, 5]])
    for folder in (fused, reset):
        assert main(["eval", str(folder), "--episodes", "1"]) == 0
    some = tmp_path / "some"
    units = ["--units", "critic_*/q.0:0", "critic_1/q.0:2"]
    assert main(["reset-to", str(run), "--base", str(base), "--out", str(some), *units]) == 0
    told = capsys.readouterr().out
    assert "critic_1/q.0: 0, 2" in told
    assert "critic_2/q.0: 0" in told
    few = tmp_path / "few"
    assert main(["fuse", str(run), "--base", str(base), "--out", str(few), "--networks", "critic_*"]) == 0
    differing = {name.partition(".")[0] for name, tensor in networks(few).items() if not torch.equal(tensor, now[name])}
    assert differing == {"critic_1", "critic_2"}
    pair, other = (str(run), "--base", str(base), "--out"), str(tmp_path / "x")
    refusals = {
        ("fuse", *pair, str(fused)): "exists already",
        ("fuse", *pair, other, "--networks", "q"): "no network of the agent is 'q'",
        ("reset-to", *pair, other, "--units", "q.0:x"): "network/layer:index",
    }
    capsys.readouterr()
    for arguments, message in refusals.items():
        assert main(list(arguments)) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("share", [torch.tensor(1.0), np.float32(1), 1, True])
def test_a_share_is_any_number(share: Any) -> None:
    model, base = nets()
    assert reset_to(model, base, {"0": [1]}, factor=share) == {"0": [1]}
    fuse(model, base, share)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True))
