"""Training beside inference, simulated: what requests keep, what training gets. Made-up time, real device task."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import virtual_time
from benchmarks.simulated_parts import FULL_RATE, Text
from benchmarks.simulated_worker import World
from benchmarks.virtual_time import Clock
from fmplex_broker.specs.vfm import Targets
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE, Flow

SECONDS = 15.0
NIGHT, A = Flow("night", OFFLINE), Flow("a", INTERACTIVE)


class Seen(NamedTuple):
    """`attained`: part of the requests that were in time; `share`: of the device's time that training had."""

    attained: float
    share: float
    late: int


def attained(latencies: Sequence[float], target_ms: float) -> float:
    return sum(took <= target_ms / 1000 for took in latencies) / len(latencies)


def serve(load: float, target_ms: float, spend: float | None) -> Seen:
    async def main(clock: Clock) -> Seen:
        async with World(clock, spend) as world:
            if world.turn:
                await world.turn.add(world.training()[0])
            await world.arrivals("a", load * FULL_RATE, SECONDS, target_ms)
            share = world.trained_s / clock() if world.turn else 0.0
            world.loop.stop()
            await asyncio.sleep(5)
            late = world.books.stats.late if world.turn else 0
            return Seen(attained(world.outbox.latencies[A], target_ms), share, late)

    return virtual_time.run(main)


@pytest.mark.parametrize(
    ("load", "target_ms", "least"),
    [(0.2, 250, 0.7), (0.5, 250, 0.42), (0.8, 250, 0.16), (0.2, 1000, 0.75), (0.5, 1000, 0.48), (0.8, 1000, 0.19)],
)
def test_requests_are_in_time_and_training_has_most_of_the_rest(load: float, target_ms: float, least: float) -> None:
    """A load is the part of full passes that it fills: training cannot have more than what is left of 1."""
    alone, beside = serve(load, target_ms, None), serve(load, target_ms, 0.8)
    assert beside.attained >= alone.attained - 0.01
    assert beside.share >= least
    assert beside.late == 0


def generate(texts: int, spend: float | None) -> tuple[float, float, float]:
    """The parts of gaps and of first tokens that are in time, and training's share, with about so many texts at a time."""
    targets = Targets(ttft_ms=500, inter_token_ms=75)

    async def main(clock: Clock) -> tuple[float, float, float]:
        async with World(clock, spend) as world:
            if world.turn:
                await world.turn.add(world.training()[0])
            await world.arrivals("a", texts, 10, come=lambda: world.come("a", targets=targets, text=Text(20, 50)))
            share = world.trained_s / clock() if world.turn else 0.0
            gaps, firsts = world.outbox.gaps, world.outbox.firsts
            assert len(gaps) > 300
            return (
                sum(gap <= 0.075 for gap in gaps) / len(gaps),
                sum(first <= 0.5 for first in firsts) / len(firsts),
                share,
            )

    return virtual_time.run(main)


@pytest.mark.parametrize(("texts", "least"), [(1, 0.5), (4, 0.4), (12, 0.3)])
def test_every_gap_between_two_tokens_is_in_time(texts: int, least: float) -> None:
    alone, beside = generate(texts, None), generate(texts, 0.8)
    assert beside[0] >= alone[0] - 0.005
    assert beside[1] >= alone[1] - 0.01
    assert beside[2] >= least


def test_less_spend_is_less_training_and_shorter_waits() -> None:
    assert serve(0.5, 1000, 0.3).share < serve(0.5, 1000, 0.8).share


def test_without_slack_no_unit_runs_and_ten_quiet_seconds_bring_all_of_it_back() -> None:
    async def main(clock: Clock) -> None:
        async with World(clock) as world:
            assert world.turn
            await world.turn.add(world.training()[0])
            await asyncio.sleep(1)
            await world.arrivals("a", 1.5 * FULL_RATE, 10, 250.0)
            units = [at for at, what in world.device.log if what == "unit"]
            assert not [at for at in units if at > 2], "they came while everybody was late"
            await asyncio.sleep(20)
            assert world.slack.loan(clock(), world.demand.read(clock())).seconds == pytest.approx(0.2)
            begun = world.trained_s
            await asyncio.sleep(2)
            assert world.trained_s - begun > 1.7

    virtual_time.run(main)


def test_who_comes_without_a_target_waits_for_one_unit_at_most() -> None:
    alone = serve_alone(0.1, 10)

    async def main(clock: Clock) -> None:
        async with World(clock) as world:
            assert world.turn
            await world.turn.add(world.training()[0])
            await world.arrivals("a", 0.1 * FULL_RATE, 10)
            assert world.trained_s > 7
            assert max(world.outbox.latencies[A]) <= max(alone) + 2 * 0.025 + 1e-6

    virtual_time.run(main)


def serve_alone(load: float, seconds: float) -> list[float]:
    async def main(clock: Clock) -> list[float]:
        async with World(clock, None) as world:
            await world.arrivals("a", load * FULL_RATE, seconds)
            await asyncio.sleep(1)
            return world.outbox.latencies[A]

    return virtual_time.run(main)


@pytest.mark.parametrize("trickle", [0.02, 0.1])
def test_work_without_targets_that_never_ends_leaves_training_its_trickle(trickle: float) -> None:
    async def main(clock: Clock) -> None:
        async with World(clock, trickle=trickle) as world:
            assert world.turn
            await world.turn.add(world.training()[0])
            await world.arrivals("a", 1.3 * FULL_RATE, 20)
            assert world.trained_s / clock() == pytest.approx(trickle, abs=0.01)

    virtual_time.run(main)


def test_work_with_targets_that_never_ends_leaves_training_nothing() -> None:
    assert serve(1.3, 250, 0.8).share < 0.01


@pytest.mark.parametrize(("idle_share", "has"), [(0.5, 0.5), (0.2, 0.2), (0.0, 0.02), (1.0, 0.95)])
def test_offline_work_and_training_share_what_is_left(idle_share: float, has: float) -> None:
    """In a lull, where offline passes are full; and neither of them gets all of it."""

    async def main(clock: Clock) -> None:
        async with World(clock, idle_share=idle_share) as world:
            assert world.turn
            await world.turn.add(world.training()[0])
            coming = asyncio.create_task(world.offline())
            await asyncio.sleep(20)
            offline = sum(share.charged for share in world.scheduler.shares().values())
            assert world.trained_s / (world.trained_s + offline) == pytest.approx(has, abs=0.02)
            assert world.trained_s + offline > 19
            coming.cancel()

    virtual_time.run(main)


class Both(NamedTuple):
    """Parts of the device's time that training and offline jobs had, and what interactive ones kept."""

    trained: float
    offline: float
    attained: float


def share_what_is_left(idle_share: float, load: float, target_ms: float, seconds: float = 20) -> Both:
    async def main(clock: Clock) -> Both:
        async with World(clock, idle_share=idle_share) as world:
            assert world.turn
            await world.turn.add(world.training()[0])
            coming = asyncio.create_task(world.offline())
            await world.arrivals("a", load * FULL_RATE, seconds, target_ms)
            offline, trained = world.scheduler.shares()[NIGHT].charged, world.trained_s
            both = trained / clock(), offline / clock()
            coming.cancel()
            await asyncio.sleep(1)
            return Both(*both, attained(world.outbox.latencies[A], target_ms) if target_ms else 1.0)

    return virtual_time.run(main)


@pytest.mark.parametrize("target_ms", [0.0, 500.0, 10_000.0])
@pytest.mark.parametrize("idle_share", [0.0, 0.2, 0.5, 1.0])
def test_beside_interactive_work_they_share_what_it_leaves(idle_share: float, target_ms: float) -> None:
    """However much slack there is: with targets of ten seconds a loan could be eight of them."""
    both = share_what_is_left(idle_share, 0.4 if target_ms else 0.1, target_ms)
    left = both.trained + both.offline
    expected = min(max(idle_share * left, 0.02), left - 0.05)
    assert both.trained == pytest.approx(expected, abs=0.03)
    assert both.trained >= 0.018
    assert both.offline >= 0.045
    assert left > 0.3
    assert both.attained > 0.99


@pytest.mark.parametrize("idle_share", [0.0, 0.5, 1.0])
def test_beside_work_without_targets_that_never_ends_both_trickles_hold(idle_share: float) -> None:
    both = share_what_is_left(idle_share, 1.4, 0.0)
    assert both.trained == pytest.approx(0.02, abs=0.005)
    assert both.offline == pytest.approx(0.05, abs=0.01)


def test_both_have_their_part_beside_interactive_work_that_stays_in_time() -> None:
    async def main(clock: Clock) -> None:
        async with World(clock) as world:
            assert world.turn
            await world.turn.add(world.training()[0])
            coming = asyncio.create_task(world.offline())
            await world.arrivals("a", 0.4 * FULL_RATE, 15, 500.0)
            offline = world.scheduler.shares()[NIGHT].charged
            assert world.trained_s / (world.trained_s + offline) == pytest.approx(0.5, abs=0.05)
            coming.cancel()
            await asyncio.sleep(1)
            assert attained(world.outbox.latencies[A], 500.0) > 0.99

    virtual_time.run(main)


loads = st.lists(
    st.tuples(st.floats(0.02, 1.5), st.sampled_from([0.0, 100.0, 250.0, 1000.0, 5000.0])), min_size=1, max_size=3
)


@settings(max_examples=15, deadline=None)
@given(loads, st.sampled_from([0.3, 0.5, 0.8]), st.integers(0, 99), st.booleans())
def test_no_unit_begins_that_takes_more_than_anybody_in_hand_can_spare(
    loads: list[tuple[float, float]], spend: float, seed: int, night: bool
) -> None:
    """Whatever comes, whenever: but for the first units of each kind, of which nothing is known."""

    async def main(clock: Clock) -> None:
        async with World(clock, spend) as world:
            assert world.turn
            job, run = world.training()
            plain = run._run

            def checked(kind: str, seconds: float) -> None:
                demand, now = world.demand.read(clock()), clock()
                known = len(run.ran) > 12
                for due in demand.dues:
                    spare = due.at - now - (1 - spend) * due.target - demand.backlog
                    assert spare >= seconds - (0.001 if known else 0.03)
                if demand.untargeted and known:
                    assert world.turn
                    assert world.slack.loan(now, demand).seconds == 0
                    assert world.leftover._owed >= -0.051, "beyond its trickle"
                plain(kind, seconds)

            run._run = checked  # type: ignore[method-assign]
            await world.turn.add(job)
            await asyncio.sleep(1)
            coming = asyncio.create_task(world.offline()) if night else None
            await asyncio.gather(
                *(
                    world.arrivals(f"v{n}", load * FULL_RATE / len(loads), 3, target_ms, seed + n)
                    for n, (load, target_ms) in enumerate(loads)
                )
            )
            if coming:
                coming.cancel()
            assert job.error is None, job.error
            assert len(run.ran) > 12

    virtual_time.run(main)


@pytest.mark.parametrize("load", [0.0, 0.3])
def test_trainings_share_by_weight(load: float) -> None:
    """Also if their units are not of one size."""

    async def main(clock: Clock) -> None:
        async with World(clock) as world:
            assert world.turn
            for name, weight, scale in (("one", 1.0, 1.0), ("two", 2.0, 0.4), ("three", 3.0, 1.0)):
                await world.turn.add(world.training(name, weight, scale=scale)[0])
            await (world.arrivals("a", load * FULL_RATE, 60, 500.0) if load else asyncio.sleep(60))
            charged = world.charged()
            for name, weight in (("one", 1), ("two", 2), ("three", 3)):
                assert charged[name] / sum(charged.values()) == pytest.approx(weight / 6, rel=0.03)

    virtual_time.run(main)
