"""Parts of the package that stand beside its folder in a clone, and inside it where it is installed.

Python looks in the working directory first (`python -m plasticity`, a notebook, `python -c`). In a clone it finds this
folder there, whatever is installed; `plasticity.agents` and `plasticity.envs` are then the folders beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parent
BESIDE = {f"plasticity.{part}": PACKAGE.parent / part for part in ("agents", "envs")}


class CloneFinder(MetaPathFinder):
    """Find the parts beside the package's folder; it comes last, so that an installation in place goes before."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a part is, None for anything else."""
        if fullname not in BESIDE:
            return None
        folder = BESIDE[fullname]
        return spec_from_file_location(fullname, folder / "__init__.py", submodule_search_locations=[str(folder)])


def find_beside() -> None:
    """Add the finder once, if the parts are beside the package's folder and not in it."""
    is_clone = all((folder / "__init__.py").is_file() for folder in BESIDE.values())
    if is_clone and not any(isinstance(finder, CloneFinder) for finder in sys.meta_path):
        sys.meta_path.append(CloneFinder())
