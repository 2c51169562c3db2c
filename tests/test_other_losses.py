"""A network that is watched with its own optimizer alone, while the losses of others run through it as well."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import reference
import torch
from torch import Tensor, nn

from plasticity import watch


class Pair:
    """A critic that learns a regression, and an actor that climbs it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.critic = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
        self.actor = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2), nn.Tanh())
        self.of_critic = torch.optim.Adam(self.critic.parameters(), 1e-2)
        self.of_actor = torch.optim.Adam(self.actor.parameters(), 1e-2)
        self.seen: list[Tensor] = []

    def critic_loss(self) -> Tensor:
        """Return the loss of the critic, and note what it ran on."""
        x = torch.randn(64, 6)
        self.seen = [x]
        return (self.critic(x) - x.sum(1, keepdim=True)).square().mean()

    def actor_loss(self) -> Tensor:
        """Return the loss of the actor, far from what the critic learns on."""
        observation = torch.randn(64, 4) * 5
        return -self.critic(torch.cat([observation, self.actor(observation)], 1)).mean()


def forward_first(pair: Pair, none: bool) -> None:
    loss = pair.critic_loss()
    pair.of_critic.zero_grad(set_to_none=none)
    loss.backward()
    pair.of_critic.step()
    pair.of_actor.zero_grad()
    pair.actor_loss().backward()
    pair.of_actor.step()


def zeroed_first(pair: Pair, none: bool) -> None:
    pair.of_actor.zero_grad()
    pair.actor_loss().backward()
    pair.of_actor.step()
    pair.critic.zero_grad(set_to_none=none)
    pair.critic_loss().backward()
    pair.of_critic.step()


def twice_the_actor(pair: Pair, none: bool) -> None:
    for _ in range(2):
        pair.of_actor.zero_grad()
        pair.actor_loss().backward()
        pair.of_actor.step()
    pair.of_critic.zero_grad(set_to_none=none)
    pair.critic_loss().backward()
    pair.of_critic.step()


def frozen_critic(pair: Pair, none: bool) -> None:
    pair.critic.requires_grad_(False)
    pair.of_actor.zero_grad()
    pair.actor_loss().backward()
    pair.of_actor.step()
    pair.critic.requires_grad_(True)
    pair.of_critic.zero_grad(set_to_none=none)
    pair.critic_loss().backward()
    pair.of_critic.step()


def accumulated(pair: Pair, none: bool) -> None:
    pair.of_actor.zero_grad()
    pair.actor_loss().backward()
    pair.of_actor.step()
    pair.of_critic.zero_grad(set_to_none=none)
    pair.critic_loss().backward()
    first = pair.seen
    pair.critic_loss().backward()
    pair.seen = first + pair.seen
    pair.of_critic.step()


def siamese(pair: Pair, none: bool) -> None:
    pair.of_critic.zero_grad(set_to_none=none)
    a = pair.critic_loss()
    first = pair.seen
    (a + pair.critic_loss()).backward()
    pair.seen = first + pair.seen
    pair.of_critic.step()


LOOPS: dict[str, Callable[[Pair, bool], None]] = {
    loop.__name__: loop for loop in (forward_first, zeroed_first, twice_the_actor, frozen_critic, accumulated, siamese)
}


@pytest.mark.filterwarnings("ignore:passes of several losses")
@pytest.mark.parametrize("none", [True, False])
@pytest.mark.parametrize("name", LOOPS)
def test_only_the_passes_of_its_own_loss_count(name: str, none: bool) -> None:
    pair, number = Pair(), 0
    with watch(pair.critic, pair.of_critic, every=1, log=None, strict=True, probes=["dormancy", "grama"]) as session:

        def check(*_: object) -> None:
            nonlocal number
            number += 1
            with torch.no_grad():
                h = torch.cat([before(x) for x in pair.seen])
            found = session.last["model"].scores["dormancy"]["0"].numpy(force=True)
            np.testing.assert_allclose(found, reference.scores(reference.rows(h)), rtol=1e-5)
            assert session.last["model"].num_passes == len(pair.seen)

        weights: list[Tensor] = []
        pair.of_critic.register_step_pre_hook(
            lambda *_: weights.append((pair.critic[0].weight.detach().clone(), pair.critic[0].bias.detach().clone()))
        )
        before = lambda x: torch.relu(nn.functional.linear(x, *weights[-1]))  # noqa: E731
        pair.of_critic.register_step_post_hook(check)
        for _ in range(4):
            LOOPS[name](pair, none)
    assert number == 4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("when", ["before the pass", "after the step", "to zeros"])
def test_a_step_that_a_scaler_skips_is_left_out_without_a_word(when: str) -> None:
    torch.manual_seed(0)
    x, y, model = torch.randn(64, 8), torch.randn(64, 1), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with watch(model, optimizer, every=1, log=None, probes=["dormancy", "grama"]) as session:
        for step in range(3):
            if when != "after the step":
                optimizer.zero_grad(set_to_none=when != "to zeros")
            loss = (model(x) - y).square().mean() * (float("inf") if step == 0 else 1)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if when == "after the step":
                optimizer.zero_grad()
            assert len(session.last) == min(step, 1)
        assert session.last["model"].num_passes == 1
        assert np.isfinite(session.last["model"].values["grama"]["all"])
