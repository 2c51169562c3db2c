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
    """Published method -> the form of it that stands beside the published number: as in the paper, or tuned on other
    seeds; the name alone where that form is not there."""
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
        tuned={
            "l2_init": "l2-init:coef=0.0001",
            "weight_clipping": "weight-clipping:kappa=0.5",
            "chain": "chain:preset=control",
        },
        about=(
            "Continual Gym control as in the paper: PPO with `--preset c-chain`, an offset on every observation that "
            "changes with the task. An area is the mean over iterations of 800 steps, the number of the paper. The "
            "oracle begins with new networks and a new optimizer in every task, as in the released code. C-CHAIN is "
            "`chain:preset=control`, which begins anew in every task and so knows the boundaries. The paper's code has "
            "none of the other methods, and their strengths are not known here: TRAC has no setting but Adam's rate, "
            "L2 Init the best coefficient of 0.00001, 0.0001, 0.0003 and 0.001 on seed 101 of `cgym-short/cartpole`, "
            "four tasks (areas of 86, 175, 135 and 135; its default of 0.01 slows even the first task). On seeds 101 "
            "and 102 of that stream weight clipping with kappa 0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5 and 10 has areas of 23, "
            "41, 75, 88, 79, 47, 64, 37 and 57."
        ),
    ),
    "cgym-short": Suite(
        tuple(f"cgym-short/{game}" for game in CONTROL_STREAMS),
        "ppo",
        "--preset c-chain",
        bin_steps=800,
        about="The suite `cgym` with tasks of a fifth of the length: 40 iterations of 800 steps.",
    ),
    "slippery": Suite(
        ("slippery-halfcheetah", "slippery-hopper", "slippery-ant"),
        "ppo",
        "",
        about=(
            "PPO on MuJoCo's bodies, the friction of whose floor is drawn anew in every task. Dohare et al. 2024 show "
            "the loss with 2,000,000 steps of Ant per friction and 50,000,000 in all. HalfCheetah's returns at low "
            "friction are errors of integration, which the agent finds: on a floor without friction bang-bang actions "
            "move it by 390 m in 50 s, by 28 m with Runge-Kutta steps; Ant moves by 14 m, Hopper by 1 m in its 8 s."
        ),
    ),
    "permute": Suite(
        ("permute/InvertedDoublePendulum-v5",), "ppo", "--preset c-chain",
        about=(
            "PPO with `--preset c-chain` on MuJoCo's double pendulum. Every task but the first permutes observations: "
            "all tasks are as hard as the first, and what the return loses from task to task is the network's loss."
        ),
    ),
    "cminatar": Suite(
        ("cminatar",),
        "dqn",
        "--network minatar_cnn --double --lr 3e-4 --batch-size 32 --buffer-size 100_000 --learning-starts 10_000 "
        "--train-every 1 --target-every 1_000 --epsilon-end 0.1 --exploration-steps 100_000 --loss mse "
        "--max-grad-norm inf",
        about=(
            "Double DQN on MinAtar's Space Invaders, Asterix and Seaquest, one after the other, with the settings of "
            "Tang et al. 2025 as their code acts on them: its agent is made with 100,000 transitions and an epsilon "
            "that falls for 100,000 steps, where a dict that is only logged says 500,000. The paper has 2,000,000 "
            "steps of each game; its code acts at random for the first 10,000 steps of every game, here of the first "
            "one, and gives up an episode of Seaquest after 1,000 steps without a point, here after 5,000 in any game. "
            "In 200,000 steps a fresh agent learns Space Invaders, and next to nothing of the other two: their gaps "
            "say little."
        ),
    ),
    "cdmc": Suite(
        ("cdmc/walker", "cdmc/quadruped", "cdmc/dog"),
        "ppo",
        "--hidden 256 256 --activation relu",
        about=(
            "PPO on dm_control's tasks of one body in a row, with the networks and settings of Tang et al. 2025. They "
            "have 1,000,000 steps of each task, one simulator step per action (here two), every task of dog and walker "
            "once, and begin the statistics of observations and rewards anew in every task; here they are kept "
            "(`--normaliser`)."
        ),
    ),
    "supervised": Suite(
        ("bitflip", "permuted-digits", "random-labels", "warm-start"), "supervised", "--preset streams",
        about=(
            "Supervised learning of examples that come once: the return is an accuracy, or minus a mean squared error. "
            "`--preset streams` has the step sizes at which the plain network loses plasticity. On `bitflip` they are "
            "those of Dohare et al. 2024, Adam at 0.01 for one example at a time, times the root of the batch of 20. "
            "The loss takes more tasks than a quick run has, and seeds differ: over all 40 tasks and 40 seeds it is in "
            "[results](../results.md#loss-of-plasticity-on-supervised-streams). SGD at 0.01 in batches of 20, tried "
            "before, lost nothing; nor did Adam at 0.001 on the digits."
        ),
    ),
}  # fmt: skip
"""Suite by name; add your own."""
