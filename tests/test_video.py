"""``plasticity video``: films of a run, mp4 and GIF, without a screen; or a line that says what is missing."""

from __future__ import annotations

import builtins
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

from plasticity.commands import film
from plasticity.envs import ENVS, Family, make_env
from plasticity.envs.drawing import SIZE, enlarged, of_channels, picture
from plasticity.storage.files import write_atomically
from plasticity.testing.runs import attempt, command

TINY = ("--hidden", "4", "--batch-size", "4", "--learning-starts", "8", "--buffer-size", "50", "--probes", "--quiet")


class Painter(gymnasium.Env):
    """Episodes of five steps whose pictures get brighter by the step, and are 11 pixels wide."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 100}
    observation_space, action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.zeros(2, np.float32), 1.0, self.steps == 5, False, {}

    def render(self) -> Any:
        return np.full((400, 331, 3), 40 * self.steps, np.uint8) if self.render_mode == "rgb_array" else None


class Blank(Painter):
    """The same without pictures."""

    metadata: ClassVar[dict[str, Any]] = {}

    def render(self) -> Any:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def painter() -> Iterator[None]:
    """Register the environments."""
    ENVS["painter"] = Family("painter/", lambda: ["painter/one"], lambda name, seed, limit: Painter())
    ENVS["blank"] = Family("blank/", lambda: ["blank/one"], lambda name, seed, limit: Blank())
    yield
    del ENVS["painter"], ENVS["blank"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of DQN."""
    folder = tmp_path_factory.mktemp("runs")
    ENVS["painter"] = Family("painter/", lambda: ["painter/one"], lambda name, seed, limit: Painter())
    words = ("--env", "painter/one", *TINY, "--steps", "20", "--eval-episodes", "1")
    command("train", "dqn", *words, "--out", folder, "--name", "run")
    return folder / "run"


def frames(path: Path) -> list[tuple[np.ndarray, float]]:
    """The pictures of a GIF, with the seconds that each is shown."""
    with Image.open(path) as film:
        found = []
        for index in range(film.n_frames):
            film.seek(index)
            found.append((np.asarray(film.convert("RGB")), film.info["duration"] / 1000))
        return found


def test_a_gif_has_a_picture_of_every_step(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "play.gif"
    told = command("video", run, "--out", out, "--fps", "10", "--episodes", "2")
    assert told == f"{out}: dqn on painter/one, returns 5.0 5.0\n"
    shown = frames(out)
    assert [int(image[0, 0, 0]) for image, _ in shown] == 2 * [0, 40, 80, 120, 160, 200]
    assert {seconds for _, seconds in shown} == {0.1}
    assert [path.name for path in out.parent.iterdir()] == ["play.gif"]


def test_a_fast_gif_leaves_pictures_out_and_keeps_its_time(run: Path, tmp_path: Path) -> None:
    command("video", run, "--out", tmp_path / "play.gif")  # 100 a second, as the environment says
    assert [(int(image[0, 0, 0]), seconds) for image, seconds in frames(tmp_path / "play.gif")] == [
        (0, 0.02), (80, 0.02), (160, 0.02),
    ]  # fmt: skip


def test_an_mp4_has_a_picture_of_every_step_and_even_sides(run: Path) -> None:
    command("video", run, "--max-steps", "3")
    played = subprocess.run(
        [film.ffmpeg(), "-i", str(run / "video.mp4"), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    shown = np.frombuffer(played.stdout, np.uint8).reshape(-1, 400, 330, 3)
    assert np.allclose(shown.mean((1, 2, 3)), [0, 40, 80, 120], atol=2)
    assert b"100 fps" in played.stderr


def test_what_is_missing_is_a_line_and_nothing_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] in ("PIL", "imageio_ffmpeg"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest, **more)

    monkeypatch.setattr(film.shutil, "which", lambda name: None)
    monkeypatch.setattr(builtins, "__import__", without)
    for suffix, said in (("mp4", "an mp4 needs ffmpeg: pip install -e '.[video]', or"), ("gif", "a GIF needs Pillow")):
        code, _, errors = attempt("video", run, "--out", tmp_path / f"film.{suffix}")
        assert code == 1
        assert said in errors
    monkeypatch.undo()
    for words, said in [
        (("--out", tmp_path / "film.avi"), "film.avi is no film: pass a file that ends with .mp4 or .gif"),
        (("--env", "blank/one"), "blank/one cannot be drawn: it has no render() that returns an image"),
        (("--fps", "0"), "fps must be positive"),
        (("--task", "1"), "--task: painter/one has no set_task(task)"),
    ]:
        code, _, errors = attempt("video", run, "--out", tmp_path / "film.gif", *words)
        assert code == 1
        assert said in errors, errors
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ffmpeg"
    write_atomically(program, b"#!/bin/sh\necho 'Unknown encoder' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(film, "ffmpeg", lambda: str(program))
    many = (np.zeros((64, 64, 3), np.uint8) for _ in range(100))
    with pytest.raises(RuntimeError, match="ffmpeg failed: Unknown encoder"):
        film.write_film(tmp_path / "a.mp4", many, 30)
    assert [path.name for path in tmp_path.iterdir()] == ["ffmpeg"]


def test_observations_are_pictures_where_there_is_no_other() -> None:
    grey, colours = np.arange(4 * 25).reshape(4, 5, 5).astype(np.uint8), np.zeros((6, 5, 5), np.uint8)
    assert np.array_equal(of_channels(grey)[..., 1], grey[-1])
    assert of_channels(colours).shape == of_channels(np.zeros((7, 5, 5), np.uint8)).shape == (5, 5, 3)
    kinds = of_channels(255 * np.eye(7, dtype=np.uint8).reshape(7, 1, 7)).reshape(7, 3)
    assert len({tuple(kind) for kind in kinds.tolist()}) == 7
    assert enlarged(np.zeros((84, 160, 3), np.uint8)).shape == (3 * 84, 3 * 160, 3)
    assert picture(None, grey, "x").shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "minatar/breakout", "atari/pong"])
def test_environments_are_drawn_without_a_screen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    env = make_env(name)
    env.reset()
    first = env.picture()
    assert first.std() > 0
    assert min(first.shape[:2]) >= 252
    action = env.action_space.sample()
    for _ in range(30):
        done = env.step(np.array([action])).terminated
        env.reset(done)
    assert first.shape == env.picture().shape
    env.close()
