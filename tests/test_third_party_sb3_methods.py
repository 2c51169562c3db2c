"""Methods on agents of Stable-Baselines3: what each changes, and that agents are saved, loaded and trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.env_util import make_vec_env
from test_third_party_sb3 import make, steps
from torch import Tensor, nn

from plasticity.interventions import (
    INTERVENTIONS,
    Intervention,
    OptimizerReset,
    PlasticityInjection,
    ReDo,
    Reset,
    ShrinkPerturb,
    SpectralNormalization,
    WeightClipping,
)
from plasticity.sb3 import PlasticityCallback, StopEpisodes, WeightedReplayBuffer, context_of

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "ignore:.*:UserWarning")

REFUSED = {
    **dict.fromkeys(("feature_norm", "chain", "dr3", "infer", "sam"), "gradient steps of agents"),
    "random_shift": "a buffer of images|a replay buffer",
    "replay_ratio": "set_replay_ratio",
    "horizon": "set_horizon",
}
"""Method -> why it does not apply to these agents."""
ON_POLICY = {
    **dict.fromkeys(("swd", "ere"), "a replay buffer"),
    **dict.fromkeys(("dr3", "infer", "spectral_normalization"), r"finds no network critic\*"),
    "least": "a value function",
    "pfo": "finds no network actor",
    "plasticity_injection": "finds no head in policy",
}


def method_of(name: str) -> Intervention:
    """Return a method that acts soon."""
    kind = INTERVENTIONS[name]
    fields = {field.name for field in dataclasses.fields(kind)}
    soon = {"plasticity_injection": {"at": (6,)}, "knife": {"every": 4, "window": 2}}
    return kind(**soon.get(name, {"every": 4} if "every" in fields else {}))


def agent_of(name: str) -> Any:
    """Return a small agent that lends all that it can."""
    if name == "PPO":
        return make(name)
    env = "CartPole-v1" if name == "DQN" else "Pendulum-v1"
    agent = make(name, replay_buffer_class=WeightedReplayBuffer)
    agent.set_env(StopEpisodes(make_vec_env(env)), force_reset=True)
    return agent


@pytest.mark.parametrize("name", INTERVENTIONS)
@pytest.mark.parametrize("kind", ["SAC", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("DQN", "PPO"))])
@pytest.mark.some(8)
@pytest.mark.filterwarnings("ignore:cbp never acted")  # its neurons mature later
def test_every_method_acts_and_the_agent_is_saved_loaded_and_trained_on(kind: str, name: str, tmp_path: Any) -> None:
    agent = agent_of(kind)
    refused = {**REFUSED, **(ON_POLICY if kind == "PPO" else {"pfo": "learns from its last rollout"})}.get(name)
    if refused is not None:
        with pytest.raises(ValueError, match=refused):
            agent.learn(steps(kind), callback=PlasticityCallback([], interventions=[method_of(name)]))
        return
    agent.learn(steps(kind) + 12, callback=PlasticityCallback([], interventions=[method := method_of(name)]))
    agent.save(tmp_path / "agent")
    loaded = type(agent).load(tmp_path / "agent", env=agent.env)
    torch.testing.assert_close(dict(loaded.policy.state_dict()), dict(agent.policy.state_dict()), rtol=0, atol=0)
    resumed = method_of(name)
    loaded.learn(steps(kind), reset_num_timesteps=False, callback=PlasticityCallback([], interventions=[resumed]))
    assert all(resumed.counts[key] >= count for key, count in method.counts.items())
    assert all(bool(p.isfinite().all()) for p in loaded.policy.parameters())


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all weights."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


Expected = Callable[[str, dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor] | None]


def shrunk(name: str, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """Check that what is left after taking the old share away is a fresh draw: as large as the law says."""
    for key, value in after.items():
        rest = (value - 0.8 * before[key]) / 0.2
        if key.endswith("weight") and rest.numel() > 500:
            bound = 1 / np.sqrt(rest.shape[1])  # torch's own law for linear layers, which SAC's networks begin with
            assert rest.abs().max() <= bound * (1 + 1e-4)
            assert rest.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)


@pytest.mark.parametrize("name", ["SAC", "TD3"])
def test_shrink_and_perturb_leaves_the_share_that_it_says_and_targets_follow(name: str) -> None:
    agent = make(name, learning_rate=0.0)
    before = {n: snapshot(net) for n, net in context_of(agent).networks.items()}
    method = ShrinkPerturb(at=(4,), shrink=0.8, perturb=0.2, stop=None)
    agent.learn(52, callback=PlasticityCallback([], interventions=[method]))
    assert method.counts["applications"] == 1
    for n, network in context_of(agent).networks.items():
        shrunk(n, before[n], dict(network.state_dict()))


def test_reset_redraws_all_restarts_adam_and_the_target_is_the_network() -> None:
    agent = make("DQN", learning_rate=0.0, target_update_interval=10_000)
    before, target = snapshot(agent.q_net), snapshot(agent.q_net_target)
    reset = Reset(at=(4,))
    agent.learn(45, callback=PlasticityCallback([], interventions=[reset]))
    assert reset.counts["applications"] == 1
    after = dict(agent.q_net.state_dict())
    assert all(not torch.equal(after[key], before[key]) for key in before if key.endswith("weight"))
    torch.testing.assert_close(dict(agent.q_net_target.state_dict()), after, rtol=0, atol=0)
    assert not torch.equal(target["q_net.0.weight"], after["q_net.0.weight"])
    steps = {int(state["step"]) for state in agent.policy.optimizer.state.values()}
    assert steps == {agent._n_updates - 4}


def test_optimizer_reset_moves_no_weight_and_forgets_everything() -> None:
    agent = make("SAC", learning_rate=0.0)
    before = snapshot(agent.critic), snapshot(agent.actor)
    agent.learn(47, callback=PlasticityCallback([], interventions=[method := OptimizerReset(at=(3,))]))
    assert method.counts["applications"] == 1
    torch.testing.assert_close((snapshot(agent.critic), snapshot(agent.actor)), before, rtol=0, atol=0)
    states = agent.critic.optimizer.state.values()
    assert {int(state["step"]) for state in states} == {agent._n_updates - 3}


def test_weights_are_clipped_to_the_bound_of_their_fan_in() -> None:
    agent = make("SAC", learning_rate=0.0)
    before = snapshot(agent.critic)
    agent.learn(45, callback=PlasticityCallback([], interventions=[WeightClipping(kappa=0.5)]))
    for key, value in agent.critic.state_dict().items():
        layer = key.rpartition(".")[0]
        bound = 0.5 / np.sqrt(before[f"{layer}.weight"].shape[1])
        torch.testing.assert_close(value, before[key].clamp(-bound, bound), rtol=1e-6, atol=0)


def test_injection_leaves_the_outputs_and_a_plain_load_finds_its_heads(tmp_path: Any) -> None:
    agent = make("DQN", learning_rate=0.0, target_update_interval=10_000)
    states = torch.randn(16, 4)
    before = agent.q_net(states).detach()
    injection = PlasticityInjection(at=(4,))
    agent.learn(50, callback=PlasticityCallback([], interventions=[injection]))
    assert injection.counts["heads"] == 1
    torch.testing.assert_close(agent.q_net(states), before)
    torch.testing.assert_close(agent.q_net_target(states), before)
    agent.save(tmp_path / "agent")
    loaded = type(agent).load(tmp_path / "agent", env=agent.env)
    torch.testing.assert_close(loaded.q_net(states), agent.q_net(states), rtol=0, atol=0)
    trained = [{id(p) for g in a.policy.optimizer.param_groups for p in g["params"]} for a in (agent, loaded)]
    assert [len(ids) for ids in trained] == [6, 6]
    assert {id(p) for p in loaded.q_net.parameters() if p.requires_grad} == trained[1]
    loaded.lr_schedule = lambda _: 1e-3
    loaded.learn(50, callback=PlasticityCallback([], interventions=[again := PlasticityInjection(at=(60,))]))
    assert again.counts == injection.counts
    assert not torch.equal(loaded.q_net(states), before)
    loaded.save(tmp_path / "again")  # the structure of a loaded agent is kept, also without the method
    plain = type(agent).load(tmp_path / "again", env=agent.env)
    plain.learn(50, callback=PlasticityCallback(["dormancy"], every=1))
    plain.save(tmp_path / "third")
    assert type(agent).load(tmp_path / "third").predict(np.zeros(4))[0] in (0, 1)


def test_injection_into_the_parts_of_a_policy(tmp_path: Any) -> None:
    agent = make("PPO", learning_rate=0.0)
    states = torch.randn(16, 3)
    before = agent.policy.predict_values(states).detach()
    method = PlasticityInjection(at=(2,), head="mlp_extractor.*_net")
    agent.learn(256, callback=PlasticityCallback([], interventions=[method]))
    assert method.counts["heads"] == 2
    torch.testing.assert_close(agent.policy.predict_values(states), before)
    agent.save(tmp_path / "agent")
    loaded = type(agent).load(tmp_path / "agent", env=agent.env)
    torch.testing.assert_close(dict(loaded.policy.state_dict()), dict(agent.policy.state_dict()), rtol=0, atol=0)
    loaded.learn(128)


def test_structure_that_is_made_at_the_start_is_made_once(tmp_path: Any) -> None:
    agent = make("SAC")
    agent.learn(44, callback=PlasticityCallback([], interventions=[SpectralNormalization()]))
    names = set(agent.policy.state_dict())
    agent.learn(44, callback=PlasticityCallback([], interventions=[SpectralNormalization()]))
    assert set(agent.policy.state_dict()) == names
    agent.save(tmp_path / "agent")
    loaded = type(agent).load(tmp_path / "agent", env=agent.env)
    loaded.learn(44, callback=PlasticityCallback([], interventions=[SpectralNormalization()]))
    assert set(loaded.policy.state_dict()) == names


def test_a_loaded_agent_goes_on_with_clocks_and_generators(tmp_path: Any) -> None:
    agent = make("SAC")
    redo = ReDo(every=8)
    callback = PlasticityCallback(["dormancy"], every=5, interventions=[redo], diagnose_every=1000)
    agent.learn(60, callback=callback)
    agent.save(tmp_path / "agent")
    loaded = type(agent).load(tmp_path / "agent", env=agent.env)
    other = ReDo(every=8)
    resumed = PlasticityCallback(["dormancy"], every=5, interventions=[other], diagnose_every=1000)
    loaded.learn(1, reset_num_timesteps=False, callback=resumed)
    assert resumed._guest.measure.watcher.steps() == [steps + 1 for steps in callback._guest.measure.watcher.steps()]
    assert torch.equal(other.generator.get_state(), redo.generator.get_state())
    loaded.learn(9, reset_num_timesteps=False, callback=resumed)
    assert other.counts["applications"] == redo.counts["applications"] + 2  # of two networks, at step 24
