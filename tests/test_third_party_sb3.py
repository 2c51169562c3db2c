"""`plasticity.sb3`: agents of Stable-Baselines3 and its contributions learn with one callback."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

sb3 = pytest.importorskip("stable_baselines3")
gym = pytest.importorskip("gymnasium")

from test_third_party_rl import ByHand, expected_entries  # noqa: E402

from plasticity.interventions import ReDo, Reset  # noqa: E402
from plasticity.sb3 import PlasticityCallback, context_of  # noqa: E402

SMALL: dict[str, Any] = {"device": "cpu", "seed": 0, "policy_kwargs": {"net_arch": [32, 32]}}
OFF = {**SMALL, "learning_starts": 40, "batch_size": 64}
ROLLOUT = {**SMALL, "n_steps": 128}


def make(name: str, **more: Any) -> Any:
    """Return a small agent."""
    contributed = name in ("QRDQN", "TQC", "CrossQ", "RecurrentPPO")
    package = pytest.importorskip("sb3_contrib") if contributed else sb3
    on_policy, discrete = name in ("PPO", "A2C", "RecurrentPPO"), "DQN" in name
    policy = "MlpLstmPolicy" if name == "RecurrentPPO" else "MlpPolicy"
    settings = {**copy.deepcopy(ROLLOUT if on_policy else OFF), **({"train_freq": 1} if discrete else {}), **more}
    if name in ("PPO", "RecurrentPPO"):
        settings |= {"batch_size": 64, "n_epochs": 2}
    return getattr(package, name)(policy, "CartPole-v1" if discrete else "Pendulum-v1", **settings)


def steps(name: str) -> int:
    """Return for how many environment steps an agent learns."""
    return 256 if name in ("PPO", "A2C", "RecurrentPPO") else 48


BASE = ["PPO", "A2C", "SAC", "TD3", "DDPG", "DQN"]
CONTRIBUTED = ["QRDQN", "TQC", "CrossQ", "RecurrentPPO"]
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "ignore:.*:UserWarning")


@pytest.mark.parametrize("name", [*BASE, *CONTRIBUTED])
def test_every_network_is_read_and_the_logger_gets_the_numbers(name: str) -> None:
    agent = make(name)
    callback = PlasticityCallback(["dormancy", "grama"], every=1)
    recorded: dict[str, float] = {}
    record = agent.logger.record if hasattr(agent, "_logger") else None
    assert record is None
    agent.set_logger(sb3.common.logger.configure(None, []))
    agent.logger.record = lambda key, value, exclude=None: recorded.update({key: value})
    agent.learn(steps(name), callback=callback)
    networks = context_of(agent).networks
    assert {*callback.last} == {*networks}
    for network, reading in callback.last.items():
        assert reading.num_neurons
        assert recorded[f"plasticity/{network}/grama/all"] == reading.values["grama"]["all"]
        assert reading.values["grama"]["all"] >= 0


@pytest.mark.parametrize("name", ["TRPO", "ARS"])
def test_agents_that_no_optimizer_moves_are_refused(name: str) -> None:
    agent = getattr(pytest.importorskip("sb3_contrib"), name)("MlpPolicy", "Pendulum-v1", device="cpu")
    with pytest.raises(ValueError, match=r"by a line search.*use PPO|has no optimizer"):
        agent.learn(8, callback=PlasticityCallback())


def test_masked_actions_are_read_and_methods_act() -> None:
    contrib = pytest.importorskip("sb3_contrib")
    wrappers = pytest.importorskip("sb3_contrib.common.wrappers")
    env = wrappers.ActionMasker(gym.make("CartPole-v1"), lambda _: np.array([True, True]))
    agent = contrib.MaskablePPO("MlpPolicy", env, batch_size=64, n_epochs=2, **copy.deepcopy(ROLLOUT))
    redo = ReDo(every=2, threshold=0.5)
    callback = PlasticityCallback(["dormancy"], every=1, interventions=[redo], diagnose_every=1)
    agent.learn(256, callback=callback)
    assert sum(callback.last["policy"].num_neurons.values()) == 128
    assert redo.counts["recycled"] > 0


EVERY = [*BASE, *(pytest.param(name, marks=pytest.mark.slow) for name in CONTRIBUTED)]


@pytest.mark.parametrize("name", EVERY)
def test_the_numbers_are_those_of_own_hooks(name: str) -> None:
    agent, number = make(name), 0
    hands = {n: ByHand(network) for n, network in context_of(agent).networks.items()}
    callback = PlasticityCallback(["dormancy", "grama", "rank"], every=1)

    class Compare(sb3.common.callbacks.BaseCallback):
        def _on_training_start(self) -> None:
            for n in hands:
                optimizer = context_of(agent).optimizers[n]
                optimizer.register_step_post_hook(partial(self.check, n))

        def check(self, n: str, *_: Any) -> None:
            nonlocal number
            hands[n].check(callback.last[n])
            number += 1

        def _on_step(self) -> bool:
            return True

    agent.learn(steps(name), callback=[callback, Compare()])
    assert number >= 2


@pytest.mark.parametrize("name", EVERY)
def test_no_bit_of_learning_changes(name: str) -> None:
    finals = []
    for callback in (None, PlasticityCallback(["dormancy", "grama"], every=1)):
        agent = make(name)
        agent.learn(steps(name), callback=callback)
        finals.append(dict(agent.policy.state_dict()))
    torch.testing.assert_close(*finals, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["SAC", "DQN", "PPO"])
def test_redo_recycles_what_is_off_and_the_agent_is_saved_and_loaded(name: str, tmp_path: Any) -> None:
    agent = make(name, learning_rate=0.0)
    networks = context_of(agent).networks
    for network in networks.values():
        for module in network.modules():
            if isinstance(module, torch.nn.Linear) and module.out_features == 32:
                with torch.no_grad():
                    module.weight[[1, 4]], module.bias[[1, 4]] = 0, 0 if name == "PPO" else -100
    before = {n: {k: v.clone() for k, v in net.state_dict().items()} for n, net in networks.items()}
    redo = ReDo(every=1, threshold=0.0, stop=1)
    agent.learn(steps(name), callback=PlasticityCallback([], interventions=[redo]))
    assert redo.counts["recycled"] >= 4
    for n, network in networks.items():
        after = dict(network.state_dict())
        changed = {key for key in after if not torch.equal(after[key], before[n][key])}
        assert changed <= {*expected_entries(network, redo._recycled[n], before[n], after)}
    agent.save(tmp_path / "agent")
    loaded = type(agent).load(tmp_path / "agent", env=agent.env)
    torch.testing.assert_close(dict(loaded.policy.state_dict()), dict(agent.policy.state_dict()))
    loaded.learn(steps(name), callback=PlasticityCallback(every=5))


def test_reset_reaches_the_target_and_learning_goes_on() -> None:
    agent = make("SAC")
    reset = Reset(every=4, networks=("critic",))
    agent.learn(60, callback=PlasticityCallback([], interventions=[reset]))
    assert reset.counts["applications"] >= 4
    assert all(bool(p.isfinite().all()) for p in agent.policy.parameters())


def test_learning_twice_goes_on_and_two_callbacks_are_refused() -> None:
    agent, callback = make("A2C"), PlasticityCallback(["dormancy"], every=1)
    agent.learn(128, callback=callback)
    agent.learn(128, callback=callback)
    assert callback._guest.measure.watcher.steps() == [2]
    with pytest.raises(ValueError, match="two PlasticityCallbacks"):
        agent.learn(128, callback=[PlasticityCallback(), PlasticityCallback()])
