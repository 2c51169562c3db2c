"""measure() on a reference batch, watch() in a training loop."""

from __future__ import annotations

import copy
import math
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F
from test_monitor import hooks_of, noisy
from test_wiring import assert_same, state_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plasticity.measuring import measure
from plasticity.monitor import Monitor
from plasticity.observing.reading import Reading
from plasticity.probes import GradientActivity, Probe, Rank
from plasticity.storage.rows import read_metrics
from plasticity.watching import Watcher, watch
from plasticity.writers.destinations import free_folder

pytestmark = pytest.mark.usefixtures("everywhere")

# -- measure -----------------------------------------------------------------------------------------------------------


def test_measuring_leaves_no_trace_and_repeats() -> None:
    model, batch = noisy(), (models.image(), torch.randn(32, 1))
    F.mse_loss(model(batch[0]), batch[1]).backward()
    before, inputs = state_of(model), [t.clone() for t in batch]
    first = measure(model, batch, F.mse_loss, probes=["dormancy", "grama", "grama_weight", "effective_rank"])
    second = measure(model, batch, F.mse_loss, probes=["dormancy", "grama", "grama_weight", "effective_rank"])
    assert first.values == second.values  # dropout is off
    assert_same(before, state_of(model))
    assert all(torch.equal(a, b) for a, b in zip(inputs, batch, strict=True))
    assert all(t.grad is None and not t.requires_grad for t in batch)
    assert not any(math.isnan(v) for by_layer in first.values.values() for v in by_layer.values())


@pytest.mark.parametrize("with_loss", [False, True])
def test_a_model_that_writes_to_its_input(with_loss: bool) -> None:
    model = models.Net(lambda s, x: s.b(F.relu(s.a(x.mul_(0.5)))), a=nn.Linear(4, 6), b=nn.Linear(6, 1))
    x = torch.randn(32, 4)
    kept = x.clone()
    scores = measure(model, (x, torch.zeros(32, 1)) if with_loss else x, F.mse_loss if with_loss else None).scores
    assert torch.equal(x, kept)
    torch.testing.assert_close(scores["dormancy"]["a"], measure(model, x).scores["dormancy"]["a"])
    with Monitor(model, ["dormancy"]) as monitor:
        model(x.clone())
    torch.testing.assert_close(scores["dormancy"]["a"], monitor.read().scores["dormancy"]["a"])


def test_the_kinds_of_batch() -> None:
    torch.manual_seed(0)
    model, obs, action, y = models.critic(), torch.randn(32, 4), torch.randn(32, 2), torch.randn(32)
    by_position = measure(model, ((obs, action), y), F.mse_loss)
    by_list = measure(model, [[obs, action], y], F.mse_loss)
    by_name = measure(model, ({"obs": obs, "action": action}, y), F.mse_loss)
    assert by_position.values == by_name.values == by_list.values
    assert measure(model, (obs, action)).values["dormancy"] == by_position.values["dormancy"]
    assert set(measure(model, (obs, action)).values) == {"dormancy", *set(by_position.values) - {"dormancy", "grama"}}


def test_a_loss_needs_a_pair_and_gives_one_number() -> None:
    model, x = models.mlp(), torch.randn(32, 4)
    with pytest.raises(ValueError, match=r"batch is the pair \(inputs, targets\); got a tensor of shape \(32, 4\)"):
        measure(model, x, F.mse_loss)
    with pytest.raises(ValueError, match=r"pair \(inputs, targets\); got tuple"):
        measure(model, (x, x, x), F.mse_loss)
    with pytest.raises(ValueError, match=r"loss of one number, or several by name; got a tensor of shape \(32, 2\)"):
        measure(model, (x, None), lambda out, _: out)
    with pytest.raises(RuntimeError, match="shapes"):
        measure(model, torch.randn(3, 9))


def test_a_frozen_model_still_has_gradients_before_its_activations() -> None:
    torch.manual_seed(0)
    model, batch = models.mlp(), (torch.randn(32, 4), torch.randn(32, 2))
    free = measure(model, batch, F.mse_loss)
    model.requires_grad_(False)
    assert measure(model, batch, F.mse_loss).values == free.values


def test_nothing_to_differentiate() -> None:
    model = models.embedding().requires_grad_(False)
    reading = measure(model, (torch.randint(7, (32,)), torch.randn(32, 2)), F.mse_loss)
    assert math.isnan(reading.values["grama"]["all"])
    assert not math.isnan(reading.values["dormancy"]["all"])
    assert "no gradient reached it" in str(reading)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_mode_of_the_caller_does_not_matter(mode: Any) -> None:
    torch.manual_seed(0)
    model, batch = models.mlp(), (torch.randn(32, 4), torch.randn(32, 2))
    expected = measure(model, batch, F.mse_loss).values
    with mode():
        assert measure(model, tuple(t.clone() for t in batch), F.mse_loss).values == expected


def test_the_table_has_a_row_per_layer_and_reasons() -> None:
    text = str(measure(models.mlp(), (torch.randn(32, 4), torch.randn(32, 2)), F.mse_loss))
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["layer", "neurons", "dormancy", "grama"]
    assert [line.split()[:2] for line in lines[1:4]] == [["0", "6"], ["2", "5"], ["all", "11"]]
    assert lines[4] == "not measured: 4 (dormancy, grama, rank): output layer"


def test_a_model_that_is_one_layer_has_a_name_in_the_table() -> None:
    told = str(measure(nn.Linear(3, 2), torch.zeros(4, 3)))
    assert "not measured: the model itself (dormancy, rank): output layer" in told


# -- watch -------------------------------------------------------------------------------------------------------------


class Sac:
    """A loop like SAC's: the actor's loss runs through the critic, targets and acting in between."""

    def __init__(self, order: str = "critic first", freeze: bool = False) -> None:
        torch.manual_seed(0)
        self.critic, self.actor = (
            models.critic(),
            models.Net(lambda s, x: s.b(F.relu(s.a(x))).tanh(), a=nn.Linear(4, 6), b=nn.Linear(6, 2)),
        )
        self.target = copy.deepcopy(self.critic)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), 1e-3)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), 1e-3)
        self.networks = {"actor": self.actor, "critic": self.critic}
        self.optimizers = [self.actor_optimizer, self.critic_optimizer]
        self.order, self.freeze = order, freeze
        self.expected: Reading | None = None

    def update(self, reference: bool = False) -> None:
        """Take one step of both, watching the critic's own loss by hand if ``reference``."""
        self.obs, self.action, self.reward = torch.randn(64, 4), torch.randn(64, 2), torch.randn(64)
        with torch.no_grad():
            self.critic(self.obs, self.actor(self.obs))
        self.critic(self.obs * 3, self.action)  # gradients on, no backward
        for part in (self.critic_step, self.actor_step)[:: 1 if self.order == "critic first" else -1]:
            part(reference)

    def critic_step(self, reference: bool) -> None:
        """Fit the critic."""
        with torch.no_grad():
            target = self.reward + self.target(self.obs, self.actor(self.obs))
        self.critic_optimizer.zero_grad()
        monitor = Monitor(self.critic, ["dormancy", "grama", "grama_weight"])
        if reference:
            monitor.attach()
        F.mse_loss(self.critic(self.obs, self.action), target).backward()
        monitor.detach()
        self.expected = monitor.read() if reference else None
        self.critic_optimizer.step()

    def actor_step(self, reference: bool) -> None:
        """Improve the actor."""
        self.critic.requires_grad_(not self.freeze)
        self.actor_optimizer.zero_grad()
        (-self.critic(self.obs, self.actor(self.obs)).mean()).backward()
        self.critic.requires_grad_(True)
        self.actor_optimizer.step()


@pytest.mark.parametrize("order", ["critic first", "actor first"])
@pytest.mark.parametrize("freeze", [False, True])
def test_the_critic_is_measured_on_its_own_loss(order: str, freeze: bool) -> None:
    loop = Sac(order, freeze)
    probes = ["dormancy", "grama", "grama_weight"]
    with watch(loop.networks, loop.optimizers, every=2, log=None, probes=probes, strict=True) as session:
        for update in range(1, 8):
            loop.update(reference=update % 2 == 1)
            if update % 2 == 1:
                assert session.last["critic"].num_passes == 1
                torch.testing.assert_close(session.last["critic"].scores, loop.expected.scores)
                assert session.last["actor"].num_passes == 1


@pytest.mark.parametrize("order", ["critic first", "actor first"])
def test_a_window_is_of_the_critics_own_steps_alone(order: str) -> None:
    loop, total = Sac(order), torch.zeros(6)
    loop.critic_optimizer.param_groups[0]["lr"] = 0.0
    with watch(
        loop.networks, loop.optimizers, every=4, window=3, log=None, probes=["dormancy"], strict=True
    ) as session:
        for update in range(1, 6):
            loop.update()
            if update >= 3:
                total += loop.critic.a(loop.obs).relu().sum(0).detach()
    reading = session.last["critic"]
    assert reading.num_passes == session.last["actor"].num_passes == 3
    torch.testing.assert_close(reading.scores["dormancy"]["a"].float(), (total / total.mean()).cpu())


def test_what_a_window_keeps_of_its_steps() -> None:
    """Weights' gradients are summed with their signs, a rank is of the last step, a probe of one's own sees all."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[2].weight.fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    probes = {"grama_weight": GradientActivity("weight"), "rank": Rank(["stable_rank"]), "count": Count()}
    with watch(model, optimizer, every=3, window=2, probes=probes, log=None, strict=True) as session:
        for sign, x in (
            (1, [[9.0, 9.0]] * 2),
            (1, [[9.0, 9.0]] * 2),
            (1, [[1.0, 0.0], [0.0, 0.0]]),
            (-1, [[0.5, 0], [0, 2]]),
        ):
            optimizer.zero_grad()
            (sign * model(torch.tensor(x)).sum()).backward()
            optimizer.step()
    reading = session.last["model"]
    assert reading.num_passes == 2
    # dL/dW of the first neuron: (1, 0) - (0.5, 0); of the second -(0, 2): magnitudes 1/4 and 1.
    assert reading.scores["grama_weight"]["0"].tolist() == pytest.approx([0.4, 1.6])
    assert reading.values["stable_rank"]["0"] == pytest.approx(1 + 0.25**2)
    assert reading.values["count"]["0"] == 4


class Count(Probe):
    """The samples of all passes."""

    def reset(self) -> None:
        self.count = 0

    def on_forward(self, activations: Tensor) -> None:
        self.count += len(activations)

    def compute(self) -> Tensor:
        return torch.tensor(float(self.count))


def test_windows_end_where_a_reading_is_due() -> None:
    model, x = models.mlp(), torch.randn(32, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    readings, hooks = [], []
    watcher = Watcher(
        {"net": model}, [optimizer], lambda name, r, step: readings.append((step, r.num_passes)), every=5, window=2
    )
    for _ in range(11):
        hooks.append(hooks_of(model) > 0)
        model(x).sum().backward()
        optimizer.step()
    assert readings == [(1, 1), (6, 2), (11, 2)]
    assert [step for step, hooked in enumerate(hooks, 1) if hooked] == [1, 5, 6, 10, 11]
    watcher.close()


@pytest.mark.parametrize("probes", [["dormancy", "grama", "grama_weight", "rank"], {"count": Count()}])
def test_a_window_goes_on_from_its_state(probes: Any) -> None:
    model = models.mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    batches = [torch.randn(32, 4) for _ in range(100)]
    found: list[Reading] = []

    def run(watcher: Watcher, parts: list[Tensor]) -> None:
        for x in parts:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        watcher.close()

    def new() -> Watcher:
        return Watcher({"net": model}, [optimizer], lambda n, r, s: found.append(r), every=99, window=99, probes=probes)

    run(new(), batches)
    first = new()
    run(first, batches[:72])  # what was seen is added up in parts of 64
    state = copy.deepcopy(
        first.state_dict() | {"armed": ["net"], "gathered": {"net": first.monitors["net"].state_dict()}}
    )
    second = new()
    second.load_state_dict(state)
    run(second, batches[72:])
    assert [reading.num_passes for reading in found] == [1, 99, 1, 99]
    assert found[1].values == found[3].values
    assert all(
        torch.equal(a, b)
        for p in found[1].scores
        for a, b in zip(*(found[i].scores[p].values() for i in (1, 3)), strict=True)
    )


def test_watching_changes_nothing_that_is_learned() -> None:
    results = []
    for watched in (False, True):
        loop = Sac()
        session = watch(loop.networks, loop.optimizers, every=3, log=None, strict=True) if watched else None
        for _ in range(10):
            loop.update()
        if session:
            session.close()
        results.append([*loop.critic.state_dict().values(), *loop.actor.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_one_step_in_every_so_many_and_nothing_in_between() -> None:
    model, x = models.mlp(), torch.randn(32, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    steps, hooks = [], []
    watcher = Watcher({"net": model}, [optimizer], lambda name, reading, step: steps.append(step), every=4)
    for _ in range(10):
        hooks.append(hooks_of(model) > 0)
        model(x).sum().backward()
        optimizer.step()
    assert steps == [1, 5, 9]
    assert hooks == [True, False, False, False] * 2 + [True, False]
    watcher.close()
    watcher.close()
    assert hooks_of(model) == 0
    assert not optimizer._optimizer_step_post_hooks


def test_gradients_accumulated_over_one_step() -> None:
    model, x = models.mlp(), torch.randn(32, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer, every=1, log=None) as session:
        for num in (1, 3):
            for _ in range(num):
                model(x).sum().backward()
            optimizer.step()
            assert session.last["model"].num_passes == num


@pytest.mark.parametrize("order", [1, -1])
def test_a_joint_loss_with_two_optimizers(order: int) -> None:
    encoder, head, x = models.mlp(), nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1)), torch.randn(32, 4)
    optimizers = [torch.optim.SGD(encoder.parameters(), 0.1), torch.optim.SGD(head.parameters(), 0.1)]
    with watch({"encoder": encoder, "head": head}, optimizers, every=1, log=None, strict=True) as session:
        for _ in range(3):
            with Monitor(head, ["grama"]) as monitor:
                head(encoder(x)).square().mean().backward()
            for optimizer in optimizers[::order]:
                optimizer.step()
            torch.testing.assert_close(session.last["head"].scores["grama"], monitor.read().scores["grama"])
            assert session.last["encoder"].num_passes == session.last["head"].num_passes == 1


def test_an_optimizer_that_takes_a_closure() -> None:
    model, x = models.mlp(), torch.randn(32, 4)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    with watch(model, optimizer, every=1, log=None, strict=True) as session:
        optimizer.step(closure)
        assert session.last["model"].num_passes >= 1


def test_a_loop_that_never_calls_the_network_is_told() -> None:
    model = models.mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer, every=1, log=None) as session, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            model[4](model[3](model[2](model[1](model[0](torch.randn(32, 4)))))).sum().backward()
            optimizer.step()
    assert len(seen) == 1
    assert "model was not measured at optimizer step 1: no data: training called parts of" in str(seen[0].message)
    assert not session.last


def test_refusals() -> None:
    model, other = models.mlp(), models.mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="none of the 1 optimizers trains model"):
        watch(other, optimizer, log=None)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        watch(model, optimizer, every=0, log=None)
    with pytest.raises(ValueError, match=r"window is .*, from 1 to every, which is 2; got 3"):
        watch(model, optimizer, every=2, window=3, log=None)
    with pytest.raises(ValueError, match="from 1 to 1, because the steps are not known in advance; got 2"):
        Watcher({"net": model}, [optimizer], lambda *reading: None, due=lambda network, step: True, window=2)
    with pytest.raises(ValueError, match="compiled"):
        watch(torch.compile(model, backend="eager"), optimizer, log=None)
    with pytest.raises(ValueError, match="unknown probe"):
        watch(model, optimizer, probes=["gramma"], log=None)
    assert hooks_of(model) == 0
    assert not optimizer._optimizer_step_post_hooks


def test_files_only_where_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, x = models.mlp(), torch.randn(32, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for folder in (None, tmp_path / "run"):
        with watch(model, optimizer, every=1, log=folder) as session:
            model(x).sum().backward()
            optimizer.step()
        session.close()
        session.close()
        assert session.last["model"].values
        assert [p.name for p in tmp_path.iterdir()] == ([] if folder is None else ["run"])
    text = "".join(p.read_text() for p in (tmp_path / "run").glob("*.jsonl"))
    assert "plasticity/model/dormancy/all" in text


def test_a_second_session_takes_the_next_free_name_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = models.mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for name in ("run", "run_2", "run_3"):
        with watch(model, optimizer, every=1, log=tmp_path / "run"):
            model(torch.randn(32, 4)).sum().backward()
            optimizer.step()
        said = f"plasticity: writing to {tmp_path / name}; see it with: plasticity dashboard {tmp_path}\n"
        assert capsys.readouterr().err == said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run_2", "run_3"]


def test_numbers_of_the_loop_are_logged_as_means(tmp_path: Path) -> None:
    model = models.mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer, every=2, log=tmp_path / "run", probes=["dormancy"]) as session:
        for step in range(5):
            model(torch.randn(32, 4)).sum().backward()
            optimizer.step()
            session.log(loss=torch.tensor(float(step), requires_grad=True), rate=0.5)
    session.log(loss=99.0)  # after its end
    rows = [row for row in read_metrics(tmp_path / "run") if "losses/loss" in row]
    assert [(row["step"], row["losses/loss"], row["losses/rate"]) for row in rows] == [
        (2, 0.5, 0.5),
        (4, 2.5, 0.5),
        (5, 4.0, 0.5),
    ]
    with watch(model, optimizer, every=2, log=None) as session:
        session.log(loss=1.0)
        model(torch.randn(32, 4)).sum().backward()
        optimizer.step()


def test_readings_are_tables_in_print_repr_and_notebooks() -> None:
    model = models.mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch({"a<b": model}, optimizer, every=1, log=None) as session:
        assert str(session.last) == "nothing was measured yet"
        model(torch.randn(32, 4)).sum().backward()
        optimizer.step()
    reading = session.last["a<b"]
    assert repr(reading) == str(reading)
    assert "tensor(" not in repr(reading)
    assert str(session.last) == f"a<b\n{reading}" == repr(session.last)
    page = session.last._repr_html_()
    assert page.startswith("<h4>a&lt;b</h4><table><tr><th")
    assert re.findall(r"<th[^>]*>(\w+)</th>", page)[:2] == ["layer", "neurons"]
    assert page.count("<tr>") == len(reading.num_neurons) + 2
    assert "<p>not measured: " in page


def test_refused_arguments_create_no_folder(tmp_path: Path) -> None:
    model = models.mlp()
    with pytest.raises(ValueError, match="unknown probe"):
        watch(model, torch.optim.SGD(model.parameters(), 0.1), probes=["gramma"], log=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of a checkpoint within another
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("part", ["first", "middle", "nested", "all"])
def test_measure_under_checkpointing(part: str, use_reentrant: bool) -> None:
    """The reading is that without; no gradient stays, and no optimizer runs that steps in the backward pass."""

    def again(function: Any, *args: Any) -> Any:
        return checkpoint(function, *args, use_reentrant=use_reentrant)

    def layer(s: Any, name: str, h: Tensor) -> Tensor:
        return F.relu(getattr(s, name)(h))

    def forward(s: Any, x: Tensor) -> Tensor:
        def body(x: Tensor) -> Tensor:
            h = again(lambda x: layer(s, "a", x), x) if part in ("first", "nested") else layer(s, "a", x)
            return again(lambda h: layer(s, "b", h), h) if part in ("middle", "nested") else layer(s, "b", h)

        return s.c(again(body, x) if part in ("nested", "all") else body(x))

    model, plain, x = models.Net(forward, **models.linears(4, 6, 5, 2)), models.functional(), torch.randn(32, 4)
    plain.load_state_dict(model.state_dict())
    stepped: list[Tensor] = []
    model.a.weight.grad = torch.ones_like(model.a.weight)
    model.b.weight.register_post_accumulate_grad_hook(stepped.append)
    found, expected = (
        measure(net, (x, None), lambda out, _: out.square().mean(), probes=["dormancy", "grama", "grama_weight"])
        for net in (model, plain)
    )
    torch.testing.assert_close(found.scores, expected.scores)
    assert torch.equal(model.a.weight.grad, torch.ones_like(model.a.weight))
    assert model.c.weight.grad is None
    assert not stepped
    model(x.requires_grad_()).sum().backward()
    assert len(stepped) == 1


def test_processes_that_open_one_folder_at_once_get_one_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: free_folder(tmp_path / "run"), range(64)))
    assert len({*folders}) == 64
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        free_folder(tmp_path / "file")


def test_layers_of_hidden_units_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    every = measure(model, torch.randn(32, 4), probes=["dormancy"])
    units = measure(model, torch.randn(32, 4), probes=["dormancy"], layers="units")
    assert [*every.scores["dormancy"]] == ["0", "2", "3"]
    assert [*units.scores["dormancy"]] == ["0", "3"]
    with pytest.raises(ValueError, match="layers is a list of globs, or 'units'; got the text 'mlp'"):
        measure(model, torch.randn(32, 4), layers="mlp")


@pytest.mark.parametrize("steps", [0, 2.5, True, "3", float("nan")])
@pytest.mark.parametrize("name", ["every", "window"])
def test_steps_are_whole_numbers(name: str, steps: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))
    with pytest.raises(ValueError, match=f"{name} is a whole number of optimizer steps, at least 1; got {steps!r}"):
        watch(model, torch.optim.SGD(model.parameters(), 0.1), log=None, **{name: steps})
