"""Words before a second of silence."""

import sys

SPELLED = {"torch": "PyTorch", "matplotlib": "Matplotlib"}


def say_importing(command: str, module: str = "torch") -> None:
    """Print what a command waits for, unless it is there; ``command``: its name behind ``plasticity``."""
    if sys.modules.get(module) is None:
        print(f"plasticity {command}: importing {SPELLED[module]} ...", file=sys.stderr, flush=True)
