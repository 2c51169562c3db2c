"""``plasticity train``: an agent in an environment, with probes and interventions, into a run folder."""

from __future__ import annotations

import dataclasses
import difflib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from plasticity.agents import AGENTS
from plasticity.agents.evaluate import Evaluate
from plasticity.agents.records import Episodes, Losses
from plasticity.agents.train import context, train
from plasticity.dashboard.live import Live
from plasticity.dashboard.sink import Sink
from plasticity.envs import make_env
from plasticity.interventions import INTERVENTIONS, Intervention
from plasticity.measure import Measure
from plasticity.probes import DEFAULT_PROBES, make_probes

from .run import command_line, describe, plain, save_model, write_record


@dataclass(frozen=True)
class TrainConfig:
    """What to train on, for how long, and what to watch; the options of the agent come below."""

    env: str
    """Environment: any Gymnasium id, or dmc/<domain>-<task> such as dmc/cartpole-swingup; see plasticity list envs."""
    steps: int = 100_000
    """Environment steps in all, each one decision of the agent; every parallel environment counts."""
    seed: int = 1
    """Root of every random number of the run."""
    num_envs: int = 1
    """Parallel environments."""
    action_repeat: int | None = None
    """Simulator steps per environment step; None: 2 for dm_control, as in most published results, 1 elsewhere."""
    max_episode_steps: int | None = None
    """Simulator steps per episode, in place of the environment's own limit."""
    probes: tuple[str, ...] = DEFAULT_PROBES
    """Probes to run on every network; see plasticity list probes. Give the flag without names for none."""
    probe_every: int = 1000
    """Optimizer steps between two measurements."""
    eval_every: int = 10_000
    """Environment steps between two evaluations; 0 evaluates only at the end."""
    eval_episodes: int = 10
    """Episodes of each evaluation, with deterministic actions."""
    log_every: int = 500
    """Updates over which losses are averaged and after which they are logged."""
    device: str = "cpu"
    """Where networks and replay live: cpu, cuda, ..."""
    torch_threads: int = 1
    """Threads of PyTorch on the CPU; more than one slows small networks down."""
    out: Path = Path("runs")
    """Folder for run folders."""
    name: str | None = None
    """Name of the run folder; default: agent, environment, seed and time."""
    quiet: bool = False
    """Show nothing while training."""
    dry_run: bool = False
    """Show the settings, how the networks are wired and what each probe will measure, and stop."""


def main(arguments: Sequence[str]) -> int:
    """Train, evaluate, save; return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: plasticity train <agent> --env ENV [options]\nagents: {', '.join(AGENTS)}")
        print("plasticity train <agent> --help lists every option.")
        return 0
    agent, *rest = arguments
    if agent not in AGENTS:
        close = difflib.get_close_matches(agent, AGENTS, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"no agent {agent!r}; {hint}there are {', '.join(AGENTS)}")
    _require_switched_on(rest)
    config: Any = tyro.cli(_config_type(agent), prog=f"plasticity train {agent}", args=rest)
    if config.steps < 1:
        raise ValueError(f"steps must be at least 1, got {config.steps}")
    make_probes(config.probes)  # an unknown name fails here, before anything is written
    torch.set_num_threads(config.torch_threads)
    run = Run(agent, config)
    return run.dry_run() if config.dry_run else run.train()


def _config_type(agent: str) -> type:
    """Return the settings of a run of ``agent``: those of training, the agent's own and every intervention's, as flags.

    An intervention is switched on by its bare flag, ``--regrama``; its settings are dotted, ``--regrama.every 500``.
    """
    kind = AGENTS[agent][1]
    fields: list[Any] = [("agent", Annotated[kind, tyro.conf.OmitArgPrefixes], field(default_factory=kind))]
    for name, method in INTERVENTIONS.items():
        summary = (method.__doc__ or "").splitlines()[0]
        switch = tyro.conf.arg(name=name.replace("_", "-"), help=summary)
        fields.append((f"{name}_on", Annotated[bool, switch, tyro.conf.FlagCreatePairsOff], False))
        fields.append((name, method, field(default_factory=method)))
    return dataclasses.make_dataclass(
        f"Train{agent.upper()}Config",
        fields,
        bases=(TrainConfig,),
        frozen=True,
        namespace={"__doc__": f"Train {agent.upper()}: {TrainConfig.__doc__}"},
    )


def _require_switched_on(arguments: Sequence[str]) -> None:
    """Raise ValueError for a setting of an intervention that is off: it would have no effect."""
    for name in INTERVENTIONS:
        flag = f"--{name.replace('_', '-')}"
        given = [a for a in arguments if a.replace("_", "-").startswith(f"{flag}.")]
        if given and flag not in (a.replace("_", "-") for a in arguments):
            raise ValueError(f"{given[0]} sets an option of {name}, which is off; switch it on with {flag}")


def chosen_interventions(config: Any) -> dict[str, Intervention]:
    """Return the interventions that are switched on, by name."""
    return {name: getattr(config, name) for name in INTERVENTIONS if getattr(config, f"{name}_on")}


def settings(config: Any) -> dict[str, Any]:
    """Return all settings of a run as plain values; of the interventions only those that are on."""
    methods = {name: plain(method.settings()) for name, method in chosen_interventions(config).items()}
    skip = {*INTERVENTIONS, *(f"{name}_on" for name in INTERVENTIONS)}
    rest = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in skip}
    return {**plain({**rest, "agent": dataclasses.asdict(config.agent)}), "interventions": methods}


class Run:
    """One training run: its seeds, environment, agent, folder."""

    def __init__(self, agent: str, config: Any) -> None:
        self.agent_name, self.config = agent, config
        # One root seed; environment, agent and evaluation get their own streams from it.
        self.seeds = [int(s.generate_state(1)[0]) for s in np.random.SeedSequence(config.seed).spawn(3)]
        self.env = self._make_env(config.num_envs, self.seeds[0])
        self.agent = self._make_agent(config.agent)

    def _make_env(self, num_envs: int, seed: int) -> Any:
        c = self.config
        return make_env(
            c.env,
            num_envs=num_envs,
            seed=seed,
            device=c.device,
            action_repeat=c.action_repeat,
            max_episode_steps=c.max_episode_steps,
        )

    def _make_agent(self, config: Any) -> Any:
        kind = AGENTS[self.agent_name][0]
        return kind(
            self.env.observation_space,
            self.env.action_space,
            config,
            num_envs=self.config.num_envs,
            device=self.config.device,
            seed=self.seeds[1],
            name=self.agent_name,
        )

    def _folder(self) -> Path:
        c = self.config
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder = c.out / (c.name or f"{self.agent_name}_{c.env.replace('/', '-')}_seed{c.seed}_{stamp}")
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} exists and is not empty; pass another --name, or remove it")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def train(self) -> int:
        """Train into a new folder; the record says how it ended, also after an exception."""
        c, folder = self.config, self._folder()
        record = describe(self.agent_name, settings(c), command_line())
        write_record(folder, record)
        evaluate = Evaluate(
            self.agent,
            lambda: self._make_env(c.eval_episodes, self.seeds[2]),
            c.eval_every or c.steps,
            c.eval_episodes,
        )
        live = Live(c.steps, f"{self.agent_name} {c.env} seed {c.seed}", quiet=c.quiet)
        sink = Sink(folder, live)
        ctx = context(self.agent, writer=sink)
        measure = Measure(c.probes, c.probe_every)
        watchers = [*([measure] if c.probes else []), evaluate, Episodes(), Losses(c.log_every), live]
        # Interventions first: one may end an episode, and what follows must see that it ended.
        callbacks = [*chosen_interventions(c).values(), *watchers]
        sink.logger.hparams(_flat(record["config"]), ["charts/eval_return", "charts/episodic_return"])
        sink.logger.text(0, "run", f"```\n{json.dumps(record, indent=2)}\n```")
        status = "failed"
        try:
            with live:
                train(self.env, self.agent, c.steps, callbacks, ctx)
                evaluate.run(ctx)
            status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            self.env.close()
            sink.close(succeeded=status == "finished")
            if status != "failed":  # a state that a non-finite loss has reached is worth nothing
                save_model(folder, self.agent)
            returns = evaluate.last.tolist() if evaluate.last is not None else []
            write_record(folder, {**record, "status": status, "steps_done": ctx.step, "eval_returns": returns})
        if not c.quiet:
            self._report(folder, evaluate, measure)
        return 0

    def _report(self, folder: Path, evaluate: Evaluate, measure: Measure) -> None:
        for network, reading in measure.last.items():
            print(f"\n{network}\n{reading}")
        if evaluate.last is not None:
            print(f"\nreturn {evaluate.last.mean():.1f} over {len(evaluate.last)} evaluation episodes")
        print(f"run folder: {folder}\nsee it with: plasticity dashboard {folder.parent}")

    def dry_run(self) -> int:
        """Take the first update of a throw-away agent and show what is wired and measured."""
        c = self.config
        fields = {f.name for f in dataclasses.fields(c.agent)}
        early = {"learning_starts": c.agent.batch_size} if {"learning_starts", "batch_size"} <= fields else {}
        self.agent = self._make_agent(dataclasses.replace(c.agent, **early))
        measure = Measure(c.probes or DEFAULT_PROBES, every=1)
        train(self.env, self.agent, 10**9, [measure], context(self.agent), stop=lambda: bool(self._updated()))
        self.env.close()
        print(json.dumps(settings(c), indent=2))
        assert measure.watcher is not None
        for name, monitor in measure.watcher.monitors.items():
            print(f"\n{name}: wiring\n{monitor.wiring}")
            if c.probes and name in measure.last:
                print(f"\n{name}: what the probes measure, on the first update\n{measure.last[name]}")
        return 0

    def _updated(self) -> int:
        return getattr(self.agent, "updates", 0)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as ``a.b`` -> scalar, as the HParams tab wants them."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat
