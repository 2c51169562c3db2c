"""Pages of methods: those in the documentation are the ones that the source gives now."""

from __future__ import annotations

from pathlib import Path

import pytest

from plasticity.commands.pages import OPTIONS, main, method_page, methods_table, with_options, written_by_hand
from plasticity.interventions import INTERVENTIONS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_a_page_is_what_the_source_says(name: str) -> None:
    path = DOCS / "interventions" / f"{name}.md"
    assert path.exists(), "python -m plasticity.commands.pages docs"
    text, kind = path.read_text(), INTERVENTIONS[name]
    assert not written_by_hand(path) or OPTIONS in text, f"{path} has no place for the options: {OPTIONS}"
    current = with_options(text, name, kind) if written_by_hand(path) else method_page(name, kind)
    assert text == current, "python -m plasticity.commands.pages docs"


def test_the_table_has_a_row_for_every_method() -> None:
    assert methods_table(dict(INTERVENTIONS)) in (DOCS / "interventions.md").read_text(), (
        "python -m plasticity.commands.pages docs"
    )


def test_a_page_of_ones_own_is_left_alone_and_others_are_written_anew(tmp_path: Path) -> None:
    folder = tmp_path / "interventions"
    folder.mkdir()
    (folder / "redo.md").write_text("mine")
    (folder / "ne.md").write_text(f"before\n{OPTIONS}old<!-- end of options -->\nafter\n")
    (tmp_path / "interventions.md").write_text("before\n<!-- methods -->old<!-- end of methods -->\nafter\n")
    main(str(tmp_path))
    assert (folder / "redo.md").read_text() == "mine"
    by_hand = (folder / "ne.md").read_text()
    assert by_hand.startswith("before\n")
    assert by_hand.endswith("\nafter\n")
    assert "old<" not in by_hand
    assert "| `--ne.begin` | the preset's |" in by_hand
    assert "| `--fire.iterations` | the preset's |" in (folder / "fire.md").read_text()
    index = (tmp_path / "interventions.md").read_text()
    assert index.startswith("before\n<!-- methods -->\n| method |")
    assert index.endswith("<!-- end of methods -->\nafter\n")
    assert "old" not in index.partition("after")[0].partition("methods -->")[2][:5]
