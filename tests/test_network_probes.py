"""Probes of whole networks: curvature, tangent kernel, gradients of samples, transformers; golden and exact values."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kurtosis
from torch import Tensor, nn

import plasticity
from plasticity.interventions.trigger import Trigger
from plasticity.measuring import Measure, measure
from plasticity.probes import Again, NetworkProbe, NotMeasurable
from plasticity.probes.curvature import Hessian, Sharpness, lanczos
from plasticity.probes.kernel import SampleGradients, TangentKernel
from plasticity.probes.transformer import relative_entropy
from plasticity.testing.runs import QUICK_RUNS, SHORT, command, last_state, require_same, rows


class Quadratic(nn.Module):
    """L = 1/2 theta^T diag(curvatures) theta."""

    def __init__(self, *curvatures: float) -> None:
        super().__init__()
        self.curvatures, self.theta = torch.tensor(curvatures), nn.Parameter(torch.ones(len(curvatures)))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (self.curvatures * self.theta.square()).sum()


def again(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Again:
    return Again(model, (x,), objective=lambda: loss(model(x)))


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))


# -- golden numbers ----------------------------------------------------------------------------------------------------


def test_golden_curvature() -> None:
    found = Hessian().measure(again(Quadratic(2, 0.5), torch.zeros(1), lambda out: out))
    assert float(found["hessian_top"]) == pytest.approx(2)
    assert float(found["hessian_bottom"]) == pytest.approx(0.5)
    assert float(found["hessian_trace"]) == pytest.approx(2.5)


def test_golden_sharpness() -> None:
    model = Quadratic(2)
    before, storage = model.theta.detach().clone(), model.theta.data_ptr()
    found = Sharpness(0.1).measure(again(model, torch.zeros(1), lambda out: out))
    assert float(found["sharpness"]) == pytest.approx(0.21, rel=1e-5)
    assert torch.equal(model.theta, before)
    assert model.theta.data_ptr() == storage
    assert model.theta.grad is None


def test_golden_kernel() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (2, 0, 3, 1), strict=True):
            parameter.fill_(value)
    kernel = TangentKernel().kernel(Again(model, (torch.tensor([[1.0], [2], [-1]]),)))
    assert kernel.tolist() == [[23, 36, 1], [36, 62, 1], [1, 1, 1]]
    assert torch.linalg.eigvalsh(kernel).tolist() == pytest.approx([0.814826, 1.720352, 83.464822], abs=1e-6)


def test_golden_entropy() -> None:
    weights = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]]).double()
    found = relative_entropy(weights, weights > 0).tolist()
    assert found[0] == pytest.approx(1)
    assert math.isnan(found[1]), "one key is no choice"
    assert found[2] == pytest.approx(1), "masked keys do not count"
    weights = torch.tensor([0.7, 0.1, 0.1, 0.1]).double()
    assert float(relative_entropy(weights, weights > 0)) == pytest.approx(0.678390, abs=1e-5)


@pytest.mark.parametrize("how", ["module", "function", "by hand"])
def test_heads_whose_weights_underflow_are_collapsed_and_not_masked(how: str) -> None:
    model, x = Attends(how), torch.randn(4, 5, 8)
    entropy = measure(model, 1e3 * x, probes=["attention"]).values["attention_low"]["all"]
    assert entropy == pytest.approx(0, abs=0.01)
    with torch.no_grad():
        _, weights = model.mha(*3 * [20 * x], average_attn_weights=False)
    assert (weights == 0).any()
    expected = torch.special.entr(weights.double()).sum(-1).mean((0, 2)).min() / math.log(5)
    found = measure(model, 20 * x, probes=["attention"]).values["attention_low"]["all"]
    assert found == pytest.approx(float(expected), rel=1e-3)


# -- against exact ones ------------------------------------------------------------------------------------------------


def test_the_ends_of_the_spectrum_and_the_trace_are_those_of_the_exact_hessian() -> None:
    model, x, y = mlp(), torch.randn(16, 3), torch.randn(16, 2)
    names, values = zip(*model.named_parameters(), strict=True)
    sizes = [v.numel() for v in values]

    def loss(flat: Tensor) -> Tensor:
        parts = [part.view_as(v) for part, v in zip(flat.split(sizes), values, strict=True)]
        return F.mse_loss(torch.func.functional_call(model, dict(zip(names, parts, strict=True)), x), y)

    exact = torch.autograd.functional.hessian(loss, torch.cat([v.detach().flatten() for v in values])).double()
    eigenvalues = torch.linalg.eigvalsh(exact)
    probe = Hessian(steps=40, samples=3000)
    found = probe.measure(again(model, x, lambda out: F.mse_loss(out, y)))
    assert float(found["hessian_top"]) == pytest.approx(float(eigenvalues[-1]), rel=1e-5)
    assert float(found["hessian_bottom"]) == pytest.approx(float(eigenvalues[0]), rel=1e-3)
    assert float(found["hessian_trace"]) == pytest.approx(float(exact.trace()), rel=0.05)
    known = lanczos(lambda v: exact @ v, len(exact), len(exact), torch.Generator().manual_seed(1), exact.device)
    assert float(known[-1]) == pytest.approx(float(eigenvalues[-1]), rel=1e-6)


class Mixed(nn.Module):
    """Convolutions, in-place activations, norms, a layer that is called twice, and one over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, stride=2, padding=1, padding_mode="circular"), nn.LayerNorm(4)
        self.line, self.shared, self.head = nn.Conv1d(4, 4, 2, bias=False), nn.Linear(4, 4), nn.Linear(4, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.conv(x)).flatten(2)
        h = self.norm(self.line(h).transpose(1, 2))
        return self.head(self.act(self.shared(torch.tanh(self.shared(h))))).mean(1)


CASES = {"mlp": (mlp, (12, 3)), "mixed": (Mixed, (6, 2, 5, 5))}


def jacobian(model: nn.Module, x: Tensor, y: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the gradients of ``function(output, target)`` of every sample by ``torch.func``, (samples, parameters)."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # which vmap refuses
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def of(parameters: dict[str, Tensor], sample: Tensor, target: Tensor) -> Tensor:
        return function(torch.func.functional_call(model, parameters, sample[None]), target)  # type: ignore[arg-type]

    grads = torch.func.vmap(torch.func.grad(of), (None, 0, 0))(parameters, x.double(), y.double())
    return torch.cat([g.flatten(1) for g in grads.values()], 1)


@pytest.mark.parametrize("case", CASES)
def test_kernels_are_those_of_the_jacobian(case: str) -> None:
    torch.manual_seed(0)
    model, x = CASES[case][0](), torch.randn(CASES[case][1])
    jac = jacobian(model, x, x, lambda out, target: out.sum())
    kernel = TangentKernel().kernel(Again(model, (x,)))
    torch.testing.assert_close(kernel, jac @ jac.T, rtol=1e-5, atol=1e-6)
    found = TangentKernel().measure(Again(model, (x,)))
    p = torch.linalg.eigvalsh(jac @ jac.T).clamp_min(0)
    p = p / p.sum()
    effective = float(torch.distributions.Categorical(p).entropy().exp())
    assert float(found["ntk_effective_rank"]) == pytest.approx(effective, rel=1e-5)
    assert float(found["ntk_rank"]) == int((p > 1e-6 * p.max()).sum())
    singular = torch.linalg.svdvals(jac / jac.norm(dim=1, keepdim=True))
    assert float(found["ntk_null_ratio"]) == float((singular <= 1e-5 * singular[0]).double().mean())


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_samples_are_those_of_the_jacobian(case: str) -> None:
    torch.manual_seed(0)
    model, x = CASES[case][0](), torch.randn(CASES[case][1])
    n = len(x)
    y = torch.randn(model(x).shape)
    jac = jacobian(model, x, y, lambda out, target: (out - target).square().mean() / n)
    found = SampleGradients().measure(again(model, x, lambda out: F.mse_loss(out, y)))
    a, b = jac[: n // 2].sum(0), jac[n // 2 :].sum(0)
    assert float(found["half_cosine"]) == pytest.approx(float(F.cosine_similarity(a, b, dim=0)), rel=1e-4)
    values = torch.linalg.svdvals(jac - jac.mean(0)).square()
    assert float(found["gradient_top_share"]) == pytest.approx(float(values[0] / values.sum()), rel=1e-4)
    entropy = float(torch.distributions.Categorical(values).entropy())
    assert float(found["gradient_rank"]) == pytest.approx(math.exp(entropy), rel=1e-4)
    norms = jac.norm(dim=1).numpy()
    assert float(found["norm_kurtosis"]) == pytest.approx(float(kurtosis(norms, fisher=False)), rel=1e-4)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (mlp(), torch.randn(3)),
        (nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(0), nn.Linear(27, 1)), torch.randn(2, 4, 4)),
    ],
)
def test_without_a_batch_there_is_a_reason(model: nn.Module, x: Tensor) -> None:
    reading = measure(model, (x, None), lambda out, _: out.sum(), probes=["ntk", "sample_gradients"])
    assert all("no dimension of samples" in entry.reason for entry in reading.unmeasured)
    assert len(reading.unmeasured) == 2


@pytest.mark.parametrize("samples", [15, 16])
def test_samples_that_are_all_alike_have_no_spread(samples: int) -> None:
    model, x = mlp(), torch.full((samples, 3), 0.37)
    reading = measure(model, (x, x[:, :2]), F.mse_loss, probes=["sample_gradients"])
    values = {metric: by_layer["all"] for metric, by_layer in reading.values.items()}
    assert values["gradient_rank"] == 0
    assert values["half_cosine"] == pytest.approx(1)
    assert math.isnan(values["gradient_top_share"])
    assert math.isnan(values["norm_kurtosis"])
    (entry,) = [e for e in reading.unmeasured if e.layer == "all"]
    assert entry.reason == "the gradients of all samples are alike, 0 or not finite"


class Looked(nn.Module):
    """Sparse gradients, and a second derivative unless ``hard``."""

    def __init__(self, hard: bool = False) -> None:
        super().__init__()
        self.rows, self.head = nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2)
        self.activation = nn.Hardsigmoid() if hard else nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.rows(x)))


def test_what_torch_cannot_differentiate_has_a_reason() -> None:
    x, y = torch.arange(5), torch.randn(5, 2)
    names = ["hessian", "sharpness", "loss_cosine"]

    def losses(output: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"fit": F.mse_loss(output, target), "size": output.square().mean()}

    sparse = measure(Looked(), (x, y), losses, probes=names)
    assert sparse.values["sharpness"]["all"] > 0
    assert -1 <= sparse.values["loss_cosine"]["fit:size"] <= 1
    hard = nn.Sequential(nn.Linear(3, 4), nn.Hardsigmoid(), nn.Linear(4, 2))
    reading = measure(hard, (torch.randn(5, 3), y), losses, probes=names)
    reasons = {e.probe: e.reason for e in reading.unmeasured if e.layer == "all"}
    assert reasons.keys() == {"hessian"}
    assert reasons["hessian"].startswith("it cannot be differentiated twice")
    imaginary = nn.Sequential(nn.Linear(3, 4, dtype=torch.cfloat), nn.Tanh(), nn.Linear(4, 2, dtype=torch.cfloat))
    reading = measure(
        imaginary,
        (torch.randn(5, 3, dtype=torch.cfloat), y),
        lambda out, y: F.mse_loss(out.abs(), y),
        probes=["ntk", *names],
    )
    assert {e.probe for e in reading.unmeasured if e.layer == "all"} == {"ntk", *names}


def test_a_run_tells_every_reason_of_a_missing_value_once() -> None:
    torch.manual_seed(0)
    model, events = mlp(), []
    ctx = plasticity.Context({"net": model}, {"net": torch.optim.SGD(model.parameters(), lr=0.1)})
    ctx.event = lambda name, details: events.append((name, details))  # type: ignore[method-assign]
    measuring = Measure(["still_dormant", "dead"], every=1)
    measuring.on_train_start(ctx)
    for _ in range(4):
        model(torch.randn(8, 3)).square().mean().backward()
        ctx.optimizers["net"].step()
    measuring.on_train_end(ctx)
    reasons = [details["0 (still_dormant)"] for _, details in events]
    assert reasons == [
        "there is no earlier reading to compare with",
        "no neuron was dormant then, or values are not finite",
    ]
    assert ["0 (dead)" in details for _, details in events] == [True, False]


class Tied(nn.Module):
    """A layer beside two whose gradient is not that of their calls: one weight, in two layers or used by a function."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.own = how, nn.Linear(4, 4)
        self.first, self.second = (nn.Linear(4, 4, bias=False) for _ in range(2))
        if how == "tied":
            self.second.weight = self.first.weight
        if how == "computed":
            self.first, self.second = (nn.utils.spectral_norm(m).eval() for m in (self.first, self.second))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(self.own(x).tanh()).tanh()
        return F.linear(h, self.first.weight.T) if self.how == "function" else self.second(h)


@pytest.mark.parametrize("how", ["alone", "tied", "function", "computed"])
def test_parameters_that_the_calls_of_a_layer_do_not_explain_are_left_out_of_the_kernel(how: str) -> None:
    model, x = Tied(how), torch.randn(6, 4)
    probe = TangentKernel()
    kernel = probe.kernel(Again(model, (x,)))
    explained = [*model.own.parameters()] + ([model.first.weight, model.second.weight] if how == "alone" else [])
    rows = [torch.autograd.grad(model(one[None]).sum(), explained) for one in x]
    jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows]).double()
    torch.testing.assert_close(kernel, jacobian @ jacobian.T, rtol=1e-5, atol=1e-6)
    left_out = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in explained)
    assert probe.details() == {"samples": 6, "parameters_left_out": left_out}


# -- transformers ------------------------------------------------------------------------------------------------------


class Attends(nn.Module):
    """One attention, written in one of three ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.mha = how, nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "module":
            return x + self.mha(x, x, x, need_weights=False)[0]
        q, k, v = F.linear(x, self.mha.in_proj_weight, self.mha.in_proj_bias).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v))
        if self.how == "function":
            h = F.scaled_dot_product_attention(q, k, v)
        else:
            h = (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v
        return x + self.mha.out_proj(h.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("how", ["module", "function", "by hand"])
def test_attention_is_found_however_it_is_written(how: str) -> None:
    model = Attends(how)
    x = torch.randn(4, 5, 8)
    with torch.no_grad():
        _, weights = model.mha(x, x, x, average_attn_weights=False)
    entropy = -(weights * weights.log()).sum(-1) / math.log(5)
    reading = measure(model, x, probes=["attention", "residual_stream"])
    (scores,) = reading.scores["attention_entropy"].values()
    torch.testing.assert_close(scores, entropy.mean((0, 2)).double(), rtol=1e-5, atol=1e-6)
    assert reading.values["attention_low"]["all"] == pytest.approx(float(scores.min()))
    stream = float(model(x).detach().square().mean().sqrt())
    assert reading.values["residual_stream"]["all"] == pytest.approx(stream, rel=1e-5)


class Masked(nn.Module):
    """Attention in which the first query may see no key, and a softmax over channels, which is none."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 24), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(-1)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).nan_to_num()
        h = h * F.softmax(h, 1)
        return self.head(h.transpose(1, 2).flatten(2)).index_fill(-1, torch.tensor([4]), -math.inf)


def test_masks_are_no_loss_of_numbers_and_lost_numbers_are_not_masked() -> None:
    model, x = Masked(), torch.randn(3, 4, 4)
    reading = measure(model, x, probes=["attention", "token_entropy"])
    assert list(reading.scores["attention_entropy"]) == ["(model)"]
    q, k, _ = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in model.qkv(x).detach().chunk(3, -1))
    expected = []
    for query in (2, 3):  # the second sees one key
        p = (q[:, :, query, None] @ k[:, :, :query].transpose(-2, -1) / 2).softmax(-1)
        expected.append(-(p * p.log()).sum(-1) / math.log(query))
    torch.testing.assert_close(
        reading.scores["attention_entropy"]["(model)"], torch.stack(expected).mean((0, 1, 3)).double()
    )
    logits = model(x).detach()[..., :4].double().log_softmax(-1)
    entropy = -(logits.exp() * logits).sum(-1).mean() / math.log(5)
    assert reading.values["token_entropy"]["all"] == pytest.approx(float(entropy))
    x[1] = math.nan
    reading = measure(model, x, probes=["attention", "token_entropy"])
    assert all(math.isnan(reading.values[m]["all"]) for m in ("attention_entropy", "attention_low"))


def test_an_output_without_numbers_has_a_reason() -> None:
    class Mute(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).argmax(-1)

    reading = measure(Mute(), torch.randn(5, 3), probes=["ntk", "token_entropy"])
    assert {e.probe for e in reading.unmeasured if e.layer == "all"} == {"ntk", "token_entropy"}


def test_routers_and_tokens() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 7)

        def forward(self, x: Tensor) -> Tensor:
            self.router(x).topk(1, -1)
            return self.head(x)

    model = Routed()
    nn.init.eye_(model.router.weight)
    x = torch.eye(4)[[0, 0, 1, 2]][None]
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    reading = measure(model, x, probes=["router", "token_entropy", "attention"])
    expected = -(0.5 * math.log(0.5) + 0.5 * math.log(0.25)) / math.log(4)
    assert reading.values["router_entropy"]["all"] == pytest.approx(expected)
    assert reading.values["router_peak"]["all"] == 2
    assert reading.values["token_entropy"]["all"] == pytest.approx(1)
    assert ("attention", "no attention was seen in it") in {(e.probe, e.reason) for e in reading.unmeasured}


# -- what cannot be measured, and what fails ---------------------------------------------------------------------------


def test_without_a_loss_there_is_a_reason() -> None:
    reading = measure(mlp(), torch.randn(8, 3), probes=["hessian", "ntk"])
    assert math.isnan(reading.values["hessian_top"]["all"])
    assert not math.isnan(reading.values["ntk_rank"]["all"])
    (entry,) = [e for e in reading.unmeasured if e.probe == "hessian"]
    assert entry.reason.startswith("it needs the loss")


def test_a_frozen_network_has_no_curvature() -> None:
    model = mlp().requires_grad_(False)
    reading = measure(
        model, (torch.randn(8, 3), torch.randn(8, 2)), F.mse_loss, probes=["curvature", "sample_gradients"]
    )
    reasons = {e.probe: e.reason for e in reading.unmeasured if e.layer == "all"}
    assert reasons.keys() == {"hessian", "sharpness", "sample_gradients"}


class Failing(NetworkProbe):
    KIND = "mine"

    def measure(self, again: Again) -> dict[str, Tensor]:
        raise ZeroDivisionError("oh")


def test_a_probe_that_fails_is_off_after_one_warning() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with plasticity.watch(
        model, optimizer, every=1, log=None, probes={"bad": Failing(), "ntk": TangentKernel()}
    ) as session:
        for step in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 3)).sum().backward()
            if step:
                optimizer.step()
                continue
            with pytest.warns(RuntimeWarning, match="probe 'bad' failed and is off"):
                optimizer.step()
    assert session.last["model"].values["ntk_rank"]["all"] > 0
    with pytest.raises(ZeroDivisionError):
        measure(model, torch.randn(4, 3), probes={"bad": Failing()})


def test_a_watched_loop_lends_its_loss() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    probes = ["sharpness", "hessian"]
    with plasticity.watch(
        model, optimizer, every=1, log=None, probes=probes, loss=lambda: F.mse_loss(model(x), y)
    ) as seen:
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    expected = measure(model, (x, y), F.mse_loss, probes=probes)
    assert seen.last["model"].flat() == pytest.approx(expected.flat())


def test_a_probe_is_of_layers_or_of_the_network() -> None:
    class Both(TangentKernel):
        def on_forward(self, activations: Tensor) -> None: ...

    with pytest.raises(ValueError, match="of layers or of the network, not of both"):
        measure(mlp(), torch.randn(8, 3), probes={"both": Both()})
    with pytest.raises(ValueError, match=r"has no measure\(\)"):
        measure(mlp(), torch.randn(8, 3), probes={"none": type("Nothing", (NetworkProbe,), {})()})
    assert issubclass(NotMeasurable, Exception)


# -- in runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ["sac", *(pytest.param(a, marks=pytest.mark.slow) for a in ("td3", "dqn", "ppo"))])
@pytest.mark.slow
def test_agents_are_measured_and_learn_the_same(agent: str, tmp_path) -> None:
    options = [*QUICK_RUNS[agent], *SHORT, "--out", tmp_path]
    command("train", agent, *options, "--probes", "all", "curvature", "--name", "with")
    command("train", agent, *options, "--name", "without")
    states = [last_state(tmp_path / name) for name in ("with", "without")]
    for part in ("agent", "buffer", "env"):
        require_same(states[0][part], states[1][part], f"{part} of a run with all probes, beside one without")
    logged = {tag: value for row in rows(tmp_path / "with") for tag, value in row.items()}
    for tag, value in logged.items():  # every metric can trigger a method
        if tag.startswith("plasticity/") and not math.isnan(value):
            assert Trigger(when=f"{tag} >= {value!r}").due(1, logged), tag
    tags = logged.keys()
    known = {tag.split("/")[2] for tag in tags if tag.startswith("plasticity/") and tag.endswith("/all")}
    assert {"hessian_top", "sharpness", "ntk_rank", "half_cosine", "update_ratio", "dead"} <= known
