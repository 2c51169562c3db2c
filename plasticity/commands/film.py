"""Write pictures as a film: mp4 through ffmpeg, GIF through Pillow."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

FASTEST_GIF = 50.0
"""Pictures per second beyond which viewers play a GIF slowly."""
VIDEO_EXTRA = "pip install -e '.[video]'"


def require_film(path: Path) -> None:
    """Raise ValueError for a file of another kind, ImportError for a missing package: with what to do about it."""
    if path.suffix.lower() not in FILM_WRITERS:
        raise ValueError(f"{path} is no film: pass a file that ends with {' or '.join(FILM_WRITERS)}")
    if path.suffix.lower() == ".mp4":
        ffmpeg()
        return
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError(f"a GIF needs Pillow: {VIDEO_EXTRA}") from error


def ffmpeg() -> str:
    """Return the program ffmpeg, of the system or of the package imageio-ffmpeg; ImportError if there is none."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise ImportError(f"an mp4 needs ffmpeg: {VIDEO_EXTRA}, or write a GIF, --out video.gif") from error


def write_film(path: Path, pictures: Iterable[np.ndarray], fps: float) -> None:
    """Write pictures (height, width, 3) uint8, all of one size; the file appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        FILM_WRITERS[path.suffix.lower()](partial, pictures, fps)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write_mp4(path: Path, pictures: Iterable[np.ndarray], fps: float) -> None:
    """Pipe the pictures to ffmpeg, with even sides, as H.264 needs them; RuntimeError with its last words."""
    frames = iter(pictures)
    first = next(frames)
    height, width = (side - side % 2 for side in first.shape[:2])
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-"]
    target = ["-an", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path)]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [ffmpeg(), "-y", "-loglevel", "error", *source, *target], stdin=subprocess.PIPE, stdout=said, stderr=said
        )
        assert process.stdin is not None
        try:
            with process.stdin:
                for frame in chain([first], frames):
                    process.stdin.write(np.ascontiguousarray(frame[:height, :width]).tobytes())
        except BrokenPipeError:
            pass  # it says why
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.wait():
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"ffmpeg failed: {lines[-1] if lines else f'exit code {process.returncode}'}")


def _write_gif(path: Path, pictures: Iterable[np.ndarray], fps: float) -> None:
    """Write a GIF that repeats for ever, with fewer pictures where there are too many a second."""
    from PIL import Image

    stride = max(1, math.ceil(fps / FASTEST_GIF))
    images: Iterator[Any] = (Image.fromarray(frame) for index, frame in enumerate(pictures) if index % stride == 0)
    next(images).save(path, save_all=True, append_images=images, duration=1000 * stride / fps, loop=0)


FILM_WRITERS: dict[str, Callable[[Path, Iterable[np.ndarray], float], None]] = {".mp4": _write_mp4, ".gif": _write_gif}
"""End of a file's name -> a function that writes it."""
