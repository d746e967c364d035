"""The soak's arithmetic: what grows is told from what is noisy."""

from __future__ import annotations

import random

import pytest

from benchmarks.soak import _verdict
from benchmarks.soak_watch import Slope, slope

EVERY_S = 3.0


def samples(minutes: float, mb_min: float, noise_mb: float, seed: int) -> Slope:
    dice = random.Random(seed)
    at_s = [n * EVERY_S for n in range(int(minutes * 60 / EVERY_S))]
    return slope(at_s, [100 + mb_min * at / 60 + dice.gauss(0, noise_mb) for at in at_s])


@pytest.mark.parametrize("mb_min", [-2.0, 0.0, 1.5, 4.0])
def test_a_slope_is_found_within_its_interval(mb_min: float) -> None:
    found = [samples(5, mb_min, 2.0, seed) for seed in range(100)]
    within = sum(abs(each.mb_min - mb_min) <= each.margin for each in found)
    assert within >= 88


def test_a_leak_grows_and_noise_does_not() -> None:
    assert all(_verdict(samples(5, 3.0, 1.0, seed), 5) == "GROWS" for seed in range(20))
    assert all(_verdict(samples(5, 0.0, 1.0, seed), 5) == "ok" for seed in range(20))


def test_a_short_soak_of_something_wild_is_unclear_and_a_long_one_is_not() -> None:
    wild = Slope(1.2, 3.0)
    assert _verdict(wild, 3) == "unclear: soak longer"
    assert _verdict(wild, 30) == "GROWS"


def test_a_step_does_not_look_surer_than_it_is() -> None:
    at_s = [n * EVERY_S for n in range(60)]
    found = slope(at_s, [100.0] * 30 + [104.0] * 30)
    assert found.margin > 1.0
