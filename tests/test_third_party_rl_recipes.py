"""Recipes of the documentation for RL loops of other packages: each runs, and its numbers are those of own hooks."""

from __future__ import annotations

import itertools
import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_third_party_rl import PROBES, ByHand
from torch import nn

import plasticity

PAGE = Path(__file__).parents[1] / "docs" / "rl-recipes.md"
RECIPES = dict(re.findall(r"^## (\S+)$.*?^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
NEEDS = {"CleanRL": "gymnasium", "tianshou": "tianshou", "skrl": "skrl", "rsl-rl": "rsl_rl", "AgileRL": "agilerl"}
pytestmark = pytest.mark.filterwarnings("default")


class ByTurns(ByHand):
    """The same where one activation stands behind several layers: its calls belong to them in their order."""

    def __init__(self, network: nn.Module) -> None:
        self.seen = {}
        layers: dict[nn.Module, list[str]] = {}
        before = ""
        for name, module in network.named_modules(remove_duplicate=False):
            if isinstance(module, (nn.ReLU, nn.Tanh, nn.ELU)):
                layers.setdefault(module, []).append(before)
            elif isinstance(module, nn.Linear):
                before = name
        for module, names in layers.items():
            turns = itertools.cycle([self._hook(name) for name in names])
            module.register_forward_hook(lambda *call, turns=turns: next(turns)(*call))


def run(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, watch: Any) -> dict[str, Any]:
    """Run a recipe from a fixed seed, with ``watch`` in the place of plasticity's; return its names."""
    pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plasticity, "watch", watch)
    torch.manual_seed(0)
    np.random.seed(0)
    names: dict[str, Any] = {"__name__": "recipe"}
    logging.getLogger("skrl").disabled = True  # which tells at exit that it closes environments
    exec(compile(RECIPES[name], f"{PAGE.name}: {name}", "exec"), names)
    return names


def test_every_recipe_is_known() -> None:
    assert set(RECIPES) == set(NEEDS)


@pytest.mark.parametrize("name", NEEDS)
def test_the_numbers_are_those_of_own_hooks(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    number, watch = 0, plasticity.watch

    def compared(model: Any, optimizer: Any, **arguments: Any) -> Any:
        networks = model if isinstance(model, dict) else {"model": model}
        hands = {key: ByTurns(network) for key, network in networks.items()}
        session = watch(model, optimizer, **{**arguments, "every": 1, "probes": PROBES, "strict": True, "log": None})

        def compare(key: str, *_: Any) -> None:
            nonlocal number
            hands[key].check(session.last[key])
            number += 1

        for key in networks:
            optimizer.register_step_post_hook(partial(compare, key))
        return session

    run(name, monkeypatch, tmp_path, compared)
    assert number >= 5


@pytest.mark.parametrize("name", NEEDS)
def test_it_runs_as_it_stands_and_no_bit_of_learning_changes(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    import gymnasium

    class Nothing:
        """A session that looks at nothing."""

        last = dict.fromkeys(("model", "policy", "actor"))

        def __enter__(self) -> Nothing:
            return self

        def __exit__(self, *exc: object) -> None:
            pass

    # Environments of recipes are not seeded: that would not be in them.
    reset = gymnasium.envs.classic_control.PendulumEnv.reset, gymnasium.envs.classic_control.CartPoleEnv.reset
    for kind, plain in zip(("PendulumEnv", "CartPoleEnv"), reset, strict=True):
        seeded = lambda self, *, seed=None, options=None, plain=plain: plain(self, seed=1, options=options)  # noqa: E731
        monkeypatch.setattr(getattr(gymnasium.envs.classic_control, kind), "reset", seeded)
    finals = []
    for watch in (plasticity.watch, lambda *args, **kwargs: Nothing()):
        names = run(name, monkeypatch, tmp_path, watch)
        agent = names.get("agent")
        one = {"model": names.get("net") or getattr(agent, "actor", agent)}
        held = names.get("networks") or names.get("models") or one
        finals.append({key: dict(network.state_dict()) for key, network in held.items()})
    torch.testing.assert_close(*finals, rtol=0, atol=0)
    assert "dormancy" in capsys.readouterr().out
    assert len(list((tmp_path / "runs").glob("*/metrics.jsonl"))) == 1
