"""Random states: every generator goes on with the very numbers that it would have drawn."""

import random
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from plasticity.storage.checkpoint import load, save
from plasticity.storage.randomness import random_state, restore_random_state


def draw(generators: dict) -> list:
    """Numbers of every generator; normals too, of which legacy generators keep one in reserve."""
    ours = [random.random(), random.gauss(0, 1), *np.random.normal(size=3), *torch.randn(3).tolist()]
    return ours + [value for g in generators.values() for value in (*g.normal(size=3), g.integers(9, dtype=np.int32))]


def make(seed: int | None = None) -> dict:
    kinds = (np.random.PCG64, np.random.PCG64DXSM, np.random.SFC64, np.random.Philox, np.random.MT19937)
    return {kind.__name__: np.random.Generator(kind(seed)) for kind in kinds}


@pytest.fixture(autouse=True)
def _leave_no_trace():
    state = random_state()
    yield
    restore_random_state(state)


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    generators = make(3)
    draw(generators)
    folder = save(tmp_path / "x", random_state(generators))
    expected = draw(generators)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    others = make()
    assert draw(others) != expected
    restore_random_state(load(folder), others)
    assert draw(others) == expected
    restore_random_state(load(folder), generators)
    assert draw(generators) == expected


def test_taking_the_state_draws_nothing() -> None:
    state = random_state()
    again = random_state()
    assert random.getstate() == state["python"] == again["python"]
    assert torch.equal(state["torch"], again["torch"])
    restore_random_state(state)
    first = draw({})
    restore_random_state(state)
    random_state(make(1))
    assert draw({}) == first


def test_an_environment_and_its_action_space_go_on() -> None:
    def play(env: gymnasium.Env) -> list:
        return [*env.reset()[0].tolist(), *env.action_space.sample().tolist(), *env.reset()[0].tolist()]

    envs = [gymnasium.make("Pendulum-v1") for _ in range(2)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
        env.action_space.seed(seed)
    first, second = ({"env": e.unwrapped.np_random, "actions": e.action_space.np_random} for e in envs)
    state = random_state(first)
    expected = play(envs[0])
    restore_random_state(state, second)
    assert play(envs[1]) == expected
    for env in envs:
        env.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["generators"].pop("PCG64"), "of ['MT19937', 'PCG64DXSM', 'Philox', 'SFC64'] were saved"),
        (lambda s: s["generators"].update(PCG64=s["generators"]["SFC64"]), "of PCG64 is one of SFC64; PCG64 is needed"),
        (lambda s: s["generators"].update(PCG64=7), "of PCG64 is one of 7; PCG64 is needed"),
        (lambda s: s["generators"]["PCG64"].pop("state"), "of PCG64 is none"),
        (lambda s: s["generators"]["MT19937"]["state"].update(pos=625), "of MT19937 is none: its position is 625"),
        (lambda s: s["generators"]["Philox"].update(buffer_pos=-1), "of Philox is none: its position is -1"),
        (lambda s: s["numpy"]["state"].update(pos=10**6), "of numpy is none: its position is 1000000"),
        (lambda s: s["numpy"].update(bit_generator="PCG64"), "of numpy is one of PCG64; MT19937 is needed"),
        (lambda s: s.update(python=(3, (1, 2), None)), "of python or torch is none"),
        (lambda s: s.update(python=None), "of python or torch is none"),
        (lambda s: s.update(torch=torch.zeros(5)), "of python or torch is none"),
        (lambda s: s.update(torch=torch.full_like(s["torch"], 255)), "of python or torch is none"),
    ],
)
def test_a_state_that_is_none_is_refused_and_nothing_is_changed(change, words: str) -> None:
    generators = make(3)
    before, wrong = random_state(generators), random_state(generators)
    expected = draw(generators)
    restore_random_state(before, generators)
    change(wrong)
    with pytest.raises(ValueError, match="random state") as caught:
        restore_random_state(wrong, generators)
    assert words in str(caught.value)
    assert draw(generators) == expected


def test_states_of_absent_cuda_devices_are_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    state = {**random_state(), "cuda": [torch.zeros(16, dtype=torch.uint8)]}
    with pytest.warns(RuntimeWarning, match="of 1 CUDA devices were saved, 0 are here"):
        restore_random_state(state)
