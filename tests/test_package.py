"""The installed files, the cost of importing them, and the direction of imports."""

import ast
import graphlib
import json
import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"gymnasium", "tensorboard", "dm_control", "mujoco", "tyro", "rich"}


def loaded_after(code):
    """The names of all modules in a fresh interpreter that has run ``code``."""
    script = f"{code}\nimport json, sys\nprint()\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def tops(modules):
    return {module.split(".")[0] for module in modules}


def test_import_loads_torch_and_the_standard_library_only():
    loaded = loaded_after("import plasticity")
    with_torch = tops(loaded_after("import torch, einops, torch.optim, torch.utils._python_dispatch"))
    assert tops(loaded) - with_torch - sys.stdlib_module_names <= {"plasticity"}
    assert not tops(loaded) & HEAVY
    assert not {module for module in loaded if re.match(r"plasticity\.(agents|envs|commands|dashboard)\b", module)}


def test_help_answers_without_torch():
    calls = [[], ["--help"], ["-h"], ["--version"]]
    loaded = loaded_after(f"from plasticity.cli import main; assert not any(main(call) for call in {calls})")
    assert "torch" not in loaded


# -- who imports whom --------------------------------------------------------------------------------------------------


def imports(path):
    """Every module that a file imports, absolute and relative, at any depth; relative ones keep their dots."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
            if not node.module:
                found |= {"." * node.level + alias.name for alias in node.names}
    return found


def offenders(files, forbidden):
    pattern = re.compile(forbidden)
    return {f"{file.relative_to(ROOT)}: {name}" for file in files for name in imports(file) if pattern.match(name)}


def sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def test_core_knows_neither_agents_nor_environments():
    outer = {ROOT / "plasticity" / "cli.py", ROOT / "plasticity" / "__main__.py"}
    others = ("commands", "testing", "sb3", "torchrl")  # the last two draw from a replay by age, as agents do
    core = [f for f in sources("plasticity") if f not in outer and f.parent.name not in others]
    assert len(core) > 10
    assert (
        offenders(core, r"(plasticity\.|\.+)?(agents|envs)\b|gymnasium\b|(plasticity\.|\.+)(commands|cli)\b") == set()
    )


def test_environments_know_nobody():
    assert offenders(sources("envs"), r"plasticity\b|agents\b|\.\.") == set()


def test_agents_know_the_callbacks_at_most():
    loop = [ROOT / "agents" / name for name in ("train.py", "evaluate.py", "records.py")]
    checked = {"agents/choices.py: plasticity.value_types"}  # the check of all settings
    algorithms = [f for f in sources("agents") if f not in loop]
    assert offenders(algorithms, r"plasticity\b|envs\b|\.\.") == checked
    assert offenders(loop, r"plasticity(?!\.callback$)|envs\b|\.\.") == set()


@pytest.mark.parametrize("folder", ["agents", "envs"])
def test_imports_inside_are_relative(folder):
    siblings = {f.stem for f in sources(folder)} | {folder}
    assert offenders(sources(folder), rf"(?!\.)({'|'.join(sorted(siblings))})(\.|$)") <= allowed_names(folder)


def allowed_names(folder):
    """Modules of others that share a name with one of ours."""
    return {f"{file.relative_to(ROOT)}: {name}" for file in sources(folder) for name in imports(file) & {"gymnasium"}}


# -- the parts of the package ------------------------------------------------------------------------------------------

LAYERS = [
    {"clone", "course", "isolation", "metrics", "palette", "source", "tags", "told", "value_types"},
    {"meanings"},
    {"probes", "storage", "structure"},
    {"callback", "surgery"},
    {"observing"},
    {"monitor"},
    {"watching"},
    {"dashboard", "interventions", "measuring", "meters", "reports"},
    {"diagnosis", "writers", "agents", "envs"},
    {"commands", "guest"},
    {"hf", "lightning", "sb3", "torchrl"},
    {"cli"},
    {"testing", "__main__"},
]
"""The folders and modules of `plasticity`. Loading one loads none but those of the layers before its own."""


def part_of(path):
    """The folder or module of `plasticity` to which a file belongs."""
    first, *rest = path.relative_to(ROOT).with_suffix("").parts
    return rest[0] if first == "plasticity" else first


def statements(body):
    """Those that run when a module is loaded: not in functions, and not for type checkers alone."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node.orelse)
        elif not isinstance(node, ast.FunctionDef):
            yield node
            for block in ("body", "orelse", "handlers", "finalbody"):
                yield from statements(getattr(node, block, []))


def loads(path):
    """The parts of `plasticity` that are loaded with a file, beside its own."""
    inside = path.is_relative_to(ROOT / "plasticity")
    package = ("plasticity", *path.relative_to(ROOT / "plasticity" if inside else ROOT).parts[:-1])
    names = set()
    for node in statements(ast.parse(path.read_text()).body):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    parts = {name.split(".")[1] for name in names if name.startswith("plasticity.")}
    return {part for part in parts if part != part_of(path) and any(part in layer for layer in LAYERS)}


def graph():
    found = {}
    for path in [*sources("plasticity"), *sources("agents"), *sources("envs")]:
        if path != ROOT / "plasticity" / "__init__.py":  # loads what it is asked for
            found.setdefault(part_of(path), set()).update(loads(path))
    return found


def test_every_part_has_a_layer():
    assert set(graph()) == set().union(*LAYERS)


def test_parts_load_those_of_earlier_layers_only():
    layer = {part: number for number, parts in enumerate(LAYERS) for part in parts}
    wrong = {
        f"{part} -> {other}" for part, others in graph().items() for other in others if layer[other] >= layer[part]
    }
    assert wrong == set()


def test_a_circle_would_be_found():
    """The two tests above see what they are about: relative and absolute imports, at any depth but in functions."""
    edges = graph()
    assert {"callback", "monitor"} <= edges["watching"]
    assert edges["cli"] >= {"commands"}
    assert "agents" in edges["commands"]
    list(graphlib.TopologicalSorter(edges).static_order())


# -- names -------------------------------------------------------------------------------------------------------------

SAME_NAME = {
    "main": "of every command: what `plasticity <command>` calls",
    "FAMILY": "of every file of environments: its entry of ENVS",
    "PREFIX": "of every file of environments: its names begin with it",
    "T": "a type variable",
    "Env": "one protocol: agents must not import envs",
    "Transition": "one record, and the protocol of it: the core must not import envs",
    "is_image": "one question: agents must not import envs",
    "PlasticityCallback": "of every stack, in the module of its name: a callback in that stack's own sense",
    "STATE": "of every stack: the key under which it keeps the state of its callback",
    "actor_loss": "of every agent: equations of its paper",
    "critic_loss": "of every agent: equations of its paper",
}
"""Public names that more than one module may define -> the reason."""


def public_names(path):
    """Classes, functions and assigned names at the level of a module, without those that begin with an underscore."""
    for node in ast.parse(path.read_text()).body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            names = [node.name]
        yield from (name for name in names if not name.startswith("_"))


def test_one_name_means_one_thing():
    places = {}
    for file in [*sources("plasticity"), *sources("agents"), *sources("envs")]:
        for name in set(public_names(file)):
            places.setdefault(name, []).append(str(file.relative_to(ROOT)))
    twice = {name: files for name, files in places.items() if len(files) > 1}
    assert {name: files for name, files in twice.items() if name not in SAME_NAME} == {}
    assert set(twice) >= set(SAME_NAME), "a name that is no longer shared needs no reason"


# -- the wheel ---------------------------------------------------------------------------------------------------------


def test_wheel_claims_one_name(tmp_path):
    source = tmp_path / "source"  # a copy, because a build leaves a folder that the next build would read
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("plasticity", "agents", "envs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        tmp_path,
        source,
    ]
    result = subprocess.run(build, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {re.sub(r"-[\d.]+\.dist-info$", "", name.split("/")[0]) for name in names} == {
        "plasticity",
        "plasticity_toolkit",
    }
    ours = {f"{folder}/{file.relative_to(ROOT / folder)}" for folder in ("plasticity",) for file in sources(folder)}
    ours |= {f"plasticity/{file.relative_to(ROOT)}" for folder in ("agents", "envs") for file in sources(folder)}
    assert ours <= set(names)
    assert {"plasticity/agents/sac.py", "plasticity/py.typed"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


# -- the files ---------------------------------------------------------------------------------------------------------


def text_files():
    folders = ("plasticity", "agents", "envs", "tests", "examples", "docs", "benchmarks", ".ci")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*")] + list(ROOT.glob("*"))
    return [
        f for f in files if f.is_file() and (f.suffix in {".py", ".md", ".toml", ".txt", ".cff"} or f.name == "run")
    ]


def docstrings(tree):
    """Every text that stands as a statement, with its line: of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value.strip()


def test_docstrings_name_their_noun():
    pattern = re.compile(r"(what|who|whoever|whether)\b", re.IGNORECASE)
    folders = ("plasticity", "agents", "envs", "tests", "benchmarks", "examples")
    files = [file for folder in folders for file in sources(folder)]
    found = [
        f"{file.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for file in files
        for line, text in docstrings(ast.parse(file.read_text()))
        if pattern.match(text)
    ]
    assert not found, "\n".join(found)


def test_no_file_names_a_path_of_one_machine():
    machine = re.compile(r"(?<![\w.])/(work|root|tmp|home|Users)/\w")
    named = [str(f.relative_to(ROOT)) for f in text_files() if machine.search(f.read_text())]
    assert named == []


def test_constraints_name_versions_for_everybody():
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    lines = [line for line in lines if line]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; python_version >= \"3\.11\")?", line) for line in lines)
    pinned = {line.split("==")[0] for line in lines}
    project = (ROOT / "pyproject.toml").read_text()
    block = project.split("dependencies = [")[1].split("\n]")[0] + project.split("dev = [")[1].split("\n]")[0]
    direct = {re.match(r"[\w-]+", text)[0].lower() for text in re.findall(r'^ *"(.*)",', block, re.MULTILINE)}
    assert direct <= pinned


def test_what_moved_is_where_the_changelog_says():
    moved = (ROOT / "CHANGELOG.md").read_text().partition("### Moved")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(plasticity[\w.]*)`.* \| `(plasticity[\w.]*)` \|$", moved, re.MULTILINE)
    assert len(rows) > 30
    for _, now in rows:
        pkgutil.resolve_name(now)
