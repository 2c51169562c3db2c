"""Writers to tracking services, against the packages themselves: what a service holds is what was logged.

Each test is skipped where its package is missing.
"""

from __future__ import annotations

import json
import math
import sqlite3
import struct
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from test_writers import CALLS
from torch import nn

import plasticity
from plasticity.callback import Context, Writer
from plasticity.writers import Writers, open_writers

SERVICES = ("wandb", "mlflow", "trackio", "aim")
LAYER = "plasticity/model/dormancy/model.layers.0.mlp.gate_proj"
SCORES = "scores/model/dormancy/model.layers.0.mlp"
SETTINGS = {"seed": 1, "agent": {"lr": 1e-3, "hidden": (3, 4), "where": Path("x"), "none": None}}
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "ignore:.*:UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every service in the test's folder, without a network."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }.items():
        monkeypatch.setenv(name, value)
    if "trackio" in __import__("sys").modules:
        import trackio.sqlite_storage as storage

        monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
        monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "trackio")


def drive(writer: Writer) -> None:
    """Write one of each kind."""
    writer.settings(SETTINGS)
    writer.log(5, {LAYER: 0.5, "a": math.nan, "b": math.inf, "no": "number"})  # type: ignore[dict-item]
    writer.histogram(5, SCORES, [0.0, 1.0, 3.0, math.nan])
    writer.event(6, "redo", {"neurons": {"l.0": [1, 2]}, "change": math.nan})
    writer.event(9, "redo", {})
    writer.text(9, "note", "**hi** <b>")
    writer.log(3, {"late": 1.0})


def scalars(service: str, writer: Any) -> dict[str, list[tuple[int, float]]]:
    """Read all scalars of a closed writer's run by means of the service: tag -> (step, value)."""
    return {"wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio, "aim": of_aim}[service](writer)[0]


def records_of(path: Path) -> list[bytes]:
    """Return the records of a file of wandb: a header of 7 bytes, then LevelDB's log format in 32 KiB blocks."""
    data, place, found, parts = path.read_bytes(), 7, [], b""
    while place + 7 <= len(data):
        left = -place % 32768
        if 0 < left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<xxxxHB", data, place)
        parts = (parts if kind in (3, 4) else b"") + data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(parts)
    return found


def of_wandb(writer: Any) -> tuple[dict[str, list[tuple[int, float]]], dict[str, Any]]:
    """Return scalars and everything else of the offline runs of a folder."""
    from wandb.proto.wandb_internal_pb2 import Record

    end = time.monotonic() + 30
    while time.monotonic() < end:  # another process writes the file, and is behind
        time.sleep(0.2)
        files = {one.resolve() for one in Path.cwd().rglob("*.wandb")}
        kinds = [[Record.FromString(data).WhichOneof("record_type") for data in records_of(path)] for path in files]
        if all("exit" in found for found in kinds):
            break

    numbers: dict[str, list[tuple[int, float]]] = {}
    rest: dict[str, Any] = {"config": {}, "steps": {}}
    for path in sorted(files):
        for record in map(Record.FromString, records_of(path)):
            row: dict[str, Any] = {}
            for item in record.history.item:
                first, *inner = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                row[first] = {**row.get(first, {}), inner[0]: value} if inner else value
            for key, value in row.items():
                kind = numbers if isinstance(value, float | int) else rest
                kind.setdefault(key, []).append((row["plasticity/step"], value))
            for message in (record.config, record.run.config):
                rest["config"] |= {item.key: json.loads(item.value_json) for item in message.update}
            if record.metric.name:
                rest["steps"][record.metric.name] = record.metric.step_metric
    return numbers, rest


def of_mlflow(writer: Any) -> tuple[dict[str, list[tuple[int, float]]], dict[str, Any]]:
    """Return scalars and everything else of a run."""
    import mlflow

    client = mlflow.MlflowClient()
    run = client.get_run(writer.run_id)
    numbers = {
        key: [(m.step, m.value) for m in client.get_metric_history(writer.run_id, key)] for key in run.data.metrics
    }
    folder = Path(client.download_artifacts(writer.run_id, "."))
    texts = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    return numbers, {"params": run.data.params, "texts": texts, "status": run.info.status}


def of_trackio(writer: Any) -> tuple[dict[str, list[tuple[int, float]]], dict[str, Any]]:
    """Return scalars and everything else of a project, read from its database."""
    (path,) = [one for one in (Path.cwd() / "trackio").glob("*.db") if one.stem == "plasticity"]
    numbers: dict[str, list[tuple[int, float]]] = {}
    rest: dict[str, Any] = {}
    with sqlite3.connect(path) as base:
        for step, text in base.execute("select step, metrics from metrics where run_id = ?", (writer.run.id,)):
            for key, value in json.loads(text).items():
                words = {"NaN": math.nan, "Infinity": math.inf}
                value = words.get(value, value) if isinstance(value, str) else value
                (numbers if isinstance(value, float | int) else rest).setdefault(key, []).append((step, value))
        (text,) = base.execute("select config from configs where run_id = ?", (writer.run.id,)).fetchone()
        rest["config"] = json.loads(text)
    return numbers, rest


def of_aim(writer: Any) -> tuple[dict[str, list[tuple[int, float]]], dict[str, Any]]:
    """Return scalars and everything else of a run."""
    import aim
    from aim.storage.context import Context as AimContext

    run = aim.Run(run_hash=writer.run.hash, system_tracking_interval=None, capture_terminal_logs=False)
    numbers = {}
    for metric in run.metrics():
        numbers[metric.name] = [(step, values[0]) for step, values in metric.data.items()]
    rest: dict[str, Any] = {"settings": run.get("agent")}
    for name, kind in ((SCORES, "distribution"), ("events/redo/details", "text")):
        sequence = getattr(run, f"get_{kind}_sequence")(name, AimContext({}))
        rest[name] = [] if sequence is None else [(step, values[0]) for step, values in sequence.data.items()]
    return numbers, rest


def opened(service: str, folder: Path) -> Any:
    """Return the writer of a run folder."""
    pytest.importorskip(service)
    folder.mkdir(exist_ok=True)
    return open_writers(folder, [service]).active[service]


@pytest.mark.parametrize("service", SERVICES)
def test_scalars_are_there_with_their_steps(service: str, tmp_path: Path) -> None:
    writer = opened(service, tmp_path / "run")
    drive(writer)
    assert writer.dropped == {"value": 1}
    writer.close()
    writer.close()
    found = scalars(service, writer)
    assert found[LAYER] == [(5, 0.5)]
    assert math.isnan(found["a"][0][1])
    assert found["b"] == [(5, math.inf)] or service == "mlflow"
    assert found["events/redo"] == [(6, 1.0), (9, 2.0)]
    assert found["late"] == [(3, 1.0)], "a step before the last one"
    assert found[f"{SCORES}/nonfinite"] == [(5, 1.0)]
    assert "no" not in found


@pytest.mark.parametrize("service", SERVICES)
def test_a_resumed_run_goes_on_in_the_same_run(service: str, tmp_path: Path) -> None:
    identities = []
    for begin in (0, 10):
        writers = open_writers(tmp_path / "run", [service]) if begin else None
        if writers is None:
            opened(service, tmp_path / "run").close()
            writers = open_writers(tmp_path / "run", [service])
        writer = writers.active[service]
        if begin:
            writers.resume(begin)
        writers.settings({**SETTINGS, "steps": begin})
        writers.log(begin, {"a": float(begin)})
        writers.event(begin, "redo", {})
        writers.close()
        assert service in writers.active, "nothing failed"
        identities.append(getattr(writer, "run_id", None) or getattr(writer.run, "hash", None) or writer.run.id)
    assert identities[0] == identities[1]
    found = scalars(service, writer)
    assert found["a"] == [(0, 0.0), (10, 10.0)]
    assert found["events/redo"] == [(0, 1.0), (10, 2.0)], "counted on"


def test_wandb_has_histograms_texts_and_the_configuration(tmp_path: Path) -> None:
    writer = opened("wandb", tmp_path / "run")
    drive(writer)
    writer.close()
    _, rest = of_wandb(writer)
    ((step, histogram),) = rest[SCORES]
    assert step == 5
    assert sum(histogram["values"]) == 3
    assert (histogram["bins"][0], histogram["bins"][-1]) == (0.0, 3.0)
    media = [(step, (tmp_path / "run").rglob(Path(value["path"]).name)) for step, value in rest["events/redo/details"]]
    (first, files), (second, _) = media
    assert (first, second) == (6, 9)
    assert "&quot;neurons&quot;: {&quot;l.0&quot;: [1, 2]}, &quot;change&quot;: null" in next(iter(files)).read_text()
    assert rest["config"]["agent"] == {"lr": 1e-3, "hidden": [3, 4], "where": "x", "none": None}
    assert rest["steps"].get(LAYER.replace(".", "\\.")) or rest["steps"][LAYER] == "plasticity/step"


def test_mlflow_has_percentiles_texts_and_the_settings(tmp_path: Path) -> None:
    writer = opened("mlflow", tmp_path / "run")
    drive(writer)
    writer.settings({"seed": 2, "more": True})  # a parameter cannot change
    writer.close(succeeded=False)
    numbers, rest = of_mlflow(writer)
    assert [numbers[f"{SCORES}/p{share}"] for share in (0, 50, 100)] == [[(5, 0.0)], [(5, 1.0)], [(5, 3.0)]]
    assert numbers[f"{SCORES}/p25"] == [(5, 0.5)]
    params = {"seed": "1", "agent.lr": "0.001", "agent.hidden": "(3, 4)", "agent.where": "x", "more": "True"}
    assert rest["params"] == params
    assert json.loads(rest["texts"]["settings.json"]) == {"seed": 2, "more": True}
    assert rest["texts"]["note/9.md"] == "**hi** <b>"
    assert '{"neurons": {"l.0": [1, 2]}, "change": null}' in rest["texts"]["events/redo/details/6.md"]
    assert rest["status"] == "FAILED"


def test_mlflow_refuses_no_tag() -> None:
    mlflow = pytest.importorskip("mlflow")
    from plasticity.writers import MLflowWriter

    writer = MLflowWriter()
    tags = ["a[0]", "x(y)=z", "ö", "a//b", "../up", "a\nb"]
    for step, tag in enumerate(tags):
        writer.log(step, {tag: 1.0})
        writer.text(step, tag, "t")
    writer.log(0, {f"many/{i}": float(i) for i in range(2345)})
    writer.settings({f"s{i}": "x" * 9000 for i in range(250)})
    found = mlflow.MlflowClient().get_run(writer.run_id).data
    assert {"a_0_", "x_y__z", "ö", "a/b", "up", "a_b", "many/2344"} <= found.metrics.keys()
    assert len(found.params) == 250


def test_trackio_has_histograms_texts_and_the_configuration(tmp_path: Path) -> None:
    writer = opened("trackio", tmp_path / "run")
    drive(writer)
    writer.close()
    _, rest = of_trackio(writer)
    ((step, histogram),) = rest[SCORES]
    assert (step, sum(histogram["values"]), histogram["bins"][-1]) == (5, 3, 3.0)
    assert [step for step, _ in rest["events/redo/details"]] == [6, 9]
    assert '"l.0": [1, 2]' in str(rest["events/redo/details"][0][1])
    assert rest["config"]["agent"]["lr"] == 1e-3


def test_aim_has_distributions_texts_and_the_settings(tmp_path: Path) -> None:
    writer = opened("aim", tmp_path / "run")
    drive(writer)
    writer.close()
    _, rest = of_aim(writer)
    ((step, distribution),) = rest[SCORES]
    counts, edges = distribution.to_np_histogram()
    assert (step, counts.sum(), edges[0], edges[-1]) == (5, 3, 0.0, 3.0)
    assert [step for step, _ in rest["events/redo/details"]] == [6, 9]
    assert '"l.0": [1, 2]' in rest["events/redo/details"][0][1].data
    assert rest["settings"] == {"lr": 1e-3, "hidden": [3, 4], "where": "x", "none": None}


@pytest.mark.parametrize("service", SERVICES)
def test_a_run_that_was_given_stays_open_and_watch_writes_to_several(service: str, tmp_path: Path) -> None:
    package = pytest.importorskip(service)
    from plasticity.writers import AimWriter, MLflowWriter, TrackioWriter, WandbWriter

    run: Any
    if service == "mlflow":
        run, kind = package.start_run(), MLflowWriter
    elif service == "aim":
        run, kind = package.Run(system_tracking_interval=None, capture_terminal_logs=False), AimWriter
    elif service == "trackio":
        run, kind = package.init(project="plasticity", name=uuid.uuid4().hex, auto_log_cpu=False), TrackioWriter
    else:
        run, kind = package.init(dir=tmp_path), WandbWriter
    writer: Any = kind() if service in ("mlflow", "wandb") else kind(run)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with plasticity.watch(model, optimizer, every=1, log=[tmp_path / "watched", writer]) as session:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(16, 3)).square().mean().backward()
            optimizer.step()
    writer.log(3, {"after": 1.0})
    writer.close()
    if service == "mlflow":
        assert package.active_run() is not None
        package.end_run()
    else:
        {"wandb": lambda: run.finish(), "aim": lambda: run.close(), "trackio": lambda: run.finish()}[service]()
    found = scalars(service, writer)
    assert [step for step, _ in found["plasticity/model/dormancy/all"]] == [1, 2]
    expected = session.last["model"].values["dormancy"]["all"]
    assert found["plasticity/model/dormancy/all"][1][1] == pytest.approx(expected)
    assert found["after"] == [(3, 1.0)]
    assert (tmp_path / "watched" / "metrics.jsonl").exists()


@pytest.mark.parametrize("service", SERVICES)
def test_a_closed_writer_opens_nothing_again(service: str, tmp_path: Path) -> None:
    writer = opened(service, tmp_path / "run")
    writer.settings(SETTINGS)
    writer.log(1, {"a": 1.0})
    writer.close()
    for method, arguments in CALLS.items():
        with pytest.raises(RuntimeError, match=rf"this {type(writer).__name__} \(.*\) is closed.*make a new one"):
            getattr(writer, method)(*arguments)
    assert scalars(service, writer)["a"] == [(1, 1.0)]
    model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="is closed"):
        plasticity.watch(model, torch.optim.SGD(model.parameters(), 0.1), log=writer)


def test_a_writer_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for service in SERVICES:
        monkeypatch.setitem(__import__("sys").modules, service, None)
        with pytest.raises(ImportError, match=f"the writer {service} needs the package {service}: pip install"):
            open_writers(tmp_path, [service])


def test_wandb_disabled_writes_nothing_and_raises_nothing(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from plasticity.writers import WandbWriter

    drive(WandbWriter(mode="disabled", dir=tmp_path))
    assert not list(tmp_path.rglob("*.wandb"))


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_fails_is_told_once_and_left_behind(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = opened(service, tmp_path / "run")

    def down(*_: Any, **__: Any) -> None:
        raise ConnectionError("no server")

    target, method = (writer._client, "log_batch") if service == "mlflow" else (writer.run, "log")
    with monkeypatch.context() as broken:
        broken.setattr(target, "track" if service == "aim" else method, down)
        for ctx in (Context(writer=writer), Context(writer=Writers([writer]))):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                ctx.log({"a": 1.0})
                ctx.event("redo", {})
                ctx.log({"a": 2.0})
            told = [str(one.message) for one in caught if issubclass(one.category, RuntimeWarning)]
            assert len(told) == 1
            assert "ConnectionError: no server" in told[0]
            assert "training goes on" in told[0]
    writer.close()
