"""A writer into an agent's own logger."""

from __future__ import annotations

from collections.abc import Mapping

from stable_baselines3.common.base_class import BaseAlgorithm

from plasticity.callback import Writer

PRINTED = 33
"""Characters after the first part of a tag that the logger prints without cutting: two that it cuts alike are an
error."""


class AgentLogger(Writer):
    """Write scalars to an agent's logger; single layers are left out of what it prints."""

    def __init__(self, model: BaseAlgorithm) -> None:
        self._model = model

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars under their tags."""
        for tag, value in values.items():
            own = tag.partition("/")[2]
            layer = tag.startswith("plasticity/") and own.count("/") == 2 and not own.endswith("/all")
            self._model.logger.record(tag, float(value), exclude="stdout" if layer or len(own) > PRINTED else None)
