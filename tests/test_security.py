"""No code of the package can run what it reads: a static test over the syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
    "torch.serialization.add_safe_globals",
    "torch.jit.load",
    "torch.hub.load",
    "torch.package.PackageImporter",
    "runpy.run_path",
    "runpy.run_module",
    "builtins.eval",
    "builtins.exec",
}
FORBIDDEN_NAMES = {"add_safe_globals", "safe_globals", "UnsafeLoader", "FullLoader", "unpack_archive", "extractall"}
IMPORTS_BY_NAME = {
    "agents/borrowed.py": "packages of optimizers, named in this package",
    "plasticity/__init__.py": "names of this package, from a table",
    "plasticity/cli.py": "names of this package, from a table",
    "plasticity/commands/contents.py": "registries of this package, from a table",
    "plasticity/commands/imports.py": "--import my_module, which a person typed: SECURITY.md",
    "plasticity/commands/completion.py": "commands of this package, from a table",
    "plasticity/writers/__init__.py": "writers of this package, from a table",
    "plasticity/writers/service.py": "packages of loggers, named in this package",
    "envs/gym.py": "package:Id-v0, which a person typed: SECURITY.md",
}
"""Where ``import_module`` may be called, and with what."""


def dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    """The full name of what is called: ``torch.load`` for ``t.load`` after ``import torch as t``; empty if none."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value, aliases)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def aliases_of(tree: ast.AST) -> dict[str, str]:
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def is_literal(call: ast.Call, keyword: str, value: object) -> bool:
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords)


def dangers(source: str, path: str = "plasticity/x.py") -> list[str]:
    """Return the calls in a source file that could run what it reads, by line."""
    tree = ast.parse(source)
    aliases, found = aliases_of(tree), []

    def note(node: ast.AST, what: str) -> None:
        found.append(f"{path}:{getattr(node, 'lineno', 0)}: {what}")

    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for module in modules:
                if module.split(".")[0] in FORBIDDEN_MODULES:
                    note(node, f"imports {module}")
        if isinstance(node, (ast.Name, ast.Attribute, ast.alias)):
            name = {ast.Name: "id", ast.Attribute: "attr", ast.alias: "name"}[type(node)]
            if getattr(node, name) in FORBIDDEN_NAMES:
                note(node, getattr(node, name))
        if isinstance(node, ast.Call):
            for what in dangers_of_call(node, dotted(node.func, aliases), path):
                note(node, what)
    return found


def dangers_of_call(call: ast.Call, name: str, path: str) -> list[str]:
    found = []
    name = name.replace("numpy.", "np.", 1)
    if name in FORBIDDEN_CALLS:
        found.append(name)
    if name in ("torch.load", "torch.serialization.load") and not is_literal(call, "weights_only", True):
        found.append("torch.load without a literal weights_only=True")
    if any(k.arg == "allow_pickle" for k in call.keywords) and not is_literal(call, "allow_pickle", False):
        found.append("allow_pickle")
    if any(k.arg == "shell" for k in call.keywords) and not is_literal(call, "shell", False):
        found.append("shell=")
    if name in ("subprocess.getoutput", "subprocess.getstatusoutput"):
        found.append(name)
    if name == "importlib.import_module" and path not in IMPORTS_BY_NAME:
        found.append("import_module")
    if any(k.arg is None for k in call.keywords) and name in ("torch.load", "np.load", "subprocess.run"):
        found.append(f"{name} with keywords that cannot be seen")
    return found


def sources() -> list[Path]:
    return sorted(path for folder in ("plasticity", "agents", "envs") for path in (ROOT / folder).rglob("*.py"))


def test_nothing_that_is_read_can_be_run() -> None:
    assert len(sources()) > 50
    assert [d for path in sources() for d in dangers(path.read_text(), path.relative_to(ROOT).as_posix())] == []


def test_every_exception_is_still_needed() -> None:
    for path in IMPORTS_BY_NAME:
        assert "import_module(" in (ROOT / path).read_text()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import cloudpickle as c",
        "import joblib.numpy_pickle",
        "eval('1')",
        "exec(text)",
        "compile(text, '', 'exec')",
        "__import__(name)",
        "import builtins\nbuiltins.eval(x)",
        "import yaml\nyaml.load(f, Loader=yaml.SafeLoader)",
        "from yaml import load\nload(f)",
        "import yaml\ny = yaml.UnsafeLoader",
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "import torch\ntorch.load(f, weights_only=flag)",
        "import torch\ntorch.load(f, **options)",
        "import torch as t\nt.load(f)",
        "from torch import load as read\nread(f)",
        "import torch\ntorch.serialization.add_safe_globals([X])",
        "from torch.serialization import safe_globals",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import numpy\nnumpy.load(f, allow_pickle=flag)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess as s\ns.Popen(c, shell=flag)",
        "import subprocess\nsubprocess.getoutput('ls')",
        "import os\nos.system('ls')",
        "from os import popen\npopen('ls')",
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module as get\nget(name)",
        "import shutil\nshutil.unpack_archive(f)",
    ],
)
def test_the_test_sees_what_it_should(source: str) -> None:
    assert dangers(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import torch\ntorch.load(f, map_location='cpu', weights_only=True)",
        "import numpy as np\nnp.load(f)",
        "import numpy as np\nnp.load(f, allow_pickle=False)",
        "import subprocess\nsubprocess.run(['git', 'status'], shell=False)",
        "import re\nre.compile('x')",
        "import json\njson.load(f)",
        "env.load(f)",
    ],
)
def test_and_nothing_else(source: str) -> None:
    assert dangers(source) == []
