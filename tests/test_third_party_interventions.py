"""Every intervention in every stack: it leaves the weights that a loop without the stack leaves, or is refused.

The loops here know nothing of a stack but its networks, optimizers and batches: they compute the loss from its formula,
step, and fire the events of a context. Each method is held against numpy in the tests of its own.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from plasticity.callback import Context, end, fire, start
from plasticity.interventions import INTERVENTIONS, Intervention

pytestmark = pytest.mark.filterwarnings(
    "default::DeprecationWarning", "ignore:.*:UserWarning", "ignore::FutureWarning", "ignore:.*never acted"
)

SOON: dict[str, dict[str, Any]] = {
    "redo": {"threshold": 0.6},
    "regrama": {"threshold": 0.5},
    "ne": {"end": 4},
    "plasticity_injection": {"every": None, "at": (2,)},
    "knife": {"window": 1, "threshold": 1.0},
    "cbp": {"rate": 0.1, "maturity": 1},
    "snr": {"limit_max": 2, "factor": 1.01},
    "swr": {"share": 0.1},
    "rewarm": {"steps": 3},
    "resin": {"threshold": 0.6},
    "reborn": {"threshold": 0.9, "active": 1.05},
    "l2_init": {"coef": 0.1},
    "wasserstein_init": {"coef": 0.1},
    "parseval": {"coef": 0.1},
    "spectral": {"coef": 0.1},
    "weight_clipping": {"kappa": 0.1},
}
"""Method -> settings with which it acts within four steps."""
QUICK = {"trainer": ("redo", "swr"), "lightning": ("redo", "ne"), "torchrl TD3": ("redo", "dash")}
"""Stack -> methods that are tried in the quick tests, too; in the others, ReDo."""


def method_of(name: str, **more: Any) -> Intervention:
    """Return a method that acts at every second gradient step, if it has a schedule."""
    kind = INTERVENTIONS[name]
    fields = {field.name for field in dataclasses.fields(kind)}
    return kind(**{**({"every": 2} if "every" in fields else {}), **SOON.get(name, {}), **more})


def by_hand(
    method: Intervention | None,
    ctx: Context,
    updates: Sequence[Callable[[Context], None]],
    after: Callable[[Context], None] = lambda ctx: None,
) -> None:
    """Run updates, and a method around them; ``after`` each, what the loop does when it is over."""
    methods = [] if method is None else [method]
    start(methods, ctx)
    for number, update in enumerate(updates):
        ctx.step = number + 1
        fire(methods, "on_update_start", ctx)
        update(ctx)
        fire(methods, "on_update_end", ctx, {})
        fire(methods, "on_step_end", ctx)
        after(ctx)
    end(methods, ctx)


def step(optimizer: Any, loss: Tensor, clipped: Sequence[nn.Parameter] = (), norm: float = 1.0) -> None:
    """Make one optimizer step."""
    optimizer.zero_grad()
    loss.backward()
    if clipped:
        nn.utils.clip_grad_norm_(clipped, norm)
    optimizer.step()


def weights(networks: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Return copies of all weights."""
    return {f"{n}.{key}": value.clone() for n, net in networks.items() for key, value in net.state_dict().items()}


class Stack:
    """A stack that trains: with its own callback, and by hand."""

    tolerance = 1e-6

    def settings(self, name: str) -> dict[str, Any]:
        """Return more settings of a method."""
        return {}

    def trained(self, method: Intervention | None, folder: Path) -> dict[str, Tensor]:
        """Return the weights after training by the stack, with the method in its callback; keep the batches."""
        raise NotImplementedError

    def expected(self, method: Intervention | None) -> dict[str, Tensor]:
        """Return the weights after the same updates by hand."""
        raise NotImplementedError

    def gone_on(self, make: Callable[[], Intervention], folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the weights after a run, and after one that was resumed from a checkpoint in its middle."""
        raise NotImplementedError


# -- Stable-Baselines3 -------------------------------------------------------------------------------------------------


class Baselines(Stack):
    """An agent of Stable-Baselines3."""

    def __init__(self, name: str) -> None:
        self.name, self.batches = name, []

    def agent(self) -> Any:
        """Return a small agent."""
        from test_third_party_sb3 import make

        rectified = {"net_arch": [32, 32], "activation_fn": nn.ReLU}  # a unit of tanh is never silent
        more = {"TD3": {"target_policy_noise": 0.0}, "PPO": {"policy_kwargs": rectified}}
        return make(self.name, **more.get(self.name, {}))

    def trained(self, method: Intervention | None, folder: Path) -> dict[str, Tensor]:
        """Learn, and keep what is sampled: of PPO, a list of passes through the rollout for every update."""
        from plasticity.sb3 import PlasticityCallback, context_of

        agent, self.batches = self.agent(), []
        if self.name == "PPO":
            collect, get = agent.collect_rollouts, agent.rollout_buffer.get
            agent.collect_rollouts = lambda *a, **k: (self.batches.append([]), collect(*a, **k))[1]
            agent.rollout_buffer.get = lambda size: self.kept(get(size))
        else:
            sample = agent.replay_buffer.sample
            agent.replay_buffer.sample = lambda *a, **k: (self.batches.append(sample(*a, **k)), self.batches[-1])[1]
        callback = PlasticityCallback([], interventions=[method] if method else [])
        agent.learn(256 if self.name == "PPO" else 46, callback=callback)
        return weights(context_of(agent).networks)

    def kept(self, batches: Any) -> Any:
        """Yield and keep batches."""
        for batch in batches:
            self.batches[-1].append(batch)
            yield batch

    def expected(self, method: Intervention | None) -> dict[str, Tensor]:
        """Return the weights after learning from the batches."""
        from plasticity.sb3 import context_of

        agent = self.agent()
        lent = context_of(agent)
        ctx = Context(lent.networks, lent.optimizers, lent.targets, calls=lent.calls)
        if self.name == "PPO":
            updates = [lambda ctx, rows=rows: [self.ppo(agent, ctx, batch) for batch in rows] for rows in self.batches]
        else:
            learn = getattr(self, self.name.lower())
            updates = [lambda ctx, b=b, i=i: learn(agent, ctx, b, i) for i, b in enumerate(self.batches, 1)]
        by_hand(method, ctx, updates)
        return weights(ctx.networks)

    @staticmethod
    def dqn(agent: Any, ctx: Context, batch: Any, number: int) -> None:
        """Make a step of DQN: Huber loss, gradients clipped at 10; the target stands."""
        q, target = ctx.networks["q_net"], ctx.targets["q_net"]
        with torch.no_grad():
            goal = batch.rewards + (1 - batch.dones) * agent.gamma * target(batch.next_observations).amax(1, True)
        loss = functional.smooth_l1_loss(q(batch.observations).gather(1, batch.actions.long()), goal)
        step(ctx.optimizers["q_net"], loss, [*q.parameters()], 10.0)

    @staticmethod
    def td3(agent: Any, ctx: Context, batch: Any, number: int) -> None:
        """Make a step of TD3 without noise: the least of the targets, a later actor, targets that follow."""
        actor, critic = ctx.networks["actor"], ctx.networks["critic"]
        with torch.no_grad():
            following = ctx.targets["actor"](batch.next_observations).clamp(-1, 1)
            least = torch.cat(ctx.targets["critic"](batch.next_observations, following), 1).amin(1, True)
            goal = batch.rewards + (1 - batch.dones) * agent.gamma * least
        found = critic(batch.observations, batch.actions)
        step(ctx.optimizers["critic"], sum(functional.mse_loss(q, goal) for q in found))
        if number % agent.policy_delay == 0:
            gain = critic.q1_forward(batch.observations, actor(batch.observations)).mean()
            step(ctx.optimizers["actor"], -gain)
            for name, network in ctx.networks.items():
                for p, t in zip(network.parameters(), ctx.targets[name].parameters(), strict=True):
                    t.data.mul_(1 - agent.tau).add_(p.data, alpha=agent.tau)

    @staticmethod
    def ppo(agent: Any, ctx: Context, batch: Any) -> None:
        """Make a step of PPO: ratios clipped at 0.2, half the squared error of values, gradients clipped at 0.5."""
        policy = ctx.networks["policy"]
        values, log_prob, _ = policy.evaluate_actions(batch.observations, batch.actions)
        gain = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
        ratio = (log_prob - batch.old_log_prob).exp()
        loss = -torch.min(gain * ratio, gain * ratio.clamp(0.8, 1.2)).mean()
        loss = loss + 0.5 * functional.mse_loss(batch.returns, values.flatten())
        step(ctx.optimizers["policy"], loss, [*policy.parameters()], 0.5)


# -- TorchRL -----------------------------------------------------------------------------------------------------------


class Losses(Stack):
    """A loss module of TorchRL; by hand, its stacked critics are modules of their own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def loss(self) -> Any:
        """Return a small loss module, TD3's without noise."""
        from test_third_party_torchrl import loss_of

        loss = loss_of(self.name)
        if self.name == "TD3":
            loss.policy_noise = 0.0
        return loss

    def settings(self, name: str) -> dict[str, Any]:
        """Return settings of NE that begin dense: the first pass of a loss module is over when the masks come on."""
        return {"preset": "gmp", "begin": 0} if name == "ne" else {}

    def trained(self, method: Intervention | None, folder: Path) -> dict[str, Tensor]:
        """Train through the loss module."""
        from test_third_party_torchrl import train

        from plasticity.torchrl import PlasticityHook

        loss = self.loss()
        optimizer = torch.optim.Adam(loss.parameters(), 1e-3)
        with PlasticityHook(loss, optimizer, [], interventions=[method] if method else []) as hook:
            train(loss, optimizer, 4, hook=hook)
            return weights(hook._guest.ctx.networks)

    def expected(self, method: Intervention | None) -> dict[str, Tensor]:
        """Train by plain losses on plain modules."""
        from test_third_party_torchrl import batch_of

        loss = self.loss()
        networks, targets = self.plain(loss, ""), self.plain(loss, "target_")
        every = [p for net in networks.values() for p in net.parameters()]
        optimizer, generator = torch.optim.Adam(every, 1e-3), torch.Generator().manual_seed(0)
        batches = [batch_of(loss, generator) for _ in range(4)]
        ctx = Context(networks, {"optimizer": optimizer}, targets)
        learn = self.dqn if self.name == "DQN" else self.td3
        by_hand(method, ctx, [lambda ctx, b=b: learn(ctx, b) for b in batches], self.follow)
        return weights(ctx.networks)

    @staticmethod
    def plain(loss: Any, prefix: str) -> dict[str, nn.Module]:
        """Return copies of the networks of a loss, or of their targets, as modules of their own."""
        found: dict[str, nn.Module] = {}
        for name in ("value_network", "actor_network", "qvalue_network"):
            if (params := getattr(loss, f"{prefix}{name}_params", None)) is None:
                continue
            rows = range(params.batch_size[0]) if params.batch_size else [None]
            for row in rows:
                network = copy.deepcopy(getattr(loss, name))
                held = {key: t if row is None else t[row] for key, t in params.flatten_keys(".").items()}
                for path, tensor in held.items():
                    parent, _, last = path.rpartition(".")
                    parameter = nn.Parameter(tensor.detach().clone(), requires_grad=not prefix)
                    network.get_submodule(parent)._parameters[last] = parameter
                found[name if row is None else f"{name}_{row}"] = network
        return found

    @staticmethod
    def follow(ctx: Context) -> None:
        """Move the targets."""
        for name, target in ctx.targets.items():
            for p, t in zip(ctx.networks[name].parameters(), target.parameters(), strict=True):
                t.data.mul_(0.9).add_(p.data, alpha=0.1)

    @staticmethod
    def dqn(ctx: Context, batch: Any) -> None:
        """Make a step of DQN on one-hot actions."""
        q, target = ctx.networks["value_network"], ctx.targets["value_network"]
        with torch.no_grad():
            following = target(batch["next"].select("observation"))["action_value"].amax(-1, True)
            goal = batch["next", "reward"] + 0.99 * following
        found = (q(batch.select("observation"))["action_value"] * batch["action"]).sum(-1, True)
        step(ctx.optimizers["optimizer"], functional.mse_loss(found, goal))

    @staticmethod
    def td3(ctx: Context, batch: Any) -> None:
        """Make a step of TD3 without noise: one loss of the actor, by the first critic, and of all critics."""
        from test_third_party_torchrl import critic

        critics = [net for name, net in ctx.networks.items() if name.startswith("qvalue")]
        heldback = [net for name, net in ctx.targets.items() if name.startswith("qvalue")]
        action = ctx.networks["actor_network"](batch.select("observation"))["action"]
        with torch.no_grad():
            following = ctx.targets["actor_network"](batch["next"].select("observation"))["action"].clamp(-1, 1)
            after = batch["next"].select("observation").set("action", following)
            least = torch.stack([net(after.clone())["state_action_value"] for net in heldback]).amin(0)
            goal = batch["next", "reward"] + 0.99 * least
        judge = critic().requires_grad_(False)  # the actor's loss runs through the first critic, which learns nothing
        judge.load_state_dict(critics[0].state_dict())
        acted = batch.select("observation").set("action", action)
        loss = -judge(acted)["state_action_value"].mean()
        for net in critics:
            found = net(batch.select("observation", "action"))["state_action_value"]
            loss = loss + functional.smooth_l1_loss(found, goal)
        step(ctx.optimizers["optimizer"], loss)


# -- Lightning ---------------------------------------------------------------------------------------------------------


class Fitted(Stack):
    """A module that Lightning fits."""

    tolerance = 0.0

    def trained(self, method: Intervention | None, folder: Path) -> dict[str, Tensor]:
        """Fit, with accumulated gradients: two batches a step."""
        from test_third_party_lightning import Inner, batches, make_trainer

        from plasticity.lightning import PlasticityCallback

        module = Inner()
        callback = PlasticityCallback("net", [], interventions=[method] if method else [])
        make_trainer(folder, [callback], accumulate_grad_batches=2).fit(module, batches())
        return weights({"net": module.net})

    def expected(self, method: Intervention | None) -> dict[str, Tensor]:
        """Train in a loop."""
        from test_third_party_lightning import Inner, batches

        module = Inner()
        optimizer = module.configure_optimizers()
        rows = [batch for _ in range(2) for batch in batches()]
        pairs = [rows[i : i + 2] for i in range(0, len(rows), 2)]

        def update(pair: list[Any]) -> None:
            optimizer.zero_grad()
            for x, y in pair:
                ((module.net(x) - y).square().mean() / 2).backward()
            optimizer.step()

        ctx = Context({"net": module.net}, {"adam": optimizer})
        by_hand(method, ctx, [lambda ctx, pair=pair: update(pair) for pair in pairs])
        return weights(ctx.networks)

    def gone_on(self, make: Callable[[], Intervention], folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Fit at once, and with a checkpoint after an odd number of steps."""
        from test_third_party_lightning import Inner, batches, make_trainer

        from plasticity.lightning import PlasticityCallback

        modules = [Inner() for _ in range(3)]
        for module, epochs, path in zip(modules, (2, 1, 2), (None, None, folder / "half.ckpt"), strict=True):
            callback = PlasticityCallback("net", [], interventions=[make()])
            trainer = make_trainer(folder, [callback], max_epochs=epochs)
            trainer.fit(module, batches(48), ckpt_path=path)  # three steps an epoch
            trainer.save_checkpoint(folder / "half.ckpt")
        return weights({"net": modules[0].net}), weights({"net": modules[2].net})


# -- transformers and TRL ----------------------------------------------------------------------------------------------


class Language(Stack):
    """A language model in a Trainer, or in one of TRL's, in float64: what differs is no rounding."""

    def __init__(self, kind: str) -> None:
        self.kind, self.seen = kind, []

    def trained(self, method: Intervention | None, folder: Path) -> dict[str, Tensor]:
        """Train, and keep what the loss is computed from."""
        import test_third_party_hf as hf

        from plasticity.hf import PlasticityCallback

        model, self.seen = hf.make_model().double(), []
        callback = PlasticityCallback([], interventions=[method] if method else [])
        settings = {"optim": "adamw_torch", "max_grad_norm": 1.0, "max_steps": 4, "adam_epsilon": 1e-3}
        if self.kind == "trainer":
            trainer = hf.make_trainer(folder, [callback], model, **settings)
        else:
            more = {"loss_type": "grpo"} if self.kind == "grpo" else {}
            trainer = hf.trl_trainer(self.kind, folder, [callback], model, **settings, **more)
        compute = trainer.compute_loss

        def kept(model: Any, inputs: Any, *args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
            copied = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
            self.seen.append((copied, num_items_in_batch))
            return compute(model, inputs, *args, num_items_in_batch=num_items_in_batch, **kwargs)

        trainer.compute_loss = kept
        trainer.train()
        return weights({"model": model})

    def expected(self, method: Intervention | None) -> dict[str, Tensor]:
        """Train in a loop, by the formula of the loss."""
        import test_third_party_hf as hf

        model = hf.make_model().double().train()
        self.reference = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2, eps=1e-3, weight_decay=0.0)
        masks = {"model": lambda attention_mask, **_: attention_mask}
        ctx = Context({"model": model}, {"adam": optimizer}, masks=masks)
        loss = getattr(self, "sft" if self.kind == "trainer" else self.kind)

        def update(inputs: Any, num: Any) -> None:
            step(optimizer, loss(model, inputs, num), [*model.parameters()])

        by_hand(method, ctx, [lambda ctx, seen=seen: update(*seen) for seen in self.seen])
        return weights(ctx.networks)

    def gone_on(self, make: Callable[[], Intervention], folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Train at once, and on from the checkpoint of the third of six steps."""
        import test_third_party_hf as hf

        from plasticity.hf import PlasticityCallback

        finals = []
        for path in (None, str(folder / "checkpoint-3")):
            callback = PlasticityCallback([], interventions=[make()])
            settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
            model = hf.make_model()
            trainer = (
                hf.make_trainer(folder, [callback], model, **settings)
                if self.kind == "trainer"
                else hf.trl_trainer(self.kind, folder, [callback], model, **settings)
            )
            trainer.train(resume_from_checkpoint=path)
            finals.append(weights({"model": model}))
        return finals[0], finals[1]

    @staticmethod
    def log_probs(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the logarithms of the probabilities of the tokens from the second on."""
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        return logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]

    def sft(self, model: nn.Module, inputs: Any, num: Any) -> Tensor:
        """Return the mean over all tokens with a label."""
        bears = inputs["labels"][:, 1:] != -100
        return -(self.log_probs(model, inputs["input_ids"], inputs["attention_mask"]) * bears).sum() / num

    def dpo(self, model: nn.Module, inputs: Any, num: Any) -> Tensor:
        """Return the loss of pairs, beta 0.1, against the model as it was."""
        ids, mask, bears = (inputs[name] for name in ("input_ids", "attention_mask", "completion_mask"))
        with torch.no_grad():
            old = (self.log_probs(self.reference, ids, mask) * bears[:, 1:]).sum(1)
        chosen, rejected = ((self.log_probs(model, ids, mask) * bears[:, 1:]).sum(1) - old).chunk(2)
        return -functional.logsigmoid(0.1 * (chosen - rejected)).mean()

    def grpo(self, model: nn.Module, inputs: Any, num: Any) -> Tensor:
        """Return the clipped loss of completions, each as the mean of its tokens."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask, bears = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1), inputs["completion_mask"]
        found = self.log_probs(model, ids, mask)[:, -bears.shape[1] :]
        old = inputs.get("old_per_token_logps")
        ratio = (found - (found.detach() if old is None else old)).exp()
        gain = inputs["advantages"][:, None]
        each = -torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain)
        return ((each * bears).sum(1) / bears.sum(1).clamp(min=1)).mean()


# -- the table ---------------------------------------------------------------------------------------------------------

STACKS: dict[str, Stack] = {
    "sb3 DQN": Baselines("DQN"),
    "sb3 TD3": Baselines("TD3"),
    "sb3 PPO": Baselines("PPO"),
    "torchrl DQN": Losses("DQN"),
    "torchrl TD3": Losses("TD3"),
    "lightning": Fitted(),
    "trainer": Language("trainer"),
    "sft": Language("sft"),
    "dpo": Language("dpo"),
    "grpo": Language("grpo"),
}
LOSS = ("feature_norm", "chain", "dr3", "infer", "sam", "pfo")
"""Terms of a loss on a batch, which the stacks compute by themselves."""
DATA = ("swd", "ere", "least", "random_shift", "replay_ratio", "horizon")
"""Methods of replay, returns and episodes."""
MODULES = ("plasticity_injection", "spectral_normalization", "infer", "knife")
"""Methods that replace modules."""
ELSEWHERE = {"drm", *DATA}
"""Methods of replay and past transitions in Stable-Baselines3: tests/test_third_party_sb3_data.py and _methods.py."""


def refused(stack: str, method: str) -> bool:
    """Return whether a stack has to refuse a method."""
    if stack.startswith("sb3"):
        on_policy = ("plasticity_injection", "spectral_normalization") if stack == "sb3 PPO" else ()
        return method in (*LOSS, *on_policy)
    return method in (*LOSS, *DATA, *MODULES, "drm")


CASES = [
    pytest.param(stack, method, marks=() if method in QUICK.get(stack, ("redo",)) else pytest.mark.slow)
    for stack in STACKS
    for method in INTERVENTIONS
    if not (method in ELSEWHERE and stack.startswith(("sb3", "torchrl") if method == "drm" else "sb3"))
]
NEEDS = {"sb3": "stable_baselines3", "torchrl": "torchrl", "lightning": "lightning", "trainer": "transformers"}


@pytest.mark.parametrize(("stack", "method"), CASES)
def test_a_method_leaves_what_it_leaves_in_a_loop_without_the_stack(stack: str, method: str, tmp_path: Path) -> None:
    pytest.importorskip(NEEDS.get(stack.split()[0], "trl"))
    here = STACKS[stack]
    more = here.settings(method)
    if refused(stack, method):
        with pytest.raises(ValueError, match=r"needs|replaces modules|finds no|has none"):
            here.trained(method_of(method, **more), tmp_path)
        return
    with warnings.catch_warnings():
        found = here.trained(made := method_of(method, **more), tmp_path)
        expected = here.expected(by_hand_too := method_of(method, **more))
        torch.testing.assert_close(found, expected, rtol=here.tolerance, atol=here.tolerance)
        assert made.counts == by_hand_too.counts
        without = here.expected(None)
    assert any(key not in without or not torch.equal(found[key], without[key]) for key in found), "it acts"


@pytest.mark.parametrize(
    ("stack", "method"),
    [
        pytest.param(stack, method, marks=() if (stack, method) == ("lightning", "reset") else pytest.mark.slow)
        for stack in ("lightning", "trainer", "sft")
        for method in INTERVENTIONS
        if not refused(stack, method)
    ],
)
def test_a_run_that_goes_on_is_the_run_without_a_break(stack: str, method: str, tmp_path: Path) -> None:
    pytest.importorskip(NEEDS.get(stack, "trl"))
    whole, parts = STACKS[stack].gone_on(lambda: method_of(method), tmp_path)
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
