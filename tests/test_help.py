"""Help and lists: short, complete, without what takes long to import, and true to what is registered."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from plasticity.cli import main
from plasticity.commands import contents, values
from plasticity.commands.help import SCREENS
from plasticity.commands.listing import FACTUAL
from plasticity.commands.options import field_docs, options
from plasticity.commands.settings import TrainConfig
from plasticity.interventions import INTERVENTIONS, Intervention
from plasticity.interventions.costs import COSTS


def run(code: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=check)


def text_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


# -- what it costs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "absent"),
    [
        ([[], ["--version"], ["list"], ["list", "probes"], ["help"], ["train"]], {"torch", "numpy"}),
        (
            [["train", "sac", "--help"], ["train", "ppo", "--redo", "--help"], ["help", "rank"]],
            {"tyro", "rich", "sympy"},
        ),
    ],
    ids=["lists", "options"],
)
def test_help_imports_little(calls: list[list[str]], absent: set[str]) -> None:
    code = f"""
from plasticity.cli import main
import json, sys
assert not any(main(call) for call in {calls})
print(); print(json.dumps(sorted(sys.modules)))"""
    loaded = {name.split(".")[0] for name in json.loads(run(code).stdout.splitlines()[-1])}
    assert not loaded & {*absent, "gymnasium", "dm_control", "mujoco", "tensorboard", "matplotlib"}


def test_the_help_of_an_agent_does_not_read_the_source_of_everything_else() -> None:
    code = """
from plasticity import source
read, page_at = set(), source.page_at
source.page_at = lambda path: read.add(path.parent.name) or page_at(path)
from plasticity.cli import main
main(["train", "sac", "--help"])
print(); print(sorted(read & {"envs", "probes", "writers"}))"""
    assert run(code).stdout.splitlines()[-1] == "[]"


def test_train_says_what_it_waits_for_before_it_imports_anything() -> None:
    code = """
import sys
sys.modules["torch"] = None  # an import fails
from plasticity.cli import main
sys.exit(main(sys.argv[1:] or ARGUMENTS))"""
    command = ["train", "sac", "--env", "Pendulum-v1"]
    waiting, error = run(code.replace("ARGUMENTS", repr(command)), check=False).stderr.splitlines()
    assert waiting == "plasticity train sac: importing PyTorch ..."
    assert error.startswith("plasticity train: ")
    quiet = run(code.replace("ARGUMENTS", repr([*command, "--quiet"])), check=False).stderr.splitlines()
    assert quiet == [error]


# -- what it shows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 100, 120])
@pytest.mark.parametrize("agent", ["sac", "td3", "ppo", "dqn"])
def test_options_of_train_fit_on_two_screens(
    agent: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = text_of(capsys, "train", agent, "--help")
    lines = text.splitlines()
    assert len(lines) <= SCREENS
    assert max(map(len, lines)) <= columns
    for flag in (
        "--env",
        "--steps",
        "--gamma",
        "--checkpoint.every",
        *(f"--{n.replace('_', '-')}" for n in INTERVENTIONS),
    ):
        assert re.search(rf"^ .*{flag}(?=\s|$)", text, re.MULTILINE), flag
    assert "--redo.every" not in text


def test_a_hundred_methods_fit_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(100):
        method: Any = type(f"Method{number}", (Method,), {"KIND": ("reset", "penalty", "mine")[number % 3]})
        monkeypatch.setitem(INTERVENTIONS, f"method_{number}", method)
    monkeypatch.setenv("COLUMNS", "110")  # beside all that there are: some 140
    text = text_of(capsys, "train", "dqn", "--help")
    assert len(text.splitlines()) <= SCREENS
    assert {f"--method-{number}" for number in range(100)} <= set(text.split())
    methods = text.partition("interventions (")[2].partition("meters (")[0]
    kinds = {kind.KIND for kind in INTERVENTIONS.values()}
    groups = [group for group in (*contents.GROUPS, "mine") if group in kinds]
    assert re.findall(r"^  (\w+):", methods, re.MULTILINE) == groups


@dataclasses.dataclass
class Method(Intervention):
    """Do nothing, at a rate (Nobody 2026, equation 3)."""

    NAME: ClassVar[str] = "method"
    PRESETS: ClassVar = {"paper": {"rate": 0.25}, "official": {"rate": 2.0}}
    preset: str = "paper"
    rate: float | None = None
    """Applications per gradient step."""
    networks: tuple[str, ...] = ()
    """Names of networks."""


def test_the_page_of_a_method_shows_types_units_defaults_presets_and_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(INTERVENTIONS, "my_method", Method)
    text = text_of(capsys, "help", "my-method")
    assert "Nobody 2026, equation 3" in text
    assert "--my-method.rate FLOAT\n" in text
    assert "Applications per gradient step. Default: 0.25 (paper), 2 (official)." in text
    assert "--my-method.networks STR ...\n" in text
    assert text_of(capsys, "train", "sac", "--my-method", "--help").startswith(text.rstrip("\n"))


@pytest.mark.parametrize("kind", [kind for kind in contents.REGISTRIES if kind != "envs"])
def test_everything_has_a_page_and_every_option_a_description(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, thing in contents.registry(kind).items():
        text = text_of(capsys, "help", name)
        assert text.startswith(f"{name}: ")
        if kind in (*contents.SWITCHED, "agents"):
            cls, prefix = (thing[1], "--") if kind == "agents" else (thing, f"--{name.replace('_', '-')}.")
            documented = field_docs(cls)
            assert [f.name for f in dataclasses.fields(cls) if f.init and not documented.get(f.name)] == [], name
            assert all(f"  {option.flag}" in text for option in options(cls, prefix))
        if kind in ("interventions", "agents"):
            assert re.search(r"arXiv|\b20\d\d\b", text), f"{name} names no source"


def test_the_table_of_the_documentation_has_every_option_and_default() -> None:
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    rows = re.findall(r"^\| `(--[\w.-]+)` \| (.*?) \|", page, re.MULTILINE)
    assert sorted(rows) == sorted((option.flag, option.default) for option in options(TrainConfig))


# -- the contents pages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", contents.REGISTRIES)
def test_lists_read_from_source_are_those_of_the_registries(kind: str) -> None:
    written = contents.written(kind)
    assert list(written) == list(contents.registry(kind))
    assert all(entry.summary for entry in written.values())
    if kind == "interventions":
        assert {name: entry.group for name, entry in written.items()} == {
            name: method.KIND for name, method in contents.registry(kind).items()
        }
    assert contents.contents(kind) == written or kind == "envs"
    for name, entry in written.items() if kind in FACTUAL else ():
        assert contents._described(name, contents.registry(kind)[name]).facts == entry.facts


def test_every_method_says_its_kind_its_needs_its_source_and_its_cost(capsys: pytest.CaptureFixture[str]) -> None:
    text = text_of(capsys, "list", "methods")
    methods = contents.registry("interventions")
    assert contents.costs() == COSTS
    assert COSTS.keys() == methods.keys(), "python benchmarks/methods.py"
    for name in methods:
        facts = " ".join(text.partition(f"    {name} ")[2].split())
        assert re.search(r"\. needs: [\w, ]+; cost: \d+\.\d\d times an update; (eager: .*?; )?source: ", facts), name


def test_what_was_added_is_listed_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(INTERVENTIONS, "mine", Method)
    assert re.search(r"^ +mine +Do nothing, at a rate", text_of(capsys, "list", "interventions"), re.MULTILINE)
    assert "mine" in text_of(capsys, "help")
    monkeypatch.setitem(INTERVENTIONS, "redo", Method)
    assert re.search(r"^ +redo +Do nothing, at a rate", text_of(capsys, "list", "interventions"), re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("hlep", 2, "no command 'hlep'; did you mean help? "),
        ("help regram", 1, "no topic 'regram'; did you mean regrama? "),
        ("list probe", 1, "cannot list probe; did you mean probes? "),
        ("train sca", 1, "no agent 'sca'; did you mean sac? "),
        ("train sca --help", 1, "no agent 'sca'; did you mean sac? "),
        ("train sac --env Pendulum-v1 --leraning-starts 5", 2, "did you mean --learning-starts? "),
        ("train sac --env Pendulum-v1 --regrma", 2, "no option --regrma; did you mean --regrama? "),
        ("train sac --env Pendulum-v1 --redo --redo.evry=5", 2, "no option --redo.evry; did you mean --redo.every? "),
        ("train sac --env Pendulum-v1 --reset.every 5", 2, "--reset.every sets an option of reset, which is off; "),
    ],
)
def test_unknown_names_get_the_nearest_one(
    command: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == code
    assert message in capsys.readouterr().err


def test_lines_of_the_list_are_whole_and_differ(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = [line for line in text_of(capsys, "list").splitlines() if line.startswith("  ")]
    assert not [line for line in lines if line.endswith("...")]
    summaries = [line.split(maxsplit=1)[-1] for line in lines]
    assert not [text for text in summaries if summaries.count(text) > 1]
    methods = text_of(capsys, "train", "sac", "--help").partition("\ninterventions")[2]
    assert not [line for line in methods.splitlines() if line.endswith("...")]


def test_every_page_of_a_method_names_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = {"target_distance"}  # a norm, of nobody's invention
    names = [
        e.name for kind in ("agents", "probes", "meters", "interventions") for e in contents.written(kind).values()
    ]
    pages = {name: text_of(capsys, "help", name) for name in names if name not in elsewhere}
    assert [name for name, page in pages.items() if not re.search(r"arXiv|doi|Nature|github\.com/", page)] == []


# -- values of options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "parts"),
    [
        ("hadamard", ["--activation of dqn, ppo, sac, supervised, td3", "tanh(a) * tanh(b)"]),
        ("smooth-leaky", ["smooth_leaky: a value of --activation", "a leaky ReLU without a kink"]),
        ("hl_gauss", ["--returns of dqn", "--critic-returns of sac, td3", "`smoothing`"]),
        ("softmoe", ["--network of", "Return a soft mixture of an expert"]),
        ("gmp", ["--ne.preset", "plasticity help ne says more"]),
        ("adamrel", ["--optimizer-reset.preset", "plasticity help optimizer-reset says more"]),
        ("bbf", ["--shrink-perturb.preset", "--horizon.preset"]),
        ("bro", ["--reset.preset", "--preset of plasticity train", "naumix/BiggerRegularizedOptimistic"]),
        ("simba2", ["--network of", "--preset of plasticity train", "--target-entropy)"]),
        ("amortized", ["--actor of sac"]),
    ],
)
def test_values_of_options_are_topics(capsys: pytest.CaptureFixture[str], topic: str, parts: list[str]) -> None:
    printed = text_of(capsys, "help", topic)
    assert [part for part in parts if part not in " ".join(printed.split())] == []
    assert max(map(len, printed.splitlines())) <= 100


def test_every_value_that_an_option_lists_is_found_under_its_option() -> None:
    listed = [(value, option.flag) for value, _, option in values.option_values()]
    assert {"fourier", "adamrel", "static", "two_hot", "zero_contribution"} <= {value for value, _ in listed}
    pages = {value: "\n".join(values.value_pages(value)) for value, _ in listed}
    assert [pair for pair in listed if f"{pair[0]}: a value of {pair[1]}" not in pages[pair[0]]] == []


def test_a_misspelt_value_is_told_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "hadamrd"]) == 1
    assert "did you mean hadamard?" in capsys.readouterr().err
