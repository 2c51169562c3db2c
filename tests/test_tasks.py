"""Task streams: the event, the clock, the evaluation, and exact resume of what outlives an episode."""

import json
from itertools import count

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from plasticity.agents.evaluate import Evaluate
from plasticity.agents.train import train
from plasticity.callback import Callback, Context, start_task
from plasticity.cli import main
from plasticity.commands.run import load_state
from plasticity.envs import ENVS, Family, make_env, sanity
from plasticity.storage.checkpoint import load, save
from plasticity.tags import is_timed

PERIOD = 40


@pytest.fixture(autouse=True)
def families(monkeypatch):
    monkeypatch.setattr(sanity, "PERIOD", PERIOD)
    before = dict(ENVS)
    yield ENVS
    ENVS.clear()
    ENVS.update(before)


class Walk(gymnasium.Env):
    """Add the action and noise to a place for 7 steps, and be paid the place; DRIFT says what outlives an episode."""

    def __init__(self):
        self.observation_space = spaces.Box(-99.0, 99.0, (1,), np.float64)
        self.action_space = spaces.Discrete(2)
        self.total_steps = self.episodes = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes, self.t, self.place = self.episodes + 1, 0, self.np_random.normal()
        return np.array([self.place]), {}

    def step(self, action):
        self.total_steps, self.t = self.total_steps + 1, self.t + 1
        self.place += self.push(int(action)) + self.np_random.normal()
        return np.array([self.place]), self.pay(), False, self.t == 7, {}

    def push(self, action):
        return action

    def pay(self):
        return self.place


class RewardBySteps(Walk):
    def pay(self):
        return self.place * (1 - 2 * (self.total_steps // 10 % 2))


class RewardByEpisodes(Walk):
    def pay(self):
        return self.place + self.episodes // 2


class DynamicsBySteps(Walk):
    def push(self, action):
        return action * (1 + self.total_steps // 10)


class DynamicsByEpisodes(Walk):
    def push(self, action):
        return action + self.episodes // 3


class HiddenInWrapper(gymnasium.Wrapper):
    """Scale the rewards by a count that only the wrapper knows."""

    def __init__(self):
        super().__init__(Walk())
        self.env.pay = lambda: 1.0
        self.env.episodes = 0
        self.played = 0

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        self.played += 1
        return (obs, reward * self.played, *rest)


class HiddenAnywhere(Walk):
    """Count in a closure, which no attribute shows."""

    def __init__(self):
        super().__init__()
        self.total_steps = self.episodes = None
        clock = count()
        self.push = lambda action: action * next(clock)

    def reset(self, *, seed=None, options=None):
        self.episodes = 0
        return super().reset(seed=seed)

    def step(self, action):
        self.total_steps = 0
        return super().step(action)


def with_state(kind, *names):
    """A subclass whose ``state_dict`` has the attributes ``names``."""

    class Kept(kind):
        def state_dict(self):
            return {name: getattr(self, name) for name in names}

        def load_state_dict(self, state):
            vars(self).update(state)

    return Kept


class Factor(gymnasium.Wrapper):
    """Add a drift of its own to the reward, drawn anew at every 9th of its steps by a generator of its own."""

    def __init__(self, env):
        super().__init__(env)
        self.generator, self.count, self.offset = np.random.default_rng(3), 0, np.zeros(2)

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        self.count += 1
        if self.count % 9 == 0:
            self.offset[:] = self.generator.normal(size=2)
        return (obs, reward + self.offset.sum(), *rest)

    def state_dict(self):
        return {"count": self.count, "offset": self.offset, "generator": self.generator.bit_generator.state}

    def load_state_dict(self, state):
        self.count, self.offset = state["count"], state["offset"]
        self.generator.bit_generator.state = state["generator"]


COUNTERS = ("total_steps", "episodes")
KEPT = {
    "base, rewards by steps": lambda: with_state(RewardBySteps, *COUNTERS)(),
    "base, rewards by episodes": lambda: with_state(RewardByEpisodes, *COUNTERS)(),
    "base, dynamics by steps": lambda: with_state(DynamicsBySteps, *COUNTERS)(),
    "base, dynamics by episodes": lambda: with_state(DynamicsByEpisodes, *COUNTERS)(),
    "wrapper": lambda: Factor(with_state(Walk, *COUNTERS)()),
    "nested wrappers": lambda: Factor(Factor(with_state(DynamicsBySteps, *COUNTERS)())),
    "wrapper of a stateless base": lambda: Factor(gymnasium.make("CartPole-v1", disable_env_checker=True)),
}
DRIFTING = {
    kind.__name__: kind
    for kind in (RewardBySteps, RewardByEpisodes, DynamicsBySteps, DynamicsByEpisodes, HiddenInWrapper, HiddenAnywhere)
}


def played(make, steps, num_envs=2):
    """Environments after some steps, their state as a checkpoint gives it back, and what follows."""
    ENVS["drifting"] = Family("drifting/", lambda: ["drifting/one"], lambda *_: make())
    env = make_env("drifting/one", num_envs=num_envs, seed=5)
    env.reset()
    play(env, steps)
    return env


def play(env, steps):
    seen = []
    for k in range(steps):
        transition = env.step(torch.tensor([(k * k + i) % 2 for i in range(env.num_envs)]))
        done = transition.terminated | transition.truncated
        seen.append(torch.cat([transition.next_obs[:, 0], transition.reward, env.reset(done)[:, 0]]))
    return torch.stack(seen) if seen else None


def through_a_file(state, path):
    save(path / "state", state)
    return load(path / "state")


@pytest.mark.parametrize("steps", [0, 3, 7, 25, 61])
@pytest.mark.parametrize("kind", KEPT)
def test_what_has_a_state_goes_on_bit_by_bit(kind, steps, tmp_path):
    env = played(KEPT[kind], steps)
    state = through_a_file(env.state_dict(), tmp_path)
    expected = play(env, 40)
    again = make_env("drifting/one", num_envs=2, seed=5)
    assert not again.load_state_dict(state).any()
    assert torch.equal(play(again, 40), expected)
    unlike = make_env("drifting/one", num_envs=2, seed=5)
    unlike.reset()
    assert steps == 0 or not torch.equal(play(unlike, 40), expected)


@pytest.mark.parametrize("kind", DRIFTING)
@pytest.mark.parametrize("steps", [34, 60])
def test_a_drift_without_a_state_is_found_out(kind, steps, tmp_path):
    env = played(DRIFTING[kind], steps)
    state = through_a_file(env.state_dict(), tmp_path)
    again = make_env("drifting/one", num_envs=2, seed=5)
    assert again.load_state_dict(state).all()  # the running episodes were played with the drift of the start
    play(again, 20)


def test_a_drift_that_no_episode_shows_yet_is_warned_of(tmp_path):
    """Within the first task everything replays, but the switch would come too late."""
    env = played(RewardBySteps, 8)
    state = through_a_file(env.state_dict(), tmp_path)
    again = make_env("drifting/one", num_envs=2, seed=5)
    with pytest.warns(RuntimeWarning, match=r"keeps state beyond its episodes .*RewardBySteps.total_steps \(8 when"):
        assert not again.load_state_dict(state).any()


@pytest.mark.parametrize("kind", ["CartPole-v1", "sanity/drift"])
def test_nothing_is_said_of_environments_without_a_drift(kind):
    env = make_env(kind, num_envs=2, seed=5)
    env.reset()
    play(env, 90)
    assert not make_env(kind, num_envs=2, seed=5).load_state_dict(env.state_dict()).any()


def test_a_state_that_is_not_restored_gives_the_episode_up():
    class Broken(with_state(RewardBySteps, *COUNTERS)):
        def load_state_dict(self, state):
            pass

    env = played(Broken, 25)
    assert make_env("drifting/one", num_envs=2, seed=5).load_state_dict(env.state_dict()).all()


def test_a_lost_episode_does_not_lose_the_drift():
    class Both(with_state(RewardBySteps, *COUNTERS)):
        def push(self, action):
            return action * np.random.default_rng().normal()  # never the same again

    env = played(Both, 25)
    again = make_env("drifting/one", num_envs=2, seed=5)
    assert again.load_state_dict(env.state_dict()).all()
    assert [one.unwrapped.total_steps for one in again._vector.envs] == [25, 25]


def test_other_layers_with_a_state_are_refused():
    state = played(KEPT["nested wrappers"], 9).state_dict()
    again = played(KEPT["wrapper"], 0)
    with pytest.raises(ValueError, match="3 layers of the environment were saved with a state, and now Factor, Kept"):
        again.load_state_dict(state)


# Tasks of environments ------------------------------------------------------------------------------------------------


def test_a_transition_has_the_task_in_which_its_action_was_taken(device):
    env = make_env("sanity/drift", num_envs=2, device=device)
    assert env.task is None
    env.reset()
    for k in range(2 * PERIOD + 1):
        present = env.task
        transition = env.step(torch.tensor([1, 0], device=device))
        assert transition.task is present
        assert transition.task.tolist() == [k // PERIOD] * 2
        assert transition.task.dtype == torch.int64
        assert transition.task.device.type == device
        assert transition.reward.tolist() == ([1.0, -1.0] if k // PERIOD % 2 == 0 else [-1.0, 1.0])
        env.reset(transition.terminated)
    assert env.task.tolist() == [2, 2]


@pytest.mark.parametrize("name", ["CartPole-v1", "dmc/cartpole-swingup", "sanity/clock"])
def test_environments_without_tasks_have_none(name):
    env = make_env(name)
    env.reset()
    action = torch.as_tensor(env.action_space.sample()).reshape(1, *env.action_space.shape)
    assert env.step(action).task is None
    assert env.task is None
    assert not env.set_task(1)


class Switch(gymnasium.Wrapper):
    """A task of the wrapper's own, a new one in every second episode."""

    def __init__(self, env, task=0):
        super().__init__(env)
        self.episodes = 0

    def reset(self, **kwargs):
        self.episodes += 1
        self.task = np.int64((self.episodes - 1) // 2)  # there from the first reset on only
        return self.env.reset(**kwargs)


class Named(Walk):
    """A text is no task."""

    task = "walk"


def test_the_task_of_the_outermost_layer_counts_and_a_text_is_none(families):
    families["my"] = Family("my/", lambda: ["my/one"], lambda *_: Switch(make_drift()))
    env = make_env("my/one", num_envs=2)
    env.reset()
    seen = []
    for done in ([True, False], [True, False], [True, True], [False, True]):
        seen.append(env.task.tolist())
        env.reset(torch.tensor(done))
    assert seen == [[0, 0], [0, 0], [1, 0], [1, 0]]
    assert env.task.tolist() == [1, 1]
    families["my"] = Family("my/", lambda: ["my/one"], lambda *_: Named())
    env = make_env("my/one")
    env.reset()
    assert env.task is None


def make_drift():
    return sanity.make_sanity("sanity/drift", 0)


def test_set_task_plays_one_task_only():
    env = make_env("sanity/drift", num_envs=3)
    assert env.set_task(torch.tensor([0, 1, 4]))
    env.reset()
    for _ in range(PERIOD + 1):
        transition = env.step(torch.tensor([1, 1, 1]))
        assert transition.task.tolist() == [0, 1, 4]
        assert transition.reward.tolist() == [1.0, -1.0, 1.0]
        env.reset(transition.terminated)
    assert env.set_task(5)
    env.reset()
    assert env.task.tolist() == [5, 5, 5]


# The event and the clock ----------------------------------------------------------------------------------------------


class Note(Callback):
    def __init__(self):
        self.seen = []

    def on_task_start(self, ctx, task):
        self.seen.append((ctx.step, task.tolist(), ctx.num_tasks, ctx.task is task))

    def on_step(self, ctx, transition):
        assert torch.equal(transition.task, ctx.task)


class Random:
    """An agent that learns nothing, with an update after every step."""

    name, optimizers = "random", {}

    def __init__(self, net=None):
        self.networks = {"net": torch.nn.Linear(1, 1)}
        self.owed, self.log = 0, []

    def act(self, obs, explore):
        self.log.append("act")
        return torch.zeros(len(obs), dtype=torch.int64)

    def observe(self, transition):
        self.owed = 1

    def ready(self):
        return self.owed > 0

    def update(self):
        self.owed = 0
        self.log.append("update")
        return {}


def test_a_task_starts_before_its_first_action_the_first_one_included():
    agent, note = Random(), Note()
    note.on_task_start = lambda ctx, task: (Note.on_task_start(note, ctx, task), agent.log.append("task"))[0]
    train(make_env("sanity/drift", num_envs=2), agent, 6 * PERIOD, [note])
    # 2 environments: a task lasts 2 * PERIOD steps. The one after the last step is never begun.
    assert note.seen == [(0, [0, 0], 1, True), (2 * PERIOD, [1, 1], 2, True), (4 * PERIOD, [2, 2], 3, True)]
    assert agent.log == (["task"] + ["act", "update"] * PERIOD) * 3


def test_a_straggler_starts_no_task_and_a_returning_one_does():
    note, ctx = Note(), Context()
    for present in ([0, 0], [1, 0], [1, 1], [1, 1], [0, 1], [0, 0], [2, 3]):
        start_task([note], ctx, torch.tensor(present))
        assert ctx.task.tolist() == present
    assert [task for _, task, _, _ in note.seen] == [[0, 0], [1, 0], [0, 1], [2, 3]]
    start_task([note], ctx, None)
    start_task([note], ctx, 7)  # a loop without environments
    assert note.seen[-1] == (0, [7], 5, True)


def test_evaluations_play_the_task_of_training_and_do_not_move_it():
    made = []

    def make(num_envs=4):
        made.append(make_env("sanity/drift", num_envs=num_envs))
        return made[-1]

    env, agent, note = make(2), Random(), Note()
    evaluate = Evaluate(agent, make, every=2 * PERIOD, episodes=4)
    returns = {}
    evaluate.run = lambda ctx: (Evaluate.run(evaluate, ctx), returns.update({ctx.step: evaluate.last.tolist()}))
    train(env, agent, 6 * PERIOD, [evaluate, note])
    assert returns == {2 * PERIOD: [-1.0] * 4, 4 * PERIOD: [1.0] * 4, 6 * PERIOD: [-1.0] * 4}
    assert [step for step, *_ in note.seen] == [0, 2 * PERIOD, 4 * PERIOD]
    ctx = Context(task=torch.tensor([1, 2]))
    Evaluate(agent, make, episodes=4).run(ctx)
    assert made[-1]._tasks.present().tolist() == [1, 2, 1, 2]


def test_an_evaluation_that_cannot_be_set_is_warned_of_once(families):
    families["my"] = Family("my/", lambda: ["my/one"], lambda *_: Switch(gymnasium.make("CartPole-v1")))
    evaluate = Evaluate(Random(), lambda: make_env("my/one"), episodes=1)
    with pytest.warns(RuntimeWarning, match=r"my/one has tasks but no set_task\(task\)"):
        evaluate.run(Context(step=1, task=torch.tensor([3])))
    evaluate.run(Context(step=2, task=torch.tensor([3])))


TRAIN = [
    "train", "dqn", "--env", "sanity/drift", "--learning-starts", "20", "--quiet", "--compile", "off",
    "--eval-episodes", "2", "--log-every", "10", "--train-every", "1", "--num-envs", "2",
    "--reset", "--reset.every", "1", "--reset.clock", "tasks",
]  # fmt: skip


def rows(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "time" and not is_timed(k)} for row in found]


def test_a_run_resumed_in_mid_task_is_bit_identical(tmp_path):
    """Tasks start at 0, 80, 160, ...; the checkpoint is written at 200, in the third one."""
    common = [*TRAIN, "--out", str(tmp_path), "--checkpoint.every", "200"]
    assert main([*common, "--name", "whole", "--steps", "420"]) == 0
    assert main([*common, "--name", "half", "--steps", "200"]) == 0
    assert main(["train", "--resume", str(tmp_path / "half"), "--steps", "420", "--quiet"]) == 0
    whole, half = rows(tmp_path / "whole"), rows(tmp_path / "half")
    events = [row for row in whole if row.get("event") == "task"]
    assert [(row["step"], row["task"], row["number"]) for row in events] == [(80 * k, k, k + 1) for k in range(6)]
    resets = [(row["step"], row["tasks"]) for row in whole if row.get("event") == "reset"]
    assert resets == [(80 * k, k) for k in range(1, 6)]  # at every task but the first
    last = [row for row in half if row["step"] > 200 and "purge_step" not in row]
    assert last == [row for row in whole if row["step"] > 200]
    weights = [load_state(tmp_path / name)["agent"]["networks"] for name in ("whole", "half")]
    assert all(torch.equal(value, weights[1]["q"][name]) for name, value in weights[0]["q"].items())


def test_the_clock_of_tasks_needs_tasks(tmp_path, capsys):
    arguments = [*TRAIN, "--out", str(tmp_path), "--steps", "400", "--eval-every", "400"]
    arguments[arguments.index("sanity/drift")] = "CartPole-v1"
    assert main(arguments) == 1
    assert "Reset counts tasks, and after 100 gradient steps there was none" in capsys.readouterr().err
