"""`plasticity.lightning`: a Trainer fits small modules with one callback; Fabric needs two lines."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from torch import Tensor, nn

pl = pytest.importorskip("lightning.pytorch")

from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import plasticity  # noqa: E402
from plasticity.interventions import L2Init, ReDo, Reset, SpectralNormalization  # noqa: E402
from plasticity.lightning import PlasticityCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "ignore:.*:UserWarning", "ignore::FutureWarning")
PROBES = ["dormancy", "grama", "rank"]


def make_net() -> nn.Sequential:
    """Return an MLP."""
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))


class Fits(pl.LightningModule):
    """One network with a forward, called as ``self(x)``."""

    def __init__(self, rate: float = 1e-2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.rate = make_net(), rate

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return (self(batch[0]) - batch[1]).square().mean()

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("fit", (self(batch[0]) - batch[1]).square().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.rate)


class Inner(Fits):
    """The network is called inside, by its own name."""

    forward = pl.LightningModule.forward

    def training_step(self, batch: Any, index: int) -> Tensor:
        return (self.net(batch[0]) - batch[1]).square().mean()


class Two(pl.LightningModule):
    """Two networks with an optimizer each, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.actor, self.critic, self.automatic_optimization = make_net(), make_net(), False

    def training_step(self, batch: Any, index: int) -> None:
        x, y = batch
        for network, optimizer in zip((self.critic, self.actor), self.optimizers(), strict=True):
            loss = (
                (self.critic(x) - y).square().mean()
                if network is self.critic
                else self.critic(x + self.actor(x)).mean()
            )
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(net.parameters(), 1e-2) for net in (self.critic, self.actor)]


def batches(size: int = 32) -> DataLoader:
    """Return the same batches in the same order every time."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 6, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :1].sin() * 3), size)


def make_trainer(folder: Path, callbacks: list[Any], **more: Any) -> Any:
    """Return a quiet trainer on the CPU."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"enable_checkpointing": False, "max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1}
    return pl.Trainer(default_root_dir=folder, callbacks=callbacks, **{**quiet, **more})


class ByHand(pl.Callback):
    """The units that the activations of a network put out in a step, and the gradients before them, by own hooks."""

    def __init__(self, net: nn.Sequential, callback: PlasticityCallback, network: str, prefix: str) -> None:
        self.callback, self.network, self.prefix, self.compared = callback, network, prefix, 0
        self.units: dict[str, list[Tensor]] = {"0": [], "2": []}
        self.gradients: dict[str, list[Tensor]] = {"0": [], "2": []}
        for index in (1, 3):
            net[index].register_forward_hook(self.see(str(index - 1)))

    def see(self, layer: str) -> Any:
        """Return a hook of an activation."""

        def hook(module: nn.Module, args: tuple, h: Tensor) -> None:
            if args[0].requires_grad:
                self.units[layer].append(h.detach().clone())
                args[0].register_hook(lambda g: self.gradients[layer].append(g.detach().clone()))

        return hook

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Compare, once a step is over."""
        if trainer.global_step == self.compared:
            return
        self.compared += 1
        reading = self.callback.last[self.network]
        for layer in self.units:
            h, gradient = (reference.rows(torch.cat(found[layer])) for found in (self.units, self.gradients))
            name = f"{self.prefix}{layer}"
            scores = {probe: reading.scores[probe][name].numpy(force=True) for probe in ("dormancy", "grama")}
            np.testing.assert_allclose(scores["dormancy"], reference.scores(h), rtol=1e-5)
            np.testing.assert_allclose(scores["grama"], reference.scores(gradient), rtol=1e-5, atol=1e-7)
            rank = reference.ranks(h)["effective_rank"]
            assert reading.values["effective_rank"][name] == pytest.approx(rank, rel=1e-5)
            self.units[layer].clear()
            self.gradients[layer].clear()


@pytest.mark.parametrize("kind", ["self(x)", "inner", "accumulated", "bf16"])
def test_the_numbers_are_those_of_own_hooks(kind: str, tmp_path: Path) -> None:
    module = Inner() if kind == "inner" else Fits()
    more = {"accumulated": {"accumulate_grad_batches": 2}, "bf16": {"precision": "bf16-mixed"}}.get(kind, {})
    callback = PlasticityCallback("net" if kind == "inner" else None, PROBES, every=1)
    network, prefix = ("net", "") if kind == "inner" else ("model", "net.")
    hand = ByHand(module.net, callback, network, prefix)
    logger = pl.loggers.CSVLogger(tmp_path)
    trainer = make_trainer(tmp_path, [callback, hand], logger=logger, **more)
    trainer.fit(module, batches())
    assert hand.compared == trainer.global_step == (4 if kind == "accumulated" else 8)
    value = trainer.callback_metrics[f"plasticity/{network}/grama/all"]
    assert float(value) == pytest.approx(callback.last[network].values["grama"]["all"])
    text = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert f"plasticity/{network}/dormancy/{prefix}0" in text


def test_networks_with_an_optimizer_each(tmp_path: Path) -> None:
    module, callback = Two(), PlasticityCallback(["actor", "critic"], PROBES, every=1)
    hand = ByHand(module.actor, callback, "actor", "")
    hand.on_train_batch_end = lambda *_: None  # type: ignore[method-assign]
    make_trainer(tmp_path, [callback, hand], max_steps=2).fit(module, batches())
    assert {*callback.last} == {"actor", "critic"}
    h = reference.rows(hand.units["0"][-1])
    np.testing.assert_allclose(callback.last["actor"].scores["dormancy"]["0"].numpy(), reference.scores(h), rtol=1e-5)
    assert callback.last["critic"].num_passes == 1, "the actor's pass through the critic is not the critic's"


@pytest.mark.parametrize("make", [Fits, Two])
def test_no_bit_of_fitting_changes(make: Any, tmp_path: Path) -> None:
    finals = []
    for callbacks in ([], [PlasticityCallback(None if make is Fits else ["actor", "critic"], PROBES, every=1)]):
        module = make()
        make_trainer(tmp_path, callbacks).fit(module, batches())
        finals.append(dict(module.state_dict()))
    torch.testing.assert_close(*finals, rtol=0, atol=0)


def test_a_run_that_goes_on_is_the_run_without_a_break(tmp_path: Path) -> None:
    def callback() -> PlasticityCallback:
        return PlasticityCallback("net", PROBES, every=3, interventions=[ReDo(every=3, threshold=0.3)])

    whole, first, parts = Inner(), Inner(), Inner()
    made = callback()
    make_trainer(tmp_path, [made], max_epochs=4).fit(whole, batches())
    trainer = make_trainer(tmp_path, [callback()], max_epochs=2)
    trainer.fit(first, batches())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = callback()
    make_trainer(tmp_path, [again], max_epochs=4).fit(parts, batches(), ckpt_path=tmp_path / "half.ckpt")
    torch.testing.assert_close(dict(parts.state_dict()), dict(whole.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(again.last["net"].values, made.last["net"].values, rtol=0, atol=0, equal_nan=True)
    assert again._guest.callbacks[1].counts == made._guest.callbacks[1].counts


def test_the_state_is_among_those_of_all_callbacks_and_an_older_place_is_still_read(tmp_path: Path) -> None:
    def trainer(epochs: int) -> tuple[Any, L2Init, ReDo]:
        methods = L2Init(coef=0.1), ReDo(every=3, threshold=0.3)
        return make_trainer(
            tmp_path, [PlasticityCallback("net", every=3, interventions=methods)], max_epochs=epochs
        ), *methods

    first, _, redo = trainer(1)
    first.fit(Inner(), batches())
    first.save_checkpoint(tmp_path / "new.ckpt")
    saved = torch.load(tmp_path / "new.ckpt", weights_only=False)
    state = saved["callbacks"]["PlasticityCallback"]
    assert {*state} == {"Measure", "l2_init", "redo"}
    saved["plasticity"] = saved["callbacks"].pop("PlasticityCallback")
    torch.save(saved, tmp_path / "old.ckpt")
    finals = []
    for place in ("new", "old"):
        module, (again, _, restored) = Inner(), trainer(3)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*callbacks used to create the checkpoint need to be provided")
            again.fit(module, batches(), ckpt_path=tmp_path / f"{place}.ckpt")
        assert restored.counts["recycled"] > redo.counts["recycled"] > 0
        finals.append(dict(module.state_dict()))
    torch.testing.assert_close(*finals, rtol=0, atol=0)


def test_a_state_of_other_networks_is_refused_in_words_and_one_of_other_methods_is_fine(tmp_path: Path) -> None:
    def trainer(modules: Any, *methods: Any) -> Any:
        return make_trainer(tmp_path, [PlasticityCallback(modules, every=3, interventions=methods)], max_epochs=3)

    before = ReDo(every=3, threshold=0.3)
    first = make_trainer(tmp_path, [PlasticityCallback("actor", every=3, interventions=[before])], max_epochs=1)
    first.fit(Two(), batches())
    first.save_checkpoint(tmp_path / "actor.ckpt")
    for modules in ("critic", ["actor", "critic"]):
        with pytest.raises(
            ValueError, match=r"other networks or layers \('critic'; raised by redo\).*choose those of the run"
        ):
            trainer(modules, ReDo(every=3)).fit(Two(), batches(), ckpt_path=tmp_path / "actor.ckpt")
    redo = ReDo(every=3, threshold=0.3)
    trainer("actor", L2Init(coef=0.1), redo).fit(Two(), batches(), ckpt_path=tmp_path / "actor.ckpt")
    assert (before.counts["applications"], redo.counts["applications"]) == (1, 4), "it went on from the first"


class ByHandCompiled(Inner):
    """The forward of the network is compiled; it has run already."""

    def __init__(self) -> None:
        super().__init__()
        self.net.forward = torch.compile(self.net.forward, backend="aot_eager")
        self.net(torch.ones(32, 6)).sum().backward()
        self.zero_grad()


def test_a_forward_compiled_by_hand_is_read(tmp_path: Path) -> None:
    module, callback = ByHandCompiled(), PlasticityCallback("net", PROBES, every=1)
    eager, reference = Inner(), PlasticityCallback("net", PROBES, every=1)
    for one, looks in ((module, callback), (eager, reference)):
        make_trainer(tmp_path, [looks], max_steps=3).fit(one, batches())
    torch.testing.assert_close(callback.last["net"].scores, reference.last["net"].scores)


def test_wrong_use_says_what_to_do(tmp_path: Path) -> None:
    def fit(module: Any, *callbacks: Any, **more: Any) -> None:
        make_trainer(tmp_path, list(callbacks), max_steps=1, **more).fit(module, batches())

    one = PlasticityCallback()
    for twice in ((one, one), (PlasticityCallback("net"), PlasticityCallback())):
        with pytest.raises(ValueError, match="two PlasticityCallbacks; give one"):
            fit(Fits(), *twice)
    with pytest.raises(ValueError, match=r"Inner has no forward: name what its training_step calls.*there are net"):
        fit(Inner(), PlasticityCallback())
    with pytest.raises(ValueError, match="Fits has no policy; there are net"):
        fit(Fits(), PlasticityCallback("policy"))
    with pytest.raises(ValueError, match="mask names nett; the networks are net"):
        fit(Fits(), PlasticityCallback("net", mask={"nett": lambda x: x}))
    with pytest.raises(ValueError, match=r"without torch\.compile"):
        fit(torch.compile(Fits(), backend="eager"), PlasticityCallback())
    with pytest.raises(ValueError, match="spectral_normalization replaces modules"):
        fit(Fits(), PlasticityCallback(interventions=[SpectralNormalization()]))
    with pytest.raises(TypeError, match="modules is a name of a network"):
        PlasticityCallback(Fits().net)
    for mask, where in (("attention_mask", "mask is"), ({"net": 5}, "mask of net is")):
        with pytest.raises(TypeError, match=f"{where} a bool tensor, or a function of the arguments"):
            PlasticityCallback("net", mask=mask)
    with pytest.raises(TypeError, match="made by calling their classes"):
        PlasticityCallback(interventions=[ReDo])
    with pytest.warns(RuntimeWarning, match=r"nothing is measured in trainer.validate\(\)"):
        make_trainer(tmp_path, [PlasticityCallback()]).validate(Fits(), batches(), verbose=False)
    with pytest.warns(RuntimeWarning, match="name of what training calls|was not measured|nothing was measured"):
        make_trainer(tmp_path, [PlasticityCallback(None, every=1)], max_steps=2).fit(Uncalled(), batches())


class Compiled(Inner):
    """The training step calls a compiled twin of the network; it must not come so far."""

    def __init__(self) -> None:
        super().__init__()
        self.fast = torch.compile(self.net, backend="eager")

    def training_step(self, batch: Any, index: int) -> Tensor:
        raise AssertionError("a batch was run")

    validation_step = training_step


class InPlace(Compiled):
    """The network itself is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.net = self.fast
        del self.fast


@pytest.mark.parametrize("kind", [Compiled, InPlace])
@pytest.mark.parametrize("names", ["net", None])
def test_a_compiled_network_is_refused_before_any_batch(kind: Any, names: str | None, tmp_path: Path) -> None:
    module = kind()
    if names is None:
        kind.forward = lambda self, x: self.net(x)
    with pytest.raises(ValueError, match=r"the network .* is compiled.*train without torch\.compile while plasticity"):
        make_trainer(tmp_path, [PlasticityCallback(names)]).fit(module, batches(), batches())


def test_what_never_came_about_is_said_once_at_the_end(tmp_path: Path) -> None:
    callback = PlasticityCallback("net", every=9, interventions=[ReDo(every=9), Reset(every=100), Reset(at=(3,))])
    trainer = make_trainer(tmp_path, [callback])
    words = (
        r"every=9 is not within the 8 .*only the first .*; redo never acted: .* after 9 gradient.*; reset never acted"
    )
    with pytest.warns(RuntimeWarning, match=words) as told:
        trainer.fit(Inner(), batches())
    assert "reset_2" not in str(told[0].message)
    assert len([one for one in told if issubclass(one.category, RuntimeWarning)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        make_trainer(tmp_path, [PlasticityCallback("net", every=7, interventions=[ReDo(every=8)])]).fit(
            Inner(), batches()
        )


class Replaces(Inner):
    """The network is made anew after two batches."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == 2:
            self.net = make_net()
            self.trainer.optimizers[0].param_groups[0]["params"] = [*self.net.parameters()]


def test_a_network_that_is_replaced_meanwhile_is_named(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="net was replaced while training ran"):
        make_trainer(tmp_path, [PlasticityCallback("net", [], interventions=[L2Init()])]).fit(Replaces(), batches())


def test_evaluation_after_fitting_needs_no_warning(tmp_path: Path) -> None:
    module, trainer = Fits(), make_trainer(tmp_path, [PlasticityCallback(every=2)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        trainer.fit(module, batches())
        trainer.validate(module, batches(), verbose=False)


class Skips(Fits):
    """Leave out every second batch, as Lightning allows: the optimizer is called, without any gradient."""

    def training_step(self, batch: Any, index: int) -> Any:
        return None if index % 2 else super().training_step(batch, index)


@pytest.mark.filterwarnings("ignore:.*training_step. returned .None.")
def test_a_batch_that_is_left_out_stops_no_training(tmp_path: Path) -> None:
    callback = PlasticityCallback("net", every=1, interventions=[ReDo(every=2)])
    trainer = make_trainer(tmp_path, [callback])
    with pytest.warns(RuntimeWarning, match="was not measured at optimizer step 2: no data"):
        trainer.fit(Skips(), batches())
    assert trainer.state.finished
    assert "net" in callback.last


class Uncalled(Fits):
    """A forward that the training step does not call."""

    def training_step(self, batch: Any, index: int) -> Tensor:
        return (self.net(batch[0]) - batch[1]).square().mean()


def test_validation_is_not_counted_and_an_exception_leaves_nothing(tmp_path: Path) -> None:
    module, callback = Fits(), PlasticityCallback(None, ["dormancy"], every=1, log=tmp_path / "log")
    make_trainer(tmp_path, [callback]).fit(module, batches(), batches())
    assert callback.last["model"].num_passes == 1
    assert (tmp_path / "log" / "metrics.jsonl").exists()

    class Stop(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make_trainer(tmp_path, [callback, Stop()]).fit(module, batches())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        make_trainer(tmp_path, [PlasticityCallback(None, ["dormancy"], every=4)]).fit(module, batches())


def test_fabric_needs_two_lines(tmp_path: Path) -> None:
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
    net = make_net()
    inner = torch.optim.Adam(net.parameters(), 1e-2)
    model, optimizer = fabric.setup(net, inner)
    with plasticity.watch(net, inner, every=1, log=None) as session:
        for x, y in batches():
            optimizer.zero_grad()
            fabric.backward((model(x) - y).square().mean())
            optimizer.step()
    assert session.last["model"].num_passes == 1
    with plasticity.watch(net, optimizer, every=1, log=None) as session:  # the wrapper will do, too
        optimizer.zero_grad()
        fabric.backward(model(torch.ones(32, 6)).mean())
        optimizer.step()
    assert session.last["model"].num_passes == 1
