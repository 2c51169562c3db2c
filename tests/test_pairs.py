"""Any two methods, and a method and any option, compose or are refused with a reason: all pairs, and triples."""

from __future__ import annotations

import itertools
import random
import zlib
from fnmatch import fnmatchcase

import pytest
from resumed import check_resumed
from together import HOSTS, combinations, host_of, made, options

from plasticity.agents.parts import ACTIVATIONS
from plasticity.agents.train import context
from plasticity.callback import end, start
from plasticity.interventions import INTERVENTIONS

pytestmark = pytest.mark.usefixtures("everywhere")

NO_PLACE = "KNIFE finds no layer in actor, critic_1, critic_2 whose elementwise activation"
NOT_ELEMENTWISE = ("crelu", "prelu", "random_smooth_leaky", "aid", "rational", "fourier", "hadamard")
OF_ENTRIES = ("redo", "regrama", "ne", "knife", "cbp", "snr", "swr", "resin", "reborn")
"""Methods that clear what an optimizer keeps of single weights."""
REFUSED: list[tuple[str, str, str]] = [
    ("ne", "spectral_normalization", "NeuroplasticExpansion finds no layer of critic_1 between"),
    *(("knife", one, NO_PLACE) for one in ("network=simba2", "network=bronet", "norm=*")),
    *(("knife", f"activation={one}", NO_PLACE) for one in NOT_ELEMENTWISE),
    ("network=simba2", "norm=*", "simba2 has unit features"),
    *(("network=simba2", f"activation={one}", "simba2 has unit features") for one in ACTIVATIONS if one != "relu"),
    ("network=crossq", "norm=*", "crossq has batch norms and takes no other norm"),
    ("network=bronet", "norm=rms", "bronet has a LayerNorm before every activation and takes no other norm"),
    *(("network=bronet", f"activation={one}", f"bronet takes no {one}") for one in ("crelu", "fourier", "hadamard")),
    *(("network=softmoe*", f"activation={one}", f"softmoe takes no {one}") for one in ("crelu", "fourier", "hadamard")),
    *(("value_expectile=0.9", one, "value_expectile=0 unless") for one in ("network=crossq", "critic_returns=*")),
    *(("optimism=1.0", one, "optimism=0 unless the actor") for one in ("network=crossq", "actor=amortized")),
    *((one, "optimizer=kron", "Kron keeps Q for a weight of shape .* in another layout") for one in OF_ENTRIES),
    ("horizon", "n_step=3", "sums of 2 to --n-step 3 rewards can be replayed, not of 5"),
]
"""Two items, as patterns of names -> the reason with which they are refused before the first step."""
ITEMS = [*INTERVENTIONS, *options()]
PAIRS = combinations(ITEMS, 2)
TRIPLES = random.Random(0).sample(combinations(ITEMS, 3), 60)


def reasons(items: tuple[str, ...]) -> list[str]:
    """Return why these items are refused together, one reason for each two of them that are."""
    return [
        why
        for pair in itertools.permutations(items, 2)
        for one, other, why in REFUSED
        if fnmatchcase(pair[0], one) and fnmatchcase(pair[1], other)
    ]


def check_together(items: tuple[str, ...]) -> None:
    """Train, stop and resume with all of them where there is a host; skip where there is none."""
    host = host_of(items)
    if host is None:
        pytest.skip("no agent takes both: each is refused, with its reason, where the other one is at home")
    if "optimizer=kron" in items and "pixels" in host:
        pytest.skip("Kron's matrices of a layer on all pixels take minutes")
    check_resumed(host, items)


def check_or_refused(items: tuple[str, ...]) -> None:
    if why := reasons(items):
        with pytest.raises(ValueError, match="|".join(why)) as error:
            check_together(items)
        assert not any("at step" in note for note in getattr(error.value, "__notes__", ())), "refused too late"
    else:
        check_together(items)


def in_some_order(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in an order drawn by them."""
    return tuple(random.Random(zlib.crc32(" ".join(names).encode())).sample(names, len(names)))


@pytest.mark.on_real_devices
@pytest.mark.parametrize("pair", [pytest.param(pair, id=" ".join(pair)) for pair in PAIRS])
@pytest.mark.some(20, rotates=True)
def test_any_two_compose_or_are_refused(pair: tuple[str, ...]) -> None:
    check_or_refused(in_some_order(pair))


@pytest.mark.on_cpu
@pytest.mark.slow
def test_the_table_of_what_is_refused_is_the_whole_one() -> None:
    """All pairs are started, which takes a hundredth of a second each, and not trained."""
    wrong = [pair for pair in PAIRS if starts(pair) == bool(reasons(pair))]
    assert not wrong


def starts(items: tuple[str, ...]) -> bool:
    """Return whether they start together, or have no host in common."""
    try:
        host = host_of(items)
        if host is not None:
            methods, chosen = made(in_some_order(items), host)
            ctx = context(HOSTS[host].make(chosen)[0])
            start(list(methods.values()), ctx)
            end(list(methods.values()), ctx)
    except ValueError:
        return False
    except pytest.skip.Exception:
        return True
    return True


@pytest.mark.on_real_devices
@pytest.mark.slow
@pytest.mark.parametrize("names", [pytest.param(t, id=" ".join(t)) for t in TRIPLES])
def test_three_compose_or_are_refused(names: tuple[str, ...]) -> None:
    check_or_refused(in_some_order(names))
