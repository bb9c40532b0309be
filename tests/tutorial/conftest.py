"""The examples of README and docs, run as written against a fleet on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fmplex.local import LocalFleet

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tutorial")


@pytest.fixture(scope="session")
def fleet(folder: Path) -> Iterator[LocalFleet]:
    """What `fmplex up` starts, from the fleet file that ships, with packages in a folder of the test's own."""
    shipped = (REPO / "configs" / "minilm.toml").read_text()
    config = folder / "fleet.toml"
    config.write_text(shipped.replace('["../vfms"]', f'["{folder}/vfms"]').replace("port = 8080", "port = 0"))
    with LocalFleet(config, data=folder / "data") as running:
        yield running
