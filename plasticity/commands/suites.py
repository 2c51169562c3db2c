"""Suites of streams: which environments, which agent with which settings, and what was published of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Suite:
    """Streams that are trained with one agent and one configuration for all methods."""

    envs: tuple[str, ...]
    agent: str
    arguments: str
    """Of ``plasticity train``, for every run."""
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Environment -> method -> area."""
    order: tuple[str, ...] = ()
    """Methods in the published order, the best first."""
    source: str = ""
    bin_steps: int | None = None
    """Environment steps over which episodes are averaged, those of an iteration in the paper; None: 40 bins a task."""
    tuned: Mapping[str, str] = field(default_factory=dict)
    """Published method -> the form of it, tuned on other seeds, that stands beside the published number."""
    about: str = ""
    """Text of the suite's page: settings, what was tried."""


C_CHAIN = "Tang et al. 2025, arXiv 2506.00592, Table 1"
CONTROL_STREAMS = ("cartpole", "acrobot", "lunarlander")
SUITES: dict[str, Suite] = {
    "cgym": Suite(
        tuple(f"cgym/{game}" for game in CONTROL_STREAMS),
        "ppo",
        "--preset c-chain",
        {
            "cgym/cartpole": {
                "oracle": 299.9, "none": 61.8, "trac": 217.4, "weight_clipping": 154.3, "l2_init": 266.1,
                "chain": 160.4,
            },
            "cgym/lunarlander": {
                "oracle": 1.1, "none": -499.4, "trac": -58.1, "weight_clipping": -58.6, "l2_init": -6.7,
                "chain": -16.7,
            },
        },
        ("oracle", "l2_init", "trac", "chain", "weight_clipping", "none"),
        C_CHAIN,
        bin_steps=800,
    ),
    "cgym-short": Suite(
        tuple(f"cgym-short/{game}" for game in CONTROL_STREAMS), "ppo", "--preset c-chain", bin_steps=800
    ),
    "slippery": Suite(
        ("slippery-halfcheetah", "slippery-hopper", "slippery-ant"), "ppo", ""
    ),
    "cminatar": Suite(
        ("cminatar",),
        "dqn",
        "--lr 3e-4 --buffer-size 500000 --target-every 1000",
        source="agent and settings as in the code of Tang et al. 2025, with a tenth of their steps",
    ),
    "cdmc": Suite(("cdmc/walker", "cdmc/quadruped", "cdmc/dog"), "ppo", ""),
    "supervised": Suite(
        ("bitflip", "permuted-digits", "random-labels", "warm-start"), "supervised", "--preset streams"
    ),
}  # fmt: skip
"""Suite by name; add your own."""
