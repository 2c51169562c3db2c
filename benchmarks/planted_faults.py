"""Plant faults in a copy of the source, one at a time, and see whether the quick tests find them.

    python benchmarks/planted_faults.py                     # this checkout
    python benchmarks/planted_faults.py ../plasticity-0.1.0   # another one, with its own tests

Each fault is a change of one line of text that stands once in the source, wherever its file is. Only the test files
beside the fault are run, by the command of the quick tests: a fault that they find, the whole gate finds, too. That a
fault stays undetected here does not say that no other file finds it. Every row runs the same tests without the fault
first, so that what fails, fails because of it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("plasticity", "agents", "envs", "tests", "examples", "docs")


@dataclass(frozen=True)
class Fault:
    """One line of source and what takes its place; `tests`: the files run, `where`: pytest's -k."""

    name: str
    before: str
    after: str
    tests: str
    where: str


FAULTS = [
    Fault(
        "SAC's entropy has the wrong sign",
        "return (alpha * log_prob - pooled(q, pessimism)).mean()",
        "return (-alpha * log_prob - pooled(q, pessimism)).mean()",
        "test_sac.py",
        "not elsewhere and equal_stable_baselines3",
    ),
    Fault(
        "SAC's temperature loss keeps its graph",
        'metrics["alpha_loss"] = alpha_loss(self.log_alpha.detach(), ',
        'metrics["alpha_loss"] = alpha_loss(self.log_alpha, ',
        "test_sac.py",
        "not elsewhere and metrics",
    ),
    Fault(
        "recycled neurons keep their moments",
        "value.copy_(torch.where(where.to(value.device), fresh, value))",
        "fresh",
        "test_surgery.py",
        "not elsewhere and (entries or state)",
    ),
    Fault(
        "ages of drawn transitions are one too small",
        "return self.slot(age, column), age\n",
        "return self.slot(age, column), age - 1\n",
        "test_replay.py",
        "not elsewhere and (ages or age)",
    ),
    Fault(
        "hooks stay when a monitor closes",
        "self._hooks.remove()\n        self._pass",
        "self._pass",
        "test_monitor.py",
        "not elsewhere and (hook or left)",
    ),
    Fault(
        "masks are not restored after a step",
        "            self._apply(parameter, [optimizer])\n",
        "            self._masks\n",
        "test_masks.py",
        "not elsewhere",
    ),
    Fault(
        "a resumed run draws other random numbers",
        "generator.set_state(state.cpu())",
        "generator.get_state()",
        "test_td3.py test_ppo.py",
        "not elsewhere and resumed",
    ),
    Fault(
        "dormancy divides by the layer's sum",
        "mean = magnitudes.mean()\n",
        "mean = magnitudes.sum()\n",
        "test_probes.py",
        "not elsewhere and (dormant or scores)",
    ),
    Fault(
        "compiled gradients are not clipped",
        "return gradients * once((max_norm / (norm + 1e-6)).clamp(max=1.0)), norm",
        "return gradients, norm",
        "test_gradient.py",
        "not elsewhere and not equal_the_eager",
    ),
    Fault(
        "a graph outlives the modules it was traced with",
        "self._graphs.clear()\n            if self.compile",
        "if self.compile",
        "test_gradient.py",
        "not elsewhere and anew",
    ),
    Fault(
        "bf16 takes small products, too",
        "LARGE = 1_400_000\n",
        "LARGE = 1\n",
        "test_gradient.py",
        "not elsewhere and bf16",
    ),
    Fault(
        "SAC's noise is made on the CPU",
        "return torch.randn((num, batch, self.action_dim), generator=generator, device=generator.device)",
        "return torch.randn((num, batch, self.action_dim), generator=generator)",
        "test_devices.py",
        "elsewhere and updates",
    ),
    Fault(
        "DQN's update waits for the device",
        "torch.full((), self.epsilon, device=self.device)",
        "torch.tensor(self.epsilon, device=self.device)",
        "test_devices.py",
        "elsewhere and updates",
    ),
    Fault(
        "PPO's order of minibatches is drawn on the CPU",
        'torch.randperm(len(self.rollout), generator=self.generators["update"], device=self.device)',
        'torch.randperm(len(self.rollout), generator=self.generators["update"])',
        "test_devices.py",
        "elsewhere and updates",
    ),
    Fault(
        "powers of gamma are made on the CPU",
        "gamma ** torch.arange(reward.shape[1], device=reward.device, dtype=reward.dtype)",
        "gamma ** torch.arange(reward.shape[1], dtype=reward.dtype)",
        "test_devices.py",
        "elsewhere and replay",
    ),
    Fault(
        "priorities that a resumed run loads stay on the CPU",
        'state["leaves"].to(self.largest)',
        'state["leaves"].cpu()',
        "test_priorities.py test_dqn.py",
        "elsewhere and (state or resumed)",
    ),
]


def copy_of(tree: Path, target: Path) -> Path:
    """Copy a checkout so that its packages are imported from there."""
    for name in FOLDERS:
        shutil.copytree(tree / name, target / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "LICENSE", "constraints.txt"):
        shutil.copy(tree / name, target)
    for name in ("agents", "envs"):
        (target / "plasticity" / name).symlink_to(target / name)
    return target


def place_of(fault: Fault, tree: Path) -> Path:
    """Return the one file with the line; ValueError if there is none or several."""
    files = [file for folder in FOLDERS[:3] for file in (tree / folder).rglob("*.py") if not file.is_symlink()]
    found = {file.resolve(): text.count(fault.before) for file in files if fault.before in (text := file.read_text())}
    if sum(found.values()) != 1:
        raise ValueError(f"{fault.name}: its line stands {sum(found.values())} times in {tree}")
    return next(iter(found))


def first_failure(tree: Path, fault: Fault) -> str | None:
    """Return the first test that fails, None if all pass."""
    files = [f"tests/{name}" for name in fault.tests.split()]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-x",
        "--tb=no",
        "-rfE",
        "-k",
        fault.where,
        *files,
    ]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - |$)", result.stdout, re.MULTILINE)
    # A hook of a backward pass that raises on the device ends the process.
    return failed[1] if failed else f"pytest ended with {result.returncode}"


def main() -> int:
    """Print one row per fault; the exit status is the number of faults that were not found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path, nargs="?", default=Path(__file__).parents[1])
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--sound", action="store_true", help="all tests of this checkout pass: do not run them first")
    args = parser.parse_args()
    missed, sound = 0, set()
    print("| fault | tests run | found by |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_of(args.tree.resolve(), Path(folder))
        for fault in (fault for fault in FAULTS if args.only in fault.name):
            tests = (fault.tests, fault.where)
            if not args.sound and tests not in sound and (failure := first_failure(tree, fault)):
                raise SystemExit(f"{failure} fails without a fault")
            sound.add(tests)
            file = place_of(fault, tree)
            text = file.read_text()
            file.write_text(text.replace(fault.before, fault.after))
            failure = first_failure(tree, fault)
            file.write_text(text)
            missed += failure is None
            print(f"| {fault.name} | `{fault.tests} -k '{fault.where}'` | `{failure or 'not found'}` |", flush=True)
    return missed


if __name__ == "__main__":
    raise SystemExit(main())
