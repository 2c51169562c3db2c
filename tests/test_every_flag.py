"""Every flag of every command is given to a run at least once, with another value than its default where one fits."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from plasticity.agents import AGENTS
from plasticity.cli import COMMANDS
from plasticity.commands.contents import SWITCHED, registry
from plasticity.commands.options import Option, options
from plasticity.commands.settings import TrainConfig
from plasticity.testing.runs import QUICK_RUNS, attempt, command

RUN = {
    "--steps": "60", "--seed": "2", "--num-envs": "2", "--action-repeat": "2", "--max-episode-steps": "20",
    "--normaliser": "reset", "--probes": "activity", "--probe-every": "5", "--probe-window": "2", "--eval-every": "30",
    "--eval-episodes": "2", "--eval-max-steps": "9", "--log-every": "5", "--device": "cpu", "--compile": "auto",
    "--precision": "bf16", "--torch-threads": "1", "--log": "csv", "--tag": "ours", "--checkpoint.every": "20",
    "--checkpoint.keep": "1", "--seeds": "1", "--jobs": "2", "--retries": "0",
}  # fmt: skip
"""Flag of every run -> its value here."""
OF_STREAMS = {"--task-steps": "20", "--num-tasks": "3", "--first-task": "1", "--task-seed": "5"}
BY_EVERY_TEST = {"--env", "--out", "--name", "--quiet"}
ALONE = {"--dry-run", "--preset"}
SAMPLES = {
    "hidden": "8", "critic_hidden": "8", "betas": "0.8 0.99", "eps": "1e-7", "buffer_size": "100", "batch_size": "8",
    "learning_starts": "20", "num_steps": "16", "num_minibatches": "2", "num_epochs": "2", "network": "mlp",
    "optimizer": "adamw", "activation": "gelu", "norm": "layer", "exploration_steps": "50", "priority_steps": "50",
    "anneal_steps": "100", "target_entropy": "-0.5", "num_atoms": "11", "lr": "1e-3", "entropy_coef": "0.02",
    "target_kl": "0.5", "train_every": "2", "num_critics": "2",
}  # fmt: skip
"""Field of an agent -> a value that differs from its default and makes a short run."""
OF_METHODS = {
    "every": "10", "stop": "50", "cap": "0.5", "share": "0.5", "threshold": "0.1", "grow_rate": "0.01", "begin": "0",
    "perturb": "0.1", "layers": "1", "iterations": "3", "networks": "critic_1", "log_every": "5", "at": "30 50",
    "when": "plasticity/critic_1/dormancy/all > 0", "stalled": "plasticity/critic_1/effective_rank/all < 0.5 over 20",
}  # fmt: skip
"""Field of a method or meter -> a value for it."""
OF_ONE = {
    "swd": {"shape": "linear"}, "knife": {"outgoing": "keep", "window": "5"}, "plasticity_injection": {"at": "30"},
    "pfo": {"layers": "all", "networks": "critic"}, "spectral_normalization": {"layers": "q.2"},
    "critic_disagreement": {"networks": "critic_*"},
}  # fmt: skip
"""Method -> values for fields of which the other methods' values, or the other choice, do not go with the rest."""
WHEN = ("every", "at", "when", "stalled")
"""Fields of which one is given."""
REFUSED = {
    ("plasticity_injection", "every"): "is applied once: pass at=(N,), when or stalled, not every or several steps",
    **{("horizon", when): "needs n-step returns and a discount that can be set" for when in WHEN},
    ("random_shift", ""): "needs a buffer of images (channels, height, width); sac has observations of shape (3,)",
}
"""Method and field of when it acts -> why it is refused here."""


def value(option: Option, samples: dict[str, str]) -> list[str]:
    """Return an option as words, with another value than its default where it is a choice or a switch; [] for none."""
    name = field_of(option)
    if name in samples:
        given = samples[name]
        return [option.flag, *([given] if option.type == "STR" else given.split())]
    if not option.type:
        return [option.flags[option.default == "on"]]
    if option.choices:
        return [option.flag, next((one for one in option.choices if one != option.default), option.choices[0])]
    default = option.default.partition(" (")[0]
    return [] if default in ("None", "none", "needed", "") else [option.flag, *default.split()]


def field_of(option: Option) -> str:
    return option.flag.rpartition(".")[2].removeprefix("--").replace("-", "_")


def train(agent: str, out: Path, words: list[str], env: str = "") -> None:
    where = ["--env", env or QUICK_RUNS[agent][1], "--out", str(out), "--name", "run", "--quiet"]
    command("train", agent, *words, *where)


@pytest.mark.parametrize("agent", QUICK_RUNS)
def test_every_flag_of_training(agent: str, tmp_path: Path) -> None:
    own = options(AGENTS[agent][1])
    words = [word for option in own for word in value(option, SAMPLES)]
    assert [option.flag for option in own if not value(option, SAMPLES)] == []
    train(agent, tmp_path, [*words, *(word for pair in RUN.items() for word in pair)])
    flags = {option.flag for option in options(TrainConfig)}
    assert flags == {*RUN, *OF_STREAMS, *BY_EVERY_TEST, *ALONE}


def test_flags_of_streams_and_those_that_stand_alone(tmp_path: Path) -> None:
    small = ["--steps", "60", "--eval-episodes", "1", "--num-steps", "16", "--num-minibatches", "2", "--probes"]
    train("ppo", tmp_path, [*small, *(w for pair in OF_STREAMS.items() for w in pair)], "cgym-short/cartpole")
    short = ["--steps", "60", "--eval-episodes", "1", "--hidden", "8", "--num-steps", "25", "--num-minibatches", "5"]
    preset = ["--preset", "c-chain", "--env", "CartPole-v1", "--out", str(tmp_path), "--name", "preset", "--quiet"]
    command("train", "ppo", *preset, *short)
    assert "wiring" in command("train", "ppo", *preset, *short, "--dry-run")


def cases() -> Iterator[tuple[str, str, list[str]]]:
    """Yield name, field of when it acts, and words of every run of a method or meter: all flags."""
    for kind in SWITCHED:
        for name, method in registry(kind).items():
            flag, samples = f"--{name.replace('_', '-')}", {**OF_METHODS, **OF_ONE.get(name, {})}
            rows = options(method, f"{flag}.")
            common = [word for row in rows if field_of(row) not in WHEN for word in value(row, samples)]
            whens = {field_of(row): value(row, samples) for row in rows if field_of(row) in WHEN}
            for when, words in (whens or {"": []}).items():
                yield name, when, [flag, *common, *words]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "when", "words"), list(cases()), ids=lambda given: str(given) if len(given) else "-")
def test_every_flag_of_methods_and_meters(name: str, when: str, words: list[str], tmp_path: Path) -> None:
    """Is taken, and the run ends well; or it is refused in the line that is expected."""
    agent = {"pfo": "ppo"}.get(name, "sac")
    quick = ["--steps", "60", "--eval-episodes", "1", "--probe-every", "5", "--compile", "off"]
    own = [word for word in QUICK_RUNS[agent] if word not in ("--learning-starts", "40")]
    own += ["--learning-starts", "20"] if agent == "sac" else []
    where = ["--out", str(tmp_path), "--name", "run", "--quiet"]
    code, _, errors = attempt("train", agent, *own, *quick, *words, *where)
    lines = [line for line in errors.splitlines() if line.startswith("plasticity train: ")]
    if (name, when) in REFUSED:
        assert REFUSED[name, when] in errors
        assert (code != 0, len(lines)) == (True, 1), errors
    else:
        assert (code, lines) == (0, []), errors


def of_others() -> dict[str, list[Option]]:
    """Return the options of every command but training, by its name."""
    found = {}
    for name, (module, _) in COMMANDS.items():
        configs = [thing for key, thing in vars(import_module(module)).items() if key.endswith("Config")]
        if name != "train" and configs:
            found[name] = options(configs[0])
    return found


def test_every_flag_of_the_other_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        words = [*QUICK_RUNS["sac"], "--steps", "60", "--seed", str(seed), "--checkpoint.every", "30", "--tag", "ours"]
        words += ["--max-episode-steps", "20"]
        command("train", "sac", *words, "--eval-every", "30", "--eval-episodes", "1", "--quiet", "--name", f"r{seed}")
    monkeypatch.setattr("plasticity.dashboard.serve.serve", lambda *given: print(*given) or 0)
    monkeypatch.setattr("builtins.input", lambda question: "y")
    base = ["--base", "runs/r1/checkpoints/000001-step-30", "--out"]
    env = ["--env", "Pendulum-v1", "--seed", "3", "--device", "cpu"]
    calls = [
        ["eval", "runs/r1", "--episodes", "2", *env, "--eval-max-steps", "9"],
        ["eval", "runs/r1", "--episodes", "1", "--task", "0"],
        ["video", "runs/r1", "--out", "a.gif", "--episodes", "2", "--max-steps", "5", "--fps", "9", *env],
        ["video", "runs/r1", "--out", "a.gif", "--task", "0"],
        ["probe", "runs/r1", "--probes", "rank", "--samples", "64", *env, "--json"],
        ["diagnose", "runs/r1", "--at", "30", "--budget", "1s", "--networks", "critic_1", "--steps", "3",
         "--teachers", "2", "--no-remedies", *env, "--out", "verdict"],
        ["fuse", "runs/r1", *base, "fused", "--alpha", "0.3", "--networks", "actor"],
        ["reset-to", "runs/r1", *base, "renewed", "--units", "actor/trunk.0:1", "--outgoing", "actor/trunk.0",
         "--factor", "0.5"],
        ["report", "runs", "--out", "page", "--formats", "md", "csv", "--curves", "charts/episodic_return",
         "--metrics", "dormancy", "--finished"],
        ["compare", "runs", "--metric", "charts/episodic_return", "--at", "auc", "--until", "60", "--env",
         "Pendulum-v1", "--normalise", "-2000,0", "--nonfinite", "-2000", "--association", "mean", "--resamples", "50",
         "--level", "0.9", "--seed", "3", "--latex", "--out", "compared"],
        ["dashboard", "runs", "--port", "0", "--host", "127.0.0.1", "--open"],
        ["doctor", "--out", "runs"],
        ["runs", "runs", "--agent", "s?c", "--env", "Pen*", "--status", "finished", "--tag", "ours", "--name", "r1",
         "--archive", "archive"],
        ["runs", "runs", "--delete", "--yes"],
    ]  # fmt: skip
    given: dict[str, set[str]] = {}
    for name, *words in calls:
        given.setdefault(name, set()).update(word for word in words if word.startswith("--"))
        code, _, errors = attempt(name, *words)
        assert "Traceback" not in errors
        if "--task" in words:
            assert "--task: Pendulum-v1 has no set_task(task)" in errors
        else:
            assert code == 0, (name, errors)
    missing = {
        (name, option.flag)
        for name, rows in of_others().items()
        for option in rows
        if not {*option.flags} & given.get(name, set()) and name != "bench"
    }
    assert missing == set()


@pytest.mark.slow
def test_every_flag_of_bench(tmp_path: Path) -> None:
    words = ["--methods", "none", "--envs", "cgym-short/cartpole", "--agent", "ppo", "--seeds", "1", "--seed", "2"]
    words += ["--jobs", "2", "--retries", "0", "--task-steps", "200", "--num-tasks", "2", "--quiet"]
    words += ["--out", str(tmp_path / "runs")]
    page = ["--page", str(tmp_path / "page"), "--envs", "cgym-short/cartpole", "--out", str(tmp_path / "runs")]
    said = {word for word in words + page if word.startswith("--")}
    assert {option.flag for option in of_others()["bench"]} == said
    command("bench", "cgym-short", *words, "--", "--num-steps", "40", "--probes")
    command("bench", "cgym-short", *page)
    assert "cgym-short/cartpole" in (tmp_path / "page" / "cgym-short.md").read_text(encoding="utf-8")
