"""Writers: what TensorBoard, programs and spreadsheets read back is what was logged, and nothing stops training."""

import csv
import errno
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import DEFAULT_SIZE_GUIDANCE, EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util import tensor_util

from plasticity.callback import Context, Writer, start
from plasticity.dashboard.eventfile import EventFile, masked_crc32c
from plasticity.dashboard.tab.folders import Neurons
from plasticity.storage.appendfile import AppendFile
from plasticity.storage.rows import find_runs, metric_tags, read_metrics
from plasticity.writers import WRITERS, Writers, open_writers
from plasticity.writers.csv import CsvWriter
from plasticity.writers.destinations import require_destinations
from plasticity.writers.fanout import METHODS
from plasticity.writers.jsonl import JsonLinesWriter
from plasticity.writers.tensorboard import TensorBoardWriter


def event_files(folder):
    return [path for path in folder.iterdir() if "tfevents" in path.name]


def accumulate(folder):
    return EventAccumulator(str(folder), size_guidance=dict.fromkeys(DEFAULT_SIZE_GUIDANCE, 0)).Reload()


def dropped(writers):
    """Return the numbers of dropped records of file writers, by kind."""
    return sum((writer.dropped for writer in writers.active.values()), Counter())


def table(path):
    """The rows of a CSV file, as the standard library reads them."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("size", [0, 1, 3, 8, 1019, 1020, 1021, 1024, 5000])
def test_checksum_equals_tensorboards_own(size):
    data = os.urandom(size)
    assert masked_crc32c(data) == pywrap_tensorflow.masked_crc32c(data)


def test_one_call_is_one_event_and_one_row(tmp_path):
    before = time.time()
    folder = tmp_path / "deep" / "run"
    with open_writers(folder) as writer:
        writer.log(10, {"charts/SPS": 123.5, "losses/actor": -1})
        writer.log(20, {"charts/SPS": np.float32(0.5)})
        assert len(read_metrics(folder)) == 2  # readable while the run goes on
    assert not dropped(writer)

    (file,) = event_files(folder)
    summaries = [e.summary for e in LegacyEventFileLoader(str(file)).Load() if e.HasField("summary")]
    scalars = [s for s in summaries if s.value[0].HasField("simple_value")]  # the others are layouts
    assert [len(summary.value) for summary in scalars] == [2, 1]
    speed = accumulate(folder).Scalars("charts/SPS")
    assert [(event.step, event.value) for event in speed] == [(10, 123.5), (20, 0.5)]
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == [10, 20]
    assert rows[0]["losses/actor"] == -1.0
    assert before <= rows[0]["time"] <= speed[0].wall_time <= rows[1]["time"] <= time.time()
    assert metric_tags(rows) == ["charts/SPS", "losses/actor"]
    assert find_runs(tmp_path) == [folder]


def test_non_finite_values_are_null_in_json_and_themselves_in_tensorboard(tmp_path):
    with open_writers(tmp_path) as logger:
        logger.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.1})
        logger.event(2, "recycle", {"change": math.nan, "layers": {"trunk.0": np.int64(3)}, "when": (1, math.inf)})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row, event = (json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert [row[tag] for tag in "abcd"] == [None, None, None, 0.1]
    assert event["change"] is None
    assert event["layers"] == {"trunk.0": 3}
    assert event["when"] == [1, None]
    values = {tag: accumulate(tmp_path).Scalars(tag)[0].value for tag in "abc"}
    assert math.isnan(values["a"])
    assert values["b"] == math.inf
    assert values["c"] == -math.inf


def test_events_are_counted_and_keep_their_details(tmp_path):
    with open_writers(tmp_path) as logger:
        logger.event(5, "recycle", {"neurons": 3, "layer": "trunk.0"})
        logger.event(9, "recycle", {"neurons": 1})
        logger.event(9, "reset", {})
    rows = read_metrics(tmp_path)
    assert [{key: value for key, value in row.items() if key != "time"} for row in rows] == [
        {"step": 5, "event": "recycle", "neurons": 3, "layer": "trunk.0"},
        {"step": 9, "event": "recycle", "neurons": 1},
        {"step": 9, "event": "reset"},
    ]
    counts = accumulate(tmp_path).Scalars("events/recycle")
    assert [(event.step, event.value) for event in counts] == [(5, 1), (9, 2)]
    assert metric_tags(rows) == ["events/recycle", "events/reset"]


def test_histogram_bins_hold_every_finite_value(tmp_path):
    with open_writers(tmp_path) as logger:
        logger.histogram(1, "z_hist/scores", [0.0, 1.0, 1.0, 3.0, math.nan, math.inf])
        logger.histogram(2, "z_hist/scores", np.full((4, 2), 0.5, np.float32))
        logger.histogram(3, "z_hist/scores", [])
        logger.histogram(4, "z_hist/scores", [math.nan])
    run = accumulate(tmp_path)
    histograms = [tensor_util.make_ndarray(event.tensor_proto) for event in run.Tensors("z_hist/scores")]
    assert [bins.shape for bins in histograms] == [(30, 3), (30, 3)]
    first, second = histograms
    assert (first[0, 0], first[-1, 1]) == (0.0, 3.0)
    np.testing.assert_allclose(first[1:, 0], first[:-1, 1])
    assert [first[0, 2], first[10, 2], first[-1, 2], first[:, 2].sum()] == [1, 2, 1, 4]
    assert second[:, 2].sum() == 8
    assert [(event.step, event.value) for event in run.Scalars("z_hist/scores/nonfinite")] == [(1, 2), (4, 1)]
    assert not dropped(logger)


def test_text_and_layout_reach_their_plugins(tmp_path):
    with TensorBoardWriter(tmp_path) as writer:
        writer.text(0, "guide", "**dormancy**: é")
        writer.log(1, {"plasticity/actor/dormancy/all": 0.5})
        writer.event(2, "redo", {})
    run = accumulate(tmp_path)
    assert run.Tensors("guide")[0].tensor_proto.string_val[0].decode() == "**dormancy**: é"
    assert run.PluginTagToContent("text").keys() == {"guide", "events/redo/details"}
    content = run.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    assert [category.title for category in Layout.FromString(content).category] == ["actor", "events"]


@pytest.mark.parametrize(("fails", "status"), [(False, "STATUS_SUCCESS"), (True, "STATUS_FAILURE")])
def test_hparams_share_the_event_file(tmp_path, fails, status):
    try:
        with open_writers(tmp_path) as writer:
            agent = {"lr": 3e-4, "hidden": (256, 256), "horizon": None}
            writer.settings({"seed": 1, "tune": True, "env": "dmc/dog-run", "agent": agent})
            writer.log(100, {"a": 1.0})
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert len(event_files(tmp_path)) == 1
    content = accumulate(tmp_path).PluginTagToContent("hparams")
    plugin_data = {tag: HParamsPluginData.FromString(data) for tag, data in content.items()}
    experiment = plugin_data["_hparams_/experiment"].experiment
    assert [info.name for info in experiment.hparam_infos] == ["seed", "tune", "env", "agent.lr", "agent.hidden"]
    assert [info.name.tag for info in experiment.metric_infos] == ["charts/eval_return", "charts/episodic_return"]
    start = plugin_data["_hparams_/session_start_info"].session_start_info.hparams
    assert start["agent.lr"].number_value == 3e-4
    assert start["seed"].number_value == 1
    assert start["tune"].bool_value is True
    assert start["env"].string_value == "dmc/dog-run"
    assert start["agent.hidden"].string_value == "(256, 256)"
    end = plugin_data["_hparams_/session_end_info"].session_end_info
    assert end.status == type(end).DESCRIPTOR.fields_by_name["status"].enum_type.values_by_name[status].number


@pytest.mark.parametrize("broken", [EventFile, AppendFile])
def test_a_full_disk_warns_once_and_training_goes_on(tmp_path, monkeypatch, caplog, broken):
    kinds = {"TensorBoard event file": 5}  # with the layout that the event's tag asks for
    if broken is AppendFile:
        kinds |= {"metrics.jsonl": 3, "metrics.csv": 2, "events.csv": 1}
    with caplog.at_level(logging.WARNING), open_writers(tmp_path, ["tensorboard", "csv"]) as writer:
        writer.log(1, {"a": 1.0})
        with monkeypatch.context() as full:
            full.setattr(broken, "append", no_space)
            for step in (2, 3):
                writer.log(step, {"a": 1.0})
            writer.event(3, "recycle", {})
            writer.text(3, "guide", "x")
        writer.log(4, {"a": 1.0})
    assert dropped(writer) == kinds
    first = [record for record in caplog.records if "No space left" in record.message]
    assert len(first) == len(kinds)  # once per file
    assert "5 x TensorBoard event file" in caplog.text
    assert [event.step for event in accumulate(tmp_path).Scalars("a")] == [1, 4]  # it writes again
    if broken is AppendFile:
        assert [row["step"] for row in table(tmp_path / "metrics.csv")] == ["1", "4"]


def test_a_half_written_record_is_cut_off(tmp_path):
    file = AppendFile(tmp_path / "records")
    file.append(b"one\n")
    real = file._file

    class Full:
        closed = False
        truncate, close = real.truncate, real.close

        def write(self, data):
            if len(data) < 4:
                no_space()
            return real.write(data[:2])

    file._file = Full()
    with pytest.raises(OSError, match="No space"):
        file.append(b"two\n")
    assert (tmp_path / "records").read_bytes() == b"one\ntw"
    file._file = real
    file.append(b"three\n")
    file.close()
    assert (tmp_path / "records").read_bytes() == b"one\nthree\n"


@pytest.mark.parametrize("kind", [JsonLinesWriter, TensorBoardWriter, CsvWriter])
def test_nothing_that_is_logged_raises(tmp_path, caplog, kind):
    writer = kind(tmp_path)
    writer.log(1, {"a": "not a number", "step": 7, "b": 2.0})
    writer.histogram(1, "h", ["x"])
    writer.event(1, "recycle", {"time": "taken", "object": object()})
    writer.settings({"nested": {"object": object()}})
    writer.text(1, "note", "text")
    writer.sync()
    writer.close()
    assert writer.dropped["value"] >= 1
    assert "not written" in caplog.text


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        open_writers(tmp_path / "file" / "run")
    with pytest.raises(OSError):
        TensorBoardWriter(tmp_path / "file" / "run")


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    with open_writers(tmp_path) as logger:
        for step in range(10):
            logger.log(step, {"a": float(step)})
        logger.event(3, "recycle", {})
        logger.event(8, "recycle", {})
    with open(tmp_path / "metrics.jsonl", "a") as torn:
        torn.write('{"step": 10, "ti')
    assert len(read_metrics(tmp_path)) == 12

    with open_writers(tmp_path) as logger:
        logger.resume(5)
        for step in range(5, 7):
            logger.log(step, {"a": -float(step)})
        logger.event(6, "recycle", {})
    expected = [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, -5.0), (6, -6.0)]
    assert [(row["step"], row["a"]) for row in read_metrics(tmp_path) if "a" in row] == expected
    run = accumulate(tmp_path)
    assert [(event.step, event.value) for event in run.Scalars("a")] == expected
    assert [(event.step, event.value) for event in run.Scalars("events/recycle")] == [(3, 1), (6, 2)]


@pytest.mark.parametrize("clocks", [(2e9, 1e9), (1e9, 2e9, 1.5e9), (1e9, 1e9), (2e9, 0.0)])
def test_parts_of_a_run_do_not_mix_where_the_clock_went_backwards(clocks, tmp_path, monkeypatch):
    for part, clock in enumerate(clocks):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        with open_writers(tmp_path) as logger:
            if part:
                logger.resume(5)
            for step in range(5 if part else 0, 8 if part else 10):
                logger.log(step, {"a": float(part)})
    expected = [*((step, 0.0) for step in range(5)), *((step, float(part)) for step in range(5, 8))]
    assert [(event.step, event.value) for event in accumulate(tmp_path).Scalars("a")] == expected
    assert [(row["step"], row["a"]) for row in read_metrics(tmp_path)] == expected


def test_a_file_that_goes_on_in_the_same_second_is_read_later(tmp_path):
    for number in range(3):  # TensorBoard reads files in the order of their names
        (tmp_path / f"events.out.tfevents.{int(time.time()) + number:010d}.zzz.99999999.0").touch()
        EventFile(tmp_path).close()
        (own,) = (path for path in event_files(tmp_path) if "zzz" not in path.name and path.unlink() is None)
        assert own.name > max(path.name for path in event_files(tmp_path))
    (tmp_path / "events.out.tfevents.mine").touch()
    EventFile(tmp_path).close()


def test_a_damaged_file_is_read_as_far_as_possible(tmp_path, caplog):
    lines = ['{"step": 1, "a": 1.0}', "3", "{", "", '{"step": 2, "a": 2.0}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    assert "2 lines" in caplog.text
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "nowhere")


# -- csv ---------------------------------------------------------------------------------------------------------------


def test_csv_and_json_lines_agree(tmp_path):
    generator = np.random.default_rng(0)
    with open_writers(tmp_path, ["csv"]) as writer:
        for step in range(30):
            tags = [f"plasticity/actor/metric, {i}/all" for i in range(1 + step // 10)] + ['a"b']
            writer.log(step, dict(zip(tags, generator.normal(size=len(tags)), strict=True)))
            if step % 7 == 0:
                writer.event(step, "redo", {"neurons": {"q.0": [1, 2]}, "note": 'a, "b"\nc'})
    assert not dropped(writer)
    rows = read_metrics(tmp_path)
    scalars = [{k: v for k, v in row.items() if k != "time"} for row in rows if "event" not in row]
    found = [
        {k: float(v) for k, v in row.items() if v != "" and k != "time"} for row in table(tmp_path / "metrics.csv")
    ]
    assert found == scalars  # to the last bit
    events = [{k: v for k, v in row.items() if k not in ("time", "step", "event")} for row in rows if "event" in row]
    assert [json.loads(row["details"]) for row in table(tmp_path / "events.csv")] == events
    assert not event_files(tmp_path)


def test_csv_of_non_finite_values(tmp_path):
    with CsvWriter(tmp_path) as writer:
        writer.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    (row,) = table(tmp_path / "metrics.csv")
    assert [row[tag] for tag in "abc"] == ["nan", "inf", "-inf"]


def test_a_resumed_csv_drops_what_is_repeated_and_gains_columns(tmp_path):
    with CsvWriter(tmp_path) as writer:
        for step in range(6):
            writer.log(step, {"a": step})
            writer.event(step, "reset", {"n": step})
    for name in ("metrics.csv", "events.csv"):
        with open(tmp_path / name, "a") as torn:
            torn.write("6,17")  # killed in the middle of a row
    with CsvWriter(tmp_path) as writer:
        writer.resume(4)
        writer.log(4, {"b": 0.5})
        writer.log(5, {"a": 50.0, "b": 0.25})
        writer.event(5, "redo", {})
    rows = [(row["step"], row["a"], row["b"]) for row in table(tmp_path / "metrics.csv")]
    expected = [("0", "0.0", ""), ("1", "1.0", ""), ("2", "2.0", ""), ("3", "3.0", "")]
    assert rows == [*expected, ("4", "", "0.5"), ("5", "50.0", "0.25")]
    assert [(row["step"], row["event"]) for row in table(tmp_path / "events.csv")][-2:] == [
        ("3", "reset"),
        ("5", "redo"),
    ]


def test_a_csv_that_begins_in_a_resumed_run(tmp_path):
    with CsvWriter(tmp_path) as writer:
        writer.resume(100)
        assert not (tmp_path / "metrics.csv").exists()
        writer.log(100, {"a": 1.0})
    assert [row["step"] for row in table(tmp_path / "metrics.csv")] == ["100"]


def test_new_columns_on_a_full_disk_lose_the_row_and_nothing_else(tmp_path, monkeypatch):
    with CsvWriter(tmp_path) as writer:
        writer.log(1, {"a": 1.0})
        with monkeypatch.context() as full:
            full.setattr("plasticity.writers.csv.write_atomically", no_space)
            writer.log(2, {"a": 2.0, "b": 2.0})
            writer.log(3, {"a": 3.0})
        writer.log(4, {"b": 4.0})
    assert writer.dropped == {"metrics.csv": 1}
    rows = [(row["step"], row["a"], row["b"]) for row in table(tmp_path / "metrics.csv")]
    assert rows == [("1", "1.0", ""), ("3", "3.0", ""), ("4", "", "4.0")]


# -- a process that is killed ------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from plasticity.writers import open_writers
writer = open_writers(sys.argv[1], ["tensorboard", "csv"])
for step in range(50):
    writer.log(step, {"a": float(step), f"late_{step // 20}": 1.0})
    writer.histogram(step, "scores/critic/dormancy/q.0", [0.0, 1.0])
    writer.event(step, "redo", {"n": step})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_no_row_of_any_writer(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    for name in ("metrics.jsonl", "metrics.csv", "scores.jsonl"):
        with open(tmp_path / name, "ab") as torn:
            torn.write(b'{"step": 50, "ti' if name.endswith("jsonl") else b"50,17")
    with open_writers(tmp_path, ["tensorboard", "csv"]) as writer:
        writer.resume(30)
        for step in range(30, 40):
            writer.log(step, {"a": -float(step)})
            writer.histogram(step, "scores/critic/dormancy/q.0", [0.5, 1.0])
            writer.event(step, "redo", {})
    expected = [(step, float(step if step < 30 else -step)) for step in range(40)]
    assert [(row["step"], row["a"]) for row in read_metrics(tmp_path) if "a" in row] == expected
    assert [(int(row["step"]), float(row["a"])) for row in table(tmp_path / "metrics.csv")] == expected
    run = accumulate(tmp_path)
    assert [(event.step, event.value) for event in run.Scalars("a")] == expected
    assert [event.value for event in run.Scalars("events/redo")] == list(range(1, 41))
    neurons = Neurons(tmp_path)
    neurons.refresh()
    assert neurons.map("critic", "q.0")["steps"] == list(range(40))
    content = run.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    assert "^events/redo$" in str(Layout.FromString(content))


# -- several writers, and those of others ------------------------------------------------------------------------------


class Kept(Writer):
    """Keep everything that is written."""

    def __init__(self, folder=None):
        self.calls = []

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name not in METHODS:
            return found
        return lambda *args: self.calls.append((name, *args))


class Breaks(Writer):
    """Fail at one method, and count the calls of ``log``."""

    def __init__(self, method):
        self.count = 0
        setattr(self, method, self.fail)

    def log(self, step, values):
        self.count += 1

    def fail(self, *args):
        raise ZeroDivisionError("no server")


@pytest.mark.parametrize("method", METHODS)
def test_a_writer_that_fails_is_named_once_and_left_behind(tmp_path, method):
    broken, kept = Breaks(method), Kept()
    writer = Writers({"jsonl": JsonLinesWriter(tmp_path), "broken": broken, "kept": kept})
    calls = [("resume", 1), ("settings", {}), ("log", 1, {"a": 1.0}), ("histogram", 1, "h", [1.0])]
    calls += [("text", 1, "t", "x"), ("event", 1, "redo", {}), ("log", 2, {"a": 2.0}), ("close", True)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, *args in calls:
            getattr(writer, name)(*args)
    (warning,) = caught
    assert re.search("the writer broken failed .*ZeroDivisionError: no server", str(warning.message))
    assert kept.calls == calls
    assert [row["a"] for row in read_metrics(tmp_path) if "a" in row] == [1.0, 2.0]
    assert "broken" not in writer.active


def test_the_name_of_a_service_is_not_taken_for_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"plasticity.writers.WandbWriter\(\); for the folder, pathlib.Path"):
        require_destinations("wandb")
    require_destinations([tmp_path / "wandb", "runs/wandb"])


def test_what_is_no_writer_is_refused_with_what_it_lacks():
    class Half:
        def log(self, step, values):
            pass

    with pytest.raises(TypeError, match=r"Half is no writer: it lacks resume, settings, .*plasticity.Writer"):
        Writers([Half()])


@pytest.mark.parametrize("package", ["wandb", "mlflow", "trackio", "aim"])
def test_the_run_of_a_service_is_refused_with_its_writer(package):
    run = type("Run", (), {"log": lambda self, values: None, "__module__": f"{package}.sdk.run"})()
    with pytest.raises(TypeError, match=rf"got a Run of {package} for a writer: pass .*\.\w+Writer\(run\)"):
        require_destinations([run])


def test_two_writers_of_one_class_have_names_of_their_own():
    assert list(Writers([Kept(), Kept(), Breaks("log")]).active) == ["Kept", "Kept 2", "Breaks"]


def test_a_writer_that_cannot_begin_is_an_error_with_its_name_and_closes_the_others(tmp_path, monkeypatch):
    def offline(folder):
        raise ConnectionError("no server")

    monkeypatch.setitem(WRITERS, "mine", offline)
    with pytest.raises(ConnectionError, match="no server") as caught:
        open_writers(tmp_path, ["csv", "mine"])
    assert caught.value.__notes__ == ["raised by the writer mine"]


def test_what_a_registered_function_returns_must_be_a_writer(tmp_path, monkeypatch):
    monkeypatch.setitem(WRITERS, "mine", lambda folder: None)
    with pytest.raises(TypeError, match="mine is no writer: it lacks resume") as caught:
        open_writers(tmp_path, ["csv", "mine"])
    assert caught.value.__notes__ == ["raised by the writer mine"]


def test_unknown_names_are_refused_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"no writer 'tensorbord'; did you mean tensorboard\? there are jsonl, "):
        open_writers(tmp_path / "run", ["tensorbord"])
    assert not (tmp_path / "run").exists()


def test_csv_has_scores_of_neurons_and_settings(tmp_path):
    with CsvWriter(tmp_path) as writer:
        writer.settings({"seed": 1, "agent": {"lr": 0.5, "none": None}})
        for step in (1, 2):
            writer.histogram(step, "scores/critic/dormancy/q.0", [0.0, step, math.nan])
    assert [(row["step"], row["tag"], json.loads(row["values"])) for row in table(tmp_path / "scores.csv")] == [
        ("1", "scores/critic/dormancy/q.0", [0.0, 1.0, None]),
        ("2", "scores/critic/dormancy/q.0", [0.0, 2.0, None]),
    ]
    assert {row["setting"]: row["value"] for row in table(tmp_path / "settings.csv")} == {
        "seed": "1",
        "agent.lr": "0.5",
    }
    with CsvWriter(tmp_path) as writer:
        writer.resume(2)
    assert len(table(tmp_path / "scores.csv")) == 1


def test_a_writer_that_fails_in_a_context_is_left_behind(tmp_path):
    broken = Breaks("event")
    ctx = Context(writer=broken)
    ctx.log({"a": 1.0})
    with pytest.warns(RuntimeWarning, match="the writer Breaks failed .*ZeroDivisionError: no server"):
        ctx.event("redo", {})
    ctx.event("redo", {})
    ctx.log({"a": 2.0})
    assert broken.count == 1
    assert ctx.latest == {"a": 2.0}


@pytest.mark.parametrize("writer", [[Breaks("log")], "runs/mine", Breaks], ids=["list", "folder", "class"])
def test_a_context_takes_one_writer_and_says_so(writer) -> None:
    with pytest.raises(TypeError, match=r"takes one writer, for several plasticity\.writers\.Writers\(\[\.\.\.\]\)"):
        Context(writer=writer)
    ctx = Context()
    ctx.writer = writer
    with pytest.raises(TypeError, match="takes one writer"):
        start([], ctx)


def test_the_class_of_a_writer_is_no_writer() -> None:
    with pytest.raises(TypeError, match=r"got the class CsvWriter for a writer: make one, CsvWriter\(\.\.\.\)"):
        require_destinations([CsvWriter])


CALLS = {
    "settings": ({"seed": 1},),
    "log": (1, {"a": 1.0}),
    "histogram": (1, "scores/critic/dormancy/q.0", [1.0]),
    "event": (1, "redo", {}),
}
"""Method of a writer -> arguments that make it write."""


@pytest.mark.parametrize("kind", [CsvWriter, JsonLinesWriter, TensorBoardWriter])
def test_a_closed_writer_refuses_with_one_line(tmp_path, kind):
    writer = kind(tmp_path)
    writer.close()
    writer.close()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for method, arguments in CALLS.items():
        if kind is not JsonLinesWriter or method != "settings":  # it has no place for settings
            with pytest.raises(RuntimeError, match=rf"this {kind.__name__} \(.*\) is closed.*make a new one"):
                getattr(writer, method)(*arguments)
    with pytest.raises(RuntimeError, match="is closed and takes nothing more"):
        require_destinations([tmp_path / "other", writer])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_destination_that_is_there_twice_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = CsvWriter("table")
    with pytest.raises(ValueError, match="the destination CsvWriter is there twice: give it once"):
        require_destinations([writer, writer])
    with pytest.raises(ValueError, match="is there twice"):
        Writers({"one": writer, "two": writer})
    with pytest.raises(ValueError, match="the destination CsvWriter is there twice"):
        require_destinations([writer, CsvWriter(tmp_path / "table")])
    with pytest.raises(ValueError, match=r"the destination .*same is there twice"):
        require_destinations(["same", tmp_path / "same"])
    require_destinations([writer, CsvWriter("other"), "table"])
    kept = Kept()
    with pytest.raises(ValueError, match="the destination Kept is there twice"):
        open_writers("run", [], also=[kept, kept])
