"""Public names stay what they are, in whatever order modules are imported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import plasticity

SUBMODULES = {
    path.stem if path.suffix else path.name
    for path in Path(plasticity.__file__).parent.iterdir()
    if path.suffix == ".py" or (path / "__init__.py").is_file()
}

CODE = """
import importlib, json, random, sys
HOMES, ORDERS = json.loads(sys.argv[1])
modules = sorted({f"plasticity.{home}" for home in HOMES.values()})
for seed in range(ORDERS):
    for name in [name for name in sys.modules if name.split(".")[0] == "plasticity"]:
        del sys.modules[name]
    import plasticity
    steps = [*modules, *HOMES]
    random.Random(seed).shuffle(steps)
    for step in steps:
        importlib.import_module(step) if "." in step else getattr(plasticity, step)
    for name, home in HOMES.items():
        assert getattr(plasticity, name) is getattr(sys.modules[f"plasticity.{home}"], name), (seed, name)
    assert all(callable(getattr(plasticity, name)) for name in HOMES if not name.isupper())
    scope = {}
    exec("from plasticity import *", scope)
    assert set(HOMES) <= set(scope)
"""


@pytest.mark.slow
def test_functions_stay_functions_in_any_order_of_imports() -> None:
    arguments = json.dumps([plasticity._HOMES, 8])
    result = subprocess.run([sys.executable, "-c", CODE, arguments], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_no_module_has_the_name_of_something_public() -> None:
    assert {"probes", "commands", "callback"} <= SUBMODULES
    assert not SUBMODULES & set(plasticity.__all__)
    assert set(plasticity._HOMES) == set(plasticity.__all__) <= set(dir(plasticity))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match=r"module 'plasticity' has no attribute 'Monitr'"):
        plasticity.Monitr  # noqa: B018
    with pytest.raises(ImportError, match="Monitr"):
        exec("from plasticity import Monitr")


def test_the_changelog_says_where_modules_of_the_first_version_are() -> None:
    text = (Path(__file__).parents[1] / "CHANGELOG.md").read_text()
    moves = re.findall(r"^\| `(plasticity\.[\w.]+)` \| `(plasticity\.[\w.]+)` \|$", text, re.MULTILINE)
    assert len(moves) > 30
    for old, new in moves:
        assert exists(new), new
        assert not is_module(old), old


def test_names_in_the_documents_exist() -> None:
    root = Path(__file__).parents[1]
    pages = [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").rglob("*.md")]
    found = {(page.name, name) for page in pages for name in re.findall(r"`(plasticity\.[\w.]+\w)", page.read_text())}
    assert len(found) > 20
    assert not {(page, name) for page, name in found if not exists(name)}


def is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def exists(name: str) -> bool:
    home, _, attribute = name.rpartition(".")
    return is_module(name) or hasattr(import_module(home), attribute)
