"""The documentation site as it is laid out: every page has a place, every link leads somewhere. zensical runs in CI."""

import importlib
import importlib.util
import json
import posixpath
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "site"


@pytest.fixture
def conversion(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("conversion")


@pytest.fixture
def build(conversion, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("build_of_the_site", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SITE", tmp_path)
    monkeypatch.setattr(module, "LAID_OUT", tmp_path / "pages")
    return module


def test_every_page_has_a_place_and_every_link_leads_somewhere(build, conversion):
    build.lay_out()
    sections = build.navigation()  # SystemExit for a page without a place
    assert {"Home", "Start", "Methods", "Examples", "Python reference"} <= {name for name, _ in sections}
    titles = [build.title(page) for _, listed in sections for page in listed]
    assert all(titles)
    for file in build.LAID_OUT.rglob("*.md"):
        page = file.relative_to(build.LAID_OUT).as_posix()
        for part in conversion.CODE.split(file.read_text(encoding="utf-8"))[::2]:
            for _, _, target in conversion.LINK.findall(part):
                path = target.partition("#")[0]
                if "://" not in target and path:
                    there = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
                    assert (build.LAID_OUT / there).is_file(), f"{page}: {target}"


def test_the_reference_is_of_what_is_exported(build):
    import plasticity
    from plasticity import agents

    build.lay_out()
    for name, package in (("plasticity", plasticity), ("agents", agents)):
        text = (build.LAID_OUT / "reference" / f"{name}.md").read_text(encoding="utf-8")
        listed = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
        assert sorted(one.rpartition(".")[2] for one in listed) == sorted(package.__all__)
    sources = build.SITE / "source" / "plasticity"
    assert (sources / "agents" / "sac.py").is_file()
    assert not [file for file in sources.rglob("*.py") if ":meth:`" in file.read_text(encoding="utf-8")]


def test_a_page_that_nothing_leads_to_stops_the_build(build):
    build.lay_out()
    build.write("lost.md", "# Lost\n")
    with pytest.raises(SystemExit, match=r"docs/index\.md has no link to lost\.md"):
        build.navigation()


def test_the_configuration_has_the_navigation_and_asks_no_other_host(build):
    tomllib = pytest.importorskip("tomllib")
    build.lay_out()
    config = tomllib.loads(build.configuration().read_text(encoding="utf-8"))["project"]
    assert list(config["nav"][0]) == ["Home"]
    assert {"Quickstart": "quickstart.md"} in config["nav"][1]["Start"]
    assert config["theme"]["font"] is False
    assert "://" not in (FOLDER / "zensical.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "then"),
    [
        ("[a](quickstart.md#set-up)", "[a](../quickstart.md#set-up)"),
        ("![p](../docs/images/p.png)", "![p](../images/p.png)"),
        ("[file](../agents/sac.py) and [b](https://x.org)", "file and [b](https://x.org)"),
        ("[two\nlines](../README.md)", "[two\nlines](../index.md)"),
        ("```python\nx[a](b)\n```", "```python\nx[a](b)\n```"),
        ("[`code`](quickstart.md) | `x`", "[`code`](../quickstart.md) | `x`"),
        ("[here](#anchor)", "[here](#anchor)"),
    ],
)
def test_links_are_those_of_the_site(conversion, text, then):
    places = {"docs/quickstart.md": "quickstart.md", "docs/images/p.png": "images/p.png", "README.md": "index.md"}
    assert conversion.relinked(text, "docs/page.md", "deep/page.md", places) == then


def test_a_notebook_is_shown_with_what_it_printed_and_drew(conversion, tmp_path):
    outputs = [
        {"output_type": "stream", "text": ["1\n", "2\n"]},
        {"output_type": "display_data", "data": {"image/png": "aGFsbG8=", "text/plain": "<Figure>"}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "words"]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": outputs},
    ]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    text = conversion.notebook_page(tmp_path / "n.ipynb", tmp_path / "out")
    assert text == "# Title\nwords\n\n```python\nprint(1)\n```\n\n```text\n1\n2\n```\n\n![output](n-1-1.png)\n"
    assert (tmp_path / "out" / "n-1-1.png").read_bytes() == b"hallo"
