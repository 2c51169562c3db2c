"""Methods whose first time lies beyond the end say so, also those on neurons and on the replay ratio."""

from __future__ import annotations

from typing import Any

import pytest
from test_interventions import run_sac

from plasticity.interventions import INTERVENTIONS, Horizon
from plasticity.interventions.intervention import never_acted


@pytest.mark.parametrize(
    ("name", "settings", "first"),
    [
        ("knife", {"every": 30, "window": 3, "start": 31}, "60 gradient steps"),
        ("ccbp", {"every": 50}, "50 gradient steps"),
        ("cbp", {}, "10001 gradient steps"),
        ("snr", {"start": 99}, "99 gradient steps"),
        ("replay_ratio", {}, "25000 updates"),
    ],
)
def test_a_first_time_beyond_the_end_is_said(name: str, settings: dict[str, Any], first: str) -> None:
    method = INTERVENTIONS[name](**settings)
    run_sac([method], steps=12)
    (why,) = never_acted({name: method}).values()
    assert why == f"its first time would have been after {first}, beyond the end of training; let it act earlier"


def test_what_has_acted_or_could_have_is_not_named() -> None:
    methods = {"ccbp": INTERVENTIONS["ccbp"](), "cbp": INTERVENTIONS["cbp"](maturity=1), "snr": INTERVENTIONS["snr"]()}
    run_sac(list(methods.values()), steps=20)
    assert not never_acted(methods)


@pytest.mark.parametrize("name", ["cbp", "ccbp", "snr", "knife", "redo"])
def test_an_end_before_the_start_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="0 <= start <= stop"):
        INTERVENTIONS[name](start=10, stop=5)


def test_a_discount_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gamma_first and gamma_last in \(0, 1\)"):
        Horizon(gamma_last=1.5)
