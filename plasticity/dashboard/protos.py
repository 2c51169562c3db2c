"""TensorBoard summary values, built as protos: no TensorFlow, no torch.utils.tensorboard (a slow import)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE, DT_STRING
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.histogram import metadata as histograms
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.plugins.text import metadata as texts

NUM_BINS = 30  # what TensorBoard's own histogram chart draws


def scalar(tag: str, value: float) -> Summary.Value:
    """Return a scalar; TensorBoard keeps it as float32."""
    return Summary.Value(tag=tag, simple_value=value)


def histogram(tag: str, values: NDArray[np.float64]) -> Summary.Value:
    """Return a histogram of at least one finite value in ``NUM_BINS`` equal bins from the least to the greatest."""
    counts, edges = np.histogram(values, bins=NUM_BINS)
    bins = np.stack([edges[:-1], edges[1:], counts], axis=1).astype("<f8")
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in bins.shape])
    tensor = TensorProto(dtype=DT_DOUBLE, tensor_shape=shape, tensor_content=bins.tobytes())
    return Summary.Value(tag=tag, tensor=tensor, metadata=histograms.create_summary_metadata("", ""))


def text_summary(tag: str, markdown: str) -> Summary.Value:
    """Return a text, shown as markdown."""
    return _string(tag, markdown.encode(), texts.create_summary_metadata("", ""))


def layout_summary(scalars_layout: Layout) -> Summary.Value:
    """Return the layout of the Custom Scalars tab."""
    content = scalars_layout.SerializeToString()
    return _string(custom_scalars.CONFIG_SUMMARY_TAG, content, custom_scalars.create_summary_metadata())


def experiment(config: Mapping[str, Any], metrics: Iterable[str]) -> Summary.Value:
    """Return the columns of the HParams tab: every setting in ``config`` and every tag in ``metrics``."""
    kinds = {bool: api_pb2.DATA_TYPE_BOOL, float: api_pb2.DATA_TYPE_FLOAT64, str: api_pb2.DATA_TYPE_STRING}
    infos = [api_pb2.HParamInfo(name=name, type=kinds[type(_setting(value))]) for name, value in config.items()]
    tags = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics]
    proto = api_pb2.Experiment(time_created_secs=time.time(), hparam_infos=infos, metric_infos=tags)
    return _hparams(hparams.EXPERIMENT_TAG, HParamsPluginData(experiment=proto))


def session_start(config: Mapping[str, Any]) -> Summary.Value:
    """Return one run's settings for the HParams tab; other types than bool, number and string as their ``str``."""
    info = SessionStartInfo(start_time_secs=time.time())
    for name, value in config.items():
        setting = _setting(value)
        if isinstance(setting, bool):
            info.hparams[name].bool_value = setting
        elif isinstance(setting, float):
            info.hparams[name].number_value = setting
        else:
            info.hparams[name].string_value = setting
    return _hparams(hparams.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=info))


def session_end(succeeded: bool) -> Summary.Value:
    """Return the end of a run for the HParams tab."""
    status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
    info = SessionEndInfo(status=status, end_time_secs=time.time())
    return _hparams(hparams.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=info))


def _setting(value: Any) -> bool | float | str:
    if isinstance(value, bool | str):
        return value
    return float(value) if isinstance(value, Real) else str(value)


def _string(tag: str, content: bytes, metadata: SummaryMetadata) -> Summary.Value:
    tensor = TensorProto(dtype=DT_STRING, tensor_shape=TensorShapeProto(), string_val=[content])
    return Summary.Value(tag=tag, tensor=tensor, metadata=metadata)


def _hparams(tag: str, data: HParamsPluginData) -> Summary.Value:
    return Summary.Value(tag=tag, tensor=hparams.NULL_TENSOR, metadata=hparams.create_summary_metadata(data))
