"""One training run: its parts, its folder, its checkpoints; new, or resumed where it was stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from plasticity.agents import find_agent
from plasticity.agents.evaluate import Evaluate
from plasticity.agents.records import Episodes, Losses
from plasticity.agents.train import context, train
from plasticity.callback import Callback, noting, rebuild
from plasticity.commands.return_text import return_text
from plasticity.commands.stopping import Stopper
from plasticity.dashboard.live import LiveView
from plasticity.envs import TaskPlan, is_stream, make_env
from plasticity.interventions.intervention import never_acted
from plasticity.measuring import Measure
from plasticity.metrics import DEFAULT_PROBES
from plasticity.storage.files import LOCK, RunLock, file_name
from plasticity.storage.folder import Checkpoints
from plasticity.storage.randomness import seed_globally
from plasticity.storage.record import CHECKPOINTS, read_record, write_record
from plasticity.storage.upgrade import upgraded_state
from plasticity.writers import open_writers

from .defaults import settled
from .normaliser import NormaliserReset
from .run import UPDATE_WITHIN, describe, plain, require_update, save_model
from .saving import Present, Randomness, Save, restore, snapshot
from .settings import chosen, eval_limit, probe_interval, settings

DRY_UPDATES = 20
"""Updates after which a dry run ends even if a network has not been measured."""


def merged(*groups: Mapping[str, Callback]) -> dict[str, Callback]:
    """Return callbacks by name, in order; ValueError for a name that two have, because a checkpoint keeps one state."""
    names = Counter(name for group in groups for name in group)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"two callbacks of a run are called {twice[0]!r}; rename the intervention or meter")
    return {name: callback for group in groups for name, callback in group.items()}


def require_empty(folder: Path) -> None:
    """Raise ValueError for a folder that holds anything but a lock."""
    if folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
        raise ValueError(f"{folder} is not empty; pass another --name, go on with --resume, or remove it")


def warn_of_idle(callbacks: Mapping[str, Callback]) -> None:
    """Warn of methods that never acted, because of their schedule or of a tag under which nothing was logged."""
    for name, why in never_acted(callbacks).items():
        warnings.warn(f"{name} never acted: {why}", RuntimeWarning, stacklevel=3)


class TrainingRun:
    """One training run: its seeds, environment, agent, callbacks."""

    def __init__(self, agent: str, config: Any, arguments: Sequence[str] = ()) -> None:
        self.agent_name, self.config, self.arguments = agent, config, list(arguments)
        # One root seed; environment, agent and evaluation get their own streams from it, and the global generators
        # one for all other code, such as environments from outside: while parts are made, and in training.
        if config.seed < 0:
            raise ValueError(f"--seed must be at least 0, got {config.seed}")
        self.seeds = [int(s.generate_state(1)[0]) for s in np.random.SeedSequence(config.seed).spawn(5)]
        seed_globally(self.seeds[4])
        self.env = self._make_env(config.num_envs, self.seeds[0])
        self.agent = self._make_agent(config.agent)
        self.live = LiveView(config.steps, f"{agent} {config.env} seed {config.seed}", quiet=config.quiet)
        self.measure = Measure(config.probes, probe_interval(config, self.agent), window=config.probe_window)
        self.evaluate = Evaluate(
            self.agent,
            lambda: self._make_env(config.eval_episodes, self.seeds[2]),
            config.eval_every or config.steps,
            config.eval_episodes,
            eval_limit(vars(config)),
        )
        normaliser = {"normaliser": NormaliserReset(self.agent)} if config.normaliser == "reset" else {}
        watchers = {**normaliser, "evaluate": self.evaluate, "episodes": Episodes(), "losses": Losses(config.log_every)}
        measure = {"measure": self.measure} if config.probes else {}
        # Interventions first: one may end an episode, and what follows must see that it ended.
        self.callbacks = merged(
            chosen(config, "interventions"), measure, chosen(config, "meters"),
            {**watchers, "live": self.live, "random": Randomness()},
        )  # fmt: skip

    def _make_env(self, num_envs: int, seed: int) -> Any:
        c = self.config
        if c.task_seed is not None and not is_stream(c.env):
            raise ValueError(f"--task-seed: {c.env} is no stream, nothing is drawn for its tasks")
        with noting(f"raised while making {c.env}"):
            return make_env(
                c.env,
                num_envs=num_envs,
                seed=seed,
                device=c.device,
                action_repeat=c.action_repeat,
                max_episode_steps=c.max_episode_steps,
                tasks=TaskPlan(c.seed if c.task_seed is None else c.task_seed, c.task_steps, c.num_tasks, c.first_task),
            )

    def _make_agent(self, config: Any) -> Any:
        kind, _ = find_agent(self.agent_name)
        with noting(f"raised while making the agent {self.agent_name}"):
            return kind(
                self.env.observation_space,
                self.env.action_space,
                config,
                num_envs=self.config.num_envs,
                device=self.config.device,
                seed=self.seeds[1],
                name=self.agent_name,
                compile=self.config.compile,
                precision=self.config.precision,
            )

    def new_folder(self) -> Path:
        """Make the folder of a new run; ValueError for one that is there and holds anything but a lock."""
        c = self.config
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder = c.out / (c.name or f"{self.agent_name}_{file_name(c.env)}_seed{c.seed}_{stamp}")
        require_empty(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def train(self, folder: Path, resume: bool = False) -> int:
        """Train into ``folder``; ``run.json`` says how it ended, also after an exception. Return the exit code."""
        ctx, before = context(self.agent), read_record(folder) if resume else None
        checkpoints = Checkpoints(folder / CHECKPOINTS, self.config.checkpoint.keep)
        record = describe(self.agent_name, settings(self.config), self.arguments)
        record["resolved"] = self._resolved()
        with RunLock(folder), Stopper() as stopper:
            self.evaluate.stop = stopper.stop
            begin: dict[str, Any] = {}
            if resume:
                state = upgraded_state(checkpoints.load_latest()[1])
                ctx.step, ctx.latest = state["step"], dict(state["latest"])
                if before is not None and ctx.step > self.config.steps != before["config"]["steps"]:
                    raise ValueError(f"{folder} is at step {ctx.step} already, beyond --steps {self.config.steps}")
                ctx.logged = dict(state.get("logged", {}))  # 0.1.0 did not count
                ctx.task, ctx.num_tasks = state.get("task"), state.get("num_tasks", 0)
                begin["saved"] = [*(state["callbacks"].get(name) for name in self.callbacks), None, None]
                begin["load"] = partial(restore, state, self.agent, self.env)
            else:
                require_empty(folder)  # once more: another process may have had the lock meanwhile
                seed_globally(self.seeds[3])
            write_record(folder, record)
            begun, status, writer = ctx.step, "failed", None
            try:
                ctx.writer = writer = open_writers(folder, self.config.log, also=[self.live])
                if resume:
                    writer.resume(ctx.step + 1)
                writer.settings(record["config"])
                writer.text(ctx.step, "run", f"```\n{json.dumps(record, indent=2)}\n```")
                present = Present(folder)
                save = Save(
                    checkpoints, self.config.checkpoint.every, self.config.steps, self._state, stopper.stop, present
                )
                with self.live:
                    callbacks = [*self.callbacks.values(), present, save]
                    try:
                        train(self.env, self.agent, self.config.steps, callbacks, ctx, lambda: save.stopped, **begin)
                    except SystemExit as error:  # the process would end as if all were well
                        with noting(f"at step {ctx.step:,} of {self.env.name}"):
                            raise RuntimeError(f"sys.exit({error.code!r}) was called in training") from error
                    if not stopper.stop():
                        warn_of_idle(self.callbacks)
                        self.evaluate.run(ctx)
                present.check()
                save_model(folder, self.agent, ctx.step, self.callbacks)
                status = "interrupted" if stopper.stop() else "finished"
            finally:
                if writer is not None:
                    writer.close(succeeded=status == "finished")
                last = self.evaluate.last
                returns = last.tolist() if last is not None and status == "finished" else []
                ended = {**record, "status": status, "steps_done": ctx.step, "eval_returns": returns}
                never_began = before is not None and status == "failed" and ctx.step == begun
                with contextlib.suppress(OSError):  # the folder may be gone: another error says so
                    write_record(folder, before if before is not None and never_began else ended)
                self.env.close()  # last: an environment that fails may fail to close as well
        if not self.config.quiet:
            with contextlib.suppress(OSError):  # a closed terminal
                self._report(folder, status)
        return stopper.exit_code

    def _resolved(self) -> dict[str, Any]:
        """Return the settings that are None by default, as what they stand for here; under ``told`` in words, too."""
        config = getattr(self.agent, "config", None)
        own = dataclasses.asdict(config) if dataclasses.is_dataclass(config) and not isinstance(config, type) else {}
        told = plain(settled(self.config, self.agent))
        return {"probe_every": self.measure.every, "agent": plain(own), "told": told}

    def _state(self, ctx: Any) -> tuple[dict[str, Any], float | None]:
        """Return the state of the run, and its score: the mean return of this step's evaluation, if there was one."""
        score = self.evaluate.score_at(ctx.step)  # none of an earlier step: the parameters have moved on
        return snapshot(ctx, self.agent, self.env, self.callbacks), score

    def _report(self, folder: Path, status: str) -> None:
        for network, reading in self.measure.last.items():
            print(f"\n{network}\n{reading}")
        if status == "finished" and not self.agent.updates:
            print(f"\nnote: no update was made, so nothing was learned or measured; {self._first_update()}")
        if status == "interrupted":
            print(f"\nstopped; go on with: plasticity train --resume {folder}")
        elif self.evaluate.last is not None:
            last = self.evaluate.last
            print(f"\nreturn {return_text(last.mean())} over {len(last)} evaluation episodes")
        print(f"run folder: {folder}\nsee it with: plasticity dashboard {folder.parent}")

    def _first_update(self) -> str:
        """Return the advice for a run that ended before its first update."""
        starts = getattr(self.config.agent, "learning_starts", None)
        if starts is None:
            return "train for more --steps"
        return f"updates begin after {starts:,} steps: train for more --steps, or lower --learning-starts"

    def dry_run(self) -> int:
        """Take the first update of a throw-away agent and show what is wired and measured."""
        c = self.config
        fields = {f.name for f in dataclasses.fields(c.agent)}
        early = {"learning_starts": c.agent.batch_size} if {"learning_starts", "batch_size"} <= fields else {}
        self.agent = self._make_agent(dataclasses.replace(c.agent, **early))
        measure = Measure(c.probes or DEFAULT_PROBES, every=1)

        def shown() -> bool:  # a delayed policy is not trained by the first update
            return measure.last.keys() == self.agent.networks.keys() or self.agent.updates >= DRY_UPDATES

        ctx = context(self.agent)
        rebuild([(callback, None) for callback in self.callbacks.values()], ctx)
        try:
            train(self.env, self.agent, UPDATE_WITHIN, [measure], ctx, stop=shown)
        finally:
            self.env.close()
        require_update(self.agent, 0, ctx.step)
        print(json.dumps(settings(c), indent=2))
        assert measure.watcher is not None
        for name, monitor in measure.watcher.monitors.items():
            print(f"\n{name}: wiring\n{monitor.wiring}")
            if c.probes and name in measure.last:
                print(f"\n{name}: what the probes measure, on the first update\n{measure.last[name]}")
        return 0
