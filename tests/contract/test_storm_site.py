"""The processes of `benchmarks.storm`: each has a proxy of its own, and whoever ends by itself is noted and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import storm_site
from benchmarks.storm_faults import KINDS, Fault, Faults
from benchmarks.storm_server import administrator
from benchmarks.storm_site import Site
from tests.support.waiting import until_soon

# Stands in for both roles: a worker says that it serves, a gateway listens; each ends in order, or not, when it is told to.
STAND_IN = """
import os, signal, socket, sys
module, status = sys.argv[1], int(os.environ.get("STAND_IN_STATUS", "0"))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(status))
if module == "fmplex_gateway":
    listening = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
else:
    print(f"worker w{os.getpid()} serves backbone tiny", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A site with its server and proxies, and stand-ins for its processes."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)

    def start(module: str, *args: str, **files: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-S", script, module, *args], **files)

    monkeypatch.setattr(storm_site, "start_module", start)
    async with Site(tmp_path, {"name": "tiny", "model": "none"}, workers=3, gateways=2) as site:
        yield site


async def test_every_process_has_a_proxy_of_its_own(running: Site) -> None:
    commands = [psutil.Process(member.pid).cmdline() for member in running.members.values()]
    urls = [command[command.index("--broker") + 1] for command in commands]
    assert urls == [running.proxies[name].url for name in running.members]
    assert len({*urls, running.proxies["sdk"].url}) == 6
    assert running.ended == []


@pytest.mark.parametrize("kind", ["worker_sigkill", "worker_sigterm", "gateway_sigkill", "gateway_sigterm"])
async def test_a_process_that_the_storm_ends_is_started_again(running: Site, kind: str) -> None:
    name = f"{KINDS[kind].place}-0"
    before = running.members[name].pid
    async with Faults(running)(Fault(kind, name, 0.0)):
        pass
    await running.serving(name)
    assert running.members[name].pid != before
    assert running.ended == []


async def test_one_that_ends_by_itself_is_noted_and_started_again(running: Site) -> None:
    before = running.members["worker-1"].pid
    os.kill(before, signal.SIGABRT)
    await until_soon(lambda: running.ended)
    assert running.ended[0].startswith("worker-1 ended with status -6: worker w")
    await running.serving("worker-1")
    assert running.members["worker-1"].pid != before


async def test_one_that_does_not_end_in_order_is_noted(running: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_STATUS", "3")
    await running.end("worker-0", signal.SIGKILL)  # the next one will end with 3
    await running.serving("worker-0")
    await running.close_in_order()
    assert [words.split(":")[0] for words in running.ended] == ["worker-0 ended with status 3 after SIGTERM"]


async def test_a_stopped_process_stands_still_and_goes_on(running: Site) -> None:
    process = psutil.Process(running.members["gateway-1"].pid)
    async with Faults(running)(Fault("gateway_sigstop_beyond_lease", "gateway-1", 1.0)):
        await until_soon(lambda: process.status() == psutil.STATUS_STOPPED)
    await until_soon(lambda: process.status() != psutil.STATUS_STOPPED)
    assert running.ended == []


async def test_a_worker_is_heard_again_once_it_has_renewed_its_lease(running: Site) -> None:
    worker = f"w{running.members['worker-2'].pid}"
    async with administrator(running.server) as redis:

        async def renew(ago_s: float) -> None:
            await redis.zadd("{tiny}:leases", {worker: (time.time() - ago_s + storm_site.LEASE_S) * 1000})

        await renew(ago_s=1)
        waiting = asyncio.create_task(running.heard("worker-2", time.time() - 0.5))
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
        await renew(ago_s=0)
        await asyncio.wait_for(waiting, 5)
