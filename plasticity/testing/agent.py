"""The battery for agents: everything that the loop and the commands ask of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from plasticity.agents import AGENTS

from .runs import SHORT, check_run, command, last_state, registered, require_same


def check_agent(kind: type, config: type, options: Sequence[str], name: str = "checked") -> None:
    """Check an agent class written to :class:`plasticity.agents.protocol.Agent`, with its config dataclass.

    ``options``: of ``plasticity train``, without the number of steps: an environment, and settings with which the agent
    learns within 120 environment steps. It is registered in ``AGENTS`` while the battery runs, which trains it by the
    command line, stops and resumes it to the same bits, evaluates and probes it, and shows its dry run. The same seed
    must give the same run, also when nothing is measured. Raises AssertionError with the first thing that is broken.
    """
    with registered(AGENTS, name, (kind, config)), TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole = check_run(name, options, folder)
        state = last_state(whole)
        command("train", name, *options, *SHORT, "--probes", "--out", folder, "--name", "unprobed")
        require_same(last_state(folder / "unprobed")["agent"], state["agent"], "agent without probes")
        told = command("train", name, *options, *SHORT, "--dry-run", "--out", folder)
        for network in state["agent"].get("networks", {}):
            assert f"{network}: wiring" in told, f"the dry run shows no wiring of {network}"
