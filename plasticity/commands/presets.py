"""Settings of published experiments by name: `--preset NAME` stands for arguments; those of the user go before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .contents import nearest
from .preset import Preset
from .zoo import CLEANRL, ZOO

FLAG = "--preset"


CONTINUAL_CONTROL = Preset(
    "ppo",
    "--hidden 256 256 256 --activation leaky_relu_0.1 --initialisation default --num-steps 800 "
    "--num-minibatches 25 --num-epochs 5 --lr 1e-3 --anneal-steps 0 --eps 1e-8 --no-clip-values "
    "--value-coef 1.0 --entropy-coef 0.01 --max-grad-norm inf --normalize-observations False "
    "--normalize-rewards False --reward-scale 0.05 --value-target returns --standardise rollout",
    "Tang et al. 2025, arXiv 2506.00592, released code crl_gym_classic_control",
)


STREAMS = (
    Preset(
        "supervised",
        "--hidden 5 --batch-size 20 --lr 0.05",
        "Dohare et al. 2024, slowly changing regression: Adam at 0.01 for one example at a time, here times the root "
        "of the batch",
        "bitflip",
    ),
    Preset(
        "supervised",
        "--hidden 100 100 100 --batch-size 16 --lr 0.003",
        "chosen here: of 0.001 and 0.003 the rate that learns the first tasks better",
        "permuted-digits random-labels",
    ),
    Preset(
        "supervised",
        "--hidden 100 100 100 --batch-size 64 --lr 0.001",
        "Ash and Adams 2020, a smaller MLP",
        "warm-start",
    ),
)

CROSSQ = Preset(
    "sac",
    "--network crossq --policy-every 3 --actor-lr 1e-3 --critic-lr 1e-3 --alpha-lr 1e-3 --betas 0.5 0.999",
    "Bhatt et al. 2024, arXiv 1902.05605, released code adityab/CrossQ",
    left_out="the temperature keeps its own betas",
)

BRO = Preset(
    "sac",
    "--network bronet --critic-returns quantiles --num-atoms 100 --pessimism 0 --optimism 1 --optimizer adamw "
    "--weight-decay 1e-4 --learning-starts 2500 --actor-lr 3e-4 "
    "--critic-lr 3e-4 --alpha-lr 3e-4 --batch-size 128 --updates-per-step 10",
    "Nauman et al. 2024, arXiv 2405.16158, released code naumix/BiggerRegularizedOptimistic",
    left_out="the entropy's target of half the action dimensions (--target-entropy), and the first beta of 0.5 of the "
    "temperature's Adam; its resets are --reset --reset.at 15001 50001 250001 500001 750001",
)

SIMBA2 = Preset(
    "sac",
    "--network simba2 --hyperspherical --critic-returns c51 --num-atoms 101 --v-min -5 --v-max 5 "
    "--normalize-rewards --init-alpha 0.01 --actor-lr 1e-4 --critic-lr 1e-4 --alpha-lr 1e-4",
    "Lee et al. 2025, arXiv 2502.15280, released code DAVIAN-Robotics/SimbaV2",
    left_out="the rate's fall to half in the course of training, the entropy's target of half the action dimensions "
    "(--target-entropy), the discount by the length of episodes, and the single critic of tasks that never terminate",
)

PRESETS: dict[str, tuple[Preset, ...]] = {
    "c-chain": (CONTINUAL_CONTROL,), "zoo": ZOO, "cleanrl": CLEANRL, "streams": STREAMS,
    "crossq": (CROSSQ,), "bro": (BRO,), "simba2": (SIMBA2,),
}  # fmt: skip
"""Name -> presets, of which the first that fits agent and environment counts; add your own."""


def with_presets(agent: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with those of the presets among them in front; ValueError for one that does not exist."""
    return [word for one in presets_of(agent, arguments).values() for word in one.arguments.split()] + list(arguments)


def notes_of_presets(agent: str, arguments: Sequence[str]) -> list[str]:
    """Return a line for each preset among the arguments: its source, and what is not as there."""
    return [f"preset {name}: {one.notes}" for name, one in presets_of(agent, arguments).items()]


def presets_of(agent: str, arguments: Sequence[str]) -> dict[str, Preset]:
    """Return the presets that the arguments name; ValueError for one that does not exist."""
    return {name: find_preset(name, agent, environment(arguments)) for name in values_of(FLAG, arguments)}


def environment(arguments: Sequence[str]) -> str:
    """Return the environment that the arguments name, empty for none."""
    return next(reversed(values_of("--env", arguments)), "")


def values_of(flag: str, arguments: Sequence[str]) -> list[str]:
    """Return the values that a flag has among the arguments."""
    pairs = pairwise([*arguments, ""])
    return [b if a == flag else a.partition("=")[2] for a, b in pairs if a == flag or a.startswith(f"{flag}=")]


def find_preset(name: str, agent: str, environment: str) -> Preset:
    """Return the preset of an agent on an environment; ValueError, with those that there are, where there is none."""
    there = [one for one, entries in PRESETS.items() if any(entry.agent == agent for entry in entries)]
    if name not in there:
        raise ValueError(
            f"no preset {name!r} for {agent}; {nearest(name, there)}there are: {', '.join(there) or 'none'}"
        )
    for entry in PRESETS[name]:
        if entry.fits(agent, environment):
            return entry
    known = " ".join(entry.environments for entry in PRESETS[name] if entry.agent == agent)
    raise ValueError(f"preset {name} has nothing for {agent} on {environment or 'no environment'}; it has: {known}")
