"""The file by which the commands of a folder find the fleet that `fmplex up` runs from there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

STATE_FILE = Path(".fmplex") / "up.json"


def running() -> dict[str, Any]:
    """Read the addresses of the fleet that `fmplex up` runs from this folder: `gateway`, `broker`, `artifacts`, its fleet file
    `config` (empty: unknown), and its `pid`; empty if there is none."""
    try:
        state: dict[str, Any] = json.loads(STATE_FILE.read_text())
    except (OSError, ValueError):
        return {}
    return state


def announce(gateway: str, broker: str, artifacts: str, config: str = "") -> bool:
    """Write this process's fleet to the file; False if that speaks of another fleet that runs."""
    other = running().get("pid")
    if other is not None and int(other) != os.getpid() and _lives(int(other)):
        return False
    STATE_FILE.parent.mkdir(exist_ok=True)
    STATE_FILE.touch(mode=0o600)  # the broker's URL may hold a password
    STATE_FILE.chmod(0o600)
    state = {"gateway": gateway, "broker": broker, "artifacts": artifacts, "config": config, "pid": os.getpid()}
    STATE_FILE.write_text(json.dumps(state))
    return True


def withdraw() -> None:
    """Remove the file if it speaks of this process's fleet."""
    if running().get("pid") == os.getpid():
        STATE_FILE.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
