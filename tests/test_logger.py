"""The run logger: what TensorBoard and programs read back is what was logged, and nothing stops training."""

import errno
import json
import logging
import math
import os
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import DEFAULT_SIZE_GUIDANCE, EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util import tensor_util

from plasticity.dashboard.appendfile import AppendFile
from plasticity.dashboard.eventfile import EventFile, masked_crc32c
from plasticity.dashboard.logger import RunLogger
from plasticity.dashboard.runs import find_runs, metric_tags, read_metrics


def event_files(folder):
    return [path for path in folder.iterdir() if "tfevents" in path.name]


def accumulate(folder):
    return EventAccumulator(str(folder), size_guidance=dict.fromkeys(DEFAULT_SIZE_GUIDANCE, 0)).Reload()


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("size", [0, 1, 3, 8, 1019, 1020, 1021, 1024, 5000])
def test_checksum_equals_tensorboards_own(size):
    data = os.urandom(size)
    assert masked_crc32c(data) == pywrap_tensorflow.masked_crc32c(data)


def test_one_call_is_one_event_and_one_row(tmp_path):
    before = time.time()
    with RunLogger(tmp_path / "deep" / "run") as logger:
        logger.log(10, {"charts/SPS": 123.5, "losses/actor": -1})
        logger.log(20, {"charts/SPS": np.float32(0.5)})
        folder = logger.folder
        assert len(read_metrics(folder)) == 2  # readable while the run goes on
    assert not logger.dropped

    (file,) = event_files(folder)
    records = LegacyEventFileLoader(str(file)).Load()
    assert [len(event.summary.value) for event in records if event.HasField("summary")] == [2, 1]
    speed = accumulate(folder).Scalars("charts/SPS")
    assert [(event.step, event.value) for event in speed] == [(10, 123.5), (20, 0.5)]
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == [10, 20]
    assert rows[0]["losses/actor"] == -1.0
    assert rows[0]["time"] == speed[0].wall_time
    assert before <= rows[0]["time"] <= rows[1]["time"] <= time.time()
    assert metric_tags(rows) == ["charts/SPS", "losses/actor"]
    assert find_runs(tmp_path) == [folder]


def test_non_finite_values_are_null_in_json_and_themselves_in_tensorboard(tmp_path):
    with RunLogger(tmp_path) as logger:
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
    with RunLogger(tmp_path) as logger:
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
    with RunLogger(tmp_path) as logger:
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
    assert not logger.dropped


def test_text_and_layout_reach_their_plugins(tmp_path):
    with RunLogger(tmp_path) as logger:
        logger.text(0, "guide", "**dormancy**: é")
        logger.layout(Layout(category=[Category(title="actor")]))
    run = accumulate(tmp_path)
    assert run.Tensors("guide")[0].tensor_proto.string_val[0].decode() == "**dormancy**: é"
    assert run.PluginTagToContent("text").keys() == {"guide"}
    content = run.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert Layout.FromString(content).category[0].title == "actor"


@pytest.mark.parametrize(("fails", "status"), [(False, "STATUS_SUCCESS"), (True, "STATUS_FAILURE")])
def test_hparams_share_the_event_file(tmp_path, fails, status):
    try:
        with RunLogger(tmp_path) as logger:
            logger.hparams({"lr": 3e-4, "seed": 1, "tune": True, "env": "dmc/dog-run", "hidden": (256, 256)}, ["a"])
            logger.log(100, {"a": 1.0})
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert len(event_files(tmp_path)) == 1
    content = accumulate(tmp_path).PluginTagToContent("hparams")
    plugin_data = {tag: HParamsPluginData.FromString(data) for tag, data in content.items()}
    experiment = plugin_data["_hparams_/experiment"].experiment
    assert [info.name for info in experiment.hparam_infos] == ["lr", "seed", "tune", "env", "hidden"]
    assert [info.name.tag for info in experiment.metric_infos] == ["a"]
    start = plugin_data["_hparams_/session_start_info"].session_start_info.hparams
    assert start["lr"].number_value == 3e-4
    assert start["seed"].number_value == 1
    assert start["tune"].bool_value is True
    assert start["env"].string_value == "dmc/dog-run"
    assert start["hidden"].string_value == "(256, 256)"
    end = plugin_data["_hparams_/session_end_info"].session_end_info
    assert end.status == type(end).DESCRIPTOR.fields_by_name["status"].enum_type.values_by_name[status].number


@pytest.mark.parametrize("broken", [EventFile, AppendFile])
def test_a_full_disk_warns_once_and_training_goes_on(tmp_path, monkeypatch, caplog, broken):
    kinds = {EventFile: {"TensorBoard event file": 4}, AppendFile: {"TensorBoard event file": 4, "metrics.jsonl": 3}}
    with caplog.at_level(logging.WARNING), RunLogger(tmp_path) as logger:
        logger.log(1, {"a": 1.0})
        with monkeypatch.context() as full:
            full.setattr(broken, "append", no_space)
            for step in (2, 3):
                logger.log(step, {"a": 1.0})
            logger.event(3, "recycle", {})
            logger.text(3, "guide", "x")
        logger.log(4, {"a": 1.0})
    assert logger.dropped == kinds[broken]
    first = [record for record in caplog.records if "No space left" in record.message]
    assert len(first) == len(kinds[broken])  # once per file
    assert len(caplog.records) == len(first) + 1  # and the total at the end
    assert "4 x TensorBoard event file" in caplog.records[-1].message
    assert [event.step for event in accumulate(tmp_path).Scalars("a")] == [1, 4]  # it writes again


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


def test_nothing_that_is_logged_raises(tmp_path, caplog):
    logger = RunLogger(tmp_path)
    logger.log(1, {"a": "not a number", "step": 7, "b": 2.0})
    logger.histogram(1, "h", ["x"])
    logger.event(1, "recycle", {"time": "taken", "object": object()})
    logger.flush()
    logger.close()
    logger.close()
    logger.log(2, {"a": 1.0})
    assert logger.dropped == {"value": 4, "metrics.jsonl": 1, "TensorBoard event file": 1}
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 1]
    assert len(caplog.records) == 4


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        RunLogger(tmp_path / "file" / "run")


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    with RunLogger(tmp_path) as logger:
        for step in range(10):
            logger.log(step, {"a": float(step)})
        logger.event(3, "recycle", {})
        logger.event(8, "recycle", {})
    with open(tmp_path / "metrics.jsonl", "a") as torn:
        torn.write('{"step": 10, "ti')
    assert len(read_metrics(tmp_path)) == 12

    with RunLogger(tmp_path, purge_step=5) as logger:
        for step in range(5, 7):
            logger.log(step, {"a": -float(step)})
        logger.event(6, "recycle", {})
    expected = [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, -5.0), (6, -6.0)]
    assert [(row["step"], row["a"]) for row in read_metrics(tmp_path) if "a" in row] == expected
    run = accumulate(tmp_path)
    assert [(event.step, event.value) for event in run.Scalars("a")] == expected
    assert [(event.step, event.value) for event in run.Scalars("events/recycle")] == [(3, 1), (6, 2)]


def test_a_damaged_file_is_read_as_far_as_possible(tmp_path, caplog):
    lines = ['{"step": 1, "a": 1.0}', "3", "{", "", '{"step": 2, "a": 2.0}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    assert "2 lines" in caplog.text
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "nowhere")
