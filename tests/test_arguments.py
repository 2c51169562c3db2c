"""Every command says in one line which of its options it cannot read, and exits with 2."""

import json
import warnings

import pytest
from runfolders import make_run

from plasticity.cli import main
from plasticity.commands.training import merged
from plasticity.reports.groups import configurations
from plasticity.reports.runs import load_runs


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("eval", "Missing from plasticity eval: PATH"),
        ("probe", "Missing from plasticity probe: PATH"),
        ("train sac", "Missing from plasticity train sac: --env"),
        ("eval runs --episods 3", "no option --episods; did you mean --episodes?"),
        ("probe runs --sampels=3", "no option --sampels; did you mean --samples?"),
        ("report runs --formts md", "no option --formts; did you mean --formats?"),
        ("compare runs --untill 3", "no option --untill; did you mean --until?"),
        ("dashboard --prot 3", "no option --prot; did you mean --port?"),
        ("train sac --env Pendulum-v1 --stpes 3", "no option --stpes; did you mean --steps?"),
        ("eval runs --episodes x", "Error parsing --episodes: a whole number is needed, got 'x'"),
        ("train sac --env Pendulum-v1 --gamma x", "Error parsing --gamma: a number is needed, got 'x'"),
        ("compare runs --at lats", "invalid choice 'lats'"),
        ("train sac --env Pendulum-v1 --redo --redo.every 1.5", "a whole number is needed, got '1.5'"),
        ("train sac --env Pendulum-v1 --redo --redo.cap x", "a number is needed, got 'x'"),
        ("train sac --env Pendulum-v1 --redo --redo.score activ", "did you mean activity?"),
        ("train sac --env Pendulum-v1 --redo --redo.ema nan", "ReDo takes ema as a finite number; got nan"),
        ("train sac --env Pendulum-v1 --policy amortized", "is a switch and takes no value, got 'amortized'"),
        ("train sac --env Pendulum-v1 --policy amortized", "did you mean --actor amortized?"),
        ("train sac --env Pendulum-v1 --rewarm 5", "its options are --rewarm.every, --rewarm.at,"),
        ("bench cgym --methods l2-init:coef=1,powr=2", "as an option of l2-init, did you mean power?"),
        ("bench cgym --methods redo,powr=2", "no option --powr"),
        ("bench cgym --methods l2-int:coef=2", "did you mean --l2-init?"),
        ("eval runs more", "more"),
        ("--imprt x list", "did you mean --import?"),
    ],
)
def test_options_that_cannot_be_read_are_one_line(line, said, capsys):
    assert main(line.split()) == 2
    error = [text for text in capsys.readouterr().err.splitlines() if "importing PyTorch" not in text]
    assert len(error) == 1
    assert said in error[0]
    assert "│" not in error[0]


@pytest.mark.parametrize("switch", ["--no-open", "--open"])
def test_a_switch_and_its_opposite_are_known(switch, tmp_path, capsys):
    assert main(["dashboard", str(tmp_path / "none"), switch]) == 1
    assert "no folder" in capsys.readouterr().err


def test_a_run_that_is_not_there_gets_the_nearest_one(tmp_path, capsys):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "run.json").write_text("{}")
    for command in ("eval", "probe"):
        assert main([command, str(tmp_path / "frist")]) == 1
        assert "did you mean first?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["measure", "live", "random", "evaluate", "episodes", "losses"])
def test_no_callback_is_dropped_for_its_name(name):
    run = {"measure": object(), "live": object(), "random": object(), "evaluate": 1, "episodes": 2, "losses": 3}
    assert list(merged({"mine": object()}, run)) == ["mine", *run]
    with pytest.raises(ValueError, match=f"two callbacks of a run are called '{name}'"):
        merged({name: object()}, run)


def test_a_run_without_an_update_says_so(tmp_path, capsys):
    short = ["train", "dqn", "--env", "CartPole-v1", "--eval-episodes", "1", "--out"]
    assert main([*short, str(tmp_path / "none"), "--steps", "30"]) == 0
    assert "no update was made" in (said := capsys.readouterr().out)
    assert "after 1,000 steps" in said
    early = ["--steps", "80", "--learning-starts", "40", "--batch-size", "8", "--probes"]
    assert main([*short, str(tmp_path / "some"), *early]) == 0
    assert "no update" not in capsys.readouterr().out


def test_warnings_are_one_line_unless_places_are_asked_for(monkeypatch, capsys):
    before = warnings.formatwarning
    shown = lambda rest: print(warnings.formatwarning("odd", RuntimeWarning, "file.py", 3))  # noqa: E731
    monkeypatch.setattr("plasticity.commands.listing.main", shown)
    assert main(["list"]) == 0
    assert capsys.readouterr().out.rstrip() == "warning: odd"
    assert main(["list", "--debug"]) == 0
    assert "file.py:3: RuntimeWarning: odd" in capsys.readouterr().out
    assert warnings.formatwarning is before


def test_an_evaluation_plays_the_task_that_is_asked_for(tmp_path, capsys):
    short = ["--steps", "30", "--eval-episodes", "1", "--max-episode-steps", "10", "--quiet", "--name"]
    for env, name in (("sanity/drift", "drift"), ("CartPole-v1", "still")):
        assert main(["train", "dqn", "--env", env, *short, name, "--out", str(tmp_path)]) == 0

    def returns(*task):
        assert main(["eval", str(tmp_path / "drift"), "--episodes", "4", *task]) == 0
        return capsys.readouterr().out.splitlines()[1]

    assert returns("--task", "0") != returns("--task", "1")
    assert returns("--task", "0") == returns()
    assert main(["eval", str(tmp_path / "still"), "--task", "1"]) == 1
    assert "CartPole-v1 has no set_task(task)" in capsys.readouterr().err


def test_the_start_of_a_task_is_no_intervention(tmp_path):
    run = make_run(tmp_path / "a", [0.0, 1.0], events=[{"step": 10, "event": name} for name in ("task", "redo")])
    assert [event["event"] for event in load_runs([run])[0][0].events] == ["redo"]


def test_agents_and_methods_are_configurations_also_in_environments_of_their_own(tmp_path):
    sac, dqn = (make_run(tmp_path / env, [0.0, 1.0], env=env) for env in ("Walk-v0", "Cart-v0"))
    record = json.loads((dqn / "run.json").read_text())
    (dqn / "run.json").write_text(json.dumps({**record, "agent": "dqn"}))
    assert len({c.name for c in configurations(load_runs([sac, dqn])[0])}) == 2
    redo = make_run(tmp_path / "redo", [0.0, 1.0], env="Swim-v0", interventions={"redo": {"every": 10}})
    assert len({c.name for c in configurations(load_runs([sac, dqn, redo])[0])}) == 3
