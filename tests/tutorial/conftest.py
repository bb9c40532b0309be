"""The examples of README and docs, run as written against a fleet on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmplex import Client
from fmplex.local import LocalFleet

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like a checkout, as far as the examples see: fleet files and the demo's data."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "configs").mkdir()
    shipped = (REPO / "configs" / "minilm.toml").read_text()
    config = re.sub(r"(?m)^port = \d+", "port = 0", shipped)
    (folder / "configs" / "minilm.toml").write_text(f'artifacts = "{folder}/artifacts"\n{config}')
    (folder / "client").symlink_to(REPO / "client")
    return folder


@pytest.fixture(scope="module")
def fleet(folder: Path) -> Iterator[LocalFleet]:
    """What `fmplex up` starts, from the fleet file that ships, with its files in a folder of the test's own."""
    with LocalFleet(folder / "configs" / "minilm.toml", port=0, data=folder / "data") as running:
        with Client(running.gateway_url) as fm:
            for spec in running.spec.vfms:
                fm.vfms.deploy(spec)
        yield running
