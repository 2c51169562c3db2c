"""Packages of others that the toolkit works with, and the versions of them that the tests run with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tested:
    """A package, the version that was tested, for what it is needed, and how to install it."""

    package: str
    version: str
    use: str
    install: str
    page: str = ""
    """The page of the documentation about it."""
    others: tuple[str, ...] = ()
    """Further versions with which the tests were run by hand."""


TESTED = (
    Tested("torch", "2.13.0", "everything", "torch", others=("2.15.0",)),
    Tested("gymnasium", "1.4.0", "environments", "gymnasium[mujoco]", "environments"),
    Tested("dm-control", "1.0.50", "environments dmc/...", "dm-control", "environments"),
    Tested("tensorboard", "2.21.0", "plasticity dashboard, --log tensorboard", "tensorboard", "dashboard"),
    Tested("matplotlib", "3.11.2", "plasticity report", "plasticity-toolkit[report]", "reports"),
    Tested("ale-py", "0.12.1", "environments atari/...", "plasticity-toolkit[atari]", "environments"),
    Tested("minatar", "1.0.15", "environments minatar/...", "plasticity-toolkit[minatar]", "environments"),
    Tested("stable-baselines3", "2.9.2", "plasticity.sb3", "plasticity-toolkit[sb3]", "sb3"),
    Tested("sb3-contrib", "2.9.2", "plasticity.sb3: QR-DQN, TQC, CrossQ, RecurrentPPO", "sb3-contrib", "sb3"),
    Tested("transformers", "5.24.0", "plasticity.hf", "plasticity-toolkit[hf]", "hf"),
    Tested("accelerate", "1.15.0", "plasticity.hf, and loops of accelerate", "plasticity-toolkit[hf]", "recipes"),
    Tested("trl", "1.16.0", "plasticity.hf: SFT, DPO, GRPO", "trl", "hf"),
    Tested("peft", "0.21.2", "LoRA and other adapters", "peft", "hf"),
    Tested("lightning", "2.6.6", "plasticity.lightning, Fabric", "plasticity-toolkit[lightning]", "lightning"),
    Tested("torchrl", "0.14.1", "plasticity.torchrl", "plasticity-toolkit[torchrl]", "torchrl"),
    Tested("skrl", "2.1.1", "agents of skrl", "skrl", "rl-recipes"),
    Tested("tianshou", "2.0.1", "algorithms of tianshou", "tianshou", "rl-recipes"),
    Tested("rsl-rl-lib", "5.5.1", "PPO of rsl-rl", "rsl-rl-lib", "rl-recipes"),
    Tested("agilerl", "2.58.0", "agents of AgileRL", "agilerl", "rl-recipes"),
    Tested("keras", "3.15.1", "models of Keras 3 on torch", "keras", "recipes"),
    Tested("wandb", "0.31.0", "--log wandb", "wandb", "writers"),
    Tested("mlflow-skinny", "3.17.2", "--log mlflow; mlflow, or mlflow-skinny with sqlalchemy", "mlflow", "writers"),
    Tested("trackio", "0.43.0", "--log trackio", "trackio", "writers"),
    Tested("aim", "3.29.1", "--log aim", "aim", "writers"),
)
"""The packages that ``plasticity doctor`` looks for; a test holds the versions against the constraints files."""
BEGIN, END = "<!-- tested versions -->", "<!-- end of tested versions -->"


def versions_table() -> str:
    """Return the table of tested versions in Markdown, with the marks that it stands between."""
    rows = [
        f"| {f'[{one.package}]({one.page}.md)' if one.page else one.package} | {', '.join((one.version, *one.others))} "
        f'| {one.use} | `pip install "{one.install}"` |'
        for one in TESTED
    ]
    return "\n".join([BEGIN, "| package | tested versions | for | install |", "|---|---|---|---|", *rows, END])
