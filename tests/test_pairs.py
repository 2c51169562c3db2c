"""Any two methods compose, or are refused with a reason: all pairs on a tiny agent, and triples."""

from __future__ import annotations

import itertools
import random
import zlib

import pytest
from test_interventions import FREQUENT, ON_SAC, Check, acted, assert_masked, assert_moves, assert_sound, run_sac, some

from plasticity.callback import Context
from plasticity.interventions import INTERVENTIONS, NeuroplasticExpansion

pytestmark = pytest.mark.usefixtures("everywhere")

REFUSED: dict[frozenset[str], str] = {
    frozenset({"ne", "spectral_normalization"}): "NeuroplasticExpansion finds no layer of critic_1 between",
}
"""Pair -> the reason with which it is refused, as a pattern, before the first step."""
PAIRS = list(itertools.combinations(ON_SAC, 2))
TRIPLES = random.Random(0).sample(list(itertools.combinations(ON_SAC, 3)), 40)


def check_together(names: tuple[str, ...]) -> None:
    methods = {name: INTERVENTIONS[name](**FREQUENT[name]) for name in names}
    ne = methods.get("ne")

    def check(ctx: Context) -> None:
        assert_sound(ctx)
        if isinstance(ne, NeuroplasticExpansion):
            assert_masked(ne, ctx)

    agent, ctx, writer = run_sac([*methods.values(), Check(check)], steps=60)
    silent = [name for name, method in methods.items() if not acted(name, method, writer)]
    assert not silent, f"{silent} did nothing"
    check(ctx)
    assert_moves(ctx, lambda: agent.learn(agent.buffer.sample(64)))


@pytest.mark.on_real_devices
@pytest.mark.parametrize(("one", "other"), some(PAIRS, share=20))
@pytest.mark.some(14)
def test_any_two_methods_compose_or_are_refused(one: str, other: str) -> None:
    names = (one, other) if zlib.crc32(f"{one} {other}".encode()) % 2 else (other, one)
    if reason := REFUSED.get(frozenset(names)):
        with pytest.raises(ValueError, match=reason):
            check_together(names)
    else:
        check_together(names)


@pytest.mark.on_real_devices
@pytest.mark.parametrize("names", [pytest.param(t, id="-".join(t), marks=pytest.mark.slow) for t in TRIPLES])
def test_three_methods_compose(names: tuple[str, ...]) -> None:
    pairs = (frozenset(pair) for pair in itertools.combinations(names, 2))
    if not any(pair in REFUSED for pair in pairs):
        check_together(names)
