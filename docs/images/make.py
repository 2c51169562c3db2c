"""Make the pictures of the documentation again, from short runs, with a headless Chromium.

python docs/images/make.py [--runs DIR]

Without ``--runs`` it trains SAC on Pendulum-v1 first, four short runs of a small network (two minutes of one core);
with it, the runs that an earlier call left in DIR are used again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from browser import Browser  # noqa: E402
from planted import planted_run  # noqa: E402

from plasticity.dashboard.serve import Server  # noqa: E402

TRAIN = "sac --env Pendulum-v1 --steps 2_500 --learning-starts 300 --hidden 64 64 --batch-size 64"
OFTEN = "--probe-every 40 --max-episode-steps 250 --eval-every 0 --eval-episodes 1"
METHOD = "--regrama --regrama.every 400"
SIZE = (1280, 800)
READY = "document.querySelectorAll('button.row').length"


def train(folder: Path) -> None:
    """Train two seeds without and with an intervention."""
    for seed in (1, 2):
        for flags in ("", METHOD):
            name = f"{'regrama' if flags else 'plain'}_seed{seed}"
            command = [sys.executable, "-m", "plasticity", "train", *TRAIN.split(), *OFTEN.split()]
            command += [*flags.split(), "--seed", str(seed), "--out", str(folder), "--name", name, "--quiet"]
            subprocess.run(command, check=True)


def collapse(folder: Path) -> None:
    """Write the runs of the browser test: neurons killed at step 200, recycled at 400."""
    for seed in (1, 2, 3):
        planted_run(folder / f"planted_seed{seed}", seed).close()
        planted_run(folder / f"left_alone_seed{seed}", seed, recycle=False).close()
    for path in folder.glob("*/run.json"):
        record = {**json.loads(path.read_text(encoding="utf-8")), "status": "finished"}
        path.write_text(json.dumps(record), encoding="utf-8")


def wait_for(server: Server) -> None:
    """Return once TensorBoard has read every run to its end."""
    before = None
    while True:
        with urllib.request.urlopen(f"{server.url}/data/plugin/plasticity/runs", timeout=60) as answer:
            now = json.load(answer)["runs"]
        if now and now == before:
            return
        before = now
        time.sleep(7)  # longer than TensorBoard's own refresh


def picture(logdir: Path, name: str, script: str = "", ready: str = READY, dark: bool = False) -> None:
    """Write a picture of the tab inside TensorBoard; ``script`` runs inside the tab, ``ready`` is waited for."""
    with Server(logdir, port=0) as server, Browser(*SIZE) as browser:
        server.wait_ready()
        wait_for(server)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.call("Emulation.setEmulatedMedia", features=[scheme])
        browser.open(f"{server.url}/?darkMode={str(dark).lower()}#plasticity")
        inside = "document.querySelector('iframe').contentWindow"
        browser.wait(f"{inside}.eval({json.dumps(READY)})", 60)
        if script:
            browser.run(f"{inside}.eval({json.dumps(script)}), 0")
        browser.wait(f"{inside}.eval({json.dumps(ready)})", 60)
        time.sleep(1)
        browser.screenshot(HERE / f"{name}.png")
    print(HERE / f"{name}.png")


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder of an earlier call")
    folder = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as temporary:
        root = folder or Path(temporary)
        if not (root / "sac").exists():
            train(root / "sac")
        if not (root / "planted").exists():
            collapse(root / "planted")
        picture(root / "sac", "dashboard")
        over = """document.querySelector('[data-key="layout/over"]').click();
            [...document.querySelectorAll('.bulk button')].find((b) => b.textContent === 'show all').click()"""
        picture(root, "overlay", over, "document.querySelectorAll('.key > span').length === 4", dark=True)
        click = "[...document.querySelectorAll('[data-key=\"dormancy/critic/2\"]')].at(-1).click()"
        picture(root / "planted", "collapse", click, "document.querySelectorAll('.neurons canvas').length", dark=True)


if __name__ == "__main__":
    main()
