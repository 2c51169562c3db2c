"""Commands of the README and the documentation work: snippets run, commands exist, links lead on."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import tyro
from torch import nn

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PENDING: set[str] = set()
"""Targets of links that may not exist yet."""
TOOLS = {"python3", ".", "pip", "pytest", "ruff", "mypy", "bash"}


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    """The code blocks of a page, without the indentation of a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


OTHERS = {
    "accelerate",
    "datasets",
    "keras",
    "lightning",
    "peft",
    "rsl_rl",
    "skrl",
    "tianshou",
    "torchrl",
    "transformers",
    "trl",
}
"""Packages that pages show and the quick tests do not need: see .ci/third_party."""


def require_packages(page):
    """Skip a page of a package that is not installed."""
    text = "\n".join(blocks(page, "python"))
    for package in sorted(OTHERS & set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))):
        pytest.importorskip(package)


def commands(page):
    """Every simple command of the shell blocks, as words."""
    joined = [block.replace("\\\n", " ") for block in blocks(page, "sh")]
    parts = [part for block in joined for line in block.splitlines() for part in line.split("&&")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def namespace():
    """The names that snippets assume: a model, its loss, its optimizer and some batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    inputs, targets = torch.randn(256, 8), torch.randn(256, 1)
    return {
        "model": model,
        "inputs": inputs,
        "targets": targets,
        "loss_fn": nn.MSELoss(),
        "optimizer": torch.optim.Adam(model.parameters()),
        "batches": [(inputs, targets)] * 3,
    }


@pytest.fixture
def registries():
    """Take out again what a snippet adds to a registry."""
    from plasticity.agents.bodies import NETWORKS
    from plasticity.agents.parts import ACTIVATIONS
    from plasticity.commands.contents import REGISTRIES, registry
    from plasticity.metrics import METRICS

    kept = [(known, dict(known)) for known in [METRICS, NETWORKS, ACTIVATIONS, *map(registry, REGISTRIES)]]
    yield
    for known, before in kept:
        known.clear()
        known.update(before)


# The pages of interventions show fragments of a run, which their own tests make whole.
@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "python") and p.parent.name != "interventions"], ids=name_of
)
@pytest.mark.usefixtures("registries")
@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore::FutureWarning", "default::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Rank. fewer samples than features")  # once per process: whichever page is first
def test_python_snippets_run(page, tmp_path, monkeypatch):
    require_packages(page)
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 10, "time": 0.0, "charts/eval_return": 1.0}\n')
    names = namespace()
    for snippet in blocks(page, "python"):
        exec(compile(snippet, name_of(page), "exec"), names)


def test_table_in_the_readme_is_what_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(blocks(README, "python")[0], namespace())
    (table,) = (block for block in blocks(README, "text") if block.startswith("layer"))
    shown, printed = table.splitlines(), capsys.readouterr().out.splitlines()
    assert printed[0] == shown[0]
    assert [line.split()[0] for line in printed] == [line.split()[0] for line in shown]
    assert printed[-2:] == shown[-2:]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=name_of)
def test_shell_commands_exist(page):
    for program, *arguments in commands(page):
        if program == "plasticity":
            parse(arguments)
        elif program == "python":
            assert (ROOT / arguments[0]).is_file(), arguments[0]
        else:
            assert program in TOOLS, program


def parse(arguments):
    """Fail unless the command line of plasticity understands ``arguments``; run nothing."""
    from plasticity.agents import AGENTS
    from plasticity.cli import COMMANDS
    from plasticity.commands.contents import REGISTRIES, find
    from plasticity.commands.imports import take_imports
    from plasticity.commands.parsing import parse as parse_training
    from plasticity.commands.stream import translated
    from plasticity.envs import ENVS

    modules, (command, *rest) = take_imports(arguments)
    assert command in (*COMMANDS, "--install-completion")
    if modules or "--help" in rest or command not in COMMANDS:  # things of the reader's own
        return
    module = importlib.import_module(COMMANDS[command][0])
    configs = [thing for name, thing in vars(module).items() if name.endswith("Config")]
    if command == "train" and rest[0] == "--resume":
        parse_training("sac", ["--env", "Pendulum-v1", *rest[2:]])
    elif command == "train" and rest[0] in ("--config", "--like"):  # a file or a run of the reader's own
        known = [word for word in rest[2:] if not word.startswith("--no-")]  # what the file or the run switched on
        parse_training("sac", ["--env", "Pendulum-v1", *known])
    elif command == "train":
        agent, *flags = rest
        assert agent in AGENTS
        assert parse_training(agent, flags).env in {name for family in ENVS.values() for name in family.ids()}
    elif command == "stream":
        parse_training("supervised", translated(rest)[1:])
    elif command == "list":
        assert set(rest) <= set(REGISTRIES)
    elif command == "help":
        assert all(topic in COMMANDS or find(topic) for topic in rest)
    else:
        tyro.cli(configs[0], args=rest)


def test_training_command_of_the_readme_trains(tmp_path):
    _, arguments = next((c[0], c[1:]) for c in commands(README) if c[:2] == ["plasticity", "train"])
    shorter = "--seeds 1 --steps 60 --num-envs 2 --num-steps 10 --hidden 8 8 --max-episode-steps 20 --eval-episodes 1"
    command = [sys.executable, "-W", "error", "-m", "plasticity", *arguments, *shorter.split(), "--name", "short"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert {"run.json", "metrics.jsonl", "model", "checkpoints"} <= {
        file.name for file in (tmp_path / "runs" / "short").iterdir()
    }


def test_ci_runs_the_command_of_the_readme():
    ci = (ROOT / ".ci" / "run").read_text()
    pattern = re.search(r"grep -m 1 '(.*)' README\.md", ci)[1]
    lines = [line for line in README.read_text().splitlines() if re.search(pattern, line)]
    expected = (
        'python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e ".[dev]" && pytest -n 2'
    )
    assert lines == [expected]
    assert 'eval "${command%% && pytest*}"' in ci
    assert 'eval "pytest${command#* && pytest}"' in ci


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^( *)```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if str(file.relative_to(ROOT)) in PENDING and not file.exists():
            continue
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page):
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
