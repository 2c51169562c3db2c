"""Helpers of the tab's tests: waiting for its runs, opening it, texts of a page as JavaScript."""

import json
import time
import urllib.parse
import urllib.request


def text(selector):
    """JavaScript for the text of all elements that match."""
    return f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent).join(' | ')"


def labels(selector):
    """JavaScript for the spoken labels of all elements that match."""
    return f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.ariaLabel)"


def wait_for_runs(server, count):
    """Return once TensorBoard has read ``count`` runs."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{server.url}/data/plugin/plasticity/runs", timeout=30) as answer:
            runs = json.load(answer)["runs"]
        if len(runs) >= count and all(run["step"] for run in runs):
            return
        time.sleep(0.3)
    raise TimeoutError(f"TensorBoard found {len(runs)} of {count} runs")


def open_tab(browser, server, view=None):
    """Open the tab alone, as a permalink with ``view`` does."""
    part = f"#p.plasticity.view={urllib.parse.quote(json.dumps(view))}" if view else ""
    browser.open("about:blank")
    browser.open(f"{server.url}/data/plugin_entry.html?name=plasticity{part}")
