"""All that can be chosen by name, put together on tiny agents: methods, and options of networks, heads and optimizers.

An item is the name of a method (``redo``) or an option with its value (``network=simba``). Both come from the
registries, so that what is registered tomorrow is among them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_interventions import FREQUENT, Walk
from torch import Tensor

from plasticity.agents import AGENTS
from plasticity.agents.choices import _choices
from plasticity.agents.train import context
from plasticity.callback import end, start
from plasticity.interventions import INTERVENTIONS, Intervention

SWITCHES = ("value_expectile=0.9", "pessimism=0.5", "policy_every=3", "optimism=1.0", "weight_decay=0.1", "n_step=3",
            "num_critics=2", "double=True", "prioritised=True")  # fmt: skip
"""Options beside those that are names, with a value that switches on what they are about."""


STEPS, STOP = 16, 10
"""Environment steps of a run, and after which of them it is stopped: some six updates before, six after."""


class ShortWalk(Walk):
    """The walk in episodes of at most 4 steps."""

    limit = 4


class DiscreteWalk(ShortWalk):
    """The walk with three actions."""

    def step(self, action: Tensor) -> SimpleNamespace:
        transition = super().step(torch.stack([action - 1.0, 1.0 - action], -1))
        return SimpleNamespace(**{**vars(transition), "action": action})


class ImageWalk(ShortWalk):
    """The walk, seen as an image."""

    size = 10

    def seen(self, place: Tensor) -> Tensor:
        shades = (place * 40 + 128).clamp(0, 255).to(torch.uint8)
        return shades.repeat_interleave(self.size**2, 1)[:, : 2 * self.size**2].unflatten(1, (2, self.size, self.size))


class LargeImageWalk(ImageWalk):
    """The walk, seen as an image that is large enough for Nature's convolutions."""

    size = 36


@dataclasses.dataclass(frozen=True)
class Host:
    """A tiny agent in its environment."""

    agent: str
    env: Callable[[], Walk] = ShortWalk
    settings: tuple[tuple[str, Any], ...] = ()

    def make(self, options: Iterable[str], compile: str = "off") -> tuple[Any, Walk]:
        """Return agent and environment; ValueError for options that it does not have."""
        kind, config = AGENTS[self.agent]
        env, hints = self.env(), {field.name: field.default for field in dataclasses.fields(config)}
        chosen = dict(self.settings)
        for option in options:
            name, _, text = option.partition("=")
            if name not in hints:
                raise ValueError(f"{self.agent} has no {name}")
            chosen[name] = valued(text, hints[name])
        images = isinstance(env, ImageWalk)
        shape = (2, env.size, env.size) if images else (3,)
        seen = spaces.Box(0, 255, shape, np.uint8) if images else spaces.Box(-9, 9, shape)
        acts = spaces.Discrete(3) if isinstance(env, DiscreteWalk) else spaces.Box(-1, 1, (2,))
        agent = kind(seen, acts, config(**chosen), num_envs=2, device=torch.get_default_device(), compile=compile)
        return agent, env


def valued(text: str, default: Any) -> Any:
    """Return an option's value in the type of its default."""
    return text == "True" if isinstance(default, bool) else type(default)(text) if default is not None else text


WIDTHS = ("hidden", (12, 12))
REPLAY = (WIDTHS, ("batch_size", 8), ("learning_starts", 4), ("buffer_size", 200))
IMAGES = (*REPLAY, ("network", "minatar_cnn"))
HOSTS = {
    "sac": Host("sac", ShortWalk, REPLAY),
    "dqn": Host("dqn", DiscreteWalk, (*REPLAY, ("train_every", 1), ("n_step", 5))),
    "ppo": Host(
        "ppo", ShortWalk, (WIDTHS, ("activation", "relu"), ("num_steps", 4), ("num_minibatches", 2), ("num_epochs", 3))
    ),
    "td3": Host("td3", ShortWalk, REPLAY),
    "pixels": Host("sac", ImageWalk, IMAGES),
    "large pixels": Host("sac", LargeImageWalk, IMAGES),
}
"""Name -> host; a pair is put on the first one that takes each of both alone."""


def options() -> list[str]:
    """Return ``name=value`` of every option of the hosts that is a name of a registry, and is not the default."""
    found = dict.fromkeys(SWITCHES)
    for agent in dict.fromkeys(host.agent for host in HOSTS.values()):
        config = AGENTS[agent][1]
        hints = get_type_hints(config, include_extras=True)
        for field in dataclasses.fields(config):
            for choice in _choices(hints[field.name]):
                found |= {f"{field.name}={name}": None for name in choice.registry if name != field.default}
    return list(found)


SOONER: dict[str, dict[str, Any]] = {"plasticity_injection": {"at": (4,)}, "snr": {**FREQUENT["snr"], "limit_max": 8},
                                     "cbp": {**FREQUENT["cbp"], "rate": 0.1}}  # fmt: skip
"""Settings with which methods act within six updates, in place of those of ``FREQUENT``."""


OF_ROLLOUTS: dict[str, dict[str, Any]] = {"ne": {"review": False}}
"""Further settings on an agent without a replay memory."""


def settings_of(name: str, host: str) -> dict[str, Any]:
    """Return settings with which a method acts soon, or short intervals for the fields of one that is not known."""
    fields = {field.name for field in dataclasses.fields(INTERVENTIONS[name])}
    short = {"every": 4, "clock": "updates", "log_every": 3, "check_every": 3, "measure_every": 3, "batch_size": 8}
    found = dict(FREQUENT.get(name, {key: value for key, value in short.items() if key in fields}))
    latest = {"every": 4, "log_every": 3}
    sooner = {key: min(value, latest.get(key, value)) for key, value in found.items()}
    return sooner | SOONER.get(name, {}) | (OF_ROLLOUTS.get(name, {}) if HOSTS[host].agent == "ppo" else {})


def made(items: Iterable[str], host: str) -> tuple[dict[str, Intervention], list[str]]:
    """Return the methods by name, with settings for a host, and the options among the items."""
    items = list(items)
    methods = {name: INTERVENTIONS[name](**settings_of(name, host)) for name in items if "=" not in name}
    return methods, [item for item in items if "=" in item]


@functools.cache
def takes(host: str, item: str) -> bool:
    """Return whether a host takes an item alone."""
    methods, chosen = made([item], host)
    try:
        agent, _ = HOSTS[host].make(chosen)
        ctx = context(agent)
        start(list(methods.values()), ctx)
    except ValueError:
        return False
    except ImportError as error:
        pytest.skip(str(error))
    end(list(methods.values()), ctx)
    return True


def host_of(items: Sequence[str]) -> str | None:
    """Return the first host that takes each of the items alone; None where there is none.

    Raises AssertionError for an item that no host takes.
    """
    for item in items:
        assert any(takes(host, item) for host in HOSTS), f"no host takes {item}: add one to HOSTS"
    return next((host for host in HOSTS if all(takes(host, item) for item in items)), None)


def combinations(items: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Return all sets of so many items without two values of one option."""

    def fits(chosen: tuple[str, ...]) -> bool:
        names = [item.partition("=")[0] for item in chosen]
        return len(set(names)) == len(names)

    return [chosen for chosen in itertools.combinations(items, size) if fits(chosen)]
