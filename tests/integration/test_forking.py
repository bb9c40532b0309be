"""Workers of the tests are forks: what they say and how they end is as with the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import forking
from tests.support.fleets import write_minilm_fleet
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are taken over on Linux alone")
COMMAND = [sys.executable, "-m", "fmplex_worker"]


def ended(log: Path, *args: str, **env: str) -> tuple[int, str]:
    with log.open("wb") as out:
        code = subprocess.run(
            [*COMMAND, *args], stdout=out, stderr=out, env={**os.environ, **env}, check=False
        ).returncode
    return code, log.read_text()


@pytest.mark.parametrize("args", [["--help"], [], ["--config", "none.toml"]])
def test_a_fork_says_what_the_command_says(tmp_path: Path, args: list[str]) -> None:
    forked = ended(tmp_path / "forked", *args)
    assert forked == ended(tmp_path / "started", *args, OTHER="1"), "with a variable that no product has, it is started"
    assert "usage" in forked[1] or "none.toml" in forked[1]


def test_what_a_fork_says_ends_with_it() -> None:
    ended = subprocess.run([*COMMAND, "--config", "none.toml"], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "none.toml" in ended.stderr


def test_a_fork_is_a_child_with_a_place_and_a_session_of_its_own(tmp_path: Path) -> None:
    config = write_minilm_fleet(tmp_path)
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            [*COMMAND, "--config", config.name], stdout=log, stderr=log, cwd=tmp_path, start_new_session=True,
            env={**os.environ, "FMPLEX_BROKER": "redis://127.0.0.1:1"},
        )  # fmt: skip
    try:
        assert forking.__name__.encode() in Path(f"/proc/{worker.pid}/cmdline").read_bytes()
        wait_until(lambda: "127.0.0.1:1" in (tmp_path / "log").read_text(), "it reads the file of its folder")
        assert os.getsid(worker.pid) == worker.pid
        assert Path(f"/proc/{worker.pid}/cwd").readlink() == tmp_path
        assert worker.poll() is None
    finally:
        worker.kill()
    assert worker.wait(10) == -signal.SIGKILL
