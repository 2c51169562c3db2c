"""Settings that a resumed run may change, and how the others are named."""

import json

from plasticity.commands.differences import differences, notes

SAVED = {
    "env": "Pendulum-v1",
    "steps": 1000,
    "eval_every": 100,
    "device": "cpu",
    "torch_threads": 1,
    "probes": ["dormancy", "grama"],
    "agent": {"gamma": 0.99, "hidden": [256, 256], "target_entropy": None, "limit": float("nan")},
    "checkpoint": {"every": 10, "keep": 3},
    "interventions": {"redo": {"every": 1000}},
}


def changed(**top) -> dict:
    return {**json.loads(json.dumps(SAVED)), **top}


def test_equal_settings_have_no_differences_however_they_are_written() -> None:
    assert differences(SAVED, changed()) == []
    assert differences(SAVED, changed(probes=("dormancy", "grama"), agent={**SAVED["agent"], "gamma": 0.99})) == []
    assert notes(SAVED, changed()) == []


def test_each_difference_is_a_line_with_both_values() -> None:
    now = changed(
        env="Ant-v5",
        probes=["dormancy"],  # measuring changes nothing that is learned
        agent={**SAVED["agent"], "gamma": 0.9, "hidden": (256, 128), "target_entropy": -1.0},
        interventions={"regrama": {"every": 500}},
    )
    assert differences(SAVED, now) == [
        "env: Pendulum-v1 in the run, Ant-v5 asked for",
        "agent.gamma: 0.99 in the run, 0.9 asked for",
        "agent.hidden: 256 256 in the run, 256 128 asked for",
        "agent.target_entropy: None in the run, -1.0 asked for",
        "interventions.redo: on in the run, not there asked for",
        "interventions.regrama: not there in the run, on asked for",
    ]
    assert differences(SAVED, changed(interventions={"redo": {"every": 500}})) == [
        "interventions.redo.every: 1000 in the run, 500 asked for"
    ]


def test_safe_ones_may_change_and_the_device_with_a_note() -> None:
    now = changed(
        steps=5, eval_every=1, eval_episodes=3, log_every=7, quiet=True, out="x", device="cuda", torch_threads=4
    )
    now["checkpoint"] = {"every": 99}
    assert differences(SAVED, now) == []
    assert notes(SAVED, now) == [
        "device: cpu in the run, cuda asked for; results will differ in the last bits",
        "torch_threads: 1 in the run, 4 asked for; results will differ in the last bits",
    ]
    assert differences(SAVED, now, allowed={"eval_*", "checkpoint.*", "log_every", "quiet", "out", "device"}) == [
        "steps: 1000 in the run, 5 asked for",
        "torch_threads: 1 in the run, 4 asked for",
    ]


def test_a_run_of_an_earlier_version_did_what_a_new_setting_says() -> None:
    assert notes(SAVED, changed(compile="off", precision="float32")) == []
    line = "compile: off in the run, on asked for; results will differ in the last bits"
    assert notes(SAVED, changed(compile="on")) == [line]
    assert differences(SAVED, changed(probe_window=9, compile="on")) == []


def test_what_only_looks_alike_differs() -> None:
    pairs = [(True, 1), (0, False), (1, "1"), (None, "None"), ([1], 1), ([1, 2], [1]), (float("nan"), 0.0), (0, None)]
    for before, after in pairs:
        assert len(differences({"x": before}, {"x": after})) == 1, (before, after)
    assert differences({"x": 1}, {"x": 1.0}) == []
    assert differences({"seed": 1}, {"seed": 2}, allowed={"see"}) == ["seed: 1 in the run, 2 asked for"]
