"""The Plasticity tab in a real browser: what a stranger can read there about a run with a planted collapse."""

import re

import pytest
from browser import Browser, find_browser
from planted import DEAD, EVERY, KILLED, RECYCLED, planted_run
from tabpage import labels, text, wait_for_runs

from plasticity.dashboard.serve import Server
from plasticity.writers import open_writers

pytestmark = pytest.mark.skipif(find_browser() is None, reason="there is no Chromium on this machine")

ROWS = "document.querySelectorAll('button.row').length"


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    root = tmp_path_factory.mktemp("logs")
    for seed in (1, 2):
        planted_run(root / f"redo_seed{seed}", seed).close()
    return root


@pytest.fixture(scope="module")
def server(logs):
    with Server(logs, port=0) as server:
        server.wait_ready()
        wait_for_runs(server, 2)
        yield server


@pytest.fixture
def page(server):
    with Browser() as browser:
        browser.open(f"{server.url}/data/plugin_entry.html?name=plasticity")
        yield browser
        ours = [error for error in browser.errors if "favicon" not in error]
        assert ours == []
        assert {url.split("/data/")[0] for url in browser.requests if "favicon" not in url} == {server.url}


def test_a_stranger_learns_which_layer_when_and_what_was_done(page):
    page.wait(ROWS)
    collapse, repair = page.run(text(".story > li")).split(" | ")
    assert collapse.startswith("▼step 201critic/2 collapsed")
    assert re.search(rf"between steps (161|{KILLED - EVERY + 1}) and {KILLED + 1}", collapse)
    assert repair.startswith(f"◆step {RECYCLED}redo: recycled {DEAD} neurons in critic/2; function change ")
    assert "then critic/2 dormancy 0.75 to 0." in repair
    assert "2 of 2 seeds" in collapse
    assert "2 of 2 seeds" in repair
    # What became of it, seed by seed.
    for seed, fate in enumerate(page.run(text(".fates li")).split(" | "), 1):
        assert re.match(
            rf"recoveredseed {seed}, step 201: dormancy 0\.\d+ → 0\.7\d+; redo at step {RECYCLED}: 0\.", fate
        )
    # The same on hover, mark by mark, and for a screen reader.
    (mark,) = page.run(labels(".event"))
    assert mark.startswith(f"2 events at step {RECYCLED}")
    assert f"seed 1: redo: recycled {DEAD} neurons in critic/2; function change " in mark
    x, y = page.run("(({x, y}) => [x + 4, y + 4])(document.querySelector('.event').getBoundingClientRect())")
    page.hover(x, y)
    assert f"recycled {DEAD} neurons in critic/2" in page.wait(text(".tip"))
    # The maps: layer 2 was bad, layer 0 never.
    rows = dict(
        zip(
            page.run("[...document.querySelectorAll('button.row')].map((e) => e.dataset.key)"),
            page.run(labels("button.row")),
            strict=True,
        )
    )
    assert "worst 0.7" in rows["dormancy/critic/2"]
    assert "worst 0.0" in rows["dormancy/critic/0"]
    assert {key.split("/")[0] for key in rows} == {"dormancy", "grama", "effective_rank"}
    when = int(rows["dormancy/critic/2"].rsplit(" ", 1)[1])
    assert KILLED <= when <= RECYCLED + EVERY
    table = page.run(text("tbody tr")).split(" | ")
    assert [row.split("0.")[0] for row in table] == ["critic", "0", "2"]


def test_the_neurons_of_a_layer_open_by_mouse_and_by_keyboard(page):
    page.wait(ROWS)
    page.run("document.querySelector('[data-key=\"dormancy/critic/2\"]').focus()")
    page.press("ArrowLeft", 37)
    assert "critic/2, dormancy" in page.run("document.getElementById('spoken').textContent")
    page.press("Enter", 13, "\r")
    summary = page.wait(text(".neurons .summary"))
    assert "of 32 neurons score 0.025 or less" in summary
    assert page.run("document.activeElement.ariaLabel").startswith("Close the neurons")
    # The picture: the upper 24 of 32 neurons are of the worst colour after the kill, and no longer at the end.
    shade = """(share) => { const c = document.querySelector('.neurons canvas'); const x = Math.floor(c.width * share);
        const d = c.getContext('2d').getImageData(x, 0, 1, c.height).data; let dark = 0;
        for (let i = 0; i < 4 * c.height; i += 4) dark += d[i] < 90 && d[i + 3] > 0; return dark; }"""
    before, during, after = (page.run(f"({shade})({share})") for share in (0.25, 0.5, 0.75))
    assert during >= DEAD > 16 > max(before, after)
    bars = page.run("document.querySelector('.bars').ariaLabel")
    assert bars.startswith("Distribution of the latest scores: ")
    page.press("Escape", 27)
    assert page.run("document.querySelector('.neurons').hidden")
    assert page.run("document.activeElement.dataset.key") == "dormancy/critic/2"
    page.press("/", 191, "/")
    assert page.run("document.activeElement.dataset.key") == "filter"
    page.run("document.querySelector('tbody button').click()")  # of the whole network: its first layer
    page.wait("document.querySelector('.neurons h2').textContent.startsWith('critic/0')")


def test_new_data_appear_by_themselves(page, logs):
    page.wait(ROWS)
    shown = page.run(text("tbody tr"))
    with open_writers(logs / "redo_seed1") as logger, open_writers(logs / "redo_seed2") as other:
        for writer in (logger, other):
            writer.log(900, {"plasticity/critic/dormancy/2": 0.625, "charts/episodic_return": 99.0})
        logger.event(880, "mine", {"network": "critic", "layer": "0", "neurons": 3})
    page.wait("document.querySelector('[data-key=\"dormancy/critic/2\"] .value')?.textContent === '0.625'", 30)
    assert page.run(text("tbody tr")) != shown
    story = page.wait(
        "[...document.querySelectorAll('.story li')].map((e) => e.textContent).find((t) => t.includes('mine'))"
    )
    assert "step 880mine: acted on 3 neurons of critic/0 1 of 2 seeds" in story


def test_it_is_a_tab_of_tensorboard_and_follows_its_dark_mode(server):
    with Browser() as browser:
        browser.open(f"{server.url}/#plasticity")
        inside = "document.querySelector('iframe')?.contentDocument"
        browser.wait(f"{inside}?.querySelectorAll('button.row').length", 40)
        theme = f"{inside}.documentElement.dataset.theme"
        back = f"getComputedStyle({inside}.body).backgroundColor"
        browser.run("document.body.classList.remove('dark-mode')")
        browser.wait(f"{theme} === 'light'")
        light = browser.run(back)
        browser.run("document.body.classList.add('dark-mode')")
        browser.wait(f"{theme} === 'dark'")
        assert light == "rgb(255, 255, 255)"
        assert browser.run(back) == "rgb(18, 22, 28)"


def test_a_metric_that_nobody_listed_has_a_map_a_column_and_a_button(tmp_path):
    with open_writers(tmp_path / "mine") as writer:
        for step in range(1, 21):
            writer.log(step, {f"plasticity/critic/churn/{layer}": step / 20 for layer in ("all", "q.0")})
            writer.log(step, {"plasticity/critic/srank/all": 3.0, "charts/episodic_return": float(step)})
    with Server(tmp_path, port=0) as server, Browser() as page:
        server.wait_ready()
        wait_for_runs(server, 1)
        page.open(f"{server.url}/data/plugin_entry.html?name=plasticity")
        page.wait(f"{ROWS} > 0")
        assert page.run(labels("section.map")) == ["churn by layer and time"]
        pressed = (
            "[...document.querySelectorAll('.chip[aria-pressed]')].map((e) => `${e.textContent} ${e.ariaPressed}`)"
        )
        assert page.run(pressed) == ["srank false", "churn true"]
        assert page.run(text("thead th")) == "layer | srank | churn"


def test_a_hundred_runs_and_missing_tags(tmp_path):
    for number in range(100):
        with open_writers(tmp_path / f"group{number % 25}_seed{number // 25}") as logger:
            if number % 25 == 24:
                logger.log(5, {"something/else": 1.0})  # no probes, no return
            elif number % 25 == 3:
                logger.log(5, {"plasticity/net/mine/a": float("nan")})  # one tag, no number
            else:
                logger.log(5, {"plasticity/net/dormancy/a": number / 100, "loss": 1.0})
                logger.log(9, {"plasticity/net/dormancy/a": number / 100})
    with Server(tmp_path, port=0) as server, Browser() as browser:
        server.wait_ready()
        wait_for_runs(server, 100)
        browser.open(f"{server.url}/data/plugin_entry.html?name=plasticity")
        browser.wait(ROWS)
        assert "100 runs, 25 configurations" in browser.run(text("nav h2"))
        press = "[...document.querySelectorAll('.bulk button')].find((b) => b.textContent.startsWith('show')).click()"
        browser.run(press)
        browser.wait("document.querySelectorAll('.column').length === 12", 30)
        field = "document.querySelector('[data-key=filter]')"
        type_in = f"(t) => {{ {field}.value = t; {field}.dispatchEvent(new Event('input')); }}"
        for name, expected in (("group3_", "net/a mine: no value"), ("group24", "No probes in these runs")):
            browser.run(f"({type_in})('{name}')")
            browser.wait("document.querySelectorAll('.groups li').length === 1")
            browser.run(press)
            browser.wait("document.querySelectorAll('.column').length === 1")
            shown = f"({text('.column')} + {labels('button.row')}).includes('{expected}')"
            browser.wait(f"!document.querySelector('.column').textContent.includes('Loading') && {shown}")
        browser.run(f"({type_in})('group7_')")
        browser.wait("document.querySelectorAll('.groups li').length === 1")
        browser.run(press)
        browser.wait("document.querySelector('.column')?.dataset.group === 'group7'")
        browser.wait(ROWS)
        mean = (7 + 32 + 57 + 82) / 400
        assert f"dormancy {mean:.3f}" in browser.run(labels("button.row"))[0]
        assert [error for error in browser.errors if "favicon" not in error] == []


def test_every_second_task_of_a_stream_is_a_band_behind_the_return(tmp_path):
    with open_writers(tmp_path / "mine") as writer:
        for step in range(1, 41):
            if step % 10 == 1:
                writer.event(step, "task", {"task": step // 10, "number": step // 10 + 1})
            writer.log(step, {"plasticity/critic/dormancy/all": 0.1, "charts/episodic_return": float(step % 10)})
    with Server(tmp_path, port=0) as server, Browser() as page:
        server.wait_ready()
        wait_for_runs(server, 1)
        page.open(f"{server.url}/data/plugin_entry.html?name=plasticity")
        page.wait("document.querySelectorAll('rect.task').length === 2")
        places = (
            "[...document.querySelectorAll('rect.task')].map((e) => [+e.getAttribute('x'), +e.getAttribute('width')])"
        )
        width = page.run("document.querySelector('.chart .plot').getBoundingClientRect().width")
        for (x, wide), start in zip(page.run(places), (11, 31), strict=True):
            assert abs(x - start / 40 * width) < 2
            assert abs(wide - (10 if start == 11 else 9) / 40 * width) < 2
        names = "[...document.querySelectorAll('rect.task title')].map((e) => e.textContent)"
        assert page.run(names) == ["task: 1 begins", "task: 3 begins"]
