"""One implementation in a process of its own: trains a window of steps for every line it reads, prints its CPU time.

python benchmarks/peers/turns.py ours|sbx|leanrl TASK [FOLDER]

Run by `beside.py`, with the Python that has the implementation. Prints "ready" once it has begun to learn and has
compiled what it compiles. FOLDER: the one with LeanRL's scripts.
"""

from __future__ import annotations

import runpy
import sys
import time
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

Learn = Callable[[int], Any]

WINDOWS = {"sac": (1500, 300), "td3": (1500, 400), "ppo": (6144, 4096), "dqn": (4000, 5000)}
"""Steps before, and in a window."""
TASKS = {"sac": "sac-halfcheetah", "td3": "td3-halfcheetah", "ppo": "ppo-halfcheetah", "dqn": "dqn-cartpole"}


def ours(task: str) -> Learn:
    """Return our agent, as `speed.py` has it."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import speed
    import torch

    torch.set_num_threads(1)
    return speed.ours(speed.TASKS[TASKS[task]], "on")


def sbx(task: str) -> Learn:
    """Return the agent of sbx, with the settings of `sb3.py`."""
    import gymnasium
    import sbx
    from flax import linen
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    name = "CartPole-v1" if task == "dqn" else "HalfCheetah-v5"
    envs: Any = DummyVecEnv([lambda: Monitor(gymnasium.make(name))])
    policy: dict[str, Any] = {"net_arch": [256, 256]}
    if task == "ppo":
        policy, envs = {"net_arch": [64, 64], "activation_fn": linen.tanh}, VecNormalize(envs, gamma=0.99)
        model = sbx.PPO("MlpPolicy", envs, n_steps=2048, batch_size=64, n_epochs=10, policy_kwargs=policy)
    elif task == "dqn":
        constant = {"exploration_initial_eps": 0.05, "exploration_final_eps": 0.05}
        schedule = {"train_freq": 10, "gradient_steps": 1, "target_update_interval": 500}
        sizes = {"buffer_size": 10_000, "batch_size": 128, "learning_starts": 1000, "learning_rate": 2.5e-4}
        model = sbx.DQN("MlpPolicy", envs, policy_kwargs={"net_arch": [120, 84]}, **constant, **schedule, **sizes)
    else:
        kind = sbx.SAC if task == "sac" else sbx.TD3
        model = kind("MlpPolicy", envs, policy_kwargs=policy, learning_starts=1000)
    return lambda steps: model.learn(steps, reset_num_timesteps=False)


def take_turns(task: str, learn: Learn) -> None:
    """Train when told to."""
    warm_up, window = WINDOWS[task]
    learn(warm_up)
    print("ready", flush=True)
    for _ in sys.stdin:
        before = time.process_time()
        learn(window)
        print((time.process_time() - before) / window * 1e6, flush=True)


LEANRL = {
    "ppo": ("ppo_continuous_action_torchcompile.py", []),  # 2,048 steps of advantages in one graph: minutes and more
    "sac": ("sac_continuous_action_torchcompile.py", ["--compile", "--learning-starts", "1000"]),
    "td3": ("td3_continuous_action_torchcompile.py", ["--compile", "--learning-starts", "1000"]),
    "dqn": ("dqn_torchcompile.py", ["--compile", "--learning-starts", "1000", "--start-e", "0.05"]),
}


def leanrl(task: str, folder: str) -> None:
    """Run LeanRL's own script, whose progress bar takes the turns; nothing is logged."""
    warm_up, window = WINDOWS[task]
    each = 2048 if task == "ppo" else 1  # steps in an iteration

    class Bar:
        def __init__(self, iterations: range) -> None:
            self.iterations = iterations

        def __iter__(self) -> Iterator[int]:
            before = 0.0
            for count, iteration in enumerate(self.iterations):
                since = count - warm_up // each
                if since >= 0 and since % (window // each) == 0:
                    print((time.process_time() - before) / window * 1e6 if since else "ready", flush=True)
                    if not sys.stdin.readline():
                        sys.exit()
                    before = time.process_time()
                yield iteration

        def set_description(self, text: str) -> None: ...

    import tqdm

    theirs = tqdm.tqdm  # the compiler has bars, too
    tqdm.tqdm = lambda *over, **how: Bar(*over) if over and isinstance(over[0], range) else theirs(*over, **how)
    wandb: Any = types.ModuleType("wandb")
    wandb.__spec__ = ModuleSpec("wandb", None)
    wandb.init = wandb.log = lambda *_, **__: None
    sys.modules["wandb"] = wandb
    script, more = LEANRL[task]
    sys.argv = [script, *more]
    runpy.run_path(str(Path(folder) / script), run_name="__main__")


if __name__ == "__main__":
    kind, task = sys.argv[1:3]
    if kind == "leanrl":
        leanrl(task, sys.argv[3])
    else:
        take_turns(task, {"ours": ours, "sbx": sbx}[kind](task))
