"""The contracts of import-linter are alive: in a copy of the packages, what each forbids is planted, and each says so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
PACKAGES = ("broker", "worker", "gateway", "client")
ROLES = "Roles import the broker package, never each other"
BROKER = "The broker package imports no role"
TORCH = "torch and transformers only in the worker"
REDIS = "redis only in fmplex_broker.streams"
BROKER_ROOMS = "The rooms of the broker package: no import goes back up"
WORKER_ROOMS = "The rooms of the worker: no import goes back up"
HOST = "The host side of the worker knows no engine and no torch"
PURE = "Scheduler and admission are pure"
# module, what is planted there, the contract that it breaks
PLANTED = [
    ("gateway/fmplex_gateway/planted.py", "from fmplex_worker import protocol", ROLES),
    ("broker/fmplex_broker/specs/planted.py", "import fmplex", BROKER),
    ("client/fmplex/planted.py", "import torch", TORCH),
    ("broker/fmplex_broker/planted.py", "import redis", REDIS),
    ("broker/fmplex_broker/wire/stats.py", "import redis", REDIS),
    ("worker/fmplex_worker/host/planted.py", "import redis", REDIS),
    ("broker/fmplex_broker/specs/planted.py", "from fmplex_broker.streams import keys", BROKER_ROOMS),
    ("broker/fmplex_broker/planted.py", "import json", BROKER_ROOMS),  # a module outside all rooms
    ("worker/fmplex_worker/packed/row.py", "from fmplex_worker.host import clock", WORKER_ROOMS),
    ("worker/fmplex_worker/host/planted.py", "import torch", HOST),
    ("worker/fmplex_worker/host/clock.py", "from fmplex_worker.engine import engine", HOST),
    ("worker/fmplex_worker/scheduling/planted.py", "import time", PURE),
    ("broker/fmplex_broker/admission/planted.py", "import asyncio", PURE),
    ("broker/fmplex_broker/examples/planted.py", "import asyncio", PURE),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages and their contracts."""
    folder = tmp_path_factory.mktemp("house")
    for package in PACKAGES:
        shutil.copytree(REPO / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "data"))
    shutil.copy(REPO / "pyproject.toml", folder)
    return folder


@pytest.fixture
def planted(copy: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """The import stands at the end of the module, or of a new one."""
    module, line, _ = request.param
    path = copy / module
    before = path.read_text() if path.exists() else None
    path.write_text(f"{before or ''}\n{line}\n")
    yield
    if before is None:
        path.unlink()
    else:
        path.write_text(before)


def broken(folder: Path) -> list[str]:
    """Lint a tree; return the contracts that are broken. Fails if the linter has not looked at all contracts."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(folder / package) for package in PACKAGES),
        "COLUMNS": "200",
    }
    command = [Path(sys.prefix) / "bin" / "lint-imports", "--config", "pyproject.toml", "--no-cache"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    verdicts = dict(re.findall(r"(?m)^(.+?) (KEPT|BROKEN)\b", done.stdout))
    assert set(verdicts) == contracts(), done.stdout + done.stderr
    found = [name for name, verdict in verdicts.items() if verdict == "BROKEN"]
    assert (done.returncode != 0) == bool(found)
    return found


def contracts() -> set[str]:
    config = tomllib.loads((REPO / "pyproject.toml").read_text())
    return {contract["name"] for contract in config["tool"]["importlinter"]["contracts"]}


def test_the_tree_as_it_is_breaks_none(copy: Path) -> None:
    assert broken(copy) == []


def test_every_contract_has_something_planted_against_it() -> None:
    assert {contract for _, _, contract in PLANTED} == contracts()


@pytest.mark.parametrize(
    ("planted", "contract"),
    [(case, case[2]) for case in PLANTED],
    ids=[f"{line} in {module}" for module, line, _ in PLANTED],
    indirect=["planted"],
)
@pytest.mark.usefixtures("planted")
def test_a_forbidden_import_is_named(copy: Path, contract: str) -> None:
    assert contract in broken(copy)
