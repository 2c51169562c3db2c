"""`plasticity.torchrl` in a trainer: numbers in its logger, state in its checkpoints."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

pytest.importorskip("torchrl")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchrl.trainers import Trainer

from test_third_party_torchrl import batch_of, loss_of

from plasticity.interventions import ReDo
from plasticity.torchrl import PlasticityHook

pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning", "ignore:.*:UserWarning")
]


class Batches:
    """A collector of random transitions."""

    init_random_frames = 0

    def __init__(self, loss: Any, num: int) -> None:
        self.loss, self.num, self.generator = loss, num, torch.Generator().manual_seed(0)

    def __iter__(self) -> Any:
        for _ in range(self.num):
            yield batch_of(self.loss, self.generator)

    def shutdown(self) -> None:
        """Do nothing."""

    def state_dict(self) -> dict:
        """Return the generator's state."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        """Go on from there."""
        self.generator.set_state(state["generator"])


class Log:
    """A logger of scalars."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, int]] = []

    def log_scalar(self, name: str, value: Any, step: int | None = None) -> None:
        """Keep a scalar."""
        self.rows.append((name, float(value), step))


def trainer_of(batches: int, every: int = 2, file: Any = None) -> tuple[Any, PlasticityHook, ReDo, Log]:
    """Return a trainer with a hook; ``file``: of its checkpoints."""
    torch.manual_seed(0)
    loss, log = loss_of("SAC"), Log()
    optimizer = torch.optim.Adam(loss.parameters(), 1e-3)
    trainer = Trainer(
        collector=Batches(loss, batches),
        total_frames=64 * batches,
        frame_skip=1,
        optim_steps_per_batch=2,
        loss_module=loss,
        optimizer=optimizer,
        logger=log,
        progress_bar=False,
        save_trainer_file=file,
    )
    redo = ReDo(every=3)
    hook = PlasticityHook(loss, optimizer, ["dormancy", "grama"], every=every, interventions=[redo], diagnose_every=4)
    hook.register(trainer)
    return trainer, hook, redo, log


def test_a_trainer_logs_and_its_state_goes_on() -> None:
    torch.manual_seed(0)
    trainer, hook, redo, log = trainer_of(4)
    trainer.train()
    names = {name for name, _, _ in log.rows}
    assert {f"plasticity/{n}/dormancy/all" for n in ("actor_network", "qvalue_network_0", "qvalue_network_1")} <= names
    assert {f"plasticity/qvalue_network_1/fit_{kind}/all" for kind in ("aged", "fresh", "gap")} <= names
    assert redo.counts["applications"] >= 2
    assert max(step for name, _, step in log.rows if name.startswith("plasticity/")) > 64
    state = hook.state_dict()

    resumed, other_hook, other, _ = trainer_of(2)
    other_hook.load_state_dict(state)
    assert torch.equal(other.generator.get_state(), redo.generator.get_state())
    assert other.counts == redo.counts
    resumed.train()
    assert other_hook._guest.measure.watcher.steps() == [12]
    with pytest.raises(ValueError, match="the state is of"):
        PlasticityHook(loss_of("SAC"), [], []).load_state_dict(state)


def test_a_checkpoint_of_a_trainer_goes_on_to_the_bit(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_BACKEND", "torch")
    whole, _, _, _ = trainer_of(6)
    whole.train()
    first, _, redo, _ = trainer_of(3, file=tmp_path / "trainer.pt")
    first.train()
    first.save_trainer(force_save=True)
    state = torch.get_rng_state()
    second, hook, again, _ = trainer_of(6)
    second.load_from_file(tmp_path / "trainer.pt", weights_only=False)
    assert again.counts == redo.counts
    torch.set_rng_state(state)
    second.collector.num = 3
    second.train()
    assert hook._guest.measure.watcher.steps() == [12]
    expected = dict(whole.loss_module.state_dict())
    torch.testing.assert_close(dict(second.loss_module.state_dict()), expected, rtol=0, atol=0)


def test_a_hook_of_another_loss_is_refused() -> None:
    trainer, hook, _, _ = trainer_of(1)
    with pytest.warns(RuntimeWarning, match="nothing was measured.*; redo never acted"):
        hook.close()
    other = loss_of("SAC")
    with pytest.raises(ValueError, match="another loss module"):
        PlasticityHook(other, torch.optim.Adam(other.parameters())).register(trainer)
