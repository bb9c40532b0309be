"""`benchmarks.storm` sees what is left: jobs, flows, leases, dead letters and keys in the broker; processes that grow."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import storm_left
from benchmarks.storm_left import Sample, Sizes, left_in_broker
from benchmarks.storm_server import administrator
from benchmarks.storm_site import SDK, Site
from tests.contract.harness import BACKBONE

P = f"{{{BACKBONE}}}:"


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A site of which only the server runs, with the leases of three workers, and no patience."""
    monkeypatch.setattr(storm_left, "_PATIENCE_S", 0.0)
    site = Site(tmp_path, {"name": BACKBONE, "model": "none"}, workers=3, gateways=2)
    with site.server:
        async with administrator(site.server) as redis:
            await redis.zadd(f"{P}leases", {f"w{i}": 1.0 for i in range(3)})
        yield site


async def test_nothing_is_left(site: Site) -> None:
    assert await left_in_broker(site, BACKBONE, ["a", "b"]) == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("XADD", f"{P}q:offline:a", "*", "j", "1"), ["1 jobs of a, offline"]),
        (("ZADD", f"{P}ready:interactive", 0, "a"), [f"1 flows in {P}ready:interactive"]),
        (("ZADD", f"{P}back", 0, "interactive:a"), [f"1 flows in {P}back"]),
        (("ZADD", f"{P}leases", 0, "ghost"), ["leases of ['ghost', 'w0', 'w1', 'w2'], for 3 workers"]),
        (("XADD", f"{P}dead:a", "*", "j", "1"), [f"dead letters: {P}dead:a", f"without a TTL: {P}dead:a"]),
        (("HSET", f"{P}held:ghost", "#", 1), [f"{P}held:ghost"]),
        (("SET", f"{P}res:1", "x"), [f"without a TTL: {P}res:1"]),
        (("SET", f"{P}res:1", "x", "PX", 60_000), []),
    ],
)
async def test_what_is_left_is_seen(site: Site, command: tuple[Any, ...], words: list[str]) -> None:
    async with administrator(site.server) as redis:
        await redis.execute_command(*command)
    assert await left_in_broker(site, BACKBONE, ["a", "b"]) == words


@pytest.mark.parametrize(
    ("rss", "descriptors", "words"),
    [
        ((400 << 20, 430 << 20), (100, 120), []),
        ((100 << 20, 160 << 20), (100, 100), ["sdk: from 100 to 160 MiB"]),
        ((100 << 20, 100 << 20), (100, 200), ["sdk: from 100 to 200 descriptors"]),
    ],
)
def test_a_process_that_grows_is_seen(
    tmp_path: Path, rss: tuple[int, int], descriptors: tuple[int, int], words: list[str]
) -> None:
    site = Site(tmp_path, {"name": BACKBONE, "model": "none"}, workers=0, gateways=0)
    sizes = Sizes(site)
    sizes._samples[SDK, os.getpid()] = [
        Sample(0.0, 0, 0),  # it has just been started
        *(Sample(20.0 + at, rss[0], descriptors[0]) for at in range(3)),
        Sample(60.0, rss[1], descriptors[1]),
    ]
    assert sizes.grown() == words
    del sizes._samples[SDK, os.getpid()][1]
    assert sizes.grown() == [], "too little is known of it"


def test_a_process_that_takes_a_step_to_its_usual_size_has_not_grown(tmp_path: Path) -> None:
    site = Site(tmp_path, {"name": BACKBONE, "model": "none"}, workers=0, gateways=0)
    sizes = Sizes(site)
    megabytes = [250, 260, 430, 440, 430, 445, 440, 450]
    sizes._samples[SDK, os.getpid()] = [Sample(0.0, 0, 0)] + [
        Sample(20.0 + at, size << 20, 100 + 50 * (at == 7)) for at, size in enumerate(megabytes)
    ]
    assert sizes.grown() == []
    sizes._samples[SDK, os.getpid()] = [Sample(0.0, 0, 0)] + [
        Sample(20.0 + at, (100 + 30 * at) << 20, 9) for at in range(8)
    ]
    assert sizes.grown() == ["sdk: from 190 to 280 MiB"]
