"""The dashboard: a layout made from tags, a link that pins them, a TensorBoard that starts and ends cleanly."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from urllib.parse import parse_qs, urlsplit

import pytest

from plasticity.dashboard.hosts import guarded, is_served
from plasticity.dashboard.layout import layout, pinned_url
from plasticity.dashboard.serve import Server, free_port, serve
from plasticity.writers import open_writers

TAGS = [
    "charts/SPS",
    "charts/episodic_return",
    "charts/episodic_length",
    "losses/actor",
    "events/recycle",
    "plasticity/actor/dormancy/all",
    "plasticity/actor/dormancy/trunk.0",
    "plasticity/actor/dormancy/trunk.2",
    "plasticity/actor/grama/all",
    "plasticity/critic.1/dormancy/all",
    "plasticity/critic.1/dormancy/0",
    "something/else",
]


def charts(tags):
    return {
        (category.title, chart.title): list(chart.multiline.tag)
        for category in layout(tags).category
        for chart in category.chart
    }


def matched(patterns, tags):
    """The tags that TensorBoard shows: it applies re.match, which does not look at the end of a tag."""
    return [tag for tag in tags if any(re.match(pattern, tag) for pattern in patterns)]


def test_each_chart_shows_exactly_its_tags():
    lookalikes = [
        "plasticity/criticX1/dormancy/all",
        "plasticity/actor/dormancy_pre/all",
        "charts/SPS_mean",
        "charts/episodic_return/extra",
        "old/charts/SPS",
    ]
    shown = {key: matched(patterns, TAGS + lookalikes) for key, patterns in charts(TAGS).items()}
    assert shown == {
        ("training", "charts/episodic_return"): ["charts/episodic_return"],
        ("training", "charts/SPS"): ["charts/SPS"],
        ("training", "charts/episodic_length"): ["charts/episodic_length"],
        ("training", "losses/actor"): ["losses/actor"],
        ("actor", "dormancy"): [tag for tag in TAGS if tag.startswith("plasticity/actor/dormancy/")],
        ("actor", "grama"): ["plasticity/actor/grama/all"],
        ("critic.1", "dormancy"): [tag for tag in TAGS if tag.startswith("plasticity/critic.1/")],
        ("events", "events/recycle"): ["events/recycle"],
    }
    assert next(iter(shown)) == ("training", "charts/episodic_return")


def test_runs_with_other_layers_have_the_same_charts():
    # TensorBoard shows a chart twice if two runs describe it differently.
    other = [tag.replace("trunk.2", "trunk.4") for tag in TAGS]
    assert layout(TAGS) == layout(reversed(other))


def test_no_tags_no_categories():
    assert not layout([]).category
    assert not layout(["something/else"]).category


def test_the_link_pins_the_return_and_the_aggregates():
    url = pinned_url("http://127.0.0.1:6006/", TAGS)
    assert url.startswith("http://127.0.0.1:6006/?smoothing=0&pinnedCards=%5B%7B")
    parts = urlsplit(url)
    assert parts.fragment == "timeseries"
    query = parse_qs(parts.query)
    assert query["smoothing"] == ["0"]
    assert json.loads(query["pinnedCards"][0]) == [
        {"plugin": "scalars", "tag": "charts/episodic_return"},
        {"plugin": "scalars", "tag": "plasticity/actor/dormancy/all"},
        {"plugin": "scalars", "tag": "plasticity/critic.1/dormancy/all"},
        {"plugin": "scalars", "tag": "plasticity/actor/grama/all"},
    ]


@pytest.fixture
def runs(tmp_path):
    with open_writers(tmp_path / "seed_1") as logger:
        for step in range(1, len(TAGS) + 1):
            logger.log(step, dict.fromkeys(TAGS[:step], float(step)))
    return tmp_path


def fetch(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def test_tensorboard_serves_the_run_and_ends_without_children(runs):
    with Server(runs, port=0) as server:
        server.wait_ready()
        deadline = time.monotonic() + 30
        while fetch(f"{server.url}/data/runs") != ["seed_1"] and time.monotonic() < deadline:
            time.sleep(0.2)
        assert fetch(f"{server.url}/data/runs") == ["seed_1"]
        served = fetch(f"{server.url}/data/plugin/custom_scalars/layout")
        assert [category["title"] for category in served["category"]] == [
            category.title for category in layout(TAGS).category
        ]
        foreign = urllib.request.Request(f"{server.url}/data/runs", headers={"Host": f"evil.example:{server.port}"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(foreign, timeout=10)
        family = [server.process.pid, *children(server.process.pid)]
    assert not [pid for pid in family if alive(pid)]


@pytest.mark.parametrize(
    ("name", "host", "served"),
    [
        *((name, "127.0.0.1", True) for name in ("localhost:6006", "127.0.0.1:6006", "LOCALHOST", "[::1]:6006", "::1")),
        *(
            (name, "127.0.0.1", False)
            for name in ("evil.example", "evil.example:6006", "10.0.0.7:6006", "", "localhost.evil")
        ),
        *(
            (name, "box.lan", served)
            for name, served in (("box.lan:6006", True), ("other.lan", False), ("localhost", True))
        ),
        *(
            (name, "0.0.0.0", served)
            for name, served in (("10.0.0.7:6006", True), ("[fe80::1]", True), ("evil.example", False))
        ),
        (f"{socket.gethostname()}:6006", "0.0.0.0", True),
    ],
)
def test_the_page_answers_only_under_names_it_was_started_for(name, host, served):
    assert is_served(name, host) is served
    said = []
    body = guarded(lambda environ, start: [b"runs"], host)({"HTTP_HOST": name}, lambda *a: said.append(a[0]))
    assert (list(body) == [b"runs"]) is served
    assert said == ([] if served else ["403 Forbidden"])


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")],
)
def test_the_link_can_be_opened_whatever_address_it_listens_on(tmp_path, host, address):
    if ":" in host and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    server = Server(tmp_path, port=0, host=host)
    assert server.url == f"http://{address}:{server.port}"
    assert server.port > 0


def test_a_refusal_names_what_a_server_on_all_addresses_answers_to():
    (said,) = guarded(lambda environ, start: [b"runs"], "0.0.0.0")({"HTTP_HOST": "evil.example"}, lambda *a: None)
    assert b"any address and the name of this machine" in said


def children(pid):
    """The data server that TensorBoard starts; empty where there is no /proc."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as listed:
            return [int(child) for child in listed.read().split()]
    except FileNotFoundError:
        return []


def alive(pid, seconds=5.0):
    """Return whether a process still runs after a grace period; a zombie that waits for its parent does not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return False
        except (ProcessLookupError, FileNotFoundError):
            return False
        time.sleep(0.05)
    return True


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_prints_the_links_and_ends_on_a_signal(runs, number):
    command = f"import sys; from plasticity.dashboard.serve import serve; sys.exit(serve({str(runs)!r}, port=0))"
    process = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        first, link = process.stdout.readline(), process.stdout.readline()
        assert "1 run in" in first
        url = re.findall(r"http://127\.0\.0\.1:\d+", first)[0]
        assert pinned_url(url, TAGS) in link
        family = children(process.pid)
        process.send_signal(number)
        assert process.wait(15) == 0
    assert not [pid for pid in family if alive(pid)]


def test_the_next_free_port_is_taken():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert port < free_port("127.0.0.1", port) <= port + 100
        with pytest.raises(OSError, match="no free port"):
            free_port("127.0.0.1", port, attempts=1)
    with pytest.raises(OSError, match="cannot listen on"):
        free_port("203.0.113.1", 6006)


def test_a_missing_folder_is_one_line(tmp_path, capsys):
    assert serve(tmp_path / "nowhere") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "nowhere" in error


def test_an_empty_folder_and_a_server_that_dies_are_said(tmp_path, monkeypatch, capsys):
    def end(server):
        server.process.kill()
        return server.process.wait()

    monkeypatch.setattr(Server, "wait", end)
    assert serve(tmp_path, port=0) == 1
    captured = capsys.readouterr()
    assert "no runs yet" in captured.out
    assert captured.err.startswith("plasticity dashboard: TensorBoard stopped by itself")
