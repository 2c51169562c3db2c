"""Build the documentation site in build/site/html: python docs/site/build.py [serve]

Its pages are laid out in build/site/pages first: the README as the front page, the pages of docs/, the examples as a
gallery, the notebooks with their outputs, a reference from docstrings. zensical makes the site of them, and fails on a
dead link or anchor.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from conversion import example_page, gallery_page, notebook_page, reference_pages, relinked

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "site"
LAID_OUT = SITE / "pages"
RENAMED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "docs/index.md": "contents.md",
    "examples": "examples/index.md",
    "docs/interventions": "interventions.md",
}
"""File or folder of the repository -> page; other pages of docs/ keep their places."""
LISTED = re.compile(r"\]\(((?!examples|notebooks)[\w/-]+\.md)(?:#[^)]*)?\)")
"""A link of docs/index.md that puts a page into the navigation; examples and notebooks have a section."""


def pages() -> dict[str, str]:
    """Return where each file of the repository is read: its path -> the path of its page."""
    found = {path: page for path, page in RENAMED.items() if (ROOT / path).exists()}
    for file in sorted((ROOT / "docs").rglob("*.md")):
        found.setdefault(str(file.relative_to(ROOT)), str(file.relative_to(ROOT / "docs")))
    for file in sorted(file for kind in ("png", "svg", "jsonl") for file in (ROOT / "docs").rglob(f"*.{kind}")):
        found[str(file.relative_to(ROOT))] = str(file.relative_to(ROOT / "docs"))
    for file in [*sorted((ROOT / "examples").glob("*.py")), *sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))]:
        found[str(file.relative_to(ROOT))] = f"{file.parent.name}/{file.stem}.md"
    return {path.replace("\\", "/"): page.replace("\\", "/") for path, page in found.items()}


def lay_out() -> None:
    """Write all pages below `LAID_OUT`, and the sources that the reference reads."""
    shutil.rmtree(SITE, ignore_errors=True)
    places = pages()
    for path, page in places.items():
        source, target = ROOT / path, LAID_OUT / page
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            write(page, relinked(source.read_text(encoding="utf-8"), path, page, places))
        elif source.suffix == ".py":
            write(page, example_page(source))
        elif source.suffix == ".ipynb":
            write(page, relinked(notebook_page(source, target.parent), path, page, places))
        elif source.is_file():
            shutil.copyfile(source, target)
    write("examples/index.md", gallery_page(sorted((ROOT / "examples").glob("*.py"))))
    for name, text in reference_pages(copied_sources()).items():
        write(f"reference/{name}.md", text)


def copied_sources() -> Path:
    """Copy the sources as they are installed, roles of cross-references taken out; return the package's folder."""
    package = SITE / "source" / "plasticity"
    for folder, place in (
        (ROOT / "plasticity", package),
        (ROOT / "agents", package / "agents"),
        (ROOT / "envs", package / "envs"),
    ):
        for file in folder.rglob("*.py"):
            target = place / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            text = file.read_text(encoding="utf-8")
            target.write_text(re.sub(r":(class|meth|func|mod|attr|data|exc):`~?", "`", text), encoding="utf-8")
    return package


def write(page: str, text: str) -> None:
    """Write a page."""
    target = LAID_OUT / page
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


def navigation() -> list[tuple[str, list[str]]]:
    """Return the sections and their pages: those that docs/index.md lists, then folders.

    Raises SystemExit for a page that has no place.
    """
    contents = (LAID_OUT / "contents.md").read_text(encoding="utf-8")
    parts = re.split(r"^\*\*(.+)\*\*$", contents, flags=re.MULTILINE)
    sections = [
        (title, list(dict.fromkeys(LISTED.findall(text)))) for title, text in zip(parts[1::2], parts[2::2], strict=True)
    ]
    placed: set[str] = set()
    for _, listed in sections:  # a page stands where it is listed first
        listed[:] = [page for page in listed if page not in placed]
        placed.update(listed)
    sections = [(title, listed) for title, listed in sections if listed]
    sections += [("Methods", below("interventions")), ("Examples", below("examples") + below("notebooks"))]
    sections += [("Python reference", below("reference"))]
    sections += [("Project", ["contributing.md", "changelog.md", "security.md"])]
    everywhere = {page for _, listed in sections for page in listed} | {"index.md", "contents.md"}
    if lost := {str(f.relative_to(LAID_OUT)) for f in LAID_OUT.rglob("*.md")} - everywhere:
        raise SystemExit(f"docs/index.md has no link to {', '.join(sorted(lost))}: no reader would find it")
    return [("Home", ["index.md", "contents.md"]), *sections]


def below(folder: str) -> list[str]:
    """Return the pages in a folder, its index first."""
    files = sorted((LAID_OUT / folder).glob("*.md"), key=lambda file: (file.stem != "index", file.stem))
    return [file.relative_to(LAID_OUT).as_posix() for file in files]


def title(page: str) -> str:
    """Return the first heading of a page."""
    heading = re.search(r"^# (.+)$", (LAID_OUT / page).read_text(encoding="utf-8"), re.MULTILINE)
    return re.sub(r"[`*]", "", heading[1]) if heading else page


def configuration() -> Path:
    """Write zensical's configuration, that of this folder with the navigation, and return its path."""
    entry = "{{ {} = {} }}".format
    sections = [
        entry(json.dumps(name), "[" + ", ".join(entry(json.dumps(title(p)), json.dumps(p)) for p in listed) + "]")
        for name, listed in navigation()
    ]
    text = (Path(__file__).parent / "zensical.toml").read_text(encoding="utf-8")
    path = SITE / "zensical.toml"
    path.write_text(text.replace("nav = []", "nav = [\n  " + ",\n  ".join(sections) + ",\n]"), encoding="utf-8")
    return path


def main(arguments: list[str]) -> int:
    """Build, or serve with the argument `serve`; return zensical's exit code."""
    lay_out()
    command = ["serve"] if arguments == ["serve"] else ["build", "--strict", "--clean"]
    return subprocess.run([sys.executable, "-m", "zensical", *command, "-f", str(configuration())]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
