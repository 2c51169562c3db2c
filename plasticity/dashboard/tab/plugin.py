"""The Plasticity tab: a TensorBoard plugin, found through the entry point ``tensorboard_plugins``."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tensorboard import context as contexts
from tensorboard.backend import experiment_id, http_util
from tensorboard.data.provider import RunTagFilter
from tensorboard.plugins import base_plugin
from tensorboard.plugins.scalar import metadata as scalars
from werkzeug import wrappers

from plasticity.dashboard.tab.clock import Times
from plasticity.dashboard.tab.data import curves, payload, stamp, usual_curve
from plasticity.dashboard.tab.folders import Folders
from plasticity.dashboard.tab.groups import group_runs, seed_of
from plasticity.dashboard.tab.pages import metric_page
from plasticity.dashboard.tab.story import Curves
from plasticity.meanings import in_words
from plasticity.metrics import find_metric, ordered, shown_first
from plasticity.tags import UPDATES, parse_tag, plasticity_tags

STATIC = Path(__file__).parent / "static"
_TYPES = {".js": "text/javascript", ".css": "text/css"}
MAX_RUNS = 200
"""Runs that one answer holds at most."""
_POINTS, _TREND_POINTS, _CURVE_POINTS = 200, 40, 600
"""Points of a series that is a map of 160 columns, a small trend line, the curve above the maps."""
MAX_DETAIL = 16
"""Factor by which a page that is zoomed in may have more of them."""
_KEPT = 256  # runs whose answer is kept


class View(NamedTuple):
    """The choice of a page: the curve above, the metrics drawn as maps, how much finer than usual."""

    curve: str
    maps: frozenset[str]
    detail: int = 1

    def points(self, tag: str) -> int:
        """Return how many points of a series the page needs."""
        if tag in (self.curve, UPDATES):
            return _CURVE_POINTS * self.detail
        metric = parts.metric if (parts := parse_tag(tag)) is not None else ""
        if metric in self.maps:
            return _POINTS * self.detail
        return _POINTS if find_metric(metric).tells_loss else _TREND_POINTS


class PlasticityPlugin(base_plugin.TBPlugin):
    """Serve the tab, the pages of metrics, and, as JSON, ``/runs``, their ``/series``, and ``/neurons``."""

    plugin_name = "plasticity"

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._provider = context.data_provider
        self._folders = Folders(context.logdir or "")
        self._answers: OrderedDict[tuple[str, View], tuple[str, str]] = OrderedDict()

    def get_plugin_apps(self) -> dict[str, Callable[..., Any]]:
        """Return route -> application."""
        routes = {"/static/*": self._static, "/runs": self._runs, "/series": self._series, "/neurons": self._neurons}
        routes["/page"] = self._page
        return {route: wrappers.Request.application(answer) for route, answer in routes.items()}

    def is_active(self) -> bool:
        """Return True: the tab says itself when there is nothing to see, and fills as soon as there is."""
        return True

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Return the name of the tab and the module that draws it."""
        # TensorBoard's reload button does not reach a page in a frame; the page asks for news by itself.
        return base_plugin.FrontendMetadata(
            es_module_path="/static/index.js", tab_name="Plasticity", disable_reload=True
        )

    def data_plugin_names(self) -> Sequence[str]:
        """Return whose data is read."""
        return (self.plugin_name, scalars.PLUGIN_NAME)

    # -- routes --------------------------------------------------------------------------------------------------------

    def _static(self, request: wrappers.Request) -> wrappers.Response:
        name = request.path.rsplit("/", 1)[-1]
        if name not in {file.name for file in STATIC.iterdir() if file.suffix in _TYPES}:
            return http_util.Respond(request, "no such file", "text/plain", code=404)
        return http_util.Respond(request, (STATIC / name).read_text(encoding="utf-8"), _TYPES[Path(name).suffix])

    def _runs(self, request: wrappers.Request) -> wrappers.Response:
        """Answer every run with group, seed, status and last step, the metrics, and the tags that may stand above."""
        listed = self._listed(request)
        with self._folders.lock:
            folders = {run: self._folders.get(run) for run in listed}
            records = {run: folder.record() if folder else None for run, folder in folders.items()}
            groups, now = group_runs(records), time.time()
            runs = [
                {
                    "name": run,
                    "group": groups[run],
                    "seed": seed_of(run, records[run]),
                    "status": folder.status(now) if (folder := folders[run]) else "",
                    "step": max((info.max_step for info in tags.values()), default=0),
                    "time": max((info.max_wall_time for info in tags.values()), default=0),
                    "probed": bool(plasticity_tags(tags)),
                    "curve": usual_curve(tags),
                }
                for run, tags in listed.items()
            ]
            faults = self._folders.faults(listed, now)
        tags = {tag for tags in listed.values() for tag in tags}
        metrics = _described({tag.metric for tag in plasticity_tags(tags)})
        answer = {
            "runs": runs,
            "curves": curves(tags),
            "metrics": metrics,
            "faults": faults,
        }
        return _json_response(request, json.dumps(answer))

    def _series(self, request: wrappers.Request) -> wrappers.Response:
        """Answer ``{run: {stamp, ...}}`` for ``runs``, a JSON object run -> stamp it has; runs without news are null.

        ``maps``, separated by commas: the metrics wanted in full; the others come as trends. ``curve``: one more tag.
        ``detail``: a factor, up to ``MAX_DETAIL``, by which both are finer than usual.
        """
        asked, curve = _asked(request.args.get("runs", "")), request.args.get("curve", "")
        view = View(curve, frozenset(request.args.get("maps", "").split(",")), _detail(request.args.get("detail", "")))
        listed = self._listed(request, list(asked))
        parts = []
        with self._folders.lock:
            for run in asked:
                tags = {
                    t: i for t, i in listed.get(run, {}).items() if parse_tag(t) is not None or t in (curve, UPDATES)
                }
                now = stamp(tags, self._folders.get(run), repr((view.curve, sorted(view.maps), view.detail)))
                body = "null" if asked[run] == now else self._answer(request, run, tags, view, now)
                parts.append(f"{json.dumps(run)}: {body}")
        return _json_response(request, "{" + ", ".join(parts) + "}")

    def _neurons(self, request: wrappers.Request) -> wrappers.Response:
        """Answer the neuron map of ``layer`` of ``network`` in ``run``."""
        with self._folders.lock:
            found = self._folders.neurons(request.args.get("run", ""))
            if found is None:
                return _json_response(request, json.dumps({"error": "this run has no folder below the log directory"}))
            names = (request.args.get(key, "") for key in ("network", "layer", "probe"))
            return _json_response(request, json.dumps(found.map(*names)))

    def _page(self, request: wrappers.Request) -> wrappers.Response:
        """Answer the page of ``metric``."""
        return http_util.Respond(request, metric_page(request.args.get("metric", "")), "text/html")

    # -- data ----------------------------------------------------------------------------------------------------------

    def _listed(self, request: wrappers.Request, runs: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
        """Return run -> tag -> TensorBoard's summary of the series, for all runs or some."""
        found = self._provider.list_scalars(
            contexts.from_environ(request.environ),
            experiment_id=request.environ.get(experiment_id.WSGI_ENVIRON_KEY, ""),
            plugin_name=scalars.PLUGIN_NAME,
            run_tag_filter=None if runs is None else RunTagFilter(runs=runs),
        )
        return {run: dict(found[run]) for run in sorted(found)}

    def _answer(self, request: wrappers.Request, run: str, tags: Mapping[str, Any], view: View, now: str) -> str:
        """Return a run's part of the answer as JSON; made anew only when its stamp has changed."""
        kept = self._answers.pop((run, view), None)
        if kept is None or kept[0] != now:
            series, times = self._read(request, run, tags, view)
            drawn = payload(series, self._folders.get(run), view.curve, times)
            kept = (now, json.dumps({"stamp": now, **drawn}, allow_nan=False, default=str))
        self._answers[run, view] = kept
        while len(self._answers) > _KEPT:
            self._answers.popitem(last=False)
        return kept[1]

    def _read(self, request: wrappers.Request, run: str, tags: Iterable[str], view: View) -> tuple[Curves, Times]:
        """Return the series of a run, and step -> wall-clock time."""
        times: dict[float, float] = {}
        series: dict[str, tuple[list[int], list[float]]] = {}
        wanted: dict[int, list[str]] = {}
        for tag in tags:
            wanted.setdefault(view.points(tag), []).append(tag)
        for points, chosen in wanted.items():
            found = self._provider.read_scalars(
                contexts.from_environ(request.environ),
                experiment_id=request.environ.get(experiment_id.WSGI_ENVIRON_KEY, ""),
                plugin_name=scalars.PLUGIN_NAME,
                downsample=points,
                run_tag_filter=RunTagFilter(runs=[run], tags=chosen),
            )
            for tag, data in found.get(run, {}).items():
                series[tag] = ([datum.step for datum in data], [datum.value for datum in data])
                times.update((datum.step, datum.wall_time) for datum in data)
        return series, times


def _described(names: Iterable[str]) -> list[dict[str, Any]]:
    """Return name, kind, ``shown`` and meaning of each metric, in the order in which they are shown."""
    names = ordered(names)
    first = shown_first(names)
    return [
        {"name": name, "kind": find_metric(name).kind, "shown": name in first, "about": in_words(name)}
        for name in names
    ]


def _detail(text: str) -> int:
    """Return the factor of a request, 1 for one that makes no sense."""
    return min(int(text), MAX_DETAIL) if text.isdecimal() and int(text) else 1


def _asked(text: str) -> dict[str, str]:
    """Return run -> stamp from a request; empty for one that makes no sense."""
    try:
        asked = json.loads(text)
    except ValueError:
        return {}
    return {str(run): str(have) for run, have in list(asked.items())[:MAX_RUNS]} if isinstance(asked, dict) else {}


def _json_response(request: wrappers.Request, text: str) -> wrappers.Response:
    return http_util.Respond(request, text, "application/json")
