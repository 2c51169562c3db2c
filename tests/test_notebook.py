"""Comfort in notebooks and scripts: tables of readings in colour, free names, warnings that bear their cure."""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ET

import pytest
import torch
from torch import nn

import plasticity
from plasticity import palette
from plasticity.observing.losses import LOOKED_AT
from plasticity.observing.notebook import sparkline_svg


def network(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


def steps(model, optimizer, count, before=lambda: None):
    for _ in range(count):
        before()
        optimizer.zero_grad()
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()


def parsed(html):
    return ET.fromstring(f"<div>{html}</div>")


# -- tables ------------------------------------------------------------------------------------------------------------


def test_a_notebook_shows_colours_and_the_course_so_far():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with plasticity.watch(model, optimizer, every=1, log=None) as session:
        steps(model, optimizer, 3)
        with torch.no_grad():
            model[2].weight.zero_()
            model[2].bias.fill_(-1.0)
        steps(model, optimizer, 3)
        shown = parsed(session._repr_html_())
    assert "watching model, every 1 optimizer steps" in "".join(shown.itertext())
    heads, *rows = [list(row) for row in shown.iter("tr")]
    names = [cell.text for cell in heads]
    dead = next(row for row in rows if row[0].text == "2")
    cell = dead[names.index("dormancy")]
    assert "".join(cell.itertext()) == "1.0"
    assert palette.WORSE[-1] in cell.find("i").get("style")  # all neurons dead: the worst colour
    rank = dead[names.index("effective_rank")]
    assert palette.WORSE[-1] in rank.find("i").get("style")  # nothing is left of the first rank
    points = cell.find("svg/polyline").get("points").split()
    assert len(points) == 6
    heights = [float(point.split(",")[1]) for point in points]
    assert heights[3] == heights[5] == min(heights) < heights[0]
    assert cell.find("svg").get("aria-label").endswith("to 1")
    assert dead[names.index("stable_rank")].find("i") is None  # its level says nothing, and no side is bad


def test_a_reading_alone_has_colours_of_shares_and_no_course():
    reading = plasticity.measure(network(), (torch.randn(32, 4), torch.randn(32, 1)), nn.functional.mse_loss)
    shown = parsed(reading._repr_html_())
    assert len(list(shown.iter("svg"))) == 0
    assert {cell.tag for cell in shown.iter("i")} == {"i"}
    assert len(list(shown.iter("i"))) == 6  # dormancy and GraMa of two layers and the network
    assert repr(reading) == str(reading)
    assert repr(reading).startswith("layer  neurons  dormancy")


def test_names_of_layers_are_text():
    reading = plasticity.measure(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)), torch.randn(8, 4))
    reading.values["<b>dormancy"] = reading.values.pop("dormancy")
    assert "<b>" not in reading._repr_html_()


def test_sparklines_have_gaps_and_need_two_points():
    assert sparkline_svg([]) == sparkline_svg([1.0]) == sparkline_svg([float("nan"), 2.0]) == ""
    drawn = sparkline_svg([0.0, float("nan"), 1.0])
    assert re.findall(r"([\d.]+),([\d.]+)", drawn) == [("1.0", "12.5"), ("55.0", "1.5")]
    flat = sparkline_svg([2.0, 2.0])
    assert len(set(re.findall(r",([\d.]+)", flat.split('points="')[1].split('"')[0]))) == 1


def test_print_of_a_session_is_a_table():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session = plasticity.watch(model, optimizer, every=1, log=None)
    assert str(session.last) == "nothing was measured yet"
    steps(model, optimizer, 1)
    assert str(session.last).startswith("model\nlayer  neurons  dormancy")
    assert str(session).startswith("<watching model, every 1 optimizer steps>\nmodel\nlayer")
    session.close()
    assert repr(session) == "<watching model, closed>"


# -- names and mappings ------------------------------------------------------------------------------------------------


def test_twice_takes_the_next_name_and_says_where_it_writes(tmp_path, capsys):
    for name in ("mine", "mine_2", "mine_3"):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with plasticity.watch(model, optimizer, log=tmp_path / "mine") as session:
            steps(model, optimizer, 1)
            session.log(loss=torch.tensor(0.5))
        said = capsys.readouterr().err.splitlines()
        assert said[0].startswith(f"plasticity: writing to {tmp_path / name}")
        assert '"losses/loss": 0.5' in (tmp_path / name / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (lambda net: [net, net], "got list"),
        (lambda net: (net,), "got tuple"),
        (lambda net: None, "got NoneType"),
        (lambda net: iter([net]), "got list_iterator"),
        (lambda net: {}, "got an empty mapping"),
        (lambda net: {"a": net, "b": [net]}, "got a mapping with b: list"),
    ],
)
def test_networks_without_names_are_told_to_be_a_mapping(model, found):
    net = network()
    with pytest.raises(TypeError, match=r"a mapping of networks by name, such as watch\(\{'actor': actor") as error:
        plasticity.watch(model(net), torch.optim.SGD(net.parameters(), lr=0.1), log=None)
    assert found in str(error.value)


# -- passes of another loss --------------------------------------------------------------------------------------------


class Loop:
    """A critic, and an actor that learns through it; 4 inputs, of which 1 is the action."""

    def __init__(self, set_to_none=True):
        torch.manual_seed(0)
        self.critic, self.actor = network(), nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters())
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters())
        self.set_to_none = set_to_none

    def update(self, actor_every=1, number=0):
        states = torch.randn(16, 3)
        self.critic_optimizer.zero_grad(set_to_none=self.set_to_none)
        (self.critic(torch.randn(16, 4)) - 1).square().mean().backward()
        self.critic_optimizer.step()
        if number % actor_every == 0:
            self.actor_optimizer.zero_grad(set_to_none=self.set_to_none)
            (-self.critic(torch.cat([states, self.actor(states)], 1)).mean()).backward()
            self.actor_optimizer.step()


def warned(networks, optimizers, loop):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with plasticity.watch(networks, optimizers, every=500, log=None):
            loop()
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("actor_every", [1, 2, 3])
def test_passes_of_another_loss_are_noticed_once_with_the_cure(set_to_none, actor_every):
    loop = Loop(set_to_none)
    updates = lambda: [loop.update(actor_every, number) for number in range(12)]  # noqa: E731
    (said,) = warned({"critic": loop.critic}, loop.critic_optimizer, updates)
    assert said.startswith("passes of several losses reach critic between two steps of its optimizer")
    assert "watch({'critic': critic, 'actor': actor}, [critic_optimizer, actor_optimizer])" in said
    # The cure cures.
    cured = Loop(set_to_none)
    networks = {"critic": cured.critic, "actor": cured.actor}
    updates = lambda: [cured.update(actor_every, number) for number in range(12)]  # noqa: E731
    assert warned(networks, [cured.critic_optimizer, cured.actor_optimizer], updates) == []


@pytest.mark.parametrize(
    "case", ["plain", "accumulated", "two losses", "zero output", "zero_grad after", "two optimizers"]
)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_other_loops_are_left_in_peace(case, set_to_none):
    torch.manual_seed(0)
    model = network()
    if case == "zero output":  # the first gradients of the layers before it are 0
        nn.init.zeros_(model[4].weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    passes = {"accumulated": 3, "two losses": 2, "zero output": 2}.get(case, 1)

    def loop():
        for _ in range(LOOKED_AT + 5):
            if case != "zero_grad after":
                optimizer.zero_grad(set_to_none=set_to_none)
            for part in range(passes):
                (model(torch.randn(8, 4)) - part).square().mean().backward()
            optimizer.step()
            if case == "zero_grad after":
                optimizer.zero_grad(set_to_none=set_to_none)

    assert warned({"net": model}, optimizer, loop) == []
    hooks = model[0].weight._backward_hooks or {}
    assert len(hooks) == 0  # taken off


def test_the_passes_of_a_closure_are_the_steps_own():
    model, inputs = network(), torch.randn(16, 4)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = (model(inputs) - 1).square().mean()
        loss.backward()
        return loss

    assert warned({"net": model}, optimizer, lambda: [optimizer.step(closure) for _ in range(3)]) == []


def test_nothing_that_is_learned_changes_by_looking():
    found = []
    for watched in (False, True):
        loop = Loop()
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session = plasticity.watch(loop.critic, loop.critic_optimizer, log=None) if watched else None
            for _ in range(5):
                loop.update()
        if session is not None:
            session.close()
        found.append([p.detach().clone() for p in loop.critic.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
