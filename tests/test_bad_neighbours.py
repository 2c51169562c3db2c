"""One bad file never costs the others: generated run folders, beside a good one, for every command that reads runs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from inside import seeds_inside
from runfolders import make_run
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from werkzeug.test import Client

from plasticity.dashboard.tab.plugin import PlasticityPlugin
from plasticity.storage.record import read_record
from plasticity.testing.runs import QUICK_RUNS, attempt, command

AGENT = ("sac", *QUICK_RUNS["sac"], "--steps", "60", "--eval-every", "30", "--eval-episodes", "1", "--quiet")
GENERATED = settings(
    max_examples=int(os.environ.get("EXAMPLES", "12")),
    deadline=None,
    derandomize=True,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
"""Quick and the same every time: ``EXAMPLES=300 pytest tests/test_bad_neighbours.py`` looks further."""
TAGS = ("charts/eval_return", "charts/episodic_return", "plasticity/critic_1/dormancy/all", "plasticity/q/rank/l", "x")

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 2**63, 1e308, -1e308, float("nan"), float("inf"), 5e-324]),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
"""Values of any type that JSON, or Python's reader of it, knows."""
KEYS = st.one_of(
    st.sampled_from([*TAGS, "event", "step", "purge_step", "time", "neurons", "layers", "networks", "scores", "tasks"]),
    st.text(max_size=6),
)
ROWS = st.dictionaries(KEYS, ODD, max_size=4).flatmap(
    lambda row: st.sampled_from([row, {"step": 10, **row}, {"step": 20, "event": "redo", **row}])
)
LINES = st.one_of(ROWS.map(lambda row: json.dumps(row).encode()), st.binary(max_size=20), st.just(b'{"step": 1, "cha'))
FILES = st.lists(LINES, max_size=6).map(b"\n".join)
NAMES = st.one_of(
    st.sampled_from(["bad", "$x_{^$", "a b", "b\udcff", "é", "<script>", "-x", "%", "\\alpha$"]),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=5),
).filter(lambda name: name not in (".", "..", "good") and len(os.fsencode(name)) < 200)


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """Contents of a ``run.json``: one of this version with an odd value somewhere, one of others, or no JSON."""
    kind = draw(st.sampled_from(["odd value", "odd value", "odd value", "foreign", "newer", "binary"]))
    if kind == "binary":
        return draw(st.binary(max_size=20))
    if kind == "foreign":
        return json.dumps(draw(ODD)).encode()
    record = json.loads(json.dumps(RECORD))
    if kind == "newer":
        record["format"], record["version"] = 99, "9.0"
    for _ in range(draw(st.integers(1, 2))):
        place = record
        while True:
            key = draw(st.sampled_from([*sorted(place), "unknown"]))
            if isinstance(place.get(key), dict) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            if draw(st.booleans()) or key == "unknown":
                place[key] = draw(ODD)
            else:
                place.pop(key, None)
            break
    return json.dumps(record).encode()


RECORD: dict[str, Any] = {}
"""The ``run.json`` of the good run, filled in by the fixture."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A trained run with a model, and checkpoints, beside which the bad ones stand."""
    folder = tmp_path_factory.mktemp("good")
    command("train", *AGENT, "--out", folder, "--name", "good", "--checkpoint.every", "30")
    RECORD.update(json.loads((folder / "good" / "run.json").read_text()))
    yield folder / "good"
    RECORD.clear()


FOLDERS = st.fixed_dictionaries(
    {
        "name": NAMES,
        "run.json": st.one_of(records(), st.sampled_from([None, "link", "folder"])),
        "metrics.jsonl": st.one_of(FILES, FILES, st.sampled_from([None, "link", "folder"])),
        "scores.jsonl": st.one_of(st.none(), FILES),
        "model": st.sampled_from(["good", "good", None, "cut", "empty"]),
    }
)


def write(root: Path, good: Path, given: dict[str, Any]) -> Path:
    """Write a bad run folder below ``root``."""
    folder = root / given["name"]
    folder.mkdir()
    for name in ("run.json", "metrics.jsonl", "scores.jsonl"):
        if isinstance(given[name], bytes):
            (folder / name).write_bytes(given[name])
        elif given[name] == "link":
            (folder / name).symlink_to(folder / name)
        elif given[name] == "folder":
            (folder / name).mkdir()
    if given["model"]:
        shutil.copytree(good / "model", folder / "model")
        shutil.copytree(good / "checkpoints", folder / "checkpoints")
        for file in (file for kind in ("model", "checkpoints") for file in (folder / kind).rglob("*.json")):
            if given["model"] == "cut":
                file.write_bytes(file.read_bytes()[:40])
            elif given["model"] == "empty":
                file.unlink()
    return folder


def digest(folder: Path) -> str:
    """Return a hash of all files below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return sha256(b"".join(os.fsencode(f.relative_to(folder)) + f.read_bytes() for f in files)).hexdigest()


def well(*words: str | Path) -> str:
    """Run a command; it must end with 0, or with one line that says what is wrong. Return its output."""
    code, output, errors = attempt(*words)
    lines = [line for line in errors.splitlines() if line.strip() and not line.startswith(("warning: ", "note: "))]
    note(f"{code}: {errors}")
    assert "Traceback" not in errors
    if code:
        said = [line for line in lines if line.startswith(f"plasticity {words[0]}: ")]
        assert len(said) == 1, errors
    return output


@given(bad=st.lists(FOLDERS, min_size=1, max_size=2, unique_by=lambda one: one["name"]))
@GENERATED
def test_reports_and_comparisons_go_on_without(good: Path, bad: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "runs"
        for seed in (1, 2, 3):
            make_run(root / f"fine_{seed}", [1.0, 2.0 + seed], seed=seed)
        for one in bad:
            write(root, good, one)
        before = digest(root)
        options = ("--env", "Walk-v0", "--resamples", "20")
        assert "Walk-v0" in well("compare", root, *options)
        well("report", root, "--out", Path(place) / "report", "--formats", "md", "html")
        written = (Path(place) / "report" / "report.md").read_text(encoding="utf-8")
        assert "Walk-v0" in written
        assert digest(root) == before


@given(bad=FOLDERS)
@GENERATED
def test_a_run_is_played_probed_and_resumed_or_refused_in_a_line(good: Path, bad: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, before = write(Path(place), good, bad), digest(good)
        well("eval", folder, "--episodes", "1")
        well("probe", folder, "--samples", "32")
        well("train", "--resume", folder, "--quiet")
        assert digest(good) == before


@given(bad=FOLDERS)
@GENERATED
def test_seeds_beside_a_bad_folder_are_trained_and_it_is_named(good: Path, bad: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        seeds_inside(patch)
        group = Path(place) / "group"
        for number in (1, 3):
            shutil.copytree(good, group / f"seed_{number}")
        record = json.loads((group / "seed_3" / "run.json").read_text())
        record["config"]["seed"] = 3
        (group / "seed_3" / "run.json").write_text(json.dumps(record))
        write(group, good, {**bad, "name": "seed_2"})
        before = [digest(group / f"seed_{number}") for number in (1, 3)]
        words = [
            *AGENT,
            "--checkpoint.every",
            "30",
            "--seeds",
            "3",
            "--retries",
            "0",
            "--out",
            place,
            "--name",
            "group",
        ]
        code, output, errors = attempt("train", *words)
        note(f"{code}: {output}{errors}")
        assert "Traceback" not in errors
        assert [digest(group / f"seed_{number}") for number in (1, 3)] == before
        if "seed 1" in output:
            assert "seed 1: finished before" in output
            assert "seed 3: finished before" in output
            assert ("seed 2: finished" in output) == (code == 0)
            assert "Traceback" not in (group / "seed_2.log").read_text(errors="replace")
        else:
            assert code == 1
            assert len([line for line in errors.splitlines() if line.startswith("plasticity train: ")]) == 1
            assert "seed_2" in errors


def damaged(folder: Path) -> bool:
    """Return whether a folder has a record that cannot be read."""
    try:
        read_record(folder)
    except ValueError as error:
        return "is not a run" not in str(error)
    return False


@given(bad=FOLDERS.filter(lambda one: one["name"].isprintable()))  # TensorBoard reads no other names
@GENERATED
def test_the_tab_shows_the_others(good: Path, bad: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(good, Path(place) / "good")
        folder = write(Path(place), good, bad)
        for events in good.glob("events.*"):
            shutil.copy(events, folder)
        multiplexer = EventMultiplexer()
        multiplexer.AddRunsFromDirectory(place)
        multiplexer.Reload()
        plugin = PlasticityPlugin(TBContext(logdir=place, data_provider=MultiplexerDataProvider(multiplexer, place)))
        routes = plugin.get_plugin_apps()
        listed = json.loads(Client(routes["/runs"]).get("/").data)["runs"]
        names = [run["name"] for run in listed]
        if damaged(folder) and folder.name in names:
            faults = json.loads(Client(routes["/runs"]).get("/").data)["faults"]
            assert folder.name in {fault["run"] for fault in faults}
        assert "good" in names
        asked = {"runs": json.dumps(dict.fromkeys(names, "")), "curve": "charts/eval_return"}
        answer = Client(routes["/series"]).get("/", query_string=asked)
        assert answer.status_code == 200
        assert json.loads(answer.data)["good"]["series"]
        for name in names:
            asked = {"run": name, "network": "critic_1", "layer": "q.0"}
            assert Client(routes["/neurons"]).get("/", query_string=asked).status_code == 200
