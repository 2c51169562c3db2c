"""Every example of docs/extending.md, as it stands there: trained, stopped, resumed, evaluated, probed, compiled."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from plasticity.agents import AGENTS, OPTIMIZERS
from plasticity.agents.networks import HEADS, VALUE_HEADS
from plasticity.envs import ENVS
from plasticity.interventions import INTERVENTIONS
from plasticity.meters import METERS
from plasticity.probes import PROBES
from plasticity.storage.record import read_record
from plasticity.testing import check_agent, check_method
from plasticity.testing.runs import QUICK_RUNS as OPTIONS
from plasticity.testing.runs import attempt, check_run, rows
from plasticity.writers import WRITERS

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))
"""Name of an example -> its source."""
REGISTRIES: list[dict[str, Any]] = [
    AGENTS,
    ENVS,
    HEADS,
    INTERVENTIONS,
    METERS,
    OPTIMIZERS,
    PROBES,
    VALUE_HEADS,
    WRITERS,
]
ALL, DISCRETE = ("sac", "ppo", "dqn"), ("ppo", "dqn")

EXAMPLES: dict[str, tuple[tuple[str, ...], list[str], str]] = {
    "saturation": (ALL, ["--probes", "saturation"], "plasticity/.*/saturation/all"),
    "reach": (ALL, ["--probes", "reach"], "plasticity/.*/reach/all"),
    "spectral": (ALL, ["--probes", "spectral_norm"], "plasticity/.*/spectral_norm/all"),
    "orthogonality": (ALL, ["--orthogonality"], "losses/orthogonality_.*"),
    "towards_init": (ALL, ["--towards-init"], "losses/towards_init_.*"),
    "coadaptation": (ALL, ["--coadaptation"], "losses/coadaptation_.*"),
    "churn_penalty": (ALL, ["--churn-penalty"], "losses/churn_.*"),
    "sign": (ALL, ["--optimizer", "sign"], "losses/.*"),
    "bottleneck": (ALL, ["--critic-head", "bottleneck"], r"plasticity/(critic|critic_1|q)/dormancy/[qv]\.4"),
    "prelu": (ALL, ["--prelu"], "plasticity/.*/dormancy/all"),
    "value_shift": (("sac", "dqn"), ["--value-shift", "--value-shift.every", "7"], "plasticity/.*/value_shift/all"),
    "relearning": (ALL, ["--relearning", "--relearning.every", "30"], "plasticity/.*/relearning/all"),
    "moving_target": (DISCRETE, ["--env", "moving/cartpole"], "events/task|task"),
    "corridor": (DISCRETE, ["--env", "corridor/five"], "charts/episodic_return"),
    "reinforce": (("reinforce",), ["--env", "CartPole-v1"], "losses/policy_loss"),
    "console": (ALL, ["--log", "tensorboard", "console"], "charts/eval_return"),
}
"""Example -> the agents that it applies to, its options, and a pattern of a tag or event that it leaves in the rows."""
TOGETHER = [
    *("saturation", "reach", "spectral", "orthogonality", "towards_init", "coadaptation", "churn_penalty", "sign"),
    *("bottleneck", "prelu", "relearning", "console"),
]
"""Examples that one run can have at once: quick one by one on DQN, together on the others."""
CASES = [
    pytest.param(name, agent, marks=pytest.mark.slow if agent in ("sac", "ppo") and name in TOGETHER else ())
    for name, (agents, _, _) in EXAMPLES.items()
    for agent in agents
]


@pytest.fixture(autouse=True)
def unregistered() -> Iterator[None]:
    """Forget afterwards what an example has registered."""
    before = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)
    for name in FILES:
        sys.modules.pop(name, None)


def register(name: str) -> None:
    """Run the file of an example."""
    module = sys.modules[name] = ModuleType(name)
    exec(compile(FILES[name], f"{name}.py", "exec", dont_inherit=True), vars(module))


def options(agent: str, *names: str) -> list[str]:
    """Return the options of a short run with examples."""
    given = [option for name in names for option in EXAMPLES[name][1]]
    if agent == "dqn":
        given = [option.replace("--critic-head", "--head") for option in given]
    if given.count("--probes") > 1:
        probes = [EXAMPLES[name][1][1] for name in names if EXAMPLES[name][1][0] == "--probes"]
        given = [option for option in given if option != "--probes" and option not in probes]
        given += ["--probes", "dormancy", *probes]
    return [*OPTIONS.get(agent, ()), *given]


def tags(folder: Path) -> set[str]:
    """Return the tags and events in the rows of a run."""
    return {str(value) if key == "event" else key for row in rows(folder) for key, value in row.items()}


def test_every_example_is_run_and_linked() -> None:
    assert FILES.keys() == EXAMPLES.keys()
    table = PAGE.split("\n## ")[0]
    headings = {
        re.sub(r"[^\w -]", "", title).replace(" ", "-").lower() for title in re.findall(r"^## (.+)$", PAGE, re.M)
    }
    links = re.findall(r"\(#([\w-]+)\)", table)
    assert len(links) == len(EXAMPLES)
    assert set(links) == headings


LONGER = ("churn_penalty", "relearning", "reinforce")
"""Examples with more than 15 lines: state of their own, a training loop, an agent."""


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - LONGER))
def test_an_example_has_at_most_fifteen_lines(name: str) -> None:
    tree = ast.parse(FILES[name])
    left_out: set[int] = set()
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text or isinstance(node, (ast.Import, ast.ImportFrom)):
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = [n for n, line in enumerate(FILES[name].splitlines(), 1) if line.strip() and n not in left_out]
    assert len(lines) <= 15, f"{name} has {len(lines)}"


@pytest.mark.parametrize(("name", "agent"), CASES)
@pytest.mark.some(10)
def test_an_example_runs_and_resumes(name: str, agent: str, tmp_path: Path) -> None:
    register(name)
    whole = check_run(
        agent, [*options(agent, name), "--compile", "off"] if agent in OPTIONS else options(agent, name), tmp_path
    )
    assert any(re.fullmatch(EXAMPLES[name][2], tag) for tag in tags(whole)), sorted(tags(whole))


@pytest.mark.parametrize(
    ("agent", "compile"),
    [
        ("sac", "off"),
        pytest.param("ppo", "off", marks=pytest.mark.slow),
        ("dqn", "on"),
        *(pytest.param(a, "on", marks=(pytest.mark.inductor, pytest.mark.slow), id=f"{a}-inductor") for a in ALL),
    ],
)
@pytest.mark.usefixtures("as_traced")
def test_examples_run_together(agent: str, compile: str, tmp_path: Path) -> None:
    for name in TOGETHER:
        register(name)
    whole = check_run(agent, [*options(agent, *TOGETHER), "--compile", compile], tmp_path)
    for name in TOGETHER:
        assert any(re.fullmatch(EXAMPLES[name][2], tag) for tag in tags(whole)), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "agent"),
    [(name, agent) for name, (agents, _, _) in EXAMPLES.items() for agent in agents if agent in OPTIONS],
)
def test_an_example_runs_compiled(name: str, agent: str, tmp_path: Path) -> None:
    register(name)
    check_run(agent, [*options(agent, name), "--compile", "on"], tmp_path)


def test_the_example_of_an_agent_passes_its_battery() -> None:
    """Its first weights are drawn from the global generator, which is seeded by the run's seed."""
    register("reinforce")
    check_agent(*AGENTS["reinforce"], options("reinforce", "reinforce"))


@pytest.mark.slow
def test_examples_of_terms_pass_the_battery_of_methods() -> None:
    for name in ("orthogonality", "towards_init"):
        register(name)
        check_method(INTERVENTIONS[name], {})


def test_a_meter_says_what_an_agent_lacks(tmp_path: Path) -> None:
    register("value_shift")
    code, _, errors = attempt("train", "ppo", *options("ppo", "value_shift"), "--out", tmp_path, "--quiet")
    assert code == 1
    assert "targets" in errors


def test_the_command_of_the_page_imports_a_file_from_outside(tmp_path: Path) -> None:
    (tmp_path / "saturation.py").write_text(FILES["saturation"])
    plasticity = [sys.executable, "-m", "plasticity", "--import", "saturation"]
    train = ["train", "sac", "--env", "sanity/constant-continuous", "--steps", "40", "--learning-starts", "20"]
    small = ["--hidden", "4", "4", "--batch-size", "4", "--probes", "dormancy", "saturation", "--name", "r", "--quiet"]
    result = subprocess.run(
        [*plasticity, *train, *small], cwd=tmp_path, capture_output=True, text=True, env={**os.environ}
    )
    assert result.returncode == 0, result.stderr
    assert read_record(tmp_path / "runs" / "r")["imports"] == ["saturation"]
    assert any("saturation" in tag for tag in tags(tmp_path / "runs" / "r"))
    code, _, errors = attempt("eval", tmp_path / "runs" / "r")
    assert code == 1
    assert "--import saturation" in errors
