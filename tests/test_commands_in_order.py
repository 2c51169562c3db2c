"""The commands of the README and all pages in their order, on one machine, with short trainings."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_readme import PAGES, ROOT, commands, name_of

from plasticity.storage.folder import Checkpoints
from plasticity.storage.record import RECORD

FIRST = [ROOT / "README.md", ROOT / "docs" / "quickstart.md", ROOT / "docs" / "cli.md"]
ORDER = [*FIRST, *(page for page in PAGES if page not in FIRST)]
NOT_RUN = {
    "--import": "modules of the reader's own: test_imports.py, test_extending.py",
    "dashboard runs": "waits for a browser: test_dashboard.py",
    "bench ": "hours: test_bench.py",
    "runs/bench/": "of runs of bench: test_bench.py",
    "--log wandb mlflow": "other packages: test_third_party_writers.py",
}
"""Part of a command -> why it is not run here, or where it is."""
COMMON = ["--eval-episodes", "1", "--eval-max-steps", "20", "--max-episode-steps", "20", "--compile", "off", "--quiet"]
REPLAY = ["--learning-starts", "40", "--batch-size", "8", "--buffer-size", "200"]
SHORTER = {
    "--task-steps": "20", "--eval-every": "40", "--checkpoint.every": "40", "--seeds": "2", "--num-tasks": "4",
    "--learning-starts": "40", "--buffer-size": "200", "--batch-size": "8", "--hidden": "8", "--episodes": "1",
    "--samples": "64", "--budget": "2s", "--num-envs": "2", "--probe-every": "10",
}  # fmt: skip
"""Flag -> what stands behind it here, in place of the numbers of the page."""


def shortened(words: list[str]) -> list[str]:
    """Return a command with smaller numbers; paths of checkpoints become those of the shortened run."""
    short: list[str] = []
    skipping = False
    for flag, word in zip(["", *words], words, strict=False):
        if skipping and not word.startswith("-"):
            continue
        skipping = word in SHORTER
        short += [word, SHORTER[word]] if skipping else [few_steps(word) if flag == "--steps" else checkpoint(word)]
    if words[0] == "train" and "--dry-run" not in words:
        short += COMMON
        known = {"--resume", "--config", "--like"} & {*words}
        short += [] if known or "--steps" in words else ["--steps", "60"]
        short += [] if known or words[1] == "ppo" else REPLAY
    if words[0] == "stream":
        short += ["--task-steps", "20", "--num-tasks", "2", "--compile", "off", "--quiet"]
    if "--at" in short:
        runs = Path(short[1]) / "checkpoints"
        short[short.index("--at") + 1] = Checkpoints(runs).all()[-1].name.rpartition("-")[2]
    return short


def few_steps(typed: str) -> str:
    """Return a small number of steps, another one for another number that was typed."""
    digits = typed.replace("_", "")
    return str(20 + 10 * len(digits) + int(digits[0]))


def checkpoint(word: str) -> str:
    """Return the path of the first checkpoint of a shortened run, for that of a page."""
    if not (found := re.fullmatch(r"(.*)/checkpoints/\d+-step-\d+", word)):
        return word
    return str(Checkpoints(Path(found[1]) / "checkpoints").all()[0])


@pytest.mark.slow
def test_commands_of_the_pages_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text('agent = "sac"\nenv = "Pendulum-v1"\nsteps = 80\n')  # as the page shows
    for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    failed, number = [], 0
    for page in ORDER:
        for program, *words in commands(page):
            typed = " ".join(words)
            if program != "plasticity" or any(part in typed for part in NOT_RUN):
                continue
            number += 1
            answer = ["--yes"] if "--delete" in words else []
            begun = time.perf_counter()
            command = [sys.executable, "-m", "plasticity", *shortened(words), *answer]  # a process each, as for people
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
            seconds = time.perf_counter() - begun
            print(f"{seconds:5.1f} s, exit code {done.returncode}, {name_of(page)}: {typed}", flush=True)
            if done.returncode or "Traceback" in done.stderr:
                failed.append(f"{name_of(page)}: {typed}: {done.stderr.strip()[-900:]}")
    assert not failed, "\n".join(failed)
    assert number > 40
    assert sorted(path.name for path in (tmp_path / "runs").iterdir() if (path / RECORD).is_file())


def test_checkpoints_that_pages_name_are_written_by_their_commands() -> None:
    """A page that speaks of a checkpoint of a run trains that run, with checkpoints at that step, before it."""
    written: dict[str, tuple[int, int]] = {}
    named = []
    for page in ORDER:
        for program, *words in commands(page):
            if program != "plasticity":
                continue
            if words[0] == "train" and "--name" in words:
                steps = int(words[words.index("--steps") + 1].replace("_", ""))
                every = words[words.index("--checkpoint.every") + 1] if "--checkpoint.every" in words else "100000"
                written[f"runs/{words[words.index('--name') + 1]}"] = (steps, int(every.replace("_", "")))
            for word in words:
                if found := re.fullmatch(r"(.*)/checkpoints/(\d+)-step-(\d+)", word):
                    steps, every = written[found[1]]
                    step = int(found[3])
                    named.append(word)
                    assert step == min(int(found[2]) * every, steps), word
    assert named
