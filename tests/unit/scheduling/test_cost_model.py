"""The cost model learns from passes, and shares them out."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_worker.scheduling import INTERACTIVE, CostModel, Flow, Item

from . import harness
from .harness import KnownCost

TRUE = (4e-3, 2e-5, 3e-4, 1e-4)


def true_cost(units: int, segments: int, heads: int) -> float:
    alpha, beta, gamma, delta = TRUE
    return alpha + beta * units + gamma * segments + delta * heads


def teach(model: CostModel, rng: random.Random, passes: int, noise: float, outliers: float = 0.0) -> None:
    for _ in range(passes):
        units, segments, heads = rng.randint(1, 512), rng.randint(0, 16), rng.randint(0, 8)
        seconds = true_cost(units, segments, heads) * rng.uniform(1 - noise, 1 + noise)
        model.observe(units, segments, heads, seconds * (20 if rng.random() < outliers else 1))


@given(st.integers(0, 2**32))
def test_converges(seed: int) -> None:
    model = CostModel(512)
    teach(model, random.Random(seed), 60, noise=0.0)
    assert model.coefficients == pytest.approx(TRUE, rel=0.05)
    assert model.error < 0.05


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1]))
def test_predicts_through_noise_and_outliers(seed: int, outliers: float) -> None:
    model = CostModel(512)
    rng = random.Random(seed)
    teach(model, rng, 30, noise=0.1)
    teach(model, rng, 200, noise=0.1, outliers=outliers)
    for units in (32, 256, 512):
        assert model.predict(units, 4, 4) == pytest.approx(true_cost(units, 4, 4), rel=0.12)


measured = st.tuples(st.integers(1, 600), st.integers(0, 9), st.integers(0, 9), st.floats(0, 100))


@given(st.lists(measured, max_size=60))
def test_stays_finite_and_non_negative_whatever_it_sees(passes: list[tuple[int, int, int, float]]) -> None:
    model = CostModel(512)
    for seen in passes:
        model.observe(*seen)
        assert all(0 <= c < 1e6 for c in model.coefficients)
        assert model.price(1) > 0
        assert 1 <= model.units_within(0.05, 512) <= 512
        assert 0 <= model.error <= 1


def test_one_wild_pass_changes_nothing_but_many_do() -> None:
    model = CostModel(512)
    rng = random.Random(1)
    teach(model, rng, 50, noise=0.05)
    before = model.coefficients
    model.observe(256, 4, 4, 3.0)
    assert model.coefficients == before
    for _ in range(60):
        units = rng.randint(1, 512)
        model.observe(units, 4, 4, 3 * true_cost(units, 4, 4))  # the device got three times slower
    for units in (64, 512):
        assert model.predict(units, 4, 4) == pytest.approx(3 * true_cost(units, 4, 4), rel=0.1)


def test_passes_of_one_size_keep_what_a_profile_told_apart() -> None:
    model = CostModel(512)
    for units in (1, 64, 128, 256, 512) * 3:
        model.observe(units, 0, 0, true_cost(units, 0, 0))
    for _ in range(2000):
        model.observe(512, 0, 0, true_cost(512, 0, 0))
    assert model.coefficients[0] == pytest.approx(TRUE[0], rel=0.1)
    assert model.coefficients[1] == pytest.approx(TRUE[1], rel=0.1)


def test_price_spreads_the_fixed_cost_over_a_full_pass() -> None:
    model = KnownCost(100, alpha=2.0, beta=0.5)
    assert model.price(10) == pytest.approx(10 * (0.5 + 2.0 / 100))
    assert 10 * model.price(10) == pytest.approx(model.predict(100))
    model.full_pass = 50
    assert model.price(10) == pytest.approx(10 * (0.5 + 2.0 / 50))


def test_units_within() -> None:
    model = KnownCost(100, alpha=2.0, beta=0.5)
    assert model.units_within(12.0, 100) == 20
    assert model.units_within(1.0, 100) == 1
    assert model.units_within(1e9, 100) == 100


def test_bad_measurements_are_refused() -> None:
    for seconds in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            CostModel(100).observe(1, 0, 0, seconds)
    with pytest.raises(ValueError, match="unit"):
        CostModel(0)


coefficient = st.just(0.0) | st.floats(1e-6, 10)
shared = st.lists(
    st.builds(
        Item,
        key=st.just("k"),
        flow=st.just(Flow("a", INTERACTIVE)),
        phase=st.just("encode"),
        units=st.integers(1, 500),
        segment=st.sampled_from([None, "s", "t", "u"]),
        head=st.sampled_from([None, "h", "i"]),
    ),
    min_size=1,
    max_size=12,
)


@given(shared, st.floats(1e-6, 10), coefficient, coefficient, coefficient, st.floats(1e-9, 1e4))
def test_charges_sum_to_the_measured_time_and_nobody_pays_more_than_alone(
    items: list[Item], alpha: float, beta: float, gamma: float, delta: float, measured: float
) -> None:
    harness.check_charges(KnownCost(512, alpha, beta, gamma, delta), items, measured)


def test_an_adapter_is_paid_by_its_owners() -> None:
    cost = KnownCost(512, alpha=1.0, beta=0.0, gamma=3.0)
    flow = Flow("a", INTERACTIVE)
    items = [Item(str(n), flow, "encode", 10, segment=s) for n, s in enumerate(["s", "s", "t", None])]
    assert cost.apportion(items, 7.0) == pytest.approx([1.75, 1.75, 3.25, 0.25])
    assert cost.apportion(items, 14.0) == pytest.approx([3.5, 3.5, 6.5, 0.5])


def test_what_small_passes_cost_is_not_forgotten_while_all_are_full() -> None:
    """Nor when the device becomes slower meanwhile, as a whole, and fast again."""
    model = CostModel(512)
    rng = random.Random(2)
    for fill in (0.02, 0.1, 0.25, 0.5, 1.0) * 2:
        model.observe(int(fill * 512), 0, 0, true_cost(int(fill * 512), 0, 0))
    for slower in (1, 3, 8, 1):
        for _ in range(300):
            units = 512 - rng.randrange(8)
            model.observe(units, 4, 4, slower * true_cost(units, 4, 4) * rng.uniform(0.85, 1.2))
        for units in (50, 512):
            assert model.predict(units, 4, 4) == pytest.approx(slower * true_cost(units, 4, 4), rel=0.3)


def test_launches_that_become_dearer_say_nothing_of_full_passes() -> None:
    """Small and large passes are off by different factors then: not the device as a whole."""
    model = CostModel(512)
    rng = random.Random(3)
    teach(model, rng, 100, noise=0.02)
    for n in range(200):
        units = (8, 480)[n % 2]
        model.observe(units, 4, 4, true_cost(units, 4, 4) + 0.02)
    for units in (8, 480):
        assert model.predict(units, 4, 4) == pytest.approx(true_cost(units, 4, 4) + 0.02, rel=0.15)
