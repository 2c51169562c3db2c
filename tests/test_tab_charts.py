"""The tab's charts in a real browser, on runs whose numbers are known: overlay, axes, zoom, export, link, faults."""

import base64
import json
import shutil
import struct
import time
import urllib.parse
import xml.etree.ElementTree as ET
import zlib

import pytest
from browser import Browser, find_browser
from tabpage import labels, open_tab, text, wait_for_runs

from plasticity.dashboard.serve import Server
from plasticity.writers import open_writers

pytestmark = pytest.mark.skipif(find_browser() is None, reason="there is no Chromium on this machine")

STEPS = 100
CURVES = "document.querySelectorAll('polyline.curve').length"
SAVED = """(kind, chart) => new Promise((resolve) => {
    const make = URL.createObjectURL;
    URL.createObjectURL = (blob) => {
        URL.createObjectURL = make;
        const reader = new FileReader();
        reader.onload = () => resolve(reader.result.split(',')[1]);
        reader.readAsDataURL(blob);
        return make.call(URL, blob);
    };
    document.querySelector(`[data-key="save/${chart}/${kind}"]`).click();
})"""


def known_run(folder, name, height, seed=1):
    """Write a run whose return rises evenly to ``height``, with 3 updates a step, and two critics."""
    folder.mkdir(parents=True)
    config = {"env": "known", "seed": seed, "interventions": {}, "lr": name}
    (folder / "run.json").write_text(json.dumps({"agent": "sac", "status": "finished", "config": config}))
    with open_writers(folder) as writer:
        for step in range(1, STEPS + 1):
            row = {"charts/episodic_return": height * step / STEPS, "charts/updates": 3.0 * step}
            for number, critic in enumerate(("critic_1", "critic_2")):
                for layer, rank in (("q.0", 8.0), ("q.2", 8.0 if step < 50 else 2.0)):
                    row[f"plasticity/{critic}/effective_rank/{layer}"] = rank
                    row[f"plasticity/{critic}/dormancy/{layer}"] = 0.2 + 0.2 * number
                row[f"plasticity/{critic}/dormancy/all"] = 0.2 + 0.2 * number
            row["plasticity/actor/dormancy/all"] = 0.1
            writer.log(step, row)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("known")
    for name, height in (("low", 10.0), ("high", 1000.0)):
        for seed in (1, 2):
            known_run(root / f"{name}_{seed}", name, height * seed, seed)
    broken = root / "broken"
    with open_writers(broken) as writer:
        writer.log(1, {"charts/episodic_return": 1.0})
    (broken / "run.json").write_text('{"format": 999, "version": "9"}')
    (root / "foreign").mkdir()
    (root / "foreign" / "metrics.jsonl").write_text('{"loss": 1}\n')
    with Server(root, port=0) as server:
        server.wait_ready()
        wait_for_runs(server, 5)
        yield server


@pytest.fixture
def page(server):
    with Browser() as browser:
        open_tab(browser, server)
        show(browser, "sac known (lr low)", "sac known (lr high)")
        yield browser
        assert [error for error in browser.errors if "favicon" not in error] == []
        ours = (server.url, "about:", "data:", "blob:")
        assert [url for url in browser.requests if not url.startswith(ours)] == []


def show(page, *chosen):
    page.wait("document.querySelectorAll('.groups input').length")
    keys = json.dumps([f"group/{label}" for label in chosen])
    page.run(
        f"""for (const key of [...document.querySelectorAll('.groups input')].map((e) => e.dataset.key)) {{
            const box = document.querySelector(`[data-key="${{CSS.escape(key)}}"]`);
            if (box.checked !== {keys}.includes(key)) box.click();
        }}"""
    )
    page.wait(f"document.querySelectorAll('.column').length === {len(chosen)}")
    page.wait(CURVES)


def press(page, key):
    page.run(f"document.querySelector('[data-key={json.dumps(key)}]').click()")


def choose(page, key, value):
    field = f"document.querySelector('[data-key={json.dumps(key)}]')"
    page.run(f"(() => {{ {field}.value = {value!r}; {field}.dispatchEvent(new Event('change')); }})()")


def ends(page, chart="charts/episodic_return"):
    """The last point of every line of a chart, as shares of its plot: x to the right, y upwards."""
    return page.run(
        f"""(() => {{ const figure = document.querySelector('figure[data-chart={json.dumps(chart)}]');
        const box = figure.querySelector('.plot').getBoundingClientRect();
        return [...figure.querySelectorAll('polyline.curve')].map((line) => {{
            const [x, y] = line.getAttribute('points').split(' ').at(-1).split(',').map(Number);
            return [x / box.width, 1 - y / box.height]; }}); }})()"""
    )


def strokes(page):
    """The colours of the first chart's lines."""
    lines = "document.querySelector('figure.chart').querySelectorAll('polyline.curve')"
    return page.run(f"[...{lines}].map((e) => e.getAttribute('stroke'))")


def axis_labels(page):
    return page.run(
        "[...document.querySelector('figure.chart').querySelectorAll('text.label')]"
        ".filter((e) => e.getAttribute('text-anchor') !== 'end' || e.getAttribute('x') > 0).map((e) => e.textContent)"
    )


def test_a_single_measurement_is_a_dot(page):
    show(page, "broken")
    names = ["points", "stroke-linecap", "stroke-width"]
    points, ends, width = page.run(
        f"{names}.map((name) => document.querySelector('polyline.curve').getAttribute(name))"
    )
    first, second = points.split()
    assert first == second
    assert ends == "round"
    assert float(width) >= 4


def test_all_configurations_stand_in_one_chart_or_side_by_side(page):
    assert page.run("document.querySelectorAll('article.column').length") == 2
    press(page, "layout/over")
    page.wait("document.querySelectorAll('article.overlay').length")
    high, low = ends(page)
    assert (high[0], low[0]) == (pytest.approx(1, abs=0.02), pytest.approx(1, abs=0.02))
    # The means over seeds end at 1,500 and 15; the band reaches 2,000.
    assert high[1] == pytest.approx((1500 + 0.06 * 2000) / (1.12 * 2000), abs=0.02)
    assert low[1] == pytest.approx((15 + 0.06 * 2000) / (1.12 * 2000), abs=0.02)
    assert len(set(strokes(page))) == 2
    # Whole networks, the two critics as one, and a share from 0 to 1.
    assert page.run(text(".small h4")).startswith("actor | critic (mean of critic_1, critic_2) | ")
    assert [y for _, y in ends(page, "dormancy critic/all")] == [pytest.approx(0.3, abs=0.01)] * 2
    assert "Share of neurons that hardly fire" in page.run(text(".meaning"))
    page.resize(1280, 800)
    assert page.run(
        "document.documentElement.scrollWidth <= 1280 && document.getElementById('columns').scrollWidth <= 1064"
    )


@pytest.mark.slow
def test_the_axis_is_steps_updates_or_wall_time(page):
    assert axis_labels(page)[-1] == "100"
    press(page, "x/update")
    page.wait("document.querySelector('[data-key=\"x/update\"]').ariaChecked === 'true'")
    assert axis_labels(page)[-1] == "300"
    press(page, "x/time")
    page.wait("document.querySelector('[data-key=\"x/time\"]').ariaChecked === 'true'")
    assert axis_labels(page)[-1].endswith(" s")
    assert [x for x, _ in ends(page)] == [pytest.approx(1, abs=0.4)]


@pytest.mark.slow
def test_smoothing_and_a_log_scale(page):
    press(page, "layout/over")
    page.wait("document.querySelectorAll('article.overlay').length")
    before = ends(page)
    choose(page, "smooth", "0.95")
    page.wait("document.querySelector('output').textContent === '0.95'")
    assert all(after[1] < at[1] for at, after in zip(before, ends(page), strict=True) if at[1] > 0.1)
    choose(page, "smooth", "0")
    press(page, "log")
    page.wait("document.querySelector('[data-key=log]').checked")
    high, low = ends(page)  # two powers of ten apart
    decades = page.run("[...document.querySelectorAll('figure.chart')][0].textContent")
    assert high[1] - low[1] > 0.3
    assert "1k" in decades
    assert "linear" not in decades
    share = page.run("document.querySelector('figure[data-chart=\"dormancy actor/all\"] .remark')?.textContent ?? ''")
    assert share == ""


def test_zoom_by_mouse_by_keys_and_back(page):
    box = page.run("(({x, y, width}) => [x, y, width])(document.querySelector('.chart .plot').getBoundingClientRect())")
    page.drag((box[0] + 0.25 * box[2], box[1] + 20), (box[0] + 0.75 * box[2], box[1] + 30))
    page.wait("!!document.querySelector('.zoomed')?.textContent.startsWith('step 25 to step 75')")
    assert axis_labels(page) == ["40", "60"]
    assert page.run("document.querySelectorAll('.neurons[hidden]').length") == 1
    page.run("document.querySelector('.chart .plot').focus()")
    page.press("+", 187, "+")
    page.wait("!!document.querySelector('.zoomed').textContent.startsWith('step 38 to step 63')")
    page.press("ArrowRight", 39)
    assert "step 50" in page.wait(text("#spoken"))
    page.press("0", 48, "0")
    page.wait("!document.querySelector('.zoomed')")


@pytest.mark.slow
def test_zooming_in_asks_for_more_points(server):
    with Browser() as page:
        open_tab(page, server, view={"shown": ["sac known (lr low)"], "zoom": [10, 15]})
        page.wait("!!document.querySelector('.zoomed')")
        page.wait("performance.getEntriesByType('resource').some((e) => e.name.includes('detail=16'))")


def test_layers_are_chosen_and_twins_come_apart(page):
    rows = "[...document.querySelectorAll('.column:first-child .row')].map((e) => e.dataset.key)"
    assert page.run(rows).count("dormancy/critic/q.2") == 1
    press(page, "layers")
    page.wait("document.querySelector('.menu').open")
    press(page, "layer/critic/q.0")
    page.wait("!document.querySelector('[data-key=\"dormancy/critic/q.0\"]')")
    assert "critic/q.2" in " ".join(page.run(rows))
    assert page.run("document.querySelector('.menu').open")
    press(page, "together")
    page.wait("!!document.querySelector('[data-key=\"dormancy/critic_1/q.0\"]')")
    assert {key.split("/")[1] for key in page.run(rows)} == {"actor", "critic_1", "critic_2"}
    press(page, "layers/whole")
    page.wait("!document.querySelector('[data-key=\"dormancy/critic_1/q.0\"]')")
    assert {key.split("/")[2] for key in page.run(rows)} == {"all"}


def test_ranks_are_coloured_by_change_and_say_so(page):
    assert "by change against the run's first measurement" in page.run(text(".meaning"))
    shades = """(key) => { const c = document.querySelector(`[data-key="${key}"] canvas`), d = c.getContext('2d');
        const at = (share) => d.getImageData(Math.floor(c.width * share), 0, 1, 1).data;
        return [0.25, 0.75].map((share) => [...at(share)].slice(0, 3)); }"""
    (before, after), (steady, still) = (
        page.run(f"({shades})('effective_rank/critic/{layer}')") for layer in ("q.2", "q.0")
    )
    neutral = [0xEE, 0xF1, 0xF4]
    assert before == steady == still == neutral
    assert after == [0xB4, 0x44, 0x1F]  # three quarters are lost
    press(page, "byLevel")
    page.wait("!document.body.textContent.includes('by change against')")


def test_a_permalink_shows_the_same_again(page, server):
    press(page, "layout/over")
    press(page, "log")
    press(page, "chip/grama") if page.run("!!document.querySelector('[data-key=\"chip/grama\"]')") else None
    page.run("window.prompt = () => null")
    press(page, "link")
    link = page.wait("document.body.dataset.link")
    assert link.startswith(f"{server.url}/data/plugin_entry.html?name=plasticity#p.plasticity.view=")
    with Browser() as other:
        # Somebody whose own last visit was smoothed: a link shows the same to everyone.
        open_tab(other, server)
        other.wait("document.querySelectorAll('.column').length")
        choose(other, "smooth", "0.9")
        other.wait("document.querySelector('output').textContent === '0.90'")
        other.open("about:blank")
        other.open(link)
        other.wait("document.querySelectorAll('article.overlay').length")
        assert other.run("document.querySelector('[data-key=log]').checked")
        assert other.run("document.querySelectorAll('.key > span').length") == 2
        assert other.run("document.querySelector('output').textContent") == "0.00"


@pytest.mark.slow
def test_an_address_that_was_cut_or_typed_shows_the_rest(server):
    odd = {"zoom": "x", "smooth": "a", "layers": 5, "hidden": None, "layout": 3, "curve": {}, "x": "moon"}
    with Browser() as page:
        for view in ({"shown": ["sac known (lr low)"], **odd}, {"shown": "nonsense"}, 7):
            open_tab(page, server, view=view)
            page.wait(CURVES)
        assert [error for error in page.errors if "favicon" not in error] == []


@pytest.mark.slow
def test_a_permalink_works_inside_tensorboard(server):
    view = urllib.parse.quote(json.dumps({"layout": "over", "shown": ["sac known (lr high)"], "smooth": 0.5}))
    with Browser() as page:
        page.open(f"{server.url}/#plasticity&p.plasticity.view={view}")
        inside = "document.querySelector('iframe')?.contentDocument"
        page.wait(f"{inside}?.querySelectorAll('article.overlay').length", 60)
        assert page.run(f"{inside}.querySelector('output').textContent") == "0.50"
        page.run(
            f"(d => {{ d.defaultView.prompt = () => null; d.querySelector('[data-key=link]').click(); }})({inside})"
        )
        link = page.wait(f"{inside}.body.dataset.link")
        assert link.startswith(f"{server.url}/#plasticity&p.plasticity.view=")
        assert "sac%20known%20(lr%20high)" in link


def test_a_chart_is_saved_as_numbers_and_as_pictures(page):
    press(page, "layout/over")
    page.wait("document.querySelectorAll('article.overlay').length")

    def saved(kind, chart="charts/episodic_return"):
        return base64.b64decode(page.run(f"({SAVED})({kind!r}, {chart!r})"))

    rows = [line.split(",") for line in saved("CSV").decode().splitlines()]
    assert rows[0] == ["configuration", "metric", "step", "mean", "low", "high", "n"]
    last = [row for row in rows if row[0] == "sac known (lr low)"][-1]
    assert [float(cell) for cell in last[2:]] == [100, 15, 10, 20, 2]
    picture = ET.fromstring(saved("SVG"))
    lines = list(picture.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 2
    assert all(line.get("stroke").startswith("rgb") for line in lines)
    written = "".join(picture.itertext())
    assert "charts/episodic_return" in written
    assert "sac known (lr low)" in written  # whose line is whose
    assert "sac known (lr high)" in written
    # A run counts once, however many critics are one there.
    rows = saved("CSV", "dormancy critic/all").decode().splitlines()
    assert [float(cell) for cell in rows[-1].split(",")[3:]] == pytest.approx([0.3, 0.3, 0.3, 2])
    width, height, shades = png(saved("PNG"))
    assert (width, height) == (2 * float(picture.get("width")), 2 * float(picture.get("height")))
    assert len(shades) > 20


@pytest.mark.slow
def test_a_heat_map_is_saved_too(page):
    chart = "effective rank sac known (lr low)"
    key = f"save/{chart}"
    assert page.run(f"!!document.querySelector('[data-key={json.dumps(key + '/SVG')}]')")
    picture = ET.fromstring(base64.b64decode(page.run(f"({SAVED})('SVG', {chart!r})")))
    fills = {e.get("fill") for e in picture.iter("{http://www.w3.org/2000/svg}rect")}
    assert "rgb(180, 68, 31)" in fills
    rows = base64.b64decode(page.run(f"({SAVED})('CSV', {chart!r})")).decode().splitlines()
    assert rows[-1].split(",")[1:4] == ["critic", "q.2", "effective_rank"]
    assert float(rows[-1].split(",")[5]) == 2.0


def png(data):
    """Width, height and the set of its pixels, of a PNG with 8 bits a channel; filters are left as they are."""
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    at, body = 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body += data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    raw = zlib.decompress(body)
    return width, height, {raw[i : i + 4] for i in range(0, len(raw) - 4, 4)}


def test_runs_with_faults_are_named_with_the_reason(page):
    said = page.wait(text(".faults dl > *"))
    assert "broken | it" not in said
    names = page.run("[...document.querySelectorAll('.faults dt')].map((e) => e.textContent)")
    assert names == ["broken", "foreign"]
    assert "format 999" in said
    assert "TensorBoard has found no numbers in it" in said


@pytest.mark.slow
def test_a_supervised_run_has_its_loss_above_or_nothing(tmp_path):
    for name, tag in (("with", "losses/loss"), ("without", "plasticity/net/grama/all")):
        with open_writers(tmp_path / name) as writer:
            for step in range(1, 20):
                writer.log(step, {tag: 1 / step, "plasticity/net/dormancy/all": 0.1})
    with Server(tmp_path, port=0) as server, Browser() as page:
        server.wait_ready()
        wait_for_runs(server, 2)
        open_tab(page, server, view={"shown": ["with"]})
        page.wait("document.querySelector('figure.chart')?.dataset.chart === 'losses/loss'")
        choose(page, "curve", "")
        page.wait("!document.querySelector('figure.chart')")
    # Beside a run with a return: its own loss alone, a sentence next to the return.
    with open_writers(tmp_path / "agent") as writer:
        for step in range(1, 20):
            writer.log(step, {"charts/episodic_return": 1.0 * step, "plasticity/net/dormancy/all": 0.1})
    with Server(tmp_path, port=0) as server, Browser() as page:
        server.wait_ready()
        wait_for_runs(server, 3)
        open_tab(page, server, view={"shown": ["with"]})
        page.wait("document.querySelector('figure.chart')?.dataset.chart === 'losses/loss'")
        open_tab(page, server, view={"shown": ["with", "agent"]})
        page.wait("document.querySelector('figure.chart')?.dataset.chart === 'charts/episodic_return'")
        assert page.run("document.querySelectorAll('figure.chart').length") == 1
        assert "These runs logged no charts/episodic_return." in page.run("document.body.textContent")
    shutil.rmtree(tmp_path / "agent")
    (tmp_path / "with").rename(tmp_path.parent / "elsewhere")
    with Server(tmp_path, port=0) as server, Browser() as page:
        server.wait_ready()
        wait_for_runs(server, 1)
        open_tab(page, server)
        page.wait("document.querySelectorAll('button.row').length")
        assert page.run("document.querySelectorAll('figure.chart').length") == 0
        assert "logged no return and no loss" in page.run("document.body.textContent")


@pytest.mark.slow
def test_twelve_configurations_have_twelve_colours(tmp_path):
    for number in range(14):
        with open_writers(tmp_path / f"group{number:02}") as writer:
            writer.log(1, {"plasticity/net/dormancy/a": 0.1, "charts/episodic_return": 1.0})
            writer.log(9, {"plasticity/net/dormancy/a": 0.1, "charts/episodic_return": 1.0})
    with Server(tmp_path, port=0) as server, Browser() as page:
        server.wait_ready()
        wait_for_runs(server, 14)
        for theme in ("light", "dark"):
            page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
            open_tab(page, server, view={"shown": [f"group{n:02}" for n in range(14)], "layout": "over"})
            page.wait(f"{CURVES} >= 12", 60)
            before = strokes(page)
            assert len(set(before)) == len(before) == 12
            assert "the first 12 of 14 chosen are drawn" in page.run(text(".few"))
            # A configuration keeps its colour when another one goes.
            page.run("document.querySelector('[data-key=\"group/group00\"]').click()")
            page.wait("!document.querySelector('.key').textContent.includes('group00')")
            page.wait("document.querySelector('figure.chart').querySelectorAll('polyline.curve').length === 12")
            kept = strokes(page)
            assert kept[:11] == before[1:]
            assert len(set(kept)) == 12


@pytest.mark.slow
def test_every_control_is_reached_by_keyboard(page):
    page.run("document.body.focus()")
    seen, deadline = [], time.monotonic() + 60
    while time.monotonic() < deadline:
        page.press("Tab", 9)
        key = page.run("document.activeElement?.dataset?.key ?? document.activeElement?.tagName")
        if seen and key == seen[0]:
            break
        seen.append(key)
    for key in (
        "filter",
        "layout/over",
        "x/update",
        "curve",
        "smooth",
        "log",
        "layers",
        "link",
        "chart/charts/episodic_return",
    ):
        assert key in seen, key
    assert any(key.startswith("save/") for key in seen)
    assert page.run(labels(".choice")) == ["Layout", "Axis"]
