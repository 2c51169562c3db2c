"""Both notebooks run from top to bottom, shorter, in a kernel of their own; those in the repository show outputs."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"
SHORTER = {
    "collapse": {"NUM_TASKS, STEPS = 20, 200": "NUM_TASKS, STEPS = 4, 20", "budget=300": "budget=3"},
    "compare": {"SEEDS, STEPS = 3, 10_000": "SEEDS, STEPS = 2, 400"},
}
SAYS = {"collapse": "not measured: 4", "compare": "P(X > Y)"}


def outputs(cells, kind):
    """All outputs of the cells: texts that were printed, or data of a type."""
    found = [output for cell in cells for output in cell.get("outputs", [])]
    return [out["text"] for out in found if "text" in out] if kind == "text" else [
        out["data"][kind] for out in found if kind in out.get("data", {})
    ]  # fmt: skip


def test_there_are_two():
    assert {file.stem for file in NOTEBOOKS.glob("*.ipynb")} == set(SHORTER)


@pytest.mark.parametrize("name", SHORTER)
def test_notebook_runs(name, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for long, short in SHORTER[name].items():
        assert sum(long in cell.source for cell in code) == 1, long
        for cell in code:
            cell.source = cell.source.replace(long, short)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()  # CellExecutionError, with the traceback of the cell
    assert SAYS[name] in "".join(outputs(notebook.cells, "text"))
    assert outputs(notebook.cells, "image/png")


@pytest.mark.parametrize("name", SHORTER)
def test_notebook_in_the_repository_was_run(name):
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert SAYS[name] in "".join("".join(text) for text in outputs(cells, "text"))
    assert outputs(cells, "image/png")
    assert not [output for cell in cells for output in cell.get("outputs", []) if output["output_type"] == "error"]
