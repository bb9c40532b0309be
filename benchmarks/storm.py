"""A storm over a fleet: whatever can go wrong goes wrong, while callers compare every answer. What is left should be nothing.

Three workers with a tiny encoder, two gateways and a server, each process behind a TCP proxy of its own; 32 vFMs; callers over
both gateways and straight to the streams. Every kind of fault of `benchmarks.storm_faults` comes at least twice, in the order
of the seed: processes are killed, stopped and told to end; the server is killed, is away, and refuses in six ways; connections
are cut, stall, go silent, are accepted and reset. After each fault every vFM is asked over every way until it has answered.

`ratios` counts what must not be: calls `lost`, `doubled`, `stuck`, `wrong`; errors that are not typed; processes that ended by
themselves; what is left in the broker; processes that grow. The exit code is 1 unless all are 0. `config.recovery` has the
seconds until the fleet had recovered, by kind of fault. docs/reliability.md says what each word means.

    python -m benchmarks.storm [--json] [--seed N] [--seconds S] [--quick]      (about three minutes)
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fleet import artifact_folder, deploy
from benchmarks.harness import Benchmark, Ratios, Report, main, without_pauses
from benchmarks.stopping import run_async
from benchmarks.storm_callers import Calls, learn
from benchmarks.storm_faults import KINDS, QUICK, Fault, Faults, schedule
from benchmarks.storm_left import Sizes, left_in_broker
from benchmarks.storm_record import COUNTED, Record, Recovery, table, words_of
from benchmarks.storm_site import LEASE_S, SDK, Site
from benchmarks.storm_vfms import TEXTS, write_backbone, write_vfms
from fmplex import AsyncClient, Unavailable

_WORKERS, _GATEWAYS, _VFMS, _CALLERS = 3, 2, 32, 12
_CALM_S = (0.1, 0.5)  # between two faults
_IN_BURST_S = (0.05, 0.3)  # after the beginning of a burst, so that it hits those who have work in hand


@dataclass(frozen=True, slots=True)
class Settings:
    """What a storm is made of: faults of these `kinds`, each at least `times` times, for at least so many `seconds`."""

    seed: int
    seconds: float = 120.0
    times: int = 2
    kinds: tuple[str, ...] = tuple(KINDS)


class Storm:
    """One storm over one site, whose callers make `calls`; `record` is filled as it goes."""

    def __init__(self, site: Site, calls: Calls, settings: Settings, record: Record) -> None:
        self._site = site
        self._calls = calls
        self._settings = settings
        self._record = record
        self._faults = Faults(site)
        self._sizes = Sizes(site)
        self._random = random.Random(settings.seed)

    async def run(self) -> None:
        """Let the faults come while callers call; return once the last one is over and all callers have been answered."""
        over = asyncio.Event()
        rngs = [random.Random(f"{self._settings.seed}-{number}") for number in range(_CALLERS)]
        callers = [asyncio.create_task(self._calls.come(rng, over)) for rng in rngs]
        try:
            await self._come()
            over.set()
            await asyncio.gather(*callers)
            await asyncio.gather(*map(self._site.serving, self._site.members))
            await self._calls.probe()
            self._measure()
        except Unavailable as e:  # a process that does not come to serve
            self._record.found.stuck.append(str(e))
        finally:
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
            self._record.found.ended = self._site.ended

    async def _come(self) -> None:
        """Let every fault come, and more of them until the time is over."""
        settings, begun = self._settings, time.monotonic()
        due = schedule(settings.seed, settings.kinds, self._site, settings.times)
        _say(f"seed {settings.seed}", *(f"  {number:3}. {fault}" for number, fault in enumerate(due, 1)))
        turn = settings.seed
        while due or time.monotonic() < begun + settings.seconds:
            if not due:
                turn += 1_000_000
                due = schedule(turn, settings.kinds, self._site, 1)
            fault = due.pop(0)
            if fault.on in self._site.members:
                await self._site.serving(fault.on)
            at_s = time.monotonic() - begun
            seconds = await self._strike(fault)
            self._record.recoveries.append(Recovery(fault, round(at_s, 2), round(seconds, 3)))
            _say(f"{at_s:7.2f} s  {fault}: recovered in {seconds:.2f} s")
            self._sizes.sample()
            await asyncio.sleep(self._random.uniform(*_CALM_S))

    async def _strike(self, fault: Fault) -> float:
        """Do a fault in the middle of a burst of calls. Returns the seconds until the fleet has recovered: from its end, or from
        its beginning if it has none."""
        burst = asyncio.create_task(self._calls.probe(len(TEXTS)))
        try:
            await asyncio.sleep(self._random.uniform(*_IN_BURST_S))
            begun = time.time()
            async with self._faults(fault):
                await asyncio.sleep(fault.seconds)
            since = time.time() if fault.seconds else begun
            await self._recovered(fault, since)
            return time.time() - since
        finally:
            burst.cancel()
            await asyncio.gather(burst, return_exceptions=True)

    async def _recovered(self, fault: Fault, since: float) -> None:
        """Wait until every vFM has answered over every route, every call that was open during the fault has been answered, and
        the process that was hit is back, if it is a worker that has survived."""
        back = [self._calls.probe(), self._calls.answered(set(self._calls.open))]
        if fault.on in self._site.workers and not fault.ends_process:
            back.append(self._site.heard(fault.on, since))
        await asyncio.gather(*back)

    def _measure(self) -> None:
        self._sizes.sample()
        self._record.found.grown = self._sizes.grown()
        for name, pair in self._sizes.judged().items():
            self._record.sizes[name] = {
                "memory_mb": [round(sample.rss / 1e6, 1) for sample in pair],
                "descriptors": [float(sample.descriptors) for sample in pair],
            }


async def storm(folder: Path, settings: Settings, record: Record) -> None:
    """Run one storm on a fleet of its own; `record` is filled as it goes. Raises nothing for what it finds."""
    backbone = await asyncio.to_thread(write_backbone, folder / "model")
    packages = await asyncio.to_thread(write_vfms, folder / "vfms", _VFMS)
    async with Site(folder, backbone, _WORKERS, _GATEWAYS) as site, AsyncExitStack() as stack:
        urls = {**site.urls, SDK: site.proxies[SDK].url}
        routes = {
            name: await stack.enter_async_context(AsyncClient(url, retries=0, artifacts=artifact_folder(folder)))
            for name, url in urls.items()
        }
        vfms = await deploy(routes[site.gateways[0]], packages)
        known = await learn(routes[SDK], vfms, TEXTS)
        calls = Calls(routes, known, record.found)
        await calls.probe()  # every vFM is resident everywhere, and all routes agree
        await Storm(site, calls, settings, record).run()
        record.found.left = await left_in_broker(site, backbone["name"], vfms)
        await site.close_in_order()


def _say(*lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr, flush=True)


def run(report: Report) -> None:
    """Run one storm, and report what went wrong and how soon the fleet recovered."""
    more, quick, record = report.options.more, report.options.quick, Record()
    seed = random.randrange(1_000_000) if more.seed is None else more.seed
    seconds = more.seconds or (5.0 if quick else 120.0)
    settings = Settings(seed, seconds, 1, QUICK) if quick else Settings(seed, seconds)
    report.config |= {"seed": seed, "seconds": seconds, "lease_s": LEASE_S}
    report.config |= {"workers": _WORKERS, "gateways": _GATEWAYS, "vfms": _VFMS, "callers": _CALLERS}
    without_pauses()  # the proxies are in this process
    try:
        with tempfile.TemporaryDirectory(prefix="fmplex-storm-") as folder:
            run_async(storm(Path(folder), settings, record))
    finally:
        _fill(report, record)


def _fill(report: Report, record: Record) -> None:
    report.add({name: float(number) for name, number in record.counts().items()})
    report.config["recovery"] = record.recovery()
    report.config["schedule"] = [
        {"at_s": one.at_s, "fault": str(one.fault), "recovery_s": one.seconds} for one in record.recoveries
    ]
    report.config["calls"] = dict(record.found.did)
    report.config["errors"] = dict(record.found.errors)
    report.config["sizes"] = record.sizes
    report.config["found"] = words_of(record.found)
    for one in record.recoveries:
        report.add({f"recovery_{one.fault.kind}": one.seconds})
    _say(*table(record), *report.config["found"])


def ratios(report: Report) -> Ratios:
    """Return the counts of what must not be."""
    return {name: report.samples.get(name, []) for name in COUNTED}


def _clean(report: Report) -> bool:
    return not any(value for values in ratios(report).values() for value in values)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, help="of the faults: which, when and on whom (default: a random one)")
    parser.add_argument("--seconds", type=float, help="that it lasts at least (default: 120)")


if __name__ == "__main__":
    main(Benchmark("storm", run, ratios, __doc__ or "", arguments=_arguments, passed=_clean))
