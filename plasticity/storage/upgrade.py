"""Upgrade the records of older versions to the present names of settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED: dict[str, dict[str, tuple[str, dict[Any, Any]]]] = {
    "dqn": {
        "dueling": ("head", {True: "dueling", False: "linear"}),
        "distributional": ("returns", {True: "c51", False: "mean"}),
    },
}
"""Agent -> setting of 0.1.0 -> its present name, and its values there."""
_OPTIMIZER = {"optimizer": "adam", "weight_decay": 0.0, "betas": None, "eps": None, "outputs": "default"}
_ACTOR_CRITIC = {**_OPTIMIZER, "critic_head": "linear"}
_PPO = {
    **_ACTOR_CRITIC,
    "value_target": "lambda",
    "standardise": "minibatch",
    "initialisation": "orthogonal",
    "reward_scale": 1.0,
    "critic_hidden": None,
    "num_critics": 1,
    "critic_split": False,
    "critics_alike": False,
    "advantage_mask": 0.0,
    "entropy_filter": 0.0,
}
_OFF_POLICY = {**_ACTOR_CRITIC, "critic_returns": "mean", "num_atoms": 101, "v_min": -100.0, "v_max": 100.0,
               "value_expectile": 0.0, "pessimism": 1.0, "normalize_rewards": False}  # fmt: skip
_SAC = {**_OFF_POLICY, "actor": "gaussian", "latent_dim": 16, "num_pairs": 8, "diversity_target": 0.2,
        "policy_every": 1, "optimism": 0.0, "kl_target": 0.05, "explore_std": 0.75}  # fmt: skip
ADDED: dict[str, dict[str, Any]] = {"dqn": _OPTIMIZER, "ppo": _PPO, "sac": _SAC, "td3": _OFF_POLICY}
"""Agent -> setting that 0.1.0 did not have -> the value that says what it did."""
METHODS_ADDED: dict[str, dict[str, Any]] = {
    "redo": {
        "score": "activity", "centred": False, "window": 1, "ema": 0.0, "share": None, "share_end": 1_000_000,
        "incoming_scale": None,
    },
    "ne": {"begin": None},
    "shrink_perturb": {"layers": None},
    "reset": {"to": "fresh", "momentum": 0.999},
}  # fmt: skip
"""Method -> setting that 0.1.0 did not have -> the value that says what it did."""


def upgraded(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the present names of settings; one that has them already is unchanged."""
    renamed, config = RENAMED.get(record["agent"], {}), dict(record["config"])
    if not isinstance(config.get("agent"), Mapping):
        return dict(record)
    added = dict(ADDED.get(record["agent"], {}))
    if "outputs" in added and config["agent"].get("network") not in ("simba", "bronet"):
        added["outputs"] = "own"  # the same, for networks whose output layers have no initialisation of their own
    config["agent"] = {**added, **_settings(config["agent"], renamed)}
    if isinstance(methods := config.get("interventions"), Mapping):
        config["interventions"] = {
            n: {**METHODS_ADDED.get(n, {}), **m} if isinstance(m, Mapping) else m for n, m in methods.items()
        }
    found = {**record, "config": config}
    if "arguments" in record:
        found["arguments"] = [new for old in record["arguments"] for new in _flags(old, renamed)]
    return found


def upgraded_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a checkpoint, or of a model, with the present places of its parts.

    In 0.1.0 the global random states stood beside those of the callbacks, all optimizers were Adam and not named, and a
    model had no states of callbacks: where a plasticity injection was is read from the names of its parameters.
    """
    agent = dict(state["agent"])
    if "optimizers" in agent:
        agent.setdefault("optimizer_kinds", dict.fromkeys(agent["optimizers"], "Adam"))
    callbacks = dict(state["callbacks"]) if "callbacks" in state else _injected(agent)
    if "random" in state:
        callbacks["random"] = state["random"]
    return {**{key: value for key, value in state.items() if key != "random"}, "agent": agent, "callbacks": callbacks}


def _injected(agent: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of the plasticity injection of a model that was saved without: the parameters of its heads."""
    names = {name: [n for n in network if ".frozen." in n] for name, network in agent.get("networks", {}).items()}
    heads = {name: {n.split(".frozen.")[0] for n in frozen} for name, frozen in names.items()}
    found = {
        name: [n for n in agent["networks"][name] if any(n.startswith(f"{head}.") for head in places)]
        for name, places in heads.items()
        if places
    }
    return {"plasticity_injection": {"injected": found}} if found else {}


def _settings(settings: Mapping[str, Any], renamed: Mapping[str, tuple[str, dict[Any, Any]]]) -> dict[str, Any]:
    """Return the settings of an agent."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        new, values = renamed.get(name, (name, {}))
        found[new] = values.get(value, value) if values else value
    return found


def _flags(argument: str, renamed: Mapping[str, tuple[str, dict[Any, Any]]]) -> list[str]:
    """Return an argument of the command line: the flags ``--name`` and ``--no-name`` of a setting that had them."""
    name = argument.removeprefix("--").replace("-", "_")
    for old, (new, values) in renamed.items():
        for spelling, value in ((old, True), (f"no_{old}", False)):
            if argument.startswith("--") and name == spelling:
                return [f"--{new.replace('_', '-')}", values[value]]
    return [argument]
