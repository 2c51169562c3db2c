"""Every method on every agent, eager and compiled: trained, stopped, resumed to the bit, or refused with a reason."""

from __future__ import annotations

import pytest
from resumed import check_resumed
from together import HOSTS

from plasticity.interventions import INTERVENTIONS

pytestmark = pytest.mark.usefixtures("everywhere", "as_traced")

AGENTS = [host for host in HOSTS if host != "large pixels"]
REPLAYED = [host for host in AGENTS if host != "ppo"]
REFUSED: dict[tuple[str, str], str] = {
    **{(host, "pfo"): "needs an agent that learns from its last rollout; .* has a replay buffer" for host in REPLAYED},
    **{(host, "random_shift"): "needs a buffer of images" for host in REPLAYED if host != "pixels"},
    **{(host, "horizon"): "needs n-step returns and a discount that can be set" for host in AGENTS if host != "dqn"},
    **{("ppo", name): "needs a replay buffer; ppo has none" for name in ("swd", "dr3", "random_shift", "ere")},
    ("ppo", "least"): "needs a value function of .observation, action.; ppo has none",
    ("ppo", "replay_ratio"): "needs updates per environment step that can be set",
}
"""(agent, method) -> the reason with which it is refused before the first step."""
CASES = [(host, method) for host in AGENTS for method in INTERVENTIONS]


def check_on_agent(host: str, method: str, compile: str) -> None:
    """Train, stop and resume a method on an agent; or see it refused, with the reason that is expected."""
    if (why := REFUSED.get((host, method))) is None:
        check_resumed(host, [method], compile)
        return
    with pytest.raises(ValueError, match=why) as error:
        check_resumed(host, [method], compile)
    assert not any("at step" in note for note in getattr(error.value, "__notes__", ())), "refused too late"


@pytest.mark.on_real_devices
@pytest.mark.parametrize(("host", "method"), CASES)
@pytest.mark.some(12, rotates=True)
def test_every_method_on_every_agent(host: str, method: str) -> None:
    check_on_agent(host, method, "off")


COMPILED = [case for case in CASES if case not in REFUSED]


@pytest.mark.on_real_devices
@pytest.mark.parametrize(("host", "method"), COMPILED)
@pytest.mark.some(2, rotates=True)
def test_every_method_on_every_agent_in_compiled_updates(host: str, method: str) -> None:
    check_on_agent(host, method, "on")


@pytest.mark.inductor
@pytest.mark.slow
@pytest.mark.on_real_devices
@pytest.mark.parametrize(("host", "method"), COMPILED)
def test_every_method_on_every_agent_compiled_by_inductor(host: str, method: str) -> None:
    check_on_agent(host, method, "on")
