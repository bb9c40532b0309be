"""The examples of README and docs, run as written against a fleet on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fmplex.local import LocalFleet
from tests.tutorial.documents import REPO, copy_fleet_file, up


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like a checkout, as far as the examples see: fleet files and the demo's data."""
    folder = tmp_path_factory.mktemp("tutorial")
    copy_fleet_file(folder, "minilm.toml")
    (folder / "client").symlink_to(REPO / "client")
    return folder


@pytest.fixture(scope="module")
def fleet(folder: Path) -> Iterator[LocalFleet]:
    """What `fmplex up` starts, from the fleet file that ships, with its files in a folder of the test's own."""
    with up(folder, "minilm.toml") as running:
        yield running
