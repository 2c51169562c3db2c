"""Pages of methods: those in the documentation are the ones that the source gives now."""

from __future__ import annotations

from pathlib import Path

import pytest

from plasticity.commands.pages import main, method_page, methods_table, written_by_hand
from plasticity.interventions import INTERVENTIONS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_a_page_is_what_the_source_says(name: str) -> None:
    path = DOCS / "interventions" / f"{name}.md"
    assert path.exists(), "python -m plasticity.commands.pages docs"
    if not written_by_hand(path):
        assert path.read_text() == method_page(name, INTERVENTIONS[name]), "python -m plasticity.commands.pages docs"


def test_the_table_has_a_row_for_every_method() -> None:
    assert methods_table(dict(INTERVENTIONS)) in (DOCS / "interventions.md").read_text(), (
        "python -m plasticity.commands.pages docs"
    )


def test_a_page_of_ones_own_is_left_alone_and_others_are_written_anew(tmp_path: Path) -> None:
    folder = tmp_path / "interventions"
    folder.mkdir()
    (folder / "redo.md").write_text("mine")
    (tmp_path / "interventions.md").write_text("before\n<!-- methods -->old<!-- end of methods -->\nafter\n")
    main(str(tmp_path))
    assert (folder / "redo.md").read_text() == "mine"
    assert "| `--fire.iterations` | the preset's |" in (folder / "fire.md").read_text()
    index = (tmp_path / "interventions.md").read_text()
    assert index.startswith("before\n<!-- methods -->\n| method |")
    assert index.endswith("<!-- end of methods -->\nafter\n")
    assert "old" not in index.partition("after")[0].partition("methods -->")[2][:5]
