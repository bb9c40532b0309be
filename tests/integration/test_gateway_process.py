"""The gateway as a process: the socket that it is given, and what it says before it ends over its keys."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fmplex_broker.streams.embedded import free_port
from tests.integration.shell import clean_environment
from tests.support.fleets import status, write_fleet
from tests.support.waiting import wait_until

BACKBONE = {"name": "m", "model": "/nowhere"}  # no worker is started


def command(config: Path, *more: str | int) -> list[str]:
    broker = f"redis://127.0.0.1:{free_port()}"  # nobody is there
    return [sys.executable, "-m", "fmplex_gateway", "--config", str(config), "--broker", broker, *map(str, more)]


def refused(config: Path, *more: str | int, **how: Any) -> str:
    """Run a gateway that must not start; return what it says."""
    done = subprocess.run(
        command(config, *more), capture_output=True, text=True, timeout=60, env=clean_environment(), **how
    )
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def test_it_serves_on_a_socket_that_it_inherits(tmp_path: Path) -> None:
    config = write_fleet(tmp_path / "fleet.toml", BACKBONE)
    with socket.create_server(("127.0.0.1", 0)) as listening, (tmp_path / "log").open("wb") as log:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        process = subprocess.Popen(
            command(config, "--fd", listening.fileno()), pass_fds=[listening.fileno()], stdout=log, stderr=log,
            env=clean_environment(),
        )  # fmt: skip
        try:
            # Whoever calls before it serves waits in the socket's backlog.
            wait_until(lambda: process.poll() is not None or status(f"{url}/healthz") == 200, "it serves")
            assert process.poll() is None, (tmp_path / "log").read_text()
        finally:
            process.terminate()
            process.wait(30)


def test_a_descriptor_that_is_no_socket_of_tcp_is_refused(tmp_path: Path) -> None:
    config = write_fleet(tmp_path / "fleet.toml", BACKBONE)
    assert refused(config, "--fd", 0, stdin=subprocess.DEVNULL).startswith("invalid_input: --fd 0: no open socket")
    assert refused(config, "--fd", 99).startswith("invalid_input: --fd 99: no open socket")
    assert refused(config, "--fd", -1).startswith("invalid_input: --fd -1: no open socket")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        said = refused(config, "--fd", other.fileno(), pass_fds=[other.fileno()])
    assert "not a TCP socket" in said
    assert "--fd goes without --host and --port" in refused(config, "--fd", 0, "--port", 8080)


@pytest.mark.parametrize("content", [None, "secret", "secret in a file"])
def test_a_key_file_that_holds_no_key_is_named_and_not_shown(tmp_path: Path, content: str | None) -> None:
    keys = [{"name": "team", "key_file": "team.key", "scopes": ["infer"]}]
    config = write_fleet(tmp_path / "fleet.toml", BACKBONE, gateway={"keys": keys})
    if content is not None:
        (tmp_path / "team.key").write_text(content)
    said = refused(config)
    assert said.startswith("invalid_input: gateway.keys.0.key_file: ")
    assert "secret" not in said
    assert said.count("\n") == 1


def test_a_wrong_key_of_the_fleet_file_is_not_shown(tmp_path: Path) -> None:
    keys = [{"name": "team", "key": "secret of a team", "scopes": ["infer"]}]
    said = refused(write_fleet(tmp_path / "fleet.toml", BACKBONE, gateway={"keys": keys}))
    assert "gateway.keys.0.key: a key is made of printable ASCII" in said
    assert "secret" not in said
