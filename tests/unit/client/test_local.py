"""A fleet on this machine, as `fmplex up` watches it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from fmplex.local import LocalFleet
from fmplex.running import STATE_FILE, announce, running, withdraw
from fmplex_broker.errors import Conflict, InvalidInput
from tests.support.fleets import write_fleet
from tests.support.waiting import wait_until


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    config = write_fleet(tmp_path / "fleet.toml", {"name": "b", "model": "/nowhere"}, broker="embedded")
    fleet = LocalFleet(config, data=tmp_path)
    yield fleet
    for process in fleet.processes.values():
        process.kill()
        process.wait()


def begin(fleet: LocalFleet, does: str) -> None:
    fleet._run("worker-0", [sys.executable, "-c", does], "wb")


def ends(fleet: LocalFleet) -> None:
    wait_until(lambda: fleet.dead() == ["worker-0"], "it has ended", 30)


def test_a_process_that_was_killed_starts_again(fleet: LocalFleet) -> None:
    begin(fleet, "import time; print('served', flush=True); time.sleep(600)")
    first = fleet.processes["worker-0"]
    wait_until(lambda: "served" in fleet.log("worker-0"), "it serves")
    first.send_signal(signal.SIGKILL)
    ends(fleet)
    assert fleet.exit_reason("worker-0") == "was killed by SIGKILL"
    fleet.revive("worker-0")
    assert fleet.dead() == []
    # What it said in its life before is still there.
    wait_until(lambda: fleet.log("worker-0").count("served") >= 2, "it serves again")


def test_a_port_that_somebody_has_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    config = write_fleet(tmp_path / "fleet.toml", {"name": "b", "model": "/nowhere"}, broker="embedded")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        second = LocalFleet(config, port=port, data=tmp_path / "data")
        with pytest.raises(Conflict, match=rf"port {port} of 127\.0\.0\.1 is in use") as caught:
            second.start()
    assert caught.value.field == "gateway.port"
    assert second.processes == {}
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["lock"]


def test_a_host_that_is_not_this_machine_is_named(tmp_path: Path) -> None:
    config = write_fleet(tmp_path / "fleet.toml", {"name": "b", "model": "x"}, gateway={"host": "192.0.2.1"})
    with pytest.raises(InvalidInput) as caught:
        LocalFleet(config, port=0, data=tmp_path / "data").start()
    assert caught.value.field == "gateway.host"


BACKBONES = ({"name": "a", "model": "x"}, {"name": "b", "model": "y", "workers": 2})


@pytest.mark.parametrize(
    ("workers", "counts"),
    [
        (None, {"a": 1, "b": 2}),
        (3, {"a": 3, "b": 3}),
        ({"a": 4}, {"a": 4, "b": 2}),
        ({"a": 2, "b": 1}, {"a": 2, "b": 1}),
    ],
)
def test_how_many_workers_each_backbone_has(tmp_path: Path, workers: Any, counts: dict[str, int]) -> None:
    config = write_fleet(tmp_path / "fleet.toml", *BACKBONES)
    assert LocalFleet(config, workers=workers, data=tmp_path).workers == counts


def test_workers_for_a_backbone_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no backbone 'c'"):
        LocalFleet(write_fleet(tmp_path / "fleet.toml", *BACKBONES), workers={"c": 1}, data=tmp_path)


def test_a_fleet_has_its_own_artifacts_unless_the_file_says_where(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text('[backbone]\nname = "b"\nmodel = "x"\n')
    one, other = (LocalFleet(path, data=tmp_path / name).artifacts for name in ("one", "other"))
    assert (one, other) == (str(tmp_path / "one/artifacts"), str(tmp_path / "other/artifacts"))


def test_one_fleet_of_a_folder_is_announced_and_only_its_owner_withdraws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert announce("http://a", "redis://a", "x")
    assert announce("http://b", "redis://b", "x"), "its own may change"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        STATE_FILE.write_text(json.dumps({"gateway": "http://c", "pid": other.pid}))
        assert not announce("http://d", "redis://d", "x")
        withdraw()
        assert running()["gateway"] == "http://c"
        other.communicate(b"\n")
    assert announce("http://d", "redis://d", "x"), "the other one has ended"
    assert STATE_FILE.stat().st_mode & 0o077 == 0
    withdraw()
    assert running() == {}


def test_how_a_process_ended_is_said(fleet: LocalFleet) -> None:
    begin(fleet, "raise SystemExit(3)")
    ends(fleet)
    assert fleet.exit_reason("worker-0") == "ended with exit code 3"


def test_the_embedded_broker_starts_again_with_its_data(fleet: LocalFleet) -> None:
    server = fleet._server
    assert server is not None
    with server:
        client = redis.Redis.from_url(server.url)
        client.set("kept", "yes", px=600_000)
        client.waitaof(1, 0, 5_000)
        assert fleet.dead() == []
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: fleet.dead() == ["broker"], "it has ended", 30)
        fleet.revive("broker")
        assert fleet.dead() == []
        assert client.get("kept") == b"yes"
        client.close()
        server.kill()
        assert fleet.dead() == [], "that was on purpose"
