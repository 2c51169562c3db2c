"""Checkpoints: a folder that holds a whole state, or is refused with the name of the file that is damaged.

A checkpoint is three files. ``tensors.safetensors`` has the numbers, ``state.json`` the rest, ``manifest.json`` the
format, the size and SHA-256 of both, and its own. They are written to a folder of another name, which is renamed
once all of it is on the disk, so a crash leaves a checkpoint that is complete or none. No file can carry code, and
nothing that is read becomes a path: the names of the files are fixed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .files import Input, Output, sync_folder
from .nested import flatten, unflatten
from .record import package_version
from .tensorfile import read_tensors, write_tensors

CHECKPOINT_FORMAT = 1
MANIFEST, STATE, TENSORS = "manifest.json", "state.json", "tensors.safetensors"
MAX_MANIFEST, MAX_STATE = 2**16, 2**26
"""Bytes; a longer file was not written by this package."""


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or that this version cannot read; the message names the file."""


def save(folder: Path | str, state: Any, notes: Mapping[str, Any] | None = None) -> Path:
    """Write ``state`` into the new folder ``folder``, whole or not at all, and return it.

    ``state``: see :func:`plasticity.storage.nested.flatten`; tensors are written as they are, not copied.
    ``notes``: plain values for the manifest, which :func:`read_manifest` returns without reading the rest.

    Raises TypeError or ValueError for a state that cannot be saved, and OSError naming ``folder`` if it cannot be
    written or exists; nothing is left of it then.
    """
    folder = Path(folder)
    plain, tensors = flatten(state)
    text = json.dumps(plain, allow_nan=False, separators=(",", ":")).encode()
    if len(text) > MAX_STATE:
        raise ValueError(f"the state has {len(text)} bytes besides its tensors, more than {MAX_STATE}: use tensors")
    partial = partial_of(folder)
    try:
        if folder.exists():
            raise FileExistsError(errno.EEXIST, "it exists already")
        remove(partial)
        partial.mkdir(parents=True)
        files = {}
        with Output(partial / TENSORS) as file:
            write_tensors(file, tensors)
        files[TENSORS] = {"size": file.size, "sha256": file.digest()}
        with Output(partial / STATE) as file:
            file.write(text)
        files[STATE] = {"size": file.size, "sha256": file.digest()}
        with Output(partial / MANIFEST) as file:
            file.write(encode_manifest(files, notes or {}))
        sync_folder(partial)
        partial.rename(folder)
        try:
            sync_folder(folder.parent)
        except OSError:
            folder.rename(partial)
            raise
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, f"the checkpoint was not saved: {error.strerror}", str(folder)) from error
        raise
    return folder


def load(folder: Path | str) -> Any:
    """Return the state of a checkpoint, its tensors on the CPU; CheckpointError if any of it is damaged."""
    folder = Path(folder)
    files = read_manifest(folder)["files"]
    with _opened(folder, STATE, files, MAX_STATE) as file:
        text = file.read(file.size)
    with _reading(folder / STATE):
        plain = json.loads(text.decode())
    with _opened(folder, TENSORS, files) as file:
        tensors = read_tensors(file)
    with _reading(folder / STATE):
        return unflatten(plain, tensors)


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """Return the manifest: ``format``, ``version`` of the package, ``notes``, ``files``; raise CheckpointError."""
    path = Path(folder) / MANIFEST
    with _reading(path), Input(path) as file:
        if file.size > MAX_MANIFEST:
            raise ValueError(f"it has {file.size} bytes, more than any manifest")
        text = file.read(file.size)
        manifest = json.loads(text.decode())
        if not isinstance(manifest, dict) or type(manifest.get("format")) is not int:
            raise ValueError("it is no manifest of a checkpoint")
        if manifest["format"] != CHECKPOINT_FORMAT:
            raise ValueError(
                f"it has format {manifest['format']}, this version of plasticity reads {CHECKPOINT_FORMAT}"
            )
        if manifest.keys() != {"format", "version", "notes", "files", "sha256"} or _sealed(manifest) != text:
            raise ValueError("it is damaged: its own checksum does not fit")
        if not _plausible(manifest):
            raise ValueError(f"it does not list {STATE} and {TENSORS}, each with its size and SHA-256")
    return manifest


def encode_manifest(files: Mapping[str, Mapping[str, Any]], notes: Mapping[str, Any]) -> bytes:
    """Return the text of a manifest, checksum included."""
    return _sealed(
        {"format": CHECKPOINT_FORMAT, "version": package_version(), "notes": dict(notes), "files": dict(files)}
    )


def partial_of(folder: Path) -> Path:
    """Return the name that a checkpoint has while it is written, or removed."""
    return folder.with_name(f".{folder.name}.partial")


def remove(folder: Path) -> None:
    """Remove a folder if it is there; a link is unlinked, never followed."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """Return the one text that a manifest has, so that a flipped bit anywhere in it is seen."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def _plausible(manifest: Mapping[str, Any]) -> bool:
    files, notes = manifest["files"], manifest["notes"]
    if not isinstance(notes, dict) or not isinstance(files, dict) or files.keys() != {STATE, TENSORS}:
        return False
    return all(isinstance(entry, dict) and entry.keys() == {"size", "sha256"} for entry in files.values())


@contextmanager
def _opened(folder: Path, name: str, files: Mapping[str, Any], limit: float = float("inf")) -> Iterator[Input]:
    """Open a file of the size that the manifest says; on leaving, it must have been read and have its SHA-256."""
    path = folder / name
    with _reading(path), Input(path) as file:
        if file.size != files[name]["size"] or file.size > limit:
            raise ValueError(f"it has {file.size} bytes, its manifest says {files[name]['size']!r:.40}")
        yield file
        if file.digest() != files[name]["sha256"]:
            raise ValueError("it is damaged: its SHA-256 is not that of its manifest")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise errors of reading a file as a CheckpointError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: it is missing") from error
    except OSError as error:
        reason = "it is a link, not a file" if error.errno == errno.ELOOP else error.strerror or error
        raise CheckpointError(f"{path}: {reason}") from error
    except RecursionError as error:
        raise CheckpointError(f"{path}: it is nested too deeply") from error
    except (ValueError, EOFError) as error:
        raise CheckpointError(f"{path}: {error}") from error
