"""`plasticity.sb3`: replay by age, episodes that are ended early, fit probes, and errors for wrong use."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch

sb3 = pytest.importorskip("stable_baselines3")

from stable_baselines3.common.callbacks import CallbackList, EvalCallback, EveryNTimesteps  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize  # noqa: E402
from test_third_party_sb3 import BASE, make, steps  # noqa: E402

from plasticity.interventions import (  # noqa: E402
    LearnToStop,
    RecentExperience,
    ReDo,
    SampleWeightDecay,
)
from plasticity.interventions.ere import newest  # noqa: E402
from plasticity.sb3 import PlasticityCallback, StopEpisodes, WeightedReplayBuffer, context_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "ignore:.*:UserWarning")


def filled(rows: int, size: int = 50, envs: int = 2, **more: Any) -> WeightedReplayBuffer:
    """Return a buffer in which the reward of a row is when it was added, from 1 on."""
    import gymnasium

    spaces = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Box(-1, 1, (1,))
    buffer = WeightedReplayBuffer(size * envs, *spaces, device="cpu", n_envs=envs, **more)
    for row in range(1, rows + 1):
        obs = np.full((envs, 3), row, np.float32)
        buffer.add(obs, obs + 1, np.zeros((envs, 1)), np.full(envs, row), np.zeros(envs), [{}] * envs)
    return buffer


@pytest.mark.parametrize(("rows", "more"), [(30, {}), (50, {}), (77, {}), (77, {"optimize_memory_usage": True})])
def test_ages_are_drawn_as_the_formula_says(rows: int, more: dict) -> None:
    buffer = filled(rows, **({**more, "handle_timeout_termination": False} if more else {}))
    method = SampleWeightDecay(horizon=20, floor=0.1)
    buffer.weigh("swd", method.weight())
    found = buffer.sample(40_000)
    ages = rows - found.rewards.flatten().numpy() + 1
    most = min(rows, 50) - (1 if more else 0)
    weights = np.maximum(0.1, 1 - np.arange(1, most + 1) / 20)
    share = np.bincount(ages.astype(int), minlength=most + 1)[1:] / len(ages)
    np.testing.assert_allclose(share, weights / weights.sum(), atol=4 * np.sqrt(0.08 / len(ages)))
    np.testing.assert_allclose(buffer.age_probabilities(), weights / weights.sum(), rtol=1e-12)
    assert (found.next_observations == found.observations + 1).all()


def test_without_weights_it_is_the_buffer_of_the_stack() -> None:
    finals = []
    for kind in (None, WeightedReplayBuffer):
        agent = make("SAC", replay_buffer_class=kind)
        agent.learn(60)
        finals.append(dict(agent.policy.state_dict()))
    torch.testing.assert_close(*finals, rtol=0, atol=0)


def test_a_saved_buffer_draws_on() -> None:
    buffer = filled(30)
    buffer.weigh("swd", SampleWeightDecay(horizon=20).weight())
    buffer.sample(5)
    copy = pickle.loads(pickle.dumps(buffer))
    assert copy.weights == {}  # a callback puts them there again
    copy.weigh("swd", SampleWeightDecay(horizon=20).weight())
    state = np.random.get_state()
    first = buffer.sample(50).rewards
    np.random.set_state(state)
    assert torch.equal(copy.sample(50).rewards, first)


def test_methods_of_replay_weigh_while_they_train_and_leave_nothing(tmp_path: Any) -> None:
    agent = make("SAC", replay_buffer_class=WeightedReplayBuffer, gradient_steps=4)
    seen: list[tuple[float, dict]] = []
    sample = agent.replay_buffer._get_samples

    def look(rows: np.ndarray, env: Any = None) -> Any:
        ages = (agent.replay_buffer.pos - rows) % agent.replay_buffer.buffer_size
        seen.append((ages.max(), dict(agent.replay_buffer.weights)))
        return sample(rows, env)

    agent.replay_buffer._get_samples = look
    ere = RecentExperience(eta=0.999, smallest=3, round_length=5)
    agent.learn(60, callback=PlasticityCallback([], interventions=[SampleWeightDecay(horizon=10), ere]))
    del agent.replay_buffer._get_samples
    assert len(seen) == agent._n_updates == ere.updates
    for update, (oldest, weights) in enumerate(seen):
        rows = 41 + update // 4
        window = newest(rows, update % 5 + 1, 5, 0.999, 3)
        assert oldest <= window
        assert "swd" in weights
    assert max(oldest for oldest, _ in seen) > 20
    assert agent.replay_buffer.weights == {}
    agent.save_replay_buffer(tmp_path / "replay")
    agent.load_replay_buffer(tmp_path / "replay")
    agent.learn(10, reset_num_timesteps=False, callback=PlasticityCallback([], interventions=[ere]))


@pytest.mark.parametrize("normalised", [False, True])
def test_stops_are_those_of_the_rule_and_are_stored_as_truncations(normalised: bool) -> None:
    env: Any = StopEpisodes(make_vec_env("Pendulum-v1", n_envs=2, seed=0))
    env = VecNormalize(env) if normalised else env
    agent = sb3.TD3("MlpPolicy", env, learning_starts=10_000, seed=0, device="cpu", policy_kwargs={"net_arch": [16]})
    plain = {"exempt": 0.0, "warmup": 0, "min_length": 1, "min_episodes": 1, "max_stop_rate": 1.0, "window_every": 0}
    least = LearnToStop(preset="constant", coef=0.9, window=50, window_min=1, report_every=10_000, **plain)
    ends: list[tuple[int, int]] = []
    wanted: list[tuple[int, int]] = []
    values: list[list[list[float]]] = []  # of finished episodes: Q by step
    running: list[list[float]] = [[], []]
    infos_of: list[dict] = []

    class ByHand(sb3.common.callbacks.BaseCallback):
        """The rule in plain Python: Q below the median at this step times 0.9, or by 0.9 where it is negative."""

        def _on_step(self) -> bool:
            obs = torch.as_tensor(agent._last_obs)
            action = torch.as_tensor(self.locals["buffer_actions"])
            with torch.no_grad():
                q = torch.cat(agent.critic(obs, action), 1).min(1).values.tolist()
            for i in range(2):
                step = len(running[i])
                past = [episode[step] for episode in values[-50:] if len(episode) > step]
                truncated = self.locals["infos"][i].get("TimeLimit.truncated", False)
                limit = step + 1 == 200
                if past and step > 0 and not limit:
                    median = float(np.median(np.float32(past)))
                    if np.float32(q[i]) < (0.9 * median if median >= 0 else median / 0.9):
                        wanted.append((self.num_timesteps, i))
                running[i].append(q[i])
                if self.locals["dones"][i]:
                    assert truncated
                    if not limit:
                        ends.append((self.num_timesteps, i))
                        infos_of.append(self.locals["infos"][i])
                    values.append(running[i])
                    running[i] = []
            return True

    agent.learn(1200, callback=[PlasticityCallback([], interventions=[least]), ByHand()])
    assert len(ends) > 5
    assert ends == wanted
    assert all("terminal_observation" in info and info["episode"]["l"] < 200 for info in infos_of)
    buffer = agent.replay_buffer
    done = buffer.dones[: buffer.pos].astype(bool)
    assert done.sum() == len(values)
    assert (buffer.timeouts[: buffer.pos][done] == 1).all()
    rows, columns = done[:-1].nonzero()
    follows = buffer.observations[rows + 1, columns]  # a new episode, and not where the old one ended
    assert not np.isclose(follows, buffer.next_observations[rows, columns]).all(1).any()
    ongoing = ~done[:-1]
    np.testing.assert_array_equal(
        buffer.observations[1 : buffer.pos][ongoing], buffer.next_observations[: buffer.pos - 1][ongoing]
    )
    assert env.venv.judge is None if normalised else env.judge is None


def test_stops_in_processes() -> None:
    env = StopEpisodes(make_vec_env("Pendulum-v1", n_envs=2, seed=0, vec_env_cls=SubprocVecEnv))
    env.judge = lambda actions, obs, rewards, dones, infos: np.array([True, False])
    env.reset()
    obs, _, dones, infos = env.step(np.zeros((2, 1), np.float32))
    env.close()
    assert dones.tolist() == [True, False]
    assert infos[0]["TimeLimit.truncated"]
    assert infos[0]["episode"]["l"] == 1
    assert not np.allclose(obs[0], infos[0]["terminal_observation"])


@pytest.mark.parametrize("name", [*BASE, "QRDQN", "TQC", "CrossQ", "RecurrentPPO"])
@pytest.mark.some(2)
def test_fit_probes_are_logged_and_change_no_bit(name: str) -> None:
    finals = []
    for callback in (None, PlasticityCallback([], diagnose_every=2)):
        agent = make(name)
        recorded: dict[str, float] = {}
        agent.set_logger(sb3.common.logger.configure(None, []))
        agent.logger.record = lambda key, value, exclude=None, into=recorded: into.update({key: value})
        agent.learn(steps(name) // 2 + 22 if name not in ("PPO", "A2C", "RecurrentPPO") else 256, callback=callback)
        finals.append(dict(agent.policy.state_dict()))
    torch.testing.assert_close(*finals, rtol=0, atol=0)
    for network in context_of(agent).networks:
        fresh, aged, gap = (recorded[f"plasticity/{network}/fit_{kind}/all"] for kind in ("fresh", "aged", "gap"))
        assert 0 < fresh <= 1
        assert gap == pytest.approx(fresh - aged, abs=1e-6)


def test_what_an_agent_prints_has_no_two_names_alike(capsys: Any) -> None:
    from plasticity.probes import PROBES

    agent = make("TD3", verbose=1, learning_starts=195)
    callback = PlasticityCallback(
        [name for name in PROBES if name not in ("curvature", "transformer")],
        every=4,
        interventions=[ReDo(every=2)],
        diagnose_every=3,
    )
    agent.learn(204, log_interval=1, callback=callback)
    assert "plasticity/" in capsys.readouterr().out


def two() -> list[PlasticityCallback]:
    """Return one callback, twice."""
    return [PlasticityCallback()] * 2


def best(callback: PlasticityCallback) -> EvalCallback:
    """Return an evaluation that calls a callback at every new best."""
    return EvalCallback(make_vec_env("Pendulum-v1"), callback_on_new_best=callback)


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (lambda: two(), "two PlasticityCallbacks"),
        (lambda: [PlasticityCallback(), CallbackList([PlasticityCallback()])], "two PlasticityCallbacks"),
        (lambda: EveryNTimesteps(5, PlasticityCallback()), "inside EveryNTimesteps.*give it beside"),
        (lambda: EveryNTimesteps(5, CallbackList([PlasticityCallback()])), "inside EveryNTimesteps"),
        (lambda: best(PlasticityCallback()), "inside EvalCallback"),
        (lambda: PlasticityCallback([], interventions=[LearnToStop()]), "StopEpisodes"),
        (lambda: PlasticityCallback([], interventions=[SampleWeightDecay()]), "WeightedReplayBuffer"),
        (lambda: PlasticityCallback([], interventions=[RecentExperience()]), "WeightedReplayBuffer"),
    ],
)
def test_wrong_use_is_refused_before_the_first_step(callbacks: Any, message: str) -> None:
    agent = make("SAC")
    with pytest.raises(ValueError, match=message):
        agent.learn(50, callback=callbacks())
    assert agent.num_timesteps == 0
    agent.learn(44, callback=PlasticityCallback(every=1))  # nothing is left behind


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"probes": "dormancy"}, TypeError, "list of names"),
        ({"interventions": [ReDo]}, TypeError, "by calling their classes"),
        ({"interventions": ReDo()}, TypeError, "list of methods"),
        ({"every": 0}, ValueError, "at least 1"),
        ({"every": True}, ValueError, "at least 1; got True"),
        ({"diagnose_every": 0.5}, ValueError, "at least 1"),
        ({"log": 3}, TypeError, "folder"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        PlasticityCallback(**arguments)


def test_the_class_instead_of_a_callback_is_refused() -> None:
    with pytest.raises(TypeError, match="got the class PlasticityCallback: make one"):
        make("SAC").learn(50, callback=PlasticityCallback)  # type: ignore[arg-type]


def test_compiled_networks_wrapped_environments_and_training_without_steps() -> None:
    agent = make("SAC")
    agent.actor.compile(backend="eager")
    with pytest.raises(ValueError, match="actor of SAC is compiled"):
        agent.learn(50, callback=PlasticityCallback())
    with pytest.raises(ValueError, match=r"VecNormalize\(StopEpisodes"):
        StopEpisodes(VecNormalize(make_vec_env("Pendulum-v1")))
    with pytest.raises(TypeError, match="make_vec_env"):
        StopEpisodes(make("SAC"))
    with pytest.warns(RuntimeWarning, match="no gradient step"):
        make("SAC").learn(10, callback=PlasticityCallback())
    agent, callback = make("SAC"), PlasticityCallback(interventions=[ReDo()])
    with pytest.warns(RuntimeWarning, match=r"every=500 is not within the \d+ optimizer steps.*; redo never acted"):
        agent.learn(50, callback=callback)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        agent.learn(50, callback=callback, reset_num_timesteps=False)  # it is said once


def test_networks_that_are_replaced_meanwhile_are_named_and_optimizers_between_two_learns_are_taken() -> None:
    agent, callback = make("DQN"), PlasticityCallback(["dormancy"], every=1)
    agent.learn(44, callback=callback)
    before = callback._guest.measure.watcher.steps()
    agent.policy.optimizer = torch.optim.Adam(agent.q_net.parameters(), 1e-3)
    agent.learn(4, callback=callback, reset_num_timesteps=False)
    assert callback._guest.measure.watcher.steps() == [before[0] + 4]

    class Rebuilds(sb3.common.callbacks.BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 2:
                self.model.policy._build(self.model.lr_schedule)
                self.model._create_aliases()
            return True

    with pytest.warns(RuntimeWarning, match="q_net was replaced while training ran.*Replace networks before"):
        agent.learn(6, callback=[callback, Rebuilds()], reset_num_timesteps=False)


def test_a_learn_that_raised_is_cleaned_up_by_the_next() -> None:
    agent, redo = make("SAC"), ReDo(every=1)

    class Fails(sb3.common.callbacks.BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 50:
                raise KeyboardInterrupt
            return True

    with pytest.raises(KeyboardInterrupt):
        agent.learn(60, callback=[PlasticityCallback(["dormancy"], interventions=[redo]), Fails()])
    before = redo.ticks if hasattr(redo, "ticks") else dict(redo.counts)
    agent.learn(50, callback=PlasticityCallback(["dormancy"], every=1))
    assert (redo.ticks if hasattr(redo, "ticks") else redo.counts) == before


def test_evaluation_is_not_measured_and_events_go_to_a_writer(tmp_path: Any) -> None:
    from plasticity.storage.rows import read_metrics

    agent = make("DQN")
    evaluate = EvalCallback(make_vec_env("CartPole-v1"), eval_freq=10, n_eval_episodes=1, verbose=0)
    log = tmp_path / "log"
    callback = PlasticityCallback(["dormancy"], every=2, interventions=[ReDo(every=3)], log=log)
    agent.learn(60, callback=[callback, evaluate])
    assert callback._guest.measure.watcher.steps() == [agent._n_updates]
    rows = read_metrics(log)
    assert any(row.get("event") == "redo" for row in rows)
    assert any("plasticity/q_net/dormancy/all" in row for row in rows)
