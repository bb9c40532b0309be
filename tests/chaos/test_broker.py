"""The broker dies and comes back; roles start in any order; gateways come and go."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
import redis

from fmplex import AsyncClient, Client, FmplexError, Unavailable, UnknownVfm
from fmplex.local import LocalFleet
from fmplex_broker.streams.embedded import EmbeddedServer
from tests.chaos.conftest import TEXT, VFMS, Crew, Load
from tests.support.fleets import gateway, spawn, status, write_minilm_fleet
from tests.support.waiting import until, wait_until


async def restart(fleet: LocalFleet) -> None:
    """SIGKILL, and after a moment of nothing the same server again, from its file."""
    server = fleet._server
    assert server is not None
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(0.5)
    await asyncio.to_thread(server.start)


async def test_a_broker_killed_under_load_forgets_no_acknowledged_job(fleet: LocalFleet, load: Load) -> None:
    await load.send_to_all(400)
    await load.reaches(100)
    await restart(fleet)
    assert len(load.answered) < load.sent, "there was still work when it died"
    await load.whole()
    await load.send_to_all(25)
    await load.whole()


async def test_callers_who_may_retry_get_through_a_restart(fleet: LocalFleet) -> None:
    """Calls before, during and after: none fails, although the gateway answers 503 meanwhile."""
    async with AsyncClient(fleet.gateway_url, retries=12) as client:
        reference = {vfm: (await client.infer(vfm, TEXT)).output for vfm in VFMS}
        over = asyncio.Event()
        seen: list[bool] = []

        async def ask(vfm: str) -> None:
            while not over.is_set():
                seen.append(set((await client.infer(vfm, TEXT)).output) == set(reference[vfm]))

        asking = [asyncio.create_task(ask(vfm)) for vfm in VFMS for _ in range(2)]
        await until(lambda: len(seen) > 20, "calls go through")
        await restart(fleet)
        at = len(seen)
        await until(lambda: len(seen) > at + 50, "calls go through again")
        over.set()
        await asyncio.gather(*asking)
    assert all(seen)


async def test_while_the_broker_is_away_everybody_is_told(fleet: LocalFleet) -> None:
    server = fleet._server
    assert server is not None
    async with AsyncClient(fleet.gateway_url, retries=0) as client:
        assert (await client.infer("plain", TEXT)).output
        await asyncio.to_thread(server.kill)
        try:
            with pytest.raises(FmplexError) as caught:
                await client.infer("plain", TEXT)
            assert (caught.value.status, caught.value.code) == (503, "broker_unavailable")
            codes = [
                await asyncio.to_thread(status, fleet.gateway_url + p) for p in ("/healthz", "/readyz", "/metrics")
            ]
            assert codes == [200, 503, 200]
        finally:
            await asyncio.to_thread(server.start)
        await until(lambda: status(f"{fleet.gateway_url}/readyz") == 200, "the workers are back")
        assert (await client.infer("plain", TEXT)).output


async def test_after_the_broker_lost_everything_the_fleet_can_be_used_again(
    fleet: LocalFleet, place: Path, crew: Crew
) -> None:
    before = {name: crew.ids(name)[-1] for name in crew.processes()}
    empty = redis.Redis.from_url(fleet.broker_url)
    empty.flushall()
    empty.close()
    await until(lambda: all(crew.serves(n) and crew.ids(n)[-1] != old for n, old in before.items()), "new lives began")
    async with AsyncClient(fleet.gateway_url, retries=5) as client:
        with pytest.raises(UnknownVfm):
            await client.infer("plain", TEXT)
        for name in VFMS:
            await client.vfms.deploy(place / "vfms" / name)
            assert (await client.infer(name, TEXT)).output


async def test_a_gateway_told_to_end_answers_what_it_has_taken(fleet: LocalFleet, tmp_path: Path) -> None:
    with gateway(fleet.config, fleet.broker_url, tmp_path / "gateway.log") as (url, process):
        async with AsyncClient(url, retries=0) as client:
            calls = [asyncio.create_task(client.infer("heavy", [TEXT] * 50)) for _ in range(20)]
            await until(lambda: any(c.done() for c in calls), "calls go through")
            process.send_signal(signal.SIGTERM)
            results = await asyncio.gather(*calls)
            assert [len(r) for r in results] == [50] * 20
            # uvicorn ends in order and then dies of the signal, as shells like it.
            assert await asyncio.to_thread(process.wait, 60) in (0, -signal.SIGTERM)
            with pytest.raises(Unavailable, match="does not answer"):
                await client.infer("heavy", TEXT)


async def test_a_gateway_that_dies_is_an_error_that_says_so(fleet: LocalFleet, tmp_path: Path) -> None:
    with gateway(fleet.config, fleet.broker_url, tmp_path / "gateway.log") as (url, process):
        async with AsyncClient(url, retries=0) as client:
            call = asyncio.create_task(client.infer("heavy", [TEXT] * 1000))
            await asyncio.wait({call}, timeout=0.1)
            process.kill()
            with pytest.raises(Unavailable, match="does not answer"):
                await call


def test_the_roles_may_start_in_any_order(tmp_path: Path) -> None:
    """Worker and gateway first, the broker last: they say what is missing, and serve once it is there."""
    server = EmbeddedServer(tmp_path / "broker")
    config, log = write_minilm_fleet(tmp_path, worker={"lease_ms": 800}), tmp_path / "worker.log"
    worker = spawn("fmplex_worker", config, server.url, log)
    try:
        with gateway(config, server.url, tmp_path / "gateway.log") as (url, _):
            assert status(f"{url}/readyz") == 503
            wait_until(
                lambda: "is it running, and is its URL right?" in log.read_text(), "the worker says what it misses"
            )
            wait_until(lambda: "not ready" in (tmp_path / "gateway.log").read_text(), "the gateway says it too")
            assert worker.poll() is None
            for said in (log, tmp_path / "gateway.log"):
                assert said.read_text().count("is it running, and is its URL right?") == 1, "it is said once"
            with server, Client(url) as client:
                wait_until(lambda: status(f"{url}/readyz") == 200, "the fleet is ready")
                client.vfms.deploy({"name": "e", "backbone": "minilm", "head": {"kind": "embedding"}})
                assert client.infer("e", TEXT).output
                worker.terminate()
                assert worker.wait(60) == 0
    finally:
        worker.kill()
        worker.wait()
